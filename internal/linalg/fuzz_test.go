package linalg_test

import (
	"math"
	"testing"

	"github.com/loratool/loratool/internal/linalg"
	"github.com/loratool/loratool/internal/linalg/linalgtest"
)

// FuzzTruncate checks both paths on small matrices of any shape whose elements
// are few different numbers or span many powers of two, with and without a start.
func FuzzTruncate(f *testing.F) {
	f.Add(uint64(1), uint8(7), uint8(5), uint8(3), uint8(0), false)
	f.Add(uint64(2), uint8(40), uint8(60), uint8(20), uint8(1), true)
	f.Add(uint64(3), uint8(1), uint8(90), uint8(2), uint8(20), false)
	f.Add(uint64(4), uint8(64), uint8(64), uint8(64), uint8(200), true)
	f.Add(uint64(90), uint8(16), uint8(91), uint8(64), uint8(233), false) // a triangle of bad condition
	f.Fuzz(func(t *testing.T, seed uint64, rows, cols, rank, spread uint8, transpose bool) {
		if rows == 0 || cols == 0 || rank == 0 || rows > 100 || cols > 100 {
			t.Skip()
		}
		rng := linalgtest.NewSource(seed)
		a := view(rng, int(rows), int(cols), int(seed%3), transpose)
		for i, v := range a.Data {
			switch {
			case spread == 0: // ranks drop
				a.Data[i] = float32(math.Round(float64(v)))
			case spread < 20:
				a.Data[i] = v * float32(math.Ldexp(1, int(rng.Uint64()%uint64(spread))))
			default: // rows of the data that differ in scale
				a.Data[i] = v * float32(math.Ldexp(1, i/a.Stride*int(spread)/8%60-30))
			}
		}
		if sumSquares(a) == 0 {
			t.Skip()
		}
		o := linalg.Options{Rank: int(rank)}
		if seed%2 == 1 { // a start that has nothing to do with the matrix
			o.Start = view(rng, 1+int(spread)%30, a.Cols, int(seed%4), transpose)
		}
		values := judge(t, a)
		for path, decompose := range paths {
			d, err := decompose(a, o)
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			checkSVD(t, path, a, d)
			checkExcess(t, path, a, d, linalgtest.Tail(values, int(rank)), excessHigh)
		}
	})
}

// FuzzGemm compares products of any shape with sums in float64.
func FuzzGemm(f *testing.F) {
	f.Add(uint64(1), uint16(14), uint16(32), uint16(512), uint8(0))
	f.Add(uint64(2), uint16(253), uint16(129), uint16(3), uint8(7))
	f.Fuzz(func(t *testing.T, seed uint64, rows, cols, inner uint16, variant uint8) {
		if int(rows)*int(cols)*int(inner) > 1<<22 || rows > 600 || cols > 600 {
			t.Skip()
		}
		rng := linalgtest.NewSource(seed)
		a := view(rng, int(rows), int(inner), int(seed%5), variant&1 != 0)
		b := view(rng, int(inner), int(cols), int(seed%4), variant&2 != 0)
		c := linalg.NewMatrix(int(rows), int(cols), nil)
		linalg.Gemm(1, a, b, 0, c, 1+int(variant>>2&3))
		for i := range c.Rows {
			for j := range c.Cols {
				sum, size := 0.0, 0.0
				for k := range a.Cols {
					p := float64(a.At(i, k)) * float64(b.At(k, j))
					sum, size = sum+p, size+math.Abs(p)
				}
				if limit := float64(a.Cols+4) * roundoff * size; !(math.Abs(float64(c.At(i, j))-sum) <= limit) {
					t.Fatalf("[%d,%d] = %v, want %v within %v", i, j, c.At(i, j), sum, limit)
				}
			}
		}
	})
}
