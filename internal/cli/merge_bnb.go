package cli

import (
	"context"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/plan"
	"github.com/loratool/loratool/quant"
)

// bnbOptions checks the flags for an output in a format of bitsandbytes. What is not
// given is as in the base, if that is stored in the format.
func (f *mergeFlags) bnbOptions(in *mergeInputs, m merge.Options) (quant.Options, error) {
	kind := quant.Type(f.kind)
	if kind != quant.NF4 && kind != quant.FP4 && kind != quant.Int8 {
		return quant.Options{}, usagef("--type: %q is not nf4, fp4 or int8; a type of llama.cpp needs a GGUF file for a base", f.kind)
	}
	o := quant.Inherit(in.base, kind)
	o.Output, o.ShardSize, o.NoProvenance, o.Version = m.Output, m.ShardSize, m.NoProvenance, m.Version
	if f.set.Changed("double-quant") {
		o.DoubleQuant = f.doubleQuant
	}
	if f.set.Changed("blocksize") {
		o.BlockSize = f.blockSize
	}
	return o, nil
}

// runMergeBNB merges and stores the result in 4 or 8 bits, without writing it in
// between: the bytes are those of a merge that is quantized afterwards.
func (a *App) runMergeBNB(ctx context.Context, f *mergeFlags, inputs *mergeInputs, opts merge.Options, o engine.Options) error {
	q4, err := f.bnbOptions(inputs, opts)
	if err != nil {
		return err
	}
	opts.Encoding = q4.Provenance()
	m, err := merge.Plan(inputs.base, inputs.sources, opts)
	if err != nil {
		return err
	}
	specs := layoutSpecs(m.Layout)
	half := o
	half.Memory /= 2
	merged, err := viewOf(m.Plan, specs, m.Inputs, half)
	if err != nil {
		return err
	}
	exact, err := exactChanges(m, half)
	if err != nil {
		return err
	}
	q4.From = &quant.Source{
		Tensors: merged, Config: m.Config, Sidecars: m.Sidecars, Metadata: m.Metadata, Unchanged: m.Unchanged,
		Before: inputs.base, After: exact,
	}
	q, err := quant.Plan(inputs.base, q4)
	if err != nil {
		return asUsage(err)
	}
	q.Plan.Inputs, q.Plan.Decisions = m.Plan.Inputs, append(m.Plan.Decisions, q.Plan.Decisions...)
	return a.runEncoded(ctx, &encodedMerge{
		changes: m.Plan, views: []*engine.View{merged}, reports: merged.Reports, plan: q.Plan, layout: q.Layout, source: q.View,
		memory: q.View.Memory(o.Jobs) + exact.Memory(),
		counts: q.Counts(), key: inputs.identity(f),
		losses:   func() map[string]encodingLoss { return bnbLosses(q) },
		metadata: m.SetHashes,
	}, inputs, f, o)
}

// exactChanges are the tensors that a merge changes before they are rounded to the type
// that is encoded: what is left of the change is measured against them.
func exactChanges(m *merge.Merge, o engine.Options) (*engine.View, error) {
	p := &plan.Plan{Unhashed: true}
	var specs []tensor.Spec
	taken := make(map[string]bool)
	for _, s := range layoutSpecs(m.Layout) {
		if !m.Unchanged(s.Name) && s.DType.IsFloat() {
			s.DType = unrounded(s.DType)
			specs, taken[s.Name] = append(specs, s), true
		}
	}
	for _, s := range m.Plan.Steps {
		if taken[s.Write.Tensor] {
			s.Write.DType = unrounded(s.Write.DType)
			p.Steps = append(p.Steps, s)
		}
	}
	return viewOf(p, specs, m.Inputs, o)
}

// unrounded is the type that a merge into a tensor of some type computes in.
func unrounded(d tensor.DType) tensor.DType {
	if d == tensor.F64 {
		return d
	}
	return tensor.F32
}

// bnbLosses lists what encoding changed.
func bnbLosses(q *quant.Quantization) map[string]encodingLoss {
	losses := make(map[string]encodingLoss)
	for _, t := range q.View.Figures() {
		losses[t.Tensor] = encodingLoss{string(q.Type()), t.Error * t.Norm, t.Survival}
	}
	return losses
}
