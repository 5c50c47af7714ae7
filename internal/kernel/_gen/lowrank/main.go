// Command lowrank generates the low-rank update of a panel of columns.
package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"

	"github.com/loratool/loratool/internal/kernel/_gen/vec"
)

func main() {
	vec.Header()
	panel(vec.AVX512, 4)
	panel(vec.AVX2, 2)
	Generate()
}

// panel emits X = W + scale·(L·R) for nv vectors of columns and any number of
// rows, four at a time. The sums stay in registers; a product is rounded before
// it is added, so there is no fused multiply-add here.
func panel(w vec.Width, nv int) {
	vec.Func("lowRank"+w.Name, "(x *float32, ldx int, w *float32, ldw int, l *float32, r *float32, ldr int, rank int, scale float32, rows int)",
		"computes x = w + scale·l·r for %d columns. The columns of l are next to each other; from row to row, l has rank numbers.", nv*w.Floats())
	x, ldx := vec.Pointer("x"), vec.Pointer("ldx")
	base, ldw := vec.Pointer("w"), vec.Pointer("ldw")
	l := vec.Pointer("l")
	ldr, rank := vec.Pointer("ldr"), vec.Pointer("rank")
	scale := w.New()
	scaleAddr, _ := Param("scale").Resolve()
	VBROADCASTSS(scaleAddr.Addr, scale)
	nan := w.Const(vec.NaN)
	rows := vec.Pointer("rows")
	for _, stride := range []reg.GPVirtual{ldx, ldw, ldr} {
		SHLQ(Imm(2), stride)
	}
	ldl, ldl3 := GP64(), GP64()
	MOVQ(rank, ldl)
	SHLQ(Imm(2), ldl)
	LEAQ(Mem{Base: ldl, Index: ldl, Scale: 2}, ldl3)

	block := func(name string, count int) {
		vec.Loop(name, rows, count, func() {
			sums := make([]reg.VecVirtual, count*nv)
			for i := range sums {
				sums[i] = w.New()
				w.Zero(sums[i])
			}
			r, k := vec.Pointer("r"), GP64()
			MOVQ(rank, k)
			vec.Loop(name+"_k", k, 1, func() {
				row := make([]reg.VecVirtual, nv)
				for v := range row {
					row[v] = w.New()
					VMOVUPS(Mem{Base: r, Disp: v * w.Bytes}, row[v])
				}
				for i := range count {
					factor := w.New()
					VBROADCASTSS([]Mem{{Base: l}, {Base: l, Index: ldl, Scale: 1}, {Base: l, Index: ldl, Scale: 2}, {Base: l, Index: ldl3, Scale: 1}}[i], factor)
					for v := range row {
						product := w.New()
						VMULPS(factor, row[v], product)
						VADDPS(product, sums[i*nv+v], sums[i*nv+v])
					}
				}
				ADDQ(ldr, r)
				ADDQ(Imm(4), l)
			})
			// l stands at the second row of the block now.
			if count == 4 {
				ADDQ(ldl3, l)
			}
			for i := range count {
				for v := range nv {
					sum := sums[i*nv+v]
					VMULPS(scale, sum, sum)
					VADDPS(Mem{Base: base, Disp: v * w.Bytes}, sum, sum)
					w.OneNaN(sum, nan)
					VMOVUPS(sum, Mem{Base: x, Disp: v * w.Bytes})
				}
				ADDQ(ldx, x)
				ADDQ(ldw, base)
			}
		})
	}
	block("four", 4)
	block("one", 1)
	VZEROUPPER()
	RET()
}
