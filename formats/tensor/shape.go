package tensor

import (
	"fmt"
	"math"
	"math/bits"
	"strconv"
	"strings"
)

// Shape lists the dimensions of a tensor, outermost first. A scalar has an
// empty shape.
type Shape []int64

// MaxDims bounds the rank of a tensor: no known model goes above 6, and a
// header that claims thousands of dimensions is an attack on the reader.
const MaxDims = 4096

// NumElements returns the product of the dimensions, or false if a dimension
// is negative or the product, taken left to right, overflows int64. A zero
// dimension after an overflow does not save the shape.
func (s Shape) NumElements() (int64, bool) {
	n := int64(1)
	for _, d := range s {
		var ok bool
		if n, ok = mul(n, d); !ok {
			return 0, false
		}
	}
	return n, true
}

// Equal reports whether both shapes have the same dimensions.
func (s Shape) Equal(t Shape) bool {
	if len(s) != len(t) {
		return false
	}
	for i := range s {
		if s[i] != t[i] {
			return false
		}
	}
	return true
}

// String formats the shape as "[4096, 128]".
func (s Shape) String() string {
	parts := make([]string, len(s))
	for i, d := range s {
		parts[i] = strconv.FormatInt(d, 10)
	}
	return "[" + strings.Join(parts, ", ") + "]"
}

// Spec describes one tensor of a checkpoint. Specs made by [NewSpec] are valid:
// their sizes fit int64.
type Spec struct {
	Name  string
	DType DType
	Shape Shape
}

// NewSpec checks that the size of the tensor fits int64 and is a whole number
// of bytes.
func NewSpec(name string, d DType, shape Shape) (Spec, error) {
	s := Spec{Name: name, DType: d, Shape: shape}
	if len(shape) > MaxDims {
		return Spec{}, fmt.Errorf("%d dimensions, at most %d are read", len(shape), MaxDims)
	}
	n, ok := shape.NumElements()
	if !ok {
		return Spec{}, fmt.Errorf("shape %s overflows", shape)
	}
	size, ok := mul(n, d.Bits())
	if !ok {
		return Spec{}, fmt.Errorf("shape %s of %s overflows", shape, d.Safetensors())
	}
	if size%8 != 0 {
		return Spec{}, fmt.Errorf("%d elements of %s are not a whole number of bytes", n, d.Safetensors())
	}
	return s, nil
}

// NumElements returns the number of elements.
func (s Spec) NumElements() int64 {
	n, _ := s.Shape.NumElements()
	return n
}

// Size returns the number of bytes the tensor's data takes.
func (s Spec) Size() int64 { return s.NumElements() * s.DType.Bits() / 8 }

// Rows returns the first dimension, or 1 for a scalar. Together with [Spec.Cols]
// it is the matrix every band operation sees.
func (s Spec) Rows() int64 {
	if len(s.Shape) == 0 {
		return 1
	}
	return s.Shape[0]
}

// Cols returns the product of all dimensions but the first.
func (s Spec) Cols() int64 {
	if len(s.Shape) == 0 {
		return 1
	}
	n, _ := s.Shape[1:].NumElements()
	return n
}

// mul multiplies two non-negative numbers and reports whether the product fits
// int64.
func mul(a, b int64) (int64, bool) {
	if a < 0 || b < 0 {
		return 0, false
	}
	hi, lo := bits.Mul64(uint64(a), uint64(b))
	if hi != 0 || lo > math.MaxInt64 {
		return 0, false
	}
	return int64(lo), true
}
