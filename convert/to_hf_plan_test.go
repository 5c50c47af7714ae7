package convert_test

import (
	"bytes"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/convert"
	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/plan"
	"github.com/loratool/loratool/quant/block"
)

// writeHF converts a GGUF file to a folder.
func writeHF(t *testing.T, file string, o convert.Options, run engine.Options) string {
	t.Helper()
	o.Output = filepath.Join(t.TempDir(), "folder")
	c, err := convert.Plan(open(t, file), o)
	if err != nil {
		t.Fatal(err)
	}
	sink, err := checkpoint.Create(fsatomic.OS{}, c.Layout, false)
	if err != nil {
		t.Fatal(err)
	}
	report, err := engine.Run(t.Context(), c.Plan, []engine.Source{c.View}, toSink{sink}, run)
	if err == nil {
		err = sink.Commit(c.SetHashes(report.Hashes))
	}
	if err != nil {
		t.Fatal(err)
	}
	return o.Output
}

// TestGGUFThereAndBack brings the golden files to folders of F32, which lose nothing, and
// back to GGUF: the same tensors, types and bytes, and the same keys but for those that
// folders have no place for (what the model is called, which comes from the name of its
// folder) and those that a tokenizer.json adds where a tokenizer.model alone was before.
func TestGGUFThereAndBack(t *testing.T) {
	for _, name := range goldenNames(t) {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(golden, "convert", "expected", name+".gguf")
			if name == "roberta" { // it has the flag of a token that it does not have
				_, err := convert.Plan(open(t, path), convert.Options{Output: filepath.Join(t.TempDir(), "out")})
				if _, ok := errors.AsType[*checkpoint.InputError](err); !ok || !strings.Contains(err.Error(), "add_bos_token") {
					t.Fatalf("%v", err)
				}
				return
			}
			if name == "fallback" { // all its scores are one
				c, err := convert.Plan(open(t, path), convert.Options{Output: filepath.Join(t.TempDir(), "out")})
				if err != nil || !slices.ContainsFunc(c.Plan.Decisions, func(d plan.Decision) bool { return d.Code == "no-tokenizer" }) {
					t.Fatalf("%v", err)
				}
				return
			}
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			matrices := tensor.F32
			for _, s := range open(t, path).Specs() {
				if s.DType != tensor.F32 {
					matrices = s.DType
				}
			}
			for _, run := range []engine.Options{{Jobs: 1}, {Jobs: 3, Memory: 16 << 20}} {
				folder := writeHF(t, path, convert.Options{DType: tensor.F32, NoProvenance: true}, run)
				made, err := writeGGUF(t, folder, convert.Options{DType: matrices}, engine.Options{Jobs: 1})
				if err != nil {
					t.Fatal(err)
				}
				sameGGUF(t, made, data)
			}
		})
	}
}

// TestHFThereAndBack is the round trip of the weights of each golden model in each type
// that GGUF has: a folder of that type, a file, a folder of which every tensor has the
// bytes of the first. Of Gemma's norms that holds where 1 + w is exact, as it is of numbers
// with few digits.
func TestHFThereAndBack(t *testing.T) {
	for _, name := range goldenNames(t) {
		if name == "roberta" || name == "fallback" { // have no tokenizer that can be written
			continue
		}
		for _, d := range []tensor.DType{tensor.F32, tensor.F16, tensor.BF16} {
			t.Run(name+" "+d.String(), func(t *testing.T) {
				first := writeHF(t, filepath.Join(golden, "convert", "expected", name+".gguf"), convert.Options{DType: d}, engine.Options{Jobs: 1})
				if strings.HasPrefix(name, "gemma") {
					roundNorms(t, first, d)
				}
				file, err := writeGGUF(t, first, convert.Options{DType: d}, engine.Options{Jobs: 1})
				if err != nil {
					t.Fatal(err)
				}
				path := filepath.Join(t.TempDir(), "model.gguf")
				if err := os.WriteFile(path, file, 0o666); err != nil {
					t.Fatal(err)
				}
				want, got := open(t, first), open(t, writeHF(t, path, convert.Options{}, engine.Options{Jobs: 2}))
				if len(want.Specs()) != len(got.Specs()) {
					t.Errorf("%d tensors, want %d", len(got.Specs()), len(want.Specs()))
				}
				for _, s := range want.Specs() {
					u, ok := got.Lookup(s.Name)
					if !ok || u.DType != d || !u.Shape.Equal(s.Shape) {
						t.Errorf("%s: %v, want %v", s.Name, u, s)
					} else if !bytes.Equal(readAll(t, got, u), readAll(t, want, s)) {
						t.Errorf("%s: other values", s.Name)
					}
				}
				if a, b := want.Config.Encode(" "), got.Config.Encode(" "); !bytes.Equal(a, b) {
					t.Errorf("config.json is\n%s\nwant\n%s", b, a)
				}
				for _, file := range []string{"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "generation_config.json"} {
					a, _ := os.ReadFile(filepath.Join(want.Path, file))
					b, _ := os.ReadFile(filepath.Join(got.Path, file))
					if !bytes.Equal(a, b) && !(name == "pair" && file == "generation_config.json") { // its second end comes from a key without a place
						t.Errorf("%s is\n%s\nwant\n%s", file, b, a)
					}
				}
			})
		}
	}
}

// roundNorms gives the norms of a folder values with four binary digits behind the point, of
// which the sum with 1 is exact in every type.
func roundNorms(t *testing.T, folder string, d tensor.DType) {
	t.Helper()
	path := filepath.Join(folder, "model.safetensors")
	m := open(t, folder)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	codec, _ := block.For(d)
	for _, s := range m.Specs() {
		if !strings.HasSuffix(s.Name, "norm.weight") {
			continue
		}
		x := values(t, m, s)
		for i := range x {
			x[i] = float32(math.Round(float64(x[i])*16)/16) + 0 // 1 + -0 is 1 too
		}
		_, at := m.Origin(s.Name)
		block.Encode(codec, data[at:][:s.Size()], x)
	}
	if err := os.WriteFile(path, data, 0o666); err != nil {
		t.Fatal(err)
	}
}

// placeless are keys of the golden files that folders have no place for: of a token that
// is none of the vocabulary, of one that transformers has no name for, of a normalization.
var placeless = []string{"tokenizer.ggml.mask_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.normalizer.lowercase", "tokenizer.ggml.normalizer.strip_accents"}

// sameTypes compares the types of tokens. One that a key names as special is special, even
// if its type was that of text.
func sameTypes(t *testing.T, keys *gguf.Metadata, got, want gguf.Value) {
	t.Helper()
	var special []int64
	for key, v := range keys.All() {
		if id, err := v.Int(); err == nil && strings.HasSuffix(key, "_token_id") {
			special = append(special, id)
		}
	}
	a, err1 := got.Ints()
	b, err2 := want.Ints()
	if err1 != nil || err2 != nil || len(a) != len(b) {
		t.Fatalf("%v, %v: %d types, want %d", err1, err2, len(a), len(b))
	}
	const text, control = 1, 3
	for id := range a {
		if a[id] != b[id] && !(b[id] == text && a[id] == control && slices.Contains(special, int64(id))) {
			t.Errorf("token %d is of type %d, want %d", id, a[id], b[id])
		}
	}
}

func sameGGUF(t *testing.T, got, want []byte) {
	t.Helper()
	isName := func(key string) bool {
		for _, name := range []string{"name", "version", "finetune", "basename", "size_label", "license", "base_model", "dataset", "tags", "languages"} {
			if key == "general."+name || strings.HasPrefix(key, "general."+name+".") {
				return true
			}
		}
		return false
	}
	read := func(data []byte) *gguf.File {
		f, err := gguf.New(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	g, w := read(got), read(want)
	for key, v := range w.Metadata().All() {
		u, ok := g.Metadata().Get(key)
		switch {
		case isName(key):
		case !ok && slices.Contains(placeless, key):
		case key == "tokenizer.ggml.token_type" && ok:
			sameTypes(t, w.Metadata(), u, v)
		case !ok || !u.Equal(v):
			t.Errorf("key %s: %s, want another %s", key, u.Describe(), v.Describe())
		}
	}
	for key, v := range g.Metadata().All() {
		added := strings.HasPrefix(key, "tokenizer.ggml.add_")
		if base, ok := strings.CutSuffix(key, "_swa"); ok { // the base of all layers, said of some
			b, there := w.Metadata().Get(base)
			added = there && b.Equal(v)
		}
		if _, ok := w.Metadata().Get(key); !ok && !isName(key) && !added {
			t.Errorf("key %s is new", key)
		}
	}
	for _, s := range w.Tensors() {
		u, ok := g.Lookup(s.Name)
		if !ok || u.Type != s.Type || !slices.Equal(u.Shape, s.Shape) {
			t.Errorf("%s: %v, want %v", s.Name, u, s)
			continue
		}
		if !bytes.Equal(got[u.Offset:][:s.Size()], want[s.Offset:][:s.Size()]) {
			t.Errorf("%s: other values", s.Name)
		}
	}
	if len(g.Tensors()) != len(w.Tensors()) {
		t.Errorf("%d tensors, want %d", len(g.Tensors()), len(w.Tensors()))
	}
}
