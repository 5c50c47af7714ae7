package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"

	"github.com/loratool/loratool/internal/kernel/_gen/vec"
)

// ternaryRow is a row of a room of 40 numbers each.
func ternaryRow(room reg.GPVirtual, index int, at reg.GPVirtual) Mem {
	return Mem{Base: room, Disp: 160 * index, Index: at, Scale: 4}
}

// broadcastFrom returns a number of memory in all lanes.
func broadcastFrom(m Mem) reg.VecVirtual {
	v := YMM()
	VBROADCASTSS(m, v)
	return v
}

// times returns a product with numbers in memory.
func times(v reg.VecVirtual, factors ...Mem) reg.VecVirtual {
	product := YMM()
	VMOVAPS(v, product)
	for _, f := range factors {
		VMULPS(f, product, product)
	}
	return product
}

// add returns a sum.
func add(v reg.VecVirtual, others ...reg.VecVirtual) reg.VecVirtual {
	sum := YMM()
	VMOVAPS(v, sum)
	for _, o := range others {
		VADDPS(o, sum, sum)
	}
	return sum
}

// mark adds the lanes in which a candidate is better than best to marks.
func mark(marks, best, products, squares reg.VecVirtual) {
	limit := YMM()
	VMULPS(squares, best, limit)
	VMULPS(products, products, products)
	VCMPPS(Imm(greater), limit, products, products)
	VCMPPS(Imm(greater), constant("zero", 0), squares, limit)
	VANDPS(limit, products, products)
	VORPS(products, marks, marks)
}

// scan emits the loop over second places from one on. It returns the first with a mark,
// or one beyond the last.
func scan(room, second reg.GPVirtual, last int, body func(marks reg.VecVirtual)) {
	lanes := GP32()
	Label("scan")
	marks := zero()
	body(marks)
	VMOVMSKPS(marks, lanes)
	TESTL(lanes, lanes)
	JNE(LabelRef("found"))
	ADDQ(Imm(8), second)
	CMPQ(second, U32(uint32(last)))
	JLE(LabelRef("scan"))
	Store(second, ReturnIndex(0))
	end()
	Label("found")
	BSFL(lanes, lanes)
	wide := GP64()
	MOVL(lanes, wide.As32())
	ADDQ(wide, second)
	Store(second, ReturnIndex(0))
	end()
}

// ternary emits the scan of FitTernary.
func ternary() {
	vec.Func("ternaryAVX2", "(room *[6][40]float32, first, second int, best float32) int",
		"returns the first place from second on that is better than best with one shift or the other, or one beyond 32. Rows of the room are sums of w x and of w up to a place, and what the places from there on add to both sums of a candidate, with the shift up, and down.")
	room, first, second, best := vec.Pointer("room"), vec.Pointer("first"), vec.Pointer("second"), broadcast("best")
	wx, w := broadcastFrom(ternaryRow(room, 0, first)), broadcastFrom(ternaryRow(room, 1, first))
	type shift struct {
		x, w   reg.VecVirtual
		middle Mem
		row    int
	}
	shifts := []shift{
		{times(wx, floats("7down", -0.875)), times(w, floats("7down", -0.875), floats("7down", -0.875)), floats("1up", 0.125), 2},
		{times(wx, floats("9down", -1.125)), times(w, floats("9down", -1.125), floats("9down", -1.125)), floats("1down", -0.125), 4},
	}
	scan(room, second, 32, func(marks reg.VecVirtual) {
		middleX, middleW := load(ternaryRow(room, 0, second)), load(ternaryRow(room, 1, second))
		VSUBPS(wx, middleX, middleX)
		VSUBPS(w, middleW, middleW)
		for _, s := range shifts {
			products := add(s.x, times(middleX, s.middle))
			VADDPS(ternaryRow(room, s.row, second), products, products)
			squares := add(s.w, times(middleW, s.middle, s.middle))
			VADDPS(ternaryRow(room, s.row+1, second), squares, squares)
			mark(marks, best, products, squares)
		}
	})
}

// ternaryPair emits the scan of FitTernaryPair.
func ternaryPair() {
	vec.Func("ternaryPairAVX2", "(room *[6][40]float32, second int, best float32) int",
		"returns the first place from second on that is better than best with some shifts, or one beyond 16. Rows of the room are sums of w x and of w up to a place, for each half. Row 4 has five parts of each half that all places share: the sum of w x up to the first place, products up and down, squares up and down.")
	room, second, best := vec.Pointer("room"), vec.Pointer("second"), broadcast("best")
	scan(room, second, 16, func(marks reg.VecVirtual) {
		var products, squares [2][2]reg.VecVirtual
		for h := range 2 {
			shared := func(i int) reg.VecVirtual {
				return broadcastFrom(Mem{Base: room, Disp: 160*4 + 4*(5*h+i)})
			}
			both, w := shared(0), load(ternaryRow(room, 2*h+1, second))
			VADDPS(ternaryRow(room, 2*h, second), both, both)
			factors := []Mem{floats("10down", -1.25), floats("6down", -0.75)}
			for i, factor := range factors {
				products[h][i], squares[h][i] = shared(1+i), shared(3+i)
				VSUBPS(both, products[h][i], products[h][i])
				VADDPS(times(w, factor), squares[h][i], squares[h][i])
			}
		}
		for i := range 4 {
			mark(marks, best, add(products[0][i/2], products[1][i%2]), add(squares[0][i/2], squares[1][i%2]))
		}
	})
}
