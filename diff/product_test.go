package diff_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/diff"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
)

// lora is the pair of one module of an adapter.
type lora struct {
	a, b          []float64 // rank x in, out x rank
	rank, in, out int
	alpha         float64
	dtype         tensor.DType
}

func newLoRA(rng *rand.Rand, rank, in, out int, alpha float64, d tensor.DType) *lora {
	l := &lora{make([]float64, rank*in), make([]float64, out*rank), rank, in, out, alpha, d}
	for _, x := range [][]float64{l.a, l.b} {
		for i := range x {
			x[i] = float64(float32(rng.NormFloat64()))
		}
	}
	return l
}

// write stores the adapter.
func (l *lora) write(t *testing.T) *checkpoint.Model {
	t.Helper()
	f := &folder{name: "adapter_model.safetensors", files: map[string]string{
		"adapter_config.json": fmt.Sprintf(`{"peft_type": "LORA", "r": %d, "lora_alpha": %v, "target_modules": ["q_proj"]}`, l.rank, l.alpha)}}
	for _, x := range []struct {
		name       string
		values     []float64
		rows, cols int
	}{{"A", l.a, l.rank, l.in}, {"B", l.b, l.out, l.rank}} {
		var raw []byte
		for _, v := range x.values {
			if l.dtype == tensor.F64 {
				raw = binary.LittleEndian.AppendUint64(raw, math.Float64bits(v))
			} else {
				raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(float32(v)))
			}
		}
		f.set("base_model.model.layers.0.q_proj.lora_"+x.name+".weight", l.dtype, raw, int64(x.rows), int64(x.cols))
	}
	return f.write(t)
}

// change is scale·B·A, the slow way.
func (l *lora) change() []float64 {
	d := make([]float64, l.out*l.in)
	for i := range l.out {
		for j := range l.in {
			for k := range l.rank {
				d[i*l.in+j] += l.b[i*l.rank+k] * l.a[k*l.in+j]
			}
			d[i*l.in+j] *= l.alpha / float64(l.rank)
		}
	}
	return d
}

// size bounds what enters the rounding of a product: scale·||B||·||A||.
func (l *lora) size() float64 { return l.alpha / float64(l.rank) * norm(l.a) * norm(l.b) }

func norm(x []float64) float64 {
	sum := 0.0
	for _, v := range x {
		sum += v * v
	}
	return math.Sqrt(sum)
}

func product(t *testing.T, x, y *lora, o diff.Options) (*diff.Product, *diff.Result) {
	t.Helper()
	r := compare(t, x.write(t), y.write(t), o)
	if len(r.Products) != 1 {
		t.Fatalf("%d products, want 1", len(r.Products))
	}
	return &r.Products[0], r
}

// TestProduct guards the norms of the changes and of their difference against products
// that are formed, over shapes, ranks of both sides, and ranks beyond the width.
func TestProduct(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, c := range []struct{ rank1, rank2, in, out int }{
		{1, 1, 1, 1}, {1, 3, 5, 4}, {4, 4, 9, 7}, {8, 2, 6, 20}, {16, 16, 40, 30}, {5, 9, 3, 3}, {12, 12, 13, 600},
	} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			x := newLoRA(rng, c.rank1, c.in, c.out, 16, tensor.F32)
			y := newLoRA(rng, c.rank2, c.in, c.out, 3, tensor.F32)
			got, _ := product(t, x, y, diff.Options{})
			dx, dy := x.change(), y.change()
			d, dot := make([]float64, len(dx)), 0.0
			for i := range d {
				d[i] = dx[i] - dy[i]
				dot += dx[i] * dy[i]
			}
			// Reflections of n elements change a factor by a few n·2^-53 of its norm, once
			// for each of the rows; so do the sums of both ways. 8 of them are ample.
			ranks := float64(c.rank1 + c.rank2)
			bound := 8 * ranks * float64(c.in+c.out) * 0x1p-53 * (x.size() + y.size())
			a, b := got.Norms()
			for _, v := range []struct {
				name      string
				got, want float64
				bound     float64
			}{
				{"A", a, norm(dx), bound}, {"B", b, norm(dy), bound}, {"A-B", got.DiffNorm(), norm(d), bound},
				{"A·B", got.Figures.Dot, dot, bound * (x.size() + y.size())},
			} {
				if !(math.Abs(v.got-v.want) <= v.bound) {
					t.Errorf("%s: %v, want %v (bound %.2g)", v.name, v.got, v.want, v.bound)
				}
			}
		})
	}
}

// TestEqualChanges guards that equal changes with other factors are found equal: what
// is left is rounding, in float64, however far the factors are apart.
func TestEqualChanges(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	x := newLoRA(rng, 8, 200, 150, 16, tensor.F64)
	y := newLoRA(rng, 8, 200, 150, 4, tensor.F64)
	// B·G and G^-1·A with G a permutation with powers of two: the same change, exactly.
	for k := range 8 {
		to, power := (3*k+1)%8, math.Ldexp(1, k-4)
		for j := range x.in {
			y.a[to*x.in+j] = x.a[k*x.in+j] / power
		}
		for i := range x.out {
			y.b[i*8+to] = x.b[i*8+k] * power * 4 // the scale is a quarter
		}
	}
	got, r := product(t, x, y, diff.Options{Limits: diff.Limits{Error: 1e-12}})
	bound := 8 * 16 * 350 * 0x1p-53 * 2 * x.size()
	if !(got.DiffNorm() <= bound) || r.Different || r.Tensors[0].Same {
		t.Errorf("the changes are %v apart (bound %.2g), different: %v", got.DiffNorm(), bound, r.Different)
	}
	y.b[5] += 1e-9 * math.Abs(y.b[5]) // which the squares of norms would not show
	want := 0.0
	for j := range y.in {
		v := y.a[5*y.in+j] * 1e-9 * y.b[5] * 0.5
		want += v * v
	}
	want = math.Sqrt(want)
	got, r = product(t, x, y, diff.Options{Limits: diff.Limits{Error: 1e-12}})
	if math.Abs(got.DiffNorm()-want) > bound+1e-8*want || !r.Different {
		t.Errorf("one factor's element was changed: the changes are %v apart, want %v; different: %v", got.DiffNorm(), want, r.Different)
	}
}

// TestSameFactors: the same factors are the same change, to the bit.
func TestSameFactors(t *testing.T) {
	x := newLoRA(rand.New(rand.NewPCG(5, 6)), 8, 200, 150, 16, tensor.F32)
	got, r := product(t, x, x, diff.Options{})
	if got.DiffNorm() != 0 || r.AllProducts.Differing != 0 {
		t.Errorf("an adapter differs from itself by %v", got.DiffNorm())
	}
}

// TestAlignedRow guards rows that point along an axis but for what rounding could hide:
// a reflection of the wrong sign would divide by nothing.
func TestAlignedRow(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	x := newLoRA(rng, 2, 30, 20, 2, tensor.F64)
	for j := range x.in {
		x.a[j] *= 1e-12
	}
	x.a[0] = 1
	y := &lora{append([]float64(nil), x.a...), append([]float64(nil), x.b...), 2, 30, 20, 2, tensor.F64}
	y.a[7] += 1e-3
	got, _ := product(t, x, y, diff.Options{})
	want := 0.0 // the first column of B times what was added
	for i := range x.out {
		want += x.b[2*i] * x.b[2*i] * 1e-6
	}
	if want = math.Sqrt(want); math.Abs(got.DiffNorm()-want) > 8*4*50*0x1p-53*(x.size()+y.size()) {
		t.Errorf("the changes are %v apart, want %v", got.DiffNorm(), want)
	}
}

// TestNoProduct guards that factors whose rank is not that of the config, as those of
// stacked experts, are not taken for one product.
func TestNoProduct(t *testing.T) {
	x := newLoRA(rand.New(rand.NewPCG(9, 9)), 4, 10, 10, 4, tensor.F32)
	m := x.write(t)
	f := &folder{name: "adapter_model.safetensors", files: map[string]string{
		"adapter_config.json": `{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}`}}
	for _, s := range m.Specs() {
		raw := make([]byte, s.Size())
		f.set(s.Name, s.DType, raw, s.Shape...)
	}
	if r := compare(t, m, f.write(t), diff.Options{}); len(r.Products) != 0 || r.All.Tensors != 2 {
		t.Errorf("%d products, %d tensors", len(r.Products), r.All.Tensors)
	}
}

// TestProductLimits guards what a limit binds: factors of other ranks can't be compared,
// and need not be when the product is.
func TestProductLimits(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	x := newLoRA(rng, 4, 30, 20, 8, tensor.F32)
	y := newLoRA(rng, 6, 30, 20, 12, tensor.F32)
	copy(y.a, x.a)
	for i := range x.out { // the two further directions are small
		copy(y.b[i*6:], x.b[i*4:i*4+4])
		y.b[i*6+4], y.b[i*6+5] = 1e-4*y.b[i*6+4], 1e-4*y.b[i*6+5]
	}
	for i := range y.b {
		y.b[i] = float64(float32(y.b[i]))
	}
	got, r := product(t, x, y, diff.Options{Limits: diff.Limits{Error: 0.01}})
	if r.Different || got.Differing != 1 || got.Ranks != [2]int64{4, 6} || got.Scales != [2]float64{2, 2} {
		t.Errorf("different: %v, %+v", r.Different, got)
	}
	if rel := got.Relative(); !(rel > 1e-6 && rel < 1e-3) {
		t.Errorf("relative error %v, want about 1e-4", rel)
	}
	for _, l := range []diff.Limits{{}, {Error: 1e-6}, {Abs: 100}} {
		if _, r := product(t, x, y, diff.Options{Limits: l}); !r.Different {
			t.Errorf("%+v: not different", l)
		}
	}
	// Factors with a NaN have no product, which is within no limit.
	x.a[7] = math.NaN()
	got, r = product(t, x, y, diff.Options{Limits: diff.Limits{Error: 1e300}})
	if !r.Different || got.Differing != 1 || !math.IsNaN(got.Relative()) {
		t.Errorf("with a NaN: different %v, relative error %v", r.Different, got.Relative())
	}
}
