package faultfs_test

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"syscall"
	"testing"

	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/internal/fsatomic/faultfs"
)

// TestInjectors makes the same six calls with each injector.
func TestInjectors(t *testing.T) {
	tests := []struct {
		name   string
		inject faultfs.Injector
		faults []int // the calls that fail
	}{
		{"none", faultfs.FailAt(0, syscall.EIO), nil},
		{"once", faultfs.FailAt(3, syscall.EIO), []int{3}},
		{"from then on", faultfs.FailFrom(4, syscall.EIO), []int{4, 5, 6}},
		{"one kind", faultfs.FailOp(faultfs.OpWrite, syscall.EIO), []int{2, 4}},
	}
	for _, tt := range tests {
		fsys := faultfs.New(faultfs.NewMem(), tt.inject)
		f, err := fsys.Create("/x")
		if err != nil {
			t.Fatal(err)
		}
		write := func() error {
			_, err := f.WriteAt([]byte("1234"), 0)
			return err
		}
		errs := []error{nil, write(), f.Sync(), write(), f.Sync(), f.Close()}
		var failed []int
		for i, err := range errs {
			if errors.Is(err, syscall.EIO) {
				failed = append(failed, i+1)
			} else if err != nil {
				t.Errorf("%s: call %d: %v", tt.name, i+1, err)
			}
		}
		if !slices.Equal(failed, tt.faults) || len(fsys.Faults()) != len(tt.faults) {
			t.Errorf("%s: calls %v failed, want %v", tt.name, failed, tt.faults)
		}
		if fsys.Calls() != 6 || fsys.OpenFiles() != 0 {
			t.Errorf("%s: %d calls and %d open files, want 6 and 0", tt.name, fsys.Calls(), fsys.OpenFiles())
		}
	}
}

// TestFaultEffects tells what of a call has happened when it fails.
func TestFaultEffects(t *testing.T) {
	mem := faultfs.NewMem()
	if err := mem.WriteFile("/a", nil); err != nil {
		t.Fatal(err)
	}
	fsys := faultfs.New(mem, faultfs.FailAt(1, syscall.EIO), faultfs.FailAt(2, faultfs.Late(syscall.EIO)),
		faultfs.FailAt(4, syscall.ENOSPC), faultfs.FailAt(5, faultfs.Late(syscall.EIO)))
	has := func(name string) bool {
		_, err := mem.Lstat(name)
		return !errors.Is(err, fs.ErrNotExist)
	}
	if err := fsys.RenameNoReplace("/a", "/b"); !errors.Is(err, syscall.EIO) || has("/b") {
		t.Errorf("a fault: error %v, moved: %t", err, has("/b"))
	}
	if err := fsys.RenameNoReplace("/a", "/b"); !errors.Is(err, syscall.EIO) || !has("/b") {
		t.Errorf("a late fault: error %v, moved: %t", err, has("/b"))
	}
	f, err := fsys.Create("/c")
	if err != nil {
		t.Fatal(err)
	}
	if n, err := f.WriteAt([]byte("1234"), 0); n != 2 || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a full disk took %d bytes, error %v; want half of 4", n, err)
	}
	if n, err := f.WriteAt([]byte("56"), 2); n != 2 || !errors.Is(err, syscall.EIO) {
		t.Errorf("a late fault took %d bytes, error %v; want 2", n, err)
	}
	if data, err := mem.ReadFile("/c"); string(data) != "1256" || err != nil {
		t.Errorf("the file holds %q, %v", data, err)
	}
	if got := fmt.Sprint(fsys.Faults()); got != "[{1 rename /a} {2 rename /a} {4 write /c} {5 write /c}]" {
		t.Errorf("faults: %s", got)
	}
}

// TestCrash has what each kind of sync saves, and what it does not.
func TestCrash(t *testing.T) {
	tests := []struct {
		name string
		do   func(*faultfs.Mem, fsatomic.File)
		want string // content of /dir/new after a crash that keeps nothing
	}{
		{"nothing", func(*faultfs.Mem, fsatomic.File) {}, "absent"},
		{"content only", func(m *faultfs.Mem, f fsatomic.File) { must(f.Sync()) }, "absent"},
		{"name only", func(m *faultfs.Mem, f fsatomic.File) { must(m.SyncDir("/dir"), m.SyncDir("/")) }, ""},
		{"not the folder's name", func(m *faultfs.Mem, f fsatomic.File) { must(f.Sync(), m.SyncDir("/dir")) }, "absent"},
		{"both", func(m *faultfs.Mem, f fsatomic.File) { must(f.Sync(), m.SyncDir("/dir"), m.SyncDir("/")) }, "content"},
		{"then more", func(m *faultfs.Mem, f fsatomic.File) {
			must(f.Sync(), m.SyncDir("/dir"), m.SyncDir("/"), m.WriteFile("/dir/new", []byte("CONTENT and more")))
		}, "content"},
		{"then renamed", func(m *faultfs.Mem, f fsatomic.File) {
			must(f.Sync(), m.SyncDir("/dir"), m.SyncDir("/"), m.RenameNoReplace("/dir/new", "/dir/x"))
		}, "content"},
		{"then renamed and synced", func(m *faultfs.Mem, f fsatomic.File) {
			must(f.Sync(), m.SyncDir("/dir"), m.SyncDir("/"), m.RenameNoReplace("/dir/new", "/x"), m.SyncDir("/"))
		}, "absent"},
		{"then removed", func(m *faultfs.Mem, f fsatomic.File) {
			must(f.Sync(), m.SyncDir("/dir"), m.SyncDir("/"), m.Remove("/dir/new"), m.Remove("/dir"))
		}, "content"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			mem := faultfs.NewMem()
			must(mem.Mkdir("/dir"))
			f, err := mem.Create("/dir/new")
			must(err)
			_, err = f.WriteAt([]byte("content"), 0)
			must(err)
			tt.do(mem, f)

			crashed := mem.Crash(0, 1)
			if got := contentOf(crashed, "/dir/new"); got != tt.want {
				t.Errorf("keeping nothing: %q, want %q", got, tt.want)
			}
			if got, want := contentOf(mem.Crash(1, 1), "/dir/new"), contentOf(mem, "/dir/new"); got != want {
				t.Errorf("keeping all: %q, want %q", got, want)
			}
			if got := contentOf(crashed.Crash(0, 2), "/dir/new"); got != tt.want {
				t.Errorf("crashing again: %q, want %q", got, tt.want)
			}
		})
	}
}

// TestCrashBetween wants mixtures, the same ones for the same seed.
func TestCrashBetween(t *testing.T) {
	mem := faultfs.NewMem()
	f, err := mem.Create("/x")
	must(err, f.Truncate(32), f.Sync(), mem.SyncDir("/"))
	_, err = f.WriteAt([]byte("11111111222222223333333344444444"), 0)
	must(err)
	seen := map[string]bool{}
	for seed := range uint64(100) {
		content := contentOf(mem.Crash(0.5, seed), "/x")
		if again := contentOf(mem.Crash(0.5, seed), "/x"); again != content {
			t.Fatalf("seed %d gave %q, then %q", seed, content, again)
		}
		seen[content] = true
	}
	if len(seen) < 8 {
		t.Errorf("100 seeds gave %d mixtures, want at least 8 of 16", len(seen))
	}
}

// TestCrashIsACopy wants the two file systems to share nothing.
func TestCrashIsACopy(t *testing.T) {
	mem := faultfs.NewMem()
	must(mem.WriteFile("/x", []byte("old")))
	copied := mem.Crash(1, 0)
	must(mem.WriteFile("/x", []byte("new")), mem.Mkdir("/y"), copied.Mkdir("/z"))
	if got := contentOf(copied, "/x"); got != "old" {
		t.Errorf("the copy holds %q", got)
	}
	if contentOf(copied, "/y") != "absent" || contentOf(mem, "/z") != "absent" {
		t.Error("folders show up on the other side")
	}
}

func contentOf(m *faultfs.Mem, name string) string {
	data, err := m.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return "absent"
	}
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// must panics because the calls of a test's setup do not fail.
func must(errs ...error) {
	if err := errors.Join(errs...); err != nil {
		panic(err)
	}
}
