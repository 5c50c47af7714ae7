package checkpoint_test

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
)

// TestAs guards that a model with the tensors of another checkpoint has those and no
// others, and is the same model in all else.
func TestAs(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, dir, "config.json", []byte(`{"model_type": "x"}`))
	writeFile(t, dir, "model.safetensors", weights(t, nil, spec("old", 2)))
	m, err := checkpoint.Open(dir, hfrepo.Cache{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	memory := new(checkpoint.Memory)
	memory.Add(spec("new", 3), []byte{7, 8, 9})
	seen := m.As(memory)
	if !seen.Computed || m.Computed || seen.Path != m.Path || seen.Config != m.Config || seen.Identity() != m.Identity() {
		t.Errorf("%+v", seen)
	}
	if _, ok := seen.Lookup("old"); ok || len(seen.Specs()) != 1 || len(seen.RawSpecs()) != 1 || len(seen.Hidden()) != 0 {
		t.Errorf("tensors %v, stored %v", seen.Specs(), seen.RawSpecs())
	}
	for _, c := range []checkpoint.Checkpoint{seen, seen.Stored()} {
		src, err := c.Open("new")
		if err != nil {
			t.Fatal(err)
		}
		data := make([]byte, 3)
		if _, err := src.ReadAt(data, 0); err != nil || !slices.Equal(data, []byte{7, 8, 9}) {
			t.Errorf("%v, %v", data, err)
		}
	}
	if err := seen.CheckUnchanged(); err != nil {
		t.Error(err)
	}
}

// TestAsGGUF: a model that is seen as a GGUF file has the keys, types and names of the
// layout, whatever reads it, and the bytes of the tensors that are computed.
func TestAsGGUF(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, dir, "model.safetensors", weights(t, nil, spec("old", 2)))
	path := filepath.Join(dir, "model.safetensors")
	m, err := checkpoint.Open(path, hfrepo.Cache{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	keys := new(gguf.Metadata)
	keys.Set("general.architecture", gguf.ValueOf("llama"))
	l, err := gguf.NewLayout(keys, []gguf.Spec{{Name: "w", Type: gguf.F32, Shape: tensor.Shape{2, 3}}}, gguf.LayoutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	values := []byte("abcdefghijklmnopqrstuvwx")
	w, err := tensor.NewSpec("w", tensor.F32, tensor.Shape{2, 3})
	if err != nil {
		t.Fatal(err)
	}
	memory := new(checkpoint.Memory)
	memory.Add(w, values)
	seen, err := m.AsGGUF(l, memory)
	if err != nil {
		t.Fatal(err)
	}
	if name, err := seen.GGUF().Metadata().Text("general.architecture"); name != "llama" || err != nil || seen.Path != m.Path || m.GGUF() != nil || seen.Identity() != m.Identity() {
		t.Errorf("architecture %q (%v), path %s", name, err, seen.Path)
	}
	for _, c := range []checkpoint.Checkpoint{seen, seen.Stored()} {
		src, err := c.Open("w")
		if err != nil {
			t.Fatal(err)
		}
		data := make([]byte, len(values))
		if _, err := src.ReadAt(data, 0); err != nil || string(data) != string(values) || !c.Specs()[0].Shape.Equal(w.Shape) {
			t.Errorf("%q, %v, %v", data, c.Specs(), err)
		}
	}
}
