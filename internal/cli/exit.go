package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/loratool/loratool/diff"
	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/quant/mix"
)

// The exit codes; help exit-codes prints them.
const (
	exitDone      = 0
	exitFailed    = 1
	exitUsage     = 2
	exitFound     = 3
	exitInput     = 4
	exitRefused   = 5
	exitCancelled = 130
)

// errSilent says that what there was to say has been said.
var errSilent = errors.New("")

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
		pattern   *diff.PatternError
		input     *checkpoint.InputError
		mismatch  *adapter.MismatchError
		notCached *hfrepo.NotCachedError
		nonFinite *engine.NonFiniteError
		changed   *engine.InputChangedError
		outExists *fsatomic.ExistsError
		refused   *fsatomic.RefusedError
		noSpace   *fsatomic.SpaceError
		noMemory  *engine.MemoryError
		busy      *fsatomic.BusyError
		found     *foundError
	)
	switch {
	case errors.As(err, &usage), errors.As(err, &pattern):
		return exitUsage, "usage"
	case errors.As(err, &found):
		return exitFound, "found"
	case errors.Is(err, context.Canceled):
		return exitCancelled, "cancelled"
	case errors.As(err, &input), errors.As(err, &mismatch), errors.As(err, &notCached),
		errors.As(err, &nonFinite), errors.As(err, &changed):
		return exitInput, "input"
	case errors.As(err, &outExists), errors.As(err, &refused), errors.As(err, &noSpace), errors.As(err, &noMemory), errors.As(err, &busy):
		return exitRefused, "refused"
	}
	return exitFailed, "failed"
}

// errorJSON is the last line of a command that fails.
type errorJSON struct {
	Type    string   `json:"message_type"`
	Code    int      `json:"code"`
	Kind    string   `json:"kind"`
	Message string   `json:"message"`
	Hints   []string `json:"hints"`
}

// fail prints an error as one line with hints below, or as JSON, and returns
// its exit code.
func (a *App) fail(err error) int {
	code, kind := classify(err)
	if errors.Is(err, errSilent) {
		return code
	}
	var bug *engine.BugError
	if errors.As(err, &bug) && a.Getenv("LORATOOL_DEBUG") != "" {
		fmt.Fprintf(a.Stderr, "%s\n", bug.Stack)
	}
	message, hints := oneLine(err.Error()), hintsFor(err)
	if code == exitCancelled {
		message = "cancelled: nothing was written"
	}
	for i, h := range hints {
		hints[i] = oneLine(h)
	}
	if a.json {
		a.jsonLine(errorJSON{"error", code, kind, message, hints})
		return code
	}
	a.say(bad, "loratool:", message)
	for _, h := range hints {
		a.say(advice, "hint:", h)
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
	var quantizer *mix.RefusalError
	if errors.As(err, &quantizer) {
		hints = append(hints, refusalHints(quantizer)...)
	}
	var memory *engine.MemoryError
	if errors.As(err, &memory) {
		hints = append(hints, "--memory "+enough(memory.Need))
	}
	var bug *engine.BugError
	if errors.As(err, &bug) {
		hints = append(hints, "this is a fault of loratool; please report it with the command and the output of LORATOOL_DEBUG=1")
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
