// Command compare generates what two tensors are compared with: sums over pairs of
// numbers, and how far apart their codes are.
package main

import (
	"encoding/binary"
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"

	"github.com/loratool/loratool/internal/kernel/_gen/vec"
)

func main() {
	vec.Header()
	for _, w := range []vec.Width{vec.AVX512, vec.AVX2} {
		compare(w)
		for size := 1; size <= 4; size *= 2 {
			distances(w, size)
		}
	}
	count()
	Generate()
}

// end returns from a function.
func end() {
	VZEROUPPER()
	RET()
}

var tables = map[string]Mem{}

// known returns bytes in memory.
func known(name string, b []byte) Mem {
	if m, ok := tables[name]; ok {
		return m
	}
	m := GLOBL("compare_"+name, 8|16) // RODATA|NOPTR
	for i := 0; i < len(b); i += 8 {
		DATA(i, U64(binary.LittleEndian.Uint64(b[i:])))
	}
	tables[name] = m
	return m
}

func repeat(n int, b ...byte) []byte {
	var out []byte
	for range n {
		out = append(out, b...)
	}
	return out
}

var (
	infinity  = repeat(8, 0, 0, 0x80, 0x7f)                               // bits of the exponent of a float32
	magnitude = repeat(8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f) // all bits of a float64 but the sign
)

// sums are the lanes of one sum, eight float64 in one vector or two.
type sums []reg.VecVirtual

func load(w vec.Width, at reg.GPVirtual, index int) sums {
	var s sums
	for disp := 0; disp < 64; disp += w.Bytes {
		r := w.New()
		VMOVUPD(Mem{Base: at, Disp: 64*index + disp}, r)
		s = append(s, r)
	}
	return s
}

// compare emits the sums of Comparison. A pair with a NaN or an infinity is counted
// and then taken for two zeros, which add +0 to sums that are not -0.
func compare(w vec.Width) {
	vec.Func("compare"+w.Name, "(sums *[5][8]float64, counts *[3]int64, a, b *float32, blocks int)",
		"adds 8*blocks pairs to eight lanes of the five figures of Comparison in turn, and counts those that are not finite.")
	inf, abs := known("infinity", infinity), known("magnitude", magnitude)
	at, counts, blocks := vec.Pointer("sums"), vec.Pointer("counts"), vec.Pointer("blocks")
	pa, pb := vec.Pointer("a"), vec.Pointer("b")
	var lanes [5]sums
	for i := range lanes {
		lanes[i] = load(w, at, i)
	}
	largest, diffs, as, bs, dots := lanes[0], lanes[1], lanes[2], lanes[3], lanes[4]
	vec.Loop("blocks", blocks, 1, func() {
		a, b, oddA, oddB := YMM(), YMM(), YMM(), YMM()
		VMOVUPS(Mem{Base: pa}, a)
		VMOVUPS(Mem{Base: pb}, b)
		VPAND(inf, a, oddA)
		VPCMPEQD(inf, oddA, oddA)
		VPAND(inf, b, oddB)
		VPCMPEQD(inf, oddB, oddB)
		any := YMM()
		VPOR(oddA, oddB, any)
		VPTEST(any, any)
		JZ(LabelRef("finite"))
		tally(counts, 0, oddA)
		tally(counts, 1, oddB)
		// Alike are the same bits, and two NaNs; what remains of any is not.
		VCMPPS(Imm(vec.Unordered), a, a, oddA)
		VCMPPS(Imm(vec.Unordered), b, b, oddB)
		VPAND(oddA, oddB, oddA)
		VPCMPEQD(a, b, oddB)
		VPOR(oddA, oddB, oddA)
		VPANDN(any, oddA, oddA)
		tally(counts, 2, oddA)
		VPANDN(a, any, a)
		VPANDN(b, any, b)
		Label("finite")
		for i := range diffs {
			x, y, diff := w.New(), w.New(), w.New()
			widen(w, a, i, x)
			widen(w, b, i, y)
			// A product of two float32 is exact in float64, so these sums may be fused.
			VFMADD231PD(x, x, as[i])
			VFMADD231PD(y, y, bs[i])
			VFMADD231PD(x, y, dots[i])
			VSUBPD(y, x, diff)
			VANDPD(abs, diff, x)
			VMAXPD(x, largest[i], largest[i])
			VMULPD(diff, diff, diff)
			VADDPD(diff, diffs[i], diffs[i])
		}
		ADDQ(Imm(32), pa)
		ADDQ(Imm(32), pb)
	})
	for i := range lanes {
		for j, r := range lanes[i] {
			VMOVUPD(r, Mem{Base: at, Disp: 64*i + w.Bytes*j})
		}
	}
	end()
}

// tally adds the number of lanes of a mask to a count.
func tally(counts reg.GPVirtual, index int, mask reg.VecVirtual) {
	n := GP32()
	VMOVMSKPS(mask, n)
	POPCNTL(n, n)
	ADDQ(n.As64(), Mem{Base: counts, Disp: 8 * index})
}

// widen converts the float32 of v that belong to a vector of lanes.
func widen(w vec.Width, v reg.VecVirtual, index int, to reg.VecVirtual) {
	switch {
	case w == vec.AVX512:
		VCVTPS2PD(v, to)
	case index == 0:
		VCVTPS2PD(v.AsX(), to)
	default:
		VEXTRACTF128(Imm(1), v, to.AsX())
		VCVTPS2PD(to.AsX(), to)
	}
}

// distances emits the bins of ULPHistogram, a byte per pair, in any order within a
// block. Codes stand at the upper end of a word, so that one constant per type tells
// their NaNs; ordered as integers, they lie max-min apart, which fits without sign.
//
// The bin of a distance d is 0, or 1 and the bits of d-1: float32 has their number in
// its exponent. Half of d-1 has one bit less and no sign, and without the bit below
// its first one it is not rounded up to the next power of two.
func distances(w vec.Width, size int) {
	vec.Func(fmt.Sprintf("distances%d%s", 8*size, w.Name), "(bins *byte, found *[2][16]uint32, a, b *byte, inf uint32, blocks int)",
		"puts the bins of 32*blocks pairs into bins, 0 for two NaNs and 255 for one. It raises lanes to the largest bin but that, and adds to counts of the last.")
	bins, found, blocks := vec.Pointer("bins"), vec.Pointer("found"), vec.Pointer("blocks")
	pa, pb := vec.Pointer("a"), vec.Pointer("b")
	inf, low := w.New(), XMM()
	VMOVD(Load(Param("inf"), GP32()), low)
	VPBROADCASTD(low, inf)
	number, one, bias := w.Const(1<<31-1), w.Const(1), w.Const(126)
	largest, nans := w.New(), w.New()
	VMOVUPS(Mem{Base: found}, largest)
	VMOVUPS(Mem{Base: found, Disp: 64}, nans)
	vec.Loop("blocks", blocks, 1, func() {
		var out [4]reg.VecVirtual
		count := 32 / w.Floats()
		for i := range count {
			disp := i * w.Floats() * size
			x, nanX := ordered(w, Mem{Base: pa, Disp: disp}, size, number, inf)
			y, nanY := ordered(w, Mem{Base: pb, Disp: disp}, size, number, inf)
			d, least, bin := w.New(), w.New(), w.New()
			VPMAXSD(x, y, d)
			VPMINSD(x, y, least)
			VPSUBD(least, d, d)
			if size < 4 {
				VPSRLD(Imm(uint64(32-8*size)), d, d)
			}
			VPMINUD(one, d, bin)
			VPSUBD(bin, d, d)
			VPMINUD(one, d, least)
			VPADDD(least, bin, bin)
			VPSRLD(Imm(1), d, d)
			VPSRLD(Imm(1), d, least)
			andNot(w, d, least, d)
			VCVTDQ2PS(d, d)
			VPSRLD(Imm(23), d, d)
			VPSUBUSW(bias, d, d)
			VPADDD(d, bin, bin)
			setNaNs(w, bin, nanX, nanY, one, largest, nans)
			out[i] = bin
		}
		if w == vec.AVX512 {
			for i := range count {
				VPMOVDB(out[i], Mem{Base: bins, Disp: 16 * i})
			}
		} else {
			VPACKSSDW(out[1], out[0], out[0])
			VPACKSSDW(out[3], out[2], out[2])
			VPACKUSWB(out[2], out[0], out[0])
			VMOVDQU(out[0], Mem{Base: bins})
		}
		ADDQ(Imm(32), bins)
		ADDQ(U32(32*size), pa)
		ADDQ(U32(32*size), pb)
	})
	VMOVUPS(largest, Mem{Base: found})
	VMOVUPS(nans, Mem{Base: found, Disp: 64})
	end()
}

// ordered loads codes, as words of which the first is the sign, and returns integers
// in the order of their numbers and which are NaN: a mask register with AVX-512.
func ordered(w vec.Width, from Mem, size int, number, inf reg.VecVirtual) (key reg.VecVirtual, nan reg.Register) {
	x, key := w.New(), w.New()
	switch size {
	case 1:
		VPMOVZXBD(from, x)
		VPSLLD(Imm(24), x, x)
	case 2:
		VPMOVZXWD(from, x)
		VPSLLD(Imm(16), x, x)
	case 4:
		VMOVUPS(from, x)
	}
	if w == vec.AVX512 {
		VPANDD(number, x, key)
		is, negative, zero := K(), K(), w.New()
		VPCMPGTD(inf, key, is)
		VPMOVD2M(x, negative)
		w.Zero(zero)
		VPSUBD(key, zero, negative, key)
		return key, is
	}
	is := w.New()
	VPAND(number, x, key)
	VPCMPGTD(inf, key, is)
	VPSIGND(x, key, key)
	return key, is
}

func andNot(w vec.Width, a, not, to reg.VecVirtual) {
	if w == vec.AVX512 {
		VPANDND(a, not, to)
		return
	}
	VPANDN(a, not, to)
}

// setNaNs gives pairs with a NaN their bins.
func setNaNs(w vec.Width, bin reg.VecVirtual, nanX, nanY reg.Register, one, largest, nans reg.VecVirtual) {
	if w == vec.AVX512 {
		either, single, zero, ones := K(), K(), w.New(), w.New()
		KORW(nanX, nanY, either)
		KXORW(nanX, nanY, single)
		w.Zero(zero)
		VMOVDQA32(zero, either, bin)
		VPMAXUD(bin, largest, largest)
		VPADDD(one, nans, single, nans)
		VPTERNLOGD(Imm(0xff), ones, ones, ones)
		VMOVDQA32(ones, single, bin)
		return
	}
	either := w.New()
	VPOR(nanX, nanY, either)
	VPANDN(bin, either, bin)
	VPMAXUD(bin, largest, largest)
	VPXOR(nanX, nanY, either)
	VPSUBD(either, nans, nans)
	VPSRLD(Imm(24), either, either)
	VPOR(either, bin, bin)
}

// values is how many values count looks for at once.
const values = 8

// count emits a count of bytes by value. Up to 255 fit a byte of a sum.
func count() {
	vec.Func("countBytesAVX2", "(counts *[8][4]uint64, src *byte, first uint32, blocks int)",
		"adds to counts how often the bytes first, first+1, ... first+7 are in 32*blocks bytes, at most 255 blocks, each in four parts.")
	var all []byte
	for v := range values {
		all = append(all, repeat(32, byte(v))...)
	}
	wanted := known("values", all)
	counts, src, blocks := vec.Pointer("counts"), vec.Pointer("src"), vec.Pointer("blocks")
	first, low, zero := YMM(), XMM(), YMM()
	VMOVD(Load(Param("first"), GP32()), low)
	VPBROADCASTB(low, first)
	var sums [values]reg.VecVirtual
	for v := range sums {
		sums[v] = YMM()
		vec.AVX2.Zero(sums[v])
	}
	vec.Loop("blocks", blocks, 1, func() {
		x := YMM()
		VMOVDQU(Mem{Base: src}, x)
		VPSUBB(first, x, x)
		for v, sum := range sums {
			is := YMM()
			VPCMPEQB(wanted.Offset(32*v), x, is)
			VPSUBB(is, sum, sum)
		}
		ADDQ(Imm(32), src)
	})
	vec.AVX2.Zero(zero)
	for v, sum := range sums {
		VPSADBW(zero, sum, sum)
		VPADDQ(Mem{Base: counts, Disp: 32 * v}, sum, sum)
		VMOVDQU(sum, Mem{Base: counts, Disp: 32 * v})
	}
	end()
}
