package loftq

import (
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/quant/block"
)

// Int8 is LLM.int8 of bitsandbytes: rows of 8-bit codes with a scale each, of numbers
// that are rounded to F16 first. See block.EncodeInt8.
type Int8 struct{}

// RoundTrip implements [Quantizer]. A number beyond F16 is a *[ValueError].
func (Int8) RoundTrip(dst, src []float32, rows, cols, threads int) error {
	if err := (Stored{DType: tensor.F16}).RoundTrip(dst, src, rows, cols, threads); err != nil {
		return err
	}
	if err := checkFinite("what LLM.int8 takes, rounded to f16,", dst, rows, cols, threads); err != nil {
		return err
	}
	parallel(threads, rows, 1, func(from, to int) {
		codes := make([]byte, cols)
		for i := from; i < to; i++ {
			row := dst[i*cols : (i+1)*cols]
			block.DecodeInt8(row, codes, block.EncodeInt8(codes, row))
		}
	})
	return nil
}

// Stored is a quantizer whose values are written as plain numbers of an element type,
// rounded to nearest; without a quantizer it is that rounding alone. So the pair makes
// up for what is in the file.
type Stored struct {
	Quantizer Quantizer
	DType     tensor.DType
}

// RoundTrip implements [Quantizer].
func (s Stored) RoundTrip(dst, src []float32, rows, cols, threads int) error {
	checkSize(src, rows, cols, badWeight)
	checkSize(dst, rows, cols, badDst)
	if s.Quantizer != nil {
		if err := s.Quantizer.RoundTrip(dst, src, rows, cols, threads); err != nil {
			return err
		}
		src = dst
	}
	codec, ok := block.For(s.DType)
	if !ok {
		return &OptionError{"element type", s.DType.String() + " holds no numbers"}
	}
	size := int(s.DType.Bits() / 8)
	parallel(threads, len(src), chunkSize, func(from, to int) {
		raw := make([]byte, chunkSize*size)
		for ; from < to; from += chunkSize {
			end := min(from+chunkSize, to)
			codec.Encode32(raw[:(end-from)*size], src[from:end])
			codec.Decode32(dst[from:end], raw[:(end-from)*size])
		}
	})
	return nil
}
