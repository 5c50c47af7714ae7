package loftq

import (
	"fmt"

	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/quant/block"
)

// Quantizer stores numbers in few bits.
type Quantizer interface {
	// RoundTrip sets dst to what src becomes when it is stored and read back, both
	// rows x cols without gaps. The values depend on nothing but src and the shape,
	// not on threads either. src is only read.
	RoundTrip(dst, src []float32, rows, cols, threads int) error
}

var (
	_ Quantizer = FourBit{}
	_ Quantizer = GGML{}
	_ Quantizer = Int8{}
	_ Quantizer = Normal{}
	_ Quantizer = Stored{}
	_ Quantizer = Uniform{}
)

// ValueError names a number that is NaN or infinite.
type ValueError struct {
	What     string
	Row, Col int
	Value    float32
}

func (e *ValueError) Error() string {
	return fmt.Sprintf("row %d, column %d of %s is %v", e.Row, e.Col, e.What, e.Value)
}

// RangeError reports numbers whose distance is beyond float32.
type RangeError struct{ Low, High float32 }

func (e *RangeError) Error() string {
	return fmt.Sprintf("levels from %v to %v are further apart than float32 reaches", e.Low, e.High)
}

// UnstableError reports that a quantizer gave different values for the same numbers,
// which is a fault of the quantizer.
type UnstableError struct {
	Iterate      int
	First, Again Errors
}

func (e *UnstableError) Error() string {
	return fmt.Sprintf("iterate %d was quantized twice, with relative errors %v and %v", e.Iterate, e.First.Plain, e.Again.Plain)
}

// checkFinite returns a *ValueError for the first number that is not finite.
func checkFinite(what string, x []float32, rows, cols, threads int) error {
	bad := make([]bool, rows)
	parallel(threads, rows, bandRows, func(from, to int) {
		for i := from; i < to; i++ {
			largest := kernel.MaxAbs(x[i*cols : (i+1)*cols])
			bad[i] = largest-largest != 0
		}
	})
	for i := range bad {
		if !bad[i] {
			continue
		}
		for j, v := range x[i*cols : (i+1)*cols] {
			if v-v != 0 {
				return &ValueError{what, i, j, v}
			}
		}
	}
	return nil
}

// FourBit is NF4 or FP4 of bitsandbytes, in blocks of consecutive numbers that may
// reach over the ends of rows. See kernel.EncodeFourBit.
type FourBit struct {
	Type      kernel.FourBit
	BlockSize int
	// Double quantizes the scales too (block.Nest), which depends on the whole weight;
	// without it they are float32.
	Double bool
}

// RoundTrip implements [Quantizer].
func (f FourBit) RoundTrip(dst, src []float32, rows, cols, threads int) error {
	checkSize(src, rows, cols, badWeight)
	checkSize(dst, rows, cols, badDst)
	if f.BlockSize < 2 || f.BlockSize%2 != 0 {
		return &OptionError{"block size", fmt.Sprintf("%d is not a positive even number", f.BlockSize)}
	}
	scales := make([]float32, (len(src)+f.BlockSize-1)/f.BlockSize)
	codes := make([]byte, (len(src)+1)/2)
	encode := func(from, to int) {
		kernel.EncodeFourBit(f.Type, codes[from/2:(to+1)/2], f.scalesOf(scales, from, to), src[from:to], f.BlockSize)
	}
	decode := func(from, to int) {
		kernel.DecodeFourBit(f.Type, dst[from:to], codes[from/2:(to+1)/2], f.scalesOf(scales, from, to), f.BlockSize)
	}
	if !f.Double {
		f.chunks(threads, len(src), func(from, to int) {
			encode(from, to)
			decode(from, to)
		})
		return nil
	}
	f.chunks(threads, len(src), encode)
	nested := block.Nest(scales)
	block.DecodeNested(scales, nested.Codes, 0, &nested.Map, nested.Absmax, nested.Offset, block.NestedSize)
	f.chunks(threads, len(src), decode)
	return nil
}

// scalesOf are those of whole blocks from an element on.
func (f FourBit) scalesOf(scales []float32, from, to int) []float32 {
	return scales[from/f.BlockSize : (to+f.BlockSize-1)/f.BlockSize]
}

// chunks calls do for ranges of whole blocks, and so of whole bytes.
func (f FourBit) chunks(threads, n int, do func(from, to int)) {
	chunk := max(1, chunkSize/f.BlockSize) * f.BlockSize
	parallel(threads, n, chunk, func(from, to int) {
		for ; from < to; from += chunk {
			do(from, min(from+chunk, to))
		}
	})
}

// chunkSize is the number of elements that are quantized at a time: small enough
// for a first-level cache, codes and both sides.
const chunkSize = 2048

// GGML is a type of ggml, in rows of whole blocks. See block.GGML.
type GGML struct {
	Type block.GGML
	// Weights say how much the columns matter to the quantizer, an importance
	// matrix; nil for the type's own rule. The solver's moments are independent
	// of them.
	Weights []float32
}

// RoundTrip implements [Quantizer].
func (g GGML) RoundTrip(dst, src []float32, rows, cols, threads int) error {
	checkSize(src, rows, cols, badWeight)
	checkSize(dst, rows, cols, badDst)
	if err := g.Type.CanQuantize(); err != nil {
		return err
	}
	if err := g.Type.CanDecode(); err != nil {
		return err
	}
	size, ok := g.Type.RowBytes(int64(cols))
	switch {
	case !ok:
		return &OptionError{"type", fmt.Sprintf("rows of %d elements are not whole blocks of %s", cols, g.Type)}
	case g.Weights != nil && len(g.Weights) != cols:
		return &OptionError{"weights", fmt.Sprintf("there are %d for %d columns", len(g.Weights), cols)}
	}
	failed := make([]error, rows)
	parallel(threads, rows, 1, func(from, to int) {
		codes := make([]byte, size)
		for i := from; i < to; i++ {
			row := src[i*cols : (i+1)*cols]
			if failed[i] = g.Type.Quantize(codes, row, cols, g.Weights); failed[i] == nil {
				failed[i] = g.Type.Decode(dst[i*cols:(i+1)*cols], codes)
			}
		}
	})
	for i, err := range failed {
		if err != nil {
			return inRow(err, i)
		}
	}
	return nil
}

// inRow makes the row of a value that stands in the way that of the weight.
func inRow(err error, row int) error {
	if e, ok := err.(*block.GGMLValueError); ok {
		moved := *e
		moved.Row += row
		return &moved
	}
	return err
}

func checkSize(x []float32, rows, cols int, misuse string) {
	if rows < 1 || cols < 1 || len(x) != rows*cols {
		panic(misuse)
	}
}
