// Command matvec generates the product of a matrix of 16-bit numbers and a vector,
// with sums in float32 or in the type of the matrix.
package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"

	"github.com/loratool/loratool/internal/kernel/_gen/vec"
)

// nearest makes VCVTPS2PH round to nearest even, whatever MXCSR says.
const nearest = 0

func main() {
	vec.Header()
	rows("matVecBF16", loadBF16, func() func(v reg.VecVirtual) { return func(reg.VecVirtual) {} })
	rows("matVecF16", loadF16, func() func(v reg.VecVirtual) { return func(reg.VecVirtual) {} })
	rows("matVecInBF16", loadBF16, roundBF16)
	rows("matVecInF16", loadF16, roundF16)
	Generate()
}

// together is the number of rows whose sums are in work at once: one sum alone would
// wait for itself.
const together = 4

// rows emits the sums of four rows. setup makes constants and returns what rounds
// a vector after every operation; a NaN may come out with any bits.
func rows(name string, load func(from Mem, to reg.VecVirtual), setup func() func(v reg.VecVirtual)) {
	vec.Func(name+"AVX2", "(sums *[4][8]float32, w *byte, pitch int, x *float32, blocks int)",
		"adds the products of 8*blocks columns to eight sums in turn, for four rows of w, pitch bytes apart.")
	at, w, pitch := vec.Pointer("sums"), vec.Pointer("w"), vec.Pointer("pitch")
	x, blocks := vec.Pointer("x"), vec.Pointer("blocks")
	pitch3 := GP64()
	LEAQ(Mem{Base: pitch, Index: pitch, Scale: 2}, pitch3)
	round := setup()
	var sums [together]reg.VecVirtual
	for i := range sums {
		sums[i] = YMM()
		VMOVUPS(Mem{Base: at, Disp: 32 * i}, sums[i])
	}
	vec.Loop("blocks", blocks, 1, func() {
		factor := YMM()
		VMOVUPS(Mem{Base: x}, factor)
		for i, row := range []Mem{{Base: w}, {Base: w, Index: pitch, Scale: 1}, {Base: w, Index: pitch, Scale: 2}, {Base: w, Index: pitch3, Scale: 1}} {
			product := YMM()
			load(row, product)
			VMULPS(factor, product, product)
			round(product)
			VADDPS(product, sums[i], sums[i])
			round(sums[i])
		}
		ADDQ(Imm(32), x)
		ADDQ(Imm(16), w)
	})
	for i, sum := range sums {
		VMOVUPS(sum, Mem{Base: at, Disp: 32 * i})
	}
	VZEROUPPER()
	RET()
}

func loadBF16(from Mem, to reg.VecVirtual) {
	VPMOVZXWD(from, to)
	VPSLLD(Imm(16), to, to)
}

func loadF16(from Mem, to reg.VecVirtual) { VCVTPH2PS(from, to) }

// roundBF16 adds just under half of the last kept bit, and one more where that bit is
// odd. A NaN of many bits would become a zero by that.
func roundBF16() func(v reg.VecVirtual) {
	one, half, top, nan := vec.AVX2.Const(1), vec.AVX2.Const(0x7fff), vec.AVX2.Const(0xffff_0000), vec.AVX2.Const(vec.NaN)
	return func(v reg.VecVirtual) {
		odd := YMM()
		vec.AVX2.OneNaN(v, nan)
		VPSRLD(Imm(16), v, odd)
		VPAND(one, odd, odd)
		VPADDD(half, v, v)
		VPADDD(odd, v, v)
		VPAND(top, v, v)
	}
}

func roundF16() func(v reg.VecVirtual) {
	return func(v reg.VecVirtual) {
		half := XMM()
		VCVTPS2PH(Imm(nearest), v, half)
		VCVTPH2PS(half, v)
	}
}
