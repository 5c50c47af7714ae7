package cli

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/loratool/loratool/extract"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/report"
)

func rootMeanSquare(norm number, elements int64) float64 {
	return float64(norm) / math.Sqrt(float64(max(elements, 1)))
}

// mergePage is the page of a merge.
func mergePage(doc *mergeJSON) *report.Page {
	s := doc.Summary
	p := &report.Page{
		Command: "loratool merge", Subject: doc.Output, State: report.Good, Verdict: "Merged", Notes: notesOf(doc.Decisions), Inputs: hashedInputs(doc.Inputs),
		Summary: fmt.Sprintf("%s (%s), %s.", countOf(s.Tensors, "tensor"), countList(s.Steps), formatSize(doc.Bytes)),
		Facts:   []report.Fact{fact("changed tensors", "%d", len(doc.Tensors)), fact("norm of the change", "%.4g", s.DeltaNorm), fact("of it survived", "%s", survived(s.Survival))},
	}
	if len(s.Low) > 0 {
		p.State, p.Verdict = report.Warning, "Merged, but part of the change was lost by rounding"
		f := report.Finding{State: report.Warning, Word: "warning", Code: "delta-survival", Meaning: "less than " + percent(survivalWarning) + " of the change survived rounding; a wider type keeps more"}
		for _, name := range s.Low {
			f.Items = append(f.Items, report.Item{Where: name, Message: "see the picture of survival"})
		}
		p.Findings = append(p.Findings, f)
	}
	if v := doc.Verified; v != nil {
		p.Facts = append(p.Facts, fact("verified tensors", "%d", v.tensors()), fact("nearest values", "%s", percent(number(v.Nearest)/number(max(v.Values, 1)))))
	}
	addChangesOfMerge(p, doc.Tensors)
	return p
}

func addChangesOfMerge(p *report.Page, tensors []reportJSON) {
	change := &report.HeatMap{Title: "Size of the change", Figure: "change by base", Caption: "The norm of the change by that of the base's weight: where the adapter does most."}
	survival := &report.HeatMap{Title: "Change that rounding lost", Figure: "share of the change", Share: true, Format: shareText,
		Caption: "How far the stored weights are from holding all of the exact change, after rounding to their type."}
	rounding := &report.HeatMap{Title: "Rounding against the change", Figure: "rounding by change", Caption: "The norm of what rounding to the output's type did, by that of the change."}
	t := report.Table{Title: "Changed tensors", Columns: []string{"tensor", "type", "shape", "norm of the base", "norm of the change", "rounding", "survived"}, Caption: "The largest changes come first."}
	for _, x := range tensors {
		mark := func(m *report.HeatMap, v float64) {
			if !math.IsNaN(v) && !math.IsInf(v, 0) {
				m.Marks = append(m.Marks, report.Mark{Tensor: x.Tensor, Value: v})
			}
		}
		mark(change, float64(x.DeltaNorm/x.BaseNorm))
		mark(rounding, float64(x.RoundingNorm/x.DeltaNorm))
		mark(survival, math.Abs(float64(x.Survival)-1))
		t.Rows = append(t.Rows, []report.Cell{report.Text(x.Tensor), report.Text(x.DType), shapeText(x.Shape), cellOf(x.BaseNorm), cellOf(x.DeltaNorm), cellOf(x.RoundingNorm), percentCell(x.Survival)})
	}
	const size = 4 // column
	slices.SortStableFunc(t.Rows, func(x, y []report.Cell) int { return -cmp.Compare(x[size].Value, y[size].Value) })
	p.Charts, p.Tables = append(p.Charts, change, survival, rounding), append(p.Tables, t)
}

// extractPage is the page of an extraction.
func extractPage(doc *extractJSON, c *extract.Certificate) *report.Page {
	p := &report.Page{
		Command: "loratool extract", Subject: doc.Output, State: report.Good, Verdict: "Extracted", Summary: doc.Certificate.Sentence,
		Notes: notesOf(doc.Decisions), Inputs: hashedInputs(doc.Inputs),
		Facts: []report.Fact{
			fact("share of the change", "%s", percent(doc.Certificate.Share)), fact("residual", "%.4g", doc.Certificate.Residual),
			fact("parameters", "%d", doc.Certificate.Parameters), fact("size", "%s", formatSize(doc.Bytes)),
		},
	}
	if !doc.Certificate.LowRank {
		p.State, p.Verdict = report.Warning, "Extracted, but the change is not of low rank"
	}
	if m := doc.MergeCheck; m != nil {
		p.Facts = append(p.Facts, fact("merged back: same bits", "%s", percent(number(m.Equal)/number(max(m.Values, 1)))), fact("merged back: relative error", "%.4g", m.Relative))
	}
	residual := &report.HeatMap{Title: "What is missing", Figure: "residual", Caption: "The norm of what the adapter does not hold of each change, by that of the change."}
	rank := &report.HeatMap{Title: "Ranks", Figure: "rank", Caption: "The rank that each module got."}
	values := spectraPicture("Singular values of the changes")
	t := report.Table{Title: "Modules", Columns: []string{"module", "held as", "shape", "rank", "kept", "residual", "norm of the change", "stable rank", "entropy rank"}, Caption: "The largest residuals come first.", Open: true}
	for i, m := range doc.Certificate.Modules {
		residual.Marks = append(residual.Marks, report.Mark{Tensor: m.Name, Value: float64(m.Residual)})
		if m.Rank > 0 {
			rank.Marks = append(rank.Marks, report.Mark{Tensor: m.Name, Value: float64(m.Rank)})
		}
		values.Lines = append(values.Lines, report.Line{Tensor: m.Name, Values: c.Modules[i].Values})
		t.Rows = append(t.Rows, []report.Cell{report.Text(m.Name), report.Text(m.Form), shapeText(m.Shape), countCell(m.Rank), percentCell(m.Kept), cellOf(m.Residual), cellOf(m.DeltaNorm), cellOf(m.Stable), cellOf(m.Entropy)})
	}
	const missing = 5 // column
	slices.SortStableFunc(t.Rows, func(x, y []report.Cell) int { return -cmp.Compare(x[missing].Value, y[missing].Value) })
	p.Charts, p.Tables = []report.Chart{residual, values, rank}, []report.Table{t}
	return p
}

// quantizePage is the page of a quantization, whatever its format.
func quantizePage(output string, bytes int64, decisions []decisionJSON, hashes map[string]string, s quantizeSummary, tensors []ggufTensorJSON) *report.Page {
	p := &report.Page{
		Command: "loratool quantize", Subject: output, State: report.Good, Verdict: "Quantized", Notes: notesOf(decisions), Inputs: hashedInputs(hashes),
		Summary: fmt.Sprintf("%s, %s.", countList(s.Tensors), formatSize(bytes)),
		Facts:   []report.Fact{fact("relative error", "%.4f", s.Error), fact("bits per weight", "%.3f", s.Bits), fact("size", "%s", formatSize(bytes))},
	}
	errors := &report.HeatMap{Title: "Relative error", Figure: "relative error", Caption: "The norm of what encoding changed, by that of the weight."}
	bits := &report.HeatMap{Title: "Bits per weight", Figure: "bits per weight", Low: true, Caption: "What each tensor takes, scales included."}
	t := report.Table{Title: "Quantized tensors", Columns: []string{"tensor", "type", "shape", "bytes", "bits per weight", "relative error"}, Caption: "The largest errors come first."}
	for _, x := range tensors {
		errors.Marks = append(errors.Marks, report.Mark{Tensor: x.Tensor, Value: float64(x.Error)})
		bits.Marks = append(bits.Marks, report.Mark{Tensor: x.Tensor, Value: float64(x.Bits)})
		t.Rows = append(t.Rows, []report.Cell{report.Text(x.Tensor), report.Text(x.Type), shapeText(x.Shape), countCell(x.Bytes), cellOf(x.Bits), cellOf(x.Error)})
	}
	const off = 5 // column
	slices.SortStableFunc(t.Rows, func(x, y []report.Cell) int { return -cmp.Compare(x[off].Value, y[off].Value) })
	p.Charts, p.Tables = []report.Chart{errors, bits}, []report.Table{t}
	return p
}

// repairPage is the page of a quantization with an adapter that repairs it.
func repairPage(doc *repairJSON) *report.Page {
	s := doc.Summary
	p := &report.Page{
		Command: "loratool quantize", Subject: doc.Output + " and " + doc.Adapter, State: report.Good, Verdict: "Quantized, with an adapter",
		Summary: fmt.Sprintf("%s, %s.", countList(s.Tensors), formatSize(doc.Bytes)), Notes: notesOf(doc.Decisions), Inputs: hashedInputs(doc.Inputs),
		Facts: []report.Fact{fact("relative error", "%.4f", s.Plain), fact("with the pairs", "%.4f", s.Error), fact("pairs", "%d", s.Pairs),
			fact("bits per weight", "%.3f", s.Bits), fact("with the pairs", "%.3f", s.WithPair)},
	}
	plain := &report.HeatMap{Title: "Relative error of the quantized weights", Figure: "relative error", Caption: "As plain quantization leaves them, without the adapter."}
	after := &report.HeatMap{Title: "Relative error with the pairs", Figure: "relative error", Caption: "With what the adapter adds."}
	t := report.Table{Title: "Pairs", Columns: []string{"tensor", "shape", "bits per weight", "with the pair", "error, plain", "error with the pair"}, Caption: "The largest errors come first."}
	for _, x := range doc.Tensors {
		plain.Marks = append(plain.Marks, report.Mark{Tensor: x.Tensor, Value: float64(x.Plain)})
		after.Marks = append(after.Marks, report.Mark{Tensor: x.Tensor, Value: float64(x.Error)})
		t.Rows = append(t.Rows, []report.Cell{report.Text(x.Tensor), shapeText(x.Shape), cellOf(x.Bits), cellOf(x.WithPair), cellOf(x.Plain), cellOf(x.Error)})
	}
	const off = 5 // column
	slices.SortStableFunc(t.Rows, func(x, y []report.Cell) int { return -cmp.Compare(x[off].Value, y[off].Value) })
	p.Charts, p.Tables = []report.Chart{plain, after}, []report.Table{t}
	return p
}

// plainPage is the page of a quantization for bitsandbytes.
func plainPage(q *quant.Quantization, doc *quantizeJSON) *report.Page {
	var tensors []ggufTensorJSON
	for _, t := range doc.Tensors {
		tensors = append(tensors, ggufTensorJSON{t.Tensor, string(q.Type()), t.Shape, t.Bytes, t.Error, t.Bits})
	}
	return quantizePage(doc.Output, doc.Bytes, doc.Decisions, doc.Inputs, doc.Summary, tensors)
}
