package verify_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/loratool/loratool/verify"
)

var convertGolden = filepath.Join("..", "testdata", "golden", "convert")

// convertedModels are the folders that llama.cpp's converter has made files of.
func convertedModels(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(convertGolden, "models"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if len(names) < 28 {
		t.Errorf("only %d models", len(names))
	}
	return names
}

// TestConversionGolden finds nothing wrong in what llama.cpp's converter made.
func TestConversionGolden(t *testing.T) {
	for _, name := range convertedModels(t) {
		t.Run(name, func(t *testing.T) {
			folder, file := openPath(t, filepath.Join(convertGolden, "models", name)), openPath(t, filepath.Join(convertGolden, "expected", name+".gguf"))
			r, err := verify.Conversion(t.Context(), folder, file, verify.Options{})
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range r.Findings {
				if f.Code != "convert-dropped" && familyOf(t, f.Code) == "conversion" {
					t.Errorf("%s %s: %s", f.Code, f.Tensor, f.Message)
				}
			}
			if n := len(file.Specs()); r.Conversion.Tensors != n {
				t.Errorf("%d tensors were compared of %d", r.Conversion.Tensors, n)
			}
		})
	}
}

func familyOf(t *testing.T, code string) string {
	t.Helper()
	for _, c := range verify.Codes() {
		if c.Name == code {
			return c.Family
		}
	}
	t.Fatalf("no code %q", code)
	return ""
}
