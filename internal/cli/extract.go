package cli

import (
	"context"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/extract"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/merge"
)

// extractFlags are the flags of extract.
type extractFlags struct {
	page                pageFlag
	base, tuned, output string
	rule                ruleFlags
	alpha               float64
	target, exclude     []string
	dtype               string
	exact, dense, plain bool
	mergeCheck, verify  bool
	noProvenance        bool
	run                 runFlags
}

// ruleFlags say how ranks are chosen.
type ruleFlags struct {
	rank, maxRank, params int64
	energy, relativeError float64
	size                  size
	sweep                 []int64
}

func (f *ruleFlags) register(fs *pflag.FlagSet) {
	fs.Int64Var(&f.rank, "rank", 0, "`RANK` of every module")
	fs.Float64Var(&f.energy, "energy", 0, "`SHARE` of the squared norm that every module keeps, such as 0.99")
	fs.Float64Var(&f.relativeError, "error", 0, "largest `RESIDUAL` of every module, relative to its change, such as 0.05")
	fs.Int64Var(&f.maxRank, "max-rank", 0, "largest `RANK` that the other rules may give a module")
	fs.Int64Var(&f.params, "params", 0, "`NUMBER` of parameters of the whole adapter, spent where they carry most")
	fs.Var(&f.size, "size", "size of the weights file, such as 50MB, spent where it carries most")
	fs.Int64SliceVar(&f.sweep, "sweep", nil, "print what these `RANKS` (4,8,16) would keep, and write nothing")
}

// options checks that there is a rule, or a sweep, and returns it.
func (f *ruleFlags) options(command string) (extract.Rule, error) {
	r := extract.Rule{Rank: f.rank, Energy: f.energy, Error: f.relativeError, Params: f.params, Size: int64(f.size), MaxRank: f.maxRank}
	if len(f.sweep) > 0 {
		if r != (extract.Rule{}) {
			return r, usagef("--sweep tries ranks and takes no other rule")
		}
		return r, nil
	}
	if (r == extract.Rule{MaxRank: r.MaxRank}) {
		return r, usageHint(command+" ... --sweep 4,8,16,32,64 prints what each rank would keep",
			"how are ranks chosen? one of --rank, --energy, --error, --params, --size")
	}
	if err := r.Validate(); err != nil {
		return r, usagef("%w", err)
	}
	return r, nil
}

func (a *App) newExtract() *cobra.Command {
	var f extractFlags
	cmd := &cobra.Command{
		Use:   "extract --base BASE --tuned TUNED -o OUT (--rank R | --energy SHARE | --error RESIDUAL | --params N | --size SIZE)",
		Short: "Turn a full fine-tune into a LoRA adapter",
		Long: `Turn the difference between a base and a full fine-tune into a PEFT adapter, with
a certificate of what it carries.

Examples:
  loratool extract --base ./llama --tuned ./llama-chat --sweep 4,8,16,32,64
  loratool extract --base ./llama --tuned ./llama-chat -o ./lora --rank 32
  loratool extract --base ./llama --tuned ./llama-chat -o ./lora --energy 0.95 --max-rank 256
  loratool extract --base ./llama --tuned ./llama-chat -o ./lora --size 50MB --dtype bf16 --merge-check
  loratool extract --base base-F16.gguf --tuned tuned-F16.gguf -o lora.gguf --rank 32
  loratool extract --base ./llama --tuned tuned-F16.gguf -o lora.gguf --rank 32

Which rank do you need? --sweep decomposes every change once and prints, for each
rank, what the adapter would keep and how large it would be; it writes nothing.

Differences are float32 (float64 for F64 tensors), whatever the two models are
stored in. Every changed weight of a linear layer, a convolution or a stack of
experts becomes a pair of factors, the best of its rank up to the certified
excess; biases are added or replaced; norms, embeddings and heads are saved whole,
or as rows where few have changed. What is unchanged is left out, and what no
form of PEFT can hold is an error that names it. --dry-run prints every choice.

--rank gives every module the same rank, --energy and --error as many directions
as it needs, --params and --size share one budget: the singular directions that
carry most per parameter win, over all modules.

--plain writes pairs of linear layers only, of one rank and scale for all, which PEFT,
vLLM and llama.cpp read alike, and names what it had to leave out and what they need
or do not take. The rank is the largest that --energy or --error give any layer, or
that fits into --params or --size when every layer has it. Layers that have fewer
directions are filled up with zeros; the report says which, and what it costs.

Of GGUF models the output is a GGUF adapter, OUT.gguf, for llama.cpp. One of the two may
be a folder: it is seen as the GGUF file it would become. The adapter holds factors only: changed norms and biases, and embedding and head unless --target names
them, are left out, named and counted as lost.

--verify reads the adapter back before it appears and compares it, number by number,
with the factors as they were found; --merge-check compares what it does.

Factors go to a work folder beside the output while the survey runs. After a kill,
the same command with --resume goes on from there.

Exit status: 0 done, 1 failed, 2 usage, 4 bad input, 5 refused, 130 cancelled
('loratool help exit-codes').`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runExtract(cmd.Context(), &f) },
	}
	f.register(cmd.Flags())
	sizes := fixed("50MB", "256MiB", "1GiB")
	for flag, complete := range map[string]completer{
		"base": a.models, "tuned": a.models, "size": sizes, "memory": sizes, "jobs": fixed(),
		"dtype": fixed("f32\t32-bit", "bf16\tbfloat16", "f16\tIEEE half"),
	} {
		if err := cmd.RegisterFlagCompletionFunc(flag, complete); err != nil {
			panic(err) // a flag that is not there
		}
	}
	return cmd
}

func (f *extractFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&f.base, "base", "", "`MODEL` before training: folder, file or cached repository id")
	fs.StringVar(&f.tuned, "tuned", "", "`MODEL` after training")
	fs.StringVarP(&f.output, "output", "o", "", "adapter folder `OUT` to write, or of GGUF models the file OUT.gguf")
	f.rule.register(fs)
	fs.Float64Var(&f.alpha, "alpha", 0, "lora_`ALPHA` of every module (default: its rank, a scale of 1)")
	fs.StringArrayVar(&f.target, "target", nil, "extract only modules of this `NAME`, the end of a name or a pattern with *; may be repeated")
	fs.StringArrayVar(&f.exclude, "exclude", nil, "leave out modules of this `NAME`; may be repeated")
	fs.StringVar(&f.dtype, "dtype", "", "`TYPE` of factors: f32, f16, bf16 or f64 (default f32)")
	fs.BoolVar(&f.exact, "exact", false, "decompose in float64 without iteration: slower, the excess is zero")
	fs.BoolVar(&f.dense, "dense-when-cheaper", false, "save a weight whole where its factors would take as many bytes")
	fs.BoolVar(&f.plain, "plain", false, "write nothing but pairs of linear layers, of one rank and scale")
	fs.BoolVar(&f.mergeCheck, "merge-check", false, "merge the adapter back and compare with the tuned model")
	fs.BoolVar(&f.noProvenance, "no-provenance", false, "leave names and hashes of the inputs out of the output")
	verifyFlag(fs, &f.verify)
	f.page.register(fs, &f.run.force)
	f.run.register(fs)
}

// options checks the flags and turns them into options of the library.
func (f *extractFlags) options() (extract.Options, error) {
	o := extract.Options{
		Output: f.output, Alpha: f.alpha, Target: f.target, Exclude: f.exclude, Exact: f.exact,
		DenseWhenCheaper: f.dense, Plain: f.plain, NoProvenance: f.noProvenance, Version: buildVersion(),
	}
	sweep := len(f.rule.sweep) > 0
	switch {
	case f.base == "":
		return o, usagef("--base is missing")
	case f.tuned == "":
		return o, usagef("--tuned is missing")
	case sweep && f.output != "":
		return o, usagef("--sweep writes nothing: leave out -o, or choose a rank")
	case !sweep && f.output == "":
		return o, usagef("-o is missing")
	case strings.HasSuffix(f.output, ".safetensors"):
		return o, usagef("-o: an adapter is a folder, not the file %q", f.output)
	case f.mergeCheck && strings.HasSuffix(f.output, ".gguf"):
		return o, usagef("--merge-check does not read GGUF adapters")
	}
	var err error
	if o.Rule, err = f.rule.options("loratool extract"); err != nil {
		return o, err
	}
	if o.DType, err = factorType(f.dtype); err != nil {
		return o, err
	}
	if !sweep {
		if err := o.Validate(); err != nil {
			return o, usagef("%w", err)
		}
	}
	return o, nil
}

// factorType reads the element type of factors.
func factorType(name string) (tensor.DType, error) {
	if name == "" {
		return tensor.NoDType, nil
	}
	d, err := tensor.ParseFlag(name)
	if err != nil || !d.IsFloat() || d.IsFP8() {
		return d, usagef("--dtype: %q is not one of f32, f16, bf16, f64", name)
	}
	return d, nil
}

// extraction is one run of extract.
type extraction struct {
	a      *App
	f      *extractFlags
	opts   extract.Options
	engine engine.Options
	in     *mergeInputs // the models that are open
	base   *checkpoint.Model
	tuned  *checkpoint.Model
}

// runExtract opens, surveys, plans, writes and commits.
func (a *App) runExtract(ctx context.Context, f *extractFlags) error {
	defer a.noteStop(ctx)()
	r := &extraction{a: a, f: f, in: &mergeInputs{page: &f.page}}
	defer r.in.close()
	var err error
	if r.opts, err = f.options(); err != nil {
		return err
	}
	if r.engine, err = f.run.engineOptions(a); err != nil {
		return err
	}
	if err := r.open(); err != nil {
		return err
	}
	if len(f.rule.sweep) > 0 {
		return r.sweep(ctx)
	}
	refusal := a.refusal(&checkpoint.Layout{Path: f.output, IsFolder: !strings.HasSuffix(f.output, ".gguf")}, r.in, f.run.force)
	if refusal != nil && !f.run.dryRun {
		return refusal // before the work rather than after it
	}
	s, err := extract.Open(r.base, r.tuned, r.opts)
	if err != nil {
		return err
	}
	if f.run.dryRun {
		return r.dryRun(ctx, s)
	}
	return r.extract(ctx, s)
}

// open opens the two models; the caller closes them.
func (r *extraction) open() (err error) {
	for _, m := range []struct {
		ref string
		dst **checkpoint.Model
	}{{r.f.base, &r.base}, {r.f.tuned, &r.tuned}} {
		if *m.dst, err = checkpoint.Open(m.ref, r.a.cache()); err != nil {
			return err
		}
		r.in.models = append(r.in.models, *m.dst)
	}
	return r.meetAsGGUF()
}

// meetAsGGUF makes a folder and a GGUF file comparable. The models of the run stay those
// that were opened: their files are the inputs.
func (r *extraction) meetAsGGUF() error {
	pair := [2]*checkpoint.Model{r.base, r.tuned}
	beside, note, err := seePairAsGGUF(&pair, [2]string{"the base", "the tuned model"}, r.engine)
	if err != nil || note == "" {
		return err
	}
	r.base, r.tuned = pair[0], pair[1]
	r.engine.Memory = max(r.engine.Memory-beside, 1)
	r.a.note("%s", note)
	return nil
}

// survey compares and decomposes everything.
func (r *extraction) survey(ctx context.Context, s *extract.Survey, store *extract.Store) error {
	tasks := s.Tasks(store)
	peak, beyond := engine.TaskPeak(tasks, r.engine)
	if beyond != "" {
		r.a.note("the decomposition of %s takes %s, more than --memory: it runs alone", beyond, formatSize(peak))
	}
	// The collector keeps the garbage of the tasks within the budget too.
	debug.SetMemoryLimit(max(peak, r.engine.Memory)*5/4 + 32<<20)
	o := r.engine
	progress := r.a.newProgress("comparing")
	defer progress.Finish()
	o.Progress = progress
	if err := engine.Each(ctx, tasks, o); err != nil {
		return err
	}
	return r.in.checkUnchanged()
}

// sweep prints what several ranks would give.
func (r *extraction) sweep(ctx context.Context) error {
	s, err := extract.OpenSweep(r.base, r.tuned, r.f.rule.sweep, r.opts)
	if err != nil {
		return err
	}
	if err := r.survey(ctx, s, nil); err != nil {
		return err
	}
	points, err := s.Sweep(r.f.rule.sweep)
	if err != nil {
		return err
	}
	r.a.printSweep("loratool.extract-sweep/v1", points)
	return nil
}

// dryRun surveys without a store and prints the plan.
func (r *extraction) dryRun(ctx context.Context, s *extract.Survey) error {
	if err := r.survey(ctx, s, nil); err != nil {
		return err
	}
	x, err := s.Plan(nil)
	if err != nil {
		return err
	}
	budget, err := engine.Budget(x.Plan, r.engine)
	if err != nil {
		return err
	}
	peak, _ := engine.TaskPeak(s.Tasks(nil), r.engine)
	budget.Peak = max(budget.Peak, peak)
	r.a.printExtractPlan(x, budget, r.a.refusal(x.Layout, r.in, r.f.run.force))
	return nil
}

// extract surveys into a store, writes the adapter from it and prints the report.
// The store goes with the run, however it ends; only a kill leaves it.
func (r *extraction) extract(ctx context.Context, s *extract.Survey) (err error) {
	fsys := r.f.run.fs(r.a)
	store, err := s.NewStore(fsys, r.f.run.resume)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := store.Close(); cerr != nil {
			r.a.note("%v", cerr)
		}
	}()
	r.noteStore(store)
	if err := r.survey(ctx, s, store); err != nil {
		return err
	}
	x, err := s.Plan(store)
	if err != nil {
		return err
	}
	if refusal := r.a.refusal(x.Layout, r.in, r.f.run.force); refusal != nil {
		return refusal
	}
	if err := checkProof(x.Plan, nil, r.f.verify, r.engine); err != nil {
		return err
	}
	report, err := r.write(ctx, x, fsys)
	if err != nil {
		return err
	}
	check, err := r.mergeCheck(ctx, s)
	if err != nil {
		return err
	}
	return r.a.printExtraction(x, report, check, r.f.run.verbose, &r.f.page)
}

// noteStore says which work folder is gone on from, and names others.
func (r *extraction) noteStore(store *extract.Store) {
	switch {
	case store.Resumed():
		r.a.note("going on from %s", store.Dir())
	case r.f.run.resume:
		r.a.note("there is nothing to resume: no work folder of this extraction")
	}
	left, err := fsatomic.Leftovers(r.a.FS, r.f.output)
	if err != nil {
		return // making the output will say why
	}
	for _, path := range left {
		if path != store.Dir() {
			r.a.note("%s is left from another run; --resume goes on from it if it is of this extraction; remove it if none is going on", path)
		}
	}
}

// write runs the plan and puts the adapter in place.
func (r *extraction) write(ctx context.Context, x *extract.Extraction, fsys fsatomic.FS) (written, error) {
	sink, err := checkpoint.Create(fsys, x.Layout, r.f.run.force)
	if err != nil {
		return written{}, err
	}
	w := &writing{doing: "writing", plan: x.Plan, sources: sourcesOf(x.Inputs), sink: sink, options: r.engine}
	done, err := r.a.write(ctx, w, r.f.verify, r.in)
	if err != nil {
		return done, err
	}
	return done, r.a.commit(sink, x.SetHashes(done.Hashes))
}

// mergeCheck merges what was written back into the base and compares the result
// with the tuned model.
func (r *extraction) mergeCheck(ctx context.Context, s *extract.Survey) (*mergeCheckJSON, error) {
	if !r.f.mergeCheck {
		return nil, nil
	}
	in := new(mergeInputs)
	defer in.close()
	made, err := in.openAdapter(r.f.output, r.a.cache())
	if err != nil {
		return nil, err
	}
	m, err := merge.Plan(r.base, []merge.Source{{Adapter: made, Weight: 1}}, merge.Options{Output: r.f.output, NoProvenance: true})
	if err != nil {
		return nil, err
	}
	return r.compare(ctx, s, m)
}

func (r *extraction) compare(ctx context.Context, s *extract.Survey, m *merge.Merge) (*mergeCheckJSON, error) {
	head, embedding := s.HeadOf()
	c, err := extract.NewComparison(m.Plan, r.tuned, head, embedding)
	if err != nil {
		return nil, err
	}
	progress := r.a.newProgress("merging back")
	defer progress.Finish()
	o := r.engine
	o.Progress = progress
	if _, err := engine.Run(ctx, m.Plan, sourcesOf(m.Inputs), c, o); err != nil {
		return nil, err
	}
	tensors, all := c.Result()
	return checkOf(tensors, all), nil
}
