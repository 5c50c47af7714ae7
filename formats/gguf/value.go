package gguf

import (
	"encoding/binary"
	"fmt"
	"iter"
	"math"
)

// ValueType is the type of a value, by the number it has in files.
type ValueType uint32

// The value types of GGUF (ggml/include/gguf.h).
const (
	Uint8 ValueType = iota
	Int8
	Uint16
	Int16
	Uint32
	Int32
	Float32
	Bool
	String
	Array
	Uint64
	Int64
	Float64
)

// valueTypes gives, per ValueType, the name that the reference prints and the
// bytes of a value, 0 where they differ from value to value.
var valueTypes = [13]struct {
	name string
	size int64
}{
	Uint8: {"u8", 1}, Int8: {"i8", 1}, Uint16: {"u16", 2}, Int16: {"i16", 2},
	Uint32: {"u32", 4}, Int32: {"i32", 4}, Float32: {"f32", 4}, Bool: {"bool", 1},
	String: {"str", 0}, Array: {"arr", 0}, Uint64: {"u64", 8}, Int64: {"i64", 8}, Float64: {"f64", 8},
}

// String returns the name that the reference prints, as "u32".
func (t ValueType) String() string {
	if t < ValueType(len(valueTypes)) {
		return valueTypes[t].name
	}
	return fmt.Sprintf("value type %d", uint32(t))
}

// size returns the bytes of a value of a known type, 0 if they differ.
func (t ValueType) size() int64 { return valueTypes[t].size }

// Value is the value of a key: a number, a boolean, a string, or an array of
// one of these. It does not change. The zero value is the u8 0.
//
// Arrays are kept as the file has them, in one piece of memory: a tokenizer of
// a million tokens is no million strings.
type Value struct {
	typ   ValueType
	elem  ValueType // of an array
	count int       // of an array
	data  string    // as in the file; a string without its length
	marks []uint32  // of an array of strings: where every 32nd element begins
}

// markEvery is how many strings of an array are walked at most to reach one.
const markEvery = 32

// Number is any Go type that a value or element of an array may have, but for
// booleans and strings.
type Number interface {
	uint8 | int8 | uint16 | int16 | uint32 | int32 | uint64 | int64 | float32 | float64
}

// Scalar is any Go type that a value or element of an array may have.
type Scalar interface{ Number | bool | string }

// typeFor returns the value type of a Go type.
func typeFor[T Scalar]() ValueType {
	var zero T
	switch any(zero).(type) {
	case uint8:
		return Uint8
	case int8:
		return Int8
	case uint16:
		return Uint16
	case int16:
		return Int16
	case uint32:
		return Uint32
	case int32:
		return Int32
	case float32:
		return Float32
	case bool:
		return Bool
	case uint64:
		return Uint64
	case int64:
		return Int64
	case float64:
		return Float64
	}
	return String
}

// ValueOf returns a value of exactly the type of v: uint32(1) becomes a u32.
func ValueOf[T Scalar](v T) Value {
	if s, ok := any(v).(string); ok {
		return Value{typ: String, data: s}
	}
	return Value{typ: typeFor[T](), data: string(appendNumbers(nil, v))}
}

// ArrayOf returns an array whose elements are of exactly the type of T.
func ArrayOf[T Scalar](elements []T) Value {
	v := Value{typ: Array, elem: typeFor[T](), count: len(elements)}
	texts, ok := any(elements).([]string)
	if !ok {
		v.data = string(appendNumbers(nil, elements))
		return v
	}
	var data []byte
	for i, text := range texts {
		if i%markEvery == 0 {
			v.marks = append(v.marks, uint32(len(data)))
		}
		data = appendString(data, text)
	}
	v.data = string(data)
	return v
}

// appendNumbers appends numbers or booleans as files have them.
func appendNumbers(b []byte, numbers any) []byte {
	// It fails on types without a fixed size only, which Scalar leaves out.
	b, _ = binary.Append(b, binary.LittleEndian, numbers)
	return b
}

func appendString(b []byte, text string) []byte {
	b = binary.LittleEndian.AppendUint64(b, uint64(len(text)))
	return append(b, text...)
}

// Type returns the type; [Array] for an array of any type.
func (v Value) Type() ValueType { return v.typ }

// ElemType returns the type of an array's elements, or of the value itself if
// it is no array.
func (v Value) ElemType() ValueType {
	if v.typ == Array {
		return v.elem
	}
	return v.typ
}

// Len returns the number of elements of an array, 1 for any other value.
func (v Value) Len() int {
	if v.typ == Array {
		return v.count
	}
	return 1
}

// Describe names the type for people, as "u32" or "array of 4 str".
func (v Value) Describe() string {
	if v.typ != Array {
		return v.typ.String()
	}
	return fmt.Sprintf("array of %d %s", v.count, v.elem)
}

// Equal reports whether both values have the same type and the same bytes:
// a NaN equals itself, a zero not its negative.
func (v Value) Equal(w Value) bool {
	return v.typ == w.typ && v.elem == w.elem && v.data == w.data // from which the count follows
}

// Text returns the text of a string, which may be any bytes.
func (v Value) Text() (string, error) {
	if v.typ != String {
		return "", v.isNot("a string")
	}
	return v.data, nil
}

// Bool returns the value of a boolean.
func (v Value) Bool() (bool, error) {
	if v.typ != Bool {
		return false, v.isNot("a boolean")
	}
	return v.bits() != 0, nil
}

// Int returns the value of an integer of any type, if it fits.
func (v Value) Int() (int64, error) {
	n := v.bits()
	switch v.typ {
	case Uint8, Uint16, Uint32:
		return int64(n), nil
	case Uint64:
		if n > math.MaxInt64 {
			return 0, fmt.Errorf("%d is beyond 63 bits", n)
		}
		return int64(n), nil
	case Int8:
		return int64(int8(n)), nil
	case Int16:
		return int64(int16(n)), nil
	case Int32:
		return int64(int32(n)), nil
	case Int64:
		return int64(n), nil
	}
	return 0, v.isNot("an integer")
}

// Uint returns the value of an integer of any type that is not negative. Unlike
// [Value.Int] it gives every u64.
func (v Value) Uint() (uint64, error) {
	if v.typ == Uint64 {
		return v.bits(), nil
	}
	n, err := v.Int()
	if err == nil && n < 0 {
		return 0, fmt.Errorf("%d is negative", n)
	}
	return uint64(n), err
}

// Float returns the value of a floating-point number.
func (v Value) Float() (float64, error) {
	switch v.typ {
	case Float32:
		return float64(math.Float32frombits(uint32(v.bits()))), nil
	case Float64:
		return math.Float64frombits(v.bits()), nil
	}
	return 0, v.isNot("a floating-point number")
}

// All yields the elements of an array with their places, or the value itself
// if it is none.
func (v Value) All() iter.Seq2[int, Value] {
	return func(yield func(int, Value) bool) {
		if v.typ != Array {
			yield(0, v)
			return
		}
		for i, at := 0, 0; i < v.count; i++ {
			var element Value
			element, at = v.element(at)
			if !yield(i, element) {
				return
			}
		}
	}
}

// Elem returns one element of an array, in constant time.
func (v Value) Elem(i int) (Value, error) {
	if v.typ != Array {
		return Value{}, v.isNot("an array")
	}
	if i < 0 || i >= v.count {
		return Value{}, fmt.Errorf("element %d of an array of %d", i, v.count)
	}
	if v.elem != String {
		element, _ := v.element(i * int(v.elem.size()))
		return element, nil
	}
	at := int(v.marks[i/markEvery])
	for range i % markEvery {
		_, at = v.element(at)
	}
	element, _ := v.element(at)
	return element, nil
}

// Strings returns the elements of an array of strings. They share the memory
// of the value.
func (v Value) Strings() ([]string, error) { return elements(v, "strings", Value.Text) }

// Bools returns the elements of an array of booleans.
func (v Value) Bools() ([]bool, error) { return elements(v, "booleans", Value.Bool) }

// Ints returns the elements of an array of integers of any type.
func (v Value) Ints() ([]int64, error) { return elements(v, "integers", Value.Int) }

// Floats returns the elements of an array of floating-point numbers.
func (v Value) Floats() ([]float64, error) { return elements(v, "floating-point numbers", Value.Float) }

// elements reads all elements of an array.
func elements[T any](v Value, what string, read func(Value) (T, error)) ([]T, error) {
	if v.typ != Array {
		return nil, v.isNot("an array of " + what)
	}
	if _, err := read(Value{typ: v.elem}); err != nil {
		return nil, v.isNot("an array of " + what)
	}
	all := make([]T, 0, v.count)
	for i, element := range v.All() {
		t, err := read(element)
		if err != nil {
			return nil, fmt.Errorf("element %d: %w", i, err)
		}
		all = append(all, t)
	}
	return all, nil
}

// element returns the element of an array that begins at an offset of its
// data, and where the next one begins.
func (v Value) element(at int) (Value, int) {
	if v.elem != String {
		end := at + int(v.elem.size())
		return Value{typ: v.elem, data: v.data[at:end]}, end
	}
	begin := at + 8
	end := begin + int(littleEndian(v.data[at:begin]))
	return Value{typ: String, data: v.data[begin:end]}, end
}

// bits returns the bytes of a number or boolean.
func (v Value) bits() uint64 { return littleEndian(v.data[:min(8, len(v.data))]) }

// littleEndian decodes up to eight bytes.
func littleEndian(b string) uint64 {
	n := uint64(0)
	for i := len(b) - 1; i >= 0; i-- {
		n = n<<8 | uint64(b[i])
	}
	return n
}

func (v Value) isNot(what string) error {
	return fmt.Errorf("%s, not %s", v.Describe(), what)
}

// encodedSize returns how many bytes the value takes in a file, with its type.
func (v Value) encodedSize() int64 {
	switch v.typ {
	case Array:
		return 4 + 4 + 8 + int64(len(v.data))
	case String:
		return 4 + 8 + int64(len(v.data))
	}
	return 4 + v.typ.size()
}

// append appends type and value as files have them.
func (v Value) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(v.typ))
	switch v.typ {
	case Array:
		b = binary.LittleEndian.AppendUint32(b, uint32(v.elem))
		b = binary.LittleEndian.AppendUint64(b, uint64(v.count))
		return append(b, v.data...)
	case String:
		return appendString(b, v.data)
	}
	b = append(b, v.data...)
	return append(b, make([]byte, v.typ.size()-int64(len(v.data)))...) // the zero Value has no bytes
}
