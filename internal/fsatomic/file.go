package fsatomic

import (
	"fmt"
	"io/fs"
	"sync"
	"sync/atomic"
)

// file is a file of an output. Its first failure stays: a byte that was lost
// once is not in the output, whatever later calls say.
type file struct {
	under File
	name  string

	mu      sync.RWMutex // writers share it; resizing and closing exclude them
	size    int64
	closed  bool
	failure atomic.Pointer[error]
}

var _ File = (*file)(nil)

// WriteAt writes inside the size that was declared.
func (f *file) WriteAt(p []byte, off int64) (int, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.closed {
		return 0, f.fail("writing", fs.ErrClosed)
	}
	if off < 0 || off > f.size-int64(len(p)) {
		return 0, f.fail("writing", fmt.Errorf("%d bytes at offset %d leave the size of %d", len(p), off, f.size))
	}
	n, err := f.under.WriteAt(p, off)
	return n, f.fail("writing", err)
}

// Truncate declares another size.
func (f *file) Truncate(size int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return f.fail("sizing", fs.ErrClosed)
	}
	if err := f.under.Truncate(size); err != nil {
		return f.fail("sizing", err)
	}
	f.size = size
	return nil
}

// Sync makes what was written so far durable. Closing does it too.
func (f *file) Sync() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return f.fail("syncing", fs.ErrClosed)
	}
	return f.sync()
}

// Close syncs and closes the file. Closing again returns the same.
func (f *file) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return f.failed()
	}
	err := f.sync()
	f.closed = true
	if closeErr := f.fail("closing", f.under.Close()); err == nil {
		err = closeErr
	}
	return err
}

// drop closes a file whose content does not matter any more.
func (f *file) drop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.closed {
		f.closed = true
		_ = f.under.Close()
	}
}

// sync does nothing after a failure, so that no sync is ever repeated.
func (f *file) sync() error {
	if err := f.failed(); err != nil {
		return err
	}
	return f.fail("syncing", f.under.Sync())
}

func (f *file) failed() error {
	if first := f.failure.Load(); first != nil {
		return *first
	}
	return nil
}

// fail remembers a failure and returns it with the name of the file.
func (f *file) fail(doing string, err error) error {
	if err == nil {
		return nil
	}
	err = fmt.Errorf("%s %q: %w", doing, f.name, bare(err))
	f.failure.CompareAndSwap(nil, &err)
	return err
}
