package fsatomic

import (
	"errors"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// openPast opens a file once more to write past the page cache; nil where that
// can't be done. The way through the descriptor leads to this very file,
// whatever has become of its name.
func openPast(f *os.File) *os.File {
	past, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(int(f.Fd())), os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return nil // no /proc, or a file system without such writes
	}
	return past
}

// isNotDirect reports whether the system refused to write past the cache.
func isNotDirect(err error) bool { return errors.Is(err, unix.EINVAL) }

// startsPage reports whether p lies at the beginning of a page.
func startsPage(p []byte) bool { return uintptr(unsafe.Pointer(unsafe.SliceData(p)))%page == 0 }

// startWriteback asks the system to write a range to the disk and does not wait
// for it. It is an advice: whether the disk takes it, Sync will say.
func startWriteback(f *os.File, off, n int64) {
	_ = unix.SyncFileRange(int(f.Fd()), off, n, unix.SYNC_FILE_RANGE_WRITE)
}

// reserve takes room on the disk. A file system that has no notion of that is
// as well, a disk without so much room is not.
func reserve(f *os.File, size int64) error {
	if size == 0 {
		return nil
	}
	err := ignoringEINTR(func() error { return unix.Fallocate(int(f.Fd()), 0, 0, size) })
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "fallocate", Path: f.Name(), Err: err}
	}
	return nil
}
