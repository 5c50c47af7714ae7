package gguf

import (
	"fmt"
	"math"
	"math/bits"
	"strings"

	"github.com/loratool/loratool/formats/tensor"
)

// Type is the element type of a tensor, by the number it has in files. Elements
// are stored in blocks along a row, in most types with a common scale.
type Type uint32

// The types of GGUF (ggml/include/ggml.h, release v0.5.0). Numbers that are
// missing belonged to types that were removed.
const (
	F32    Type = 0
	F16    Type = 1
	Q4_0   Type = 2
	Q4_1   Type = 3
	Q5_0   Type = 6
	Q5_1   Type = 7
	Q8_0   Type = 8
	Q8_1   Type = 9
	Q2K    Type = 10
	Q3K    Type = 11
	Q4K    Type = 12
	Q5K    Type = 13
	Q6K    Type = 14
	Q8K    Type = 15
	IQ2XXS Type = 16
	IQ2XS  Type = 17
	IQ3XXS Type = 18
	IQ1S   Type = 19
	IQ4NL  Type = 20
	IQ3S   Type = 21
	IQ2S   Type = 22
	IQ4XS  Type = 23
	I8     Type = 24
	I16    Type = 25
	I32    Type = 26
	I64    Type = 27
	F64    Type = 28
	IQ1M   Type = 29
	BF16   Type = 30
	TQ1_0  Type = 34
	TQ2_0  Type = 35
	MXFP4  Type = 39
	NVFP4  Type = 40
	Q1_0   Type = 41
	Q2_0   Type = 42
)

// types gives, per Type, the name that the reference prints, the elements of a
// block and its bytes. Removed types have no block size, as in the reference.
var types = [43]struct {
	name       string
	blockSize  int64
	blockBytes int64
}{
	F32:    {"f32", 1, 4},
	F16:    {"f16", 1, 2},
	Q4_0:   {"q4_0", 32, 18},
	Q4_1:   {"q4_1", 32, 20},
	4:      {"q4_2", 0, 0},
	5:      {"q4_3", 0, 0},
	Q5_0:   {"q5_0", 32, 22},
	Q5_1:   {"q5_1", 32, 24},
	Q8_0:   {"q8_0", 32, 34},
	Q8_1:   {"q8_1", 32, 36},
	Q2K:    {"q2_K", 256, 84},
	Q3K:    {"q3_K", 256, 110},
	Q4K:    {"q4_K", 256, 144},
	Q5K:    {"q5_K", 256, 176},
	Q6K:    {"q6_K", 256, 210},
	Q8K:    {"q8_K", 256, 292},
	IQ2XXS: {"iq2_xxs", 256, 66},
	IQ2XS:  {"iq2_xs", 256, 74},
	IQ3XXS: {"iq3_xxs", 256, 98},
	IQ1S:   {"iq1_s", 256, 50},
	IQ4NL:  {"iq4_nl", 32, 18},
	IQ3S:   {"iq3_s", 256, 110},
	IQ2S:   {"iq2_s", 256, 82},
	IQ4XS:  {"iq4_xs", 256, 136},
	I8:     {"i8", 1, 1},
	I16:    {"i16", 1, 2},
	I32:    {"i32", 1, 4},
	I64:    {"i64", 1, 8},
	F64:    {"f64", 1, 8},
	IQ1M:   {"iq1_m", 256, 56},
	BF16:   {"bf16", 1, 2},
	31:     {"q4_0_4_4", 0, 0},
	32:     {"q4_0_4_8", 0, 0},
	33:     {"q4_0_8_8", 0, 0},
	TQ1_0:  {"tq1_0", 256, 54},
	TQ2_0:  {"tq2_0", 256, 66},
	36:     {"iq4_nl_4_4", 0, 0},
	37:     {"iq4_nl_4_8", 0, 0},
	38:     {"iq4_nl_8_8", 0, 0},
	MXFP4:  {"mxfp4", 32, 17},
	NVFP4:  {"nvfp4", 64, 36},
	Q1_0:   {"q1_0", 128, 18},
	Q2_0:   {"q2_0", 64, 18},
}

// Types returns every type a tensor of a file may have, in the order of their
// numbers.
func Types() []Type {
	var all []Type
	for t := range Type(len(types)) {
		if t.Known() {
			all = append(all, t)
		}
	}
	return all
}

// ParseType returns the type of the given name, in any case, as "q4_K".
func ParseType(name string) (Type, error) {
	for t := range Type(len(types)) {
		if t.Known() && strings.EqualFold(types[t].name, name) {
			return t, nil
		}
	}
	return 0, fmt.Errorf("unknown tensor type %s", excerpt(name))
}

// Known reports whether a tensor may have the type.
func (t Type) Known() bool { return t < Type(len(types)) && types[t].blockSize > 0 }

// String returns the name that the reference prints, as "q4_K".
func (t Type) String() string {
	if t < Type(len(types)) {
		return types[t].name
	}
	return fmt.Sprintf("type %d", uint32(t))
}

// BlockSize returns the number of elements of a block: 1 for plain numbers, 0
// for a type that is not [Type.Known].
func (t Type) BlockSize() int64 {
	if !t.Known() {
		return 0
	}
	return types[t].blockSize
}

// TypeSize returns the number of bytes of a block, 0 for a type that is not
// [Type.Known].
func (t Type) TypeSize() int64 {
	if !t.Known() {
		return 0
	}
	return types[t].blockBytes
}

// plain pairs the types of one number per element with those of other
// containers.
var plain = []struct {
	t Type
	d tensor.DType
}{
	{F32, tensor.F32}, {F16, tensor.F16}, {BF16, tensor.BF16}, {F64, tensor.F64},
	{I8, tensor.I8}, {I16, tensor.I16}, {I32, tensor.I32}, {I64, tensor.I64},
}

// DType returns the element type that other containers share, or false for a
// type that only GGUF has.
func (t Type) DType() (tensor.DType, bool) {
	for _, p := range plain {
		if p.t == t {
			return p.d, true
		}
	}
	return tensor.NoDType, false
}

// TypeOf returns the type of the given element type, or false if GGUF has none.
func TypeOf(d tensor.DType) (Type, bool) {
	for _, p := range plain {
		if p.d == d {
			return p.t, true
		}
	}
	return 0, false
}

// sizeOf returns the bytes of a tensor, or why there can be no such tensor. Its
// verdict does not depend on the order of the dimensions, except that rows, the
// last dimension, are whole blocks.
func sizeOf(t Type, shape tensor.Shape) (int64, error) {
	switch {
	case t >= Type(len(types)):
		return 0, fmt.Errorf("unknown type %d, known are those below %d", uint32(t), len(types))
	case !t.Known():
		return 0, fmt.Errorf("type %d (%s) was removed from the format", uint32(t), t)
	case len(shape) > MaxDims:
		return 0, fmt.Errorf("%d dimensions, at most %d are possible", len(shape), MaxDims)
	}
	elements, err := countOf(shape)
	if err != nil {
		return 0, err
	}
	if len(shape) == 0 && t.BlockSize() > 1 {
		return 0, fmt.Errorf("a single number can't be of type %s, which has blocks of %d", t, t.BlockSize())
	}
	if len(shape) > 0 && shape[len(shape)-1]%t.BlockSize() != 0 {
		return 0, fmt.Errorf("rows of %d elements are not whole blocks of type %s, which have %d",
			shape[len(shape)-1], t, t.BlockSize())
	}
	hi, lo := bits.Mul64(uint64(elements/t.BlockSize()), uint64(t.TypeSize()))
	if hi != 0 || lo > math.MaxInt64 {
		return 0, fmt.Errorf("shape %s of type %s overflows", shape, t)
	}
	return int64(lo), nil
}

// maxElements bounds the elements of a tensor. The reference's own bound lies
// between this and twice as much, depending on the order of the dimensions; no
// file holds as many.
const maxElements = 1 << 62

// countOf returns the number of elements. Dimensions of zero are left out of
// the check, not of the product: no zero hides that the others overflow.
func countOf(shape tensor.Shape) (int64, error) {
	product, empty := uint64(1), false
	for _, d := range shape {
		if d < 0 {
			return 0, fmt.Errorf("shape %s has a negative dimension", shape)
		}
		if d == 0 {
			empty = true
			continue
		}
		hi, lo := bits.Mul64(product, uint64(d))
		if hi != 0 || lo >= maxElements {
			return 0, fmt.Errorf("shape %s overflows", shape)
		}
		product = lo
	}
	if empty {
		return 0, nil
	}
	return int64(product), nil
}
