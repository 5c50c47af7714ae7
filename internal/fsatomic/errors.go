package fsatomic

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// ExistsError says that the target is there and may only be replaced by force.
// It matches fs.ErrExist.
type ExistsError struct {
	Path string
}

func (e *ExistsError) Error() string { return fmt.Sprintf("output %q exists", e.Path) }

func (e *ExistsError) Unwrap() error { return fs.ErrExist }

// RefusedError says why an output is not written, with force or without.
type RefusedError struct {
	Path   string
	Reason string
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("refusing output %q: %s", e.Path, e.Reason)
}

// SpaceError says that an output does not fit on its disk.
type SpaceError struct {
	Path string
	Need int64 // bytes
	Free int64 // bytes
}

func (e *SpaceError) Error() string {
	return fmt.Sprintf("output %q needs %d bytes and its disk has %d free", e.Path, e.Need, e.Free)
}

// CleanupError says that an output was committed, but that what it replaced is
// still on the disk under another name.
type CleanupError struct {
	Target string
	Path   string // where the replaced output, or what is left of it, lies
	Err    error
}

func (e *CleanupError) Error() string {
	return fmt.Sprintf("output %q is complete, but removing the replaced one at %q: %v", e.Target, e.Path, e.Err)
}

func (e *CleanupError) Unwrap() error { return e.Err }

// bare drops the call and the path that package os puts around an error, for
// messages that name the output instead of its partial.
func bare(err error) error {
	if path := (*fs.PathError)(nil); errors.As(err, &path) {
		return path.Err
	}
	if link := (*os.LinkError)(nil); errors.As(err, &link) {
		return link.Err
	}
	return err
}
