package convert_test

import (
	"fmt"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/convert"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/quant/block"
)

// goldenNames are the models that llama.cpp's converter made files of.
func goldenNames(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(golden, "convert", "expected", "*.gguf"))
	if err != nil || len(files) < 16 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	var names []string
	for _, f := range files {
		names = append(names, strings.TrimSuffix(filepath.Base(f), ".gguf"))
	}
	return names
}

// values decodes a tensor.
func values(t *testing.T, c checkpoint.Checkpoint, s tensor.Spec) []float32 {
	t.Helper()
	codec, ok := block.For(s.DType)
	if !ok {
		t.Fatalf("%s is %s", s.Name, s.DType)
	}
	x := make([]float32, s.NumElements())
	block.Decode(codec, x, readAll(t, c, s))
	return x
}

// round32 rounds numbers to a type and back.
func round32(x []float32, d tensor.DType) []float32 {
	codec, _ := block.For(d)
	raw := make([]byte, len(x)*int(d.Bits())/8)
	block.Encode(codec, raw, x)
	out := make([]float32, len(x))
	block.Decode(codec, out, raw)
	return out
}

// TestAsHF sees the files that llama.cpp's converter made of the golden models as what
// they were made of: the same tensors and no other, with the values of the source
// rounded to the type of the file. Gemma's norms are 1 + w there, and what that sum has
// lost stays lost.
func TestAsHF(t *testing.T) {
	for _, name := range goldenNames(t) {
		t.Run(name, func(t *testing.T) {
			file := open(t, filepath.Join(golden, "convert", "expected", name+".gguf"))
			source := open(t, weightsOnly(t, name))
			h, err := convert.AsHF(file)
			if err != nil {
				t.Fatal(err)
			}
			specs := make(map[string]tensor.Spec)
			for _, s := range h.Model.Specs() {
				specs[s.Name] = s
			}
			matrices := tensor.F32
			for _, s := range file.Specs() {
				if s.DType != tensor.F32 {
					matrices = s.DType
				}
			}
			gemma := strings.HasPrefix(name, "gemma")
			for _, want := range source.Specs() {
				if gemma && name != "gemma3" && want.Name == "lm_head.weight" {
					continue // the converter drops it
				}
				if strings.Contains(want.Name, ".rotary_emb.") || strings.HasSuffix(want.Name, ".attention.bias") || strings.HasSuffix(want.Name, "masked_bias") {
					continue
				}
				if bert, ok := strings.CutPrefix(name, "bert-"); ok { // as BertModel, without heads
					if strings.Contains(want.Name, "pooler.") || strings.HasPrefix(want.Name, "cls.") {
						continue
					}
					if bert == "cls" {
						own := strings.TrimPrefix(want.Name, "bert.")
						own = strings.NewReplacer(".gamma", ".weight", ".beta", ".bias").Replace(own)
						specs[want.Name] = specs[own]
						delete(specs, own)
					}
				}
				if name == "gpt2" { // without the name of the class
					specs[want.Name] = specs["transformer."+want.Name]
					delete(specs, "transformer."+want.Name)
				}
				got, ok := specs[want.Name]
				delete(specs, want.Name)
				if strings.HasSuffix(want.Name, ".experts.gate_up_proj") || strings.HasSuffix(want.Name, ".experts.down_proj") {
					checkExperts(t, h.Model, specs, want, values(t, source, want))
					continue
				}
				if !ok {
					t.Errorf("%s is missing", want.Name)
					continue
				}
				x, y := values(t, source, want), values(t, h.Model, got)
				rows := got.Shape
				if want.Name == "model.embed_tokens.weight" && len(y) < len(x) {
					x = x[:len(y)] // rows of no token
				} else if !rows.Equal(want.Shape) {
					t.Errorf("%s: shape %v, want %v", want.Name, got.Shape, want.Shape)
					continue
				}
				switch {
				case gemma && strings.HasSuffix(want.Name, "norm.weight"):
					for i := range x {
						sum := x[i] + 1
						if want.DType == tensor.F16 {
							sum = round32([]float32{sum}, tensor.F16)[0]
						}
						x[i] = sum - 1
					}
				case got.DType != tensor.F32:
					x = round32(x, matrices)
				}
				if !slices.EqualFunc(x, y, func(a, b float32) bool { return math.Float32bits(a) == math.Float32bits(b) }) {
					t.Errorf("%s: other values", want.Name)
				}
			}
			if len(specs) > 0 {
				t.Errorf("tensors that the source lacks: %v", slices.Sorted(maps.Keys(specs)))
			}
		})
	}
}

// checkExperts compares the matrices of single experts with a stack of them, in which
// gates and ups are one.
func checkExperts(t *testing.T, m *checkpoint.Model, specs map[string]tensor.Spec, stack tensor.Spec, x []float32) {
	t.Helper()
	prefix, kind, _ := strings.Cut(stack.Name, ".experts.")
	modules := []string{"down_proj"}
	if kind == "gate_up_proj" {
		modules = []string{"gate_proj", "up_proj"}
	}
	for e := range stack.Shape[0] {
		for _, module := range modules {
			name := fmt.Sprintf("%s.experts.%d.%s.weight", prefix, e, module)
			s, ok := specs[name]
			delete(specs, name)
			if !ok || !s.Shape.Equal(tensor.Shape{stack.Shape[1] / int64(len(modules)), stack.Shape[2]}) {
				t.Errorf("%s: %v", name, s)
				continue
			}
			n := int(s.NumElements())
			if !slices.Equal(values(t, m, s), x[:n]) {
				t.Errorf("%s: other values", name)
			}
			x = x[n:]
		}
	}
}

// TestAsHFReads gives the same bytes however a tensor is read: in one piece, and in
// pieces that end within rows and elements.
func TestAsHFReads(t *testing.T) {
	for _, name := range []string{"llama3-7b1-chat", "gemma3", "mixtral", "gpt2-head"} {
		h, err := convert.AsHF(open(t, filepath.Join(golden, "convert", "expected", name+".gguf")))
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range h.Model.Specs() {
			src, err := h.Model.Open(s.Name)
			if err != nil {
				t.Fatal(err)
			}
			whole := readAll(t, h.Model, s)
			for _, n := range []int64{1, 7, 33, 100, 1000} {
				for off := int64(0); off < s.Size(); off += max(n/2, s.Size()/50, 1) {
					piece := make([]byte, n)
					got, err := src.ReadAt(piece, off)
					if want := min(n, s.Size()-off); int64(got) != want || (err == nil) != (want == n) && err == nil {
						t.Fatalf("%s: %d bytes at %d of %d: %d, %v", s.Name, n, off, s.Size(), got, err)
					}
					if string(piece[:got]) != string(whole[off:off+int64(got)]) {
						t.Fatalf("%s: %d bytes at %d are not those of the whole", s.Name, n, off)
					}
				}
			}
			if _, err := src.ReadAt(make([]byte, 1), -1); err == nil {
				t.Errorf("%s: a read before the beginning", s.Name)
			}
			if n, err := src.ReadAt(make([]byte, 1), s.Size()); n != 0 || err == nil {
				t.Errorf("%s: a read behind the end: %d, %v", s.Name, n, err)
			}
		}
	}
}
