// Package verify finds what is wrong with a checkpoint, and checks finished work
// against what it was made from.
//
// A check is a function that adds findings to a [Report]; a family is a list of
// checks. [Codes] is the table of all that can be found. [Structure] looks at one
// checkpoint by itself, [Merged] at a merge that any tool made, [Quantized] at codes,
// [LoftQReport] at a LoftQ pair, [Provenance] at hashes. It refuses nothing that could
// be opened: what can't be read is a finding or an input error, never a panic.
//
// [Written] proves that an output is what its plan says: every step is computed
// again in float64, from the inputs, and compared with the stored values.
package verify

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"sync"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/plan"
	"github.com/loratool/loratool/quant/block"
)

// Output gives the bytes of a written output's tensors; safe for concurrent
// use.
type Output interface {
	Open(tensor string) (io.ReaderAt, error)
}

// Result says how far an output is from an exact computation.
type Result struct {
	Copied, Computed int // tensors compared byte by byte, and by value
	// Values were computed again; Nearest of them are stored as the nearest
	// that their type has to the exact one. The others lie beside it, within
	// the bound of a float32 sum.
	Values, Nearest int64
}

// DeviationError says that a stored value is not the rounded exact one.
type DeviationError struct {
	Tensor        string
	Element       int64
	Stored, Exact float64
	Allowed       float64
}

func (e *DeviationError) Error() string {
	return fmt.Sprintf("verifying %q: element %d is %v, computed again in float64 it is %v (allowed deviation %.3g)",
		e.Tensor, e.Element, e.Stored, e.Exact, e.Allowed)
}

// CopyError says that bytes that were to be copied are not those of the input.
type CopyError struct {
	Tensor string
	Offset int64
}

func (e *CopyError) Error() string {
	return fmt.Sprintf("verifying %q: the bytes at %d are not those of the input", e.Tensor, e.Offset)
}

// Written computes the plan again and compares it with the output. Copied
// tensors must be equal byte for byte. A computed value x, stored as y in a type
// with unit in the last place u, must satisfy
//
//	|y - x| <= u(x)/2 + ops · 2^-24 · max|x|
//
// with x in float64, ops the number of float32 operations that went into y, and
// the maximum over its band: one rounding to the stored type after a float32
// sum. For F64 outputs the second term has 2^-53. Of the options neither what is done
// nor who is told of it counts: what an earlier run wrote is compared too.
func Written(ctx context.Context, p *plan.Plan, in []engine.Source, out Output, o engine.Options) (Result, error) {
	exact := Again(p)
	c := &comparer{out: out, steps: p.Steps}
	for i := range p.Steps {
		if p.Steps[i].Copies() {
			c.result.Copied++
		} else {
			c.result.Computed++
		}
	}
	o.Done, o.Finished = nil, nil
	_, err := engine.Run(ctx, exact, in, c, o)
	return c.result, err
}

// View proves what a view of a plan computes, as [Written] does with what was written:
// the second half of a proof that an output is right whose bytes are made from the view,
// and not by the plan itself. What the plan copies is left out, as it is the source's
// whoever reads it.
func View(ctx context.Context, v *engine.View, o engine.Options) (Result, error) {
	p, in := v.Computes()
	return Written(ctx, p, in, v, o)
}

// Again is the plan that computes another one's values in float64, for the memory that
// takes. It has no inputs, so that nothing is hashed again, and the output of a step is
// its index.
func Again(p *plan.Plan) *plan.Plan {
	exact := &plan.Plan{Steps: make([]plan.Step, len(p.Steps))}
	for i, s := range p.Steps {
		if !s.Copies() {
			s.Write.DType = tensor.F64
		}
		s.Write.Output = i
		exact.Steps[i] = s
	}
	return exact
}

// comparer is a sink that compares instead of writing.
type comparer struct {
	out    Output
	steps  []plan.Step
	mu     sync.Mutex
	result Result
}

func (c *comparer) WriteAt(step int, name string, p []byte, off int64) error {
	s := &c.steps[step]
	src, err := c.out.Open(name)
	if err != nil {
		return err
	}
	if s.Copies() {
		return sameBytes(name, src, p, off)
	}
	return c.compare(s, src, p, off)
}

// sameBytes compares what is stored at an offset with what was to be copied there.
func sameBytes(name string, src io.ReaderAt, p []byte, off int64) error {
	stored := make([]byte, len(p))
	if err := readFull(src, stored, off); err != nil {
		return fmt.Errorf("reading %q back: %w", name, err)
	}
	if bytes.Equal(stored, p) {
		return nil
	}
	for i, b := range p {
		if stored[i] != b {
			return &CopyError{name, off + int64(i)}
		}
	}
	return nil
}

// compare checks a band of float64 values at a byte offset of a float64 tensor
// against what is stored.
func (c *comparer) compare(s *plan.Step, src io.ReaderAt, p []byte, off int64) error {
	const wide = 8
	n, first := len(p)/wide, off/wide
	exact, stored := make([]float64, n), make([]float64, n)
	f64, _ := block.For(tensor.F64)
	f64.Decode64(exact, p)
	codec, _ := block.For(s.Write.DType)
	size := s.Write.DType.Bits() / 8
	raw := make([]byte, int64(n)*size)
	if err := readFull(src, raw, first*size); err != nil {
		return fmt.Errorf("reading %q back: %w", s.Write.Tensor, err)
	}
	codec.Decode64(stored, raw)

	largest := 0.0
	for _, v := range exact {
		if a := math.Abs(v); a > largest && !math.IsInf(a, 0) {
			largest = a
		}
	}
	slack := operations(s) * roundoff(s) * largest
	nearest := int64(0)
	for i, x := range exact {
		y := stored[i]
		if math.IsNaN(x) && math.IsNaN(y) || x == y {
			nearest++
			continue
		}
		half := ulp(s.Write.DType, x) / 2
		switch d := math.Abs(y - x); {
		case !(d <= half+slack):
			return &DeviationError{s.Write.Tensor, first + int64(i), y, x, half + slack}
		case d <= half:
			nearest++
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.result.Values += int64(n)
	c.result.Nearest += nearest
	return nil
}

// roundoff is the relative error of one operation of the step as it was run.
func roundoff(s *plan.Step) float64 {
	if s.Double() {
		return 0x1p-53
	}
	return 0x1p-24
}

// operations bounds how many roundings go into one element: a factor of rank r
// has r products and r sums, and everything else a handful.
func operations(s *plan.Step) float64 {
	ops := int64(4)
	for _, st := range s.Stages {
		for _, side := range st.Sides {
			ops += 2 * min(side.Rows(), side.Cols)
		}
	}
	return float64(ops)
}

// ulp is the distance between neighbours of a type around v.
func ulp(d tensor.DType, v float64) float64 {
	var digits, lowest int
	switch d {
	case tensor.F64:
		digits, lowest = 53, -1074
	case tensor.F32:
		digits, lowest = 24, -149
	case tensor.F16:
		digits, lowest = 11, -24
	default: // BF16: the types a step can be rounded to are these four
		digits, lowest = 8, -133
	}
	_, exp := math.Frexp(v)
	return math.Ldexp(1, max(exp-digits, lowest))
}
