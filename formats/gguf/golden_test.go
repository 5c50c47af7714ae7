package gguf_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/gguf"
)

// Every file that a tool of the reference wrote, in C or in Python, must come
// out the same, byte for byte.
func TestRewriteGolden(t *testing.T) {
	for _, path := range goldenFiles(t) {
		data := readFile(t, path)
		f := mustOpen(t, data)
		if got := rewrite(t, f); !bytes.Equal(got, data) {
			t.Errorf("%s: %d bytes differ from the file's %d", path, len(got), len(data))
		}
		if f.Trailing() != 0 || f.MissingPadding() != 0 {
			t.Errorf("%s: %d bytes too many, %d too few", path, f.Trailing(), f.MissingPadding())
		}
	}
}

// The table of types is the reference's.
func TestTypesMatchReference(t *testing.T) {
	var rows []struct {
		Name      string
		BlockSize int64 `json:"block_size"`
		TypeSize  int64 `json:"type_size"`
	}
	if err := json.Unmarshal(readFile(t, golden+"/types.json"), &rows); err != nil {
		t.Fatal(err)
	}
	if len(rows) != 43 {
		t.Fatalf("%d types", len(rows))
	}
	known := 0
	for i, row := range rows {
		typ := gguf.Type(i)
		if typ.BlockSize() != row.BlockSize || typ.TypeSize() != row.TypeSize || typ.Known() != (row.TypeSize > 0) {
			t.Errorf("type %d: blocks of %d in %d bytes, want %d in %d", i, typ.BlockSize(), typ.TypeSize(), row.BlockSize, row.TypeSize)
		}
		if !typ.Known() {
			if _, err := gguf.ParseType(typ.String()); err == nil {
				t.Errorf("removed type %s is parsed", typ)
			}
			continue
		}
		known++
		if typ.String() != row.Name {
			t.Errorf("type %d is called %s, want %s", i, typ, row.Name)
		}
		for _, name := range []string{row.Name, strings.ToUpper(row.Name)} {
			if parsed, err := gguf.ParseType(name); parsed != typ || err != nil {
				t.Errorf("%s: parsed as %v, %v", name, parsed, err)
			}
		}
		if d, ok := typ.DType(); ok && (d.String() != row.Name || d.Bits() != 8*row.TypeSize || row.BlockSize != 1) {
			t.Errorf("%s: element type %v", typ, d)
		} else if back, _ := gguf.TypeOf(d); ok && back != typ {
			t.Errorf("%s: becomes %v and that %v", typ, d, back)
		} else if ok != (row.BlockSize == 1) {
			t.Errorf("%s: shared with other containers: %v", typ, ok)
		}
	}
	if all := gguf.Types(); len(all) != known || known != 35 {
		t.Errorf("%d types listed, want %d", len(all), known)
	}
}

// goldenCase is a small file and what the reference's reader says to its
// header alone and to the whole.
type goldenCase struct {
	Name, Header, Whole, Message, Data string
}

func (c goldenCase) bytes(t testing.TB) []byte {
	t.Helper()
	text := regexp.MustCompile(`\((..)\*(\d+)\)`).ReplaceAllStringFunc(c.Data, func(s string) string {
		n, _ := strconv.Atoi(s[4 : len(s)-1])
		return strings.Repeat(s[1:3], n)
	})
	data, err := hex.DecodeString(text)
	if err != nil {
		t.Fatalf("%s: %v", c.Name, err)
	}
	return data
}

func goldenCases(t testing.TB) []goldenCase {
	t.Helper()
	var file struct{ Cases []goldenCase }
	if err := json.Unmarshal(readFile(t, golden+"/cases.json"), &file); err != nil {
		t.Fatal(err)
	}
	if len(file.Cases) < 600 {
		t.Fatalf("%d cases, want all", len(file.Cases))
	}
	return file.Cases
}

// stricter lists why files are refused that the reference accepts by their
// header: by the text of the refusal, as the package documentation gives the
// reasons.
var stricter = []string{
	"run past the end of the data",   // found by the reference on loading
	"overflows",                      // not found: the product wraps around to zero
	"tensor name is empty",           // the rest: two readers could see two things
	"holds a NUL byte",               //
	"is not valid UTF-8",             //
	"neither 0 nor 1",                //
	"at most 65535 are allowed",      // of the bytes of a key
	"above the limit of 100000000",   // of the header
	"keys are above the limit of",    //
	"tensors are above the limit of", //
}

func isStricter(err error) bool {
	for _, s := range stricter {
		if strings.Contains(err.Error(), s) {
			return true
		}
	}
	return false
}

// What the reference refuses is refused; what it accepts is accepted, but for
// the reasons above.
func TestVerdictsOfReference(t *testing.T) {
	accepted, differ := 0, map[string]string{}
	for _, c := range goldenCases(t) {
		f, err := open(c.bytes(t))
		switch {
		case err == nil && c.Header == "reject":
			t.Errorf("%s: accepted; the reference says %s", c.Name, c.Message)
		case err == nil:
			accepted++
			if c.Whole != "accept" && f.MissingPadding() == 0 {
				t.Errorf("%s: accepted, without a word on padding; the reference can't load it", c.Name)
			}
		case c.Header == "reject":
			checkFormatError(t, err, "")
		case isStricter(err):
			checkFormatError(t, err, "")
			differ[c.Name] = err.Error()
		default:
			t.Errorf("%s: refused: %v", c.Name, err)
		}
	}
	if accepted < 200 {
		t.Errorf("%d cases accepted, want most of those that the reference accepts", accepted)
	}
	// The holes that must be closed, by name.
	for name, want := range map[string]string{
		"dimensions [4294967296, 4294967296] of type 0":                          "shape [4294967296, 4294967296] overflows",
		"dimensions [4294967296, 4294967296, 4294967296, 4294967296] of type 24": "overflows",
		"dimensions [65536, 65536, 65536, 65536] of type 0":                      "overflows",
		"no data":              "32 bytes at offset 0 run past the end of the data, which has 0",
		"data one byte short":  "32 bytes at offset 0 run past the end of the data, which has 31",
		"name with NUL":        "tensor name holds a NUL byte",
		"boolean 2":            "boolean is 2",
		"key of 65536 bytes":   "key has 65536 bytes",
		"name of 0 bytes":      "tensor name is empty",
		"boolean 255 in array": "boolean is 255",
	} {
		if !strings.Contains(differ[name], want) {
			t.Errorf("%s: %q, want a refusal with %q", name, differ[name], want)
		}
	}
	t.Logf("%d accepted, %d refused that the reference accepts", accepted, len(differ))
}

// The cases that were judged together with the models.
func TestParserSet(t *testing.T) {
	var manifest struct {
		Cases []struct{ File, Verdict, Message string }
	}
	if err := json.Unmarshal(readFile(t, golden+"/parser/manifest.json"), &manifest); err != nil {
		t.Fatal(err)
	}
	if len(manifest.Cases) != 22 {
		t.Fatalf("%d cases", len(manifest.Cases))
	}
	for _, c := range manifest.Cases {
		f, err := gguf.Open(filepath.Join(golden, "parser", c.File))
		switch {
		case c.File == "ok-data-short.gguf": // the reference finds out when it loads
			checkFormatError(t, err, "run past the end of the data")
		case c.Verdict == "reject":
			if err == nil {
				t.Errorf("%s: accepted; the reference says %s", c.File, c.Message)
				continue
			}
			checkFormatError(t, err, "")
		case err != nil:
			t.Errorf("%s: %v", c.File, err)
		default:
			rewritten := mustOpen(t, rewrite(t, f))
			sameContent(t, rewritten, f)
			f.Close()
		}
	}
}

// A file of the Python writer with a value of each type, read through every
// accessor: what was written is spelled out here and in the script.
func TestPythonValues(t *testing.T) {
	f := mustOpen(t, readFile(t, golden+"/python/values.gguf"))
	want := []string{
		`general.architecture str "llama"`,
		`v.u8 u8 200`, `v.i8 i8 -100`, `v.u16 u16 60000`, `v.i16 i16 -30000`,
		`v.u32 u32 4000000000`, `v.i32 i32 -2000000000`, `v.f32 f32 0.3333333432674408`,
		`v.true bool true`, `v.false bool false`, `v.text str "größer → 更大"`,
		`v.u64 u64 18446744073709551615`, `v.i64 i64 -9223372036854775808`, `v.f64 f64 0.3333333333333333`,
		`a.i32 array of 3 i32 1 -2 3`, `a.f32 array of 2 f32 0.5 -1.5`, `a.bool array of 3 bool true false true`,
	}
	got := describe(f.Metadata())
	for i, w := range want {
		if i >= len(got) || got[i] != w {
			t.Fatalf("key %d of %q, want %s", i, got, w)
		}
	}
	tokens, err := f.Metadata().Strings("a.text")
	if err != nil || len(tokens) != 104 || strings.Join(tokens[:6], "|") != "|<s>|▁the|\n|token 0|token 1" || tokens[103] != "token 99" {
		t.Errorf("tokens %q, %v", tokens, err)
	}
}

// Tensors of the Python writer, which keeps leading dimensions of 1.
func TestPythonTensors(t *testing.T) {
	f := mustOpen(t, readFile(t, golden+"/python/tensors.gguf"))
	want := map[string]string{
		"vector": "f32 [5]", "matrix": "f16 [3, 4]", "one.expert": "f32 [1, 2, 3]", "rank4": "f64 [2, 1, 2, 3]",
		"i8": "i8 [7]", "i16": "i16 [2, 3]", "i32": "i32 [1, 1]", "i64": "i64 [1]",
		"blocks.Q4_K": "q4_K [3, 256]", "blocks.NVFP4": "nvfp4 [3, 64]",
	}
	if f.Alignment() != 64 || len(f.Tensors()) < 30 {
		t.Errorf("alignment %d, %d tensors", f.Alignment(), len(f.Tensors()))
	}
	for name, w := range want {
		s, ok := f.Lookup(name)
		if got := s.Type.String() + " " + s.Shape.String(); !ok || got != w {
			t.Errorf("%s: %s, want %s", name, got, w)
		}
	}
	if got := sectionBytes(t, f, "i16"); !bytes.Equal(got, []byte{0xFE, 0xFF, 0xFF, 0xFF, 0, 0, 1, 0, 2, 0, 3, 0}) {
		t.Errorf("i16 holds % x", got)
	}
	// The script fills three rows of one block with 7 i mod 256.
	got := sectionBytes(t, f, "blocks.Q6_K")
	if s, _ := f.Lookup("blocks.Q6_K"); len(got) != 3*210 || s.Size() != 3*210 || s.RowSize() != 210 || s.NumElements() != 3*256 {
		t.Errorf("blocks.Q6_K: %d bytes read, size %d, row %d, %d elements", len(got), s.Size(), s.RowSize(), s.NumElements())
	}
	for i, b := range got {
		if b != byte(i*7) {
			t.Fatalf("byte %d of blocks.Q6_K is %d", i, b)
		}
	}
}
