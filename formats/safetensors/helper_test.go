package safetensors_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/formats/tensor"
)

// file joins a header, as it is, and dataSize bytes that count up.
func file(header string, dataSize int) []byte {
	f := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	f = append(f, header...)
	for i := range dataSize {
		f = append(f, byte(i+1))
	}
	return f
}

func open(data []byte) (*safetensors.File, error) {
	return safetensors.New(bytes.NewReader(data), int64(len(data)))
}

func mustOpen(t *testing.T, data []byte) *safetensors.File {
	t.Helper()
	f, err := open(data)
	if err != nil {
		t.Fatalf("opening: %v", err)
	}
	return f
}

// checkFormatError asserts a one-line FormatError that contains want.
func checkFormatError(t *testing.T, err error, want string) *safetensors.FormatError {
	t.Helper()
	fe, ok := errors.AsType[*safetensors.FormatError](err)
	if !ok {
		t.Fatalf("error %v of type %T, want a FormatError", err, err)
	}
	if !strings.Contains(fe.Error(), want) {
		t.Errorf("error %q does not contain %q", fe, want)
	}
	checkOneLine(t, err)
	return fe
}

func checkOneLine(t *testing.T, err error) {
	t.Helper()
	text := err.Error()
	if len(text) > 1000 || !utf8.ValidString(text) {
		t.Errorf("error has %d bytes, valid UTF-8: %v", len(text), utf8.ValidString(text))
	}
	for _, r := range text {
		if r < 0x20 || r == 0x7F || r == '\u2028' || r == '\u202E' {
			t.Errorf("error holds %q: %q", r, text)
			return
		}
	}
}

func spec(t *testing.T, name string, d tensor.DType, shape ...int64) tensor.Spec {
	t.Helper()
	s, err := tensor.NewSpec(name, d, shape)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func specs(tensors []safetensors.Tensor) []tensor.Spec {
	out := make([]tensor.Spec, len(tensors))
	for i, t := range tensors {
		out[i] = t.Spec
	}
	return out
}

func writeTemp(t *testing.T, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "model.safetensors")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
