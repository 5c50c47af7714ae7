// Command gemm generates the tiles of the float32 matrix product and the
// transposition that packs for them.
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
	tile(vec.AVX512, 14, 2)
	tile(vec.AVX2, 6, 2)
	transpose(8)
	transpose(6)
	for _, width := range []int{6, 14, 16, 32, 64} {
		gather(width)
	}
	Generate()
}

// tile emits a tile of mr rows and nv vectors: all its sums stay in registers,
// next to one row of b and two numbers of a.
func tile(w vec.Width, mr, nv int) {
	nr := nv * w.Floats()
	vec.Func(fmt.Sprintf("gemmTile%s", w.Name), "(kc int, a, b, c *float32, ldc int, accumulate bool)",
		"computes a tile of %d rows and %d columns with fused multiply-add.", mr, nr)
	kc, a, b, c, ldc := vec.Pointer("kc"), vec.Pointer("a"), vec.Pointer("b"), vec.Pointer("c"), vec.Pointer("ldc")
	accumulate := Load(Param("accumulate"), GP8()).(reg.GPVirtual)
	SHLQ(Imm(2), ldc)
	sums := make([]reg.VecVirtual, mr*nv)
	for i := range sums {
		sums[i] = w.New()
		w.Zero(sums[i])
	}
	row := []reg.VecVirtual{w.New(), w.New()}
	factor := []reg.VecVirtual{w.New(), w.New()}
	step := func(k int) {
		for v := range nv {
			VMOVUPS(Mem{Base: b, Disp: k*nr*4 + v*w.Bytes}, row[v])
		}
		for i := range mr {
			f := factor[i%2]
			VBROADCASTSS(Mem{Base: a, Disp: (k*mr + i) * 4}, f)
			for v := range nv {
				VFMADD231PS(f, row[v], sums[i*nv+v])
			}
		}
	}
	steps := func(name string, count int) {
		vec.Loop(name, kc, count, func() {
			for k := range count {
				step(k)
			}
			ADDQ(U32(count*mr*4), a)
			ADDQ(U32(count*nr*4), b)
		})
	}
	steps("four", 4)
	steps("one", 1)
	TESTB(accumulate, accumulate)
	JZ(LabelRef("overwrite"))
	for i := range mr {
		for v := range nv {
			VADDPS(Mem{Base: c, Disp: v * w.Bytes}, sums[i*nv+v], sums[i*nv+v])
			VMOVUPS(sums[i*nv+v], Mem{Base: c, Disp: v * w.Bytes})
		}
		ADDQ(ldc, c)
	}
	VZEROUPPER()
	RET()
	Label("overwrite")
	for i := range mr {
		for v := range nv {
			VMOVUPS(sums[i*nv+v], Mem{Base: c, Disp: v * w.Bytes})
		}
		ADDQ(ldc, c)
	}
	VZEROUPPER()
	RET()
}

// gather emits dst[k*width+i] = src[k*lds+i]. Where the width is not a multiple of
// eight, the last vector overlaps the one before.
func gather(width int) {
	vec.Func(fmt.Sprintf("gather%dAVX2", width), "(dst *float32, src *float32, lds int, rows int)",
		"copies %d numbers of each row.", width)
	dst, src, lds, rows := vec.Pointer("dst"), vec.Pointer("src"), vec.Pointer("lds"), vec.Pointer("rows")
	SHLQ(Imm(2), lds)
	vec.Loop("rows", rows, 1, func() {
		for at := 0; at < width; at += 8 {
			if width < 8 {
				low, high := XMM(), XMM()
				VMOVUPS(Mem{Base: src}, low)
				VMOVSD(Mem{Base: src, Disp: 16}, high)
				VMOVUPS(low, Mem{Base: dst})
				VMOVSD(high, Mem{Base: dst, Disp: 16})
				continue
			}
			v, from := YMM(), min(at, width-8)
			VMOVUPS(Mem{Base: src, Disp: 4 * from}, v)
			VMOVUPS(v, Mem{Base: dst, Disp: 4 * from})
		}
		ADDQ(lds, src)
		ADDQ(U32(4*width), dst)
	})
	VZEROUPPER()
	RET()
}

// transpose emits dst[k*ldd+i] = src[i*lds+k] for rows i and blocks of eight k.
func transpose(rows int) {
	vec.Func(fmt.Sprintf("transpose%dAVX2", rows), "(dst *float32, ldd int, src *float32, lds int, blocks int)",
		"turns %d rows of 8*blocks numbers into columns.", rows)
	dst, ldd, src, lds, blocks := vec.Pointer("dst"), vec.Pointer("ldd"), vec.Pointer("src"), vec.Pointer("lds"), vec.Pointer("blocks")
	SHLQ(Imm(2), ldd)
	SHLQ(Imm(2), lds)
	lds3, ldd3 := GP64(), GP64()
	LEAQ(Mem{Base: lds, Index: lds, Scale: 2}, lds3)
	LEAQ(Mem{Base: ldd, Index: ldd, Scale: 2}, ldd3)
	low, high := GP64(), GP64()
	at := func(base, stride, stride3 reg.GPVirtual, i int) Mem {
		switch i {
		case 0:
			return Mem{Base: base}
		case 1:
			return Mem{Base: base, Index: stride, Scale: 1}
		case 2:
			return Mem{Base: base, Index: stride, Scale: 2}
		}
		return Mem{Base: base, Index: stride3, Scale: 1}
	}
	vec.Loop("blocks", blocks, 1, func() {
		LEAQ(Mem{Base: src, Index: lds, Scale: 4}, high)
		r := make([]reg.VecVirtual, 8)
		for i := range r {
			r[i] = YMM()
			switch {
			case i < 4:
				VMOVUPS(at(src, lds, lds3, i), r[i])
			case i < rows:
				VMOVUPS(at(high, lds, lds3, i-4), r[i])
			default:
				VXORPS(r[i], r[i], r[i])
			}
		}
		// Pairs of rows, then quads, then the two halves.
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
		MOVQ(dst, low)
		LEAQ(Mem{Base: dst, Index: ldd, Scale: 4}, dst)
		for half := range 2 {
			for k := range 4 {
				out := YMM()
				VPERM2F128(Imm(uint64(0x20+0x11*half)), quads[k+4], quads[k], out)
				store(out, at([]reg.GPVirtual{low, dst}[half], ldd, ldd3, k), rows)
			}
		}
		LEAQ(Mem{Base: dst, Index: ldd, Scale: 4}, dst)
		ADDQ(Imm(32), src)
	})
	VZEROUPPER()
	RET()
}

// store writes the first 8 or 6 numbers of v.
func store(v reg.VecVirtual, to Mem, count int) {
	if count == 8 {
		VMOVUPS(v, to)
		return
	}
	VMOVUPS(v.AsX(), to)
	rest := XMM()
	VEXTRACTF128(Imm(1), v, rest)
	to.Disp += 16
	VMOVLPS(rest, to)
}
