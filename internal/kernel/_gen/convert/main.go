// Command convert generates the conversions between float32 and narrow types.
// They are bound by memory with AVX2 already, so there are no others.
package main

import (
	"fmt"
	"strings"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"

	"github.com/loratool/loratool/internal/kernel/_gen/vec"
)

// nearest makes VCVTPS2PH round to nearest even, whatever MXCSR says.
const nearest = 0

func main() {
	vec.Header()
	for _, put = range []func(v, to Op){ordinary, stream} {
		convert("decodeBF16", "dst *float32, src *byte", 2, 4, decodeBF16)
		convert("encodeBF16", "dst *byte, src *float32", 4, 2, encodeBF16)
		convert("decodeF16", "dst *float32, src *byte", 2, 4, decodeF16)
		convert("encodeF16", "dst *byte, src *float32", 4, 2, encodeF16)
		convert("decodeE5M2", "dst *float32, src *byte", 1, 4, decodeE5M2)
		convert("decodeE4M3", "dst *float32, src *byte", 1, 4, decodeE4M3)
		prefix, remark = "stream", " The stores go past the caches; dst is a multiple of 32."
	}
	Generate()
}

// put stores a vector; prefix and remark say how.
var (
	put            func(v, to Op)
	prefix, remark string
)

func ordinary(v, to Op) { VMOVUPS(v, to) }

func stream(v, to Op) { VMOVNTPS(v, to) }

// convert emits a loop over blocks of 16 elements. A body gets what setup
// returns.
func convert(name, params string, srcSize, dstSize int, setup func() func(dst, src reg.GPVirtual)) {
	if prefix != "" {
		name = prefix + strings.ToUpper(name[:1]) + name[1:]
	}
	vec.Func(name+"AVX2", fmt.Sprintf("(%s, blocks int)", params), "converts 16*blocks elements.%s", remark)
	dst, src, blocks := vec.Pointer("dst"), vec.Pointer("src"), vec.Pointer("blocks")
	body := setup()
	vec.Loop("blocks", blocks, 1, func() {
		body(dst, src)
		ADDQ(U32(16*srcSize), src)
		ADDQ(U32(16*dstSize), dst)
	})
	if prefix != "" {
		SFENCE()
	}
	VZEROUPPER()
	RET()
}

func decodeBF16() func(dst, src reg.GPVirtual) {
	quiet := vec.AVX2.Const(1 << 22)
	return func(dst, src reg.GPVirtual) {
		for i := range 2 {
			x, nan := YMM(), YMM()
			VPMOVZXWD(Mem{Base: src, Disp: 16 * i}, x)
			VPSLLD(Imm(16), x, x)
			VCMPPS(Imm(vec.Unordered), x, x, nan)
			VPAND(quiet, nan, nan)
			VPOR(nan, x, x)
			put(x, Mem{Base: dst, Disp: 32 * i})
		}
	}
}

func encodeBF16() func(dst, src reg.GPVirtual) {
	one, half, quiet := vec.AVX2.Const(1), vec.AVX2.Const(0x7fff), vec.AVX2.Const(1<<6)
	return func(dst, src reg.GPVirtual) {
		var out [2]reg.VecVirtual
		for i := range out {
			x, upper, odd, nan := YMM(), YMM(), YMM(), YMM()
			VMOVUPS(Mem{Base: src, Disp: 32 * i}, x)
			VPSRLD(Imm(16), x, upper)
			VPAND(one, upper, odd)
			VCMPPS(Imm(vec.Unordered), x, x, nan)
			VPADDD(half, x, x)
			VPADDD(odd, x, x)
			VPSRLD(Imm(16), x, x)
			VPOR(quiet, upper, upper)
			out[i] = YMM()
			VBLENDVPS(nan, upper, x, out[i])
		}
		VPACKUSDW(out[1], out[0], out[0])
		VPERMQ(Imm(0xd8), out[0], out[0])
		put(out[0], Mem{Base: dst})
	}
}

func decodeF16() func(dst, src reg.GPVirtual) {
	return func(dst, src reg.GPVirtual) {
		for i := range 2 {
			x := YMM()
			VCVTPH2PS(Mem{Base: src, Disp: 16 * i}, x)
			put(x, Mem{Base: dst, Disp: 32 * i})
		}
	}
}

func encodeF16() func(dst, src reg.GPVirtual) {
	return func(dst, src reg.GPVirtual) {
		for i := range 2 {
			x := YMM()
			VMOVUPS(Mem{Base: src, Disp: 32 * i}, x)
			half := XMM()
			VCVTPS2PH(Imm(nearest), x, half)
			put(half, Mem{Base: dst, Disp: 16 * i})
		}
	}
}

// decodeE5M2 sees that the type is the upper byte of an F16.
func decodeE5M2() func(dst, src reg.GPVirtual) {
	return func(dst, src reg.GPVirtual) {
		x, upper := YMM(), XMM()
		VPMOVZXBW(Mem{Base: src}, x)
		VPSLLW(Imm(8), x, x)
		VEXTRACTI128(Imm(1), x, upper)
		for i, half := range []reg.Register{x.AsX(), upper} {
			out := YMM()
			VCVTPH2PS(half, out)
			put(out, Mem{Base: dst, Disp: 32 * i})
		}
	}
}

// decodeE4M3 moves the bits to where F16 has them, which for subnormals too is the
// number divided by 2^8. (Dividing by 2^120 in float32, as portable code does, is
// slow where the intermediate number is subnormal.) The code of NaN becomes 480, to
// which the bits of the NaN are added.
func decodeE4M3() func(dst, src reg.GPVirtual) {
	bits, sign, power := vec.AVX2.Const(0x3f80_3f80), vec.AVX2.Const(0x8000_8000), vec.AVX2.Const((127+8)<<23)
	number, top, nan := vec.AVX2.Const(1<<31-1), vec.AVX2.Const(0x43f0_0000), vec.AVX2.Const(0x7ff0_0000)
	return func(dst, src reg.GPVirtual) {
		x, signs, upper := YMM(), YMM(), XMM()
		VPMOVZXBW(Mem{Base: src}, x)
		VPSLLW(Imm(8), x, signs)
		VPSLLW(Imm(7), x, x)
		VPAND(sign, signs, signs)
		VPAND(bits, x, x)
		VPOR(signs, x, x)
		VEXTRACTI128(Imm(1), x, upper)
		for i, half := range []reg.Register{x.AsX(), upper} {
			out, isNaN := YMM(), YMM()
			VCVTPH2PS(half, out)
			VMULPS(power, out, out)
			VPAND(number, out, isNaN)
			VPCMPEQD(top, isNaN, isNaN)
			VPAND(nan, isNaN, isNaN)
			VPOR(isNaN, out, out)
			put(out, Mem{Base: dst, Disp: 32 * i})
		}
	}
}
