package block

import (
	"math"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
)

// f8e4m3 is OCP FP8 E4M3, torch.float8_e4m3fn: 4 bits of exponent with bias 7, 3
// of fraction, largest number 448, no infinity, NaN 0x7f and 0xff only.
//
// What is too large, infinities included, is stored as 448 with its sign, as
// torch 2.15 does (its earlier releases stored NaN). Nothing in the bytes tells
// such an element apart, so who must know looks at the numbers before encoding.
type f8e4m3 struct{}

const (
	e4m3Bias = 7
	e4m3Frac = 3
	e4m3Max  = 0x7e // 448
	e4m3NaN  = 0x7f
)

func (f8e4m3) DType() tensor.DType { return tensor.F8E4M3 }

func (f8e4m3) Decode32(dst []float32, src []byte) {
	checkSize(len(src), len(dst), 1)
	for i := kernel.DecodeE4M3(dst, src); i < len(dst); i++ {
		dst[i] = e4m3ToFloat32(src[i])
	}
}

func (f8e4m3) Decode64(dst []float64, src []byte) {
	checkSize(len(src), len(dst), 1)
	for i, b := range src {
		dst[i] = toFloat64(e4m3ToFloat32(b))
	}
}

func (f8e4m3) Encode32(dst []byte, src []float32) {
	checkSize(len(dst), len(src), 1)
	for i := kernel.EncodeE4M3(dst, src); i < len(src); i++ {
		dst[i] = float32ToE4M3(src[i])
	}
}

func (f8e4m3) Encode64(dst []byte, src []float64) {
	checkSize(len(dst), len(src), 1)
	for i, x := range src {
		dst[i] = float32ToE4M3(narrow(x))
	}
}

// e4m3ToFloat32 puts exponent and fraction where float32 has them, which for
// subnormals too is the number divided by 2^120, the distance of the biases; the
// product is exact.
func e4m3ToFloat32(b byte) float32 {
	sign, magnitude := uint32(b&0x80)<<24, uint32(b&0x7f)
	if magnitude == e4m3NaN {
		return math.Float32frombits(sign | inf32 | magnitude<<20)
	}
	return math.Float32frombits(sign|magnitude<<20) * 0x1p120
}

func float32ToE4M3(x float32) byte {
	bits := math.Float32bits(x)
	sign := byte(bits >> 24 & 0x80)
	magnitude := bits &^ sign32
	if magnitude > inf32 {
		return sign | e4m3NaN
	}
	return sign | byte(min(roundFP8(magnitude, e4m3Bias, e4m3Frac), e4m3Max))
}
