package linalg_test

import (
	"fmt"
	"math"
	"runtime"
	"testing"

	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/internal/linalg"
	"github.com/loratool/loratool/internal/linalg/linalgtest"
	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas32"
)

// roundoff is the relative error of one float32 operation, to nearest even.
const roundoff = 0x1p-24

// eachLevel runs a test at every level this build and CPU have.
func eachLevel(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	before := kernel.Level()
	t.Cleanup(func() {
		if err := kernel.Use(before); err != nil {
			t.Fatal(err)
		}
	})
	for _, level := range kernel.Levels() {
		t.Run(level, func(t *testing.T) {
			if err := kernel.Use(level); err != nil {
				t.Fatal(err)
			}
			f(t)
		})
	}
}

// view returns a random rows x cols matrix whose rows are gap numbers longer
// than they need be, stored transposed if asked. The gaps hold NaN.
func view(rng *linalgtest.Source, rows, cols, gap int, transpose bool) linalg.Matrix {
	if transpose {
		return view(rng, cols, rows, gap, false).T()
	}
	m := linalg.Matrix{Data: make([]float32, max(0, rows*(cols+gap)-gap)), Rows: rows, Cols: cols, Stride: cols + gap}
	for i := range m.Data {
		m.Data[i] = float32(math.NaN())
	}
	for i := range rows {
		for j := range cols {
			m.Data[i*m.Stride+j] = float32(3*rng.Uniform() - 1)
		}
	}
	return m
}

func clone(m linalg.Matrix) linalg.Matrix {
	m.Data = append([]float32(nil), m.Data...)
	return m
}

// TestGemm guards the product on shapes around every block and tile size, with
// all combinations of views, factors and threads, against sums in float64.
func TestGemm(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		rng := linalgtest.NewSource(1)
		shapes := [][3]int{
			{0, 3, 2}, {3, 0, 2}, {3, 2, 0}, {1, 1, 1}, {2, 3, 5}, {13, 31, 7}, {14, 32, 512}, {15, 33, 513},
			{28, 129, 100}, {251, 17, 9}, {252, 130, 11}, {253, 140, 13}, {270, 3, 1026}, {5, 300, 1025}, {260, 280, 20},
		}
		for _, s := range shapes {
			for variant := range 8 {
				if s[0]*s[1]*s[2] > 1<<20 && variant%3 != 0 {
					continue // enough with some of the combinations
				}
				a := view(rng, s[0], s[2], variant%3, variant&1 != 0)
				b := view(rng, s[2], s[1], variant%2, variant&2 != 0)
				c := view(rng, s[0], s[1], variant%4, false)
				alpha := []float32{1, -0.5, 3}[variant%3]
				beta := []float32{0, 1, 0.75}[(variant/2)%3]
				name := fmt.Sprintf("%dx%dx%d/%d", s[0], s[1], s[2], variant)
				if beta == 0 { // must not be read
					for i := range c.Rows {
						for j := range c.Cols {
							c.Data[i*c.Stride+j] = float32(math.NaN())
						}
					}
				}
				got := clone(c)
				linalg.Gemm(alpha, a, b, beta, got, 1)
				for i := range c.Rows {
					for j := range c.Cols {
						sum, size := 0.0, 0.0
						for k := range a.Cols {
							p := float64(alpha) * float64(a.At(i, k)) * float64(b.At(k, j))
							sum, size = sum+p, size+math.Abs(p)
						}
						if beta != 0 {
							old := float64(beta) * float64(c.At(i, j))
							sum, size = sum+old, size+math.Abs(old)
						}
						// Each of the terms takes part in at most inner+4 roundings.
						if limit := float64(a.Cols+4) * roundoff * size; !(math.Abs(float64(got.At(i, j))-sum) <= limit) {
							t.Fatalf("%s: [%d,%d] = %v, want %v within %v", name, i, j, got.At(i, j), sum, limit)
						}
					}
				}
				for i, v := range got.Data {
					if col := i % c.Stride; col >= c.Cols && !math.IsNaN(float64(v)) {
						t.Fatalf("%s: wrote %v into the gap of row %d", name, v, i/c.Stride)
					}
				}
				for _, threads := range []int{2, 3, 7} {
					again := clone(c)
					linalg.Gemm(alpha, a, b, beta, again, threads)
					equalBits(t, fmt.Sprintf("%s with %d threads", name, threads), again.Data, got.Data)
				}
			}
		}
	})
}

// equalBits compares without a tolerance; any NaN equals any other.
func equalBits(t *testing.T, name string, got, want []float32) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: length %d, want %d", name, len(got), len(want))
	}
	for i, w := range want {
		if g := got[i]; math.Float32bits(g) != math.Float32bits(w) && (g == g || w == w) {
			t.Fatalf("%s: [%d] = %v, want %v", name, i, g, w)
		}
	}
}

// TestGemmMisuse guards that shapes that do not fit panic.
func TestGemmMisuse(t *testing.T) {
	m := func(rows, cols int) linalg.Matrix { return linalg.NewMatrix(rows, cols, nil) }
	for name, call := range map[string]func(){
		"rows":       func() { linalg.Gemm(1, m(2, 3), m(3, 4), 0, m(3, 4), 1) },
		"cols":       func() { linalg.Gemm(1, m(2, 3), m(3, 4), 0, m(2, 5), 1) },
		"inner":      func() { linalg.Gemm(1, m(2, 3), m(4, 4), 0, m(2, 4), 1) },
		"threads":    func() { linalg.Gemm(1, m(2, 3), m(3, 4), 0, m(2, 4), 0) },
		"transposed": func() { linalg.Gemm(1, m(2, 3), m(3, 4), 0, m(4, 2).T(), 1) },
		"stride":     func() { linalg.Gemm(1, linalg.Matrix{Rows: 2, Cols: 3, Stride: 2}, m(3, 4), 0, m(2, 4), 1) },
		"short":      func() { linalg.NewMatrix(2, 3, make([]float32, 5)) },
		"negative":   func() { linalg.NewMatrix(-2, -3, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Fatal("no panic")
				}
			}()
			call()
		})
	}
}

func BenchmarkGemm(b *testing.B) {
	for _, s := range []struct {
		name       string
		m, n, k    int
		transposed bool
	}{
		{"square512", 512, 512, 512, false},
		{"square1024", 1024, 1024, 1024, false},
		{"square4096", 4096, 4096, 4096, false},
		{"tall4096x64", 4096, 64, 4096, false},
		{"tall4096x266", 4096, 266, 4096, false},
		{"wide28x4096", 28, 4096, 4096, false},
		{"wide28x4096T", 28, 4096, 4096, true},
		{"wide70x4096", 70, 4096, 4096, false},
	} {
		rng := linalgtest.NewSource(2)
		a, w := view(rng, s.m, s.k, 0, false), view(rng, s.k, s.n, 0, s.transposed)
		c := linalg.NewMatrix(s.m, s.n, nil)
		for _, threads := range []int{1, runtime.GOMAXPROCS(0)} {
			b.Run(fmt.Sprintf("%s/%s/threads=%d", kernel.Level(), s.name, threads), func(b *testing.B) {
				start := cpuSeconds()
				for b.Loop() {
					linalg.Gemm(1, a, w, 0, c, threads)
				}
				reportFlops(b, 2*float64(s.m)*float64(s.n)*float64(s.k), start)
			})
		}
		if float64(s.n)*float64(s.m)*float64(s.k) > 1<<31 {
			continue
		}
		b.Run("gonum/"+s.name, func(b *testing.B) {
			op := blas.NoTrans
			if s.transposed {
				op = blas.Trans
			}
			g := func(m linalg.Matrix) blas32.General {
				if m.Transposed {
					m = m.T()
				}
				return blas32.General{Rows: m.Rows, Cols: m.Cols, Stride: m.Stride, Data: m.Data}
			}
			start := cpuSeconds()
			for b.Loop() {
				blas32.Gemm(blas.NoTrans, op, 1, g(a), g(w), 0, g(c))
			}
			reportFlops(b, 2*float64(s.m)*float64(s.n)*float64(s.k), start)
		})
	}
}

// reportFlops reports the rate per second of wall time and of CPU time; the
// second holds on a busy machine.
func reportFlops(b *testing.B, flops float64, cpuStart float64) {
	b.Helper()
	cpu := (cpuSeconds() - cpuStart) / float64(b.N)
	b.ReportMetric(flops*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
	if cpu > 0 {
		b.ReportMetric(flops/cpu/1e9, "GFLOP/cpu-s")
	}
}
