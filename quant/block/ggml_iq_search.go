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
	book  func() *kernel.Grid
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

// gridBlock is the state of a block while it is encoded, and then what there is to store.
type gridBlock struct {
	search *gridSearch
	book   *kernel.Grid

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
	f := gridGroup{
		search: b.search, book: b.book,
		x: b.magnitudes[at:][:n], w: b.weights[at:][:n], roots: b.roots[at:][:n], levels: b.levels[at:][:n],
	}
	signs := b.signs[at/8:][:n/8]
	b.zero[g] = !f.find()
	if b.zero[g] {
		clear(signs)
		return 0, true
	}
	if f.lost {
		return 0, false
	}
	if f.scale < 0 {
		f.scale = -f.scale
		for k := range signs {
			signs[k] = ^signs[k]
		}
	}
	width := b.book.Width()
	for k := range n / width {
		b.indices[at/width+k] = uint16(b.book.Index(b.book.Number(f.levels[k*width:][:width])))
	}
	return f.scale, f.scale >= 0
}

// gridGroup is the search of one group, whose magnitudes are x.
type gridGroup struct {
	search      *gridSearch
	book        *kernel.Grid
	x, w, roots []float32

	scale  float32
	levels []uint8
	lost   bool // what is infinite or no number got in the way
}

// find searches the group, and returns false if it counts as zero.
func (f *gridGroup) find() bool {
	extent := f.x[0]
	for _, v := range f.x {
		extent = max(extent, v)
	}
	if extent < f.search.negligible || extent == 0 {
		return false
	}
	most := f.book.Radix() - 1
	f.scale = extent / float32(2*most+1)
	if f.search.fit {
		f.scale = fitPositive(f.levels, f.x, f.w, int32(most+2))
		extent = f.scale * float32(most+1)
		if extent <= 0 {
			return false
		}
	}
	clear(f.levels)
	fit := kernel.FitGrid(f.levels, f.x, f.w, f.roots, f.book, f.search.spans, extent)
	f.lost = fit.Lost
	if fit.Found {
		f.scale = fit.Scale
	}
	f.again(fit)
	return true
}

// again chooses tuples for the scale that was found, and then the scale.
func (f *gridGroup) again(fit kernel.GridFit) {
	all := uint8(1<<(len(f.x)/f.book.Width()) - 1)
	set := fit.Outside
	if f.search.fit || f.search.whole && (set != 0 || !fit.Found) {
		set = all
	}
	if set == 0 || !(f.scale > 0) {
		return
	}
	xq, qq, lost := kernel.Regrid(f.levels, f.x, f.w, f.roots, f.book, f.scale, set)
	f.lost = f.lost || lost
	if qq > 0 {
		f.scale = xq / qq
	}
}
