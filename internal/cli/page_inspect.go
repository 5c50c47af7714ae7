package cli

import (
	"cmp"
	"slices"

	"github.com/loratool/loratool/report"
)

// inspectPage is the page of inspect --stats.
func inspectPage(doc *inspectJSON) *report.Page {
	p := &report.Page{
		Command: "loratool inspect", Subject: doc.Path, State: report.Plain, Verdict: countOf(len(doc.Tensors), "tensor") + ", " + formatSize(doc.Bytes),
		Facts: []report.Fact{fact("format", "%s", doc.Format), fact("parameters", "%d", doc.Params)},
	}
	if ad := doc.Adapter; ad != nil {
		p.Facts = append(p.Facts, fact("adapter", "%s", ad.Type), fact("rank", "%d", ad.Rank), fact("modules", "%d", ad.Modules))
		if ad.Problem != "" {
			p.State, p.Summary = report.Warning, ad.Problem
		}
	}
	addStatsOf(p, doc.Tensors)
	addChanges(p, doc.Changes)
	return p
}

// addStatsOf shows the figures of tensors.
func addStatsOf(p *report.Page, tensors []inspectTensor) {
	rank := &report.HeatMap{Title: "Effective rank", Figure: "effective rank", Low: true,
		Caption: "Exp of the entropy of the singular values: how many directions a matrix uses. Where not all values are known it is an upper bound."}
	norm := &report.HeatMap{Title: "Root mean square", Figure: "root mean square",
		Caption: "The norm of a tensor by the square root of its size: what a typical element is like."}
	odd := report.Finding{State: report.Bad, Word: "not finite", Code: "non-finite", Meaning: "tensors hold infinities or NaN"}
	values := spectraPicture("Singular values of the matrices")
	t := report.Table{Title: "Tensors", Columns: []string{"tensor", "type", "shape", "norm", "mean", "largest", "zeros", "not finite", "stable rank", "effective rank"}, Caption: "In the order of the file."}
	for _, x := range tensors {
		s := x.Stats
		if s == nil {
			continue
		}
		elements := int64(1)
		for _, n := range x.Shape {
			elements *= n
		}
		norm.Marks = append(norm.Marks, report.Mark{Tensor: x.Name, Value: rootMeanSquare(s.Norm, elements)})
		if s.NonFinite > 0 {
			odd.Items = append(odd.Items, report.Item{Where: x.Name, Message: countOf(int(s.NonFinite), "element")})
		}
		stable, effective := report.Cell{Text: "-", Number: true}, report.Cell{Text: "-", Number: true}
		if sp := s.Spectrum; sp != nil {
			rank.Marks = append(rank.Marks, report.Mark{Tensor: x.Name, Value: float64(sp.Effective)})
			values.Lines = append(values.Lines, lineOf(x.Name, sp))
			stable, effective = cellOf(sp.Stable), cellOf(sp.Effective)
		}
		t.Rows = append(t.Rows, []report.Cell{report.Text(x.Name), report.Text(x.DType), shapeText(x.Shape), cellOf(s.Norm), cellOf(s.Mean), cellOf(s.MaxAbs),
			countCell(s.Zeros), countCell(s.NonFinite), stable, effective})
	}
	if len(odd.Items) > 0 {
		p.State, p.Findings = report.Bad, append(p.Findings, odd)
	}
	p.Charts, p.Tables = append(p.Charts, values, rank, norm), append(p.Tables, t)
}

// addChanges shows what an adapter does to modules.
func addChanges(p *report.Page, changes []changeJSON) {
	if len(changes) == 0 {
		return
	}
	norm := &report.HeatMap{Title: "Norm of the changes", Figure: "norm", Caption: "The norm of scale·B·A of each module that the adapter changes."}
	values := spectraPicture("Singular values of the changes")
	t := report.Table{Title: "Changes of modules", Columns: []string{"module", "rank", "scale", "norm", "stable rank", "effective rank"}, Caption: "The largest changes come first.", Open: true}
	for _, c := range changes {
		norm.Marks = append(norm.Marks, report.Mark{Tensor: c.Module, Value: float64(c.Norm)})
		stable, effective := report.Cell{Text: "-", Number: true}, report.Cell{Text: "-", Number: true}
		if c.Spectrum != nil {
			values.Lines = append(values.Lines, lineOf(c.Module, c.Spectrum))
			stable, effective = cellOf(c.Spectrum.Stable), cellOf(c.Spectrum.Effective)
		}
		t.Rows = append(t.Rows, []report.Cell{report.Text(c.Module), countCell(c.Rank), cellOf(c.Scale), cellOf(c.Norm), stable, effective})
	}
	const largest = 3 // column
	slices.SortStableFunc(t.Rows, func(x, y []report.Cell) int { return -cmp.Compare(x[largest].Value, y[largest].Value) })
	p.Charts, p.Tables = append([]report.Chart{norm, values}, p.Charts...), append([]report.Table{t}, p.Tables...)
}

func spectraPicture(title string) *report.Curves {
	return &report.Curves{Title: title, Axis: "singular values, the largest first, each relative to it",
		Caption: "A line for every matrix. One that falls steeply needs few directions; a flat one, many."}
}

func lineOf(name string, s *spectrumJSON) report.Line {
	l := report.Line{Tensor: name}
	for _, v := range s.Values {
		l.Values = append(l.Values, float64(v))
	}
	return l
}
