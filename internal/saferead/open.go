package saferead

import (
	"errors"
	"io/fs"
	"os"
	"strconv"
)

// ErrNotRegular is wrapped by [OpenRegular] if the path leads to something
// that is not a regular file.
var ErrNotRegular = errors.New("not a regular file")

// OpenRegular opens a regular file for reading and returns it with its size.
// Symbolic links are followed, as the caches of model hubs are made of them. A
// FIFO, a device, a socket or a folder is refused without waiting for it or
// reading from it. Errors are of type [*fs.PathError].
func OpenRegular(path string) (*os.File, int64, error) {
	// Look before opening: to open a device can already have an effect.
	info, err := os.Stat(path)
	if err != nil {
		return nil, 0, pathError(path, err)
	}
	if err := checkRegular(info); err != nil {
		return nil, 0, pathError(path, err)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|openFlags, 0)
	if err != nil {
		return nil, 0, pathError(path, err)
	}
	// And look again: the path may lead elsewhere by now.
	info, err = f.Stat()
	if err == nil {
		err = checkRegular(info)
	}
	if err != nil {
		f.Close()
		return nil, 0, pathError(path, err)
	}
	return f, info.Size(), nil
}

func checkRegular(info fs.FileInfo) error {
	if info.Mode().IsRegular() {
		return nil
	}
	return &kindError{kind: kindOf(info.Mode())}
}

// kindError says what stands in the place of a regular file.
type kindError struct{ kind string }

func (e *kindError) Error() string { return e.kind + ", not a regular file" }

func (e *kindError) Is(target error) bool { return target == ErrNotRegular }

func kindOf(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "folder"
	case m&fs.ModeNamedPipe != 0:
		return "named pipe"
	case m&fs.ModeSocket != 0:
		return "socket"
	case m&fs.ModeDevice != 0:
		return "device"
	}
	return "special file"
}

// pathError puts the path in front of err, once. A path that would break the
// line or the terminal is quoted.
func pathError(path string, err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	return &fs.PathError{Op: "open", Path: Printable(path), Err: err}
}

// Printable returns the path as it can be shown in a message: quoted if it
// holds control characters, invalid UTF-8 or other things that do not print.
func Printable(path string) string {
	for _, r := range path {
		if !strconv.IsPrint(r) || r == '\uFFFD' {
			return strconv.Quote(path)
		}
	}
	return path
}
