package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/loratool/loratool/internal/testmodel"
)

// benchSparse merges into a model of holes, far larger than the memory. The
// adapter has one layer, whose weights are all that the output needs room for.
func benchSparse(ctx context.Context, w *workplace, o options) error {
	m, l := testmodel.Large(int64(o.sparse)), testmodel.LoRA{Rank: o.rank, Layers: 1}
	if err := w.prepare(m, l, testmodel.Options{Sparse: true}); err != nil {
		return err
	}
	run, err := measure(ctx, w.merge())
	if err != nil {
		return err
	}
	apparent, used, err := folderSize(w.output())
	if err != nil {
		return err
	}
	fmt.Printf("\nA base of %s, all holes: %.1f s (%s), %.1f CPU s, peak RSS %s; the output takes %s on the disk, %s of it for the %d weights that changed.\n",
		gib(apparent), run.wall.Seconds(), rate(apparent, run.wall), run.cpu.Seconds(), mib(run.peak),
		gib(used), gib(changedSize(m, l)), len(l.Targets(m)))
	return os.RemoveAll(w.output())
}

// folderSize adds up the files of a folder: their sizes and what they take.
func folderSize(dir string) (apparent, used int64, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, 0, err
	}
	for _, e := range entries {
		info, err := os.Stat(filepath.Join(dir, e.Name()))
		if err != nil {
			return 0, 0, err
		}
		apparent += info.Size()
		used += diskUse(info)
	}
	return apparent, used, nil
}

// changedSize returns the bytes of the weights that an adapter changes.
func changedSize(m testmodel.Llama, l testmodel.LoRA) int64 {
	targets := make(map[string]bool)
	for _, name := range l.Targets(m) {
		targets[name] = true
	}
	var n int64
	for _, s := range m.Specs() {
		if targets[s.Name] {
			n += s.Size()
		}
	}
	return n
}
