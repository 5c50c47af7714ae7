// Command merge generates the fused merge of a panel of columns: decode, low-rank
// update, encode and the sums of a report, without a detour over memory.
package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"

	"github.com/loratool/loratool/internal/kernel/_gen/vec"
)

func main() {
	vec.Header()
	for _, t := range []storage{bf16, f16, f32} {
		panel(vec.AVX512, 4, t)
		panel(vec.AVX2, 2, t)
	}
	Generate()
}

// storage is an element type of W and of the result.
type storage struct {
	name string
	size int
}

var (
	bf16 = storage{"BF16", 2}
	f16  = storage{"F16", 2}
	f32  = storage{"F32", 4}
)

const (
	nearest     = 0 // rounding of VCVTPS2PH
	panelWidth  = 64
	sumsOfRow   = 4 * 8 * 8 // bytes
	rowsAtATime = 4
)

// panel emits the merge of nv vectors of columns and any number of rows, four at a
// time. The products of four rows are summed in registers and put in scratch; from there each row goes on alone. NaNs need no care but one: what is stored comes from
// a number or from the one NaN, which rounds to itself, and the sums of a row with a
// NaN or an infinity are thrown away.
func panel(w vec.Width, nv int, t storage) {
	vec.Func("merge"+t.name+w.Name, "(dst, src *byte, pitch int, l, r *float32, rank int, scale float32, rows int, sums *[4][8]float64, scratch *[256]float32)",
		"merges %d columns. Rows of dst and src are pitch bytes apart, rows of l rank numbers, rows of r %d. Without sums there are no statistics.", nv*w.Floats(), panelWidth)
	dst, src, pitch := vec.Pointer("dst"), vec.Pointer("src"), vec.Pointer("pitch")
	l, rank, rows, sums := vec.Pointer("l"), vec.Pointer("rank"), vec.Pointer("rows"), vec.Pointer("sums")
	ldl, ldl3 := GP64(), GP64()
	MOVQ(rank, ldl)
	SHLQ(Imm(2), ldl)
	LEAQ(Mem{Base: ldl, Index: ldl, Scale: 2}, ldl3)
	scale, _ := Param("scale").Resolve()

	block := func(name string, count int) {
		vec.Loop(name, rows, count, func() {
			products(w, name, count, nv, l, ldl, ldl3, rank)
			if count == rowsAtATime {
				ADDQ(ldl3, l)
			}
			tile := vec.Pointer("scratch")
			row, end := GP64(), fmt.Sprintf("%s_done", name)
			c := constants(w, scale.Addr)
			MOVQ(U32(count), row)
			TESTQ(sums, sums)
			JZ(LabelRef(name + "_plain"))
			vec.Loop(name+"_stats", row, 1, func() {
				lanes := loadLanes(w, sums)
				for v := range nv {
					base, exact, stored := element(w, t, c, v, tile, src, dst)
					addStats(w, lanes, base, exact, stored)
				}
				saveLanes(w, sums, lanes)
				ADDQ(U32(sumsOfRow), sums)
				advance(w, nv, tile, dst, src, pitch)
			})
			JMP(LabelRef(end))
			Label(name + "_plain")
			MOVQ(U32(count), row)
			vec.Loop(name+"_rows", row, 1, func() {
				for v := range nv {
					element(w, t, c, v, tile, src, dst)
				}
				advance(w, nv, tile, dst, src, pitch)
			})
			Label(end)
		})
	}
	block("four", rowsAtATime)
	block("one", 1)
	VZEROUPPER()
	RET()
}

// products leaves the sums of count rows in scratch; l moves to the next row.
func products(w vec.Width, name string, count, nv int, l, ldl, ldl3, rank reg.GPVirtual) {
	sums := make([]reg.VecVirtual, count*nv)
	for i := range sums {
		sums[i] = w.New()
		w.Zero(sums[i])
	}
	r, k := vec.Pointer("r"), GP64()
	MOVQ(rank, k)
	vec.Loop(name+"_k", k, 1, func() {
		row := make([]reg.VecVirtual, nv)
		for v := range row {
			row[v] = w.New()
			VMOVUPS(Mem{Base: r, Disp: v * w.Bytes}, row[v])
		}
		for i := range count {
			factor := w.New()
			VBROADCASTSS([]Mem{{Base: l}, {Base: l, Index: ldl, Scale: 1}, {Base: l, Index: ldl, Scale: 2}, {Base: l, Index: ldl3, Scale: 1}}[i], factor)
			for v := range row {
				product := w.New()
				VMULPS(factor, row[v], product)
				VADDPS(product, sums[i*nv+v], sums[i*nv+v])
			}
		}
		ADDQ(U32(panelWidth*4), r)
		ADDQ(Imm(4), l)
	})
	scratch := vec.Pointer("scratch")
	for i, sum := range sums {
		VMOVUPS(sum, Mem{Base: scratch, Disp: i * w.Bytes})
	}
}

func advance(w vec.Width, nv int, tile, dst, src, pitch reg.GPVirtual) {
	ADDQ(U32(nv*w.Bytes), tile)
	ADDQ(pitch, dst)
	ADDQ(pitch, src)
}

// operands are constants: registers with AVX-512, memory with AVX2, which has too
// few registers.
type operands struct{ nan, half, one, top, scale Op }

func constants(w vec.Width, scale Mem) operands {
	if w == vec.AVX512 {
		s := w.New()
		VBROADCASTSS(scale, s)
		return operands{w.Const(vec.NaN), w.Const(0x7fff), w.Const(1), w.Const(0xffff_0000), s}
	}
	return operands{data("nan", vec.NaN), data("half", 0x7fff), data("one", 1), data("top", 0xffff_0000), scale}
}

var known = map[string]Mem{}

// data returns eight times the same word in memory.
func data(name string, word uint32) Mem {
	m, ok := known[name]
	if !ok {
		m = GLOBL("merge_"+name, 8|16) // RODATA|NOPTR
		for i := range 8 {
			DATA(4*i, U32(word))
		}
		known[name] = m
	}
	return m
}

// element emits one vector of the row: it stores the result and returns base,
// exact and stored values.
func element(w vec.Width, t storage, c operands, v int, tile, src, dst reg.GPVirtual) (base, exact, stored reg.VecVirtual) {
	base, exact, stored = w.New(), w.New(), w.New()
	at := func(p reg.GPVirtual) Mem { return Mem{Base: p, Disp: v * w.Floats() * t.size} }
	switch t {
	case bf16:
		VPMOVZXWD(at(src), base)
		VPSLLD(Imm(16), base, base)
	case f16:
		VCVTPH2PS(at(src), base)
	case f32:
		VMOVUPS(at(src), base)
	}
	sum := Mem{Base: tile, Disp: v * w.Bytes}
	if w == vec.AVX512 {
		is := K()
		VMULPS(sum, c.scale, exact)
		VADDPS(base, exact, exact)
		VCMPPS(Imm(vec.Unordered), exact, exact, is)
		VMOVAPS(c.nan, is, exact)
	} else {
		is := w.New()
		VBROADCASTSS(c.scale, exact)
		VMULPS(sum, exact, exact)
		VADDPS(base, exact, exact)
		VCMPPS(Imm(vec.Unordered), exact, exact, is)
		VBLENDVPS(is, c.nan, exact, exact)
	}
	switch t {
	case bf16:
		odd := w.New()
		VPSRLD(Imm(16), exact, odd)
		and(w, c.one, odd, odd)
		VPADDD(c.half, exact, stored)
		VPADDD(odd, stored, stored)
		and(w, c.top, stored, stored)
		if w == vec.AVX512 {
			out, half := w.New(), w.Half()
			VPSRLD(Imm(16), stored, out)
			VPMOVDW(out, half)
			VMOVUPS(half, at(dst))
		} else {
			VPSRLD(Imm(16), stored, odd)
			VPACKUSDW(odd, odd, odd)
			VPERMQ(Imm(0x08), odd, odd)
			VMOVDQU(odd.AsX(), at(dst))
		}
	case f16:
		half := w.Half()
		VCVTPS2PH(Imm(nearest), exact, half)
		VMOVUPS(half, at(dst))
		VCVTPH2PS(half, stored)
	case f32:
		VMOVUPS(exact, at(dst))
		stored = exact
	}
	return base, exact, stored
}

func and(w vec.Width, a Op, b, to reg.VecVirtual) {
	if w == vec.AVX512 {
		VPANDD(a, b, to)
		return
	}
	VPAND(a, b, to)
}

// loadLanes loads the eight lanes of four sums, in one vector or two.
func loadLanes(w vec.Width, sums reg.GPVirtual) [4][]reg.VecVirtual {
	var lanes [4][]reg.VecVirtual
	for i := range lanes {
		for at := 0; at < 64; at += w.Bytes {
			r := w.New()
			VMOVUPD(Mem{Base: sums, Disp: 64*i + at}, r)
			lanes[i] = append(lanes[i], r)
		}
	}
	return lanes
}

func saveLanes(w vec.Width, sums reg.GPVirtual, lanes [4][]reg.VecVirtual) {
	for i := range lanes {
		for j, r := range lanes[i] {
			VMOVUPD(r, Mem{Base: sums, Disp: 64*i + w.Bytes*j})
		}
	}
}

// addStats adds one vector of columns, half of it at a time. The square of a
// float32 is exact in float64, so one sum may be fused.
func addStats(w vec.Width, lanes [4][]reg.VecVirtual, base, exact, stored reg.VecVirtual) {
	wide := func(v reg.VecVirtual, half int) reg.VecVirtual {
		out := w.New()
		switch {
		case half == 0 && w == vec.AVX512:
			VCVTPS2PD(v.AsY(), out)
		case half == 0:
			VCVTPS2PD(v.AsX(), out)
		case w == vec.AVX512:
			upper := w.Half()
			VEXTRACTF64X4(Imm(1), v, upper)
			VCVTPS2PD(upper, out)
		default:
			upper := w.Half()
			VEXTRACTF128(Imm(1), v, upper)
			VCVTPS2PD(upper, out)
		}
		return out
	}
	for half := range 2 {
		at := half % len(lanes[0])
		b, x, y := wide(base, half), wide(exact, half), wide(stored, half)
		VFMADD231PD(b, b, lanes[0][at])
		kept := w.New()
		VSUBPD(b, y, kept)
		VSUBPD(x, y, y)
		VSUBPD(b, x, x)
		VMULPD(x, kept, kept)
		VADDPD(kept, lanes[3][at], lanes[3][at])
		VMULPD(x, x, x)
		VADDPD(x, lanes[1][at], lanes[1][at])
		VMULPD(y, y, y)
		VADDPD(y, lanes[2][at], lanes[2][at])
	}
}
