package linalg_test

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/loratool/loratool/internal/linalg"
	"github.com/loratool/loratool/internal/linalg/linalgtest"
	"gonum.org/v1/gonum/mat"
)

// double is the distance from 1 to the next float64.
const double = 0x1p-52

// symmetric matrices that are easy and hard for eigensolvers.
func symmetric(kind string, n int) []float64 {
	rng := linalgtest.NewSource(uint64(n))
	a := make([]float64, n*n)
	set := func(i, j int, v float64) { a[i*n+j], a[j*n+i] = v, v }
	for i := range n {
		for j := range i + 1 {
			switch kind {
			case "random", "tiny", "huge":
				set(i, j, rng.Normal()*map[string]float64{"random": 1, "tiny": 1e-150, "huge": 1e150}[kind])
			case "identity":
				if i == j {
					set(i, i, 1)
				}
			case "wilkinson": // pairs of values that agree to many digits
				if i == j {
					set(i, i, math.Abs(float64(n-1)/2-float64(i)))
				} else if i == j+1 {
					set(i, j, 1)
				}
			case "graded":
				set(i, j, rng.Normal()*math.Pow(10, -float64(i+j)/8))
			case "ones": // rank one
				set(i, j, 1)
			case "blocks": // equal values in parts that do not touch
				if i/2 == j/2 {
					set(i, j, float64(i-j+1))
				}
			}
		}
	}
	return a
}

// TestSymEigen guards residuals, orthonormality and, with gonum as the judge,
// the values, for few and for all vectors.
func TestSymEigen(t *testing.T) {
	for _, kind := range []string{"random", "tiny", "huge", "identity", "wilkinson", "graded", "ones", "blocks", "zero"} {
		for _, n := range []int{1, 2, 3, 21, 48, 49, 100, 131} {
			for _, want := range []int{0, 1, n / 3, n} {
				a := symmetric(kind, n)
				values, vectors := linalg.SymEigen(slices.Clone(a), n, want, 1)
				name := fmt.Sprintf("%s %d want %d", kind, n, want)
				largest := max(math.Abs(values[0]), math.Abs(values[n-1]))
				// Backward error of the reductions: n operations on each number.
				limit := 8 * float64(n) * double * largest
				if !slices.IsSortedFunc(values, func(x, y float64) int { return int(math.Copysign(1, y-x)) }) && n > 1 && slices.Max(values) != values[0] {
					t.Fatalf("%s: values are not sorted", name)
				}
				var judge mat.EigenSym // with vectors: gonum 0.17 panics without for tiny numbers
				if !judge.Factorize(mat.NewSymDense(n, slices.Clone(a)), true) {
					t.Fatal("gonum failed")
				}
				for i, w := range judge.Values(nil) {
					if got := values[n-1-i]; !(math.Abs(got-w) <= limit) {
						t.Fatalf("%s: value %d = %v, want %v within %v", name, n-1-i, got, w, limit)
					}
				}
				for v := range want {
					x := vectors[v*n:][:n]
					for i := range n {
						sum := -values[v] * x[i]
						for j := range n {
							sum += a[i*n+j] * x[j]
						}
						if !(math.Abs(sum) <= limit) {
							t.Fatalf("%s: residual %v of vector %d, limit %v", name, sum, v, limit)
						}
					}
					for u := range v + 1 {
						product := 0.0
						for j := range n {
							product += x[j] * vectors[u*n+j]
						}
						if u == v {
							product--
						}
						if !(math.Abs(product) <= 8*float64(n)*double) {
							t.Fatalf("%s: vectors %d and %d: %v off orthonormal", name, u, v, product)
						}
					}
				}
			}
		}
	}
}

// TestSymEigenThreads guards sizes at which passes have parts, odd ends among them:
// threads change no bit, and traces and residuals are right.
func TestSymEigenThreads(t *testing.T) {
	for _, n := range []int{255, 256, 257, 403, 530} {
		a := symmetric("random", n)
		values, vectors := linalg.SymEigen(slices.Clone(a), n, 3, 1)
		for _, threads := range []int{2, 3, 16} {
			again, rows := linalg.SymEigen(slices.Clone(a), n, 3, threads)
			if !slices.Equal(again, values) || !slices.Equal(rows, vectors) {
				t.Fatalf("size %d, %d threads: another result", n, threads)
			}
		}
		// Traces of A and of A*A are the sums of the values and of their squares.
		trace, squares := 0.0, 0.0
		for i := range n {
			trace += a[i*n+i]
			for j := range n {
				squares += a[i*n+j] * a[i*n+j]
			}
		}
		for _, v := range values {
			trace -= v
			squares -= v * v
		}
		limit := 8 * float64(n) * double * values[0] // of one value, as in TestSymEigen
		if !(math.Abs(trace) <= float64(n)*limit) || !(math.Abs(squares) <= 2*float64(n)*values[0]*limit) {
			t.Errorf("size %d: traces are off by %v and %v", n, trace, squares)
		}
		for v := range 3 {
			x, sum := vectors[v*n:][:n], 0.0
			for i := range n {
				rest := -values[v] * x[i]
				for j := range n {
					rest += a[i*n+j] * x[j]
				}
				sum += rest * rest
			}
			if !(math.Sqrt(sum) <= limit) {
				t.Errorf("size %d: residual %v of vector %d, limit %v", n, math.Sqrt(sum), v, limit)
			}
		}
	}
}

func BenchmarkSymEigen(b *testing.B) {
	for _, n := range []int{64, 256, 576} {
		a := symmetric("random", n)
		for _, want := range []int{0, n * 4 / 9, n} {
			b.Run(fmt.Sprintf("own/%d/vectors=%d", n, want), func(b *testing.B) {
				start := cpuSeconds()
				for b.Loop() {
					linalg.SymEigen(slices.Clone(a), n, want, 1)
				}
				b.ReportMetric((cpuSeconds()-start)/float64(b.N), "cpu-s/op")
			})
		}
		b.Run(fmt.Sprintf("gonum/%d", n), func(b *testing.B) {
			start := cpuSeconds()
			for b.Loop() {
				var judge mat.EigenSym // with vectors: gonum 0.17 panics without for tiny numbers
				judge.Factorize(mat.NewSymDense(n, slices.Clone(a)), true)
			}
			b.ReportMetric((cpuSeconds()-start)/float64(b.N), "cpu-s/op")
		})
	}
}
