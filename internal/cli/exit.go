package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/internal/fsatomic"
)

// The exit codes; help exit-codes prints them.
const (
	exitDone      = 0
	exitFailed    = 1
	exitUsage     = 2
	exitInput     = 4
	exitRefused   = 5
	exitCancelled = 130
)

// errSilent says that what there was to say has been said.
var errSilent = errors.New("")

// usageError is a mistake in the command line.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }

func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// usageOf makes a usage error of a flag error, with the nearest flag.
func usageOf(cmd *cobra.Command, err error) error {
	_, name, ok := strings.Cut(err.Error(), "unknown flag: --")
	if !ok {
		return &usageError{err}
	}
	return &usageError{&hinted{err, nearestFlag(cmd, name)}}
}

// hinted carries a hint with an error.
type hinted struct {
	error
	hint string
}

func (h *hinted) Unwrap() error { return h.error }

func (h *hinted) Hint() string { return h.hint }

// classify is the one place that knows which error ends with which code.
func classify(err error) (code int, kind string) {
	var (
		usage     *usageError
		input     *checkpoint.InputError
		mismatch  *adapter.MismatchError
		notCached *hfrepo.NotCachedError
		nonFinite *engine.NonFiniteError
		changed   *engine.InputChangedError
		outExists *fsatomic.ExistsError
		refused   *fsatomic.RefusedError
		noSpace   *fsatomic.SpaceError
		noMemory  *engine.MemoryError
	)
	switch {
	case errors.As(err, &usage):
		return exitUsage, "usage"
	case errors.Is(err, context.Canceled):
		return exitCancelled, "cancelled"
	case errors.As(err, &input), errors.As(err, &mismatch), errors.As(err, &notCached),
		errors.As(err, &nonFinite), errors.As(err, &changed):
		return exitInput, "input"
	case errors.As(err, &outExists), errors.As(err, &refused), errors.As(err, &noSpace), errors.As(err, &noMemory):
		return exitRefused, "refused"
	}
	return exitFailed, "failed"
}

// fail prints an error as one line with hints below, or as JSON, and returns
// its exit code.
func (a *App) fail(err error) int {
	code, kind := classify(err)
	if errors.Is(err, errSilent) {
		return code
	}
	message, hints := oneLine(err.Error()), hintsFor(err)
	if code == exitCancelled {
		message = "cancelled: nothing was written"
	}
	if a.json {
		line, _ := json.Marshal(map[string]any{"code": code, "kind": kind, "message": message, "hints": hints})
		fmt.Fprintf(a.Stderr, "%s\n", line)
		return code
	}
	fmt.Fprintf(a.Stderr, "loratool: %s\n", message)
	for _, h := range hints {
		fmt.Fprintf(a.Stderr, "hint: %s\n", oneLine(h))
	}
	return code
}

// hintsFor says what to try.
func hintsFor(err error) []string {
	hints := []string{}
	var h interface{ Hint() string }
	if errors.As(err, &h) && h.Hint() != "" {
		hints = append(hints, h.Hint())
	}
	var mismatch *adapter.MismatchError
	if errors.As(err, &mismatch) && len(mismatch.Near) > 0 {
		hints = append(hints, "nearest names in the base: "+strings.Join(quoted(mismatch.Near), ", "))
	}
	var exists *fsatomic.ExistsError
	if errors.As(err, &exists) {
		hints = append(hints, "--force replaces it once the new output is complete")
	}
	var memory *engine.MemoryError
	if errors.As(err, &memory) {
		hints = append(hints, fmt.Sprintf("--memory %s", formatSize(memory.Need)))
	}
	var nonFinite *engine.NonFiniteError
	if errors.As(err, &nonFinite) && nonFinite.DType == "f16" {
		hints = append(hints, "f16 ends at 65504; --dtype bf16 or f32 has the range")
	}
	return hints
}

func quoted(names []string) []string {
	q := make([]string, len(names))
	for i, n := range names {
		q[i] = fmt.Sprintf("%q", n)
	}
	return q
}

// oneLine makes text from an input harmless: no line breaks, no control
// characters, no marks that reorder text on a terminal.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			return ' '
		case r < ' ' || r >= 0x7f && r < 0xa0 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 || r == 0x200e || r == 0x200f:
			return '\ufffd'
		}
		return r
	}, s)
}

func newExitCodes() *cobra.Command {
	return &cobra.Command{
		Use:   "exit-codes",
		Short: "What the exit codes mean",
		Long: `  0    done
  1    failed while working (I/O, disk full, numerical failure, bug)
  2    wrong usage
  3    verify or diff found problems or differences
  4    an input is malformed, unsupported, incomplete or does not fit the others
  5    refused: output exists, would overwrite an input, not enough disk or memory
  130  cancelled

Scripts must treat codes they don't know as failure.`,
	}
}

func newEnvironment() *cobra.Command {
	return &cobra.Command{
		Use:   "environment",
		Short: "Environment variables that are read",
		Long: `  HF_HOME, HF_HUB_CACHE   where the local hub cache lies (read only)
  LORATOOL_MEMORY         default of --memory
  LORATOOL_JOBS           default of --jobs
  LORATOOL_PROGRESS       seconds between progress lines when stderr is no
                          terminal; 0 for none
  LORATOOL_DEBUG          print a stack with an internal error
  NO_COLOR, TERM=dumb     plain text`,
	}
}
