package cli

import (
	"fmt"
	"io"
	"math"

	"github.com/spf13/pflag"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/report"
	"github.com/loratool/loratool/verify"
)

// functionFlags are the flags of a check of what modules compute.
type functionFlags struct {
	set         *pflag.FlagSet
	on          bool
	probes      count
	arithmetic  string
	activations string
	options     verify.FunctionOptions
}

func (f *functionFlags) register(fs *pflag.FlagSet) {
	f.set = fs
	fs.BoolVar(&f.on, "function", false, "also run every changed module, merged and as base and adapters, and compare outputs")
	fs.StringVar(&f.arithmetic, "arithmetic", "", "`NAME` of what modules are run in: f16, bf16, f32, or f16-pure, bf16-pure with sums of 16 bits (default: the merge's type)")
	fs.Var(&f.probes, "probes", "vectors to draw for each module (default 8)")
	fs.StringVar(&f.activations, "activations", "", "safetensors `FILE` with inputs of modules: matrices of rows with their names")
}

// check looks at the flags.
func (f *functionFlags) check(v *verifyFlags) error {
	for _, name := range []string{"arithmetic", "probes", "activations"} {
		if f.set.Changed(name) && !f.on {
			return usagef("--%s is for --function", name)
		}
	}
	if f.on && v.merged == "" {
		return usagef("--function compares a merge with what it was made from: give --merged")
	}
	f.options = verify.FunctionOptions{Probes: 8, Seed: v.output.prompts.Seed}
	if f.probes != 0 {
		f.options.Probes = int(f.probes)
	}
	if f.arithmetic == "" {
		return nil
	}
	var err error
	if f.options.Arithmetic, err = verify.ParseArithmetic(f.arithmetic); err != nil {
		return usagef("--arithmetic: %w", err)
	}
	return nil
}

// openActivations opens the inputs of modules, if there are any, among the models.
func (f *functionFlags) openActivations(a *App, in *mergeInputs) error {
	if f.activations == "" {
		return nil
	}
	m, err := checkpoint.Open(f.activations, a.cache())
	if err != nil {
		return err
	}
	in.models = append(in.models, m)
	f.options.Activations = m
	return nil
}

type (
	functionJSON struct {
		Arithmetic string               `json:"arithmetic"`
		Scale      number               `json:"scale"`          // of the change in all outputs
		Expected   number               `json:"expected_scale"` // what rounding the merge once leaves of 1
		Sigma      number               `json:"standard_deviation"`
		ULP        []int64              `json:"ulp"` // counts of distances 0, 1, 2, 3 to 4, 5 to 8, and so on
		Modules    []functionModuleJSON `json:"modules"`
		Left       []string             `json:"not_run"`
	}
	functionModuleJSON struct {
		Tensor   string  `json:"tensor"`
		Shape    []int64 `json:"shape"`
		Pair     bool    `json:"as_pair"`
		Given    bool    `json:"activations_given"`
		Inputs   int     `json:"inputs"`
		Largest  number  `json:"max_abs"`
		Relative number  `json:"relative"`
		Cosine   number  `json:"cosine"`
		Ratio    number  `json:"of_limit"` // the largest difference, by what roundings can do; null without such a bound
		Scale    number  `json:"scale"`
		Expected number  `json:"expected_scale"`
		Sigma    number  `json:"standard_deviation"`
		ULP      []int64 `json:"ulp"`
	}
)

func describeFunction(f *verify.FunctionFigures) *functionJSON {
	if f == nil {
		return nil
	}
	doc := &functionJSON{
		Arithmetic: f.Arithmetic.String(), Scale: number(f.Scale), Expected: number(f.Expected), Sigma: number(f.Sigma),
		ULP: ulpCounts(&f.ULP), Modules: []functionModuleJSON{}, Left: append([]string{}, f.Left...),
	}
	for i := range f.Modules {
		m := &f.Modules[i]
		doc.Modules = append(doc.Modules, functionModuleJSON{
			m.Tensor, shapeOf(m.Shape), m.Pair, m.Given, m.Inputs, number(m.Largest), number(m.Relative), number(m.Cosine), number(m.Ratio),
			number(m.Scale), number(m.Expected), number(m.Sigma), ulpCounts(&m.ULP),
		})
	}
	return doc
}

// ulpCounts are the counts up to the last that is not 0.
func ulpCounts(h *kernel.ULPHistogram) []int64 {
	all := h.Counts[:]
	for len(all) > 1 && all[len(all)-1] == 0 {
		all = all[:len(all)-1]
	}
	return append([]int64{}, all...)
}

func (d *functionJSON) print(w io.Writer) {
	if d == nil {
		return
	}
	worst, same, total := number(0), int64(0), int64(0)
	for _, m := range d.Modules {
		worst = max(worst, m.Ratio)
	}
	for i, n := range d.ULP {
		total += n
		if i <= 1 {
			same += n
		}
	}
	fmt.Fprintf(w, "function: %s in %s: the outputs hold the change at the scale %.6g ± %.1g (rounding the merge makes it %.6g); %s of %d outputs are neighbours at most",
		countOf(len(d.Modules), "module"), d.Arithmetic, d.Scale, d.Sigma, d.Expected, percent(number(same)/number(max(total, 1))), total)
	if worst > 0 {
		fmt.Fprintf(w, ", the farthest at %.2g of what roundings can do", worst)
	}
	fmt.Fprintln(w)
	if len(d.Left) > 0 {
		fmt.Fprintf(w, "  not run, as no products of weights and inputs in plain numbers: %d changed tensors%s\n", len(d.Left), tensorList(d.Left))
	}
}

// addFunction shows what modules compute.
func addFunction(p *report.Page, d *functionJSON) {
	if d == nil {
		return
	}
	p.Facts = append(p.Facts, fact("modules run in "+d.Arithmetic, "%d", len(d.Modules)), fact("scale of the change in outputs", "%.6g ± %.1g", d.Scale, d.Sigma))
	off := &report.HeatMap{Title: "Outputs of modules", Figure: "relative difference",
		Caption: "The norm of the difference of the outputs, merged and as base and adapters, by that of the outputs."}
	scale := &report.HeatMap{Title: "Scale of the change in outputs", Figure: "distance from what is expected", Share: true, Format: shareText,
		Caption: "How far the change in the outputs is from the scale that rounding the merge once leaves it. 0 is right; 100 % is no change, or twice."}
	t := report.Table{Title: "Modules", Columns: []string{"module", "inputs", "largest difference", "relative", "of what roundings can do", "scale of the change", "expected"},
		Caption: "Outputs of the merged weight against those of base and adapters."}
	for _, m := range d.Modules {
		off.Marks = append(off.Marks, report.Mark{Tensor: m.Tensor, Value: float64(m.Relative)})
		if v := math.Abs(float64(m.Scale - m.Expected)); v-v == 0 {
			scale.Marks = append(scale.Marks, report.Mark{Tensor: m.Tensor, Value: v})
		}
		t.Rows = append(t.Rows, []report.Cell{
			report.Text(m.Tensor), countCell(int64(m.Inputs)), cellOf(m.Largest), cellOf(m.Relative), cellOf(m.Ratio), cellOf(m.Scale), cellOf(m.Expected),
		})
	}
	p.Charts, p.Tables = append(p.Charts, scale, off), append(p.Tables, t)
}
