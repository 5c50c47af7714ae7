package cli

import (
	"context"
	"runtime/debug"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/loratool/loratool/diff"
	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/plan"
)

// diffFlags are the flags of diff.
type diffFlags struct {
	page             pageFlag
	only, exclude    []string
	atol, rtol, most float64
	ulp              uint64
	tensorsOnly      bool
	top              int
	run              runFlags
}

func (a *App) newDiff() *cobra.Command {
	var f diffFlags
	cmd := &cobra.Command{
		Use:   "diff A B",
		Short: "How two models or adapters differ",
		Long: `Compare two checkpoints: first their structure, then the numbers of every tensor
that both have.

Examples:
  loratool diff ./llama ./merged
  loratool diff ./merged ./merged-by-peft --rtol 0.01
  loratool diff ./llama ./llama-nf4 --error 0.12 --only self_attn --only mlp
  loratool diff model-F16.gguf model-Q4_K_M.gguf --json
  loratool diff ./llama llama-Q8_0.gguf --error 0.01
  loratool diff ./lora ./lora-resized --error 0.05

A and B are model folders, adapters, .safetensors or .gguf files, or repository ids in
the local hub cache. Element types, shards and quantized forms may differ: numbers are
compared as what they stand for. Names may differ by a prefix.

A folder is compared with a GGUF file as what 'convert -o M.gguf' makes of it: names,
row order, norms, stacked experts. Nothing is written, and no tokenizer is needed. Of such
a pair only tensors count, not settings, files and element types; --only and --exclude
take the names of GGUF.

Without a limit the two must be the same: tensors, element types, bits, settings and
the files beside the weights. With one, only numbers, names, shapes, settings and files
count, not how numbers are stored. An element is within --atol and --rtol if
|a-b| <= ATOL + RTOL * max(|a|,|b|), and within --ulp if no more steps of the coarser
element type lie between. A tensor is within --error if ||A-B|| is at most so much of
the larger norm. Who made a model and tensors that it computes itself never count.

Of two adapters the products of the factors are compared too, as equal changes may
have other factors; --error then holds for the products.

Equal bytes are not decoded. Norms and cosines are those of tensors that differ.

Exit status: 0 the same or within the limits, 1 failed, 2 usage, 3 different, 4 bad
input, 130 cancelled ('loratool help exit-codes').`,
		Args:              twoArgs,
		ValidArgsFunction: a.models,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.runDiff(cmd.Context(), &f, args) },
	}
	f.register(cmd.Flags())
	for flag, complete := range map[string]completer{"memory": fixed("256MiB", "1GiB"), "jobs": fixed()} {
		if err := cmd.RegisterFlagCompletionFunc(flag, complete); err != nil {
			panic(err) // a flag that is not there
		}
	}
	return cmd
}

func twoArgs(cmd *cobra.Command, args []string) error {
	if len(args) != 2 {
		return usageHint(cmd.CommandPath()+" --help", "%s takes two paths, got %d", cmd.Name(), len(args))
	}
	return nil
}

// defaultTop is how many tensors the table has.
const defaultTop = 20

func (f *diffFlags) register(fs *pflag.FlagSet) {
	fs.StringArrayVar(&f.only, "only", nil, "compare only modules or tensors of this `NAME`, the end of a name or a pattern with *; each has its sums; may be repeated")
	fs.StringArrayVar(&f.exclude, "exclude", nil, "leave out modules or tensors of this `NAME`; may be repeated")
	fs.Float64Var(&f.atol, "atol", 0, "largest `DIFFERENCE` of two elements")
	fs.Float64Var(&f.rtol, "rtol", 0, "largest `DIFFERENCE` of two elements, relative to the larger")
	fs.Uint64Var(&f.ulp, "ulp", 0, "most `STEPS` of the coarser element type between two elements")
	fs.Float64Var(&f.most, "error", 0, "largest relative `ERROR` of a tensor, in the Frobenius norm")
	fs.BoolVar(&f.tensorsOnly, "tensors-only", false, "compare tensors, not settings and the files beside the weights")
	f.page.registerForce(fs)
	fs.IntVar(&f.top, "top", defaultTop, "how many of the tensors that differ most are printed")
	fs.BoolVarP(&f.run.verbose, "verbose", "v", false, "print all tensors and every difference of structure")
	fs.VarP(&f.run.jobs, "jobs", "j", "pieces compared at a time (default: one per processor)")
	fs.Var(&f.run.memory, "memory", "working memory, such as 128MiB (default 256MiB)")
}

func (f *diffFlags) options() (diff.Options, error) {
	o := diff.Options{
		Limits: diff.Limits{Abs: f.atol, Rel: f.rtol, ULP: f.ulp, Error: f.most},
		Only:   f.only, Exclude: f.exclude, TensorsOnly: f.tensorsOnly,
	}
	if err := o.Validate(); err != nil {
		return o, usagef("%w", err)
	}
	if f.top < 0 {
		return o, usagef("--top: %d is no number of tensors", f.top)
	}
	return o, nil
}

// runDiff opens, compares and prints.
func (a *App) runDiff(ctx context.Context, f *diffFlags, paths []string) error {
	defer a.noteStop(ctx)()
	opts, err := f.options()
	if err != nil {
		return err
	}
	engineOpts, err := f.run.engineOptions(a)
	if err != nil {
		return err
	}
	var models [2]*checkpoint.Model
	for i, path := range paths {
		m, err := checkpoint.Open(path, a.cache())
		if err != nil {
			return err
		}
		defer m.Close()
		models[i] = m
	}
	if err := f.page.refusal(a, pathsOf(models[:])); err != nil {
		return err
	}
	compared := models
	beside, note, err := seePairAsGGUF(&compared, [2]string{"A", "B"}, engineOpts)
	if err != nil {
		return err
	}
	engineOpts.Memory = max(engineOpts.Memory-beside, 1)
	d, err := diff.Open(compared[0], compared[1], opts)
	if err != nil {
		return err
	}
	if err := a.compare(ctx, d, engineOpts, beside); err != nil {
		return err
	}
	for _, m := range models {
		if err := m.CheckUnchanged(); err != nil {
			return err
		}
	}
	return a.printDiff(d.Result(), models, note, opts.Limits, f)
}

// compare runs the tasks of a comparison, and those that they leave; beside is what the
// sides hold.
func (a *App) compare(ctx context.Context, d *diff.Diff, o engine.Options, beside int64) error {
	for _, round := range []struct {
		doing string
		tasks func() []plan.Task
	}{{"comparing", d.Tasks}, {"measuring", d.Norms}} {
		tasks := round.tasks()
		if len(tasks) == 0 {
			continue
		}
		peak, _ := engine.TaskPeak(tasks, o)
		debug.SetMemoryLimit((max(peak, o.Memory)+beside)*5/4 + 32<<20)
		progress := a.newProgress(round.doing)
		o.Progress = progress
		err := engine.Each(ctx, tasks, o)
		progress.Finish()
		if err != nil {
			return err
		}
	}
	return nil
}
