package cli

import (
	"context"
	"errors"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/extract"
	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/internal/workfolder"
	"github.com/loratool/loratool/merge"
)

// resizeFlags are the flags of resize.
type resizeFlags struct {
	adapter, base, output string
	rule                  ruleFlags
	alpha                 float64
	dtype                 string
	plain, noProvenance   bool
	verify                bool
	run                   runFlags
}

func (a *App) newResize() *cobra.Command {
	var f resizeFlags
	cmd := &cobra.Command{
		Use:   "resize ADAPTER -o OUT (--rank R | --energy SHARE | --error RESIDUAL | --params N | --size SIZE)",
		Short: "Give a LoRA adapter another rank",
		Long: `Give the modules of a LoRA adapter other ranks, with the least change that is
possible, and say how much is left.

Examples:
  loratool resize ./lora --sweep 4,8,16,32
  loratool resize ./lora -o ./smaller --rank 8
  loratool resize ./lora -o ./smaller --error 0.05
  loratool resize ./lora -o ./smaller --size 20MB --dtype bf16
  loratool resize ./dora -o ./lora --base ./llama --rank 32

The work is done on the factors: QR of both, and the singular value decomposition of
the small core between them, never of the product. Scales are exact: whatever alpha,
rsLoRA and patterns the adapter has, the new factors carry the change as it is.
Saved modules, biases and trained rows are copied.

--plain gives all modules one rank and scale, as PEFT, vLLM and llama.cpp read it
alike: the largest that the rule gives any of them, under a budget the largest that
fits. Where a product has fewer directions zeros follow; what that costs is said.
An adapter that holds more than pairs of linear layers is refused then.

What other adapters do depends on the weights of the base (DoRA, LoHa, IA3 and
others): --base makes the difference of the weights first, in a work folder beside the
output, and decomposes that, as extract does.

--verify reads the adapter back before it appears and compares it, number by number,
with the factors as they were found.

Exit status: 0 done, 1 failed, 2 usage, 4 bad input, 5 refused, 130 cancelled
('loratool help exit-codes').`,
		Args: oneArg("adapter"),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.adapter = args[0]
			return a.runResize(cmd.Context(), &f)
		},
		ValidArgsFunction: folders,
	}
	f.register(cmd.Flags())
	sizes := fixed("20MB", "256MiB", "1GiB")
	for flag, complete := range map[string]completer{
		"base": a.models, "size": sizes, "memory": sizes, "jobs": fixed(),
		"dtype": fixed("f32\t32-bit", "bf16\tbfloat16", "f16\tIEEE half"),
	} {
		if err := cmd.RegisterFlagCompletionFunc(flag, complete); err != nil {
			panic(err) // a flag that is not there
		}
	}
	return cmd
}

func (f *resizeFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&f.base, "base", "", "`MODEL` that the adapter belongs to, where the change depends on it")
	fs.StringVarP(&f.output, "output", "o", "", "adapter folder `OUT` to write")
	f.rule.register(fs)
	fs.Float64Var(&f.alpha, "alpha", 0, "lora_`ALPHA` of every module (default: its rank, a scale of 1)")
	fs.StringVar(&f.dtype, "dtype", "", "`TYPE` of factors: f32, f16, bf16 or f64 (default f32)")
	fs.BoolVar(&f.plain, "plain", false, "one rank and scale for all modules, and nothing but pairs of linear layers")
	fs.BoolVar(&f.noProvenance, "no-provenance", false, "leave names and hashes of the inputs out of the output")
	verifyFlag(fs, &f.verify)
	f.run.register(fs)
}

// options checks the flags and turns them into options of the library.
func (f *resizeFlags) options() (extract.Options, error) {
	o := extract.Options{Output: f.output, Alpha: f.alpha, Plain: f.plain, NoProvenance: f.noProvenance, Version: buildVersion()}
	sweep := len(f.rule.sweep) > 0
	switch {
	case sweep && f.output != "":
		return o, usagef("--sweep writes nothing: leave out -o, or choose a rank")
	case sweep && f.base != "":
		return o, usagef("--sweep works on the factors and takes no --base")
	case !sweep && f.output == "":
		return o, usagef("-o is missing")
	case strings.HasSuffix(f.output, ".safetensors"):
		return o, usagef("-o: an adapter is a folder, not the file %q", f.output)
	}
	var err error
	if o.Rule, err = f.rule.options("loratool resize ADAPTER"); err != nil {
		return o, err
	}
	if sweep {
		o.Rule.Rank = f.rule.sweep[0]
	}
	if o.DType, err = factorType(f.dtype); err != nil {
		return o, err
	}
	if err := o.Validate(); err != nil {
		return o, usagef("%w", err)
	}
	return o, nil
}

// runResize opens, decomposes, plans, writes and commits.
func (a *App) runResize(ctx context.Context, f *resizeFlags) error {
	defer a.noteStop(ctx)()
	opts, err := f.options()
	if err != nil {
		return err
	}
	// What remains is as in extract, once there is a plan.
	r := &extraction{a: a, f: &extractFlags{output: f.output, rule: f.rule, verify: f.verify, run: f.run}, opts: opts, in: new(mergeInputs)}
	defer r.in.close()
	if r.engine, err = f.run.engineOptions(a); err != nil {
		return err
	}
	source, err := r.in.openAdapter(f.adapter, a.cache())
	if err != nil {
		return err
	}
	if err := source.Source.RefuseGGUF("an adapter in"); err != nil {
		return err
	}
	if f.base != "" {
		if r.base, err = checkpoint.Open(f.base, a.cache()); err != nil {
			return err
		}
		r.in.models = append(r.in.models, r.base)
	}
	if len(f.rule.sweep) == 0 {
		refusal := a.refusal(&checkpoint.Layout{Path: f.output, IsFolder: true}, r.in, f.run.force)
		if refusal != nil && !f.run.dryRun {
			return refusal
		}
	}
	resize, err := extract.OpenResize(source, opts)
	if weights, ok := errors.AsType[*extract.WeightError](err); ok {
		if r.base == nil {
			return &hinted{&checkpoint.InputError{Path: weights.Adapter, Err: errors.New(weights.Reason)}, weights.Hint()}
		}
		return r.resizeWeights(ctx, source)
	}
	if err != nil {
		return err
	}
	return r.resize(ctx, resize)
}

// resize works on the factors.
func (r *extraction) resize(ctx context.Context, resize *extract.Resize) error {
	o := r.engine
	progress := r.a.newProgress("decomposing")
	o.Progress = progress
	err := engine.Each(ctx, resize.Tasks(), o)
	progress.Finish()
	if err == nil {
		err = r.in.checkUnchanged()
	}
	if err != nil {
		return err
	}
	if len(r.f.rule.sweep) > 0 {
		points, err := resize.Sweep(r.f.rule.sweep)
		if err != nil {
			return usagef("--sweep: %w", err)
		}
		r.a.printSweep("loratool.resize-sweep/v1", points)
		return nil
	}
	x, err := resize.Plan()
	if err != nil {
		return err
	}
	budget, err := engine.Budget(x.Plan, r.engine)
	if err != nil {
		return err
	}
	refusal := r.a.refusal(x.Layout, r.in, r.f.run.force)
	if r.f.run.dryRun {
		peak, _ := engine.TaskPeak(resize.Tasks(), r.engine)
		budget.Peak = max(budget.Peak, peak)
		r.a.printExtractPlan(x, budget, refusal)
		return nil
	}
	if refusal != nil {
		return refusal
	}
	if err := checkProof(x.Plan, nil, r.f.verify, r.engine); err != nil {
		return err
	}
	r.a.noteLeftovers(x.Layout.Path)
	report, err := r.write(ctx, x, r.f.run.fs(r.a))
	if err != nil {
		return err
	}
	return r.a.printExtraction(x, report, nil, r.f.run.verbose, nil)
}

// resizeWeights merges the adapter into a work folder beside the output, in
// float32, and extracts from there.
func (r *extraction) resizeWeights(ctx context.Context, source *adapter.Adapter) error {
	fsys := r.f.run.fs(r.a)
	folder := workfolder.Name(r.opts.Output)
	m, err := merge.Plan(r.base, []merge.Source{{Adapter: source, Weight: 1}}, merge.Options{Output: folder, DType: tensor.F32, NoProvenance: true})
	if err != nil {
		return err
	}
	defer func() {
		if err := workfolder.Remove(fsys, folder); err != nil {
			r.a.note("%v", err)
		}
	}()
	if err := r.mergeInto(ctx, m, fsys); err != nil {
		return err
	}
	if r.tuned, err = checkpoint.Open(folder, r.a.cache()); err != nil {
		return err
	}
	r.in.models = append(r.in.models, r.tuned)
	r.tuned.Name = source.Source.Name // what is published names the adapter
	s, err := extract.Open(r.base, r.tuned, r.opts)
	if err != nil {
		return err
	}
	if r.f.run.dryRun {
		return r.dryRun(ctx, s)
	}
	return r.extract(ctx, s)
}

// mergeInto writes a merge, which here is a step on the way.
func (r *extraction) mergeInto(ctx context.Context, m *merge.Merge, fsys fsatomic.FS) error {
	sink, err := checkpoint.Create(fsys, m.Layout, false)
	if err != nil {
		return err
	}
	w := &writing{doing: "merging", plan: m.Plan, sources: sourcesOf(m.Inputs), sink: sink, options: r.engine}
	done, err := r.a.write(ctx, w, r.f.verify, r.in)
	if err != nil {
		return err
	}
	return r.a.commit(sink, m.SetHashes(done.Hashes))
}
