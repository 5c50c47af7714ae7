// Package block converts between the bytes of a tensor and float32 or float64,
// one codec per file.
//
// A [Codec] is chosen by element type with [For]; [Decode] and [Encode] call it
// for either precision. A scalar type is a block of one element. Bytes are
// little-endian.
//
// Decoding is exact wherever the wider type holds the value: always, except
// for F64 into float32, which rounds. Encoding rounds once, from the precision
// it is given, to the nearest value and on a tie to the one with an even last
// bit; a float64 never passes through a rounded float32. Subnormals are kept on
// both ways and zeros keep their sign. What is too large becomes infinity, but
// for F8_E4M3, which has none.
//
// A NaN stays a NaN: it keeps its sign and the leading bits of its significand,
// as many as fit, and becomes quiet. That is done on integers, so that it does
// not depend on the CPU. F8_E4M3 has one NaN of each sign. Where no conversion
// takes place, F32 with float32 and F64 with float64, bits are copied.
//
// The block types of ggml, of which a scale belongs to many elements, are a
// family of their own: [GGML] decodes and quantizes whole rows, to the bytes that
// the reference quantizer makes.
//
// Lengths that do not belong together are a bug of the caller and panic;
// element values never do, whatever they are. Codecs keep no state and may be
// used concurrently.
package block

import (
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
)

// Codec converts between the bytes of one element type and numbers. Slices hold
// the same number of elements on both sides and do not overlap.
type Codec interface {
	// DType returns the element type of the bytes.
	DType() tensor.DType
	// Decode32 and Decode64 set every element of dst from src.
	Decode32(dst []float32, src []byte)
	Decode64(dst []float64, src []byte)
	// Encode32 and Encode64 set dst from every element of src.
	Encode32(dst []byte, src []float32)
	Encode64(dst []byte, src []float64)
}

var (
	_ Codec = f16{}
	_ Codec = bf16{}
	_ Codec = f32{}
	_ Codec = f64{}
	_ Codec = f8e4m3{}
	_ Codec = f8e5m2{}
)

// For returns the codec of an element type, or false if the type is not a
// floating-point format of one value per element.
func For(d tensor.DType) (Codec, bool) {
	switch d {
	case tensor.F16:
		return f16{}, true
	case tensor.BF16:
		return bf16{}, true
	case tensor.F32:
		return f32{}, true
	case tensor.F64:
		return f64{}, true
	case tensor.F8E4M3:
		return f8e4m3{}, true
	case tensor.F8E5M2:
		return f8e5m2{}, true
	}
	return nil, false
}

// Decode sets every element of dst from src.
func Decode[T kernel.Float](c Codec, dst []T, src []byte) {
	switch dst := any(dst).(type) {
	case []float32:
		c.Decode32(dst, src)
	case []float64:
		c.Decode64(dst, src)
	}
}

// Encode sets dst from every element of src.
func Encode[T kernel.Float](c Codec, dst []byte, src []T) {
	switch src := any(src).(type) {
	case []float32:
		c.Encode32(dst, src)
	case []float64:
		c.Encode64(dst, src)
	}
}

// checkSize panics unless size bytes hold exactly n elements of width bytes.
func checkSize(size, n, width int) {
	if size%width != 0 || size/width != n {
		panic("block: bytes and numbers differ in count")
	}
}
