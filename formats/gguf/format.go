// Package gguf reads and lays out files of the GGUF format, the container of
// llama.cpp and its relatives: a header, typed key-value pairs, the list of
// tensors, then their bytes, each tensor at a multiple of the alignment.
//
// [Open] and [New] read the header only and give a [File]; its [Metadata] keeps
// the order and exact type of every [Value], so that a file can be written
// again byte for byte, and its tensors are read lazily through [File.Section].
// [OpenSet] opens a model that is split over several files. [NewLayout] decides
// every byte position of a file to be written, [Split] those of several files.
//
// Versions 2 and 3 are read, in little endian; a big-endian file is refused by
// name. Shapes are outermost first, as everywhere in loratool: only this
// package knows that a file lists its dimensions the other way round.
//
// Files are not trusted. What the reference reader (ggml/src/gguf.cpp) refuses
// is refused, and beyond that:
//
//   - shapes whose non-zero dimensions overflow when multiplied: the reference
//     lets a product wrap around to zero and takes the tensor for an empty one;
//   - tensors whose data is not in the file, which it finds out when it loads;
//   - keys and tensor names that are not UTF-8 or hold a NUL, where it stops
//     reading the name, empty tensor names, keys above 65535 bytes, booleans
//     other than 0 and 1: two readers could see two things;
//   - headers above 100 MB, and more keys or tensors than it could compare in a
//     day, as it looks for duplicates by comparing all pairs.
//
// Bytes behind the data and a last tensor without padding are accepted and told
// ([File.Trailing], [File.MissingPadding]). Values are text and numbers for the
// caller to judge: nothing in them is interpreted but the alignment and, in
// [OpenSet], the keys of a split file.
package gguf

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/loratool/loratool/formats/tensor"
)

const (
	magic = "GGUF"
	// headerSize is the size of magic, version and the two counts.
	headerSize = 24
	// DefaultVersion is what the reference writes. Version 2 has the same
	// bytes but for the number.
	DefaultVersion = 3
	oldestVersion  = 2

	// DefaultAlignment applies where the metadata has no KeyAlignment.
	DefaultAlignment = 32
	// KeyAlignment is the key of the alignment, a u32.
	KeyAlignment = "general.alignment"

	// MaxNameSize is the longest tensor name in bytes; the reference keeps
	// names in fields of 64 bytes that end with a NUL.
	MaxNameSize = 63
	// MaxDims is the highest rank of a tensor.
	MaxDims = 4

	// maxHeaderSize bounds what is before the data, and with it the memory
	// that a file may take: a tokenizer of a million tokens with its merges
	// takes about 70 MB.
	maxHeaderSize = 100_000_000
	// maxKeySize is the limit of the format's specification (ggml docs/gguf.md).
	maxKeySize = 1<<16 - 1
	// maxKeys and maxTensors bound what is kept per entry. Models have some
	// 50 keys and, at most, some ten thousand tensors.
	maxKeys    = 1 << 16
	maxTensors = 1 << 20
	// maxLength is the reference's limit for the bytes of a string and for
	// the elements of an array.
	maxLength = 1 << 30
)

// Spec describes one tensor. Those of a [File] and a [Layout] are valid: sizes
// fit int64, rows are whole blocks.
type Spec struct {
	Name  string
	Type  Type
	Shape tensor.Shape // outermost first; rows are along the last dimension
}

// NumElements returns the number of elements.
func (s Spec) NumElements() int64 {
	n, _ := s.Shape.NumElements()
	return n
}

// Size returns the number of bytes the data takes, without padding.
func (s Spec) Size() int64 {
	size, _ := sizeOf(s.Type, s.Shape)
	return size
}

// RowSize returns the number of bytes of one row, the last dimension.
func (s Spec) RowSize() int64 {
	row := int64(1)
	if len(s.Shape) > 0 {
		row = s.Shape[len(s.Shape)-1]
	}
	size, _ := sizeOf(s.Type, tensor.Shape{row})
	return size
}

// TrimShape returns the shape without leading dimensions of size 1, but with
// one dimension at least. That is how the C writer of the reference stores
// every shape; its Python writer stores them as they are.
func TrimShape(shape tensor.Shape) tensor.Shape {
	if len(shape) == 0 {
		return tensor.Shape{1}
	}
	for len(shape) > 1 && shape[0] == 1 {
		shape = shape[1:]
	}
	return shape
}

// Tensor is a tensor of a file.
type Tensor struct {
	Spec
	Offset int64 // of its first byte, from the start of the file
}

// End returns the offset behind the last byte of the tensor, before padding.
func (t Tensor) End() int64 { return t.Offset + t.Size() }

// FormatError reports a file that is not a valid GGUF file, or that is not the
// part of a split model it should be.
type FormatError struct {
	Offset int64  // of the place in the file, 0 for the file as a whole
	Key    string // the key concerned, if any
	Tensor string // the tensor concerned, if any
	Reason string
}

// Error returns one line; names are quoted and cut if they are long.
func (e *FormatError) Error() string {
	var b strings.Builder
	if e.Key != "" {
		fmt.Fprintf(&b, "key %s: ", excerpt(e.Key))
	}
	if e.Tensor != "" {
		fmt.Fprintf(&b, "tensor %s: ", excerpt(e.Tensor))
	}
	b.WriteString(e.Reason)
	if e.Offset != 0 {
		fmt.Fprintf(&b, " (at byte %d)", e.Offset)
	}
	return b.String()
}

// excerpt quotes text from a file for an error message. It may have any length
// and hold anything.
func excerpt(text string) string {
	const limit = 128
	if len(text) <= limit {
		return strconv.Quote(text)
	}
	cut := limit
	for cut > limit-utf8.UTFMax && !utf8.RuneStart(text[cut]) {
		cut--
	}
	return strconv.Quote(text[:cut]) + "..."
}

// pad returns the next multiple of the alignment, a power of two, or false if
// that overflows.
func pad(n, alignment int64) (int64, bool) {
	rest := n & (alignment - 1)
	if rest == 0 {
		return n, true
	}
	padded := n + (alignment - rest)
	return padded, padded > 0
}
