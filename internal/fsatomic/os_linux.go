package fsatomic

import (
	"errors"

	"golang.org/x/sys/unix"
)

func renameExclusive(from, to string) error {
	return unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
}

func renameSwap(a, b string) error {
	return unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
}

func freeBytes(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := ignoringEINTR(func() error { return unix.Statfs(dir, &st) }); err != nil {
		return 0, err
	}
	if st.Blocks == 0 {
		return 0, errors.ErrUnsupported // some FUSE file systems count nothing
	}
	// Blocks are counted in fragments; kernels that do not tell their size
	// have fragments as large as blocks.
	if st.Frsize > 0 {
		return product(st.Bavail, uint64(st.Frsize)), nil
	}
	return product(st.Bavail, uint64(st.Bsize)), nil
}
