package block

import (
	"encoding/binary"
	"math"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
)

// bf16 is the upper half of a float32: 8 bits of exponent, 7 of fraction,
// largest number just under 2^128.
type bf16 struct{}

func (bf16) DType() tensor.DType { return tensor.BF16 }

// Storage names the kernels for the type.
func (bf16) Storage() kernel.Storage { return kernel.BF16 }

func (bf16) Decode32(dst []float32, src []byte) {
	checkSize(len(src), len(dst), 2)
	for i := kernel.DecodeBF16(dst, src); i < len(dst); i++ {
		dst[i] = bf16ToFloat32(binary.LittleEndian.Uint16(src[2*i:]))
	}
}

func (bf16) Decode64(dst []float64, src []byte) {
	checkSize(len(src), len(dst), 2)
	for i := range dst {
		dst[i] = toFloat64(bf16ToFloat32(binary.LittleEndian.Uint16(src[2*i:])))
	}
}

func (bf16) Encode32(dst []byte, src []float32) {
	checkSize(len(dst), len(src), 2)
	for i := kernel.EncodeBF16(dst, src); i < len(src); i++ {
		binary.LittleEndian.PutUint16(dst[2*i:], float32ToBF16(src[i]))
	}
}

func (bf16) Encode64(dst []byte, src []float64) {
	checkSize(len(dst), len(src), 2)
	for i, x := range src {
		binary.LittleEndian.PutUint16(dst[2*i:], float32ToBF16(narrow(x)))
	}
}

func bf16ToFloat32(b uint16) float32 {
	bits := uint32(b) << 16
	if bits&^sign32 > inf32 {
		bits |= quiet32
	}
	return math.Float32frombits(bits)
}

// float32ToBF16 adds just under half of the last kept bit, and one more where
// that bit is odd: the carry is the rounding, through subnormals and exponents
// up to infinity.
func float32ToBF16(x float32) uint16 {
	bits := math.Float32bits(x)
	if bits&^sign32 > inf32 {
		return uint16(bits>>16) | quiet32>>16
	}
	odd := bits >> 16 & 1
	return uint16((bits + 0x7fff + odd) >> 16)
}
