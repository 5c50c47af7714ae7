package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
)

// checker proves that all outputs are the same bytes, and that the first is the
// base but for the weights that the adapter has.
type checker struct {
	w       *workplace
	hashes  map[string][sha256.Size]byte // by file, of the first output
	outputs int
}

// output checks the output that was just made.
func (c *checker) output(ctx context.Context) error {
	hashes, err := hashFolder(ctx, c.w.output())
	if err != nil {
		return err
	}
	c.outputs++
	if c.hashes == nil {
		c.hashes = hashes
		return c.compareWithBase(ctx)
	}
	if len(hashes) != len(c.hashes) {
		return fmt.Errorf("%d files, the first output had %d", len(hashes), len(c.hashes))
	}
	for name, hash := range hashes {
		if hash != c.hashes[name] {
			return fmt.Errorf("%s differs from that of the first output", name)
		}
	}
	return nil
}

func (c *checker) summary() string {
	return fmt.Sprintf("All %d outputs of loratool are the same bytes (SHA-256 of %d files), and differ from the base in the %d weights of the adapter and no other.",
		c.outputs, len(c.hashes), len(c.w.lora.Targets(c.w.model)))
}

// compareWithBase reads base and output tensor by tensor.
func (c *checker) compareWithBase(ctx context.Context) error {
	base, err := checkpoint.Open(c.w.base, hfrepo.Cache{})
	if err != nil {
		return err
	}
	defer base.Close()
	out, err := checkpoint.Open(c.w.output(), hfrepo.Cache{})
	if err != nil {
		return err
	}
	defer out.Close()
	if len(out.Specs()) != len(base.Specs()) {
		return fmt.Errorf("%d tensors, the base has %d", len(out.Specs()), len(base.Specs()))
	}
	adapted := make(map[string]bool)
	for _, name := range c.w.lora.Targets(c.w.model) {
		adapted[name] = true
	}
	for _, spec := range base.Specs() {
		if err := ctx.Err(); err != nil {
			return err
		}
		same, err := sameTensor(base, out, spec)
		if err != nil {
			return err
		}
		if same == adapted[spec.Name] {
			return fmt.Errorf("%q: same bytes as in the base is %v, want %v", spec.Name, same, !same)
		}
	}
	return nil
}

// sameTensor reports whether both models hold the same bytes under a name.
func sameTensor(a, b *checkpoint.Model, spec tensor.Spec) (bool, error) {
	if other, ok := b.Lookup(spec.Name); !ok || other.DType != spec.DType || !other.Shape.Equal(spec.Shape) {
		return false, fmt.Errorf("%q is not as in the base", spec.Name)
	}
	srcA, err := a.Open(spec.Name)
	if err != nil {
		return false, err
	}
	srcB, err := b.Open(spec.Name)
	if err != nil {
		return false, err
	}
	bufA, bufB := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); off < spec.Size(); off += int64(len(bufA)) {
		n := min(int64(len(bufA)), spec.Size()-off)
		if _, err := io.ReadFull(io.NewSectionReader(srcA, off, n), bufA[:n]); err != nil {
			return false, err
		}
		if _, err := io.ReadFull(io.NewSectionReader(srcB, off, n), bufB[:n]); err != nil {
			return false, err
		}
		if !bytes.Equal(bufA[:n], bufB[:n]) {
			return false, nil
		}
	}
	return true, nil
}

// hashFolder returns the SHA-256 of every file.
func hashFolder(ctx context.Context, dir string) (map[string][sha256.Size]byte, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	hashes := make(map[string][sha256.Size]byte)
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		f, err := os.Open(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		h := sha256.New()
		_, err = io.Copy(h, f)
		f.Close()
		if err != nil {
			return nil, err
		}
		hashes[e.Name()] = [sha256.Size]byte(h.Sum(nil))
	}
	return hashes, nil
}
