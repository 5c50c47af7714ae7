package extract

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/plan"
)

// Survey is a base and a tuned model side by side: every tensor of one with its
// counterpart in the other, and what is found when they are compared.
type Survey struct {
	base, tuned *checkpoint.Model
	config      hfrepo.Config // of the base
	opts        Options
	modelType   string

	items     []*item
	modules   map[string]bool  // names of modules that own tensors, as in memory
	weights   map[string]*item // by module
	attention map[string]bool  // modules that keep their projections as parameters
	decisions []plan.Decision
	findings  []finding // by item

	gguf                 bool   // both models are, or are seen as
	embedding, head      string // tensors of the tuned model, as in its files
	prefix               string // that names have in memory and lack in the files
	tiedBase, tiedTuned  bool
	affordable, maxSweep int64
}

// pair is a tensor with its counterpart. Name is what the model calls it; the
// specs have the names to read it by, as a tied head may be stored as embedding.
type pair struct {
	name        string
	base, tuned tensor.Spec
}

// Open pairs the tensors of a base and a tuned model and gives every one its
// role. It reads headers only.
func Open(base, tuned *checkpoint.Model, o Options) (*Survey, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	return open(base, tuned, o)
}

func open(base, tuned *checkpoint.Model, o Options) (*Survey, error) {
	s := &Survey{
		base: base, tuned: tuned, opts: o,
		config: hfrepo.NewConfig(base.Config), modules: make(map[string]bool), attention: make(map[string]bool), weights: make(map[string]*item),
	}
	for _, check := range []func() error{s.checkKinds, s.checkConfigs, s.checkFloats} {
		if err := check(); err != nil {
			return nil, err
		}
	}
	pairs, err := s.match()
	if err != nil {
		return nil, err
	}
	s.findPrefix()
	if err := s.makeItems(pairs); err != nil {
		return nil, err
	}
	if err := s.choose(); err != nil {
		return nil, err
	}
	s.findings = make([]finding, len(s.items))
	s.affordable = s.affordableRank()
	return s, nil
}

// decide records a decision; of several with one code and message the tensors
// are gathered.
func decide(all *[]plan.Decision, code, message string, tensors ...string) {
	for i := range *all {
		if d := &(*all)[i]; d.Code == code && d.Message == message {
			d.Tensors = append(d.Tensors, tensors...)
			return
		}
	}
	*all = append(*all, plan.Decision{Code: code, Message: message, Tensors: append([]string{}, tensors...)})
}

func (s *Survey) decide(code, message string, tensors ...string) {
	decide(&s.decisions, code, message, tensors...)
}

func (s *Survey) checkKinds() error {
	for _, m := range []*checkpoint.Model{s.base, s.tuned} {
		if m.IsAdapter() {
			return inputErrorf(m, "it is an adapter, not a model; 'loratool merge' makes a model of it")
		}
	}
	return s.checkContainers()
}

// checkConfigs compares what the two config.json say of the architecture. What
// one of them leaves open is no contradiction.
func (s *Survey) checkConfigs() error {
	if s.gguf {
		return s.checkKeys()
	}
	tuned := hfrepo.NewConfig(s.tuned.Config)
	s.modelType = s.config.ModelType()
	if s.modelType == "" {
		s.modelType = tuned.ModelType()
	}
	for _, c := range []struct{ key, base, tuned string }{
		{"model_type", s.config.ModelType(), tuned.ModelType()},
		{"architectures", s.config.Architecture(), tuned.Architecture()},
	} {
		if c.base != c.tuned && c.base != "" && c.tuned != "" {
			return inputErrorf(s.tuned, "config.json: %s is %q, the base's is %q: these are different models", c.key, c.tuned, c.base)
		}
	}
	layers, okBase := s.config.Layers()
	others, okTuned := tuned.Layers()
	if okBase && okTuned && layers != others {
		return inputErrorf(s.tuned, "config.json: it has %d layers, the base has %d: these are different models", others, layers)
	}
	for m, c := range map[*checkpoint.Model]hfrepo.Config{s.base: s.config, s.tuned: tuned} {
		if s.decideQuantized(m) {
			continue
		}
		if q := c.Quantization(); q != nil {
			method, _ := q.String("quant_method") // a nameless one is refused too
			return inputErrorf(m, "config.json: it is quantized (%s): the difference needs both models in a floating-point form", method)
		}
	}
	return nil
}

// decideQuantized says so if a model is stored in codes.
func (s *Survey) decideQuantized(m *checkpoint.Model) bool {
	kinds := slices.Sorted(maps.Keys(m.Quantization()))
	if len(kinds) > 0 {
		s.decide("quantized-side", fmt.Sprintf("%s is stored as %s: its weights are what the codes stand for", m.Name, strings.Join(kinds, " and ")))
	}
	return len(kinds) > 0
}

// checkFloats refuses values that stand for others.
func (s *Survey) checkFloats() error {
	for _, m := range []*checkpoint.Model{s.base, s.tuned} {
		if err := m.CheckScales(); err != nil {
			return err
		}
	}
	return nil
}

// match pairs the tensors by name, in the order of the tuned model. A head that
// is tied and stored on one side only is paired with the embedding of the other.
func (s *Survey) match() ([]pair, error) {
	s.findTies()
	var pairs []pair
	taken := make(map[string]bool)
	for _, t := range s.tuned.Specs() {
		b, ok := s.counterpart(s.base, t.Name)
		switch {
		case ok:
			taken[b.Name] = true
		case t.Name == s.head && s.tiedBase:
			b, _ = s.base.Lookup(s.embedding)
		case arch.IsBuffer(t.Name):
			s.decide("buffer", "tensors that the model computes itself, on one side only, are left out", t.Name)
			continue
		default:
			return nil, inputErrorf(s.tuned, "tensor %q is not in the base: these are different models", t.Name)
		}
		pairs = append(pairs, pair{t.Name, b, t})
	}
	for _, b := range s.base.Specs() {
		switch {
		case taken[b.Name]:
		case b.Name == s.head && s.tiedTuned:
			t, _ := s.tuned.Lookup(s.embedding)
			pairs = append(pairs, pair{s.head, b, t})
		case arch.IsBuffer(b.Name):
			s.decide("buffer", "tensors that the model computes itself, on one side only, are left out", b.Name)
		default:
			return nil, inputErrorf(s.tuned, "tensor %q of the base is missing", b.Name)
		}
	}
	return pairs, nil
}

// counterpart finds a tensor by its name or by the one it had in older files.
func (s *Survey) counterpart(m *checkpoint.Model, name string) (tensor.Spec, bool) {
	for _, n := range append([]string{name}, arch.OldNames(name)...) {
		if spec, ok := m.Lookup(n); ok {
			return spec, true
		}
	}
	return tensor.Spec{}, false
}

// findTies finds the input embedding and its head, and on which sides they are
// one tensor.
func (s *Survey) findTies() {
	if s.gguf { // a tied head is not stored; one that is stored on one side only is no pair
		s.embedding, s.head = ggufEmbedding, ggufHead
		return
	}
	architecture := s.config.Architecture()
	names := func(yield func(string) bool) {
		for _, spec := range s.tuned.Specs() {
			if len(spec.Shape) == 2 && !yield(spec.Name) {
				return
			}
		}
	}
	embedding, head, ok := arch.Embeddings(names, architecture)
	if !ok {
		return
	}
	if _, ok := s.base.Lookup(embedding); !ok {
		return
	}
	s.embedding, s.head = embedding, head
	tied := func(m *checkpoint.Model) bool {
		_, stored := m.Lookup(head)
		tied, stated := hfrepo.NewConfig(m.Config).Tied()
		if stated {
			return tied && (stored || architecture == "" || arch.HasHead(architecture))
		}
		return !stored && arch.HasHead(architecture)
	}
	s.tiedBase, s.tiedTuned = tied(s.base), tied(s.tuned)
}
