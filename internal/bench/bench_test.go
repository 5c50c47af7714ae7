package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/loratool/loratool/internal/cli"
	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/internal/testmodel"
)

// prepared returns a workplace with a small model, without the program.
func prepared(t *testing.T, l testmodel.LoRA, o testmodel.Options) *workplace {
	t.Helper()
	dir := t.TempDir()
	w := &workplace{dir: dir, program: "loratool", base: filepath.Join(dir, "base"), adapter: filepath.Join(dir, "adapter")}
	if err := w.prepare(testmodel.Tiny(), l, o); err != nil {
		t.Fatal(err)
	}
	return w
}

// merge runs the command line that would be measured, in this process.
func merge(t *testing.T, w *workplace, flags ...string) {
	t.Helper()
	var stderr bytes.Buffer
	app := &cli.App{Stdout: io.Discard, Stderr: &stderr, Getenv: func(string) string { return "" }, FS: fsatomic.OS{}}
	if code := app.Run(t.Context(), w.merge(flags...)[1:]); code != 0 {
		t.Fatalf("merge %q ends with %d: %s", flags, code, &stderr)
	}
}

// Neither jobs nor memory may change a byte, and only the weights that the
// adapter has may differ from the base. The checker is the one of the benchmark.
func TestOutputDoesNotDependOnJobsOrMemory(t *testing.T) {
	w := prepared(t, testmodel.LoRA{Rank: 4}, testmodel.Options{Seed: 7, ShardSize: 60_000})
	check := &checker{w: w}
	for _, jobs := range []int{1, 2, 3, 8} {
		for _, memory := range []string{"32KiB", "100KiB", "1MiB", "1GiB"} {
			merge(t, w, "--jobs", fmt.Sprint(jobs), "--memory", memory)
			if err := check.output(t.Context()); err != nil {
				t.Errorf("%d jobs in %s: %v", jobs, memory, err)
			}
			if err := os.RemoveAll(w.output()); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// The checker must see one changed byte, wherever it is.
func TestCheckerSeesDamage(t *testing.T) {
	w := prepared(t, testmodel.LoRA{Rank: 4, Layers: 1}, testmodel.Options{})
	merge(t, w)
	path := filepath.Join(w.output(), "model.safetensors")
	sound, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	first := &checker{w: w}
	if err := first.output(t.Context()); err != nil {
		t.Fatal(err)
	}
	damaged := bytes.Clone(sound)
	damaged[len(damaged)-1] ^= 1 // of a tensor without a change
	if err := os.WriteFile(path, damaged, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := first.output(t.Context()); err == nil {
		t.Error("an output that differs from the first passes")
	}
	if err := (&checker{w: w}).output(t.Context()); err == nil {
		t.Error("an output that differs from the base in another tensor passes")
	}
}

// Holes of the base must stay holes, or an output takes room that its input
// did not.
func TestHolesStayHoles(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("not every file system elsewhere has holes this small")
	}
	l := testmodel.LoRA{Rank: 4, Layers: 1}
	w := prepared(t, l, testmodel.Options{Sparse: true})
	merge(t, w)
	apparent, used, err := folderSize(w.output())
	if err != nil {
		t.Fatal(err)
	}
	// Headers, side files and the two ends of each changed weight take whole
	// blocks.
	const slack = 64 << 10
	if changed := changedSize(w.model, l); used > changed+slack || used >= apparent {
		t.Errorf("%d bytes on the disk for %d changed ones of %d", used, changed, apparent)
	}
}

func TestTable(t *testing.T) {
	run := func(seconds ...float64) (runs []measurement) {
		for i, s := range seconds {
			runs = append(runs, measurement{
				wall: time.Duration(s * float64(time.Second)), cpu: time.Second,
				peak: int64(i+1) << 20, fromDisk: int64(i) << 30,
			})
		}
		return runs
	}
	var b bytes.Buffer
	printTable(&b, []variant{{name: "copy", runs: run(2, 4, 5)}, {name: "merge", runs: run(3, 2, 10)}})
	const want = `| variant | wall s, median (range) | ratio to copy, median (range) | CPU s | peak RSS | read from disk |
| --- | --- | --- | --- | --- | --- |
| copy | 4.0 (2.0-5.0) | 1.00 (1.00-1.00) | 1.0 | 3 MiB | 1.00 GiB |
| merge | 3.0 (2.0-10.0) | 1.50 (0.50-2.00) | 1.0 | 3 MiB | 1.00 GiB |
`
	if b.String() != want {
		t.Errorf("table\n%s\nwant\n%s", &b, want)
	}
}

func TestSize(t *testing.T) {
	for text, want := range map[string]size{"8GiB": 8 << 30, "60GB": 60e9, "0.5MiB": 1 << 19} {
		var s size
		if err := s.Set(text); err != nil || s != want {
			t.Errorf("%s: %d, %v, want %d", text, s, err, want)
		}
	}
	for _, text := range []string{"", "8", "GiB", "-1GiB", "0GB", "NaNGB", "8 TB"} {
		if err := new(size).Set(text); err == nil {
			t.Errorf("%q is a size", text)
		}
	}
}
