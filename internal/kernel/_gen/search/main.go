// Command search generates the searches for the scales of groups of numbers. A lane
// is a group, so that each keeps the order of its sums and its own decisions, and eight
// groups go through all candidates at once.
package main

import (
	"math"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"

	"github.com/loratool/loratool/internal/kernel/_gen/vec"
)

func main() {
	vec.Header()
	affine("fitAffineAVX2", "squares", square)
	affine("fitAffineAbsoluteAVX2", "magnitudes", drop)
	symmetric()
	descent()
	iq4()
	recodeIQ4()
	pick()
	recode()
	importance()
	grid(8, 3)
	grid(4, 8)
	nearest(8)
	nearest(4)
	ternary()
	ternaryPair()
	Generate()
}

var w = vec.AVX2

// Predicates of VCMPPS, the first two false for NaN and the others true.
const (
	less     = 17
	greater  = 30
	notEqual = 4
	notLess  = 21
)

// codesOffset is the place of the codes in the room, behind numbers and weights of
// groups of up to 32.
const codesOffset = 2 * 32 * 32

// row is a vector of a state in memory.
func row(base reg.GPVirtual, index int) Mem { return Mem{Base: base, Disp: 32 * index} }

func load(from Mem) reg.VecVirtual {
	r := YMM()
	VMOVUPS(from, r)
	return r
}

// broadcast loads an argument of 32 bits.
func broadcast(param string) reg.VecVirtual {
	addr, err := Param(param).Resolve()
	if err != nil {
		panic(err)
	}
	r := YMM()
	VBROADCASTSS(addr.Addr, r)
	return r
}

func float(x float32) reg.VecVirtual { return w.Const(math.Float32bits(x)) }

func zero() reg.VecVirtual {
	r := YMM()
	w.Zero(r)
	return r
}

func end() {
	VZEROUPPER()
	RET()
}

// copyOf returns a register that a loop may change.
func copyOf(r reg.GPVirtual) reg.GPVirtual {
	c := GP64()
	MOVQ(r, c)
	return c
}

// replace stores the lanes of v that a mask selects. (A masked store is slow.)
func replace(mask, v reg.VecVirtual, at Mem) {
	r := load(at)
	VBLENDVPS(mask, v, r, r)
	VMOVUPS(r, at)
}

// drop clears the sign.
func drop(v reg.VecVirtual) {
	VPSLLD(Imm(1), v, v)
	VPSRLD(Imm(1), v, v)
}

// rounding rounds to integers between bounds as nearest does.
type rounding struct{ magic, fraction, bias, least, most reg.VecVirtual }

func newRounding(least, most reg.VecVirtual) rounding {
	return rounding{float(12582912), w.Const(1<<23 - 1), w.Const(1 << 22), least, most}
}

func (r rounding) round(v reg.VecVirtual) {
	VADDPS(r.magic, v, v)
	VPAND(r.fraction, v, v)
	VPSUBD(r.bias, v, v)
	VPMAXSD(r.least, v, v)
	VPMINSD(r.most, v, v)
}

// columns emits the transposition of eight groups of numbers and, if given, of weights:
// number i of all groups becomes row 2i of the room, its weights row 2i+1.
func columns(room, blocks reg.GPVirtual, numbers ...reg.GPVirtual) {
	stride, stride3 := GP64(), GP64()
	MOVQ(blocks, stride)
	SHLQ(Imm(5), stride)
	LEAQ(Mem{Base: stride, Index: stride, Scale: 2}, stride3)
	to, n := copyOf(room), copyOf(blocks)
	vec.Loop("columns", n, 1, func() {
		for disp, from := range numbers {
			transpose(to, 32*disp, from, stride, stride3)
			ADDQ(Imm(32), from)
		}
		ADDQ(U32(8*64), to)
	})
}

// transpose turns eight numbers of eight groups into every second row.
func transpose(to reg.GPVirtual, disp int, from, stride, stride3 reg.GPVirtual) {
	high := GP64()
	LEAQ(Mem{Base: from, Index: stride, Scale: 4}, high)
	r := make([]reg.VecVirtual, 8)
	for i := range r {
		m := Mem{Base: []reg.GPVirtual{from, high}[i/4], Index: stride, Scale: uint8(i % 4)}
		switch i % 4 {
		case 0:
			m.Index, m.Scale = nil, 0
		case 3:
			m.Index, m.Scale = stride3, 1
		}
		r[i] = load(m)
	}
	// Pairs of groups, then quads, then the two halves.
	pairs, quads := make([]reg.VecVirtual, 8), make([]reg.VecVirtual, 8)
	for i := 0; i < 8; i += 2 {
		pairs[i], pairs[i+1] = YMM(), YMM()
		VUNPCKLPS(r[i+1], r[i], pairs[i])
		VUNPCKHPS(r[i+1], r[i], pairs[i+1])
	}
	for i := 0; i < 8; i += 4 {
		for j := range 2 {
			quads[i+2*j], quads[i+2*j+1] = YMM(), YMM()
			VUNPCKLPD(pairs[i+2+j], pairs[i+j], quads[i+2*j])
			VUNPCKHPD(pairs[i+2+j], pairs[i+j], quads[i+2*j+1])
		}
	}
	for i := range 8 {
		out := YMM()
		VPERM2F128(Imm(uint64(0x20+0x11*(i/4))), quads[i%4+4], quads[i%4], out)
		VMOVUPS(out, Mem{Base: to, Disp: 64*i + disp})
	}
}

// groups is what a search over eight groups reads: rows of numbers, weights and codes.
type groups struct{ room, blocks reg.GPVirtual }

// each emits body for every number of a group, four in a row.
func (g groups) each(name string, body func(x, weight, code Mem)) {
	at, codes, n := copyOf(g.room), GP64(), copyOf(g.blocks)
	LEAQ(Mem{Base: g.room, Disp: codesOffset}, codes)
	SHLQ(Imm(1), n)
	vec.Loop(name, n, 1, func() {
		for i := range 4 {
			body(row(at, 2*i), row(at, 2*i+1), row(codes, i))
		}
		ADDQ(U32(4*64), at)
		ADDQ(U32(4*32), codes)
	})
}

// store stores eight codes of up to 127, as bytes.
func store(v reg.VecVirtual, to Mem) {
	high := XMM()
	VEXTRACTI128(Imm(1), v, high)
	VPACKSSDW(high, v.AsX(), v.AsX())
	VPACKUSWB(v.AsX(), v.AsX(), v.AsX())
	VMOVQ(v.AsX(), to)
}

// pick emits the codes of the candidates that the searches chose.
func pick() {
	vec.Func("pickAVX2", "(codes *uint8, x *float32, low, inverse *[8]float32, blocks int, least, most int32)",
		"chooses codes of eight groups of 8*blocks numbers, nearest to inverse*(x-low) and counted from least.")
	codes, x, blocks := vec.Pointer("codes"), vec.Pointer("x"), vec.Pointer("blocks")
	lows, inverses := vec.Pointer("low"), vec.Pointer("inverse")
	r := newRounding(broadcast("least"), broadcast("most"))
	left := GP64()
	MOVQ(U32(8), left)
	vec.Loop("groups", left, 1, func() {
		low, inverse, n := YMM(), YMM(), copyOf(blocks)
		VBROADCASTSS(Mem{Base: lows}, low)
		VBROADCASTSS(Mem{Base: inverses}, inverse)
		vec.Loop("blocks", n, 1, func() {
			v := load(Mem{Base: x})
			VSUBPS(low, v, v)
			VMULPS(inverse, v, v)
			r.round(v)
			VPSUBD(r.least, v, v)
			store(v, Mem{Base: codes})
			ADDQ(Imm(32), x)
			ADDQ(Imm(8), codes)
		})
		ADDQ(Imm(4), lows)
		ADDQ(Imm(4), inverses)
	})
	end()
}

// recode emits the codes of one group.
func recode() {
	vec.Func("recodeAVX2", "(codes *uint8, x *float32, blocks int, scale, offset float32, least, most int32)",
		"chooses 8*blocks codes, nearest to (x+offset)/scale and counted from least.")
	codes, x, blocks := vec.Pointer("codes"), vec.Pointer("x"), vec.Pointer("blocks")
	scale, offset := broadcast("scale"), broadcast("offset")
	r := newRounding(broadcast("least"), broadcast("most"))
	vec.Loop("blocks", blocks, 1, func() {
		v := load(Mem{Base: x})
		VADDPS(offset, v, v)
		VDIVPS(scale, v, v)
		r.round(v)
		VPSUBD(r.least, v, v)
		store(v, Mem{Base: codes})
		ADDQ(Imm(32), x)
		ADDQ(Imm(8), codes)
	})
	end()
}

// importance emits Importance.
func importance() {
	vec.Func("importanceAVX2", "(dst, x, w *float32, blocks int, sigma2 float32)",
		"sets 8*blocks numbers dst = w*sqrt(sigma2 + x²).")
	dst, x, weights, blocks := vec.Pointer("dst"), vec.Pointer("x"), vec.Pointer("w"), vec.Pointer("blocks")
	sigma2 := broadcast("sigma2")
	vec.Loop("blocks", blocks, 1, func() {
		v := load(Mem{Base: x})
		VMULPS(v, v, v)
		VADDPS(sigma2, v, v)
		VSQRTPS(v, v)
		VMULPS(Mem{Base: weights}, v, v)
		VMOVUPS(v, Mem{Base: dst})
		for _, p := range []reg.GPVirtual{dst, x, weights} {
			ADDQ(Imm(32), p)
		}
	})
	end()
}
