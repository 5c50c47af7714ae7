package merge

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/plan"
	"github.com/loratool/loratool/quant/block"
)

// This file looks at values before the plan is made: at the adapters' tensors,
// which are small, and at embedding tables that an adapter brings along.

// surveyChunk is how many bytes of a tensor are looked at at a time. It is a
// whole number of elements of every type.
const surveyChunk = 256 << 10

// checkFinite refuses an adapter with an infinity or NaN: one of them in a
// factor ruins whole rows of the base.
func checkFinite(a *adapter.Adapter) error {
	for _, spec := range a.Source.Specs() {
		codec, ok := block.For(spec.DType)
		if !ok {
			continue
		}
		src, err := a.Source.Open(spec.Name)
		if err != nil {
			return err
		}
		at, found, err := findNonFinite(src, spec, codec)
		if err != nil {
			return readError(a.Source, spec.Name, err)
		}
		if found {
			return a.Mismatch(spec.Name, "element %d is not finite", at)
		}
	}
	return nil
}

func findNonFinite(src io.ReaderAt, spec tensor.Spec, codec block.Codec) (at int64, found bool, err error) {
	buf := make([]byte, min(surveyChunk, spec.Size()))
	for off := int64(0); off < spec.Size(); off += surveyChunk {
		p := buf[:min(surveyChunk, spec.Size()-off)]
		if err := readFull(src, p, off); err != nil {
			return 0, false, err
		}
		if i, found := block.AnyNonFinite(codec, p); found {
			return off/(spec.DType.Bits()/8) + i, true, nil
		}
	}
	return 0, false, nil
}

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

// sameAs reports whether a tensor of an adapter is what the entry holds anyway,
// in the element type of the entry.
func (p *planner) sameAs(s plan.Slice, e *entry) (bool, error) {
	if e.read.Input != 0 {
		return false, nil
	}
	return p.sameBytes(s, e.read)
}

// sameBytes compares two tensors as the second one's element type. The first is
// rounded to it, as it would be on writing.
func (p *planner) sameBytes(a, b plan.Slice) (bool, error) {
	if !a.Spec.Shape.Equal(b.Spec.Shape) {
		return false, nil
	}
	from, okA := block.For(a.Spec.DType)
	to, okB := block.For(b.Spec.DType)
	if !okA || !okB {
		return false, nil
	}
	srcA, err := p.inputs[a.Input].Open(a.Tensor)
	if err != nil {
		return false, err
	}
	srcB, err := p.inputs[b.Input].Open(b.Tensor)
	if err != nil {
		return false, err
	}
	const elements = surveyChunk / 8
	values := make([]float64, elements)
	sizeA, sizeB := a.Spec.DType.Bits()/8, b.Spec.DType.Bits()/8
	bufA, bufB, rounded := make([]byte, elements*sizeA), make([]byte, elements*sizeB), make([]byte, elements*sizeB)
	total := a.Spec.NumElements()
	for at := int64(0); at < total; at += elements {
		n := min(elements, total-at)
		if err := readFull(srcA, bufA[:n*sizeA], at*sizeA); err != nil {
			return false, readError(p.inputs[a.Input], a.Tensor, err)
		}
		if err := readFull(srcB, bufB[:n*sizeB], at*sizeB); err != nil {
			return false, readError(p.inputs[b.Input], b.Tensor, err)
		}
		from.Decode64(values[:n], bufA[:n*sizeA])
		to.Encode64(rounded[:n*sizeB], values[:n])
		if !bytes.Equal(rounded[:n*sizeB], bufB[:n*sizeB]) {
			return false, nil
		}
	}
	return true, nil
}

// transposes reports whether a matrix (rows, columns) holds the values of
// another (columns, rows), transposed.
func (p *planner) transposes(a, b plan.Slice) (bool, error) {
	rows, cols := a.Rows(), a.Cols
	if b.Rows() != cols || b.Cols != rows {
		return false, nil
	}
	// As many rows of a as fit into a chunk, against as many columns of b.
	block := max(surveyChunk/8/max(cols, 1), 1)
	straight, crossed := make([]float64, block*cols), make([]float64, block)
	for first := int64(0); first < rows; first += block {
		n := min(block, rows-first)
		if err := p.readValues(straight[:n*cols], a, first*cols); err != nil {
			return false, err
		}
		for k := range cols {
			if err := p.readValues(crossed[:n], b, k*rows+first); err != nil {
				return false, err
			}
			for i, v := range crossed[:n] {
				if straight[int64(i)*cols+k] != v {
					return false, nil
				}
			}
		}
	}
	return true, nil
}

// readValues decodes the elements of a tensor from the given one on.
func (p *planner) readValues(dst []float64, s plan.Slice, from int64) error {
	codec, ok := block.For(s.Spec.DType)
	if !ok {
		return fmt.Errorf("reading %q: %s can't be computed with", s.Tensor, s.Spec.DType)
	}
	src, err := p.inputs[s.Input].Open(s.Tensor)
	if err != nil {
		return err
	}
	size := s.Spec.DType.Bits() / 8
	raw := make([]byte, int64(len(dst))*size)
	if err := readFull(src, raw, from*size); err != nil {
		return readError(p.inputs[s.Input], s.Tensor, err)
	}
	codec.Decode64(dst, raw)
	return nil
}

// readError names the tensor. A file that has become shorter was changed by
// somebody else, which is a fault of the input.
func readError(in checkpoint.Checkpoint, name string, err error) error {
	if m, ok := in.(*checkpoint.Model); ok && errors.Is(err, io.ErrUnexpectedEOF) {
		return &checkpoint.InputError{Path: m.Path, Err: fmt.Errorf("tensor %q: the file changed while it was read", name)}
	}
	return fmt.Errorf("reading %q: %w", name, err)
}

// memoryInput is an input that the planner made itself.
type memoryInput struct{ *checkpoint.Memory }

// addMemory registers an input for tensors made by the planner.
func (p *planner) addMemory() (int, memoryInput) {
	m := memoryInput{new(checkpoint.Memory)}
	p.inputs = append(p.inputs, m)
	return len(p.inputs) - 1, m
}

// add stores float32 values and returns them as a side input.
func (m memoryInput) add(input int, name string, shape tensor.Shape, values []float32) plan.Slice {
	spec := tensor.Spec{Name: name, DType: tensor.F32, Shape: shape}
	data := make([]byte, 4*len(values))
	codec, _ := block.For(tensor.F32)
	codec.Encode32(data, values)
	m.Add(spec, data)
	return plan.Whole(input, spec)
}
