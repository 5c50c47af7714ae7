//go:build unix

package saferead_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/loratool/loratool/internal/saferead"
)

func TestOpenRegularRefusesSpecialFiles(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Skip(err)
	}
	loop := filepath.Join(dir, "loop")
	if err := os.Symlink("loop", loop); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		fifo:        "named pipe, not a regular file",
		"/dev/zero": "device, not a regular file",
		loop:        "too many levels of symbolic links",
	} {
		_, err := openInTime(t, path)
		if err == nil || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
		if isLoop := path == loop; errors.Is(err, saferead.ErrNotRegular) == isLoop {
			t.Errorf("%s: %v has the wrong class", path, err)
		}
	}
}

// The path may lead to a file when it is looked at and to a FIFO when it is
// opened. Whichever comes first, nothing may hang and no FIFO may be returned.
func TestOpenRegularRace(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "model")
	regular := filepath.Join(dir, "regular")
	fifo := filepath.Join(dir, "fifo")
	if err := os.WriteFile(regular, []byte("12345"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Skip(err)
	}
	stop := make(chan struct{})
	swapped := make(chan struct{})
	go func() {
		defer close(swapped)
		next := filepath.Join(dir, "next")
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			target := regular
			if i%2 == 1 {
				target = fifo
			}
			if os.Symlink(target, next) != nil || os.Rename(next, path) != nil {
				return
			}
		}
	}()
	deadline := time.Now().Add(300 * time.Millisecond)
	for time.Now().Before(deadline) {
		f, err := openInTime(t, path)
		if err != nil {
			continue
		}
		if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
			t.Fatalf("opened %v, %v", info.Mode(), err)
		}
		f.Close()
	}
	close(stop)
	<-swapped
}

// openInTime fails the test if the open hangs.
func openInTime(t *testing.T, path string) (*os.File, error) {
	t.Helper()
	type result struct {
		f   *os.File
		err error
	}
	done := make(chan result, 1)
	go func() {
		f, _, err := saferead.OpenRegular(path)
		done <- result{f, err}
	}()
	select {
	case r := <-done:
		return r.f, r.err
	case <-time.After(5 * time.Second):
		t.Fatalf("opening %s hangs", path)
		return nil, nil
	}
}
