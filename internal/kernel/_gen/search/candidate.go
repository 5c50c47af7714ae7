package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// The rows of the state of the searches for a scale alone.
const (
	bestScale   = iota
	bestInverse // of the scale that gives the codes
	bestMeasure
	peakSize
	peakElement
)

// peak stores the largest magnitudes of groups, and the numbers that have them first.
func peak(fit reg.GPVirtual, g groups) {
	size, element := zero(), zero()
	g.each("peak", func(x, _, _ Mem) {
		v, magnitude, larger := load(x), YMM(), YMM()
		VMOVAPS(v, magnitude)
		drop(magnitude)
		VPCMPGTD(size, magnitude, larger)
		VPMAXSD(magnitude, size, size)
		VBLENDVPS(larger, v, element, element)
	})
	VMOVUPS(size, row(fit, peakSize))
	VMOVUPS(element, row(fit, peakElement))
}

// candidate is an inverse of the scale, and for l, the codes or what they stand for,
// sum w x l and sum w l².
type candidate struct{ inverse, products, squares reg.VecVirtual }

// newCandidate returns the candidate whose inverse is a numerator over the number of
// the largest magnitude.
func newCandidate(fit, numerators reg.GPVirtual, index int) candidate {
	c := candidate{YMM(), zero(), zero()}
	VBROADCASTSS(Mem{Base: numerators, Disp: 4 * index}, c.inverse)
	VDIVPS(row(fit, peakElement), c.inverse, c.inverse)
	return c
}

// take makes a candidate the best there is, of scale 0 where the sum of squares is not
// what the predicate wants it to be to zero.
func (c candidate) take(fit reg.GPVirtual, predicate uint64) {
	scale, some := YMM(), YMM()
	VCMPPS(Imm(predicate), zero(), c.squares, some)
	VDIVPS(c.squares, c.products, scale)
	VANDPS(some, scale, scale)
	VMOVUPS(scale, row(fit, bestScale))
	VMULPS(c.products, scale, scale)
	VMOVUPS(scale, row(fit, bestMeasure))
	VMOVUPS(c.inverse, row(fit, bestInverse))
}

// try takes a candidate for the groups where it is better.
func (c candidate) try(fit reg.GPVirtual) {
	square, limit, better, scale := YMM(), YMM(), YMM(), YMM()
	VMULPS(c.products, c.products, square)
	VMULPS(row(fit, bestMeasure), c.squares, limit)
	VCMPPS(Imm(greater), limit, square, better)
	VCMPPS(Imm(greater), zero(), c.squares, limit)
	VANDPS(limit, better, better)
	VDIVPS(c.squares, c.products, scale)
	replace(better, scale, row(fit, bestScale))
	replace(better, c.inverse, row(fit, bestInverse))
	VMULPS(c.products, scale, scale)
	replace(better, scale, row(fit, bestMeasure))
}
