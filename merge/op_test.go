package merge_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/plan"
)

// mat is a matrix of the slow twins: rows of float64.
type mat [][]float64

func newMat(rows, cols int) mat {
	m := make(mat, rows)
	for i := range m {
		m[i] = make([]float64, cols)
	}
	return m
}

func (m mat) clone() mat {
	c := make(mat, len(m))
	for i, row := range m {
		c[i] = slices.Clone(row)
	}
	return c
}

// side is a side input: a shape and its values, row-major. The values are
// exact in float32, so that both precisions see the same.
type side struct {
	shape tensor.Shape
	v     []float64
}

func randomSide(rng *rand.Rand, shape ...int64) side {
	n, _ := tensor.Shape(shape).NumElements()
	s := side{shape, make([]float64, n)}
	for i := range s.v {
		s.v[i] = float64(float32(rng.Float64()*2 - 1))
	}
	return s
}

// at returns an element by its indices.
func (s side) at(index ...int) float64 {
	k := 0
	for i, x := range index {
		k = k*int(s.shape[i]) + x
	}
	return s.v[k]
}

func matrices[T tensor.Float](sides []side) []tensor.Matrix[T] {
	var all []tensor.Matrix[T]
	for _, s := range sides {
		m := tensor.Matrix[T]{Shape: s.shape, Data: make([]T, len(s.v))}
		for i, v := range s.v {
			m.Data[i] = T(v)
		}
		all = append(all, m)
	}
	return all
}

// apply runs an operation over a matrix in bands of the given number of rows,
// observing first if it asks for it.
func apply[T tensor.Float](t *testing.T, f plan.Func[T], w mat, band int) mat {
	t.Helper()
	cols := len(w[0])
	bands := func(do func(b plan.Band[T]) error) []T {
		var all []T
		for from := 0; from < len(w); from += band {
			to := min(from+band, len(w))
			b := plan.Band[T]{Row: int64(from), Rows: to - from, Cols: cols}
			for _, row := range w[from:to] {
				for _, v := range row {
					b.X = append(b.X, T(v))
				}
			}
			if err := do(b); err != nil {
				t.Fatal(err)
			}
			all = append(all, b.X...)
		}
		return all
	}
	if o, ok := f.(plan.Observer[T]); ok {
		for pass := range o.Passes() {
			bands(func(b plan.Band[T]) error { return o.Observe(pass, b) })
			if err := o.Finish(pass); err != nil {
				t.Fatal(err)
			}
		}
	}
	x := bands(f.Apply)
	out := newMat(len(w), cols)
	for i := range x {
		out[i/cols][i%cols] = float64(x[i])
	}
	return out
}

// The operations under test have factors of at most 8 and values in [-1, 1], so
// that an element is the sum of less than 64 products of magnitude below 64 and
// passes through less than 64 roundings.
const (
	opTolerance32 = 64 * 64 * 0x1p-24
	opTolerance64 = 64 * 64 * 0x1p-53
)

// checkOp compares an operation with its twin in both precisions, for bands of
// one row up to all, which must give the same bits.
func checkOp(t *testing.T, op plan.Op, sides []side, w mat, twin func(w mat)) {
	t.Helper()
	want := w.clone()
	twin(want)
	f32, err := op.Bind(matrices[float32](sides))
	if err != nil {
		t.Fatal(err)
	}
	whole := apply(t, f32, w, len(w))
	compare(t, "float32", whole, want, opTolerance32)
	f64, err := op.Bind64(matrices[float64](sides))
	if err != nil {
		t.Fatal(err)
	}
	compare(t, "float64", apply(t, f64, w, len(w)), want, opTolerance64)
	for band := 1; band < len(w); band++ {
		again, err := op.Bind(matrices[float32](sides))
		if err != nil {
			t.Fatal(err)
		}
		got := apply(t, again, w, band)
		for i := range got {
			if !slices.Equal(got[i], whole[i]) {
				t.Fatalf("bands of %d: row %d is %v, of the whole it is %v", band, i, got[i], whole[i])
			}
		}
	}
}

func compare(t *testing.T, what string, got, want mat, tolerance float64) {
	t.Helper()
	for i := range want {
		for j, v := range want[i] {
			if !(math.Abs(got[i][j]-v) <= tolerance) {
				t.Fatalf("%s: element %d,%d is %v, want %v", what, i, j, got[i][j], v)
			}
		}
	}
}

func randomMat(rng *rand.Rand, rows, cols int) mat {
	m := newMat(rows, cols)
	for i := range m {
		for j := range m[i] {
			m[i][j] = float64(float32(rng.Float64()*2 - 1))
		}
	}
	return m
}

// regions are ways to lay a matrix of n rows of an operation into a tensor: all
// of it, behind other rows, in front of others, and a part of the operation's
// rows only.
func regions(n int) []struct {
	name   string
	region merge.Region
	rows   int // of the tensor
} {
	type r = struct {
		name   string
		region merge.Region
		rows   int
	}
	all := []r{
		{"whole", merge.Region{Rows: int64(n)}, n},
		{"behind", merge.Region{At: 3, Rows: int64(n)}, n + 3},
		{"between", merge.Region{At: 2, Rows: int64(n)}, n + 5},
	}
	if n > 1 {
		all = append(all, r{"a part of it", merge.Region{At: 1, From: 1, Rows: int64(n - 1)}, n + 1},
			r{"its first row", merge.Region{At: 2, From: 0, Rows: 1}, 4})
	}
	return all
}

// addDelta adds d(own row, column) to the rows of a region.
func addDelta(w mat, r merge.Region, d func(i, j int) float64) {
	for i := range w {
		own := int64(i) - r.At + r.From
		if int64(i) < r.At || int64(i) >= r.At+r.Rows {
			continue
		}
		for j := range w[i] {
			w[i][j] += d(int(own), j)
		}
	}
}

// shapes of a layer: out, in, rank.
var layers = [][3]int{{1, 1, 1}, {1, 5, 1}, {5, 1, 1}, {4, 3, 2}, {3, 7, 5}, {7, 4, 8}}

func TestAddLoRA(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for _, l := range layers {
		out, in, rank := l[0], l[1], l[2]
		a, b := randomSide(rng, int64(rank), int64(in)), randomSide(rng, int64(out), int64(rank))
		delta := func(o, i int) float64 {
			sum := 0.0
			for k := range rank {
				sum += b.at(o, k) * a.at(k, i)
			}
			return -1.5 * sum
		}
		for _, r := range regions(out) {
			t.Run(fmt.Sprintf("%v %s", l, r.name), func(t *testing.T) {
				checkOp(t, merge.AddLoRA{Scale: -1.5, Region: r.region}, []side{a, b}, randomMat(rng, r.rows, in), func(w mat) { addDelta(w, r.region, delta) })
			})
		}
		for _, r := range regions(in) {
			t.Run(fmt.Sprintf("transposed %v %s", l, r.name), func(t *testing.T) {
				checkOp(t, merge.AddLoRA{Scale: -1.5, Transposed: true, Region: r.region}, []side{a, b}, randomMat(rng, r.rows, out),
					func(w mat) { addDelta(w, r.region, func(i, o int) float64 { return delta(o, i) }) })
			})
		}
	}
}

// TestAddLoRAKernel guards that a convolution's kernel lies in the columns.
func TestAddLoRAKernel(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 1))
	a, b := randomSide(rng, 2, 3, 2, 2), randomSide(rng, 4, 2, 1, 1)
	checkOp(t, merge.AddLoRA{Scale: 2, Region: merge.Region{Rows: 4}}, []side{a, b}, randomMat(rng, 4, 12), func(w mat) {
		for o := range 4 {
			for i := range 3 {
				for k := range 4 {
					for r := range 2 {
						w[o][i*4+k] += 2 * b.at(o, r, 0, 0) * a.at(r, i, k/2, k%2)
					}
				}
			}
		}
	})
}

func TestAddLoRADifference(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 1))
	for _, l := range layers {
		out, in, rank := l[0], l[1], l[2]
		a, b := randomSide(rng, int64(rank), int64(in)), randomSide(rng, int64(out), int64(rank))
		a0, b0 := randomSide(rng, 3, int64(in)), randomSide(rng, int64(out), 3)
		delta := func(o, i int) float64 {
			sum := 0.0
			for k := range rank {
				sum += 0.5 * b.at(o, k) * a.at(k, i)
			}
			for k := range 3 {
				sum -= 0.75 * b0.at(o, k) * a0.at(k, i)
			}
			return sum
		}
		op := merge.AddLoRADifference{Scale: 0.5, StartScale: 0.75, Ranks: int64(rank + 3)}
		for _, r := range regions(out) {
			op.Region, op.Transposed = r.region, false
			checkOp(t, op, []side{a, b, a0, b0}, randomMat(rng, r.rows, in), func(w mat) { addDelta(w, r.region, delta) })
		}
		for _, r := range regions(in) {
			op.Region, op.Transposed = r.region, true
			checkOp(t, op, []side{a, b, a0, b0}, randomMat(rng, r.rows, out), func(w mat) {
				addDelta(w, r.region, func(i, o int) float64 { return delta(o, i) })
			})
		}
	}
}

// TestDifferenceCancels guards that two equal products leave the weight as it
// is, to the bit, however large they are.
func TestDifferenceCancels(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 1))
	a, b := randomSide(rng, 4, 6), randomSide(rng, 5, 4)
	w := randomMat(rng, 5, 6)
	f, err := merge.AddLoRADifference{Scale: 1e6, StartScale: 1e6, Ranks: 8, Region: merge.Region{Rows: 5}}.Bind(matrices[float32]([]side{a, b, a, b}))
	if err != nil {
		t.Fatal(err)
	}
	compare(t, "difference", apply(t, f, w, 2), w, 0)
}

func TestAddAdaLoRA(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 1))
	for _, l := range layers {
		out, in, rank := l[0], l[1], l[2]
		a, b, e := randomSide(rng, int64(rank), int64(in)), randomSide(rng, int64(out), int64(rank)), randomSide(rng, int64(rank), 1)
		delta := func(o, i int) float64 {
			sum := 0.0
			for k := range rank {
				sum += b.at(o, k) * e.v[k] * a.at(k, i)
			}
			return 0.25 * sum
		}
		for _, ontoB := range []bool{false, true} {
			op := merge.AddAdaLoRA{Scale: 0.25, OntoB: ontoB}
			for _, r := range regions(out) {
				op.Region, op.Transposed = r.region, false
				checkOp(t, op, []side{a, b, e}, randomMat(rng, r.rows, in), func(w mat) { addDelta(w, r.region, delta) })
			}
			for _, r := range regions(in) {
				op.Region, op.Transposed = r.region, true
				checkOp(t, op, []side{a, b, e}, randomMat(rng, r.rows, out), func(w mat) {
					addDelta(w, r.region, func(i, o int) float64 { return delta(o, i) })
				})
			}
		}
	}
}

// TestAddExpertsLoRA guards both packings of B, both orientations, and regions
// that begin and end inside an expert.
func TestAddExpertsLoRA(t *testing.T) {
	rng := rand.New(rand.NewPCG(6, 1))
	for _, c := range []struct{ experts, out, in, rank int }{{1, 3, 2, 2}, {3, 4, 5, 1}, {3, 4, 5, 2}, {2, 1, 1, 3}} {
		n := int64(c.experts * c.rank)
		a, b := randomSide(rng, n, int64(c.in)), randomSide(rng, int64(c.out), n)
		for _, expertMajor := range []bool{false, true} {
			delta := func(e, o, i int) float64 {
				sum := 0.0
				for k := range c.rank {
					column := k*c.experts + e
					if expertMajor {
						column = e*c.rank + k
					}
					sum += b.at(o, column) * a.at(e*c.rank+k, i)
				}
				return 3 * sum
			}
			op := merge.AddExpertsLoRA{Scale: 3, Experts: int64(c.experts), ExpertMajor: expertMajor}
			for _, r := range regions(c.experts * c.out) {
				op.Region, op.Transposed = r.region, false
				checkOp(t, op, []side{a, b}, randomMat(rng, r.rows, c.in), func(w mat) {
					addDelta(w, r.region, func(row, i int) float64 { return delta(row/c.out, row%c.out, i) })
				})
			}
			for _, r := range regions(c.experts * c.in) {
				op.Region, op.Transposed = r.region, true
				checkOp(t, op, []side{a, b}, randomMat(rng, r.rows, c.out), func(w mat) {
					addDelta(w, r.region, func(row, o int) float64 { return delta(row/c.in, o, row%c.in) })
				})
			}
		}
	}
}

func TestAddLoHa(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 1))
	for _, l := range layers {
		out, in, rank := l[0], l[1], l[2]
		s := []side{randomSide(rng, int64(out), int64(rank)), randomSide(rng, int64(rank), int64(in)), randomSide(rng, int64(out), int64(rank)), randomSide(rng, int64(rank), int64(in))}
		for _, r := range regions(out) {
			checkOp(t, merge.AddLoHa{Scale: -0.5, Region: r.region}, s, randomMat(rng, r.rows, in), func(w mat) {
				addDelta(w, r.region, func(o, i int) float64 {
					p, q := 0.0, 0.0
					for k := range rank {
						p += s[0].at(o, k) * s[1].at(k, i)
						q += s[2].at(o, k) * s[3].at(k, i)
					}
					return -0.5 * p * q
				})
			})
		}
	}
}

func TestAddLoHaCore(t *testing.T) {
	rng := rand.New(rand.NewPCG(8, 1))
	const out, in, rank, kh, kw = 3, 2, 2, 2, 3
	s := []side{
		randomSide(rng, rank, out), randomSide(rng, rank, in), randomSide(rng, rank, out), randomSide(rng, rank, in),
		randomSide(rng, rank, rank, kh, kw), randomSide(rng, rank, rank, kh, kw),
	}
	p := func(t, wa, wb side, o, i, k, l int) float64 {
		sum := 0.0
		for x := range rank {
			for y := range rank {
				sum += wa.at(x, o) * t.at(x, y, k, l) * wb.at(y, i)
			}
		}
		return sum
	}
	for _, r := range regions(out) {
		checkOp(t, merge.AddLoHa{Scale: 2, Core: true, Region: r.region}, s, randomMat(rng, r.rows, in*kh*kw), func(w mat) {
			addDelta(w, r.region, func(o, j int) float64 {
				i, k, l := j/(kh*kw), j/kw%kh, j%kw
				return 2 * p(s[4], s[0], s[1], o, i, k, l) * p(s[5], s[2], s[3], o, i, k, l)
			})
		})
	}
}

// TestAddLoKr guards the Kronecker product in every form its factors are
// stored in.
func TestAddLoKr(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 1))
	const o1, i1, o2, i2, rank = 2, 3, 3, 2, 2
	for _, kernel := range [][]int64{nil, {2, 2}} {
		taps := 1
		for _, k := range kernel {
			taps *= int(k)
		}
		dims := func(shape ...int64) []int64 { return append(shape, kernel...) }
		for _, form := range []string{"whole", "split w1", "split w2", "split both", "core"} {
			if form == "core" && kernel == nil {
				continue
			}
			op := merge.AddLoKr{Scale: 0.5, SplitW1: form == "split w1" || form == "split both", SplitW2: form == "split w2" || form == "split both", Core: form == "core"}
			var s []side
			var w1, w2 func(o, i int) float64 // of w2, i counts inputs and taps
			if op.SplitW1 {
				a, b := randomSide(rng, o1, rank), randomSide(rng, rank, i1)
				s = append(s, a, b)
				w1 = func(o, i int) float64 { return a.at(o, 0)*b.at(0, i) + a.at(o, 1)*b.at(1, i) }
			} else {
				a := randomSide(rng, o1, i1)
				s, w1 = append(s, a), func(o, i int) float64 { return a.at(o, i) }
			}
			switch {
			case op.SplitW2:
				a, b := randomSide(rng, o2, rank), randomSide(rng, rank, int64(i2*taps))
				s = append(s, a, b)
				w2 = func(o, i int) float64 { return a.at(o, 0)*b.at(0, i) + a.at(o, 1)*b.at(1, i) }
			case op.Core:
				a, b, core := randomSide(rng, rank, o2), randomSide(rng, rank, i2), randomSide(rng, rank, rank, 2, 2)
				s = append(s, a, b, core)
				w2 = func(o, j int) float64 {
					sum := 0.0
					for x := range rank {
						for y := range rank {
							sum += a.at(x, o) * core.at(x, y, j%taps/2, j%2) * b.at(y, j/taps)
						}
					}
					return sum
				}
			default:
				a := randomSide(rng, dims(o2, i2)...)
				s, w2 = append(s, a), func(o, i int) float64 { return a.v[o*i2*taps+i] }
			}
			for _, r := range regions(o1 * o2) {
				t.Run(fmt.Sprintf("%s %v %s", form, kernel, r.name), func(t *testing.T) {
					op.Region = r.region
					checkOp(t, op, s, randomMat(rng, r.rows, i1*i2*taps), func(w mat) {
						addDelta(w, r.region, func(o, j int) float64 {
							return 0.5 * w1(o/o2, j/(i2*taps)) * w2(o%o2, j%(i2*taps))
						})
					})
				})
			}
		}
	}
}

// TestAddVeRA guards that shared projections are cut to the layer.
func TestAddVeRA(t *testing.T) {
	rng := rand.New(rand.NewPCG(10, 1))
	a, b := randomSide(rng, 3, 7), randomSide(rng, 6, 3)
	d := randomSide(rng, 3)
	for _, c := range [][2]int{{6, 7}, {4, 5}, {1, 1}, {6, 2}, {2, 7}} {
		out, in := c[0], c[1]
		lb := randomSide(rng, int64(out))
		delta := func(o, i int) float64 {
			sum := 0.0
			for k := range 3 {
				sum += lb.v[o] * b.at(o, k) * d.v[k] * a.at(k, i)
			}
			return -2 * sum
		}
		op := merge.AddVeRA{Weight: -2, In: int64(in), Out: int64(out)}
		for _, r := range regions(out) {
			op.Region, op.Transposed = r.region, false
			checkOp(t, op, []side{a, b, d, lb}, randomMat(rng, r.rows, in), func(w mat) { addDelta(w, r.region, delta) })
		}
		for _, r := range regions(in) {
			op.Region, op.Transposed = r.region, true
			checkOp(t, op, []side{a, b, d, lb}, randomMat(rng, r.rows, out), func(w mat) {
				addDelta(w, r.region, func(i, o int) float64 { return delta(o, i) })
			})
		}
	}
}

func TestAddVector(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 1))
	for _, n := range []int{1, 5} {
		v := randomSide(rng, int64(n))
		for _, r := range regions(n) {
			checkOp(t, merge.AddVector{Scale: 1.5, Region: r.region}, []side{v}, randomMat(rng, r.rows, 1), func(w mat) {
				addDelta(w, r.region, func(i, _ int) float64 { return 1.5 * v.v[i] })
			})
		}
	}
}

func TestScale(t *testing.T) {
	rng := rand.New(rand.NewPCG(12, 1))
	for _, r := range regions(4) {
		v := randomSide(rng, 4, 1)
		checkOp(t, merge.Scale{Region: r.region}, []side{v}, randomMat(rng, r.rows, 3), func(w mat) {
			before := w.clone()
			addDelta(w, r.region, func(i, j int) float64 {
				at := i - int(r.region.From) + int(r.region.At)
				return before[at][j] * (v.v[i] - 1)
			})
		})
		for _, repeat := range []int{0, 1, 2} {
			v := randomSide(rng, 1, 3)
			cols := 3 * max(repeat, 1)
			checkOp(t, merge.Scale{ByColumn: true, Repeat: int64(repeat), Region: r.region}, []side{v}, randomMat(rng, r.rows, cols), func(w mat) {
				before := w.clone()
				addDelta(w, r.region, func(i, j int) float64 {
					at := i - int(r.region.From) + int(r.region.At)
					return before[at][j] * (v.v[j/max(repeat, 1)] - 1)
				})
			})
		}
	}
}

// TestScaleGroups guards a grouped convolution: each group of rows has inputs,
// and factors, of its own.
func TestScaleGroups(t *testing.T) {
	rng := rand.New(rand.NewPCG(13, 1))
	const groups, rows, inputs, taps = 3, 2, 2, 4
	v := randomSide(rng, 1, groups*inputs)
	op := merge.Scale{ByColumn: true, Repeat: taps, RowsPerGroup: rows, Region: merge.Region{Rows: groups * rows}}
	checkOp(t, op, []side{v}, randomMat(rng, groups*rows, inputs*taps), func(w mat) {
		for i := range w {
			for j := range w[i] {
				w[i][j] *= v.v[i/rows*inputs+j/taps]
			}
		}
	})
}

func TestSetRows(t *testing.T) {
	rng := rand.New(rand.NewPCG(14, 1))
	v := randomSide(rng, 4, 3)
	// Row 2 is listed twice: the last value stays.
	checkOp(t, merge.SetRows{Rows: []int64{5, 2, 0, 2}}, []side{v}, randomMat(rng, 6, 3), func(w mat) {
		for k, row := range []int{5, 2, 0, 2} {
			copy(w[row], v.v[k*3:])
		}
	})
}

func TestReplace(t *testing.T) {
	rng := rand.New(rand.NewPCG(15, 1))
	v := randomSide(rng, 5, 3)
	checkOp(t, merge.Replace{}, []side{v}, randomMat(rng, 5, 3), func(w mat) {
		for i := range w {
			copy(w[i], v.v[i*3:])
		}
	})
}

func TestDoRA(t *testing.T) {
	rng := rand.New(rand.NewPCG(16, 1))
	norm := func(v []float64) float64 {
		sum := 0.0
		for _, x := range v {
			sum += x * x
		}
		return math.Sqrt(sum)
	}
	for _, l := range layers {
		rows, cols := l[0], l[1]
		m := randomSide(rng, int64(rows))
		for _, r := range regions(rows) {
			checkOp(t, merge.DoRA{Region: r.region}, []side{m}, away(randomMat(rng, r.rows, cols)), func(w mat) {
				for i := range w {
					if own := int64(i) - r.region.At; own >= 0 && own < r.region.Rows {
						n := norm(w[i])
						for j := range w[i] {
							w[i][j] *= m.v[own+r.region.From] / n
						}
					}
				}
			})
		}
		m = randomSide(rng, int64(cols))
		checkOp(t, merge.DoRA{ByColumn: true, Region: merge.Region{Rows: int64(rows)}}, []side{m}, away(randomMat(rng, rows, cols)), func(w mat) {
			for j := range cols {
				var column []float64
				for i := range w {
					column = append(column, w[i][j])
				}
				n := norm(column)
				for i := range w {
					w[i][j] *= m.v[j] / n
				}
			}
		})
	}
}

// away keeps values from zero, so that norms are not small.
func away(m mat) mat {
	for i := range m {
		for j, v := range m[i] {
			m[i][j] = v + math.Copysign(0.5, v)
		}
	}
	return m
}

// TestAddOLoRA compares with a Gram-Schmidt orthonormalisation of the first
// columns.
func TestAddOLoRA(t *testing.T) {
	rng := rand.New(rand.NewPCG(18, 1))
	for _, c := range [][3]int{{4, 5, 2}, {7, 3, 1}, {3, 7, 2}} {
		rows, cols, rank := c[0], c[1], c[2]
		a, b := randomSide(rng, int64(rank), int64(cols)), randomSide(rng, int64(rows), int64(rank))
		op := merge.AddOLoRA{Scale: 0.5, Rank: int64(rank), Rows: int64(rows), Cols: int64(cols)}
		checkOp(t, op, []side{a, b}, randomMat(rng, rows, cols), func(w mat) {
			base := w.clone()
			q := newMat(rank, rows)
			for k := range rank {
				for i := range rows {
					q[k][i] = base[i][k]
				}
				for range 2 { // twice is enough
					for l := range k {
						dot := 0.0
						for i := range rows {
							dot += q[l][i] * q[k][i]
						}
						for i := range rows {
							q[k][i] -= dot * q[l][i]
						}
					}
				}
				n := 0.0
				for i := range rows {
					n += q[k][i] * q[k][i]
				}
				for i := range rows {
					q[k][i] /= math.Sqrt(n)
				}
			}
			for i := range w {
				for j := range w[i] {
					for k := range rank {
						dot := 0.0
						for x := range rows {
							dot += q[k][x] * base[x][j]
						}
						w[i][j] += 0.5 * (b.at(i, k)*a.at(k, j) - q[k][i]*dot)
					}
				}
			}
		})
	}
}

// TestOLoRADependent guards that a start that is not unique is refused.
func TestOLoRADependent(t *testing.T) {
	f, err := merge.AddOLoRA{Scale: 1, Rank: 2, Rows: 3, Cols: 3}.Bind(matrices[float32]([]side{{tensor.Shape{2, 3}, make([]float64, 6)}, {tensor.Shape{3, 2}, make([]float64, 6)}}))
	if err != nil {
		t.Fatal(err)
	}
	o := f.(plan.Observer[float32])
	if err := o.Observe(0, plan.Band[float32]{Rows: 3, Cols: 3, X: []float32{1, 2, 0, 2, 4, 0, 3, 6, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := o.Finish(0); err == nil {
		t.Error("two columns, of which one is a multiple of the other, were taken for a basis")
	}
}

// TestSubtractTail checks the defining properties: what is taken away is
// orthogonal to what is left, and has the r smallest singular values. With a
// diagonal matrix they can be read off.
func TestSubtractTail(t *testing.T) {
	for _, c := range []struct {
		rows, cols, rank int
	}{{4, 4, 2}, {5, 3, 1}, {3, 5, 2}} {
		w := newMat(c.rows, c.cols)
		for i := range min(c.rows, c.cols) {
			w[i][(i+1)%min(c.rows, c.cols)] = float64(i + 1)
		}
		op := merge.SubtractTail{Rank: int64(c.rank), Rows: int64(c.rows), Cols: int64(c.cols)}
		checkOp(t, op, nil, w, func(w mat) {
			for i := range c.rank {
				clear(w[i])
			}
		})
	}
}

// TestBlend guards that a blend is the base plus the weighted differences of
// its branches, each seen from the base, also of those that observe.
func TestBlend(t *testing.T) {
	rng := rand.New(rand.NewPCG(19, 1))
	const rows, cols, rank = 5, 4, 2
	a, b := randomSide(rng, rank, cols), randomSide(rng, rows, rank)
	a2, b2 := randomSide(rng, rank, cols), randomSide(rng, rows, rank)
	mRow, mCol, v := randomSide(rng, rows), randomSide(rng, cols), randomSide(rng, rows, cols)
	region := merge.Region{Rows: rows}
	lora := func(sides ...side) (plan.Stage, []side) {
		return plan.Stage{Op: merge.AddLoRA{Scale: 0.5, Region: region}, Sides: make([]plan.Slice, 2)}, sides
	}
	one := func(op plan.Op, s side) (plan.Stage, []side) {
		return plan.Stage{Op: op, Sides: make([]plan.Slice, 1)}, []side{s}
	}
	branches := []struct {
		name   string
		stages []func() (plan.Stage, []side)
	}{
		{"lora", []func() (plan.Stage, []side){func() (plan.Stage, []side) { return lora(a, b) }}},
		{"dora by row", []func() (plan.Stage, []side){func() (plan.Stage, []side) { return lora(a, b) }, func() (plan.Stage, []side) { return one(merge.DoRA{Region: region}, mRow) }}},
		{"dora by column", []func() (plan.Stage, []side){func() (plan.Stage, []side) { return lora(a2, b2) },
			func() (plan.Stage, []side) { return one(merge.DoRA{ByColumn: true, Region: region}, mCol) }}},
		{"replace", []func() (plan.Stage, []side){func() (plan.Stage, []side) { return one(merge.Replace{}, v) }, func() (plan.Stage, []side) { return lora(a, b) }}},
		{"tail, then lora", []func() (plan.Stage, []side){func() (plan.Stage, []side) {
			return plan.Stage{Op: merge.SubtractTail{Rank: 1, Rows: rows, Cols: cols}}, nil
		},
			func() (plan.Stage, []side) { return lora(a2, b2) }}},
	}
	w := away(randomMat(rng, rows, cols))
	// What each branch makes of the base, alone.
	alone := func(i int) mat {
		x := w
		for _, make := range branches[i].stages {
			st, s := make()
			f, err := st.Op.Bind64(matrices[float64](s))
			if err != nil {
				t.Fatal(err)
			}
			x = apply(t, f, x, rows)
		}
		return x
	}
	for i := range branches {
		for j := range branches {
			t.Run(branches[i].name+" and "+branches[j].name, func(t *testing.T) {
				weights := []float64{0.75, -1.5}
				op, sides := merge.Blend{}, []side{}
				for n, k := range []int{i, j} {
					br := merge.Branch{Weight: weights[n]}
					for _, make := range branches[k].stages {
						st, s := make()
						br.Stages = append(br.Stages, st)
						sides = append(sides, s...)
					}
					op.Branches = append(op.Branches, br)
				}
				first, second := alone(i), alone(j)
				checkOp(t, op, sides, w, func(w mat) {
					for r := range w {
						for c := range w[r] {
							w[r][c] += weights[0]*(first[r][c]-w[r][c]) + weights[1]*(second[r][c]-w[r][c])
						}
					}
				})
			})
		}
	}
}

// TestBlendScratch guards that the memory of the branches' operations is
// counted.
func TestBlendScratch(t *testing.T) {
	dora := plan.Stage{Op: merge.DoRA{ByColumn: true}}
	op := merge.Blend{Branches: []merge.Branch{{Stages: []plan.Stage{dora}}, {Stages: []plan.Stage{dora, {Op: merge.Replace{}}}}}}
	if got, want := op.Scratch(10, 7), 2*(merge.DoRA{ByColumn: true}).Scratch(10, 7); got != want || want == 0 {
		t.Errorf("scratch %d, want %d", got, want)
	}
}
