package strictjson_test

import (
	"errors"
	"fmt"
	"math"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/loratool/loratool/internal/strictjson"
)

func parse(t *testing.T, text string) strictjson.Value {
	t.Helper()
	v, err := strictjson.Parse([]byte(text))
	if err != nil {
		t.Fatalf("parsing %.100s: %v", text, err)
	}
	return v
}

func parseObject(t *testing.T, text string) *strictjson.Object {
	t.Helper()
	o, err := strictjson.ParseObject([]byte(text))
	if err != nil {
		t.Fatalf("parsing %.100s: %v", text, err)
	}
	return o
}

// The files were written by Python's json.dump (see testdata/python_dump.py).
func TestEncodeMatchesPython(t *testing.T) {
	for file, indent := range map[string]string{"python_indent.json": "  ", "python_line.json": ""} {
		want, err := os.ReadFile("testdata/" + file)
		if err != nil {
			t.Fatal(err)
		}
		v, err := strictjson.Parse(want)
		if err != nil {
			t.Fatal(err)
		}
		if got := v.Encode(indent); string(got) != string(want) {
			t.Errorf("%s:\n got %s\nwant %s", file, got, want)
		}
	}
}

func TestEncodeKeepsValues(t *testing.T) {
	tests := []string{
		`null`, `true`, `false`, `0`, `-0`, `-0.0`, `1.0`, `1.50`, `1e5`, `1E+05`, `12345678901234567890123`, `0.1000`,
		`""`, `"a"`, `"\u0000\u001f"`, "\"\x7f\u2028\"", `[]`, `{}`, `[[]]`, `[{}]`, `{"a": {}}`, `{"b": 1, "a": [1, 2, {"c": null}]}`,
	}
	for _, text := range tests {
		v := parse(t, text)
		if got := string(v.Encode("")); got != text {
			t.Errorf("encoded %s, want %s", got, text)
		}
		for _, indent := range []string{"  ", "\t"} {
			if again := parse(t, string(v.Encode(indent))); !again.Equal(v) {
				t.Errorf("%s, indented by %q, reads back as %s", text, indent, again.Encode(""))
			}
		}
	}
}

func TestValueEqual(t *testing.T) {
	texts := []string{
		`null`, `true`, `false`, `0`, `0.0`, `"0"`, `""`, `[]`, `[null]`, `[0]`, `[[]]`, `[0, 0]`, `{}`, `{"a": 0}`, `{"a": 1}`,
		`{"b": 0}`, `{"a": 0, "b": 0}`, `{"b": 0, "a": 0}`, `{"a": {"b": 0}}`,
	}
	for i, a := range texts {
		for j, b := range texts {
			if got := parse(t, a).Equal(parse(t, b)); got != (i == j) {
				t.Errorf("%s and %s: equal is %v", a, b, got)
			}
		}
	}
	if !parse(t, `{"\u0061": "\/"}`).Equal(parse(t, `{"a":"/"}`)) {
		t.Error("escapes count")
	}
}

func TestParseErrors(t *testing.T) {
	for _, text := range []string{``, `{`, `{"a":`, `{"a"`, `[1,`, `[1`, `{} x`, `[0] 1`, `{"a":1,"a":2}`, `[NaN]`} {
		if v, err := strictjson.Parse([]byte(text)); err == nil {
			t.Errorf("%s: accepted as %s", text, v.Encode(""))
		} else if _, ok := errors.AsType[*strictjson.SyntaxError](err); !ok {
			t.Errorf("%s: error %v of type %T", text, err, err)
		}
	}
	for text, want := range map[string]string{
		`[]`: "is an array, not an object", `null`: "is null, not an object", `{"a":1} {}`: "after the end",
	} {
		if _, err := strictjson.ParseObject([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", text, err, want)
		}
	}
}

// A short text may hold so many values that its tree would fill the memory.
func TestParseBoundsTheTree(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some hundred megabytes")
	}
	_, err := strictjson.Parse([]byte("[" + strings.Repeat("0,", 5<<20) + "0]"))
	if err == nil || !strings.Contains(err.Error(), "more than 4194304 values") {
		t.Errorf("error %v", err)
	}
}

func TestObjectAccess(t *testing.T) {
	o := parseObject(t, `{
		"peft_type": "LORA", "r": 16, "lora_alpha": 32.5, "use_dora": false, "bias": true,
		"target_modules": ["q_proj", "v_proj"], "layers": [0, 31], "none": null,
		"rank_pattern": {"b": 8, "a": 4}
	}`)
	check := func(name string, got, want any, ok bool, err error) {
		t.Helper()
		if err != nil || !ok || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v %v %v, want %v", name, got, ok, err, want)
		}
	}
	s, err := o.String("peft_type")
	check("String", s, "LORA", true, err)
	s, ok, err := o.OptString("peft_type")
	check("OptString", s, "LORA", ok, err)
	i, err := o.Int("r")
	check("Int", i, int64(16), true, err)
	i, ok, err = o.OptInt("r")
	check("OptInt", i, int64(16), ok, err)
	f, err := o.Float("lora_alpha")
	check("Float", f, 32.5, true, err)
	f, ok, err = o.OptFloat("r")
	check("OptFloat of an integer", f, 16.0, ok, err)
	b, err := o.Bool("bias")
	check("Bool", b, true, true, err)
	b, ok, err = o.OptBool("use_dora")
	check("OptBool", b, false, ok, err)
	list, err := o.Strings("target_modules")
	check("Strings", list, []string{"q_proj", "v_proj"}, true, err)
	list, ok, err = o.OptStrings("target_modules")
	check("OptStrings", list, []string{"q_proj", "v_proj"}, ok, err)
	ints, err := o.Ints("layers")
	check("Ints", ints, []int64{0, 31}, true, err)
	ints, ok, err = o.OptInts("layers")
	check("OptInts", ints, []int64{0, 31}, ok, err)
	items, err := o.Items("layers")
	check("Items", len(items), 2, true, err)
	items, ok, err = o.OptItems("layers")
	check("OptItems", len(items), 2, ok, err)
	sub, err := o.Object("rank_pattern")
	check("Object", sub.Keys(), []string{"b", "a"}, true, err)
	sub, ok, err = o.OptObject("rank_pattern")
	check("OptObject", sub.Keys(), []string{"b", "a"}, ok, err)
	if v, ok := o.Get("R"); ok {
		t.Errorf("a key of other case is found: %v", v)
	}
	if v, ok := o.Get("none"); !ok || !v.IsNull() {
		t.Errorf("null: %v %v", v, ok)
	}
	var order []string
	for key := range o.All() {
		if order = append(order, key); len(order) == 3 {
			break
		}
	}
	check("All", order, []string{"peft_type", "r", "lora_alpha"}, true, nil)
}

func TestObjectAccessErrors(t *testing.T) {
	o := parseObject(t, `{"s": "8", "i": 8, "f": 8.0, "e": 1e2, "b": true, "a": [1, "x"], "o": {}, "null": null,
		"big": 9223372036854775808, "inf": 1e999, "long": "`+strings.Repeat("x", 1000)+`", "digits": `+strings.Repeat("1", 1000)+`}`)
	tests := []struct {
		name string
		err  error
		want string
	}{
		{"missing", errOf(o.String("S")), `"S": missing`},
		{"null required", errOf(o.Int("null")), `"null": is null, not an integer`},
		{"string for int", errOf(o.Int("s")), `"s": "8" is a string, not an integer`},
		{"float for int", errOf(o.Int("f")), `"f": 8.0 is a number, not an integer`},
		{"exponent for int", errOf(o.Int("e")), `"e": 1e2 is a number, not an integer`},
		{"int too large", errOf(o.Int("big")), `"big": 9223372036854775808 is beyond 64 bits`},
		{"int very large", errOf(o.Int("digits")), `"digits": 11111111111111111111111111111111... is beyond 64 bits`},
		{"int for string", errOf(o.String("i")), `"i": 8 is a number, not a string`},
		{"bool for string", errOf(o.String("b")), `"b": true is a boolean, not a string`},
		{"int for bool", errOf(o.Bool("i")), `"i": 8 is a number, not a boolean`},
		{"string for float", errOf(o.Float("s")), `"s": "8" is a string, not a number`},
		{"bool for float", errOf(o.Float("b")), `"b": true is a boolean, not a number`},
		{"float too large", errOf(o.Float("inf")), `"inf": 1e999 is not a finite float64`},
		{"string for list", errOf(o.Strings("s")), `"s": "8" is a string, not an array`},
		{"object for list", errOf(o.Items("o")), `"o": is an object, not an array`},
		{"list of mixed, strings", errOf(o.Strings("a")), `"a": item 0: 1 is a number, not a string`},
		{"list of mixed, ints", errOf(o.Ints("a")), `"a": item 1: "x" is a string, not an integer`},
		{"array for object", errOf(o.Object("a")), `"a": is an array, not an object`},
		{"long string", errOf(o.Int("long")), `"long": "` + strings.Repeat("x", 64) + `"... is a string, not an integer`},
		{"optional of other kind", errOf2(o.OptInt("s")), `"s": "8" is a string, not an integer`},
		{"key is quoted", errOf(o.Int("a\nb")), `"a\nb": missing`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if test.err == nil || test.err.Error() != test.want {
				t.Errorf("error %v, want %s", test.err, test.want)
			}
			if _, ok := errors.AsType[*strictjson.ValueError](test.err); !ok {
				t.Errorf("error of type %T", test.err)
			}
		})
	}
	for _, key := range []string{"null", "absent"} {
		if s, ok, err := o.OptString(key); s != "" || ok || err != nil {
			t.Errorf("optional %s: %q %v %v", key, s, ok, err)
		}
	}
	if v, ok, err := o.OptString("i"); v != "" || ok || err == nil {
		t.Errorf("optional of other kind: %q %v %v", v, ok, err)
	}
}

func errOf[T any](_ T, err error) error { return err }

func errOf2[T any](_ T, _ bool, err error) error { return err }

func TestObjectEdit(t *testing.T) {
	o := parseObject(t, `{"a": 1, "q": {"bits": 4, "x": [{"y": 0}]}, "b": 2.50, "c": 3}`)
	o.Set("b", strictjson.NewString("bfloat16"))
	o.Set("z", strictjson.NewStrings([]string{"x", "y"}))
	o.Set("a", strictjson.NewArray())
	if !o.Delete("c") || o.Delete("c") || o.Delete("absent") {
		t.Error("Delete reports the wrong thing")
	}
	q, err := o.Object("q")
	if err != nil {
		t.Fatal(err)
	}
	q.Set("bits", strictjson.NewInt(8))
	q.Set("deep", strictjson.NewObject().Value())
	items, err := q.Items("x")
	if err != nil {
		t.Fatal(err)
	}
	y, err := items[0].Object()
	if err != nil {
		t.Fatal(err)
	}
	y.Set("y", strictjson.NewBool(true))
	y.Set("n", strictjson.NewNull())
	const want = `{"a": [], "q": {"bits": 8, "x": [{"y": true, "n": null}], "deep": {}}, "b": "bfloat16", "z": ["x", "y"]}`
	if got := string(o.Encode("")); got != want {
		t.Errorf("edited\n got %s\nwant %s", got, want)
	}
	if o.Len() != 4 {
		t.Errorf("length %d, want 4", o.Len())
	}
}

// Objects get an index when they grow; look-ups, changes and deletions must
// not notice.
func TestObjectOfAllSizes(t *testing.T) {
	for n := range 50 {
		o := strictjson.NewObject()
		for i := range n {
			o.Set(fmt.Sprint(i), strictjson.NewInt(int64(i)))
		}
		for i := 0; i < n; i += 3 {
			o.Set(fmt.Sprint(i), strictjson.NewInt(int64(-i)))
		}
		for i := 1; i < n; i += 3 {
			if !o.Delete(fmt.Sprint(i)) {
				t.Fatalf("%d of %d is not there", i, n)
			}
		}
		var want []string
		for i := range n {
			v, err := o.Int(fmt.Sprint(i))
			switch i % 3 {
			case 0:
				if err != nil || v != int64(-i) {
					t.Errorf("%d of %d: %d %v", i, n, v, err)
				}
			case 1:
				if err == nil {
					t.Errorf("%d of %d is still there", i, n)
				}
				continue
			}
			want = append(want, fmt.Sprint(i))
		}
		if got := o.Keys(); len(got) != len(want) || n > 0 && !reflect.DeepEqual(got, want) {
			t.Errorf("keys %v, want %v", got, want)
		}
	}
}

func TestNewFloat(t *testing.T) {
	// What Python's repr gives.
	for f, want := range map[float64]string{
		0: "0.0", 16: "16.0", 0.1: "0.1", -2.5: "-2.5", 1e-4: "0.0001", 1e-5: "1e-05", 1.5e-7: "1.5e-07",
		9999999999999998: "9999999999999998.0", 1e16: "1e+16", 1.7976931348623157e308: "1.7976931348623157e+308", 5e-324: "5e-324",
	} {
		v, err := strictjson.NewFloat(f)
		if err != nil || string(v.Encode("")) != want {
			t.Errorf("%v: %s %v, want %s", f, v.Encode(""), err, want)
		}
		if back, err := v.Float(); back != f || err != nil {
			t.Errorf("%v reads back as %v %v", f, back, err)
		}
	}
	if v, err := strictjson.NewFloat(math.Copysign(0, -1)); err != nil || string(v.Encode("")) != "-0.0" {
		t.Errorf("-0: %s %v", v.Encode(""), err)
	}
	for _, f := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
		if v, err := strictjson.NewFloat(f); err == nil {
			t.Errorf("%v: %s, want an error", f, v.Encode(""))
		}
	}
}

// Whatever a caller puts in, what comes out is JSON.
func TestInvalidUTF8IsNeverWritten(t *testing.T) {
	o := strictjson.NewObject()
	o.Set("k\xff", strictjson.NewStrings([]string{"\xed\xa0\x80v", "ok"}))
	again := parse(t, string(o.Encode("")))
	if want := parse(t, `{"k\ufffd":["\ufffdv","ok"]}`); !again.Equal(want) {
		t.Errorf("got %s", again.Encode(""))
	}
	if _, ok := o.Get("k\uFFFD"); !ok {
		t.Error("key is not replaced")
	}
}

// Python's words for numbers JSON lacks are kept, but never become a float.
func TestFloatIsFinite(t *testing.T) {
	o, err := strictjson.ParsePythonObject([]byte(`{"nan": NaN, "inf": Infinity, "minus": -Infinity}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range o.Keys() {
		if f, err := o.Float(key); err == nil || f != 0 || !strings.HasSuffix(err.Error(), "is not a finite float64") {
			t.Errorf("%s: %v %v, want an error", key, f, err)
		}
	}
}

func TestZeroValueIsNull(t *testing.T) {
	var v strictjson.Value
	if !v.IsNull() || v.Kind() != strictjson.KindNull || string(v.Encode("")) != "null" || !v.Equal(parse(t, "null")) {
		t.Errorf("zero value is %s", v.Encode(""))
	}
	if lit, err := parse(t, "1.50").Literal(); lit != "1.50" || err != nil {
		t.Errorf("literal %q %v", lit, err)
	}
	if _, err := v.Literal(); err == nil {
		t.Error("null has a literal")
	}
}
