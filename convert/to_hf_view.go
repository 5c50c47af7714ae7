package convert

import (
	"fmt"
	"io"
	"sync"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/saferead"
	"github.com/loratool/loratool/quant/block"
)

// hfView is a GGUF model with the names and the rows of Hugging Face, read from the model
// that it is made from.
type hfView struct {
	source  *checkpoint.Model
	specs   []tensor.Spec
	tensors map[string]*hfTensor
}

var _ checkpoint.Checkpoint = (*hfView)(nil)

// hfTensor is one tensor of the view.
type hfTensor struct {
	spec       tensor.Spec
	from       tensor.Spec // of the source
	skip       int64       // bytes of the source in front, of an expert in a stack
	head       int64       // rows of a head whose pairs become halves; 0 for none
	minusOne   bool
	transposed bool
}

// Specs returns the tensors in the order of the GGUF file.
func (v *hfView) Specs() []tensor.Spec { return v.specs }

// Open returns the bytes of a tensor.
func (v *hfView) Open(name string) (io.ReaderAt, error) {
	t, ok := v.tensors[name]
	if !ok {
		return nil, fmt.Errorf("no tensor %q", name)
	}
	src, err := v.source.Open(t.from.Name)
	if err != nil {
		return nil, err
	}
	size := t.spec.Size()
	switch {
	case t.minusOne:
		return &minusOneReader{src: src, from: t.from}, nil
	case t.head > 0:
		return &halvesReader{src: src, row: size / t.spec.Shape[0], head: t.head, size: size}, nil
	case t.transposed:
		return &turnedReader{src: src, rows: t.from.Shape[0], cols: t.from.Shape[1], element: t.from.DType.Bits() / 8}, nil
	}
	return io.NewSectionReader(src, t.skip, size), nil
}

// within bounds a read: the part of p that lies in size bytes from off, and the error to
// return when it has been filled.
func within(p []byte, off, size int64) ([]byte, error) {
	switch {
	case off < 0:
		return nil, &saferead.RangeError{Offset: off, Length: int64(len(p)), Size: size}
	case off >= size:
		return nil, io.EOF
	case int64(len(p)) > size-off:
		return p[:size-off], io.EOF
	}
	return p, nil
}

// readAll fills p; a source that ends before is an error.
func readAll(src io.ReaderAt, p []byte, off int64) error {
	n, err := src.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil || err == io.EOF:
		return io.ErrUnexpectedEOF
	}
	return err
}

// halvesReader brings the rows of each head from pairs into halves, which undoes
// pairedReader: row j·D/2+i of a head of D rows is what was its row 2i+j.
type halvesReader struct {
	src  io.ReaderAt
	row  int64 // bytes
	head int64 // rows
	size int64
}

// halvesRun is how much is read at a time: a head of most models.
const halvesRun = 2 << 20

var halvesRuns = sync.Pool{New: func() any { return new([]byte) }}

func (r *halvesReader) ReadAt(p []byte, off int64) (int, error) {
	p, end := within(p, off, r.size)
	if len(p) == 0 {
		return 0, end
	}
	buffer := halvesRuns.Get().(*[]byte)
	defer halvesRuns.Put(buffer)
	from, to := off/r.row, (off+int64(len(p))-1)/r.row+1 // rows
	for first := from / r.head * r.head; first < to; first += r.head {
		for _, pairs := range r.pairsOf(max(from-first, 0), min(to-first, r.head)) {
			if err := r.scatter(buffer, p, off, first, pairs[0], pairs[1]); err != nil {
				return 0, err
			}
		}
	}
	return len(p), end
}

// pairsOf returns the runs of pairs that rows [from, to) of a head come from.
func (r *halvesReader) pairsOf(from, to int64) [][2]int64 {
	half := r.head / 2
	switch {
	case to <= half:
		return [][2]int64{{from, to}}
	case from >= half:
		return [][2]int64{{from - half, to - half}}
	case to-half >= from: // they meet
		return [][2]int64{{0, half}}
	}
	return [][2]int64{{0, to - half}, {from, half}}
}

// scatter reads pairs [from, to) of the head that begins at row first, and copies those
// of their rows that p has a place for.
func (r *halvesReader) scatter(buffer *[]byte, p []byte, off, first, from, to int64) error {
	step := max(halvesRun/(2*r.row), 1)
	for ; from < to; from += step {
		run := 2 * (min(to, from+step) - from) // rows
		if int64(cap(*buffer)) < run*r.row {
			*buffer = make([]byte, run*r.row)
		}
		rows := (*buffer)[:run*r.row]
		if err := readAll(r.src, rows, (first+2*from)*r.row); err != nil {
			return err
		}
		for k := range run {
			row := rows[k*r.row : (k+1)*r.row]
			at := (first+k%2*r.head/2+from+k/2)*r.row - off
			if at < 0 {
				row, at = row[min(-at, r.row):], 0
			}
			if at < int64(len(p)) {
				copy(p[at:], row)
			}
		}
	}
	return nil
}

// minusOneReader computes W - 1 in float32 of values of any type. Where the converter's
// sum 1 + w was exact, so is w: both are then multiples of the last place of the sum.
type minusOneReader struct {
	src  io.ReaderAt
	from tensor.Spec
}

func (r *minusOneReader) ReadAt(p []byte, off int64) (int, error) {
	const wide = 4
	size := r.from.NumElements() * wide
	p, end := within(p, off, size)
	if len(p) == 0 {
		return 0, end
	}
	codec, ok := block.For(r.from.DType)
	if !ok {
		return 0, fmt.Errorf("tensor %q: no codec for %s", r.from.Name, r.from.DType)
	}
	narrow := r.from.Size() / r.from.NumElements()
	first, last := off/wide, (off+int64(len(p))-1)/wide+1
	raw := make([]byte, (last-first)*narrow)
	if err := readAll(r.src, raw, first*narrow); err != nil {
		return 0, err
	}
	x := make([]float32, last-first)
	block.Decode(codec, x, raw)
	for i := range x {
		x[i]--
	}
	copy(p, encodeF32(x)[off-first*wide:])
	return len(p), end
}
