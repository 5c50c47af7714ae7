// Package vec holds what the generators share: a vector width and the loops and
// constants every kernel needs.
package vec

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
	"github.com/mmcloughlin/avo/x86"
)

// Width is a level of vector instructions. The name ends the names of functions.
type Width struct {
	Name  string
	Bytes int
}

// The widths that kernels are made for.
var (
	AVX2   = Width{"AVX2", 32}
	AVX512 = Width{"AVX512", 64}
)

// Floats is the number of float32 lanes.
func (w Width) Floats() int { return w.Bytes / 4 }

// New returns a new vector register.
func (w Width) New() reg.VecVirtual {
	if w == AVX512 {
		return ZMM()
	}
	return YMM()
}

// Half returns a new register of half the width.
func (w Width) Half() reg.VecVirtual {
	if w == AVX512 {
		return YMM()
	}
	return XMM()
}

// Zero clears a vector register.
func (w Width) Zero(r reg.VecVirtual) {
	if w == AVX512 {
		i, err := x86.VPXORD(r, r, r)
		if err != nil {
			panic(err)
		}
		i.CancellingInputs = true // avo knows it of shorter registers only
		Instruction(i)
		return
	}
	VXORPS(r, r, r)
}

// Header begins the file of a generator.
func Header() {
	ConstraintExpr("!noasm")
}

// Func begins a function that touches nothing but its arguments.
func Func(name, signature, format string, args ...any) {
	TEXT(name, NOSPLIT, "func"+signature)
	Pragma("noescape")
	Doc(name + " " + fmt.Sprintf(format, args...))
}

// Pointer loads an argument that is an address or an integer.
func Pointer(name string) reg.GPVirtual { return Load(Param(name), GP64()).(reg.GPVirtual) }

// Loop emits body while n, a count that it destroys, is not negative after
// taking step: that many at a time, the rest remains in n. Labels begin with name.
func Loop(name string, n reg.GPVirtual, step int, body func()) {
	SUBQ(Imm(uint64(step)), n)
	JLT(LabelRef(name + "_end"))
	Label(name)
	body()
	SUBQ(Imm(uint64(step)), n)
	JGE(LabelRef(name))
	Label(name + "_end")
	ADDQ(Imm(uint64(step)), n)
}

// Const returns a vector with every 32-bit lane set to bits.
func (w Width) Const(bits uint32) reg.VecVirtual {
	r, g, low := w.New(), GP32(), XMM()
	MOVL(U32(bits), g)
	VMOVD(g, low)
	VPBROADCASTD(low, r)
	return r
}

// Unordered is the predicate of VCMPPS and VCMPPD that finds NaNs when a number
// is compared with itself.
const Unordered = 3

// OneNaN replaces the NaNs in v by those in nan.
func (w Width) OneNaN(v, nan reg.VecVirtual) {
	if w == AVX512 {
		is := K()
		VCMPPS(Imm(Unordered), v, v, is)
		VMOVAPS(nan, is, v)
		return
	}
	is := w.New()
	VCMPPS(Imm(Unordered), v, v, is)
	VBLENDVPS(is, nan, v, v)
}

// NaN is the one NaN that kernels store.
const NaN = 0x7fc0_0000
