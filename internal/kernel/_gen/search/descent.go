package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"

	"github.com/loratool/loratool/internal/kernel/_gen/vec"
)

// descent emits fitDescent. A group without a change in one sweep has none in the next, so
// that those that are done may go on with those that are not.
func descent() {
	vec.Func("fitDescentAVX2", "(fit *[8][8]float32, room *[96][8]float32, codes *uint8, x *float32, blocks int, least, most int32)",
		"searches the scale of eight groups of 8*blocks numbers, and codes counted from least. Row 0 of fit is the scale, row 3 the largest magnitude.")
	fit, codes := vec.Pointer("fit"), vec.Pointer("codes")
	g := groups{vec.Pointer("room"), vec.Pointer("blocks")}
	columns(g.room, g.blocks, vec.Pointer("x"))
	peak(fit, g)
	d := descending{newRounding(broadcast("least"), broadcast("most")), zero(), zero()}
	d.start(fit, g)

	sweeps, lanes := GP64(), GP32()
	MOVQ(U32(5), sweeps)
	Label("sweep")
	changed := zero()
	g.each("moves", func(x, product, level Mem) { d.move(x, product, level, changed) })
	VMOVMSKPS(changed, lanes)
	TESTL(lanes, lanes)
	JEQ(LabelRef("swept"))
	DECQ(sweeps)
	JNE(LabelRef("sweep"))
	Label("swept")

	some, scale := YMM(), YMM()
	VCMPPS(Imm(greater), constant("zero", 0), d.ll, some)
	VDIVPS(d.ll, d.xl, scale)
	VANDPS(some, scale, scale)
	VMOVUPS(scale, row(fit, bestScale))
	g.storeCodes(codes, d.least)
	end()
}

// descending is sum w x l and sum w l² of the levels so far.
type descending struct {
	rounding
	xl, ll reg.VecVirtual
}

// start chooses the levels of the first candidate, and puts w x behind each number.
func (d descending) start(fit reg.GPVirtual, g groups) {
	inverse := YMM()
	VCVTDQ2PS(d.least, inverse)
	VDIVPS(row(fit, peakElement), inverse, inverse)
	g.each("start", func(x, product, level Mem) {
		v, w, wx, l := load(x), YMM(), YMM(), YMM()
		VMULPS(v, v, w)
		VMULPS(v, w, wx)
		VMOVUPS(wx, product)
		VMULPS(inverse, v, l)
		d.round(l)
		VCVTDQ2PS(l, l)
		VMOVUPS(l, level)
		VMULPS(l, wx, wx)
		VADDPS(wx, d.xl, d.xl)
		VMULPS(l, w, w)
		VMULPS(l, w, w)
		VADDPS(w, d.ll, d.ll)
	})
}

// move moves the level of one number where that helps, and adds the lanes to changed.
func (d descending) move(x, product, level Mem, changed reg.VecVirtual) {
	w, l, restXL, restLL, moved, better := load(x), load(level), YMM(), YMM(), YMM(), YMM()
	VMULPS(w, w, w)
	VMULPS(product, l, restXL)
	VSUBPS(restXL, d.xl, restXL)
	VMULPS(l, w, restLL)
	VMULPS(l, restLL, restLL)
	VSUBPS(restLL, d.ll, restLL)

	VMULPS(x, restLL, moved)
	VDIVPS(restXL, moved, moved)
	d.round(moved)
	VCVTDQ2PS(moved, moved)
	VCMPPS(Imm(greater), constant("zero", 0), restXL, better)
	other := YMM()
	VCMPPS(Imm(notEqual), l, moved, other)
	VANDPS(other, better, better)
	lanes, stays := GP32(), fmt.Sprintf("stays%d", level.Disp/32)
	VMOVMSKPS(better, lanes)
	TESTL(lanes, lanes)
	JEQ(LabelRef(stays))

	VMULPS(moved, w, w)
	VMULPS(moved, w, w)
	VADDPS(w, restLL, restLL)
	VMULPS(product, moved, w)
	VADDPS(w, restXL, restXL)
	VCMPPS(Imm(greater), constant("zero", 0), restLL, other)
	VANDPS(other, better, better)
	VMULPS(restXL, restXL, w)
	VMULPS(d.ll, w, w)
	VMULPS(d.xl, d.xl, other)
	VMULPS(restLL, other, other)
	VCMPPS(Imm(greater), other, w, w)
	VANDPS(w, better, better)

	VBLENDVPS(better, restXL, d.xl, d.xl)
	VBLENDVPS(better, restLL, d.ll, d.ll)
	VBLENDVPS(better, moved, l, l)
	VMOVUPS(l, level)
	VORPS(better, changed, changed)
	Label(stays)
}

// storeCodes stores the levels of all groups, counted from least. It writes over the numbers.
func (g groups) storeCodes(codes reg.GPVirtual, least reg.VecVirtual) {
	stride, stride3, size, levels := GP64(), GP64(), GP64(), GP64()
	MOVQ(U32(32), stride)
	MOVQ(U32(96), stride3)
	MOVQ(g.blocks, size)
	SHLQ(Imm(3), size)
	LEAQ(Mem{Base: g.room, Disp: codesOffset}, levels)
	vec.Loop("store", g.blocks, 1, func() {
		transpose(g.room, 0, levels, stride, stride3)
		to := copyOf(codes)
		for i := range 8 {
			l := YMM()
			VCVTTPS2DQ(row(g.room, 2*i), l)
			VPSUBD(least, l, l)
			store(l, Mem{Base: to})
			ADDQ(size, to)
		}
		ADDQ(Imm(8), codes)
		ADDQ(U32(8*32), levels)
	})
}
