package cli

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"text/tabwriter"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/extract"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/plan"
	"github.com/loratool/loratool/report"
)

// survivalWarning is the share of a change below which a report warns: more
// than a twentieth of the fine-tune was lost by rounding.
const survivalWarning = 0.95

type (
	tensorJSON struct {
		Name  string  `json:"name"`
		DType string  `json:"dtype"`
		Shape []int64 `json:"shape"`
	}
	outputJSON struct {
		Path    string       `json:"path"`
		Bytes   int64        `json:"bytes"`
		Tensors []tensorJSON `json:"tensors"`
	}
	inputJSON struct {
		Role     string   `json:"role"`
		Name     string   `json:"name"`
		Path     string   `json:"path"`
		Revision string   `json:"revision,omitempty"`
		Weight   *float64 `json:"weight,omitempty"`
		Bytes    int64    `json:"bytes"`
	}
	decisionJSON struct {
		Code    string   `json:"code"`
		Message string   `json:"message"`
		Tensors []string `json:"tensors"`
	}
	planJSON struct {
		Schema      string         `json:"schema"`
		Inputs      []inputJSON    `json:"inputs"`
		Outputs     []outputJSON   `json:"outputs"`
		Decisions   []decisionJSON `json:"decisions"`
		Steps       map[string]int `json:"steps"`
		PeakMemory  int64          `json:"peak_memory_bytes"`
		OutputBytes int64          `json:"output_bytes"`
		FreeDisk    *int64         `json:"free_disk_bytes,omitempty"`
		Exists      bool           `json:"output_exists"`
		Refusal     string         `json:"refusal,omitempty"`
	}
)

// describe turns a plan into its published form.
func (a *App) describe(p *plan.Plan, l *checkpoint.Layout, b engine.Allotment, refusal error) planJSON {
	doc := planJSON{
		Schema: "loratool.plan/v1", Decisions: decisionsOf(p), Steps: stepKinds(p),
		PeakMemory: b.Peak, OutputBytes: l.Size(), Exists: pathExists(l.Path),
	}
	if refusal != nil {
		doc.Refusal = oneLine(refusal.Error())
	}
	for _, in := range p.Inputs {
		j := inputJSON{Role: in.Role, Name: in.Name, Path: in.Path, Revision: in.Note}
		if in.Role == "adapter" {
			j.Weight = &in.Weight
		}
		for _, f := range in.Files {
			j.Bytes += f.Size
		}
		doc.Inputs = append(doc.Inputs, j)
	}
	doc.Outputs = outputsOf(l)
	if free, err := a.FS.Free(filepath.Dir(filepath.Clean(l.Path))); err == nil {
		doc.FreeDisk = &free
	}
	return doc
}

// outputsOf lists the files of a layout.
func outputsOf(l *checkpoint.Layout) []outputJSON {
	var all []outputJSON
	for i := range l.Files {
		f := &l.Files[i]
		o := outputJSON{Path: l.FilePath(f.Name), Bytes: f.Size(), Tensors: []tensorJSON{}}
		for _, t := range f.Tensors() {
			o.Tensors = append(o.Tensors, tensorJSON{t.Name, t.DType.String(), shapeOf(t.Shape)})
		}
		if g := f.GGUF(); g != nil {
			for i, t := range g.Tensors() { // in the same order
				o.Tensors[i] = tensorJSON{t.Name, t.Type.String(), shapeOf(t.Shape)}
			}
		}
		all = append(all, o)
	}
	for _, s := range l.Sidecars {
		all = append(all, outputJSON{Path: l.FilePath(s.Name), Bytes: s.Size, Tensors: []tensorJSON{}})
	}
	return all
}

// shapeOf makes an empty list, not null, of a scalar's shape.
func shapeOf(shape []int64) []int64 {
	if shape == nil {
		return []int64{}
	}
	return shape
}

// decisionsOf makes lists where a plan has nothing.
func decisionsOf(p *plan.Plan) []decisionJSON {
	all := []decisionJSON{}
	for _, d := range p.Decisions {
		all = append(all, decisionJSON{d.Code, d.Message, append([]string{}, d.Tensors...)})
	}
	return all
}

// stepKinds counts the steps by what they do.
func stepKinds(p *plan.Plan) map[string]int {
	kinds := make(map[string]int)
	for i := range p.Steps {
		s := &p.Steps[i]
		switch {
		case s.Copies():
			kinds["copy"]++
		case len(s.Stages) == 0:
			kinds["cast"]++
		default:
			kinds[s.Stages[len(s.Stages)-1].Op.Kind()]++
		}
	}
	return kinds
}

// printPlan prints what --dry-run asks for: what the run would do, and why it
// would not.
func (a *App) printPlan(p *plan.Plan, l *checkpoint.Layout, b engine.Allotment, refusal error) error {
	doc := a.describe(p, l, b, refusal)
	if a.json {
		a.printJSON(doc)
		return nil
	}
	a.printInputsAndOutputs(doc)
	a.printTensorPlan(p)
	a.printPlanEnd(doc, "steps", refusal)
	return nil
}

// printInputsAndOutputs is the beginning of a plan.
func (a *App) printInputsAndOutputs(doc planJSON) {
	w := tabwriter.NewWriter(a.out, 0, 4, 2, ' ', 0)
	for _, in := range doc.Inputs {
		weight := ""
		if in.Weight != nil {
			weight = fmt.Sprintf("\tweight %g", *in.Weight)
		}
		fmt.Fprintf(w, "%s\t%s\t%s%s\n", in.Role, oneLine(in.Path), formatSize(in.Bytes), weight)
	}
	for _, o := range doc.Outputs {
		tensors := ""
		if len(o.Tensors) > 0 {
			tensors = fmt.Sprintf("\t%d tensors", len(o.Tensors))
		}
		fmt.Fprintf(w, "write\t%s\t%d bytes%s\n", oneLine(o.Path), o.Bytes, tensors)
	}
	w.Flush() // a.out keeps what goes wrong
}

// printPlanEnd is what follows the table of a plan. What is counted is steps or
// tensors.
func (a *App) printPlanEnd(doc planJSON, what string, refusal error) {
	fmt.Fprintf(a.out, "%s: %s\n", what, countList(doc.Steps))
	a.printDecisions(doc.Decisions)
	fmt.Fprintf(a.out, "peak memory %s, output %s", formatSize(doc.PeakMemory), formatSize(doc.OutputBytes))
	if doc.FreeDisk != nil {
		fmt.Fprintf(a.out, ", free disk %s", formatSize(*doc.FreeDisk))
	}
	fmt.Fprintln(a.out)
	a.printRefusal(doc.Refusal, refusal)
}

func (a *App) printDecisions(all []decisionJSON) {
	p := a.paletteOf(a.out)
	for _, d := range all {
		fmt.Fprintf(a.out, "%s %s%s\n", p.paint(strong, "decision:"), oneLine(d.Message), tensorList(d.Tensors))
	}
}

// printRefusal says why the run of a plan would stop, nil for no reason.
func (a *App) printRefusal(message string, refusal error) {
	if refusal == nil {
		return
	}
	p := a.paletteOf(a.out)
	fmt.Fprintf(a.out, "%s %s\n", p.paint(bad, "the run would stop:"), message)
	for _, h := range hintsFor(refusal) {
		fmt.Fprintf(a.out, "%s %s\n", p.paint(advice, "hint:"), oneLine(h))
	}
}

// printTensorPlan lists the tensors that change, with what is done to them.
func (a *App) printTensorPlan(p *plan.Plan) {
	w := tabwriter.NewWriter(a.out, 0, 4, 2, ' ', 0)
	for i := range p.Steps {
		s := &p.Steps[i]
		if s.Copies() && s.Read.Tensor == s.Write.Tensor && s.Read.Input == 0 {
			continue
		}
		var ops []string
		for _, st := range s.Stages {
			ops = append(ops, st.Op.Kind())
		}
		if s.Read.Input != 0 {
			ops = append([]string{"read from adapter"}, ops...)
		}
		if len(ops) == 0 {
			ops = []string{"copy of " + s.Read.Tensor}
			if s.Read.Tensor == s.Write.Tensor {
				ops = []string{"cast"}
			}
		}
		from := ""
		if s.Read.Spec.DType != s.Write.DType {
			from = s.Read.Spec.DType.String() + " -> "
		}
		fmt.Fprintf(w, "  %s\t%s\t%s%s\t%s\n", oneLine(s.Write.Tensor), s.Read.Spec.Shape, from, s.Write.DType, oneLine(strings.Join(ops, ", ")))
	}
	w.Flush()
}

// countList writes counts by name, most first.
func countList(counts map[string]int) string {
	names := make([]string, 0, len(counts))
	for n := range counts {
		names = append(names, n)
	}
	sort.Slice(names, func(i, j int) bool {
		return counts[names[i]] > counts[names[j]] || counts[names[i]] == counts[names[j]] && names[i] < names[j]
	})
	for i, n := range names {
		names[i] = fmt.Sprintf("%d %s", counts[n], n)
	}
	return strings.Join(names, ", ")
}

// tensorList names a few tensors of many.
func tensorList(names []string) string {
	if len(names) == 0 {
		return ""
	}
	const shown = 4
	list := strings.Join(names[:min(len(names), shown)], ", ")
	if len(names) > shown {
		list += fmt.Sprintf(" and %d more", len(names)-shown)
	}
	return " [" + oneLine(list) + "]"
}

type (
	reportJSON struct {
		Tensor       string  `json:"tensor"`
		Shape        []int64 `json:"shape"`
		DType        string  `json:"dtype"`
		BaseNorm     number  `json:"base_norm"`
		DeltaNorm    number  `json:"delta_norm"`
		RoundingNorm number  `json:"rounding_norm"`
		Survival     number  `json:"delta_survival"`
	}
	summaryJSON struct {
		Tensors   int            `json:"tensors"`
		Steps     map[string]int `json:"steps"`
		DeltaNorm number         `json:"delta_norm"`
		Survival  number         `json:"delta_survival"`
		Low       []string       `json:"low_survival"`
	}
	mergeJSON struct {
		Schema    string            `json:"schema"`
		Output    string            `json:"output"`
		Bytes     int64             `json:"bytes"`
		Decisions []decisionJSON    `json:"decisions"`
		Tensors   []reportJSON      `json:"tensors"`
		Summary   summaryJSON       `json:"summary"`
		Inputs    map[string]string `json:"sha256"`
		Verified  *verifiedJSON     `json:"verified,omitempty"`
		TrainBase *trainBaseJSON    `json:"train_base,omitempty"`
	}
)

// printReport prints what a merge did.
func (a *App) printReport(m *merge.Merge, r mergeReport, f *mergeFlags) error {
	doc := mergeJSON{
		Schema: "loratool.merge/v1", Output: m.Layout.Path, Bytes: m.Layout.Size(),
		Decisions: decisionsOf(m.Plan), Tensors: []reportJSON{}, Inputs: r.Hashes,
		Summary: summarize(m.Plan, r.Report), Verified: r.verified, TrainBase: r.trained,
	}
	for _, t := range r.Tensors {
		doc.Tensors = append(doc.Tensors, reportOf(t))
	}
	err := f.page.write(a, func() *report.Page { return mergePage(&doc) })
	if a.json {
		a.printJSON(doc)
		return err
	}
	fmt.Fprintln(a.out, doc.Output)
	if f.run.verbose {
		a.printTensorReport(doc.Tensors)
	}
	if !a.quiet {
		a.printSummary(doc)
	}
	return err
}

func reportOf(t engine.TensorReport) reportJSON {
	return reportJSON{
		t.Tensor, shapeOf(t.Shape), t.DType,
		number(t.BaseNorm), number(t.DeltaNorm), number(t.RoundingNorm), number(t.Survival),
	}
}

// printTensorReport is the table of --verbose.
func (a *App) printTensorReport(tensors []reportJSON) {
	w := tabwriter.NewWriter(a.Stderr, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "tensor\tdtype\tshape\tchange/base\trounding/change\tsurvived")
	for _, t := range tensors {
		fmt.Fprintf(w, "%s\t%s\t%v\t%s\t%s\t%s\n", oneLine(t.Tensor), t.DType, tensor.Shape(t.Shape),
			ratio(t.DeltaNorm, t.BaseNorm), ratio(t.RoundingNorm, t.DeltaNorm), survived(t.Survival))
	}
	w.Flush()
}

// printSummary says on stderr what a person wants to know.
func (a *App) printSummary(doc mergeJSON) {
	for _, d := range doc.Decisions {
		a.note("%s%s", d.Message, tensorList(d.Tensors))
	}
	a.note("%d tensors (%s), %s; the change has norm %.4g and %s of it survived rounding",
		doc.Summary.Tensors, countList(doc.Summary.Steps), formatSize(doc.Bytes), doc.Summary.DeltaNorm, survived(doc.Summary.Survival))
	if t := doc.TrainBase; t != nil {
		t.print(a)
	}
	a.noteVerified(doc.Verified)
	a.noteLow(doc.Summary.Low, "--dtype f32 keeps it all; the adapter's change is small against the steps of the output type")
}

// noteLow warns of tensors that have lost a good part of their change, if there are any.
func (a *App) noteLow(low []string, hint string) {
	if len(low) > 0 {
		a.note("warning: less than %s of the change survived in %d tensors%s", percent(survivalWarning), len(low), tensorList(low))
		a.say(advice, "hint:", hint)
	}
}

// summarize adds the report up over the model.
func summarize(p *plan.Plan, r engine.Report) summaryJSON {
	s := summaryJSON{Tensors: len(p.Steps), Steps: stepKinds(p), Survival: 1, Low: []string{}}
	var delta, kept float64
	for _, t := range r.Tensors {
		square := t.DeltaNorm * t.DeltaNorm
		delta += square
		kept += t.Survival * square
		if t.Survival < survivalWarning {
			s.Low = append(s.Low, t.Tensor)
		}
	}
	s.DeltaNorm = number(math.Sqrt(delta))
	if delta > 0 {
		s.Survival = number(kept / delta)
	}
	return s
}

func percent(share number) string { return extract.Percent(float64(share)) }

// survived writes how much of a change is left, which may be a little more than all.
func survived(share number) string {
	if math.IsNaN(float64(share)) {
		return "-" // not measured
	}
	return fmt.Sprintf("%.2f%%", 100*share)
}

// ratio writes a/b, or a dash where it says nothing.
func ratio(a, b number) string {
	r := float64(a / b)
	if math.IsNaN(r) || math.IsInf(r, 0) {
		return "-"
	}
	return fmt.Sprintf("%.3g", r)
}

func pathExists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
