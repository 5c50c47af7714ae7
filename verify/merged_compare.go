package verify

import (
	"context"
	"fmt"
	"slices"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/plan"
	"github.com/loratool/loratool/quant/block"
)

// This file computes a step of a merge again, in float64 and band by band.

// comparer64 computes one step again and compares.
type comparer64 struct {
	inputs  []checkpoint.Checkpoint
	merged  *checkpoint.Model
	step    *plan.Step
	stored  tensor.Spec
	codes   *block.GGML // that the tensor is stored in; nil for numbers
	shifted bool        // it is stored with 1 added, in F32

	factors tensor.DType // that side inputs are rounded to first; none leaves them
	funcs   []plan.Func[float64]
	in, out *reader
}

// comparison is what was found about one tensor. Of the sums, with W the base, D the
// change in float64 and Y what is stored: delta is <D,D>, kept <Y-W,D>, change
// <Y-W,Y-W>, and rounding the square of what rounding can do to Y.
type comparison struct {
	values, nearest, outside      int64
	overflowed                    int64 // values that are infinite and should not be
	delta, kept, change, rounding float64

	largest                float64 // |Y - (W+D)| of the values outside
	first                  int64   // of these, with what it is, should be and may be off by
	stored, exact, allowed float64
	recipe                 *recipe  // that gives Y, where one rounding does not
	codes                  recoding // of what is stored in blocks
}

// blocksHeld at once are W, the result, Y, two bounds and two more for a recipe, and
// the bytes of both files.
const blocksHeld = 9

func (w *comparer64) scratch() int64 {
	blocks := int64(blocksHeld + len(w.step.Stages))
	return 8 * (w.step.SideElements() + blocks*max(chunkElements, w.step.Read.Cols))
}

// compare compares the whole tensor: with one rounding and, where that is not what
// happened, with the recipes of other tools.
func (w *comparer64) compare(ctx context.Context) (comparison, error) {
	if _, ok := block.For(w.step.Read.Spec.DType); !ok {
		return w.compareBytes(ctx)
	}
	if err := w.bind(ctx); err != nil {
		return comparison{}, err
	}
	defer func() { w.funcs = nil }() // the factors
	if w.codes != nil {
		return w.compareCodes(ctx)
	}
	var c comparison
	err := w.each(ctx, func(b *compared) error {
		b.judge(&c, w)
		return nil
	})
	if err != nil || c.outside == 0 {
		return c, err
	}
	c.recipe, err = w.recognise(ctx)
	return c, err
}

// compareBytes compares a tensor that is not numbers.
func (w *comparer64) compareBytes(ctx context.Context) (c comparison, err error) {
	a, err := w.inputs[w.step.Read.Input].Open(w.step.Read.Tensor)
	if err != nil {
		return c, err
	}
	b, err := w.merged.Open(w.stored.Name)
	if err != nil {
		return c, err
	}
	width := max(w.stored.DType.Bits()/8, 1)
	x, y := make([]byte, chunkBytes), make([]byte, chunkBytes)
	for off, size := int64(0), w.stored.Size(); off < size; off += chunkBytes {
		if err := ctx.Err(); err != nil {
			return c, err
		}
		n := min(chunkBytes, size-off)
		if err := readFull(a, x[:n], off); err != nil {
			return c, readError(w.inputs[w.step.Read.Input], w.step.Read.Tensor, err)
		}
		if err := readFull(b, y[:n], off); err != nil {
			return c, readError(w.merged, w.stored.Name, err)
		}
		for at := int64(0); at < n; at += width {
			c.values++
			if slices.Equal(x[at:min(at+width, n)], y[at:min(at+width, n)]) {
				c.nearest++
				continue
			}
			if c.outside == 0 {
				c.first = (off + at) / width
			}
			c.outside++
		}
	}
	return c, nil
}

// bind opens the tensors, binds the stages in float64, and lets those observe that
// must see the whole first.
func (w *comparer64) bind(ctx context.Context) error {
	s := w.step
	var err error
	read := s.Read.Spec
	read.Name = s.Read.Tensor
	if w.in, _, err = newReader(w.inputs[s.Read.Input], read); err != nil {
		return err
	}
	if w.out, _, err = newReader(w.merged, w.stored); err != nil {
		return err
	}
	w.funcs = nil
	for _, st := range s.Stages {
		sides := make([]tensor.Matrix[float64], len(st.Sides))
		for i, side := range st.Sides {
			src, err := w.inputs[side.Input].Open(side.Tensor)
			if err != nil {
				return err
			}
			if sides[i], err = engine.ReadMatrix[float64](src, side); err != nil {
				return err
			}
			if w.factors != tensor.NoDType {
				new(compared).round(w.factors, sides[i].Data)
			}
		}
		f, err := st.Op.Bind64(sides)
		if err != nil {
			return fmt.Errorf("%s: %w", st.Op.Kind(), err)
		}
		w.funcs = append(w.funcs, f)
	}
	return w.observe(ctx)
}

// observe streams the tensor through the earlier stages for each pass of a stage that
// asks for it.
func (w *comparer64) observe(ctx context.Context) error {
	for at, f := range w.funcs {
		o, ok := f.(plan.Observer[float64])
		if !ok {
			continue
		}
		for pass := range o.Passes() {
			err := w.bands(ctx, func(b plan.Band[float64]) error {
				for _, earlier := range w.funcs[:at] {
					if err := earlier.Apply(b); err != nil {
						return err
					}
				}
				return o.Observe(pass, b)
			})
			if err != nil {
				return err
			}
			if err := o.Finish(pass); err != nil {
				return err
			}
		}
	}
	return nil
}

// bands reads the input band by band.
func (w *comparer64) bands(ctx context.Context, f func(plan.Band[float64]) error) error {
	s := w.step
	rows := max(chunkElements/max(s.Read.Cols, 1), 1)
	x := make([]float64, rows*s.Read.Cols)
	for row := s.Read.From; row < s.Read.To; row += rows {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(rows, s.Read.To-row)
		values := x[:n*s.Read.Cols]
		if err := w.in.read(values, row*s.Read.Cols); err != nil {
			return err
		}
		if err := f(plan.Band[float64]{Row: row, Rows: int(n), Cols: int(s.Read.Cols), X: values}); err != nil {
			return err
		}
	}
	return nil
}
