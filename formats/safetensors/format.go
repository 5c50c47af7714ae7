// Package safetensors reads and lays out files of the safetensors format: an
// eight-byte length, a JSON header of that length, then the bytes of all
// tensors without a gap.
//
// [Open] and [New] read the header only and give a [File], whose tensors are
// read lazily through [File.Section]. [NewLayout] decides every byte position
// of a file to be written before its first byte exists, in the order and
// spelling of the reference implementation.
//
// Files are not trusted. Beyond what the reference refuses, duplicate keys,
// extra fields, entries given as arrays and more than 4096 dimensions are
// refused, so that no two readers can see two things in one file. White space
// before the header and tensors that start unaligned are accepted. No size
// from a file is believed before it was compared with the file's length.
// Values may be NaN or infinite; the format allows that.
package safetensors

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/loratool/loratool/formats/tensor"
)

const (
	// maxHeaderSize is the limit of the reference implementation. A header of
	// this size describes more than a million tensors.
	maxHeaderSize = 100_000_000
	// lengthSize is the size of the little-endian header length in front.
	lengthSize = 8
	// headerAlign is what the writer pads the header to, with spaces.
	headerAlign = 8
	// metadataKey stands for the free text in the header, and can't be the
	// name of a tensor.
	metadataKey = "__metadata__"
)

// Tensor is a tensor of a file.
type Tensor struct {
	tensor.Spec
	Offset int64 // of its first byte, from the start of the file
}

// End returns the offset behind the last byte of the tensor.
func (t Tensor) End() int64 { return t.Offset + t.Size() }

// FormatError reports a file that is not a valid safetensors file.
type FormatError struct {
	Offset int64  // of the place in the file, 0 for the file as a whole
	Tensor string // the tensor concerned, if any
	Reason string
}

// Error returns one line; names are quoted and cut if they are long.
func (e *FormatError) Error() string {
	var b strings.Builder
	if e.Tensor != "" {
		fmt.Fprintf(&b, "tensor %s: ", excerpt(e.Tensor))
	}
	b.WriteString(e.Reason)
	if e.Offset != 0 {
		fmt.Fprintf(&b, " (at byte %d)", e.Offset)
	}
	return b.String()
}

// excerpt quotes text from a file for an error message. Names may have any
// length and hold anything.
func excerpt[T string | []byte](text T) string {
	const limit = 128
	if len(text) <= limit {
		return strconv.Quote(string(text))
	}
	cut := limit
	for cut > 0 && !utf8.RuneStart(text[cut]) {
		cut--
	}
	return strconv.Quote(string(text[:cut])) + "..."
}

// shorten leaves out the middle of ASCII text that may be long.
func shorten(text string) string {
	const head, tail = 80, 40
	if len(text) <= head+tail {
		return text
	}
	return text[:head] + "..." + text[len(text)-tail:]
}
