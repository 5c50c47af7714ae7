package block

import (
	"encoding/binary"
	"math"

	"github.com/loratool/loratool/formats/tensor"
)

// f64 is IEEE 754 binary64. Decoding it into float32 rounds, once.
type f64 struct{}

func (f64) DType() tensor.DType { return tensor.F64 }

func (f64) Decode32(dst []float32, src []byte) {
	checkSize(len(src), len(dst), 8)
	for i := range dst {
		dst[i] = toFloat32(math.Float64frombits(binary.LittleEndian.Uint64(src[8*i:])))
	}
}

func (f64) Decode64(dst []float64, src []byte) {
	checkSize(len(src), len(dst), 8)
	for i := range dst {
		dst[i] = math.Float64frombits(binary.LittleEndian.Uint64(src[8*i:]))
	}
}

func (f64) Encode32(dst []byte, src []float32) {
	checkSize(len(dst), len(src), 8)
	for i, x := range src {
		binary.LittleEndian.PutUint64(dst[8*i:], math.Float64bits(toFloat64(x)))
	}
}

func (f64) Encode64(dst []byte, src []float64) {
	checkSize(len(dst), len(src), 8)
	for i, x := range src {
		binary.LittleEndian.PutUint64(dst[8*i:], math.Float64bits(x))
	}
}
