package block

import (
	"math"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
)

// f8e5m2 is OCP FP8 E5M2, torch.float8_e5m2: the upper byte of an F16, with 5
// bits of exponent, 2 of fraction, largest number 57344. Magnitudes from 61440 on
// become infinity.
type f8e5m2 struct{}

const (
	e5m2Bias = 15
	e5m2Frac = 2
	e5m2Inf  = 0x7c
)

func (f8e5m2) DType() tensor.DType { return tensor.F8E5M2 }

func (f8e5m2) Decode32(dst []float32, src []byte) {
	checkSize(len(src), len(dst), 1)
	for i := kernel.DecodeE5M2(dst, src); i < len(dst); i++ {
		dst[i] = e5m2ToFloat32(src[i])
	}
}

func (f8e5m2) Decode64(dst []float64, src []byte) {
	checkSize(len(src), len(dst), 1)
	for i, b := range src {
		dst[i] = toFloat64(e5m2ToFloat32(b))
	}
}

func (f8e5m2) Encode32(dst []byte, src []float32) {
	checkSize(len(dst), len(src), 1)
	for i := kernel.EncodeE5M2(dst, src); i < len(src); i++ {
		dst[i] = float32ToE5M2(src[i])
	}
}

func (f8e5m2) Encode64(dst []byte, src []float64) {
	checkSize(len(dst), len(src), 1)
	for i, x := range src {
		dst[i] = float32ToE5M2(narrow(x))
	}
}

// e5m2ToFloat32 works as e4m3ToFloat32 does; here the biases are 112 apart.
func e5m2ToFloat32(b byte) float32 {
	sign, magnitude := uint32(b&0x80)<<24, uint32(b&0x7f)
	switch {
	case magnitude > e5m2Inf:
		return math.Float32frombits(sign | inf32 | quiet32 | magnitude<<21)
	case magnitude == e5m2Inf:
		return math.Float32frombits(sign | inf32)
	}
	return math.Float32frombits(sign|magnitude<<21) * 0x1p112
}

func float32ToE5M2(x float32) byte {
	bits := math.Float32bits(x)
	sign := byte(bits >> 24 & 0x80)
	magnitude := bits &^ sign32
	if magnitude > inf32 {
		return sign | byte((magnitude|quiet32)>>21&0x7f)
	}
	return sign | byte(min(roundFP8(magnitude, e5m2Bias, e5m2Frac), e5m2Inf))
}
