package main

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/loratool/loratool/internal/testmodel"
)

// workplace is a temporary folder with the program and what it works on.
type workplace struct {
	dir             string
	program, script string
	base, adapter   string
	model           testmodel.Llama
	lora            testmodel.LoRA
}

//go:embed peft_merge.py
var peftScript []byte

// newWorkplace makes the folder and builds the program.
func newWorkplace(ctx context.Context, parent string) (*workplace, error) {
	dir, err := os.MkdirTemp(parent, "loratool-bench-")
	if err != nil {
		return nil, err
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	w := &workplace{dir: dir, program: in("loratool"), script: in("peft_merge.py"), base: in("base"), adapter: in("adapter")}
	build := exec.CommandContext(ctx, "go", "build", "-o", w.program, "github.com/loratool/loratool/cmd/loratool")
	build.Stderr = os.Stderr
	if err = build.Run(); err != nil {
		err = fmt.Errorf("building the program: %w", err)
	} else {
		err = os.WriteFile(w.script, peftScript, 0o644)
	}
	if err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	return w, nil
}

func (w *workplace) remove() error { return os.RemoveAll(w.dir) }

// output returns the path of an output to be made.
func (w *workplace) output() string { return filepath.Join(w.dir, "out") }

// prepare writes model and adapter in place of those before.
func (w *workplace) prepare(m testmodel.Llama, l testmodel.LoRA, o testmodel.Options) error {
	fmt.Fprintf(os.Stderr, "writing a model of %d layers, %s\n", m.Layers, gib(m.Size()))
	for _, dir := range []string{w.base, w.adapter} {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	w.model, w.lora = m, l
	if err := m.Write(w.base, o); err != nil {
		return err
	}
	return l.Write(w.adapter, m, o.Seed)
}

// merge returns the command line of a merge with further flags.
func (w *workplace) merge(flags ...string) []string {
	return append([]string{w.program, "merge", "--base", w.base, "--adapter", w.adapter, "-o", w.output(), "--quiet"}, flags...)
}

// copyAndSync returns a command line that copies the base. The files are synced
// by name: a sync of everything would wait for the writes of others too.
func (w *workplace) copyAndSync() []string {
	return w.shell(`cp -r "$1" "$2" && sync "$2"/*`, w.base, w.output())
}

// peft returns a command line that merges with PEFT.
func (w *workplace) peft(python string) []string {
	return w.shell(`"$1" "$2" "$3" "$4" "$5" && sync "$5"/*`, python, w.script, w.base, w.adapter, w.output())
}

func (w *workplace) shell(script string, args ...string) []string {
	return append([]string{"sh", "-c", script, "sh"}, args...)
}
