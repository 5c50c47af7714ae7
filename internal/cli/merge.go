package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/loratool/loratool/convert"
	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/quant"
)

// mergeFlags are the flags of merge.
type mergeFlags struct {
	base         string
	adapters     []string
	init         []string
	output       string
	dtype        string
	moeBLayout   string
	trainBase    string
	kind         string
	imatrix      string
	doubleQuant  bool
	blockSize    int
	shardSize    size
	mhaFormula   bool
	noProvenance bool
	verify       bool
	run          runFlags
	page         pageFlag
	set          *pflag.FlagSet // which flags were given
}

// runFlags are the flags of every command that writes.
type runFlags struct {
	dryRun, force, resume, verbose, directIO bool
	jobs                                     count
	memory                                   size
}

func (f *runFlags) register(fs *pflag.FlagSet) {
	fs.BoolVarP(&f.dryRun, "dry-run", "n", false, "print the plan and write nothing")
	fs.BoolVarP(&f.force, "force", "f", false, "replace an existing output once the new one is complete")
	fs.BoolVar(&f.resume, "resume", false, "go on with what a run of the same command left when it was killed")
	fs.BoolVarP(&f.verbose, "verbose", "v", false, "print what became of every changed tensor, on stderr")
	fs.VarP(&f.jobs, "jobs", "j", "bands worked on at a time (default: one per processor)")
	fs.Var(&f.memory, "memory", "working memory, such as 128MiB (default 256MiB)")
	fs.BoolVar(&f.directIO, "direct-io", false, "write past the page cache where the system can (O_DIRECT): less CPU, and the output is not cached")
}

// engineOptions turns the flags, and the environment where they are not given,
// into options of a run.
func (f *runFlags) engineOptions(a *App) (engine.Options, error) {
	if f.verbose && a.quiet {
		return engine.Options{}, usagef("--quiet and --verbose exclude each other")
	}
	if err := a.orEnv(&f.memory, f.memory != 0, "LORATOOL_MEMORY"); err != nil {
		return engine.Options{}, err
	}
	if err := a.orEnv(&f.jobs, f.jobs != 0, "LORATOOL_JOBS"); err != nil {
		return engine.Options{}, err
	}
	if _, err := a.progressInterval(); err != nil {
		return engine.Options{}, err
	}
	return engine.Options{Jobs: int(f.jobs), Memory: int64(f.memory)}.WithDefaults(), nil
}

// fs is the file system that outputs are written to.
func (f *runFlags) fs(a *App) fsatomic.FS {
	if disk, ok := a.FS.(fsatomic.OS); ok {
		disk.Direct = f.directIO
		return disk
	}
	return a.FS
}

// orEnv sets a flag that was not given from a variable of the environment.
func (a *App) orEnv(flag pflag.Value, given bool, name string) error {
	text := a.Getenv(name)
	if given || text == "" {
		return nil
	}
	if err := flag.Set(text); err != nil {
		return usagef("%s: %w", name, err)
	}
	return nil
}

func (a *App) newMerge() *cobra.Command {
	var f mergeFlags
	cmd := &cobra.Command{
		Use:   "merge --base BASE --adapter ADAPTER... -o OUT",
		Short: "Fold adapters into the weights of a model",
		Long: `Fold PEFT adapters into the weights of a safetensors or GGUF model, or LoRA adapters in
GGUF files into those of a GGUF model.

Examples:
  loratool merge --base ./llama --adapter ./lora -o ./merged
  loratool merge --base org/name --adapter ./style@0.7 --adapter ./bias@-0.3 -o ./merged
  loratool merge --base ./llama --adapter ./lora -o ./merged --dry-run
  loratool merge --base ./base.safetensors --adapter ./lora -o ./merged.safetensors --dtype bf16
  loratool merge --base ./llama --adapter ./qlora -o ./merged --train-base nf4-dq
  loratool merge --base ./llama-nf4 --adapter ./qlora -o ./merged-nf4 --type nf4
  loratool merge --base model-q4_k_m.gguf --adapter lora.gguf -o merged.gguf

BASE is a model folder, a .safetensors file, or a repository id in the local hub
cache. ADAPTER is a PEFT adapter folder, PATH@WEIGHT with a weight other than 1.
A GGUF base, whole or split, takes GGUF adapters, or those of PEFT, for which it is seen
as the model of Hugging Face that it was made from: every tensor keeps its type, what
does not change its bytes, and OUT is a .gguf file, or a folder for a split model.
Several adapters are added as the exact sum of what each does to the base, in
one pass with one rounding.

Sums are float32 (float64 for F64 tensors) in a fixed order and are rounded once,
to nearest even; tensors without a change are copied byte for byte. The same
inputs and options give the same bytes, for any --jobs and any --memory.

Whatever has no place is an error: a tensor of the adapter without a target, a
target without a tensor, half a pair, a rank that contradicts the config, a value
that is not finite. Nothing is written then.

--type stores the result in 4 or 8 bits, as quantize would, without writing it in 16
bits first: what does not change of a base in the same format is copied as it is.

--verify reads the output back before it appears: every changed number is computed again
in float64, what is stored in codes is encoded again and must have the same bytes, and
so must what is copied.

A run that was killed leaves a partial output beside OUT; the same command with
--resume goes on from it.

Exit status: 0 done, 1 failed, 2 usage, 4 bad input, 5 refused, 130 cancelled
('loratool help exit-codes').`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runMerge(cmd.Context(), &f) },
	}
	f.register(cmd.Flags())
	a.completeMerge(cmd)
	return cmd
}

func (f *mergeFlags) register(fs *pflag.FlagSet) {
	f.set = fs
	fs.StringVar(&f.base, "base", "", "`MODEL` to merge into: folder, file or cached repository id")
	fs.StringArrayVar(&f.adapters, "adapter", nil, "adapter `FOLDER`, or FOLDER@WEIGHT; may be repeated")
	fs.StringArrayVar(&f.init, "init-adapter", nil, "`FOLDER` of the adapter as it was before training, when making it changed the base (PiSSA, CorDA, LoRA-GA, ...)")
	fs.StringVarP(&f.output, "output", "o", "", "`OUT`, a folder or a .safetensors file, to write")
	fs.StringVar(&f.dtype, "dtype", "", "`TYPE` of floating-point tensors: f32, f16, bf16 or f64 (default: as in the base)")
	fs.Var(&f.shardSize, "shard-size", "largest weight file of a folder, such as 5GB (default 5GB)")
	fs.StringVar(&f.moeBLayout, "moe-b-layout", "auto", "`ORDER` of lora_B for stacked experts: rank (PEFT), expert (Unsloth) or auto (by the adapter's marks)")
	fs.StringVar(&f.trainBase, "train-base", "", "merge into the base as quantization to `TYPE` leaves it, as QLoRA trained it: nf4, nf4-dq, fp4, fp4-dq or int8 (default: into the base as it is)")
	fs.StringVar(&f.kind, "type", "", "`TYPE` to store the result in: nf4, fp4 or int8 of bitsandbytes, of a GGUF base those of llama.cpp (default: 16 or 32 bits, of a GGUF base as it is)")
	fs.StringVar(&f.imatrix, "imatrix", "", "GGUF: importance matrix `FILE` of llama.cpp, for the tensors that change")
	fs.BoolVar(&f.doubleQuant, "double-quant", false, "of --type nf4 and fp4: store the scales in 8 bits (default: as in a base of the type)")
	fs.IntVar(&f.blockSize, "blocksize", 0, "of --type nf4 and fp4: elements of a block, `N` is 32, 64, ..., 4096 (default: as in a base of the type, or 64)")
	fs.BoolVar(&f.mhaFormula, "mha-formula", false, "apply the change of an attention's out_proj once; PEFT trains with it applied twice")
	fs.BoolVar(&f.noProvenance, "no-provenance", false, "leave names and hashes of the inputs out of the output")
	verifyFlag(fs, &f.verify)
	f.page.register(fs, &f.run.force)
	f.run.register(fs)
}

// options checks the flags and turns them into options of the library.
func (f *mergeFlags) options() (merge.Options, error) {
	o := merge.Options{
		Output: f.output, ShardSize: int64(f.shardSize), MHAFormula: f.mhaFormula,
		NoProvenance: f.noProvenance, Version: buildVersion(),
	}
	switch {
	case f.base == "":
		return o, usagef("--base is missing")
	case len(f.adapters) == 0:
		return o, usagef("--adapter is missing")
	case f.output == "":
		return o, usagef("-o is missing")
	case f.shardSize != 0 && strings.HasSuffix(f.output, ".safetensors"):
		return o, usagef("--shard-size: the output %q is one file", f.output)
	}
	if f.dtype != "" {
		d, err := tensor.ParseFlag(f.dtype)
		if err != nil || !d.IsFloat() || d.IsFP8() {
			return o, usagef("--dtype: %q is not one of f32, f16, bf16, f64", f.dtype)
		}
		o.DType = d
	}
	if err := checkTrainBase(f.trainBase); err != nil {
		return o, err
	}
	if err := f.checkEncoding(); err != nil {
		return o, err
	}
	switch f.moeBLayout {
	case "auto":
	case "rank", "expert":
		o.MoEBLayout = f.moeBLayout
	default:
		return o, usagef("--moe-b-layout: %q is not rank, expert or auto", f.moeBLayout)
	}
	return o, nil
}

// checkEncoding refuses flags that do not go with the way the result is stored.
func (f *mergeFlags) checkEncoding() error {
	fourBit := f.kind == string(quant.NF4) || f.kind == string(quant.FP4)
	for _, name := range []string{"double-quant", "blocksize"} {
		if f.set.Changed(name) && !fourBit {
			return usagef("--%s: only --type nf4 and fp4 have it", name)
		}
	}
	if f.kind != "" && f.trainBase != "" {
		return usageHint("loratool quantize BASE -o Q --type "+f.kind+"; loratool merge --base Q ... --type "+f.kind,
			"--train-base and --type exclude each other: merge into the quantized base itself")
	}
	return nil
}

// runMerge opens, plans, runs and commits.
func (a *App) runMerge(ctx context.Context, f *mergeFlags) error {
	defer a.noteStop(ctx)()
	opts, err := f.options()
	if err != nil {
		return err
	}
	engineOpts, err := f.run.engineOptions(a)
	if err != nil {
		return err
	}
	inputs, err := a.openInputs(f)
	if err != nil {
		return err
	}
	defer inputs.close()
	inputs.page = &f.page
	if inputs.base.GGUF() != nil {
		return a.runMergeGGUF(ctx, f, inputs, engineOpts)
	}
	if f.imatrix != "" {
		return usagef("--imatrix: %s is not a GGUF file", f.base)
	}
	if f.kind != "" {
		return a.runMergeBNB(ctx, f, inputs, opts, engineOpts)
	}
	trip, err := simulateTraining(inputs.base, f.trainBase, &opts)
	if err != nil {
		return err
	}
	m, err := merge.Plan(inputs.base, inputs.sources, opts)
	if err != nil {
		return err
	}
	beside := int64(0) // what is held beside the engine's budget
	if trip != nil {
		beside = trip.Memory(engineOpts.Jobs)
		engineOpts.Memory = max(engineOpts.Memory-beside, 1)
	}
	budget, err := engine.Budget(m.Plan, engineOpts)
	if err != nil {
		return err
	}
	budget.Peak += beside
	if err := checkProof(m.Plan, nil, f.verify, engineOpts); err != nil {
		return err
	}
	refusal := a.refusal(m.Layout, inputs, f.run.force)
	if f.run.dryRun {
		return a.printPlan(m.Plan, m.Layout, budget, refusal)
	}
	if refusal != nil {
		return refusal
	}
	report, err := a.writeMerged(ctx, m, inputs, f, engineOpts)
	if err != nil {
		return err
	}
	if trip != nil {
		report.trained = describeTraining(f.trainBase, trip, report.Report)
	}
	return a.printReport(m, report, f)
}

// mergeReport is what a merge found out.
type mergeReport struct {
	written
	trained *trainBaseJSON
}

// writeMerged runs a planned merge and puts its output in place.
func (a *App) writeMerged(ctx context.Context, m *merge.Merge, inputs *mergeInputs, f *mergeFlags, o engine.Options) (mergeReport, error) {
	// The collector keeps the garbage of side inputs within the budget too.
	debug.SetMemoryLimit(o.Memory + o.Memory/4 + 32<<20)
	sink, err := a.openSink(m.Layout, m.Plan, inputs.identity(f), &f.run, &o)
	if err != nil {
		return mergeReport{}, err
	}
	done, err := a.write(ctx, &writing{doing: "merging", plan: m.Plan, sources: sourcesOf(m.Inputs), sink: sink, options: o}, f.verify, inputs)
	if err != nil {
		return mergeReport{}, err
	}
	return mergeReport{written: done}, a.commit(sink, m.SetHashes(done.Hashes))
}

// commit puts the output in place. An old output that could not be removed
// afterwards is worth a note, not a failure.
func (a *App) commit(sink *checkpoint.Sink, metadata map[string]string) error {
	return a.noteCleanup(sink.Commit(metadata))
}

// noteCleanup makes a note of an old output that could not be removed.
func (a *App) noteCleanup(err error) error {
	var left *fsatomic.CleanupError
	if errors.As(err, &left) {
		a.note("%v", left)
		return nil
	}
	return err
}

// oneSink is the sink of a run with a single output.
type oneSink struct{ *checkpoint.Sink }

func (s oneSink) WriteAt(_ int, name string, p []byte, off int64) error {
	return s.Sink.WriteAt(name, p, off)
}

// mergeInputs are the opened inputs of a merge.
type mergeInputs struct {
	base    *checkpoint.Model
	models  []*checkpoint.Model
	sources []merge.Source
	others  []otherFile
	page    *pageFlag // of the command, if it has one
}

// otherFile is an input beside the models, as it was opened.
type otherFile struct{ path, identity string }

func (in *mergeInputs) close() {
	for _, m := range in.models {
		m.Close() // only read from
	}
}

func (in *mergeInputs) checkUnchanged() error {
	for _, m := range in.models {
		if err := m.CheckUnchanged(); err != nil {
			return err
		}
	}
	for _, o := range in.others {
		if now, err := fileIdentity(o.path); err != nil || now != o.identity {
			return &checkpoint.InputError{Path: o.path, Err: errors.New("the file changed while it was read")}
		}
	}
	return nil
}

// identity is the key of the merge.
func (in *mergeInputs) identity(f *mergeFlags, more ...any) string {
	o, _ := f.options() // were checked
	weights := make([]float64, len(in.sources))
	for i, s := range in.sources {
		weights[i] = s.Weight
	}
	encoding := []any{f.kind, f.doubleQuant, f.set.Changed("double-quant"), f.blockSize}
	return identityOf("merge", []any{o, weights, f.trainBase, encoding, more}, in.models)
}

// openInputs opens the base and the adapters; on an error nothing stays open.
func (a *App) openInputs(f *mergeFlags) (*mergeInputs, error) {
	in := new(mergeInputs)
	if err := in.open(f, a.cache()); err != nil {
		in.close()
		return nil, err
	}
	return in, nil
}

func (in *mergeInputs) open(f *mergeFlags, cache hfrepo.Cache) error {
	paths, err := in.parseWeights(f.adapters)
	if err != nil {
		return err
	}
	if in.base, err = checkpoint.Open(f.base, cache); err != nil {
		return err
	}
	in.models = append(in.models, in.base)
	for i, path := range paths {
		if in.sources[i].Adapter, err = in.openAdapter(path, cache); err != nil {
			return err
		}
	}
	if err := in.seeOneDialect(); err != nil {
		return err
	}
	// Initial adapters belong to the adapters that need one, in order.
	next := 0
	for i := range in.sources {
		if in.sources[i].Adapter.Config.Init == "" || next == len(f.init) {
			continue
		}
		if in.sources[i].Init, err = in.openAdapter(f.init[next], cache); err != nil {
			return err
		}
		if err = in.sources[i].Init.Source.RefuseGGUF("an initial adapter in"); err != nil {
			return err
		}
		next++
	}
	if next < len(f.init) {
		return usagef("--init-adapter %s: no adapter was made by changing the base", f.init[next])
	}
	return nil
}

// seeOneDialect sees adapters in GGUF as those of PEFT, unless all models are GGUF.
func (in *mergeInputs) seeOneDialect() error {
	isGGUF := func(s merge.Source) bool { return s.Adapter.IsGGUF() }
	if in.base.GGUF() != nil && !slices.ContainsFunc(in.sources, func(s merge.Source) bool { return !isGGUF(s) }) {
		return nil
	}
	for i, s := range in.sources {
		if !isGGUF(s) {
			continue
		}
		seen, err := convert.AdapterAsHF(s.Adapter.Source, in.base)
		if err != nil {
			return err
		}
		if in.sources[i].Adapter, err = adapter.Open(seen); err != nil {
			return err
		}
	}
	return nil
}

func (in *mergeInputs) openAdapter(path string, cache hfrepo.Cache) (*adapter.Adapter, error) {
	m, err := checkpoint.OpenAdapter(path, cache)
	if err != nil {
		return nil, err
	}
	in.models = append(in.models, m)
	return adapter.Open(m)
}

// parseWeights makes a source of every adapter argument and returns the paths.
func (in *mergeInputs) parseWeights(args []string) (paths []string, err error) {
	for _, arg := range args {
		path, weight, err := parseWeight(arg)
		if err != nil {
			return nil, err
		}
		paths = append(paths, path)
		in.sources = append(in.sources, merge.Source{Weight: weight})
	}
	return paths, nil
}

// maxWeight is far beyond any use; what is larger is a slip.
const maxWeight = 1e6

// parseWeight splits "PATH@0.7"; a path that exists as it is has no weight.
func parseWeight(arg string) (path string, weight float64, err error) {
	at := strings.LastIndexByte(arg, '@')
	if at < 0 || pathExists(arg) {
		return arg, 1, nil
	}
	weight, err = strconv.ParseFloat(arg[at+1:], 64)
	if err != nil {
		// A repository id with a revision has an @ too.
		if hfrepo.IsRepoID(arg) && !pathExists(arg[:at]) {
			return arg, 1, nil
		}
		return "", 0, usagef("--adapter: %q is not a weight", arg[at+1:])
	}
	if !(math.Abs(weight) <= maxWeight) || weight == 0 {
		return "", 0, usagef("--adapter: a weight of %v does not make sense", weight)
	}
	return arg[:at], weight, nil
}

// refusal says why the output can't be made. What force would not help comes
// first, so that nobody is told to try it in vain.
func (a *App) refusal(l *checkpoint.Layout, in *mergeInputs, force bool) error {
	kind := fsatomic.KindFile
	if l.IsFolder {
		kind = fsatomic.KindDir
	}
	parent := filepath.Dir(filepath.Clean(l.Path))
	err := fsatomic.Check(a.FS, l.Path, kind, true)
	if errors.Is(err, fs.ErrNotExist) {
		return &hinted{err, fmt.Sprintf("mkdir -p %s", parent)}
	}
	if err != nil {
		return err
	}
	paths := pathsOf(in.models)
	for _, o := range in.others {
		paths = append(paths, o.path)
	}
	if err := fsatomic.CheckInputs(a.FS, l.Path, paths...); err != nil {
		return err
	}
	if err := fsatomic.Check(a.FS, l.Path, kind, force); err != nil {
		return err
	}
	if err := in.page.refusal(a, paths, l.Path); err != nil {
		return err
	}
	if free, err := a.FS.Free(parent); err == nil && free < l.Size() {
		return &fsatomic.SpaceError{Path: l.Path, Need: l.Size(), Free: free}
	}
	return nil
}

// pathsOf lists where models lie.
func pathsOf(models []*checkpoint.Model) []string {
	var paths []string
	for _, m := range models {
		paths = append(paths, m.Path)
		if m.GGUF() != nil {
			paths = append(paths, m.GGUF().Paths()...) // one stands for all of a split model
		}
	}
	return paths
}

// noteLeftovers names what an interrupted run has left beside the output.
func (a *App) noteLeftovers(output string) {
	left, err := fsatomic.Leftovers(a.FS, output)
	if err != nil {
		return // making the output will say why
	}
	for _, path := range left {
		a.note("%s is left from another run; remove it if none is going on", filepath.Clean(path))
	}
}
