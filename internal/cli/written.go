package cli

import (
	"context"
	"fmt"

	"github.com/spf13/pflag"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/plan"
	"github.com/loratool/loratool/verify"
)

// This file is the way of every output of every command from its plan to its place:
// run, verify if asked to, see that the inputs are what they were, commit.

// verifyFlag adds --verify to a command that writes.
func verifyFlag(fs *pflag.FlagSet, verify *bool) {
	fs.BoolVar(verify, "verify", false, "read the output back, compute everything again and compare before it appears")
}

// writing is an output that is being made.
type writing struct {
	doing   string // of the run, for progress
	plan    *plan.Plan
	sources []engine.Source
	sink    *checkpoint.Sink
	options engine.Options
	// views are what the sources compute their bytes from, if they do: the first of
	// them reads the inputs.
	views []*engine.View
}

// written is what was found out about a finished output.
type written struct {
	engine.Report
	verified *verifiedJSON // nil if nobody asked
}

// write makes one output of opened inputs, all but its last step, the commit. After an
// error nothing is left of it.
func (a *App) write(ctx context.Context, w *writing, check bool, in *mergeInputs) (written, error) {
	done, err := a.produce(ctx, w, check)
	if err == nil {
		err = in.checkUnchanged()
	}
	if err != nil {
		return done, abort(w.sink, err)
	}
	return done, nil
}

// produce runs the plan, and proves what came of it if asked to.
func (a *App) produce(ctx context.Context, w *writing, check bool) (done written, err error) {
	o := w.options
	progress := a.newProgress(w.doing)
	o.Progress = progress
	done.Report, err = engine.Run(ctx, w.plan, w.sources, oneSink{w.sink}, o)
	progress.Finish()
	if err != nil || !check {
		return done, err
	}
	done.verified, err = a.prove(ctx, w)
	return done, err
}

// prove computes an output again. Where its bytes are made from a view, what the view
// computes is compared with float64 first, and then what was written with what is made
// from the view: so each byte follows from numbers that are right.
func (a *App) prove(ctx context.Context, w *writing) (*verifiedJSON, error) {
	o := w.options
	progress := a.newProgress("verifying")
	defer progress.Finish()
	o.Progress = progress
	all := new(verifiedJSON)
	for _, v := range w.views {
		r, err := verify.View(ctx, v, o)
		if err != nil {
			return nil, err
		}
		all.add(r)
	}
	r, err := verify.Written(ctx, w.plan, w.sources, w.sink, o)
	if err != nil {
		return nil, err
	}
	all.add(r)
	all.Encoded = encodedBy(w)
	all.Copied -= all.Encoded
	return all, nil
}

// encodedBy counts the tensors that are copied from a source that encodes them.
func encodedBy(w *writing) int {
	n := 0
	for i := range w.plan.Steps {
		s := &w.plan.Steps[i]
		if e, ok := w.sources[s.Read.Input].(interface{ Encodes(tensor string) bool }); ok && s.Copies() && e.Encodes(s.Read.Tensor) {
			n++
		}
	}
	return n
}

// checkProof fails if there is not the memory to compute an output again, which is to be
// known before it is made.
func checkProof(p *plan.Plan, views []*engine.View, check bool, o engine.Options) error {
	if !check {
		return nil
	}
	plans := []*plan.Plan{p}
	for _, v := range views {
		of, _ := v.Computes()
		plans = append(plans, of)
	}
	for _, p := range plans {
		if _, err := engine.Budget(verify.Again(p), o); err != nil {
			return err
		}
	}
	return nil
}

// verifiedJSON is what --verify found.
type verifiedJSON struct {
	Copied   int   `json:"copied_tensors"`
	Encoded  int   `json:"encoded_tensors,omitempty"`
	Computed int   `json:"computed_tensors"`
	Values   int64 `json:"computed_values"`
	Nearest  int64 `json:"nearest_values"`
}

func (v *verifiedJSON) add(r verify.Result) {
	v.join(&verifiedJSON{Copied: r.Copied, Computed: r.Computed, Values: r.Values, Nearest: r.Nearest})
}

func (v *verifiedJSON) join(w *verifiedJSON) {
	v.Copied += w.Copied
	v.Encoded += w.Encoded
	v.Computed += w.Computed
	v.Values += w.Values
	v.Nearest += w.Nearest
}

// tensors counts those of the output. What is encoded was computed before, and is one.
func (v *verifiedJSON) tensors() int { return v.Copied + max(v.Encoded, v.Computed) }

// noteVerified says what --verify has found, if it was asked for.
func (a *App) noteVerified(v *verifiedJSON) {
	if v == nil {
		return
	}
	text := fmt.Sprintf("verified: %d tensors are the input's bytes; ", v.Copied)
	if v.Encoded > 0 {
		text += fmt.Sprintf("%d were encoded again to the same bytes; ", v.Encoded)
	}
	text += fmt.Sprintf("%d computed again in float64", v.Computed)
	if v.Values > 0 {
		text += ": " + percent(number(v.Nearest)/number(v.Values)) + " of their values are the nearest the type has, the rest within a float32 sum of it"
	}
	a.note("%s", text)
}
