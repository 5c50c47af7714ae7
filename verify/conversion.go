package verify

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/loratool/loratool/convert"
	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/plan"
)

// This file checks a conversion, whoever made it: from Hugging Face to GGUF, back, or into
// other types or files of the same kind. Every tensor of the base must be in the converted
// model, with the base's values rounded once at most. What the base's tensors are by the
// other names is what package convert says; but the order of rotated heads and the 1 in the
// norms of Gemma, which runtimes have opposite ideas of, are computed here a second time
// (conversion_rows.go), and so is what the keys should be (conversion_keys.go).

// Conversion checks a model against the one that it was converted from. A converted model
// that is quantized is refused, see [Quantized]. The model is also checked by itself, see
// [Structure].
func Conversion(ctx context.Context, base, converted *checkpoint.Model, o Options) (*Report, error) {
	for _, m := range []*checkpoint.Model{base, converted} {
		if m.IsAdapter() {
			return nil, &checkpoint.InputError{Path: m.Path, Err: fmt.Errorf("it is an adapter: conversions of models are checked")}
		}
	}
	r, err := Structure(ctx, converted, o)
	if err != nil {
		return nil, err
	}
	r.begin(familyConversion)
	r.Conversion = new(ConversionFigures)
	c := &conversionCheck{Report: r, base: base, converted: converted}
	for _, check := range conversionChecks {
		if err := check(ctx, c, o); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// conversionChecks are the checks of the family, in the order of their findings.
var conversionChecks = []func(context.Context, *conversionCheck, Options) error{
	checkConvertedKeys, checkConvertedTensors,
}

// ConversionFigures sums up what became of the base's values.
type ConversionFigures struct {
	Tensors int   // that were compared
	Values  int64 // of these tensors
	Exact   int64 // are the base's
	Rounded int64 // are the nearest of another type
}

// conversionCheck is one comparison.
type conversionCheck struct {
	*Report
	base, converted *checkpoint.Model
	expected        *checkpoint.Model // the base as the converted model should be
	ways            map[string]*way   // by the names of the converted model
	pairs           []*convertedPair
}

// sides returns the folder and the file of a conversion between Hugging Face and GGUF;
// false if both models are of one kind.
func (c *conversionCheck) sides() (folder, file *checkpoint.Model, ok bool) {
	switch inBase, inOther := c.base.GGUF() != nil, c.converted.GGUF() != nil; {
	case inBase && !inOther:
		return c.converted, c.base, true
	case !inBase && inOther:
		return c.base, c.converted, true
	}
	return nil, nil, false
}

// convertedPair is a tensor on both sides.
type convertedPair struct {
	want, stored tensor.Spec
	way          *way // nil: what convert makes of it
	found        convertedFound
	cause        cause
}

// convertedFound is what was found about one tensor.
type convertedFound struct {
	total, exact, nearest int64
	neighbours            int64 // that are next to the base's value, and not the nearest
	differ, first         int64
	want, got             float64 // of the first that differs
	largest               float64
}

// checkConvertedTensors pairs the tensors of both sides and compares them.
func checkConvertedTensors(ctx context.Context, c *conversionCheck, o Options) error {
	if o.HeadersOnly {
		return nil
	}
	memory, ok, err := c.expect(o.Engine)
	if err != nil || !ok {
		return err
	}
	o.Engine.Memory = max(o.Engine.WithDefaults().Memory-memory, 1)
	c.ways = c.ownWays()
	if err := c.pairUp(ctx); err != nil {
		return err
	}
	tasks := make([]plan.Task, len(c.pairs))
	for i, p := range c.pairs {
		tasks[i] = plan.Task{Name: p.stored.Name, Reads: p.want.Size() + p.stored.Size(), Scratch: 8 * 6 * chunkElements, Do: func(ctx context.Context, _ int) error {
			return c.compare(ctx, p)
		}}
	}
	if err := engine.Each(ctx, tasks, o.Engine); err != nil {
		return err
	}
	for _, p := range c.pairs {
		c.judge(p)
	}
	return nil
}

// expect sees the base as the converted model should be, and returns the memory that
// computing it holds; false if the two are no forms of one model.
func (c *conversionCheck) expect(o engine.Options) (memory int64, ok bool, err error) {
	folder, file, across := c.sides()
	switch {
	case !across:
		c.expected = c.base
	case folder == c.converted:
		from, err := convert.AsHF(file)
		if err != nil {
			return 0, false, err
		}
		c.expected = from.Model
	default:
		t, err := convert.PlanTensors(folder, c.tokens(file))
		if err != nil {
			return 0, false, err
		}
		if name, _, _ := file.GGUF().Metadata().OptText("general.architecture"); name != t.Architecture {
			c.add("key-differs", "", "general.architecture is %q, a model like the base is %q: the tensors are not compared", name, t.Architecture)
			return 0, false, nil
		}
		o.Memory = o.WithDefaults().Memory / 2
		view, err := engine.NewView(t.Plan, t.Specs, []engine.Source{t.View}, o)
		if err != nil {
			return 0, false, err
		}
		c.expected, memory = folder.As(view), view.Memory()
		c.noteDropped(t.Plan.Decisions)
	}
	for _, s := range c.converted.Specs() {
		if d, is := c.converted.Derived(s.Name); is && across {
			return 0, false, &checkpoint.InputError{Path: c.converted.Path, Err: fmt.Errorf(
				"tensor %q is stored as %s: a quantized model is compared by 'loratool verify --quantized'", s.Name, d.Kind)}
		}
	}
	return memory, true, nil
}

// tokens counts the tokens of a file, 0 without any.
func (c *conversionCheck) tokens(file *checkpoint.Model) int64 {
	v, _ := file.GGUF().Metadata().Get("tokenizer.ggml.tokens")
	return int64(v.Len())
}

// noteDropped names what has no place in GGUF.
func (c *conversionCheck) noteDropped(decisions []plan.Decision) {
	for _, d := range decisions {
		if d.Code != "left-out" && d.Code != "rows-left-out" {
			continue
		}
		for _, name := range d.Tensors {
			c.add("convert-dropped", name, "%s", d.Message)
		}
	}
}

// pairUp finds the tensors that are to be compared, and what one side lacks.
func (c *conversionCheck) pairUp(ctx context.Context) error {
	inConverted, inExpected := modelNames(c.converted), modelNames(c.expected)
	for _, want := range c.expected.Specs() {
		stored, ok := inConverted[withoutModel(want.Name)]
		switch {
		case !ok:
			if err := c.judgeMissing(ctx, want); err != nil {
				return err
			}
		case !stored.Shape.Equal(want.Shape):
			c.judgeShape(want, stored)
		default:
			c.pairs = append(c.pairs, &convertedPair{want: want, stored: stored, way: c.ways[stored.Name]})
		}
	}
	for _, stored := range c.converted.Specs() {
		if _, ok := inExpected[withoutModel(stored.Name)]; !ok {
			if err := c.judgeExtra(ctx, stored); err != nil {
				return err
			}
		}
	}
	return nil
}

// withoutModel is a name without that of the part of a model that is not its head, which
// folders may have or not: loaders know both.
func withoutModel(name string) string {
	for _, part := range []string{"model.", "transformer.", "bert."} {
		if rest, ok := strings.CutPrefix(name, part); ok {
			return rest
		}
	}
	return name
}

// modelNames finds tensors by their names without those parts.
func modelNames(m *checkpoint.Model) map[string]tensor.Spec {
	found := make(map[string]tensor.Spec)
	for _, s := range m.Specs() {
		found[withoutModel(s.Name)] = s
	}
	return found
}

// The names of the embedding and of the head, in GGUF and in most models of transformers.
var embeddingsAndHeads = [][2]string{
	{"token_embd.weight", "output.weight"},
	{"model.embed_tokens.weight", "lm_head.weight"},
	{"transformer.wte.weight", "lm_head.weight"},
	{"wte.weight", "lm_head.weight"},
}

// embeddingFor returns the embedding that stands in for a head that is not stored.
func embeddingFor(head string, m *checkpoint.Model) (tensor.Spec, bool) {
	for _, names := range embeddingsAndHeads {
		if spec, ok := m.Lookup(names[0]); ok && names[1] == head {
			return spec, true
		}
	}
	return tensor.Spec{}, false
}

// judgeMissing says that a tensor is not there. A head that is the embedding need not be.
func (c *conversionCheck) judgeMissing(ctx context.Context, want tensor.Spec) error {
	embedding, ok := embeddingFor(want.Name, c.expected)
	if !ok {
		c.add("convert-missing", want.Name, "the base has it, the converted model does not")
		return nil
	}
	differ := want.NumElements()
	if embedding.Shape.Equal(want.Shape) {
		n, ok, err := countDifferent(ctx, c.expected, want, c.expected, embedding)
		if err != nil {
			return err
		}
		if ok {
			differ = n
		}
	}
	if differ == 0 {
		c.add("head-form", want.Name, "the base stores it beside the embedding, with the same values; the converted model does not")
		return nil
	}
	c.add("head-lost", want.Name, "it is not stored, so that %q stands in for it, of which %d values are others", embedding.Name, differ).
		measured(float64(differ), 0)
	return nil
}

// judgeExtra says that a tensor is new. A head that is the embedding may be.
func (c *conversionCheck) judgeExtra(ctx context.Context, stored tensor.Spec) error {
	embedding, ok := embeddingFor(stored.Name, c.expected)
	if !ok {
		c.add("convert-extra", stored.Name, "the converted model has it, the base does not")
		return nil
	}
	p := &convertedPair{want: embedding, stored: stored}
	differ := stored.NumElements()
	if embedding.Shape.Equal(stored.Shape) {
		if err := c.count(ctx, p); err != nil {
			return err
		}
		differ = p.found.differ
	}
	if differ == 0 {
		c.add("head-form", stored.Name, "the base's head is its embedding; the converted model stores it a second time")
		return nil
	}
	c.add("head-untied", stored.Name, "the base's head is its embedding, of which it has %d other values", differ).measured(float64(differ), 0)
	return nil
}

// judgeShape says how a shape is another.
func (c *conversionCheck) judgeShape(want, stored tensor.Spec) {
	a, b := want.Shape, stored.Shape
	matrices := len(a) == 2 && len(b) == 2
	switch {
	case matrices && a[0] == b[1] && a[1] == b[0]:
		c.add("tensor-transposed", stored.Name, "its shape is %s, that of the base's transpose: it should be %s", b, a)
	case matrices && a[1] == b[1] && b[0] < a[0] && isOfTokens(stored.Name):
		c.add("rows-missing", stored.Name, "it has %d rows of %d: the last tokens are lost", b[0], a[0]).measured(float64(b[0]), float64(a[0]))
	default:
		c.add("convert-shape", stored.Name, "its shape is %s, it should be %s", b, a)
	}
}

// isOfTokens reports whether each row of a tensor is a token's.
func isOfTokens(name string) bool {
	return slices.ContainsFunc(embeddingsAndHeads, func(names [2]string) bool { return name == names[0] || name == names[1] })
}

// compare goes through both sides, and looks for the cause if they differ.
func (c *conversionCheck) compare(ctx context.Context, p *convertedPair) error {
	if err := c.count(ctx, p); err != nil || p.found.differ == 0 {
		return err
	}
	var err error
	p.cause, err = c.explain(ctx, p)
	return err
}

// count compares value by value.
func (c *conversionCheck) count(ctx context.Context, p *convertedPair) error {
	want, err := c.open(p)
	if err != nil {
		return err
	}
	got, ok, err := newReader(c.converted, p.stored)
	if err != nil {
		return err
	}
	if want == nil || !ok {
		return c.countBytes(p)
	}
	x, y, rounded := make([]float64, chunkElements), make([]float64, chunkElements), make([]float64, chunkElements)
	r := rounder{stored: p.stored.DType, source: p.way.widest(p.want.DType)}
	for total := p.want.NumElements(); p.found.total < total; {
		if err := ctx.Err(); err != nil {
			return err
		}
		first := p.found.total
		n := min(chunkElements, total-first)
		if err := want.read(x[:n], first); err != nil {
			return err
		}
		if err := got.read(y[:n], first); err != nil {
			return err
		}
		p.found.look(&r, x[:n], y[:n], rounded[:n], first)
	}
	return nil
}

// open opens what the values of a tensor should be; nil if they are no numbers.
func (c *conversionCheck) open(p *convertedPair) (elements, error) {
	if p.way != nil {
		return p.way.open()
	}
	r, ok, err := newReader(c.expected, p.want)
	if err != nil || !ok {
		return nil, err
	}
	return r, nil
}

// countBytes compares what is no number on both sides.
func (c *conversionCheck) countBytes(p *convertedPair) error {
	p.found.total = p.want.NumElements()
	p.found.differ = p.found.total
	if p.want.DType != p.stored.DType {
		return nil
	}
	a, err := c.expected.Open(p.want.Name)
	if err != nil {
		return err
	}
	b, err := c.converted.Open(p.stored.Name)
	if err != nil {
		return err
	}
	x, y := make([]byte, chunkBytes), make([]byte, chunkBytes)
	for off, size := int64(0), p.want.Size(); off < size; off += chunkBytes {
		n := min(chunkBytes, size-off)
		if err := readFull(a, x[:n], off); err != nil {
			return readError(c.expected, p.want.Name, err)
		}
		if err := readFull(b, y[:n], off); err != nil {
			return readError(c.converted, p.stored.Name, err)
		}
		if !bytes.Equal(x[:n], y[:n]) {
			return nil
		}
	}
	p.found.differ, p.found.exact = 0, p.found.total
	return nil
}

// rounder knows which values a rounding may have made.
type rounder struct {
	compared
	stored tensor.DType
	source tensor.DType // in which a sum may have been rounded before; NoDType for no sum
}

// allows reports whether y is the value of the type on the other side of x than the nearest,
// as those who cut off get it. What has the type already is never rounded. A sum may have
// been rounded in the type of its tensor.
func (r *rounder) allows(x, nearest, y float64) bool {
	if r.source != tensor.NoDType && math.Abs(y-x) < ulp(r.source, x) {
		return true
	}
	return nearest != x && (y < x) != (nearest < x) && math.Abs(y-x) < ulp(r.stored, x)
}

// isSame reports whether two values are one, bit by bit; any NaN is any other.
func isSame(x, y float64) bool {
	return math.Float64bits(x) == math.Float64bits(y) || x != x && y != y
}

// look compares a chunk.
func (f *convertedFound) look(r *rounder, x, y, rounded []float64, first int64) {
	copy(rounded, x)
	r.round(r.stored, rounded)
	for i, v := range x {
		f.total++
		switch {
		case isSame(v, y[i]):
			f.exact++
		case isSame(rounded[i], y[i]):
			f.nearest++
		case r.allows(v, rounded[i], y[i]):
			f.neighbours++
		default:
			if f.differ == 0 {
				f.first, f.want, f.got = first+int64(i), v, y[i]
			}
			f.differ++
			if off := math.Abs(v - y[i]); !(off <= f.largest) {
				f.largest = off
			}
		}
	}
}

// judge turns what was found about a tensor into a finding.
func (c *conversionCheck) judge(p *convertedPair) {
	f, sum := &p.found, c.Report.Conversion
	sum.Tensors++
	sum.Values += f.total
	sum.Exact += f.exact
	sum.Rounded += f.nearest
	switch {
	case f.differ > 0 && p.cause.code != "":
		c.add(p.cause.code, p.stored.Name, "%s", p.cause.message).measured(float64(f.differ), 0)
	case f.differ > 0:
		c.add("value-differs", p.stored.Name, "%d of its %d values are not the base's; first element %d is %v, should be %v, and the largest difference is %.4g",
			f.differ, f.total, f.first, f.got, f.want, f.largest).measured(float64(f.differ), 0)
	case f.neighbours > 0:
		c.add("value-neighbour", p.stored.Name, "%d of its %d values are next to the base's, but not the nearest of %s", f.neighbours, f.total, p.stored.DType).
			measured(float64(f.neighbours), 0)
	}
}
