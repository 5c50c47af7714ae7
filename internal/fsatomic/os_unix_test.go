//go:build unix

package fsatomic

import (
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRenameChecked is for systems whose kernel has no rename that does not
// replace, with and without hard links.
func TestRenameChecked(t *testing.T) {
	noLinks := func(string, string) error { return unix.EPERM }
	for _, link := range []func(string, string) error{os.Link, noLinks} {
		for _, what := range []string{"file", "folder"} {
			for _, taken := range []string{"", "file", "empty folder", "folder", "link"} {
				dir := t.TempDir()
				from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
				put(t, from, what)
				put(t, to, taken)
				before, _ := os.Lstat(to)
				err := renameChecked(from, to, link)
				after, _ := os.Lstat(to)
				if taken == "" {
					if _, gone := os.Lstat(from); err != nil || after == nil || !errors.Is(gone, fs.ErrNotExist) {
						t.Errorf("%s to a free name: %v, then %v, %v", what, err, after, gone)
					}
					continue
				}
				if !errors.Is(err, fs.ErrExist) {
					t.Errorf("%s onto %s: got error %v, want ErrExist", what, taken, err)
				}
				if _, err := os.Lstat(from); err != nil || !os.SameFile(before, after) {
					t.Errorf("%s onto %s changed something", what, taken)
				}
			}
		}
	}
}

func put(t *testing.T, name, what string) {
	t.Helper()
	var err error
	switch what {
	case "file":
		err = os.WriteFile(name, []byte("x"), 0o666)
	case "link":
		err = os.Symlink("nowhere", name)
	case "empty folder":
		err = os.Mkdir(name, 0o777)
	case "folder":
		if err = os.Mkdir(name, 0o777); err == nil {
			err = os.WriteFile(filepath.Join(name, "x"), nil, 0o666)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestUmask wants outputs to have the modes that any program gives. It changes
// the umask of the process and must not run beside other tests.
func TestUmask(t *testing.T) {
	old := syscall.Umask(0o027)
	defer syscall.Umask(old)
	dir := t.TempDir()
	out, err := New(OS{}, filepath.Join(dir, "out"), KindDir, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Create("config.json", 1); err != nil {
		t.Fatal(err)
	}
	if err := out.Commit(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]fs.FileMode{"out": 0o750 | fs.ModeDir, "out/config.json": 0o640} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode() != want {
			t.Errorf("%s: %v %v, want mode %v", name, info.Mode(), err, want)
		}
	}
}

// TestLinkAtTarget wants a link to be replaced, and what it leads to untouched.
func TestLinkAtTarget(t *testing.T) {
	for _, kind := range []Kind{KindFile, KindDir} {
		for _, to := range []string{"file", "folder", "nowhere"} {
			dir := t.TempDir()
			target := filepath.Join(dir, "out")
			put(t, filepath.Join(dir, "file"), "file")
			put(t, filepath.Join(dir, "folder"), "folder")
			if err := os.Symlink(to, target); err != nil {
				t.Fatal(err)
			}
			if _, err := New(OS{}, target, kind, false); !errors.As(err, new(*ExistsError)) {
				t.Errorf("link to %s without force: got error %v", to, err)
			}
			out, err := New(OS{}, target+strings.Repeat("/", int(kind)), kind, true)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := out.Create(strings.Repeat("a", int(kind)), 1); err != nil {
				t.Fatal(err)
			}
			if err := out.Commit(); err != nil {
				t.Fatal(err)
			}
			info, err := os.Lstat(target)
			if err != nil || info.IsDir() != (kind == KindDir) || info.Mode()&fs.ModeSymlink != 0 {
				t.Errorf("the target is now %v, %v", info, err)
			}
			entries, _ := os.ReadDir(dir)
			inside, _ := os.ReadDir(filepath.Join(dir, "folder"))
			content, _ := os.ReadFile(filepath.Join(dir, "file"))
			if len(entries) != 3 || len(inside) != 1 || string(content) != "x" {
				t.Errorf("link to %s: something else changed: %v %v %q", to, entries, inside, content)
			}
		}
	}
}

// TestSpecialTargets guards /dev/null, /dev/stdout and their like from root.
func TestSpecialTargets(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o666); err != nil {
		t.Skip(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink("/dev/null", link); err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{pipe, link} {
		for _, kind := range []Kind{KindFile, KindDir} {
			if _, err := New(OS{}, target, kind, true); !errors.As(err, new(*RefusedError)) {
				t.Errorf("%s: got error %v, want a RefusedError", target, err)
			}
		}
	}
}

// TestParentBehindLink wants "link/../out" to be what the kernel takes it for.
func TestParentBehindLink(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "a/b"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("a/b", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	out, err := New(OS{}, dir+"/link/../out", KindDir, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := out.Commit(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "a/out")); err != nil {
		t.Error(err)
	}
}

func TestUnwritableParent(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may write anywhere")
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o555); err != nil {
		t.Fatal(err)
	}
	if _, err := New(OS{}, filepath.Join(dir, "out"), KindFile, false); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("got error %v, want ErrPermission", err)
	}
}

// TestLongName wants a name without room for ".partial-..." to fail at once.
func TestLongName(t *testing.T) {
	_, err := New(OS{}, filepath.Join(t.TempDir(), strings.Repeat("x", 250)), KindFile, false)
	if !errors.Is(err, unix.ENAMETOOLONG) {
		t.Errorf("got error %v, want ENAMETOOLONG", err)
	}
}

func TestFree(t *testing.T) {
	free, err := OS{}.Free(t.TempDir())
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil || free <= 0 {
		t.Errorf("got %d, %v", free, err)
	}
	if _, err := (OS{}).Free("/no/such/folder"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing folder: got error %v", err)
	}
}

func TestProduct(t *testing.T) {
	for _, tt := range []struct {
		a, b uint64
		want int64
	}{
		{0, 4096, 0}, {3, 4096, 12288}, {1 << 62, 2, math.MaxInt64}, {1 << 63, 4, math.MaxInt64},
		{math.MaxInt64, 1, math.MaxInt64},
	} {
		if got := product(tt.a, tt.b); got != tt.want {
			t.Errorf("product(%d, %d) = %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
}
