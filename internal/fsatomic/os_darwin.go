package fsatomic

import (
	"errors"

	"golang.org/x/sys/unix"
)

func renameExclusive(from, to string) error {
	return unix.RenamexNp(from, to, unix.RENAME_EXCL)
}

func renameSwap(a, b string) error {
	return unix.RenamexNp(a, b, unix.RENAME_SWAP)
}

func freeBytes(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := ignoringEINTR(func() error { return unix.Statfs(dir, &st) }); err != nil {
		return 0, err
	}
	if st.Blocks == 0 {
		return 0, errors.ErrUnsupported
	}
	return product(st.Bavail, uint64(st.Bsize)), nil
}
