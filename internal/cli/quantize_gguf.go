package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/pflag"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/saferead"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/quant/block"
	"github.com/loratool/loratool/quant/mix"
	"github.com/loratool/loratool/report"
)

// ggufFlags are the flags of quantize that are for GGUF models only.
type ggufFlags struct {
	pure          bool
	leaveOutput   bool
	keepSplit     bool
	outputType    string
	embeddingType string
	tensorTypes   []string
	imatrix       string
	keys          []string
	shardTensors  count
}

func (f *ggufFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&f.imatrix, "imatrix", "", "GGUF: importance matrix `FILE` of llama.cpp, in either form")
	fs.BoolVar(&f.pure, "pure", false, "GGUF: one type for all, without the recipe of the file type")
	fs.StringArrayVar(&f.tensorTypes, "tensor-type", nil, "GGUF: `PATTERN=TYPE`, a type for tensors by a regular expression; may be repeated")
	fs.StringVar(&f.outputType, "output-tensor-type", "", "GGUF: `TYPE` of the output matrix")
	fs.StringVar(&f.embeddingType, "token-embedding-type", "", "GGUF: `TYPE` of the token embedding")
	fs.BoolVar(&f.leaveOutput, "leave-output-tensor", false, "GGUF: leave the output matrix as it is")
	fs.BoolVar(&f.keepSplit, "keep-split", false, "GGUF: as many files as the model has; OUT is a folder")
	fs.Var(&f.shardTensors, "shard-tensors", "GGUF: most tensors of a file; OUT is a folder")
	fs.StringArrayVar(&f.keys, "override-kv", nil, "GGUF: `KEY=TYPE:VALUE` to set, TYPE being int, float, bool or str; may be repeated")
}

// The flags that only one kind of quantization has.
var (
	ggufOnly = []string{"imatrix", "pure", "tensor-type", "output-tensor-type", "token-embedding-type",
		"leave-output-tensor", "keep-split", "shard-tensors", "override-kv", "adapter", "name", "pre"}
	bnbOnly = []string{"double-quant", "blocksize", "compute-dtype", "quant-storage", "skip", "rslora", "bits"}
)

// isGGUF reports whether the type is one of llama.cpp, and refuses flags that are not
// for the kind.
func (f *quantizeFlags) isGGUF(set *pflag.FlagSet) (bool, error) {
	others, ok := bnbOnly, true
	switch quant.Type(f.kind) {
	case quant.NF4, quant.FP4, quant.Int8, "nf2", "nf3", "uniform2", "uniform3", "uniform4", "":
		others, ok = ggufOnly, false
	}
	if f.kind == "" {
		return false, nil // which is said with the other flags
	}
	for _, name := range others {
		if set.Changed(name) {
			return ok, usagef("--%s does not apply to --type %s", name, f.kind)
		}
	}
	return ok, nil
}

// ggufOptions checks the flags and turns them into options of the library.
func (f *quantizeFlags) ggufOptions() (quant.GGUFOptions, error) {
	o := quant.GGUFOptions{Output: f.output, MatrixName: f.gguf.imatrix, KeepSplit: f.gguf.keepSplit}
	o.Mix = mix.Options{Pure: f.gguf.pure, LeaveOutput: f.gguf.leaveOutput, AllowRequantize: f.requantize}
	if f.output == "" {
		return o, usagef("-o is missing")
	}
	var err error
	if o.Mix.Type, err = mix.ParseFileType(f.kind); err != nil {
		return o, usagef("--type: %q is neither nf4, fp4, int8 nor a file type of llama.cpp such as q4_k_m, q8_0, f16", f.kind)
	}
	if o.Mix.OutputType, err = parseTensorType("output-tensor-type", f.gguf.outputType); err != nil {
		return o, err
	}
	if o.Mix.EmbeddingType, err = parseTensorType("token-embedding-type", f.gguf.embeddingType); err != nil {
		return o, err
	}
	for _, text := range f.gguf.tensorTypes {
		override, err := mix.ParseOverride(text)
		if err != nil {
			return o, usagef("--tensor-type: %w", err)
		}
		o.Mix.Overrides = append(o.Mix.Overrides, override)
	}
	for _, text := range f.gguf.keys {
		pair, err := parseKey(text)
		if err != nil {
			return o, usagef("--override-kv: %w", err)
		}
		o.Keys = append(o.Keys, pair)
	}
	return o, f.splitOptions(&o)
}

// splitOptions sets whether the output is one file or several.
func (f *quantizeFlags) splitOptions(o *quant.GGUFOptions) error {
	flag, set := "", 0
	for name, given := range map[string]bool{"keep-split": f.gguf.keepSplit, "shard-size": f.shardSize != 0, "shard-tensors": f.gguf.shardTensors != 0} {
		if given {
			flag = name
			set++
		}
	}
	isFile := strings.HasSuffix(f.output, ".gguf")
	switch {
	case set > 1:
		return usagef("--keep-split, --shard-size and --shard-tensors exclude each other")
	case set == 1 && isFile:
		return usagef("--%s: the output %q is one file; a split model is a folder", flag, f.output)
	case set == 0 && !isFile:
		return usageHint("-o "+f.output+".gguf", "-o: %q does not end in .gguf; only a split model (--keep-split, --shard-size, --shard-tensors) is a folder", f.output)
	}
	o.Converter = f.asConverter
	if f.shardSize != 0 || f.gguf.shardTensors != 0 {
		o.Split = &gguf.SplitOptions{MaxBytes: int64(f.shardSize), MaxTensors: int(f.gguf.shardTensors)}
	}
	return nil
}

// parseTensorType reads the type of a tensor; none is nil.
func parseTensorType(flag, name string) (*gguf.Type, error) {
	if name == "" {
		return nil, nil
	}
	t, err := gguf.ParseType(name)
	if err != nil {
		return nil, usagef("--%s: %w", flag, err)
	}
	return &t, nil
}

// maxKeyText is the longest name of a key, and text, that the reference takes.
const maxKeyText = 127

// parseKey reads KEY=TYPE:VALUE. Like the reference it makes integers u32, of their
// magnitude, and floats f32.
func parseKey(text string) (gguf.Pair, error) {
	key, rest, ok := strings.Cut(text, "=")
	kind, value, typed := strings.Cut(rest, ":")
	fail := func(why string) (gguf.Pair, error) { return gguf.Pair{}, fmt.Errorf("%q: %s", text, why) }
	if !ok || !typed || key == "" || len(key) > maxKeyText {
		return fail("not KEY=TYPE:VALUE")
	}
	var v gguf.Value
	switch kind {
	case "int":
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil || max(n, -n) > math.MaxUint32 || n == math.MinInt64 {
			return fail("not an integer of 32 bits")
		}
		v = gguf.ValueOf(uint32(max(n, -n)))
	case "float":
		x, err := strconv.ParseFloat(value, 64)
		if err != nil || math.Abs(x) > math.MaxFloat32 || x != x {
			return fail("not a finite number")
		}
		v = gguf.ValueOf(float32(x))
	case "bool":
		if value != "true" && value != "false" {
			return fail("neither true nor false")
		}
		v = gguf.ValueOf(value == "true")
	case "str":
		if len(value) > maxKeyText {
			return fail(fmt.Sprintf("longer than %d bytes", maxKeyText))
		}
		v = gguf.ValueOf(value)
	default:
		return fail("the type is none of int, float, bool, str")
	}
	return gguf.Pair{Key: key, Value: v}, nil
}

// openImatrix opens an importance matrix, nil if none is asked for, and says what file
// it is.
func openImatrix(path string) (m *gguf.Imatrix, identity string, err error) {
	if path == "" {
		return nil, "", nil
	}
	m, err = gguf.OpenImatrix(path)
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return nil, "", &checkpoint.InputError{Path: e.Path, Err: fmt.Errorf("%s: %w", e.Op, e.Err)}
	} else if err != nil {
		reason := strings.TrimPrefix(err.Error(), saferead.Printable(path)+": ")
		return nil, "", &checkpoint.InputError{Path: path, Err: errors.New(reason)}
	}
	identity, err = fileIdentity(path)
	if err != nil {
		m.Close()
		return nil, "", err
	}
	return m, identity, nil
}

// fileIdentity tells a file, as it is now, from any other.
func fileIdentity(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", &checkpoint.InputError{Path: path, Err: err}
	}
	return fmt.Sprintf("%q %d %d", path, info.Size(), info.ModTime().UnixNano()), nil
}

// runQuantizeGGUF opens, plans, runs and commits.
func (a *App) runQuantizeGGUF(ctx context.Context, f *quantizeFlags) error {
	opts, err := f.ggufOptions()
	if err != nil {
		return err
	}
	if opts.LoftQ, err = f.loftq.options(); err != nil {
		return err
	}
	if opts.NoProvenance, opts.Version = f.noProvenance, buildVersion(); f.noProvenance && opts.LoftQ == nil {
		return usagef("--no-provenance: the output of --type %s has none", f.kind)
	}
	engineOpts, err := f.run.engineOptions(a)
	if err != nil {
		return err
	}
	inputs, seen, err := a.openForGGUF(f, engineOpts)
	if err != nil {
		return err
	}
	defer inputs.close()
	engineOpts.Memory = max(engineOpts.Memory-seen.memory, 1)
	matrix, identity, err := openImatrix(f.gguf.imatrix)
	if err != nil {
		return err
	}
	if matrix != nil {
		defer matrix.Close()
		inputs.others = append(inputs.others, otherFile{f.gguf.imatrix, identity})
	}
	opts.Matrix, opts.MatrixIdentity, opts.Inputs = matrix, identity, seen.inputs
	if opts.LoftQ != nil {
		return a.runGGUFLoftQ(ctx, f, opts, seen, inputs, engineOpts)
	}
	q, err := quant.PlanGGUF(inputs.base, opts)
	if err != nil {
		if q != nil && q.Mix != nil && f.run.dryRun && !a.json {
			a.printTypes(q) // refused, and why not
		}
		return asUsage(err)
	}
	seen.explain(q.Plan)
	engineOpts.Memory = max(engineOpts.Memory-q.View.Memory(engineOpts.Jobs), 1)
	if err := checkProof(q.Plan, seen.views, f.verify, engineOpts); err != nil {
		return err
	}
	budget, err := engine.Budget(q.Plan, engineOpts)
	if err != nil {
		return err
	}
	budget.Peak += q.View.Memory(budget.Jobs) + seen.memory
	refusal := a.refusal(q.Layout, inputs, f.run.force)
	if f.run.dryRun {
		return a.printGGUFPlan(q, budget, refusal)
	}
	if refusal != nil {
		return refusal
	}
	key := identityOf("quantize", []any{f.kind, f.asConverter, f.gguf, f.requantize, f.shardSize, f.output, f.adapters, f.name, f.pre, identity}, inputs.models)
	report, err := a.writeGGUF(ctx, q, seen, inputs, f, key, engineOpts)
	if err != nil {
		return err
	}
	return a.printGGUFReport(q, report, f)
}

// writeGGUF runs the plan and puts its output in place.
func (a *App) writeGGUF(ctx context.Context, q *quant.GGUF, seen *folderAsFile, inputs *mergeInputs, f *quantizeFlags, key string, o engine.Options) (written, error) {
	// The collector keeps the garbage of readers within the budget too.
	debug.SetMemoryLimit(o.Memory + q.View.Memory(o.Jobs) + o.Memory/4 + 32<<20)
	sink, err := a.openSink(q.Layout, q.Plan, key, &f.run, &o)
	if err != nil {
		return written{}, err
	}
	done, err := a.write(ctx, &writing{doing: "quantizing", plan: q.Plan, sources: []engine.Source{q.View}, sink: sink, options: o, views: seen.views}, f.verify, inputs)
	if err != nil {
		return done, err
	}
	return done, a.commit(sink, nil)
}

type (
	typeJSON struct {
		Tensor  string `json:"tensor"`
		From    string `json:"from"`
		To      string `json:"to"`
		Reason  string `json:"reason"`
		Why     string `json:"why"`
		Weights bool   `json:"imatrix"`
	}
	ggufPlanJSON struct {
		planJSON
		Types []typeJSON `json:"types"`
	}
	ggufTensorJSON struct {
		Tensor string  `json:"tensor"`
		Type   string  `json:"type"`
		Shape  []int64 `json:"shape"`
		Bytes  int64   `json:"bytes"`
		Error  number  `json:"relative_error"`
		Bits   number  `json:"bits_per_weight"`
	}
	ggufQuantizeJSON struct {
		Schema    string            `json:"schema"`
		Output    string            `json:"output"`
		Bytes     int64             `json:"bytes"`
		Decisions []decisionJSON    `json:"decisions"`
		Tensors   []ggufTensorJSON  `json:"tensors"`
		Summary   quantizeSummary   `json:"summary"`
		Inputs    map[string]string `json:"sha256"`
		Verified  *verifiedJSON     `json:"verified,omitempty"`
	}
)

// printTypes prints what becomes of each tensor, and why.
func (a *App) printTypes(q *quant.GGUF) {
	w := tabwriter.NewWriter(a.out, 0, 4, 2, ' ', 0)
	for _, d := range q.Mix.Decisions {
		change := d.From.String()
		if d.Quantize() {
			change += " -> " + d.To.String()
		}
		weights := ""
		if d.Weights {
			weights = "; with the importance matrix"
		}
		fmt.Fprintf(w, "  %s\t%s\t%s%s\n", oneLine(d.Name), change, oneLine(d.Why), weights)
	}
	w.Flush() // a.out keeps what goes wrong
}

// printGGUFPlan prints what --dry-run asks for.
func (a *App) printGGUFPlan(q *quant.GGUF, b engine.Allotment, refusal error, more ...*checkpoint.Layout) error {
	doc := ggufPlanJSON{planJSON: a.describe(q.Plan, q.Layout, b, refusal), Types: []typeJSON{}}
	doc.Steps = q.Counts()
	for _, l := range more {
		doc.Outputs = append(doc.Outputs, outputsOf(l)...)
		doc.OutputBytes += l.Size()
	}
	if a.json {
		for _, d := range q.Mix.Decisions {
			doc.Types = append(doc.Types, typeJSON{d.Name, d.From.String(), d.To.String(), string(d.Reason), d.Why, d.Weights})
		}
		a.printJSON(doc)
		return nil
	}
	a.printInputsAndOutputs(doc.planJSON)
	a.printTypes(q)
	a.printPlanEnd(doc.planJSON, "tensors", refusal)
	return nil
}

// printGGUFReport prints what a quantization did.
func (a *App) printGGUFReport(q *quant.GGUF, r written, f *quantizeFlags) error {
	doc := ggufQuantizeJSON{
		Schema: "loratool.quantize/v1", Output: q.Layout.Path, Bytes: q.Layout.Size(), Decisions: decisionsOf(q.Plan),
		Tensors: []ggufTensorJSON{}, Inputs: map[string]string{}, Summary: quantizeSummary{Tensors: q.Counts()}, Verified: r.verified,
	}
	var norm, off float64
	for _, t := range q.View.Figures() {
		n, _ := t.Shape.NumElements()
		doc.Tensors = append(doc.Tensors, ggufTensorJSON{
			t.Tensor, t.Type.String(), shapeOf(t.Shape), t.Bytes, number(t.Error), number(8 * float64(t.Bytes) / float64(n)),
		})
		norm += float64(t.Norm * t.Norm)
		off += float64(t.Error * t.Error * t.Norm * t.Norm)
	}
	if norm > 0 {
		doc.Summary.Error = number(math.Sqrt(off / norm))
	}
	doc.Summary.Bits = number(bitsPerWeight(q.Layout))
	err := f.page.write(a, func() *report.Page {
		return quantizePage(doc.Output, doc.Bytes, doc.Decisions, doc.Inputs, doc.Summary, doc.Tensors)
	})
	if a.json {
		a.printJSON(doc)
		return err
	}
	fmt.Fprintln(a.out, doc.Output)
	if f.run.verbose {
		a.printGGUFTensors(doc.Tensors)
	}
	if a.quiet {
		return err
	}
	for _, d := range doc.Decisions {
		a.note("%s%s", d.Message, tensorList(d.Tensors))
	}
	a.note("%s, %s; relative error %.4f, %.3f bits per weight", countList(doc.Summary.Tensors), formatSize(doc.Bytes), doc.Summary.Error, doc.Summary.Bits)
	a.noteVerified(doc.Verified)
	if n := len(q.Mix.Decisions) - doc.Summary.Tensors["copy"]; len(doc.Tensors) < n {
		a.note("the figures are those of %d of %d tensors: the others were complete before", len(doc.Tensors), n)
	}
	return err
}

// bitsPerWeight counts all tensors, as the reference does.
func bitsPerWeight(l *checkpoint.Layout) float64 {
	var bytes, weights float64
	for i := range l.Files {
		for _, t := range l.Files[i].GGUF().Tensors() {
			bytes += float64(t.Size())
			weights += float64(t.NumElements())
		}
	}
	if weights == 0 {
		return 0
	}
	return 8 * bytes / weights
}

// printGGUFTensors is the table of --verbose.
func (a *App) printGGUFTensors(tensors []ggufTensorJSON) {
	w := tabwriter.NewWriter(a.Stderr, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "tensor\ttype\tshape\tbytes\tbits/weight\trelative error")
	for _, t := range tensors {
		fmt.Fprintf(w, "%s\t%s\t%v\t%d\t%.3f\t%.4f\n", oneLine(t.Tensor), t.Type, tensor.Shape(t.Shape), t.Bytes, t.Bits, t.Error)
	}
	w.Flush()
}

// quantizeTypes are all values of --type.
func quantizeTypes() []string {
	all := []string{"nf4\t4-bit NormalFloat", "fp4\t4-bit float", "int8\tLLM.int8"}
	for _, t := range mix.FileTypes() {
		all = append(all, strings.ToLower(t.String()))
	}
	return append(all, "copy")
}

// tensorTypes are the types of a single tensor.
func tensorTypes() []string {
	var all []string
	for _, t := range gguf.Types() {
		if block.GGML(t).CanQuantize() == nil && t != gguf.F64 {
			all = append(all, t.String())
		}
	}
	return all
}

// refusalHints says what lets a quantization through that was refused.
func refusalHints(e *mix.RefusalError) []string {
	var hints []string
	for rule, hint := range map[mix.Rule]string{
		mix.Requantize:  "--allow-requantize does it all the same; the model in 16 bits gives a better one",
		mix.NeedsMatrix: "--imatrix FILE gives one",
	} {
		if slices.ContainsFunc(e.Refusals, func(r mix.Refusal) bool { return r.Rule == rule }) {
			hints = append(hints, hint)
		}
	}
	slices.Sort(hints)
	return hints
}
