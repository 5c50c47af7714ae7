package loftq

import (
	"context"
	"errors"
	"fmt"

	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/internal/linalg"
)

// Panics for misuse, constants so that a stack trace names the fault.
const (
	badWeight  = "loftq: weight does not fit its shape"
	badDst     = "loftq: destination does not fit the shape"
	badFactors = "loftq: factors do not fit the shape"
	badFit     = "loftq: rows do not fit a fit"
)

// Solve finds the pair for a weight of out rows and in columns without gaps.
//
// It takes the memory that [Scratch] states. w is only read. Errors are an
// *[OptionError], a *[ValueError] for a number that is not finite, an
// *[UnstableError], those of the quantizer and of linalg.Truncate, and that of ctx,
// which is looked at before each step.
func Solve(ctx context.Context, w []float32, out, in int, q Quantizer, o Options) (*Result, error) {
	checkSize(w, out, in, badWeight)
	if err := o.Validate(in); err != nil {
		return nil, err
	}
	o = o.withDefaults()
	if err := checkFinite("the weight", w, out, in, o.Threads); err != nil {
		return nil, err
	}
	s := &solver{
		ctx: ctx, w: w, out: out, in: in, quantizer: q, o: o,
		measure: newMeasure(w, out, in, channelWeights(o.Moments), o.Threads),
		x:       make([]float32, out*in), q: make([]float32, out*in),
	}
	if err := s.alternate(); err != nil {
		return nil, err
	}
	return s.result()
}

// solver is the state of an alternation.
type solver struct {
	ctx       context.Context
	w         []float32
	out, in   int
	quantizer Quantizer
	o         Options
	measure   measure

	x []float32 // W - L_t-1; for a while W - Q_t
	q []float32 // Q_t
	// start are the right singular vectors of the last decomposition, near those of
	// the next.
	start linalg.Matrix

	iterates []Iterate
	kept     int
	pair     Factors // L of the kept iterate
	shift    Factors // and of the one before
}

func (s *solver) alternate() error {
	copy(s.x, s.w)
	if err := s.quantize(); err != nil {
		return fmt.Errorf("plain quantization: %w", err)
	}
	plain := s.measure.errors(s.x, s.q)
	s.iterates = []Iterate{{Quantized: plain, Repaired: plain}}
	last := Factors{}
	if s.o.Order == SVDFirst {
		pair, _, err := s.decompose(nil)
		if err != nil {
			return fmt.Errorf("the weight itself: %w", err)
		}
		last = pair
		s.subtract(pair)
		if err := s.quantize(); err != nil {
			return fmt.Errorf("iteration 1: %w", err)
		}
	}
	for t := 1; ; t++ {
		step := Iterate{Quantized: s.measure.errors(s.x, s.q)}
		pair, report, err := s.decompose(s.q)
		if err != nil {
			return fmt.Errorf("iteration %d: %w", t, err)
		}
		s.subtract(pair)
		step.Repaired, step.Solver = s.measure.errors(s.x, s.q), report
		s.iterates = append(s.iterates, step)
		if step.Repaired.Weighted < s.iterates[s.kept].Repaired.Weighted {
			s.kept, s.pair, s.shift = t, pair, last
		}
		if t == s.o.Iterations || step.Repaired.Weighted == 0 {
			return nil
		}
		if err := s.quantize(); err != nil {
			return fmt.Errorf("iteration %d: %w", t+1, err)
		}
		last = pair
	}
}

// quantize computes Q_t from x.
func (s *solver) quantize() error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	if err := s.quantizer.RoundTrip(s.q, s.x, s.out, s.in, s.o.Threads); err != nil {
		return err
	}
	return checkFinite("what the quantizer made of it", s.q, s.out, s.in, s.o.Threads)
}

// decompose finds the L that is nearest to W - q, nil being 0. It uses x.
//
// With R = W - q and R·D^1/2 = U·S·V^T + rest, L = U·S·V^T·D^-1/2 minimises the
// weighted norm, and that is U·(U^T·R): so no root of a small moment is divided by,
// and where D is 0 the rest of the column is orthogonal to U.
func (s *solver) decompose(q []float32) (Factors, linalg.Report, error) {
	if err := s.ctx.Err(); err != nil {
		return Factors{}, linalg.Report{}, err
	}
	s.residual(q, s.measure.channel)
	x := linalg.NewMatrix(s.out, s.in, s.x)
	d, err := linalg.Truncate(x, linalg.Options{
		Rank: min(s.o.Rank, s.out, s.in), Exact: s.o.Exact, Start: s.start, Threads: s.o.Threads,
	})
	if err != nil {
		var place *linalg.NotFiniteError
		if errors.As(err, &place) {
			err = &ValueError{What: "the residual", Row: place.Row, Col: place.Col, Value: place.Value}
		}
		return Factors{}, linalg.Report{}, err
	}
	s.start = d.VT
	if s.measure.channel == nil {
		return balanced(d.U, d.VT, d.S, s.o.Rank), d.Report, nil
	}
	s.residual(q, nil)
	right := linalg.NewMatrix(d.U.Cols, s.in, nil)
	linalg.Gemm(1, d.U.T(), x, 0, right, s.o.Threads)
	return balanced(d.U, right, nil, s.o.Rank), d.Report, nil
}

// residual sets x to (W - q)·diag(channel); nil stands for 0 and for ones.
func (s *solver) residual(q, channel []float32) {
	s.measure.eachBand(func(from, to int) {
		x, w := s.x[from*s.in:to*s.in], s.w[from*s.in:to*s.in]
		if q == nil {
			copy(x, w)
		} else {
			subtract(x, w, q[from*s.in:to*s.in])
		}
		if channel != nil {
			kernel.ScaleCols(x, to-from, s.in, channel)
		}
	})
}

// subtract sets x to W - L.
func (s *solver) subtract(l Factors) { Shifted(s.x, s.w, s.out, s.in, l, s.o.Threads) }

// Shifted computes W - B·A: the numbers that are quantized to give Q when the pair
// is [Result.Shift]. It is kernel.AddLowRank with scale -1, as a merge computes it,
// rows on their own and the same bits on every CPU; so codes can be made when they
// are written and need not be kept. Without factors it is W itself.
func Shifted(dst, w []float32, out, in int, l Factors, threads int) {
	checkSize(w, out, in, badWeight)
	checkSize(dst, out, in, badDst)
	addProduct(dst, w, out, in, l, -1, threads)
}

// addProduct sets dst to w + scale·B·A, nil being 0.
func addProduct(dst, w []float32, out, in int, l Factors, scale float32, threads int) {
	rank := l.Rank()
	if rank > 0 {
		checkFactors(l, out, in)
	}
	parallel(max(threads, 1), out, bandRows, func(from, to int) {
		x := dst[from*in : to*in]
		if w == nil {
			clear(x)
		} else {
			copy(x, w[from*in:to*in])
		}
		if rank > 0 {
			kernel.AddLowRank(x, to-from, in, l.B.Data[from*rank:to*rank], l.A.Data[:rank*in], rank, scale)
		}
	})
}

// result brings back the kept iterate and judges it as it is returned.
func (s *solver) result() (*Result, error) {
	r := &Result{
		Q: s.q, Shift: s.shift, Scale: s.o.Scale,
		Iterates: s.iterates, Kept: s.kept,
	}
	if s.kept != len(s.iterates)-1 {
		s.subtract(s.shift)
		if err := s.quantize(); err != nil {
			return nil, err
		}
		if again := s.measure.errors(s.x, s.q); again != s.iterates[s.kept].Quantized {
			return nil, &UnstableError{Iterate: s.kept, First: s.iterates[s.kept].Quantized, Again: again}
		}
	}
	if s.kept == 0 {
		r.Factors = zeroFactors(s.out, s.in, s.o.Rank)
		r.Error = r.Baseline()
		return r, nil
	}
	r.Factors = s.pair.divided(s.o.Scale)
	fit, err := s.fit(r.Factors)
	if err != nil {
		return nil, err
	}
	r.BestScale, _ = fit.BestScale()
	addProduct(s.x, s.w, s.out, s.in, r.Factors, float32(-s.o.Scale), s.o.Threads)
	r.Error = s.measure.errors(s.x, s.q)
	return r, nil
}

// fit judges a pair. It uses x.
func (s *solver) fit(pair Factors) (*Fit, error) {
	f, err := NewFit(s.in, s.o.Moments)
	if err != nil {
		return nil, err
	}
	addProduct(s.x, nil, s.out, s.in, pair, 1, s.o.Threads)
	if err := checkFinite("the product of the factors", s.x, s.out, s.in, s.o.Threads); err != nil {
		return nil, err // huge weights, divided by a small scale
	}
	f.Add(s.w, s.q, s.x)
	return f, nil
}
