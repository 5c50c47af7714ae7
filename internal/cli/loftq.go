package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"text/tabwriter"

	"github.com/spf13/pflag"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/plan"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/quant/loftq"
	"github.com/loratool/loratool/report"
)

// loftqFlags are the flags of quantize --loftq.
type loftqFlags struct {
	on              bool
	output          string
	rank, iters     int
	order           string
	alpha           float64
	rslora, exact   bool
	stats, bits     string
	target, exclude []string
	set             *pflag.FlagSet
}

func (f *loftqFlags) register(fs *pflag.FlagSet) {
	f.set = fs
	fs.BoolVar(&f.on, "loftq", false, "write an adapter that makes up for the quantization")
	fs.StringVar(&f.output, "adapter-out", "", "folder `DIR` of the adapter of --loftq; of GGUF a .gguf file")
	fs.IntVar(&f.rank, "rank", 0, "`RANK` of every pair of factors")
	fs.IntVar(&f.iters, "iters", 0, "how often quantizer and decomposition take turns, `N` times (default 5)")
	fs.StringVar(&f.order, "order", "", "which comes first: `ORDER` is quant-first, as in LoftQ, or svd-first, as in LQ-LoRA (default quant-first)")
	fs.Float64Var(&f.alpha, "alpha", 0, "lora_`ALPHA` of the adapter (default: the rank, a scale of 1)")
	fs.BoolVar(&f.rslora, "rslora", false, "the adapter's scale is alpha divided by the root of the rank")
	fs.StringVar(&f.stats, "stats", "", "`FILE` with the mean squared activations of each module's input channels: safetensors, or an importance matrix of llama.cpp")
	fs.StringVar(&f.bits, "bits", "", "widths by layer, `RANGES` such as 0-15:4,16-:2; of the nf and uniform types")
	fs.StringArrayVar(&f.target, "target", nil, "give only modules of this `NAME` a pair, the end of a name or a pattern with *; may be repeated")
	fs.StringArrayVar(&f.exclude, "exclude", nil, "give modules of this `NAME` no pair; may be repeated")
	fs.BoolVar(&f.exact, "exact", false, "decompose in float64 without iteration: slower")
}

// loftqOnly are the flags that mean nothing without --loftq.
var loftqOnly = []string{"adapter-out", "rank", "iters", "order", "alpha", "rslora", "stats", "bits", "target", "exclude", "exact"}

// orders are the values of --order.
var orders = map[string]loftq.Order{"": loftq.QuantizeFirst, "quant-first": loftq.QuantizeFirst, "svd-first": loftq.SVDFirst}

// options checks the flags and turns them into options of the library; nil without
// --loftq. The statistics are opened later.
func (f *loftqFlags) options() (*quant.LoftQ, error) {
	if !f.on {
		for _, name := range loftqOnly {
			if f.set.Changed(name) {
				return nil, usagef("--%s is for --loftq", name)
			}
		}
		return nil, nil
	}
	order, ok := orders[f.order]
	switch {
	case f.output == "":
		return nil, usagef("--adapter-out is missing: where does the adapter go?")
	case !f.set.Changed("rank"):
		return nil, usagef("--rank is missing")
	case !ok:
		return nil, usagef("--order: %q is not quant-first or svd-first", f.order)
	case f.set.Changed("iters") && f.iters < 1:
		return nil, usagef("--iters: %d is not positive", f.iters)
	case f.set.Changed("alpha") && !(f.alpha > 0):
		return nil, usagef("--alpha: %v is not positive", f.alpha)
	}
	l := &quant.LoftQ{
		Output: f.output, Rank: f.rank, Iterations: f.iters, Order: order, Alpha: f.alpha, RSLoRA: f.rslora,
		Target: f.target, Exclude: f.exclude, Exact: f.exact,
	}
	if f.bits != "" {
		var err error
		if l.Bits, err = quant.ParseBits(f.bits); err != nil {
			return nil, asUsage(err)
		}
	}
	return l, nil
}

// repair is one run of quantize --loftq.
type repair struct {
	a      *App
	f      *quantizeFlags
	in     *mergeInputs
	engine engine.Options
	r      repairPlan
	views  []*engine.View // that the base is computed by
	key    string         // of the quantized output, for --resume
	// print prints the plan of the quantization, with the adapter among its outputs.
	print func(engine.Allotment, error, *checkpoint.Layout) error
}

// repairPlan is a quantization with its adapter, of either container.
type repairPlan interface {
	NewStore(fsys fsatomic.FS, resume bool) (*quant.Store, error)
	Tasks(*quant.Store) []plan.Task
	Use(*quant.Store) error
	Repaired() ([]quant.Repaired, error)
	SetHashes(map[string]string) (quantized, adapter map[string]string)
	Counts() map[string]int
	Memory(jobs int) int64
	Outputs() (quantized, adapter quant.Output)
}

var (
	_ repairPlan = (*quant.Repair)(nil)
	_ repairPlan = (*quant.GGUFRepair)(nil)
)

// runLoftQ plans, solves, writes both outputs and commits them together.
func (a *App) runLoftQ(ctx context.Context, f *quantizeFlags, opts quant.Options, in *mergeInputs, o engine.Options) error {
	x := &repair{a: a, f: f, in: in, engine: o}
	if err := x.checkPlaces(); err != nil {
		return err
	}
	moments, done, err := a.openMoments(f.loftq.stats, in)
	if err != nil {
		return err
	}
	defer done()
	opts.LoftQ.Moments = moments
	r, err := quant.PlanLoftQ(in.base, opts)
	if err != nil {
		return asUsage(err)
	}
	r.View.Threads = o.Jobs
	x.r = r
	x.print = func(b engine.Allotment, refusal error, adapter *checkpoint.Layout) error {
		return a.printQuantizePlan(r.Quantization, b, refusal, adapter)
	}
	l := *opts.LoftQ
	l.Moments, opts.LoftQ = nil, nil // pointers would be printed as such
	x.key = identityOf("quantize", []any{l, opts, in.others}, in.models)
	return x.finish(ctx)
}

// runGGUFLoftQ does it with a GGUF model, whose adapter is a GGUF file.
func (a *App) runGGUFLoftQ(ctx context.Context, f *quantizeFlags, opts quant.GGUFOptions, seen *folderAsFile, in *mergeInputs, o engine.Options) error {
	x := &repair{a: a, f: f, in: in, engine: o}
	if err := x.checkPlaces(); err != nil {
		return err
	}
	moments, done, err := a.openMoments(f.loftq.stats, in)
	if err != nil {
		return err
	}
	defer done()
	opts.LoftQ.Moments = moments
	r, err := quant.PlanGGUFLoftQ(in.base, opts)
	if err != nil {
		if r != nil && r.GGUF != nil && r.Mix != nil && f.run.dryRun && !a.json {
			a.printTypes(r.GGUF) // refused, and why not
		}
		return asUsage(err)
	}
	x.r, x.views = r, seen.views
	seen.explain(r.Plan)
	x.print = func(b engine.Allotment, refusal error, adapter *checkpoint.Layout) error {
		return a.printGGUFPlan(r.GGUF, b, refusal, adapter)
	}
	l := *opts.LoftQ
	l.Moments = nil // a pointer would be printed as such
	x.key = identityOf("quantize", []any{l, f.kind, f.gguf, f.requantize, f.shardSize, f.output, f.adapters, f.name, f.pre, in.others}, in.models)
	return x.finish(ctx)
}

// finish prints the plan or carries it out.
func (x *repair) finish(ctx context.Context) error {
	refusal := x.refusal()
	if x.f.run.dryRun {
		return x.printPlan(refusal)
	}
	if refusal != nil {
		return refusal
	}
	return x.write(ctx)
}

// openMoments opens the statistics of --stats, nil if there are none: a safetensors file,
// or an importance matrix, which is any other file. What it returns closes the matrix.
func (a *App) openMoments(path string, in *mergeInputs) (_ quant.Moments, done func(), err error) {
	done = func() {}
	if path == "" {
		return nil, done, nil
	}
	if st, err := os.Stat(path); err != nil || !st.Mode().IsRegular() || strings.HasSuffix(path, ".safetensors") {
		m, err := checkpoint.Open(path, a.cache())
		if err != nil {
			return nil, done, err
		}
		in.models = append(in.models, m)
		return quant.NewTensorMoments(m), done, nil
	}
	matrix, identity, err := openImatrix(path)
	if err != nil {
		return nil, done, err
	}
	in.others = append(in.others, otherFile{path, identity})
	moments, err := quant.NewMatrixMoments(matrix, path, identity, in.base)
	if err != nil {
		matrix.Close()
		return nil, done, err
	}
	return moments, func() { matrix.Close() }, nil // only read from
}

// checkPlaces refuses two outputs of which one would be in the other.
func (x *repair) checkPlaces() error {
	q, err := filepath.Abs(x.f.output)
	if err != nil {
		return err
	}
	adapter, err := filepath.Abs(x.f.loftq.output)
	if err != nil {
		return err
	}
	within := func(path, dir string) bool {
		return path == dir || strings.HasPrefix(path, strings.TrimRight(dir, string(filepath.Separator))+string(filepath.Separator))
	}
	if within(q, adapter) || within(adapter, q) {
		return usagef("--adapter-out: %q and the output %q are two folders, none in the other", x.f.loftq.output, x.f.output)
	}
	return nil
}

// refusal says why one of the outputs can't be made.
func (x *repair) refusal() error {
	q, adapter := x.r.Outputs()
	if err := x.a.refusal(q.Layout, x.in, x.f.run.force); err != nil {
		return err
	}
	return x.a.refusal(adapter.Layout, x.in, x.f.run.force)
}

// minMemory is what the engine gets at least, beside what the view needs.
const minMemory = 16 << 20

// engineOptions are those of a run that reads the view.
func (x *repair) engineOptions() engine.Options {
	o := x.engine
	o.Memory = max(o.Memory-x.r.Memory(o.Jobs), minMemory)
	return o
}

// write solves into a store and writes both outputs from it. The store goes with the
// run, however it ends; only a kill leaves it.
func (x *repair) write(ctx context.Context) (err error) {
	fsys := x.f.run.fs(x.a)
	store, err := x.r.NewStore(fsys, x.f.run.resume)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := store.Close(); cerr != nil {
			x.a.note("%v", cerr)
		}
	}()
	x.noteStore(store)
	if err := x.solve(ctx, store); err != nil {
		return err
	}
	if err := x.r.Use(store); err != nil {
		return err
	}
	report, err := x.fill(ctx, fsys)
	if err != nil {
		return err
	}
	return x.printReport(report)
}

// noteStore says which work folder is gone on from, and names others.
func (x *repair) noteStore(store *quant.Store) {
	switch {
	case store.Resumed():
		x.a.note("going on from %s", store.Dir())
	case x.f.run.resume:
		x.a.note("there is nothing to resume: no work folder of this quantization")
	}
	left, err := fsatomic.Leftovers(x.a.FS, x.f.loftq.output)
	if err != nil {
		return // making the output will say why
	}
	for _, path := range left {
		if path != store.Dir() {
			x.a.note("%s is left from another run; --resume goes on from it if it is of this quantization; remove it if none is going on", path)
		}
	}
}

// solve runs the alternations.
func (x *repair) solve(ctx context.Context, store *quant.Store) error {
	tasks := x.r.Tasks(store)
	peak, beyond := engine.TaskPeak(tasks, x.engine)
	if beyond != "" {
		x.a.note("the alternation of %s takes %s, more than --memory: it runs alone", beyond, formatSize(peak))
	}
	// The collector keeps the garbage of the tasks within the budget too.
	debug.SetMemoryLimit(max(peak, x.engine.Memory, x.r.Memory(x.engine.Jobs)+minMemory)*5/4 + 32<<20)
	o := x.engine
	progress := x.a.newProgress("alternating")
	defer progress.Finish()
	o.Progress = progress
	if err := engine.Each(ctx, tasks, o); err != nil {
		return err
	}
	return x.in.checkUnchanged()
}

// fill writes both outputs and puts them in place together.
func (x *repair) fill(ctx context.Context, fsys fsatomic.FS) (written, error) {
	o := x.engineOptions()
	q, adapter := x.r.Outputs()
	base, err := x.a.openSink(q.Layout, q.Plan, x.key, &x.f.run, &o)
	if err != nil {
		return written{}, err
	}
	pairs, err := checkpoint.Create(fsys, adapter.Layout, x.f.run.force)
	if err != nil {
		return written{}, abort(base, err)
	}
	done, err := x.run(ctx, base, pairs, o)
	if err == nil {
		err = x.in.checkUnchanged()
	}
	if err != nil {
		return done, abort(base, abort(pairs, err))
	}
	finalBase, finalPairs := x.r.SetHashes(done.Hashes)
	// Without its base the adapter is of no use; the base without it looks like one.
	return done, x.a.noteCleanup(checkpoint.CommitAll(checkpoint.Finished{Sink: pairs, Metadata: finalPairs}, checkpoint.Finished{Sink: base, Metadata: finalBase}))
}

// run makes both outputs, one after the other.
func (x *repair) run(ctx context.Context, base, pairs *checkpoint.Sink, o engine.Options) (written, error) {
	q, adapter := x.r.Outputs()
	both := []*writing{
		{doing: "quantizing", plan: q.Plan, sources: []engine.Source{q.Source}, sink: base, options: o, views: x.views},
		{doing: "writing", plan: adapter.Plan, sources: []engine.Source{adapter.Source}, sink: pairs, options: x.engine},
	}
	var all written
	for i, w := range both {
		done, err := x.a.produce(ctx, w, x.f.verify)
		if err != nil {
			return all, err
		}
		if i == 0 {
			all = done // the adapter has no inputs of its own
		} else if done.verified != nil {
			all.verified.join(done.verified)
		}
	}
	return all, nil
}

// printPlan prints what --dry-run asks for: the plan of the quantization, with the
// adapter among its outputs.
func (x *repair) printPlan(refusal error) error {
	o := x.engineOptions()
	q, adapter := x.r.Outputs()
	budget, err := engine.Budget(q.Plan, o)
	if err != nil {
		return err
	}
	tasks := x.r.Tasks(nil)
	peak, _ := engine.TaskPeak(tasks, x.engine)
	budget.Peak = max(budget.Peak+x.r.Memory(budget.Jobs), peak)
	return x.print(budget, refusal, adapter.Layout)
}

type (
	repairedJSON struct {
		Tensor    string  `json:"tensor"`
		Shape     []int64 `json:"shape"`
		Bytes     int64   `json:"bytes"`
		PairBytes int64   `json:"pair_bytes"`
		AbsMax    number  `json:"absmax"`
		Plain     number  `json:"relative_error_plain"`
		Error     number  `json:"relative_error"`
		Weighted  *number `json:"weighted_error,omitempty"`
		Iterate   int     `json:"iterate"`
		Iterates  int     `json:"iterations"`
		Scale     number  `json:"scale"`
		Best      number  `json:"best_scale"`
		Bits      number  `json:"bits_per_weight"`
		WithPair  number  `json:"bits_with_pair"`
	}
	repairJSON struct {
		Schema    string            `json:"schema"`
		Output    string            `json:"output"`
		Adapter   string            `json:"adapter"`
		Bytes     int64             `json:"bytes"`
		Decisions []decisionJSON    `json:"decisions"`
		Tensors   []repairedJSON    `json:"tensors"`
		Summary   repairSummary     `json:"summary"`
		Inputs    map[string]string `json:"sha256"`
		Verified  *verifiedJSON     `json:"verified,omitempty"`
	}
	repairSummary struct {
		Tensors  map[string]int `json:"tensors"`
		Pairs    int            `json:"pairs"`
		Plain    number         `json:"relative_error_plain"`
		Error    number         `json:"relative_error"`
		Bits     number         `json:"bits_per_weight"`
		WithPair number         `json:"bits_with_pair"`
	}
)

// describe makes the published form of the result.
func (x *repair) describe(r written) (*repairJSON, error) {
	figures, err := x.r.Repaired()
	if err != nil {
		return nil, err
	}
	q, adapter := x.r.Outputs()
	doc := &repairJSON{
		Schema: "loratool.quantize-loftq/v1", Output: q.Layout.Path, Adapter: adapter.Layout.Path,
		Bytes: q.Layout.Size() + adapter.Layout.Size(), Decisions: append(decisionsOf(q.Plan), decisionsOf(adapter.Plan)...),
		Tensors: []repairedJSON{}, Inputs: r.Hashes, Verified: r.verified, Summary: repairSummary{Tensors: x.r.Counts(), Pairs: len(figures)},
	}
	var bits, pairs, weights float64
	for _, t := range figures {
		n := float64(t.Shape[0] * t.Shape[1])
		with := 8 * float64(t.PairBytes) / n
		j := repairedJSON{
			Tensor: t.Tensor, Shape: t.Shape, Bytes: t.Bytes, PairBytes: t.PairBytes, AbsMax: number(t.AbsMax),
			Plain: number(t.Plain.Plain), Error: number(t.Error.Plain), Iterate: t.Kept, Iterates: t.Made,
			Scale: number(t.Scale), Best: number(t.Best), Bits: number(t.Bits), WithPair: number(t.Bits + with),
		}
		if x.f.loftq.stats != "" {
			weighted := number(t.Error.Weighted)
			j.Weighted = &weighted
		}
		doc.Tensors = append(doc.Tensors, j)
		bits += n * t.Bits
		pairs += n * with
		weights += n
	}
	plain, left := quant.Overall(figures)
	doc.Summary.Plain, doc.Summary.Error = number(plain), number(left)
	doc.Summary.Bits, doc.Summary.WithPair = number(bits/weights), number((bits+pairs)/weights)
	return doc, nil
}

// printReport prints what the quantization and its adapter came to.
func (x *repair) printReport(r written) error {
	doc, err := x.describe(r)
	if err != nil {
		return err
	}
	a := x.a
	err = x.f.page.write(a, func() *report.Page { return repairPage(doc) })
	if a.json {
		a.printJSON(doc)
		return err
	}
	fmt.Fprintf(a.out, "%s\n%s\n", doc.Output, doc.Adapter)
	if x.f.run.verbose {
		x.printTensors(doc.Tensors)
	}
	if a.quiet {
		return err
	}
	for _, d := range doc.Decisions {
		a.note("%s%s", d.Message, tensorList(d.Tensors))
	}
	s := doc.Summary
	a.note("%s, %s; relative error %.4f, with %d pairs %.4f; %.3f bits per weight, %.3f with them",
		countList(s.Tensors), formatSize(doc.Bytes), s.Plain, s.Pairs, s.Error, s.Bits, s.WithPair)
	a.noteVerified(doc.Verified)
	return err
}

// printTensors is the table of --verbose.
func (x *repair) printTensors(tensors []repairedJSON) {
	w := tabwriter.NewWriter(x.a.Stderr, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "tensor\tshape\tbits/weight\twith pair\tabsmax\terror\twith pair\titerate\tbest scale")
	for _, t := range tensors {
		fmt.Fprintf(w, "%s\t%v\t%.3f\t%.3f\t%.4g\t%.4f\t%.4f\t%d of %d\t%.4g of %.4g\n", oneLine(t.Tensor), tensor.Shape(t.Shape),
			t.Bits, t.WithPair, t.AbsMax, t.Plain, t.Error, t.Iterate, t.Iterates, t.Best, t.Scale)
	}
	w.Flush()
}
