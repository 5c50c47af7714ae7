package verify

import (
	"context"
	"math"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/plan"
	"github.com/loratool/loratool/quant/block"
)

// This file compares one band of a merge with what is stored.

// compared is a band on both sides: the base w, the exact result x,
// what is stored y.
type compared struct {
	first    int64 // element of the tensor
	w, x, y  []float64
	band     plan.Band[float64] // over w, for those who apply stages themselves
	noise    float64            // what float32 arithmetic may add to a value
	lo, hi   []float64          // buffers, these and the next
	change   []float64
	encoding []byte
}

// each calls f with one band after another.
func (w *comparer64) each(ctx context.Context, f func(*compared) error) error {
	var b compared
	s := w.step
	return w.bands(ctx, func(band plan.Band[float64]) error {
		b.first, b.band, b.w = (band.Row-s.Read.From)*s.Read.Cols, band, band.X
		b.x, b.y = append(b.x[:0], band.X...), resized(b.y, len(band.X))
		result := band
		result.X = b.x
		for _, fn := range w.funcs {
			if err := fn.Apply(result); err != nil {
				return err
			}
		}
		b.noise = 0
		if len(s.Stages) > 0 {
			b.noise = operations(s) * roundoff(s) * (largest(b.w) + largestDifference(b.x, b.w))
		}
		if w.shifted && (s.Judge || s.Read.Input != 0) { // the nearest to 1 + x, from which 1 was taken again
			b.noise += ulp(tensor.F32, 1+largest(b.x)) / 2
		}
		if err := w.out.read(b.y, b.first); err != nil {
			return err
		}
		return f(&b)
	})
}

// judge adds a band to the comparison: a value is right if it lies between the
// roundings of x - noise and x + noise.
func (b *compared) judge(c *comparison, w *comparer64) {
	b.lo, b.hi = resized(b.lo, len(b.x)), resized(b.hi, len(b.x))
	for i, x := range b.x {
		b.lo[i], b.hi[i] = x-b.noise, x+b.noise
	}
	b.round(w.stored.DType, b.lo)
	b.round(w.stored.DType, b.hi)
	for i, y := range b.y {
		c.values++
		x, base := b.x[i], b.w[i]
		if d := x - base; d-d == 0 && y-y == 0 {
			c.delta += d * d
			c.kept += (y - base) * d
			c.change += (y - base) * (y - base)
		}
		if math.IsInf(y, 0) && x-x == 0 {
			c.overflowed++
		}
		half := ulp(w.stored.DType, x)/2 + b.noise
		c.rounding += half * half
		off := math.Abs(y - x)
		if y == x || math.IsNaN(y) && math.IsNaN(x) || off <= half-b.noise {
			c.nearest++
		}
		if within(y, b.lo[i], b.hi[i]) {
			continue
		}
		if c.outside == 0 {
			c.first, c.stored, c.exact = b.first+int64(i), y, x
		}
		c.outside++
		if off > c.largest {
			c.largest, c.allowed = off, half
		}
	}
}

// within reports whether a stored value is between two bounds; a NaN is where there
// is one.
func within(y, lo, hi float64) bool {
	return lo <= y && y <= hi || math.IsNaN(y) && math.IsNaN(lo)
}

// round rounds values to a type, in place.
func (b *compared) round(d tensor.DType, x []float64) {
	codec, _ := block.For(d)
	b.encoding = resized(b.encoding, len(x)*int(d.Bits()/8))
	codec.Encode64(b.encoding, x)
	codec.Decode64(x, b.encoding)
}

func largest(x []float64) float64 {
	most := 0.0
	for _, v := range x {
		if a := math.Abs(v); a > most && !math.IsInf(a, 0) {
			most = a
		}
	}
	return most
}

func largestDifference(x, y []float64) float64 {
	most := 0.0
	for i, v := range x {
		if a := math.Abs(v - y[i]); a > most && !math.IsInf(a, 0) {
			most = a
		}
	}
	return most
}

// resized returns a slice of length n, reusing buf when it is large enough.
func resized[E any](buf []E, n int) []E {
	if cap(buf) < n {
		return make([]E, n)
	}
	return buf[:n]
}
