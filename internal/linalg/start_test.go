package linalg_test

import (
	"errors"
	"fmt"
	"math"
	"testing"

	"github.com/loratool/loratool/internal/linalg"
	"github.com/loratool/loratool/internal/linalg/linalgtest"
)

// near returns a with independent noise of a share of its norm, as the rounding of a
// quantizer leaves it.
func near(a linalg.Matrix, share float64, seed uint64) linalg.Matrix {
	rng := linalgtest.NewSource(seed)
	size := share * math.Sqrt(sumSquares(a)/float64(a.Rows*a.Cols))
	b := clone(a)
	for i := range b.Data {
		b.Data[i] += float32(size * rng.Normal())
	}
	return b
}

// startShapes are decomposed by the iteration, from either side.
var startShapes = [][2]int{{512, 400}, {400, 512}}

// TestWarmStart guards that the decomposition of a matrix nearby saves steps and costs
// no accuracy.
func TestWarmStart(t *testing.T) {
	cold, warm := 0, 0
	for _, kind := range linalgtest.Spectra {
		for _, shape := range startShapes {
			s := linalgtest.Spectrum(kind, min(shape[0], shape[1]))
			a := linalgtest.WithSpectrum(shape[0], shape[1], s, 3)
			for _, rank := range []int{8, 40} {
				name := fmt.Sprintf("%s %v rank %d", kind, shape, rank)
				before, err := linalg.Truncate(near(a, 0.02, 4), linalg.Options{Rank: rank})
				if err != nil {
					t.Fatal(err)
				}
				without, err := linalg.Truncate(a, linalg.Options{Rank: rank})
				if err != nil {
					t.Fatal(err)
				}
				d, err := linalg.Truncate(a, linalg.Options{Rank: rank, Start: before.VT})
				if err != nil {
					t.Fatal(err)
				}
				checkSVD(t, name, a, d)
				checkExcess(t, name, a, d, linalgtest.Tail(s, rank), excessLow)
				if d.Steps == 0 || d.Steps > without.Steps {
					t.Errorf("%s: %d steps with a start, %d without", name, d.Steps, without.Steps)
				}
				cold, warm = cold+without.Steps, warm+d.Steps
			}
		}
	}
	// Three steps are the least that an estimate needs.
	if cases := 4 * len(linalgtest.Spectra); !(warm-3*cases <= (cold-3*cases)/2) {
		t.Errorf("%d steps with a start, %d without: less than half of those that can be saved", warm, cold)
	}
}

// TestBadStart guards that a start which says nothing or the wrong thing costs no
// accuracy.
func TestBadStart(t *testing.T) {
	for _, kind := range linalgtest.Spectra {
		for _, shape := range startShapes {
			n := min(shape[0], shape[1])
			s := linalgtest.Spectrum(kind, n)
			a := linalgtest.WithSpectrum(shape[0], shape[1], s, 5)
			exact, err := linalg.Truncate(a, linalg.Options{Rank: n, Exact: true})
			if err != nil {
				t.Fatal(err)
			}
			cols := shape[1]
			vectors := func(from, to int) linalg.Matrix {
				return linalg.NewMatrix(to-from, cols, exact.VT.Data[from*cols:to*cols])
			}
			scaled := func(exponent int) linalg.Matrix {
				m := clone(vectors(0, 20))
				for i := range m.Data {
					m.Data[i] = float32(math.Ldexp(float64(m.Data[i]), exponent))
				}
				return m
			}
			same := linalg.NewMatrix(30, cols, nil)
			for i := range 30 {
				copy(same.Data[i*cols:][:cols], exact.VT.Data[:cols])
			}
			rng := linalgtest.NewSource(6)
			for name, start := range map[string]linalg.Matrix{
				"zeros":            linalg.NewMatrix(9, cols, nil),
				"one vector":       vectors(3, 4),
				"the same vectors": same,
				"the last vectors": vectors(n-40, n),
				"without the best": vectors(5, 45),
				"all vectors":      vectors(0, n),
				"too many":         view(rng, n+100, cols, 0, false),
				"a view":           view(rng, 20, cols, 3, true),
				"huge":             scaled(126),
				"tiny":             scaled(-140),
			} {
				name = fmt.Sprintf("%s %v, %s", kind, shape, name)
				d, err := linalg.Truncate(a, linalg.Options{Rank: 20, Start: start})
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				checkExcess(t, name, a, d, linalgtest.Tail(s, 20), excessLow)
				if !d.Converged || d.Steps == 0 {
					t.Errorf("%s: %+v", name, d.Report)
				}
				checkOrthonormal(t, name, d.VT)
			}
		}
	}
}

// TestInvariantStart guards a start in a space that A maps to itself and that has none of
// the first vectors, whatever its numbers are: only the random part finds those.
func TestInvariantStart(t *testing.T) {
	const n, rank = 300, 20
	a, values := linalg.NewMatrix(n, n, nil), make([]float64, n)
	for i := range values {
		values[i] = 2 - float64(i)/100
		if i >= rank {
			values[i] = math.Pow(0.95, float64(i-rank)) // slow enough that no direction vanishes meanwhile
		}
		a.Data[i*n+i] = float32(values[i])
	}
	for _, exponent := range []int{-100, 0, 100} {
		start := linalg.NewMatrix(n-rank, n, nil)
		for i := range start.Rows {
			start.Data[i*n+rank+i] = float32(math.Ldexp(1, exponent))
		}
		d, err := linalg.TruncateOperator(operator{a}, sumSquares(a), linalg.Options{Rank: rank, Start: start})
		if err != nil {
			t.Fatal(err)
		}
		checkExcess(t, fmt.Sprintf("2^%d", exponent), a, d, linalgtest.Tail(values, rank), excessLow)
	}
}

// TestStartOfOperator guards the start of a matrix that is given by its products.
func TestStartOfOperator(t *testing.T) {
	for _, shape := range [][2]int{{90, 70}, {70, 90}} {
		s := linalgtest.Spectrum("P", 70)
		a := linalgtest.WithSpectrum(shape[0], shape[1], s, 7)
		before, err := linalg.Truncate(near(a, 0.01, 8), linalg.Options{Rank: 6})
		if err != nil {
			t.Fatal(err)
		}
		d, err := linalg.TruncateOperator(operator{a}, sumSquares(a), linalg.Options{Rank: 6, Start: before.VT})
		if err != nil {
			t.Fatal(err)
		}
		checkSVD(t, "operator", a, d)
		checkExcess(t, "operator", a, d, linalgtest.Tail(s, 6), excessLow)
	}
}

// TestStartAndThreads guards that threads change no bit behind a start either, and that
// the exact path gives the same with one.
func TestStartAndThreads(t *testing.T) {
	for _, shape := range [][2]int{{300, 240}, {240, 300}} {
		a := linalgtest.WithSpectrum(shape[0], shape[1], linalgtest.Spectrum("Q", 240), 9)
		start := view(linalgtest.NewSource(10), 17, shape[1], 2, false)
		for _, exact := range []bool{false, true} {
			o := linalg.Options{Rank: 12, Exact: exact, Start: start}
			first, err := linalg.Truncate(a, o)
			if err != nil {
				t.Fatal(err)
			}
			if iterated := first.Steps > 0; iterated == exact {
				t.Fatalf("%d steps, exact %v", first.Steps, exact)
			}
			o.Threads = 3
			if exact {
				o.Start = linalg.Matrix{}
			}
			again, err := linalg.Truncate(a, o)
			if err != nil {
				t.Fatal(err)
			}
			equalBits(t, "U", again.U.Data, first.U.Data)
			equalBits(t, "VT", again.VT.Data, first.VT.Data)
			if again.Report != first.Report {
				t.Fatalf("%+v, want %+v", again.Report, first.Report)
			}
		}
	}
}

// TestStartNotFinite guards that a start with a NaN or an infinity is refused, and that
// vectors of another length are a bug of the caller.
func TestStartNotFinite(t *testing.T) {
	a := linalgtest.WithSpectrum(300, 250, linalgtest.Spectrum("P", 250), 11)
	for _, bad := range []float64{math.NaN(), math.Inf(-1)} {
		start := linalg.NewMatrix(4, 250, nil)
		start.Data[2*250+7] = float32(bad)
		_, err := linalg.Truncate(a, linalg.Options{Rank: 5, Start: start})
		var place *linalg.NotFiniteError
		if !errors.As(err, &place) || place.Row != 2 || place.Col != 7 {
			t.Errorf("%v: error %v, want one at [2,7]", bad, err)
		}
	}
	for _, exact := range []bool{false, true} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("no panic for vectors of another length, exact %v", exact)
				}
			}()
			_, _ = linalg.Truncate(a, linalg.Options{Rank: 5, Exact: exact, Start: linalg.NewMatrix(4, 300, nil)})
		}()
	}
}
