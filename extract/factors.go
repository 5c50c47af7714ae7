package extract

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/quant/block"
)

// opener gives the bytes of a tensor that is computed when it is read.
type opener = func() (io.ReaderAt, error)

// made is a checkpoint of tensors that are computed when they are read: factors
// from the store, rows and differences from the two models. Factors are float64
// so that the engine rounds each number once, to the type that is written.
type made struct {
	specs []tensor.Spec
	open  map[string]opener
}

var _ checkpoint.Checkpoint = (*made)(nil)

func (m *made) Specs() []tensor.Spec { return m.specs }

func (m *made) Open(name string) (io.ReaderAt, error) {
	open, ok := m.open[name]
	if !ok {
		return nil, fmt.Errorf("no tensor %q is made", name)
	}
	return open()
}

func (m *made) add(spec tensor.Spec, open opener) {
	if m.open == nil {
		m.open = make(map[string]opener)
	}
	m.specs = append(m.specs, spec)
	m.open[spec.Name] = open
}

// computed is a matrix of float64 numbers that are computed when they are read.
type computed struct {
	elements int64
	at       func(i int64) float64
}

// ReadAt gives whole numbers, as the engine reads nothing else.
func (c computed) ReadAt(p []byte, off int64) (int, error) {
	const size = 8
	if off < 0 || off%size != 0 {
		return 0, fmt.Errorf("reading a made tensor at byte %d", off)
	}
	n := 0
	for i := off / size; i < c.elements && n+size <= len(p); i++ {
		binary.LittleEndian.PutUint64(p[n:], math.Float64bits(c.at(i)))
		n += size
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// factorA gives A of an item from the store.
func (s *Store) factorA(it *item, rank int64) opener {
	return func() (io.ReaderAt, error) {
		e, err := s.open(it)
		if err != nil {
			return nil, fmt.Errorf("reading the factors of %q: %w", it.name(), err)
		}
		return openA(it, rank, e.stack("VT"))()
	}
}

// factorB gives B of an item from the store.
func (s *Store) factorB(it *item, rank int64, scale float64) opener {
	return func() (io.ReaderAt, error) {
		e, err := s.open(it)
		if err != nil {
			return nil, fmt.Errorf("reading the factors of %q: %w", it.name(), err)
		}
		return openB(it, rank, scale, e.stack("U"))()
	}
}

// openA gives A: row e·rank+k is sqrt(S_k)·V_k^T of matrix e of the stack, as PEFT
// packs it; zeros where a matrix has fewer triplets.
func openA(it *item, rank int64, stack []vectors) opener {
	return func() (io.ReaderAt, error) {
		return computed{it.blocks * rank * it.in, func(i int64) float64 {
			row, j := i/it.in, i%it.in
			b, k := &stack[row/rank], row%rank
			if k >= b.rank {
				return 0
			}
			return b.root[k] * b.value(k*it.in+j)
		}}, nil
	}
}

// openB gives B: column k·blocks+e is U_k·sqrt(S_k)/scale of matrix e of the stack.
func openB(it *item, rank int64, scale float64, stack []vectors) opener {
	return func() (io.ReaderAt, error) {
		return computed{it.out * rank * it.blocks, func(i int64) float64 {
			row, column := i/(rank*it.blocks), i%(rank*it.blocks)
			b, k := &stack[column%it.blocks], column/it.blocks
			if k >= b.rank {
				return 0
			}
			return b.value(row*b.rank+k) * b.root[k] / scale
		}}, nil
	}
}

// vectors are the stored singular vectors of one matrix, float32, and the square
// roots of its singular values.
type vectors struct {
	raw  []byte
	root []float64
	rank int64
}

func (v *vectors) value(i int64) float64 {
	return float64(math.Float32frombits(binary.LittleEndian.Uint32(v.raw[4*i:])))
}

// stack returns the vectors of one side of all matrices of an entry.
func (e *entry) stack(name string) []vectors {
	all := make([]vectors, len(e.spectra))
	for b, s := range e.spectra {
		all[b].rank = int64(len(s.values))
		if len(s.values) > 0 {
			all[b].raw = e.matrix(b, name)
		}
		for _, v := range s.values {
			all[b].root = append(all[b].root, math.Sqrt(v))
		}
	}
	return all
}

// difference gives (tuned - base) / scale of a vector, zeros for one that is to be
// left as it is.
func (s *Survey) difference(it *item, zero bool, scale float64) opener {
	return func() (io.ReaderAt, error) {
		p := it.parts[0]
		values := make([]float64, p.tuned.NumElements())
		if zero {
			return computed{int64(len(values)), func(i int64) float64 { return values[i] }}, nil
		}
		base := make([]float64, len(values))
		if err := readAll(s.tuned, p.tuned, values); err != nil {
			return nil, err
		}
		if err := readAll(s.base, p.base, base); err != nil {
			return nil, err
		}
		return computed{int64(len(values)), func(i int64) float64 { return (values[i] - base[i]) / scale }}, nil
	}
}

// readAll decodes a small tensor.
func readAll(m *checkpoint.Model, spec tensor.Spec, dst []float64) error {
	src, err := m.Open(spec.Name)
	if err != nil {
		return err
	}
	raw := make([]byte, spec.Size())
	if err := readFull(src, raw, 0); err != nil {
		return readError(m, spec.Name, err)
	}
	codec, ok := block.For(spec.DType)
	if !ok {
		return inputErrorf(m, "tensor %q: %s can't be computed with", spec.Name, spec.DType)
	}
	codec.Decode64(dst, raw)
	return nil
}

// gathered gives listed rows of a table as they are stored.
func gathered(m *checkpoint.Model, spec tensor.Spec, rows []int64) opener {
	return func() (io.ReaderAt, error) {
		src, err := m.Open(spec.Name)
		if err != nil {
			return nil, err
		}
		return rowReader{src, spec.Cols() * spec.DType.Bits() / 8, rows}, nil
	}
}

type rowReader struct {
	src  io.ReaderAt
	size int64 // bytes of a row
	rows []int64
}

func (r rowReader) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) {
		row, col := (off+int64(n))/r.size, (off+int64(n))%r.size
		if row >= int64(len(r.rows)) {
			return n, io.EOF
		}
		piece := p[n:min(int64(len(p)), int64(n)+r.size-col)]
		if err := readFull(r.src, piece, r.rows[row]*r.size+col); err != nil {
			return n, err
		}
		n += len(piece)
	}
	return n, nil
}
