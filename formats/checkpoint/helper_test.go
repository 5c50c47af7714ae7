package checkpoint_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/formats/tensor"
)

// spec is a tensor of bytes.
func spec(name string, size int64) tensor.Spec {
	return tensor.Spec{Name: name, DType: tensor.U8, Shape: tensor.Shape{size}}
}

// writeFile writes a file below dir and makes the folders on its way.
func writeFile(t *testing.T, dir, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(dir, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}

// weights is a safetensors file of the given tensors; every byte of tensor i
// is i+1.
func weights(t *testing.T, metadata map[string]string, specs ...tensor.Spec) []byte {
	t.Helper()
	l, err := safetensors.NewLayout(specs, metadata)
	if err != nil {
		t.Fatal(err)
	}
	data := append(l.Header(), make([]byte, l.Size()-int64(len(l.Header())))...)
	for i, s := range specs {
		off, _ := l.Offset(s.Name)
		for j := range s.Size() {
			data[off+j] = byte(i + 1)
		}
	}
	return data
}

func mustOpen(t *testing.T, ref string, cache hfrepo.Cache) *checkpoint.Model {
	t.Helper()
	m, err := checkpoint.Open(ref, cache)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func names(m *checkpoint.Model) string {
	var all []string
	for _, s := range m.Specs() {
		all = append(all, s.Name)
	}
	return strings.Join(all, " ")
}

// checkInputError asserts a one-line InputError that contains every want.
func checkInputError(t *testing.T, err error, want ...string) {
	t.Helper()
	if _, ok := errors.AsType[*checkpoint.InputError](err); !ok {
		t.Fatalf("error %v of type %T, want an InputError", err, err)
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not contain %q", err, w)
		}
	}
	if text := err.Error(); strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) || len(text) > 2000 {
		t.Errorf("error of several lines, or long: %q", text)
	}
}
