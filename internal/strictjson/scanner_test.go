package strictjson_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/loratool/loratool/internal/strictjson"
)

// scan returns all tokens up to the end, or the first error.
func scan(text string) ([]string, error) {
	s := strictjson.NewScanner([]byte(text))
	var tokens []string
	for {
		t, err := s.Next()
		if err != nil {
			return tokens, err
		}
		if t.Kind == strictjson.KindEnd {
			return tokens, nil
		}
		tokens = append(tokens, fmt.Sprintf("%d %s %q", t.Offset, t.Kind, t.Text))
	}
}

func TestScannerTokens(t *testing.T) {
	got, err := scan(` {"a" : [1, -2.5e+3 ,"x\ny"], "\u0062":{},"c":[ ] , "d":true,"e":false,"f":null} `)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		`1 an object ""`,
		`2 a key "a"`, `8 an array ""`, `9 a number "1"`, `12 a number "-2.5e+3"`, `21 a string "x\ny"`, `27 the end of an array ""`,
		`30 a key "b"`, `39 an object ""`, `40 the end of an object ""`,
		`42 a key "c"`, `46 an array ""`, `48 the end of an array ""`,
		`52 a key "d"`, `56 a boolean "true"`, `61 a key "e"`, `65 a boolean "false"`, `71 a key "f"`, `75 null "null"`,
		`79 the end of an object ""`,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("tokens\n got %s\nwant %s", strings.Join(got, "\n     "), strings.Join(want, "\n     "))
	}
}

func TestScannerEndIsLasting(t *testing.T) {
	s := strictjson.NewScanner([]byte("0 "))
	for i := range 4 {
		tok, err := s.Next()
		want := strictjson.KindEnd
		if i == 0 {
			want = strictjson.KindNumber
		}
		if err != nil || tok.Kind != want {
			t.Errorf("token %d: %v %v, want %v", i, tok.Kind, err, want)
		}
	}
}

func TestScannerErrorIsLasting(t *testing.T) {
	s := strictjson.NewScanner([]byte("[}"))
	if _, err := s.Next(); err != nil {
		t.Fatal(err)
	}
	_, first := s.Next()
	_, second := s.Next()
	if first == nil || first != second {
		t.Errorf("errors %v and %v, want one that stays", first, second)
	}
}

func TestScannerStrings(t *testing.T) {
	tests := []struct{ text, want string }{
		{`""`, ""},
		{`"a"`, "a"},
		{`"\"\\\/\b\f\n\r\t"`, "\"\\/\b\f\n\r\t"},
		{`"\u0000\u001F\u00e9\u00E9\uFFFF"`, "\x00\x1f\u00e9\u00e9\uffff"},
		{`"\ud83d\ude00 \uD83D\uDE00"`, "\U0001F600 \U0001F600"},
		{`"\ud800\udc00\udbff\udfff"`, "\U00010000\U0010FFFF"},
		{`"\ufffd\ufeff"`, "\uFFFD\uFEFF"},
		{`"a\nb\nc"`, "a\nb\nc"},
		{"\"\x7f\u0080\u2028\uFEFF\uFFFD\U0010FFFF\"", "\x7f\u0080\u2028\uFEFF\uFFFD\U0010FFFF"},
		{`"\\u0041"`, `\u0041`},
	}
	for _, test := range tests {
		s := strictjson.NewScanner([]byte(test.text))
		tok, err := s.Next()
		if err != nil || string(tok.Text) != test.want {
			t.Errorf("%s: %q %v, want %q", test.text, tok.Text, err, test.want)
		}
	}
}

func TestScannerAccepts(t *testing.T) {
	tests := []string{
		`0`, `-0`, `1`, `10`, `-1`, `0.0`, `1.50`, `1e1`, `1E1`, `1e+1`, `1e-01`, `0e0`, `1.5e300`, `1e999`,
		`123456789012345678901234567890`,
		`true`, `false`, `null`, `""`, `[]`, `{}`,
		"\t\r\n 0\t\r\n ",
		`[[],{},[{}]]`,
		`{"":0}`, `{"a":0,"A":1,"á":2}`,
		`{"a":{"a":{"a":0}},"b":{"a":0}}`, // the same key at different places
		`[{"a":0},{"a":0}]`,
		strings.Repeat("[", 128) + strings.Repeat("]", 128),
		strings.Repeat(`{"a":`, 128) + "0" + strings.Repeat("}", 128),
		strings.Repeat("[", 127) + "0,{}" + strings.Repeat("]", 127),
		"[" + strings.Repeat("[],", 1000) + "[]]", // wide, not deep
	}
	for _, text := range tests {
		if _, err := scan(text); err != nil {
			t.Errorf("%.60s: %v", text, err)
		}
		if !json.Valid([]byte(text)) {
			t.Errorf("%.60s: encoding/json refuses it", text)
		}
	}
}

func TestScannerRejects(t *testing.T) {
	tests := []struct {
		name   string
		text   string
		offset int64
		want   string
	}{
		{"nothing", ``, 0, "ends early"},
		{"white space", " \n", 2, "ends early"},
		{"byte order mark", "\uFEFF0", 0, "byte order mark"},
		{"two values", `0 1`, 2, "unexpected '1', after the end"},
		{"two objects", `{}{}`, 2, "unexpected '{', after the end"},
		{"NUL after the value", "{}\x00", 2, `unexpected '\x00'`},
		{"form feed", "\f0", 0, `unexpected '\f'`},
		{"no-break space", "\u00a00", 0, `unexpected '\u00a0'`},
		{"line separator", "0\u2028", 1, `unexpected '\u2028'`},
		{"invalid UTF-8 outside of strings", "[\xff]", 1, "invalid UTF-8"},
		{"comment", "/**/0", 0, "unexpected '/'"},
		{"line comment", "0 // x", 2, "unexpected '/'"},

		{"array open", `[`, 1, "ends early"},
		{"array open after a value", `[0`, 2, "ends early, want ',' or ']'"},
		{"array open after a comma", `[0,`, 3, "ends early"},
		{"array trailing comma", `[0,]`, 3, "unexpected ']'"},
		{"array leading comma", `[,0]`, 1, "unexpected ','"},
		{"array two commas", `[0,,1]`, 3, "unexpected ','"},
		{"array no comma", `[0 1]`, 3, "unexpected '1', want ',' or ']'"},
		{"array colon", `["a":0]`, 4, "unexpected ':'"},
		{"array closed as object", `[0}`, 2, "unexpected '}'"},
		{"array closed twice", `[]]`, 2, "unexpected ']'"},
		{"object open", `{`, 1, "ends early, want a key"},
		{"object open after a key", `{"a"`, 4, "ends early, want ':'"},
		{"object open after a colon", `{"a":`, 5, "ends early, want a value"},
		{"object open after a value", `{"a":0`, 6, "ends early, want ',' or '}'"},
		{"object trailing comma", `{"a":0,}`, 7, "unexpected '}', want a key"},
		{"object leading comma", `{,"a":0}`, 1, "unexpected ',', want a key"},
		{"object no colon", `{"a" 0}`, 5, "unexpected '0', want ':'"},
		{"object two colons", `{"a"::0}`, 5, "unexpected ':', want a value"},
		{"object no value", `{"a":}`, 5, "unexpected '}', want a value"},
		{"object value only", `{0}`, 1, "unexpected '0', want a key"},
		{"object no comma", `{"a":0 "b":1}`, 7, `unexpected '"', want ','`},
		{"object closed as array", `{"a":0]`, 6, "unexpected ']'"},
		{"key unquoted", `{a:0}`, 1, "unexpected 'a', want a key"},
		{"key single quotes", `{'a':0}`, 1, `unexpected '\'', want a key`},
		{"key number", `{1:0}`, 1, "unexpected '1', want a key"},
		{"key null", `{null:0}`, 1, "unexpected 'n', want a key"},

		{"literal in capitals", `True`, 0, "unexpected 'T'"},
		{"literal cut", `tru`, 0, "unknown literal"},
		{"literal misspelt", `nul0`, 0, "unknown literal"},
		{"literal with a tail", `truex`, 4, "unexpected 'x'"},
		{"undefined", `undefined`, 0, "unexpected 'u'"},
		{"NaN", `[NaN]`, 1, "unexpected 'N'"},
		{"nan", `[nan]`, 1, "unknown literal"},
		{"Infinity", `Infinity`, 0, "unexpected 'I'"},
		{"-Infinity", `-Infinity`, 1, "unexpected 'I', want a digit"},
		{"-NaN", `-NaN`, 1, "unexpected 'N', want a digit"},

		{"number leading zero", `01`, 0, "leading zero"},
		{"number two zeros", `00`, 0, "leading zero"},
		{"number minus leading zero", `-01`, 0, "leading zero"},
		{"number plus", `+1`, 0, "unexpected '+'"},
		{"number minus only", `-`, 1, "ends early, want a digit"},
		{"number two minuses", `--1`, 1, "unexpected '-'"},
		{"number no integer part", `.5`, 0, "unexpected '.'"},
		{"number no fraction", `1.`, 2, "ends early, want a digit after"},
		{"number no fraction before exponent", `1.e5`, 2, "unexpected 'e'"},
		{"number two points", `1.2.3`, 3, "unexpected '.'"},
		{"number no exponent", `1e`, 2, "ends early, want a digit in the exponent"},
		{"number no exponent after sign", `1e+`, 3, "ends early"},
		{"number fractional exponent", `1e1.5`, 3, "unexpected '.'"},
		{"number hexadecimal", `0x10`, 1, "unexpected 'x'"},
		{"number separators", `1_000`, 1, "unexpected '_'"},
		{"number other digits", "\u0661", 0, "unexpected '\u0661'"},

		{"string open", `"abc`, 4, "ends early, inside a string"},
		{"string open after backslash", `"abc\`, 5, "ends early, inside a string"},
		{"string single quotes", `'abc'`, 0, `unexpected '\''`},
		{"string newline", "\"a\nb\"", 2, `control character '\n'`},
		{"string NUL", "\"a\x00b\"", 2, `control character '\x00'`},
		{"string 0x1F", "\"\x1f\"", 1, `control character '\x1f'`},
		{"string tab after an escape", "\"\\n\t\"", 3, `control character '\t'`},
		{"escape unknown", `"\x41"`, 1, "unknown escape"},
		{"escape of a single quote", `"\'"`, 1, "unknown escape"},
		{"escape capital", `"\N"`, 1, "unknown escape"},
		{"escape of a newline", "\"\\\n\"", 1, "unknown escape"},
		{"unicode escape short", `"\u00e"`, 1, "four hexadecimal digits"},
		{"unicode escape at the end", `"\u00`, 1, "four hexadecimal digits"},
		{"unicode escape no digit", `"\u00eg"`, 1, "four hexadecimal digits"},
		{"unicode escape braces", `"\u{e9}"`, 1, "four hexadecimal digits"},
		{"unicode escape sign", `"\u+0e9"`, 1, "four hexadecimal digits"},
		{"unicode escape capital U", `"\U000000e9"`, 1, "unknown escape"},
		{"high surrogate alone", `"\ud800"`, 1, "lone surrogate"},
		{"high surrogate, then text", `"\ud800abcdef"`, 1, "lone surrogate"},
		{"high surrogate, then escape", `"\ud800\n"`, 1, "lone surrogate"},
		{"high surrogate twice", `"\ud800\ud800"`, 1, "lone surrogate"},
		{"high surrogate, then letter", `"\ud800\u0041"`, 1, "lone surrogate"},
		{"high surrogate, then short escape", `"\ud800\udc0"`, 7, "four hexadecimal digits"},
		{"low surrogate alone", `"\udc00"`, 1, "lone surrogate"},
		{"surrogates swapped", `"\udc00\ud800"`, 1, "lone surrogate"},
		{"UTF-8 continuation alone", "\"\x80\"", 1, "invalid UTF-8"},
		{"UTF-8 cut by the quote", "\"\xe2\x82\"", 1, "invalid UTF-8"},
		{"UTF-8 overlong slash", "\"\xc0\xaf\"", 1, "invalid UTF-8"},
		{"UTF-8 overlong NUL", "\"\xc0\x80\"", 1, "invalid UTF-8"},
		{"UTF-8 overlong three bytes", "\"\xe0\x80\xaf\"", 1, "invalid UTF-8"},
		{"UTF-8 encoded surrogate", "\"\xed\xa0\x80\"", 1, "invalid UTF-8"},
		{"UTF-8 encoded pair", "\"\xed\xa0\xbd\xed\xb8\x80\"", 1, "invalid UTF-8"},
		{"UTF-8 above U+10FFFF", "\"\xf4\x90\x80\x80\"", 1, "invalid UTF-8"},
		{"UTF-8 five bytes", "\"\xf8\x88\x80\x80\x80\"", 1, "invalid UTF-8"},
		{"UTF-8 0xFF", "\"a\xff\"", 2, "invalid UTF-8"},
		{"UTF-8 invalid in a key", "{\"\xff\":0}", 2, "invalid UTF-8"},
		{"UTF-8 invalid after an escape", "\"\\n\xff\"", 3, "invalid UTF-8"},
		{"Latin-1", "\"\xe9t\xe9\"", 1, "invalid UTF-8"},

		{"duplicate key", `{"a":0,"a":0}`, 7, `duplicate key "a"`},
		{"duplicate empty key", `{"":0,"":0}`, 6, `duplicate key ""`},
		{"duplicate not next to each other", `{"a":0,"b":0,"a":0}`, 13, `duplicate key "a"`},
		{"duplicate after a nested object", `{"a":{"a":{}},"a":0}`, 14, `duplicate key "a"`},
		{"duplicate in a nested object", `[{"b":{"a":0,"a":0}}]`, 13, `duplicate key "a"`},
		{"duplicate by an escape", `{"a":0,"\u0061":0}`, 7, `duplicate key "a"`},
		{"duplicate by an escape first", `{"\u0061":0,"a":0}`, 12, `duplicate key "a"`},
		{"duplicate by two escapes", `{"\/":0,"\u002f":0}`, 8, `duplicate key "/"`},
		{"duplicate by a pair of escapes", `{"\ud83d\ude00":0,"` + "\U0001F600" + `":0}`, 18, `duplicate key`},

		{"nesting of arrays", strings.Repeat("[", 129) + strings.Repeat("]", 129), 128, "nesting deeper than 128"},
		{"nesting of objects", strings.Repeat(`{"a":`, 129), 128 * 5, "nesting deeper than 128"},
		{"nesting without an end", strings.Repeat("[", 100_000), 128, "nesting deeper than 128"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := scan(test.text)
			se, ok := errors.AsType[*strictjson.SyntaxError](err)
			if !ok {
				t.Fatalf("error %v of type %T, want a SyntaxError", err, err)
			}
			if se.Offset != test.offset {
				t.Errorf("offset %d, want %d (%v)", se.Offset, test.offset, err)
			}
			if !strings.Contains(se.Reason, test.want) {
				t.Errorf("reason %q, want %q", se.Reason, test.want)
			}
			if strings.ContainsAny(err.Error(), "\n\r\x00\x1b") {
				t.Errorf("error %q is not one line", err)
			}
		})
	}
}

// Keys come from the file and may be as long as it.
func TestScannerErrorIsShort(t *testing.T) {
	for _, key := range []string{strings.Repeat("k", 1<<20), strings.Repeat("ü", 1<<20), "\u202e\u001b"} {
		quoted, err := json.Marshal(key)
		if err != nil {
			t.Fatal(err)
		}
		_, err = scan(fmt.Sprintf("{%s:0,%s:0}", quoted, quoted))
		if err == nil || len(err.Error()) > 500 || strings.ContainsAny(err.Error(), "\u202e\x1b") || !utf8.ValidString(err.Error()) {
			t.Errorf("error %.600v", err)
		}
	}
}

// Objects change from a list of keys to a table as they grow, and tables are
// rebuilt; a duplicate must be found at each size and place.
func TestScannerDuplicatesInObjectsOfAllSizes(t *testing.T) {
	for n := 1; n <= 100; n++ {
		if n > 28 && n != 48 && n != 49 && n < 96 { // where tables don't change
			continue
		}
		members := make([]string, n)
		for i := range members {
			members[i] = fmt.Sprintf(`"k%d":{"k%d":0}`, i, i)
		}
		text := "{" + strings.Join(members, ",")
		if _, err := scan(text + "}"); err != nil {
			t.Fatalf("%d keys: %v", n, err)
		}
		for i := range n {
			// The key again, spelled otherwise.
			_, err := scan(fmt.Sprintf(`%s,"\u006b%d":0}`, text, i))
			if err == nil || !strings.Contains(err.Error(), fmt.Sprintf(`duplicate key "k%d"`, i)) {
				t.Fatalf("%d keys, number %d twice: %v", n, i, err)
			}
		}
	}
}

// The memory of keys is used again by the next object at the same depth, whose
// keys must not be taken for those of the last one.
func TestScannerForgetsKeysOfClosedObjects(t *testing.T) {
	object := func(n int) string {
		members := make([]string, n)
		for i := range members {
			members[i] = fmt.Sprintf(`"k%d":[]`, i)
		}
		return "{" + strings.Join(members, ",") + "}"
	}
	text := "["
	for _, n := range []int{100, 1, 9, 100, 8, 0, 40} {
		text += object(n) + ","
	}
	if _, err := scan(text + "[" + object(100) + "]]"); err != nil {
		t.Fatal(err)
	}
	_, err := scan("[" + object(100) + `,{"a":0,"a":0}]`)
	if err == nil {
		t.Error("duplicate after a large object passes")
	}
}
