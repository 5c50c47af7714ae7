// Package loftq finds, for a weight W that is going to be quantized, the low-rank
// pair that an adapter starts from to make up for it:
//
//	W  ~  Q + scale · B·A
//
// with W and Q out x in, B out x rank and A rank x in. [Solve] alternates between
// quantizing what the pair leaves of W and decomposing what the quantizer leaves:
//
//	Q_t = q(W - L_t-1),   L_t = the best L of the rank for ||(W - Q_t - L)·D^1/2||
//
// D weighs the input channels; it is 1 unless second moments of the activations
// are given. What q does is up to a [Quantizer]: [FourBit], [Int8], [GGML], [Normal],
// [Uniform], or what another one gives when it is [Stored] as plain numbers.
// [Shifted] gives the numbers that the kept Q was made from, which are what a writer
// has to encode: Q itself, quantized again, is not always Q. [Fit] judges pairs that
// others made.
//
// Y. Li et al., "LoftQ: LoRA-fine-tuning-aware quantization for large language
// models", 2023 (arXiv 2310.08659). Unlike the implementation in PEFT
// (utils/loftq_utils.py) the factors are divided by the scale that the adapter
// applies, and the best iterate is kept, since the alternation is not monotone
// with few bits.
//
// The package does no I/O. What depends on values is an error, what depends on
// lengths panics. No result depends on the number of threads.
package loftq

import (
	"fmt"

	"github.com/loratool/loratool/internal/linalg"
)

// Order says which half of the alternation comes first, that is, what L_0 is.
// After it the two are the same, so both end on a decomposition.
type Order int

const (
	// QuantizeFirst starts from L_0 = 0, as LoftQ does.
	QuantizeFirst Order = iota
	// SVDFirst starts from the best L_0 for W itself, as LQ-LoRA (arXiv 2311.12023)
	// and QPiSSA (arXiv 2404.02948) do: the quantizer never sees the largest
	// directions of W. It costs one more decomposition. LQ-LoRA and QPiSSA end on
	// a quantization, whose error is [Iterate.Quantized].
	SVDFirst
)

var orderNames = [...]string{QuantizeFirst: "quantize-first", SVDFirst: "svd-first"}

func (o Order) String() string {
	if o < 0 || int(o) >= len(orderNames) {
		return fmt.Sprintf("order %d", int(o))
	}
	return orderNames[o]
}

// ParseOrder returns the order with the given name.
func ParseOrder(name string) (Order, bool) {
	for i, s := range orderNames {
		if s == name {
			return Order(i), true
		}
	}
	return 0, false
}

// Options shapes a solution. Only Rank must be given.
type Options struct {
	Rank       int
	Iterations int // 0 stands for DefaultIterations
	Order      Order
	// Scale is what the adapter multiplies B·A with, alpha/rank as a rule; 0 stands
	// for 1. Q does not depend on it.
	Scale float64
	// Moments are the means of the squared activations of each input channel, D up
	// to a factor. The error that counts is then that of the layer's output for
	// independent channels (QERA, arXiv 2410.06040). A channel with 0 does not
	// count; A still gets what B can do for it.
	Moments []float64
	Exact   bool // decompositions in float64, see linalg.Options
	Threads int  // 0 stands for 1
}

// DefaultIterations is the number that LoftQ's own scripts take (utils.py, num_iter).
const DefaultIterations = 5

const (
	// maxIterations is far beyond the last gain, maxRank beyond the sides of weights.
	maxIterations = 1000
	maxRank       = 1 << 16
	// The roots of scales up to maxScale, or down to its inverse, leave factors
	// far within float32.
	maxScale = 1 << 40
)

// OptionError names an option that does not make sense.
type OptionError struct{ Option, Reason string }

func (e *OptionError) Error() string { return e.Option + ": " + e.Reason }

// Validate reports the first option that does not make sense for a weight with so
// many input channels. A rank beyond the sides of the weight does.
func (o Options) Validate(in int) error {
	refuse := func(option, format string, args ...any) error {
		return &OptionError{option, fmt.Sprintf(format, args...)}
	}
	switch {
	case o.Rank < 1:
		return refuse("rank", "%d is less than 1", o.Rank)
	case o.Rank > maxRank:
		return refuse("rank", "%d is more than %d", o.Rank, maxRank)
	case o.Iterations < 0 || o.Iterations > maxIterations:
		return refuse("iterations", "%d is not between 1 and %d", o.Iterations, maxIterations)
	case o.Order != QuantizeFirst && o.Order != SVDFirst:
		return refuse("order", "%v is none", o.Order)
	case o.Scale != 0 && !(o.Scale >= 1.0/maxScale && o.Scale <= maxScale):
		return refuse("scale", "%v is not between 2^-40 and 2^40", o.Scale)
	case o.Threads < 0:
		return refuse("threads", "%d is negative", o.Threads)
	}
	return checkMoments(o.Moments, in)
}

func (o Options) withDefaults() Options {
	if o.Iterations == 0 {
		o.Iterations = DefaultIterations
	}
	if o.Scale == 0 {
		o.Scale = 1
	}
	o.Threads = max(o.Threads, 1)
	return o
}

// Factors are a pair B·A, B out x rank and A rank x in, both without gaps. No
// factors at all stand for 0.
type Factors struct{ B, A linalg.Matrix }

// Rank returns the number of columns of B.
func (f Factors) Rank() int { return f.A.Rows }

// Errors are norms of what is left of W, relative to that of W: 0 if nothing is
// left, +Inf if there was nothing. Weighted is ||E·D^1/2||/||W·D^1/2||, which is
// Plain if there are no moments.
type Errors struct{ Plain, Weighted float64 }

// Iterate says how far one step of the alternation came.
type Iterate struct {
	Quantized Errors // W - Q_t - L_t-1
	Repaired  Errors // W - Q_t - L_t
	// Solver is about the decomposition behind L_t, of (W - Q_t)·D^1/2.
	Solver linalg.Report
}

// Result is a solution.
type Result struct {
	// Q are the values of the quantized weight, out x in.
	Q []float32
	// Factors are the adapter's: W ~ Q + Scale·B·A. Row k of A and column k of B
	// have the same norm, and the element of largest magnitude in a column of B is
	// positive. Where the rank is more than there are directions left, they are
	// zeros. If Kept is 0 they are all zeros, from which nothing can be trained:
	// a writer then puts a usual start into A.
	Factors Factors
	Scale   float64
	// Shift is what was taken off W before it was quantized, see [Shifted].
	Shift Factors
	// Iterates are the steps that were made. The first is plain quantization,
	// without factors. There are fewer than asked for if nothing was left.
	Iterates []Iterate
	// Kept is the iterate with the smallest weighted error, the first such.
	Kept int
	// Error is that of the pair as it is returned, divided by the scale and rounded.
	Error Errors
	// BestScale is the scale at which the pair fits best, see [Fit]: Scale, up to
	// rounding; 0 if Kept is 0.
	BestScale float64
}

// Baseline returns the error of plain quantization.
func (r *Result) Baseline() Errors { return r.Iterates[0].Repaired }
