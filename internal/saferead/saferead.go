// Package saferead reads parts of files that are not trusted.
//
// Nothing is allocated for bytes that were claimed but not read, beyond 1 MiB;
// every range is checked against the size of the file in overflow-safe
// arithmetic; and a read that comes back short is an error, never zeros.
// [OpenRegular] opens nothing but regular files, so that no FIFO hangs a run
// and no device is read for ever.
package saferead

import (
	"errors"
	"fmt"
	"io"
	"math"
)

// chunkSize is how much is allocated before its bytes were really read: a
// header of 20 bytes may claim a terabyte.
const chunkSize = 1 << 20

// Reader reads ranges of a source of known size. It is safe for concurrent use
// if the source is.
type Reader struct {
	r    io.ReaderAt
	size int64
}

// New returns a reader of the first size bytes of r.
func New(r io.ReaderAt, size int64) *Reader {
	return &Reader{r: r, size: max(size, 0)}
}

// Size returns the number of bytes that may be read.
func (r *Reader) Size() int64 { return r.size }

// Check reports whether n bytes at off lie inside the source. A range outside
// is an [*RangeError].
func (r *Reader) Check(off, n int64) error {
	if off < 0 || n < 0 || off > r.size || n > r.size-off {
		return &RangeError{Offset: off, Length: n, Size: r.size}
	}
	return nil
}

// ReadFull fills p from off. The error wraps [io.ErrUnexpectedEOF] if the
// source has become shorter than its size.
func (r *Reader) ReadFull(p []byte, off int64) error {
	if err := r.Check(off, int64(len(p))); err != nil {
		return err
	}
	_, err := r.fill(p, off)
	return err
}

// Bytes returns n bytes from off. Memory grows with what was really read, so
// a false n costs no more than the source holds.
func (r *Reader) Bytes(off, n int64) ([]byte, error) {
	if err := r.Check(off, n); err != nil {
		return nil, err
	}
	if n > math.MaxInt { // on 32-bit systems
		return nil, fmt.Errorf("%d bytes do not fit into memory", n)
	}
	if n <= chunkSize {
		p := make([]byte, n)
		if _, err := r.fill(p, off); err != nil {
			return nil, err
		}
		return p, nil
	}
	// Pieces are joined at the end: growing one slice would either copy all
	// of it for each piece, or reserve in advance.
	pieces := make([][]byte, 0, 8)
	for read := int64(0); read < n; {
		p := make([]byte, min(n-read, chunkSize))
		if _, err := r.fill(p, off+read); err != nil {
			return nil, err
		}
		pieces = append(pieces, p)
		read += int64(len(p))
	}
	all := make([]byte, 0, n)
	for i, p := range pieces {
		all = append(all, p...)
		pieces[i] = nil
	}
	return all, nil
}

// Section returns a view of n bytes at off.
func (r *Reader) Section(off, n int64) (*Section, error) {
	if err := r.Check(off, n); err != nil {
		return nil, err
	}
	return &Section{r: r, off: off, size: n}, nil
}

// fill reads all of p, whose range was checked.
func (r *Reader) fill(p []byte, off int64) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := r.r.ReadAt(p, off)
	if n == len(p) {
		return n, nil
	}
	// The range lies inside the size, so an end here means the file shrank.
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, fmt.Errorf("reading %d bytes at %d of %d: %w", len(p), off, r.size, err)
}

// Section is a part of a source. It implements [io.ReaderAt] and, on purpose,
// no position that two users could fight over.
type Section struct {
	r    *Reader
	off  int64
	size int64
}

var _ io.ReaderAt = (*Section)(nil)

// Size returns the length of the section.
func (s *Section) Size() int64 { return s.size }

// ReadAt reads from the section as [io.ReaderAt] asks: [io.EOF] is the end of
// the section and nothing else; a source that ends before the section does
// gives an error that wraps [io.ErrUnexpectedEOF].
func (s *Section) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, &RangeError{Offset: off, Length: int64(len(p)), Size: s.size}
	}
	if off >= s.size {
		return 0, io.EOF
	}
	short := int64(len(p)) > s.size-off
	if short {
		p = p[:s.size-off]
	}
	n, err := s.r.fill(p, s.off+off)
	if err == nil && short {
		err = io.EOF
	}
	return n, err
}

// RangeError reports a range that does not lie inside its source.
type RangeError struct {
	Offset, Length, Size int64
}

// Error names the range and the size.
func (e *RangeError) Error() string {
	return fmt.Sprintf("%d bytes at %d lie outside of %d bytes", e.Length, e.Offset, e.Size)
}
