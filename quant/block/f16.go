package block

import (
	"encoding/binary"
	"math"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/x448/float16"
)

// f16 is IEEE 754 binary16: 5 bits of exponent, 10 of fraction, largest number
// 65504. Magnitudes from 65520 on become infinity.
type f16 struct{}

func (f16) DType() tensor.DType { return tensor.F16 }

// Storage names the kernels for the type.
func (f16) Storage() kernel.Storage { return kernel.F16 }

func (f16) Decode32(dst []float32, src []byte) {
	checkSize(len(src), len(dst), 2)
	for i := kernel.DecodeF16(dst, src); i < len(dst); i++ {
		h := binary.LittleEndian.Uint16(src[2*i:])
		x, ok := normalF16(h)
		if !ok {
			x = float16.Frombits(h).Float32()
		}
		dst[i] = x
	}
}

func (f16) Decode64(dst []float64, src []byte) {
	checkSize(len(src), len(dst), 2)
	for i := range dst {
		h := binary.LittleEndian.Uint16(src[2*i:])
		x, ok := normalF16(h)
		if !ok {
			x = float16.Frombits(h).Float32()
		}
		dst[i] = toFloat64(x)
	}
}

func (f16) Encode32(dst []byte, src []float32) {
	checkSize(len(dst), len(src), 2)
	for i := kernel.EncodeF16(dst, src); i < len(src); i++ {
		h, ok := roundNormalF16(src[i])
		if !ok {
			h = float16.Fromfloat32(src[i]).Bits()
		}
		binary.LittleEndian.PutUint16(dst[2*i:], h)
	}
}

func (f16) Encode64(dst []byte, src []float64) {
	checkSize(len(dst), len(src), 2)
	for i, wide := range src {
		x := narrow(wide)
		h, ok := roundNormalF16(x)
		if !ok {
			h = float16.Fromfloat32(x).Bits()
		}
		binary.LittleEndian.PutUint16(dst[2*i:], h)
	}
}

// normalF16 decodes a normal number, which nearly all of a model are: only the
// exponent has to move from bias 15 to 127. The rest is left to x448/float16.
func normalF16(h uint16) (x float32, ok bool) {
	magnitude := uint32(h &^ 0x8000)
	return math.Float32frombits(uint32(h&0x8000)<<16 | (magnitude<<13 + 112<<23)), magnitude-0x0400 < 0x7800
}

// roundNormalF16 encodes a number from 2^-14 to 2^16, and leaves the others to
// x448/float16. It adds just under half of the last kept bit, and one more where
// that bit is odd: the carry is the rounding, up to infinity.
func roundNormalF16(x float32) (h uint16, ok bool) {
	bits := math.Float32bits(x)
	magnitude := bits &^ sign32
	odd := magnitude >> 13 & 1
	return uint16(bits>>31<<15 | (magnitude-112<<23+0xfff+odd)>>13), magnitude-113<<23 < 30<<23
}
