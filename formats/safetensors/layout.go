package safetensors

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"unicode/utf8"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/strictjson"
)

// Layout is the complete plan of a file to be written: its header and the
// place of every tensor. It does not change.
type Layout struct {
	tensors  []Tensor // in data order
	byName   map[string]int32
	size     int64
	header   []byte // with the length in front and the padding
	metadata map[string]string
}

// NewLayout places the tensors as the reference implementation does: by dtype,
// the last of [tensor.All] first, which puts the widest elements in front and
// so keeps them aligned, then by name. The header is compact JSON, padded with
// spaces to a multiple of 8, and byte for byte what the reference writes;
// where that writes metadata in random order, here its keys are sorted. Nil
// metadata leaves no trace, an empty map does.
//
// Names must be different, valid UTF-8 and not "__metadata__", which stands
// for something else.
func NewLayout(specs []tensor.Spec, metadata map[string]string) (*Layout, error) {
	l := &Layout{
		tensors:  make([]Tensor, len(specs)),
		byName:   make(map[string]int32, len(specs)),
		metadata: maps.Clone(metadata),
	}
	for i, s := range specs {
		if err := checkSpec(s); err != nil {
			return nil, fmt.Errorf("tensor %s: %w", excerpt(s.Name), err)
		}
		s.Shape = slices.Clone(s.Shape)
		l.tensors[i] = Tensor{Spec: s}
	}
	slices.SortFunc(l.tensors, func(a, b Tensor) int {
		return cmp.Or(cmp.Compare(b.DType, a.DType), cmp.Compare(a.Name, b.Name))
	})
	end := int64(0)
	for i, t := range l.tensors {
		if _, twice := l.byName[t.Name]; twice {
			return nil, fmt.Errorf("tensor %s: declared twice", excerpt(t.Name))
		}
		l.byName[t.Name] = int32(i)
		l.tensors[i].Offset = end
		// The header, at most 100 MB, comes on top.
		if t.Size() > math.MaxInt64-2*maxHeaderSize-end {
			return nil, fmt.Errorf("tensor %s: file size overflows", excerpt(t.Name))
		}
		end += t.Size()
	}
	if err := l.encodeHeader(); err != nil {
		return nil, err
	}
	for i := range l.tensors {
		l.tensors[i].Offset += int64(len(l.header))
	}
	l.size = end + int64(len(l.header))
	return l, nil
}

// Size returns the size of the whole file.
func (l *Layout) Size() int64 { return l.size }

// Tensors returns the tensors in data order. The slice belongs to the layout
// and must not be changed.
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

// Header returns the first bytes of the file, up to the first tensor.
func (l *Layout) Header() []byte { return slices.Clone(l.header) }

// HeaderWith returns the header with other values for the same metadata keys.
// It is an error if their text is not as long as before: values that are known
// only after the data was written, such as hashes, are declared as
// placeholders of the same width, and a width that happens to fit thanks to
// the padding would not do so in the next file.
func (l *Layout) HeaderWith(metadata map[string]string) ([]byte, error) {
	for key := range metadata {
		if _, ok := l.metadata[key]; !ok {
			return nil, fmt.Errorf("metadata key %s was not declared", excerpt(key))
		}
	}
	if len(metadata) != len(l.metadata) || (metadata == nil) != (l.metadata == nil) {
		return nil, fmt.Errorf("metadata has %d keys, %d were declared", len(metadata), len(l.metadata))
	}
	before, err := appendMetadata(nil, l.metadata)
	if err != nil {
		return nil, err
	}
	after, err := appendMetadata(nil, metadata)
	if err != nil {
		return nil, err
	}
	if len(after) != len(before) {
		return nil, fmt.Errorf("metadata takes %d bytes, %d were declared", len(after), len(before))
	}
	header := l.Header()
	copy(header[lengthSize+len("{"):], after)
	return header, nil
}

// checkSpec refuses what a header can't say.
func checkSpec(s tensor.Spec) error {
	switch {
	case s.Name == metadataKey:
		return errors.New("name is reserved")
	case !utf8.ValidString(s.Name):
		return errors.New("name is not valid UTF-8")
	case s.DType == tensor.NoDType || s.DType > tensor.U64:
		return fmt.Errorf("dtype %d is unknown", s.DType)
	}
	_, err := tensor.NewSpec(s.Name, s.DType, s.Shape)
	return err
}

// encodeHeader sets the header. Offsets of tensors count from the data section
// here, as in the text.
func (l *Layout) encodeHeader() error {
	h := append(make([]byte, lengthSize), '{')
	h, err := appendMetadata(h, l.metadata)
	if err != nil {
		return err
	}
	for i, t := range l.tensors {
		if i > 0 || l.metadata != nil {
			h = append(h, ',')
		}
		h = appendEntry(h, t)
	}
	h = append(h, '}')
	for len(h)%headerAlign != 0 {
		h = append(h, ' ')
	}
	length := len(h) - lengthSize
	if length > maxHeaderSize {
		return fmt.Errorf("header takes %d bytes, the format allows %d", length, maxHeaderSize)
	}
	binary.LittleEndian.PutUint64(h, uint64(length))
	l.header = h
	return nil
}

// appendMetadata appends the __metadata__ member, keys sorted, unless there is
// no metadata.
func appendMetadata(h []byte, metadata map[string]string) ([]byte, error) {
	if metadata == nil {
		return h, nil
	}
	h = strictjson.AppendQuoted(h, metadataKey)
	h = append(h, ':', '{')
	for i, key := range slices.Sorted(maps.Keys(metadata)) {
		value := metadata[key]
		if !utf8.ValidString(key) || !utf8.ValidString(value) {
			return nil, fmt.Errorf("metadata key %s: not valid UTF-8", excerpt(key))
		}
		if i > 0 {
			h = append(h, ',')
		}
		h = strictjson.AppendQuoted(h, key)
		h = append(h, ':')
		h = strictjson.AppendQuoted(h, value)
	}
	return append(h, '}'), nil
}

func appendEntry(h []byte, t Tensor) []byte {
	h = strictjson.AppendQuoted(h, t.Name)
	h = append(h, `:{"dtype":"`...)
	h = append(h, t.DType.Safetensors()...)
	h = append(h, `","shape":[`...)
	for i, n := range t.Shape {
		if i > 0 {
			h = append(h, ',')
		}
		h = strconv.AppendInt(h, n, 10)
	}
	h = append(h, `],"data_offsets":[`...)
	h = strconv.AppendInt(h, t.Offset, 10)
	h = append(h, ',')
	h = strconv.AppendInt(h, t.End(), 10)
	return append(h, "]}"...)
}
