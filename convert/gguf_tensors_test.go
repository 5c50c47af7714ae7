package convert_test

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/convert"
	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/quant/block"
)

// weightsOnly copies config and weights of a golden model, without the tokenizer.
func weightsOnly(t *testing.T, name string) string {
	t.Helper()
	dir := t.TempDir()
	from := filepath.Join(golden, "convert", "models", name)
	entries, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "config.json" && !strings.HasPrefix(e.Name(), "model") {
			continue
		}
		data, err := os.ReadFile(filepath.Join(from, e.Name()))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, e.Name()), data, 0o666)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// readAll returns the bytes of a tensor.
func readAll(t *testing.T, c checkpoint.Checkpoint, s tensor.Spec) []byte {
	t.Helper()
	src, err := c.Open(s.Name)
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, s.Size())
	if n, err := src.ReadAt(data, 0); n < len(data) {
		t.Fatalf("%s: %v", s.Name, err)
	}
	return data
}

// TestPlanTensors computes the tensors of every golden model, whose tokenizer is not
// there, and rounds them to the types of the file that llama.cpp's converter made: all of
// its bytes are there, and no tensor more.
func TestPlanTensors(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(golden, "convert", "expected", "*.gguf"))
	if err != nil || len(files) < 16 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, path := range files {
		name := strings.TrimSuffix(filepath.Base(path), ".gguf")
		t.Run(name, func(t *testing.T) {
			want := open(t, path)
			embedding, _ := want.Lookup("token_embd.weight")
			p, err := convert.PlanTensors(open(t, weightsOnly(t, name)), embedding.Shape[0])
			if err != nil {
				t.Fatal(err)
			}
			view, err := engine.NewView(p.Plan, p.Specs, []engine.Source{p.View}, engine.Options{Jobs: 1})
			if err != nil {
				t.Fatal(err)
			}
			made := make(map[string]tensor.Spec)
			for _, s := range view.Specs() {
				made[s.Name] = s
			}
			for _, s := range want.Specs() {
				got, ok := made[s.Name]
				delete(made, s.Name)
				if !ok || got.DType != tensor.F32 || !got.Shape.Equal(s.Shape) {
					t.Fatalf("%s: %v, want the shape %v in F32", s.Name, got, s.Shape)
				}
				codec, _ := block.For(s.DType)
				from, _ := block.For(tensor.F32)
				values := make([]float32, s.NumElements())
				block.Decode(from, values, readAll(t, view, got))
				rounded := make([]byte, s.Size())
				block.Encode(codec, rounded, values)
				if !bytes.Equal(rounded, readAll(t, want, s)) {
					t.Errorf("%s is not the reference's", s.Name)
				}
			}
			if len(made) > 0 {
				t.Errorf("tensors that the reference lacks: %v", slices.Sorted(maps.Keys(made)))
			}
		})
	}
}

// TestPlanTensorsRows guards that rows of no token are left out, that none are without a
// count, and that only Gemma 3 may have them.
func TestPlanTensorsRows(t *testing.T) {
	for _, c := range []struct {
		name         string
		tokens, cuts int64
	}{{"gemma3", 3, 3}, {"gemma3", 0, 0}, {"gemma2", 3, 0}} {
		m := open(t, weightsOnly(t, c.name))
		whole, _ := m.Lookup("model.embed_tokens.weight")
		want := whole.Shape[0]
		if c.cuts > 0 {
			want = c.cuts
		}
		p, err := convert.PlanTensors(m, c.tokens)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range p.Specs {
			if s.Name == "token_embd.weight" && s.Shape[0] != want {
				t.Errorf("%s with %d tokens: %d rows, want %d", c.name, c.tokens, s.Shape[0], want)
			}
		}
	}
}

// TestPlanTensorsRefuses guards that what has no tensors in GGUF is named.
func TestPlanTensorsRefuses(t *testing.T) {
	changed := func(name, old, with string) string {
		dir := weightsOnly(t, name)
		path := filepath.Join(dir, "config.json")
		data, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(data, []byte(old)) {
			t.Fatalf("%s: no %q, %v", path, old, err)
		}
		if err := os.WriteFile(path, bytes.ReplaceAll(data, []byte(old), []byte(with)), 0o666); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	for _, c := range []struct{ path, want string }{
		{changed("gemma", "GemmaForCausalLM", "ParrotForCausalLM"), "ParrotForCausalLM: there are no tables"},
		{changed("mixtral", `"num_local_experts": `, `"num_local_experts": 1`), "matrices of its experts"},
		{filepath.Join(golden, "convert", "expected", "gemma.gguf"), "a GGUF file is not supported"},
	} {
		_, err := convert.PlanTensors(open(t, c.path), 0)
		var input *checkpoint.InputError
		if !errors.As(err, &input) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.path, err, c.want)
		}
	}
}
