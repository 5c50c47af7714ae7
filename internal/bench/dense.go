package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/loratool/loratool/internal/testmodel"
)

// variant is a way to make an output from the base.
type variant struct {
	name    string
	command []string
	ours    bool // output must be that of all others that are ours
	runs    []measurement
}

// benchDense runs all variants on a model full of numbers.
func benchDense(ctx context.Context, w *workplace, o options) error {
	if err := w.prepare(testmodel.Large(int64(o.size)), testmodel.LoRA{Rank: o.rank}, testmodel.Options{Seed: 1}); err != nil {
		return err
	}
	fmt.Printf("%s of weights in %d layers, LoRA of rank %d on all linear layers, %d rounds\n\n",
		gib(w.model.Size()), w.model.Layers, o.rank, o.rounds)
	check := &checker{w: w}
	reference := variant{name: "`cp -r` and `sync`", command: w.copyAndSync()}
	merge := variant{name: "`merge`", command: w.merge(), ours: true}
	cached, err := w.engineCopy()
	if err != nil {
		return err
	}
	err = w.rounds(ctx, o, o.rounds, check, reference,
		variant{name: "copy through the engine", command: cached},
		variant{name: "the same, past the page cache", command: append(cached, "--direct-io")},
		merge,
		variant{name: "`merge --direct-io`", command: w.merge("--direct-io"), ours: true},
		variant{name: "`merge --direct-io --no-provenance`", command: w.merge("--direct-io", "--no-provenance")},
		variant{name: "`merge --memory 128MiB`", command: w.merge("--memory", "128MiB"), ours: true},
		variant{name: "`merge --jobs 1`", command: w.merge("--jobs", "1"), ours: true})
	if err == nil && o.python != "" {
		// PEFT holds the model in memory, which empties the page cache for the
		// runs after it: it has a round of its own, and comes last there.
		err = w.rounds(ctx, o, 1, check, reference, merge,
			variant{name: "PEFT `merge_and_unload`", command: w.peft(o.python)})
	}
	if err != nil {
		return err
	}
	fmt.Println(check.summary())
	if o.profile != "" {
		return w.profile(ctx, o.profile)
	}
	return nil
}

// rounds runs every variant once a round and prints the table.
func (w *workplace) rounds(ctx context.Context, o options, n int, check *checker, variants ...variant) error {
	for round := range n {
		// Each round starts elsewhere, so that none always runs after the same.
		for i := range variants {
			v := &variants[(i+round)%len(variants)]
			if err := w.runOnce(ctx, v, o.cold, check); err != nil {
				return err
			}
		}
	}
	printTable(os.Stdout, variants)
	fmt.Println()
	return nil
}

// runOnce runs a variant, checks its output and removes it.
func (w *workplace) runOnce(ctx context.Context, v *variant, cold bool, check *checker) error {
	if cold {
		if err := w.dropBase(); err != nil {
			return err
		}
	}
	m, err := measure(ctx, v.command)
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "%-28s %6.1f s\n", v.name, m.wall.Seconds())
	v.runs = append(v.runs, m)
	if v.ours {
		if err := check.output(ctx); err != nil {
			return fmt.Errorf("%s: %w", v.name, err)
		}
	}
	return os.RemoveAll(w.output())
}

// dropBase makes the next run read the base from the disk.
func (w *workplace) dropBase() error {
	files, err := filepath.Glob(filepath.Join(w.base, "*"))
	if err != nil {
		return err
	}
	slices.Sort(files)
	for _, path := range files {
		if err := dropCached(path); err != nil {
			return err
		}
	}
	return nil
}
