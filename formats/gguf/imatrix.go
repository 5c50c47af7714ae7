package gguf

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"

	"github.com/loratool/loratool/internal/saferead"
)

// Imatrix is an open importance matrix: for weights of a model, by name, how much each
// of their columns matters. It comes as a GGUF file or in the older form of
// llama.cpp, which has no magic number. The weights are checked when it is opened,
// all of them, and read again when they are asked for: those of a large model
// with experts take more memory than quantizing it does. It is safe for concurrent
// use.
type Imatrix struct {
	Legacy   bool
	Datasets []string // what it was computed on
	Chunks   int32    // how much of that; 0 or less if it does not say

	r       *saferead.Reader
	owned   io.Closer // nil if the caller owns the source
	entries map[string]imatrixEntry
}

// imatrixEntry is where the sums of one tensor are, and what they are divided by.
type imatrixEntry struct {
	offset int64
	n      int64     // numbers
	counts []float32 // one for each group of equal length, of experts; none divides by nothing
}

// OpenImatrix opens an importance matrix. A malformed file gives a [*FormatError].
func OpenImatrix(path string) (*Imatrix, error) {
	file, size, err := saferead.OpenRegular(path)
	if err != nil {
		return nil, err
	}
	m, err := NewImatrix(file, size)
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("%s: %w", saferead.Printable(path), err)
	}
	m.owned = file
	return m, nil
}

// NewImatrix reads an importance matrix of size bytes. The caller keeps r open as
// long as the matrix is used. A malformed one gives a [*FormatError].
func NewImatrix(r io.ReaderAt, size int64) (*Imatrix, error) {
	m := &Imatrix{r: saferead.New(r, size), entries: make(map[string]imatrixEntry)}
	start, err := m.r.Bytes(0, min(size, int64(len(magic))))
	if err != nil {
		return nil, err
	}
	read := m.readLegacy
	if string(start) == magic {
		read = m.readGGUF
	}
	if err := read(); err != nil {
		return nil, err
	}
	if len(m.entries) == 0 {
		return nil, &FormatError{Reason: "an importance matrix without entries"}
	}
	for name, e := range m.entries {
		if err := m.check(name, e); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// Close closes the file if [OpenImatrix] opened it.
func (m *Imatrix) Close() error {
	if m.owned == nil {
		return nil
	}
	return m.owned.Close()
}

// Size returns the size of the file.
func (m *Imatrix) Size() int64 { return m.r.Size() }

// Sizes returns how many weights each tensor has in the matrix.
func (m *Imatrix) Sizes() map[string]int64 {
	sizes := make(map[string]int64, len(m.entries))
	for name, e := range m.entries {
		sizes[name] = e.n
	}
	return sizes
}

// Weights returns the weights of a tensor: one for each column, or for each column of
// each expert.
//
//	weight = sum / count, 1 in a group of a count of 0
//
// The older form counts once for all, and is not divided if that is 0.
func (m *Imatrix) Weights(name string) ([]float32, error) {
	e, ok := m.entries[name]
	if !ok {
		return nil, fmt.Errorf("no weights for tensor %s", excerpt(name))
	}
	weights := make([]float32, e.n)
	raw := make([]byte, 4*e.n)
	if err := m.r.ReadFull(raw, e.offset); err != nil {
		return nil, fmt.Errorf("weights of tensor %s: %w", excerpt(name), err)
	}
	for i := range weights {
		weights[i] = floatAt(raw, i)
	}
	if len(e.counts) == 0 {
		return weights, nil
	}
	group := len(weights) / len(e.counts)
	for i := range weights {
		switch count := e.counts[i/group]; {
		case count > 0:
			weights[i] /= count
		case !m.Legacy:
			weights[i] = 1
		}
	}
	return weights, nil
}

func floatAt(raw []byte, i int) float32 {
	return math.Float32frombits(binary.LittleEndian.Uint32(raw[4*i:]))
}

// check refuses sums that can be no sums of squares.
func (m *Imatrix) check(name string, e imatrixEntry) error {
	const chunk = 16 << 10
	raw := make([]byte, 4*min(e.n, chunk))
	for first := int64(0); first < e.n; first += chunk {
		part := raw[:4*min(chunk, e.n-first)]
		if err := m.r.ReadFull(part, e.offset+4*first); err != nil {
			return err
		}
		for i := range len(part) / 4 {
			if x := floatAt(part, i); !(x >= 0 && x <= math.MaxFloat32) {
				at := first + int64(i)
				return &FormatError{Offset: e.offset + 4*at, Tensor: name, Reason: fmt.Sprintf("weight %d is %g", at, x)}
			}
		}
	}
	return nil
}

// The keys that tell which importance matrix a file was quantized with.
const (
	keyMatrixFile    = "quantize.imatrix.file"
	keyMatrixDataset = "quantize.imatrix.dataset"
	keyMatrixEntries = "quantize.imatrix.entries_count"
	keyMatrixChunks  = "quantize.imatrix.chunks_count"

	// maxMatrixText is where the reference cuts text in these keys.
	maxMatrixText = 127
)

// SetKeys sets the keys that tell which importance matrix a file was quantized with, as
// the reference does: file is the path as it was given, the data set is the first one,
// and text is cut at 127 bytes.
func (m *Imatrix) SetKeys(keys *Metadata, file string) {
	cut := func(text string) Value { return ValueOf(text[:min(len(text), maxMatrixText)]) }
	keys.Set(keyMatrixFile, cut(file))
	if len(m.Datasets) > 0 {
		keys.Set(keyMatrixDataset, cut(m.Datasets[0]))
	}
	keys.Set(keyMatrixEntries, ValueOf(uint32(len(m.entries))))
	if m.Chunks > 0 {
		keys.Set(keyMatrixChunks, ValueOf(uint32(m.Chunks)))
	}
}
