package block

import (
	"encoding/binary"
	"math"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
)

// f32 is IEEE 754 binary32.
type f32 struct{}

func (f32) DType() tensor.DType { return tensor.F32 }

// Storage names the kernels for the type.
func (f32) Storage() kernel.Storage { return kernel.F32 }

func (f32) Decode32(dst []float32, src []byte) {
	checkSize(len(src), len(dst), 4)
	for i := kernel.DecodeF32(dst, src); i < len(dst); i++ {
		dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(src[4*i:]))
	}
}

func (f32) Decode64(dst []float64, src []byte) {
	checkSize(len(src), len(dst), 4)
	for i := range dst {
		dst[i] = toFloat64(math.Float32frombits(binary.LittleEndian.Uint32(src[4*i:])))
	}
}

func (f32) Encode32(dst []byte, src []float32) {
	checkSize(len(dst), len(src), 4)
	for i := kernel.EncodeF32(dst, src); i < len(src); i++ {
		binary.LittleEndian.PutUint32(dst[4*i:], math.Float32bits(src[i]))
	}
}

func (f32) Encode64(dst []byte, src []float64) {
	checkSize(len(dst), len(src), 4)
	for i, x := range src {
		binary.LittleEndian.PutUint32(dst[4*i:], math.Float32bits(toFloat32(x)))
	}
}
