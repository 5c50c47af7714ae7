package checkpoint_test

import (
	"slices"
	"testing"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
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
