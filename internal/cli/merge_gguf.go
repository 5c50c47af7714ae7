package cli

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/loratool/loratool/convert"
	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/plan"
	"github.com/loratool/loratool/quant"
)

// The flags of merge that mean nothing for GGUF files, and those that only adapters of PEFT
// need.
var (
	notForGGUF = []string{"dtype", "init-adapter", "train-base", "no-provenance"}
	onlyPEFT   = []string{"moe-b-layout", "mha-formula"}
)

// ggufOptions checks the flags for a merge into a GGUF model.
func (f *mergeFlags) ggufOptions(set *pflag.FlagSet, in *mergeInputs) (quant.GGUFOptions, error) {
	var o quant.GGUFOptions
	refused := notForGGUF
	if !in.allPEFT() {
		refused = slices.Concat(notForGGUF, onlyPEFT)
	}
	for _, name := range refused {
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

// ggufChanges is what a merge changes in a GGUF model: tensors of it, computed when they are
// read.
type ggufChanges struct {
	plan    *plan.Plan
	view    *engine.View
	within  []*engine.View // that the view reads from
	reports func() []engine.TensorReport
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
	c, err := changesInGGUF(inputs, f, opts.Keep, o)
	if err != nil {
		return err
	}
	opts.Changed = c.view
	q, err := quant.PlanGGUF(inputs.base, opts)
	if err != nil {
		return asUsage(err)
	}
	q.Plan.Inputs, q.Plan.Decisions = c.plan.Inputs, append(c.plan.Decisions, q.Plan.Decisions...)
	return a.runEncoded(ctx, &encodedMerge{
		changes: c.plan, views: append(c.within, c.view), reports: c.reports,
		plan: q.Plan, layout: q.Layout, source: q.View, memory: q.View.Memory(o.Jobs),
		counts: countsOf(q, c.view.Specs()), key: inputs.identity(f, identity),
		losses:   func() map[string]encodingLoss { return ggufLosses(q) },
		metadata: func(map[string]string) map[string]string { return nil },
	}, inputs, f, o)
}

// changesInGGUF computes what the adapters change: those of GGUF in the tensors of the
// file, those of PEFT in what the file is for transformers.
func changesInGGUF(inputs *mergeInputs, f *mergeFlags, keep bool, o engine.Options) (*ggufChanges, error) {
	if inputs.allPEFT() {
		return peftInGGUF(inputs, f, o)
	}
	g, err := merge.PlanGGUF(inputs.base, inputs.sources, merge.GGUFOptions{Retype: !keep})
	if err != nil {
		return nil, err
	}
	view, err := viewOf(g.Plan, g.Specs, g.Inputs, o)
	if err != nil {
		return nil, err
	}
	return &ggufChanges{plan: g.Plan, view: view, reports: view.Reports}, nil
}

// allPEFT reports whether no adapter is a GGUF file.
func (in *mergeInputs) allPEFT() bool {
	return !slices.ContainsFunc(in.sources, func(s merge.Source) bool { return s.Adapter.IsGGUF() })
}

// peftInGGUF merges adapters of PEFT into a GGUF model. The file is seen as the model of
// Hugging Face that it is, its tensors computed when they are read; into that the merge is
// planned as into any other, in F32; and what the merge changes is seen as GGUF again. So
// every kind of adapter that a merge knows goes into GGUF files by the same arithmetic.
func peftInGGUF(inputs *mergeInputs, f *mergeFlags, o engine.Options) (*ggufChanges, error) {
	seen, err := convert.AsHF(inputs.base)
	if err != nil {
		return nil, err
	}
	m, err := merge.Plan(seen.Model, inputs.sources, merge.Options{
		Output: "merged", DType: tensor.F32, MoEBLayout: autoless(f.moeBLayout), MHAFormula: f.mhaFormula, NoProvenance: true,
	})
	if err != nil {
		return nil, err
	}
	specs := layoutSpecs(m.Layout)
	stored, err := storedChanges(m, seen, specs, inputs.base)
	if err != nil {
		return nil, err
	}
	o.Memory /= 2 // for each of the two views
	merged, err := viewOf(m.Plan, specs, m.Inputs, o)
	if err != nil {
		return nil, err
	}
	t, err := convert.PlanTensors(seen.Model.As(merged), tokensOf(inputs.base))
	if err != nil {
		return nil, err
	}
	again := &plan.Plan{Unhashed: true}
	var changed []tensor.Spec
	for _, s := range t.Specs {
		if !stored[s.Name] {
			continue
		}
		if of, ok := inputs.base.Lookup(s.Name); !ok || of.NumElements() != s.NumElements() {
			return nil, &checkpoint.InputError{Path: inputs.base.Path, Err: fmt.Errorf("tensor %q: the merge makes %s of it, which is not its shape", s.Name, s.Shape)}
		}
		changed = append(changed, s)
	}
	for _, s := range t.Plan.Steps {
		if stored[s.Write.Tensor] {
			again.Steps = append(again.Steps, s)
		}
	}
	view, err := viewOf(again, changed, []checkpoint.Checkpoint{t.View}, o)
	if err != nil {
		return nil, err
	}
	return &ggufChanges{plan: m.Plan, view: view, within: []*engine.View{merged}, reports: func() []engine.TensorReport {
		return underStored(merged.Reports(), seen)
	}}, nil
}

// autoless is the option of --moe-b-layout.
func autoless(layout string) string {
	if layout == "auto" {
		return ""
	}
	return layout
}

// layoutSpecs lists the tensors of an output.
func layoutSpecs(l *checkpoint.Layout) []tensor.Spec {
	var specs []tensor.Spec
	for i := range l.Files {
		for _, t := range l.Files[i].Tensors() {
			specs = append(specs, t.Spec)
		}
	}
	return specs
}

// storedChanges are the tensors of the GGUF file in which a merge changes something. What
// the file has no place for is an error.
func storedChanges(m *merge.Merge, seen *convert.FromGGUF, specs []tensor.Spec, base *checkpoint.Model) (map[string]bool, error) {
	for _, s := range specs {
		if was, ok := seen.Model.Lookup(s.Name); !ok || !was.Shape.Equal(s.Shape) {
			return nil, &checkpoint.InputError{Path: base.Path, Err: fmt.Errorf(
				"the merge makes %q, %s, for which a GGUF file of this model has no place: make a folder of it with 'loratool convert', merge into that and convert back", s.Name, s.Shape)}
		}
	}
	stored := make(map[string]bool)
	for i := range m.Plan.Steps {
		s := &m.Plan.Steps[i]
		if s.Read.Input == 0 && s.Read.Tensor == s.Write.Tensor && len(s.Stages) == 0 {
			continue
		}
		if name, ok := seen.Stored(s.Write.Tensor); ok {
			stored[name] = true
		}
	}
	return stored, nil
}

// underStored gathers the figures of tensors under the names of the GGUF file. Nothing is
// rounded before the codes, so that the change is all that is known here.
func underStored(reports []engine.TensorReport, seen *convert.FromGGUF) []engine.TensorReport {
	var all []engine.TensorReport
	at := make(map[string]int)
	for _, r := range reports {
		name, _ := seen.Stored(r.Tensor)
		r.Tensor = name
		i, ok := at[name]
		if !ok {
			at[name] = len(all)
			all = append(all, r)
			continue
		}
		was, more := all[i].DeltaNorm*all[i].DeltaNorm, r.DeltaNorm*r.DeltaNorm
		if was+more > 0 {
			all[i].Survival = (all[i].Survival*was + r.Survival*more) / (was + more)
		}
		all[i].BaseNorm = math.Hypot(all[i].BaseNorm, r.BaseNorm)
		all[i].DeltaNorm = math.Hypot(all[i].DeltaNorm, r.DeltaNorm)
		all[i].RoundingNorm = math.Hypot(all[i].RoundingNorm, r.RoundingNorm)
	}
	return all
}

// countsOf says how many tensors are changed, encoded anew or copied.
func countsOf(q *quant.GGUF, of []tensor.Spec) map[string]int {
	counts := map[string]int{"merged": len(of)}
	changed := make(map[string]bool)
	for _, s := range of {
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
		losses[t.Tensor] = encodingLoss{t.Type.String(), t.Error * t.Norm, t.Survival}
	}
	return losses
}
