package gguf_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/tensor"
)

const golden = "../../testdata/golden/gguf"

// builder writes a file by hand, as the format's description says and without
// the package under test.
type builder struct{ bytes.Buffer }

func (b *builder) put(values ...any) *builder {
	for _, v := range values {
		switch v := v.(type) {
		case string: // with its length
			b.put(uint64(len(v)))
			b.WriteString(v)
		case []byte: // as it is
			b.Write(v)
		default:
			if err := binary.Write(b, binary.LittleEndian, v); err != nil {
				panic(err)
			}
		}
	}
	return b
}

// pad adds zeros up to a multiple of n.
func (b *builder) pad(n int) *builder {
	for b.Len()%n != 0 {
		b.WriteByte(0)
	}
	return b
}

// header begins a file of version 3.
func header(tensors, keys int64) *builder {
	return new(builder).put([]byte("GGUF"), uint32(3), uint64(tensors), uint64(keys))
}

// entry adds the description of a tensor; dimensions are the fastest first.
func (b *builder) entry(name string, dims []int64, t gguf.Type, offset int64) *builder {
	return b.put(name, uint32(len(dims)), dims, uint32(t), uint64(offset))
}

// small is a file of one key and two tensors, 32 and 20 bytes long.
func small() []byte {
	b := header(2, 1).put("general.name", uint32(gguf.String), "small")
	b.entry("a", []int64{4, 2}, gguf.F32, 0).entry("b", []int64{5}, gguf.F32, 32).pad(32)
	for i := range 52 {
		b.WriteByte(byte(i + 1))
	}
	return b.pad(32).Bytes()
}

func open(data []byte) (*gguf.File, error) {
	return gguf.New(bytes.NewReader(data), int64(len(data)))
}

func mustOpen(t testing.TB, data []byte) *gguf.File {
	t.Helper()
	f, err := open(data)
	if err != nil {
		t.Fatalf("opening: %v", err)
	}
	return f
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func writeTemp(t testing.TB, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "model.gguf")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// goldenFiles returns every GGUF file that a tool of the reference made.
func goldenFiles(t testing.TB) []string {
	t.Helper()
	var paths []string
	err := filepath.WalkDir(golden, func(path string, d os.DirEntry, err error) error {
		if err == nil && filepath.Ext(path) == ".gguf" && filepath.Base(filepath.Dir(path)) != "parser" {
			paths = append(paths, path)
		}
		return err
	})
	if err != nil || len(paths) < 11 {
		t.Fatalf("golden files %v, %v", paths, err)
	}
	return paths
}

func specs(tensors []gguf.Tensor) []gguf.Spec {
	out := make([]gguf.Spec, len(tensors))
	for i, t := range tensors {
		out[i] = t.Spec
	}
	return out
}

func spec(name string, t gguf.Type, shape ...int64) gguf.Spec {
	return gguf.Spec{Name: name, Type: t, Shape: tensor.Shape(shape)}
}

func sectionBytes(t testing.TB, f interface {
	Section(string) (*gguf.Section, error)
}, name string) []byte {
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

// rewrite lays out what was read once more and writes it with the same data.
func rewrite(t testing.TB, f *gguf.File) []byte {
	t.Helper()
	l, err := gguf.NewLayout(f.Metadata(), specs(f.Tensors()), gguf.LayoutOptions{Version: f.Version()})
	if err != nil {
		t.Fatalf("laying out: %v", err)
	}
	return assemble(t, l, func(s gguf.Spec) []byte { return sectionBytes(t, f, s.Name) })
}

// assemble writes a file in two ways, at its places as a sink does and in
// sequence, which must agree. No byte may be written twice.
func assemble(t testing.TB, l *gguf.Layout, data func(gguf.Spec) []byte) []byte {
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
		if !ok || off != s.Offset || off%l.Alignment() != 0 {
			t.Fatalf("tensor %q at %d %v, want %d", s.Name, off, ok, s.Offset)
		}
		put(data(s.Spec), off)
	}
	var sequence bytes.Buffer
	err := l.Write(&sequence, func(s gguf.Tensor) (io.Reader, error) { return bytes.NewReader(data(s.Spec)), nil })
	if err != nil {
		t.Fatalf("writing: %v", err)
	}
	if !bytes.Equal(sequence.Bytes(), out) {
		t.Fatalf("Write gives %d bytes that differ from the %d at their places", sequence.Len(), len(out))
	}
	return out
}

// checkFormatError asserts a one-line FormatError that contains want.
func checkFormatError(t testing.TB, err error, want string) *gguf.FormatError {
	t.Helper()
	fe, ok := errors.AsType[*gguf.FormatError](err)
	if !ok {
		t.Fatalf("error %v of type %T, want a FormatError", err, err)
	}
	if !strings.Contains(err.Error(), want) {
		t.Errorf("error %q does not contain %q", err, want)
	}
	checkOneLine(t, err)
	return fe
}

func checkOneLine(t testing.TB, err error) {
	t.Helper()
	text := err.Error()
	if len(text) > 1000 || !utf8.ValidString(text) {
		t.Errorf("error has %d bytes, valid UTF-8: %v", len(text), utf8.ValidString(text))
	}
	for _, r := range text {
		if r < 0x20 || r == 0x7F || r == '\u2028' || r == '\u202E' {
			t.Errorf("error holds %q: %q", r, text)
			return
		}
	}
}

// sameContent asserts that two files have the same keys, tensors and data.
func sameContent(t testing.TB, got, want *gguf.File) {
	t.Helper()
	if g, w := describe(got.Metadata()), describe(want.Metadata()); !slices.Equal(g, w) {
		t.Errorf("metadata %q, want %q", g, w)
	}
	if len(got.Tensors()) != len(want.Tensors()) {
		t.Fatalf("%d tensors, want %d", len(got.Tensors()), len(want.Tensors()))
	}
	for i, w := range want.Tensors() {
		g := got.Tensors()[i]
		if g.Name != w.Name || g.Type != w.Type || !g.Shape.Equal(w.Shape) {
			t.Errorf("tensor %d is %v, want %v", i, g.Spec, w.Spec)
			continue
		}
		if !bytes.Equal(sectionBytes(t, got, g.Name), sectionBytes(t, want, w.Name)) {
			t.Errorf("tensor %q has other bytes", g.Name)
		}
	}
}

// describe spells metadata out through the accessors.
func describe(m *gguf.Metadata) []string {
	var lines []string
	for key, v := range m.All() {
		var b strings.Builder
		b.WriteString(key + " " + v.Describe())
		for _, e := range v.All() {
			b.WriteString(" " + describeScalar(e))
		}
		lines = append(lines, b.String())
	}
	return lines
}

// allocated returns how much memory f takes, freed or not.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}
