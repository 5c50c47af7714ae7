// Command convert generates the conversions between float32 and narrow types.
// They are bound by memory with AVX2 already, so there are no others.
package main

import (
	"fmt"
	"math"
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
		convert("encodeE5M2", "dst *byte, src *float32", 4, 1, encodeE5M2)
		convert("decodeE4M3", "dst *float32, src *byte", 1, 4, decodeE4M3)
		convert("encodeE4M3", "dst *byte, src *float32", 4, 1, encodeE4M3)
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

// lines is how many blocks a stream takes at once, so that it writes whole lines of
// 64 bytes.
const lines = 4

// convert emits a loop over blocks of 16 elements. A body, which gets what setup
// returns, converts one block.
func convert(name, params string, srcSize, dstSize int, setup func() func(dst, src Mem)) {
	if prefix != "" {
		name = prefix + strings.ToUpper(name[:1]) + name[1:]
	}
	vec.Func(name+"AVX2", fmt.Sprintf("(%s, blocks int)", params), "converts 16*blocks elements.%s", remark)
	dst, src, blocks := vec.Pointer("dst"), vec.Pointer("src"), vec.Pointer("blocks")
	body := setup()
	several := func(n int) func() {
		return func() {
			for i := range n {
				body(Mem{Base: dst, Disp: 16 * i * dstSize}, Mem{Base: src, Disp: 16 * i * srcSize})
			}
			ADDQ(U32(16*n*srcSize), src)
			ADDQ(U32(16*n*dstSize), dst)
		}
	}
	if prefix != "" {
		vec.Loop("lines", blocks, lines, several(lines))
	}
	vec.Loop("blocks", blocks, 1, several(1))
	if prefix != "" {
		SFENCE()
	}
	VZEROUPPER()
	RET()
}

func decodeBF16() func(dst, src Mem) {
	quiet := vec.AVX2.Const(1 << 22)
	return func(dst, src Mem) {
		for i := range 2 {
			x, nan := YMM(), YMM()
			VPMOVZXWD(src.Offset(16*i), x)
			VPSLLD(Imm(16), x, x)
			VCMPPS(Imm(vec.Unordered), x, x, nan)
			VPAND(quiet, nan, nan)
			VPOR(nan, x, x)
			put(x, dst.Offset(32*i))
		}
	}
}

func encodeBF16() func(dst, src Mem) {
	one, half, quiet := vec.AVX2.Const(1), vec.AVX2.Const(0x7fff), vec.AVX2.Const(1<<6)
	return func(dst, src Mem) {
		var out [2]reg.VecVirtual
		for i := range out {
			x, upper, odd, nan := YMM(), YMM(), YMM(), YMM()
			VMOVUPS(src.Offset(32*i), x)
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
		put(out[0], dst)
	}
}

func decodeF16() func(dst, src Mem) {
	return func(dst, src Mem) {
		for i := range 2 {
			x := YMM()
			VCVTPH2PS(src.Offset(16*i), x)
			put(x, dst.Offset(32*i))
		}
	}
}

func encodeF16() func(dst, src Mem) {
	return func(dst, src Mem) {
		for i := range 2 {
			x := YMM()
			VMOVUPS(src.Offset(32*i), x)
			half := XMM()
			VCVTPS2PH(Imm(nearest), x, half)
			put(half, dst.Offset(16*i))
		}
	}
}

// decodeE5M2 sees that the type is the upper byte of an F16.
func decodeE5M2() func(dst, src Mem) {
	return func(dst, src Mem) {
		x, upper := YMM(), XMM()
		VPMOVZXBW(src, x)
		VPSLLW(Imm(8), x, x)
		VEXTRACTI128(Imm(1), x, upper)
		for i, half := range []reg.Register{x.AsX(), upper} {
			out := YMM()
			VCVTPH2PS(half, out)
			put(out, dst.Offset(32*i))
		}
	}
}

// decodeE4M3 moves the bits to where F16 has them, which for subnormals too is the
// number divided by 2^8. (Dividing by 2^120 in float32, as portable code does, is
// slow where the intermediate number is subnormal.) One step up, the code of NaN
// alone reaches the next bit, which makes it the NaN of F16 with the same fraction.
func decodeE4M3() func(dst, src Mem) {
	bits, sign, power := vec.AVX2.Const(0x3f80_3f80), vec.AVX2.Const(0x8000_8000), vec.AVX2.Const((127+8)<<23)
	step, carry := vec.AVX2.Const(0x0080_0080), vec.AVX2.Const(0x4000_4000)
	return func(dst, src Mem) {
		x, signs, nan, upper := YMM(), YMM(), YMM(), XMM()
		VPMOVZXBW(src, x)
		VPSLLW(Imm(8), x, signs)
		VPSLLW(Imm(7), x, x)
		VPAND(sign, signs, signs)
		VPAND(bits, x, x)
		VPADDW(step, x, nan)
		VPAND(carry, nan, nan)
		VPOR(signs, x, x)
		VPOR(nan, x, x)
		VEXTRACTI128(Imm(1), x, upper)
		for i, half := range []reg.Register{x.AsX(), upper} {
			out := YMM()
			VCVTPH2PS(half, out)
			VMULPS(power, out, out)
			put(out, dst.Offset(32*i))
		}
	}
}

// fp8 are the constants of a rounding to one byte.
type fp8 struct {
	magnitude, inf, largest, smallest, up, offset reg.VecVirtual
	drop                                          uint64 // bits of fraction that go
}

// newFP8 makes the constants of a type. Magnitudes from largest on, a float32, become
// its code.
func newFP8(bias, frac uint32, largest float32) fp8 {
	drop, smallest, c := 23-frac, 128-bias, vec.AVX2.Const
	return fp8{
		magnitude: c(1<<31 - 1), inf: c(0xff << 23), largest: c(math.Float32bits(largest)),
		smallest: c(smallest << 23), up: c(drop << 23), offset: c(smallest << frac * 0x1_0001), drop: uint64(drop),
	}
}

// round returns the code of eight numbers, too large by the offset, their magnitudes
// and which are NaN. The code has as many steps above that of the power of two below
// the number, or above zero for subnormals, as the bits of the number's sum with a
// power whose last bit is one such step, rounded to nearest even by the addition.
func (c fp8) round(src Mem) (code, magnitude, nan reg.VecVirtual) {
	cut, power, step, sum := YMM(), YMM(), YMM(), YMM()
	code, magnitude, nan = YMM(), YMM(), YMM()
	VPAND(src, c.magnitude, magnitude)
	VPCMPGTD(c.inf, magnitude, nan)
	VPMINUD(c.largest, magnitude, cut)
	VPAND(c.inf, cut, power)
	VPMAXUD(c.smallest, power, power)
	VPADDD(c.up, power, step)
	VADDPS(step, cut, sum)
	VPSUBD(step, sum, sum)
	VPSRLD(Imm(c.drop), power, code)
	VPADDD(sum, code, code)
	return code, magnitude, nan
}

// store stores the codes of 16 elements with the signs of src, which saturation
// keeps while numbers are packed to words.
func (c fp8) store(codes [2]reg.VecVirtual, src, dst Mem) {
	signs, upper, out := YMM(), XMM(), YMM()
	VPACKSSDW(codes[1], codes[0], out)
	VPSUBW(c.offset, out, out)
	VMOVUPS(src, signs)
	VPACKSSDW(src.Offset(32), signs, signs)
	VPSRLW(Imm(15), signs, signs)
	VPSLLW(Imm(7), signs, signs)
	VPOR(signs, out, out)
	VPERMQ(Imm(0xd8), out, out)
	VEXTRACTI128(Imm(1), out, upper)
	VPACKUSWB(upper, out.AsX(), out.AsX())
	put(out.AsX(), dst)
}

// encodeE4M3 cuts at the largest number; the code of NaN is the next one.
func encodeE4M3() func(dst, src Mem) {
	c := newFP8(7, 3, 448)
	return func(dst, src Mem) {
		var codes [2]reg.VecVirtual
		for i := range codes {
			code, _, nan := c.round(src.Offset(32 * i))
			VPSUBD(nan, code, code)
			codes[i] = code
		}
		c.store(codes, src, dst)
	}
}

// encodeE5M2 cuts at 2^16, which is the code of infinity. A NaN keeps the upper bits
// of its fraction and becomes quiet: 2 more than infinity, or 3.
func encodeE5M2() func(dst, src Mem) {
	c, quiet, last := newFP8(15, 2, 1<<16), vec.AVX2.Const(2), vec.AVX2.Const(3)
	return func(dst, src Mem) {
		var codes [2]reg.VecVirtual
		for i := range codes {
			code, magnitude, nan := c.round(src.Offset(32 * i))
			VPSRLD(Imm(21), magnitude, magnitude)
			VPAND(last, magnitude, magnitude)
			VPOR(quiet, magnitude, magnitude)
			VPAND(nan, magnitude, magnitude)
			VPADDD(magnitude, code, code)
			codes[i] = code
		}
		c.store(codes, src, dst)
	}
}
