package checkpoint_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
)

// TestHostile gives every sharded case of the corpus, and every GGUF file, its
// verdict.
func TestHostile(t *testing.T) {
	root := filepath.Join("..", "..", "testdata", "hostile")
	data, err := os.ReadFile(filepath.Join(root, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	var manifest struct {
		Cases []struct{ File, Format, Expected, Reason string }
	}
	if err := json.Unmarshal(data, &manifest); err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, c := range manifest.Cases {
		if c.Format != "sharded" && c.Format != "gguf" {
			continue
		}
		seen++
		t.Run(filepath.Base(c.File), func(t *testing.T) {
			m, err := checkpoint.Open(filepath.Join(root, c.File), hfrepo.Cache{})
			if c.Expected == "accept" {
				if err != nil {
					t.Fatal(err)
				}
				m.Close()
				return
			}
			if err == nil {
				m.Close()
				t.Fatalf("accepted: %s", c.Reason)
			}
			checkInputError(t, err, filepath.Base(c.File))
		})
	}
	if seen != 12+41 {
		t.Errorf("%d cases, the manifest counts 12 sharded and 41 GGUF", seen)
	}
}
