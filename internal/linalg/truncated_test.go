package linalg_test

import (
	"errors"
	"fmt"
	"math"
	"testing"

	"github.com/loratool/loratool/internal/linalg"
	"github.com/loratool/loratool/internal/linalg/linalgtest"
	"gonum.org/v1/gonum/mat"
)

const (
	// orthogonality is how far U^T*U and VT*VT^T may be from the identity in an
	// element. The basis, its second correction and the last combination are
	// float32 products, each a few roundings away, and the elements are rounded.
	orthogonality = 64 * roundoff
	// triplet is how far A*V and U*S may be apart in a column, relative to the
	// largest singular value: float32 products with sums cut at 512 terms, where
	// errors grow like the root, and the same once more for the coefficients.
	triplet = 64 * roundoff
	// excessLow and excessHigh are the promised excess of the residual over the
	// best one, up to rank 64 and above.
	excessLow, excessHigh = 1e-3, 5e-3
)

// operator hides a matrix, so that it is decomposed by iteration.
type operator struct{ linalg.Matrix }

func (o operator) Dims() (rows, cols int) { return o.Rows, o.Cols }
func (o operator) Mul(dst, x linalg.Matrix, threads int) {
	linalg.Gemm(1, x, o.Matrix.T(), 0, dst, threads)
}
func (o operator) MulT(dst, x linalg.Matrix, threads int) {
	linalg.Gemm(1, x, o.Matrix, 0, dst, threads)
}

var _ linalg.Operator = operator{}

func sumSquares(a linalg.Matrix) float64 {
	sum := 0.0
	for i := range a.Rows {
		for j := range a.Cols {
			sum += float64(a.At(i, j)) * float64(a.At(i, j))
		}
	}
	return sum
}

// paths are the two ways to a decomposition, whatever the size.
var paths = map[string]func(a linalg.Matrix, o linalg.Options) (linalg.SVD, error){
	"exact": func(a linalg.Matrix, o linalg.Options) (linalg.SVD, error) {
		o.Exact = true
		return linalg.Truncate(a, o)
	},
	"iteration": func(a linalg.Matrix, o linalg.Options) (linalg.SVD, error) {
		return linalg.TruncateOperator(operator{a}, sumSquares(a), o)
	},
}

// checkSVD guards what holds for every decomposition, converged or not.
func checkSVD(t *testing.T, name string, a linalg.Matrix, d linalg.SVD) {
	t.Helper()
	rank := len(d.S)
	if d.U.Rows != a.Rows || d.U.Cols != rank || d.VT.Rows != rank || d.VT.Cols != a.Cols {
		t.Fatalf("%s: U %dx%d, S %d, VT %dx%d of %dx%d", name, d.U.Rows, d.U.Cols, rank, d.VT.Rows, d.VT.Cols, a.Rows, a.Cols)
	}
	checkOrthonormal(t, name+": U", d.U.T())
	checkOrthonormal(t, name+": VT", d.VT)
	for i, s := range d.S {
		if !(s >= 0) || i > 0 && s > d.S[i-1] {
			t.Fatalf("%s: S[%d] = %v after %v", name, i, s, d.S[max(0, i-1)])
		}
		largest := float32(0)
		for k := range a.Rows {
			if v := d.U.At(k, i); max(v, -v) > max(largest, -largest) {
				largest = v
			}
		}
		if largest < 0 {
			t.Fatalf("%s: column %d of U has its largest element negative", name, i)
		}
	}
	if rank == 0 {
		return
	}
	// The iteration has A*V = U*S on the longer side at every step.
	left, right, m := d.U, d.VT, a
	if a.Rows < a.Cols {
		left, right, m = d.VT.T(), d.U.T(), a.T()
	}
	for i, s := range d.S {
		sum := 0.0
		for k := range m.Rows {
			rest := -s * float64(left.At(k, i))
			for j := range m.Cols {
				rest += float64(m.At(k, j)) * float64(right.At(i, j))
			}
			sum += rest * rest
		}
		if limit := triplet * d.S[0]; !(math.Sqrt(sum) <= limit) {
			t.Fatalf("%s: |A*v - s*u| = %v for value %d, limit %v", name, math.Sqrt(sum), i, limit)
		}
	}
}

// checkOrthonormal guards that the rows of m are orthonormal.
func checkOrthonormal(t *testing.T, name string, m linalg.Matrix) {
	t.Helper()
	for i := range m.Rows {
		for j := range i + 1 {
			sum := 0.0
			for k := range m.Cols {
				sum += float64(m.At(i, k)) * float64(m.At(j, k))
			}
			if i == j {
				sum--
			}
			if !(math.Abs(sum) <= orthogonality) {
				t.Fatalf("%s: product of %d and %d is off by %v", name, i, j, sum)
			}
		}
	}
}

// checkExcess guards the residual against the best possible one, and the
// reported residual of small matrices against the real one.
func checkExcess(t *testing.T, name string, a linalg.Matrix, d linalg.SVD, best, excess float64) {
	t.Helper()
	if d.Norm == 0 {
		return
	}
	residual := d.Residual
	if a.Rows*a.Cols <= 1<<16 {
		sum := 0.0
		for i := range a.Rows {
			for j := range a.Cols {
				rest := float64(a.At(i, j))
				for k, s := range d.S {
					rest -= float64(d.U.At(i, k)) * s * float64(d.VT.At(k, j))
				}
				sum += rest * rest
			}
		}
		residual = math.Sqrt(sum) / d.Norm
		// Squares compare to rounding; the probes that report a small one for an
		// operator scatter between 0.2 and 2.4 times the truth.
		got, want := d.Residual*d.Residual, residual*residual
		limit := 16*roundoff + excess*want // what the captured energy is trusted to
		if !d.Exact && want < 4e-6 {
			limit += 1.4 * want
		}
		if !(math.Abs(got-want) <= limit) {
			t.Errorf("%s: residual %v is reported as %v", name, residual, d.Residual)
		}
	}
	// Where nothing is left, rounding is: that of the triplets.
	if limit := best/d.Norm*(1+excess) + triplet; !(residual <= limit) {
		t.Errorf("%s: residual %v, want at most %v, with %d steps, converged %v, estimate %v", name, residual, limit, d.Steps, d.Converged, d.Excess)
	}
}

// judge returns the singular values by gonum in float64.
func judge(t *testing.T, a linalg.Matrix) []float64 {
	t.Helper()
	dense := mat.NewDense(a.Rows, a.Cols, nil)
	for i := range a.Rows {
		for j := range a.Cols {
			dense.Set(i, j, float64(a.At(i, j)))
		}
	}
	var svd mat.SVD
	if !svd.Factorize(dense, mat.SVDNone) {
		t.Fatal("gonum failed")
	}
	return svd.Values(nil)
}

// TestSpectra guards the promised excess on the reference spectra, which are
// known by construction.
func TestSpectra(t *testing.T) {
	for _, kind := range linalgtest.Spectra {
		for _, n := range []int{512, 1024} {
			s := linalgtest.Spectrum(kind, n)
			a := linalgtest.WithSpectrum(n, n, s, uint64(n))
			for rank, excess := range map[int]float64{8: excessLow, 16: excessLow, 64: excessLow, 256: excessHigh} {
				if rank == 256 && n == 1024 && (kind != "R" || testing.Short()) { // half a second each
					continue
				}
				d, err := linalg.Truncate(a, linalg.Options{Rank: rank, Threads: 2})
				if err != nil {
					t.Fatal(err)
				}
				name := fmt.Sprintf("%s %d rank %d", kind, n, rank)
				checkExcess(t, name, a, d, linalgtest.Tail(s, rank), excess)
				if !d.Converged {
					t.Errorf("%s: not converged", name)
				}
				if rank <= 16 {
					checkSVD(t, name, a, d)
				}
				for i, v := range d.S { // Ritz values do not exceed
					if v > s[i]+triplet*s[0] {
						t.Errorf("%s: S[%d] = %v above %v", name, i, v, s[i])
					}
				}
			}
		}
	}
}

// TestShapes guards both paths on a grid of shapes and ranks against gonum.
func TestShapes(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		for _, shape := range [][2]int{{1, 1}, {1, 7}, {7, 1}, {2, 2}, {15, 14}, {14, 33}, {64, 64}, {65, 31}, {40, 130}, {200, 90}} {
			rows, cols := shape[0], shape[1]
			s := make([]float64, min(rows, cols))
			for i := range s {
				s[i] = math.Pow(float64(i+1), -0.7)
			}
			for variant, a := range []linalg.Matrix{linalgtest.WithSpectrum(rows, cols, s, 5), linalgtest.WithSpectrum(cols, rows, s, 6).T()} {
				values := judge(t, a)
				for _, rank := range []int{1, 3, len(s) / 2, len(s), len(s) + 5} {
					if rank == 0 {
						continue
					}
					for path, decompose := range paths {
						name := fmt.Sprintf("%dx%d/%d rank %d %s", rows, cols, variant, rank, path)
						d, err := decompose(a, linalg.Options{Rank: rank})
						if err != nil {
							t.Fatalf("%s: %v", name, err)
						}
						if want := min(rank, len(s)); len(d.S) != want {
							t.Fatalf("%s: %d values, want %d", name, len(d.S), want)
						}
						checkSVD(t, name, a, d)
						checkExcess(t, name, a, d, linalgtest.Tail(values, rank), excessLow)
						if path == "iteration" && len(d.S) < len(s) {
							continue
						}
						for i, got := range d.S {
							if want := values[i]; !(math.Abs(got-want) <= 1e-6*values[0]) {
								t.Fatalf("%s: S[%d] = %v, want %v", name, i, got, want)
							}
						}
					}
				}
			}
		}
	})
}

// TestDegenerate guards matrices on which an iteration breaks down.
func TestDegenerate(t *testing.T) {
	lowRank := func(rows, cols, rank int) []float64 {
		s := make([]float64, min(rows, cols))
		for i := range rank {
			s[i] = 1 / float64(i+1)
		}
		return s
	}
	constant := func(n int) []float64 {
		s := make([]float64, n)
		for i := range s {
			s[i] = 1
		}
		return s
	}
	eye := linalg.NewMatrix(60, 60, nil)
	oneElement := linalg.NewMatrix(70, 50, nil)
	oneElement.Data[123] = -3
	for i := range 60 {
		eye.Data[i*61] = 1
	}
	graded := make([]float64, 90)
	for i := range graded {
		graded[i] = math.Pow(10, -float64(i)/7)
	}
	badRows := linalgtest.WithSpectrum(90, 90, constant(90), 8)
	for i := range badRows.Data {
		badRows.Data[i] *= float32(math.Pow(10, 15-float64(i/90*37%30)))
	}
	gap := make([]float64, 80)
	for i := range gap {
		gap[i] = []float64{1, 1e-3}[min(1, i/10)]
	}
	for name, a := range map[string]linalg.Matrix{
		"zero":         linalg.NewMatrix(30, 20, nil),
		"rank 1":       linalgtest.WithSpectrum(60, 50, lowRank(60, 50, 1), 1),
		"rank 5":       linalgtest.WithSpectrum(50, 90, lowRank(50, 90, 5), 2),
		"identity":     eye,
		"orthogonal":   linalgtest.WithSpectrum(64, 64, constant(64), 3),
		"one element":  oneElement,
		"two clusters": linalgtest.WithSpectrum(80, 80, gap, 4),
		"graded":       linalgtest.WithSpectrum(90, 95, graded, 7),
		"bad rows":     badRows,
		"bad columns":  badRows.T(),
		"row":          linalgtest.WithSpectrum(1, 100, constant(1), 5),
		"column":       linalgtest.WithSpectrum(100, 1, constant(1), 6),
	} {
		values := judge(t, a)
		for _, rank := range []int{1, 4, 19, 40} {
			for path, decompose := range paths {
				name := fmt.Sprintf("%s rank %d %s", name, rank, path)
				d, err := decompose(a, linalg.Options{Rank: rank})
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				if want := min(rank, a.Rows, a.Cols); len(d.S) != want {
					t.Fatalf("%s: %d values, want %d", name, len(d.S), want)
				}
				checkSVD(t, name, a, d)
				checkExcess(t, name, a, d, linalgtest.Tail(values, rank), excessLow)
				if !d.Converged {
					t.Errorf("%s: not converged", name)
				}
			}
		}
	}
}

// TestScales guards that a power of two changes nothing but the scale, and that
// the ends of float32 work.
func TestScales(t *testing.T) {
	s := make([]float64, 40)
	for i := range s {
		s[i] = 1 / float64(i+1)
	}
	for _, n := range []int{60, 260} { // the exact path and the iteration
		a := linalgtest.WithSpectrum(n, n, s, 7)
		for _, exponent := range []int{-130, -100, -50, 50, 100, 127} {
			scaled := clone(a)
			for i := range scaled.Data {
				scaled.Data[i] = float32(math.Ldexp(float64(a.Data[i]), exponent))
			}
			d, err := linalg.Truncate(scaled, linalg.Options{Rank: 8})
			if err != nil {
				t.Fatalf("2^%d: %v", exponent, err)
			}
			limit := triplet
			if exponent < -126 { // subnormal inputs have lost digits themselves
				limit = math.Ldexp(float64(n), -149-exponent)
			}
			for i, got := range d.S {
				want := math.Ldexp(s[i], exponent)
				if !(math.Abs(got-want) <= math.Ldexp(limit+1e-4*s[i], exponent)) {
					t.Errorf("%d, 2^%d: S[%d] = %v, want %v", n, exponent, i, got, want)
				}
			}
			checkOrthonormal(t, "U", d.U.T())
			checkOrthonormal(t, "VT", d.VT)
			if want := linalgtest.Tail(s, 8) / linalgtest.Tail(s, 0); !(math.Abs(d.Residual-want) <= excessLow*want+limit) {
				t.Errorf("%d, 2^%d: residual %v, want %v", n, exponent, d.Residual, want)
			}
		}
	}
}

// TestThreads guards that neither the number of threads nor a repeated call
// changes a bit.
func TestThreads(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		for _, a := range []linalg.Matrix{
			linalgtest.WithSpectrum(300, 240, linalgtest.Spectrum("P", 240), 1),
			linalgtest.WithSpectrum(240, 300, linalgtest.Spectrum("R", 240), 2),
			linalgtest.WithSpectrum(240, 300, linalgtest.Spectrum("Q", 240), 3).T(),
			linalgtest.WithSpectrum(90, 100, linalgtest.Spectrum("Q", 90), 4),
		} {
			first, err := linalg.Truncate(a, linalg.Options{Rank: 12})
			if err != nil {
				t.Fatal(err)
			}
			if iterated := first.Steps > 0; iterated == (a.Cols == 100) { // the last is too small
				t.Fatalf("%dx%d: %d steps", a.Rows, a.Cols, first.Steps)
			}
			for _, threads := range []int{1, 2, 5} {
				again, err := linalg.Truncate(a, linalg.Options{Rank: 12, Threads: threads})
				if err != nil {
					t.Fatal(err)
				}
				name := fmt.Sprintf("%dx%d, %d threads", a.Rows, a.Cols, threads)
				equalBits(t, name+": U", again.U.Data, first.U.Data)
				equalBits(t, name+": VT", again.VT.Data, first.VT.Data)
				for i, s := range first.S {
					if math.Float64bits(again.S[i]) != math.Float64bits(s) {
						t.Fatalf("%s: S[%d] = %v, want %v", name, i, again.S[i], s)
					}
				}
				if again.Report != first.Report {
					t.Fatalf("%s: %+v, want %+v", name, again.Report, first.Report)
				}
			}
		}
	})
}

// TestLevels guards that the kernels of every level find the same values. The
// vectors may differ where values are close.
func TestLevels(t *testing.T) {
	var results []linalg.SVD
	n := 256
	a := linalgtest.WithSpectrum(n, n+9, linalgtest.Spectrum("Q", n), 1)
	eachLevel(t, func(t *testing.T) {
		d, err := linalg.Truncate(a, linalg.Options{Rank: 10})
		if err != nil {
			t.Fatal(err)
		}
		results = append(results, d)
	})
	for _, d := range results[1:] {
		for i, s := range d.S {
			if want := results[0].S[i]; !(math.Abs(s-want) <= triplet*want) {
				t.Errorf("S[%d] = %v, the first level has %v", i, s, want)
			}
		}
	}
}

// TestSteps guards that a bound on the steps ends the iteration, says so, and
// still gives as many triplets as were asked for.
func TestSteps(t *testing.T) {
	a := linalgtest.WithSpectrum(400, 300, linalgtest.Spectrum("P", 300), 2)
	for _, rank := range []int{5, 60} {
		d, err := linalg.TruncateOperator(operator{a}, sumSquares(a), linalg.Options{Rank: rank, MaxSteps: 1})
		if err != nil {
			t.Fatal(err)
		}
		if len(d.S) != rank || d.Converged || d.Steps > 3 {
			t.Errorf("rank %d: %d values, %+v", rank, len(d.S), d.Report)
		}
		checkSVD(t, "steps", a, d)
	}
}

// TestTargets guards that energy and error give the smallest rank that reaches
// them, or one more where the next value is close, on both paths.
func TestTargets(t *testing.T) {
	for _, kind := range linalgtest.Spectra {
		n := 300
		s := linalgtest.Spectrum(kind, n)
		a := linalgtest.WithSpectrum(n, n, s, 9)
		total := linalgtest.Tail(s, 0)
		for _, o := range []linalg.Options{
			{Energy: 0.1}, {Energy: 0.5}, {Energy: 0.7, MaxRank: 250}, {Error: 0.7}, {Error: 0.4}, {Error: 1e-3},
			{Energy: 0.9, MaxRank: 3}, {Energy: 1, MaxRank: 20},
		} {
			for _, exact := range []bool{false, true} {
				o.Exact = exact
				name := fmt.Sprintf("%s %+v", kind, o)
				d, err := linalg.Truncate(a, o)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				limit := o.Error
				if o.Energy > 0 {
					limit = math.Sqrt(1 - o.Energy)
				}
				want := 1
				for want < n && linalgtest.Tail(s, want) > limit*total {
					want++
				}
				reachable := o.MaxRank == 0 || want <= o.MaxRank
				if o.MaxRank > 0 {
					want = min(want, o.MaxRank)
				}
				// The excess of the residual costs at most this many more.
				slack := 0
				for linalgtest.Tail(s, want+slack)*(1+excessHigh) > limit*total && want+slack < n && reachable {
					slack++
				}
				if got := len(d.S); got < want-1 || got > want+slack+1 || got > n || o.MaxRank > 0 && got > o.MaxRank {
					t.Errorf("%s: rank %d, want %d to %d", name, got, want, want+slack)
				}
				if reachable && !(d.Residual <= limit+16*roundoff) {
					t.Errorf("%s: residual %v, want %v", name, d.Residual, limit)
				}
				if d.Converged != reachable && o.Energy != 1 {
					t.Errorf("%s: converged %v", name, d.Converged)
				}
			}
		}
	}
}

// TestExact guards the stated accuracy on a spectrum of twelve decades.
func TestExact(t *testing.T) {
	s := make([]float64, 120)
	for i := range s {
		s[i] = math.Pow(10, -float64(i)/10)
	}
	a := linalgtest.WithSpectrum(150, 120, s, 3)
	values := judge(t, a)
	d, err := linalg.Truncate(a, linalg.Options{Rank: 120, Exact: true})
	if err != nil {
		t.Fatal(err)
	}
	for i, got := range d.S {
		if want := values[i]; !(math.Abs(got-want) <= 1e-7*values[0]) {
			t.Errorf("S[%d] = %v, want %v", i, got, want)
		}
	}
	checkSVD(t, "graded", a, d)
}

// TestNotFinite guards that NaN and infinities are reported with their place.
func TestNotFinite(t *testing.T) {
	for _, bad := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
		for _, n := range []int{9, 300} {
			a := linalg.NewMatrix(n+1, n, nil)
			a.Data[5*n+3] = float32(bad)
			for _, transpose := range []bool{false, true} {
				row, col := 5, 3
				if transpose {
					a, row, col = a.T(), 3, 5
				}
				_, err := linalg.Truncate(a, linalg.Options{Rank: 2})
				var place *linalg.NotFiniteError
				if !errors.As(err, &place) || place.Row != row || place.Col != col {
					t.Errorf("%v in %d: error %v, want one at [%d,%d]", bad, n, err, row, col)
				}
				if _, err := linalg.TruncateOperator(operator{a}, 1, linalg.Options{Rank: 2}); !errors.As(err, &place) {
					t.Errorf("%v in an operator: error %v", bad, err)
				}
			}
		}
	}
}

// lowRankAndSparse is B*A plus a few elements.
type lowRankAndSparse struct {
	b, a   linalg.Matrix
	sparse []element
}

type element struct {
	row, col int
	value    float32
}

func (o lowRankAndSparse) Dims() (rows, cols int) { return o.b.Rows, o.a.Cols }

func (o lowRankAndSparse) Mul(dst, x linalg.Matrix, threads int) {
	inner := linalg.NewMatrix(x.Rows, o.a.Rows, nil)
	linalg.Gemm(1, x, o.a.T(), 0, inner, threads)
	linalg.Gemm(1, inner, o.b.T(), 0, dst, threads)
	for _, e := range o.sparse {
		for i := range x.Rows {
			dst.Data[i*dst.Stride+e.row] += e.value * x.At(i, e.col)
		}
	}
}

func (o lowRankAndSparse) MulT(dst, x linalg.Matrix, threads int) {
	inner := linalg.NewMatrix(x.Rows, o.b.Cols, nil)
	linalg.Gemm(1, x, o.b, 0, inner, threads)
	linalg.Gemm(1, inner, o.a, 0, dst, threads)
	for _, e := range o.sparse {
		for i := range x.Rows {
			dst.Data[i*dst.Stride+e.col] += e.value * x.At(i, e.row)
		}
	}
}

// TestOperator guards a matrix that exists only as products, and that a wrong
// norm does not get a certificate.
func TestOperator(t *testing.T) {
	rng := linalgtest.NewSource(4)
	o := lowRankAndSparse{b: view(rng, 310, 9, 0, false), a: view(rng, 9, 240, 0, false)}
	for range 50 {
		o.sparse = append(o.sparse, element{int(rng.Uint64() % 310), int(rng.Uint64() % 240), float32(40 * rng.Normal())})
	}
	full := linalg.NewMatrix(310, 240, nil)
	linalg.Gemm(1, o.b, o.a, 0, full, 1)
	for _, e := range o.sparse {
		full.Data[e.row*full.Stride+e.col] += e.value
	}
	values := judge(t, full)
	for _, rank := range []int{4, 20, 70} {
		d, err := linalg.TruncateOperator(o, sumSquares(full), linalg.Options{Rank: rank})
		if err != nil {
			t.Fatal(err)
		}
		checkSVD(t, "operator", full, d)
		checkExcess(t, "operator", full, d, linalgtest.Tail(values, rank), excessHigh)
	}
	for _, wrong := range []float64{0.1, 4} {
		_, err := linalg.TruncateOperator(o, wrong*sumSquares(full), linalg.Options{Rank: 20})
		var mismatch *linalg.CertificateError
		if !errors.As(err, &mismatch) {
			t.Errorf("norm times %v: error %v", wrong, err)
		}
	}
}

// TestOverflow guards that an operator whose products leave float32 ends the
// iteration with an error.
func TestOverflow(t *testing.T) {
	a := linalg.NewMatrix(40, 30, nil)
	for i := range a.Data {
		a.Data[i] = 3e38
	}
	var place *linalg.NotFiniteError
	if _, err := linalg.TruncateOperator(operator{a}, sumSquares(a), linalg.Options{Rank: 3}); !errors.As(err, &place) {
		t.Errorf("error %v", err)
	}
	if _, err := linalg.Truncate(a, linalg.Options{Rank: 3}); err != nil {
		t.Errorf("the matrix itself: %v", err)
	}
}

// TestCertificate guards that a wrong decomposition of a matrix is noticed.
func TestCertificate(t *testing.T) {
	a := linalgtest.WithSpectrum(70, 80, linalgtest.Spectrum("P", 70), 3)
	for name, damage := range map[string]func(d *linalg.SVD){
		"none":      func(*linalg.SVD) {},
		"a value":   func(d *linalg.SVD) { d.S[1] *= 1.1 },
		"a vector":  func(d *linalg.SVD) { d.VT.Data[5] += 0.05 },
		"a sign":    func(d *linalg.SVD) { d.U.Data[3] = -d.U.Data[3] },
		"the share": func(d *linalg.SVD) { d.Captured += 1e-4 },
	} {
		for _, m := range []linalg.Matrix{a, a.T()} {
			d, err := linalg.Truncate(m, linalg.Options{Rank: 9})
			if err != nil {
				t.Fatal(err)
			}
			damage(&d)
			err = linalg.Certify(m, &d)
			var mismatch *linalg.CertificateError
			if errors.As(err, &mismatch) != (name != "none") {
				t.Errorf("%s: error %v", name, err)
			}
		}
	}
}

// TestOptions guards that contradictions are refused by name.
func TestOptions(t *testing.T) {
	a := linalg.NewMatrix(2, 2, nil)
	for name, o := range map[string]linalg.Options{
		"nothing":   {},
		"two":       {Rank: 1, Energy: 0.5},
		"rank":      {Rank: -1},
		"energy":    {Energy: 1.5},
		"error":     {Error: -0.5},
		"not a one": {Error: math.NaN()},
		"max rank":  {Rank: 1, MaxRank: -1},
		"excess":    {Rank: 1, Excess: -1},
		"steps":     {Rank: 1, MaxSteps: -1},
		"threads":   {Rank: 1, Threads: -1},
	} {
		if _, err := linalg.Truncate(a, o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	for name, o := range map[string]linalg.Options{"exact": {Rank: 1, Exact: true}, "error": {Error: 1e-4}} {
		if _, err := linalg.TruncateOperator(operator{a}, 0, o); err == nil {
			t.Errorf("operator, %s: no error", name)
		}
	}
	d, err := linalg.Truncate(linalg.NewMatrix(0, 5, nil), linalg.Options{Rank: 3})
	if err != nil || len(d.S) != 0 || d.VT.Cols != 5 {
		t.Errorf("empty matrix: %+v, %v", d, err)
	}
}
