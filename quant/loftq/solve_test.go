package loftq_test

import (
	"context"
	"fmt"
	"math"
	"reflect"
	"testing"

	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/internal/linalg"
	"github.com/loratool/loratool/internal/linalg/linalgtest"
	"github.com/loratool/loratool/quant/block"
	"github.com/loratool/loratool/quant/loftq"
	"gonum.org/v1/gonum/mat"
)

const roundoff = 0x1p-24 // of float32, relative

var nf4 = loftq.FourBit{Type: kernel.NF4, BlockSize: 64}

func solve(t *testing.T, w []float32, out, in int, q loftq.Quantizer, o loftq.Options) *loftq.Result {
	t.Helper()
	r, err := loftq.Solve(t.Context(), w, out, in, q, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// gaussian returns independent numbers, as of a layer's initialisation.
func gaussian(out, in int, seed uint64) []float32 {
	source := linalgtest.NewSource(seed)
	w := make([]float32, out*in)
	for i := range w {
		w[i] = float32(source.Normal() / math.Sqrt(float64(in)))
	}
	return w
}

// decaying returns a weight with singular values 1/sqrt(k).
func decaying(out, in int, seed uint64) []float32 {
	return linalgtest.WithSpectrum(out, in, linalgtest.Spectrum("P", min(out, in)), seed).Data
}

// moments returns means of squares that span six decades, and a channel that is
// never active.
func moments(in int, seed uint64) []float64 {
	source := linalgtest.NewSource(seed)
	m := make([]float64, in)
	for j := range m {
		m[j] = math.Pow(10, 6*source.Uniform()-3)
	}
	m[in/2] = 0
	return m
}

// residual returns (W - Q - scale·B·A)·diag(sqrt(m)) in float64.
func residual(w []float32, out, in int, r *loftq.Result, withPair bool, m []float64) *mat.Dense {
	e := mat.NewDense(out, in, nil)
	for i := range out {
		for j := range in {
			v := float64(w[i*in+j]) - float64(r.Q[i*in+j])
			if withPair {
				v -= product(r.Factors, r.Scale, i, j)
			}
			if m != nil {
				v *= math.Sqrt(m[j])
			}
			e.Set(i, j, v)
		}
	}
	return e
}

func product(f loftq.Factors, scale float64, i, j int) float64 {
	sum := 0.0
	for k := range f.Rank() {
		sum += float64(f.B.At(i, k)) * float64(f.A.At(k, j))
	}
	return scale * sum
}

// tail returns the norm of the singular values from a rank on.
func tail(t *testing.T, a mat.Matrix, rank int) float64 {
	t.Helper()
	var svd mat.SVD
	if !svd.Factorize(a, mat.SVDNone) {
		t.Fatal("the twin did not converge")
	}
	sum := 0.0
	for i, s := range svd.Values(nil) {
		if i >= rank {
			sum += s * s
		}
	}
	return math.Sqrt(sum)
}

func frobenius(a mat.Matrix) float64 { return mat.Norm(a, 2) }

func weightNorm(w []float32, out, in int, m []float64) float64 {
	zero := &loftq.Result{Q: make([]float32, out*in)}
	return frobenius(residual(w, out, in, zero, false, m))
}

// problems are what most properties are checked on.
func problems(t *testing.T, f func(name string, w []float32, out, in int, q loftq.Quantizer, o loftq.Options)) {
	t.Helper()
	weights := map[string]func(out, in int, seed uint64) []float32{"flat": gaussian, "decaying": decaying}
	some := map[string]loftq.Quantizer{
		"nf4": nf4, "fp4": loftq.FourBit{Type: kernel.FP4, BlockSize: 128}, "nf2": loftq.Normal{Bits: 2},
		"uniform3": loftq.Uniform{Bits: 3}, "Q4_0": loftq.GGML{Type: block.Q4_0},
	}
	for kind, weight := range weights {
		for _, shape := range [][2]int{{64, 96}, {100, 64}, {7, 32}} {
			out, in := shape[0], shape[1]
			w := weight(out, in, 5)
			for name, q := range some {
				for _, order := range []loftq.Order{loftq.QuantizeFirst, loftq.SVDFirst} {
					for _, m := range [][]float64{nil, moments(in, 6)} {
						o := loftq.Options{Rank: 5, Iterations: 4, Order: order, Scale: 0.25, Moments: m}
						f(fmt.Sprintf("%s %v %s %v weighted=%v", kind, shape, name, order, m != nil), w, out, in, q, o)
					}
				}
			}
		}
	}
}

// TestSolution guards what every solution promises: it is no worse than plain
// quantization, the best of its iterates, Q is the quantizer's of the shifted weight to
// the bit, the error is that of the numbers returned and as small as this Q and this
// rank allow, the pair is balanced, and its best scale is the adapter's.
func TestSolution(t *testing.T) {
	problems(t, func(name string, w []float32, out, in int, q loftq.Quantizer, o loftq.Options) {
		r := solve(t, w, out, in, q, o)
		best := r.Iterates[r.Kept].Repaired.Weighted
		for i, step := range r.Iterates {
			if e := step.Repaired.Weighted; e < best || e == best && i < r.Kept {
				t.Errorf("%s: iterate %d with error %v is kept, %d has %v", name, r.Kept, best, i, e)
			}
		}
		if len(r.Iterates) != o.Iterations+1 || r.Kept == 0 {
			t.Fatalf("%s: iterate %d of %d is kept", name, r.Kept, len(r.Iterates))
		}
		if !(r.Error.Weighted < r.Baseline().Weighted) {
			t.Errorf("%s: error %v, without a pair %v", name, r.Error.Weighted, r.Baseline().Weighted)
		}
		checkShift(t, name, w, out, in, q, r)
		checkErrors(t, name, w, out, in, r, o)
		checkBalance(t, name, r.Factors)
		without := frobenius(residual(w, out, in, r, false, o.Moments)) / weightNorm(w, out, in, o.Moments)
		if limit := scaleError(o.Rank, without, r.Error.Weighted); math.Abs(r.BestScale/o.Scale-1) > limit {
			t.Errorf("%s: best scale %v, want %v within %v of it", name, r.BestScale, o.Scale, limit)
		}
	})
}

// scaleError bounds how far c*/scale is from 1, relatively. With P = U·U^T·R the two
// inner products are equal up to ||U^T·U - 1||, at most rank elements of a few 2^-24
// in a row; the products behind P, 2^-24·sqrt(rank) of R, and the three roundings of
// the pair and of P count as much as R is larger than P.
func scaleError(rank int, without, with float64) float64 {
	p := math.Sqrt(without*without - with*with)
	return roundoff * (4*float64(rank) + (3+math.Sqrt(float64(rank)))*without/p)
}

func checkShift(t *testing.T, name string, w []float32, out, in int, q loftq.Quantizer, r *loftq.Result) {
	t.Helper()
	x := make([]float32, len(w))
	loftq.Shifted(x, w, out, in, r.Shift, 1)
	if !reflect.DeepEqual(roundTrip(t, q, x, out, in), r.Q) {
		t.Errorf("%s: Q is not what the quantizer makes of the shifted weight", name)
	}
}

// checkErrors compares with float64: the error of the pair with the residual, and that
// with the tail of the singular values of (W - Q)·D^1/2.
func checkErrors(t *testing.T, name string, w []float32, out, in int, r *loftq.Result, o loftq.Options) {
	t.Helper()
	for _, m := range [][]float64{nil, o.Moments} {
		norm := weightNorm(w, out, in, m)
		want := frobenius(residual(w, out, in, r, true, m)) / norm
		got := r.Error.Plain
		if m != nil {
			got = r.Error.Weighted
		}
		// W - L is rounded to float32 and so is its difference from Q, the product with
		// rank+2 roundings of its own.
		pair := frobenius(residual(w, out, in, r, false, m)) / norm
		limit := roundoff * (2 + float64(o.Rank+2)*math.Sqrt(float64(o.Rank))*pair)
		if !(math.Abs(got-want) <= limit) {
			t.Errorf("%s: error %v, want %v within %v", name, got, want, limit)
		}
	}
	rest := residual(w, out, in, r, false, o.Moments)
	norm := weightNorm(w, out, in, o.Moments)
	least := tail(t, rest, o.Rank) / norm
	// The shorter side is at most 192, so the exact path was taken: 2^-23 of itself, and
	// what the roundings of the pair leave, half of which is orthogonal to the rest.
	limit := least*0x1p-23 + roundoff*(2+float64(o.Rank+2)*math.Sqrt(float64(o.Rank))*frobenius(rest)/norm)
	if !(math.Abs(r.Error.Weighted-least) <= limit) {
		t.Errorf("%s: error %v, the best of this rank is %v, limit %v", name, r.Error.Weighted, least, limit)
	}
}

func checkBalance(t *testing.T, name string, f loftq.Factors) {
	t.Helper()
	for k := range f.Rank() {
		row, column, largest := 0.0, 0.0, float32(0)
		for j := range f.A.Cols {
			row += float64(f.A.At(k, j)) * float64(f.A.At(k, j))
		}
		for i := range f.B.Rows {
			v := f.B.At(i, k)
			column += float64(v) * float64(v)
			if max(v, -v) > max(largest, -largest) {
				largest = v
			}
		}
		// Singular vectors have norm 1 to a few 2^-24, squared here, and the pair
		// was rounded twice.
		if math.Abs(row/column-1) > 16*roundoff {
			t.Errorf("%s: row %d of A has norm %v, the column of B %v", name, k, math.Sqrt(row), math.Sqrt(column))
		}
		if largest < 0 {
			t.Errorf("%s: the largest element in column %d of B is %v", name, k, largest)
		}
	}
}

// TestWeighted guards that the weighted pair is better than the plain one in the norm
// that counts, and that nothing but the ratios of the moments matters.
func TestWeighted(t *testing.T) {
	const out, in = 96, 80
	w, m := gaussian(out, in, 1), moments(in, 2)
	o := loftq.Options{Rank: 8, Iterations: 1}
	plain := solve(t, w, out, in, nf4, o)
	o.Moments = m
	weighted := solve(t, w, out, in, nf4, o)
	norm := weightNorm(w, out, in, m)
	without := frobenius(residual(w, out, in, plain, true, m)) / norm
	// Six decades leave an eighth of the channels with most of the weight: rank 8 of
	// 80 should do much more for those than for all.
	if !(weighted.Error.Weighted < 0.8*without) {
		t.Errorf("error %v, with the plain pair %v", weighted.Error.Weighted, without)
	}
	if !(weighted.Error.Plain < weighted.Baseline().Plain) {
		t.Errorf("plain error %v is no less than %v without a pair", weighted.Error.Plain, weighted.Baseline().Plain)
	}
	for j := range o.Moments {
		o.Moments[j] *= 1024
	}
	if again := solve(t, w, out, in, nf4, o); !reflect.DeepEqual(again, weighted) {
		t.Error("the unit of the moments changes the result")
	}
	for j := range o.Moments {
		o.Moments[j] = 3
	}
	if same := solve(t, w, out, in, nf4, o); math.Abs(same.Error.Plain/plain.Error.Plain-1) > 0x1p-22 {
		t.Errorf("error %v with equal moments, %v without", same.Error.Plain, plain.Error.Plain)
	}
}

// TestSilentChannel guards that a channel without activations gets all that the columns
// of B can do for it, and no division by its moment: what is left of it is orthogonal
// to them.
func TestSilentChannel(t *testing.T) {
	const out, in, rank = 64, 48, 6
	w, m := gaussian(out, in, 1), moments(in, 2)
	m[3], m[4] = 1e-300, 1e-12 // vanish in float32, and nearly
	r := solve(t, w, out, in, nf4, loftq.Options{Rank: rank, Moments: m})
	e := residual(w, out, in, r, true, nil)
	for _, j := range []int{in / 2, 3, 4} {
		size := mat.Norm(e.ColView(j), 2)
		for k := range rank {
			dot, norm := 0.0, 0.0
			for i := range out {
				b := float64(r.Factors.B.At(i, k))
				dot += b * e.At(i, j)
				norm += b * b
			}
			// Orthogonal up to the rounding of A and of the products of 64 terms behind it.
			if got := math.Abs(dot) / math.Sqrt(norm) / size; got > 16*roundoff*math.Sqrt(out) {
				t.Errorf("channel %d: cosine %v with column %d of B", j, got, k)
			}
		}
	}
}

// TestScale guards that the scale goes into the pair and nowhere else.
func TestScale(t *testing.T) {
	const out, in, rank = 80, 64, 8
	w := decaying(out, in, 3)
	one := solve(t, w, out, in, nf4, loftq.Options{Rank: rank})
	for _, scale := range []float64{0.25, 16, 2, 1.0 / 3, 1e-9} {
		r := solve(t, w, out, in, nf4, loftq.Options{Rank: rank, Scale: scale})
		if !reflect.DeepEqual(r.Q, one.Q) || !reflect.DeepEqual(r.Iterates, one.Iterates) || !reflect.DeepEqual(r.Shift, one.Shift) {
			t.Errorf("scale %v changes the iterates", scale)
		}
		if got := errorAsApplied(w, out, in, r); got != r.Error.Plain {
			t.Errorf("scale %v: error %v, of the pair as it is returned %v", scale, r.Error.Plain, got)
		}
		exponent := math.Log2(scale)
		exact := exponent == 2*math.Trunc(exponent/2) // the root is a power of two
		for i := range out {
			for j := range in {
				got, want, size := product(r.Factors, scale, i, j), product(one.Factors, 1, i, j), 0.0
				for k := range rank {
					size += math.Abs(float64(one.Factors.B.At(i, k)) * float64(one.Factors.A.At(k, j)))
				}
				limit := 2.001 * roundoff * size // both sides are rounded
				if exact {
					limit = 1e-15 * size
				}
				if !(math.Abs(got-want) <= limit) {
					t.Fatalf("scale %v: element [%d,%d] of the product is %v, want %v", scale, i, j, got, want)
				}
			}
		}
	}
}

// errorAsApplied applies the pair in float32 and measures what is left.
func errorAsApplied(w []float32, out, in int, r *loftq.Result) float64 {
	x := append([]float32(nil), w...)
	kernel.AddLowRank(x, out, in, r.Factors.B.Data, r.Factors.A.Data, r.Factors.Rank(), float32(-r.Scale))
	for i := range x {
		x[i] -= r.Q[i]
	}
	norm := func(x []float32) float64 {
		sums, total := make([]float64, out), 0.0
		kernel.RowSumSquares(sums, x, out, in)
		for _, s := range sums {
			total += s
		}
		return math.Sqrt(total)
	}
	return norm(x) / norm(w)
}

// TestFullRank guards that a pair of full rank leaves nothing, and that more than that
// is zeros.
func TestFullRank(t *testing.T) {
	for _, shape := range [][2]int{{24, 40}, {40, 24}, {1, 30}, {30, 1}, {1, 1}} {
		out, in := shape[0], shape[1]
		full := min(out, in)
		w := gaussian(out, in, 4)
		for _, rank := range []int{full, full + 3, 70} {
			for _, m := range [][]float64{nil, append(make([]float64, in-1), 1)} {
				for _, order := range []loftq.Order{loftq.QuantizeFirst, loftq.SVDFirst} {
					r := solve(t, w, out, in, loftq.Normal{Bits: 2, BlockSize: 7}, loftq.Options{Rank: rank, Moments: m, Order: order})
					// W - L is rounded, and so are the pair, twice, and the sums of rank products, whose
					// norms are at most the sum of the singular values of W - Q; the vectors are
					// orthonormal to a few 2^-24.
					pair := frobenius(residual(w, out, in, r, false, m)) / weightNorm(w, out, in, m)
					limit := roundoff * (2 + float64(full+10)*math.Sqrt(float64(full))*pair)
					if got := r.Error.Weighted; !(got <= limit) {
						t.Errorf("%v rank %d: error %v, limit %v", shape, rank, got, limit)
					}
					if r.Factors.Rank() != rank || r.Factors.B.Cols != rank {
						t.Errorf("%v: a pair of rank %d, want %d", shape, r.Factors.Rank(), rank)
					}
					for k := full; k < rank; k++ {
						for j := range in {
							if r.Factors.A.At(k, j) != 0 {
								t.Fatalf("%v: row %d of A is not 0", shape, k)
							}
						}
					}
				}
			}
		}
	}
}

// TestNothingToRepair guards that a weight which the quantizer holds exactly keeps its
// values and gets factors of zeros, in both orders; nothing at all is such a weight.
func TestNothingToRepair(t *testing.T) {
	const out, in = 64, 128
	weights := map[string][]float32{
		"zeros":         make([]float32, out*in),
		"representable": roundTrip(t, nf4, gaussian(out, in, 1), out, in),
	}
	for name, w := range weights {
		for _, order := range []loftq.Order{loftq.QuantizeFirst, loftq.SVDFirst} {
			for _, m := range [][]float64{nil, moments(in, 2)} {
				r := solve(t, w, out, in, nf4, loftq.Options{Rank: 4, Order: order, Moments: m})
				if order == loftq.QuantizeFirst && len(r.Iterates) != 2 {
					t.Errorf("%s: %d iterates, though nothing was left after the first", name, len(r.Iterates)-1)
				}
				if r.Kept != 0 || r.Error != (loftq.Errors{}) || r.BestScale != 0 || r.Shift.Rank() != 0 {
					t.Errorf("%s, %v: iterate %d, error %v", name, order, r.Kept, r.Error)
				}
				for i, v := range r.Q {
					if v != w[i] {
						t.Fatalf("%s, %v: element %d became %v from %v", name, order, i, v, w[i])
					}
				}
				if r.Factors.Rank() != 4 || maxAbs(r.Factors.A.Data) != 0 || maxAbs(r.Factors.B.Data) != 0 {
					t.Errorf("%s, %v: factors are not zeros", name, order)
				}
			}
		}
	}
}

// nothing is the quantizer that keeps no bit.
type nothing struct{}

func (nothing) RoundTrip(dst, _ []float32, _, _, _ int) error {
	clear(dst)
	return nil
}

// TestLowRankWeight guards that a weight of the rank needs no quantizer.
func TestLowRankWeight(t *testing.T) {
	const out, in, rank = 60, 50, 4
	a := linalgtest.WithSpectrum(out, in, []float64{8, 4, 2, 1}, 1)
	for _, order := range []loftq.Order{loftq.QuantizeFirst, loftq.SVDFirst} {
		r := solve(t, a.Data, out, in, nothing{}, loftq.Options{Rank: rank, Order: order})
		// The weight itself is rounded, which has no low rank.
		if limit := roundoff * (3 + (rank+6)*2); !(r.Error.Plain <= limit) {
			t.Errorf("%v: error %v, limit %v", order, r.Error.Plain, limit)
		}
	}
}

// TestOrders reproduces what is known of the two orders: the first iteration leaves
// over half of LoftQ's gain; the order that decomposes first is better on a flat
// spectrum from the second iteration on, and by far on a decaying one; two bits are
// not monotone.
func TestOrders(t *testing.T) {
	const n = 512
	flat, steep := gaussian(n, n, 1), decaying(n, n, 1)
	run := func(w []float32, q loftq.Quantizer, rank int, order loftq.Order) *loftq.Result {
		return solve(t, w, n, n, q, loftq.Options{Rank: rank, Order: order, Threads: 2})
	}
	for _, bits := range []int{2, 4} {
		q := loftq.Quantizer(nf4)
		if bits != 4 {
			q = loftq.Normal{Bits: bits}
		}
		first, last := run(flat, q, 16, loftq.QuantizeFirst), run(flat, q, 16, loftq.SVDFirst)
		base := first.Baseline().Plain
		if gain := base - first.Error.Plain; !(base-first.Iterates[1].Repaired.Plain < gain/2+0.05*gain) {
			t.Errorf("%d bits: one iteration gains %v of %v", bits, base-first.Iterates[1].Repaired.Plain, gain)
		}
		for step := 2; step <= 5; step++ {
			// Even when it stops at its quantizer, as published.
			if a, b := last.Iterates[step].Quantized.Plain, first.Iterates[step].Repaired.Plain; bits == 4 && !(a < b*1.005) || !(last.Iterates[step].Repaired.Plain < b) {
				t.Errorf("%d bits, iteration %d: %v decomposing first, %v quantizing first", bits, step, a, b)
			}
		}
		first, last = run(steep, q, 64, loftq.QuantizeFirst), run(steep, q, 64, loftq.SVDFirst)
		for step := 1; step <= 5; step++ {
			if a, b := last.Iterates[step].Quantized.Plain, first.Iterates[step].Repaired.Plain; !(a < 0.8*b) {
				t.Errorf("%d bits, decaying, iteration %d: %v decomposing first, %v quantizing first", bits, step, a, b)
			}
		}
		if monotone := first.Kept == 5; monotone == (bits == 2) {
			t.Errorf("%d bits: iterate %d of 5 is the best", bits, first.Kept)
		}
		checkWarm(t, first)
	}
	// The relative error of NF4 with blocks of 64 normal numbers is 0.0919; over 2^18
	// elements it scatters by 2^-9 of that.
	if got := solve(t, flat, n, n, nf4, loftq.Options{Rank: 1, Iterations: 1}).Baseline().Plain; math.Abs(got-0.0919) > 0.0005 {
		t.Errorf("plain NF4 has error %v, want 0.0919", got)
	}
}

// checkWarm guards that decompositions start from the subspace of the last one: beyond
// the three steps that linalg needs to see that it is done, they take no more than six
// tenths of the first one's.
func checkWarm(t *testing.T, r *loftq.Result) {
	t.Helper()
	const least = 3
	cold, warm := 0, 0
	for _, step := range r.Iterates[2:] {
		cold += r.Iterates[1].Solver.Steps - least
		warm += step.Solver.Steps - least
		if step.Solver.Exact {
			t.Error("the decomposition was exact, which tests nothing")
		}
	}
	if 10*warm > 6*cold {
		t.Errorf("%d steps beyond the least from the last subspace, %d as many times as the first", warm, cold)
	}
}

// TestThreads guards that results do not depend on them, on both paths of the solver.
func TestThreads(t *testing.T) {
	for _, shape := range [][2]int{{37, 52}, {300, 270}} {
		out, in := shape[0], shape[1]
		w := gaussian(out, in, 1)
		for name, q := range quantizers {
			if out > 100 && name != "uniform3" && name != "bnb-nf4" {
				continue // TestRoundTrips has them all
			}
			for _, m := range [][]float64{nil, moments(in, 2)} {
				o := loftq.Options{Rank: 9, Iterations: 2, Order: loftq.SVDFirst, Moments: m, Scale: 3}
				want := solve(t, w, out, in, q, o)
				for _, threads := range []int{2, 5} {
					o.Threads = threads
					if got := solve(t, w, out, in, q, o); !reflect.DeepEqual(got, want) {
						t.Errorf("%s %v: %d threads change the result", name, shape, threads)
					}
				}
			}
		}
	}
}

// TestFit compares sums over any bands with float64, and the error at any scale with
// the residual.
func TestFit(t *testing.T) {
	const out, in = 23, 31
	w, q, p := gaussian(out, in, 1), gaussian(out, in, 2), gaussian(out, in, 3)
	for _, m := range [][]float64{nil, moments(in, 4)} {
		var want *loftq.Fit
		for _, band := range []int{out, 1, 7} {
			fit, err := loftq.NewFit(in, m)
			if err != nil {
				t.Fatal(err)
			}
			for i := 0; i < out; i += band {
				from, to := i*in, min(i+band, out)*in
				fit.Add(w[from:to], q[from:to], p[from:to])
			}
			if want == nil {
				want = fit
			}
			if !reflect.DeepEqual(fit, want) {
				t.Errorf("bands of %d rows change the sums", band)
			}
		}
		direct := func(scale float64) float64 {
			sum, norm := 0.0, 0.0
			for i := range w {
				d := 1.0
				if m != nil {
					d = m[i%in]
				}
				e := float64(w[i]) - float64(q[i]) - scale*float64(p[i])
				sum, norm = sum+d*e*e, norm+d*float64(w[i])*float64(w[i])
			}
			return math.Sqrt(sum / norm)
		}
		best, ok := want.BestScale()
		for _, scale := range []float64{0, 1, -2.5, best} {
			// Sums of 713 float64 products.
			if got := want.Error(scale); math.Abs(got/direct(scale)-1) > 1000*0x1p-52 {
				t.Errorf("error %v at scale %v, want %v", got, scale, direct(scale))
			}
		}
		if want.Baseline() != want.Error(0) {
			t.Errorf("baseline %v, error without the product %v", want.Baseline(), want.Error(0))
		}
		if !ok || !(direct(best) < direct(best+1e-4)) || !(direct(best) < direct(best-1e-4)) {
			t.Errorf("%v is not the best scale", best)
		}
	}
	empty, err := loftq.NewFit(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	empty.Add(w, w, make([]float32, out*in))
	if c, ok := empty.BestScale(); ok || c != 0 || empty.Baseline() != 0 {
		t.Errorf("nothing fits nothing with scale %v, %v", c, ok)
	}
}

// TestShifted guards that no factors leave a weight as it is, zeros with a sign too.
func TestShifted(t *testing.T) {
	w := []float32{float32(math.Copysign(0, -1)), 1, -2, 3}
	dst := make([]float32, 4)
	loftq.Shifted(dst, w, 2, 2, loftq.Factors{}, 1)
	if digest(dst) != digest(w) {
		t.Errorf("%v became %v", w, dst)
	}
	pair := loftq.Factors{B: linalg.NewMatrix(2, 1, []float32{1, 2}), A: linalg.NewMatrix(1, 2, []float32{3, 5})}
	loftq.Shifted(dst, w, 2, 2, pair, 1)
	if want := []float32{-3, -4, -8, -7}; !reflect.DeepEqual(dst, want) {
		t.Errorf("shifted to %v, want %v", dst, want)
	}
}

// BenchmarkSolve is five iterations at rank 64.
func BenchmarkSolve(b *testing.B) {
	for _, n := range []int{1024, 4096} {
		w := gaussian(n, n, 1)
		for _, order := range []loftq.Order{loftq.QuantizeFirst, loftq.SVDFirst} {
			b.Run(fmt.Sprintf("%d/%v", n, order), func(b *testing.B) {
				for b.Loop() {
					r, err := loftq.Solve(context.Background(), w, n, n, nf4, loftq.Options{Rank: 64, Order: order})
					if err != nil {
						b.Fatal(err)
					}
					b.ReportMetric(r.Error.Plain, "error")
				}
			})
		}
	}
}
