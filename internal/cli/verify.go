package cli

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"runtime/debug"
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/report"
	"github.com/loratool/loratool/verify"
)

// verifyFlags are the flags of verify.
type verifyFlags struct {
	merge       mergeFlags // what a merge was made of: base, adapters and how
	merged      string
	quantized   string
	converted   string
	loftq       bool
	format      string
	summary     string
	strict      bool
	headersOnly bool
	provenance  bool
	output      outputFlags
	function    functionFlags
	jobs        count
	memory      size
	page        pageFlag
	inputs      []report.Input // for the page
}

func (a *App) newVerify() *cobra.Command {
	var f verifyFlags
	cmd := &cobra.Command{
		Use:   "verify PATH | verify --base BASE --adapter ADAPTER... --merged MERGED | verify --base BASE --quantized Q | verify --base BASE --converted MODEL | verify --loftq BASE Q ADAPTER",
		Short: "Find what is wrong with a model, an adapter or a merge",
		Long: `Check a checkpoint, or a merge against what it was made from, and print what is
wrong as findings with a code each.

Examples:
  loratool verify ./merged
  loratool verify ./lora --json
  loratool verify --base ./llama --adapter ./lora --merged ./merged
  loratool verify --base ./llama --adapter ./lora --merged ./merged --function --arithmetic bf16
  loratool verify --base base.gguf --adapter lora.gguf --merged merged-Q4_K_M.gguf
  loratool verify --base base.gguf --adapter ./lora --merged merged-Q4_K_M.gguf
  loratool verify --base ./llama --quantized ./llama-nf4
  loratool verify --base ./llama --quantized llama-Q8_0.gguf
  loratool verify --base ./llama --converted llama-BF16.gguf
  loratool verify --base llama-BF16.gguf --converted ./llama
  loratool verify --loftq ./llama ./llama-nf4 ./loftq
  loratool verify ./merged --format github --summary "$GITHUB_STEP_SUMMARY"
  loratool verify ./merged --format junit > report.xml
  loratool verify --base ./llama --adapter ./lora --merged ./merged --report report.html

PATH is a .safetensors or .gguf file, a model folder, a PEFT adapter folder, or a
repository id in the local hub cache. Its files are checked against each other and
against the config: shapes, layers, the tied head, the vocabulary of the tokenizer,
element types, quantization, what runs code, and every value for infinities and NaN.
--headers-only reads no weights.

With --merged every tensor is computed again from BASE and ADAPTERs in float64 and
compared, whoever made the merge; what PEFT rounds twice is recognised and named. The
other tensors must be the base's. Of GGUF files, tensors in blocks must hold the codes
that llama.cpp's encoder makes of the merge. MERGED is then checked like PATH as well.

With --quantized no weight of Q may be farther from BASE than its format can be, and
what is not quantized must be the base's. A GGUF file is compared with one in 16 or 32
bits, or with the folder it was made from as 'convert -o M.gguf' sees it.

With --converted every tensor of BASE must be in MODEL, whoever converted it, from Hugging
Face to GGUF, back, or into other types or shards: values rounded once at most, the rows
of q and k and the norms as the other runtime wants them, and the settings, the special
tokens and the chat template the same. A difference is explained where one of the known
mistakes explains it. With --headers-only no tensors are compared.

With --loftq the pairs of ADAPTER are compared with what quantization left out of Q,
and the scale at which they would fit best with the one that they are applied with.

--function runs every changed module on vectors that are drawn, or on --activations: the
merged weight, and the base's with the pairs of the adapters beside it, in the precision
that a runtime has (--arithmetic). Outputs may differ by what roundings can do, and must
hold the change at its scale.

--end-to-end also runs the models, of the Llama family, on token ids: the logits of the
merge against those of base and adapters, or of the quantized model against the base,
from which it may be as far as --max-kl and --min-top1 allow.

--provenance reads files once more for their hashes: those in SHA256SUMS, those of tensors
in manifest.json ('inspect --manifest' makes it), and those of BASE and ADAPTERs against what the model records of its inputs.

A finding is an error, a warning or an info; errors fail the check, with --strict
warnings do too. What makes a file unreadable is no finding but bad input.

FORMAT is text, json (also --json), junit, or github for annotations of a workflow.
--summary appends a table in Markdown to FILE. --report writes a page with pictures,
one HTML file that fetches nothing.

Exit status: 0 no errors, 1 failed, 2 usage, 3 errors found, 4 bad input,
130 cancelled ('loratool help exit-codes').`,
		Args:              func(cmd *cobra.Command, args []string) error { return f.checkArgs(cmd, args) },
		ValidArgsFunction: a.models,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.runVerify(cmd.Context(), &f, args) },
	}
	f.register(cmd.Flags())
	a.completeVerify(cmd)
	return cmd
}

func (f *verifyFlags) register(fs *pflag.FlagSet) {
	f.merge.set = fs
	fs.StringVar(&f.merge.base, "base", "", "`MODEL` that was merged into: folder, file or cached repository id")
	fs.StringArrayVar(&f.merge.adapters, "adapter", nil, "`ADAPTER` folder that was merged, or ADAPTER@WEIGHT; may be repeated")
	fs.StringVar(&f.merged, "merged", "", "`MODEL` that should be the merge")
	fs.StringVar(&f.quantized, "quantized", "", "`MODEL` that was quantized from the base")
	fs.StringVar(&f.converted, "converted", "", "`MODEL` that was converted from the base: GGUF, or of Hugging Face")
	fs.BoolVar(&f.loftq, "loftq", false, "check the pairs of a LoftQ adapter: arguments are base, quantized model, adapter")
	fs.StringArrayVar(&f.merge.init, "init-adapter", nil, "`ADAPTER` before training, when making it changed the base (PiSSA, CorDA, LoRA-GA, ...)")
	fs.StringVar(&f.merge.moeBLayout, "moe-b-layout", "auto", "`ORDER` of lora_B for stacked experts: rank (PEFT), expert (Unsloth) or auto (by the adapter's marks)")
	fs.StringVar(&f.merge.trainBase, "train-base", "", "the merge was made into the base as quantization to `TYPE` leaves it: nf4, nf4-dq, fp4, fp4-dq or int8")
	fs.BoolVar(&f.merge.mhaFormula, "mha-formula", false, "the change of an attention's out_proj was applied once")
	fs.StringVar(&f.format, "format", "", "`FORMAT` of the report: text, json, junit or github (default text)")
	fs.StringVar(&f.summary, "summary", "", "append a table in Markdown to `FILE`")
	f.page.registerForce(fs)
	fs.BoolVar(&f.strict, "strict", false, "let warnings fail the check too")
	fs.BoolVar(&f.headersOnly, "headers-only", false, "read headers and JSON only, no weights")
	fs.BoolVar(&f.provenance, "provenance", false, "check hashes: the files against SHA256SUMS, the inputs against those recorded in the model")
	f.function.register(fs)
	f.output.register(fs)
	fs.VarP(&f.jobs, "jobs", "j", "tensors worked on at a time (default: one per processor)")
	fs.Var(&f.memory, "memory", "working memory, such as 128MiB (default 256MiB)")
}

// completeVerify gives the shell values for the flags of verify.
func (a *App) completeVerify(cmd *cobra.Command) {
	for flag, complete := range map[string]completer{
		"base":         a.models,
		"merged":       a.models,
		"quantized":    a.models,
		"converted":    a.models,
		"adapter":      folders,
		"init-adapter": folders,
		"moe-b-layout": fixed("auto\tby the adapter's marks", "rank\tas PEFT packs it", "expert\tas Unsloth packs it"),
		"train-base":   fixed(slices.Sorted(maps.Keys(trainBases))...),
		"format":       fixed("text\tfor people", "json\tone document", "junit\tXML of test cases", "github\tannotations of a workflow"),
		"memory":       fixed("256MiB", "1GiB", "5GB"),
		"jobs":         fixed(),
		"prompts":      fixed(), "probes": fixed(), "activations": a.models, "arithmetic": fixed("f16", "bf16", "f32", "f16-pure", "bf16-pure"), "length": fixed(), "seed": fixed(), "max-kl": fixed(), "min-top1": fixed(),
	} {
		if err := cmd.RegisterFlagCompletionFunc(flag, complete); err != nil {
			panic(err) // a flag that is not there
		}
	}
}

// checkArgs makes sure that there is one thing to check.
func (f *verifyFlags) checkArgs(cmd *cobra.Command, args []string) error {
	if f.loftq {
		return f.checkLoftQ(cmd, args)
	}
	if f.converted != "" {
		return f.checkConverted(cmd, args)
	}
	if f.quantized != "" {
		return f.checkQuantized(cmd, args)
	}
	ofMerge := []string{"base", "adapter", "merged", "quantized", "init-adapter", "moe-b-layout", "train-base", "mha-formula"}
	if f.merged == "" {
		for _, name := range ofMerge {
			if cmd.Flags().Changed(name) {
				return usageHint("loratool verify --base BASE --adapter ADAPTER --merged MERGED", "--%s is for a merge, but --merged is missing", name)
			}
		}
		return oneArg("path")(cmd, args)
	}
	switch {
	case len(args) > 0:
		return usageHint(cmd.CommandPath()+" --help", "with --merged there is no path to check beside, got %q", args[0])
	case f.merge.base == "":
		return usagef("--base is missing")
	case len(f.merge.adapters) == 0:
		return usagef("--adapter is missing")
	case f.headersOnly:
		return usagef("--headers-only: a merge is compared by its weights")
	}
	return nil
}

// checkQuantized wants a base and nothing else.
func (f *verifyFlags) checkQuantized(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageHint(cmd.CommandPath()+" --help", "with --quantized there is no path to check beside, got %q", args[0])
	}
	for _, name := range []string{"adapter", "merged", "init-adapter", "moe-b-layout", "train-base", "mha-formula", "headers-only"} {
		if cmd.Flags().Changed(name) {
			return usagef("--quantized and --%s exclude each other", name)
		}
	}
	if f.merge.base == "" {
		return usagef("--base is missing")
	}
	return nil
}

// checkLoftQ wants the three arguments and no flag of a merge.
func (f *verifyFlags) checkLoftQ(cmd *cobra.Command, args []string) error {
	if len(args) != 3 {
		return usageHint("loratool verify --loftq BASE Q ADAPTER", "--loftq takes a base, a quantized model and an adapter, got %d arguments", len(args))
	}
	for _, name := range []string{"base", "adapter", "merged", "quantized", "init-adapter", "moe-b-layout", "train-base", "mha-formula", "headers-only", "provenance", "converted"} {
		if cmd.Flags().Changed(name) {
			return usagef("--loftq and --%s exclude each other", name)
		}
	}
	return nil
}

// check looks at the flags and fills in what follows from others.
func (f *verifyFlags) check(a *App) (verify.Options, error) {
	switch {
	case f.output.check(f) != nil:
		return verify.Options{}, f.output.check(f)
	case f.function.check(f) != nil:
		return verify.Options{}, f.function.check(f)
	case f.format == "" && a.json, f.format == "json":
		f.format, a.json = "json", true
	case f.format == "":
		f.format = "text"
	case reports[f.format] == nil:
		return verify.Options{}, usagef("--format: %q is not text, json, junit or github", f.format)
	case a.json:
		return verify.Options{}, usagef("--json and --format %s exclude each other", f.format)
	}
	if err := a.orEnv(&f.memory, f.memory != 0, "LORATOOL_MEMORY"); err != nil {
		return verify.Options{}, err
	}
	if err := a.orEnv(&f.jobs, f.jobs != 0, "LORATOOL_JOBS"); err != nil {
		return verify.Options{}, err
	}
	if _, err := a.progressInterval(); err != nil {
		return verify.Options{}, err
	}
	o := engine.Options{Jobs: int(f.jobs), Memory: int64(f.memory)}.WithDefaults()
	return verify.Options{Engine: o, HeadersOnly: f.headersOnly}, nil
}

// runVerify runs the checks and prints what they found.
func (a *App) runVerify(ctx context.Context, f *verifyFlags, args []string) error {
	o, err := f.check(a)
	if err != nil {
		return err
	}
	debug.SetMemoryLimit(o.Engine.Memory + o.Engine.Memory/4 + 32<<20)
	progress := a.newProgress("verifying")
	o.Engine.Progress = progress
	path, check := args, a.verifyPath
	switch {
	case f.loftq:
		check = a.verifyLoftQ
	case f.converted != "":
		path, check = []string{f.converted}, a.verifyConversion
	case f.quantized != "":
		path, check = []string{f.quantized}, a.verifyQuantized
	case f.merged != "":
		path, check = []string{f.merged}, a.verifyMerge
	}
	found, err := check(ctx, path, f, o)
	progress.Finish()
	if err != nil {
		return err
	}
	doc := describeFindings(path[len(path)-1], found, f.strict)
	reports[f.format](a.out, a.paletteOf(a.out), doc)
	if err := appendSummary(f.summary, doc); err != nil {
		return err
	}
	if err := f.page.write(a, func() *report.Page { return verifyPage(&doc, found, f.inputs) }); err != nil {
		return err
	}
	if !doc.OK {
		return &foundError{}
	}
	return nil
}

// verifyPath checks one checkpoint by itself.
func (a *App) verifyPath(ctx context.Context, paths []string, f *verifyFlags, o verify.Options) (*verify.Report, error) {
	m, err := checkpoint.Open(paths[0], a.cache())
	if err != nil {
		return nil, err
	}
	defer m.Close() // only read from
	if err := f.admit(a, []string{"model"}, m); err != nil {
		return nil, err
	}
	report, err := verify.Structure(ctx, m, o)
	if err != nil {
		return nil, err
	}
	if err := f.addProvenance(ctx, report, m, nil, o); err != nil {
		return nil, err
	}
	return report, m.CheckUnchanged()
}

// admit takes note of what is checked, and refuses a page that would be in its place.
func (f *verifyFlags) admit(a *App, roles []string, models ...*checkpoint.Model) error {
	if f.page.path == "" {
		return nil
	}
	f.inputs = inputsOf(roles, models)
	return f.page.refusal(a, pathsOf(models))
}

// addProvenance checks hashes if asked to.
func (f *verifyFlags) addProvenance(ctx context.Context, r *verify.Report, m *checkpoint.Model, inputs []*checkpoint.Model, o verify.Options) error {
	if !f.provenance {
		return nil
	}
	return verify.Provenance(ctx, r, m, inputs, o)
}

// verifyMerge checks a merge against what it was made from.
func (a *App) verifyMerge(ctx context.Context, paths []string, f *verifyFlags, o verify.Options) (*verify.Report, error) {
	f.merge.output = paths[0] // is only read here
	opts, err := f.merge.options()
	if err != nil {
		return nil, err
	}
	inputs, err := a.openInputs(&f.merge)
	if err != nil {
		return nil, err
	}
	defer inputs.close()
	if inputs.base.GGUF() != nil {
		refused := []string{"init-adapter", "train-base"}
		if !inputs.allPEFT() {
			refused = slices.Concat(refused, onlyPEFT)
		}
		for _, name := range refused {
			if f.merge.set.Changed(name) {
				return nil, usagef("--%s does not apply to a merge into a GGUF file", name)
			}
		}
	}
	merged, err := checkpoint.Open(paths[0], a.cache())
	if err != nil {
		return nil, err
	}
	if err := f.admit(a, []string{"merged", "base", "adapter"}, slices.Insert(slices.Clone(inputs.models), 0, merged)...); err != nil {
		return nil, err
	}
	of := inputs.models
	inputs.models = slices.Concat(of, []*checkpoint.Model{merged})
	trip, err := simulateTraining(inputs.base, f.merge.trainBase, &opts)
	if err != nil {
		return nil, err
	}
	if trip != nil { // it holds scales beside the budget
		o.Engine.Memory = max(o.Engine.Memory-trip.Memory(o.Engine.Jobs), 1)
	}
	report, err := verify.Merged(ctx, inputs.base, inputs.sources, opts, merged, o)
	if err == nil && f.function.on {
		if err = f.function.openActivations(a, inputs); err == nil {
			err = verify.Function(ctx, report, inputs.base, inputs.sources, opts, merged, f.function.options, o)
		}
	}
	if err == nil && f.output.on {
		err = verify.EndToEnd(ctx, report, inputs.base, inputs.sources, opts, merged, f.output.prompts, o)
	}
	if err != nil {
		return nil, err
	}
	if err := f.addProvenance(ctx, report, merged, of, o); err != nil {
		return nil, err
	}
	return report, inputs.checkUnchanged()
}

// verifyQuantized checks a quantized model against its base.
func (a *App) verifyQuantized(ctx context.Context, paths []string, f *verifyFlags, o verify.Options) (*verify.Report, error) {
	in := new(mergeInputs)
	defer in.close()
	for _, path := range []string{f.merge.base, paths[0]} {
		m, err := checkpoint.Open(path, a.cache())
		if err != nil {
			return nil, err
		}
		in.models = append(in.models, m)
	}
	if err := f.admit(a, []string{"base", "quantized"}, in.models...); err != nil {
		return nil, err
	}
	pair := [2]*checkpoint.Model(in.models)
	if pair[1].GGUF() != nil { // a GGUF base has no other form
		beside, _, err := seePairAsGGUF(&pair, [2]string{"the base", "the model"}, o.Engine)
		if err != nil {
			return nil, err
		}
		o.Engine.Memory = max(o.Engine.Memory-beside, 1)
	}
	report, err := verify.Quantized(ctx, pair[0], pair[1], o)
	if err == nil && f.output.on {
		err = verify.EndToEndQuantized(ctx, report, in.models[0], in.models[1], f.output.prompts, f.output.allowed, o)
	}
	if err != nil {
		return nil, err
	}
	if err := f.addProvenance(ctx, report, in.models[1], in.models[:1], o); err != nil {
		return nil, err
	}
	return report, in.checkUnchanged()
}

// verifyLoftQ checks the pairs of an adapter against base and quantized model.
func (a *App) verifyLoftQ(ctx context.Context, paths []string, f *verifyFlags, o verify.Options) (*verify.Report, error) {
	in := new(mergeInputs)
	defer in.close()
	for _, path := range paths[:2] {
		m, err := checkpoint.Open(path, a.cache())
		if err != nil {
			return nil, err
		}
		in.models = append(in.models, m)
	}
	pairs, err := in.openAdapter(paths[2], a.cache())
	if err != nil {
		return nil, err
	}
	if err := f.admit(a, []string{"base", "quantized", "adapter"}, in.models...); err != nil {
		return nil, err
	}
	report, err := verify.LoftQReport(ctx, in.models[0], in.models[1], pairs, o)
	if err != nil {
		return nil, err
	}
	return report, in.checkUnchanged()
}

// appendSummary appends the report in Markdown to a file, if one was named.
func appendSummary(path string, doc verifyJSON) error {
	if path == "" {
		return nil
	}
	file, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o666)
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return usagef("--summary: %w", pe)
	}
	if err != nil {
		return err
	}
	w := &stickyWriter{w: file}
	printMarkdown(w, doc)
	if err := file.Close(); w.err == nil {
		return err
	}
	return w.err
}

// reports are the forms of a report.
var reports = map[string]func(w io.Writer, p palette, doc verifyJSON){
	"text": printFindings, "json": printFindingsJSON, "junit": printJUnit, "github": printAnnotations,
}

// foundError ends a command that did its work and found problems or differences: all
// there was to say has been said.
type foundError struct{}

func (*foundError) Error() string { return "problems were found" }

func (*foundError) Unwrap() error { return errSilent }
