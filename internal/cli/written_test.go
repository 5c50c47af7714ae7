package cli_test

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/loratool/loratool/internal/fsatomic"
)

// TestVerifyFindsFlippedBit lets the disk flip one bit of what is written, in a tensor in
// the middle of the file: with --verify every command that writes fails and leaves
// nothing. Without it the same bit stays unseen, which shows that it is --verify that
// finds it.
func TestVerifyFindsFlippedBit(t *testing.T) {
	llama := "../../testdata/golden/gguf/models/llama/"
	source := "../../testdata/golden/ggufquant/source-f16.gguf"
	dir := t.TempDir()
	tuned := filepath.Join(dir, "tuned")
	if code, _, stderr := run(fsatomic.OS{}, noEnv, mergeInto(tuned)...); code != 0 {
		t.Fatal(stderr)
	}
	cases := []struct {
		name, ext string
		args      []string
	}{
		{"merge", "", []string{"merge", "--base", demo + "base", "--adapter", demo + "adapter"}},
		{"merge to nf4", "", []string{"merge", "--base", demo + "base", "--adapter", demo + "adapter", "--type", "nf4"}},
		{"merge to int8", "", []string{"merge", "--base", demo + "base", "--adapter", demo + "adapter", "--type", "int8"}},
		{"merge into GGUF", ".gguf", []string{"merge", "--base", llama + "base-q8_0.gguf", "--adapter", llama + "lora-all/expected-f32.gguf"}},
		{"merge into GGUF of another type", ".gguf", []string{"merge", "--base", llama + "expected-f16.gguf", "--adapter", llama + "lora-all/expected-f32.gguf", "--type", "q4_0"}},
		{"convert", "", []string{"convert", demo + "base", "--dtype", "f32"}},
		{"convert to GGUF", ".gguf", []string{"convert", demo + "base"}},
		{"quantize", "", []string{"quantize", demo + "base", "--type", "nf4", "--double-quant"}},
		{"quantize GGUF", ".gguf", []string{"quantize", source, "--type", "q4_k_m"}},
		{"quantize with a pair", "", []string{"quantize", demo + "base", "--type", "nf4", "--loftq", "--rank", "4", "--adapter-out", filepath.Join(dir, "pairs")}},
		{"extract", "", []string{"extract", "--base", demo + "base", "--tuned", tuned, "--rank", "4"}},
		{"resize", "", []string{"resize", demo + "adapter", "--rank", "2"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			out := filepath.Join(dir, "out"+c.ext)
			args := append(c.args, "-o", out, "--jobs", "1", "-q")
			flips := &flipping{FS: fsatomic.OS{}}
			code, _, stderr := run(flips, noEnv, append(args, "--verify")...)
			if !flips.done {
				t.Fatal("nothing was flipped")
			}
			if code != 1 || !strings.Contains(stderr, "verifying ") {
				t.Errorf("--verify: exit code %d: %s", code, stderr)
			}
			left, err := filepath.Glob(filepath.Join(dir, "out*"))
			pairs, _ := filepath.Glob(filepath.Join(dir, "pairs*"))
			if err != nil || len(left)+len(pairs) > 0 {
				t.Errorf("it leaves %q %q", left, pairs)
			}
			if code, _, stderr := run(&flipping{FS: fsatomic.OS{}}, noEnv, args...); code != 0 {
				t.Errorf("without --verify: exit code %d: %s", code, stderr)
			}
			for _, path := range []string{out, filepath.Join(dir, "pairs")} {
				if err := os.RemoveAll(path); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// flipping is a file system that flips one bit of one write of a tensor.
type flipping struct {
	fsatomic.FS
	mu   sync.Mutex
	done bool
}

func (f *flipping) Create(name string) (fsatomic.File, error) {
	file, err := f.FS.Create(name)
	if ext := filepath.Ext(name); err != nil || ext == ".json" || ext == ".md" || strings.Contains(name, "journal") {
		return file, err
	}
	return &flippingFile{file, f}, nil
}

type flippingFile struct {
	fsatomic.File
	fs *flipping
}

// flipAt is the offset from which on a bit is flipped: behind any header of the cases.
const flipAt = 12 << 10

func (f *flippingFile) WriteAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if !f.fs.done && off >= flipAt && len(p) >= 128 {
		p = append([]byte(nil), p...)
		p[len(p)/2] ^= 0x40
		f.fs.done = true
	}
	return f.File.WriteAt(p, off)
}
