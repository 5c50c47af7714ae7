// Command plain generates the encoding of blocks of 32 numbers by one scale, as ggml
// rounds them when columns have no weights.
package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"

	"github.com/loratool/loratool/internal/kernel/_gen/vec"
)

const (
	// predicates of VCMPPS and VCMPSS
	equal    = 0
	lessThan = 1

	nearest   = 0 // makes VCVTPS2PH round to nearest even, whatever MXCSR says
	sign      = 0x8000_0000
	infinity  = 0x7f80_0000
	one       = 0x3f80_0000
	largestQ8 = 0x42fe_0000 // 127
	// belowHalf is the number before 0.5. Its sum with a magnitude below 2^23, cut to an
	// integer, is the nearest integer, upward from halfway: 0.5 itself would bring its
	// neighbour below up to 1 as well.
	belowHalf = 0x3eff_ffff
	eighth    = 0xbe00_0000 // -1/8
	q4Middle  = 0x4108_0000 // 8.5
)

func main() {
	vec.Header()
	order := places()
	encodeQ8(order)
	encodeQ4(order)
	Generate()
}

// encodeQ8 emits x/d to the nearest integer, where d is a 127th of the largest magnitude.
func encodeQ8(order Mem) {
	const block = 34
	vec.Func("encodeQ8AVX2", "(dst *byte, x *float32, blocks int)", "encodes blocks of 32 finite numbers to Q8_0.")
	dst, x, blocks := vec.Pointer("dst"), vec.Pointer("x"), vec.Pointer("blocks")
	signs, half := vec.AVX2.Const(sign), vec.AVX2.Const(belowHalf)
	unit, inf, largest := vec.AVX2.Const(one), vec.AVX2.Const(infinity), vec.AVX2.Const(largestQ8)
	vec.Loop("blocks", blocks, 1, func() {
		v, size := loadBlock(x), peak(x, signs)
		d, inverse, usable := XMM(), XMM(), XMM()
		VDIVSS(largest.AsX(), size.AsX(), d)
		putScale(dst, d)
		// A scale that is zero, or whose inverse is infinite, is zero as binary16; all
		// codes are then zero.
		VDIVSS(d, unit.AsX(), inverse)
		VCMPSS(Imm(lessThan), inf.AsX(), inverse, usable)
		VPAND(usable, inverse, inverse)
		factor := YMM()
		VBROADCASTSS(inverse, factor)
		for _, v := range v {
			away := YMM()
			VMULPS(factor, v, v)
			VANDPS(signs, v, away)
			VORPS(half, away, away)
			VADDPS(away, v, v)
			VCVTTPS2DQ(v, v)
		}
		VPACKSSDW(v[1], v[0], v[0])
		VPACKSSDW(v[3], v[2], v[2])
		VPACKSSWB(v[2], v[0], v[0])
		inOrder(v[0], order)
		VMOVDQU(v[0], Mem{Base: dst, Disp: 2})
		ADDQ(Imm(128), x)
		ADDQ(Imm(block), dst)
	})
	VZEROUPPER()
	RET()
}

// encodeQ4 emits x/d + 8 to the nearest integer, at most 15, where d is the element of the
// largest magnitude over -8, the first of several.
func encodeQ4(order Mem) {
	const block = 18
	vec.Func("encodeQ4AVX2", "(dst *byte, x *float32, blocks int)", "encodes blocks of 32 finite numbers to Q4_0.")
	dst, x, blocks := vec.Pointer("dst"), vec.Pointer("x"), vec.Pointer("blocks")
	signs, unit, inf := vec.AVX2.Const(sign), vec.AVX2.Const(one), vec.AVX2.Const(infinity)
	scale, middle, zero := vec.AVX2.Const(eighth), vec.AVX2.Const(q4Middle), YMM()
	most := vec.AVX2.Const(15)
	VXORPS(zero, zero, zero)
	vec.Loop("blocks", blocks, 1, func() {
		size := peak(x, signs)
		d, inverse, none, usable := XMM(), XMM(), XMM(), XMM()
		VMOVSS(firstOf(x, size, signs, order), d)
		VADDSS(zero.AsX(), d, d) // a block of zeros of any sign counts as +0
		VMULSS(scale.AsX(), d, d)
		putScale(dst, d)
		// With a scale of zero all codes mean zero; with an infinite inverse they are 0.
		VDIVSS(d, unit.AsX(), inverse)
		VCMPSS(Imm(equal), zero.AsX(), d, none)
		VANDNPS(inverse, none, inverse)
		VANDNPS(inverse, signs.AsX(), usable)
		VCMPSS(Imm(lessThan), inf.AsX(), usable, usable)
		factor, mask := YMM(), YMM()
		VBROADCASTSS(inverse, factor)
		VBROADCASTSS(usable, mask)
		v := loadBlock(x)
		for _, v := range v {
			VMULPS(factor, v, v)
			VADDPS(middle, v, v)
			VCVTTPS2DQ(v, v)
			VPMINSD(most, v, v)
			VPAND(mask, v, v)
		}
		for i := range 2 {
			VPSLLD(Imm(4), v[i+2], v[i+2])
			VPOR(v[i+2], v[i], v[i])
		}
		VPACKUSDW(v[1], v[0], v[0])
		VPERMQ(Imm(0b11_01_10_00), v[0], v[0])
		upper := XMM()
		VEXTRACTI128(Imm(1), v[0], upper)
		VPACKUSWB(upper, v[0].AsX(), upper)
		VMOVDQU(upper, Mem{Base: dst, Disp: 2})
		ADDQ(Imm(128), x)
		ADDQ(Imm(block), dst)
	})
	VZEROUPPER()
	RET()
}

func loadBlock(x reg.GPVirtual) [4]reg.VecVirtual {
	var v [4]reg.VecVirtual
	for i := range v {
		v[i] = YMM()
		VMOVUPS(Mem{Base: x, Disp: 32 * i}, v[i])
	}
	return v
}

// peak returns the largest magnitude of a block in every lane. Without their signs, numbers
// are ordered as their bits are.
func peak(x reg.GPVirtual, signs reg.VecVirtual) reg.VecVirtual {
	v := magnitudes(x, signs)
	VPMAXUD(v[1], v[0], v[0])
	VPMAXUD(v[3], v[2], v[2])
	VPMAXUD(v[2], v[0], v[0])
	other := YMM()
	VPERMQ(Imm(0b01_00_11_10), v[0], other)
	VPMAXUD(other, v[0], v[0])
	for _, order := range []uint64{0b01_00_11_10, 0b10_11_00_01} {
		VPSHUFD(Imm(order), v[0], other)
		VPMAXUD(other, v[0], v[0])
	}
	return v[0]
}

func magnitudes(x reg.GPVirtual, signs reg.VecVirtual) [4]reg.VecVirtual {
	var v [4]reg.VecVirtual
	for i := range v {
		v[i] = YMM()
		VPANDN(Mem{Base: x, Disp: 32 * i}, signs, v[i])
	}
	return v
}

// firstOf returns the place of the first number of a block of a magnitude that is there.
func firstOf(x reg.GPVirtual, size, signs reg.VecVirtual, order Mem) Mem {
	v := magnitudes(x, signs)
	for _, v := range v {
		VPCMPEQD(size, v, v)
	}
	VPACKSSDW(v[1], v[0], v[0])
	VPACKSSDW(v[3], v[2], v[2])
	VPACKSSWB(v[2], v[0], v[0])
	inOrder(v[0], order)
	bits := GP64()
	VPMOVMSKB(v[0], bits.As32())
	BSFL(bits.As32(), bits.As32())
	return Mem{Base: x, Index: bits, Scale: 4}
}

// places emits the order that brings back to a row what was packed from four vectors of
// 32-bit lanes to one of bytes.
func places() Mem {
	table := GLOBL("places", RODATA|NOPTR)
	for i, place := range []uint32{0, 4, 1, 5, 2, 6, 3, 7} {
		DATA(4*i, U32(place))
	}
	return table
}

// inOrder applies the order of places.
func inOrder(v reg.VecVirtual, places Mem) {
	order := YMM()
	VMOVDQU(places, order)
	VPERMD(v, order, v)
}

func putScale(dst reg.GPVirtual, d reg.VecVirtual) {
	half, bits := XMM(), GP32()
	VCVTPS2PH(Imm(nearest), d, half)
	VMOVD(half, bits)
	MOVW(bits.As16(), Mem{Base: dst})
}
