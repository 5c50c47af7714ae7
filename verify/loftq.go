package verify

import (
	"context"
	"fmt"
	"io"
	"math"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/plan"
	"github.com/loratool/loratool/quant/block"
)

// LoftQResult says how well an adapter makes up for the quantization of its base.
type LoftQResult struct {
	Modules []LoftQModule // in the order of the base
	// Quantized and Repaired are those of a module, over all of them together.
	Quantized, Repaired float64
	Others              []string // tensors that the adapter changes without a pair: not looked at
}

// LoftQModule is about one weight W of the base, the weight Q that it became, and
// the product s·B·A of its pair. Norms are Frobenius norms in float64.
type LoftQModule struct {
	Tensor string
	Shape  tensor.Shape
	Rank   int64
	Stored string // what Q is stored as: "nf4", "bf16"

	Quantized  float64 // ||W - Q|| / ||W||
	Repaired   float64 // ||W - Q - s·B·A|| / ||W||
	Attainable float64 // the same at the best scale

	// Scale is s, and BestScale c* the scale at which the pair would fit best; of a
	// pair that is 0 it is 0. Where several pairs share a tensor, as single experts
	// do, Scale is the first one's and BestScale in proportion.
	Scale, BestScale float64
	// Limit is how far BestScale/Scale of a LoftQ pair can be from 1 by rounding
	// alone, see [LoftQModule.Misscaled].
	Limit float64

	norm, missing, left float64 // squares: of W, of W - Q, of W - Q - s·B·A
}

// Misscaled reports whether the pair is none that LoftQ made for this scale: the
// scale that it fits best at is another than the one that it is applied with. One
// that was trained since is reported as well, as it makes up for more than rounding.
func (m *LoftQModule) Misscaled() bool {
	return m.BestScale != 0 && math.Abs(m.BestScale/m.Scale-1) > m.Limit
}

// ScopeError says that an adapter is none that LoftQ starts from.
type ScopeError struct{ Adapter, Tensor, Reason string }

func (e *ScopeError) Error() string {
	return fmt.Sprintf("%s: %q: %s", e.Adapter, e.Tensor, e.Reason)
}

// LoftQ compares a base W, what it was quantized to, and the pairs of an adapter on
// top of that, weight by weight:
//
//	R = W - Q,   P = s·B·A,   ||R - c·P||^2 is least at c = <R,P>/<P,P>
//
// LoftQ ends on a truncated decomposition of R, weighted or not, whose product is a
// projection of R: then that c is 1. One that was made for another scale, as
// PEFT's loftq_init makes it for 1 whatever alpha is, has another one. The
// quantized model may hold codes, which are decoded, or plain numbers.
func LoftQ(ctx context.Context, base, quantized *checkpoint.Model, a *adapter.Adapter, o engine.Options) (*LoftQResult, error) {
	merged, inputs, err := mergeOnTop(quantized, a)
	if err != nil {
		return nil, err
	}
	c := &loftqComparer{base: base, quantized: quantized, adapter: a, modules: make(map[string]*loftqSums)}
	result, products := new(LoftQResult), &plan.Plan{Unhashed: true}
	for i := range merged.Steps {
		s := merged.Steps[i]
		if s.Read.Input != 0 {
			result.Others = append(result.Others, s.Write.Tensor) // a whole tensor takes the place of the base's
			continue
		}
		if !s.Judge {
			continue
		}
		sums, err := c.pairsOf(&s)
		if err != nil {
			return nil, err
		}
		if sums == nil {
			result.Others = append(result.Others, s.Write.Tensor)
			continue
		}
		s.Judge, s.Write.DType = false, tensor.F64
		c.modules[s.Write.Tensor] = sums
		c.order = append(c.order, s.Write.Tensor)
		products.Steps = append(products.Steps, s)
	}
	if len(products.Steps) == 0 {
		return nil, &checkpoint.InputError{Path: a.Source.Path, Err: fmt.Errorf("it holds no pair of factors")}
	}
	if err := c.measureFactors(inputs); err != nil {
		return nil, err
	}
	sources := []engine.Source{zeros{}}
	for _, in := range inputs[1:] {
		sources = append(sources, in)
	}
	if _, err := engine.Run(ctx, products, sources, c, o); err != nil {
		return nil, err
	}
	return result, c.sum(result)
}

// mergeOnTop decides the merge of the pairs into the quantized model, of either container.
func mergeOnTop(quantized *checkpoint.Model, a *adapter.Adapter) (*plan.Plan, []checkpoint.Checkpoint, error) {
	source := []merge.Source{{Adapter: onTop(a), Weight: 1}}
	if quantized.GGUF() != nil {
		m, err := merge.PlanGGUF(quantized, source, merge.GGUFOptions{Retype: true})
		if err != nil {
			return nil, nil, err
		}
		return m.Plan, m.Inputs, nil
	}
	m, err := merge.Plan(quantized, source, merge.Options{NoProvenance: true})
	if err != nil {
		return nil, nil, err
	}
	return m.Plan, m.Inputs, nil
}

// onTop returns the adapter as one of the quantized base: PEFT leaves "loftq" in the
// config, which would make it one of the original.
func onTop(a *adapter.Adapter) *adapter.Adapter {
	if a.Config.Init != "loftq" {
		return a
	}
	plain, config := *a, *a.Config
	config.Init = ""
	plain.Config = &config
	return &plain
}

// zeros stand in for the base: what the operations of a pair add to them is the
// product itself.
type zeros struct{}

func (zeros) Open(string) (io.ReaderAt, error) { return zeros{}, nil }

func (zeros) ReadAt(p []byte, _ int64) (int, error) {
	clear(p)
	return len(p), nil
}

// loftqComparer is a sink for products. It reads W and Q beside them.
type loftqComparer struct {
	base, quantized *checkpoint.Model
	adapter         *adapter.Adapter
	modules         map[string]*loftqSums
	order           []string
}

// loftqSums is what is found out about one weight.
type loftqSums struct {
	module      LoftQModule
	step        *plan.Step
	w, q        tensor.Spec
	srcW, srcQ  io.ReaderAt
	rows        []loftqRow // each written by one goroutine, summed in their order
	scales      []float64  // of each stage, without sign
	factors     float64    // sum of s·||B||·||A|| over the pairs
	factorUnit  float64    // roundoff of the factors, the coarsest
	weightsUnit float64    // and of Q as it is read
}

// loftqRow are the sums of one row: of squares of W, Q, R, P and R - P, and of R·P.
type loftqRow struct{ ww, qq, rr, pp, ee, rp float64 }

// pairsOf returns what a step adds if that is products of pairs, and nil if it is
// something else.
func (c *loftqComparer) pairsOf(s *plan.Step) (*loftqSums, error) {
	refuse := func(format string, args ...any) error {
		return &ScopeError{c.adapter.Source.Path, s.Write.Tensor, fmt.Sprintf(format, args...)}
	}
	sums := &loftqSums{step: s, q: s.Read.Spec}
	for _, st := range s.Stages {
		var scale float64
		var rank int64
		switch op := st.Op.(type) {
		case merge.AddLoRA:
			scale, rank = op.Scale, st.Sides[0].Spec.Rows()
		case merge.AddExpertsLoRA:
			scale, rank = op.Scale, st.Sides[0].Spec.Rows()/op.Experts
		default:
			if sums.module.Rank > 0 {
				return nil, refuse("there is a pair, and %s beside it", op.Kind())
			}
			return nil, nil
		}
		if scale == 0 {
			return nil, refuse("its pair is multiplied with an alpha of 0")
		}
		sums.scales = append(sums.scales, math.Abs(scale))
		if sums.module.Rank == 0 {
			sums.module.Scale, sums.module.Rank = scale, rank
		}
	}
	var ok bool
	if sums.w, ok = c.base.Lookup(s.Read.Tensor); !ok {
		return nil, &checkpoint.InputError{Path: c.base.Path, Err: fmt.Errorf("there is no tensor %q, which the quantized model has", s.Read.Tensor)}
	}
	switch {
	case sums.q.DType.IsFP8() || sums.w.DType.IsFP8():
		return nil, refuse("it is stored as FP8 without a scale, which is not compared")
	case !sums.w.DType.IsFloat():
		return nil, &checkpoint.InputError{Path: c.base.Path, Err: fmt.Errorf("tensor %q is stored as %s", sums.w.Name, sums.w.DType)}
	case !sums.w.Shape.Equal(sums.q.Shape):
		return nil, &checkpoint.InputError{Path: c.base.Path, Err: fmt.Errorf("tensor %q has shape %v, that of the quantized model %v", sums.w.Name, sums.w.Shape, sums.q.Shape)}
	}
	sums.module.Tensor, sums.module.Shape = s.Write.Tensor, sums.q.Shape
	sums.module.Stored, sums.weightsUnit = sums.q.DType.String(), unitOf(sums.q.DType)
	if d, ok := c.quantized.Derived(s.Read.Tensor); ok {
		sums.module.Stored = d.Kind
	}
	var err error
	if sums.srcW, err = c.base.Open(s.Read.Tensor); err != nil {
		return nil, err
	}
	if sums.srcQ, err = c.quantized.Open(s.Read.Tensor); err != nil {
		return nil, err
	}
	sums.rows = make([]loftqRow, s.Read.Rows())
	return sums, nil
}

// measureFactors takes the norms of the factors, which bound what their rounding does.
func (c *loftqComparer) measureFactors(inputs []checkpoint.Checkpoint) error {
	for _, name := range c.order {
		sums := c.modules[name]
		for i, st := range sums.step.Stages {
			product := sums.scales[i]
			for _, side := range st.Sides {
				src, err := inputs[side.Input].Open(side.Tensor)
				if err != nil {
					return err
				}
				x, err := engine.ReadMatrix[float64](src, side)
				if err != nil {
					return err
				}
				square := 0.0
				for _, v := range x.Data {
					square += v * v
				}
				product *= math.Sqrt(square)
				sums.factorUnit = max(sums.factorUnit, unitOf(side.Spec.DType))
			}
			sums.factors += product
		}
	}
	return nil
}

// WriteAt compares a band of the product, in float64, with W and Q.
func (c *loftqComparer) WriteAt(_ int, name string, p []byte, off int64) error {
	const wide = 8
	sums := c.modules[name]
	cols := sums.step.Read.Cols
	perCall := max(compareElements/max(cols, 1), 1) * cols
	f64, _ := block.For(tensor.F64)
	product, w, q := make([]float64, perCall), make([]float64, perCall), make([]float64, perCall)
	for first := off / wide; len(p) > 0; {
		n := min(perCall, int64(len(p))/wide)
		x, w, q := product[:n], w[:n], q[:n]
		f64.Decode64(x, p[:n*wide])
		at := sums.step.Read.From*cols + first
		if err := readValues(sums.srcW, sums.w, w, at); err != nil {
			return err
		}
		if err := readValues(sums.srcQ, sums.q, q, at); err != nil {
			return err
		}
		for i := int64(0); i < n; i += cols {
			sums.rows[(first+i)/cols] = compareRow(w[i:i+cols], q[i:i+cols], x[i:i+cols])
		}
		p, first = p[n*wide:], first+n
	}
	return nil
}

// compareElements are decoded at a time, if rows are not longer.
const compareElements = 32 << 10

// readValues decodes len(dst) elements of a tensor from a first one on.
func readValues(src io.ReaderAt, s tensor.Spec, dst []float64, first int64) error {
	codec, _ := block.For(s.DType)
	size := s.DType.Bits() / 8
	raw := make([]byte, int64(len(dst))*size)
	if n, err := src.ReadAt(raw, first*size); n < len(raw) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("reading %q: %w", s.Name, err)
	}
	codec.Decode64(dst, raw)
	return nil
}

func compareRow(w, q, p []float64) (sums loftqRow) {
	for j, v := range w {
		r := v - q[j]
		e := r - p[j]
		sums.ww += v * v
		sums.qq += q[j] * q[j]
		sums.rr += r * r
		sums.pp += p[j] * p[j]
		sums.ee += e * e
		sums.rp += r * p[j]
	}
	return sums
}

// sum makes the figures of every weight from its rows.
func (c *loftqComparer) sum(result *LoftQResult) error {
	var norm, missing, left float64
	for _, name := range c.order {
		m := c.modules[name].figures()
		if total := m.norm + m.missing + m.left; math.IsInf(total, 0) || math.IsNaN(total) {
			return c.modules[name].notFinite(c)
		}
		result.Modules = append(result.Modules, m)
		norm, missing, left = norm+m.norm, missing+m.missing, left+m.left
	}
	result.Quantized, result.Repaired = relative(missing, norm), relative(left, norm)
	return nil
}

// notFinite names the model with the numbers that no sum can be made of.
func (s *loftqSums) notFinite(c *loftqComparer) error {
	path := c.adapter.Source.Path
	for _, r := range s.rows {
		switch {
		case math.IsNaN(r.ww - r.ww):
			path = c.base.Path
		case math.IsNaN(r.qq - r.qq):
			path = c.quantized.Path
		}
	}
	return &checkpoint.InputError{Path: path, Err: fmt.Errorf("tensor %q: its numbers, or their squares, are not finite", s.step.Read.Tensor)}
}

func (s *loftqSums) figures() LoftQModule {
	var t loftqRow
	for _, r := range s.rows {
		t.ww, t.qq, t.rr = t.ww+r.ww, t.qq+r.qq, t.rr+r.rr
		t.pp, t.ee, t.rp = t.pp+r.pp, t.ee+r.ee, t.rp+r.rp
	}
	m := s.module
	m.norm, m.missing, m.left = t.ww, t.rr, t.ee
	m.Quantized, m.Repaired, m.Attainable = relative(t.rr, t.ww), relative(t.ee, t.ww), relative(t.rr, t.ww)
	if t.pp > 0 {
		m.BestScale = m.Scale * (t.rp / t.pp)
		m.Attainable = relative(max(t.rr-t.rp*t.rp/t.pp, 0), t.ww)
		m.Limit = s.limit(t)
	}
	return m
}

// limit bounds |c - 1| for the c of a pair that a decomposition of R gave, by what
// was rounded since. Let P0 be the exact product, for which <R,P0> = <P0,P0>.
//
// The factors are rounded to a type of roundoff u: P = P0 + dP, where dP, of
// s·dB·A + s·B·dA + s·dB·dA, is at most (2u + u^2)·F with F = s·||B||·||A||. Then
//
//	<R,P> - <P,P> = <R - P0,dP> - <dP,P>,   |c - 1| <= (2u + u^2)·F·(||R|| + ||P||)/||P||^2
//
// as ||R - P0|| <= ||R||. Q as it is read is rounded to a type of roundoff v, which
// adds <dQ,P>, at most v·||Q||·||P||. And the decomposition was made in float32, its
// vectors orthogonal up to about n·2^-24 for a smaller side of n: that part of R
// which should be orthogonal to P0 adds n·2^-24·||R||·||P||.
func (s *loftqSums) limit(t loftqRow) float64 {
	p, r, q := math.Sqrt(t.pp), math.Sqrt(t.rr), math.Sqrt(t.qq)
	side := float64(min(s.q.Rows(), s.q.Cols()))
	return (2+s.factorUnit)*s.factorUnit*s.factors*(r+p)/t.pp + s.weightsUnit*q/p + side*0x1p-24*r/p
}

// unitOf is the roundoff of a type, rounding to nearest.
func unitOf(d tensor.DType) float64 {
	if d.IsFP8() {
		return 0x1p-3 // of the coarser one
	}
	return ulp(d, 1) / 2
}

// relative is the root of a ratio of squares, 0 for 0/0.
func relative(part, whole float64) float64 {
	if part == 0 {
		return 0
	}
	return math.Sqrt(part / whole)
}
