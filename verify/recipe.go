package verify

import (
	"context"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/plan"
)

// A recipe is a way in which other tools round on the way to a merged weight. With
// rn the rounding to a type of 16 bits, W the base and D_i = s_i·P_i what adapter i
// adds, PEFT computes (tuners/lora/layer.py, merge and get_delta_weight):
//
//	float32 factors                  rn(W + D)
//	the same with safe_merge         rn(W + rn(D))
//	factors in the type, on a CPU    rn(W + rn(D))
//	factors in the type, on a GPU    rn(W + rn(s·rn(P)))
//	factors made to be of the type   as these, of rn(B)·rn(A)
//	one adapter after another        rn(rn(W + D_1) + D_2), and so on
//
// and W itself is rounded first if the model was loaded as another type, or the
// result last if it was saved as one.
//
// D is known but for float32 arithmetic, as D ± e. Rounding and adding keep order, so
// the recipe applied to both ends gives bounds that hold what the tool got, and that
// are one value wide nearly everywhere: a tensor is of a recipe if every value lies
// between its bounds. Nothing has to be tuned. The sum of two numbers of a 16-bit
// type is rounded through float32 without a second error, as that has more than twice
// the bits and two.
type recipe struct {
	code, name string
	rounds     int          // of the change: none, of D, of P and of s·P
	each       bool         // adapters one after another
	as         tensor.DType // that the computation has; the values are then stored as theirs
}

// recipes lists those that can have made a tensor, the simplest first.
func (w *comparer64) recipes(pieces []piece) []recipe {
	once, peft, first := "base-rounded", "peft-double-rounding", ""
	if w.factors != tensor.NoDType {
		once, first = peft, "the factors are rounded to "+w.factors.String()+", "
	}
	computed := []tensor.DType{w.stored.DType}
	if d := w.step.Read.Spec.DType; d != w.stored.DType && d.Bits() == 16 {
		computed = append(computed, d)
	}
	scaled := true
	for _, p := range pieces {
		scaled = scaled && p.scale != 0
	}
	var all []recipe
	for _, as := range computed {
		if as.Bits() != 16 { // nothing is lost on the way
			continue
		}
		all = append(all, recipe{once, first + "base and sum are rounded to " + as.String(), 0, false, as})
		if len(pieces) > 1 {
			all = append(all, recipe{once, first + "the sum is rounded after each adapter", 0, true, as})
		}
		all = append(all, recipe{peft, first + "the change is rounded to " + as.String() + ", then the sum", 1, true, as})
		if scaled {
			all = append(all, recipe{peft, first + "the product is rounded to " + as.String() + ", the change, then the sum", 2, true, as})
		}
	}
	return all
}

// piece is a stage, or several, whose change a tool makes at once.
type piece struct {
	funcs []plan.Func[float64]
	scale float64 // of the product; 0 if there is none, or more than one
}

// pieces are the changes of the step: one for each low-rank product, if there is
// nothing else.
func (w *comparer64) pieces() []piece {
	var all []piece
	for i, st := range w.step.Stages {
		p := piece{funcs: w.funcs[i : i+1]}
		switch op := st.Op.(type) {
		case merge.AddLoRA:
			p.scale = op.Scale
		case merge.AddExpertsLoRA:
			p.scale = op.Scale
		default:
			return []piece{{funcs: w.funcs}}
		}
		all = append(all, p)
	}
	return all
}

// recognise returns the recipe that explains every value, or nil. A factor that is
// stored in a wider type than the weights may have been rounded to theirs.
func (w *comparer64) recognise(ctx context.Context) (*recipe, error) {
	r, err := w.explain(ctx)
	if err != nil || r != nil || w.stored.DType.Bits() != 16 || !w.widerFactors() {
		return r, err
	}
	w.factors = w.stored.DType
	if err := w.bind(ctx); err != nil {
		return nil, err
	}
	return w.explain(ctx)
}

func (w *comparer64) widerFactors() bool {
	for _, st := range w.step.Stages {
		for _, side := range st.Sides {
			if side.Spec.DType.Bits() > w.stored.DType.Bits() {
				return true
			}
		}
	}
	return false
}

// explain tries the recipes with the factors as they are bound.
func (w *comparer64) explain(ctx context.Context) (*recipe, error) {
	pieces := w.pieces()
	left := w.recipes(pieces)
	var before []float64
	changes := make([][]float64, len(pieces))
	err := w.each(ctx, func(b *compared) error {
		if len(left) == 0 {
			return nil
		}
		for i, p := range pieces {
			// Each change by itself, next to the base: what an addition to a
			// running sum would round off in float64 is far below the noise.
			before = append(before[:0], b.w...)
			band := b.band
			band.X = before
			for _, f := range p.funcs {
				if err := f.Apply(band); err != nil {
					return err
				}
			}
			changes[i] = resized(changes[i], len(before))
			for j, x := range before {
				changes[i][j] = x - b.w[j]
			}
		}
		var fit []recipe
		for _, r := range left {
			if b.follows(&r, w, pieces, changes) {
				fit = append(fit, r)
			}
		}
		left = fit
		return nil
	})
	if err != nil || len(left) == 0 {
		return nil, err
	}
	return &left[0], nil
}

// follows reports whether every value of a band lies between the bounds of a recipe.
func (b *compared) follows(r *recipe, w *comparer64, pieces []piece, changes [][]float64) bool {
	b.lo, b.hi = resized(b.lo, len(b.y)), resized(b.hi, len(b.y))
	b.bound(b.lo, -1, r, w, pieces, changes)
	b.bound(b.hi, +1, r, w, pieces, changes)
	for i, y := range b.y {
		if !within(y, b.lo[i], b.hi[i]) {
			return false
		}
	}
	return true
}

// bound applies a recipe to the lower or the upper end of each change.
func (b *compared) bound(dst []float64, side float64, r *recipe, w *comparer64, pieces []piece, changes [][]float64) {
	const roundoff32 = 0x1p-24
	copy(dst, b.w)
	b.round(r.as, dst)
	b.change = resized(b.change, len(dst))
	d := b.change
	for i, p := range pieces {
		e := side * operations(w.step) * roundoff(w.step) * largest(changes[i])
		for j, v := range changes[i] {
			d[j] = v + e
		}
		if r.rounds == 2 {
			for j := range d {
				d[j] /= p.scale
			}
			b.round(r.as, d)
			for j, v := range d {
				d[j] = v*p.scale + side*roundoff32*abs(v*p.scale)
			}
		}
		if r.rounds >= 1 {
			b.round(r.as, d)
		}
		for j, v := range d {
			dst[j] += v
			if r.rounds == 0 {
				dst[j] += side * roundoff32 * abs(dst[j])
			}
		}
		if r.each {
			b.round(r.as, dst)
		}
	}
	b.round(r.as, dst)
	b.round(w.stored.DType, dst)
}

func abs(x float64) float64 { return max(x, -x) }
