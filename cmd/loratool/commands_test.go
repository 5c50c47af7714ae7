package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/formats/tensor"
)

// hang is when a command counts as hanging. The slowest ones take a second or
// two.
const hang = time.Minute

// command prepares a command of a script. After hang it is killed.
func command(ts *testscript.TestScript, args []string) *exec.Cmd {
	path, err := exec.LookPath(args[0])
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), hang)
	ts.Defer(cancel)
	cmd := exec.CommandContext(ctx, path, args[1:]...)
	cmd.Dir = ts.MkAbs(".")
	// Of the variables that loratool and its scripts know, the script's values.
	for _, name := range []string{
		"PATH", "HOME", "TMPDIR", "WORK", "TERM", "NO_COLOR", "CLICOLOR_FORCE", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE",
		"LORATOOL_MEMORY", "LORATOOL_JOBS", "LORATOOL_CPU", "LORATOOL_PROGRESS", "LORATOOL_DEBUG", "GOCOVERDIR",
	} {
		if value := ts.Getenv(name); value != "" {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}
	return cmd
}

// exitCode is the code that a shell shows: 128 and the number of the signal for
// a process that was killed.
func exitCode(ts *testscript.TestScript, err error) int {
	var exit *exec.ExitError
	if err == nil {
		return 0
	}
	if !errors.As(err, &exit) {
		ts.Fatalf("%v", err)
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return exit.ExitCode()
}

func (b *background) report(ts *testscript.TestScript, want string, err error) {
	fmt.Fprint(ts.Stdout(), b.stdout.String())
	fmt.Fprint(ts.Stderr(), b.stderr.String())
	if got := exitCode(ts, err); strconv.Itoa(got) != want {
		ts.Fatalf("%v: exit %d, want %s\nstdout: %s\nstderr: %s", b.cmd.Args, got, want, b.stdout.String(), b.stderr.String())
	}
}

// exits CODE COMMAND... runs a command and compares its exit code.
func exits(ts *testscript.TestScript, _ bool, args []string) {
	b := new(background)
	b.start(ts, args[1:])
	b.report(ts, args[0], b.cmd.Wait())
}

// unheard CODE COMMAND... runs a command whose stdout and stderr nobody reads.
func unheard(ts *testscript.TestScript, _ bool, args []string) {
	r, w, err := os.Pipe()
	ts.Check(err)
	ts.Check(r.Close())
	defer w.Close()
	cmd := command(ts, args[1:])
	cmd.Stdout, cmd.Stderr = w, w
	if got := exitCode(ts, cmd.Run()); strconv.Itoa(got) != args[0] {
		ts.Fatalf("exit %d, want %s", got, args[0])
	}
}

// crowd N COMMAND... runs a command N times at once and prints the exit codes,
// sorted.
func crowd(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	all := make([]background, n)
	for i := range all {
		all[i].start(ts, args[1:])
	}
	var codes []string
	for i := range all {
		codes = append(codes, strconv.Itoa(exitCode(ts, all[i].cmd.Wait())))
		fmt.Fprint(ts.Stderr(), all[i].stderr.String())
	}
	slices.Sort(codes)
	fmt.Fprintln(ts.Stdout(), strings.Join(codes, " "))
}

// started is the key of a script's background command.
type started struct{}

// background is a command that runs while a script does other things.
type background struct {
	cmd            *exec.Cmd
	stdout, stderr bytes.Buffer
}

func (b *background) start(ts *testscript.TestScript, args []string) {
	b.cmd = command(ts, args)
	b.stdout.Reset()
	b.stderr.Reset()
	b.cmd.Stdout, b.cmd.Stderr = &b.stdout, &b.stderr
	ts.Check(b.cmd.Start())
}

// start COMMAND... starts a command that finish waits for.
func start(ts *testscript.TestScript, _ bool, args []string) {
	b := ts.Value(started{}).(*background)
	b.start(ts, args)
	ts.Defer(func() {
		if b.cmd.ProcessState == nil {
			b.cmd.Process.Kill()
		}
	})
}

// partial OUT waits until the partial output of OUT is there.
func partial(ts *testscript.TestScript, _ bool, args []string) {
	for deadline := time.Now().Add(hang); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if found, _ := filepath.Glob(ts.MkAbs(args[0]) + ".partial-*"); len(found) > 0 {
			return
		}
	}
	ts.Fatalf("no partial of %s", args[0])
}

// signal INT|TERM|KILL sends a signal to what start has started.
func sendSignal(ts *testscript.TestScript, _ bool, args []string) {
	signals := map[string]os.Signal{"INT": syscall.SIGINT, "TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL}
	ts.Check(ts.Value(started{}).(*background).cmd.Process.Signal(signals[args[0]]))
}

// finish CODE waits for what start has started.
func finish(ts *testscript.TestScript, _ bool, args []string) {
	b := ts.Value(started{}).(*background)
	b.report(ts, args[0], b.cmd.Wait())
}

// weights FILE [KEY=VALUE | NAME:DTYPE:SHAPE[:FILL]]... writes a safetensors
// file with metadata and tensors. SHAPE is like 8x4; FILL is the hexadecimal
// value of every byte of the tensor. Without one it is a hole of zeros, so that
// tensors of any size take no room. A NAME in double quotes may have escapes.
func weights(ts *testscript.TestScript, _ bool, args []string) {
	var specs []tensor.Spec
	metadata := make(map[string]string)
	fills := make(map[string]byte)
	for _, arg := range args[1:] {
		m := regexp.MustCompile(`^(.*):([a-z][a-z0-9_]*):([0-9x]*)(?::([0-9a-f]{2}))?$`).FindStringSubmatch(arg)
		if m == nil {
			key, value, _ := strings.Cut(arg, "=")
			metadata[key] = unquote(ts, value)
			continue
		}
		spec := tensor.Spec{Name: unquote(ts, m[1])}
		var err error
		spec.DType, err = tensor.ParseFlag(m[2])
		ts.Check(err)
		for _, dim := range strings.FieldsFunc(m[3], func(r rune) bool { return r == 'x' }) {
			n, err := strconv.ParseInt(dim, 10, 64)
			ts.Check(err)
			spec.Shape = append(spec.Shape, n)
		}
		if m[4] != "" {
			fill, err := strconv.ParseUint(m[4], 16, 8)
			ts.Check(err)
			fills[spec.Name] = byte(fill)
		}
		specs = append(specs, spec)
	}
	layout, err := safetensors.NewLayout(specs, metadata)
	ts.Check(err)
	path := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(filepath.Dir(path), 0o777))
	f, err := os.Create(path)
	ts.Check(err)
	defer f.Close()
	_, err = f.Write(layout.Header())
	ts.Check(err)
	ts.Check(f.Truncate(layout.Size()))
	for _, t := range layout.Tensors() {
		if fill, ok := fills[t.Name]; ok {
			_, err := f.WriteAt(bytes.Repeat([]byte{fill}, int(t.Size())), t.Offset)
			ts.Check(err)
		}
	}
}

func unquote(ts *testscript.TestScript, s string) string {
	if !strings.HasPrefix(s, `"`) {
		return s
	}
	s, err := strconv.Unquote(s)
	ts.Check(err)
	return s
}

// halve FILE cuts a file to half of its size.
func halve(ts *testscript.TestScript, _ bool, args []string) {
	info, err := os.Stat(ts.MkAbs(args[0]))
	ts.Check(err)
	ts.Check(os.Truncate(ts.MkAbs(args[0]), info.Size()/2))
}

// bit FILE OFFSET flips the lowest bit of a byte; a negative offset counts from the end.
func bit(ts *testscript.TestScript, _ bool, args []string) {
	at, err := strconv.Atoi(args[1])
	ts.Check(err)
	data := []byte(ts.ReadFile(args[0]))
	if at < 0 {
		at += len(data)
	}
	data[at] ^= 1
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), data, 0o666))
}

// json FILE PATH WANT compares a value in a document: strings as they are, all
// else in compact JSON. PATH has keys and indices with dots between them; at
// the end, len is the length of a list and @ stands for the keys of an object.
// Of stderr only the last line is looked at.
func jsonValue(ts *testscript.TestScript, neg bool, args []string) {
	text := ts.ReadFile(args[0])
	if args[0] == "stderr" {
		lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
		text = lines[len(lines)-1]
	}
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		ts.Fatalf("%s is not JSON: %v\n%s", args[0], err, text)
	}
	for _, key := range strings.Split(args[1], ".") {
		v = member(v, key)
	}
	got, ok := v.(string)
	if !ok {
		compact, err := json.Marshal(v)
		ts.Check(err)
		got = string(compact)
	}
	if (got == args[2]) == neg {
		ts.Fatalf("%s of %s is %s, want %s", args[1], args[0], got, args[2])
	}
}

func member(v any, key string) any {
	switch v := v.(type) {
	case map[string]any:
		if key == "@" {
			return strings.Join(slices.Sorted(maps.Keys(v)), " ")
		}
		return v[key]
	case []any:
		if i, err := strconv.Atoi(key); err == nil && i < len(v) {
			return v[i]
		}
		if key == "len" {
			return len(v)
		}
	}
	return nil
}

// scrub FROM TO KEY... copies a document with 0 in the place of figures that
// are not the same everywhere.
func scrub(ts *testscript.TestScript, _ bool, args []string) {
	text := ts.ReadFile(args[0])
	for _, key := range args[2:] {
		figure := regexp.MustCompile(fmt.Sprintf(`(%q: )[1-9][0-9]*`, key))
		if !figure.MatchString(text) {
			ts.Fatalf("%s has no figure %q", args[0], key)
		}
		text = figure.ReplaceAllString(text, "${1}0")
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(text), 0o666))
}

// planned PLAN checks that the outputs of a plan are on the disk with the
// sizes, and with the tensors in the order, that the plan has.
func planned(ts *testscript.TestScript, _ bool, args []string) {
	var plan struct {
		Outputs []struct {
			Path    string
			Bytes   int64
			Tensors []struct {
				Name, DType string
				Shape       []int64
			}
		}
	}
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &plan))
	names := make(map[string]bool)
	for _, out := range plan.Outputs {
		names[filepath.Base(out.Path)] = true
		info, err := os.Stat(ts.MkAbs(out.Path))
		ts.Check(err)
		if info.Size() != out.Bytes {
			ts.Fatalf("%s has %d bytes, planned were %d", out.Path, info.Size(), out.Bytes)
		}
		if len(out.Tensors) == 0 {
			continue
		}
		f, err := safetensors.Open(ts.MkAbs(out.Path))
		ts.Check(err)
		defer f.Close()
		if len(f.Tensors()) != len(out.Tensors) {
			ts.Fatalf("%s has %d tensors, planned were %d", out.Path, len(f.Tensors()), len(out.Tensors))
		}
		for i, got := range f.Tensors() {
			want := out.Tensors[i]
			if got.Name != want.Name || got.DType.String() != want.DType || !slices.Equal(got.Shape, tensor.Shape(want.Shape)) {
				ts.Fatalf("%s: tensor %d is %v, planned was %v", out.Path, i, got, want)
			}
		}
	}
	if dir := filepath.Dir(ts.MkAbs(plan.Outputs[0].Path)); dir != ts.MkAbs(".") {
		entries, err := os.ReadDir(dir)
		ts.Check(err)
		if len(entries) != len(names) {
			ts.Fatalf("%s has %d files, planned were %d", dir, len(entries), len(names))
		}
	}
}

// files FOLDER prints the names in a folder.
func files(ts *testscript.TestScript, _ bool, args []string) {
	entries, err := os.ReadDir(ts.MkAbs(args[0]))
	ts.Check(err)
	out := ts.Stdout()
	for _, e := range entries {
		fmt.Fprintln(out, e.Name())
	}
}

// same A B compares two files, or all files of two folders.
func same(ts *testscript.TestScript, neg bool, args []string) {
	a, b := contents(ts, args[0]), contents(ts, args[1])
	if maps.Equal(a, b) == neg {
		ts.Fatalf("%s and %s: equal is %v", args[0], args[1], !neg)
	}
}

func contents(ts *testscript.TestScript, path string) map[string]string {
	path = ts.MkAbs(path)
	info, err := os.Stat(path)
	ts.Check(err)
	if !info.IsDir() {
		data, err := os.ReadFile(path)
		ts.Check(err)
		return map[string]string{"": string(data)}
	}
	all := make(map[string]string)
	entries, err := os.ReadDir(path)
	ts.Check(err)
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(path, e.Name()))
		ts.Check(err)
		all[e.Name()] = string(data)
	}
	return all
}
