//go:build unix

package fsatomic

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

const noFollow = unix.O_NOFOLLOW

func renameNoReplace(from, to string) error {
	err := ignoringEINTR(func() error { return renameExclusive(from, to) })
	if isUnsupported(err) {
		return renameChecked(from, to, os.Link)
	}
	return linkError("rename", from, to, err)
}

// renameChecked does what it can without the help of the system. The link call
// is an argument for tests.
func renameChecked(from, to string, link func(from, to string) error) error {
	info, err := os.Lstat(from)
	if err != nil {
		return err
	}
	if info.Mode().IsRegular() {
		err := link(from, to)
		if errors.Is(err, fs.ErrExist) {
			return err
		}
		if err == nil {
			return unlinkFirst(from, to)
		}
		// FAT and some network file systems have no links.
	}
	if _, err := os.Lstat(to); err == nil {
		return linkError("rename", from, to, unix.EEXIST)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Rename(from, to)
}

// unlinkFirst ends a rename by link. On failure the second name goes again.
func unlinkFirst(from, to string) error {
	err := os.Remove(from)
	if err != nil {
		_ = os.Remove(to)
	}
	return err
}

func exchange(a, b string) error {
	err := ignoringEINTR(func() error { return renameSwap(a, b) })
	if isUnsupported(err) {
		err = errors.ErrUnsupported
	}
	return linkError("exchange", a, b, err)
}

func syncDir(name string) error {
	dir, err := os.Open(name)
	if err != nil {
		return err
	}
	err = dir.Sync()
	if closeErr := dir.Close(); err == nil {
		err = closeErr
	}
	return err
}

func linkError(op, from, to string, err error) error {
	if err == nil {
		return nil
	}
	return &os.LinkError{Op: op, Old: from, New: to, Err: err}
}

// ignoringEINTR repeats a call that a signal interrupted, which the Go runtime
// uses to preempt goroutines and which slow file systems pass on.
func ignoringEINTR(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
