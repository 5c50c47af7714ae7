package gguf

import (
	"fmt"
	"io"

	"github.com/loratool/loratool/internal/saferead"
)

// File is an open GGUF file. It is safe for concurrent use.
type File struct {
	r         *saferead.Reader
	owned     io.Closer // nil if the caller owns the source
	version   uint32
	alignment int64
	headerEnd int64
	metadata  *Metadata
	tensors   []Tensor // in the order of the file, which is that of the data
	byName    map[string]int32
}

// Open opens a GGUF file and reads its header. The path may be a link but must
// lead to a regular file. A malformed file gives a [*FormatError]. One file of
// a split model is read as it is; [OpenSet] opens the whole model.
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

// New reads the header of a GGUF file of size bytes. The caller keeps r open as
// long as the File is used. A malformed file gives a [*FormatError].
func New(r io.ReaderAt, size int64) (*File, error) {
	f := &File{r: saferead.New(r, size)}
	p, err := parseHeader(f.r)
	if err != nil {
		return nil, err
	}
	f.version, f.alignment, f.headerEnd = p.version, p.alignment, p.pos
	f.metadata, f.tensors, f.byName = &p.metadata, p.tensors, p.byName
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

// Version returns the version of the format, 2 or 3.
func (f *File) Version() int { return int(f.version) }

// Alignment returns the number of bytes that every tensor begins at a multiple
// of. The specification asks for a multiple of 8; any power of two is read.
func (f *File) Alignment() int64 { return f.alignment }

// DataOffset returns where the data section begins: behind the header and its
// padding, or behind the header if there are no tensors.
func (f *File) DataOffset() int64 {
	if len(f.tensors) == 0 {
		return f.headerEnd
	}
	return f.tensors[0].Offset
}

// Metadata returns the keys and values. It belongs to the file and must not be
// changed; [Metadata.Clone] gives one that may.
func (f *File) Metadata() *Metadata { return f.metadata }

// Tensors returns the tensors in the order of the file. The slice belongs to
// the file and must not be changed.
func (f *File) Tensors() []Tensor { return f.tensors[:len(f.tensors):len(f.tensors)] }

// Lookup returns the tensor of the given name.
func (f *File) Lookup(name string) (Tensor, bool) {
	i, ok := f.byName[name]
	if !ok {
		return Tensor{}, false
	}
	return f.tensors[i], true
}

// Trailing returns how many bytes follow the data and its padding. The format
// has no use for them and readers ignore them.
func (f *File) Trailing() int64 { return max(f.Size()-f.paddedEnd(), 0) }

// MissingPadding returns how many bytes of padding the file lacks behind its
// last tensor. Readers that load all data at once refuse such a file, others do
// not look; [Layout] always pads.
func (f *File) MissingPadding() int64 {
	if len(f.tensors) == 0 {
		return 0
	}
	return max(f.paddedEnd()-f.Size(), 0)
}

// paddedEnd returns where the last tensor, or the header if there is none,
// ends with its padding.
func (f *File) paddedEnd() int64 {
	end := f.headerEnd
	if len(f.tensors) > 0 {
		end = f.tensors[len(f.tensors)-1].End()
	}
	padded, ok := pad(end, f.alignment)
	if !ok {
		return end
	}
	return padded
}

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
