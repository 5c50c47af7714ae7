package checkpoint_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
)

// TestHostileSharded gives every sharded case of the corpus its verdict.
func TestHostileSharded(t *testing.T) {
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
		if c.Format != "sharded" {
			continue
		}
		seen++
		t.Run(filepath.Base(c.File), func(t *testing.T) {
			if c.Expected == "accept" && strings.Contains(c.File, "gguf") {
				t.Skip("GGUF is not read yet")
			}
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
	if seen != 12 {
		t.Errorf("%d cases, the manifest counts 12", seen)
	}
}
