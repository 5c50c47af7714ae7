package block

import "math"

// Bits of a float32 and a float64.
const (
	sign32  = 1 << 31
	inf32   = 0xff << 23
	quiet32 = 1 << 22
	frac64  = 1<<52 - 1
)

// narrow cuts x to float32 so that a later rounding to nearest at 22 bits of
// significand or fewer gives what rounding x itself would: an inexact result
// gets an odd last bit ("round to odd"), which no shorter format can mistake
// for a tie or for an exact value. That also holds below the smallest normal
// float32, whose steps of 2^-149 are 2^16 times finer than those of BF16, and
// above the largest one, which is odd and far beyond every tie.
func narrow(x float64) float32 {
	if x != x {
		return nanToFloat32(x)
	}
	near := float32(x)
	back := float64(near)
	if back == x {
		return near
	}
	bits := math.Float32bits(near)
	if math.Abs(back) > math.Abs(x) {
		bits-- // towards zero; from infinity to the largest finite number
	}
	return math.Float32frombits(bits | 1)
}

// toFloat32 rounds x to float32, to nearest even.
func toFloat32(x float64) float32 {
	if x != x {
		return nanToFloat32(x)
	}
	return float32(x)
}

// toFloat64 widens x, which is exact.
func toFloat64(x float32) float64 {
	if x != x {
		bits := math.Float32bits(x)
		wide := uint64(bits&sign32)<<32 | 0x7ff<<52 | uint64(bits&^(sign32|inf32)|quiet32)<<29
		return math.Float64frombits(wide)
	}
	return float64(x)
}

// nanToFloat32 keeps the sign and the first 22 bits after the quiet bit.
func nanToFloat32(x float64) float32 {
	bits := math.Float64bits(x)
	return math.Float32frombits(uint32(bits>>32)&sign32 | inf32 | quiet32 | uint32(bits&frac64>>29))
}

// roundFP8 rounds the magnitude bits of a float32 that is not NaN to a format
// with the given exponent bias and bits of fraction, to nearest even, and
// returns the bits of the result. They run on past the largest code of the
// format, for the caller to cut.
func roundFP8(magnitude, bias, frac uint32) uint32 {
	exponent, smallest := magnitude>>23, 128-bias
	// Below the smallest exponent the step stays what it is there, so the fraction
	// with its leading one moves right by the distance. All of it is gone long
	// before the 31 places that a shift may have.
	lifted := max(exponent, smallest)
	drop := min(23-frac+lifted-exponent, 31)
	significand := (lifted-smallest)<<23 + (magnitude&(1<<23-1) | 1<<23)
	odd := significand >> (drop & 31) & 1
	return (significand + 1<<(drop&31)>>1 - 1 + odd) >> (drop & 31)
}
