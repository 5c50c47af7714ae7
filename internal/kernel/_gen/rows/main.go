// Command rows generates what is done to rows of numbers one by one: scaling,
// sums of squares, the sums of a report, searches. Memory bounds them with AVX2
// already, so there are no others.
package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"

	"github.com/loratool/loratool/internal/kernel/_gen/vec"
)

func main() {
	vec.Header()
	scale()
	multiply()
	rowSquares()
	colSquares()
	stats()
	maxAbs()
	finite("Finite8", VPCMPEQB)
	finite("Finite16", VPCMPEQW)
	finite("Finite32", VPCMPEQD)
	Generate()
}

// end returns from a function.
func end() {
	VZEROUPPER()
	RET()
}

func scale() {
	vec.Func("scaleAVX2", "(x *float32, factor float32, blocks int)", "multiplies 8*blocks numbers by factor.")
	x, blocks, factor, nan := vec.Pointer("x"), vec.Pointer("blocks"), YMM(), vec.AVX2.Const(vec.NaN)
	addr, _ := Param("factor").Resolve()
	VBROADCASTSS(addr.Addr, factor)
	vec.Loop("blocks", blocks, 1, func() {
		v := YMM()
		VMULPS(Mem{Base: x}, factor, v)
		vec.AVX2.OneNaN(v, nan)
		VMOVUPS(v, Mem{Base: x})
		ADDQ(Imm(32), x)
	})
	end()
}

func multiply() {
	vec.Func("multiplyAVX2", "(x, s *float32, blocks int)", "multiplies 8*blocks numbers by those of s.")
	x, s, blocks, nan := vec.Pointer("x"), vec.Pointer("s"), vec.Pointer("blocks"), vec.AVX2.Const(vec.NaN)
	vec.Loop("blocks", blocks, 1, func() {
		v := YMM()
		VMOVUPS(Mem{Base: x}, v)
		VMULPS(Mem{Base: s}, v, v)
		vec.AVX2.OneNaN(v, nan)
		VMOVUPS(v, Mem{Base: x})
		ADDQ(Imm(32), x)
		ADDQ(Imm(32), s)
	})
	end()
}

// load loads the eight lanes of a sum as two vectors.
func load(at reg.GPVirtual, index int) [2]reg.VecVirtual {
	sums := [2]reg.VecVirtual{YMM(), YMM()}
	for half, sum := range sums {
		VMOVUPD(Mem{Base: at, Disp: 64*index + 32*half}, sum)
	}
	return sums
}

func save(at reg.GPVirtual, index int, sums [2]reg.VecVirtual) {
	for half, sum := range sums {
		VMOVUPD(sum, Mem{Base: at, Disp: 64*index + 32*half})
	}
}

func rowSquares() {
	vec.Func("rowSquaresAVX2", "(sums *[8]float64, x *float32, blocks int)", "adds the squares of 8*blocks numbers to eight sums in turn.")
	at, x, blocks := vec.Pointer("sums"), vec.Pointer("x"), vec.Pointer("blocks")
	sums := load(at, 0)
	vec.Loop("blocks", blocks, 1, func() {
		for half, sum := range sums {
			v := YMM()
			VCVTPS2PD(Mem{Base: x, Disp: 16 * half}, v)
			VFMADD231PD(v, v, sum) // the square is exact
		}
		ADDQ(Imm(32), x)
	})
	save(at, 0, sums)
	end()
}

func colSquares() {
	const nan64 = 0x7ff8_0000
	vec.Func("colSquaresAVX2", "(sums *float64, x *float32, ldx int, blocks int)", "adds the squares of four rows of 8*blocks numbers to sums.")
	sums, x, ldx, blocks := vec.Pointer("sums"), vec.Pointer("x"), vec.Pointer("ldx"), vec.Pointer("blocks")
	SHLQ(Imm(2), ldx)
	ldx3 := GP64()
	LEAQ(Mem{Base: ldx, Index: ldx, Scale: 2}, ldx3)
	nan := vec.AVX2.Const(nan64)
	VPSLLQ(Imm(32), nan, nan)
	vec.Loop("blocks", blocks, 1, func() {
		for half := range 2 {
			sum, is := YMM(), YMM()
			VMOVUPD(Mem{Base: sums, Disp: 32 * half}, sum)
			for _, row := range []Mem{{Base: x}, {Base: x, Index: ldx, Scale: 1}, {Base: x, Index: ldx, Scale: 2}, {Base: x, Index: ldx3, Scale: 1}} {
				row.Disp = 16 * half
				v := YMM()
				VCVTPS2PD(row, v)
				VMULPD(v, v, v)
				VADDPD(v, sum, sum)
			}
			VCMPPD(Imm(vec.Unordered), sum, sum, is)
			VBLENDVPD(is, nan, sum, sum)
			VMOVUPD(sum, Mem{Base: sums, Disp: 32 * half})
		}
		ADDQ(Imm(32), x)
		ADDQ(Imm(64), sums)
	})
	end()
}

// stats emits the sums of RowStats, for columns that are all finite.
func stats() {
	vec.Func("statsAVX2", "(sums *[4][8]float64, w, x, y *float32, blocks int)", "adds 8*blocks columns to eight lanes of the four sums of RowStats in turn.")
	at, blocks := vec.Pointer("sums"), vec.Pointer("blocks")
	w, x, y := vec.Pointer("w"), vec.Pointer("x"), vec.Pointer("y")
	var sums [4][2]reg.VecVirtual
	for i := range sums {
		sums[i] = load(at, i)
	}
	vec.Loop("blocks", blocks, 1, func() {
		for half := range 2 {
			base, exact, stored, kept := YMM(), YMM(), YMM(), YMM()
			VCVTPS2PD(Mem{Base: w, Disp: 16 * half}, base)
			VCVTPS2PD(Mem{Base: x, Disp: 16 * half}, exact)
			VCVTPS2PD(Mem{Base: y, Disp: 16 * half}, stored)
			// The square of a float32 is exact in float64, so this sum may be fused.
			VFMADD231PD(base, base, sums[0][half])
			VSUBPD(base, stored, kept)
			VSUBPD(exact, stored, stored)
			VSUBPD(base, exact, exact)
			VMULPD(exact, kept, kept)
			VADDPD(kept, sums[3][half], sums[3][half])
			VMULPD(exact, exact, exact)
			VADDPD(exact, sums[1][half], sums[1][half])
			VMULPD(stored, stored, stored)
			VADDPD(stored, sums[2][half], sums[2][half])
		}
		for _, p := range []reg.GPVirtual{w, x, y} {
			ADDQ(Imm(32), p)
		}
	})
	for i := range sums {
		save(at, i, sums[i])
	}
	end()
}

// maxAbs emits a maximum of integers: without their signs, numbers, infinity and
// NaNs are ordered as their bits are.
func maxAbs() {
	vec.Func("maxAbsAVX2", "(lanes *[8]uint32, x *float32, blocks int)", "raises each lane to the largest bits without sign of every eighth of 8*blocks numbers.")
	lanes, x, blocks := vec.Pointer("lanes"), vec.Pointer("x"), vec.Pointer("blocks")
	number, largest := vec.AVX2.Const(1<<31-1), YMM()
	VMOVDQU(Mem{Base: lanes}, largest)
	vec.Loop("blocks", blocks, 1, func() {
		v := YMM()
		VPAND(Mem{Base: x}, number, v)
		VPMAXUD(v, largest, largest)
		ADDQ(Imm(32), x)
	})
	VMOVDQU(largest, Mem{Base: lanes})
	end()
}

// finite emits the search for an element with all bits of its exponent set.
func finite(name string, equal func(...Op)) {
	vec.Func(fmt.Sprintf("skip%sAVX2", name), "(src *byte, ones uint32, blocks int) (skipped int)",
		"returns how many leading blocks of 128 bytes have no element with all of ones set.")
	src, blocks, skipped := vec.Pointer("src"), vec.Pointer("blocks"), GP64()
	ones, low := YMM(), XMM()
	VMOVD(Load(Param("ones"), GP32()), low)
	VPBROADCASTD(low, ones)
	XORQ(skipped, skipped)
	vec.Loop("blocks", blocks, 1, func() {
		var any reg.VecVirtual
		for i := range 4 {
			v := YMM()
			VPAND(Mem{Base: src, Disp: 32 * i}, ones, v)
			equal(ones, v, v)
			if i == 0 {
				any = v
				continue
			}
			VPOR(v, any, any)
		}
		VPTEST(any, any)
		JNZ(LabelRef("found"))
		ADDQ(U32(128), src)
		ADDQ(Imm(1), skipped)
	})
	Label("found")
	Store(skipped, ReturnIndex(0))
	end()
}
