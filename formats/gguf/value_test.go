package gguf_test

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/gguf"
)

// describeScalar spells a value out by the accessor that fits its type.
func describeScalar(v gguf.Value) string {
	if s, err := v.Text(); err == nil {
		return fmt.Sprintf("%q", s)
	}
	if b, err := v.Bool(); err == nil {
		return fmt.Sprint(b)
	}
	if x, err := v.Float(); err == nil {
		return fmt.Sprint(x)
	}
	n, err := v.Int()
	if err != nil {
		return strings.TrimSuffix(err.Error(), " is beyond 63 bits")
	}
	return fmt.Sprint(n)
}

// TestUint guards the numbers that Int does not give, and those that Uint does not.
func TestUint(t *testing.T) {
	for _, c := range []struct {
		v    gguf.Value
		want string
	}{
		{gguf.ValueOf(uint64(math.MaxUint64)), "18446744073709551615"},
		{gguf.ValueOf(uint64(1 << 63)), "9223372036854775808"},
		{gguf.ValueOf(int64(math.MaxInt64)), "9223372036854775807"},
		{gguf.ValueOf(uint8(200)), "200"},
		{gguf.Value{}, "0"},
		{gguf.ValueOf(int8(-1)), "-1 is negative"},
		{gguf.ValueOf(float32(1)), "f32, not an integer"},
		{gguf.ArrayOf([]uint64{1}), "array of 1 u64, not an integer"},
	} {
		got := ""
		if n, err := c.v.Uint(); err != nil {
			got = err.Error()
		} else {
			got = fmt.Sprint(n)
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", c.v.Describe(), got, c.want)
		}
	}
}

func TestScalars(t *testing.T) {
	tests := []struct {
		v    gguf.Value
		typ  gguf.ValueType
		want string
	}{
		{gguf.Value{}, gguf.Uint8, "0"},
		{gguf.ValueOf(uint8(255)), gguf.Uint8, "255"},
		{gguf.ValueOf(int8(-128)), gguf.Int8, "-128"},
		{gguf.ValueOf(uint16(65535)), gguf.Uint16, "65535"},
		{gguf.ValueOf(int16(-32768)), gguf.Int16, "-32768"},
		{gguf.ValueOf(uint32(math.MaxUint32)), gguf.Uint32, "4294967295"},
		{gguf.ValueOf(int32(math.MinInt32)), gguf.Int32, "-2147483648"},
		{gguf.ValueOf(uint64(math.MaxInt64)), gguf.Uint64, "9223372036854775807"},
		{gguf.ValueOf(uint64(math.MaxUint64)), gguf.Uint64, "18446744073709551615"},
		{gguf.ValueOf(int64(math.MinInt64)), gguf.Int64, "-9223372036854775808"},
		{gguf.ValueOf(float32(-0.5)), gguf.Float32, "-0.5"},
		{gguf.ValueOf(math.Inf(1)), gguf.Float64, "+Inf"},
		{gguf.ValueOf(true), gguf.Bool, "true"},
		{gguf.ValueOf(false), gguf.Bool, "false"},
		{gguf.ValueOf(""), gguf.String, `""`},
		{gguf.ValueOf("a\x00\xff"), gguf.String, `"a\x00\xff"`},
	}
	for _, test := range tests {
		if test.v.Type() != test.typ || test.v.ElemType() != test.typ || test.v.Len() != 1 || describeScalar(test.v) != test.want {
			t.Errorf("%v %s, want %v %s", test.v.Type(), describeScalar(test.v), test.typ, test.want)
		}
		if test.v.Describe() != test.typ.String() {
			t.Errorf("%s is described as %s", test.typ, test.v.Describe())
		}
		if _, err := test.v.Elem(0); err == nil {
			t.Errorf("%s has an element", test.typ)
		}
		if _, err := test.v.Strings(); err == nil {
			t.Errorf("%s is a list", test.typ)
		}
	}
}

// An accessor takes its own types and names any other.
func TestWrongTypes(t *testing.T) {
	values := map[string]gguf.Value{
		"integer": gguf.ValueOf(int32(1)), "number": gguf.ValueOf(1.5), "boolean": gguf.ValueOf(true), "text": gguf.ValueOf("x"),
		"integers": gguf.ArrayOf([]uint16{1}), "numbers": gguf.ArrayOf([]float32{1}), "booleans": gguf.ArrayOf([]bool{true}),
		"texts": gguf.ArrayOf([]string{"x"}),
	}
	for kind, v := range values {
		errs := map[string]error{}
		_, errs["integer"] = v.Int()
		_, errs["number"] = v.Float()
		_, errs["boolean"] = v.Bool()
		_, errs["text"] = v.Text()
		_, errs["integers"] = v.Ints()
		_, errs["numbers"] = v.Floats()
		_, errs["booleans"] = v.Bools()
		_, errs["texts"] = v.Strings()
		for accessor, err := range errs {
			if (err == nil) != (accessor == kind) {
				t.Errorf("%s read as %s: %v", kind, accessor, err)
			}
			if err != nil && !strings.Contains(err.Error(), v.Describe()+", not ") {
				t.Errorf("%s read as %s: %v does not say what it is", kind, accessor, err)
			}
		}
	}
	if _, err := gguf.ArrayOf([]uint64{1, math.MaxUint64}).Ints(); err == nil || err.Error() != "element 1: 18446744073709551615 is beyond 63 bits" {
		t.Errorf("element beyond 63 bits: %v", err)
	}
	if _, err := gguf.ArrayOf([]int8{}).Strings(); err == nil {
		t.Error("an empty array of integers is read as strings")
	}
}

func checkArray[T gguf.Scalar](t *testing.T, want []T, read func(gguf.Value) (T, error)) {
	t.Helper()
	v := gguf.ArrayOf(want)
	got := make([]T, 0, len(want))
	for i, e := range v.All() {
		x, err := read(e)
		if err != nil || i != len(got) || e.Type() != v.ElemType() {
			t.Fatalf("element %d of %s: %v %v", i, v.Describe(), x, err)
		}
		got = append(got, x)
		at, err := v.Elem(i)
		if err != nil || !at.Equal(e) || !at.Equal(gguf.ValueOf(want[i])) {
			t.Fatalf("element %d of %s: %v, in a walk %v", i, v.Describe(), describeScalar(at), describeScalar(e))
		}
	}
	if !slices.Equal(got, want) || v.Len() != len(want) || v.Type() != gguf.Array {
		t.Errorf("%s: %v, want %v", v.Describe(), got, want)
	}
	for _, i := range []int{-1, len(want), math.MaxInt, math.MinInt} {
		if _, err := v.Elem(i); err == nil {
			t.Errorf("element %d of %d", i, len(want))
		}
	}
}

func number[T int8 | int16 | int32 | int64 | uint8 | uint16 | uint32 | uint64](v gguf.Value) (T, error) {
	n, err := v.Int()
	return T(n), err
}

// Lengths lie around the distance of the marks.
func TestArrays(t *testing.T) {
	for _, n := range []int{0, 1, 2, 31, 32, 33, 63, 64, 65, 1000} {
		var texts []string
		var bools []bool
		var i8 []int8
		var u16 []uint16
		var i32 []int32
		var u64 []uint64
		var f32 []float32
		var f64 []float64
		for i := range n {
			texts = append(texts, strings.Repeat("ä", i%40))
			bools = append(bools, i%3 == 0)
			i8 = append(i8, int8(i*7))
			u16 = append(u16, uint16(i*701))
			i32 = append(i32, int32(i)*-70_001)
			u64 = append(u64, uint64(i)*7_000_000_001)
			f32 = append(f32, float32(i)/3)
			f64 = append(f64, -float64(i)/3)
		}
		checkArray(t, texts, gguf.Value.Text)
		checkArray(t, bools, gguf.Value.Bool)
		checkArray(t, i8, number[int8])
		checkArray(t, u16, number[uint16])
		checkArray(t, i32, number[int32])
		checkArray(t, u64, number[uint64])
		checkArray(t, f32, func(v gguf.Value) (float32, error) { x, err := v.Float(); return float32(x), err })
		checkArray(t, f64, gguf.Value.Float)
		if got, err := gguf.ArrayOf(texts).Strings(); err != nil || !slices.Equal(got, texts) {
			t.Errorf("%d strings: %q %v", n, got, err)
		}
		if got, err := gguf.ArrayOf(bools).Bools(); err != nil || !slices.Equal(got, bools) {
			t.Errorf("%d booleans: %v %v", n, got, err)
		}
		if got, err := gguf.ArrayOf(f64).Floats(); err != nil || !slices.Equal(got, f64) {
			t.Errorf("%d numbers: %v %v", n, got, err)
		}
	}
}

// A walk may stop.
func TestArrayStops(t *testing.T) {
	n := 0
	for range gguf.ArrayOf([]string{"a", "b", "c"}).All() {
		if n++; n == 2 {
			break
		}
	}
	for range gguf.ValueOf(uint8(1)).All() {
		n++
	}
	if n != 3 {
		t.Errorf("%d elements", n)
	}
}

func TestEqual(t *testing.T) {
	values := []gguf.Value{
		gguf.ValueOf(uint8(1)), gguf.ValueOf(int8(1)), gguf.ValueOf(true), gguf.ValueOf("\x01"), gguf.ValueOf(uint16(1)),
		gguf.ValueOf(float32(1)), gguf.ValueOf(math.NaN()), gguf.ValueOf(0.0), gguf.ValueOf(math.Copysign(0, -1)),
		gguf.ArrayOf([]uint8{1}), gguf.ArrayOf([]int8{1}), gguf.ArrayOf([]uint8{}), gguf.ArrayOf([]string{}),
		gguf.ArrayOf([]string{""}), gguf.ArrayOf([]string{"a", "b"}), gguf.ArrayOf([]string{"ab"}),
	}
	for i, v := range values {
		for j, w := range values {
			if v.Equal(w) != (i == j) {
				t.Errorf("%s equals %s: %v", v.Describe(), w.Describe(), v.Equal(w))
			}
		}
	}
}

func TestMetadataOrder(t *testing.T) {
	var m gguf.Metadata
	keys := func() string {
		var all []string
		for key := range m.All() {
			all = append(all, key)
		}
		for i, key := range all { // the index must know where each went
			v, ok := m.Get(key)
			if n, _ := v.Int(); !ok || !m.Has(key) || m.Len() != len(all) {
				t.Errorf("key %d %s: %v %d", i, key, ok, n)
			}
		}
		return strings.Join(all, "")
	}
	for i, key := range []string{"a", "b", "c", "d"} {
		m.Set(key, gguf.ValueOf(uint32(i)))
	}
	c := m.Clone()
	m.Set("b", gguf.ValueOf(uint32(7))) // the reference moves it to the end
	if got := keys(); got != "acdb" {
		t.Errorf("after a change: %s", got)
	}
	if !m.Replace("c", gguf.ValueOf(uint32(8))) || m.Replace("x", gguf.ValueOf(uint32(8))) {
		t.Error("Replace does not know the keys")
	}
	if !m.Delete("a") || m.Delete("a") || m.Has("a") {
		t.Error("Delete does not know the keys")
	}
	if got := keys(); got != "cdb" {
		t.Errorf("after a removal: %s", got)
	}
	for key, want := range map[string]int64{"b": 7, "c": 8, "d": 3} {
		if n, err := m.Int(key); n != want || err != nil {
			t.Errorf("%s: %d %v", key, n, err)
		}
	}
	if n, err := c.Int("b"); n != 1 || err != nil || c.Len() != 4 {
		t.Errorf("the copy changed: %d %v", n, err)
	}
	for range m.All() {
		break // a walk may stop
	}
}

func TestMetadataReaders(t *testing.T) {
	var m gguf.Metadata
	m.Set("text", gguf.ValueOf("x"))
	m.Set("int", gguf.ValueOf(uint16(3)))
	m.Set("float", gguf.ValueOf(float32(0.5)))
	m.Set("bool", gguf.ValueOf(true))
	m.Set("list", gguf.ArrayOf([]string{"a", "b"}))
	text, err := m.Text("text")
	optText, ok, err2 := m.OptText("text")
	if text != "x" || optText != "x" || !ok || err != nil || err2 != nil {
		t.Errorf("text %q %q %v %v %v", text, optText, ok, err, err2)
	}
	n, err := m.Int("int")
	optN, ok, err2 := m.OptInt("int")
	if n != 3 || optN != 3 || !ok || err != nil || err2 != nil {
		t.Errorf("int %d %d %v %v %v", n, optN, ok, err, err2)
	}
	x, err := m.Float("float")
	optX, ok, err2 := m.OptFloat("float")
	if x != 0.5 || optX != 0.5 || !ok || err != nil || err2 != nil {
		t.Errorf("float %v %v %v %v %v", x, optX, ok, err, err2)
	}
	b, err := m.Bool("bool")
	optB, ok, err2 := m.OptBool("bool")
	if !b || !optB || !ok || err != nil || err2 != nil {
		t.Errorf("bool %v %v %v %v %v", b, optB, ok, err, err2)
	}
	list, err := m.Strings("list")
	optList, ok, err2 := m.OptStrings("list")
	if !slices.Equal(list, []string{"a", "b"}) || !slices.Equal(optList, list) || !ok || err != nil || err2 != nil {
		t.Errorf("list %q %q %v %v %v", list, optList, ok, err, err2)
	}
	if _, ok, err := m.OptText("absent"); ok || err != nil {
		t.Errorf("absent: %v %v", ok, err)
	}
	for _, test := range []struct {
		err  error
		want string
	}{
		{second(m.Text("absent")), `key "absent": missing`},
		{second(m.Text("int")), `key "int": u16, not a string`},
		{second(m.Int("float")), `key "float": f32, not an integer`},
		{second(m.Float("int")), `key "int": u16, not a floating-point number`},
		{second(m.Strings("text")), `key "text": str, not an array of strings`},
	} {
		if _, ok := test.err.(*gguf.KeyError); !ok || test.err.Error() != test.want {
			t.Errorf("error %v of type %T, want %s", test.err, test.err, test.want)
		}
	}
}

func second[T any](_ T, err error) error { return err }
