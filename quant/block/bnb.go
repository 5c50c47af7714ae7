package block

import (
	"math"

	"github.com/loratool/loratool/internal/kernel"
)

// This file and the other bnb*.go are the formats of bitsandbytes. Where its own
// back ends disagree, the CUDA kernels (csrc/kernels.cu) are right: nearly every
// file that exists was made by them. Their text is followed with IEEE arithmetic.

// FourBitSizes are the block sizes that bitsandbytes has kernels for.
var FourBitSizes = []int{32, 64, 128, 256, 512, 1024, 2048, 4096}

// EncodeFourBit quantizes src in blocks of blockSize elements, of which the last
// may be shorter, by the rules of [kernel.EncodeFourBit]. Behind an odd end the
// lower half of the last byte has the code that a zero in the last block has, since
// the GPU loads zeros there.
func EncodeFourBit(f kernel.FourBit, dst []byte, absmax, src []float32, blockSize int) {
	kernel.EncodeFourBit(f, dst, absmax, src, blockSize)
	if len(src)%2 == 1 && f == kernel.NF4 && !isInf(1/absmax[len(absmax)-1]) {
		dst[len(dst)-1] |= nf4Zero
	}
}

// nf4Zero is the NF4 code of 0. In FP4 that is 0, and so is every code of a block
// whose reciprocal is infinite: zero times infinity is above no threshold.
const nf4Zero = 7

func isInf(x float32) bool { return math.Float32bits(x)&^sign32 == inf32 }

// Int8Unit is what a product of a row's largest magnitude and a code of LLM.int8 is
// multiplied with to get the value: 1/127, rounded.
const Int8Unit float32 = 7.874015718698502e-3

// EncodeInt8 quantizes one row as LLM.int8 does and returns its largest magnitude.
//
//	q = nearest(x·(127·(1/absmax))), to even on a tie
//
// as two's complement, where the reciprocal and both products are rounded: the
// quotient of csrc/kernels.cu, kInt8VectorQuant, is div.approx, which PTX defines as a
// product with the reciprocal, and torch divides a number by a tensor in the same way.
// A row of zeros has codes 0. The numbers must be F16 values: bitsandbytes rounds to
// them first.
func EncodeInt8(dst []byte, src []float32) (absmax float32) {
	if len(dst) != len(src) {
		panic("block: bytes and numbers differ in count")
	}
	absmax = kernel.MaxAbs(src)
	if absmax == 0 {
		clear(dst)
		return 0
	}
	inverse := 1 / absmax
	scale := 127 * inverse
	for i, x := range src {
		// A sum of this size has no room for a fraction: it is rounded to even, and
		// its last byte is the integer.
		dst[i] = byte(math.Float32bits(float32(x*scale) + 0x1.8p23))
	}
	return absmax
}

// DecodeInt8 sets dst to the values of a row's codes: (q·absmax)·[Int8Unit], each
// product rounded. (functional.py, int8_vectorwise_dequant.)
func DecodeInt8(dst []float32, src []byte, absmax float32) {
	if len(dst) != len(src) {
		panic("block: bytes and numbers differ in count")
	}
	for i, b := range src {
		dst[i] = float32(float32(int8(b))*absmax) * Int8Unit
	}
}
