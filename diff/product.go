package diff

import (
	"context"
	"math"
	"slices"
	"strings"

	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/plan"
	"github.com/loratool/loratool/quant/block"
)

// This file compares what two adapters do to a weight,
//
//	D = s1·B1·A1 - s2·B2·A2
//
// without forming it. With the rows of A1 above those of A2, [A1; A2] = L·Q where Q has
// orthonormal rows, and L = [L1; L2] has as many rows and at most as many columns:
//
//	s·B·A = (s·B·L)·Q,  so that ||D|| = ||s1·B1·L1 - s2·B2·L2||
//
// and norms and scalar products are those of matrices as narrow as the two ranks
// together. Q is never needed. All of it is float64: with Householder reflections L is
// that of factors within a few 2^-53 of the given ones, and the difference is taken
// before any square, so that what two equal changes seem to differ in is some 2^-53 times
// their ranks and sizes, not the root of it.

// factors is what an adapter adds to one weight: scale · B·A.
type factors struct {
	a, b  tensor.Spec // (rank, in), (out, rank)
	scale float64
}

// Change is a module that an adapter changes by scale · B·A and nothing else.
type Change struct {
	Module string
	A, B   tensor.Spec // (rank, in), (out, rank)
	Scale  float64
}

// Changes lists the modules that an adapter changes by a product, in the order of its
// data; none for other adapters and for models.
func Changes(m *checkpoint.Model) ([]Change, error) {
	t, err := productsOf(m)
	if err != nil {
		return nil, err
	}
	var all []Change
	for _, s := range m.Specs() {
		if f := t.of[t.factor[s.Name]]; t.factor[s.Name] != "" && f.a.Name == s.Name {
			all = append(all, Change{t.factor[s.Name], f.a, f.b, f.scale})
		}
	}
	return all, nil
}

// product is a module that both adapters change by a product of factors.
type product struct {
	module string
	models [2]*checkpoint.Model
	sides  [2]factors
	found  kernel.Comparison // of the two changes; MaxDiff means nothing
}

// findProducts finds the modules whose changes can be compared as products.
func (d *Diff) findProducts() error {
	a, err := productsOf(d.a)
	if err != nil {
		return err
	}
	b, err := productsOf(d.b)
	if err != nil {
		return err
	}
	for _, p := range d.pairs {
		module, ok := a.factor[p.a.Name]
		if !ok || b.factor[p.b.Name] == "" {
			continue
		}
		f, g := a.of[module], b.of[b.factor[p.b.Name]]
		if f.b.Rows() != g.b.Rows() || f.a.Cols() != g.a.Cols() || p.a.Name != f.a.Name && p.a.Name != f.b.Name {
			continue
		}
		p.covered = d.opts.Limits.Error > 0
		if p.a.Name == f.a.Name {
			d.products = append(d.products, &product{module: module, models: [2]*checkpoint.Model{d.a, d.b}, sides: [2]factors{f, g}})
		}
	}
	return nil
}

// productTable is the modules of an adapter that are products.
type productTable struct {
	of     map[string]factors
	factor map[string]string // the module of a tensor that is a factor
}

func (t *productTable) add(module string, f factors) {
	t.of[module] = f
	t.factor[f.a.Name], t.factor[f.b.Name] = module, module
}

// productsOf lists the modules of an adapter that are products of two factors and nothing
// else; what is more than that is compared tensor by tensor.
func productsOf(m *checkpoint.Model) (productTable, error) {
	t := productTable{make(map[string]factors), make(map[string]string)}
	switch {
	case m.IsAdapter():
		ad, err := adapter.Open(m)
		if err != nil {
			return t, err
		}
		t.addPEFT(ad)
	case m.GGUF() != nil:
		t.addGGUF(m)
	}
	return t, nil
}

// addPEFT adds the modules of a LoRA adapter.
func (t *productTable) addPEFT(ad *adapter.Adapter) {
	if ad.Config.Type != "LORA" || ad.Config.DoRA || ad.Config.KaSA {
		return
	}
	for _, m := range ad.Modules {
		a, okA := m.Part("lora_A")
		b, okB := m.Part("lora_B")
		if e, ok := m.Part("lora_embedding_A"); ok {
			a, okA = e, true
			b, okB = m.Part("lora_embedding_B")
		}
		// Experts have as many ranks as the config says for each of them.
		if okA && okB && isProduct(a, b) && a.Rows() == ad.Config.RankOf(m.Name) && m.Depth <= 1 {
			t.add(m.Name, factors{a, b, ad.Config.ScaleOf(m.Name)})
		}
	}
}

// addGGUF adds the pairs of a GGUF adapter, which has one alpha for all.
func (t *productTable) addGGUF(m *checkpoint.Model) {
	const suffixA, suffixB = ".lora_a", ".lora_b"
	alpha, stated, err := m.GGUF().Metadata().OptFloat("adapter.lora.alpha")
	if err != nil || !stated {
		return
	}
	for _, a := range m.Specs() {
		module, ok := strings.CutSuffix(a.Name, suffixA)
		b, found := m.Lookup(module + suffixB)
		if !ok || !found || !isProduct(a, b) || len(a.Shape) != 2 {
			continue
		}
		scale := 1.0 // as llama.cpp takes an alpha of 0
		if alpha != 0 {
			scale = alpha / float64(a.Rows())
		}
		t.add(module, factors{a, b, scale})
	}
}

func isProduct(a, b tensor.Spec) bool {
	return len(a.Shape) >= 2 && len(a.Shape) == len(b.Shape) && b.Cols() == a.Rows() && a.Rows() > 0 &&
		a.DType.IsFloat() && b.DType.IsFloat()
}

// task is the comparison of a module.
func (p *product) task() plan.Task {
	const wide = 8
	f, g := p.sides[0], p.sides[1]
	ranks := f.a.Rows() + g.a.Rows()
	reads := f.a.Size() + f.b.Size() + g.a.Size() + g.b.Size()
	return plan.Task{
		Name: p.module, Reads: reads,
		// The factors as stored and wide, the triangle, and a row of either product.
		Scratch: 2*wide*(f.a.NumElements()+g.a.NumElements()+f.b.NumElements()+g.b.NumElements()) + wide*ranks*(ranks+2),
		Do:      func(ctx context.Context, _ int) error { return p.compare(ctx) },
	}
}

// compare compares the two changes row by row.
func (p *product) compare(ctx context.Context) error {
	var a, b [2][]float64
	for i, f := range p.sides {
		var err error
		if a[i], err = readWide(p.models[i], f.a); err != nil {
			return err
		}
		if b[i], err = readWide(p.models[i], f.b); err != nil {
			return err
		}
	}
	if !allFinite(a[0], a[1], b[0], b[1]) {
		nan := math.NaN()
		p.found = kernel.Comparison{DiffSquares: nan, ASquares: nan, BSquares: nan, Dot: nan}
		return nil
	}
	r0, r1 := int(p.sides[0].a.Rows()), int(p.sides[1].a.Rows())
	in, out := int(p.sides[0].a.Cols()), int(p.sides[0].b.Rows())
	rows := append(a[0], a[1]...)
	if slices.Equal(a[0], a[1]) {
		rows = a[0] // then what is equal is so to the bit
	}
	l, width := lowerFactor(rows, len(rows)/max(in, 1), in)
	lower := [2][]float64{l[:r0*width], l[len(l)-r1*width:]}
	x, y := make([]float64, width), make([]float64, width)
	for i := range out {
		if i%256 == 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
		}
		combine(x, p.sides[0].scale, b[0][i*r0:(i+1)*r0], lower[0])
		combine(y, p.sides[1].scale, b[1][i*r1:(i+1)*r1], lower[1])
		p.found.Add(kernel.Compare(x, y))
	}
	return nil
}

// allFinite reports whether the factors have a product that has a size.
func allFinite(factors ...[]float64) bool {
	for _, f := range factors {
		if slices.ContainsFunc(f, func(v float64) bool { return !isFinite(v) }) {
			return false
		}
	}
	return true
}

// combine sets dst to scale times the sum of rows of l, each with its weight.
func combine(dst []float64, scale float64, weights, l []float64) {
	clear(dst)
	for k, w := range weights {
		axpy(scale*w, l[k*len(dst):(k+1)*len(dst)], dst)
	}
}

// axpy adds alpha times x to y. Each product is rounded before it is added.
func axpy(alpha float64, x, y []float64) {
	x = x[:len(y)]
	for i := range y {
		y[i] += float64(alpha * x[i])
	}
}

// dot is the scalar product in four lanes.
func dot(x, y []float64) float64 {
	var s [4]float64
	y = y[:len(x)]
	n := len(x) &^ 3
	for i := 0; i < n; i += 4 {
		s[0] += float64(x[i] * y[i])
		s[1] += float64(x[i+1] * y[i+1])
		s[2] += float64(x[i+2] * y[i+2])
		s[3] += float64(x[i+3] * y[i+3])
	}
	for i := n; i < len(x); i++ {
		s[0] += float64(x[i] * y[i])
	}
	return s[0] + s[1] + (s[2] + s[3])
}

// lowerFactor returns L, rows x width and row by row, of X = L·Q with orthonormal rows in
// Q, by Householder reflections; width is min(rows, cols). X, rows x cols, is destroyed.
func lowerFactor(x []float64, rows, cols int) (l []float64, width int) {
	width = min(rows, cols)
	for i := range width {
		v := x[i*cols+i : (i+1)*cols]
		norm := scaledNorm(v)
		if norm == 0 {
			continue
		}
		if v[0] > 0 {
			norm = -norm // no cancellation in v[0]-norm
		}
		first := v[0] - norm
		// H = I - v·v^T·factor with v = (row - norm·e), divided by its first element.
		for j := range v {
			v[j] /= first
		}
		v[0] = 1
		factor := -first / norm
		for k := i + 1; k < rows; k++ {
			row := x[k*cols+i : (k+1)*cols]
			axpy(-factor*dot(v, row), v, row)
		}
		v[0] = norm
		clear(v[1:])
	}
	l = make([]float64, rows*width)
	for i := range rows {
		copy(l[i*width:(i+1)*width], x[i*cols:])
	}
	return l, width
}

// scaledNorm is the norm of x; its squares neither overflow nor vanish.
func scaledNorm(x []float64) float64 {
	most := 0.0
	for _, v := range x {
		most = math.Max(most, math.Abs(v))
	}
	if most == 0 || math.IsInf(most, 0) || math.IsNaN(most) {
		return most
	}
	sum := 0.0
	for _, v := range x {
		v /= most
		sum += float64(v * v)
	}
	return most * math.Sqrt(sum)
}

// readWide reads a whole factor.
func readWide(m *checkpoint.Model, spec tensor.Spec) ([]float64, error) {
	codec, ok := block.For(spec.DType)
	if !ok {
		return nil, inputErrorf(m, "tensor %q: no arithmetic is done with %s", spec.Name, spec.DType)
	}
	src, err := m.Open(spec.Name)
	if err != nil {
		return nil, err
	}
	raw := make([]byte, spec.Size())
	if err := readFull(src, raw, 0); err != nil {
		return nil, readError(m, spec.Name, err)
	}
	values := make([]float64, spec.NumElements())
	codec.Decode64(values, raw)
	return values, nil
}
