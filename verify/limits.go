package verify

import (
	"math"
	"slices"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/quant/block"
)

// limits say how far a value of a quantized tensor can be from the base's. With a the
// largest magnitude of the block, and rounding to nearest codes:
//
//	nf4, fp4       a·g/2, g the widest gap between values of the table
//	double         and h/2·max|a - mean| over 256 blocks, h the widest gap of their table
//	int8           a/254, rows for blocks, after a rounding to f16
//	q8_0           a/254, and the f16 of the scale d: 127·d·2^-11
//	q4_0, q5_0     a/8, a/16: the end of the grid that has no code; and d's rounding
//	q4_1, q5_1     (max - min)/30, /62, and the rounding of d and min
//
// Every one has room for float32 arithmetic and rounded thresholds, 2^-19 of a, and
// for the type that the weight is decoded to. A GGUF file that is held against what it was
// converted from may have been F16 before it was quantized, which rounds by 2^-11 of a
// value or, where F16 ends, by 2^-25. The other types of GGUF have scales
// that were searched for and are codes themselves, so that there is no such bound: a
// block of theirs must only be nearer to the base than zeros are.
type limits struct {
	spec       tensor.Spec
	kind       string
	block      int64 // elements
	nested     bool
	transposed bool    // blocks run along columns
	roundings  float64 // of the type that is decoded to, relative
	viaF16     bool    // the values may have been F16 before they were codes
	absmax     []float32
	mean       float64
	spread     []float64 // of nested scales: the largest deviation of a group
}

// slack is what arithmetic and thresholds may be off, relative to a.
const slack = 0x1p-19

// whole reports whether all blocks must be seen before one can be judged.
func (l *limits) whole() bool { return l.nested || l.transposed }

// blockOf returns the block of an element.
func (l *limits) blockOf(element int64) int64 {
	if l.transposed {
		rows, cols := l.spec.Rows(), l.spec.Cols()
		element = element%cols*rows + element/cols
	}
	return element / l.block
}

// note takes up the largest magnitudes of a chunk.
func (l *limits) note(x []float64, first int64) {
	for i, v := range x {
		at := l.blockOf(first + int64(i))
		l.absmax[at] = max(l.absmax[at], float32(math.Abs(v)))
	}
}

// settle computes what depends on all blocks.
func (l *limits) settle() {
	if !l.nested {
		return
	}
	for _, a := range l.absmax {
		l.mean += float64(a) / float64(len(l.absmax))
	}
	l.spread = make([]float64, len(l.absmax)/block.NestedSize+1)
	for i, a := range l.absmax {
		g := i / block.NestedSize
		l.spread[g] = max(l.spread[g], math.Abs(float64(a)-l.mean))
	}
}

// check compares the values of a chunk with their bounds.
func (l *limits) check(f *quantFound, x, y []float64, first int64) {
	if l.transposed {
		for i := range x {
			at := l.blockOf(first + int64(i))
			l.checkBlock(f, x[i:i+1], y[i:i+1], first+int64(i), float64(l.absmax[at]), at)
		}
		return
	}
	for from := int64(0); from < int64(len(x)); from += l.block {
		to := min(from+l.block, int64(len(x)))
		l.checkBlock(f, x[from:to], y[from:to], first+from, largest(x[from:to]), (first+from)/l.block)
	}
}

func (l *limits) checkBlock(f *quantFound, x, y []float64, first int64, a float64, at int64) {
	bound, ok := l.bound(x, a, at)
	if !ok {
		norm, left := 0.0, 0.0
		for i, v := range x {
			norm += v * v
			left += (v - y[i]) * (v - y[i])
		}
		if left > norm {
			f.worseThanNought++
		}
		return
	}
	table := tables[l.kind]
	for i, v := range x {
		off := math.Abs(v - y[i])
		switch {
		case !(off <= bound):
			if f.beyond == 0 {
				f.first = first + int64(i)
			}
			f.beyond++
			if off > f.largest || math.IsNaN(off) {
				f.largest, f.limit = off, bound
			}
		case table != nil && off > nearestIn(table, v, a)+bound-table.gap/2*a:
			f.notNearest++
		}
	}
}

// bound is the bound of a block, false if its type has none.
func (l *limits) bound(x []float64, a float64, at int64) (float64, bool) {
	room := (slack + l.roundings) * a // half a unit on the way in, half on the way out
	if l.viaF16 {
		room += a*0x1p-11 + 0x1p-25
	}
	// A scale d is rounded to f16: of levels·d = end, relatively or, where f16 ends,
	// by 2^-25 for each level.
	half := func(levels, end float64) float64 { return end*0x1p-11 + levels*0x1p-25 + room }
	switch l.kind {
	case "nf4", "fp4":
		b := tables[l.kind].gap/2*a + room
		if l.nested {
			b += (dynamicGap/2+slack)*l.spread[at/block.NestedSize] + 0x1p-20*l.mean
		}
		return b, true
	case "int8":
		return a/254*(1+0x1p-10) + a*0x1p-11 + 0x1p-25 + room, true
	case "q8_0":
		return a/254 + half(127, a), true
	case "q4_0":
		return a/8 + half(8, a), true
	case "q5_0":
		return a/16 + half(16, a), true
	case "q4_1":
		return spanOf(x)/30 + half(15, spanOf(x)) + a*0x1p-11 + 0x1p-25, true
	case "q5_1":
		return spanOf(x)/62 + half(31, spanOf(x)) + a*0x1p-11 + 0x1p-25, true
	}
	return 0, false
}

func spanOf(x []float64) float64 {
	lo, hi := math.Inf(1), math.Inf(-1)
	for _, v := range x {
		lo, hi = min(lo, v), max(hi, v)
	}
	return hi - lo
}

// table is the values of the codes of a 4-bit type, and the widest gap between them.
type table struct {
	values []float64
	gap    float64
}

var tables = map[string]*table{"nf4": tableOf(kernel.NF4.Values()), "fp4": tableOf(kernel.FP4.Values())}

var dynamicGap = func() float64 {
	values := block.DynamicMap()
	gap := 0.0
	for i := range values[1:] {
		gap = max(gap, float64(values[i+1])-float64(values[i]))
	}
	return gap
}()

func tableOf(values [16]float32) *table {
	t := new(table)
	for _, v := range values {
		t.values = append(t.values, float64(v))
	}
	slices.Sort(t.values)
	for i := range t.values[1:] {
		t.gap = max(t.gap, t.values[i+1]-t.values[i])
	}
	return t
}

// nearestIn returns how far a value is from the nearest of a block.
func nearestIn(t *table, v, a float64) float64 {
	best := math.Inf(1)
	for _, code := range t.values {
		best = min(best, math.Abs(code*a-v))
	}
	return best
}
