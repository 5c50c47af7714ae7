package kernel_test

import (
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/quant/block"
)

// pages places slices right before or right behind a page that can't be read.
type pages struct {
	t      *testing.T
	behind bool // the page that can't be read is the one behind the slice
	mapped [][]byte
}

func (p *pages) bytes(n int) []byte {
	page := os.Getpagesize()
	size := max((n+page-1)/page*page, page)
	all, err := syscall.Mmap(-1, 0, size+2*page, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		p.t.Fatal(err)
	}
	p.mapped = append(p.mapped, all)
	for _, guard := range [][]byte{all[:page], all[page+size:]} {
		if err := syscall.Mprotect(guard, syscall.PROT_NONE); err != nil {
			p.t.Fatal(err)
		}
	}
	at := page
	if p.behind {
		at += size - n
	}
	return all[at : at+n : at+n]
}

func (p *pages) float32s(n int) []float32 {
	b := p.bytes(4*n + 4) // one more for an address if there is none
	if p.behind {
		b = b[4:]
	}
	return unsafe.Slice((*float32)(unsafe.Pointer(unsafe.SliceData(b))), n)
}

func (p *pages) float64s(n int) []float64 {
	b := p.bytes(8*n + 8)
	if p.behind {
		b = b[8:]
	}
	return unsafe.Slice((*float64)(unsafe.Pointer(unsafe.SliceData(b))), n)
}

func (p *pages) free() {
	for _, m := range p.mapped {
		if err := syscall.Munmap(m); err != nil {
			p.t.Fatal(err)
		}
	}
	p.mapped = nil
}

// onlyPages are operations whose results are checked elsewhere.
var onlyPages = []operation{
	{"convert", func(m memory, rng *rand.Rand, n int) []uint64 {
		x, b1, b2, b4 := values(m, rng, n), m.bytes(n), m.bytes(2*n), m.bytes(4*n)
		kernel.EncodeF32(b4, x)
		kernel.EncodeF16(b2, x)
		kernel.EncodeBF16(b2, x)
		kernel.EncodeE4M3(b1, x)
		kernel.EncodeE5M2(b1, x)
		kernel.DecodeF32(x, b4)
		kernel.DecodeF16(x, b2)
		kernel.DecodeBF16(x, b2)
		kernel.DecodeE4M3(x, b1)
		kernel.DecodeE5M2(x, b1)
		kernel.SkipFinite(b1, 1, 0x7f)
		kernel.SkipFinite(b2, 2, 0x7f80)
		kernel.SkipFinite(b4, 4, 0x7f80_0000)
		return nil
	}},
	{"merge", func(m memory, rng *rand.Rand, n int) []uint64 {
		var merger kernel.Merger
		rows, rank := 1+rng.IntN(10), 1+rng.IntN(9)
		u := kernel.LowRank{L: values(m, rng, rows*rank), R: values(m, rng, rank*n), Rank: rank, Scale: 2}
		stats := make([]kernel.RowStats, rows)
		for _, d := range []tensor.DType{tensor.BF16, tensor.F16, tensor.F32} {
			c, _ := block.For(d)
			src := m.bytes(rows * n * int(d.Bits()/8))
			merger.Merge(m.bytes(len(src)), c, src, c, rows, n, u, stats)
			merger.Merge(m.bytes(len(src)), c, src, c, rows, n, u, nil)
		}
		return nil
	}},
	{"fourbit", func(m memory, rng *rand.Rand, n int) []uint64 {
		for _, f := range []kernel.FourBit{kernel.NF4, kernel.FP4} {
			codes, absmax := m.bytes((n+1)/2), m.float32s((n+31)/32)
			kernel.EncodeFourBit(f, codes, absmax, values(m, rng, n), 32)
			kernel.DecodeFourBit(f, m.float32s(n), codes, absmax, 32)
		}
		return nil
	}},
	{"gemm", func(m memory, rng *rand.Rand, n int) []uint64 {
		g := kernel.Gemm()
		kc := n % 41
		across, along := values(m, rng, n*kc), values(m, rng, n*kc)
		a, b := m.float32s(g.PackedA(n, kc)), m.float32s(g.PackedB(kc, n))
		g.PackA(a, across, kc, n, kc)
		g.PackB(b, along, n, kc, n)
		if kc > 0 && n > 0 {
			rows, cols := min(n, g.MR), min(n, g.NR)
			c := m.float32s(rows * cols)
			g.Tile(kc, a[:kc*g.MR], b[:kc*g.NR], c, cols, rows, cols, n%2 == 0)
		}
		g.PackAT(a, along, n, n, kc)
		g.PackBT(b, across, kc, kc, n)
		return nil
	}},
}

// TestGuardPages guards that no kernel reads or writes outside its slices, not
// even a byte: it would crash.
func TestGuardPages(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		for _, behind := range []bool{true, false} {
			m := pages{t: t, behind: behind}
			for _, o := range slices.Concat(operations, onlyPages) {
				for n := range 258 {
					if n > 70 && n%16 > 1 && n%16 < 15 {
						continue
					}
					compare(t, &m, o, 7, n)
					m.free()
				}
			}
		}
	})
}

// TestLevelRuns proves that each level runs its own assembly: an address that
// can't be read stops the kernel, and the stack tells which one it was.
func TestLevelRuns(t *testing.T) {
	names := kernel.Levels()
	if len(names) == 1 {
		t.Skip("this build or CPU has no assembly")
	}
	m := pages{t: t}
	defer m.free()
	bad := m.bytes(0)
	if err := syscall.Mprotect(m.mapped[0], syscall.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	large := make([]float32, 8<<20) // stored past the caches
	largeBytes := unsafe.Slice((*byte)(unsafe.Pointer(&large[0])), 4*len(large))
	f := unsafe.Slice((*float32)(unsafe.Pointer(unsafe.SliceData(bad))), 32<<20)
	b := unsafe.Slice(unsafe.SliceData(bad), 16<<20)
	sums, stats := make([]float64, 512), make([]kernel.RowStats, 1)
	good := make([]float32, 512)
	for _, c := range []struct {
		call func()
		want map[string]string
	}{
		{func() { kernel.AddLowRank(f[:64], 1, 64, good[:1], good[:64], 1, 1) }, map[string]string{"avx2": "lowRankAVX2", "avx512": "lowRankAVX512"}},
		{func() { g := kernel.Gemm(); g.PackAT(make([]float32, 8*g.MR), f[:8*g.MR], g.MR, g.MR, 8) }, map[string]string{"avx2": "gather6AVX2", "avx512": "gather14AVX2"}},
		{func() { g := kernel.Gemm(); g.PackB(make([]float32, 8*g.NR), f[:8*g.NR], g.NR, 8, g.NR) }, map[string]string{"avx2": "gather16AVX2", "avx512": "gather32AVX2"}},
		{merges(b, tensor.BF16), map[string]string{"avx2": "mergeBF16AVX2", "avx512": "mergeBF16AVX512"}},
		{merges(b, tensor.F16), map[string]string{"avx2": "mergeF16AVX2", "avx512": "mergeF16AVX512"}},
		{merges(b, tensor.F32), map[string]string{"avx2": "mergeF32AVX2", "avx512": "mergeF32AVX512"}},
		{func() { g := kernel.Gemm(); g.Tile(1, good[:g.MR], good[:g.NR], f, g.NR, g.MR, g.NR, true) }, map[string]string{"avx2": "gemmTileAVX2", "avx512": "gemmTileAVX512"}},
		{func() { g := kernel.Gemm(); g.PackA(make([]float32, 8*g.MR), f, 8, g.MR, 8) }, map[string]string{"avx2": "transpose6AVX2", "avx512": "transpose8AVX2"}},
		{func() { kernel.EncodeFourBit(kernel.NF4, make([]byte, 256), good[:8], f[:512], 64) }, both("encodeNF4AVX2")},
		{func() { kernel.EncodeFourBit(kernel.FP4, make([]byte, 256), good[:8], f[:512], 64) }, both("encodeFP4AVX2")},
		{func() { kernel.DecodeFourBit(kernel.NF4, f[:512], make([]byte, 256), good[:8], 64) }, both("decode4AVX2")},
		{func() { kernel.ScaleRows(f[:512], 1, 512, good[:1]) }, both("scaleAVX2")},
		{func() { kernel.ScaleCols(f[:512], 1, 512, good) }, both("multiplyAVX2")},
		{func() { kernel.RowSumSquares(sums[:1], f[:512], 1, 512) }, both("rowSquaresAVX2")},
		{func() { kernel.AddColSumSquares(sums[:128], f[:512], 4, 128) }, both("colSquaresAVX2")},
		{func() { kernel.Stats(stats, f[:512], f[:512], f[:512], 1, 512) }, both("statsAVX2")},
		{func() { kernel.MaxAbs(f[:512]) }, both("maxAbsAVX2")},
		{func() { kernel.Compare(good, f[:512]) }, map[string]string{"avx2": "compareAVX2", "avx512": "compareAVX512"}},
		{func() { kernel.MatVec(good[:1], kernel.BF16, b[:512], good[:256], 1, 256, kernel.F32) }, both("matVecBF16AVX2")},
		{func() { kernel.MatVec(good[:1], kernel.BF16, b[:512], good[:256], 1, 256, kernel.BF16) }, both("matVecInBF16AVX2")},
		{func() { kernel.MatVec(good[:1], kernel.F16, b[:512], good[:256], 1, 256, kernel.F32) }, both("matVecF16AVX2")},
		{func() { kernel.MatVec(good[:1], kernel.F16, b[:512], good[:256], 1, 256, kernel.F16) }, both("matVecInF16AVX2")},
		{func() { fitAffine(make([]byte, 256), f[:256], false) }, both("fitAffineAVX2")},
		{func() { fitAffine(make([]byte, 256), f[:256], true) }, both("fitAffineAbsoluteAVX2")},
		{func() { fitAffine(b[:256], good[:256], false) }, both("pickAVX2")},
		{func() { kernel.FitSymmetric(make([]byte, 256), good[:8], f[:256], good[:256], 32) }, both("fitSymmetricAVX2")},
		{func() { kernel.FitDescent(make([]byte, 256), good[:8], f[:256], 4) }, both("fitDescentAVX2")},
		{func() { kernel.FitIQ4(good[:8], f[:256], good[:256]) }, both("fitIQ4AVX2")},
		{func() { kernel.FitGrid(make([]byte, 8), f[:8], good[:8], good[:8], grids[0], good[:1], 1) }, both("grid8AVX2")},
		{func() { kernel.FitGrid(make([]byte, 4), f[:4], good[:4], good[:4], grids[1], good[:1], 1) }, both("grid4AVX2")},
		{func() { kernel.NearestTuple(make([]uint32, 8), f[:8], good[:8], new([8]float32)) }, both("nearestTuple8AVX2")},
		{func() { kernel.NearestTuple(make([]uint32, 8), f[:4], good[:4], new([8]float32)) }, both("nearestTuple4AVX2")},
		{func() { kernel.Recode(b[:256], []float32{1, 1, 1, 1, 1, 1, 1, 1}, nil, good[:256], 0, 15) }, both("recodeAVX2")},
		{func() { kernel.RecodeIQ4(b[:256], good[:256], 1) }, both("recodeIQ4AVX2")},
		{func() { kernel.Importance(f[:256], good[:256], good[:256], 1) }, both("importanceAVX2")},
		{func() { kernel.EncodeQ8(make([]byte, 34), f[:32]) }, both("encodeQ8AVX2")},
		{func() { kernel.EncodeQ4(make([]byte, 18), f[:32]) }, both("encodeQ4AVX2")},
		{distances(b, kernel.E5M2), map[string]string{"avx2": "distances8AVX2", "avx512": "distances8AVX512"}},
		{distances(b, kernel.F16), map[string]string{"avx2": "distances16AVX2", "avx512": "distances16AVX512"}},
		{distances(b, kernel.F32), map[string]string{"avx2": "distances32AVX2", "avx512": "distances32AVX512"}},
		{func() { kernel.DecodeBF16(good[:256], b[:512]) }, both("decodeBF16AVX2")},
		{func() { kernel.DecodeF16(good[:256], b[:512]) }, both("decodeF16AVX2")},
		{func() { kernel.DecodeE4M3(good, b[:512]) }, both("decodeE4M3AVX2")},
		{func() { kernel.DecodeE5M2(good, b[:512]) }, both("decodeE5M2AVX2")},
		{func() { kernel.EncodeBF16(b[:512], good[:256]) }, both("encodeBF16AVX2")},
		{func() { kernel.EncodeF16(b[:512], good[:256]) }, both("encodeF16AVX2")},
		{func() { kernel.EncodeE4M3(b[:512], good) }, both("encodeE4M3AVX2")},
		{func() { kernel.EncodeE5M2(b[:512], good) }, both("encodeE5M2AVX2")},
		{func() { kernel.DecodeBF16(large, b[:2*len(large)]) }, both("streamDecodeBF16AVX2")},
		{func() { kernel.DecodeF16(large, b[:2*len(large)]) }, both("streamDecodeF16AVX2")},
		{func() { kernel.DecodeE4M3(large, b[:len(large)]) }, both("streamDecodeE4M3AVX2")},
		{func() { kernel.DecodeE5M2(large, b[:len(large)]) }, both("streamDecodeE5M2AVX2")},
		{func() { kernel.EncodeBF16(largeBytes, f[:len(largeBytes)/2]) }, both("streamEncodeBF16AVX2")},
		{func() { kernel.EncodeF16(largeBytes, f[:len(largeBytes)/2]) }, both("streamEncodeF16AVX2")},
		{func() { kernel.EncodeE4M3(largeBytes, f[:len(largeBytes)]) }, both("streamEncodeE4M3AVX2")},
		{func() { kernel.EncodeE5M2(largeBytes, f[:len(largeBytes)]) }, both("streamEncodeE5M2AVX2")},
		{func() { kernel.SkipFinite(b[:512], 1, 0x7f) }, both("skipFinite8AVX2")},
		{func() { kernel.SkipFinite(b[:512], 2, 0x7f80) }, both("skipFinite16AVX2")},
		{func() { kernel.SkipFinite(b[:512], 4, 0x7f80_0000) }, both("skipFinite32AVX2")},
	} {
		for _, name := range names[1:] {
			use(t, name)
			if got := faultingFunction(c.call); got != c.want[name] {
				t.Errorf("at %s %q ran, want %q", name, got, c.want[name])
			}
		}
		use(t, "generic")
		if got := faultingFunction(c.call); strings.Contains(got, "AVX") {
			t.Errorf("at generic %q ran", got)
		}
	}
}

// merges returns a merge of one panel of src.
func merges(src []byte, d tensor.DType) func() {
	c, _ := block.For(d)
	src = src[:64*d.Bits()/8]
	return func() {
		u := kernel.LowRank{L: make([]float32, 1), R: make([]float32, 64), Rank: 1, Scale: 1}
		new(kernel.Merger).Merge(make([]byte, len(src)), c, src, c, 1, 64, u, nil)
	}
}

// fitAffine fits eight groups.
func fitAffine(codes []byte, x []float32, absolute bool) {
	search := kernel.AffineSearch{Most: 15, Spans: []float32{15}, Absolute: absolute}
	kernel.FitAffine(codes, make([]float32, 8), make([]float32, 8), x, make([]float32, 256), &search)
}

// distances returns a comparison of codes.
func distances(src []byte, s kernel.Storage) func() {
	return func() { new(kernel.ULPHistogram).Add(s, make([]byte, 512), src[:512]) }
}

func both(name string) map[string]string { return map[string]string{"avx2": name, "avx512": name} }

// faultingFunction returns the last word of the name of the function of the
// package in which a call stops.
func faultingFunction(call func()) (name string) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if recover() == nil {
			return
		}
		var stack [32]uintptr
		frames := runtime.CallersFrames(stack[:runtime.Callers(1, stack[:])])
		for {
			frame, more := frames.Next()
			if at := strings.LastIndex(frame.Function, "internal/kernel."); at >= 0 {
				name = frame.Function[at+len("internal/kernel."):]
				return
			}
			if !more {
				return
			}
		}
	}()
	call()
	return ""
}
