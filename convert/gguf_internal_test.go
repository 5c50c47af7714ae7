package convert

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/strictjson"
	"github.com/loratool/loratool/plan"
)

// TestPairedReader compares with the definition, row by row, for reads that begin and
// end anywhere, and finds the halves again.
func TestPairedReader(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 1))
	for _, c := range []struct{ heads, head, row int64 }{{1, 2, 1}, {3, 2, 5}, {2, 8, 3}, {4, 6, 70_000}, {1, 64, 16 << 10}} {
		src := make([]byte, c.heads*c.head*c.row)
		for i := range src {
			src[i] = byte(rng.Uint32())
		}
		want := make([]byte, len(src))
		for h := range c.heads {
			for i := range c.head / 2 {
				for j := range int64(2) {
					to, from := h*c.head+2*i+j, h*c.head+j*c.head/2+i
					copy(want[to*c.row:(to+1)*c.row], src[from*c.row:])
				}
			}
		}
		r := &pairedReader{bytes.NewReader(src), c.row, c.head, int64(len(src))}
		got, err := io.ReadAll(io.NewSectionReader(r, 0, int64(len(src))+9))
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%+v: not the rows in pairs (%v)", c, err)
		}
		for range 200 {
			off := rng.Int64N(int64(len(src)) + 2)
			p := make([]byte, rng.IntN(len(src)+3))
			n, err := r.ReadAt(p, off)
			end := min(off+int64(len(p)), int64(len(src)))
			if full := off+int64(len(p)) <= int64(len(src)); (err == nil) != full && len(p) > 0 || err != nil && err != io.EOF {
				t.Fatalf("%+v: reading %d at %d: %v", c, len(p), off, err)
			}
			if off <= end && !bytes.Equal(p[:n], want[off:end]) {
				t.Fatalf("%+v: reading %d at %d: other bytes", c, len(p), off)
			}
		}
	}
	r := &pairedReader{bytes.NewReader(make([]byte, 7)), 2, 2, 8}
	if _, err := r.ReadAt(make([]byte, 8), 0); err != io.ErrUnexpectedEOF {
		t.Errorf("a source that ends early: %v", err)
	}
}

// TestTurnedReader compares with the definition, element by element, for reads that begin
// and end anywhere, within elements and over runs.
func TestTurnedReader(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 1))
	for _, c := range []struct{ rows, cols, element int64 }{{1, 1, 1}, {3, 5, 1}, {5, 3, 2}, {7, 4, 4}, {2, 9, 8}, {1, 300, 4}, {300, 1, 2}, {700, 900, 2}, {36, 5, 2}, {64, 8, 2}, {33, 10, 2}, {1600, 3000, 2}, {300_000, 3, 4}} {
		src := make([]byte, c.rows*c.cols*c.element)
		for i := range src {
			src[i] = byte(rng.Uint32())
		}
		want := make([]byte, 0, len(src))
		for j := range c.cols {
			for i := range c.rows {
				at := (i*c.cols + j) * c.element
				want = append(want, src[at:at+c.element]...)
			}
		}
		r := &turnedReader{src: bytes.NewReader(src), rows: c.rows, cols: c.cols, element: c.element}
		got, err := io.ReadAll(io.NewSectionReader(r, 0, int64(len(src))+9))
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%+v: not the transpose (%v)", c, err)
		}
		for range 20 {
			off := rng.Int64N(int64(len(src)) + 2)
			p := make([]byte, rng.IntN(len(src)+3))
			n, err := r.ReadAt(p, off)
			end := min(off+int64(len(p)), int64(len(src)))
			if full := off+int64(len(p)) <= int64(len(src)); (err == nil) != full && len(p) > 0 || err != nil && err != io.EOF {
				t.Fatalf("%+v: reading %d at %d: %v", c, len(p), off, err)
			}
			if off <= end && !bytes.Equal(p[:n], want[off:end]) || n != int(max(end-off, 0)) {
				t.Fatalf("%+v: reading %d at %d: other bytes", c, len(p), off)
			}
		}
	}
	r := &turnedReader{src: bytes.NewReader(make([]byte, 7)), rows: 2, cols: 2, element: 2}
	if _, err := r.ReadAt(make([]byte, 8), 0); err != io.ErrUnexpectedEOF {
		t.Errorf("a source that ends early: %v", err)
	}
	if _, err := r.ReadAt(make([]byte, 8), -1); err == nil {
		t.Error("a read before the beginning")
	}
}

// TestSpacesMarked has the ways in which a tokenizer.json says what SentencePiece does to
// spaces, and some that are not its.
func TestSpacesMarked(t *testing.T) {
	const replace = `{"type":"Replace","pattern":{"String":" "},"content":"▁"}`
	for _, c := range []struct {
		file            string
		front, accepted bool
	}{
		{`{}`, false, true},
		{`{"normalizer":` + replace + `}`, false, true},
		{`{"normalizer":{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},` + replace + `]}}`, true, true},
		{`{"pre_tokenizer":{"type":"Metaspace","replacement":"▁","prepend_scheme":"first"}}`, true, true},
		{`{"pre_tokenizer":{"type":"Metaspace","replacement":"▁","prepend_scheme":"never"}}`, false, true},
		{`{"pre_tokenizer":{"type":"Metaspace","replacement":"▁","add_prefix_space":true}}`, true, true},
		{`{"pre_tokenizer":{"type":"Metaspace","replacement":"▁","add_prefix_space":false}}`, false, true},
		{`{"pre_tokenizer":{"type":"Metaspace","replacement":"▁"}}`, true, true},
		{`{"pre_tokenizer":{"type":"Metaspace","replacement":"_"}}`, false, false},
		{`{"pre_tokenizer":{"type":"Whitespace"}}`, false, false},
		{`{"normalizer":{"type":"Prepend","prepend":"_"}}`, false, false},
		{`{"normalizer":{"type":"Replace","pattern":{"Regex":" "},"content":"▁"}}`, false, false},
		{`{"normalizer":{"type":"Replace","content":"▁"}}`, false, false},
		{`{"normalizer":{"type":"Sequence","normalizers":[1]}}`, false, false},
		{`{"normalizer":1}`, false, false},
	} {
		root, err := strictjson.ParseObject([]byte(c.file))
		if err != nil {
			t.Fatal(err)
		}
		front, err := spacesMarked(root)
		if front != c.front || (err == nil) != c.accepted {
			t.Errorf("%s: a space in front %v, %v", c.file, front, err)
		}
	}
}

// TestFamilyTables guards that every rule that a table names is one, that every rule has a
// family, and that every family states what no file of it goes without.
func TestFamilyTables(t *testing.T) {
	used := make(map[arch.Rule]bool)
	for _, name := range arch.GGUFNames() {
		for _, f := range arch.GGUFNamed(name) {
			for _, key := range []string{"block_count", "context_length", "embedding_length", "attention.head_count"} {
				if p, ok := f.Param(key); !ok || !p.Need.GGUF() || p.BackName() == "" {
					t.Errorf("%s: %s is %+v", name, key, p)
				}
			}
			if !f.Has(arch.FileType) || f.ModelType == "" {
				t.Errorf("%s: no file type, or model type", name)
			}
			for _, p := range f.Params {
				if _, ok := rules[p.Rule]; ok == (p.Rule == "") || (p.Key == "") != (p.Rule != "") {
					t.Errorf("%s: row %+v", name, p)
				}
				used[p.Rule] = true
			}
		}
	}
	for r := range rules {
		if !used[r] {
			t.Errorf("no family has the rule %q", r)
		}
	}
}

// TestView reads tensors that are made of several, whole and in pieces.
func TestView(t *testing.T) {
	var m checkpoint.Memory
	var parts []tensor.Spec
	var stack []byte
	rng := rand.New(rand.NewPCG(4, 1))
	for e := range 3 {
		s := tensor.Spec{Name: strconv.Itoa(e), DType: tensor.F32, Shape: tensor.Shape{4, 2}}
		data := make([]byte, s.Size())
		for i := range data {
			data[i] = byte(rng.Uint32())
		}
		m.Add(s, data)
		parts, stack = append(parts, s), append(stack, data...)
	}
	whole := tensor.Spec{Name: "both", DType: tensor.F32, Shape: tensor.Shape{3, 4, 2}}
	m.Add(whole, stack)
	var gate, up []byte
	for e := range 3 {
		gate, up = append(gate, stack[e*32:e*32+16]...), append(up, stack[e*32+16:e*32+32]...)
	}
	half := tensor.Shape{3, 2, 2}
	v := &View{source: &m, tensors: map[string]*viewTensor{
		"stack": {spec: tensor.Spec{Name: "stack", DType: tensor.F32, Shape: tensor.Shape{3, 4, 2}}, parts: parts},
		"gate":  {spec: tensor.Spec{Name: "gate", DType: tensor.F32, Shape: half}, parts: []tensor.Spec{whole}, half: true},
		"up":    {spec: tensor.Spec{Name: "up", DType: tensor.F32, Shape: half}, parts: []tensor.Spec{whole}, half: true, second: true},
		"cut":   {spec: tensor.Spec{Name: "cut", DType: tensor.F32, Shape: tensor.Shape{3, 2}}, parts: parts[:1]},
		"made":  {spec: tensor.Spec{Name: "made", DType: tensor.U8, Shape: tensor.Shape{3}}, data: []byte{1, 2, 3}},
	}}
	for name, want := range map[string][]byte{"stack": stack, "gate": gate, "up": up, "cut": stack[:24], "made": {1, 2, 3}} {
		src, err := v.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		for off := range len(want) {
			for n := 1; off+n <= len(want); n += 3 {
				p := make([]byte, n)
				if got, err := src.ReadAt(p, int64(off)); got != n || err != nil && err != io.EOF || !bytes.Equal(p, want[off:off+n]) {
					t.Fatalf("%s: %d bytes at %d: %x, %v; want %x", name, n, off, p[:got], err, want[off:off+n])
				}
			}
		}
		if n, err := src.ReadAt(make([]byte, 2), int64(len(want)-1)); n != 1 || err != io.EOF {
			t.Errorf("%s: across the end: %d, %v", name, n, err)
		}
	}
	if _, err := v.Open("nothing"); err == nil {
		t.Error("a tensor that is not there")
	}
}

// TestAddOne has the sums of a weight of F16, which are rounded to it, and of the others.
func TestAddOne(t *testing.T) {
	for _, c := range []struct {
		half    bool
		x, want float64
	}{
		{false, 0.25, 1.25}, {true, 0.25, 1.25},
		{false, 0x1p-12, 1 + 0x1p-12}, {true, 0x1p-12, 1}, // 11 digits
		{true, 0x1.8p-11, 1 + 0x1p-10}, {true, 0x1p-11, 1}, // nearest, a tie to even
		{false, -1, 0}, {true, 2047.5, 2048}, {true, 65504, 65504},
	} {
		f32, err := AddOne{Half: c.half}.Bind(nil)
		if err != nil {
			t.Fatal(err)
		}
		f64, err := AddOne{Half: c.half}.Bind64(nil)
		if err != nil {
			t.Fatal(err)
		}
		x, y := []float32{float32(c.x)}, []float64{c.x}
		if err := f32.Apply(plan.Band[float32]{Rows: 1, Cols: 1, X: x}); err != nil {
			t.Fatal(err)
		}
		if err := f64.Apply(plan.Band[float64]{Rows: 1, Cols: 1, X: y}); err != nil {
			t.Fatal(err)
		}
		if float64(x[0]) != c.want || y[0] != c.want {
			t.Errorf("1 + %v with half %v is %v and %v, want %v", c.x, c.half, x[0], y[0], c.want)
		}
	}
}

// TestModelIDs reads names as llama.cpp's converter does.
func TestModelIDs(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("..", "testdata", "golden", "convert", "model_ids.tsv"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		total, err := strconv.ParseInt(f[0], 10, 64)
		if err != nil || len(f) != 9 {
			t.Fatalf("line %q: %v", line, err)
		}
		n := parseModelID(f[1], total)
		got := []string{title(n.name), n.name, n.organization, n.basename, n.finetune, n.version, n.sizeLabel}
		if !slices.Equal(got, f[2:]) {
			t.Errorf("%q of %d parameters: %q, want %q", f[1], total, got, f[2:])
		}
	}
}

// TestSizeLabel has the words for numbers of parameters.
func TestSizeLabel(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0.00K", 500: "0.50K", 1000: "1.0K", 9400: "9.4K", 9949: "10K", 37_000: "37K", 999_999: "1000K", 1_000_000: "1000K", 1_000_001: "1.0M",
		8_030_261_248: "8.0B", 70_553_706_496: "71B", 1_500_000_000_000: "1.5T",
	} {
		if got := sizeLabel(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

// TestDistance has the distances of a few words.
func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"a", "", 1}, {"", "ab", 2}, {"kitten", "sitting", 3}, {"flaw", "lawn", 2}, {strings.Repeat("x", 300), "", 256}} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("%q and %q: %d, want %d", c.a, c.b, got, c.want)
		}
	}
}
