package loftq

import (
	"fmt"
	"math"
	"slices"

	"github.com/loratool/loratool/internal/kernel"
)

// bandRows is the number of rows that a goroutine works on at a time.
const bandRows = 16

// measure takes norms of what is left of a weight. A difference is rounded to
// float32 and its squares are summed in float64, row by row and then over the rows
// in order.
type measure struct {
	out, in int
	threads int
	channel []float32 // roots of the moments, nil for ones
	norms   Errors    // of W; not relative
}

func newMeasure(w []float32, out, in int, channel []float32, threads int) measure {
	m := measure{out: out, in: in, threads: threads, channel: channel}
	m.norms = m.difference(w, nil)
	return m
}

// errors returns the norms of x - q relative to those of W.
func (m measure) errors(x, q []float32) Errors {
	e := m.difference(x, q)
	return Errors{Plain: ratio(e.Plain, m.norms.Plain), Weighted: ratio(e.Weighted, m.norms.Weighted)}
}

// ratio is 0 for 0/0.
func ratio(a, b float64) float64 {
	if a == 0 {
		return 0
	}
	return a / b
}

// difference returns the norms of x - q, nil being 0.
func (m measure) difference(x, q []float32) Errors {
	plain, weighted := make([]float64, m.out), make([]float64, m.out)
	parallel(m.threads, m.out, bandRows, func(from, to int) {
		buffer := make([]float32, bandRows*m.in)
		for i := from; i < to; i += bandRows {
			rows := min(bandRows, to-i)
			e := buffer[:rows*m.in]
			if q == nil {
				copy(e, x[i*m.in:])
			} else {
				subtract(e, x[i*m.in:], q[i*m.in:])
			}
			kernel.RowSumSquares(plain[i:i+rows], e, rows, m.in)
			if m.channel != nil {
				kernel.ScaleCols(e, rows, m.in, m.channel)
				kernel.RowSumSquares(weighted[i:i+rows], e, rows, m.in)
			}
		}
	})
	if m.channel == nil {
		weighted = plain
	}
	return Errors{Plain: math.Sqrt(sum(plain)), Weighted: math.Sqrt(sum(weighted))}
}

// eachBand calls f for bands of rows on all threads.
func (m measure) eachBand(f func(from, to int)) { parallel(m.threads, m.out, bandRows, f) }

func subtract(dst, x, y []float32) {
	x, y = x[:len(dst)], y[:len(dst)]
	for i := range dst {
		dst[i] = x[i] - y[i]
	}
}

func sum(x []float64) float64 {
	total := 0.0
	for _, v := range x {
		total += v
	}
	return total
}

// checkMoments accepts nil, and means of squares of which one is not 0.
func checkMoments(moments []float64, in int) error {
	if moments == nil {
		return nil
	}
	if len(moments) != in {
		return &OptionError{"moments", fmt.Sprintf("there are %d for %d channels", len(moments), in)}
	}
	largest := 0.0
	for j, m := range moments {
		if !(m >= 0) || math.IsInf(m, 1) {
			return &OptionError{"moments", fmt.Sprintf("channel %d has %v, which no mean of squares is", j, m)}
		}
		largest = max(largest, m)
	}
	if largest == 0 {
		return &OptionError{"moments", "all channels have 0"}
	}
	return nil
}

// channelWeights returns the roots of the moments, the largest being 1, or nil for
// none.
func channelWeights(moments []float64) []float32 {
	if moments == nil {
		return nil
	}
	largest := slices.Max(moments)
	weights := make([]float32, len(moments))
	for j, m := range moments {
		weights[j] = float32(math.Sqrt(m / largest))
	}
	return weights
}

// Fit adds up, band by band, how a product P = B·A fits to what a quantizer left of
// a weight, R = W - Q. With the inner product <X,Y> = sum over X[i,j]·Y[i,j]·D[j]:
//
//	||R - c·P||^2 = <R,R> - 2c·<R,P> + c^2·<P,P>,  least at c* = <R,P>/<P,P>
//
// P of a truncated decomposition of R, weighted or not, is a projection of the columns
// of R, for which c* is 1 with any D. So a pair that was divided by the scale has
// c* = scale. One that was not (PEFT's loftq_init) has c* = 1 whatever scale its
// adapter has, and the adapter applies scale/c* of the correction.
//
// Sums are float64, each row on its own and then the rows in order; so they do not
// depend on the bands.
type Fit struct {
	in      int
	moments []float64 // the largest is 1; nil for ones
	ww, rr  float64
	rp, pp  float64
}

// NewFit returns a fit for weights with so many input channels, at least one. Moments
// are those of [Options], nil for ones; the error is an *[OptionError].
func NewFit(in int, moments []float64) (*Fit, error) {
	if in < 1 {
		panic(badFit)
	}
	if err := checkMoments(moments, in); err != nil {
		return nil, err
	}
	f := &Fit{in: in}
	if moments != nil {
		largest := slices.Max(moments)
		for _, m := range moments {
			f.moments = append(f.moments, m/largest)
		}
	}
	return f, nil
}

// Add adds a band of whole rows: the weight, its quantized values and the product.
func (f *Fit) Add(w, q, p []float32) {
	if len(w)%f.in != 0 || len(q) != len(w) || len(p) != len(w) {
		panic(badFit)
	}
	for ; len(w) > 0; w, q, p = w[f.in:], q[f.in:], p[f.in:] {
		var ww, rr, rp, pp float64
		for j := range f.in {
			v, c, d := float64(w[j]), float64(p[j]), 1.0
			r := v - float64(q[j])
			if f.moments != nil {
				d = f.moments[j]
			}
			ww += d * v * v
			rr += d * r * r
			rp += d * r * c
			pp += d * c * c
		}
		f.ww += ww
		f.rr += rr
		f.rp += rp
		f.pp += pp
	}
}

// BestScale returns c*, or false if the product is 0.
func (f *Fit) BestScale() (float64, bool) {
	if f.pp == 0 {
		return 0, false
	}
	return f.rp / f.pp, true
}

// Error returns ||R - scale·P||/||W||. Where next to nothing is left it is right to
// about 1e-8·||R||/||W|| only.
func (f *Fit) Error(scale float64) float64 {
	return ratio(math.Sqrt(max(0, f.rr-2*scale*f.rp+scale*scale*f.pp)), math.Sqrt(f.ww))
}

// Baseline returns ||R||/||W||.
func (f *Fit) Baseline() float64 { return ratio(math.Sqrt(f.rr), math.Sqrt(f.ww)) }
