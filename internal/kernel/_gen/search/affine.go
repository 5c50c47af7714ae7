package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"

	"github.com/loratool/loratool/internal/kernel/_gen/vec"
)

// The rows of the state of affine.
const (
	affineScale = iota
	affineLow
	affineTriedLow // what the codes come from
	affineTriedInverse
	affineLeast
	affineHigh
	affineSumW
	affineSumX
)

func square(v reg.VecVirtual) { VMULPS(v, v, v) }

// affine emits fitAffine. Where all numbers of a group are alike, the inverse of the
// scale is infinite, the scale 0, every code 0 and no determinant positive, so that
// nothing is left to decide.
func affine(name, errors string, measure func(v reg.VecVirtual)) {
	vec.Func(name, "(fit *[8][8]float32, room *[96][8]float32, x, w *float32, blocks int, spans *float32, count int, most int32)",
		"searches scale and minimum of eight groups of 8*blocks numbers by the sum of the %s of their errors. Rows of fit are scale, minimum, and minimum and inverse of the scale that give the codes.", errors)
	fit, spans, count := vec.Pointer("fit"), vec.Pointer("spans"), vec.Pointer("count")
	g := groups{vec.Pointer("room"), vec.Pointer("blocks")}
	columns(g.room, g.blocks, vec.Pointer("x"), vec.Pointer("w"))
	affineExtent(fit, g)
	none := zero()
	r := newRounding(none, broadcast("most"))
	code := func(v, low, inverse reg.VecVirtual) {
		VSUBPS(low, v, v)
		VMULPS(inverse, v, v)
		r.round(v)
		VCVTDQ2PS(v, v)
	}
	// over sets inverse, the steps that the codes span the group with, over its extent.
	over := func(inverse, low reg.VecVirtual) {
		extent := load(row(fit, affineHigh))
		VSUBPS(low, extent, extent)
		VDIVPS(extent, inverse, inverse)
	}
	distance := func(label string, scale, low reg.VecVirtual) reg.VecVirtual {
		sum := zero()
		g.each(label, func(x, weight, codes Mem) {
			diff := load(codes)
			VMULPS(scale, diff, diff)
			VADDPS(low, diff, diff)
			VSUBPS(x, diff, diff)
			measure(diff)
			VMULPS(weight, diff, diff)
			VADDPS(diff, sum, sum)
		})
		return sum
	}

	// The first candidate maps the extent to 0..most.
	low, inverse, scale := load(row(fit, affineLow)), YMM(), float(1)
	VCVTDQ2PS(r.most, inverse)
	over(inverse, low)
	VDIVPS(inverse, scale, scale)
	g.each("first", func(x, _, codes Mem) {
		v := load(x)
		code(v, low, inverse)
		VMOVUPS(v, codes)
	})
	least := distance("firstError", scale, low)
	VMOVUPS(scale, row(fit, affineScale))
	VMOVUPS(low, row(fit, affineTriedLow))
	VMOVUPS(inverse, row(fit, affineTriedInverse))
	VMOVUPS(least, row(fit, affineLeast))

	vec.Loop("candidates", count, 1, func() {
		low, inverse := load(row(fit, affineLow)), YMM()
		VBROADCASTSS(Mem{Base: spans}, inverse)
		ADDQ(Imm(4), spans)
		over(inverse, low)
		sumL, sumLL, sumXL := zero(), zero(), zero()
		g.each("sums", func(x, weight, codes Mem) {
			v, l, wl := load(x), YMM(), YMM()
			VMOVAPS(v, l)
			code(l, low, inverse)
			VMOVUPS(l, codes)
			VMULPS(weight, l, wl)
			VADDPS(wl, sumL, sumL)
			VMULPS(wl, l, l)
			VADDPS(l, sumLL, sumLL)
			VMULPS(wl, v, v)
			VADDPS(v, sumXL, sumXL)
		})
		newScale, newLow, solved := affineSolve(fit, sumL, sumLL, sumXL, none)
		e := distance("error", newScale, newLow)
		better := YMM()
		VCMPPS(Imm(less), row(fit, affineLeast), e, better)
		VANDPS(solved, better, better)
		for i, v := range []reg.VecVirtual{newScale, newLow, low, inverse, e} {
			replace(better, v, row(fit, i))
		}
	})
	end()
}

// affineExtent emits the sums and bounds that all candidates share.
func affineExtent(fit reg.GPVirtual, g groups) {
	low, high := load(row(g.room, 0)), load(row(g.room, 0))
	sumW, sumX := w.Const(1<<31), w.Const(1<<31) // -0, as -0 + x is x even if that is -0
	g.each("extent", func(x, weight, _ Mem) {
		v, wx := load(x), load(weight)
		VMINPS(low, v, low)
		VMAXPS(high, v, high)
		VADDPS(wx, sumW, sumW)
		VMULPS(v, wx, wx)
		VADDPS(wx, sumX, sumX)
	})
	VMINPS(low, zero(), low)
	VMOVUPS(low, row(fit, affineLow))
	VMOVUPS(high, row(fit, affineHigh))
	VMOVUPS(sumW, row(fit, affineSumW))
	VMOVUPS(sumX, row(fit, affineSumX))
}

// affineSolve emits the least squares of a candidate; solved masks the groups with a
// positive determinant.
func affineSolve(fit reg.GPVirtual, sumL, sumLL, sumXL, none reg.VecVirtual) (scale, low, solved reg.VecVirtual) {
	sumW, sumX := load(row(fit, affineSumW)), load(row(fit, affineSumX))
	determinant, t, positive := YMM(), YMM(), YMM()
	scale, low, solved = YMM(), YMM(), YMM()
	VMULPS(sumLL, sumW, determinant)
	VMULPS(sumL, sumL, t)
	VSUBPS(t, determinant, determinant)
	VCMPPS(Imm(greater), none, determinant, solved)
	VMULPS(sumXL, sumW, scale)
	VMULPS(sumL, sumX, t)
	VSUBPS(t, scale, scale)
	VDIVPS(determinant, scale, scale)
	VMULPS(sumX, sumLL, low)
	VMULPS(sumXL, sumL, t)
	VSUBPS(t, low, low)
	VDIVPS(determinant, low, low)
	VCMPPS(Imm(greater), none, low, positive)
	VDIVPS(sumLL, sumXL, t)
	VBLENDVPS(positive, t, scale, scale)
	VANDNPS(low, positive, low)
	return scale, low, solved
}
