package fsatomic

import (
	"os"
	"slices"
	"sync"
	"sync/atomic"
)

// diskFile is a file on a disk of the machine, as [OS] creates it. Its writes
// start on their way to the disk at once, so that the disk works while the next
// ones are computed, and the Sync at the end finds little left to do.
//
// With past set it writes past the page cache, which spares the copy and the
// search for free pages. Such writes want whole pages; what is left at either
// end of a call waits in memory and goes through the cache later, when no write
// past it is under way: systems promise nothing for a mixture of both.
type diskFile struct {
	*os.File
	past *os.File // the same file, opened to write past the page cache; nil without

	cached atomic.Bool  // the file system refused to write past the cache, or the file is closed
	mu     sync.RWMutex // writes past the cache share it, those through it exclude them

	endsMu sync.Mutex
	ends   []end
}

// end is a piece of a write that does not fill a page.
type end struct {
	off  int64
	data []byte
}

const (
	// pieceCached is written at a time through the page cache. A larger write
	// makes Linux look for larger runs of free memory, at up to twice the cost.
	pieceCached = 256 << 10
	// piecePast is written at a time past the page cache; less keeps a disk from
	// its speed, more does not help it.
	piecePast = 1 << 20
	// page is the unit of writes past the cache: their place in the file and in
	// memory, and their length. Disks with larger sectors than this are refused
	// by the system, and then written through the cache.
	page = 4096
	// maxEnds pieces, at most a page each, wait in memory.
	maxEnds = 256
)

// WriteAt writes in pieces of a size that suits the system.
func (f *diskFile) WriteAt(p []byte, off int64) (int, error) {
	if f.past == nil || f.cached.Load() || off < 0 {
		return f.writeCached(p, off)
	}
	head := int(min(-off&(page-1), int64(len(p))))
	tail := head + (len(p)-head)&^(page-1)
	n, err := f.writePast(p[head:tail], off+int64(head))
	if err != nil {
		return head + n, err
	}
	if err := f.wait(p[:head], off); err != nil {
		return 0, err
	}
	if err := f.wait(p[tail:], off+int64(tail)); err != nil {
		return tail, err
	}
	return len(p), nil
}

// writeCached writes through the page cache and has the system pass on what was
// written.
func (f *diskFile) writeCached(p []byte, off int64) (int, error) {
	written := 0
	for piece := range slices.Chunk(p, pieceCached) {
		n, err := f.File.WriteAt(piece, off+int64(written))
		written += n
		if err != nil {
			return written, err
		}
		if n == pieceCached {
			startWriteback(f.File, off+int64(written-n), int64(n))
		}
	}
	return written, nil
}

// writePast writes whole pages past the cache, from memory that begins at one.
func (f *diskFile) writePast(p []byte, off int64) (int, error) {
	written := 0
	for piece := range slices.Chunk(p, piecePast) {
		n, err := f.writePages(piece, off+int64(written))
		written += n
		if isNotDirect(err) {
			f.cached.Store(true)
			f.mu.Lock()
			defer f.mu.Unlock()
			n, err := f.writeCached(p[written:], off+int64(written))
			return written + n, err
		}
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

func (f *diskFile) writePages(p []byte, off int64) (int, error) {
	if !startsPage(p) {
		buf := pageBuffers.Get().(*[]byte)
		defer pageBuffers.Put(buf)
		p = (*buf)[:copy(*buf, p)]
	}
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.past.WriteAt(p, off)
}

// pageBuffers are buffers of piecePast bytes that start at a page.
var pageBuffers = sync.Pool{New: func() any {
	b := make([]byte, piecePast+page)
	for !startsPage(b) {
		b = b[1:]
	}
	b = b[:piecePast]
	return &b
}}

// wait keeps a piece for later.
func (f *diskFile) wait(p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	f.endsMu.Lock()
	f.ends = append(f.ends, end{off, slices.Clone(p)})
	full := len(f.ends) >= maxEnds
	f.endsMu.Unlock()
	if full {
		return f.flush()
	}
	return nil
}

// flush writes what waits in memory.
func (f *diskFile) flush() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.endsMu.Lock()
	ends := f.ends
	f.ends = nil
	f.endsMu.Unlock()
	for _, e := range ends {
		if _, err := f.File.WriteAt(e.data, e.off); err != nil {
			return err
		}
	}
	return nil
}

// Truncate sets the size. A file that is written past the cache gets its room
// on the disk too: to find room while writing would make writers wait for each
// other.
func (f *diskFile) Truncate(size int64) error {
	if f.past != nil {
		if err := reserve(f.File, size); err != nil {
			return err
		}
	}
	return f.File.Truncate(size)
}

// Sync makes the content durable.
func (f *diskFile) Sync() error {
	if err := f.flush(); err != nil {
		return err
	}
	return f.File.Sync()
}

// Close closes the file.
func (f *diskFile) Close() error {
	f.cached.Store(true)
	err := f.flush()
	if f.past != nil {
		if closeErr := f.past.Close(); err == nil {
			err = closeErr
		}
	}
	if closeErr := f.File.Close(); err == nil {
		err = closeErr
	}
	return err
}
