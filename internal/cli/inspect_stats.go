package cli

import (
	"context"
	"fmt"
	"runtime/debug"
	"strings"
	"text/tabwriter"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/inspect"
)

type (
	statsJSON struct {
		Norm      number        `json:"norm"`
		Mean      number        `json:"mean"`
		MaxAbs    number        `json:"max_abs"`
		Zeros     int64         `json:"zeros"`
		NonFinite int64         `json:"non_finite"`
		Spectrum  *spectrumJSON `json:"spectrum,omitempty"`
	}
	spectrumJSON struct {
		Values    []number `json:"singular_values"` // the largest
		Stable    number   `json:"stable_rank"`
		Effective number   `json:"effective_rank"` // an upper bound unless exact
		Exact     bool     `json:"exact"`
	}
	changeJSON struct {
		Module   string        `json:"module"`
		Rank     int64         `json:"rank"`
		Scale    number        `json:"scale"`
		Norm     number        `json:"norm"`
		Spectrum *spectrumJSON `json:"spectrum,omitempty"`
	}
)

// maxValues bounds how many singular values may be asked for.
const maxValues = 4096

// addStats reads the weights and adds what is found to the document.
func (a *App) addStats(ctx context.Context, doc *inspectJSON, m *checkpoint.Model, o inspect.Options, e engine.Options) error {
	defer a.noteStop(ctx)()
	s, err := inspect.Open(m, o)
	if err != nil {
		return err
	}
	tasks := s.Tasks()
	peak, beyond := engine.TaskPeak(tasks, e)
	if beyond != "" {
		a.note("the decomposition of %s takes %s, more than --memory: it runs alone", beyond, formatSize(peak))
	}
	debug.SetMemoryLimit(max(peak, e.Memory)*5/4 + 32<<20)
	progress := a.newProgress("reading")
	e.Progress = progress
	err = engine.Each(ctx, tasks, e)
	progress.Finish()
	if err == nil {
		err = m.CheckUnchanged()
	}
	if err != nil {
		return err
	}
	tensors, changes := s.Result()
	found := make(map[string]*inspect.Tensor)
	for _, t := range tensors {
		found[t.Name] = t
	}
	for i := range doc.Tensors {
		if t := found[doc.Tensors[i].Name]; t != nil {
			doc.Tensors[i].Stats = &statsJSON{number(t.Norm), number(t.Mean), number(t.MaxAbs), t.Zeros, t.NonFinite, describeSpectrum(t.Spectrum)}
		}
	}
	for _, c := range changes {
		doc.Changes = append(doc.Changes, changeJSON{c.Module, c.Rank, number(c.Scale), number(c.Norm), describeSpectrum(c.Spectrum)})
	}
	return nil
}

func describeSpectrum(s *inspect.Spectrum) *spectrumJSON {
	if s == nil {
		return nil
	}
	doc := &spectrumJSON{[]number{}, number(s.Stable), number(s.Effective), s.Exact}
	for _, v := range s.Values {
		doc.Values = append(doc.Values, number(v))
	}
	return doc
}

// printStats prints a table of the tensors, and one of the changes.
func (a *App) printStats(doc *inspectJSON) {
	w := tabwriter.NewWriter(a.out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "tensor\tshape\tnorm\tmean\tlargest\tzeros\tstable rank\teffective rank\tsingular values\t")
	for _, t := range doc.Tensors {
		if t.Stats == nil {
			continue
		}
		s := t.Stats
		odd := ""
		if s.NonFinite > 0 {
			odd = fmt.Sprintf("%d not finite", s.NonFinite)
		}
		fmt.Fprintf(w, "%s\t%v\t%.4g\t%.2g\t%.4g\t%d\t%s\t%s\n", oneLine(t.Name), tensor.Shape(t.Shape), s.Norm, s.Mean, s.MaxAbs, s.Zeros, s.Spectrum.text(), odd)
	}
	w.Flush() // a.out keeps what goes wrong
	if len(doc.Changes) == 0 {
		return
	}
	w = tabwriter.NewWriter(a.out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "change of module\trank\tscale\tnorm\tstable rank\teffective rank\tsingular values\t")
	for _, c := range doc.Changes {
		fmt.Fprintf(w, "%s\t%d\t%.4g\t%.4g\t%s\t\n", oneLine(c.Module), c.Rank, c.Scale, c.Norm, c.Spectrum.text())
	}
	w.Flush()
}

// shownValues is how many singular values a table has; JSON has all.
const shownValues = 4

// text is the three last columns of a table.
func (s *spectrumJSON) text() string {
	if s == nil {
		return "\t\t"
	}
	bound := "<"
	if s.Exact {
		bound = ""
	}
	var values []string
	for i, v := range s.Values {
		if i == shownValues {
			values = append(values, "...")
			break
		}
		values = append(values, fmt.Sprintf("%.4g", v))
	}
	return fmt.Sprintf("%.4g\t%s%.4g\t%s", s.Stable, bound, s.Effective, strings.Join(values, " "))
}
