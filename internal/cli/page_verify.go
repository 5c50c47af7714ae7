package cli

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/loratool/loratool/report"
	"github.com/loratool/loratool/verify"
)

// pageStates says how bad a finding is.
var pageStates = map[string]report.State{
	string(verify.Error): report.Bad, string(verify.Warning): report.Warning, string(verify.Info): report.Plain,
}

// verifyPage is the page of verify.
func verifyPage(doc *verifyJSON, r *verify.Report, inputs []report.Input) *report.Page {
	s := doc.Summary
	p := &report.Page{
		Command: "loratool verify", Subject: s.Path, State: report.Good, Verdict: "No problems found", Inputs: inputs,
		Summary: fmt.Sprintf("%s checked: %s.", countOf(s.Tensors, "tensor"), strings.Join(s.Families, ", ")),
		Facts:   []report.Fact{fact("errors", "%d", s.Errors), fact("warnings", "%d", s.Warnings), fact("notes", "%d", s.Infos), fact("tensors", "%d", s.Tensors)},
	}
	switch {
	case !doc.OK:
		p.State, p.Verdict = report.Bad, "Problems found: "+counted(s.Errors, "error", s.Warnings, "warning")
	case s.Warnings > 0:
		p.State, p.Verdict = report.Warning, "No errors, but "+countOf(s.Warnings, "warning")
	}
	for _, severity := range []verify.Severity{verify.Error, verify.Warning, verify.Info} {
		for _, code := range codesOf(doc.Findings, string(severity)) {
			p.Findings = append(p.Findings, findingOf(doc.Findings, code, string(severity)))
		}
	}
	p.Charts = append(p.Charts, whereFound(doc.Findings))
	addMerged(p, r.Merge)
	addFunction(p, s.Function)
	addLoftQ(p, s.LoftQ)
	addQuantized(p, s.Quantized)
	return p
}

// counted lists what there is any of.
func counted(n int, what string, m int, other string) string {
	switch {
	case n == 0:
		return countOf(m, other)
	case m == 0:
		return countOf(n, what)
	}
	return countOf(n, what) + ", " + countOf(m, other)
}

// findingOf gathers the findings of a code.
func findingOf(findings []findingJSON, code, severity string) report.Finding {
	f := report.Finding{State: pageStates[severity], Word: severity, Code: code, Meaning: meaningOf(code)}
	for _, x := range findings {
		if x.Code != code {
			continue
		}
		f.Items = append(f.Items, report.Item{
			Where: cmp.Or(x.Tensor, "all of it"), Message: x.Message, Value: optional(x.Value), Limit: optional(x.Limit),
		})
	}
	return f
}

func optional(n *number) string {
	if n == nil {
		return ""
	}
	return fmt.Sprintf("%.6g", float64(*n))
}

// whereFound shows in which layers something is wrong.
func whereFound(findings []findingJSON) report.Chart {
	m := &report.HeatMap{
		Title: "Where problems are", Figure: "findings",
		Caption: "Errors and warnings about each tensor. A single cell is one tensor; a column, a layer; a row, a kind of module.",
	}
	counts := make(map[string]float64)
	var order []string
	for _, f := range findings {
		if f.Tensor == "" || f.Severity == string(verify.Info) {
			continue
		}
		if counts[f.Tensor]++; counts[f.Tensor] == 1 {
			order = append(order, f.Tensor)
		}
	}
	for _, name := range order {
		m.Marks = append(m.Marks, report.Mark{Tensor: name, Value: counts[name]})
	}
	return m
}

// addMerged shows a comparison with a merge.
func addMerged(p *report.Page, m *verify.MergeFigures) {
	if m == nil {
		return
	}
	p.Facts = append(p.Facts,
		fact("changed tensors", "%d", m.Changed), fact("unchanged tensors", "%d", m.Unchanged),
		fact("change that is there", "%s", survived(number(m.Survival))),
		fact("norm of the change", "%.4g", m.DeltaNorm),
		fact("nearest values", "%s", percent(number(m.Nearest)/number(max(m.Values, 1)))))
	survival := &report.HeatMap{
		Title: "Change that is missing, or too much", Figure: "share of the change", Share: true, Format: shareText,
		Caption: "Of every tensor that the adapters change: how far what is stored is from holding all of the exact change. 0 is all of it; 100 % is none, or twice.",
	}
	rounding := &report.HeatMap{
		Title: "Values that are not the nearest", Figure: "share of the values", Share: true, Format: shareText,
		Caption: "The share of values that are not the nearest the type has to the exact ones. One rounding leaves next to none; a tool that rounds on the way, more.",
	}
	t := report.Table{Title: "Tensors against the merge", Columns: []string{"tensor", "values", "not nearest", "beyond rounding", "norm of the change", "of it there"},
		Caption: "The tensors with most values beyond what rounding allows come first."}
	tensors := slices.Clone(m.Tensors)
	slices.SortStableFunc(tensors, func(x, y verify.MergedTensor) int {
		return cmp.Or(-cmp.Compare(x.Outside, y.Outside), -cmp.Compare(x.DeltaNorm, y.DeltaNorm))
	})
	for _, x := range m.Tensors {
		off := float64(x.Values-x.Nearest) / float64(max(x.Values, 1))
		rounding.Marks = append(rounding.Marks, report.Mark{Tensor: x.Tensor, Value: off})
		if x.Changed && x.DeltaNorm > 0 {
			survival.Marks = append(survival.Marks, report.Mark{Tensor: x.Tensor, Value: math.Abs(x.Survival - 1)})
		}
	}
	for _, x := range tensors {
		there := report.Cell{Text: "-", Number: true}
		if x.Changed && x.DeltaNorm > 0 {
			there = percentCell(number(x.Survival))
		}
		t.Rows = append(t.Rows, []report.Cell{
			report.Text(x.Tensor), countCell(x.Values), countCell(x.Values - x.Nearest), countCell(x.Outside), cellOf(number(x.DeltaNorm)), there,
		})
	}
	p.Charts, p.Tables = append(p.Charts, survival, rounding), append(p.Tables, t)
}

// addLoftQ shows the pairs of a LoftQ adapter.
func addLoftQ(p *report.Page, l *loftqJSON) {
	if l == nil {
		return
	}
	p.Facts = append(p.Facts, fact("error, quantized", "%.4g", l.Quantized), fact("error, with the pairs", "%.4g", l.Repaired))
	before := &report.HeatMap{Title: "Relative error of the quantized weights", Figure: "relative error", Caption: "The norm of what quantization left out, by that of the weight."}
	after := &report.HeatMap{Title: "Relative error with the pairs", Figure: "relative error", Caption: "The same, when the pair of the adapter is added."}
	t := report.Table{Title: "Pairs", Columns: []string{"tensor", "shape", "rank", "stored as", "quantized", "with the pair", "attainable", "scale", "best scale"},
		Caption: "Relative errors of each weight, and the scale at which its pair would fit best."}
	for _, m := range l.Modules {
		before.Marks = append(before.Marks, report.Mark{Tensor: m.Tensor, Value: float64(m.Quantized)})
		after.Marks = append(after.Marks, report.Mark{Tensor: m.Tensor, Value: float64(m.Repaired)})
		t.Rows = append(t.Rows, []report.Cell{report.Text(m.Tensor), shapeText(m.Shape), countCell(m.Rank), report.Text(m.Stored),
			cellOf(m.Quantized), cellOf(m.Repaired), cellOf(m.Attainable), cellOf(m.Scale), cellOf(m.BestScale)})
	}
	p.Charts, p.Tables = append(p.Charts, before, after), append(p.Tables, t)
}

// addQuantized shows the errors of a quantized model.
func addQuantized(p *report.Page, q *quantErrorsJSON) {
	if q == nil {
		return
	}
	p.Facts = append(p.Facts, fact("relative error", "%.4g", q.Error), fact("quantized tensors", "%d", len(q.Tensors)))
	errors := &report.HeatMap{Title: "Relative error", Figure: "relative error", Caption: "The norm of the difference from the base, by that of the weight."}
	t := report.Table{Title: "Quantized tensors", Columns: []string{"tensor", "shape", "stored as", "relative error"}, Caption: "The largest errors come first."}
	sorted := slices.Clone(q.Tensors)
	slices.SortStableFunc(sorted, func(x, y quantErrorJSON) int { return -cmp.Compare(x.Error, y.Error) })
	for _, x := range q.Tensors {
		errors.Marks = append(errors.Marks, report.Mark{Tensor: x.Tensor, Value: float64(x.Error)})
	}
	for _, x := range sorted {
		t.Rows = append(t.Rows, []report.Cell{report.Text(x.Tensor), shapeText(x.Shape), report.Text(x.Type), cellOf(x.Error)})
	}
	p.Charts, p.Tables = append(p.Charts, errors), append(p.Tables, t)
}
