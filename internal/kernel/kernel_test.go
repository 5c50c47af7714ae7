package kernel_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/internal/kernel"
)

// kinds are the sorts of values random makes.
var kinds = []string{"weights", "subnormal", "huge", "special"}

// random returns n values of one kind: around 1, around the smallest
// subnormals, around the largest finite numbers, or a mix of all with zeros,
// infinities and NaNs of both signs.
func random[T kernel.Float](rng *rand.Rand, kind string, n int) []T {
	var zero T
	_, single := any(zero).(float32)
	tiny, large := 0x1p-1060, 0x1p1020
	if single {
		tiny, large = 0x1p-140, 0x1p125
	}
	s := make([]T, n)
	for i := range s {
		pick := kind
		if kind == "special" {
			pick = kinds[rng.IntN(len(kinds))]
		}
		v := rng.NormFloat64()
		switch pick {
		case "subnormal":
			v *= tiny
		case "huge":
			v *= large
		case "special":
			specials := []float64{0, math.Copysign(0, -1), math.Inf(1), math.Inf(-1), math.NaN(), -math.NaN(), 1, -1}
			v = specials[rng.IntN(len(specials))]
		}
		s[i] = T(v)
	}
	return s
}

// TestLengths guards that a wrong length panics before anything is written.
func TestLengths(t *testing.T) { eachLevel(t, testLengths) }

func testLengths(t *testing.T) {
	f := func(n int) []float32 { return make([]float32, n) }
	d := func(n int) []float64 { return make([]float64, n) }
	s := func(n int) []kernel.RowStats { return make([]kernel.RowStats, n) }
	for name, call := range map[string]func(){
		"AddLowRank x":         func() { kernel.AddLowRank(f(5), 2, 3, f(2), f(3), 1, 1) },
		"AddLowRank l":         func() { kernel.AddLowRank(f(6), 2, 3, f(3), f(3), 1, 1) },
		"AddLowRank r":         func() { kernel.AddLowRank(f(6), 2, 3, f(2), f(4), 1, 1) },
		"AddLowRank rows":      func() { kernel.AddLowRank(f(6), -2, -3, f(2), f(3), 1, 1) },
		"AddLowRank rank":      func() { kernel.AddLowRank(f(0), 0, 0, f(0), f(0), -1, 1) },
		"MatMul dst":           func() { kernel.MatMul(f(5), f(2), f(3), 2, 1, 3) },
		"MatMul a":             func() { kernel.MatMul(f(6), f(3), f(3), 2, 1, 3) },
		"MatMul b":             func() { kernel.MatMul(f(6), f(2), f(2), 2, 1, 3) },
		"MatMul m":             func() { kernel.MatMul(f(0), f(0), f(0), -1, 0, 0) },
		"ScaleRows x":          func() { kernel.ScaleRows(f(5), 2, 3, f(2)) },
		"ScaleRows s":          func() { kernel.ScaleRows(f(6), 2, 3, f(3)) },
		"ScaleRows rows":       func() { kernel.ScaleRows(f(6), -2, -3, f(2)) },
		"ScaleCols x":          func() { kernel.ScaleCols(f(7), 2, 3, f(3)) },
		"ScaleCols s":          func() { kernel.ScaleCols(f(6), 2, 3, f(2)) },
		"ScaleCols cols":       func() { kernel.ScaleCols(f(6), -2, -3, f(3)) },
		"RowSumSquares x":      func() { kernel.RowSumSquares(d(2), f(5), 2, 3) },
		"RowSumSquares dst":    func() { kernel.RowSumSquares(d(3), f(6), 2, 3) },
		"RowSumSquares rows":   func() { kernel.RowSumSquares(d(3), f(6), -2, -3) },
		"AddColSumSquares x":   func() { kernel.AddColSumSquares(d(3), f(5), 2, 3) },
		"AddColSumSquares dst": func() { kernel.AddColSumSquares(d(2), f(6), 2, 3) },
		"AddColSumSquares row": func() { kernel.AddColSumSquares(d(2), f(6), -2, -3) },
		"Compare b":            func() { kernel.Compare(f(5), f(6)) },
		"ULP a":                func() { new(kernel.ULPHistogram).Add(kernel.BF16, make([]byte, 3), make([]byte, 3)) },
		"ULP b":                func() { new(kernel.ULPHistogram).Add(kernel.F32, make([]byte, 4), make([]byte, 8)) },
		"ULP type":             func() { new(kernel.ULPHistogram).Add(kernel.NoStorage, nil, nil) },
		"MatVec w":             func() { kernel.MatVec(f(2), kernel.BF16, make([]byte, 11), f(3), 2, 3, kernel.F32) },
		"MatVec x":             func() { kernel.MatVec(f(2), kernel.BF16, make([]byte, 12), f(2), 2, 3, kernel.F32) },
		"MatVec dst":           func() { kernel.MatVec(f(3), kernel.BF16, make([]byte, 12), f(3), 2, 3, kernel.F32) },
		"MatVec rows":          func() { kernel.MatVec(f(2), kernel.BF16, make([]byte, 12), f(3), -2, -3, kernel.F32) },
		"MatVec type":          func() { kernel.MatVec(f(2), kernel.E5M2, make([]byte, 6), f(3), 2, 3, kernel.F32) },
		"MatVec type of sums":  func() { kernel.MatVec(f(2), kernel.BF16, make([]byte, 12), f(3), 2, 3, kernel.NoStorage) },
		"Stats w":              func() { kernel.Stats(s(2), f(5), f(6), f(6), 2, 3) },
		"Stats x":              func() { kernel.Stats(s(2), f(6), f(5), f(6), 2, 3) },
		"Stats y":              func() { kernel.Stats(s(2), f(6), f(6), f(5), 2, 3) },
		"Stats dst":            func() { kernel.Stats(s(3), f(6), f(6), f(6), 2, 3) },
		"Stats rows":           func() { kernel.Stats(s(3), f(6), f(6), f(6), -2, -3) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if text, ok := recover().(string); !ok {
					t.Errorf("panicked with %v, want a constant string", text)
				}
			}()
			call()
		})
	}
}

// TestOneNaN guards the promise that no byte depends on the CPU: on amd64 the
// invalid operations below give a negative NaN, on arm64 a positive one, and a
// NaN that comes in keeps its payload on some CPUs only.
func TestOneNaN(t *testing.T) { eachLevel(t, testOneNaN) }

func testOneNaN(t *testing.T) {
	inf := float32(math.Inf(1))
	odd := math.Float32frombits(0xffc12345)
	nan := []float32{math.Float32frombits(0x7fc00000)}
	nan64 := []float64{math.Float64frombits(0x7ff8 << 48)}

	x := []float32{inf}
	kernel.AddLowRank(x, 1, 1, []float32{1}, []float32{-inf}, 1, 1)
	sameBits(t, "Inf-Inf", x, nan)
	x = []float32{odd}
	kernel.AddLowRank(x, 1, 1, []float32{1}, []float32{1}, 1, 1)
	sameBits(t, "NaN+1", x, nan)
	x = []float32{1}
	kernel.AddLowRank(x, 1, 1, []float32{0}, []float32{0}, 1, inf)
	sameBits(t, "1+Inf*0", x, nan)
	kernel.MatMul(x, []float32{inf}, []float32{0}, 1, 1, 1)
	sameBits(t, "MatMul Inf*0", x, nan)
	x = []float32{odd}
	kernel.ScaleRows(x, 1, 1, []float32{1})
	sameBits(t, "ScaleRows NaN", x, nan)
	x = []float32{inf}
	kernel.ScaleCols(x, 1, 1, []float32{0})
	sameBits(t, "ScaleCols Inf*0", x, nan)

	sum := []float64{0}
	kernel.RowSumSquares(sum, []float32{odd}, 1, 1)
	sameBits(t, "RowSumSquares", sum, nan64)
	sum[0] = kernel.Compare([]float64{1e200, 1e200}, []float64{1e200, -1e200}).Dot // Inf-Inf
	sameBits(t, "Compare", sum, nan64)
	sum = []float64{math.Float64frombits(0xfff8000000000077)}
	kernel.AddColSumSquares(sum, []float32{1}, 1, 1)
	sameBits(t, "AddColSumSquares", sum, nan64)
}

func sameBits[T kernel.Float](t *testing.T, what string, got, want []T) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d elements, want %d", what, len(got), len(want))
	}
	for i := range want {
		if bitsOf(got[i]) != bitsOf(want[i]) {
			t.Fatalf("%s: element %d = %v (%#x), want %v (%#x)", what, i, got[i], bitsOf(got[i]), want[i], bitsOf(want[i]))
		}
	}
}

func bitsOf[T kernel.Float](v T) uint64 {
	switch v := any(v).(type) {
	case float32:
		return uint64(math.Float32bits(v))
	case float64:
		return math.Float64bits(v)
	}
	panic(fmt.Sprintf("%T", v))
}

func clone[T any](s []T) []T { return append([]T(nil), s...) }

func oneNaN[T kernel.Float](v T) T {
	if math.IsNaN(float64(v)) {
		return T(math.Float64frombits(0x7ff8 << 48))
	}
	return v
}
