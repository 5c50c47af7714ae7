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

// buffers is the memory of one worker: a band as it is read and written, and a
// block of it decoded. It grows to the largest and is never given back.
type buffers struct {
	in, out []byte
	stats   []kernel.RowStats // of a view
	f32     work[float32]
	f64     work[float64]
	merger  kernel.Merger
}

// work holds one decoded block three times: the exact result, the values before
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
	for off := from; off < to; off += r.budget.Band {
		n := min(r.budget.Band, to-off)
		bands = append(bands, func(b *buffers) error {
			b.in = grow(b.in, int(n))
			if err := readFull(src, b.in, off); err != nil {
				return readError(s.Read.Tensor, err)
			}
			if err := r.out.WriteAt(s.Write.Output, s.Write.Tensor, b.in, at+off-from); err != nil {
				return err
			}
			r.advance(s, n, n)
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
	fused         plan.Adder[float32] // the only stage, if one kernel can do all of a band
	stats         []kernel.RowStats   // by row, summed in row order at the end
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
	c.stats = make([]kernel.RowStats, rowsOf(s))
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
	if r.budget.Fused && len(c.funcs) == 1 {
		c.fused, _ = c.funcs[0].(plan.Adder[float32])
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
	from := c.step.Read.From
	return pieces(from, from+rowsOf(c.step), c.r.budget.Band/max(storedRow(c.step), 1))
}

// pieces cuts [from, to) into pieces of n, at least 1, the last one shorter.
func pieces(from, to, n int64) func(yield func(from, to int64) bool) {
	n = max(n, 1)
	return func(yield func(from, to int64) bool) {
		for ; from < to; from += n {
			if !yield(from, min(from+n, to)) {
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
				err := c.blocks(&b, from, to, func(x plan.Band[T]) error {
					for _, earlier := range c.funcs[:at] {
						if err := earlier.Apply(x); err != nil {
							return err
						}
					}
					return o.Observe(pass, x)
				})
				if err != nil {
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

// blocks reads rows [from, to) and calls f with one decoded block of them after
// another.
func (c *computation[T]) blocks(b *buffers, from, to int64, f func(plan.Band[T]) error) error {
	if err := c.read(b, from, to); err != nil {
		return err
	}
	return c.decoded(b, b.in, from, to, f)
}

// read reads rows [from, to) as they are stored.
func (c *computation[T]) read(b *buffers, from, to int64) error {
	rowBytes := c.step.Read.Cols * c.step.Read.Spec.DType.Bits() / 8
	b.in = grow(b.in, int((to-from)*rowBytes))
	if err := readFull(c.src, b.in, from*rowBytes); err != nil {
		return readError(c.step.Read.Tensor, err)
	}
	return nil
}

// decoded calls f with one block of rows [from, to) after another. A band is as
// long as reading asks for, a block as short as a cache.
func (c *computation[T]) decoded(b *buffers, raw []byte, from, to int64, f func(plan.Band[T]) error) error {
	cols := c.step.Read.Cols
	rowBytes := cols * c.step.Read.Spec.DType.Bits() / 8
	w := of[T](b)
	for first, last := range pieces(from, to, c.r.budget.Block/max(cols, 1)) {
		w.x = grow(w.x, int((last-first)*cols))
		block.Decode(c.decode, w.x, raw[(first-from)*rowBytes:(last-from)*rowBytes])
		if err := f(plan.Band[T]{Row: first, Rows: int(last - first), Cols: int(cols), X: w.x}); err != nil {
			return err
		}
	}
	return nil
}

// band computes and writes rows [from, to).
func (c *computation[T]) band(b *buffers, from, to int64) error {
	s := c.step
	rowBytes := s.Read.Cols * s.Write.DType.Bits() / 8
	b.out = grow(b.out, int((to-from)*rowBytes))
	row := from - s.Read.From
	if err := c.rows(b, b.out, from, to, c.stats[row:row+to-from]); err != nil {
		return err
	}
	if err := c.r.out.WriteAt(s.Write.Output, s.Write.Tensor, b.out, (s.Write.Row+row)*rowBytes); err != nil {
		return err
	}
	c.r.advance(s, int64(len(b.in)), int64(len(b.out)))
	return nil
}

// rows computes rows [from, to), with the figures of each.
func (c *computation[T]) rows(b *buffers, out []byte, from, to int64, stats []kernel.RowStats) error {
	if err := c.read(b, from, to); err != nil {
		return err
	}
	if c.fused != nil {
		return c.merged(b, b.in, out, from, to, stats)
	}
	return c.staged(b, b.in, out, from, to, stats)
}

// staged makes rows [from, to) by decoding, one stage after another, encoding.
func (c *computation[T]) staged(b *buffers, in, out []byte, from, to int64, stats []kernel.RowStats) error {
	rowBytes := c.step.Read.Cols * c.step.Write.DType.Bits() / 8
	return c.decoded(b, in, from, to, func(x plan.Band[T]) error {
		first, last := x.Row-from, x.Row-from+int64(x.Rows)
		return c.compute(of[T](b), x, out[first*rowBytes:last*rowBytes], stats[first:last])
	})
}

// merged makes rows [from, to) by the kernel that does all at once. Rows without
// a change are not added zeros to, which would make +0 of -0.
func (c *computation[T]) merged(b *buffers, in, out []byte, from, to int64, stats []kernel.RowStats) error {
	cols := c.step.Read.Cols
	inRow, outRow := cols*c.step.Read.Spec.DType.Bits()/8, cols*c.step.Write.DType.Bits()/8
	for from < to {
		p, n, ok := c.fused.Product(from, int(min(to-from, fusedRows)))
		src, dst := in[:int64(n)*inRow], out[:int64(n)*outRow]
		if ok {
			u := kernel.LowRank{L: p.L, R: p.R, Rank: p.Rank, Scale: p.Scale}
			b.merger.Merge(dst, c.round, src, c.decode, n, int(cols), u, stats[:n])
		} else if err := c.staged(b, src, dst, from, from+int64(n), stats[:n]); err != nil {
			return err
		}
		from, in, out, stats = from+int64(n), in[len(src):], out[len(dst):], stats[n:]
	}
	return nil
}

// compute puts a block through the stages, rounds it to out and judges it.
func (c *computation[T]) compute(w *work[T], x plan.Band[T], out []byte, stats []kernel.RowStats) error {
	s := c.step
	w.before = grow(w.before, len(x.X))
	copy(w.before, x.X)
	for _, f := range c.funcs {
		if err := f.Apply(x); err != nil {
			return fmt.Errorf("%q: %w", s.Write.Tensor, err)
		}
	}
	block.Encode(c.round, out, x.X)
	w.stored = grow(w.stored, len(x.X))
	block.Decode(c.round, w.stored, out)
	kernel.Stats(stats, w.before, x.X, w.stored, x.Rows, x.Cols)
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
