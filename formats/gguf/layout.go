package gguf

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
)

// Layout is the complete plan of a file to be written: its header and the
// place of every tensor. It does not change.
type Layout struct {
	tensors   []Tensor
	byName    map[string]int32
	metadata  *Metadata
	version   uint32
	alignment int64
	header    []byte // without its padding, which may be up to 2 GiB
	size      int64
}

// LayoutOptions shapes a layout.
type LayoutOptions struct {
	Version int // of the format, [DefaultVersion] if 0
}

// NewLayout places the tensors in the order given, each at a multiple of the
// alignment, which is that of the metadata's [KeyAlignment] or the default. Keys
// keep their order, shapes their dimensions ([TrimShape] drops those that the C
// writer of the reference drops). Everything between the header, the tensors
// and the end of the file is zeros: the file ends with the padding of the last
// tensor.
func NewLayout(m *Metadata, specs []Spec, o LayoutOptions) (*Layout, error) {
	if o.Version == 0 {
		o.Version = DefaultVersion
	}
	if o.Version < oldestVersion || o.Version > DefaultVersion {
		return nil, fmt.Errorf("version %d of the format can't be written", o.Version)
	}
	l := &Layout{
		tensors:  make([]Tensor, len(specs)),
		byName:   make(map[string]int32, len(specs)),
		metadata: m.Clone(),
		version:  uint32(o.Version),
	}
	if err := l.checkMetadata(); err != nil {
		return nil, err
	}
	if len(specs) > maxTensors {
		return nil, fmt.Errorf("%d tensors are above the limit of %d", len(specs), maxTensors)
	}
	end := int64(0) // of the data so far, with padding
	for i, s := range specs {
		if err := l.place(i, s, &end); err != nil {
			return nil, fmt.Errorf("tensor %s: %w", excerpt(s.Name), err)
		}
	}
	if err := l.encodeHeader(); err != nil {
		return nil, err
	}
	start, _ := pad(int64(len(l.header)), l.alignment)
	for i := range l.tensors {
		l.tensors[i].Offset += start
	}
	l.size = end + start
	return l, nil
}

// checkMetadata refuses keys that a reader refuses, and sets the alignment.
func (l *Layout) checkMetadata() (err error) {
	if l.metadata.Len() > maxKeys {
		return fmt.Errorf("%d keys are above the limit of %d", l.metadata.Len(), maxKeys)
	}
	for key := range l.metadata.All() {
		if err := checkKey(key); err != nil {
			return &KeyError{Key: key, Reason: err.Error()}
		}
	}
	if l.alignment, err = l.metadata.alignment(); err != nil {
		return &KeyError{Key: KeyAlignment, Reason: err.Error()}
	}
	return nil
}

// place puts tensor i at the end and moves the end.
func (l *Layout) place(i int, s Spec, end *int64) error {
	if err := checkName(s.Name); err != nil {
		return err
	}
	if _, twice := l.byName[s.Name]; twice {
		return errors.New("declared twice")
	}
	size, err := sizeOf(s.Type, s.Shape)
	if err != nil {
		return err
	}
	// The header, padded to 2 GiB at most, comes on top.
	const room = math.MaxInt64 - maxHeaderSize - 1<<33
	if size > room-*end {
		return errors.New("file size overflows")
	}
	s.Shape = slices.Clone(s.Shape)
	l.tensors[i] = Tensor{Spec: s, Offset: *end}
	l.byName[s.Name] = int32(i)
	*end, _ = pad(*end+size, l.alignment)
	return nil
}

// encodeHeader sets the header. Offsets of tensors count from the data section
// here, as in the file.
func (l *Layout) encodeHeader() error {
	h := append([]byte(nil), magic...)
	h = binary.LittleEndian.AppendUint32(h, l.version)
	h = binary.LittleEndian.AppendUint64(h, uint64(len(l.tensors)))
	h = binary.LittleEndian.AppendUint64(h, uint64(l.metadata.Len()))
	h = l.metadata.append(h)
	for _, t := range l.tensors {
		h = appendEntry(h, t)
	}
	if len(h) > maxHeaderSize {
		return fmt.Errorf("header takes %d bytes, at most %d are read", len(h), maxHeaderSize)
	}
	l.header = h
	return nil
}

func appendEntry(h []byte, t Tensor) []byte {
	h = appendString(h, t.Name)
	h = binary.LittleEndian.AppendUint32(h, uint32(len(t.Shape)))
	for _, d := range slices.Backward(t.Shape) {
		h = binary.LittleEndian.AppendUint64(h, uint64(d))
	}
	h = binary.LittleEndian.AppendUint32(h, uint32(t.Type))
	return binary.LittleEndian.AppendUint64(h, uint64(t.Offset))
}

// Size returns the size of the whole file.
func (l *Layout) Size() int64 { return l.size }

// Alignment returns what every tensor begins at a multiple of.
func (l *Layout) Alignment() int64 { return l.alignment }

// Metadata returns the keys and values, which must not be changed.
func (l *Layout) Metadata() *Metadata { return l.metadata }

// Tensors returns the tensors in the order of the data. The slice belongs to
// the layout and must not be changed.
func (l *Layout) Tensors() []Tensor { return l.tensors[:len(l.tensors):len(l.tensors)] }

// Offset returns where in the file the tensor starts, or false if there is
// none of that name.
func (l *Layout) Offset(name string) (int64, bool) {
	i, ok := l.byName[name]
	if !ok {
		return 0, false
	}
	return l.tensors[i].Offset, true
}

// Header returns the first bytes of the file. Zeros follow up to the first
// tensor, or to the end of the file if there is none.
func (l *Layout) Header() []byte { return slices.Clone(l.header) }

// HeaderWith returns the header with other values for the same keys. It is an
// error if a value is of another type or takes another number of bytes: what is
// known only after the data was written, such as a hash, is declared as a
// placeholder of the same length.
func (l *Layout) HeaderWith(m *Metadata) ([]byte, error) {
	if m.Len() != l.metadata.Len() {
		return nil, fmt.Errorf("metadata has %d keys, %d were declared", m.Len(), l.metadata.Len())
	}
	for i, declared := range l.metadata.pairs {
		switch now := m.pairs[i]; {
		case now.key != declared.key:
			return nil, fmt.Errorf("key %s stands in the place of %s", excerpt(now.key), excerpt(declared.key))
		case now.key == KeyAlignment && !now.value.Equal(declared.value):
			return nil, &KeyError{Key: now.key, Reason: "the alignment was declared and can't change"}
		case now.value.typ != declared.value.typ || now.value.elem != declared.value.elem:
			return nil, &KeyError{Key: now.key, Reason: fmt.Sprintf("is %s, %s was declared", now.value.Describe(), declared.value.Describe())}
		case now.value.encodedSize() != declared.value.encodedSize():
			return nil, &KeyError{Key: now.key, Reason: fmt.Sprintf("takes %d bytes, %d were declared",
				now.value.encodedSize(), declared.value.encodedSize())}
		}
	}
	h := l.Header()
	m.append(h[:headerSize]) // in place: there is room for as many bytes as before
	return h, nil
}

// Write writes the whole file. It asks for the bytes of each tensor in turn;
// what it gets must be exactly as long as the tensor.
func (l *Layout) Write(w io.Writer, open func(Tensor) (io.Reader, error)) error {
	b := bufio.NewWriterSize(w, 256<<10)
	start, _ := pad(int64(len(l.header)), l.alignment)
	_, err := b.Write(l.header)
	if err == nil {
		_, err = io.CopyN(b, zeros{}, start-int64(len(l.header)))
	}
	if err != nil {
		return fmt.Errorf("writing the header: %w", err)
	}
	for i, t := range l.tensors {
		next := l.size
		if i+1 < len(l.tensors) {
			next = l.tensors[i+1].Offset
		}
		if err := writeTensor(b, t, next-t.End(), open); err != nil {
			return fmt.Errorf("writing tensor %s: %w", excerpt(t.Name), err)
		}
	}
	return b.Flush()
}

// writeTensor writes the bytes of a tensor and the zeros behind it.
func writeTensor(w io.Writer, t Tensor, padding int64, open func(Tensor) (io.Reader, error)) error {
	r, err := open(t)
	if err != nil {
		return err
	}
	n, err := io.Copy(w, io.LimitReader(r, t.Size()))
	if err != nil {
		return err
	}
	if n < t.Size() {
		return fmt.Errorf("%d of its %d bytes are there: %w", n, t.Size(), io.ErrUnexpectedEOF)
	}
	if more, _ := r.Read(make([]byte, 1)); more > 0 {
		return fmt.Errorf("there are more than its %d bytes", t.Size())
	}
	_, err = io.CopyN(w, zeros{}, padding)
	return err
}

// zeros is an endless source of padding.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
