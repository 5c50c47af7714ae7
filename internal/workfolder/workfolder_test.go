package workfolder_test

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/internal/fsatomic/faultfs"
	"github.com/loratool/loratool/internal/workfolder"
)

const key = "0123456789abcdef-and-more"

func open(t *testing.T, output, key string, resume bool) *workfolder.Folder {
	t.Helper()
	f, err := workfolder.Open(fsatomic.OS{}, output, key, resume)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestResume guards that a folder is taken up by a run of the same key and by no other,
// and only when asked to.
func TestResume(t *testing.T) {
	output := filepath.Join(t.TempDir(), "out")
	first := open(t, output, key, true)
	if first.Resumed() {
		t.Error("a new folder counts as resumed")
	}
	if err := first.Write("a", []byte("found")); err != nil {
		t.Fatal(err)
	}
	again := open(t, output, key, true)
	if !again.Resumed() || again.Dir() != first.Dir() {
		t.Errorf("%s is not taken up, but %s", first.Dir(), again.Dir())
	}
	if data, err := again.Read("a"); err != nil || string(data) != "found" {
		t.Errorf("read %q, %v", data, err)
	}
	if err := again.Write("a", []byte("better")); err != nil {
		t.Fatal(err)
	}
	if data, err := first.Read("a"); err != nil || string(data) != "better" {
		t.Errorf("read %q, %v", data, err)
	}
	for name, f := range map[string]*workfolder.Folder{
		"another key": open(t, output, "1123456789abcdef", true), "not asked for": open(t, output, key, false),
		"another output": open(t, output+"-2", key, true),
	} {
		if f.Resumed() || f.Dir() == first.Dir() {
			t.Errorf("%s: %s is taken up", name, f.Dir())
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(f.Dir()); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", f.Dir(), err)
		}
	}
	if left, err := fsatomic.Leftovers(fsatomic.OS{}, output); err != nil || len(left) != 1 {
		t.Errorf("left are %v, %v", left, err)
	}
	for range 2 { // it is gone the second time
		if err := first.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := (*workfolder.Folder)(nil).Close(); err != nil {
		t.Error(err)
	}
}

// TestFaults guards that a file is there whole or not at all, whatever call fails.
func TestFaults(t *testing.T) {
	for k := 1; ; k++ {
		mem := faultfs.NewMem()
		fsys := faultfs.New(mem, faultfs.FailAt(k, syscall.EIO))
		f, err := workfolder.Open(fsys, "/out", key, false)
		if err == nil {
			err = f.Write("a", []byte("found"))
		}
		if err != nil {
			if f != nil && f.Dir() != "" {
				if data, err := mem.ReadFile(filepath.Join(f.Dir(), key[:16]+"-a")); err == nil && string(data) != "found" {
					t.Fatalf("call %d failed, the file holds %q", k, data)
				}
			}
			continue
		}
		if fsys.Calls() < k {
			if k < 5 {
				t.Errorf("only %d calls were made to fail", k)
			}
			return
		}
	}
}
