package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/pflag"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/quant"
)

// The flags of merge that mean nothing for GGUF files.
var notForGGUF = []string{"dtype", "init-adapter", "moe-b-layout", "train-base", "mha-formula", "no-provenance", "verify"}

// ggufOptions checks the flags for a merge into a GGUF model.
func (f *mergeFlags) ggufOptions(set *pflag.FlagSet, in *mergeInputs) (quant.GGUFOptions, error) {
	var o quant.GGUFOptions
	for _, name := range notForGGUF {
		if set.Changed(name) {
			return o, usagef("--%s does not apply to a merge into a GGUF file", name)
		}
	}
	like := &quantizeFlags{output: f.output, kind: f.kind, shardSize: f.shardSize, requantize: true}
	like.gguf.imatrix = f.imatrix
	if isFile := strings.HasSuffix(f.output, ".gguf"); !isFile && f.shardSize == 0 {
		if n := len(in.base.GGUF().Files()); n == 1 {
			return o, usageHint("-o "+f.output+".gguf", "-o: %q does not end in .gguf, and the base is not split; --shard-size splits the output", f.output)
		}
		like.gguf.keepSplit = true
	}
	if f.kind != "" {
		return like.ggufOptions()
	}
	o = quant.GGUFOptions{Output: f.output, MatrixName: f.imatrix, KeepSplit: like.gguf.keepSplit, Keep: true}
	return o, like.splitOptions(&o)
}

// runMergeGGUF merges into a GGUF model: the numbers of what changes are computed while
// they are encoded, the rest is copied.
func (a *App) runMergeGGUF(ctx context.Context, f *mergeFlags, inputs *mergeInputs, o engine.Options) error {
	opts, err := f.ggufOptions(f.set, inputs)
	if err != nil {
		return err
	}
	matrix, identity, err := openImatrix(f.imatrix)
	if err != nil {
		return err
	}
	if matrix != nil {
		defer matrix.Close()
		inputs.others = append(inputs.others, otherFile{f.imatrix, identity})
	}
	opts.Matrix = matrix
	g, err := merge.PlanGGUF(inputs.base, inputs.sources, merge.GGUFOptions{Retype: !opts.Keep})
	if err != nil {
		return err
	}
	merged, err := viewOf(g.Plan, g.Specs, g.Inputs, o)
	if err != nil {
		return err
	}
	opts.Changed = merged
	q, err := quant.PlanGGUF(inputs.base, opts)
	if err != nil {
		return asUsage(err)
	}
	q.Plan.Inputs, q.Plan.Decisions = g.Plan.Inputs, append(g.Plan.Decisions, q.Plan.Decisions...)
	return a.runEncoded(ctx, &encodedMerge{
		changes: g.Plan, merged: merged, plan: q.Plan, layout: q.Layout, source: q.View, memory: q.View.Memory(o.Jobs),
		counts: countsOf(q, g), key: inputs.identity(f, identity),
		losses:   func() map[string]encodingLoss { return ggufLosses(q) },
		metadata: func(map[string]string) map[string]string { return nil },
	}, inputs, f, o)
}

// countsOf says how many tensors are changed, encoded anew or copied.
func countsOf(q *quant.GGUF, g *merge.GGUF) map[string]int {
	counts := map[string]int{"merged": len(g.Specs)}
	changed := make(map[string]bool)
	for _, s := range g.Specs {
		changed[s.Name] = true
	}
	for _, d := range q.Mix.Decisions {
		switch {
		case changed[d.Name]:
		case d.Quantize():
			counts[fmt.Sprintf("to %s", d.To)]++
		default:
			counts["copy"]++
		}
	}
	return counts
}

// ggufLosses lists what encoding changed.
func ggufLosses(q *quant.GGUF) map[string]encodingLoss {
	losses := make(map[string]encodingLoss)
	for _, t := range q.View.Figures() {
		losses[t.Tensor] = encodingLoss{t.Type.String(), t.Error * t.Norm}
	}
	return losses
}
