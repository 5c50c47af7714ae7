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

// TestSVDOfProduct guards the decomposition of a product against gonum's of the
// product in float64, for ranks below and above the sides.
func TestSVDOfProduct(t *testing.T) {
	rng := linalgtest.NewSource(11)
	for _, shape := range [][3]int{{1, 1, 1}, {40, 1, 30}, {30, 8, 50}, {64, 64, 64}, {20, 25, 40}, {40, 25, 20}, {12, 30, 9}, {120, 16, 90}} {
		rows, rank, cols := shape[0], shape[1], shape[2]
		for _, kind := range []string{"random", "deficient", "graded", "zero"} {
			for _, scale := range []float64{1, -0.25, 0, 1e20} {
				b, a := view(rng, rows, rank, 1, false), view(rng, rank, cols, 2, kind == "random")
				for k := range rank {
					for i := range rows {
						v := &b.Data[i*b.Stride+k]
						switch kind {
						case "deficient":
							*v = b.Data[i*b.Stride+k/2*2]
						case "graded":
							*v *= float32(math.Pow(10, -float64(k)/4))
						case "zero":
							*v = 0
						}
					}
				}
				name := fmt.Sprintf("%v %s scale %v", shape, kind, scale)
				d, err := linalg.SVDOfProduct(b, a, scale, 2)
				if err != nil {
					t.Fatal(err)
				}
				full := mat.NewDense(rows, cols, nil)
				for i := range rows {
					for j := range cols {
						sum := 0.0
						for k := range rank {
							sum += float64(b.At(i, k)) * float64(a.At(k, j))
						}
						full.Set(i, j, scale*sum)
					}
				}
				var svd mat.SVD
				if !svd.Factorize(full, mat.SVDNone) {
					t.Fatal("gonum failed")
				}
				values := svd.Values(nil)
				if len(d.S) != min(rows, rank, cols) {
					t.Fatalf("%s: %d values", name, len(d.S))
				}
				// Both factors are off by factorLimit of their norms, which may be
				// rank times that of the product's largest direction.
				limit := factorLimit * float64(2*rank) * values[0]
				for i, got := range d.S {
					if !(math.Abs(got-values[i]) <= limit) {
						t.Fatalf("%s: S[%d] = %v, want %v within %v", name, i, got, values[i], limit)
					}
				}
				checkOrthonormal(t, name+": U", d.U.T())
				checkOrthonormal(t, name+": VT", d.VT)
				for i := range rows {
					for j := range cols {
						sum := 0.0
						for k, s := range d.S {
							sum += float64(d.U.At(i, k)) * s * float64(d.VT.At(k, j))
						}
						if want := full.At(i, j); !(math.Abs(sum-want) <= limit) {
							t.Fatalf("%s: U*S*VT[%d,%d] = %v, want %v within %v", name, i, j, sum, want, limit)
						}
					}
				}
				if want := linalgtest.Tail(values, 0); !(math.Abs(d.Norm-want) <= limit*float64(rank)) || d.Residual != 0 || d.Captured != 1 {
					t.Fatalf("%s: report %+v, want norm %v", name, d.Report, want)
				}
			}
		}
	}
}

// TestSVDOfProductRefuses guards numbers that have no decomposition.
func TestSVDOfProductRefuses(t *testing.T) {
	good := linalg.NewMatrix(2, 2, nil)
	bad := linalg.NewMatrix(2, 2, []float32{0, 0, float32(math.NaN()), 0})
	var place *linalg.NotFiniteError
	if _, err := linalg.SVDOfProduct(bad, good, 1, 1); !errors.As(err, &place) || place.Row != 1 {
		t.Errorf("first factor: %v", err)
	}
	if _, err := linalg.SVDOfProduct(good, bad, 1, 1); !errors.As(err, &place) || place.Row != 1 {
		t.Errorf("second factor: %v", err)
	}
	if _, err := linalg.SVDOfProduct(good, good, math.Inf(1), 1); err == nil {
		t.Error("infinite scale: no error")
	}
}

func BenchmarkSVDOfProduct(b *testing.B) {
	for _, rank := range []int{16, 64, 256} {
		rng := linalgtest.NewSource(12)
		left, right := view(rng, 4096, rank, 0, false), view(rng, rank, 4096, 0, false)
		b.Run(fmt.Sprintf("4096/rank=%d", rank), func(b *testing.B) {
			start := cpuSeconds()
			for b.Loop() {
				if _, err := linalg.SVDOfProduct(left, right, 1, 1); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric((cpuSeconds()-start)/float64(b.N), "cpu-s/op")
		})
	}
}
