//go:build unix && !solaris && !illumos && !aix

package fsatomic

import (
	"errors"

	"golang.org/x/sys/unix"
)

// TryLock locks the file for this process, until it is closed. A file system
// without locks can't tell who else is at work.
func (f *diskFile) TryLock() error {
	err := ignoringEINTR(func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) })
	if errors.Is(err, unix.EWOULDBLOCK) {
		return &BusyError{f.Name()}
	}
	return nil
}
