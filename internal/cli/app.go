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
	"syscall"

	"github.com/spf13/cobra"

	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/internal/fsatomic"
)

// App is what a command may use of the outside world.
type App struct {
	Stdout, Stderr io.Writer
	Getenv         func(string) string
	FS             fsatomic.FS

	// Set from the persistent flags.
	quiet, json, noColor bool
}

// Main runs the command line of the process and returns its exit code.
func Main() int {
	app := &App{Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv, FS: fsatomic.OS{}}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	finished := make(chan struct{})
	defer close(finished)
	go func() {
		select {
		case <-finished:
		case <-ctx.Done():
			// From here on a second signal ends the process at once.
			stop()
			fmt.Fprintln(os.Stderr, "loratool: stopping; nothing will be written")
		}
	}()
	return app.Run(ctx, os.Args[1:])
}

// Run executes one command line and returns its exit code. A panic becomes a
// line that says that it is a fault of loratool.
func (a *App) Run(ctx context.Context, args []string) (code int) {
	defer func() {
		if p := recover(); p != nil {
			code = exitFailed
			fmt.Fprintf(a.Stderr, "loratool: internal error: %v\nhint: this is a fault of loratool; please report it with the command\n", p)
			if a.Getenv("LORATOOL_DEBUG") != "" {
				fmt.Fprintf(a.Stderr, "%s\n", debug.Stack())
			}
		}
	}()
	root := a.newRoot()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitDone
	}
	return a.fail(err)
}

// cache is the local hub cache of the environment.
func (a *App) cache() hfrepo.Cache { return hfrepo.DefaultCache(a.Getenv) }

// newRoot builds the command tree.
func (a *App) newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "loratool",
		Short: "Merge adapters into model checkpoints, file to file",
		Long: `loratool folds LoRA and other PEFT adapters into the weights of a model:
exactly, in bounded memory, and refusing to guess.

Examples:
  loratool merge --base ./llama --adapter ./lora -o ./merged
  loratool inspect ./lora`,
		SilenceUsage:      true,
		SilenceErrors:     true,
		DisableAutoGenTag: true,
		Args:              cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			if show, _ := cmd.Flags().GetBool("version"); show {
				return a.runVersion()
			}
			fmt.Fprintf(a.Stderr, "%s\n\nRun 'loratool help' for all commands.\n", cmd.Long)
			return &usageError{err: errSilent}
		},
	}
	root.SetOut(a.Stdout)
	root.SetErr(a.Stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usageOf(cmd, err) })
	root.PersistentFlags().BoolVarP(&a.quiet, "quiet", "q", false, "print errors only")
	root.PersistentFlags().BoolVar(&a.json, "json", false, "print one JSON document on stdout")
	root.PersistentFlags().BoolVar(&a.noColor, "no-color", false, "plain text (also NO_COLOR)")
	root.Flags().Bool("version", false, "print the version")
	root.AddCommand(a.newMerge(), a.newInspect(), a.newVersion(), newExitCodes(), newEnvironment())
	root.CompletionOptions.HiddenDefaultCmd = false
	return root
}
