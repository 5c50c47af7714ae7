package main

import (
	"math"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"

	"github.com/loratool/loratool/internal/kernel/_gen/vec"
)

// values are what the codes of IQ4_NL and IQ4_XS stand for.
var values = [16]float32{-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113}

// lookup finds the nearest of sixteen values by their fifteen middles, which are a tree:
// the first, middle 7, has number 1, and behind number k follow 2k, for what is less, and
// 2k+1. Numbers 1 to 7 are in one vector and 8 to 15 in another.
type lookup struct{ first, two, upper, lower, low, high reg.VecVirtual }

func newLookup() lookup {
	var upper, lower [8]float32
	for k := 1; k < 16; k++ {
		// Number k is the only one of its depth over 16/depth middles.
		depth := 1
		for 2*depth <= k {
			depth *= 2
		}
		i := 8/depth - 1 + (k-depth)*(16/depth)
		middle := (values[i] + values[i+1]) / 2
		if k < 8 {
			upper[k] = middle
		} else {
			lower[k-8] = middle
		}
	}
	return lookup{
		float(upper[1]), w.Const(2), table("upper", upper[:]), table("lower", lower[:]),
		table("low", values[:8]), table("high", values[8:]),
	}
}

var tables = map[string]Mem{}

// table loads eight numbers, which are in memory once.
func table(name string, numbers []float32) reg.VecVirtual {
	m, ok := tables[name]
	if !ok {
		m = GLOBL("search_"+name, 8|16) // RODATA|NOPTR
		for i, x := range numbers {
			DATA(4*i, U32(math.Float32bits(x)))
		}
		tables[name] = m
	}
	return load(m)
}

// find returns 16 and the code of v, and a mask that is set from code 8 on. NaN has
// code 15.
func (l lookup) find(v reg.VecVirtual) (k, half reg.VecVirtual) {
	k, half = YMM(), YMM()
	VCMPPS(Imm(notLess), l.first, v, half)
	VPSUBD(half, l.two, k)
	for _, middles := range []reg.VecVirtual{l.upper, l.upper, l.lower} {
		middle := YMM()
		VPERMPS(middles, k, middle)
		VCMPPS(Imm(notLess), middle, v, middle)
		VPADDD(k, k, k)
		VPSUBD(middle, k, k)
	}
	return k, half
}

// value replaces v by the nearest value.
func (l lookup) value(v reg.VecVirtual) {
	k, half := l.find(v)
	high := YMM()
	VPERMPS(l.low, k, v)
	VPERMPS(l.high, k, high)
	VBLENDVPS(half, high, v, v)
}

// iq4 emits fitIQ4, one candidate at a time.
func iq4() {
	vec.Func("fitIQ4AVX2", "(fit *[8][8]float32, room *[96][8]float32, x, w *float32, blocks int, numerators *[15]float32)",
		"searches the scale of eight groups of 8*blocks numbers. Rows of fit are scale, inverse of the scale that gives the codes, the largest (sum w T x)²/(sum w T²), and the largest magnitude.")
	fit, numerators := vec.Pointer("fit"), vec.Pointer("numerators")
	g := groups{vec.Pointer("room"), vec.Pointer("blocks")}
	columns(g.room, g.blocks, vec.Pointer("x"), vec.Pointer("w"))
	peak(fit, g)
	l := newLookup()
	sums := func(label string, c candidate) {
		g.each(label, func(x, weight, _ Mem) {
			v, wv := YMM(), YMM()
			VMULPS(x, c.inverse, v)
			l.value(v)
			VMULPS(weight, v, wv)
			VMULPS(wv, v, v)
			VADDPS(v, c.squares, c.squares)
			VMULPS(x, wv, wv)
			VADDPS(wv, c.products, c.products)
		})
	}

	first, scale := candidate{float(1), zero(), zero()}, load(row(fit, peakElement))
	VDIVPS(float(-values[0]), scale, scale)
	VDIVPS(scale, first.inverse, first.inverse)
	sums("first", first)
	first.take(fit, greater)
	count := GP64()
	MOVQ(U32(15), count)
	vec.Loop("candidates", count, 1, func() {
		c := newCandidate(fit, numerators, 0)
		ADDQ(Imm(4), numerators)
		sums("sums", c)
		c.try(fit)
	})
	end()
}

// recodeIQ4 emits the codes of a group.
func recodeIQ4() {
	vec.Func("recodeIQ4AVX2", "(codes *uint8, x *float32, blocks int, inverse float32)",
		"chooses 8*blocks codes whose values are nearest to x*inverse.")
	codes, x, blocks := vec.Pointer("codes"), vec.Pointer("x"), vec.Pointer("blocks")
	inverse, l := broadcast("inverse"), newLookup()
	sixteen := w.Const(16)
	vec.Loop("blocks", blocks, 1, func() {
		v := YMM()
		VMULPS(Mem{Base: x}, inverse, v)
		k, _ := l.find(v)
		VPSUBD(sixteen, k, k)
		store(k, Mem{Base: codes})
		ADDQ(Imm(32), x)
		ADDQ(Imm(8), codes)
	})
	end()
}
