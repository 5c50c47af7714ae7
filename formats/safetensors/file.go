package safetensors

import (
	"fmt"
	"io"

	"github.com/loratool/loratool/internal/saferead"
)

// File is an open safetensors file. It is safe for concurrent use.
type File struct {
	r          *saferead.Reader
	owned      io.Closer // nil if the caller owns the source
	dataOffset int64
	tensors    []Tensor // in data order
	byName     map[string]int32
	metadata   metadata
}

// Open opens a safetensors file and reads its header. The path may be a link
// but must lead to a regular file. A malformed file gives a [*FormatError].
func Open(path string) (*File, error) {
	file, size, err := saferead.OpenRegular(path)
	if err != nil {
		return nil, err
	}
	f, err := New(file, size)
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("%s: %w", saferead.Printable(path), err)
	}
	f.owned = file
	return f, nil
}

// New reads the header of a safetensors file of size bytes. The caller keeps r
// open as long as the File is used. A malformed file gives a [*FormatError].
func New(r io.ReaderAt, size int64) (*File, error) {
	f := &File{r: saferead.New(r, size)}
	header, err := readHeader(f.r)
	if err != nil {
		return nil, err
	}
	f.dataOffset = lengthSize + int64(len(header))
	if f.tensors, f.metadata, err = parseHeader(header, size); err != nil {
		return nil, err
	}
	f.byName = make(map[string]int32, len(f.tensors))
	for i, t := range f.tensors {
		f.byName[t.Name] = int32(i)
	}
	return f, nil
}

// Close closes the file if [Open] opened it.
func (f *File) Close() error {
	if f.owned == nil {
		return nil
	}
	return f.owned.Close()
}

// Size returns the size of the whole file.
func (f *File) Size() int64 { return f.r.Size() }

// DataOffset returns the size of the length and the header together, where the
// first tensor starts. The reference writes multiples of 8 only.
func (f *File) DataOffset() int64 { return f.dataOffset }

// Tensors returns the tensors in data order, empty ones that share a place by
// name. The slice belongs to the file and must not be changed.
func (f *File) Tensors() []Tensor { return f.tensors[:len(f.tensors):len(f.tensors)] }

// Lookup returns the tensor of the given name.
func (f *File) Lookup(name string) (Tensor, bool) {
	i, ok := f.byName[name]
	if !ok {
		return Tensor{}, false
	}
	return f.tensors[i], true
}

// Metadata returns the free text of the header. It is nil if the header has
// none, and empty if it has an empty map.
func (f *File) Metadata() map[string]string { return f.metadata.Map() }

// Section returns the bytes of a tensor; nothing is read yet.
func (f *File) Section(name string) (*Section, error) {
	t, ok := f.Lookup(name)
	if !ok {
		return nil, fmt.Errorf("no tensor %s", excerpt(name))
	}
	bytes, err := f.r.Section(t.Offset, t.Size())
	if err != nil {
		return nil, fmt.Errorf("tensor %s: %w", excerpt(name), err)
	}
	return &Section{name: name, bytes: bytes}, nil
}

// Section is exactly the bytes of one tensor. It is safe for concurrent use.
type Section struct {
	name  string
	bytes *saferead.Section
}

var _ io.ReaderAt = (*Section)(nil)

// Size returns the number of bytes.
func (s *Section) Size() int64 { return s.bytes.Size() }

// ReadAt implements [io.ReaderAt]. If the file was cut short after it was
// opened, the error names the tensor and wraps [io.ErrUnexpectedEOF].
func (s *Section) ReadAt(p []byte, off int64) (int, error) {
	n, err := s.bytes.ReadAt(p, off)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("tensor %s: %w", excerpt(s.name), err)
	}
	return n, err
}
