package kernel_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/internal/kernel"
)

func TestScale(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	for _, rows := range rowSizes {
		for _, cols := range colSizes {
			for _, kind := range kinds {
				what := fmt.Sprintf("%s %dx%d", kind, rows, cols)
				x := random[float32](rng, kind, rows*cols)
				perRow, perCol := random[float32](rng, kind, rows), random[float32](rng, kind, cols)
				wantRows, wantCols := clone(x), clone(x)
				for i := range rows {
					for j := range cols {
						wantRows[i*cols+j] = oneNaN(x[i*cols+j] * perRow[i])
						wantCols[i*cols+j] = oneNaN(x[i*cols+j] * perCol[j])
					}
				}
				got := clone(x)
				kernel.ScaleRows(got, rows, cols, perRow)
				sameBits(t, "rows "+what, got, wantRows)
				got = clone(x)
				kernel.ScaleCols(got, rows, cols, perCol)
				sameBits(t, "cols "+what, got, wantCols)
			}
		}
	}
}

func TestSumSquares(t *testing.T) {
	t.Run("float32", testSumSquares[float32])
	t.Run("float64", testSumSquares[float64])
}

func testSumSquares[T kernel.Float](t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 10))
	for _, rows := range rowSizes {
		for _, cols := range colSizes {
			for _, kind := range kinds {
				what := fmt.Sprintf("%s %dx%d", kind, rows, cols)
				x := random[T](rng, kind, rows*cols)
				start := random[float64](rng, "weights", cols)
				wantRows, wantCols := make([]float64, rows), clone(start)
				for i := range rows {
					for j := range cols {
						v := float64(x[i*cols+j])
						square := float64(v * v)
						wantRows[i] += square
						wantCols[j] += square
					}
				}
				for _, want := range [][]float64{wantRows, wantCols} {
					for i := range want {
						want[i] = oneNaN(want[i])
					}
				}
				gotRows := random[float64](rng, kind, rows)
				kernel.RowSumSquares(gotRows, x, rows, cols)
				sameBits(t, "rows "+what, gotRows, wantRows)
				for cut := range rows {
					gotCols := clone(start)
					kernel.AddColSumSquares(gotCols, x[:cut*cols], cut, cols)
					kernel.AddColSumSquares(gotCols, x[cut*cols:], rows-cut, cols)
					sameBits(t, fmt.Sprintf("cols %s cut at %d", what, cut), gotCols, wantCols)
				}
			}
		}
	}
}

// TestSumOrder guards the ascending order of every float64 sum: 1 disappears
// next to 2^54 unless it comes after the cancelling terms or together with
// enough others.
func TestSumOrder(t *testing.T) {
	const big = 0x1p27 // its square is 2^54
	up, down := []float32{1, 1, 1, 1, big}, []float32{big, 1, 1, 1, 1}
	sum := make([]float64, 1)
	kernel.RowSumSquares(sum, up, 1, 5)
	sameBits(t, "rows, small first", sum, []float64{0x1p54 + 4})
	kernel.RowSumSquares(sum, down, 1, 5)
	sameBits(t, "rows, big first", sum, []float64{0x1p54})
	sum[0] = 0
	kernel.AddColSumSquares(sum, up, 5, 1)
	sameBits(t, "cols, small first", sum, []float64{0x1p54 + 4})
	sum[0] = 0
	kernel.AddColSumSquares(sum, down, 5, 1)
	sameBits(t, "cols, big first", sum, []float64{0x1p54})
	zero := make([]float32, 5)
	var s [1]kernel.RowStats
	kernel.Stats(s[:], up, zero, zero, 1, 5)
	sameBits(t, "stats, small first", []float64{s[0].Base, s[0].Change}, []float64{0x1p54 + 4, 0x1p54 + 4})
	kernel.Stats(s[:], down, zero, zero, 1, 5)
	sameBits(t, "stats, big first", []float64{s[0].Base, s[0].Kept}, []float64{0x1p54, 0x1p54})
}

func TestStats(t *testing.T) {
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	for _, c := range []struct {
		name    string
		w, x, y []float32
		want    kernel.RowStats
	}{
		{name: "empty"},
		{
			name: "sums",
			w:    []float32{1, 2, -3}, x: []float32{1.5, 2.25, -3}, y: []float32{2, 2, -3},
			want: kernel.RowStats{Base: 14, Change: 0.3125, Rounding: 0.3125, Kept: 0.5},
		},
		{
			name: "rounding against the change",
			w:    []float32{1}, x: []float32{2}, y: []float32{-1},
			want: kernel.RowStats{Base: 1, Change: 1, Rounding: 9, Kept: -2},
		},
		{
			name: "bad columns are counted and left out",
			w:    []float32{nan, 1, 1, inf, 1}, x: []float32{nan, inf, 2, 1, -inf}, y: []float32{nan, 448, 2, 1, inf},
			want: kernel.RowStats{
				Base: 1, Change: 1, Kept: 1,
				NonFiniteBase: 2, NonFiniteExact: 3, NonFiniteStored: 2,
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := []kernel.RowStats{{Base: 99, NonFiniteStored: 99}}
			kernel.Stats(got, c.w, c.x, c.y, 1, len(c.w))
			if got[0] != c.want {
				t.Errorf("got %+v, want %+v", got[0], c.want)
			}
		})
	}
}

// TestStatsRows guards that rows do not leak into each other and that bands of
// rows added in order give the numbers of the whole.
func TestStatsRows(t *testing.T) {
	const rows, cols = 5, 7
	rng := rand.New(rand.NewPCG(11, 12))
	w := random[float32](rng, "special", rows*cols)
	x := random[float32](rng, "special", rows*cols)
	y := random[float32](rng, "special", rows*cols)
	whole := make([]kernel.RowStats, rows)
	kernel.Stats(whole, w, x, y, rows, cols)
	var total, banded kernel.RowStats
	for i, s := range whole {
		var one [1]kernel.RowStats
		at := i * cols
		kernel.Stats(one[:], w[at:at+cols], x[at:at+cols], y[at:at+cols], 1, cols)
		if one[0] != s {
			t.Errorf("row %d alone %+v, in the matrix %+v", i, one[0], s)
		}
		total.Add(s)
		banded.Add(one[0])
	}
	if total != banded {
		t.Errorf("total %+v, by rows %+v", total, banded)
	}
	if total.NonFiniteBase == 0 || total.NonFiniteExact == 0 || total.NonFiniteStored == 0 {
		t.Errorf("total %+v, want non-finite values of every sort", total)
	}
}

func BenchmarkStats(b *testing.B) {
	const rows, cols = 64, 4096
	rng := rand.New(rand.NewPCG(13, 14))
	w := random[float32](rng, "weights", rows*cols)
	x := random[float32](rng, "weights", rows*cols)
	y := random[float32](rng, "weights", rows*cols)
	dst := make([]kernel.RowStats, rows)
	b.SetBytes(3 * 4 * rows * cols)
	for b.Loop() {
		kernel.Stats(dst, w, x, y, rows, cols)
	}
}

func BenchmarkRowSumSquares(b *testing.B) {
	const rows, cols = 64, 4096
	x := random[float32](rand.New(rand.NewPCG(15, 16)), "weights", rows*cols)
	dst := make([]float64, rows)
	b.SetBytes(4 * rows * cols)
	for b.Loop() {
		kernel.RowSumSquares(dst, x, rows, cols)
	}
}
