package verify

import (
	"context"
	"math"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/plan"
	"github.com/loratool/loratool/quant/block"
)

// Merged checks that a model is the merge of the adapters into the base, whoever made
// it: every tensor is computed again in float64 and compared. What other tools round
// on the way is recognised and named ([recipe]). The model is also checked by itself,
// see [Structure].
//
// Adapters that do not fit the base are an error, not a finding: there is no merge
// to compare with. Factors in the wrong place are findings, and the only ones.
// Base and model are both GGUF, or none is; adapters of PEFT go with either.
func Merged(ctx context.Context, base *checkpoint.Model, adapters []merge.Source, mo merge.Options, merged *checkpoint.Model, o Options) (*Report, error) {
	c := &mergeCheck{base: base, merged: merged, shapes: make(map[string]tensor.Shape)}
	if r := misplacedFactors(base, adapters); r != nil {
		return r, nil
	}
	if err := c.plan(adapters, mo); err != nil {
		return nil, err
	}
	var err error
	if c.Report, err = Structure(ctx, merged, o); err != nil {
		return nil, err
	}
	c.begin(familyMerge)
	c.pair(c.base)
	if err := c.checkUnseen(ctx); err != nil {
		return nil, err
	}
	return c.Report, c.run(ctx, o)
}

// mergeCheck is one comparison of a model with a planned merge.
type mergeCheck struct {
	*Report
	base, merged *checkpoint.Model
	seen         *seenGGUF               // a merge of PEFT adapters into a GGUF model; nil for all others
	steps        []plan.Step             // one for every tensor of the merge
	inputs       []checkpoint.Checkpoint // of the steps
	shapes       map[string]tensor.Shape // of what they make, by tensor
	pairs        []mergePair
	types        map[string]int // tensors by "bf16 in place of f32"
}

// mergePair is a step of the plan and the tensor that should hold what it makes.
type mergePair struct {
	step    *plan.Step
	stored  tensor.Spec
	codes   *block.GGML // that hold what the step makes; nil where numbers do
	shifted bool        // it is stored with 1 added, in F32
	found   comparison
}

// plan decides the merge that the model should be.
func (c *mergeCheck) plan(adapters []merge.Source, mo merge.Options) error {
	switch {
	case c.base.GGUF() == nil && c.merged.GGUF() == nil:
		return c.planMerge(adapters, mo)
	case c.base.GGUF() == nil:
		return c.merged.RefuseGGUF("a comparison of a merge of another model with")
	case c.merged.GGUF() == nil:
		return c.base.RefuseGGUF("a comparison of another model with a merge into")
	}
	if areAllPEFT(adapters) {
		return c.planSeen(adapters, mo)
	}
	return c.planGGUF(adapters)
}

func (c *mergeCheck) planMerge(adapters []merge.Source, mo merge.Options) error {
	mo.NoProvenance = true
	m, err := merge.Plan(c.base, adapters, mo)
	if err != nil {
		return err
	}
	c.steps, c.inputs = m.Plan.Steps, m.Inputs
	for i := range m.Layout.Files {
		for _, t := range m.Layout.Files[i].Tensors() {
			c.shapes[t.Name] = t.Shape
		}
	}
	return nil
}

// run compares all pairs and judges them in the order of the plan.
func (c *mergeCheck) run(ctx context.Context, o Options) error {
	tasks := make([]plan.Task, len(c.pairs))
	for i := range c.pairs {
		p := &c.pairs[i]
		w := &comparer64{inputs: c.inputs, merged: c.merged, step: p.step, stored: p.stored, codes: p.codes, shifted: p.shifted}
		tasks[i] = plan.Task{Name: p.stored.Name, Reads: p.step.InBytes() + p.stored.Size(), Scratch: w.scratch(), Do: func(ctx context.Context, _ int) (err error) {
			p.found, err = w.compare(ctx)
			return err
		}}
	}
	if err := engine.Each(ctx, tasks, o.Engine); err != nil {
		return err
	}
	figures := &MergeFigures{Survival: 1}
	var delta, kept float64
	for i := range c.pairs {
		p := &c.pairs[i]
		c.judge(p)
		figures.Values += p.found.values
		figures.Nearest += p.found.nearest
		figures.Tensors = append(figures.Tensors, p.figures())
		if !p.step.Judge {
			figures.Unchanged++
			continue
		}
		figures.Changed++
		delta += p.found.delta
		kept += p.found.kept
	}
	figures.DeltaNorm = math.Sqrt(delta)
	if delta > 0 {
		figures.Survival = kept / delta
	}
	c.Merge = figures
	c.judgeAll()
	return nil
}
