package kernel_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/internal/kernel"
)

// sizes are 0, 1, odd, and around the width of the panels the columns are cut
// into; ranks are around the four products taken together.
var (
	rowSizes  = []int{0, 1, 2, 3, 7}
	colSizes  = []int{0, 1, 2, 3, 16, 17, 64, 65, 79, 511, 512, 513, 1027}
	rankSizes = []int{0, 1, 2, 3, 4, 5, 7, 8, 16, 33}
)

// TestAddLowRank guards the order and the rounding of the sums: the tiled loop
// equals the loop that the comment of AddLowRank spells out, on every bit.
func TestAddLowRank(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		t.Run("float32", testAddLowRank[float32])
		t.Run("float64", testAddLowRank[float64])
	})
}

func testAddLowRank[T kernel.Float](t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, rows := range rowSizes {
		for _, cols := range colSizes {
			for _, rank := range rankSizes {
				for _, kind := range kinds {
					x := random[T](rng, kind, rows*cols)
					l := random[T](rng, kind, rows*rank)
					r := random[T](rng, kind, rank*cols)
					scale := random[T](rng, kind, 1)[0]

					want := clone(x)
					naiveAddLowRank(want, rows, cols, l, r, rank, scale)
					got := clone(x)
					kernel.AddLowRank(got, rows, cols, l, r, rank, scale)
					sameBits(t, fmt.Sprintf("%s %dx%d rank %d scale %v", kind, rows, cols, rank, scale), got, want)

					for cut := range rows {
						bands := clone(x)
						at := cut * cols
						kernel.AddLowRank(bands[:at], cut, cols, l[:cut*rank], r, rank, scale)
						kernel.AddLowRank(bands[at:], rows-cut, cols, l[cut*rank:], r, rank, scale)
						sameBits(t, fmt.Sprintf("%s %dx%d rank %d cut at row %d", kind, rows, cols, rank, cut), bands, want)
					}
				}
			}
		}
	}
}

// TestAddLowRankByHand guards against a twin that is wrong in the same way.
func TestAddLowRankByHand(t *testing.T) { eachLevel(t, testAddLowRankByHand) }

func testAddLowRankByHand(t *testing.T) {
	x := []float32{1, 2, 3, 4, 5, 6}
	l := []float32{1, 10, 2, 20}
	r := []float32{1, 2, 3, 4, 5, 6}
	kernel.AddLowRank(x, 2, 3, l, r, 2, 0.5)
	sameBits(t, "2x3", x, []float32{21.5, 28, 34.5, 45, 57, 69})
}

// TestAscendingK guards the direction of the sum: 1 is lost when it is added to
// 2^25 and survives when the big terms have gone first.
func TestAscendingK(t *testing.T) { eachLevel(t, testAscendingK) }

func testAscendingK(t *testing.T) {
	const big = 0x1p25
	for _, c := range []struct {
		terms []float32
		want  float32
	}{
		{[]float32{big, 1, -big}, 0},
		{[]float32{big, -big, 1}, 1},
		{[]float32{1, big, -big}, 0},
		{[]float32{1, big, -big, 1, big, -big, 1}, 1},
		{[]float32{0, 0, 0, 0, big, -big, 1, 1}, 2},
	} {
		n := len(c.terms)
		ones := make([]float32, n)
		for i := range ones {
			ones[i] = 1
		}
		x := []float32{0}
		kernel.AddLowRank(x, 1, 1, c.terms, ones, n, 1)
		sameBits(t, fmt.Sprintf("AddLowRank %v", c.terms), x, []float32{c.want})
		dst := []float32{99}
		kernel.MatMul(dst, ones, c.terms, 1, n, 1)
		sameBits(t, fmt.Sprintf("MatMul %v", c.terms), dst, []float32{c.want})
	}
}

// TestNoFusedMultiplyAdd guards the explicit rounding of products. With a =
// 1+2^-12, a*a rounds to 1+2^-11 in float32, so a*a - (1+2^-11) is 0 with two
// roundings and 2^-24 with one. It can only fail where the compiler fuses:
// arm64, riscv64, or amd64 built with GOAMD64=v3.
func TestNoFusedMultiplyAdd(t *testing.T) { eachLevel(t, testNoFusedMultiplyAdd) }

func testNoFusedMultiplyAdd(t *testing.T) {
	const a, rounded = 1 + 0x1p-12, 1 + 0x1p-11
	const a64, rounded64 = 1 + 0x1p-27, 1 + 0x1p-26

	x := []float32{-rounded}
	kernel.AddLowRank(x, 1, 1, []float32{a}, []float32{1}, 1, a)
	sameBits(t, "scale and addition", x, []float32{0})
	for rank := 2; rank <= 9; rank++ {
		for last := 1; last < rank; last++ { // products taken in fours and alone
			l, r := make([]float32, rank), make([]float32, rank)
			l[0], r[0], l[last], r[last] = -rounded, 1, a, a
			x[0] = 0
			kernel.AddLowRank(x, 1, 1, l, r, rank, 1)
			sameBits(t, fmt.Sprintf("term %d of sum", last), x, []float32{0})
			kernel.MatMul(x, l, r, 1, rank, 1)
			sameBits(t, fmt.Sprintf("term %d of product", last), x, []float32{0})

			l64, r64 := make([]float64, rank), make([]float64, rank)
			l64[0], r64[0], l64[last], r64[last] = -rounded64, 1, a64, a64
			x64 := []float64{0}
			kernel.AddLowRank(x64, 1, 1, l64, r64, rank, 1)
			sameBits(t, fmt.Sprintf("term %d of float64 sum", last), x64, []float64{0})
		}
	}

	squares := []float64{-rounded64}
	kernel.AddColSumSquares(squares, []float64{a64}, 1, 1)
	sameBits(t, "column squares", squares, []float64{0})

	// The square of small is a little more than 2^-54, a quarter of the distance
	// between numbers near 1, and so is the part of a64*a64 that rounding drops:
	// either alone is lost, both together round up.
	const small = 0x1.1p-27
	v, zero, want := []float64{small, a64}, []float64{0, 0}, []float64{rounded64, rounded64}
	kernel.RowSumSquares(squares, v, 1, 2)
	sameBits(t, "row squares", squares, want[:1])
	var s [1]kernel.RowStats
	kernel.Stats(s[:], v, zero, v, 1, 2)
	sameBits(t, "base and rounding", []float64{s[0].Base, s[0].Rounding}, want)
	kernel.Stats(s[:], zero, v, v, 1, 2)
	sameBits(t, "change and kept", []float64{s[0].Change, s[0].Kept}, want)
}

// TestZeroIsAdded guards the literal reading of the formula: +0 is added even
// when there is nothing to sum.
func TestZeroIsAdded(t *testing.T) { eachLevel(t, testZeroIsAdded) }

func testZeroIsAdded(t *testing.T) {
	negative := math.Float32frombits(1 << 31)
	x := []float32{negative}
	kernel.AddLowRank(x, 1, 1, nil, nil, 0, 1)
	sameBits(t, "rank 0", x, []float32{0})
	x[0] = negative
	kernel.AddLowRank(x, 1, 1, []float32{negative}, []float32{1}, 1, 1)
	sameBits(t, "product -0", x, []float32{0})
}

func TestMatMul(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, m := range rowSizes {
		for _, n := range colSizes {
			for _, k := range rankSizes {
				for _, kind := range kinds {
					a, b := random[float32](rng, kind, m*k), random[float32](rng, kind, k*n)
					got := random[float32](rng, kind, m*n)
					kernel.MatMul(got, a, b, m, k, n)
					want := make([]float32, m*n)
					naiveMatMul(want, a, b, m, k, n)
					sameBits(t, fmt.Sprintf("%s %dx%dx%d", kind, m, k, n), got, want)
				}
			}
		}
	}
}

// FuzzAddLowRank compares the tiled loop with the naive one on arbitrary bits.
func FuzzAddLowRank(f *testing.F) {
	f.Add([]byte{3, 5, 0, 0, 0x80, 0x3f, 1, 0, 0, 0})
	f.Add([]byte("\x07\x09 some bytes that become floats of any kind"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) < 6 {
			return
		}
		cols, rank := 1+int(data[0])%9, int(data[1])%9
		data = data[2:]
		at := 0
		next := func(n int) []float32 {
			s := make([]float32, n)
			for i := range s {
				s[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[at:]))
				at = (at + 3) % (len(data) - 3)
			}
			return s
		}
		const rows = 3
		got, l, r, scale := next(rows*cols), next(rows*rank), next(rank*cols), next(1)[0]
		want := clone(got)
		naiveAddLowRank(want, rows, cols, l, r, rank, scale)
		kernel.AddLowRank(got, rows, cols, l, r, rank, scale)
		sameBits(t, "fuzz", got, want)
	})
}

func BenchmarkAddLowRank(b *testing.B) {
	const cols = 4096
	rng := rand.New(rand.NewPCG(5, 6))
	for _, rows := range []int{8, 256} {
		for _, rank := range []int{8, 16, 64} {
			x := random[float32](rng, "weights", rows*cols)
			l := random[float32](rng, "weights", rows*rank)
			r := random[float32](rng, "weights", rank*cols)
			eachLevelOf(b, "", fmt.Sprintf("%dx%d/rank%d", rows, cols, rank), func(b *testing.B) {
				b.SetBytes(int64(4 * rows * cols))
				for b.Loop() {
					kernel.AddLowRank(x, rows, cols, l, r, rank, 0x1p-20)
				}
				flops := float64(b.N) * 2 * float64(rows*cols*(rank+1))
				b.ReportMetric(flops/b.Elapsed().Seconds()/1e9, "GFLOP/s")
			})
		}
	}
}

// naiveAddLowRank is the formula of AddLowRank, written in its order.
func naiveAddLowRank[T kernel.Float](x []T, rows, cols int, l, r []T, rank int, scale T) {
	for i := range rows {
		for j := range cols {
			var acc T
			for k := range rank {
				acc += T(l[i*rank+k] * r[k*cols+j])
			}
			x[i*cols+j] = oneNaN(x[i*cols+j] + T(scale*acc))
		}
	}
}

func naiveMatMul[T kernel.Float](dst, a, b []T, m, k, n int) {
	for i := range m {
		for j := range n {
			var acc T
			for p := range k {
				acc += T(a[i*k+p] * b[p*n+j])
			}
			dst[i*n+j] = oneNaN(acc)
		}
	}
}
