package cli

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime/debug"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/formats/tokenizer"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/report"
)

// quantizeFlags are the flags of quantize.
type quantizeFlags struct {
	model        string
	output       string
	kind         string
	doubleQuant  bool
	blockSize    int
	compute      string
	storage      string
	skip         []string
	requantize   bool
	shardSize    size
	asConverter  bool // types and files as 'convert' gives them, whose flags these were
	noProvenance bool
	adapters     []string
	name, pre    string
	verify       bool
	loftq        loftqFlags
	gguf         ggufFlags
	run          runFlags
	page         pageFlag
}

func (a *App) newQuantize() *cobra.Command {
	var f quantizeFlags
	cmd := &cobra.Command{
		Use:   "quantize MODEL -o OUT --type TYPE [--loftq --rank R --adapter-out DIR]",
		Short: "Store the weights of a model in fewer bits",
		Long: `Quantize a GGUF model as llama.cpp does, or the linear layers of a safetensors model
to a format of bitsandbytes. TYPE says which.

Examples:
  loratool quantize model-f16.gguf -o model-q4_k_m.gguf --type q4_k_m
  loratool quantize model-f16.gguf -o out.gguf --type iq4_xs --imatrix imatrix.gguf --dry-run
  loratool quantize ./llama -o llama-q4_k_m.gguf --type q4_k_m
  loratool quantize ./llama --adapter ./lora -o merged-q4_k_m.gguf --type q4_k_m
  loratool quantize ./llama -o ./llama-nf4 --type nf4 --double-quant
  loratool quantize org/name -o ./out --type nf4 --skip vision_tower --dry-run
  loratool quantize ./llama -o ./llama-nf4 --type nf4 --loftq --rank 16 --adapter-out ./loftq
  loratool quantize model-f16.gguf -o out.gguf --type q4_k_m --loftq --rank 16 --adapter-out loftq.gguf

GGUF: TYPE is any file type of llama.cpp that has encoders here: q8_0, q6_k, q5_k_m,
q4_k_m, q3_k_l, q2_k, q4_0, iq4_nl, iq4_xs, tq1_0, mxfp4_moe, f16, bf16, f32 and more, or copy.
The file is, byte for byte, that of llama-quantize (release v0.5.0, on x86-64); so it
has no key for provenance. --dry-run prints the type of every tensor and why. TYPE of
one tensor is that of ggml, as q5_K. OUT is a file, or a folder where the output is
split (--keep-split, --shard-size, --shard-tensors).

A folder that becomes GGUF is merged with the adapters, converted and quantized in one
pass, without the files between: the bytes are those of merge and convert to F32 and then
quantize.

Safetensors: TYPE is nf4 (4-bit NormalFloat), fp4 (4-bit float) or int8 (LLM.int8). The
output is a folder that transformers loads as a base for QLoRA. The bytes are those of
the CUDA code of bitsandbytes, with one rounding where its binaries take an approximate
reciprocal. Which layers are quantized is transformers' choice: linear ones, but not the
head, embeddings, experts and routers. --dry-run prints it; --skip leaves out more. MODULE
is the beginning or the end of a module's name, or a regular expression for its
beginning.

--loftq writes a LoRA adapter beside the model that makes up for what the quantizer
took, and that a training starts from; of GGUF it is a GGUF file, which llama.cpp applies. Quantizing and decomposing what is left take
turns, --iters times; the best turn is kept, and the factors are divided by the scale
that the adapter applies, whatever --alpha is. --order svd-first takes the largest
directions of a weight out before it is quantized at all, which is better the faster
its spectrum decays. --stats weighs the input channels by their mean squared
activations: FILE is a safetensors file with a vector for each module, of its name, or
an importance matrix of llama.cpp in either form, of the model as a GGUF file. The two
outputs belong together: either appears only with the other.
Types for --loftq alone are nf2, nf3, uniform2, uniform3 and uniform4 of the LoftQ
paper; no library stores them, so their values are written as plain numbers of the
type that the weights had. --bits gives layers widths of their own, likewise.

--verify reads the output back before it appears, and encodes everything again: all of
its bytes must be the same.

Weights that are not finite, not floating-point or quantized already are errors.
Nothing is written then. A run that was killed leaves a partial output beside OUT;
the same command with --resume goes on from it.

Exit status: 0 done, 1 failed, 2 usage, 4 bad input, 5 refused, 130 cancelled
('loratool help exit-codes').`,
		Args:              oneArg("model"),
		ValidArgsFunction: a.models,
		RunE: func(cmd *cobra.Command, args []string) error {
			f.model = args[0]
			isGGUF, err := f.isGGUF(cmd.Flags())
			if err != nil {
				return err
			}
			defer a.noteStop(cmd.Context())()
			if isGGUF {
				return a.runQuantizeGGUF(cmd.Context(), &f)
			}
			return a.runQuantize(cmd.Context(), &f)
		},
	}
	f.register(cmd.Flags())
	a.completeQuantize(cmd)
	return cmd
}

func (f *quantizeFlags) register(fs *pflag.FlagSet) {
	fs.StringVarP(&f.output, "output", "o", "", "`OUT`, a folder, a .safetensors or a .gguf file, to write")
	fs.StringVar(&f.kind, "type", "", "`TYPE` of the weights: nf4, fp4, int8 or, of GGUF, a file type such as q4_k_m; with --loftq also nf2, nf3, uniform2, uniform3, uniform4")
	fs.BoolVar(&f.doubleQuant, "double-quant", false, "store the scales of 4-bit blocks in 8 bits")
	fs.IntVar(&f.blockSize, "blocksize", 0, "elements of a 4-bit block: `N` is 32, 64, ..., 4096 (default 64)")
	fs.StringVar(&f.compute, "compute-dtype", "", "`TYPE` that 4-bit layers compute in: f32, f16 or bf16 (default: the model's own)")
	fs.StringVar(&f.storage, "quant-storage", "", "`TYPE` that 4-bit codes are stored as: uint8, or bf16, f16, f32 for FSDP (default uint8)")
	fs.StringArrayVar(&f.skip, "skip", nil, "leave `MODULE` as it is; may be repeated")
	fs.BoolVar(&f.requantize, "requantize", false, "quantize what is quantized already")
	fs.BoolVar(&f.requantize, "allow-requantize", false, "the same, as llama-quantize calls it")
	fs.Var(&f.shardSize, "shard-size", "largest weight file of a folder, such as 5GB (default 5GB; of GGUF one file)")
	fs.BoolVar(&f.noProvenance, "no-provenance", false, "leave names and hashes of the inputs out of the output")
	fs.StringArrayVar(&f.adapters, "adapter", nil, "GGUF of a folder: `ADAPTER` to merge first, or ADAPTER@WEIGHT; may be repeated")
	fs.StringVar(&f.name, "name", "", "GGUF of a folder: `NAME` of the model in the file (default: that of the folder)")
	fs.StringVar(&f.pre, "pre", "", "GGUF of a folder: pre-tokenizer by llama.cpp's `NAME` (default: by the expressions in tokenizer.json)")
	verifyFlag(fs, &f.verify)
	f.loftq.register(fs)
	f.gguf.register(fs)
	f.page.register(fs, &f.run.force)
	f.run.register(fs)
}

// completeQuantize gives the shell values for the flags of quantize.
func (a *App) completeQuantize(cmd *cobra.Command) {
	sizes := fixed("256MiB", "1GiB", "5GB")
	for flag, complete := range map[string]completer{
		"type":                 fixed(quantizeTypes()...),
		"blocksize":            fixed("32", "64", "128", "256", "512", "1024", "2048", "4096"),
		"compute-dtype":        fixed("bf16\tbfloat16", "f16\tIEEE half", "f32\t32-bit"),
		"quant-storage":        fixed("uint8", "bf16", "f16", "f32"),
		"skip":                 fixed(),
		"memory":               sizes,
		"shard-size":           sizes,
		"jobs":                 fixed(),
		"tensor-type":          fixed(),
		"output-tensor-type":   fixed(tensorTypes()...),
		"token-embedding-type": fixed(tensorTypes()...),
		"override-kv":          fixed(),
		"shard-tensors":        fixed(),
		"order":                fixed("quant-first", "svd-first"),
		"iters":                fixed(),
		"rank":                 fixed(),
		"alpha":                fixed(),
		"bits":                 fixed(),
		"adapter":              folders,
		"name":                 fixed(),
		"pre":                  fixed(tokenizer.PreNames()...),
		"target":               fixed(),
		"exclude":              fixed(),
	} {
		if err := cmd.RegisterFlagCompletionFunc(flag, complete); err != nil {
			panic(err) // a flag that is not there
		}
	}
}

// options checks the flags and turns them into options of the library.
func (f *quantizeFlags) options() (quant.Options, error) {
	o := quant.Options{
		Output: f.output, Type: quant.Type(f.kind), DoubleQuant: f.doubleQuant, BlockSize: f.blockSize, Skip: f.skip,
		Requantize: f.requantize, ShardSize: int64(f.shardSize), NoProvenance: f.noProvenance, Version: buildVersion(),
	}
	switch {
	case f.output == "":
		return o, usagef("-o is missing")
	case f.kind == "":
		return o, usagef("--type is missing")
	case f.shardSize != 0 && strings.HasSuffix(f.output, ".safetensors"):
		return o, usagef("--shard-size: the output %q is one file", f.output)
	}
	var err error
	if o.LoftQ, err = f.loftq.options(); err != nil {
		return o, err
	}
	if o.ComputeDType, err = parseTorch("compute-dtype", f.compute); err != nil {
		return o, err
	}
	o.Storage, err = parseTorch("quant-storage", f.storage)
	return o, err
}

// parseTorch reads an element type by the name it has here, or in torch.
func parseTorch(flag, name string) (tensor.DType, error) {
	torch := map[string]tensor.DType{"uint8": tensor.U8, "int8": tensor.I8, "float16": tensor.F16, "bfloat16": tensor.BF16, "float32": tensor.F32, "float64": tensor.F64}
	if d, ok := torch[name]; ok || name == "" {
		return d, nil
	}
	d, err := tensor.ParseFlag(name)
	if err != nil {
		return d, usagef("--%s: %w", flag, err)
	}
	return d, nil
}

// runQuantize opens, plans, runs and commits.
func (a *App) runQuantize(ctx context.Context, f *quantizeFlags) error {
	opts, err := f.options()
	if err != nil {
		return err
	}
	engineOpts, err := f.run.engineOptions(a)
	if err != nil {
		return err
	}
	base, err := checkpoint.Open(f.model, a.cache())
	if err != nil {
		return err
	}
	inputs := &mergeInputs{base: base, models: []*checkpoint.Model{base}, page: &f.page}
	defer inputs.close()
	if opts.LoftQ != nil {
		return a.runLoftQ(ctx, f, opts, inputs, engineOpts)
	}
	q, err := quant.Plan(base, opts)
	if err != nil {
		return asUsage(err)
	}
	engineOpts.Memory = max(engineOpts.Memory-q.View.Memory(engineOpts.Jobs), 1)
	budget, err := engine.Budget(q.Plan, engineOpts)
	if err != nil {
		return err
	}
	budget.Peak += q.View.Memory(budget.Jobs)
	refusal := a.refusal(q.Layout, inputs, f.run.force)
	if f.run.dryRun {
		return a.printQuantizePlan(q, budget, refusal)
	}
	if refusal != nil {
		return refusal
	}
	report, err := a.writeQuantized(ctx, q, inputs, f, engineOpts)
	if err != nil {
		return err
	}
	return a.printQuantizeReport(q, report, f)
}

// asUsage makes a usage error of an option that does not fit.
func asUsage(err error) error {
	if option, ok := errors.AsType[*quant.OptionError](err); ok {
		return usagef("--%w", option)
	}
	return err
}

// writeQuantized runs the plan and puts its output in place.
func (a *App) writeQuantized(ctx context.Context, q *quant.Quantization, inputs *mergeInputs, f *quantizeFlags, o engine.Options) (written, error) {
	// The collector keeps the garbage of readers within the budget too.
	debug.SetMemoryLimit(o.Memory + q.View.Memory(o.Jobs) + o.Memory/4 + 32<<20)
	opts, _ := f.options() // were checked
	sink, err := a.openSink(q.Layout, q.Plan, identityOf("quantize", opts, inputs.models), &f.run, &o)
	if err != nil {
		return written{}, err
	}
	done, err := a.write(ctx, &writing{doing: "quantizing", plan: q.Plan, sources: []engine.Source{q.View}, sink: sink, options: o}, f.verify, inputs)
	if err != nil {
		return done, err
	}
	return done, a.commit(sink, q.SetHashes(done.Hashes))
}

// describeQuantization is the published form of a plan. Its steps are counted by what
// the tensors become.
func (a *App) describeQuantization(q *quant.Quantization, b engine.Allotment, refusal error) planJSON {
	doc := a.describe(q.Plan, q.Layout, b, refusal)
	doc.Steps = q.Counts()
	return doc
}

// printQuantizePlan prints what --dry-run asks for.
func (a *App) printQuantizePlan(q *quant.Quantization, b engine.Allotment, refusal error, more ...*checkpoint.Layout) error {
	doc := a.describeQuantization(q, b, refusal)
	for _, l := range more {
		doc.Outputs = append(doc.Outputs, outputsOf(l)...)
		doc.OutputBytes += l.Size()
	}
	if a.json {
		a.printJSON(doc)
		return nil
	}
	a.printInputsAndOutputs(doc)
	w := tabwriter.NewWriter(a.out, 0, 4, 2, ' ', 0)
	for _, t := range q.Targets() {
		fmt.Fprintf(w, "  %s\t%s\t%s -> %s\t%s\n", oneLine(t.Tensor), t.Shape, t.DType, t.Type, formatSize(t.Bytes))
	}
	w.Flush() // a.out keeps what goes wrong
	a.printPlanEnd(doc, "tensors", refusal)
	return nil
}

type (
	quantizedJSON struct {
		Tensor string  `json:"tensor"`
		Shape  []int64 `json:"shape"`
		Bytes  int64   `json:"bytes"`
		AbsMax number  `json:"absmax"`
		Error  number  `json:"relative_error"`
		Bits   number  `json:"bits_per_weight"`
	}
	quantizeJSON struct {
		Schema    string            `json:"schema"`
		Output    string            `json:"output"`
		Bytes     int64             `json:"bytes"`
		Decisions []decisionJSON    `json:"decisions"`
		Tensors   []quantizedJSON   `json:"tensors"`
		Summary   quantizeSummary   `json:"summary"`
		Inputs    map[string]string `json:"sha256"`
		Verified  *verifiedJSON     `json:"verified,omitempty"`
	}
	quantizeSummary struct {
		Tensors map[string]int `json:"tensors"`
		Error   number         `json:"relative_error"`
		Bits    number         `json:"bits_per_weight"`
	}
)

// printQuantizeReport prints what a quantization did.
func (a *App) printQuantizeReport(q *quant.Quantization, r written, f *quantizeFlags) error {
	doc := quantizeJSON{
		Schema: "loratool.quantize/v1", Output: q.Layout.Path, Bytes: q.Layout.Size(), Decisions: decisionsOf(q.Plan),
		Tensors: []quantizedJSON{}, Inputs: r.Hashes, Summary: quantizeSummary{Tensors: q.Counts()}, Verified: r.verified,
	}
	var norm, off, bits, weights float64
	for _, t := range q.View.Figures() {
		n, _ := t.Shape.NumElements()
		doc.Tensors = append(doc.Tensors, quantizedJSON{
			t.Tensor, shapeOf(t.Shape), t.Bytes, number(t.AbsMax), number(t.Error), number(t.Bits),
		})
		norm += float64(t.Norm * t.Norm)
		off += float64(t.Error * t.Error * t.Norm * t.Norm)
		bits += t.Bits * float64(n)
		weights += float64(n)
	}
	if norm > 0 {
		doc.Summary.Error = number(math.Sqrt(off / norm))
	}
	if weights > 0 {
		doc.Summary.Bits = number(bits / weights)
	}
	err := f.page.write(a, func() *report.Page { return plainPage(q, &doc) })
	if a.json {
		a.printJSON(doc)
		return err
	}
	fmt.Fprintln(a.out, doc.Output)
	if f.run.verbose {
		a.printQuantizedTensors(doc.Tensors)
	}
	if a.quiet {
		return err
	}
	for _, d := range doc.Decisions {
		a.note("%s%s", d.Message, tensorList(d.Tensors))
	}
	a.note("%s, %s; relative error %.4f, %.3f bits per weight", countList(doc.Summary.Tensors), formatSize(doc.Bytes), doc.Summary.Error, doc.Summary.Bits)
	a.noteVerified(doc.Verified)
	if n := len(q.Targets()); len(doc.Tensors) < n {
		a.note("the figures are those of %d of %d tensors: the others were complete before", len(doc.Tensors), n)
	}
	return err
}

// printQuantizedTensors is the table of --verbose.
func (a *App) printQuantizedTensors(tensors []quantizedJSON) {
	w := tabwriter.NewWriter(a.Stderr, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "tensor\tshape\tbytes\tbits/weight\tabsmax\trelative error")
	for _, t := range tensors {
		fmt.Fprintf(w, "%s\t%v\t%d\t%.3f\t%.4g\t%.4f\n", oneLine(t.Tensor), tensor.Shape(t.Shape), t.Bytes, t.Bits, t.AbsMax, t.Error)
	}
	w.Flush()
}
