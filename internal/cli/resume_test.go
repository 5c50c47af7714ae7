package cli_test

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/loratool/loratool/internal/cli"
	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/internal/fsatomic/faultfs"
)

// runRecording is run with a record after every step.
func runRecording(fsys fsatomic.FS, args ...string) (code int, stdout, stderr string) {
	var out, errOut bytes.Buffer
	app := &cli.App{Stdout: &out, Stderr: &errOut, Getenv: noEnv, FS: fsys, RecordEvery: 1}
	code = app.Run(context.Background(), args)
	return code, out.String(), errOut.String()
}

var goingOn = regexp.MustCompile(`going on after (\d+) of (\d+) steps`)

// TestResume takes the disk away at every call in turn, as a kill at that moment
// does, and goes on: the output is that of a run that was not disturbed, byte
// for byte and in its report, what was recorded is not done again, and nothing
// is left.
func TestResume(t *testing.T) {
	for _, ext := range []string{"", ".safetensors"} {
		dir := t.TempDir()
		out := filepath.Join(dir, "out"+ext)
		code, wantReport, stderr := runRecording(fsatomic.OS{}, mergeInto(out, "--json", "--jobs", "1")...)
		if code != 0 {
			t.Fatal(stderr)
		}
		want := read(t, out)
		if err := os.RemoveAll(out); err != nil {
			t.Fatal(err)
		}
		seen := make(map[string]bool)
		for k := 1; ; k += 5 {
			fsys := faultfs.New(fsatomic.OS{}, faultfs.FailFrom(k, syscall.EIO))
			if code, _, _ := runRecording(fsys, mergeInto(out, "--jobs", "1")...); code == 0 {
				break
			}
			if _, err := os.Stat(out); err == nil {
				break // it was in place already
			}
			code, report, stderr := runRecording(fsatomic.OS{}, mergeInto(out, "--json", "--resume", "--verify", "--jobs", "1")...)
			if code != 0 {
				t.Fatalf("call %d: %s", k, stderr)
			}
			if got := read(t, out); !maps.Equal(got, want) {
				t.Errorf("call %d: other bytes", k)
			}
			if !strings.Contains(report, figuresOf(wantReport)) {
				t.Errorf("call %d: other figures:\n%s\nwant\n%s", k, report, wantReport)
			}
			if m := goingOn.FindStringSubmatch(stderr); m != nil {
				seen[m[1]] = true
			}
			if err := os.RemoveAll(out); err != nil {
				t.Fatal(err)
			}
			// A run that was cut off before its journal had a key can't be taken up.
			left, _ := filepath.Glob(out + "*.journal")
			for _, path := range left {
				if data, err := os.ReadFile(path); err != nil || bytes.IndexByte(data, '\n') >= 0 {
					t.Errorf("call %d leaves %q: %q, %v", k, path, data, err)
				}
			}
			removeLeft(t, dir)
		}
		if len(seen) < 10 {
			t.Errorf("%q: went on from %v only", ext, seen)
		}
	}
}

// TestResumeRefuses guards what must not be taken up: the partial of a run that
// goes on, and that of another merge.
func TestResumeRefuses(t *testing.T) {
	dir := t.TempDir()
	out := filepath.Join(dir, "out")
	interrupt := func() {
		t.Helper()
		fsys := faultfs.New(fsatomic.OS{}, faultfs.FailFrom(60, syscall.EIO))
		if code, _, stderr := runRecording(fsys, mergeInto(out, "--jobs", "1")...); code != 1 {
			t.Fatalf("ends with %d: %s", code, stderr)
		}
	}
	interrupt()
	left, err := filepath.Glob(out + ".partial-*.journal")
	if err != nil || len(left) != 1 {
		t.Fatal(left, err)
	}
	other, err := fsatomic.OS{}.Open(left[0])
	if err != nil {
		t.Fatal(err)
	}
	if l, ok := other.(interface{ TryLock() error }); ok {
		if err := l.TryLock(); err != nil {
			t.Fatal(err)
		}
		code, _, stderr := runRecording(fsatomic.OS{}, mergeInto(out, "--resume")...)
		if code != 5 || !strings.Contains(stderr, "another run is writing") {
			t.Errorf("beside a run that goes on: %d, %s", code, stderr)
		}
	}
	other.Close()
	for _, flags := range [][]string{{"--dtype", "f32"}, {"--no-provenance"}, nil} {
		code, _, stderr := runRecording(fsatomic.OS{}, mergeInto(out, append(flags, "--resume", "--force")...)...)
		if code != 0 {
			t.Fatal(stderr)
		}
		if took := goingOn.MatchString(stderr); took != (flags == nil) {
			t.Errorf("%q: %s", flags, stderr)
		}
	}
}

// TestResumeTokenizer: a file beside the weights that was changed between two runs is in the
// output, and what was written before it changed is not taken up.
func TestResumeTokenizer(t *testing.T) {
	dir := t.TempDir()
	model, out := filepath.Join(dir, "qwen3"), filepath.Join(dir, "out.gguf")
	golden := filepath.Join("..", "..", "testdata", "golden", "convert", "models", "qwen3")
	if err := os.CopyFS(model, os.DirFS(golden)); err != nil {
		t.Fatal(err)
	}
	args := []string{"convert", model, "-o", out, "--jobs", "1"}
	for _, change := range []bool{false, true} {
		fsys := faultfs.New(fsatomic.OS{}, faultfs.FailFrom(60, syscall.EIO))
		if code, _, stderr := runRecording(fsys, args...); code != 1 {
			t.Fatalf("ends with %d: %s", code, stderr)
		}
		path := filepath.Join(model, "tokenizer.json")
		text, err := os.ReadFile(path)
		if change && err == nil {
			err = os.WriteFile(path, bytes.ReplaceAll(text, []byte("<tool_call>"), []byte("<longer_call>")), 0o666)
		}
		if err != nil {
			t.Fatal(err)
		}
		code, _, stderr := runRecording(fsatomic.OS{}, append(args, "--resume")...)
		if code != 0 || goingOn.MatchString(stderr) == change {
			t.Fatalf("changed %v: %d, %s", change, code, stderr)
		}
		got := read(t, out)[""]
		if code, _, stderr := runRecording(fsatomic.OS{}, append(args, "--force")...); code != 0 {
			t.Fatal(stderr)
		}
		if want := read(t, out)[""]; got != want || strings.Contains(got, "<longer_call>") != change {
			t.Errorf("changed %v: other bytes than without an interruption", change)
		}
		if err := os.Remove(out); err != nil {
			t.Fatal(err)
		}
		removeLeft(t, dir)
	}
}

// figuresOf cuts the tensors' figures out of a report.
func figuresOf(report string) string {
	from, to := strings.Index(report, `"tensors"`), strings.LastIndex(report, "]")
	if from < 0 || to < from {
		return fmt.Sprintf("no tensors in %s", report)
	}
	return report[from:to]
}

// read returns the files of an output, a folder or one file.
func read(t *testing.T, path string) map[string]string {
	t.Helper()
	if info, err := os.Stat(path); err == nil && !info.IsDir() {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return map[string]string{"": string(data)}
	}
	return contents(t, path)
}

func removeLeft(t *testing.T, dir string) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(dir, "out*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range left {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
}
