// Package tensor names what a checkpoint holds: element types, shapes and
// specs, with every size computed in checked arithmetic.
//
// The main types are [DType], [Shape], [Spec] and [Matrix]. Nothing here reads
// a file; numbers that come from one are refused when a product overflows
// int64, never wrapped.
package tensor

import "fmt"

// DType is the element type of a tensor. The zero value is no type at all and
// stands for "keep what the input has" in options.
type DType uint8

// The element types of safetensors, in the order of the reference crate's
// Dtype enum.
const (
	NoDType DType = iota
	Bool
	F4
	F6E2M3
	F6E3M2
	U8
	I8
	F8E5M2
	F8E4M3
	F8E8M0
	F8E4M3FNUZ
	F8E5M2FNUZ
	I16
	U16
	F16
	BF16
	I32
	U32
	F32
	C64
	F64
	I64
	U64
)

// dtypes gives, per DType, the safetensors spelling, the spelling on the
// command line and in reports, and the size of one element in bits.
var dtypes = [...]struct {
	name string
	flag string
	bits int64
}{
	NoDType:    {"", "", 0},
	Bool:       {"BOOL", "bool", 8},
	F4:         {"F4", "f4", 4},
	F6E2M3:     {"F6_E2M3", "f6_e2m3", 6},
	F6E3M2:     {"F6_E3M2", "f6_e3m2", 6},
	U8:         {"U8", "u8", 8},
	I8:         {"I8", "i8", 8},
	F8E5M2:     {"F8_E5M2", "f8_e5m2", 8},
	F8E4M3:     {"F8_E4M3", "f8_e4m3", 8},
	F8E8M0:     {"F8_E8M0", "f8_e8m0", 8},
	F8E4M3FNUZ: {"F8_E4M3FNUZ", "f8_e4m3fnuz", 8},
	F8E5M2FNUZ: {"F8_E5M2FNUZ", "f8_e5m2fnuz", 8},
	I16:        {"I16", "i16", 16},
	U16:        {"U16", "u16", 16},
	F16:        {"F16", "f16", 16},
	BF16:       {"BF16", "bf16", 16},
	I32:        {"I32", "i32", 32},
	U32:        {"U32", "u32", 32},
	F32:        {"F32", "f32", 32},
	C64:        {"C64", "c64", 64},
	F64:        {"F64", "f64", 64},
	I64:        {"I64", "i64", 64},
	U64:        {"U64", "u64", 64},
}

// All returns every element type a safetensors file may hold.
func All() []DType {
	all := make([]DType, 0, len(dtypes)-1)
	for d := Bool; d <= U64; d++ {
		all = append(all, d)
	}
	return all
}

// ParseSafetensors returns the type with the given safetensors spelling, which
// is exact: "F32", never "f32".
func ParseSafetensors(name string) (DType, bool) {
	for d := Bool; d <= U64; d++ {
		if dtypes[d].name == name {
			return d, true
		}
	}
	return NoDType, false
}

// ParseFlag returns the type with the given command-line spelling ("bf16").
func ParseFlag(name string) (DType, error) {
	for d := Bool; d <= U64; d++ {
		if dtypes[d].flag == name {
			return d, nil
		}
	}
	return NoDType, fmt.Errorf("unknown dtype %q", name)
}

// Safetensors returns the spelling in a safetensors header.
func (d DType) Safetensors() string { return dtypes[d].name }

// String returns the spelling of the command line and of reports.
func (d DType) String() string { return dtypes[d].flag }

// Bits returns the size of one element in bits; 4 and 6 occur.
func (d DType) Bits() int64 { return dtypes[d].bits }

// IsFloat reports whether the type is a floating-point format of one value per
// element that arithmetic can be done with.
func (d DType) IsFloat() bool {
	switch d {
	case F16, BF16, F32, F64, F8E4M3, F8E5M2:
		return true
	}
	return false
}

// IsFP8 reports whether the type is one of the two 8-bit formats that
// checkpoints store together with scales.
func (d DType) IsFP8() bool { return d == F8E4M3 || d == F8E5M2 }
