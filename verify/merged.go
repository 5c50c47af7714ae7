package verify

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/plan"
	"github.com/loratool/loratool/quant/block"
)

// survivalLimit is the share of a change below which its loss by rounding is worth a
// warning: a twentieth of the fine-tune. A merge warns at the same.
const survivalLimit = 0.95

// Merged checks that a model is the merge of the adapters into the base, whoever made
// it: every tensor is computed again in float64 and compared. What other tools round
// on the way is recognised and named ([recipe]). The model is also checked by itself,
// see [Structure].
//
// Adapters that do not fit the base are an error, not a finding: there is no merge
// to compare with. Factors in the wrong place are findings, and the only ones.
// Base and model are both GGUF, or none is; adapters of PEFT go with either.
func Merged(ctx context.Context, base *checkpoint.Model, adapters []merge.Source, mo merge.Options, merged *checkpoint.Model, o Options) (*Report, error) {
	c := &mergeCheck{base: base, merged: merged, shapes: make(map[string]tensor.Shape)}
	if r := misplacedFactors(base, adapters); r != nil {
		return r, nil
	}
	if err := c.plan(adapters, mo); err != nil {
		return nil, err
	}
	var err error
	if c.Report, err = Structure(ctx, merged, o); err != nil {
		return nil, err
	}
	c.begin(familyMerge)
	c.pair(c.base)
	if err := c.checkUnseen(ctx); err != nil {
		return nil, err
	}
	return c.Report, c.run(ctx, o)
}

// mergeCheck is one comparison of a model with a planned merge.
type mergeCheck struct {
	*Report
	base, merged *checkpoint.Model
	seen         *seenGGUF               // a merge of PEFT adapters into a GGUF model; nil for all others
	steps        []plan.Step             // one for every tensor of the merge
	inputs       []checkpoint.Checkpoint // of the steps
	shapes       map[string]tensor.Shape // of what they make, by tensor
	pairs        []mergePair
	types        map[string]int // tensors by "bf16 in place of f32"
}

// mergePair is a step of the plan and the tensor that should hold what it makes.
type mergePair struct {
	step    *plan.Step
	stored  tensor.Spec
	codes   *block.GGML // that hold what the step makes; nil where numbers do
	shifted bool        // it is stored with 1 added, in F32
	found   comparison
}

// plan decides the merge that the model should be.
func (c *mergeCheck) plan(adapters []merge.Source, mo merge.Options) error {
	switch {
	case c.base.GGUF() == nil && c.merged.GGUF() == nil:
		return c.planMerge(adapters, mo)
	case c.base.GGUF() == nil:
		return c.merged.RefuseGGUF("a comparison of a merge of another model with")
	case c.merged.GGUF() == nil:
		return c.base.RefuseGGUF("a comparison of another model with a merge into")
	}
	if areAllPEFT(adapters) {
		return c.planSeen(adapters, mo)
	}
	return c.planGGUF(adapters)
}

func (c *mergeCheck) planMerge(adapters []merge.Source, mo merge.Options) error {
	mo.NoProvenance = true
	m, err := merge.Plan(c.base, adapters, mo)
	if err != nil {
		return err
	}
	c.steps, c.inputs = m.Plan.Steps, m.Inputs
	for i := range m.Layout.Files {
		for _, t := range m.Layout.Files[i].Tensors() {
			c.shapes[t.Name] = t.Shape
		}
	}
	return nil
}

// pair finds the stored tensor of every step. Of tied embeddings a file holds one or
// both, as its writer liked.
func (c *mergeCheck) pair(base *checkpoint.Model) {
	embedding, head := tiedNames(base, c.merged)
	c.types = make(map[string]int)
	planned := make(map[string]bool)
	steps := make(map[string]*plan.Step)
	for i := range c.steps {
		s := &c.steps[i]
		name := s.Write.Tensor
		planned[name], steps[name] = true, s
		stored, ok := c.lookup(name)
		if !ok && name == head {
			stored, ok = c.lookup(embedding)
		}
		if !ok {
			c.add("merge-missing", name, "the merge has it, the model does not")
			continue
		}
		planned[stored.Name] = true
		c.addPair(s, stored)
	}
	for _, spec := range c.merged.Specs() {
		switch {
		case planned[spec.Name]:
		case spec.Name == head && steps[embedding] != nil:
			c.addPair(steps[embedding], spec)
		default:
			c.add("merge-extra", spec.Name, "the model has it, the merge does not")
		}
	}
	for _, change := range slices.Sorted(maps.Keys(c.types)) {
		c.add("merge-dtype", "", "%d tensors are stored as %s", c.types[change], change)
	}
}

// lookup finds a tensor by its name, or by one that older files have for it.
func (c *mergeCheck) lookup(name string) (tensor.Spec, bool) {
	spec, ok := c.merged.Lookup(name)
	for _, old := range arch.OldNames(name) {
		if ok {
			break
		}
		spec, ok = c.merged.Lookup(old)
	}
	return spec, ok
}

// tiedNames returns the names of the embedding and the head if the model's config
// ties them; "" otherwise.
func tiedNames(base, merged *checkpoint.Model) (embedding, head string) {
	config := hfrepo.NewConfig(base.Config)
	if merged.Config != nil {
		config = hfrepo.NewConfig(merged.Config)
	}
	names := func(yield func(string) bool) {
		for _, s := range base.Specs() {
			if !yield(s.Name) {
				return
			}
		}
	}
	embedding, head, ok := arch.Embeddings(names, config.Architecture())
	tied, stated := config.Tied()
	_, stored := base.Lookup(head)
	if !ok || stated && !tied || !stated && stored || !arch.HasHead(config.Architecture()) {
		return "", ""
	}
	return embedding, head
}

// addPair takes up a comparison unless shapes or types say already that there is
// nothing to compare.
func (c *mergeCheck) addPair(s *plan.Step, stored tensor.Spec) {
	want := c.shapes[s.Write.Tensor]
	d, derived := c.merged.Derived(stored.Name)
	switch {
	case !stored.Shape.Equal(want):
		c.add("merge-shape", stored.Name, "its shape is %s, that of the merge %s", stored.Shape, want)
		return
	case c.seen != nil:
		c.addSeenPair(s, stored)
		return
	case c.merged.GGUF() != nil:
		c.addGGUFPair(s, stored)
		return
	case derived:
		c.add("not-compared", stored.Name, "it is stored as %s: that is another change than the merge, see --quantized", d.Kind)
		return
	case stored.DType.IsFloat() != s.Write.DType.IsFloat(), !stored.DType.IsFloat() && stored.DType != s.Write.DType, stored.DType.IsFP8():
		c.add("not-compared", stored.Name, "it is stored as %s, the merge has %s", stored.DType, s.Write.DType)
		return
	case stored.DType != s.Write.DType:
		c.types[fmt.Sprintf("%s instead of %s", stored.DType, s.Write.DType)]++
	}
	c.pairs = append(c.pairs, mergePair{step: s, stored: stored})
}

// run compares all pairs and judges them in the order of the plan.
func (c *mergeCheck) run(ctx context.Context, o Options) error {
	tasks := make([]plan.Task, len(c.pairs))
	for i := range c.pairs {
		p := &c.pairs[i]
		w := &comparer64{inputs: c.inputs, merged: c.merged, step: p.step, stored: p.stored, codes: p.codes, shifted: p.shifted}
		tasks[i] = plan.Task{Name: p.stored.Name, Reads: p.step.InBytes() + p.stored.Size(), Scratch: w.scratch(), Do: func(ctx context.Context, _ int) (err error) {
			p.found, err = w.compare(ctx)
			return err
		}}
	}
	if err := engine.Each(ctx, tasks, o.Engine); err != nil {
		return err
	}
	figures := &MergeFigures{Survival: 1}
	var delta, kept float64
	for i := range c.pairs {
		p := &c.pairs[i]
		c.judge(p)
		figures.Values += p.found.values
		figures.Nearest += p.found.nearest
		figures.Tensors = append(figures.Tensors, p.figures())
		if !p.step.Judge {
			figures.Unchanged++
			continue
		}
		figures.Changed++
		delta += p.found.delta
		kept += p.found.kept
	}
	figures.DeltaNorm = math.Sqrt(delta)
	if delta > 0 {
		figures.Survival = kept / delta
	}
	c.Merge = figures
	c.judgeAll()
	return nil
}

// figures are those of one tensor.
func (p *mergePair) figures() MergedTensor {
	f := &p.found
	t := MergedTensor{Tensor: p.stored.Name, Changed: p.step.Judge, Values: f.values, Nearest: f.nearest, Outside: f.outside, Survival: 1}
	if p.step.Judge && f.delta > 0 {
		t.DeltaNorm, t.Survival = math.Sqrt(f.delta), f.kept/f.delta
	}
	return t
}

// judge turns what was found about one tensor into findings.
func (c *mergeCheck) judge(p *mergePair) {
	f, name := &p.found, p.stored.Name
	if p.codes != nil {
		c.judgeCodes(p)
		return
	}
	if f.overflowed > 0 {
		c.add("overflow", name, "%d of its %d values are infinite in %s, and finite in the merge", f.overflowed, f.values, p.stored.DType).
			measured(float64(f.overflowed), 0)
	}
	switch {
	case f.outside == 0:
	case f.recipe != nil:
		c.add(f.recipe.code, name, "%d of its %d values are not the nearest: %s", f.outside, f.values, f.recipe.name).
			measured(float64(f.outside), 0)
	case !p.step.Judge:
		c.add("tensor-changed", name, "no adapter changes it, but %d of its %d values are not the base's, by up to %.4g, first element %d",
			f.outside, f.values, f.largest, f.first).measured(float64(f.outside), 0)
		return
	default:
		c.blame(p)
		return
	}
	switch {
	case p.step.Judge && f.delta == 0 && p.step.Read.Input == 0:
		c.add("delta-zero", name, "the adapters have factors for it, and change nothing")
	case p.step.Judge && f.delta > 0 && f.kept/f.delta < survivalLimit:
		c.add("delta-survival", name, "%.4g of the change is left after rounding to %s", f.kept/f.delta, p.stored.DType).
			measured(f.kept/f.delta, survivalLimit)
	}
}

// blame says how a changed tensor is wrong. With D the change and Y - W what is
// there, c = <Y-W,D>/<D,D> is the scale at which D explains most of it. If what is
// left is within rounding, the tensor holds c times the change.
func (c *mergeCheck) blame(p *mergePair) {
	f, name := &p.found, p.stored.Name
	norm := math.Sqrt(f.delta)
	scale := f.kept / f.delta
	left := math.Sqrt(math.Max(f.change-scale*scale*f.delta, 0))
	// Neither the stored values nor the base as somebody else rounded it are nearer.
	rounding := 2 * math.Sqrt(f.rounding)
	switch {
	case f.change == 0:
		c.add("delta-missing", name, "it is the base, value by value: the change of the adapters is not in it").measured(0, 1)
	case f.delta == 0 || left > rounding || math.Abs(scale-1)*norm <= rounding:
		c.add("deviates", name, "%d of its %d values are not those of the merge, by up to %.4g; first element %d is %v, computed %v",
			f.outside, f.values, f.largest, f.first, f.stored, f.exact).measured(f.largest, f.allowed)
	case math.Abs(scale)*norm <= rounding:
		c.add("delta-missing", name, "it is the base up to rounding: the change of the adapters is not in it").measured(scale, 1)
	default:
		c.add("delta-scale", name, "it holds %.4g times the change%s", scale, explainScale(p.step, scale, rounding/norm)).measured(scale, 1)
	}
}

// explainScale names the mistakes that give a known scale, within a tolerance.
func explainScale(s *plan.Step, scale, tolerance float64) string {
	is := func(want float64) bool { return math.Abs(scale-want) <= tolerance }
	root := rootOfRank(s)
	switch {
	case is(2):
		return ": it was applied twice"
	case is(-1):
		return ": it was subtracted"
	case root > 1 && is(root):
		return ": alpha/sqrt(r) was taken, where the config says alpha/r"
	case root > 1 && is(1/root):
		return ": alpha/r was taken, where the config says alpha/sqrt(r)"
	}
	return ""
}

// rootOfRank is sqrt(r) of a step that adds one low-rank product, 0 of others.
func rootOfRank(s *plan.Step) float64 {
	if stages := s.Stages; len(stages) == 1 && stages[0].Op.Kind() == "add_lora" {
		return math.Sqrt(float64(stages[0].Sides[0].Rows()))
	}
	return 0
}

// judgeAll adds what the findings mean together.
func (c *mergeCheck) judgeAll() {
	counts := make(map[string]int)
	for _, f := range c.Findings {
		counts[f.Code]++
	}
	if n := counts["delta-missing"]; n > 0 && n == c.Merge.Changed {
		c.add("adapter-missing", "", "none of the %d changed tensors holds the change: this is the base", n).measured(float64(n), 0)
	}
	if n := counts["tensor-changed"]; n > 0 && 2*n > c.Merge.Unchanged {
		c.add("other-base", "", "%d of the %d tensors that no adapter changes are not those of this base", n, c.Merge.Unchanged).
			measured(float64(n), 0)
	}
}

// comparer64 computes one step again and compares.
type comparer64 struct {
	inputs  []checkpoint.Checkpoint
	merged  *checkpoint.Model
	step    *plan.Step
	stored  tensor.Spec
	codes   *block.GGML // that the tensor is stored in; nil for numbers
	shifted bool        // it is stored with 1 added, in F32

	factors tensor.DType // that side inputs are rounded to first; none leaves them
	funcs   []plan.Func[float64]
	in, out *reader
}

// comparison is what was found about one tensor. Of the sums, with W the base, D the
// change in float64 and Y what is stored: delta is <D,D>, kept <Y-W,D>, change
// <Y-W,Y-W>, and rounding the square of what rounding can do to Y.
type comparison struct {
	values, nearest, outside      int64
	overflowed                    int64 // values that are infinite and should not be
	delta, kept, change, rounding float64

	largest                float64 // |Y - (W+D)| of the values outside
	first                  int64   // of these, with what it is, should be and may be off by
	stored, exact, allowed float64
	recipe                 *recipe  // that gives Y, where one rounding does not
	codes                  recoding // of what is stored in blocks
}

// blocksHeld at once are W, the result, Y, two bounds and two more for a recipe, and
// the bytes of both files.
const blocksHeld = 9

func (w *comparer64) scratch() int64 {
	blocks := int64(blocksHeld + len(w.step.Stages))
	return 8 * (w.step.SideElements() + blocks*max(chunkElements, w.step.Read.Cols))
}

// compare compares the whole tensor: with one rounding and, where that is not what
// happened, with the recipes of other tools.
func (w *comparer64) compare(ctx context.Context) (comparison, error) {
	if _, ok := block.For(w.step.Read.Spec.DType); !ok {
		return w.compareBytes(ctx)
	}
	if err := w.bind(ctx); err != nil {
		return comparison{}, err
	}
	defer func() { w.funcs = nil }() // the factors
	if w.codes != nil {
		return w.compareCodes(ctx)
	}
	var c comparison
	err := w.each(ctx, func(b *compared) error {
		b.judge(&c, w)
		return nil
	})
	if err != nil || c.outside == 0 {
		return c, err
	}
	c.recipe, err = w.recognise(ctx)
	return c, err
}

// compareBytes compares a tensor that is not numbers.
func (w *comparer64) compareBytes(ctx context.Context) (c comparison, err error) {
	a, err := w.inputs[w.step.Read.Input].Open(w.step.Read.Tensor)
	if err != nil {
		return c, err
	}
	b, err := w.merged.Open(w.stored.Name)
	if err != nil {
		return c, err
	}
	width := max(w.stored.DType.Bits()/8, 1)
	x, y := make([]byte, chunkBytes), make([]byte, chunkBytes)
	for off, size := int64(0), w.stored.Size(); off < size; off += chunkBytes {
		if err := ctx.Err(); err != nil {
			return c, err
		}
		n := min(chunkBytes, size-off)
		if err := readFull(a, x[:n], off); err != nil {
			return c, readError(w.inputs[w.step.Read.Input], w.step.Read.Tensor, err)
		}
		if err := readFull(b, y[:n], off); err != nil {
			return c, readError(w.merged, w.stored.Name, err)
		}
		for at := int64(0); at < n; at += width {
			c.values++
			if slices.Equal(x[at:min(at+width, n)], y[at:min(at+width, n)]) {
				c.nearest++
				continue
			}
			if c.outside == 0 {
				c.first = (off + at) / width
			}
			c.outside++
		}
	}
	return c, nil
}

// bind opens the tensors, binds the stages in float64, and lets those observe that
// must see the whole first.
func (w *comparer64) bind(ctx context.Context) error {
	s := w.step
	var err error
	read := s.Read.Spec
	read.Name = s.Read.Tensor
	if w.in, _, err = newReader(w.inputs[s.Read.Input], read); err != nil {
		return err
	}
	if w.out, _, err = newReader(w.merged, w.stored); err != nil {
		return err
	}
	w.funcs = nil
	for _, st := range s.Stages {
		sides := make([]tensor.Matrix[float64], len(st.Sides))
		for i, side := range st.Sides {
			src, err := w.inputs[side.Input].Open(side.Tensor)
			if err != nil {
				return err
			}
			if sides[i], err = engine.ReadMatrix[float64](src, side); err != nil {
				return err
			}
			if w.factors != tensor.NoDType {
				new(compared).round(w.factors, sides[i].Data)
			}
		}
		f, err := st.Op.Bind64(sides)
		if err != nil {
			return fmt.Errorf("%s: %w", st.Op.Kind(), err)
		}
		w.funcs = append(w.funcs, f)
	}
	return w.observe(ctx)
}

// observe streams the tensor through the earlier stages for each pass of a stage that
// asks for it.
func (w *comparer64) observe(ctx context.Context) error {
	for at, f := range w.funcs {
		o, ok := f.(plan.Observer[float64])
		if !ok {
			continue
		}
		for pass := range o.Passes() {
			err := w.bands(ctx, func(b plan.Band[float64]) error {
				for _, earlier := range w.funcs[:at] {
					if err := earlier.Apply(b); err != nil {
						return err
					}
				}
				return o.Observe(pass, b)
			})
			if err != nil {
				return err
			}
			if err := o.Finish(pass); err != nil {
				return err
			}
		}
	}
	return nil
}

// bands reads the input band by band.
func (w *comparer64) bands(ctx context.Context, f func(plan.Band[float64]) error) error {
	s := w.step
	rows := max(chunkElements/max(s.Read.Cols, 1), 1)
	x := make([]float64, rows*s.Read.Cols)
	for row := s.Read.From; row < s.Read.To; row += rows {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(rows, s.Read.To-row)
		values := x[:n*s.Read.Cols]
		if err := w.in.read(values, row*s.Read.Cols); err != nil {
			return err
		}
		if err := f(plan.Band[float64]{Row: row, Rows: int(n), Cols: int(s.Read.Cols), X: values}); err != nil {
			return err
		}
	}
	return nil
}

// compared is a band on both sides: the base w, the exact result x,
// what is stored y.
type compared struct {
	first    int64 // element of the tensor
	w, x, y  []float64
	band     plan.Band[float64] // over w, for those who apply stages themselves
	noise    float64            // what float32 arithmetic may add to a value
	lo, hi   []float64          // buffers, these and the next
	change   []float64
	encoding []byte
}

// each calls f with one band after another.
func (w *comparer64) each(ctx context.Context, f func(*compared) error) error {
	var b compared
	s := w.step
	return w.bands(ctx, func(band plan.Band[float64]) error {
		b.first, b.band, b.w = (band.Row-s.Read.From)*s.Read.Cols, band, band.X
		b.x, b.y = append(b.x[:0], band.X...), resized(b.y, len(band.X))
		result := band
		result.X = b.x
		for _, fn := range w.funcs {
			if err := fn.Apply(result); err != nil {
				return err
			}
		}
		b.noise = 0
		if len(s.Stages) > 0 {
			b.noise = operations(s) * roundoff(s) * (largest(b.w) + largestDifference(b.x, b.w))
		}
		if w.shifted && (s.Judge || s.Read.Input != 0) { // the nearest to 1 + x, from which 1 was taken again
			b.noise += ulp(tensor.F32, 1+largest(b.x)) / 2
		}
		if err := w.out.read(b.y, b.first); err != nil {
			return err
		}
		return f(&b)
	})
}

// judge adds a band to the comparison: a value is right if it lies between the
// roundings of x - noise and x + noise.
func (b *compared) judge(c *comparison, w *comparer64) {
	b.lo, b.hi = resized(b.lo, len(b.x)), resized(b.hi, len(b.x))
	for i, x := range b.x {
		b.lo[i], b.hi[i] = x-b.noise, x+b.noise
	}
	b.round(w.stored.DType, b.lo)
	b.round(w.stored.DType, b.hi)
	for i, y := range b.y {
		c.values++
		x, base := b.x[i], b.w[i]
		if d := x - base; d-d == 0 && y-y == 0 {
			c.delta += d * d
			c.kept += (y - base) * d
			c.change += (y - base) * (y - base)
		}
		if math.IsInf(y, 0) && x-x == 0 {
			c.overflowed++
		}
		half := ulp(w.stored.DType, x)/2 + b.noise
		c.rounding += half * half
		off := math.Abs(y - x)
		if y == x || math.IsNaN(y) && math.IsNaN(x) || off <= half-b.noise {
			c.nearest++
		}
		if within(y, b.lo[i], b.hi[i]) {
			continue
		}
		if c.outside == 0 {
			c.first, c.stored, c.exact = b.first+int64(i), y, x
		}
		c.outside++
		if off > c.largest {
			c.largest, c.allowed = off, half
		}
	}
}

// within reports whether a stored value is between two bounds; a NaN is where there
// is one.
func within(y, lo, hi float64) bool {
	return lo <= y && y <= hi || math.IsNaN(y) && math.IsNaN(lo)
}

// round rounds values to a type, in place.
func (b *compared) round(d tensor.DType, x []float64) {
	codec, _ := block.For(d)
	b.encoding = resized(b.encoding, len(x)*int(d.Bits()/8))
	codec.Encode64(b.encoding, x)
	codec.Decode64(x, b.encoding)
}

func largest(x []float64) float64 {
	most := 0.0
	for _, v := range x {
		if a := math.Abs(v); a > most && !math.IsInf(a, 0) {
			most = a
		}
	}
	return most
}

func largestDifference(x, y []float64) float64 {
	most := 0.0
	for i, v := range x {
		if a := math.Abs(v - y[i]); a > most && !math.IsInf(a, 0) {
			most = a
		}
	}
	return most
}

// resized returns a slice of length n, reusing buf when it is large enough.
func resized[E any](buf []E, n int) []E {
	if cap(buf) < n {
		return make([]E, n)
	}
	return buf[:n]
}
