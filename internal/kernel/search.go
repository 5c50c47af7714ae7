package kernel

import "math"

// MaxAbs returns the largest magnitude in x, +0 if x is empty, and the one NaN if
// any element is NaN. There is no rounding in it and so no order.
func MaxAbs(x []float32) float32 {
	var largest [lanes]uint32
	done := 0
	if current() != generic {
		done = maxAbsBlocks(&largest, x)
	}
	for _, v := range x[done:] {
		largest[0] = max(largest[0], math.Float32bits(v)&^(1<<31))
	}
	bits := largest[0]
	for _, b := range largest {
		bits = max(bits, b)
	}
	return canonical(math.Float32frombits(bits))
}

// SkipFinite returns the length of a beginning of src, whole elements of width 1,
// 2 or 4 bytes, in which no element has all of ones set; an element right behind
// it may or may not have. Levels differ in how far they look; generic skips
// nothing.
func SkipFinite(src []byte, width int, ones uint32) int {
	if current() == generic {
		return 0
	}
	return skipFinite(src, width, ones)
}
