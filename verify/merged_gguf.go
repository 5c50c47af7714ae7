package verify

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/plan"
	"github.com/loratool/loratool/quant/block"
)

// This file compares a merge into a GGUF file. Tensors of plain numbers are compared as
// any other. A tensor in blocks holds what an encoder made of the merge, and W + D can be
// told from W only as far as the codes show it: so the exact merge is encoded again, by
// the algorithm of llama.cpp, and the codes are compared. Where they are others, the
// question is which multiple of the change explains them best: W + c·D is encoded for each
// c that a mistake would give, and for the one that is measured.

// planGGUF decides a merge into a GGUF model: a step for each tensor, also for those that
// stay the bytes that they are.
func (c *mergeCheck) planGGUF(adapters []merge.Source) error {
	g, err := merge.PlanGGUF(c.base, adapters, merge.GGUFOptions{})
	if err != nil {
		return err
	}
	c.inputs = g.Inputs
	changed := make(map[string]plan.Step)
	for _, s := range g.Plan.Steps {
		changed[s.Write.Tensor] = s
	}
	for _, spec := range c.base.Specs() {
		s, ok := changed[spec.Name]
		if !ok {
			s = plan.Step{Read: plan.Whole(0, spec), Write: plan.Placement{Tensor: spec.Name, DType: spec.DType}}
		}
		c.steps = append(c.steps, s)
		c.shapes[spec.Name] = spec.Shape
	}
	return nil
}

// addGGUFPair takes up a comparison of two tensors of one shape. What is stored in blocks
// of the base's type and not changed is compared as the numbers that it stands for.
func (c *mergeCheck) addGGUFPair(s *plan.Step, stored tensor.Spec) {
	was, _ := c.base.GGUF().Lookup(s.Read.Tensor)
	is, _ := c.merged.GGUF().Lookup(stored.Name)
	p := mergePair{step: s, stored: stored}
	if was.Type != is.Type {
		c.types[fmt.Sprintf("%s instead of %s", is.Type, was.Type)]++
	}
	_, plain := is.Type.DType()
	if kind := block.GGML(is.Type); !plain && (s.Judge || was.Type != is.Type) {
		if err := kind.CanQuantize(); err != nil {
			c.add("not-compared", stored.Name, "it is stored as %s, which can't be encoded again", is.Type)
			return
		}
		p.codes = &kind
	}
	if !stored.DType.IsFloat() {
		p.codes = nil
	}
	c.pairs = append(c.pairs, p)
}

// recoding is what was found about a tensor in blocks. Q is what the encoder makes of the
// exact merge X = W + D, Y what is stored.
type recoding struct {
	blocks, differ int64   // in how many Y is not Q
	unexplained    int64   // of these, where noise of float32 does not explain it either
	worse          int64   // blocks of Y that are farther from X than zeros
	size, left     float64 // <X,X>, <Y-X,Y-X>
	own            float64 // <Q-X,Q-X>
	keptByOwn      float64 // <Q-W,D>
	misses         []miss  // of other scales of the change, where Y is not Q
}

// miss counts the values that are not what the encoder makes of W + scale·D.
type miss struct {
	scale  float64
	values int64
}

// sigmas of an estimate that only chance would exceed once in 10^9 cases.
const sigmas = 6

// noise is the standard deviation of <Y-W,D>/<D,D> if errors of the codes are independent
// of the change: ||Y-X|| / (sqrt(n)·||D||).
func (c *comparison) codesNoise() float64 {
	return math.Sqrt(c.codes.left / float64(c.values) / c.delta)
}

// maxTried blocks of a tensor are explained at most.
const maxTried = 64

// recoder encodes bands.
type recoder struct {
	kind    block.GGML
	ones    []float32 // weights, for the types that can't do without
	x, q    []float32
	codes   []byte
	tried   int
	shaking *rand.Rand
}

// compareCodes compares the whole tensor.
func (w *comparer64) compareCodes(ctx context.Context) (comparison, error) {
	var c comparison
	r := &recoder{kind: *w.codes, shaking: rand.New(rand.NewPCG(1, 1))}
	err := w.each(ctx, func(b *compared) error {
		if err := r.encode(b, 1); err != nil {
			return w.explainCodes(err)
		}
		return r.judge(&c, b)
	})
	if err != nil || c.outside == 0 || c.delta == 0 {
		return c, err
	}
	c.codes.misses = []miss{{scale: 1}}
	for _, scale := range w.likelyScales(&c) {
		c.codes.misses = append(c.codes.misses, miss{scale: scale})
	}
	err = w.each(ctx, func(b *compared) error {
		for i := range c.codes.misses {
			m := &c.codes.misses[i]
			if err := r.encode(b, m.scale); err != nil {
				return w.explainCodes(err)
			}
			for j, y := range b.y {
				if y != float64(r.q[j]) {
					m.values++
				}
			}
		}
		return nil
	})
	return c, err
}

// explainCodes says of which tensor a value can't be encoded.
func (w *comparer64) explainCodes(err error) error {
	path := ""
	if m, ok := w.inputs[w.step.Read.Input].(*checkpoint.Model); ok {
		path = m.Path
	}
	return &checkpoint.InputError{Path: path, Err: fmt.Errorf("tensor %q: the merge can't be encoded as %s: %w", w.stored.Name, *w.codes, err)}
}

// likelyScales are those that mistakes give, and the one that is measured if it is
// another than the encoder's own by more than noise.
func (w *comparer64) likelyScales(c *comparison) []float64 {
	scales := []float64{0, 2, -1}
	if root := rootOfRank(w.step); root > 1 {
		scales = append(scales, root, 1/root)
	}
	if is, own := c.kept/c.delta, c.codes.keptByOwn/c.delta; math.Abs(is-own) > sigmas*c.codesNoise() {
		scales = append(scales, is)
	}
	return scales
}

// encode sets q to what the encoder makes of W + scale·D.
func (r *recoder) encode(b *compared, scale float64) error {
	cols := b.band.Cols
	r.x, r.q = resized(r.x, len(b.x)), resized(r.q, len(b.x))
	for i, x := range b.x {
		if scale == 1 {
			r.x[i] = float32(x)
		} else {
			r.x[i] = float32(b.w[i] + scale*(x-b.w[i]))
		}
	}
	r.codes = resized(r.codes, len(b.x)/r.kind.BlockElements()*r.kind.BlockBytes())
	if err := r.kind.Quantize(r.codes, r.x, cols, r.weights(cols)); err != nil {
		return err
	}
	return r.kind.Decode(r.q, r.codes)
}

// weights are the same for all columns where a type needs some.
func (r *recoder) weights(cols int) []float32 {
	if !r.kind.NeedsWeights() {
		return nil
	}
	if len(r.ones) < cols {
		r.ones = make([]float32, cols)
		for i := range r.ones {
			r.ones[i] = 1
		}
	}
	return r.ones[:cols]
}

// judge adds a band that was encoded.
func (r *recoder) judge(c *comparison, b *compared) error {
	n := r.kind.BlockElements()
	for from := 0; from < len(b.x); from += n {
		var size, left float64
		differ := int64(0)
		for i := from; i < from+n; i++ {
			x, y, q, base := b.x[i], b.y[i], float64(r.q[i]), b.w[i]
			d := x - base
			c.values++
			c.delta += d * d
			c.kept += (y - base) * d
			c.change += (y - base) * (y - base)
			c.codes.keptByOwn += (q - base) * d
			c.codes.own += (q - x) * (q - x)
			size += x * x
			left += (y - x) * (y - x)
			if y == q {
				c.nearest++
				continue
			}
			if c.outside == 0 {
				c.first, c.stored, c.exact = b.first+int64(i), y, x
			}
			c.outside++
			differ++
			if off := math.Abs(y - x); !(off <= c.largest) {
				c.largest = off
			}
		}
		c.codes.blocks++
		c.codes.size += size
		c.codes.left += left
		if !(left <= size) {
			c.codes.worse++
		}
		if differ == 0 {
			continue
		}
		c.codes.differ++
		ok, err := r.explains(b, from, n)
		if err != nil {
			return err
		}
		if !ok {
			c.codes.unexplained++
		}
	}
	return nil
}

// explains reports whether the stored block is what the encoder makes of values that
// float32 arithmetic may have got: an encoder searches, and what is next to a tie falls
// to either side.
func (r *recoder) explains(b *compared, from, n int) (bool, error) {
	if r.tried++; r.tried > maxTried {
		return false, nil
	}
	const tries = 32
	x, q, codes := make([]float32, n), make([]float32, n), make([]byte, r.kind.BlockBytes())
	for range tries {
		for i := range x {
			x[i] = float32(b.x[from+i] + b.noise*(2*r.shaking.Float64()-1))
		}
		if err := r.kind.Quantize(codes, x, n, r.weights(n)); err != nil {
			return false, err
		}
		if err := r.kind.Decode(q, codes); err != nil {
			return false, err
		}
		same := true
		for i, v := range q {
			same = same && float64(v) == b.y[from+i]
		}
		if same {
			return true, nil
		}
	}
	return false, nil
}

// judgeCodes turns what was found about a tensor in blocks into findings.
func (c *mergeCheck) judgeCodes(p *mergePair) {
	f, name := &p.found, p.stored.Name
	if f.outside > 0 && c.blameCodes(p) {
		return
	}
	if f.delta == 0 {
		if p.step.Judge {
			c.add("delta-zero", name, "the adapters have factors for it, and change nothing")
		}
		return
	}
	// What is left is measured through the errors of the codes.
	if left := f.kept / f.delta; left < survivalLimit-sigmas*f.codesNoise() {
		c.add("delta-survival", name, "%.4g of the change is left after encoding as %s", left, *p.codes).measured(left, survivalLimit)
	}
}

// blameCodes says why codes are not those of the merge; false if they may well be.
func (c *mergeCheck) blameCodes(p *mergePair) bool {
	f, name := &p.found, p.stored.Name
	if best, ok := f.codes.bestScale(); ok {
		if best == 0 {
			c.add("delta-missing", name, "its codes are those of the base: the change of the adapters is not in it").measured(0, 1)
		} else {
			c.add("delta-scale", name, "its codes are those of %.4g times the change%s", best, explainScale(p.step, best, 0x1p-20)).measured(best, 1)
		}
		return true
	}
	switch {
	case f.codes.worse > 0 && p.step.Judge:
		c.add("deviates", name, "in %d of its %d blocks zeros would be nearer to the merge; first element %d is %v, computed %v",
			f.codes.worse, f.codes.blocks, f.first, f.stored, f.exact).measured(f.largest, math.NaN())
		return true
	case f.codes.worse > 0:
		c.add("tensor-changed", name, "no adapter changes it, but in %d of its %d blocks zeros would be nearer to the base",
			f.codes.worse, f.codes.blocks).measured(float64(f.outside), 0)
		return true
	case f.change == 0 && f.delta > 0:
		c.add("delta-missing", name, "it is the base, value by value, which the encoder does not make of the merge").measured(0, 1)
		return true
	case 2*f.codes.differ > f.codes.blocks:
		c.add("encoder-other", name, "%d of its %d values are others than those of the %s encoder: an importance matrix, or another tool",
			f.outside, f.values, *p.codes).measured(relative(f.codes.left, f.codes.size), relative(f.codes.own, f.codes.size))
	case f.codes.unexplained > 0:
		c.add("block-differs", name, "%d of its %d blocks do not hold the codes of the merge; first element %d is %v, computed %v",
			f.codes.unexplained, f.codes.blocks, f.first, f.stored, f.exact).measured(float64(f.codes.unexplained), 0)
	}
	return false
}

// bestScale is the scale other than 1 that explains more of the values than 1 does, by
// more than chance: counts of misses spread by their square root.
func (r *recoding) bestScale() (float64, bool) {
	if len(r.misses) == 0 {
		return 0, false
	}
	one, best := r.misses[0], r.misses[0]
	for _, m := range r.misses[1:] {
		if m.values < best.values {
			best = m
		}
	}
	spread := sigmas * math.Sqrt(float64(one.values+best.values))
	return best.scale, float64(one.values-best.values) > spread
}
