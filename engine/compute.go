package engine

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/plan"
	"github.com/loratool/loratool/quant/block"
)

// buffers is the memory of one worker; it grows to the largest band and is
// never given back.
type buffers struct {
	in, out []byte
	f32     work[float32]
	f64     work[float64]
}

// work holds one decoded band three times: the exact result, the values before
// the judged stages, and what the output dtype made of the result.
type work[T tensor.Float] struct{ x, before, stored []T }

// of returns the worker's decoded buffers in precision T.
func of[T tensor.Float](b *buffers) *work[T] {
	if w, ok := any(&b.f32).(*work[T]); ok {
		return w
	}
	return any(&b.f64).(*work[T])
}

// prepareCopy cuts a step that moves bytes into chunks.
func (r *run) prepareCopy(s *plan.Step) ([]func(*buffers) error, error) {
	src, err := r.in[s.Read.Input].Open(s.Read.Tensor)
	if err != nil {
		return nil, err
	}
	bits := s.Read.Spec.DType.Bits()
	from := s.Read.From * s.Read.Cols * bits / 8
	to := s.Read.To * s.Read.Cols * bits / 8
	at := s.Write.Row * s.Read.Cols * bits / 8
	var bands []func(*buffers) error
	for off := from; off < to; off += r.budget.Chunk {
		n := min(r.budget.Chunk, to-off)
		bands = append(bands, func(b *buffers) error {
			b.in = grow(b.in, int(n))
			if err := readFull(src, b.in, off); err != nil {
				return readError(s.Read.Tensor, err)
			}
			if err := r.out.WriteAt(s.Write.Output, s.Write.Tensor, b.in, at+off-from); err != nil {
				return err
			}
			r.progress.Advance(n, s.Write.Tensor)
			return nil
		})
	}
	return bands, nil
}

// computation is a step bound to its inputs in precision T.
type computation[T tensor.Float] struct {
	r             *run
	step          *plan.Step
	src           io.ReaderAt
	decode, round block.Codec
	funcs         []plan.Func[T]
	stats         []kernel.RowStats // by row, summed in row order at the end
}

// prepareCompute loads the side inputs of step i, binds its stages, streams
// the passes that observers ask for, and cuts the rows into bands.
func prepareCompute[T tensor.Float](ctx context.Context, r *run, i int) ([]func(*buffers) error, func() error, error) {
	s := &r.plan.Steps[i]
	held := sideBytes(s)
	if err := r.sides.Acquire(ctx, held); err != nil {
		return nil, nil, err
	}
	c, err := bind[T](r, s)
	if err != nil {
		r.sides.Release(held)
		return nil, nil, err
	}
	c.stats = make([]kernel.RowStats, s.Read.Rows())
	if err := c.observe(ctx); err != nil {
		r.sides.Release(held)
		return nil, nil, err
	}
	var bands []func(*buffers) error
	for from, to := range c.cut() {
		bands = append(bands, func(b *buffers) error { return c.band(b, from, to) })
	}
	finish := func() error {
		defer r.sides.Release(held)
		c.funcs = nil
		report, err := reduce(s, c.stats)
		r.reports[i] = report
		c.stats = nil
		return err
	}
	if len(bands) == 0 {
		return nil, nil, finish()
	}
	return bands, finish, nil
}

// bind opens the input of the step and binds every stage to its sides.
func bind[T tensor.Float](r *run, s *plan.Step) (*computation[T], error) {
	src, err := r.in[s.Read.Input].Open(s.Read.Tensor)
	if err != nil {
		return nil, err
	}
	c := &computation[T]{r: r, step: s, src: src}
	var ok bool
	if c.decode, ok = block.For(s.Read.Spec.DType); !ok {
		return nil, fmt.Errorf("%s can't be computed with", s.Read.Spec.DType)
	}
	if c.round, ok = block.For(s.Write.DType); !ok {
		return nil, fmt.Errorf("%s can't be written", s.Write.DType)
	}
	for _, st := range s.Stages {
		sides := make([]tensor.Matrix[T], len(st.Sides))
		for i, side := range st.Sides {
			if sides[i], err = loadSide[T](r, side); err != nil {
				return nil, err
			}
		}
		f, err := bindOp(st.Op, sides)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", st.Op.Kind(), err)
		}
		c.funcs = append(c.funcs, f)
	}
	return c, nil
}

// bindOp picks the Bind method of the precision T.
func bindOp[T tensor.Float](op plan.Op, sides []tensor.Matrix[T]) (plan.Func[T], error) {
	if s, ok := any(sides).([]tensor.Matrix[float32]); ok {
		f, err := op.Bind(s)
		if err != nil {
			return nil, err
		}
		return f.(plan.Func[T]), nil
	}
	f, err := op.Bind64(any(sides).([]tensor.Matrix[float64]))
	if err != nil {
		return nil, err
	}
	return f.(plan.Func[T]), nil
}

// loadSide reads and decodes a side input, a chunk at a time.
func loadSide[T tensor.Float](r *run, side plan.Slice) (tensor.Matrix[T], error) {
	src, err := r.in[side.Input].Open(side.Tensor)
	if err != nil {
		return tensor.Matrix[T]{}, err
	}
	return ReadMatrix[T](src, side)
}

// ReadMatrix reads and decodes the rows of a slice from the bytes of its
// tensor. A whole tensor keeps its shape; a part becomes rows x columns.
func ReadMatrix[T tensor.Float](src io.ReaderAt, side plan.Slice) (tensor.Matrix[T], error) {
	codec, ok := block.For(side.Spec.DType)
	if !ok {
		return tensor.Matrix[T]{}, fmt.Errorf("%q: %s can't be computed with", side.Tensor, side.Spec.DType)
	}
	m := tensor.Matrix[T]{Shape: tensor.Shape{side.Rows(), side.Cols}, Data: make([]T, side.Rows()*side.Cols)}
	if side.Rows() == side.Spec.Rows() && side.Cols == side.Spec.Cols() {
		m.Shape = side.Spec.Shape
	}
	size := side.Spec.DType.Bits() / 8
	const chunk = 256 << 10
	buf := make([]byte, chunk)
	off := side.From * side.Cols * size
	for done := int64(0); done < int64(len(m.Data)); {
		n := min(int64(len(m.Data))-done, chunk/size)
		raw := buf[:n*size]
		if err := readFull(src, raw, off+done*size); err != nil {
			return tensor.Matrix[T]{}, readError(side.Tensor, err)
		}
		block.Decode(codec, m.Data[done:done+n], raw)
		done += n
	}
	return m, nil
}

// cut yields the row ranges of the bands.
func (c *computation[T]) cut() func(yield func(from, to int64) bool) {
	return func(yield func(from, to int64) bool) {
		rows := max(c.r.budget.Band/max(c.step.Read.Cols, 1), 1)
		for from := c.step.Read.From; from < c.step.Read.To; from += rows {
			if !yield(from, min(from+rows, c.step.Read.To)) {
				return
			}
		}
	}
}

// observe runs the passes of the stages that must see the whole tensor first.
func (c *computation[T]) observe(ctx context.Context) error {
	var b buffers
	for at, f := range c.funcs {
		o, ok := f.(plan.Observer[T])
		if !ok {
			continue
		}
		for pass := range o.Passes() {
			for from, to := range c.cut() {
				if err := ctx.Err(); err != nil {
					return err
				}
				band, err := c.read(&b, from, to)
				if err != nil {
					return err
				}
				for _, earlier := range c.funcs[:at] {
					if err := earlier.Apply(band); err != nil {
						return err
					}
				}
				if err := o.Observe(pass, band); err != nil {
					return err
				}
			}
			if err := o.Finish(pass); err != nil {
				return err
			}
		}
	}
	return nil
}

// read reads and decodes rows [from, to).
func (c *computation[T]) read(b *buffers, from, to int64) (plan.Band[T], error) {
	cols := c.step.Read.Cols
	size := c.step.Read.Spec.DType.Bits() / 8
	n := (to - from) * cols
	b.in = grow(b.in, int(n*size))
	if err := readFull(c.src, b.in, from*cols*size); err != nil {
		return plan.Band[T]{}, readError(c.step.Read.Tensor, err)
	}
	w := of[T](b)
	w.x = grow(w.x, int(n))
	block.Decode(c.decode, w.x, b.in)
	return plan.Band[T]{Row: from, Rows: int(to - from), Cols: int(cols), X: w.x}, nil
}

// band computes and writes rows [from, to).
func (c *computation[T]) band(b *buffers, from, to int64) error {
	s := c.step
	band, err := c.read(b, from, to)
	if err != nil {
		return err
	}
	w := of[T](b)
	w.before = grow(w.before, len(band.X))
	for i, f := range c.funcs {
		if i == s.Restore {
			copy(w.before, band.X)
		}
		if err := f.Apply(band); err != nil {
			return fmt.Errorf("%s: %w", s.Write.Tensor, err)
		}
	}
	if len(c.funcs) <= s.Restore {
		copy(w.before, band.X)
	}
	size := s.Write.DType.Bits() / 8
	b.out = grow(b.out, len(band.X)*int(size))
	block.Encode(c.round, b.out, band.X)
	w.stored = grow(w.stored, len(band.X))
	block.Decode(c.round, w.stored, b.out)
	first := from - s.Read.From
	kernel.Stats(c.stats[first:first+int64(band.Rows)], w.before, band.X, w.stored, band.Rows, band.Cols)

	row := s.Write.Row + first
	if err := c.r.out.WriteAt(s.Write.Output, s.Write.Tensor, b.out, row*s.Read.Cols*size); err != nil {
		return err
	}
	c.r.progress.Advance(int64(len(b.out)), s.Write.Tensor)
	return nil
}

// grow returns a slice of length n, reusing buf when it is large enough.
func grow[E any](buf []E, n int) []E {
	if cap(buf) < n {
		return make([]E, n)
	}
	return buf[:n]
}

// readError names the tensor; a file that has become shorter was changed by
// somebody else.
func readError(name string, err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("reading %q: %w", name, &InputChangedError{"the file"})
	}
	return fmt.Errorf("reading %q: %w", name, err)
}

// readFull reads len(p) bytes at off; a source that ends early is an error,
// never zeros.
func readFull(src io.ReaderAt, p []byte, off int64) error {
	n, err := src.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}
