package block

import (
	"math"

	"github.com/loratool/loratool/internal/kernel"
)

// The search of the IQ2 and IQ3 types for the scales of groups, their signs, and tuples of
// magnitudes that are in a grid. It follows quantize_row_iq2_xxs_impl and its four siblings
// operation for operation; in what they differ is in gridSearch.

// gridSearch describes how a type is searched.
type gridSearch struct {
	book  func() *codebook
	group int       // numbers with one scale
	spans []float32 // the candidates: what the largest magnitude is mapped to, in values

	negligible float32 // groups below this magnitude are zero
	sigma2     float32 // the mean square of the block counts so often in weights
	evenSigns  bool    // of eight signs an even number is negative, so seven are stored
	fudge      float32 // what the stored scale of the block is multiplied with

	// without gives the weights of a block whose columns have none; sigma2 is that of the
	// block. It is nil for types that need weights.
	without func(weights, x []float32, sigma2 float32)

	// fit is true for the type whose candidates span the scale that fits without a grid.
	fit bool
	// whole is true for the type which, if one tuple of a group was not in the grid, chooses
	// all again for the scale it found, and not only such ones.
	whole bool
	// keep is true for types that keep tuples and signs in a block of scale zero.
	keep bool
}

// gridSpans returns 2*levels-1 ± count steps.
func gridSpans(levels, count int, step float32) []float32 {
	var spans []float32
	for i := -count; i <= count; i++ {
		spans = append(spans, float32(2*levels-1)+float32(float32(i)*step))
	}
	return spans
}

// gridValues are what levels stand for.
var gridValues = [8]float32{1, 3, 5, 7, 9, 11, 13, 15}

// gridBlock is the state of a block while it is encoded, and then what there is to store.
type gridBlock struct {
	search *gridSearch
	book   *codebook

	d       float32
	scales  [16]uint8  // of the groups, 4 bits each
	indices [64]uint16 // of the tuples
	signs   [32]uint8  // of eight numbers each

	weights    [superBlock]float32
	roots      [superBlock]float32 // square roots of the weights
	magnitudes [superBlock]float32
	levels     [superBlock]uint8
	found      [16]float32 // scales of the groups
	zero       [16]bool    // groups that count as zero
}

func newGridBlock(search *gridSearch) *gridBlock {
	return &gridBlock{search: search, book: search.book()}
}

// encode finds what a block is to hold. If it can't be encoded, d is infinite.
func (b *gridBlock) encode(x, weights []float32) {
	b.weigh(x, weights)
	b.split(x)
	clear(b.indices[:])
	var largest float32
	groups, n := superBlock/b.search.group, b.search.group
	for g := range groups {
		scale, ok := b.encodeGroup(g, n)
		if !ok {
			b.d = float32(math.Inf(1))
			return
		}
		b.found[g] = scale
		largest = max(largest, scale)
	}
	clear(b.scales[:])
	b.d = 0
	if largest == 0 {
		if !b.search.keep {
			clear(b.indices[:])
			clear(b.signs[:])
		}
		return
	}
	d := largest / 31
	b.d = d * b.search.fudge
	inverseD := 1 / d
	for g, scale := range b.found[:groups] {
		b.scales[g] = gridLevel(float32(inverseD*scale), 15)
	}
}

// gridLevel returns the level whose value 2l+1 is nearest to x, from 0 to most.
func gridLevel(x float32, most int32) uint8 {
	return uint8(clamp(nearest(float32(0.5*(x-1))), 0, most))
}

func (b *gridBlock) weigh(x, weights []float32) {
	sigma2 := float32(b.search.sigma2*sumSquares(x)) / superBlock
	if weights != nil {
		kernel.Importance(b.weights[:], x, weights, sigma2)
	} else {
		b.search.without(b.weights[:], x, sigma2)
	}
	for i, w := range b.weights {
		b.roots[i] = sqrt32(w)
	}
}

// split parts signs from magnitudes. Where the number of signs must be even, the element
// that counts least takes the wrong sign if need be, and its magnitude is below zero.
func (b *gridBlock) split(x []float32) {
	for k := range b.signs {
		var signs uint8
		odd := false
		for i, v := range x[8*k:][:8] {
			if !(v >= 0) {
				v = -v
				signs |= 1 << i
				odd = !odd
			}
			b.magnitudes[8*k+i] = v
		}
		if b.search.evenSigns && odd {
			least := leastCount(x[8*k:][:8], b.weights[8*k:][:8])
			b.magnitudes[8*k+least] = -b.magnitudes[8*k+least]
			signs ^= 1 << least
		}
		b.signs[k] = signs
	}
}

// leastCount returns the index of the first element with the least w*x².
func leastCount(x, w []float32) (at int) {
	least := float32(float32(w[0]*x[0]) * x[0])
	for i, v := range x {
		if e := float32(float32(w[i]*v) * v); e < least {
			least, at = e, i
		}
	}
	return at
}

// encodeGroup finds scale, tuples and signs of a group of n numbers. One that counts as
// zero has none.
func (b *gridBlock) encodeGroup(g, n int) (scale float32, ok bool) {
	at := g * n
	f := gridFit{
		book: b.book, x: b.magnitudes[at:][:n], w: b.weights[at:][:n], roots: b.roots[at:][:n], levels: b.levels[at:][:n], ok: true,
	}
	signs := b.signs[at/8:][:n/8]
	b.zero[g] = !f.find(b.search)
	if b.zero[g] {
		clear(signs)
		return 0, true
	}
	if f.scale < 0 {
		f.scale = -f.scale
		for k := range signs {
			signs[k] = ^signs[k]
		}
	}
	width := b.book.width
	indices := b.indices[at/width:][:n/width]
	for k := range indices {
		indices[k] = b.book.index(f.levels[k*width:][:width])
	}
	return f.scale, f.ok && f.scale >= 0
}

// gridFit is the search of one group, whose magnitudes are x.
type gridFit struct {
	book        *codebook
	x, w, roots []float32

	scale  float32
	levels []uint8
	ok     bool // no tuple was infinitely far from the grid
}

// find searches the group, and returns false if it counts as zero.
func (f *gridFit) find(search *gridSearch) bool {
	extent := f.x[0]
	for _, v := range f.x {
		extent = max(extent, v)
	}
	if extent < search.negligible || extent == 0 {
		return false
	}
	most := int32(f.book.radix - 1)
	f.scale = extent / float32(2*most+1)
	all := uint8(1<<(len(f.x)/f.book.width) - 1)
	var outside uint8
	if search.whole {
		outside = all
	}
	if search.fit {
		f.scale = fitPositive(f.levels, f.x, f.w, most+2)
		extent = f.scale * float32(most+1)
		if extent != extent { // the sums overflowed
			clear(f.levels)
			f.ok = false
			return true
		}
		if extent <= 0 {
			return false
		}
	} else {
		clear(f.levels)
	}
	f.tryAll(search.spans, extent, &outside)
	if search.fit || search.whole && outside != 0 {
		outside = all
	}
	if outside != 0 && f.scale > 0 {
		f.choose(f.levels, 1/f.scale, f.scale, outside)
		if xl, ll := f.sums(f.levels); ll > 0 {
			f.scale = xl / ll
		}
	}
	return true
}

// tryAll keeps the best scale and levels of the candidates, and which tuples of those were
// outside the grid at first.
//
//	maximise (sum w x q)² / sum w q²,  s = (sum w x q) / (sum w q²)
func (f *gridFit) tryAll(spans []float32, extent float32, outside *uint8) {
	var best float32
	var room [32]uint8
	tried := room[:len(f.x)]
	for _, span := range spans {
		inverse := span / extent
		moved := f.choose(tried, inverse, 1/inverse, 0xff)
		xl, ll := f.sums(tried)
		if ll > 0 && float32(xl*xl) > float32(best*ll) {
			f.scale = xl / ll
			best = f.scale * xl
			copy(f.levels, tried)
			*outside = moved
		}
	}
}

// choose sets the levels of the tuples in a set to those nearest to x at a scale, in the
// grid, and returns the set of those that were outside at first.
func (f *gridFit) choose(levels []uint8, inverse, scale float32, set uint8) (outside uint8) {
	var scaled [8]float32
	for i, v := range gridValues[:f.book.radix] {
		scaled[i] = float32(scale * v)
	}
	width, most := f.book.width, int32(f.book.radix-1)
	for k := range len(f.x) / width {
		if set>>k&1 == 0 {
			continue
		}
		x, tuple := f.x[k*width:][:width], levels[k*width:][:width]
		for i, v := range x {
			tuple[i] = gridLevel(float32(inverse*v), most)
		}
		inGrid, ok := f.book.snap(tuple, x, f.roots[k*width:][:width], &scaled)
		if !inGrid {
			outside |= 1 << k
		}
		f.ok = f.ok && ok
	}
	return outside
}

// sums returns sum w x q and sum w q², where q is what a level stands for.
func (f *gridFit) sums(levels []uint8) (xq, qq float32) {
	w, levels := f.w[:len(f.x)], levels[:len(f.x)]
	for i, v := range f.x {
		q := gridValues[levels[i]&7]
		xq += float32(float32(w[i]*v) * q)
		qq += float32(float32(w[i]*q) * q)
	}
	return xq, qq
}
