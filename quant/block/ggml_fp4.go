package block

import (
	"math"
	"math/bits"
)

// Types of 4-bit floating-point elements (OCP E2M1) in groups with an 8-bit scale.
//
//	MXFP4  32 elements   scale 2^(e-128); e, 16 bytes
//	NVFP4  64 elements   four scales in UE4M3, halved, each for 16 elements; 32 bytes
//
// The table holds twice the values, which is why the scales are halves. Element j of
// the first half of a group is in the low nibble of byte j.

var fp4Values = [16]float32{0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12}

func decodeMXFP4(dst []float32, src []byte) {
	for ; len(src) > 0; dst, src = dst[32:], src[17:] {
		decodeFP4(dst[:32], src[1:17], mxScale(src[0]))
	}
}

func decodeNVFP4(dst []float32, src []byte) {
	for ; len(src) > 0; dst, src = dst[64:], src[36:] {
		for g := range 4 {
			decodeFP4(dst[16*g:][:16], src[4+8*g:][:8], nvScale(src[g]))
		}
	}
}

func decodeFP4(dst []float32, codes []byte, scale float32) {
	low, high := dst[:len(codes)], dst[len(codes):][:len(codes)]
	for j, b := range codes {
		low[j] = fp4Values[b&15] * scale
		high[j] = fp4Values[b>>4] * scale
	}
}

// mxScale returns 2^(e-128), for 0 and 1 a subnormal float32.
func mxScale(e byte) float32 {
	if e < 2 {
		return math.Float32frombits(0x00200000 << e)
	}
	return math.Float32frombits(uint32(e-1) << 23)
}

// finiteMXFP4 refuses the exponent that the OCP format keeps for NaN, as ggml's check
// of files does, although ggml decodes it as any other.
func finiteMXFP4(block []byte) bool { return block[0] != 0xff }

// nvScale returns half of the number that a byte stands for in UE4M3: 4 bits of
// exponent with bias 7, 3 of fraction. The highest bit means nothing, but for 0xff, which is not
// the NaN that 0x7f is, and decodes to 240 here as in ggml.
func nvScale(b byte) float32 {
	if b == 0 || b == 0x7f {
		return 0
	}
	exponent, fraction := int(b>>3&15), float32(b&7)
	if exponent == 0 {
		return fraction * 0x1p-10
	}
	return (1 + float32(fraction/8)) * math.Float32frombits(uint32(exponent-8+127)<<23)
}

func encodeMXFP4(dst []byte, row, _ []float32) {
	for ; len(row) > 0; dst, row = dst[17:], row[32:] {
		size, _ := peak(row[:32])
		dst[0] = mxExponent(size)
		encodeFP4(dst[1:17], row[:32], mxScale(dst[0]))
	}
}

// mxExponent returns floor(log2(size)) - 2 + 127, which makes the largest element at most 8
// in the table. What is below the smallest scale wraps to a large one, as in ggml on
// x86-64, where all codes become zero; but 255, which ggml then refuses to write, is
// replaced by the smallest scale.
func mxExponent(size float32) byte {
	if !(size > 0) {
		return 0
	}
	e := byte(floorLog2(size) - 2 + 127)
	if e == 0xff {
		return 0
	}
	return e
}

// floorLog2 returns floor(log2f(x)) for x > 0, where log2f rounds to float32, to nearest:
// just below a power of two the logarithm rounds up to it. With x = 2^k (1 - s 2^-24),
// log2(x) = k - s 2^-24 / ln 2 (s is small), which rounds to k if s 2^-24 / ln 2 is less than
// half the distance from k to the next float32 below it. That distance is 2^(m-23), where
// 2^m is the power of two at or below |k| for k < 0, and strictly below k for k > 0.
// So s < ln 2 * 2^m; never for k = 0 and k = 1, where float32 is dense.
func floorLog2(x float32) int {
	pattern := math.Float32bits(x)
	exponent, fraction := int(pattern>>23)-127, pattern&(1<<23-1)
	if pattern < 1<<23 { // subnormal
		shift := bits.LeadingZeros32(fraction) - 8
		exponent, fraction = -126-shift, fraction<<shift&(1<<23-1)
	}
	k := exponent + 1
	m := bits.Len(uint(max(-k, k-1))) - 1                // -1 for 0 and 1
	if s := 1<<23 - fraction; m >= 0 && s <= 88>>(7-m) { // 88 = floor(2^7 ln 2)
		return k
	}
	return exponent
}

func encodeNVFP4(dst []byte, row, _ []float32) {
	for ; len(row) > 0; dst, row = dst[36:], row[64:] {
		for g := range 4 {
			x := row[16*g:][:16]
			size, _ := peak(x)
			dst[g] = nvCode(size / 6)
			encodeFP4(dst[4+8*g:][:8], x, nvScale(dst[g]))
		}
	}
}

// nvCode rounds to UE4M3, half up. From 256 on it gives 448, the largest number: ggml
// uses no other code of the last exponent. Subnormal numbers never round up to a normal one.
func nvCode(x float32) byte {
	if !(x > 0) {
		return 0
	}
	pattern := math.Float32bits(x)
	exponent := int(pattern>>23) - 127 + 7
	if exponent <= 0 {
		return byte(min(int32(float32(x*512)+0.5), 7))
	}
	code := exponent<<3 + int(pattern>>20&7) + int(pattern>>19&1)
	if code >= 15<<3 {
		return 0x7e
	}
	return byte(code)
}

// fp4Middles are the middles between neighbours of the table.
var fp4Middles = [7]float32{0.5, 1.5, 2.5, 3.5, 5, 7, 10}

// encodeFP4 stores for each element the code of the nearest number in the table. That is
// the count of middles below its magnitude, as a tie belongs to the smaller number, and what
// a search for the first with the least |T*scale - x| finds: as a scale has four bits at most,
// products are exact, and so are differences to two neighbours where they decide.
func encodeFP4(codes []byte, x []float32, scale float32) {
	var middles [7]uint32 // positive numbers are ordered as their bits are
	for i, middle := range fp4Middles {
		middles[i] = math.Float32bits(middle * scale)
		if scale == 0 {
			middles[i] = inf32 // the search finds nothing nearer than the first
		}
	}
	low, high := x[:len(codes)], x[len(codes):][:len(codes)]
	for j := range codes {
		codes[j] = nearestFP4(low[j], &middles) | nearestFP4(high[j], &middles)<<4
	}
}

// nearestFP4 counts the middles below |x| and adds the sign, but to no zero.
func nearestFP4(x float32, middles *[7]uint32) byte {
	pattern := math.Float32bits(x)
	size := pattern &^ sign32
	var count uint32
	for _, middle := range middles {
		count += (middle - size) >> 31
	}
	return byte(count | pattern>>31<<3&(-count>>31<<3))
}
