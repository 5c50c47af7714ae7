package fsatomic

import (
	"errors"
	"os"
	"syscall"
	"unsafe"
)

// noFollow is not needed: with O_EXCL the system creates a name or fails.
const noFollow = 0

// moveWriteThrough makes MoveFileEx return after the move is on the disk, in
// place of the folder sync that Windows lacks. Without a flag that allows it,
// nothing is replaced.
const moveWriteThrough = 0x8

func renameNoReplace(from, to string) error {
	fromName, err := syscall.UTF16PtrFromString(from)
	if err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	toName, err := syscall.UTF16PtrFromString(to)
	if err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	move := syscall.NewLazyDLL("kernel32.dll").NewProc("MoveFileExW")
	ok, _, err := move.Call(uintptr(unsafe.Pointer(fromName)), uintptr(unsafe.Pointer(toName)), moveWriteThrough)
	if ok == 0 {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}

func exchange(a, b string) error {
	return &os.LinkError{Op: "exchange", Old: a, New: b, Err: errors.ErrUnsupported}
}

func syncDir(string) error { return nil }

func freeBytes(dir string) (int64, error) {
	name, err := syscall.UTF16PtrFromString(dir)
	if err != nil {
		return 0, err
	}
	var free uint64
	query := syscall.NewLazyDLL("kernel32.dll").NewProc("GetDiskFreeSpaceExW")
	ok, _, err := query.Call(uintptr(unsafe.Pointer(name)), uintptr(unsafe.Pointer(&free)), 0, 0)
	if ok == 0 {
		return 0, err
	}
	return product(free, 1), nil
}
