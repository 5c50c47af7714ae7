// Package cli is the command line of loratool: flags to options, results to
// text or JSON, errors to exit codes. It computes nothing.
package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/internal/kernel"
)

// App is what a command may use of the outside world.
type App struct {
	Stdout, Stderr io.Writer
	Getenv         func(string) string
	FS             fsatomic.FS
	// RecordEvery is how many bytes an interrupted run may lose; 0 is a default.
	RecordEvery int64

	out *stickyWriter // Stdout, with what went wrong with it

	// Set from the persistent flags.
	quiet, json, noColor bool
}

// Main runs the command line of the process and returns its exit code.
func Main() int {
	// A reader that goes away must not end a run that writes elsewhere: writing
	// to it fails then, as to anything else that is broken.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // from then on a signal ends the process at once
	app := &App{Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv, FS: fsatomic.OS{}}
	return app.Run(ctx, os.Args[1:])
}

// Tree returns all commands, for the pages that document them.
func Tree() *cobra.Command {
	app := &App{Getenv: func(string) string { return "" }, out: &stickyWriter{w: io.Discard}}
	return app.newRoot()
}

// Run executes one command line and returns its exit code.
func (a *App) Run(ctx context.Context, args []string) int {
	err := a.execute(ctx, args)
	if err == nil {
		return exitDone
	}
	// A mistake before --json keeps the flag from being seen.
	a.json = a.json || slices.Contains(args, "--json")
	return a.fail(err)
}

// execute turns a panic, and a result that could not be printed, into errors.
func (a *App) execute(ctx context.Context, args []string) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &engine.BugError{Value: p, Stack: debug.Stack()}
		}
	}()
	a.out = &stickyWriter{w: a.Stdout}
	if level := a.Getenv("LORATOOL_CPU"); level != "" {
		if err := kernel.Use(level); err != nil {
			return usagef("LORATOOL_CPU: %w", err)
		}
	}
	root := a.newRoot()
	root.SetArgs(args)
	if err := root.ExecuteContext(ctx); a.out.err == nil {
		return err
	}
	return a.out.failure()
}

// cache is the local hub cache of the environment.
func (a *App) cache() hfrepo.Cache { return hfrepo.DefaultCache(a.Getenv) }

// newRoot builds the command tree.
func (a *App) newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "loratool",
		Short: "Merge, extract, quantize, convert and verify, file to file",
		Long: `loratool works on model checkpoints, file to file: it merges adapters, extracts them,
quantizes, converts and verifies; in bounded memory, and refusing to guess.

Examples:
  loratool merge --base ./llama --adapter ./lora -o ./merged
  loratool verify --base ./llama --adapter ./lora --merged ./merged
  loratool quantize ./llama -o ./llama-nf4 --type nf4
  loratool inspect ./lora`,
		SilenceUsage:      true,
		SilenceErrors:     true,
		DisableAutoGenTag: true,
		Args:              cobra.ArbitraryArgs,
		RunE:              a.runRoot,
	}
	root.SetOut(a.out)
	root.SetErr(a.Stderr)
	root.SetFlagErrorFunc(usageOf)
	root.SetUsageFunc(printUsage)
	root.PersistentFlags().BoolVarP(&a.quiet, "quiet", "q", false, "print the result and errors only")
	root.PersistentFlags().BoolVar(&a.json, "json", false, "print one JSON document on stdout, messages as JSON lines on stderr")
	root.PersistentFlags().BoolVar(&a.noColor, "no-color", false, "no colours on a terminal")
	root.Flags().Bool("version", false, "print the version")
	root.AddCommand(a.newMerge(), a.newExtract(), a.newResize(), a.newQuantize(), a.newConvert(), a.newVerify(), a.newInspect(), a.newDiff(), a.newVersion(), a.newCompletion())
	root.AddCommand(newExitCodes(), newEnvironment())
	root.SetHelpCommand(newHelp())
	root.InitDefaultHelpCmd()
	return root
}

// runRoot is loratool without a command.
func (a *App) runRoot(root *cobra.Command, args []string) error {
	if len(args) > 0 {
		return unknownCommand(root, args[0])
	}
	if show, _ := root.Flags().GetBool("version"); show {
		return a.runVersion()
	}
	if a.json {
		return usagef("no command")
	}
	fmt.Fprintf(a.Stderr, "%s\n\nRun 'loratool help' for all commands.\n", root.Long)
	return &usageError{errSilent}
}
