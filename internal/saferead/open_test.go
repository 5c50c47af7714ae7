package saferead_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/internal/saferead"
)

func TestOpenRegular(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "model.bin")
	if err := os.WriteFile(path, []byte("12345"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, size, err := saferead.OpenRegular(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := make([]byte, 5)
	if n, err := f.ReadAt(p, 0); size != 5 || n != 5 || err != nil || string(p) != "12345" {
		t.Errorf("size %d, read %d %v %q", size, n, err, p)
	}
	if _, err := f.Write([]byte("x")); err == nil {
		t.Error("the file can be written to")
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink("model.bin", link); err != nil {
		t.Skipf("no symbolic links here: %v", err)
	}
	linked, size, err := saferead.OpenRegular(link)
	if err != nil || size != 5 {
		t.Fatalf("through a link: size %d, %v", size, err)
	}
	linked.Close()
}

func TestOpenRegularRefuses(t *testing.T) {
	dir := t.TempDir()
	_, _, err := saferead.OpenRegular(filepath.Join(dir, "absent"))
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent: %v", err)
	}
	_, _, err = saferead.OpenRegular(dir)
	if !errors.Is(err, saferead.ErrNotRegular) || !strings.HasSuffix(err.Error(), ": folder, not a regular file") {
		t.Errorf("folder: %v", err)
	}
	if !strings.Contains(err.Error(), dir) {
		t.Errorf("error %q does not name the path", err)
	}
	_, _, err = saferead.OpenRegular(filepath.Join(dir, "a\nb\x1b"))
	if err == nil || strings.ContainsAny(err.Error(), "\n\x1b") {
		t.Errorf("odd path: %q", err)
	}
}

func TestPrintable(t *testing.T) {
	for path, want := range map[string]string{
		"models/слой 1.safetensors": "models/слой 1.safetensors",
		`C:\models\a.gguf`:          `C:\models\a.gguf`,
		"a\nb":                      `"a\nb"`,
		"\x1b[2J":                   `"\x1b[2J"`,
		"a\u202eb":                  `"a\u202eb"`,
		"\xff":                      `"\xff"`,
	} {
		if got := saferead.Printable(path); got != want {
			t.Errorf("%q: %s, want %s", path, got, want)
		}
	}
}
