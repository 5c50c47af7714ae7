package quant

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/internal/linalg"
	"github.com/loratool/loratool/internal/torchrand"
	"github.com/loratool/loratool/plan"
	"github.com/loratool/loratool/quant/loftq"
)

// Repaired is what became of one weight with a pair. Errors are relative to the norm
// of the weight; Weighted ones count channels by their moments.
type Repaired struct {
	Tensor, Module string
	Shape          []int64
	Bits           float64 // of the quantized weight, per element
	Bytes          int64   // of the quantized weight
	PairBytes      int64
	AbsMax, Norm   float64

	Plain  loftq.Errors // without a pair
	Error  loftq.Errors // with it
	Scale  float64      // that the adapter applies
	Best   float64      // and the one that the pair fits best at; 0 if there is none
	Kept   int          // the iterate that was kept, 0 for plain quantization
	Made   int          // iterates
	Unused int          // directions of the rank that nothing was left for
}

// finding is what the solver found for one weight.
type finding struct {
	plain, repaired loftq.Errors
	best            float64
	kept, made      int
	unused          int
	absmax, norm    float64
	pair, shift     loftq.Factors
}

// solverOptions are those of a weight.
func (l *LoftQ) solverOptions(p *pairing, threads int) loftq.Options {
	return loftq.Options{
		Rank: l.Rank, Iterations: l.Iterations, Order: l.Order, Scale: l.scale(),
		Moments: p.moments, Exact: l.Exact, Threads: threads,
	}
}

// Tasks returns the alternations, one task for each weight with a pair. What they find
// goes to the store; what an earlier run has left there is not computed again.
func (r *Repair) Tasks(store *Store) []plan.Task {
	tasks := make([]plan.Task, len(r.pairs))
	for i, p := range r.pairs {
		t := p.target
		out, in := int(t.shape[0]), int(t.shape[1])
		tasks[i] = plan.Task{
			Name: t.spec.Name, Reads: t.spec.Size(),
			// The weight, what the quantizer takes at most, and a segment.
			Scratch: loftq.Scratch(out, in, r.opts.LoftQ.solverOptions(p, 1)) + 2*4*t.spec.NumElements() + segmentBytes*segmentElements(t),
			Do: func(ctx context.Context, threads int) error {
				if _, err := store.find(p); err == nil && store.Resumed() {
					return nil
				}
				f, err := r.solve(ctx, p, threads)
				if err != nil {
					return err
				}
				return store.keep(p, f)
			},
		}
	}
	return tasks
}

func (r *Repair) solve(ctx context.Context, p *pairing, threads int) (*finding, error) {
	t := p.target
	w, err := r.View.readWeight(t)
	if err != nil {
		return nil, err
	}
	out, in := int(t.shape[0]), int(t.shape[1])
	s, err := loftq.Solve(ctx, w, out, in, r.View.quantizer(t), r.opts.LoftQ.solverOptions(p, threads))
	if err != nil {
		return nil, inTensor(r.base.Path, t, err)
	}
	return p.finding(s, w), nil
}

// finding is what a solution is for a weight w.
func (p *pairing) finding(s *loftq.Result, w []float32) *finding {
	out, in := int(p.target.shape[0]), int(p.target.shape[1])
	f := &finding{
		plain: s.Baseline(), repaired: s.Error, best: s.BestScale, kept: s.Kept, made: len(s.Iterates) - 1,
		absmax: float64(kernel.MaxAbs(w)), pair: s.Factors, shift: s.Shift,
	}
	squares := make([]float64, out)
	kernel.RowSumSquares(squares, w, out, in)
	for _, v := range squares {
		f.norm += v
	}
	f.norm = math.Sqrt(f.norm)
	f.unused = start(f.pair, p.index)
	return f
}

// inTensor says which tensor an error of the solver or of a quantizer is about. Numbers
// that are not finite, or too large, are faults of the input.
func inTensor(path string, t *target, err error) error {
	var value *loftq.ValueError
	var far *loftq.RangeError
	var option *loftq.OptionError
	err = fmt.Errorf("tensor %q: %w", t.spec.Name, err)
	if errors.As(err, &value) || errors.As(err, &far) || errors.As(err, &option) {
		return &checkpoint.InputError{Path: path, Err: err}
	}
	return err
}

// start gives the rows of A that have no direction the start that PEFT gives all rows,
// uniform between ±1/sqrt(in): with zeros on both sides nothing could be trained. It
// returns how many there are. B stays 0 there, so that the product is the same.
func start(pair loftq.Factors, seed int) (rows int) {
	bound := 1 / math.Sqrt(float64(pair.A.Cols))
	g := torchrand.New(uint64(seed))
	for k := range pair.A.Rows {
		row := pair.A.Data[k*pair.A.Stride:][:pair.A.Cols]
		if isZero(row) && columnIsZero(pair.B, k) {
			g.Uniform(row, -bound, bound)
			rows++
		}
	}
	return rows
}

func isZero(x []float32) bool {
	for _, v := range x {
		if v != 0 {
			return false
		}
	}
	return true
}

func columnIsZero(m linalg.Matrix, k int) bool {
	for i := range m.Rows {
		if m.At(i, k) != 0 {
			return false
		}
	}
	return true
}
