package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// dropCached asks the system to forget the pages of a file, which it does for
// those that nobody uses and that are on the disk.
func dropCached(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}
