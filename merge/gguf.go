package merge

import (
	"errors"
	"fmt"

	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/plan"
)

// GGUF is a merge into a GGUF model decided, as far as numbers go: the tensors that
// change, as they are before they are stored in the type that they are to have. All
// others stay the bytes that they are.
type GGUF struct {
	Plan   *plan.Plan
	Specs  []tensor.Spec           // what the plan makes
	Inputs []checkpoint.Checkpoint // by the plan's input numbers
	base   *checkpoint.Model
}

// GGUFOptions shapes a merge into a GGUF model.
type GGUFOptions struct {
	// Retype says that the output gets types of its own: every changed tensor is then
	// made as F32. Otherwise each keeps its type: those of plain numbers are rounded to
	// it at once, those in blocks are made as F32 too.
	Retype bool
}

// PlanGGUF decides a merge of adapters in GGUF files into a GGUF model, in their
// order. What llama.cpp's loader refuses is refused: another architecture, half a pair,
// a tensor that the base does not have, shapes that do not fit.
func PlanGGUF(base *checkpoint.Model, sources []Source, o GGUFOptions) (*GGUF, error) {
	p := &planner{
		base: base, config: hfrepo.NewConfig(nil), sources: sources,
		plan: &plan.Plan{Unhashed: true}, entries: make(map[string]*entry),
	}
	if err := p.checkGGUF(); err != nil {
		return nil, err
	}
	p.addInput("base", base, 1)
	for _, spec := range base.Specs() {
		p.add(&entry{name: spec.Name, spec: spec, read: plan.Whole(0, spec)})
	}
	p.view = newView(p)
	for i, s := range sources {
		if err := p.addAdapter(i, s); err != nil {
			return nil, err
		}
	}
	p.noteTied()
	g := &GGUF{Plan: p.plan, base: base}
	for _, name := range p.order {
		if e := p.entries[name]; len(e.terms) > 0 {
			if err := g.add(p, e, o); err != nil {
				return nil, err
			}
		}
	}
	g.Inputs = p.inputs
	return g, nil
}

// checkGGUF refuses what does not belong together.
func (p *planner) checkGGUF() error {
	keys := p.base.GGUF().Metadata()
	if kind, ok, _ := keys.OptText("general.type"); ok && kind == "adapter" {
		return &checkpoint.InputError{Path: p.base.Path, Err: errors.New("it is an adapter, not a model to merge into")}
	}
	architecture, err := keys.Text("general.architecture")
	if err != nil {
		return &checkpoint.InputError{Path: p.base.Path, Err: err}
	}
	for _, s := range p.sources {
		if err := checkSameFormat(p.base, s.Adapter); err != nil {
			return err
		}
		if got := s.Adapter.Architecture(); got != architecture {
			return &checkpoint.InputError{Path: s.Adapter.Source.Path, Err: fmt.Errorf(
				"the adapter was made for the architecture %q, the base is %q", got, architecture)}
		}
	}
	return nil
}

// checkSameFormat refuses an adapter whose names mean nothing in the base.
func checkSameFormat(base *checkpoint.Model, a *adapter.Adapter) error {
	var reason string
	switch {
	case base.GGUF() != nil && !a.IsGGUF():
		reason = "an adapter of PEFT has other names than a GGUF file and, in some families, another order of rows"
	case base.GGUF() == nil && a.IsGGUF():
		reason = "an adapter in a GGUF file can't be merged into a model of Hugging Face, which has other names and, in some families, another order of rows"
	default:
		return nil
	}
	return &checkpoint.InputError{Path: a.Source.Path, Err: errors.New(reason)}
}

// add makes the step of an entry that changes.
func (g *GGUF) add(p *planner, e *entry, o GGUFOptions) error {
	step, err := p.step(e)
	if err != nil {
		return err
	}
	t, _ := g.base.GGUF().Lookup(e.name)
	d, plain := t.Type.DType()
	if o.Retype || !plain {
		d = tensor.F32
	}
	step.Write.DType = d
	g.Plan.Steps = append(g.Plan.Steps, step)
	g.Specs = append(g.Specs, tensor.Spec{Name: e.name, DType: d, Shape: e.spec.Shape})
	return nil
}

// noteTied says so where a change of the embeddings is one of the head too: a file
// without a head of its own uses them twice.
func (p *planner) noteTied() {
	const embedding, head = "token_embd.weight", "output.weight"
	e, ok := p.entries[embedding]
	if _, own := p.entries[head]; ok && !own && len(e.terms) > 0 {
		p.decide("tied-embedding", "the model has no head of its own: the change of its embeddings changes its head too", embedding)
	}
}
