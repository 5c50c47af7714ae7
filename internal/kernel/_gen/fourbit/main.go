// Command fourbit generates the quantization of blocks to four bits per number and
// the way back.
package main

import (
	"math"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"

	"github.com/loratool/loratool/internal/kernel/_gen/vec"
)

// above is the predicate of VCMPPS that is false for NaNs.
const above = 0x1e

func main() {
	vec.Header()
	for i := range 8 {
		// The place of a code in its four bytes: the first one has the upper half.
		shifts[i] = uint32(i^1) * 4
	}
	encode("NF4", codesNF4)
	encode("FP4", codesFP4)
	decode()
	Generate()
}

var shifts [8]uint32

// words puts eight words into memory.
func words(name string, w [8]uint32) Mem {
	m := GLOBL("fourbit_"+name, 8|16) // RODATA|NOPTR
	for i, v := range w {
		DATA(4*i, U32(v))
	}
	return m
}

func encode(name string, codes func(x reg.VecVirtual, thresholds reg.GPVirtual, sum Mem) reg.VecVirtual) {
	vec.Func("encode"+name+"AVX2", "(dst *byte, absmax *float32, src *float32, thresholds *float32, groups int, blocks int)",
		"encodes blocks of 8*groups numbers each and stores the largest magnitude of each.")
	shift := words("shifts"+name, shifts)
	order := words("order"+name, [8]uint32{0, 1, 6, 7, 4, 5, 2, 3})
	dst, absmax, src, thresholds, blocks := vec.Pointer("dst"), vec.Pointer("absmax"), vec.Pointer("src"), vec.Pointer("thresholds"), vec.Pointer("blocks")
	number, one := vec.AVX2.Const(1<<31-1), vec.AVX2.Const(math.Float32bits(1))
	vec.Loop("blocks", blocks, 1, func() {
		largest, left, at := YMM(), vec.Pointer("groups"), GP64()
		vec.AVX2.Zero(largest)
		MOVQ(src, at)
		vec.Loop("largest", left, 1, func() {
			v := YMM()
			VANDPS(Mem{Base: at}, number, v)
			VMAXPS(largest, v, largest) // in this order a NaN counts for nothing
			ADDQ(Imm(32), at)
		})
		for _, fold := range []func(from reg.VecVirtual, to reg.VecVirtual){
			func(from, to reg.VecVirtual) { VPERM2F128(Imm(1), from, from, to) },
			func(from, to reg.VecVirtual) { VPERMILPS(Imm(0x4e), from, to) },
			func(from, to reg.VecVirtual) { VPERMILPS(Imm(0xb1), from, to) },
		} {
			other := YMM()
			fold(largest, other)
			VMAXPS(other, largest, largest)
		}
		VMOVSS(largest.AsX(), Mem{Base: absmax})
		ADDQ(Imm(4), absmax)
		inverse := YMM()
		VDIVPS(largest, one, inverse)
		left = vec.Pointer("groups")
		vec.Loop("codes", left, 1, func() {
			x := YMM()
			VMULPS(Mem{Base: src}, inverse, x)
			c := codes(x, thresholds, order)
			VPSLLVD(shift, c, c)
			upper, g := XMM(), GP32()
			VEXTRACTI128(Imm(1), c, upper)
			low := XMM()
			VPOR(c.AsX(), upper, low)
			VPSHUFD(Imm(0x4e), low, upper)
			VPOR(upper, low, low)
			VPSHUFD(Imm(0xb1), low, upper)
			VPOR(upper, low, low)
			VMOVD(low, g)
			MOVL(g, Mem{Base: dst})
			ADDQ(Imm(32), src)
			ADDQ(Imm(4), dst)
		})
	})
	VZEROUPPER()
	RET()
}

// codesNF4 counts the thresholds below x.
func codesNF4(x reg.VecVirtual, thresholds reg.GPVirtual, _ Mem) reg.VecVirtual {
	return count(x, thresholds, 15)
}

// codesFP4 counts those below the magnitude, puts the codes in the order of the
// format and adds the sign.
func codesFP4(x reg.VecVirtual, thresholds reg.GPVirtual, order Mem) reg.VecVirtual {
	magnitude, zero, negative := YMM(), YMM(), YMM()
	VPSLLD(Imm(1), x, magnitude)
	VPSRLD(Imm(1), magnitude, magnitude)
	c := count(magnitude, thresholds, 7)
	VPERMD(order, c, c)
	vec.AVX2.Zero(zero)
	VCMPPS(Imm(above), x, zero, negative)
	VPSRLD(Imm(31), negative, negative)
	VPSLLD(Imm(3), negative, negative)
	VPOR(negative, c, c)
	return c
}

func count(x reg.VecVirtual, thresholds reg.GPVirtual, n int) reg.VecVirtual {
	c := YMM()
	vec.AVX2.Zero(c)
	for i := range n {
		is := YMM()
		VCMPPS(Imm(above), Mem{Base: thresholds, Disp: 32 * i}, x, is)
		VPSUBD(is, c, c)
	}
	return c
}

func decode() {
	vec.Func("decode4AVX2", "(dst *float32, src *byte, absmax *float32, values *[16]float32, groups int, blocks int)",
		"decodes blocks of 8*groups codes each: the number of a code times absmax.")
	shift := words("shifts", shifts)
	dst, src, absmax, values, blocks := vec.Pointer("dst"), vec.Pointer("src"), vec.Pointer("absmax"), vec.Pointer("values"), vec.Pointer("blocks")
	low, high, mask, nan, shifts := YMM(), YMM(), vec.AVX2.Const(15), vec.AVX2.Const(vec.NaN), YMM()
	VMOVUPS(Mem{Base: values}, low)
	VMOVUPS(Mem{Base: values, Disp: 32}, high)
	VMOVDQU(shift, shifts)
	vec.Loop("blocks", blocks, 1, func() {
		scale, left := YMM(), vec.Pointer("groups")
		VBROADCASTSS(Mem{Base: absmax}, scale)
		ADDQ(Imm(4), absmax)
		vec.Loop("groups", left, 1, func() {
			code, v, w := YMM(), YMM(), YMM()
			VPBROADCASTD(Mem{Base: src}, code)
			VPSRLVD(shifts, code, code)
			VPAND(mask, code, code)
			VPERMPS(low, code, v)
			VPERMPS(high, code, w)
			VPSLLD(Imm(28), code, code)
			VBLENDVPS(code, w, v, v)
			VMULPS(scale, v, v)
			vec.AVX2.OneNaN(v, nan)
			VMOVUPS(v, Mem{Base: dst})
			ADDQ(Imm(4), src)
			ADDQ(Imm(32), dst)
		})
	})
	VZEROUPPER()
	RET()
}
