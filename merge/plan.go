// Package merge folds adapters into the weights of a base checkpoint.
//
//	W' = W + sum_i weight_i · (M_i(W) - W)
//
// M_i is what adapter i makes of a weight; for a LoRA that is W + s·B·A. [Plan]
// decides everything from headers, configs and the small tensors of the
// adapters; the engine then streams the result. Every tensor of every adapter
// ends up in the plan or in an error that names it.
//
// The operations are one file each (op_*.go), with the reader that turns the
// tensors of a PEFT type into them.
package merge

import (
	"errors"
	"fmt"
	"reflect"
	"slices"

	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/strictjson"
	"github.com/loratool/loratool/plan"
)

// Options shapes a merge. The zero value keeps element types and writes shards
// of 5 GB.
type Options struct {
	Output       string
	DType        tensor.DType // of every floating-point tensor; none keeps the input's
	ShardSize    int64
	MoEBLayout   string // "rank", "expert", or "" to decide by the adapter's marks
	MHAFormula   bool   // apply an attention's out_proj once instead of as trained
	NoProvenance bool
	// TrainBase has the tensors of the base with the values that training saw,
	// which take the place of the base's own; nil where they are the same.
	// TrainedOn names it, for provenance.
	TrainBase checkpoint.Checkpoint
	TrainedOn string
	// Encoding says how the result is stored by who reads it, for config and
	// provenance: the output is then not what the layout of the merge says.
	Encoding *strictjson.Object
	Version  string // of the tool, for provenance
}

// Source is an adapter to merge.
type Source struct {
	Adapter *adapter.Adapter
	Weight  float64
	Init    *adapter.Adapter // the adapter before training, if it changed the base
}

// Merge is a merge decided: a plan, the place of every output byte, and where
// its inputs are read from.
type Merge struct {
	Plan   *plan.Plan
	Layout *checkpoint.Layout
	Inputs []checkpoint.Checkpoint // by the plan's input numbers
	// Config is that of the output; Sidecars are the files beside its weights.
	Config   hfrepo.Config
	Sidecars []checkpoint.Sidecar

	base  *checkpoint.Model
	from  []Source
	opts  Options
	final map[string]string // hashes once known, by path
}

// planner is the state of one call of Plan.
type planner struct {
	base      *checkpoint.Model
	config    hfrepo.Config
	modelType string
	options   Options
	sources   []Source

	inputs []checkpoint.Checkpoint
	plan   *plan.Plan

	entries map[string]*entry
	order   []string // names of entries as they are written
	view    *view

	embedding, head string
	tied            bool
	restored        bool     // the base was stored as codes
	dropped         []string // tensors and files of the base that are not written
}

// entry is one tensor of the output.
type entry struct {
	name    string
	spec    tensor.Spec // of the base, with the output's name
	read    plan.Slice  // where its values come from
	terms   []*term
	stacked bool // a stack of matrices rather than one with long rows
	virtual bool // not stored in the base: a tied head, written only when it differs
}

// term is what one adapter does to an entry.
type term struct {
	adapter  int
	weight   float64
	stages   []plan.Stage
	additive bool        // the stages add without regard to what is there, all of them weighted
	replaces *plan.Slice // the adapter's own copy takes the place of the base's
	// throughTie says that the change was made to both ends of tied
	// embeddings.
	throughTie bool
}

// weighted is an operation that only adds: times returns it with what it adds
// multiplied.
type weighted interface{ times(w float64) plan.Op }

// times returns the stages of an additive term with the adapter's weight.
func (t *term) times() []plan.Stage {
	if t.weight == 1 {
		return t.stages
	}
	stages := slices.Clone(t.stages)
	for i := range stages {
		stages[i].Op = stages[i].Op.(weighted).times(t.weight)
	}
	return stages
}

// Plan decides a merge of the sources, in their order, into the base.
func Plan(base *checkpoint.Model, sources []Source, o Options) (*Merge, error) {
	p := &planner{
		base: base, config: hfrepo.NewConfig(nil), options: o, sources: sources,
		plan: &plan.Plan{Unhashed: o.NoProvenance}, entries: make(map[string]*entry),
	}
	if base.Config != nil {
		p.config = hfrepo.NewConfig(base.Config).Clone()
		p.modelType = p.config.ModelType()
	}
	if base.IsAdapter() {
		return nil, &checkpoint.InputError{Path: base.Path, Err: errors.New("it is an adapter, not a model to merge into")}
	}
	if err := base.RefuseGGUF("a merge into"); err != nil {
		return nil, err
	}
	for _, s := range sources {
		if err := checkSameFormat(base, s.Adapter); err != nil {
			return nil, err
		}
	}
	p.addInput("base", base, 1)
	if err := p.openBase(); err != nil {
		return nil, err
	}
	if o.TrainBase != nil {
		p.inputs[0] = o.TrainBase
		p.decide("train-base", fmt.Sprintf("the adapters are merged into the base as %s leaves it, which is what they were trained on", o.TrainedOn))
	}
	for i, s := range sources {
		if err := p.addAdapter(i, s); err != nil {
			return nil, err
		}
	}
	if err := p.resolveTies(); err != nil {
		return nil, err
	}
	if err := p.checkVocabulary(); err != nil {
		return nil, err
	}
	if err := p.build(); err != nil {
		return nil, err
	}
	m := &Merge{Plan: p.plan, Inputs: p.inputs, Config: p.config, base: base, from: sources, opts: o}
	layout, err := p.layout(m)
	if err != nil {
		return nil, err
	}
	m.Layout = layout
	return m, nil
}

// decide records a decision; of several with one code and message the tensors
// are gathered.
func (p *planner) decide(code, message string, tensors ...string) {
	for i := range p.plan.Decisions {
		if d := &p.plan.Decisions[i]; d.Code == code && d.Message == message {
			d.Tensors = append(d.Tensors, tensors...)
			return
		}
	}
	p.plan.Decisions = append(p.plan.Decisions, plan.Decision{Code: code, Message: message, Tensors: append([]string{}, tensors...)})
}

// addInput registers a checkpoint and returns its number.
func (p *planner) addInput(role string, m *checkpoint.Model, weight float64) int {
	in := plan.Input{Role: role, Name: m.Name, Path: m.Path, Weight: weight, Note: m.Commit}
	for _, f := range m.Files() {
		in.Files = append(in.Files, plan.File{Name: f.Name, Path: f.Path, Size: f.Size})
	}
	p.plan.Inputs = append(p.plan.Inputs, in)
	p.inputs = append(p.inputs, m)
	return len(p.inputs) - 1
}

// openBase makes an entry for every tensor that the output will have before
// any change: with layers replicated, with a name for a tied head.
func (p *planner) openBase() error {
	if err := p.restore(); err != nil {
		return err
	}
	for _, spec := range p.base.Specs() {
		p.add(&entry{name: spec.Name, spec: spec, read: plan.Whole(0, spec)})
	}
	if err := p.replicate(); err != nil {
		return err
	}
	p.findTie()
	p.view = newView(p)
	return nil
}

func (p *planner) add(e *entry) {
	p.entries[e.name] = e
	p.order = append(p.order, e.name)
}

// findTie finds the input embedding and its head, and whether they are one.
func (p *planner) findTie() {
	architecture := p.config.Architecture()
	names := func(yield func(string) bool) {
		for _, name := range p.order {
			if !yield(name) {
				return
			}
		}
	}
	embedding, head, ok := arch.Embeddings(names, architecture)
	if !ok || !p.isMatrix(embedding) {
		return
	}
	_, stored := p.entries[head]
	if stored && !p.isMatrix(head) {
		return
	}
	p.embedding, p.head = embedding, head
	tied, stated := p.config.Tied()
	switch {
	case stated:
		p.tied = tied && (stored || architecture == "" || arch.HasHead(architecture))
	default:
		p.tied = !stored && arch.HasHead(architecture)
	}
	if p.tied && !stored {
		e := *p.entries[embedding]
		e.name, e.virtual = head, true
		e.spec.Name = head
		p.add(&e)
	}
}

func (p *planner) isMatrix(name string) bool { return len(p.entries[name].spec.Shape) == 2 }

// isTable reports whether a tensor has a row for every token, so that it may
// change its size with the vocabulary.
func (p *planner) isTable(name string) bool {
	return name == p.embedding || name == p.head || name == headBias(p.head)
}

func headBias(head string) string {
	const weight = "weight"
	if len(head) < len(weight) {
		return ""
	}
	return head[:len(head)-len(weight)] + "bias"
}

// term returns what an adapter does to an entry, new if it is the first.
func (p *planner) term(name string, adapterIndex int, weight float64) *term {
	e := p.entries[name]
	for _, t := range e.terms {
		if t.adapter == adapterIndex {
			return t
		}
	}
	t := &term{adapter: adapterIndex, weight: weight, additive: true}
	e.terms = append(e.terms, t)
	return t
}

// resize gives a target the shape of the table that the same adapter brought
// along.
func (p *planner) resize(t *adapter.Target, adapterIndex int) {
	if len(t.Places) != 1 {
		return
	}
	for _, term := range p.entries[t.Places[0].Tensor].terms {
		if term.adapter == adapterIndex && term.replaces != nil {
			t.Shape = term.replaces.Spec.Shape
			t.Places[0].Rows = term.replaces.Rows()
		}
	}
}

// addAdapter adds the changes of one adapter.
func (p *planner) addAdapter(index int, s Source) error {
	if err := checkFinite(s.Adapter); err != nil {
		return err
	}
	aligned, err := adapter.Align(s.Adapter, p.view, p.family())
	if err != nil {
		return err
	}
	r := &reader{p: p, adapter: aligned, config: aligned.Config, index: index, weight: s.Weight}
	r.input = p.addInput("adapter", s.Adapter.Source, s.Weight)
	if err := r.openInit(s.Init); err != nil {
		return err
	}
	p.explain(aligned)
	if err := r.saved(); err != nil {
		return err
	}
	if err := r.projections(); err != nil {
		return err
	}
	for _, t := range aligned.Targets {
		if again, err := r.tiedHead(t); err != nil {
			return err
		} else if again {
			continue
		}
		if err := r.module(t); err != nil {
			return err
		}
	}
	return nil
}

// family is what the base's config says of it, after replication.
func (p *planner) family() adapter.Family {
	layers, _ := p.config.Layers()
	return adapter.Family{ModelType: p.modelType, Layers: layers}
}

// explain records what a user may want to know about how an adapter was read.
func (p *planner) explain(a *adapter.Aligned) {
	name := a.Source.Name
	if a.From != a.To {
		p.decide("prefix", fmt.Sprintf("the names of %s begin with %q where the base's begin with %q", name, a.From, a.To))
	}
	if len(a.Ignored) > 0 && a.IsGGUF() {
		p.decide("norms-ignored", fmt.Sprintf("norms of %s, which llama.cpp loads and makes no use of", name), a.Ignored...)
	} else if len(a.Ignored) > 0 {
		p.decide("training-state-ignored", fmt.Sprintf("tensors of %s that a merge has no use for", name), a.Ignored...)
	}
	if len(a.Config.Unknown) > 0 {
		p.decide("unknown-config-keys", fmt.Sprintf("adapter_config.json of %s has keys that are not understood: %v", name, a.Config.Unknown))
	}
	if broken := a.Config.RankPattern.Broken; len(broken) > 0 {
		p.decide("rank-pattern-not-checked", fmt.Sprintf("rank_pattern of %s has expressions that can't be evaluated here; the ranks in the file must equal those of the others: %q", name, broken))
	}
	if !a.Config.Targets.Known() && !a.Config.Targets.AllLinear {
		p.decide("target-pattern-not-checked", fmt.Sprintf("target_modules of %s is an expression that can't be evaluated here; the tensors in the file decide", name))
	}
}

// tiedHead reports whether a target is the second copy that ensure_weight_tying
// leaves in the file: the embedding's own factors, transposed. If it is
// something else the two can't have been tied in training.
func (r *reader) tiedHead(t *adapter.Target) (bool, error) {
	if _, isLoRA := t.Part("lora_A"); !isLoRA || !r.config.EnsureTied || !r.p.tied || len(t.Places) != 1 || t.Places[0].Tensor != r.p.head {
		return false, nil
	}
	first := t.Parts[anyPart(t)]
	for _, other := range r.adapter.Targets {
		if len(other.Places) != 1 || other.Places[0].Tensor != r.p.embedding {
			continue
		}
		pairs := [][2]string{{"lora_A", "lora_embedding_B"}, {"lora_B", "lora_embedding_A"}}
		if len(t.Parts) > len(pairs) {
			return false, r.refuse(first, "ensure_weight_tying is set, but its module has more than the factors of the embedding")
		}
		for _, pair := range pairs {
			mine, ok := t.Part(pair[0])
			theirs, okTheirs := other.Part(pair[1])
			if !ok || !okTheirs {
				return false, r.refuse(first, "ensure_weight_tying is set, but the embedding has no factors like these")
			}
			for _, s := range []tensor.Spec{mine, theirs} {
				if err := r.floats(s); err != nil {
					return false, err
				}
			}
			same, err := r.p.transposes(r.whole(mine), r.whole(theirs))
			if err != nil {
				return false, err
			}
			if !same {
				return false, r.refuse(mine, "ensure_weight_tying is set, but it is not the transpose of %q", theirs.Name)
			}
		}
		r.p.decide("tied-head-once", "the factors of the head are those of the tied embedding once more: their change is made once", r.p.head)
		return true, nil
	}
	return false, r.refuse(first, "ensure_weight_tying is set, but the embedding that the head is tied to has no factors")
}

// saved reads the whole tensors of the adapter. Embeddings that equal the
// base's are left alone: PEFT saves them whenever they are a target.
func (r *reader) saved() error {
	for _, s := range r.adapter.Saved {
		name := r.adapter.BaseName(s.Name)
		if err := r.replace(name, s.Spec); err != nil {
			return err
		}
		e := r.p.entries[name]
		mine := r.p.term(name, r.index, r.weight)
		if r.p.isTable(name) {
			same, err := r.p.sameAs(*mine.replaces, e)
			if err != nil {
				return err
			}
			if same {
				e.terms = slices.DeleteFunc(e.terms, func(other *term) bool { return other == mine })
				continue
			}
		}
		r.p.decide("replaced", fmt.Sprintf("tensors that %s holds whole", r.adapter.Source.Name), name)
	}
	return nil
}

// resolveTies decides what becomes of tied embeddings: they stay one as long
// as every change was made to both.
func (p *planner) resolveTies() error {
	if !p.tied {
		return nil
	}
	embedding, head := p.entries[p.embedding], p.entries[p.head]
	if err := p.joinChanges(embedding, head); err != nil {
		return err
	}
	var through, own []*term
	for _, t := range embedding.terms {
		if t.throughTie {
			through = append(through, t)
		} else {
			own = append(own, t)
		}
	}
	if len(own) == 0 && len(head.terms) == 0 {
		if head.virtual {
			p.remove(head.name)
			return nil
		}
		head.terms = embedding.terms
		return nil
	}
	head.virtual = false
	head.terms = append(through, head.terms...)
	slices.SortStableFunc(head.terms, func(a, b *term) int { return a.adapter - b.adapter })
	p.config.SetTied(false)
	p.decide("untied", "the change is not the same for the input embedding and the head that is tied to it: both are written and tie_word_embeddings becomes false",
		embedding.name, head.name)
	return nil
}

// joinChanges makes one change of two: when an adapter does the same to both
// ends, they were tied in training.
func (p *planner) joinChanges(embedding, head *entry) error {
	for _, e := range embedding.terms {
		for _, h := range slices.Clone(head.terms) {
			same, err := p.sameChange(e, h)
			if err != nil {
				return err
			}
			if same {
				e.throughTie = true
				head.terms = slices.DeleteFunc(head.terms, func(t *term) bool { return t == h })
			}
		}
	}
	return nil
}

// sameChange reports whether a term of the head is that of the embedding once
// more. What was made through the tie need not stand at the head again.
func (p *planner) sameChange(e, h *term) (bool, error) {
	if e.adapter != h.adapter || (e.replaces == nil) != (h.replaces == nil) {
		return false, nil
	}
	repeated := len(h.stages) > 0 || !e.throughTie
	if repeated && len(e.stages) != len(h.stages) {
		return false, nil
	}
	var pairs [][2]plan.Slice
	if e.replaces != nil {
		pairs = append(pairs, [2]plan.Slice{*e.replaces, *h.replaces})
	}
	if repeated {
		for i, st := range e.stages {
			if !reflect.DeepEqual(st.Op, h.stages[i].Op) || len(st.Sides) != len(h.stages[i].Sides) {
				return false, nil
			}
			for j, side := range st.Sides {
				pairs = append(pairs, [2]plan.Slice{side, h.stages[i].Sides[j]})
			}
		}
	}
	for _, pair := range pairs {
		if same, err := p.sameBytes(pair[0], pair[1]); err != nil || !same {
			return false, err
		}
	}
	return true, nil
}

func (p *planner) remove(name string) {
	delete(p.entries, name)
	p.order = slices.DeleteFunc(p.order, func(n string) bool { return n == name })
}

// checkVocabulary compares the rows of embedding and head when one of them has
// been resized, and keeps the config in step.
func (p *planner) checkVocabulary() error {
	if p.embedding == "" {
		return nil
	}
	rows := func(name string) int64 {
		e, ok := p.entries[name]
		if !ok || len(e.shape()) == 0 {
			return -1
		}
		return e.shape()[0]
	}
	embedding := rows(p.embedding)
	base := p.entries[p.embedding].spec.Shape[0]
	for _, name := range []string{p.head, headBias(p.head)} {
		if other := rows(name); other >= 0 && embedding != other && p.entries[name].spec.Shape[0] == base {
			return &checkpoint.InputError{Path: p.resizer(p.embedding, name), Err: fmt.Errorf(
				"the vocabulary was resized for only one end: %q has %d rows, %q has %d", p.embedding, embedding, name, other)}
		}
	}
	if embedding != base {
		p.config.SetInt("vocab_size", embedding)
		p.decide("vocabulary-resized", fmt.Sprintf("the vocabulary has %d rows instead of %d", embedding, base), p.embedding)
	}
	return nil
}

// resizer returns the path of the first adapter that changes the size of one of
// the tensors.
func (p *planner) resizer(names ...string) string {
	for _, name := range names {
		for _, t := range p.entries[name].terms {
			if t.replaces != nil && !t.replaces.Spec.Shape.Equal(p.entries[name].spec.Shape) {
				return p.sources[t.adapter].Adapter.Source.Path
			}
		}
	}
	return p.base.Path
}

// shape is the shape an entry is written with: that of the table that takes
// its place, if one does.
func (e *entry) shape() tensor.Shape {
	for _, t := range e.terms {
		if t.replaces != nil {
			return t.replaces.Spec.Shape
		}
	}
	return e.spec.Shape
}

// build turns the entries into steps.
func (p *planner) build() error {
	for _, name := range p.order {
		e := p.entries[name]
		step, err := p.step(e)
		if err != nil {
			return err
		}
		p.plan.Steps = append(p.plan.Steps, step)
	}
	return nil
}

// step makes the step of an entry. Changes that only add are applied one after
// another; a single other one of weight 1 stands for itself; everything else is
// a blend of what each adapter alone would do.
func (p *planner) step(e *entry) (plan.Step, error) {
	step := plan.Step{Read: e.read, Write: plan.Placement{Tensor: e.name, DType: p.writtenAs(e)}}
	allAdditive := true
	for _, t := range e.terms {
		allAdditive = allAdditive && t.additive
	}
	switch {
	case allAdditive:
		for _, t := range e.terms {
			step.Stages = append(step.Stages, t.times()...)
		}
	case len(e.terms) == 1 && e.terms[0].weight == 1:
		t := e.terms[0]
		if t.replaces != nil {
			step.Read = *t.replaces
		}
		step.Stages = slices.Clone(t.stages)
	default:
		op, err := p.blend(e)
		if err != nil {
			return step, err
		}
		step.Stages = append(step.Stages, plan.Stage{Op: op, Sides: op.sides()})
	}
	step.Judge = len(step.Stages) > 0
	if e.stacked {
		step.Read.Cols = e.spec.Shape[2]
		step.Read.To = e.spec.Shape[0] * e.spec.Shape[1]
	}
	if step.Judge && !step.Read.Spec.DType.IsFloat() {
		return step, &checkpoint.InputError{Path: p.base.Path, Err: fmt.Errorf(
			"tensor %q is stored as %s%s: a merge needs floating-point weights", e.name, step.Read.Spec.DType.Safetensors(), p.quantizedBy())}
	}
	return step, nil
}

// quantizedBy names the quantization of the base, for messages.
func (p *planner) quantizedBy() string {
	q := p.config.Quantization()
	if q == nil {
		return ""
	}
	method, err := q.String("quant_method")
	if err != nil {
		return ""
	}
	return fmt.Sprintf(" (quantized with %s)", method)
}

func (p *planner) blend(e *entry) (Blend, error) {
	var op Blend
	for _, t := range e.terms {
		br := Branch{Weight: t.weight, Stages: t.stages}
		if t.additive {
			br = Branch{Weight: 1, Stages: t.times()}
		}
		if t.replaces != nil {
			if !t.replaces.Spec.Shape.Equal(e.spec.Shape) {
				return op, &checkpoint.InputError{Path: p.sources[t.adapter].Adapter.Source.Path, Err: fmt.Errorf(
					"tensor %q has another shape than the base's: it can't be weighted or combined", t.replaces.Tensor)}
			}
			br.Stages = append([]plan.Stage{{Op: Replace{}, Sides: []plan.Slice{*t.replaces}}}, br.Stages...)
		}
		op.Branches = append(op.Branches, br)
	}
	return op, nil
}

// view is the base as an adapter sees it: with replicated layers and a name for
// a tied head.
type view struct {
	p     *planner
	specs []tensor.Spec
}

func newView(p *planner) *view {
	v := &view{p: p}
	for _, name := range p.order {
		v.specs = append(v.specs, p.entries[name].spec)
	}
	return v
}

func (v *view) Specs() []tensor.Spec { return v.specs }

func (v *view) Lookup(name string) (tensor.Spec, bool) {
	e, ok := v.p.entries[name]
	if !ok {
		return tensor.Spec{}, false
	}
	return e.spec, true
}
