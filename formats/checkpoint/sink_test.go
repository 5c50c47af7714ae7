package checkpoint_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/internal/fsatomic/faultfs"
)

// layout is what the tests write, as a folder or as one file: a, b and an
// empty tensor, a side file made up and one that is only known at the end.
func layout(t *testing.T, path string) *checkpoint.Layout {
	t.Helper()
	var sidecars []checkpoint.Sidecar
	if !strings.HasSuffix(path, ".safetensors") {
		sidecars = []checkpoint.Sidecar{
			{Name: "config.json", Data: []byte("{}\n")},
			{Name: "README.md", Data: []byte("?????"), Final: func() []byte { return []byte("final") }},
		}
	}
	l, err := checkpoint.NewLayout(path, []tensor.Spec{spec("a", 6), spec("b", 4), spec("empty", 0)}, sidecars,
		checkpoint.Options{ShardSize: 6, Metadata: map[string]string{"hash": "0000"}})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// known are the final metadata.
var known = map[string]string{"hash": "beef"}

// write fills and commits a sink as the engine does.
func write(fs fsatomic.FS, l *checkpoint.Layout, force bool) error {
	sink, err := checkpoint.Create(fs, l, force)
	if err != nil {
		return err
	}
	for _, w := range []struct {
		name, data string
		off        int64
	}{{"a", "def", 3}, {"a", "abc", 0}, {"b", "\x00\x00", 0}, {"b", "yz", 2}} {
		if err := sink.WriteAt(w.name, []byte(w.data), w.off); err != nil {
			return errors.Join(err, sink.Abort())
		}
	}
	return sink.Commit(known)
}

// writeCareless ignores every error up to Commit.
func writeCareless(fs fsatomic.FS, l *checkpoint.Layout, force bool) error {
	sink, err := checkpoint.Create(fs, l, force)
	if err != nil {
		return err
	}
	_ = sink.WriteAt("a", []byte("abcdef"), 0)
	_ = sink.WriteAt("b", []byte("\x00\x00yz"), 0)
	return sink.Commit(known)
}

// check opens what write has made.
func check(t *testing.T, path string) {
	t.Helper()
	m := mustOpen(t, path, hfrepo.Cache{})
	for name, want := range map[string]string{"a": "abcdef", "b": "\x00\x00yz", "empty": ""} {
		r, err := m.Open(name)
		if err != nil {
			t.Error(err)
			continue
		}
		if got, err := io.ReadAll(io.NewSectionReader(r, 0, 99)); string(got) != want || err != nil {
			t.Errorf("%s holds %q, %v; want %q", name, got, err, want)
		}
	}
	if md := m.Metadata(); len(md) != 2 || md["format"] != "pt" || md["hash"] != "beef" {
		t.Errorf("metadata %v", md)
	}
	if !m.IsFolder {
		return
	}
	for name, want := range map[string]string{"config.json": "{}\n", "README.md": "final"} {
		if got, err := os.ReadFile(filepath.Join(path, name)); string(got) != want || err != nil {
			t.Errorf("%s holds %q, %v; want %q", name, got, err, want)
		}
	}
}

// checkNothing wants an empty folder.
func checkNothing(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestSink(t *testing.T) {
	for _, name := range []string{"out", "out.safetensors"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, name)
			if err := write(fsatomic.OS{}, layout(t, path), false); err != nil {
				t.Fatal(err)
			}
			check(t, path)
			entries, _ := os.ReadDir(dir)
			if len(entries) != 1 {
				t.Errorf("beside the output: %v", entries)
			}
			if err := write(fsatomic.OS{}, layout(t, path), false); !errors.As(err, new(*fsatomic.ExistsError)) {
				t.Errorf("a second time: error %v, want an ExistsError", err)
			}
			if err := write(fsatomic.OS{}, layout(t, path), true); err != nil {
				t.Errorf("with force: %v", err)
			}
			check(t, path)
		})
	}
}

// TestSinkMisuse guards that bytes outside the plan are refused, that Commit
// remembers, and that nothing is left then.
func TestSinkMisuse(t *testing.T) {
	for _, c := range []struct {
		name string
		data string
		off  int64
		to   string
		want string
	}{
		{"unknown tensor", "x", 0, "c", `writing "c": not in the layout`},
		{"before the beginning", "x", -1, "a", "outside its 6 bytes"},
		{"over the end", "xy", 5, "a", "outside its 6 bytes"},
		{"behind the end", "x", 6, "a", "outside its 6 bytes"},
		{"more than there is", "1234567", 0, "a", "outside its 6 bytes"},
		{"zeros at an offset that overflows", "\x00\x00", 1<<63 - 1, "a", "outside its 6 bytes"},
		{"into the empty one", "x", 0, "empty", "outside its 0 bytes"},
		{"twice", "b", 1, "a", "written twice"},
		{"twice, zeros", "\x00", 1, "a", "written twice"},
		{"overlapping", "bc", 1, "a", "written twice"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			sink, err := checkpoint.Create(fsatomic.OS{}, layout(t, filepath.Join(dir, "out")), false)
			if err != nil {
				t.Fatal(err)
			}
			if err := sink.WriteAt("a", []byte("ab"), 0); err != nil {
				t.Fatal(err)
			}
			first := sink.WriteAt(c.to, []byte(c.data), c.off)
			if first == nil || !strings.Contains(first.Error(), c.want) {
				t.Errorf("error %v, want %q", first, c.want)
			}
			if err := sink.WriteAt("another mistake", nil, 0); err == nil {
				t.Error("wrote a tensor that is not in the layout")
			}
			_ = sink.WriteAt("a", []byte("cdef"), 2)
			_ = sink.WriteAt("b", []byte("1234"), 0)
			if err := sink.Commit(known); err == nil || first != nil && !errors.Is(err, first) {
				t.Errorf("committed with error %v, want %v", err, first)
			}
			checkNothing(t, dir)
		})
	}
}

// TestSinkIncomplete guards that a missing byte, at any place, is an error.
func TestSinkIncomplete(t *testing.T) {
	for missing := range int64(6) {
		dir := t.TempDir()
		sink, err := checkpoint.Create(fsatomic.OS{}, layout(t, filepath.Join(dir, "out")), false)
		if err != nil {
			t.Fatal(err)
		}
		for i := range int64(6) {
			if i == missing {
				continue
			}
			if err := sink.WriteAt("a", []byte{0}, i); err != nil {
				t.Fatal(err)
			}
		}
		if err := sink.WriteAt("b", make([]byte, 4), 0); err != nil {
			t.Fatal(err)
		}
		if err := sink.Commit(known); err == nil || !strings.Contains(err.Error(), `tensor "a" is incomplete`) {
			t.Errorf("byte %d is missing: error %v", missing, err)
		}
		checkNothing(t, dir)
	}
}

// TestCommitMetadata guards that the header keeps its length: other metadata
// than declared are refused and leave nothing.
func TestCommitMetadata(t *testing.T) {
	for _, c := range []struct {
		name     string
		metadata map[string]string
		want     string
	}{
		{"longer", map[string]string{"hash": "00000"}, "metadata takes"},
		{"shorter", map[string]string{"hash": "000"}, "metadata takes"},
		{"longer by escaping", map[string]string{"hash": "000\""}, "metadata takes"},
		{"another key", map[string]string{"hush": "0000"}, "was not declared"},
		{"one more", map[string]string{"hash": "0000", "more": ""}, "was not declared"},
		{"none", nil, "metadata has"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			sink, err := checkpoint.Create(fsatomic.OS{}, layout(t, filepath.Join(dir, "out")), false)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(sink.WriteAt("a", []byte("abcdef"), 0), sink.WriteAt("b", []byte("1234"), 0)); err != nil {
				t.Fatal(err)
			}
			if err := sink.Commit(c.metadata); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			checkNothing(t, dir)
		})
	}
}

// TestSidecars guards that a side file is copied or written at its planned
// size, and that a source of another size is noticed.
func TestSidecars(t *testing.T) {
	for _, c := range []struct {
		name    string
		sidecar checkpoint.Sidecar
		want    string // empty to accept
	}{
		{"copied", checkpoint.Sidecar{Source: "five", Size: 5}, ""},
		{"source has grown", checkpoint.Sidecar{Source: "five", Size: 4}, "side.json"},
		{"source has shrunk", checkpoint.Sidecar{Source: "five", Size: 6}, "changed while it was read"},
		{"source is gone", checkpoint.Sidecar{Source: "none", Size: 5}, "no such file"},
		{"final is longer", checkpoint.Sidecar{Data: []byte("12345"), Final: func() []byte { return []byte("123456") }}, "6 bytes instead of the planned 5"},
		{"final is shorter", checkpoint.Sidecar{Data: []byte("12345"), Final: func() []byte { return nil }}, "0 bytes instead of the planned 5"},
	} {
		t.Run(c.name, func(t *testing.T) {
			in, dir := t.TempDir(), t.TempDir()
			writeFile(t, in, "five", []byte("12345"))
			if c.sidecar.Name = "side.json"; c.sidecar.Source != "" {
				c.sidecar.Source = filepath.Join(in, c.sidecar.Source)
			}
			l, err := checkpoint.NewLayout(filepath.Join(dir, "out"), []tensor.Spec{spec("a", 0)}, []checkpoint.Sidecar{c.sidecar}, checkpoint.Options{})
			if err != nil {
				t.Fatal(err)
			}
			sink, err := checkpoint.Create(fsatomic.OS{}, l, false)
			if err != nil {
				t.Fatal(err)
			}
			err = sink.Commit(nil)
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("error %v, want %q", err, c.want)
				}
				checkNothing(t, dir)
				return
			}
			if got, rerr := os.ReadFile(filepath.Join(dir, "out", "side.json")); err != nil || string(got) != "12345" {
				t.Errorf("side file holds %q, %v, %v", got, rerr, err)
			}
		})
	}
}

// TestSinkReadsBack guards that a check before Commit sees the bytes that were
// written, in files and folders.
func TestSinkReadsBack(t *testing.T) {
	for _, name := range []string{"out", "out.safetensors"} {
		dir := t.TempDir()
		sink, err := checkpoint.Create(fsatomic.OS{}, layout(t, filepath.Join(dir, name)), false)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(sink.WriteAt("a", []byte("abcdef"), 0), sink.WriteAt("b", []byte("1234"), 0)); err != nil {
			t.Fatal(err)
		}
		for tensor, want := range map[string]string{"a": "abcdef", "b": "1234"} {
			r, err := sink.Open(tensor)
			if err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 99)
			n, err := r.ReadAt(got, 0)
			if string(got[:n]) != want || err != io.EOF {
				t.Errorf("%s: %s reads back as %q, %v", name, tensor, got[:n], err)
			}
		}
		if _, err := sink.Open("c"); err == nil {
			t.Error("opened a tensor that is not in the layout")
		}
		if err := sink.Abort(); err != nil {
			t.Error(err)
		}
		checkNothing(t, dir)
	}
}

// TestWriteFails guards that a worker hears of a disk's failure at once.
func TestWriteFails(t *testing.T) {
	mem := faultfs.NewMem()
	sink, err := checkpoint.Create(faultfs.New(mem, faultfs.FailOp(faultfs.OpWrite, syscall.EIO)), layout(t, "/out"), false)
	if err != nil {
		t.Fatal(err)
	}
	if err := sink.WriteAt("a", []byte("abc"), 0); !errors.Is(err, syscall.EIO) || !strings.HasPrefix(err.Error(), `writing "a": `) {
		t.Errorf("error %v", err)
	}
	if err := sink.Abort(); err != nil {
		t.Error(err)
	}
}

func TestCreateChecksSpace(t *testing.T) {
	mem := faultfs.NewMem()
	l := layout(t, "/out")
	mem.SetFree(l.Size() - 1)
	_, err := checkpoint.Create(mem, l, false)
	if space, ok := errors.AsType[*fsatomic.SpaceError](err); !ok || space.Need != l.Size() {
		t.Errorf("error %v, want a SpaceError of %d", err, l.Size())
	}
	if entries, _ := mem.ReadDir("/"); len(entries) != 0 {
		t.Errorf("left behind: %v", entries)
	}
	mem.SetFree(l.Size())
	if err := write(mem, l, false); err != nil {
		t.Error(err)
	}
}

// TestSinkConcurrent guards that bands of many workers land where they belong;
// the race detector looks on.
func TestSinkConcurrent(t *testing.T) {
	const size, band = 1 << 12, 64
	path := filepath.Join(t.TempDir(), "out")
	l, err := checkpoint.NewLayout(path, []tensor.Spec{spec("a", size), spec("b", size)}, nil, checkpoint.Options{})
	if err != nil {
		t.Fatal(err)
	}
	sink, err := checkpoint.Create(fsatomic.OS{}, l, false)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			p := make([]byte, band)
			for off := int64(worker * band); off < size; off += 4 * band {
				for i := range p {
					p[i] = byte((off + int64(i)) / 3)
				}
				if err := errors.Join(sink.WriteAt("a", p, off), sink.WriteAt("b", p, size-band-off)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := sink.Commit(nil); err != nil {
		t.Fatal(err)
	}
	r, err := mustOpen(t, path, hfrepo.Cache{}).Open("a")
	if err != nil {
		t.Fatal(err)
	}
	got, _ := io.ReadAll(io.NewSectionReader(r, 0, size))
	for i, b := range got {
		if b != byte(i/3) {
			t.Fatalf("byte %d is %d", i, b)
		}
	}
}

// TestSinkFaults fails the k-th call to the file system for k = 1, 2, ...: the
// output must be absent, or what it was before, or complete, and no partial may
// be left.
func TestSinkFaults(t *testing.T) {
	writers := map[string]func(fsatomic.FS, *checkpoint.Layout, bool) error{"careful": write, "careless": writeCareless}
	for _, name := range []string{"out", "out.safetensors"} {
		want := harvest(t, wholeRun(t, name), "/")
		for _, force := range []bool{false, true} {
			for writer, run := range writers {
				for _, injected := range []error{syscall.EIO, syscall.ENOSPC} {
					t.Run(fmt.Sprintf("%s/force %v/%s/%v", name, force, writer, injected), func(t *testing.T) {
						for k := 1; ; k++ {
							mem := faultfs.NewMem()
							if force {
								plant(t, mem, name)
							}
							before := harvest(t, mem, "/")
							fsys := faultfs.New(mem, faultfs.FailAt(k, injected))
							err := run(fsys, layout(t, "/"+name), force)
							after := harvest(t, mem, "/")
							what := fmt.Sprintf("call %d, %v: error %v", k, fsys.Faults(), err)
							switch {
							case err == nil && after != want:
								t.Fatalf("%s: disk holds %q, want %q", what, after, want)
							case err != nil && after != before:
								t.Fatalf("%s: disk holds %q, want %q", what, after, before)
							case err != nil && strings.Contains(err.Error(), "\n") && writer == "careless":
								t.Errorf("%s: error of several lines", what)
							}
							if n := fsys.OpenFiles(); n != 0 {
								t.Fatalf("%s: %d files are open", what, n)
							}
							if fsys.Calls() < k {
								if err != nil || k < 12 {
									t.Errorf("%s: only %d calls", what, k)
								}
								return
							}
						}
					})
				}
			}
		}
	}
}

// wholeRun is the disk after a run without a fault.
func wholeRun(t *testing.T, name string) *faultfs.Mem {
	t.Helper()
	mem := faultfs.NewMem()
	if err := write(mem, layout(t, "/"+name), false); err != nil {
		t.Fatal(err)
	}
	return mem
}

// plant puts an old output on the disk.
func plant(t *testing.T, mem *faultfs.Mem, name string) {
	t.Helper()
	if !strings.HasSuffix(name, ".safetensors") {
		if err := mem.Mkdir("/" + name); err != nil {
			t.Fatal(err)
		}
		name += "/config.json"
	}
	if err := mem.WriteFile("/"+name, []byte("old")); err != nil {
		t.Fatal(err)
	}
}

// harvest writes down all that a disk holds.
func harvest(t *testing.T, mem *faultfs.Mem, dir string) string {
	t.Helper()
	entries, err := mem.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, e := range entries {
		path := strings.TrimSuffix(dir, "/") + "/" + e.Name()
		if e.IsDir() {
			fmt.Fprintf(&all, "%s/\n%s", path, harvest(t, mem, path))
			continue
		}
		data, err := mem.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&all, "%s: %q\n", path, data)
	}
	return all.String()
}
