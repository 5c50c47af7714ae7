package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"

	"github.com/loratool/loratool/internal/kernel/_gen/vec"
)

// symmetric emits fitSymmetric, two candidates at a time.
func symmetric() {
	vec.Func("fitSymmetricAVX2", "(fit *[8][8]float32, room *[96][8]float32, x, w *float32, blocks int, numerators *[20]float32, least, most int32)",
		"searches the scale of eight groups of 8*blocks numbers. Rows of fit are scale, inverse of the scale that gives the codes, the largest (sum w x l)²/(sum w l²), and the largest magnitude.")
	fit, numerators := vec.Pointer("fit"), vec.Pointer("numerators")
	g := groups{vec.Pointer("room"), vec.Pointer("blocks")}
	columns(g.room, g.blocks, vec.Pointer("x"), vec.Pointer("w"))
	peak(fit, g)
	r := newRounding(broadcast("least"), broadcast("most"))

	sums := func(label string) (a, b candidate) {
		a, b = newCandidate(fit, numerators, 0), newCandidate(fit, numerators, 1)
		g.each(label, func(x, weight, _ Mem) {
			v, wi, wx := load(x), load(weight), YMM()
			VMULPS(v, wi, wx)
			for _, c := range []candidate{a, b} {
				l, wl := YMM(), YMM()
				VMULPS(c.inverse, v, l)
				r.round(l)
				VCVTDQ2PS(l, l)
				VMULPS(l, wi, wl)
				VMULPS(l, wl, wl)
				VADDPS(wl, c.squares, c.squares)
				VMULPS(wx, l, l)
				VADDPS(l, c.products, c.products)
			}
		})
		ADDQ(Imm(8), numerators)
		return a, b
	}

	a, b := sums("first")
	a.take(fit, notEqual)
	b.try(fit)
	pairs := GP64()
	MOVQ(U32(9), pairs)
	vec.Loop("candidates", pairs, 1, func() {
		a, b := sums("sums")
		a.try(fit)
		b.try(fit)
	})
	end()
}
