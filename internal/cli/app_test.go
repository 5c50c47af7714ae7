package cli_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/loratool/loratool/internal/cli"
	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/internal/fsatomic/faultfs"
)

// The scripts of cmd/loratool test command lines. Here is what takes a file
// system or an environment that a script can't have.

const (
	demo = "../../testdata/demo/"
	tiny = "../../testdata/hostile/adapters/"
)

// run executes a command line in this process.
func run(fsys fsatomic.FS, getenv func(string) string, args ...string) (code int, stdout, stderr string) {
	var out, errOut bytes.Buffer
	app := &cli.App{Stdout: &out, Stderr: &errOut, Getenv: getenv, FS: fsys}
	code = app.Run(context.Background(), args)
	return code, out.String(), errOut.String()
}

func noEnv(string) string { return "" }

// mergeInto is the command line of the demo merge.
func mergeInto(out string, flags ...string) []string {
	return append([]string{"merge", "--base", demo + "base", "--adapter", demo + "adapter", "-o", out}, flags...)
}

// tinyInto is the command line of a merge with few calls to the file system,
// and one job so that their order is always the same.
func tinyInto(out string, flags ...string) []string {
	return append([]string{"merge", "--base", tiny + "_base", "--adapter", tiny + "ok_plain_r4", "--jobs", "1", "-o", out}, flags...)
}

// contents returns the files of a folder, nil if there is none.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if os.IsNotExist(err) {
		return nil
	}
	all := make(map[string]string)
	for _, e := range entries {
		data, rerr := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil || rerr != nil {
			t.Fatal(err, rerr)
		}
		all[e.Name()] = string(data)
	}
	return all
}

// TestEveryFault fails one call to the file system after the other. Whatever
// fails, the output is whole or what it was before, nothing lies beside it, and
// the exit code and one line say so.
func TestEveryFault(t *testing.T) {
	dir := t.TempDir()
	wantDir, oldDir := filepath.Join(dir, "want"), filepath.Join(dir, "old")
	for out, flags := range map[string][]string{wantDir: nil, oldDir: {"--dtype", "f32"}} {
		if code, _, stderr := run(fsatomic.OS{}, noEnv, tinyInto(out, flags...)...); code != 0 {
			t.Fatal(stderr)
		}
	}
	want, old := contents(t, wantDir), contents(t, oldDir)
	for _, force := range []bool{false, true} {
		t.Run(fmt.Sprintf("force=%v", force), func(t *testing.T) {
			t.Parallel()
			for k := 1; ; k++ {
				dir := t.TempDir()
				out := filepath.Join(dir, "out")
				before, flags := map[string]string(nil), []string{}
				if force {
					if err := os.CopyFS(out, os.DirFS(oldDir)); err != nil {
						t.Fatal(err)
					}
					before, flags = old, []string{"--force"}
				}
				fsys := faultfs.New(fsatomic.OS{}, faultfs.FailAt(k, syscall.ENOSPC))
				code, stdout, stderr := run(fsys, noEnv, tinyInto(out, flags...)...)
				if len(fsys.Faults()) == 0 {
					if k < 30 {
						t.Errorf("a merge made only %d calls", k)
					}
					break
				}
				got := contents(t, out)
				switch {
				case code == 0 && !maps.Equal(got, want):
					t.Errorf("%v: exit 0 without a whole output", fsys.Faults())
				case code != 0 && !maps.Equal(got, before):
					t.Errorf("%v: exit %d and another output", fsys.Faults(), code)
				case code != 0 && (stdout != "" || !strings.HasPrefix(stderr, "loratool: ") || strings.Count(stderr, "loratool: ") != 1):
					t.Errorf("%v: stdout %q, stderr %q", fsys.Faults(), stdout, stderr)
				}
				if left, _ := os.ReadDir(dir); len(left) > 1 || got == nil && len(left) > 0 {
					t.Errorf("%v: exit %d and left behind: %v", fsys.Faults(), code, left)
				}
				if n := fsys.OpenFiles(); n != 0 {
					t.Errorf("%v: %d files are open", fsys.Faults(), n)
				}
			}
		})
	}
}

// smallDisk is a disk with little space.
type smallDisk struct{ fsatomic.OS }

func (smallDisk) Free(string) (int64, error) { return 1000, nil }

// TestSpace guards against filling a disk for hours in vain.
func TestSpace(t *testing.T) {
	dir := t.TempDir()
	out := filepath.Join(dir, "out")
	const want = " bytes and its disk has 1000 free"
	code, stdout, stderr := run(smallDisk{}, noEnv, mergeInto(out)...)
	if code != 5 || stdout != "" || !strings.Contains(stderr, want) {
		t.Errorf("exit %d, stdout %q, stderr %q", code, stdout, stderr)
	}
	code, stdout, stderr = run(smallDisk{}, noEnv, mergeInto(out, "--dry-run")...)
	if code != 0 || !strings.Contains(stdout, "the run would stop: ") || !strings.Contains(stdout, want) {
		t.Errorf("dry run: exit %d, stdout %q, stderr %q", code, stdout, stderr)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestPanic guards what a fault of loratool looks like: one line that says so, a
// hint, and a stack only for those who ask.
func TestPanic(t *testing.T) {
	broken := func(debug string) func(string) string {
		return func(name string) string {
			switch name {
			case "LORATOOL_DEBUG":
				return debug
			case "LORATOOL_MEMORY":
				panic("out of luck")
			}
			return ""
		}
	}
	code, stdout, stderr := run(fsatomic.OS{}, broken(""), mergeInto("out")...)
	if code != 1 || stdout != "" || !strings.HasPrefix(stderr, "loratool: internal error: out of luck\nhint: ") || strings.Count(stderr, "\n") != 2 {
		t.Errorf("exit %d, stdout %q, stderr %q", code, stdout, stderr)
	}
	code, _, stderr = run(fsatomic.OS{}, broken("1"), mergeInto("out", "--json")...)
	lines := strings.Split(strings.TrimSpace(stderr), "\n")
	var last struct{ Code int }
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || code != 1 || last.Code != 1 {
		t.Errorf("exit %d, last line %q (%v)", code, lines[len(lines)-1], err)
	}
	if !strings.Contains(stderr, "app_test.go") {
		t.Errorf("no stack in %q", stderr)
	}
}
