package cli

import (
	"context"
	"fmt"
	"math"
	"runtime/debug"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/plan"
	"github.com/loratool/loratool/report"
)

// encodedMerge is a merge whose output is stored in codes: what it changes is computed
// by one plan, read by a view that encodes it, and copied from there by another.
type encodedMerge struct {
	changes *plan.Plan     // makes the numbers
	views   []*engine.View // of them: one, or what reads from the one before
	reports func() []engine.TensorReport
	plan    *plan.Plan // copies what is stored
	layout  *checkpoint.Layout
	source  engine.Source // of the copies
	memory  int64         // that the source holds beside what it reads from
	counts  map[string]int
	key     string // of the run, for --resume

	// losses are what encoding changed, by tensor; they are known after the run.
	losses func() map[string]encodingLoss
	// metadata is what the headers say when the hashes of the inputs are known.
	metadata func(hashes map[string]string) map[string]string
}

// encodingLoss is what became of a tensor: its type, ||Q - W'||, and the share of the
// change that is left in Q.
type encodingLoss struct {
	kind           string
	norm, survival float64
}

// sharesForMerged of the memory are for the numbers, the rest for the copies, which
// need little.
const (
	sharesForMerged = 3
	sharesInAll     = 4
)

// viewOf makes the view of what a merge changes, with its share of the memory.
func viewOf(changes *plan.Plan, specs []tensor.Spec, in []checkpoint.Checkpoint, o engine.Options) (*engine.View, error) {
	o.Memory = o.Memory / sharesInAll * sharesForMerged
	return engine.NewView(changes, specs, sourcesOf(in), o)
}

func sourcesOf(in []checkpoint.Checkpoint) []engine.Source {
	sources := make([]engine.Source, len(in))
	for i, c := range in {
		sources[i] = c
	}
	return sources
}

// runEncoded runs a planned merge, or prints it.
func (a *App) runEncoded(ctx context.Context, e *encodedMerge, inputs *mergeInputs, f *mergeFlags, o engine.Options) error {
	beside := e.memory
	for _, v := range e.views {
		beside += v.Memory()
	}
	o.Memory = max(o.Memory-beside, 1)
	budget, err := engine.Budget(e.plan, o)
	if err != nil {
		return err
	}
	budget.Peak += beside
	if err := checkProof(e.plan, e.views, f.verify, o); err != nil {
		return err
	}
	refusal := a.refusal(e.layout, inputs, f.run.force)
	if f.run.dryRun {
		return a.printEncodedPlan(e, budget, refusal)
	}
	if refusal != nil {
		return refusal
	}
	report, err := a.writeEncoded(ctx, e, inputs, f, o, beside)
	if err != nil {
		return err
	}
	return a.printEncodedReport(e, report, f)
}

// writeEncoded runs the plan and puts its output in place.
func (a *App) writeEncoded(ctx context.Context, e *encodedMerge, inputs *mergeInputs, f *mergeFlags, o engine.Options, beside int64) (written, error) {
	// The collector keeps the garbage of readers within the budget too.
	debug.SetMemoryLimit(o.Memory + beside + (o.Memory+beside)/4 + 32<<20)
	sink, err := a.openSink(e.layout, e.plan, e.key, &f.run, &o)
	if err != nil {
		return written{}, err
	}
	w := &writing{doing: "merging", plan: e.plan, sources: []engine.Source{e.source}, sink: sink, options: o, views: e.views}
	done, err := a.write(ctx, w, f.verify, inputs)
	if err != nil {
		return done, err
	}
	return done, a.commit(sink, e.metadata(done.Hashes))
}

// printEncodedPlan prints what --dry-run asks for.
func (a *App) printEncodedPlan(e *encodedMerge, b engine.Allotment, refusal error) error {
	doc := a.describe(e.plan, e.layout, b, refusal)
	doc.Steps = e.counts
	if a.json {
		a.printJSON(doc)
		return nil
	}
	a.printInputsAndOutputs(doc)
	a.printTensorPlan(e.changes)
	a.printPlanEnd(doc, "tensors", refusal)
	return nil
}

// isLow reports whether a good part of a change was lost. The errors e of codes are large
// beside a small change D, and what they happen to have in its direction, <e,D>/||D||^2,
// is of the size ||e||/(sqrt(n)·||D||) if they do not know of it: six of that are allowed
// for, as verify does.
func isLow(t engine.TensorReport) bool {
	const sigmas = 6
	n, _ := tensor.Shape(t.Shape).NumElements()
	chance := t.RoundingNorm / (math.Sqrt(float64(n)) * t.DeltaNorm)
	return t.Survival+sigmas*chance < survivalWarning
}

// printEncodedReport prints what the merge did. Of a change that is stored in codes is
// said how far they are off, and how much of it is left.
func (a *App) printEncodedReport(e *encodedMerge, r written, f *mergeFlags) error {
	doc := mergeJSON{
		Schema: "loratool.merge/v1", Output: e.layout.Path, Bytes: e.layout.Size(), Decisions: decisionsOf(e.plan),
		Tensors: []reportJSON{}, Inputs: r.Hashes, Summary: summaryJSON{Tensors: len(e.plan.Steps), Steps: e.counts, Low: []string{}},
		Verified: r.verified,
	}
	losses := e.losses()
	var change, lost float64
	survival := 0.0
	for _, t := range e.reports() {
		if loss, ok := losses[t.Tensor]; ok {
			t.DType, t.RoundingNorm, t.Survival = loss.kind, loss.norm, loss.survival
		}
		if isLow(t) {
			doc.Summary.Low = append(doc.Summary.Low, t.Tensor)
		}
		doc.Tensors = append(doc.Tensors, reportOf(t))
		change += t.DeltaNorm * t.DeltaNorm
		lost += t.RoundingNorm * t.RoundingNorm
		survival += t.Survival * t.DeltaNorm * t.DeltaNorm
	}
	doc.Summary.DeltaNorm, doc.Summary.Survival = number(math.Sqrt(change)), number(survival/change)
	err := f.page.write(a, func() *report.Page { return mergePage(&doc) })
	if a.json {
		a.printJSON(doc)
		return err
	}
	fmt.Fprintln(a.out, doc.Output)
	if f.run.verbose {
		a.printTensorReport(doc.Tensors)
	}
	if a.quiet {
		return err
	}
	for _, d := range doc.Decisions {
		a.note("%s%s", d.Message, tensorList(d.Tensors))
	}
	a.note("%d tensors (%s), %s; the change has norm %.4g, and what storing it adds %.4g: %s of it; %s of the change survived",
		doc.Summary.Tensors, countList(doc.Summary.Steps), formatSize(doc.Bytes), doc.Summary.DeltaNorm,
		math.Sqrt(lost), ratio(number(math.Sqrt(lost)), doc.Summary.DeltaNorm), survived(doc.Summary.Survival))
	a.noteLow(doc.Summary.Low, "a wider --type keeps more; the adapter's change is small against the steps of the codes")
	a.noteVerified(doc.Verified)
	n := 0
	for i := range e.changes.Steps {
		if e.changes.Steps[i].Judge {
			n++
		}
	}
	if len(doc.Tensors) < n {
		a.note("the figures are those of %d of %d changed tensors: the others were complete before", len(doc.Tensors), n)
	}
	return err
}
