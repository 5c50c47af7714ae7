package main

import (
	"fmt"
	"math"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"

	"github.com/loratool/loratool/internal/kernel/_gen/vec"
)

// Places in the room, behind rows of a number each: what there is for every candidate.
const (
	gridNumbers = 32 * (32 + iota)
	gridOutside
	gridLost
	gridProducts
	gridSquares
	gridInverse
	gridScale
)

// constant returns eight lanes of the same bits in memory.
func constant(name string, bits uint32) Mem {
	return eight(name, func(int) uint32 { return bits })
}

// eight returns eight lanes in memory.
func eight(name string, bits func(i int) uint32) Mem {
	m, ok := tables[name]
	if !ok {
		m = GLOBL("search_"+name, 8|16) // RODATA|NOPTR
		for i := range 8 {
			DATA(4*i, U32(bits(i)))
		}
		tables[name] = m
	}
	return m
}

func floats(name string, x float32) Mem { return constant(name, math.Float32bits(x)) }

// grid emits the trial of eight candidates for a group of tuples of some width. A lane is
// a candidate, but where a tuple outside the grid looks for its neighbour a lane is one of
// those.
func grid(width, radix int) {
	name := fmt.Sprintf("grid%dAVX2", width)
	vec.Func(name, "(room *[39][8]float32, x, w, roots *float32, tuples, lanes int, places *int32, lists *uint32)",
		"tries candidates, up to eight, for a group of tuples of %d numbers, and sets rows, outside, lost, products and squares of the room.", width)
	room, x, roots := vec.Pointer("room"), vec.Pointer("x"), vec.Pointer("roots")
	places, lists := vec.Pointer("places"), vec.Pointer("lists")
	rows, bit, n := copyOf(room), GP32(), vec.Pointer("tuples")
	MOVL(U32(1), bit)
	vec.Loop("tuples", n, 1, func() {
		gridLevels(room, rows, x, width, radix)
		lane, number := GP64(), GP64()
		XORQ(lane, lane)
		Label("lanes")
		MOVL(Mem{Base: room, Disp: gridNumbers, Index: lane, Scale: 4}, number.As32())
		MOVLQSX(Mem{Base: places, Index: number, Scale: 4}, number)
		TESTQ(number, number)
		JGE(LabelRef("next"))
		ORL(bit, Mem{Base: room, Disp: gridOutside, Index: lane, Scale: 4})
		NOTQ(number)
		list, count := GP64(), GP64()
		LEAQ(Mem{Base: lists, Index: number, Scale: 4, Disp: 4}, list)
		MOVL(Mem{Base: list, Disp: -4}, count.As32())
		ADDQ(Imm(7), count)
		SHRQ(Imm(3), count)
		scaled := YMM()
		VBROADCASTSS(Mem{Base: room, Disp: gridScale, Index: lane, Scale: 4}, scaled)
		VMULPS(eight("odd", func(i int) uint32 { return math.Float32bits(float32(2*i + 1)) }), scaled, scaled)
		least, position := nearestTuple("neighbours", width, copyOf(list), count, x, roots, scaled)
		tuple := GP32()
		VMOVD(least.AsX(), tuple)
		CMPL(tuple, U32(math.Float32bits(math.MaxFloat32)))
		JE(LabelRef("lost"))
		MOVL(Mem{Base: list, Index: position, Scale: 4}, tuple)
		JMP(LabelRef("choose"))
		Label("lost")
		ORL(bit, Mem{Base: room, Disp: gridLost, Index: lane, Scale: 4})
		XORL(tuple, tuple)
		Label("choose")
		gridPut(rows, lane, tuple, width)
		Label("next")
		INCQ(lane)
		lanes := vec.Pointer("lanes")
		CMPQ(lane, lanes)
		JLT(LabelRef("lanes"))

		ADDQ(U32(uint32(32*width)), rows)
		ADDQ(Imm(uint64(4*width)), x)
		ADDQ(Imm(uint64(4*width)), roots)
		SHLL(Imm(1), bit)
	})
	gridSums(room, width)
	end()
}

// gridLevels emits the nearest levels of a tuple for all candidates: what they stand for as
// rows, and the numbers that they are digits of.
func gridLevels(room, rows, x reg.GPVirtual, width, radix int) {
	inverse, numbers := load(Mem{Base: room, Disp: gridInverse}), YMM()
	for i := width - 1; i >= 0; i-- {
		l := YMM()
		VBROADCASTSS(Mem{Base: x, Disp: 4 * i}, l)
		VMULPS(inverse, l, l)
		VSUBPS(floats("one", 1), l, l)
		VMULPS(floats("half", 0.5), l, l)
		VADDPS(floats("magic", 12582912), l, l)
		VPAND(constant("fraction", 1<<23-1), l, l)
		VPSUBD(constant("bias", 1<<22), l, l)
		VPMAXSD(constant("zero", 0), l, l)
		VPMINSD(constant(fmt.Sprint("most", radix), uint32(radix-1)), l, l)
		switch {
		case i == width-1:
			VMOVAPS(l, numbers)
		case radix == 8:
			VPSLLD(Imm(3), numbers, numbers)
			VPADDD(l, numbers, numbers)
		default: // 3
			twice := YMM()
			VPADDD(numbers, numbers, twice)
			VPADDD(twice, numbers, numbers)
			VPADDD(l, numbers, numbers)
		}
		VPADDD(l, l, l)
		VPADDD(constant("unit", 1), l, l)
		VCVTDQ2PS(l, l)
		VMOVUPS(l, row(rows, i))
	}
	VMOVDQU(numbers, Mem{Base: room, Disp: gridNumbers})
}

// nearestTuple emits the search of a list of blocks of eight tuples. It returns the least
// error in all lanes, or the largest float32 if there is none below, and the first place
// in the list that has it. The list is destroyed.
func nearestTuple(label string, width int, list, blocks, x, roots reg.GPVirtual, scaled reg.VecVirtual) (least reg.VecVirtual, position reg.GPVirtual) {
	errors := make([]reg.VecVirtual, width)
	for i := range errors {
		v, root := YMM(), YMM()
		VBROADCASTSS(Mem{Base: x, Disp: 4 * i}, v)
		VSUBPS(v, scaled, v)
		VBROADCASTSS(Mem{Base: roots, Disp: 4 * i}, root)
		VMULPS(v, root, root)
		VMULPS(v, root, root)
		errors[i] = root
	}
	least = YMM()
	at, best := load(eight("count", func(i int) uint32 { return uint32(i) })), YMM()
	VMOVUPS(constant("largest", math.Float32bits(math.MaxFloat32)), least)
	VMOVAPS(at, best)
	vec.Loop(label, blocks, 1, func() {
		tuple, sum := load(Mem{Base: list}), YMM()
		VPERMPS(errors[0], tuple, sum)
		for _, e := range errors[1:] {
			part := YMM()
			VPSRLD(Imm(3), tuple, tuple)
			VPERMPS(e, tuple, part)
			VADDPS(part, sum, sum)
		}
		smaller := YMM()
		VCMPPS(Imm(less), least, sum, smaller)
		VBLENDVPS(smaller, sum, least, least)
		VBLENDVPS(smaller, at, best, best)
		VPADDD(constant("eights", 8), at, at)
		ADDQ(Imm(32), list)
	})
	smallest, same := YMM(), YMM()
	VMOVAPS(least, smallest)
	across(smallest, func(a, b reg.VecVirtual) { VMINPS(a, b, b) })
	VCMPPS(Imm(equal), smallest, least, same)
	never := load(constant("never", math.MaxInt32))
	VBLENDVPS(same, best, never, best)
	across(best, func(a, b reg.VecVirtual) { VPMINSD(a, b, b) })
	position = GP64()
	VMOVD(best.AsX(), position.As32())
	return smallest, position
}

const equal = 0 // of VCMPPS, false for NaN

// across folds the lanes of v into all of them.
func across(v reg.VecVirtual, fold func(a, b reg.VecVirtual)) {
	other := YMM()
	VPERM2F128(Imm(1), v, v, other)
	fold(other, v)
	for _, order := range []uint64{0x4e, 0xb1} {
		VPSHUFD(Imm(order), v, other)
		fold(other, v)
	}
}

// gridPut emits what the levels of a packed tuple stand for into a lane of rows.
func gridPut(rows, lane reg.GPVirtual, tuple reg.Register, width int) {
	v := YMM()
	VMOVD(tuple, v.AsX())
	VPBROADCASTD(v.AsX(), v)
	VPSRLVD(eight("shifts", func(i int) uint32 { return uint32(3 * i) }), v, v)
	VPAND(constant("seven", 7), v, v)
	VPADDD(v, v, v)
	VPADDD(constant("unit", 1), v, v)
	VCVTDQ2PS(v, v)
	for half := range width / 4 {
		if half > 0 {
			VEXTRACTF128(Imm(1), v, v.AsX())
		}
		for i := range 4 {
			VEXTRACTPS(Imm(uint64(i)), v.AsX(), Mem{Base: rows, Disp: 32 * (4*half + i), Index: lane, Scale: 4})
		}
	}
}

// gridSums emits sum w x q and sum w q² of every candidate.
func gridSums(room reg.GPVirtual, width int) {
	x, weights, n, rows := vec.Pointer("x"), vec.Pointer("w"), vec.Pointer("tuples"), copyOf(room)
	products, squares := zero(), zero()
	vec.Loop("sums", n, 1, func() {
		for i := range width {
			w, wx, q := YMM(), YMM(), load(row(rows, i))
			VBROADCASTSS(Mem{Base: weights, Disp: 4 * i}, w)
			VBROADCASTSS(Mem{Base: x, Disp: 4 * i}, wx)
			VMULPS(wx, w, wx)
			VMULPS(q, wx, wx)
			VADDPS(wx, products, products)
			VMULPS(q, w, w)
			VMULPS(q, w, w)
			VADDPS(w, squares, squares)
		}
		ADDQ(U32(uint32(32*width)), rows)
		ADDQ(Imm(uint64(4*width)), x)
		ADDQ(Imm(uint64(4*width)), weights)
	})
	VMOVUPS(products, Mem{Base: room, Disp: gridProducts})
	VMOVUPS(squares, Mem{Base: room, Disp: gridSquares})
}

// nearest emits the search of one list.
func nearest(width int) {
	vec.Func(fmt.Sprintf("nearestTuple%dAVX2", width), "(list *uint32, blocks int, x, w *float32, scaled *[8]float32, least *float32) int",
		"returns the first place of the least error among 8*blocks tuples of %d, if one is below the largest float32, and stores the error.", width)
	list, blocks, x, weights := vec.Pointer("list"), vec.Pointer("blocks"), vec.Pointer("x"), vec.Pointer("w")
	scaled := load(Mem{Base: vec.Pointer("scaled")})
	least, position := nearestTuple("tuples", width, list, blocks, x, weights, scaled)
	VMOVSS(least.AsX(), Mem{Base: vec.Pointer("least")})
	Store(position, ReturnIndex(0))
	end()
}
