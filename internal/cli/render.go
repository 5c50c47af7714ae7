package cli

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"text/tabwriter"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/plan"
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
	planJSON struct {
		Schema      string          `json:"schema"`
		Inputs      []inputJSON     `json:"inputs"`
		Outputs     []outputJSON    `json:"outputs"`
		Decisions   []plan.Decision `json:"decisions"`
		Steps       map[string]int  `json:"steps"`
		PeakMemory  int64           `json:"peak_memory_bytes"`
		OutputBytes int64           `json:"output_bytes"`
		FreeDisk    *int64          `json:"free_disk_bytes,omitempty"`
		Exists      bool            `json:"output_exists"`
	}
)

// describe turns a plan into its published form.
func (a *App) describe(p *plan.Plan, l *checkpoint.Layout, b engine.Allotment) planJSON {
	doc := planJSON{
		Schema: "loratool.plan/v1", Decisions: p.Decisions, Steps: stepKinds(p),
		PeakMemory: b.Peak, OutputBytes: l.Size(), Exists: pathExists(l.Path),
	}
	if doc.Decisions == nil {
		doc.Decisions = []plan.Decision{}
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
	for i := range l.Files {
		f := &l.Files[i]
		o := outputJSON{Path: l.FilePath(f.Name), Bytes: f.Size(), Tensors: []tensorJSON{}}
		for _, t := range f.Tensors() {
			o.Tensors = append(o.Tensors, tensorJSON{t.Name, t.DType.String(), shapeOf(t.Shape)})
		}
		doc.Outputs = append(doc.Outputs, o)
	}
	for _, s := range l.Sidecars {
		doc.Outputs = append(doc.Outputs, outputJSON{Path: l.FilePath(s.Name), Bytes: s.Size, Tensors: []tensorJSON{}})
	}
	if free, err := a.FS.Free(filepath.Dir(filepath.Clean(l.Path))); err == nil {
		doc.FreeDisk = &free
	}
	return doc
}

// shapeOf makes an empty list, not null, of a scalar's shape.
func shapeOf(shape []int64) []int64 {
	if shape == nil {
		return []int64{}
	}
	return shape
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

// printPlan prints what --dry-run asks for.
func (a *App) printPlan(p *plan.Plan, l *checkpoint.Layout, b engine.Allotment) error {
	doc := a.describe(p, l, b)
	if a.json {
		return a.printJSON(doc)
	}
	w := tabwriter.NewWriter(a.Stdout, 0, 4, 2, ' ', 0)
	for _, in := range doc.Inputs {
		weight := ""
		if in.Weight != nil {
			weight = fmt.Sprintf("weight %g", *in.Weight)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", in.Role, oneLine(in.Path), formatSize(in.Bytes), weight)
	}
	for _, o := range doc.Outputs {
		tensors := ""
		if len(o.Tensors) > 0 {
			tensors = fmt.Sprintf("%d tensors", len(o.Tensors))
		}
		fmt.Fprintf(w, "write\t%s\t%d bytes\t%s\n", oneLine(o.Path), o.Bytes, tensors)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	a.printTensorPlan(p)
	fmt.Fprintf(a.Stdout, "steps: %s\n", countList(doc.Steps))
	for _, d := range doc.Decisions {
		fmt.Fprintf(a.Stdout, "decision: %s%s\n", oneLine(d.Message), tensorList(d.Tensors))
	}
	fmt.Fprintf(a.Stdout, "peak memory %s, output %s", formatSize(doc.PeakMemory), formatSize(doc.OutputBytes))
	if doc.FreeDisk != nil {
		fmt.Fprintf(a.Stdout, ", free disk %s", formatSize(*doc.FreeDisk))
		if *doc.FreeDisk < doc.OutputBytes {
			fmt.Fprint(a.Stdout, " (NOT ENOUGH)")
		}
	}
	fmt.Fprintln(a.Stdout)
	if doc.Exists {
		fmt.Fprintf(a.Stdout, "%s exists: the run needs --force\n", oneLine(l.Path))
	}
	return nil
}

// printTensorPlan lists the tensors that change, with what is done to them.
func (a *App) printTensorPlan(p *plan.Plan) {
	w := tabwriter.NewWriter(a.Stdout, 0, 4, 2, ' ', 0)
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
		BaseNorm     float64 `json:"base_norm"`
		DeltaNorm    float64 `json:"delta_norm"`
		RoundingNorm float64 `json:"rounding_norm"`
		Survival     float64 `json:"delta_survival"`
	}
	summaryJSON struct {
		Tensors   int            `json:"tensors"`
		Steps     map[string]int `json:"steps"`
		DeltaNorm float64        `json:"delta_norm"`
		Survival  float64        `json:"delta_survival"`
		Low       []string       `json:"low_survival"`
	}
	mergeJSON struct {
		Schema    string            `json:"schema"`
		Output    string            `json:"output"`
		Bytes     int64             `json:"bytes"`
		Decisions []plan.Decision   `json:"decisions"`
		Tensors   []reportJSON      `json:"tensors"`
		Summary   summaryJSON       `json:"summary"`
		Inputs    map[string]string `json:"sha256"`
		Verified  *verifiedJSON     `json:"verified,omitempty"`
	}
	verifiedJSON struct {
		Copied   int   `json:"copied_tensors"`
		Computed int   `json:"computed_tensors"`
		Values   int64 `json:"computed_values"`
		Nearest  int64 `json:"nearest_values"`
	}
)

// printReport prints what a merge did.
func (a *App) printReport(m *merge.Merge, r mergeReport) error {
	doc := mergeJSON{
		Schema: "loratool.merge/v1", Output: m.Layout.Path, Bytes: m.Layout.Size(),
		Decisions: m.Plan.Decisions, Tensors: []reportJSON{}, Inputs: r.Hashes,
		Summary: summarize(m.Plan, r.Report),
	}
	if doc.Decisions == nil {
		doc.Decisions = []plan.Decision{}
	}
	for _, t := range r.Tensors {
		doc.Tensors = append(doc.Tensors, reportJSON{t.Tensor, shapeOf(t.Shape), t.DType, t.BaseNorm, t.DeltaNorm, t.RoundingNorm, t.Survival})
	}
	if v := r.verified; v != nil {
		doc.Verified = &verifiedJSON{v.Copied, v.Computed, v.Values, v.Nearest}
	}
	if a.json {
		return a.printJSON(doc)
	}
	fmt.Fprintln(a.Stdout, doc.Output)
	if a.quiet {
		return nil
	}
	for _, d := range doc.Decisions {
		fmt.Fprintf(a.Stderr, "loratool: %s%s\n", oneLine(d.Message), tensorList(d.Tensors))
	}
	fmt.Fprintf(a.Stderr, "loratool: %d tensors (%s), %s; the change has norm %.4g and %s of it survived rounding\n",
		doc.Summary.Tensors, countList(doc.Summary.Steps), formatSize(doc.Bytes), doc.Summary.DeltaNorm, percent(doc.Summary.Survival))
	if v := doc.Verified; v != nil {
		fmt.Fprintf(a.Stderr, "loratool: verified: %d tensors are the input's bytes; %d computed again in float64: %s of their values are the nearest the type has, the rest within a float32 sum of it\n",
			v.Copied, v.Computed, percent(float64(v.Nearest)/float64(max(v.Values, 1))))
	}
	if low := doc.Summary.Low; len(low) > 0 {
		fmt.Fprintf(a.Stderr, "loratool: warning: less than %s of the change survived in %d tensors%s\n",
			percent(survivalWarning), len(low), tensorList(low))
		fmt.Fprintf(a.Stderr, "hint: --dtype f32 keeps it all; the adapter's change is small against the steps of the output type\n")
	}
	return nil
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
	s.DeltaNorm = math.Sqrt(delta)
	if delta > 0 {
		s.Survival = kept / delta
	}
	return s
}

func percent(share float64) string { return fmt.Sprintf("%.2f%%", 100*share) }

// printJSON prints the one document of a command.
func (a *App) printJSON(doc any) error {
	e := json.NewEncoder(a.Stdout)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(doc)
}

func pathExists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
