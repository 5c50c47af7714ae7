package cli

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime/debug"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/loratool/loratool/convert"
	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/formats/tokenizer"
)

// convertFlags are the flags of convert.
type convertFlags struct {
	source       string
	base         string
	output       string
	dtype        string
	to           string
	shardSize    size
	shardTensors count
	noProvenance bool
	name         string
	pre          string
	verify       bool
	run          runFlags
}

func (a *App) newConvert() *cobra.Command {
	var f convertFlags
	cmd := &cobra.Command{
		Use:   "convert MODEL -o OUT",
		Short: "Write a model or an adapter in another type, other shards, as GGUF or from it",
		Long: `Write a safetensors model, or a PEFT adapter, again: with other element types, in
other shards, with plain weights in place of quantized ones, or as a GGUF file. Or
write a GGUF model as a folder for transformers.

Examples:
  loratool convert ./llama -o ./llama.gguf
  loratool convert ./llama-q4_k_m.gguf -o ./llama
  loratool convert ./llama -o ./llama-f16 --dtype f16
  loratool convert ./llama-nf4 -o ./llama-bf16
  loratool convert ./llama -o ./llama-gguf --to gguf --shard-size 4GB
  loratool convert ./llama -o ./small-shards --shard-size 1GB
  loratool convert ./lora -o ./lora-bf16 --dtype bf16
  loratool convert ./lora --base ./llama -o ./lora.gguf
  loratool convert ./lora.gguf --base ./llama-q4_k_m.gguf -o ./lora

With --dtype every floating-point tensor gets that type, each value rounded once, to
nearest even; without it every tensor keeps its own. Integers and masks are copied.

The 4-bit and 8-bit folders of bitsandbytes, and FP8 with scales, become the weights
that they stand for, of the type that the config states or of 16 bits; scales and
quantization_config are left out. Any other quantized model is an error.

An OUT that ends in .gguf is what llama.cpp's converter makes of the same folder, byte
for byte: names, rows, experts, hyperparameters, tokenizer, chat template. --dtype is
f32, f16, bf16, q8_0, tq1_0, tq2_0 or auto, which is the default: that of the model if
it has 16 bits, else f16. Types of blocks are a quantization in one pass, whose report
is that of 'loratool quantize'; more types are there. There are
tables for Llama, Mistral, Mixtral, Qwen2, Qwen3, their models of experts, Gemma 1 to
3, Phi 3 and 4, SmolLM3, Granite, OLMo 2 and 3, StarCoder 2, GPT-2, and BERT, also of
sentence-transformers; anything else is an error that names it, and so is a module
behind a BERT that GGUF has no place for. The pre-tokenizer is told from the regular expressions in tokenizer.json; --pre overrules
them.

A MODEL that is a GGUF file, or one of its splits, becomes a folder for transformers,
of the same families but Phi and BERT: tensors with the names and rows of Hugging Face, single experts,
config.json, generation_config.json, tokenizer.json and chat template from the keys of
the file. All tensors get one type: --dtype, else bf16 if the file is quantized, else
that of its matrices. F32, F16 and BF16 come back exactly; what quantization lost is
lost. What the file does not say is named in the plan; a key or a tensor that is not
known is an error.

A LoRA adapter becomes GGUF, or a GGUF adapter one of PEFT, by the names of the model
that it is for: --base, a folder or a GGUF file, whose weights are not read. Rows of
attention heads, stacks of experts and embeddings go over as those of the model do.
llama.cpp knows one alpha: what a rank-stabilised scale or an alpha of its own is beyond
that goes into the factors. What no GGUF adapter can hold - DoRA, modules_to_save,
biases, a tied head - is an error; merge such an adapter instead.

--verify reads the output back before it appears: every number that was rounded is
computed again in float64, everything else must have the same bytes.

A finite value that the new type has no room for - f16 ends at 65504 - is an error
that names the tensor. Nothing is written then. A run that was killed leaves a
partial output beside OUT; the same command with --resume goes on from it.

Exit status: 0 done, 1 failed, 2 usage, 4 bad input, 5 refused, 130 cancelled
('loratool help exit-codes').`,
		Args:              oneArg("model"),
		ValidArgsFunction: a.models,
		RunE: func(cmd *cobra.Command, args []string) error {
			f.source = args[0]
			return a.runConvert(cmd.Context(), &f)
		},
	}
	f.register(cmd.Flags())
	a.completeConvert(cmd)
	return cmd
}

func (f *convertFlags) register(fs *pflag.FlagSet) {
	fs.StringVarP(&f.output, "output", "o", "", "`OUT`, a folder, a .safetensors or a .gguf file, to write")
	fs.StringVar(&f.base, "base", "", "`MODEL`, a folder or a GGUF file, that an adapter is for which becomes GGUF or comes from it")
	fs.StringVar(&f.dtype, "dtype", "", "`TYPE` of floating-point tensors: f32, f16, bf16 or f64; of GGUF also q8_0, tq1_0, tq2_0 or auto (default: as in the input)")
	fs.StringVar(&f.to, "to", "", "`FORMAT` of the output, gguf or safetensors (default: gguf if OUT ends in .gguf)")
	fs.Var(&f.shardSize, "shard-size", "largest weight file of a folder, such as 5GB (default 5GB; of GGUF one file)")
	fs.Var(&f.shardTensors, "shard-tensors", "most tensors of a file, with --to gguf")
	fs.BoolVar(&f.noProvenance, "no-provenance", false, "leave names and hashes of the inputs out of the output")
	fs.StringVar(&f.name, "name", "", "`NAME` of the model in a GGUF file (default: that of its folder)")
	fs.StringVar(&f.pre, "pre", "", "pre-tokenizer of a GGUF file by llama.cpp's `NAME` (default: by the expressions in tokenizer.json, or as the file says)")
	verifyFlag(fs, &f.verify)
	f.run.register(fs)
}

// completeConvert gives the shell values for the flags of convert.
func (a *App) completeConvert(cmd *cobra.Command) {
	sizes := fixed("256MiB", "1GiB", "5GB")
	for flag, complete := range map[string]completer{
		"base":          a.models,
		"dtype":         fixed("bf16\tbfloat16", "f16\tIEEE half", "f32\t32-bit", "f64\t64-bit", "q8_0\tGGUF, blocks of 8 bits", "auto\tGGUF, as in the input"),
		"memory":        sizes,
		"shard-size":    sizes,
		"to":            fixed("gguf", "safetensors"),
		"jobs":          fixed(),
		"shard-tensors": fixed(),
		"name":          fixed(),
		"pre":           fixed(tokenizer.PreNames()...),
	} {
		if err := cmd.RegisterFlagCompletionFunc(flag, complete); err != nil {
			panic(err) // a flag that is not there
		}
	}
}

// options checks the flags and turns them into options of the library.
func (f *convertFlags) options() (convert.Options, error) {
	o := convert.Options{
		Output: f.output, ShardSize: int64(f.shardSize), NoProvenance: f.noProvenance, Version: buildVersion(),
		Name: f.name, PreTokenizer: f.pre, GGUF: f.to == "gguf", ShardTensors: int(f.shardTensors),
	}
	if err := f.checkFormat(); err != nil || f.dtype == "" || f.isGGUF() && f.dtype == "auto" {
		return o, err
	}
	var err error
	if o.DType, err = tensor.ParseFlag(f.dtype); err != nil {
		return o, usagef("--dtype: %q is not one of f32, f16, bf16, f64, of GGUF also q8_0, tq1_0, tq2_0, auto", f.dtype)
	}
	return o, nil
}

// checkFormat checks what the output is and how it is split.
func (f *convertFlags) checkFormat() error {
	isFile, isGGUF := strings.HasSuffix(f.output, ".gguf"), f.isGGUF()
	isSplit := f.shardSize != 0 || f.shardTensors != 0
	switch {
	case f.output == "":
		return usagef("-o is missing")
	case f.to != "" && f.to != "gguf" && f.to != "safetensors":
		return usagef("--to: %q is not one of gguf, safetensors", f.to)
	case isFile && f.to == "safetensors":
		return usagef("--to safetensors: the output %q is GGUF", f.output)
	case !isGGUF && f.name != "":
		return usagef("--name is for an output that is GGUF")
	case !isGGUF && f.shardTensors != 0:
		return usagef("--shard-tensors is for GGUF; --to gguf makes a folder of it")
	case f.shardSize != 0 && f.shardTensors != 0:
		return usagef("--shard-size and --shard-tensors exclude each other")
	case isFile && isSplit:
		return usageHint("-o "+strings.TrimSuffix(f.output, ".gguf")+" --to gguf", "the output %q is one file; a split GGUF model is a folder", f.output)
	case isGGUF && !isFile && !isSplit:
		return usageHint("-o "+f.output+".gguf", "-o: %q does not end in .gguf; only a split model (--shard-size, --shard-tensors) is a folder", f.output)
	case f.shardSize != 0 && strings.HasSuffix(f.output, ".safetensors"):
		return usagef("--shard-size: the output %q is one file", f.output)
	}
	return nil
}

func (f *convertFlags) isGGUF() bool { return f.to == "gguf" || strings.HasSuffix(f.output, ".gguf") }

// blockTypes are the types of blocks that a conversion to GGUF can give to matrices.
var blockTypes = []string{"q8_0", "tq1_0", "tq2_0"}

// runConvertBlocks converts to types of blocks: quantization in one pass, with the types
// that the converter gives.
func (a *App) runConvertBlocks(ctx context.Context, f *convertFlags) error {
	if err := f.checkFormat(); err != nil {
		return err
	}
	if f.base != "" {
		return usagef("--dtype: an adapter has f32, f16 or bf16")
	}
	source, err := checkpoint.Open(f.source, a.cache())
	if err != nil {
		return err
	}
	isGGUF := source.GGUF() != nil
	if err := source.Close(); err != nil {
		return err
	}
	if isGGUF {
		return usageHint("loratool quantize "+f.source+" -o "+f.output+" --type "+f.dtype, "%s is a GGUF model already: 'loratool quantize' writes it in other types", f.source)
	}
	q := new(quantizeFlags)
	q.register(pflag.NewFlagSet("quantize", pflag.ContinueOnError)) // for what has no flag here
	q.model, q.output, q.kind, q.name, q.pre = f.source, f.output, f.dtype, f.name, f.pre
	q.asConverter, q.shardSize, q.gguf.shardTensors, q.verify, q.run = true, f.shardSize, f.shardTensors, f.verify, f.run
	return a.runQuantizeGGUF(ctx, q)
}

// runConvert opens, plans, runs and commits.
func (a *App) runConvert(ctx context.Context, f *convertFlags) error {
	if f.isGGUF() && slices.Contains(blockTypes, strings.ToLower(f.dtype)) {
		return a.runConvertBlocks(ctx, f)
	}
	defer a.noteStop(ctx)()
	opts, err := f.options()
	if err != nil {
		return err
	}
	engineOpts, err := f.run.engineOptions(a)
	if err != nil {
		return err
	}
	source, err := checkpoint.Open(f.source, a.cache())
	if err != nil {
		return err
	}
	inputs := &mergeInputs{base: source, models: []*checkpoint.Model{source}}
	defer inputs.close()
	if f.base != "" {
		if opts.Base, err = checkpoint.Open(f.base, a.cache()); err != nil {
			return err
		}
		inputs.models = append(inputs.models, opts.Base)
	}
	if f.pre != "" && source.GGUF() == nil && !f.isGGUF() {
		return usagef("--pre is for an input or an output that is GGUF")
	}
	c, err := convert.Plan(source, opts)
	if option, ok := errors.AsType[*convert.OptionError](err); ok {
		return usagef("--%w", option)
	} else if err != nil {
		return err
	}
	budget, err := engine.Budget(c.Plan, engineOpts)
	if err != nil {
		return err
	}
	if err := checkProof(c.Plan, nil, f.verify, engineOpts); err != nil {
		return err
	}
	refusal := a.refusal(c.Layout, inputs, f.run.force)
	if f.run.dryRun {
		return a.printPlan(c.Plan, c.Layout, budget, refusal)
	}
	if refusal != nil {
		return refusal
	}
	report, err := a.writeConverted(ctx, c, inputs, f, engineOpts)
	if err != nil {
		return err
	}
	return a.printConvertReport(c, report, f.run.verbose)
}

// writeConverted runs the plan, checks its output if asked to, and puts it in place.
func (a *App) writeConverted(ctx context.Context, c *convert.Conversion, inputs *mergeInputs, f *convertFlags, o engine.Options) (written, error) {
	// The collector keeps the garbage of readers within the budget too.
	debug.SetMemoryLimit(o.Memory + o.Memory/4 + 32<<20)
	opts, _ := f.options() // were checked; the base is one of the inputs
	sink, err := a.openSink(c.Layout, c.Plan, identityOf("convert", opts, inputs.models), &f.run, &o)
	if err != nil {
		return written{}, err
	}
	done, err := a.write(ctx, &writing{doing: "converting", plan: c.Plan, sources: []engine.Source{c.View}, sink: sink, options: o}, f.verify, inputs)
	if err != nil {
		return done, err
	}
	return done, a.commit(sink, c.SetHashes(done.Hashes))
}

type (
	convertedJSON struct {
		Tensor string  `json:"tensor"`
		Shape  []int64 `json:"shape"`
		DType  string  `json:"dtype"`
		Error  number  `json:"relative_error"`
	}
	convertSummary struct {
		Tensors map[string]int `json:"tensors"`
		Error   number         `json:"relative_error"`
	}
	convertJSON struct {
		Schema    string            `json:"schema"`
		Output    string            `json:"output"`
		Bytes     int64             `json:"bytes"`
		Decisions []decisionJSON    `json:"decisions"`
		Tensors   []convertedJSON   `json:"tensors"`
		Summary   convertSummary    `json:"summary"`
		Inputs    map[string]string `json:"sha256"`
		Verified  *verifiedJSON     `json:"verified,omitempty"`
	}
)

// printConvertReport prints what a conversion did: of every tensor that is not a copy,
// what rounding cost.
func (a *App) printConvertReport(c *convert.Conversion, r written, verbose bool) error {
	doc := convertJSON{
		Schema: "loratool.convert/v1", Output: c.Layout.Path, Bytes: c.Layout.Size(), Decisions: decisionsOf(c.Plan),
		Tensors: []convertedJSON{}, Inputs: r.Hashes, Summary: convertSummary{Tensors: stepKinds(c.Plan)}, Verified: r.verified,
	}
	var norm, off float64
	for _, t := range r.Tensors {
		lost := 0.0
		if t.BaseNorm > 0 {
			lost = t.RoundingNorm / t.BaseNorm
		}
		doc.Tensors = append(doc.Tensors, convertedJSON{t.Tensor, shapeOf(t.Shape), t.DType, number(lost)})
		norm += float64(t.BaseNorm * t.BaseNorm)
		off += float64(t.RoundingNorm * t.RoundingNorm)
	}
	if norm > 0 {
		doc.Summary.Error = number(math.Sqrt(off / norm))
	}
	if a.json {
		a.printJSON(doc)
		return nil
	}
	fmt.Fprintln(a.out, doc.Output)
	if verbose {
		a.printConvertedTensors(doc.Tensors)
	}
	if a.quiet {
		return nil
	}
	for _, d := range doc.Decisions {
		a.note("%s%s", d.Message, tensorList(d.Tensors))
	}
	rounding := ""
	if len(doc.Tensors) > 0 {
		rounding = fmt.Sprintf("; relative error of rounding %.3g", doc.Summary.Error)
	}
	a.note("%d tensors (%s), %s%s", len(c.Plan.Steps), countList(doc.Summary.Tensors), formatSize(doc.Bytes), rounding)
	a.noteVerified(doc.Verified)
	return nil
}

// printConvertedTensors is the table of --verbose.
func (a *App) printConvertedTensors(tensors []convertedJSON) {
	w := tabwriter.NewWriter(a.Stderr, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "tensor\tdtype\tshape\trelative error")
	for _, t := range tensors {
		fmt.Fprintf(w, "%s\t%s\t%v\t%.3g\n", oneLine(t.Tensor), t.DType, tensor.Shape(t.Shape), t.Error)
	}
	w.Flush()
}
