package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/quant/block"
)

// readFull reads len(p) bytes; a source that ends early is an error.
func readFull(src io.ReaderAt, p []byte, off int64) error {
	n, err := src.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// readError names the tensor. A file that has become shorter was changed by somebody
// else, which is a fault of the input.
func readError(m checkpoint.Checkpoint, name string, err error) error {
	if m, ok := m.(*checkpoint.Model); ok && errors.Is(err, io.ErrUnexpectedEOF) {
		return &checkpoint.InputError{Path: m.Path, Err: fmt.Errorf("tensor %q: the file changed while it was read", name)}
	}
	return fmt.Errorf("reading %q: %w", name, err)
}

// reader decodes elements of one tensor, in float64. It holds buffers and is for one
// goroutine.
type reader struct {
	in    checkpoint.Checkpoint
	name  string
	src   io.ReaderAt
	codec block.Codec
	width int64
	raw   []byte
}

// newReader opens a tensor; false if its type is not one of numbers.
func newReader(in checkpoint.Checkpoint, spec tensor.Spec) (*reader, bool, error) {
	codec, ok := block.For(spec.DType)
	if !ok {
		return nil, false, nil
	}
	src, err := in.Open(spec.Name)
	return &reader{in: in, name: spec.Name, src: src, codec: codec, width: spec.DType.Bits() / 8}, true, err
}

// read sets x to the elements from first on.
func (r *reader) read(x []float64, first int64) error {
	size := int64(len(x)) * r.width
	if int64(cap(r.raw)) < size {
		r.raw = make([]byte, size)
	}
	r.raw = r.raw[:size]
	if err := readFull(r.src, r.raw, first*r.width); err != nil {
		return readError(r.in, r.name, err)
	}
	r.codec.Decode64(x, r.raw)
	return nil
}

// chunkElements are compared at a time.
const chunkElements = chunkBytes / 8

// countDifferent counts the elements in which two tensors of one shape differ, as
// numbers; false if one of them has none.
func countDifferent(ctx context.Context, inA checkpoint.Checkpoint, a tensor.Spec, inB checkpoint.Checkpoint, b tensor.Spec) (n int64, ok bool, err error) {
	ra, okA, err := newReader(inA, a)
	if err != nil || !okA {
		return 0, false, err
	}
	rb, okB, err := newReader(inB, b)
	if err != nil || !okB {
		return 0, false, err
	}
	x, y := make([]float64, chunkElements), make([]float64, chunkElements)
	for first, total := int64(0), a.NumElements(); first < total; first += chunkElements {
		if err := ctx.Err(); err != nil {
			return 0, false, err
		}
		k := min(chunkElements, total-first)
		if err := ra.read(x[:k], first); err != nil {
			return 0, false, err
		}
		if err := rb.read(y[:k], first); err != nil {
			return 0, false, err
		}
		if a.DType == b.DType && bytes.Equal(ra.raw, rb.raw) {
			continue
		}
		for i, v := range x[:k] {
			if v != y[i] && !(math.IsNaN(v) && math.IsNaN(y[i])) {
				n++
			}
		}
	}
	return n, true, nil
}
