package verify

import (
	"math"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
)

// This file says how far y1 = W'x and y2 = Wx + s·B(Ax) may be apart. With u the unit
// roundoff of the type, v that of the accumulator, n the longest chain of sums of a product
// in eight lanes and g = n·v/(1 - n·v) (Higham, Accuracy and Stability, 3.1), and with all
// sizes sums of absolute products:
//
//	y1      g·|W'||x| + u·|y1|
//	W'      r·(|W + D||x| + |W||x| + 4·|D||x|): r is the roundoff of what is stored; tools round
//	        the merge, before it the base, and of the change the factors, the product, and the
//	        change itself
//	Wx      g·|W||x| + u·|Wx|
//	Ax      e = g·|A||x| + u·|Ax|, of each direction
//	B(Ax)   s·(|B|e + g·|B|(|Ax| + e) + u·|B(Ax)|), and u·|s·B(Ax)| for the scale
//	y2      u·|y2| for each sum
//
// Weights that are stored in a wider type than the arithmetic's are rounded to it, u of each.
// A result below the normal numbers of F16 is rounded by 2^-25. Second-order terms are below
// 8u of the sum. The bound is for the worst case and grows with n; in pure arithmetic, where
// n·v reaches 1, there is none.
//
// A small change may hide below it. So the outputs are also projected on the change: with
// d = s·B(Ax) exactly,
//
//	c = <y1 - Wx, d> / <d,d>
//
// is 1, or what rounding the exact merge once makes of it. Roundings are independent of d, so
// that the variance of c is sum d²·e² / <d,d>², with e² a third of the squares of the bounds
// of single roundings: over some thousand outputs that is small even where every output by
// itself is drowned.

// roundoffOf is the unit roundoff of a type.
func roundoffOf(d tensor.DType) float64 { return ulp(d, 0.5) }

// accumulator is the unit roundoff of sums.
func (f *functionCheck) accumulator() float64 {
	if f.arithmetic.Pure {
		return roundoffOf(f.arithmetic.Type)
	}
	return roundoffOf(tensor.F32)
}

// chain is how many roundings an element of a sum of n products goes through.
func chain(n int) float64 { return math.Ceil(float64(n)/8) + 4 }

// growth is g.
func (f *functionCheck) growth(n int) float64 {
	nv := chain(n) * f.accumulator()
	if nv >= 1 {
		return math.Inf(1)
	}
	return nv / (1 - nv)
}

// underflow is how far results below the normal numbers may be off.
func (f *functionCheck) underflow() float64 {
	if f.arithmetic.Type == tensor.F16 {
		return 0x1p-25
	}
	return 0
}

// cast is what rounding a stored type to that of the arithmetic does.
func (f *functionCheck) cast(stored tensor.DType) float64 {
	if u := roundoffOf(f.arithmetic.Type); stored != f.arithmetic.Type && u > roundoffOf(stored) || stored == tensor.F16 && f.arithmetic.Type == tensor.BF16 {
		return u
	}
	return 0
}

// errorOfProduct bounds the error of a product whose result is of a size; factors may
// have been rounded to the type.
func (f *functionCheck) errorOfProduct(n int, sizes, result float64, isFactor bool) float64 {
	e := f.growth(n)*sizes + roundoffOf(f.arithmetic.Type)*result + f.underflow()
	if f.arithmetic.Pure {
		e += float64(n) * f.underflow()
	}
	if isFactor {
		e += roundoffOf(f.arithmetic.Type) * sizes
	}
	return e
}

// functionRow is one output of one input.
type functionRow struct {
	in           int
	y1, y2, base float32
	change, kept float64 // d, and what rounding the merge once leaves of it
	exact        float64 // (W + D)x
	sizeW, sizeX float64 // |W||x|, |W + D||x|
	size, sizeD  float64 // |D||x|, and of pairs s·|B||A||x|
	squares      float64 // sum (W'x)², element by element
	inputs       float64 // sum |x|
	pairs        float64 // bound of the error of the pairs
	limit        float64
	variance     float64 // of y1 - Wx
}

// measure computes in float64.
func (r *functionRow) measure(w, x, y, nearest []float64, input []float32) {
	for j, in := range input {
		v := float64(in)
		a := math.Abs(v)
		d := x[j] - w[j]
		r.change += d * v
		r.kept += (nearest[j] - w[j]) * v
		r.exact += x[j] * v
		r.sizeW += math.Abs(w[j]) * a
		r.sizeX += math.Abs(x[j]) * a
		r.size += math.Abs(d) * a
		p := y[j] * v
		r.squares += p * p
		r.inputs += a
	}
}

// addPair adds the error of a pair. Its output before the scale is given.
func (r *functionRow) addPair(f *functionCheck, p *product, at, input int, through float64) {
	u, s := roundoffOf(f.arithmetic.Type), math.Abs(p.scale)
	b := p.b[at*p.rank : (at+1)*p.rank]
	sizes, errs, t := p.sizes[input*p.rank:], p.errs[input*p.rank:], p.through[input*p.rank:]
	var carried, sum float64
	for k, v := range b {
		v = math.Abs(v)
		r.sizeD += s * v * sizes[k]
		carried += v * errs[k]
		sum += v * (math.Abs(float64(t[k])) + errs[k])
	}
	r.pairs += s*(carried+f.errorOfProduct(p.rank, sum, math.Abs(through), true)) + u*s*math.Abs(through) + f.underflow()
	r.pairs += u*math.Abs(float64(r.y2)) + f.underflow()
}

// bound sets the limit and the variance of a row.
func (f *functionCheck) bound(m *functionModule, r *functionRow) {
	u, stored := roundoffOf(f.arithmetic.Type), roundoffOf(m.stored.DType)
	y1, base := math.Abs(float64(r.y1)), math.Abs(float64(r.base))
	if !m.found.Pair { // the exact change, rounded, and the sum
		r.pairs = u*(math.Abs(r.change)+math.Abs(float64(r.y2))) + 2*f.underflow()
	}
	castY, castW := f.cast(m.stored.DType), f.cast(m.step.Read.Spec.DType)
	r.limit = f.errorOfProduct(r.in, r.sizeX, y1, false) + castY*r.sizeX
	r.limit += stored * (r.sizeX + r.sizeW + 4*r.sizeD)
	if m.stored.DType == tensor.F16 {
		r.limit += 0x1p-25 * r.inputs
	}
	r.limit += f.errorOfProduct(r.in, r.sizeW, base, false) + castW*r.sizeW + r.pairs
	r.limit *= 1 + 8*u

	v := f.accumulator()
	third := func(x float64) float64 { return x * x / 3 }
	r.variance = third(u*y1) + third(u*base) + chain(r.in)*(third(v*r.sizeX)+third(v*r.sizeW))
	r.variance += (2*stored*stored + castY*castY + castW*castW) * r.squares / 3
	if under := f.underflow(); under > 0 {
		r.variance += 2 * third(under) * (1 + float64(r.in))
	}
}

// functionSums are sums over the outputs of a module.
type functionSums struct {
	diff, a, b, dot            float64 // of (y1 - y2)², y1², y2², y1·y2
	along, kept, own, variance float64 // of (y1 - Wx)·d, of what rounding leaves of d, of d², and d²·e²
	largest, ratio             float64
	bounded                    bool  // there is a bound
	beyond                     int64 // outputs that are farther apart than the bound
	firstOff, firstLimit       float64
	ulp                        kernel.ULPHistogram
	y1, y2                     []float64 // of which the distances are not counted yet
}

// add takes up one output.
func (s *functionSums) add(f *functionCheck, r *functionRow) {
	y1, y2 := float64(r.y1), float64(r.y2)
	if s.y1, s.y2 = append(s.y1, y1), append(s.y2, y2); len(s.y1) == chunkElements {
		s.count(f)
	}
	off := math.Abs(y1 - y2)
	if y1 == y2 || y1 != y1 && y2 != y2 {
		off = 0 // one infinity is the other
	}
	if off != off {
		off = math.Inf(1)
	}
	s.largest = max(s.largest, off)
	if !math.IsInf(r.limit, 1) {
		s.bounded = true
		if r.limit > 0 {
			s.ratio = max(s.ratio, off/r.limit)
		}
		if off > r.limit {
			if s.beyond++; s.beyond == 1 {
				s.firstOff, s.firstLimit = off, r.limit
			}
		}
	}
	if y1-y1 != 0 || y2-y2 != 0 {
		return // sums of numbers
	}
	s.diff += off * off
	s.a += y1 * y1
	s.b += y2 * y2
	s.dot += y1 * y2
	s.along += (y1 - float64(r.base)) * r.change
	s.kept += r.kept * r.change
	s.own += r.change * r.change
	s.variance += r.change * r.change * r.variance
}

// count counts the distances of outputs.
func (s *functionSums) count(f *functionCheck) {
	s.ulp.Add(f.arithmetic.storage(), f.encode(s.y1), f.encode(s.y2))
	s.y1, s.y2 = s.y1[:0], s.y2[:0]
}

// finish fills in what was found.
func (s *functionSums) finish(f *functionCheck, m *FunctionModule) {
	s.count(f)
	s.y1, s.y2 = nil, nil
	m.Largest, m.Relative, m.Cosine = s.largest, relative(s.diff, s.b), s.dot/math.Sqrt(s.a*s.b)
	m.Ratio, m.ULP = math.NaN(), s.ulp
	if s.bounded {
		m.Ratio = s.ratio
	}
	m.Scale, m.Expected, m.Sigma = s.scales()
}

// scales returns c, what it should be, and its standard deviation; NaN where the adapters
// change no output.
func (s *functionSums) scales() (c, expected, sigma float64) {
	return s.along / s.own, s.kept / s.own, math.Sqrt(s.variance) / s.own
}

// judge adds findings and sums up.
func (f *functionCheck) judge(r *Report) *FunctionFigures {
	all := &FunctionFigures{Arithmetic: f.arithmetic, Left: f.left}
	var sum functionSums
	blamed := false
	for _, m := range f.modules {
		s, found := &m.sums, &m.found
		all.Modules = append(all.Modules, *found)
		all.ULP.Merge(&found.ULP)
		sum.along += s.along
		sum.kept += s.kept
		sum.own += s.own
		sum.variance += s.variance
		switch off := math.Abs(found.Scale - found.Expected); {
		case s.beyond > 0:
			blamed = true
			r.add("function-differs", found.Tensor, "%d of %d outputs are farther from those of base and adapters than roundings in %s explain; they hold the change at the scale %.4g",
				s.beyond, int64(found.Inputs)*outputs(m), f.arithmetic, found.Scale).measured(s.firstOff, s.firstLimit)
		case s.own == 0: // nothing changes
		case off > sigmas*found.Sigma:
			blamed = true
			r.add("function-scale", found.Tensor, "its outputs hold the change at the scale %.4g, of which rounding the merge explains %.4g",
				found.Scale, found.Expected).measured(found.Scale, found.Expected)
		case sigmas*found.Sigma > 0.5:
			r.add("function-drowned", found.Tensor, "in %s its outputs tell the scale of the change to ±%.3g only", f.arithmetic, sigmas*found.Sigma).
				measured(sigmas*found.Sigma, 0.5)
		}
	}
	all.Scale, all.Expected, all.Sigma = sum.scales()
	if sum.own > 0 && !blamed && math.Abs(all.Scale-all.Expected) > sigmas*all.Sigma {
		r.add("function-scale", "", "the outputs of all modules together hold the change at the scale %.4g, of which rounding the merge explains %.4g",
			all.Scale, all.Expected).measured(all.Scale, all.Expected)
	}
	return all
}

// outputs is how many numbers a module makes of one input.
func outputs(m *functionModule) int64 {
	if m.turned {
		return m.stored.Shape[1]
	}
	return m.stored.NumElements() / max(m.step.Read.Cols, 1)
}
