package kernel_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/internal/kernel"
)

func TestScale(t *testing.T) { eachLevel(t, testScale) }

func testScale(t *testing.T) {
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
	eachLevel(t, func(t *testing.T) {
		t.Run("float32", testSumSquares[float32])
		t.Run("float64", testSumSquares[float64])
	})
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
					squares := make([]float64, cols)
					for j := range cols {
						v := float64(x[i*cols+j])
						squares[j] = float64(v * v)
						wantCols[j] += squares[j]
					}
					wantRows[i] = inLanes(squares)
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

// inLanes adds in the order that the sums over a row have: eight sums in turn,
// then the sums by halves.
func inLanes(terms []float64) float64 {
	var sums [8]float64
	for j, v := range terms {
		sums[j%8] += v
	}
	for half := 4; half > 0; half /= 2 {
		for i := range half {
			sums[i] += sums[i+half]
		}
	}
	return sums[0]
}

// TestSumOrder guards the order of every float64 sum: 1 disappears next to 2^54
// unless it comes after the cancelling terms or together with enough others. Terms
// meet in one lane every eight columns; lanes are added by halves.
func TestSumOrder(t *testing.T) { eachLevel(t, testSumOrder) }

func testSumOrder(t *testing.T) {
	const big = 0x1p27 // its square is 2^54
	for _, c := range []struct {
		name string
		at   map[int]float32
		want float64
	}{
		{"one lane, small first", map[int]float32{0: 1, 8: 1, 16: 1, 24: 1, 32: big}, 0x1p54 + 4},
		{"one lane, big first", map[int]float32{0: big, 8: 1, 16: 1, 24: 1, 32: 1}, 0x1p54},
		{"one lane, in the last columns", map[int]float32{3: 1, 11: 1, 19: 1, 27: 1, 35: big}, 0x1p54 + 4},
		{"lanes 4 apart meet first", map[int]float32{0: big, 1: 1, 5: 1, 3: 1, 7: 1}, 0x1p54 + 4},
		{"then lanes 2 apart", map[int]float32{0: 1, 4: 1, 2: 1, 6: 1, 1: big}, 0x1p54 + 4},
		{"small ones are lost one by one", map[int]float32{0: big, 4: 1, 2: 1, 1: 1}, 0x1p54},
	} {
		const cols = 37
		v, zero := make([]float32, cols), make([]float32, cols)
		for j, x := range c.at {
			v[j] = x
		}
		sum := make([]float64, 1)
		kernel.RowSumSquares(sum, v, 1, cols)
		sameBits(t, "rows, "+c.name, sum, []float64{c.want})
		var s [1]kernel.RowStats
		kernel.Stats(s[:], v, zero, zero, 1, cols)
		sameBits(t, "base and kept, "+c.name, []float64{s[0].Base, s[0].Change, s[0].Kept}, []float64{c.want, c.want, c.want})
		kernel.Stats(s[:], zero, zero, v, 1, cols)
		sameBits(t, "rounding, "+c.name, []float64{s[0].Rounding}, []float64{c.want})
		left, right, both := kernel.Compare(v, zero), kernel.Compare(zero, v), kernel.Compare(v, v)
		sameBits(t, "compared, "+c.name, []float64{left.DiffSquares, left.ASquares, right.BSquares, both.Dot}, []float64{c.want, c.want, c.want, c.want})
	}
	for name, column := range map[string][]float32{"small first": {1, 1, 1, 1, big}, "big first": {big, 1, 1, 1, 1}} {
		const cols = 9
		x := make([]float32, 5*cols)
		for i, v := range column {
			for j := range cols {
				x[i*cols+j] = v
			}
		}
		want := 0x1p54
		if name == "small first" {
			want += 4
		}
		sums := make([]float64, cols)
		kernel.AddColSumSquares(sums, x, 5, cols)
		for _, sum := range sums {
			sameBits(t, "columns, "+name, []float64{sum}, []float64{want})
		}
	}
}

func TestStats(t *testing.T) { eachLevel(t, testStats) }

func testStats(t *testing.T) {
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

// TestMaxAbs guards the largest magnitude wherever it is, and that a NaN is larger
// than everything.
func TestMaxAbs(t *testing.T) { eachLevel(t, testMaxAbs) }

func testMaxAbs(t *testing.T) {
	sameBits(t, "nothing", []float32{kernel.MaxAbs(nil)}, []float32{0})
	for _, c := range []struct{ largest, want float32 }{
		{-3, 3},
		{2.5, 2.5},
		{float32(math.Inf(-1)), float32(math.Inf(1))},
		{math.Float32frombits(0xffc1_2345), math.Float32frombits(0x7fc0_0000)},
	} {
		const n = 43
		for at := range n {
			x := make([]float32, n)
			for i := range x {
				x[i] = -2
			}
			x[at] = c.largest
			sameBits(t, fmt.Sprintf("%v at %d", c.largest, at), []float32{kernel.MaxAbs(x)}, []float32{c.want})
		}
	}
}

// TestStatsRows guards that rows do not leak into each other and that bands of
// rows added in order give the numbers of the whole.
func TestStatsRows(t *testing.T) { eachLevel(t, testStatsRows) }

func testStatsRows(t *testing.T) {
	const rows, cols = 5, 43
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
	eachLevelOf(b, "", "64x4096", func(b *testing.B) {
		b.SetBytes(3 * 4 * rows * cols)
		for b.Loop() {
			kernel.Stats(dst, w, x, y, rows, cols)
		}
	})
}

// BenchmarkRows measures what reads, or reads and writes, a matrix once.
func BenchmarkRows(b *testing.B) {
	const rows, cols = 64, 4096
	x := random[float32](rand.New(rand.NewPCG(15, 16)), "weights", rows*cols)
	sums, factors := make([]float64, cols), make([]float32, cols)
	for i := range factors {
		factors[i] = 1
	}
	for name, call := range map[string]func(){
		"RowSumSquares":    func() { kernel.RowSumSquares(sums[:rows], x, rows, cols) },
		"AddColSumSquares": func() { kernel.AddColSumSquares(sums, x, rows, cols) },
		"MaxAbs":           func() { kernel.MaxAbs(x) },
		"ScaleRows":        func() { kernel.ScaleRows(x, rows, cols, factors[:rows]) },
		"ScaleCols":        func() { kernel.ScaleCols(x, rows, cols, factors) },
	} {
		eachLevelOf(b, name, "64x4096", func(b *testing.B) {
			b.SetBytes(4 * rows * cols)
			for b.Loop() {
				call()
			}
		})
	}
}
