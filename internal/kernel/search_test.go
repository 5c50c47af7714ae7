package kernel_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"unsafe"

	"github.com/loratool/loratool/internal/kernel"
)

// spans are the candidates of Q4_K and a few more, the first far off.
func spans(most int32) []float32 {
	s := []float32{float32(most) / 4}
	for step := range 21 {
		s = append(s, float32(most)-1+float32(step)/10)
	}
	return s
}

// searches are the operations whose lanes are groups. Numbers are finite, as promised,
// but large enough now and then for sums that are not.
var searches = []operation{
	{"FitAffine", func(m memory, rng *rand.Rand, n int) []uint64 {
		most := int32(1 + rng.IntN(127))
		search := kernel.AffineSearch{Most: most, Spans: m.float32s(22), Absolute: rng.IntN(2) > 0}
		copy(search.Spans, spans(most))
		x, w, codes, scales := groupsOf(m, rng, n)
		offsets := m.float32s(len(scales))
		kernel.FitAffine(codes, scales, offsets, x, w, &search)
		return codeBits(bits(bits(nil, scales), offsets), codes)
	}},
	{"FitSymmetric", func(m memory, rng *rand.Rand, n int) []uint64 {
		x, w, codes, scales := groupsOf(m, rng, n)
		kernel.FitSymmetric(codes, scales, x, w, int32(1+rng.IntN(64)))
		return codeBits(bits(nil, scales), codes)
	}},
	{"FitDescent", func(m memory, rng *rand.Rand, n int) []uint64 {
		x, _, codes, scales := groupsOf(m, rng, n)
		kernel.FitDescent(codes, scales, x, int32(1+rng.IntN(64)))
		return codeBits(bits(nil, scales), codes)
	}},
	{"FitIQ4", func(m memory, rng *rand.Rand, n int) []uint64 {
		x, w, _, scales := groupsOf(m, rng, n)
		kernel.FitIQ4(scales, x, w)
		return bits(nil, scales)
	}},
	{"Recode", func(m memory, rng *rand.Rand, n int) []uint64 {
		x, _, codes, scales := groupsOf(m, rng, n)
		offsets := m.float32s(len(scales))
		for g := range scales {
			scales[g], offsets[g] = float32(rng.IntN(50)-5)/70, float32(rng.IntN(20))/16
			if size := len(x) / len(scales); g%2 == 0 { // ties of quotients that are rounded
				for i := range size {
					x[g*size+i] = scales[g]*(float32(rng.IntN(40))-19.5) - offsets[g]
				}
			}
		}
		if rng.IntN(2) > 0 {
			offsets = nil
		}
		for i := range codes {
			codes[i] = 200 // what stays where a scale is zero
		}
		kernel.Recode(codes, scales, offsets, x, -int32(rng.IntN(65)), int32(rng.IntN(64)))
		return codeBits(nil, codes)
	}},
	{"RecodeIQ4", func(m memory, rng *rand.Rand, n int) []uint64 {
		x, codes := values(m, rng, n), m.bytes(n)
		kernel.RecodeIQ4(codes, x, []float32{1, -40, 1e30, 0}[rng.IntN(4)])
		return codeBits(nil, codes)
	}},
	{"FitGrid", func(m memory, rng *rand.Rand, n int) []uint64 {
		x, w, roots, levels, grid := tuplesOf(m, rng, n)
		spans := m.float32s(1 + n%20)
		for i := range spans {
			spans[i] = float32(2*grid.Radix()-3) + float32(i)/8
		}
		fit := kernel.FitGrid(levels, x, w, roots, grid, spans, []float32{1, 4, 1e-40, 1e30}[rng.IntN(8)/2])
		if !fit.Found {
			fit.Outside = 0
		}
		figures := []uint64{uint64(fit.Outside)}
		for _, is := range []bool{fit.Found, fit.Lost} {
			if is {
				figures = append(figures, 1)
			}
		}
		return codeBits(bits(figures, []float32{fit.Scale}), levels)
	}},
	{"Regrid", func(m memory, rng *rand.Rand, n int) []uint64 {
		x, w, roots, levels, grid := tuplesOf(m, rng, n)
		for i := range levels {
			levels[i] = uint8(rng.IntN(grid.Radix()))
		}
		xq, qq, lost := kernel.Regrid(levels, x, w, roots, grid, []float32{0.3, 1, 1e-40}[rng.IntN(3)], uint8(rng.Uint32()))
		figures := codeBits(bits(nil, []float32{xq, qq}), levels)
		if lost {
			figures = append(figures, 1)
		}
		return figures
	}},
	{"FitTernary", func(m memory, rng *rand.Rand, n int) []uint64 {
		x, w := sortedOf(m, rng, 32)
		var wxs, ws [33]float32
		for i, v := range x {
			wxs[i+1], ws[i+1] = wxs[i]+w[i]*v, ws[i]+w[i]
		}
		return ternaryBits(kernel.FitTernary(&wxs, &ws))
	}},
	{"FitTernaryPair", func(m memory, rng *rand.Rand, n int) []uint64 {
		x, w := sortedOf(m, rng, 16)
		var wxs, ws [2][17]float32
		for i, v := range x {
			for h := range wxs {
				wxs[h][i+1], ws[h][i+1] = wxs[h][i], ws[h][i]
			}
			h := rng.IntN(2)
			wxs[h][i+1] += w[i] * v
			ws[h][i+1] += w[i]
		}
		return ternaryBits(kernel.FitTernaryPair(&wxs, &ws))
	}},
	{"NearestTuple", func(m memory, rng *rand.Rand, n int) []uint64 {
		width := 4 + 4*rng.IntN(2)
		x, w := finiteValues(m, rng, width), finiteValues(m, rng, width)
		list := unsafe.Slice((*uint32)(unsafe.Pointer(unsafe.SliceData(m.float32s(n)))), n)
		for i := range list {
			list[i] = rng.Uint32() >> (32 - 3*width)
		}
		var scaled [8]float32
		copy(scaled[:], finiteValues(m, rng, 8))
		if rng.IntN(2) == 0 { // ties
			scaled[3], scaled[5] = scaled[2], -scaled[4]
		}
		for i, v := range w {
			w[i] = float32(math.Abs(float64(v)))
		}
		tuple, ok := kernel.NearestTuple(list, x, w, &scaled)
		if !ok {
			return nil
		}
		return []uint64{uint64(tuple)}
	}},
	{"Importance", func(m memory, rng *rand.Rand, n int) []uint64 {
		x, w, dst := finiteValues(m, rng, n), finiteValues(m, rng, n), m.float32s(n)
		kernel.Importance(dst, x, w, float32(rng.ExpFloat64()))
		return bits(nil, dst)
	}},
}

// grids are of some hundred tuples each, about one in 20.
var grids = func() (grids []*kernel.Grid) {
	for _, shape := range [][3]int{{8, 3, 2}, {4, 8, 3}} {
		numbers := []int{0}
		for number := 1 + shape[2]; number < 4096; number += 5 + number*number%31 {
			numbers = append(numbers, number)
		}
		grids = append(grids, kernel.NewGrid(numbers, shape[0], shape[1], shape[2]))
	}
	return grids
}()

// tuplesOf returns a group of up to 32 magnitudes, of which a few are below zero.
func tuplesOf(m memory, rng *rand.Rand, n int) (x, w, roots []float32, levels []byte, grid *kernel.Grid) {
	grid = grids[rng.IntN(2)]
	size := min(n, 32) / grid.Width() * grid.Width()
	x, w, roots = finiteValues(m, rng, size), finiteValues(m, rng, size), finiteValues(m, rng, size)
	for i, v := range x {
		if rng.IntN(8) > 0 {
			x[i] = float32(math.Abs(float64(v)))
		}
		if rng.IntN(2) == 0 { // ties
			x[i] = float32(rng.IntN(5)) / 4
		}
		if w[i] = float32(math.Abs(float64(w[i]))); rng.IntN(8) == 0 {
			w[i] = 0
		}
		if rng.IntN(16) > 0 {
			roots[i] = float32(math.Sqrt(float64(w[i])))
		}
	}
	return x, w, roots, m.bytes(size), grid
}

// sortedOf returns sorted numbers and weights, some of which are zero or, as no caller has
// them, below.
func sortedOf(m memory, rng *rand.Rand, n int) (x, w []float32) {
	x, w = finiteValues(m, rng, n), finiteValues(m, rng, n)
	few, low, sign := rng.IntN(3) == 0, -float32(rng.IntN(8)/7), rng.IntN(3)-1
	for i := range w {
		w[i] = max(w[i], low*w[i])
		if few {
			x[i], w[i] = float32(rng.IntN(5)-2)/8, float32(rng.IntN(3))
		}
		if sign != 0 { // no -1, or no 1
			x[i] = float32(math.Copysign(float64(x[i]), float64(sign)))
		}
	}
	slices.Sort(x)
	return x, w
}

func ternaryBits(fit kernel.TernaryFit) []uint64 {
	if !fit.Found {
		return nil
	}
	return append(bits(nil, []float32{fit.Scale}), uint64(fit.First), uint64(fit.Second), uint64(fit.Downs))
}

// groupsOf returns up to n numbers in groups of some size, their weights, and room for
// results. Most sizes are those that vectors take.
func groupsOf(m memory, rng *rand.Rand, n int) (x, w []float32, codes []byte, scales []float32) {
	size := 8 * (1 + rng.IntN(4))
	if rng.IntN(4) == 0 {
		size = 1 + rng.IntN(32)
	}
	groups := n / size
	x, w = finiteValues(m, rng, groups*size), finiteValues(m, rng, groups*size)
	for i, v := range w {
		w[i] = float32(math.Abs(float64(v)))
	}
	for g := range groups {
		switch x, w := x[g*size:][:size], w[g*size:][:size]; rng.IntN(12) {
		case 0: // all alike, and of either sign
			for i := range x {
				x[i] = x[0]
			}
		case 1: // above the bound of negligible, and below
			for i := range x {
				x[i] = float32(rng.IntN(3)-1) * 1e-15 * float32(1+rng.IntN(2))
			}
		case 2:
			clear(w)
		case 3: // ties
			for i := range x {
				x[i] = float32(rng.IntN(64)) - 32
			}
		case 4: // nothing below zero, so that the minimum is zero
			for i := range x {
				x[i] = 1 + float32(rng.IntN(100))
			}
		case 5: // sums below zero, which no caller has
			for i := range w {
				w[i] *= float32(rng.IntN(3) - 1)
			}
		case 6: // sums that are zero
			for i := range x {
				x[i], w[i] = float32(math.Copysign(0, float64(rng.IntN(2))-0.5)), float32(math.Copysign(0, -1))
			}
		}
	}
	return x, w, m.bytes(groups * size), m.float32s(groups)
}

// finiteValues are values without NaN and infinities.
func finiteValues(m memory, rng *rand.Rand, n int) []float32 {
	x := values(m, rng, n)
	for i, v := range x {
		if v-v != 0 {
			x[i] = 0.5
		}
	}
	return x
}

func codeBits(to []uint64, codes []byte) []uint64 {
	for _, c := range codes {
		to = append(to, uint64(c))
	}
	return to
}

// exactly returns groups that codes can mean exactly: factor*code + minimum, all short
// numbers, and small integers for weights.
func exactly(groups, size int, factor, minimum float32, code func(g, i int) float32) (x, w []float32) {
	for g := range groups {
		for i := range size {
			x = append(x, factor*code(g, i)+minimum)
			w = append(w, float32(1+(g+i)%3))
		}
	}
	return x, w
}

// TestFitAffineExact guards that what codes can mean exactly is found exactly: the
// first candidate has no error, and none is less.
func TestFitAffineExact(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		for _, absolute := range []bool{false, true} {
			for _, most := range []int32{1, 3, 15, 31, 127} {
				const groups, size = 19, 32
				code := func(g, i int) float32 { return float32([]int{0, int(most), (g + 5*i) % int(most+1)}[min(i, 2)]) }
				x, w := exactly(groups, size, 0.125, -4, code)
				codes, scales, offsets := make([]byte, len(x)), make([]float32, groups), make([]float32, groups)
				// 1/(most/(most/8)) is 8 where both quotients are exact, as they are here.
				kernel.FitAffine(codes, scales, offsets, x, w, &kernel.AffineSearch{Most: most, Spans: spans(most), Absolute: absolute})
				for i, c := range codes {
					if g := i / size; float32(c) != code(g, i%size) || scales[g] != 0.125 || offsets[g] != 4 {
						t.Fatalf("most %d: number %d is %d*%g-%g, want %g*0.125-4", most, i, c, scales[g], offsets[g], code(g, i%size))
					}
				}
			}
		}
	})
}

// TestFitSymmetricExact guards the same of codes around zero. All sums are integers
// below 2^24 times a power of two, and by Cauchy and Schwarz no candidate is better than
// one that leaves no error.
func TestFitSymmetricExact(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		const groups, size, n = 19, 8, 4
		code := func(g, i int) float32 { return float32([]int{-n, (g + 3*i) % (2 * n)}[min(i, 1)] - min(i, 1)*n) }
		for _, factor := range []float32{0.25, -0.25} {
			x, w := exactly(groups, size, factor, 0, code)
			codes, scales := make([]byte, len(x)), make([]float32, groups)
			kernel.FitSymmetric(codes, scales, x, w, n)
			for i, c := range codes {
				if g := i / size; float32(c)-n != code(g, i%size) || scales[g] != factor {
					t.Fatalf("number %d is %d*%g, want %g*%g", i, int(c)-n, scales[g], code(g, i%size), factor)
				}
			}
		}
	})
}

// TestFitIQ4Exact guards the same of IQ4, whose sums are below 2^24 too. Their products
// are rounded, by a part of 2^24; every other code of a number costs far more.
func TestFitIQ4Exact(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		const groups, size = 19, 32
		for _, factor := range []float32{0.25, -0.25} {
			x, w := exactly(groups, size, factor, 0, func(g, i int) float32 {
				return kernel.IQ4Values[min(i, 1)*(g+5*i)%16]
			})
			scales, codes := make([]float32, groups), make([]byte, len(x))
			kernel.FitIQ4(scales, x, w)
			for g, scale := range scales {
				if scale != factor {
					t.Fatalf("group %d has scale %g, want %g", g, scale, factor)
				}
			}
			kernel.RecodeIQ4(codes, x, 1/factor)
			for i, c := range codes {
				if got := factor * kernel.IQ4Values[c]; got != x[i] {
					t.Fatalf("number %d is %g, want %g", i, got, x[i])
				}
			}
		}
	})
}

// TestRecodeIQ4 searches the whole table; of two equally near the larger wins.
func TestRecodeIQ4(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		var x []float32
		for v := float32(-140); v <= 140; v += 0.125 {
			x = append(x, v, math.Nextafter32(v, -200), math.Nextafter32(v, 200))
		}
		x = append(x, 1e30, -1e30, float32(math.Inf(1)), float32(math.Inf(-1)))
		distance := func(code int, v float32) float64 {
			return math.Abs(float64(kernel.IQ4Values[code]) - min(max(float64(v), -1e6), 1e6))
		}
		codes := make([]byte, len(x))
		kernel.RecodeIQ4(codes, x, 1)
		for i, v := range x {
			best := 0
			for code := range kernel.IQ4Values {
				if distance(code, v) <= distance(best, v) {
					best = code
				}
			}
			if int(codes[i]) != best {
				t.Fatalf("%g has code %d, want %d", v, codes[i], best)
			}
		}
		nan := slices.Repeat([]float32{float32(math.NaN())}, 9)
		kernel.RecodeIQ4(codes[:9], nan, 1)
		if want := slices.Repeat([]byte{15}, 9); !slices.Equal(codes[:9], want) {
			t.Fatalf("NaN has codes %v", codes[:9])
		}
	})
}

// TestRecode guards the formula, ties to even, bounds, and that a scale of zero leaves
// codes as they are.
func TestRecode(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		for _, size := range []int{1, 8, 15, 16, 32} {
			const least, most, groups = -5, 11, 7
			var x []float32
			for i := range groups * size {
				x = append(x, float32(i%67)/4-8)
			}
			codes, scales, offsets := slices.Repeat([]byte{99}, len(x)), make([]float32, groups), make([]float32, groups)
			for g := range groups {
				scales[g], offsets[g] = float32(g-3)/2, float32(g)/4
			}
			kernel.Recode(codes, scales, offsets, x, least, most)
			for i, c := range codes {
				want := 99.
				if s, o := float64(scales[i/size]), float64(offsets[i/size]); s != 0 {
					want = min(max(math.RoundToEven(float64(float32((float64(x[i])+o)/s))), least), most) - least
				}
				if float64(c) != want {
					t.Fatalf("groups of %d: number %d has code %d, want %g", size, i, c, want)
				}
			}
		}
	})
}

// TestNearestTuple guards the formula, that the first of equal tuples is taken, and that
// none is where every error is infinite. All numbers are small integers, and so exact.
func TestNearestTuple(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(43, 44))
		scaled := [8]float32{-3, -1, 1, 3, 4, 7, 9, 11}
		for n := range 100 {
			for _, width := range []int{4, 8} {
				x, w, list := make([]float32, width), make([]float32, width), make([]uint32, n)
				for i := range x {
					x[i], w[i] = float32(rng.IntN(15)-4), float32(rng.IntN(3))
				}
				for i := range list {
					list[i] = rng.Uint32() >> (32 - 3*width)
				}
				want, least := uint32(0), math.Inf(1)
				for _, tuple := range list {
					sum := 0.0
					for i := range width {
						diff := float64(scaled[tuple>>(3*i)&7]) - float64(x[i])
						sum += float64(w[i]) * diff * diff
					}
					if sum < least {
						want, least = tuple, sum
					}
				}
				if got, ok := kernel.NearestTuple(list, x, w, &scaled); got != want || ok != (n > 0) {
					t.Fatalf("of %d tuples of %d: %o, %t, want %o", n, width, got, ok, want)
				}
				w[n%width] = 1e38
				x[n%width] = 1e20
				if got, ok := kernel.NearestTuple(list, x, w, &scaled); ok {
					t.Fatalf("of %d tuples of %d: %o, infinitely far", n, width, got)
				}
			}
		}
	})
}

// TestFitGridExact guards that numbers which are a scale times tuples of the grid are found
// exactly: all sums are of small integers times a power of two, and by Cauchy and Schwarz no
// candidate is better than one that leaves no error.
func TestFitGridExact(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(45, 46))
		for range 200 {
			grid := grids[rng.IntN(2)]
			var x []float32
			var want []uint8
			for range 32 / grid.Width() {
				number := 0
				for number = rng.IntN(grid.Numbers()); grid.Index(number) < 0; number = rng.IntN(grid.Numbers()) {
				}
				for i := range grid.Width() {
					level := grid.Pack(number) >> (3 * i) & 7
					want = append(want, uint8(level))
					x = append(x, 0.25*float32(2*level+1))
				}
			}
			w, roots, levels := make([]float32, 32), make([]float32, 32), make([]uint8, 32)
			for i := range w {
				roots[i] = float32(1 + rng.IntN(3))
				w[i] = roots[i] * roots[i]
			}
			fit := kernel.FitGrid(levels, x, w, roots, grid, []float32{4, 3.5, 6, 3}, 1)
			if fit != (kernel.GridFit{Scale: 0.25, Found: true}) || !slices.Equal(levels, want) {
				t.Fatalf("%+v, levels %v, want %v", fit, levels, want)
			}
			clear(levels)
			xq, qq, lost := kernel.Regrid(levels, x, w, roots, grid, 0.25, 0xff)
			if xq != 0.25*qq || lost || !slices.Equal(levels, want) {
				t.Fatalf("again: %g of %g, %t, levels %v, want %v", xq, qq, lost, levels, want)
			}
		}
	})
}

// TestFitTernaryExact guards that groups of -1, 0 and 1 with a shift are found. All sums
// are integers over 64 and their products exact, but for scales of other candidates.
func TestFitTernaryExact(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		for first := range 33 {
			for second := first; second < 33; second++ {
				for down := range uint8(2) {
					var wx, w [33]float32
					for i := range 32 {
						wx[i+1], w[i+1] = wx[i]+ternary(i, first, second, down), w[i]+1
					}
					fit := kernel.FitTernary(&wx, &w)
					for i := range 32 {
						if got, want := fit.Scale*ternary(i, fit.First, fit.Second, fit.Downs), ternary(i, first, second, down); got != want {
							t.Fatalf("from %d and %d on, shift %d: number %d is %g, want %g", first, second, down, i, got, want)
						}
					}
				}
			}
		}
		for first := range 17 {
			for second := first; second < 17; second++ {
				for downs := range uint8(4) {
					var wx, w [2][17]float32
					half := func(i int) int { return i * 5 % 3 % 2 }
					for i := range 16 {
						h := half(i)
						for other := range wx {
							wx[other][i+1], w[other][i+1] = wx[other][i], w[other][i]
						}
						wx[h][i+1] += ternary(i, first, second, downs>>h&1)
						w[h][i+1]++
					}
					fit := kernel.FitTernaryPair(&wx, &w)
					for i := range 16 {
						h := half(i)
						got, want := fit.Scale*ternary(i, fit.First, fit.Second, fit.Downs>>h&1), ternary(i, first, second, downs>>h&1)
						if got != want {
							t.Fatalf("from %d and %d on, shifts %d: number %d is %g, want %g", first, second, downs, i, got, want)
						}
					}
				}
			}
		}
	})
}

// ternary returns the value of number i of a sorted group.
func ternary(i, first, second int, down uint8) float32 {
	v := float32(1)
	if i < first {
		v = -1
	} else if i < second {
		v = 0
	}
	return v + 0.125 - 0.25*float32(down)
}

// TestImportance guards the formula; products in float64 are exact, and a root of it
// rounds to that of float32.
func TestImportance(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(41, 42))
		for _, n := range []int{0, 1, 7, 8, 9, 64, 71} {
			x, w, dst := random[float32](rng, "weights", n), random[float32](rng, "weights", n), make([]float32, n)
			const sigma2 = 0.7
			kernel.Importance(dst, x, w, sigma2)
			for i := range dst {
				square := float32(float64(x[i]) * float64(x[i]))
				root := float32(math.Sqrt(float64(float32(float64(float32(sigma2)) + float64(square)))))
				if want := float32(float64(w[i]) * float64(root)); dst[i] != want {
					t.Fatalf("%d of %d is %g, want %g", i, n, dst[i], want)
				}
			}
		}
	})
}

// TestSearchNegligible guards that groups of next to nothing have scale and codes 0.
func TestSearchNegligible(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		const groups, size = 9, 16
		x, w := slices.Repeat([]float32{9e-16, -9e-16}, groups*size/2), slices.Repeat([]float32{1}, groups*size)
		codes, scales := slices.Repeat([]byte{7}, len(x)), slices.Repeat([]float32{7}, groups)
		kernel.FitSymmetric(codes, scales, x, w, 32)
		if slices.Max(codes) != 0 || slices.Max(scales) != 0 || slices.Min(scales) != 0 {
			t.Errorf("FitSymmetric: codes %v, scales %v", codes, scales)
		}
		codes, scales = slices.Repeat([]byte{7}, len(x)), slices.Repeat([]float32{7}, groups)
		kernel.FitDescent(codes, scales, x, 4)
		if slices.Max(codes) != 0 || slices.Max(scales) != 0 || slices.Min(scales) != 0 {
			t.Errorf("FitDescent: codes %v, scales %v", codes, scales)
		}
		scales = slices.Repeat([]float32{7}, groups)
		kernel.FitIQ4(scales, x, w)
		if slices.Max(scales) != 0 || slices.Min(scales) != 0 {
			t.Errorf("FitIQ4: scales %v", scales)
		}
	})
}

// TestSearchLengths guards that a wrong length panics.
func TestSearchLengths(t *testing.T) {
	f, b := func(n int) []float32 { return make([]float32, n) }, func(n int) []byte { return make([]byte, n) }
	search := &kernel.AffineSearch{Most: 15, Spans: spans(15)}
	for name, call := range map[string]func(){
		"FitAffine codes":     func() { kernel.FitAffine(b(255), f(8), f(8), f(256), f(256), search) },
		"FitAffine w":         func() { kernel.FitAffine(b(256), f(8), f(8), f(256), f(255), search) },
		"FitAffine offsets":   func() { kernel.FitAffine(b(256), f(8), f(7), f(256), f(256), search) },
		"FitAffine groups":    func() { kernel.FitAffine(b(256), f(7), f(7), f(256), f(256), search) },
		"FitAffine size":      func() { kernel.FitAffine(b(256), f(4), f(4), f(256), f(256), search) },
		"FitAffine no groups": func() { kernel.FitAffine(b(256), nil, nil, f(256), f(256), search) },
		"FitAffine nothing":   func() { kernel.FitAffine(nil, f(8), f(8), nil, nil, search) },
		"NearestTuple size":   func() { kernel.NearestTuple(nil, f(5), f(5), new([8]float32)) },
		"NearestTuple w":      func() { kernel.NearestTuple(nil, f(8), f(4), new([8]float32)) },
		"FitGrid levels":      func() { kernel.FitGrid(b(7), f(8), f(8), f(8), grids[0], f(1), 1) },
		"FitGrid w":           func() { kernel.FitGrid(b(8), f(8), f(7), f(8), grids[0], f(1), 1) },
		"FitGrid roots":       func() { kernel.FitGrid(b(8), f(8), f(8), f(9), grids[0], f(1), 1) },
		"FitGrid tuples":      func() { kernel.FitGrid(b(12), f(12), f(12), f(12), grids[0], f(1), 1) },
		"FitGrid size":        func() { kernel.FitGrid(b(40), f(40), f(40), f(40), grids[0], f(1), 1) },
		"Regrid w":            func() { kernel.Regrid(b(8), f(8), f(4), f(8), grids[1], 1, 1) },
		"NewGrid shape":       func() { kernel.NewGrid(nil, 8, 8, 1) },
		"FitSymmetric codes":  func() { kernel.FitSymmetric(b(257), f(8), f(256), f(256), 32) },
		"FitSymmetric w":      func() { kernel.FitSymmetric(b(256), f(8), f(256), f(257), 32) },
		"FitDescent codes":    func() { kernel.FitDescent(b(257), f(8), f(256), 4) },
		"FitDescent groups":   func() { kernel.FitDescent(b(256), f(7), f(256), 4) },
		"FitDescent size":     func() { kernel.FitDescent(b(256), f(4), f(256), 4) },
		"FitIQ4 w":            func() { kernel.FitIQ4(f(8), f(256), f(257)) },
		"Recode codes":        func() { kernel.Recode(b(255), f(8), nil, f(256), 0, 15) },
		"Recode offsets":      func() { kernel.Recode(b(256), f(8), f(9), f(256), 0, 15) },
		"RecodeIQ4":           func() { kernel.RecodeIQ4(b(8), f(9), 1) },
		"Importance w":        func() { kernel.Importance(f(8), f(8), f(9), 1) },
		"Importance dst":      func() { kernel.Importance(f(7), f(8), f(8), 1) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if text, ok := recover().(string); !ok {
					t.Errorf("panicked with %v, want a constant string", text)
				}
			}()
			call()
		})
	}
}

// BenchmarkSearch measures the searches of 256 numbers in groups of 16.
func BenchmarkSearch(b *testing.B) {
	before := kernel.Level()
	b.Cleanup(func() { use(b, before) })
	rng := rand.New(rand.NewPCG(1, 1))
	x, w := random[float32](rng, "weights", 256), make([]float32, 256)
	for i, v := range x {
		w[i] = v * v
	}
	codes, scales, offsets := make([]byte, 256), make([]float32, 16), make([]float32, 16)
	search := &kernel.AffineSearch{Most: 15, Spans: spans(15)}
	for _, name := range kernel.Levels() {
		for what, call := range map[string]func(){
			"FitAffine":    func() { kernel.FitAffine(codes, scales, offsets, x, w, search) },
			"FitSymmetric": func() { kernel.FitSymmetric(codes, scales, x, w, 32) },
			"FitDescent":   func() { kernel.FitDescent(codes, scales, x, 4) },
			"FitIQ4":       func() { kernel.FitIQ4(scales, x, w) },
		} {
			b.Run(fmt.Sprintf("%s/%s", what, name), func(b *testing.B) {
				use(b, name)
				b.SetBytes(4 * 256)
				for b.Loop() {
					call()
				}
			})
		}
	}
}
