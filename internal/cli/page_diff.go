package cli

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/report"
)

// structureMeaning explains the codes of differences of structure.
var structureMeaning = map[string]string{
	"only_in_a": "only the first checkpoint has it", "only_in_b": "only the second checkpoint has it",
	"shape": "the two have other shapes, so that their numbers can't be compared", "dtype": "the two are stored as other types",
	"tied": "one side ties the head to the embedding", "buffer": "a buffer that only one side stores", "config": "a setting of config.json differs",
	"key": "a key of a GGUF file differs", "file": "a file beside the weights differs",
}

// diffPage is the page of a comparison.
func diffPage(doc *diffJSON, inputs []report.Input) *report.Page {
	p := &report.Page{
		Command: "loratool diff", Subject: doc.A.Path + " and " + doc.B.Path, Inputs: inputs,
		Facts: []report.Fact{
			fact("tensors compared", "%d", doc.All.Tensors), fact("that differ", "%d", doc.All.Differing),
			fact("values that differ", "%s", percent(number(doc.All.Changed)/number(max(doc.All.Elements, 1)))),
			fact("largest difference", "%.4g", doc.All.MaxAbs), fact("relative error", "%.4g", doc.All.Relative), fact("cosine", "%.6f", doc.All.Cosine),
		},
	}
	switch doc.Result {
	case "same":
		p.State, p.Verdict = report.Good, "The same"
	case "within_limits":
		p.State, p.Verdict = report.Good, "Within the limits"
	default:
		p.State, p.Verdict = report.Bad, "Different"
	}
	p.Summary = doc.verdict() + "."
	for _, note := range []string{doc.Renamed, doc.Converted} {
		if note != "" {
			p.Notes = append(p.Notes, note)
		}
	}
	p.Findings = structureFindings(doc.Structure)
	addDiffTensors(p, doc.Tensors)
	addProducts(p, doc.Products)
	return p
}

// structureFindings gathers differences of structure by what they are.
func structureFindings(all []diffEntryJSON) []report.Finding {
	var list []report.Finding
	for _, d := range all {
		state, word := report.Bad, "counts"
		if !d.Counts {
			state, word = report.Plain, "does not count"
		}
		i := slices.IndexFunc(list, func(f report.Finding) bool { return f.Code == d.Code && f.State == state })
		if i < 0 {
			i = len(list)
			list = append(list, report.Finding{State: state, Word: word, Code: d.Code, Meaning: cmp.Or(structureMeaning[d.Code], "the structure differs")})
		}
		list[i].Items = append(list[i].Items, report.Item{Where: d.Name, Message: fmt.Sprintf("A: %s, B: %s", cmp.Or(d.A, "-"), cmp.Or(d.B, "-"))})
	}
	return list
}

// addDiffTensors shows the numbers of tensors.
func addDiffTensors(p *report.Page, tensors []diffTensorJSON) {
	errors := &report.HeatMap{Title: "Relative error", Figure: "relative error",
		Caption: "The norm of the difference by that of the larger side. A tensor whose bytes are the same is 0."}
	changed := &report.HeatMap{Title: "Values that differ", Figure: "share of the values", Share: true, Format: shareText,
		Caption: "The share of values that are not the same number."}
	t := report.Table{Title: "Tensors that differ", Columns: []string{"tensor", "shape", "A", "B", "relative", "largest", "cosine", "changed", "beyond limits"}, Caption: "The largest relative errors come first.", Open: true}
	histograms := make(map[string][]int64)
	var types []string
	for i := range tensors {
		x := &tensors[i]
		if x.Figures == nil {
			continue
		}
		errors.Marks = append(errors.Marks, report.Mark{Tensor: x.Name, Value: float64(x.Figures.Relative)})
		changed.Marks = append(changed.Marks, report.Mark{Tensor: x.Name, Value: float64(x.Figures.Changed) / float64(max(x.Figures.Elements, 1))})
		if u := x.ULP; u != nil && !x.Same {
			if histograms[u.Type] == nil {
				types = append(types, u.Type)
			}
			histograms[u.Type] = added(histograms[u.Type], u.Counts)
		}
		if !x.Same {
			t.Rows = append(t.Rows, []report.Cell{report.Text(x.Name), shapeText(x.Shape), report.Text(x.A), report.Text(x.B),
				cellOf(x.Figures.Relative), cellOf(x.Figures.MaxAbs), cellOf(x.Figures.Cosine), countCell(x.Figures.Changed), countCell(x.Beyond)})
		}
	}
	const relative = 4 // column
	slices.SortStableFunc(t.Rows, func(x, y []report.Cell) int { return -cmp.Compare(x[relative].Value, y[relative].Value) })
	if len(t.Rows) > 0 {
		p.Charts, p.Tables = append(p.Charts, errors, changed), append(p.Tables, t)
	}
	for _, d := range types {
		p.Charts = append(p.Charts, ulpHistogram(d, histograms[d]))
	}
}

// added adds counts bin by bin.
func added(sum, counts []int64) []int64 {
	for i, n := range counts {
		if i == len(sum) {
			sum = append(sum, 0)
		}
		sum[i] += n
	}
	return sum
}

// ulpHistogram shows how many steps of a type values are apart.
func ulpHistogram(dtype string, counts []int64) report.Chart {
	h := &report.Histogram{Title: "How far values are apart, in steps of " + dtype, Unit: "values", Axis: "steps between the two values",
		Caption: "Of all tensors that differ. A step is from one number that the type has to the next; 0 is the same number, and a rounding in other places is 1."}
	for bin, n := range counts {
		least, most := kernel.ULPRange(bin)
		label := fmt.Sprint(least)
		if most > least {
			label = fmt.Sprintf("%s–%s", short(least), short(most))
		}
		h.Bars = append(h.Bars, report.Bar{Label: label, Count: n})
	}
	return h
}

// short writes a large number with a power of two.
func short(n uint64) string {
	for shift := 60; shift >= 10; shift -= 10 {
		if n >= 1<<shift {
			return fmt.Sprintf("%d%c", n>>shift, " kMGTPE"[shift/10])
		}
	}
	return fmt.Sprint(n)
}

// addProducts shows what two adapters do to modules.
func addProducts(p *report.Page, products []diffProductJSON) {
	if len(products) == 0 {
		return
	}
	m := &report.HeatMap{Title: "Changes of the two adapters", Figure: "relative error", Caption: "The difference of the products scale·B·A of both sides, by the norm of the larger."}
	t := report.Table{Title: "Changes of modules", Columns: []string{"module", "rank of A", "rank of B", "scale of A", "scale of B", "relative", "cosine"}, Caption: "What the adapters add to each module."}
	for _, x := range products {
		m.Marks = append(m.Marks, report.Mark{Tensor: x.Module, Value: float64(x.Relative)})
		t.Rows = append(t.Rows, []report.Cell{report.Text(x.Module), countCell(x.Ranks[0]), countCell(x.Ranks[1]),
			cellOf(number(x.Scales[0])), cellOf(number(x.Scales[1])), cellOf(x.Relative), cellOf(x.Cosine)})
	}
	p.Charts, p.Tables = append(p.Charts, m), append(p.Tables, t)
}
