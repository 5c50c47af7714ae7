package block

import (
	"encoding/binary"
	"math"

	"github.com/x448/float16"
)

// The small arithmetic that the ggml types share. Go may fuse x*y+z into one
// rounding on some CPUs; wherever a product is added, float32(x*y) forbids it.

// nearest rounds to an integer, half to even, by adding 1.5*2^23, beside which a
// float32 has no room for a fraction. From 2^22 on the result is meaningless, but
// the same on every CPU, and callers clamp it.
func nearest(x float32) int32 {
	return int32(math.Float32bits(x+12582912)&(1<<23-1)) - 1<<22
}

// roundAway rounds to an integer, half away from zero, for |x| < 2^30. In float64
// the sum is exact wherever it matters.
func roundAway(x float32) int32 {
	wide := float64(x)
	return int32(wide + math.Copysign(0.5, wide))
}

func magnitude(x float32) float32 { return math.Float32frombits(math.Float32bits(x) &^ sign32) }

func sqrt32(x float32) float32 { return float32(math.Sqrt(float64(x))) }

// peak returns the largest magnitude of x and the element that has it first, 0 and
// 0 if all are zero. NaN counts as larger than any number.
func peak(x []float32) (size, element float32) {
	var top uint32 // magnitudes are ordered as their bits are
	for _, v := range x {
		top = max(top, math.Float32bits(v)&^sign32)
	}
	if top == 0 {
		return 0, 0
	}
	for _, v := range x {
		if math.Float32bits(v)&^sign32 == top {
			element = v
			break
		}
	}
	return math.Float32frombits(top), element
}

// extent returns the smallest and the largest element, the first of equal ones.
func extent(x []float32) (low, high float32) {
	low, high = x[0], x[0]
	for _, v := range x[1:] {
		if v < low {
			low = v
		}
		if v > high {
			high = v
		}
	}
	return low, high
}

// sumSquares adds x[i]*x[i] in order.
func sumSquares(x []float32) float32 {
	var sum float32
	for _, v := range x {
		sum += float32(v * v)
	}
	return sum
}

// inverse returns 1/x, 0 for 0.
func inverse(x float32) float32 {
	if x == 0 {
		return 0
	}
	return 1 / x
}

// half and putHalf read and write binary16; ties go to the even neighbour, and what
// is too large becomes infinity.
func half(src []byte) float32 { return halfToFloat32(binary.LittleEndian.Uint16(src)) }

func putHalf(dst []byte, x float32) { binary.LittleEndian.PutUint16(dst, float32ToHalf(x)) }

func halfToFloat32(h uint16) float32 {
	if x, ok := normalF16(h); ok {
		return x
	}
	return float16.Frombits(h).Float32()
}

func float32ToHalf(x float32) uint16 {
	if h, ok := roundNormalF16(x); ok {
		return h
	}
	return float16.Fromfloat32(x).Bits()
}

func finiteHalf(h uint16) bool { return h&0x7c00 != 0x7c00 }
