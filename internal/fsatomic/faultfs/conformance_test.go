package faultfs_test

import (
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/internal/fsatomic/faultfs"
)

// TestConformance puts every file system through the same calls, so that what
// is proved on Mem holds on a disk.
func TestConformance(t *testing.T) {
	t.Run("OS", func(t *testing.T) { conform(t, fsatomic.OS{}, t.TempDir()) })
	t.Run("OS past the cache", func(t *testing.T) { conform(t, fsatomic.OS{Direct: true}, t.TempDir()) })
	t.Run("Mem", func(t *testing.T) { conform(t, faultfs.NewMem(), "/") })
	t.Run("FS", func(t *testing.T) {
		fsys := faultfs.New(faultfs.NewMem())
		conform(t, fsys, "/")
		if fsys.Calls() == 0 || fsys.OpenFiles() != 0 || len(fsys.Faults()) != 0 {
			t.Errorf("%d calls, %d open files, faults %v", fsys.Calls(), fsys.OpenFiles(), fsys.Faults())
		}
	})
}

func conform(t *testing.T, fsys fsatomic.FS, dir string) {
	at := func(name string) string { return filepath.Join(dir, name) }
	want := func(what string, got, want error) {
		t.Helper()
		if !errors.Is(got, want) {
			t.Errorf("%s: got error %v, want %v", what, got, want)
		}
	}
	list := func(name string) string {
		t.Helper()
		entries, err := fsys.ReadDir(at(name))
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, entry := range entries {
			name := entry.Name()
			if entry.IsDir() {
				name += "/"
			}
			names = append(names, name)
		}
		return strings.Join(names, " ")
	}
	wantList := func(name, want string) {
		t.Helper()
		if got := list(name); got != want {
			t.Errorf("%q holds %q, want %q", name, got, want)
		}
	}

	f, err := fsys.Create(at("b"))
	want("create", err, nil)
	_, err = fsys.Create(at("b"))
	want("create twice", err, fs.ErrExist)
	_, err = fsys.Create(at("no/b"))
	want("create in a missing folder", err, fs.ErrNotExist)
	want("mkdir", fsys.Mkdir(at("a")), nil)
	want("mkdir twice", fsys.Mkdir(at("a")), fs.ErrExist)
	want("mkdir onto a file", fsys.Mkdir(at("b")), fs.ErrExist)
	_, err = fsys.Create(at("a"))
	want("create onto a folder", err, fs.ErrExist)
	wantList("", "a/ b")

	want("truncate", f.Truncate(10), nil)
	n, err := f.WriteAt([]byte("xyz"), 4)
	if want("write", err, nil); n != 3 {
		t.Errorf("wrote %d bytes, want 3", n)
	}
	_, err = f.WriteAt([]byte("x"), -1)
	if err == nil {
		t.Error("wrote at a negative offset")
	}
	want("sync", f.Sync(), nil)
	info, err := fsys.Lstat(at("b"))
	want("lstat", err, nil)
	if info.Size() != 10 || info.Name() != "b" || !info.Mode().IsRegular() {
		t.Errorf("lstat: %v", info)
	}
	want("close", f.Close(), nil)
	want("close twice", f.Close(), fs.ErrClosed)
	_, err = f.WriteAt([]byte("x"), 0)
	want("write after close", err, fs.ErrClosed)
	want("sync after close", f.Sync(), fs.ErrClosed)

	again, err := fsys.Open(at("b"))
	want("open", err, nil)
	n, err = again.WriteAt([]byte("!"), 5)
	if want("write into what is there", err, nil); n != 1 {
		t.Errorf("wrote %d bytes, want 1", n)
	}
	want("close", again.Close(), nil)
	data, err := fsys.ReadFile(at("b"))
	if want("read", err, nil); string(data) != "\x00\x00\x00\x00x!z\x00\x00\x00" {
		t.Errorf("read %q", data)
	}
	_, err = fsys.Open(at("no"))
	want("open a missing file", err, fs.ErrNotExist)
	_, err = fsys.ReadFile(at("no"))
	want("read a missing file", err, fs.ErrNotExist)
	if _, err = fsys.Open(at("a")); err == nil {
		t.Error("opened a folder")
	}

	want("rename a missing file", fsys.RenameNoReplace(at("c"), at("d")), fs.ErrNotExist)
	want("rename onto a folder", fsys.RenameNoReplace(at("b"), at("a")), fs.ErrExist)
	want("rename a folder onto a file", fsys.RenameNoReplace(at("a"), at("b")), fs.ErrExist)
	want("rename", fsys.RenameNoReplace(at("b"), at("c")), nil)
	want("rename a folder", fsys.RenameNoReplace(at("a"), at("d")), nil)
	wantList("", "c d/")

	g, err := fsys.Create(at("d/x"))
	want("create in a folder", err, nil)
	want("close", g.Close(), nil)
	if err := fsys.Exchange(at("c"), at("d")); errors.Is(err, errors.ErrUnsupported) {
		t.Logf("no exchange: %v", err)
		want("rename", fsys.RenameNoReplace(at("c"), at("e")), nil)
		want("rename", fsys.RenameNoReplace(at("d"), at("c")), nil)
		want("rename", fsys.RenameNoReplace(at("e"), at("d")), nil)
	} else {
		want("exchange", err, nil)
		want("exchange with a missing file", fsys.Exchange(at("c"), at("e")), fs.ErrNotExist)
		want("exchange a missing file", fsys.Exchange(at("e"), at("c")), fs.ErrNotExist)
	}
	wantList("", "c/ d")
	wantList("c", "x")

	same, err := fsys.Stat(at("d"))
	want("stat", err, nil)
	if same.Size() != 10 || same.IsDir() {
		t.Errorf("stat after exchange: %v", same)
	}
	_, err = fsys.Stat(at("b"))
	want("stat a missing file", err, fs.ErrNotExist)
	_, err = fsys.Lstat(at("b"))
	want("lstat a missing file", err, fs.ErrNotExist)
	_, err = fsys.ReadDir(at("b"))
	want("list a missing folder", err, fs.ErrNotExist)

	want("sync a folder", fsys.SyncDir(at("c")), nil)
	want("sync the root", fsys.SyncDir(dir), nil)
	if fsys.Remove(at("c")) == nil {
		t.Error("removed a folder that is not empty")
	}
	want("remove", fsys.Remove(at("c/x")), nil)
	want("remove a folder", fsys.Remove(at("c")), nil)
	want("remove a missing file", fsys.Remove(at("c")), fs.ErrNotExist)
	wantList("", "d")

	if free, err := fsys.Free(dir); err != nil || free <= 0 {
		t.Errorf("free: %d, %v", free, err)
	}
	resolved, err := fsys.Resolve(at("d"))
	if want("resolve", err, nil); filepath.Base(resolved) != "d" {
		t.Errorf("resolved to %q", resolved)
	}
	_, err = fsys.Resolve(at("c"))
	want("resolve a missing file", err, fs.ErrNotExist)
}
