package gguf_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/tensor"
)

// metadata builds a list from keys and values in turn.
func metadata(pairs ...any) *gguf.Metadata {
	m := &gguf.Metadata{}
	for i := 0; i < len(pairs); i += 2 {
		m.Set(pairs[i].(string), pairs[i+1].(gguf.Value))
	}
	return m
}

func layout(t testing.TB, m *gguf.Metadata, specs ...gguf.Spec) *gguf.Layout {
	t.Helper()
	l, err := gguf.NewLayout(m, specs, gguf.LayoutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// The layout against a file that was written by hand, so that reader and
// writer can't agree on a mistake.
func TestLayoutByHand(t *testing.T) {
	l := layout(t, metadata("general.name", gguf.ValueOf("small")), spec("a", gguf.F32, 2, 4), spec("b", gguf.F32, 5))
	data := map[string][]byte{}
	for i := range 52 {
		name := "a"
		if i >= 32 {
			name = "b"
		}
		data[name] = append(data[name], byte(i+1))
	}
	got := assemble(t, l, func(s gguf.Spec) []byte { return data[s.Name] })
	if !bytes.Equal(got, small()) {
		t.Errorf("got\n%q, want\n%q", got, small())
	}
}

// Every type of value, again by hand.
func TestLayoutValuesByHand(t *testing.T) {
	m := metadata("u8", gguf.ValueOf(uint8(1)), "i8", gguf.ValueOf(int8(-1)), "u16", gguf.ValueOf(uint16(2)), "i16", gguf.ValueOf(int16(-2)),
		"u32", gguf.ValueOf(uint32(3)), "i32", gguf.ValueOf(int32(-3)), "f32", gguf.ValueOf(float32(1.5)), "yes", gguf.ValueOf(true),
		"text", gguf.ValueOf("täxt"), "u64", gguf.ValueOf(uint64(4)), "i64", gguf.ValueOf(int64(-4)), "f64", gguf.ValueOf(2.5),
		"zero", gguf.Value{}, "list", gguf.ArrayOf([]int16{1, -1}), "yesno", gguf.ArrayOf([]bool{true, false}),
		"texts", gguf.ArrayOf([]string{"", "ab"}), "none", gguf.ArrayOf([]string{}))
	want := header(0, 17).put("u8", uint32(0), uint8(1), "i8", uint32(1), int8(-1), "u16", uint32(2), uint16(2), "i16", uint32(3), int16(-2),
		"u32", uint32(4), uint32(3), "i32", uint32(5), int32(-3), "f32", uint32(6), float32(1.5), "yes", uint32(7), uint8(1),
		"text", uint32(8), "täxt", "u64", uint32(10), uint64(4), "i64", uint32(11), int64(-4), "f64", uint32(12), 2.5,
		"zero", uint32(0), uint8(0), "list", uint32(9), uint32(3), uint64(2), int16(1), int16(-1),
		"yesno", uint32(9), uint32(7), uint64(2), uint8(1), uint8(0),
		"texts", uint32(9), uint32(8), uint64(2), "", "ab", "none", uint32(9), uint32(8), uint64(0))
	l := layout(t, m)
	if got := l.Header(); !bytes.Equal(got, want.Bytes()) {
		t.Errorf("got\n%q, want\n%q", got, want.Bytes())
	}
	if want.pad(32); l.Size() != int64(want.Len()) {
		t.Errorf("size %d, want %d", l.Size(), want.Len())
	}
}

// randomModel makes up tensors with their data, and keys, among them sometimes
// an alignment, which it returns.
func randomModel(random *rand.Rand) (m *gguf.Metadata, declared []gguf.Spec, data map[string][]byte, alignment int64) {
	types := gguf.Types()
	m = metadata("general.architecture", gguf.ValueOf("test"), "tokens", gguf.ArrayOf(make([]string, random.IntN(100))))
	alignment = gguf.DefaultAlignment
	if random.IntN(3) > 0 {
		alignment = 1 << random.IntN(13)
		m.Set(gguf.KeyAlignment, gguf.ValueOf(uint32(alignment)))
	}
	data = map[string][]byte{}
	for i := range random.IntN(8) {
		typ := types[random.IntN(len(types))]
		s := spec(fmt.Sprintf("blk.%d.%s", i, strings.Repeat("x", random.IntN(40))), typ)
		for range random.IntN(gguf.MaxDims) {
			s.Shape = append(s.Shape, random.Int64N(4))
		}
		if s.Shape = append(s.Shape, random.Int64N(3)*typ.BlockSize()); typ.BlockSize() == 1 && random.IntN(5) == 0 {
			s.Shape = tensor.Shape{}
		}
		p := make([]byte, s.Size())
		for j := range p {
			p[j] = byte(random.Uint32())
		}
		declared, data[s.Name] = append(declared, s), p
	}
	return m, declared, data, alignment
}

// What is laid out at random is read back equal, at aligned places without a
// gap, for any alignment, type and order.
func TestLayoutIsReadBack(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for round := range 200 {
		m, declared, data, alignment := randomModel(random)
		version := 2 + random.IntN(2)
		l, err := gguf.NewLayout(m, declared, gguf.LayoutOptions{Version: version})
		if err != nil {
			t.Fatal(err)
		}
		out := assemble(t, l, func(s gguf.Spec) []byte { return data[s.Name] })
		f := mustOpen(t, out)
		if f.Version() != version || f.Alignment() != alignment || f.Trailing() != 0 || f.MissingPadding() != 0 || f.Size()%alignment != 0 {
			t.Errorf("round %d: version %d, alignment %d, size %d", round, f.Version(), f.Alignment(), f.Size())
		}
		if !slices.Equal(describe(f.Metadata()), describe(m)) || !slices.Equal(describe(l.Metadata()), describe(m)) {
			t.Errorf("round %d: metadata %q", round, describe(f.Metadata()))
		}
		if len(f.Tensors()) != len(declared) {
			t.Fatalf("round %d: %d tensors, want %d", round, len(f.Tensors()), len(declared))
		}
		for i, s := range f.Tensors() {
			planned := l.Tensors()[i]
			if s.Name != declared[i].Name || s.Type != declared[i].Type || !s.Shape.Equal(declared[i].Shape) || s.Offset != planned.Offset {
				t.Errorf("round %d: %+v, want %+v at %d", round, s, declared[i], planned.Offset)
			}
			if !bytes.Equal(sectionBytes(t, f, s.Name), data[s.Name]) {
				t.Errorf("round %d: %s has other bytes", round, s.Name)
			}
		}
	}
}

// A layout keeps what it was given, whatever becomes of that.
func TestLayoutIsImmutable(t *testing.T) {
	m := metadata("k", gguf.ValueOf(uint8(1)))
	specs := []gguf.Spec{spec("a", gguf.F32, 2, 4)}
	l := layout(t, m, specs...)
	before := l.Header()
	m.Set("k", gguf.ValueOf(uint8(2)))
	specs[0].Shape[0], specs[0].Name = 7, "b"
	clear(l.Header())
	if n, _ := l.Metadata().Int("k"); !bytes.Equal(l.Header(), before) || n != 1 || l.Tensors()[0].Shape[0] != 2 {
		t.Error("the layout changed")
	}
	if _, ok := l.Offset("b"); ok {
		t.Error("found what is not there")
	}
}

func TestLayoutRefuses(t *testing.T) {
	f32 := spec("a", gguf.F32, 8)
	many := &gguf.Metadata{}
	for i := range 1<<16 + 1 {
		many.Set(fmt.Sprint(i), gguf.Value{})
	}
	tests := []struct {
		name     string
		metadata *gguf.Metadata
		specs    []gguf.Spec
		version  int
		want     string
	}{
		{"version 1", metadata(), nil, 1, "version 1 of the format can't be written"},
		{"version 4", metadata(), nil, 4, "version 4"},
		{"version negative", metadata(), nil, -1, "version -1"},
		{"version that wraps around", metadata(), nil, math.MinInt32 + 3, "version -2147483645"},
		{"key empty", metadata("", gguf.Value{}), nil, 0, `key "": key is empty`},
		{"key too long", metadata(strings.Repeat("k", 65536), gguf.Value{}), nil, 0, "key has 65536 bytes"},
		{"key with NUL", metadata("a\x00", gguf.Value{}), nil, 0, `key "a\x00": key holds a NUL byte`},
		{"too many keys", many, nil, 0, "65537 keys are above the limit"},
		{"alignment of another type", metadata(gguf.KeyAlignment, gguf.ValueOf(uint64(32))), nil, 0, `key "general.alignment": is u64, must be u32`},
		{"alignment 3", metadata(gguf.KeyAlignment, gguf.ValueOf(uint32(3))), nil, 0, "alignment 3 is not a power of two"},
		{"name empty", metadata(), []gguf.Spec{spec("", gguf.F32, 8)}, 0, `tensor "": tensor name is empty`},
		{"name too long", metadata(), []gguf.Spec{spec(strings.Repeat("n", 64), gguf.F32, 8)}, 0, "tensor name has 64 bytes, at most 63"},
		{"name not UTF-8", metadata(), []gguf.Spec{spec("\xff", gguf.F32, 8)}, 0, `tensor "\xff": tensor name is not valid UTF-8`},
		{"tensor twice", metadata(), []gguf.Spec{f32, f32}, 0, `tensor "a": declared twice`},
		{"type removed", metadata(), []gguf.Spec{spec("a", 4, 8)}, 0, "type 4 (q4_2) was removed"},
		{"type unknown", metadata(), []gguf.Spec{spec("a", 43, 8)}, 0, "unknown type 43"},
		{"five dimensions", metadata(), []gguf.Spec{spec("a", gguf.F32, 1, 1, 1, 1, 1)}, 0, "5 dimensions"},
		{"row not whole blocks", metadata(), []gguf.Spec{spec("a", gguf.Q4K, 256, 32)}, 0, "rows of 32 elements are not whole blocks of type q4_K"},
		{"dimension negative", metadata(), []gguf.Spec{spec("a", gguf.F32, -1)}, 0, "negative"},
		{"shape overflows", metadata(), []gguf.Spec{spec("a", gguf.I8, 1<<31, 1<<31)}, 0, "overflows"},
		{"file overflows", metadata(), []gguf.Spec{spec("a", gguf.F16, 1<<62-1), spec("b", gguf.F16, 1<<62-1)}, 0, `tensor "a": file size overflows`},
		{"sum overflows", metadata(), []gguf.Spec{spec("a", gguf.F16, 1<<61), spec("b", gguf.F16, 1<<61)}, 0, `tensor "b": file size overflows`},
		{"header too long", metadata("k", gguf.ValueOf(strings.Repeat("x", 100_000_000))), nil, 0, "header takes 100000045 bytes, at most 100000000"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := gguf.NewLayout(test.metadata, test.specs, gguf.LayoutOptions{Version: test.version})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("error %v, want %q", err, test.want)
			}
			checkOneLine(t, err)
		})
	}
}

// The largest alignment costs no memory, though padding takes gigabytes.
func TestLayoutHugeAlignment(t *testing.T) {
	m := metadata(gguf.KeyAlignment, gguf.ValueOf(uint32(1<<31)))
	var l *gguf.Layout
	took := allocated(func() { l = layout(t, m, spec("a", gguf.I8, 1), spec("b", gguf.I8, 1)) })
	if off, _ := l.Offset("b"); off != 2<<31 || l.Size() != 3<<31 || took > 1<<16 {
		t.Errorf("b at %d of %d, %d bytes of memory", off, l.Size(), took)
	}
}

// A header whose values are known late differs in those values only.
func TestHeaderWith(t *testing.T) {
	m := metadata("name", gguf.ValueOf("x"), "sha", gguf.ValueOf("????"), "list", gguf.ArrayOf([]string{"ab", ""}), gguf.KeyAlignment, gguf.ValueOf(uint32(64)))
	specs := []gguf.Spec{spec("a", gguf.F32, 8)}
	l := layout(t, m, specs...)
	late := m.Clone()
	late.Replace("sha", gguf.ValueOf("abcd"))
	late.Replace("list", gguf.ArrayOf([]string{"", "cd"}))
	got, err := l.HeaderWith(late)
	if err != nil || !bytes.Equal(got, layout(t, late, specs...).Header()) || bytes.Equal(got, l.Header()) {
		t.Errorf("late values: %v\n%q", err, got)
	}
	moved, longer, other, missing, aligned, signed := m.Clone(), m.Clone(), m.Clone(), m.Clone(), m.Clone(), m.Clone()
	moved.Set("name", gguf.ValueOf("x"))
	longer.Replace("sha", gguf.ValueOf("abcde"))
	other.Replace("sha", gguf.ArrayOf([]string{}))
	missing.Delete("sha")
	aligned.Replace(gguf.KeyAlignment, gguf.ValueOf(uint32(32)))
	signed.Replace(gguf.KeyAlignment, gguf.ValueOf(int32(64)))
	for want, m := range map[string]*gguf.Metadata{
		`key "sha" stands in the place of "name"`:                         moved,
		`key "sha": takes 17 bytes, 16 were declared`:                     longer,
		`key "sha": is array of 0 str, str was declared`:                  other,
		`metadata has 3 keys, 4 were declared`:                            missing,
		`key "general.alignment": the alignment was declared`:             aligned,
		`key "general.alignment": the alignment was declared and can't c`: signed,
	} {
		if _, err := l.HeaderWith(m); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}

// Too few and too many bytes of a tensor are errors that name it, and errors
// of either side are passed on.
func TestWriteRefuses(t *testing.T) {
	l := layout(t, metadata(), spec("a", gguf.F32, 8), spec("b", gguf.I8, 3))
	broken := errors.New("input/output error")
	source := func(a, b int) func(gguf.Tensor) (io.Reader, error) {
		return func(s gguf.Tensor) (io.Reader, error) {
			n := map[string]int{"a": a, "b": b}[s.Name]
			if n < 0 {
				return nil, broken
			}
			return bytes.NewReader(make([]byte, n)), nil
		}
	}
	if err := l.Write(io.Discard, source(32, 3)); err != nil {
		t.Errorf("exact: %v", err)
	}
	for _, test := range []struct {
		a, b int
		want string
		is   error
	}{
		{31, 3, `writing tensor "a": 31 of its 32 bytes are there`, io.ErrUnexpectedEOF},
		{33, 3, `writing tensor "a": there are more than its 32 bytes`, nil},
		{32, 0, `writing tensor "b": 0 of its 3 bytes are there`, io.ErrUnexpectedEOF},
		{32, 4, `writing tensor "b": there are more than its 3 bytes`, nil},
		{32, -1, `writing tensor "b": input/output error`, broken},
	} {
		err := l.Write(io.Discard, source(test.a, test.b))
		if err == nil || !strings.Contains(err.Error(), test.want) || test.is != nil && !errors.Is(err, test.is) {
			t.Errorf("%d and %d bytes: %v, want %s", test.a, test.b, err, test.want)
		}
	}
	if err := l.Write(brokenWriter{broken}, source(32, 3)); !errors.Is(err, broken) {
		t.Errorf("broken output: %v", err)
	}
}

type brokenWriter struct{ err error }

func (w brokenWriter) Write([]byte) (int, error) { return 0, w.err }

func TestTrimShape(t *testing.T) {
	for _, test := range []struct{ shape, want tensor.Shape }{
		{tensor.Shape{}, tensor.Shape{1}},
		{tensor.Shape{1}, tensor.Shape{1}},
		{tensor.Shape{1, 1, 1}, tensor.Shape{1}},
		{tensor.Shape{1, 2, 3}, tensor.Shape{2, 3}},
		{tensor.Shape{2, 1, 1}, tensor.Shape{2, 1, 1}},
		{tensor.Shape{1, 0}, tensor.Shape{0}},
		{tensor.Shape{0, 1}, tensor.Shape{0, 1}},
	} {
		if got := gguf.TrimShape(test.shape); !got.Equal(test.want) {
			t.Errorf("%v: %v, want %v", test.shape, got, test.want)
		}
	}
}

// Sizes are those of the obvious product, for all types.
func TestSizes(t *testing.T) {
	for _, typ := range gguf.Types() {
		for _, shape := range [][]int64{{0}, {1}, {3}, {2, 1}, {3, 0, 2}, {2, 3, 4, 5}} {
			s := spec("a", typ, shape...)
			s.Shape[len(shape)-1] *= typ.BlockSize()
			blocks := int64(1)
			for _, d := range shape {
				blocks *= d
			}
			last := shape[len(shape)-1] / typ.BlockSize()
			if want := blocks / typ.BlockSize() * typ.TypeSize(); s.Size() != want || s.NumElements() != blocks || s.RowSize() != last*typ.TypeSize() {
				t.Errorf("%v: %d bytes, row of %d, want %d", s, s.Size(), s.RowSize(), want)
			}
		}
	}
}
