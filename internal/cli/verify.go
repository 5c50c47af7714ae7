package cli

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"runtime/debug"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/verify"
)

// verifyFlags are the flags of verify.
type verifyFlags struct {
	format      string
	summary     string
	strict      bool
	headersOnly bool
	jobs        count
	memory      size
}

func (a *App) newVerify() *cobra.Command {
	var f verifyFlags
	cmd := &cobra.Command{
		Use:   "verify PATH",
		Short: "Find what is wrong with a model or an adapter",
		Long: `Check a checkpoint and print what is wrong with it, as findings with a code each.

Examples:
  loratool verify ./merged
  loratool verify ./lora --json
  loratool verify ./merged --format github --summary "$GITHUB_STEP_SUMMARY"
  loratool verify ./merged --format junit > report.xml

PATH is a .safetensors or .gguf file, a model folder, a PEFT adapter folder, or a
repository id in the local hub cache. Its files are checked against each other and
against the config: shapes, layers, the tied head, the vocabulary of the tokenizer,
element types, quantization, what runs code, and every value for infinities and NaN.
--headers-only reads no weights.

A finding is an error, a warning or an info; errors fail the check, with --strict
warnings do too. What makes a file unreadable is no finding but bad input.

FORMAT is text, json (also --json), junit, or github for annotations of a workflow.
--summary appends a table in Markdown to FILE.

Exit status: 0 no errors, 1 failed, 2 usage, 3 errors found, 4 bad input,
130 cancelled ('loratool help exit-codes').`,
		Args:              oneArg("path"),
		ValidArgsFunction: a.models,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.runVerify(cmd.Context(), &f, args) },
	}
	f.register(cmd.Flags())
	a.completeVerify(cmd)
	return cmd
}

func (f *verifyFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&f.format, "format", "", "`FORMAT` of the report: text, json, junit or github (default text)")
	fs.StringVar(&f.summary, "summary", "", "append a table in Markdown to `FILE`")
	fs.BoolVar(&f.strict, "strict", false, "let warnings fail the check too")
	fs.BoolVar(&f.headersOnly, "headers-only", false, "read headers and JSON only, no weights")
	fs.VarP(&f.jobs, "jobs", "j", "tensors worked on at a time (default: one per processor)")
	fs.Var(&f.memory, "memory", "working memory, such as 128MiB (default 256MiB)")
}

// completeVerify gives the shell values for the flags of verify.
func (a *App) completeVerify(cmd *cobra.Command) {
	for flag, complete := range map[string]completer{
		"format": fixed("text\tfor people", "json\tone document", "junit\tXML of test cases", "github\tannotations of a workflow"),
		"memory": fixed("256MiB", "1GiB", "5GB"),
		"jobs":   fixed(),
	} {
		if err := cmd.RegisterFlagCompletionFunc(flag, complete); err != nil {
			panic(err) // a flag that is not there
		}
	}
}

// check looks at the flags and fills in what follows from others.
func (f *verifyFlags) check(a *App) (verify.Options, error) {
	switch {
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
	report, err := a.verifyPath(ctx, args[0], o)
	progress.Finish()
	if err != nil {
		return err
	}
	doc := describeFindings(args[0], report, f.strict)
	reports[f.format](a.out, doc)
	if err := appendSummary(f.summary, doc); err != nil {
		return err
	}
	if !doc.OK {
		return &foundError{}
	}
	return nil
}

// verifyPath checks one checkpoint by itself.
func (a *App) verifyPath(ctx context.Context, path string, o verify.Options) (*verify.Report, error) {
	m, err := checkpoint.Open(path, a.cache())
	if err != nil {
		return nil, err
	}
	defer m.Close() // only read from
	report, err := verify.Structure(ctx, m, o)
	if err != nil {
		return nil, err
	}
	return report, m.CheckUnchanged()
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
var reports = map[string]func(w io.Writer, doc verifyJSON){
	"text": printFindings, "json": printFindingsJSON, "junit": printJUnit, "github": printAnnotations,
}

// foundError ends a command that did its work and found problems or differences: all
// there was to say has been said.
type foundError struct{}

func (*foundError) Error() string { return "problems were found" }

func (*foundError) Unwrap() error { return errSilent }
