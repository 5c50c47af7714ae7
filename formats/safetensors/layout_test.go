package safetensors_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/formats/tensor"
)

// assemble writes a file in memory: the header, then each tensor's data at the
// layout's offset. It fails unless every byte is written exactly once.
func assemble(t *testing.T, l *safetensors.Layout, data func(tensor.Spec) []byte) []byte {
	t.Helper()
	out := make([]byte, l.Size())
	written := make([]bool, l.Size())
	put := func(p []byte, off int64) {
		copy(out[off:], p)
		for i := range p {
			if written[off+int64(i)] {
				t.Fatalf("byte %d is written twice", off+int64(i))
			}
			written[off+int64(i)] = true
		}
	}
	put(l.Header(), 0)
	for _, s := range l.Tensors() {
		off, ok := l.Offset(s.Name)
		if !ok || off != s.Offset {
			t.Fatalf("tensor %q at %d %v, want %d", s.Name, off, ok, s.Offset)
		}
		p := data(s.Spec)
		if int64(len(p)) != s.Size() {
			t.Fatalf("tensor %q has %d bytes, want %d", s.Name, len(p), s.Size())
		}
		put(p, off)
	}
	if i := slices.Index(written, false); i >= 0 {
		t.Fatalf("byte %d is never written", i)
	}
	return out
}

func sectionBytes(t *testing.T, f *safetensors.File, name string) []byte {
	t.Helper()
	s, err := f.Section(name)
	if err != nil {
		t.Fatal(err)
	}
	p, err := io.ReadAll(io.NewSectionReader(s, 0, s.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// The files of testdata were written by the Python package (see
// testdata/gen/safetensors_vectors.py). Whatever order the tensors are
// declared in, the same bytes must come out.
func TestLayoutMatchesPython(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.safetensors")
	if err != nil || len(paths) < 12 {
		t.Fatalf("vectors %v, %v", paths, err)
	}
	shuffle := rand.New(rand.NewPCG(1, 2))
	for _, path := range paths {
		if strings.HasPrefix(filepath.Base(path), "broken_") {
			continue
		}
		t.Run(filepath.Base(path), func(t *testing.T) {
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			f := mustOpen(t, want)
			for range 5 {
				declared := specs(f.Tensors())
				shuffle.Shuffle(len(declared), func(i, j int) {
					declared[i], declared[j] = declared[j], declared[i]
				})
				l, err := safetensors.NewLayout(declared, f.Metadata())
				if err != nil {
					t.Fatal(err)
				}
				got := assemble(t, l, func(s tensor.Spec) []byte { return sectionBytes(t, f, s.Name) })
				if !bytes.Equal(got, want) {
					t.Fatalf("bytes differ:\n got %q\nwant %q", got, want)
				}
			}
		})
	}
}

// The vectors again, with what was declared in Python spelled out, so that
// reader and writer can't agree on a mistake.
func TestLayoutMatchesPythonFromDeclaration(t *testing.T) {
	tests := []struct {
		file     string
		specs    []tensor.Spec
		metadata map[string]string
	}{
		{"empty", nil, nil},
		{"padding3", []tensor.Spec{spec(t, "xxxx", tensor.I8, 1)}, map[string]string{}},
		{"subbyte", []tensor.Spec{spec(t, "packed4", tensor.F4, 3, 4), spec(t, "bytes", tensor.U8, 3)}, nil},
		{"shapes", []tensor.Spec{
			spec(t, "scalar", tensor.F32),
			spec(t, "empty", tensor.F32, 0),
			spec(t, "empty.first", tensor.I64, 0, 4),
			spec(t, "empty.inner", tensor.BF16, 2, 0, 5),
			spec(t, "vector", tensor.BF16, 7),
			spec(t, "matrix", tensor.BF16, 3, 5),
			spec(t, "cube", tensor.U8, 2, 3, 4),
			spec(t, "six", tensor.F32, 1, 2, 1, 2, 1, 1),
		}, map[string]string{"кey \"1\"\n": "tab\tü \x01 / \u2028"}},
	}
	for _, test := range tests {
		t.Run(test.file, func(t *testing.T) {
			want, err := os.ReadFile(filepath.Join("testdata", test.file+".safetensors"))
			if err != nil {
				t.Fatal(err)
			}
			l, err := safetensors.NewLayout(test.specs, test.metadata)
			if err != nil {
				t.Fatal(err)
			}
			got := assemble(t, l, func(s tensor.Spec) []byte {
				p := make([]byte, s.Size())
				for i := range p {
					p[i] = byte(i % 251)
				}
				if s.Name == "bytes" {
					p = []byte{9, 8, 7}
				}
				return p
			})
			if !bytes.Equal(got, want) {
				t.Fatalf("bytes differ:\n got %q\nwant %q", got, want)
			}
		})
	}
}

// With neither tensors nor pairs in the metadata, safetensors 0.8 writes text
// that is not JSON. It is refused, and not imitated.
func TestLayoutEmptyMetadata(t *testing.T) {
	_, err := safetensors.Open("testdata/broken_empty_metadata.safetensors")
	checkFormatError(t, err, "after the end of the value")
	l, err := safetensors.NewLayout(nil, map[string]string{})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(l.Header()[8:]), `{"__metadata__":{}}     `; got != want {
		t.Errorf("header %q, want %q", got, want)
	}
}

func TestLayoutHeader(t *testing.T) {
	tests := []struct {
		name     string
		specs    []tensor.Spec
		metadata map[string]string
		want     string
	}{
		{"nothing", nil, nil, `{}      `},
		{"one", []tensor.Spec{spec(t, "w", tensor.F32, 2, 3)}, nil,
			`{"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}       `},
		{"metadata sorted", nil, map[string]string{"b": "2", "a": "1", "é": "3", "B": "4"},
			`{"__metadata__":{"B":"4","a":"1","b":"2","é":"3"}}     `},
		{"escapes", []tensor.Spec{spec(t, "\x00\"\\/\x1f\x7f\u2028é", tensor.U8)}, nil,
			"{\"\\u0000\\\"\\\\/\\u001f\x7f\u2028é\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]}}"},
		{"dtype first, then bytes of the name", []tensor.Spec{
			spec(t, "a", tensor.U8, 1), spec(t, "b", tensor.BF16, 1), spec(t, "a.b", tensor.F16, 1), spec(t, "B", tensor.BF16, 1)}, nil,
			`{"B":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]},"b":{"dtype":"BF16","shape":[1],"data_offsets":[2,4]},` +
				`"a.b":{"dtype":"F16","shape":[1],"data_offsets":[4,6]},"a":{"dtype":"U8","shape":[1],"data_offsets":[6,7]}}`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			l, err := safetensors.NewLayout(test.specs, test.metadata)
			if err != nil {
				t.Fatal(err)
			}
			h := l.Header()
			if n := binary.LittleEndian.Uint64(h); n != uint64(len(h)-8) || n%8 != 0 {
				t.Errorf("length %d of %d bytes", n, len(h)-8)
			}
			if got := strings.TrimRight(string(h[8:]), " "); got != strings.TrimRight(test.want, " ") {
				t.Errorf("header\n got %s\nwant %s", got, test.want)
			}
			h[8] = 'x'
			if l.Header()[8] != '{' {
				t.Error("the header is not a copy")
			}
		})
	}
}

// All dtypes, in the order the reference's enum has them, and back.
func TestLayoutOrdersAllDTypes(t *testing.T) {
	const want = "U64 I64 F64 C64 F32 U32 I32 BF16 F16 U16 I16 F8_E5M2FNUZ F8_E4M3FNUZ F8_E8M0 F8_E4M3 F8_E5M2 I8 U8 F6_E3M2 F6_E2M3 F4 BOOL"
	var declared []tensor.Spec
	for _, d := range tensor.All() {
		declared = append(declared, spec(t, fmt.Sprintf("t%02d", d), d, 4))
	}
	l, err := safetensors.NewLayout(declared, nil)
	if err != nil {
		t.Fatal(err)
	}
	var order []string
	for _, s := range l.Tensors() {
		order = append(order, s.DType.Safetensors())
	}
	if got := strings.Join(order, " "); got != want {
		t.Errorf("order\n got %s\nwant %s", got, want)
	}
	out := assemble(t, l, func(s tensor.Spec) []byte { return make([]byte, s.Size()) })
	if got := mustOpen(t, out).Tensors(); len(got) != 22 {
		t.Errorf("%d tensors read back", len(got))
	}
}

func TestLayoutRefuses(t *testing.T) {
	w := spec(t, "w", tensor.U8, 1)
	huge := spec(t, "a", tensor.U8, math.MaxInt64/8-1)
	var many []tensor.Spec
	for i := range 9 {
		huge.Name = fmt.Sprint("h", i)
		many = append(many, huge)
	}
	tests := []struct {
		name     string
		specs    []tensor.Spec
		metadata map[string]string
		want     string
	}{
		{"declared twice", []tensor.Spec{w, w}, nil, `tensor "w": declared twice`},
		{"twice with other dtype", []tensor.Spec{w, spec(t, "w", tensor.F32, 1)}, nil, `tensor "w": declared twice`},
		{"reserved name", []tensor.Spec{spec(t, "__metadata__", tensor.U8, 1)}, nil, `name is reserved`},
		{"name not UTF-8", []tensor.Spec{spec(t, "a\xff", tensor.U8, 1)}, nil, `name is not valid UTF-8`},
		{"no dtype", []tensor.Spec{{Name: "w"}}, nil, `dtype 0 is unknown`},
		{"unknown dtype", []tensor.Spec{{Name: "w", DType: 200}}, nil, `dtype 200 is unknown`},
		{"negative dimension", []tensor.Spec{{Name: "w", DType: tensor.U8, Shape: tensor.Shape{-1}}}, nil, `tensor "w": shape [-1] overflows`},
		{"half a byte", []tensor.Spec{{Name: "w", DType: tensor.F4, Shape: tensor.Shape{1}}}, nil, `whole number of bytes`},
		{"sum overflows", many, nil, `file size overflows`},
		{"metadata key not UTF-8", nil, map[string]string{"\xff": ""}, `metadata key "\xff": not valid UTF-8`},
		{"metadata value not UTF-8", nil, map[string]string{"k": "\xc0\xaf"}, `metadata key "k": not valid UTF-8`},
		{"header above the limit", nil, map[string]string{"k": strings.Repeat("x", 100_000_000)}, `header takes 100000032 bytes`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := safetensors.NewLayout(test.specs, test.metadata)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("error %v, want %q", err, test.want)
			}
			checkOneLine(t, err)
		})
	}
}

func TestLayoutKeepsNothingOfTheCaller(t *testing.T) {
	shape := tensor.Shape{2}
	metadata := map[string]string{"k": "v"}
	l, err := safetensors.NewLayout([]tensor.Spec{{Name: "w", DType: tensor.U8, Shape: shape}}, metadata)
	if err != nil {
		t.Fatal(err)
	}
	shape[0] = 9
	metadata["l"] = "w"
	if got := l.Tensors()[0].Shape; got[0] != 2 {
		t.Errorf("shape %v", got)
	}
	if _, err := l.HeaderWith(map[string]string{"k": "x"}); err != nil {
		t.Error(err)
	}
}

func TestLayoutOffsetOfAbsentTensor(t *testing.T) {
	l, err := safetensors.NewLayout(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if off, ok := l.Offset("w"); ok {
		t.Errorf("offset %d", off)
	}
}

func TestLayoutHeaderWith(t *testing.T) {
	declared := map[string]string{"hash": strings.Repeat("0", 64), "format": "pt"}
	with := func(change func(map[string]string)) map[string]string {
		m := maps.Clone(declared)
		change(m)
		return m
	}
	l, err := safetensors.NewLayout([]tensor.Spec{spec(t, "w", tensor.F32, 2)}, declared)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name     string
		metadata map[string]string
		want     string // error, "" for none
	}{
		{"same", declared, ""},
		{"other value", with(func(m map[string]string) { m["hash"] = strings.Repeat("f", 64) }), ""},
		{"one shorter, one longer", with(func(m map[string]string) { m["hash"], m["format"] = strings.Repeat("f", 63), "pt2" }), ""},
		{"longer", with(func(m map[string]string) { m["format"] = "ptx" }), "takes"},
		{"shorter", with(func(m map[string]string) { m["hash"] = "" }), "takes"},
		{"same width but for an escape", with(func(m map[string]string) { m["format"] = "\"t" }), "takes"},
		{"other key", map[string]string{"hash": declared["hash"], "fromat": "pt"}, `key "fromat" was not declared`},
		{"key missing", map[string]string{"format": "pt"}, "1 keys, 2 were declared"},
		{"key added", with(func(m map[string]string) { m["x"] = "" }), `key "x" was not declared`},
		{"none", nil, "0 keys, 2 were declared"},
		{"not UTF-8", with(func(m map[string]string) { m["format"] = "\xff\xff" }), "not valid UTF-8"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			h, err := l.HeaderWith(test.metadata)
			if test.want != "" {
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Fatalf("error %v, want %q", err, test.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			f := mustOpen(t, append(h, make([]byte, 8)...))
			if got := f.Metadata(); !maps.Equal(got, test.metadata) {
				t.Errorf("metadata %v, want %v", got, test.metadata)
			}
			if f.DataOffset() != int64(len(l.Header())) {
				t.Errorf("data at %d", f.DataOffset())
			}
			anew, err := safetensors.NewLayout([]tensor.Spec{spec(t, "w", tensor.F32, 2)}, test.metadata)
			if err != nil || !bytes.Equal(anew.Header(), h) {
				t.Errorf("a new layout has another header: %q, %v", anew.Header(), err)
			}
		})
	}
	// Longer by one must fail even where the padding has room for it.
	for n := range 8 {
		value := strings.Repeat("x", n)
		l, err := safetensors.NewLayout(nil, map[string]string{"k": value})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.HeaderWith(map[string]string{"k": value + "x"}); err == nil {
			t.Errorf("a value of %d bytes in place of %d passes", n+1, n)
		}
	}
	bare, err := safetensors.NewLayout(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if h, err := bare.HeaderWith(nil); err != nil || !bytes.Equal(h, bare.Header()) {
		t.Errorf("without metadata: %q, %v", h, err)
	}
	if _, err := bare.HeaderWith(map[string]string{}); err == nil {
		t.Error("an empty map was not declared")
	}
}
