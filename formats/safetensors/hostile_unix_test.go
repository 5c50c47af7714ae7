//go:build unix

package safetensors_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/internal/saferead"
)

// Things that are not files must be refused at once: a FIFO without a writer
// hangs for ever when it is opened, and /dev/zero never ends.
func TestHostileSpecialFiles(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo.safetensors")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Skip(err)
	}
	link := filepath.Join(dir, "link.safetensors")
	if err := os.Symlink(fifo, link); err != nil {
		t.Fatal(err)
	}
	tests := []struct{ path, want string }{
		{fifo, "named pipe, not a regular file"},
		{link, "named pipe, not a regular file"},
		{"/dev/zero", "device, not a regular file"},
		{"/dev/null", "device, not a regular file"},
	}
	// The path of a socket is limited to about 100 bytes.
	if socket := filepath.Join(dir, "s"); len(socket) < 100 {
		l, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		tests = append(tests, struct{ path, want string }{socket, "socket, not a regular file"})
	}
	for _, test := range tests {
		t.Run(filepath.Base(test.path), func(t *testing.T) {
			result := make(chan error, 1)
			go func() {
				_, err := safetensors.Open(test.path)
				result <- err
			}()
			select {
			case err := <-result:
				if !errors.Is(err, saferead.ErrNotRegular) || !strings.Contains(err.Error(), test.want) {
					t.Errorf("error %v, want %q", err, test.want)
				}
			case <-time.After(5 * time.Second):
				t.Fatal("hangs")
			}
		})
	}
}
