package cli

import (
	"context"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/merge"
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
	var specs []tensor.Spec
	for _, file := range m.Layout.Files {
		for _, t := range file.Tensors() {
			specs = append(specs, t.Spec)
		}
	}
	merged, err := viewOf(m.Plan, specs, m.Inputs, o)
	if err != nil {
		return err
	}
	q4.From = &quant.Source{Tensors: merged, Config: m.Config, Sidecars: m.Sidecars, Metadata: m.Metadata, Unchanged: m.Unchanged}
	q, err := quant.Plan(inputs.base, q4)
	if err != nil {
		return asUsage(err)
	}
	q.Plan.Inputs, q.Plan.Decisions = m.Plan.Inputs, append(m.Plan.Decisions, q.Plan.Decisions...)
	return a.runEncoded(ctx, &encodedMerge{
		changes: m.Plan, views: []*engine.View{merged}, reports: merged.Reports, plan: q.Plan, layout: q.Layout, source: q.View, memory: q.View.Memory(o.Jobs),
		counts: q.Counts(), key: inputs.identity(f),
		losses:   func() map[string]encodingLoss { return bnbLosses(q) },
		metadata: m.SetHashes,
	}, inputs, f, o)
}

// bnbLosses lists what encoding changed.
func bnbLosses(q *quant.Quantization) map[string]encodingLoss {
	losses := make(map[string]encodingLoss)
	for _, t := range q.View.Figures() {
		losses[t.Tensor] = encodingLoss{string(q.Type()), t.Error * t.Norm}
	}
	return losses
}
