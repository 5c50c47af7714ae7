package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// slow is when a bad file has cost too much: it is refused from its header.
const slow = 5 * time.Second

// corpus FOLDER runs loratool on every case of the manifest in a folder: inspect
// on models, merge on adapters. Good ones are exit 0; bad ones, and formats that
// are not supported, are exit 4 with one line that names the file, and write
// nothing.
func corpus(ts *testscript.TestScript, _ bool, args []string) {
	var manifest struct {
		Cases []struct{ File, Format, Expected, Base, Reason string }
	}
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0]+"/manifest.json")), &manifest))
	if len(manifest.Cases) < 100 {
		ts.Fatalf("only %d cases", len(manifest.Cases))
	}
	for i, c := range manifest.Cases {
		path := filepath.Join(args[0], c.File)
		line := []string{"loratool", "inspect", path}
		out := ts.MkAbs(fmt.Sprintf("out%d", i))
		if c.Format == "adapter" {
			line = []string{"loratool", "merge", "--base", filepath.Join(args[0], c.Base), "--adapter", path, "-o", out}
		}
		good := c.Expected == "accept" && slices.Contains([]string{"adapter", "safetensors", "gguf", "sharded"}, c.Format)
		began := time.Now()
		var b background
		b.start(ts, line)
		code := exitCode(ts, b.cmd.Wait())
		took := time.Since(began)
		message := b.stderr.String()
		_, err := os.Lstat(out)
		switch {
		case good && code == 0:
		case good || code != 4 || took > slow || err == nil || b.stdout.Len() > 0,
			!strings.HasPrefix(message, "loratool: "), strings.Count(message, "loratool: ") != 1,
			!strings.Contains(message, filepath.Base(path)):
			ts.Fatalf("%s (%s): exit %d after %v\nstdout: %s\nstderr: %s", c.File, c.Reason, code, took, b.stdout.String(), message)
		}
	}
	if left, _ := filepath.Glob(ts.MkAbs("*.partial*")); len(left) > 0 {
		ts.Fatalf("left behind: %v", left)
	}
}
