//go:build unix && !linux && !darwin

package fsatomic

import (
	"errors"

	"golang.org/x/sys/unix"
)

func renameExclusive(string, string) error { return unix.ENOSYS }

func renameSwap(string, string) error { return unix.ENOSYS }

// freeBytes would need one version per system here.
func freeBytes(string) (int64, error) { return 0, errors.ErrUnsupported }
