package convert

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/plan"
)

// This file makes a LoRA adapter of llama.cpp from one of PEFT. What a conversion does to
// a weight W' = W + s·B·A it does to the factors: another order of the rows is one of the
// rows of B, half of the rows is half of those of B, stacked experts are stacked factors.
// A runtime applies alpha/rank · B·A, with one alpha for the file and the rank of each
// pair (llama.cpp, src/llama-adapter.cpp), so that any other scale goes into B:
//
//	B' = s·rank/alpha · B
//
// in float64, rounded once. alpha is the value of s·rank that most pairs have: of rank-
// stabilised adapters alpha·sqrt(rank), and no factor changes.

// MergeInsteadError says that an adapter holds something that no LoRA adapter of the
// other kind can. Merged into the base it counts.
type MergeInsteadError struct{ Adapter, Reason string }

func (e *MergeInsteadError) Error() string { return e.Reason }

// Hint tells the way out.
func (e *MergeInsteadError) Hint() string {
	return "merge it: loratool merge --base BASE --adapter " + e.Adapter + " -o OUT, where BASE is the folder or the GGUF file"
}

// adapterPlanner is the state of a conversion of an adapter.
type adapterPlanner struct {
	*planner // whose source is the adapter
	from     *adapter.Adapter
	base     *checkpoint.Model // as Hugging Face knows it
	family   *arch.Family
	heads    int64
	kvHeads  int64
	experts  int64

	names []string // of the pairs, in the order of the adapter's modules
	pairs map[string]*stackedPair
}

// stackedPair is the factors of one tensor of GGUF: of a matrix, or of each of a stack.
type stackedPair struct {
	name       string
	rows, cols int64
	experts    int64 // of a stack; 0 for one matrix
	embedding  bool
	terms      [][]pairTerm // of each matrix
}

// pairTerm is a product that is added to a matrix: the rows of one group of a pair.
type pairTerm struct {
	*pairSource
	group int64
	row   func(i int64) int64 // the row of B that row i of the matrix has; -1 for none
}

// pairSource is a pair of the adapter: A (groups·rank, in), B (out, groups·rank).
type pairSource struct {
	module       string
	a, b         tensor.Spec
	rank, groups int64
	rankMajor    bool // in B the group runs fastest
	embedding    bool // A (rank, vocabulary)
	scale        float64
}

// column is where B has direction k of a group.
func (p *pairSource) column(group, k int64) int64 {
	if p.rankMajor {
		return k*p.groups + group
	}
	return group*p.rank + k
}

// isGGUFAdapter reports whether a model is an adapter of llama.cpp.
func isGGUFAdapter(m *checkpoint.Model) bool {
	if m.GGUF() == nil {
		return false
	}
	kind, _, err := m.GGUF().Metadata().OptText("general.type")
	return err == nil && kind == "adapter"
}

// planAdapter decides how to write an adapter of PEFT as GGUF.
func planAdapter(p *planner) (*Conversion, error) {
	from, err := adapter.Open(p.source)
	if err != nil {
		return nil, err
	}
	c := &adapterPlanner{planner: p, from: from, pairs: make(map[string]*stackedPair)}
	for _, step := range []func() error{c.refuse, c.openBase, c.addTargets} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return c.writeGGUF()
}

// instead is the error for what only a merge can do.
func (c *adapterPlanner) instead(format string, args ...any) error {
	return &checkpoint.InputError{Path: c.source.Path, Err: &MergeInsteadError{c.source.Path, fmt.Sprintf(format, args...)}}
}

// refuse names what a LoRA adapter of llama.cpp has no place for.
func (c *adapterPlanner) refuse() error {
	k := c.from.Config
	switch {
	case k.Type != "LORA":
		return c.instead("llama.cpp has LoRA adapters only, it is %s", k.Type)
	case k.DoRA:
		return c.instead("llama.cpp has no DoRA (use_dora): its magnitudes depend on the weights of the base")
	case k.KaSA, k.Init != "":
		return c.instead("it was made by changing the base (init_lora_weights): its factors are not the change")
	case len(k.LayerReplication) > 0:
		return c.instead("its layers are copies of the base's (layer_replication), which a GGUF base does not have")
	}
	var copies []string
	for _, s := range c.from.Saved {
		if !s.BaseCopy {
			return c.instead("it replaces %d tensors as a whole, %q first: a LoRA adapter of llama.cpp holds pairs of factors", len(c.from.Saved), s.Name)
		}
		copies = append(copies, s.Spec.Name)
	}
	if len(copies) > 0 {
		c.decide("base-copies", "these are the base's own weights under adapted tables, which PEFT saves beside the factors: they are left out", copies...)
	}
	for _, m := range c.from.Modules {
		for _, part := range slices.Sorted(maps.Keys(m.Parts)) {
			switch part {
			case "lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B":
			default:
				return c.instead("%q: a LoRA adapter of llama.cpp holds pairs of factors, no %s", m.Parts[part].Name, part)
			}
		}
	}
	return nil
}

// openBase finds family, heads and names of the base.
func (c *adapterPlanner) openBase() error {
	base := c.options.Base
	c.base = base
	if base.GGUF() != nil {
		h, seen, err := asHF(base)
		if err != nil {
			return err
		}
		c.base, c.family, c.heads, c.kvHeads, c.experts = seen.Model, h.family, h.heads, h.kvHeads, h.experts
		return nil
	}
	g := &ggufPlanner{planner: &planner{source: base, config: hfrepo.NewConfig(base.Config), plan: new(plan.Plan)}}
	if err := g.open(); err != nil {
		return err
	}
	c.family, c.heads, c.kvHeads = g.family, g.heads, g.kvHeads
	c.experts, _ = g.sizeOf("expert_count")
	return nil
}

// addTargets finds the tensors of GGUF that the modules of the adapter change.
func (c *adapterPlanner) addTargets() error {
	config := hfrepo.NewConfig(c.base.Config)
	_, stored := c.base.Lookup("lm_head.weight")
	tied := !stored && arch.HasHead(config.Architecture())
	for _, m := range c.from.Modules {
		_, isTable := m.Part("lora_embedding_A")
		switch {
		case tied && (m.Name == "lm_head" || strings.HasSuffix(m.Name, ".lm_head")):
			return c.instead("it changes the head, which the base ties to its embedding: llama.cpp has one tensor for both")
		case tied && isTable:
			return c.instead("it changes the embedding, to which the base ties its head: llama.cpp would use the factors for both, and stops at their shapes")
		}
	}
	layers, _ := config.Layers()
	aligned, err := adapter.Align(c.from, c.base, adapter.Family{ModelType: config.ModelType(), Layers: layers})
	if err != nil {
		return err
	}
	for _, s := range c.from.Saved {
		if own, ok := c.base.Lookup(aligned.BaseName(s.Name)); ok && !own.Shape.Equal(s.Spec.Shape) {
			return c.instead("its copy of %q is %v, the base has %v: the vocabulary was resized", s.Name, s.Spec.Shape, own.Shape)
		}
	}
	for _, t := range aligned.Targets {
		source, err := c.sourceOf(t)
		if err != nil {
			return err
		}
		for _, place := range t.Places {
			if err := c.addPlace(source, place); err != nil {
				return err
			}
		}
	}
	return nil
}

// sourceOf reads the pair of a module.
func (c *adapterPlanner) sourceOf(t *adapter.Target) (*pairSource, error) {
	k := c.from.Config
	s := &pairSource{module: t.PatternName, groups: 1, scale: k.ScaleOf(t.PatternName)}
	var okA, okB bool
	s.a, okA = t.Part("lora_A")
	s.b, okB = t.Part("lora_B")
	if e, ok := t.Part("lora_embedding_A"); ok {
		s.a, okA, s.embedding = e, true, true
		s.b, okB = t.Part("lora_embedding_B")
	}
	switch {
	case !okA || !okB:
		for _, part := range t.Parts {
			return nil, c.from.Mismatch(part.Name, "its counterpart is missing")
		}
	case len(s.a.Shape) != 2 || len(s.b.Shape) != 2 || s.b.Cols() != s.a.Rows() || len(t.Shape) != 2 && len(t.Shape) != 3:
		return nil, c.from.Mismatch(s.a.Name, "factors of %v and %v for %v are no pair of a matrix", s.b.Shape, s.a.Shape, t.Shape)
	case !s.a.DType.IsFloat() || !s.b.DType.IsFloat():
		return nil, c.from.Mismatch(s.a.Name, "%s is not a type that a factor can have", s.a.DType)
	}
	out, in := t.Shape[0], t.Shape[len(t.Shape)-1]
	if len(t.Shape) == 3 {
		s.groups, out = t.Shape[0], t.Shape[1]
		s.rankMajor = c.from.Unsloth() == ""
		if s.a.Rows()%s.groups != 0 {
			return nil, c.from.Mismatch(s.a.Name, "its %d rows do not divide over %d experts", s.a.Rows(), s.groups)
		}
	}
	s.rank = s.a.Rows() / s.groups
	if want := k.RankOf(t.PatternName); s.rank != want {
		return nil, c.from.Mismatch(s.a.Name, "its rank is %d, the config says %d for %q", s.rank, want, t.PatternName)
	}
	fits := s.b.Rows() == out && s.a.Cols() == in
	switch {
	case s.embedding:
		fits = s.b.Rows() == in && s.a.Cols() == out
	case len(t.Shape) == 2 && c.isTransposed(t.Places[0].Tensor):
		fits = s.b.Rows() == in && s.a.Cols() == out
	}
	if !fits {
		return nil, c.from.Mismatch(s.a.Name, "factors of %v and %v do not fit the base's %v", s.b.Shape, s.a.Shape, t.Shape)
	}
	return s, nil
}

// isTransposed reports whether the base stores a weight as (in, out).
func (c *adapterPlanner) isTransposed(name string) bool {
	found := c.family.FromHF(name)
	return len(found) > 0 && found[0].Change == arch.Transposed
}

// addPlace adds a pair to the tensors that a tensor of the base becomes.
func (c *adapterPlanner) addPlace(s *pairSource, place adapter.Place) error {
	spec, ok := c.base.Lookup(place.Tensor)
	if !ok {
		return c.from.Mismatch(s.a.Name, "the base has no tensor %q", place.Tensor)
	}
	found := c.family.FromHF(place.Tensor)
	if len(found) == 0 {
		return c.from.Mismatch(s.a.Name, "%s of GGUF has no tensor for %q", c.family.Name, place.Tensor)
	}
	for _, t := range found {
		if module := strings.TrimSuffix(t.Name, ".weight"); !adapter.HasGGUFProduct(module) && module != "token_embd" && module != "output" {
			return c.instead("it changes %q, which is %q in GGUF: llama.cpp applies no adapter to that", s.module, t.Name)
		}
		if err := c.addTensor(s, place, spec, t); err != nil {
			return err
		}
	}
	return nil
}

// addTensor adds a pair to one tensor of GGUF.
func (c *adapterPlanner) addTensor(s *pairSource, place adapter.Place, spec tensor.Spec, t arch.GGUFTensor) error {
	p, matrices := &stackedPair{name: t.Name, embedding: s.embedding}, int64(1)
	dims := spec.Shape
	first := int64(0) // row of the tensor in Hugging Face that a matrix begins with
	each := dims[0]   // rows from one matrix to the next
	switch {
	case t.Change == arch.Stacked:
		p.experts = c.experts
		if len(dims) != 2 || int64(t.Expert) >= c.experts {
			return c.from.Mismatch(s.a.Name, "%q is none of %d experts", place.Tensor, c.experts)
		}
	case len(dims) == 3:
		p.experts, matrices, each = dims[0], dims[0], dims[1]
	case len(dims) != 2:
		return c.from.Mismatch(s.a.Name, "%q of shape %v is no matrix", place.Tensor, dims)
	}
	p.rows, p.cols = each, dims[len(dims)-1]
	row := func(i int64) int64 { return i }
	switch t.Change {
	case arch.Same, arch.Stacked:
	case arch.Transposed:
		if place.At != 0 || place.From != 0 || place.Rows != dims[0] {
			return c.from.Mismatch(s.a.Name, "a part of %q can't be adapted", place.Tensor)
		}
		p.rows, p.cols = p.cols, p.rows
		place.Rows = p.rows
	case arch.PairQ, arch.PairK:
		heads := c.heads
		if t.Change == arch.PairK {
			heads = c.kvHeads
		}
		if p.rows%(2*heads) != 0 {
			return c.from.Mismatch(s.a.Name, "%q has %d rows, which are no %d heads", place.Tensor, p.rows, heads)
		}
		head := p.rows / heads
		row = func(i int64) int64 { return i/head*head + i%2*head/2 + i%head/2 }
	case arch.SplitGate, arch.SplitUp:
		p.rows = each / 2
		if t.Change == arch.SplitUp {
			first = p.rows
		}
	default:
		return c.from.Mismatch(s.a.Name, "%q is no matrix that an adapter can change", place.Tensor)
	}
	if s.embedding {
		return c.addTerm(p, 0, pairTerm{pairSource: s})
	}
	for m := range matrices {
		begin := m*each + first
		group := (max(begin, place.At) - place.At + place.From) / s.b.Rows()
		term := pairTerm{pairSource: s, group: group, row: func(i int64) int64 {
			at := begin + row(i) - place.At
			if at < 0 || at >= place.Rows {
				return -1
			}
			return (at + place.From) % s.b.Rows()
		}}
		covered := begin < place.At+place.Rows && begin+p.rows > place.At
		if !covered {
			continue
		}
		index := m
		if t.Change == arch.Stacked {
			index = int64(t.Expert)
		}
		if err := c.addTerm(p, index, term); err != nil {
			return err
		}
	}
	return nil
}

// addTerm adds a product to a matrix.
func (c *adapterPlanner) addTerm(p *stackedPair, matrix int64, t pairTerm) error {
	have := c.pairs[p.name]
	if have == nil {
		have = p
		have.terms = make([][]pairTerm, max(p.experts, 1))
		c.pairs[p.name], c.names = p, append(c.names, p.name)
	}
	if have.rows != p.rows || have.cols != p.cols || have.experts != p.experts || have.embedding != p.embedding || p.embedding && len(have.terms[0]) > 0 {
		return c.from.Mismatch(t.a.Name, "its change of %q does not fit the one of %q", p.name, have.anyTerm().module)
	}
	have.terms[matrix] = append(have.terms[matrix], t)
	return nil
}

func (p *stackedPair) anyTerm() *pairTerm {
	for _, terms := range p.terms {
		for i := range terms {
			return &terms[i]
		}
	}
	return nil // never: a pair has a term
}

// rank is that of the stored factors: products that are added need that of all.
func (p *stackedPair) rank() int64 {
	rank := int64(0)
	for _, terms := range p.terms {
		sum := int64(0)
		for _, t := range terms {
			sum += t.rank
		}
		rank = max(rank, sum)
	}
	return rank
}

// alpha is the one that leaves most pairs as they are.
func (c *adapterPlanner) alpha() float32 {
	votes := make(map[float32]int)
	best := float32(0)
	for _, name := range c.names {
		p := c.pairs[name]
		for _, terms := range p.terms {
			for _, t := range terms {
				a := float32(t.scale * float64(p.rank()))
				if votes[a]++; a != 0 && (best == 0 || votes[a] > votes[best]) {
					best = a
				}
			}
		}
	}
	if best == 0 {
		return 1 // an alpha of 0 would mean a scale of 1
	}
	return best
}

// writeGGUF plans the file.
func (c *adapterPlanner) writeGGUF() (*Conversion, error) {
	out := c.options.DType
	kind, ok := gguf.TypeOf(out)
	switch {
	case out == tensor.NoDType:
		out, kind = tensor.F32, gguf.F32
	case !ok || out == tensor.F64:
		return nil, &OptionError{"dtype", "adapters in GGUF have f32, f16 or bf16"}
	}
	view := &factorView{source: c.source, tensors: make(map[string]*factorTensor)}
	alpha := c.alpha()
	var specs []gguf.Spec
	var folded, empty []string
	for _, name := range c.names {
		p := c.pairs[name]
		a, b, changed := p.factors(float64(alpha))
		if changed {
			folded = append(folded, name)
		}
		if slices.ContainsFunc(p.terms, func(t []pairTerm) bool { return len(t) == 0 }) {
			empty = append(empty, name)
		}
		for _, f := range []*factorTensor{a, b} {
			if err := view.add(f); err != nil {
				return nil, c.errorf("%w", err)
			}
			step := plan.Step{Read: plan.Whole(0, f.spec), Write: plan.Placement{Tensor: f.spec.Name, DType: out}}
			step.Judge = !step.Copies()
			c.plan.Steps = append(c.plan.Steps, step)
			specs = append(specs, gguf.Spec{Name: f.spec.Name, Type: kind, Shape: f.spec.Shape})
		}
	}
	c.decide("adapter-names", fmt.Sprintf("names, heads and shapes are those of %s, as %q of GGUF; alpha is %v", c.options.Base.Name, c.family.Name, alpha))
	if len(folded) > 0 {
		c.decide("scale-folded", "llama.cpp knows one alpha: the rest of their scale is multiplied into lora_b, in float64 and rounded once", folded...)
	}
	if len(empty) > 0 {
		c.decide("experts-zero", "experts without factors get zeros, which change nothing", empty...)
	}
	keys, err := c.keys(alpha)
	if err != nil {
		return nil, err
	}
	c.plan.Unhashed = true // as of a model, the file has no place for what it was made from
	done := &Conversion{Plan: c.plan, View: view, source: c.source, opts: c.options}
	if done.Layout, err = checkpoint.NewGGUFLayout(c.options.Output, specs, keys, checkpoint.GGUFOptions{}); err != nil {
		return nil, c.errorf("%w", err)
	}
	return done, nil
}

// keys are those of llama.cpp's converter, in its order.
func (c *adapterPlanner) keys(alpha float32) (*gguf.Metadata, error) {
	g := &ggufPlanner{planner: c.planner, keys: new(gguf.Metadata)}
	set(g, "general.architecture", c.family.Name)
	set(g, "general.type", "adapter")
	set(g, "adapter.type", "lora")
	if err := g.aboutKeys(); err != nil {
		return nil, err
	}
	set(g, "adapter.lora.alpha", alpha)
	set(g, "general.quantization_version", uint32(quantizationVersion))
	return g.keys, nil
}

// checkAdapterOptions refuses a conversion of an adapter between the two worlds without a
// base, and a base without such a conversion.
func (p *planner) checkAdapterOptions() (crosses bool, err error) {
	toGGUF := p.options.isGGUF()
	crosses = p.source.IsAdapter() && toGGUF || isGGUFAdapter(p.source)
	switch {
	case isGGUFAdapter(p.source) && toGGUF:
		return false, p.errorf("it is an adapter in GGUF already; without .gguf the output is a folder for PEFT")
	case crosses && p.options.Base == nil:
		return false, &OptionError{"base", "it is missing: what an adapter's tensors are called in GGUF depends on the model it is for, a folder or a GGUF file"}
	case !crosses && p.options.Base != nil:
		return false, &OptionError{"base", "it is for adapters that become GGUF or come from it"}
	case crosses && p.options.Base.IsAdapter(), crosses && isGGUFAdapter(p.options.Base):
		return false, &checkpoint.InputError{Path: p.options.Base.Path, Err: errors.New("it is an adapter, not the model that the adapter is for")}
	}
	return crosses, nil
}
