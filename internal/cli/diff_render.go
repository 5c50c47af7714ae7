package cli

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/loratool/loratool/diff"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/report"
)

type (
	diffJSON struct {
		Schema    string            `json:"schema"`
		Result    string            `json:"result"` // same, within_limits or different
		A         diffSideJSON      `json:"a"`
		B         diffSideJSON      `json:"b"`
		Limits    diffLimitsJSON    `json:"limits"`
		Renamed   string            `json:"renamed,omitempty"`
		Converted string            `json:"converted,omitempty"`
		Structure []diffEntryJSON   `json:"structure"`
		Tensors   []diffTensorJSON  `json:"tensors"`
		Products  []diffProductJSON `json:"products"`
		All       diffSumJSON       `json:"all"`
		Layers    []diffGroupJSON   `json:"layers"`
		Kinds     []diffGroupJSON   `json:"kinds"`
		Patterns  []diffGroupJSON   `json:"patterns"`
	}
	diffSideJSON struct {
		Path     string `json:"path"`
		Format   string `json:"format"`
		Revision string `json:"revision,omitempty"`
		Tensors  int    `json:"tensors"`
	}
	diffLimitsJSON struct {
		Abs   float64 `json:"atol"`
		Rel   float64 `json:"rtol"`
		ULP   uint64  `json:"ulp"`
		Error float64 `json:"error"`
	}
	diffEntryJSON struct {
		Code   string `json:"code"`
		Name   string `json:"name"`
		A      string `json:"a"`
		B      string `json:"b"`
		Counts bool   `json:"counts"`
	}
	diffSumJSON struct {
		Tensors   int    `json:"tensors"`
		Differing int    `json:"differing"`
		Elements  int64  `json:"elements"`
		Changed   int64  `json:"changed"`
		MaxAbs    number `json:"max_abs"`
		DiffNorm  number `json:"diff_norm"`
		ANorm     number `json:"a_norm"`
		BNorm     number `json:"b_norm"`
		Relative  number `json:"relative"`
		Cosine    number `json:"cosine"`
	}
	diffGroupJSON struct {
		Name string `json:"name"`
		diffSumJSON
	}
	diffTensorJSON struct {
		Name      string         `json:"name"`
		NameB     string         `json:"name_b,omitempty"`
		Shape     []int64        `json:"shape"`
		A         string         `json:"dtype_a"`
		B         string         `json:"dtype_b"`
		Apart     string         `json:"not_compared,omitempty"`
		Same      bool           `json:"same"`
		Different bool           `json:"different"`
		Figures   *diffSumJSON   `json:"figures,omitempty"`
		NonFinite *nonFiniteJSON `json:"non_finite,omitempty"`
		Worst     *worstJSON     `json:"worst,omitempty"`
		Beyond    int64          `json:"beyond_limits"`
		First     *int64         `json:"first_beyond,omitempty"`
		ULP       *ulpJSON       `json:"ulp,omitempty"`
	}
	nonFiniteJSON struct {
		A      int64 `json:"a"`
		B      int64 `json:"b"`
		Unlike int64 `json:"unlike"`
	}
	worstJSON struct {
		Element int64  `json:"element"`
		A       number `json:"a"`
		B       number `json:"b"`
	}
	// ulpJSON has the counts of distances 0, 1, 2, 3 to 4, 5 to 8, and so on.
	ulpJSON struct {
		Type   string  `json:"dtype"`
		Counts []int64 `json:"counts"`
		OneNaN int64   `json:"one_nan"`
	}
	diffProductJSON struct {
		Module    string     `json:"module"`
		Ranks     [2]int64   `json:"ranks"`
		Scales    [2]float64 `json:"scales"`
		Different bool       `json:"different"`
		DiffNorm  number     `json:"diff_norm"`
		ANorm     number     `json:"a_norm"`
		BNorm     number     `json:"b_norm"`
		Relative  number     `json:"relative"`
		Cosine    number     `json:"cosine"`
	}
)

// printDiff prints what a comparison has found, and fails if that is too much.
func (a *App) printDiff(r *diff.Result, models [2]*checkpoint.Model, converted string, l diff.Limits, f *diffFlags) error {
	doc := describeDiff(r, models, l)
	doc.Converted = converted
	err := f.page.write(a, func() *report.Page { return diffPage(doc, inputsOf([]string{"A", "B"}, models[:])) })
	switch {
	case a.json:
		a.printJSON(doc)
	case a.quiet:
		a.printVerdict(doc)
	default:
		a.printDiffText(doc, r, f)
	}
	if err == nil && r.Different {
		return &foundError{}
	}
	return err
}

func describeDiff(r *diff.Result, models [2]*checkpoint.Model, l diff.Limits) *diffJSON {
	doc := &diffJSON{
		Schema: "loratool.diff/v1", A: describeSide(models[0]), B: describeSide(models[1]), Renamed: r.Renamed,
		Limits:    diffLimitsJSON{l.Abs, l.Rel, l.ULP, l.Error},
		Structure: []diffEntryJSON{}, Tensors: []diffTensorJSON{}, Products: []diffProductJSON{},
		All: describeSum(&r.All), Layers: describeGroups(r.Layers), Kinds: describeGroups(r.Kinds), Patterns: describeGroups(r.Patterns),
	}
	for _, d := range r.Structure {
		doc.Structure = append(doc.Structure, diffEntryJSON{string(d.Code), d.Name, d.A, d.B, d.Counts})
	}
	for i := range r.Tensors {
		doc.Tensors = append(doc.Tensors, describeDiffTensor(&r.Tensors[i]))
	}
	for _, p := range r.Products {
		s := describeSum(&p.Sum)
		doc.Products = append(doc.Products, diffProductJSON{p.Module, p.Ranks, p.Scales, p.Different, s.DiffNorm, s.ANorm, s.BNorm, s.Relative, s.Cosine})
	}
	switch {
	case r.Different:
		doc.Result = "different"
	case r.All.Differing > 0 || r.AllProducts.Differing > 0:
		doc.Result = "within_limits"
	default:
		doc.Result = "same"
	}
	return doc
}

func describeSide(m *checkpoint.Model) diffSideJSON {
	format := "safetensors"
	if m.GGUF() != nil {
		format = "gguf"
	}
	return diffSideJSON{m.Path, format, m.Commit, len(m.Specs())}
}

func describeSum(s *diff.Sum) diffSumJSON {
	a, b := s.Norms()
	return diffSumJSON{
		s.Tensors, s.Differing, s.Elements, s.Changed, number(s.Figures.MaxDiff), number(s.DiffNorm()), number(a), number(b),
		number(s.Relative()), number(s.Cosine()),
	}
}

func describeGroups(groups []diff.Group) []diffGroupJSON {
	list := []diffGroupJSON{}
	for i := range groups {
		list = append(list, diffGroupJSON{groups[i].Name, describeSum(&groups[i].Sum)})
	}
	return list
}

func describeDiffTensor(t *diff.Tensor) diffTensorJSON {
	doc := diffTensorJSON{
		Name: t.Name, NameB: t.NameB, Shape: shapeOf(t.Shape), A: t.A, B: t.B, Apart: t.Apart, Same: t.Same,
		Different: t.Different, Beyond: t.Beyond,
	}
	if t.Apart != "" {
		return doc
	}
	sum := describeSum(&t.Sum)
	doc.Figures = &sum
	if t.First >= 0 {
		doc.First = &t.First
	}
	if t.Opaque {
		return doc
	}
	doc.ULP = &ulpJSON{t.ULPType.String(), append([]int64{}, t.ULP.Counts[:t.ULP.Last()+1]...), t.ULP.OneNaN}
	if c := t.Figures; c.NonFiniteA+c.NonFiniteB > 0 {
		doc.NonFinite = &nonFiniteJSON{c.NonFiniteA, c.NonFiniteB, c.NonFiniteUnlike}
	}
	if t.Figures.MaxDiff > 0 {
		doc.Worst = &worstJSON{t.Worst, number(t.WorstA), number(t.WorstB)}
	}
	return doc
}

// verdict is the result in a line.
func (doc *diffJSON) verdict() string {
	switch doc.Result {
	case "same":
		return "the same"
	case "within_limits":
		return "within the limits"
	}
	var parts []string
	part := func(n, of int, what string) {
		switch {
		case n > 0 && of > 0:
			parts = append(parts, fmt.Sprintf("%d of %d %s", n, of, what))
		case n > 0:
			parts = append(parts, fmt.Sprintf("%d %s", n, what))
		}
	}
	part(countIf(doc.Structure, func(d diffEntryJSON) bool { return d.Counts }), 0, "differences of structure")
	part(countIf(doc.Tensors, func(t diffTensorJSON) bool { return t.Different }), len(doc.Tensors), "tensors")
	part(countIf(doc.Products, func(p diffProductJSON) bool { return p.Different }), len(doc.Products), "changes")
	return "different: " + strings.Join(parts, ", ")
}

func countIf[E any](list []E, holds func(E) bool) (n int) {
	for _, e := range list {
		if holds(e) {
			n++
		}
	}
	return n
}

// printDiffText prints structure, then the tensors that differ most, then sums.
func (a *App) printDiffText(doc *diffJSON, r *diff.Result, f *diffFlags) {
	if doc.Renamed != "" {
		fmt.Fprintf(a.out, "%s\n", oneLine(doc.Renamed))
	}
	if doc.Converted != "" {
		fmt.Fprintf(a.out, "%s\n", oneLine(doc.Converted))
	}
	a.printStructure(doc.Structure, f.run.verbose)
	a.printDiffTensors(r, f)
	a.printProducts(r.Products, f)
	a.printGroups("pattern", r.Patterns, f.run.verbose)
	a.printGroups("layer", r.Layers, f.run.verbose)
	a.printGroups("kind", r.Kinds, f.run.verbose)
	all := &r.All
	fmt.Fprintf(a.out, "%d tensors compared, %d differ: %s of %d values, largest difference %.4g, relative error %.4g\n",
		all.Tensors, all.Differing, percent(number(all.Changed)/number(max(all.Elements, 1))), all.Elements, all.Figures.MaxDiff, all.Relative())
	a.printVerdict(doc)
}

// printVerdict prints the result in a line that stands out.
func (a *App) printVerdict(doc *diffJSON) {
	s := good
	if doc.Result == "different" {
		s = bad
	}
	fmt.Fprintln(a.out, a.paletteOf(a.out).paint(s, doc.verdict()))
}

// structureShown is how many differences of one kind are printed without --verbose.
const structureShown = 5

// printStructure prints the differences of structure, those of element types gathered.
func (a *App) printStructure(all []diffEntryJSON, verbose bool) {
	var order []string
	groups := make(map[string][]diffEntryJSON)
	for _, d := range all {
		key := d.Code
		if !verbose && d.Code == string(diff.CodeDType) {
			key += "\t" + d.A + "\t" + d.B
		}
		if groups[key] == nil {
			order = append(order, key)
		}
		groups[key] = append(groups[key], d)
	}
	for _, key := range order {
		group := groups[key]
		if d := group[0]; !verbose && d.Code == string(diff.CodeDType) && len(group) > 1 {
			fmt.Fprintf(a.out, "dtype: %d tensors are %s in A, %s in B%s\n", len(group), oneLine(d.A), oneLine(d.B), uncounted(d))
			continue
		}
		for i, d := range group {
			if i == structureShown && !verbose {
				fmt.Fprintf(a.out, "%s: %d more (-v prints all)\n", structureTitle(d), len(group)-i)
				break
			}
			fmt.Fprintf(a.out, "%s: %s%s%s\n", structureTitle(d), shortened(oneLine(d.Name)), structureText(d), uncounted(d))
		}
	}
}

func structureTitle(d diffEntryJSON) string {
	switch diff.Code(d.Code) {
	case diff.CodeOnlyA:
		return "only in A"
	case diff.CodeOnlyB:
		return "only in B"
	}
	return d.Code
}

func structureText(d diffEntryJSON) string {
	x, y := shortened(oneLine(d.A)), shortened(oneLine(d.B))
	switch {
	case diff.Code(d.Code) == diff.CodeOnlyA, diff.Code(d.Code) == diff.CodeOnlyB:
		return " " + x + y
	case d.A == "":
		return fmt.Sprintf(": only in B, %s", y)
	case d.B == "":
		return fmt.Sprintf(": only in A, %s", x)
	}
	return fmt.Sprintf(": %s in A, %s in B", x, y)
}

// uncounted marks what does not make two checkpoints differ.
func uncounted(d diffEntryJSON) string {
	if d.Counts {
		return ""
	}
	return " (does not count)"
}

// printDiffTensors prints the tensors that differ, the largest relative error first.
func (a *App) printDiffTensors(r *diff.Result, f *diffFlags) {
	var list []*diff.Tensor
	for i := range r.Tensors {
		if t := &r.Tensors[i]; !t.Same && t.Apart == "" {
			list = append(list, t)
		}
	}
	if len(list) == 0 {
		return
	}
	slices.SortStableFunc(list, func(x, y *diff.Tensor) int {
		return cmp.Or(-cmp.Compare(rankOf(x), rankOf(y)), -cmp.Compare(x.Figures.MaxDiff, y.Figures.MaxDiff))
	})
	w := tabwriter.NewWriter(a.out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "tensor\tstored\trelative\tlargest\tcosine\tchanged\thalf, all within steps\t")
	shown := len(list)
	if !f.run.verbose {
		shown = min(shown, f.top)
	}
	for _, t := range list[:shown] {
		writeDiffTensor(w, t)
	}
	w.Flush() // a.out keeps what goes wrong
	if rest := len(list) - shown; rest > 0 {
		fmt.Fprintf(a.out, "and %d more (-v prints all)\n", rest)
	}
}

// rankOf orders tensors: what has no relative error comes first.
func rankOf(t *diff.Tensor) float64 {
	const more = 1e300
	if t.Opaque || t.Figures.NonFiniteUnlike > 0 {
		return more
	}
	if rel := t.Relative(); rel == rel {
		return rel
	}
	return more
}

func writeDiffTensor(w *tabwriter.Writer, t *diff.Tensor) {
	stored := t.A
	if t.A != t.B {
		stored = t.A + ", " + t.B
	}
	name := oneLine(t.Name)
	changed := percent(number(t.Changed) / number(max(t.Elements, 1)))
	if t.Opaque {
		fmt.Fprintf(w, "%s\t%s\t-\t-\t-\t%s\t-\t\n", name, stored, changed)
		return
	}
	fmt.Fprintf(w, "%s\t%s\t%.4g\t%.4g\t%s\t%s\t%s\t%s\n", name, stored, t.Relative(), t.Figures.MaxDiff, cosineText(&t.Sum), changed, stepsText(t), oddities(t))
}

// stepsText says how far elements are apart, in steps of the coarser element type: the
// middle one and the farthest.
func stepsText(t *diff.Tensor) string {
	_, median := kernel.ULPRange(t.ULP.Median())
	_, most := kernel.ULPRange(t.ULP.Last())
	return fmt.Sprintf("%d, %d %s", median, most, t.ULPType)
}

// cosineText is a cosine; of zeros there is none.
func cosineText(s *diff.Sum) string {
	if c := s.Cosine(); c == c {
		return fmt.Sprintf("%.6f", c)
	}
	return "-"
}

// oddities says what the figures leave out.
func oddities(t *diff.Tensor) string {
	var parts []string
	if c := t.Figures; c.NonFiniteA+c.NonFiniteB > 0 {
		parts = append(parts, fmt.Sprintf("not finite: %d in A, %d in B", c.NonFiniteA, c.NonFiniteB))
	}
	if t.Beyond > 0 {
		parts = append(parts, fmt.Sprintf("%d beyond the limits, the first is element %d", t.Beyond, t.First))
	}
	return strings.Join(parts, "; ")
}

// printProducts prints what two adapters do to the modules that both change.
func (a *App) printProducts(products []diff.Product, f *diffFlags) {
	list := slices.DeleteFunc(slices.Clone(products), func(p diff.Product) bool { return p.Differing == 0 })
	if len(products) == 0 {
		return
	}
	slices.SortStableFunc(list, func(x, y diff.Product) int { return -cmp.Compare(x.Relative(), y.Relative()) })
	shown := len(list)
	if !f.run.verbose {
		shown = min(shown, f.top)
	}
	w := tabwriter.NewWriter(a.out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "change of module\tranks\tscales\trelative\tcosine\t")
	for _, p := range list[:shown] {
		fmt.Fprintf(w, "%s\t%d, %d\t%.4g, %.4g\t%.4g\t%s\t\n", oneLine(p.Module), p.Ranks[0], p.Ranks[1], p.Scales[0], p.Scales[1], p.Relative(), cosineText(&p.Sum))
	}
	w.Flush() // a.out keeps what goes wrong
	fmt.Fprintf(a.out, "%d changes compared, %d differ\n", len(products), len(list))
}

// printGroups prints the sums of groups of tensors, of which there are several.
func (a *App) printGroups(title string, groups []diff.Group, verbose bool) {
	list := groups
	if !verbose && title != "pattern" {
		list = slices.DeleteFunc(slices.Clone(groups), func(g diff.Group) bool { return g.Differing == 0 })
	}
	if len(list) == 0 || len(groups) < 2 && title != "pattern" {
		return
	}
	w := tabwriter.NewWriter(a.out, 0, 4, 2, ' ', 0)
	fmt.Fprintf(w, "%s\tdiffer\trelative\tlargest\tcosine\tchanged\t\n", title)
	for i := range list {
		g := &list[i]
		name := oneLine(g.Name)
		if name == "" {
			name = "(none)"
		}
		fmt.Fprintf(w, "%s\t%d of %d\t%.4g\t%.4g\t%s\t%s\t\n", name, g.Differing, g.Tensors, g.Relative(), g.Figures.MaxDiff, cosineText(&g.Sum),
			percent(number(g.Changed)/number(max(g.Elements, 1))))
	}
	w.Flush() // a.out keeps what goes wrong
}
