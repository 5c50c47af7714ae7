package linalg_test

import (
	"fmt"
	"math"
	"testing"

	"github.com/loratool/loratool/internal/linalg"
	"github.com/loratool/loratool/internal/linalg/linalgtest"
)

// factorLimit is how far a column of Q*R may be from that of A, relative to its
// norm: Q is rounded to float32 and each pass of Cholesky-QR rounds its rows.
const factorLimit = 16 * roundoff

func checkQR(t *testing.T, name string, a, q linalg.Matrix, r []float64) {
	t.Helper()
	n := a.Cols
	if q.Rows != a.Rows || q.Cols != n || len(r) != n*n {
		t.Fatalf("%s: Q %dx%d, R %d numbers", name, q.Rows, q.Cols, len(r))
	}
	checkOrthonormal(t, name, q.T())
	for i := range n {
		for j := range n {
			if v := r[i*n+j]; j < i && v != 0 || j == i && !(v >= 0) {
				t.Fatalf("%s: R[%d,%d] = %v", name, i, j, v)
			}
		}
	}
	for j := range n {
		rest, whole := 0.0, 0.0
		for i := range a.Rows {
			v := float64(a.At(i, j))
			whole += v * v
			for k := range j + 1 {
				v -= float64(q.At(i, k)) * r[k*n+j]
			}
			rest += v * v
		}
		// Roots before the comparison, which keeps tiny columns from vanishing.
		if !(math.Sqrt(rest) <= factorLimit*math.Sqrt(whole)) {
			t.Fatalf("%s: column %d is off by %v of %v", name, j, math.Sqrt(rest), math.Sqrt(whole))
		}
	}
}

// TestQR guards factors and orthonormality on a grid of shapes and of columns
// that are far from, close to and exactly dependent, or badly scaled.
func TestQR(t *testing.T) {
	rng := linalgtest.NewSource(8)
	type kind struct {
		name   string
		change func(a linalg.Matrix)
	}
	column := func(a linalg.Matrix, j int, f func(i int) float64) {
		for i := range a.Rows {
			a.Data[i*a.Stride+j] = float32(f(i))
		}
	}
	kinds := []kind{
		{"random", func(linalg.Matrix) {}},
		{"zero", func(a linalg.Matrix) {
			clear(a.Data)
		}},
		{"zero column", func(a linalg.Matrix) {
			if a.Cols > 0 {
				column(a, a.Cols/2, func(int) float64 { return 0 })
			}
		}},
		{"equal columns", func(a linalg.Matrix) {
			for j := range a.Cols {
				column(a, j, func(i int) float64 { return float64(a.At(i, 0)) })
			}
		}},
		{"nearly equal", func(a linalg.Matrix) { // condition 1e6
			for j := range a.Cols {
				column(a, j, func(i int) float64 { return float64(a.At(i, 0)) + 1e-6*rng.Normal() })
			}
		}},
		{"condition 1e4", func(a linalg.Matrix) {
			for j := range a.Cols {
				column(a, j, func(i int) float64 { return float64(a.At(i, 0)) + 1e-4*rng.Normal() })
			}
		}},
		{"scaled", func(a linalg.Matrix) {
			for j := range a.Cols {
				column(a, j, func(i int) float64 { return math.Ldexp(float64(a.At(i, j)), 120-29*(j%9)) })
			}
		}},
		{"hilbert", func(a linalg.Matrix) {
			for j := range a.Cols {
				column(a, j, func(i int) float64 { return 1 / float64(i+j+1) })
			}
		}},
	}
	for _, kind := range kinds {
		for _, shape := range [][2]int{{0, 0}, {3, 0}, {1, 1}, {2, 2}, {9, 1}, {13, 13}, {64, 15}, {100, 33}, {385, 64}, {1000, 17}} {
			a := view(rng, shape[0], shape[1], 0, false)
			kind.change(a)
			name := fmt.Sprintf("%s %dx%d", kind.name, shape[0], shape[1])
			q, r := linalg.QR(a, 1)
			checkQR(t, name, a, q, r)
			q2, _ := linalg.QR(a, 3)
			equalBits(t, name, q2.Data, q.Data)
		}
	}
	transposed := view(rng, 50, 20, 3, true)
	q, r := linalg.QR(transposed, 1)
	checkQR(t, "transposed view", transposed, q, r)
}

// TestGram guards the float64 products against plain sums.
func TestGram(t *testing.T) {
	rng := linalgtest.NewSource(9)
	for _, shape := range [][2]int{{0, 4}, {1, 0}, {1, 1}, {2, 511}, {3, 512}, {5, 513}, {17, 100}, {64, 9}, {65, 1030}, {131, 20}} {
		x := view(rng, shape[0], shape[1], 0, false)
		g := linalg.Gram(x, 1)
		for threads := range 4 {
			for i, v := range linalg.Gram(x, threads+1) {
				if v != g[i] {
					t.Fatalf("%v: %d threads differ", shape, threads+1)
				}
			}
		}
		for i := range x.Rows {
			for j := range x.Rows {
				sum := 0.0
				for k := range x.Cols {
					sum += float64(x.At(i, k)) * float64(x.At(j, k))
				}
				if got := g[i*x.Rows+j]; !(math.Abs(got-sum) <= double*float64(x.Cols)*(math.Abs(sum)+float64(x.Cols))) {
					t.Fatalf("%v: [%d,%d] = %v, want %v", shape, i, j, got, sum)
				}
			}
		}
	}
}
