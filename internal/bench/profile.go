package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime/pprof"

	"github.com/loratool/loratool/internal/cli"
	"github.com/loratool/loratool/internal/fsatomic"
)

// profile merges once more, in this process, and writes where the time went.
func (w *workplace) profile(ctx context.Context, path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := pprof.StartCPUProfile(f); err != nil {
		return err
	}
	app := &cli.App{Stdout: io.Discard, Stderr: os.Stderr, Getenv: os.Getenv, FS: fsatomic.OS{}}
	code := app.Run(ctx, w.merge()[1:])
	pprof.StopCPUProfile()
	if code != 0 {
		return fmt.Errorf("the merge to profile ended with code %d", code)
	}
	return os.RemoveAll(w.output())
}
