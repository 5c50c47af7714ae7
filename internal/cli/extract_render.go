package cli

import (
	"fmt"
	"text/tabwriter"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/extract"
	"github.com/loratool/loratool/report"
)

type (
	moduleJSON struct {
		Name       string  `json:"name"`
		Role       string  `json:"role"`
		Form       string  `json:"form"`
		Shape      []int64 `json:"shape"`
		Rank       int64   `json:"rank"`
		Needed     int64   `json:"needed_rank"`
		Kept       number  `json:"kept_energy"`
		Residual   number  `json:"residual"`
		Best       number  `json:"best_residual"`
		Excess     number  `json:"excess"`
		Rounding   number  `json:"rounding_bound"`
		BaseNorm   number  `json:"base_norm"`
		DeltaNorm  number  `json:"delta_norm"`
		Effective  number  `json:"effective_rank"`
		Stable     number  `json:"stable_rank"`
		Entropy    number  `json:"entropy_rank"`
		RanksExact bool    `json:"ranks_exact"`
		Capped     bool    `json:"capped"`
		Converged  bool    `json:"converged"`
		Parameters int64   `json:"parameters"`
		Padding    int64   `json:"padding"`
		Bytes      int64   `json:"bytes"`
	}
	certificateJSON struct {
		Share      number       `json:"share"`
		Residual   number       `json:"residual"`
		LeftOut    number       `json:"left_out"`
		DeltaNorm  number       `json:"delta_norm"`
		Parameters int64        `json:"parameters"`
		Padding    int64        `json:"padding"`
		Bytes      int64        `json:"bytes"`
		LowRank    bool         `json:"low_rank"`
		Sentence   string       `json:"sentence"`
		Modules    []moduleJSON `json:"modules"`
	}
	comparedJSON struct {
		Tensor   string `json:"tensor"`
		Values   int64  `json:"values"`
		Equal    int64  `json:"equal"`
		MaxAbs   number `json:"max_abs"`
		Relative number `json:"relative"`
	}
	mergeCheckJSON struct {
		Values   int64          `json:"values"`
		Equal    int64          `json:"equal"`
		MaxAbs   number         `json:"max_abs"`
		Relative number         `json:"relative"`
		Error    number         `json:"error_norm"`
		Tensors  []comparedJSON `json:"tensors"`
	}
	extractJSON struct {
		Schema      string            `json:"schema"`
		Output      string            `json:"output"`
		Bytes       int64             `json:"bytes"`
		Decisions   []decisionJSON    `json:"decisions"`
		Certificate certificateJSON   `json:"certificate"`
		MergeCheck  *mergeCheckJSON   `json:"merge_check,omitempty"`
		Inputs      map[string]string `json:"sha256"`
		Verified    *verifiedJSON     `json:"verified,omitempty"`
	}
	extractPlanJSON struct {
		planJSON
		Certificate certificateJSON `json:"certificate"`
	}
	pointJSON struct {
		Rank       int64  `json:"rank"`
		Energy     number `json:"kept_energy"`
		Residual   number `json:"residual"`
		Worst      number `json:"worst_residual"`
		WorstName  string `json:"worst_module"`
		Parameters int64  `json:"parameters"`
		Bytes      int64  `json:"bytes"`
	}
	sweepJSON struct {
		Schema string      `json:"schema"`
		Points []pointJSON `json:"points"`
	}
)

func certificateOf(c *extract.Certificate) certificateJSON {
	doc := certificateJSON{
		Share: number(c.Share), Residual: number(c.Residual), LeftOut: number(c.LeftOut), DeltaNorm: number(c.DeltaNorm),
		Parameters: c.Parameters, Padding: c.Padding, Bytes: c.Bytes, LowRank: c.LowRank, Sentence: c.Sentence, Modules: []moduleJSON{},
	}
	for _, m := range c.Modules {
		doc.Modules = append(doc.Modules, moduleJSON{
			m.Name, m.Role, m.Form, shapeOf(m.Shape), m.Rank, m.Needed, number(m.Kept), number(m.Residual), number(m.Best),
			number(m.Excess), number(m.Rounding), number(m.BaseNorm), number(m.DeltaNorm),
			number(m.Ranks.Effective), number(m.Ranks.Stable), number(m.Ranks.Entropy), m.Ranks.Exact,
			m.Capped, m.Converged, m.Parameters, m.Padding, m.Bytes,
		})
	}
	return doc
}

func checkOf(tensors []extract.Compared, all extract.Compared) *mergeCheckJSON {
	doc := &mergeCheckJSON{all.Values, all.Equal, number(all.MaxAbs), number(all.Relative), number(all.Error), []comparedJSON{}}
	for _, t := range tensors {
		doc.Tensors = append(doc.Tensors, comparedJSON{t.Tensor, t.Values, t.Equal, number(t.MaxAbs), number(t.Relative)})
	}
	return doc
}

// printExtraction prints what an extraction did.
func (a *App) printExtraction(x *extract.Extraction, r written, check *mergeCheckJSON, verbose bool, page *pageFlag) error {
	doc := extractJSON{
		Schema: "loratool.extract/v1", Output: x.Layout.Path, Bytes: x.Layout.Size(), Decisions: decisionsOf(x.Plan),
		Certificate: certificateOf(&x.Certificate), MergeCheck: check, Inputs: r.Hashes, Verified: r.verified,
	}
	err := page.write(a, func() *report.Page { return extractPage(&doc, &x.Certificate) })
	if a.json {
		a.printJSON(doc)
		return err
	}
	fmt.Fprintln(a.out, doc.Output)
	if verbose {
		w := tabwriter.NewWriter(a.Stderr, 0, 4, 2, ' ', 0)
		writeModules(w, doc.Certificate.Modules)
		w.Flush()
	}
	if a.quiet {
		return err
	}
	for _, d := range doc.Decisions {
		a.note("%s%s", d.Message, tensorList(d.Tensors))
	}
	a.note("%d parameters, %s: %s", doc.Certificate.Parameters, formatSize(doc.Bytes), doc.Certificate.Sentence)
	a.noteVerified(doc.Verified)
	if check != nil {
		a.note("merged back: %s of %d values have the tuned model's bits, the largest difference is %.3g, the relative error %.3g",
			percent(number(check.Equal)/number(max(check.Values, 1))), check.Values, check.MaxAbs, check.Relative)
	}
	if !doc.Certificate.LowRank {
		a.say(advice, "hint:", "--sweep 16,64,256 prints what other ranks keep; --energy 0.9 takes what it needs")
	}
	return err
}

// writeModules is the certificate as a table.
func writeModules(w *tabwriter.Writer, modules []moduleJSON) {
	fmt.Fprintln(w, "module\theld as\tshape\trank\tchange/base\tkept\tresidual\texcess\tstable rank\tentropy rank")
	for _, m := range modules {
		rank, excess, stable, entropy := "-", "-", "-", "-"
		if m.Rank > 0 {
			rank, excess = fmt.Sprint(m.Rank), fmt.Sprintf("%.1g", m.Excess)
			stable, entropy = fmt.Sprintf("%.3g", m.Stable), fmt.Sprintf("%.3g", m.Entropy)
		}
		fmt.Fprintf(w, "%s\t%s\t%v\t%s\t%s\t%s\t%.3g\t%s\t%s\t%s\n", oneLine(m.Name), m.Form, m.Shape, rank,
			ratio(m.DeltaNorm, m.BaseNorm), percent(m.Kept), m.Residual, excess, stable, entropy)
	}
}

// printExtractPlan prints what --dry-run asks for.
func (a *App) printExtractPlan(x *extract.Extraction, b engine.Allotment, refusal error) {
	doc := extractPlanJSON{a.describe(x.Plan, x.Layout, b, refusal), certificateOf(&x.Certificate)}
	doc.Schema = "loratool.extract-plan/v1"
	if a.json {
		a.printJSON(doc)
		return
	}
	w := tabwriter.NewWriter(a.out, 0, 4, 2, ' ', 0)
	for _, in := range doc.Inputs {
		fmt.Fprintf(w, "%s\t%s\t%s\n", in.Role, oneLine(in.Path), formatSize(in.Bytes))
	}
	for _, o := range doc.Outputs {
		tensors := ""
		if len(o.Tensors) > 0 {
			tensors = fmt.Sprintf("\t%d tensors", len(o.Tensors))
		}
		fmt.Fprintf(w, "write\t%s\t%d bytes%s\n", oneLine(o.Path), o.Bytes, tensors)
	}
	w.Flush() // a.out keeps what goes wrong
	w = tabwriter.NewWriter(a.out, 0, 4, 2, ' ', 0)
	writeModules(w, doc.Certificate.Modules)
	w.Flush()
	a.printDecisions(doc.Decisions)
	fmt.Fprintf(a.out, "%d parameters: %s\n", doc.Certificate.Parameters, doc.Certificate.Sentence)
	fmt.Fprintf(a.out, "peak memory %s, output %s\n", formatSize(doc.PeakMemory), formatSize(doc.OutputBytes))
	a.printRefusal(doc.Refusal, refusal)
}

// printSweep prints a table with a line for each rank.
func (a *App) printSweep(schema string, points []extract.Point) {
	doc := sweepJSON{schema, []pointJSON{}}
	for _, p := range points {
		doc.Points = append(doc.Points, pointJSON{p.Rank, number(p.Energy), number(p.Residual), number(p.Worst), p.WorstName, p.Parameters, p.Bytes})
	}
	if a.json {
		a.printJSON(doc)
		return
	}
	w := tabwriter.NewWriter(a.out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "rank\tkept\tresidual\tlargest residual\tparameters\tsize\t")
	for _, p := range doc.Points {
		fmt.Fprintf(w, "%d\t%s\t%.4g\t%.4g\t%d\t%s\t%s\n", p.Rank, percent(p.Energy), p.Residual, p.Worst, p.Parameters, formatSize(p.Bytes), oneLine(p.WorstName))
	}
	w.Flush() // a.out keeps what goes wrong
}
