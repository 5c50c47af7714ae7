package kernel_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/loratool/loratool/internal/kernel"
)

// eachLevel runs a test at every level of this CPU and puts back the level in
// use.
func eachLevel(t *testing.T, test func(t *testing.T)) {
	for _, name := range kernel.Levels() {
		t.Run(name, func(t *testing.T) {
			use(t, name)
			test(t)
		})
	}
}

// eachLevelOf runs a benchmark at every level, as kernel/level/size; the first may
// be the name of the benchmark itself.
func eachLevelOf(b *testing.B, name, size string, run func(b *testing.B)) {
	for _, level := range kernel.Levels() {
		b.Run(strings.TrimPrefix(name+"/"+level+"/"+size, "/"), func(b *testing.B) {
			use(b, level)
			run(b)
		})
	}
}

func use(t testing.TB, name string) {
	t.Helper()
	before := kernel.Level()
	if err := kernel.Use(name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := kernel.Use(before); err != nil {
			t.Fatal(err)
		}
	})
}

// canary surrounds a slice in memory; nothing may write to it.
const canary = 0x7fdeadbe

// guarded returns n numbers at an address that is odd in units of float32, and a
// check that nothing around them has changed.
func guarded(t testing.TB, n int) ([]float32, func()) {
	const margin = 33
	all := make([]float32, n+2*margin)
	for i := range all {
		all[i] = math.Float32frombits(canary)
	}
	check := func() {
		t.Helper()
		for i, v := range all {
			if (i < margin || i >= margin+n) && math.Float32bits(v) != canary {
				t.Fatalf("wrote %v at %d of a slice of %d", v, i-margin, n)
			}
		}
	}
	return all[margin : margin+n : margin+n], check
}

// TestGemmTile compares every shape of tile with the formula. avx2 and avx512 are
// held to the bits of a fused sum, generic to those of a rounded one.
func TestGemmTile(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		g := kernel.Gemm()
		step := func(sum, a, b float32) float32 { return sum + float32(a*b) }
		if g.MR > 4 {
			step = fused
		}
		rng := rand.New(rand.NewPCG(21, 22))
		for _, kc := range []int{0, 1, 2, 3, 4, 5, 7, 8, 9, 31, 384} {
			a, b := random[float32](rng, "weights", kc*g.MR), random[float32](rng, "weights", kc*g.NR)
			for rows := 0; rows <= g.MR; rows++ {
				for cols := 0; cols <= g.NR; cols++ {
					if kc > 9 && rows < g.MR && cols < g.NR {
						continue
					}
					ldc := cols + rng.IntN(5)
					size := max((rows-1)*ldc+cols, 0)
					for _, accumulate := range []bool{false, true} {
						c, check := guarded(t, size)
						copy(c, random[float32](rng, "weights", size))
						want := clone(c)
						for i := range rows {
							for j := range cols {
								var sum float32
								for k := range kc {
									sum = step(sum, a[k*g.MR+i], b[k*g.NR+j])
								}
								if accumulate {
									sum += want[i*ldc+j]
								}
								want[i*ldc+j] = sum
							}
						}
						g.Tile(kc, a, b, c, ldc, rows, cols, accumulate)
						sameBits(t, fmt.Sprintf("%dx%dx%d, rows %d apart, accumulate %v", rows, kc, cols, ldc, accumulate), c, want)
						check()
					}
				}
			}
		}
	})
}

// fused is a*b+sum rounded once. The product is exact in float64; the sum of both
// is not, but an odd last bit in place of the lost ones makes the second rounding
// right.
func fused(sum, a, b float32) float32 {
	p, c := float64(a)*float64(b), float64(sum)
	s := p + c
	back := s - p
	lost := (p - (s - back)) + (c - back)
	if lost != 0 && math.Float64bits(s)&1 == 0 {
		if (lost > 0) == (s > 0) {
			s = math.Float64frombits(math.Float64bits(s) + 1)
		} else {
			s = math.Float64frombits(math.Float64bits(s) - 1)
		}
	}
	return float32(s)
}

// TestGemmPack compares the four ways of packing with the formula, into slices
// with canaries.
func TestGemmPack(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		g := kernel.Gemm()
		rng := rand.New(rand.NewPCG(23, 24))
		for _, kc := range []int{0, 1, 5, 7, 8, 9, 15, 16, 17, 40, 100} {
			for _, n := range []int{0, 1, g.MR - 1, g.MR, g.MR + 1, g.NR - 1, g.NR, 2*g.NR + 3, 4 * g.MR} {
				for _, gap := range []int{0, 3} {
					across := random[float32](rng, "special", max((n-1)*(kc+gap)+kc, 0)) // n rows of kc
					along := random[float32](rng, "special", max((kc-1)*(n+gap)+n, 0))   // kc rows of n
					for _, way := range []struct {
						name  string
						width int
						at    func(i, k int) float32
						pack  func(dst []float32)
					}{
						{"A", g.MR, func(i, k int) float32 { return across[i*(kc+gap)+k] }, func(dst []float32) { g.PackA(dst, across, kc+gap, n, kc) }},
						{"AT", g.MR, func(i, k int) float32 { return along[k*(n+gap)+i] }, func(dst []float32) { g.PackAT(dst, along, n+gap, n, kc) }},
						{"B", g.NR, func(i, k int) float32 { return along[k*(n+gap)+i] }, func(dst []float32) { g.PackB(dst, along, n+gap, kc, n) }},
						{"BT", g.NR, func(i, k int) float32 { return across[i*(kc+gap)+k] }, func(dst []float32) { g.PackBT(dst, across, kc+gap, kc, n) }},
					} {
						size := g.PackedA(n, kc)
						if way.width == g.NR {
							size = g.PackedB(kc, n)
						}
						want := make([]float32, size)
						for i := range n {
							for k := range kc {
								want[(i/way.width*kc+k)*way.width+i%way.width] = way.at(i, k)
							}
						}
						got, check := guarded(t, size)
						way.pack(got)
						sameBits(t, fmt.Sprintf("%s of %d, kc %d, gap %d", way.name, n, kc, gap), got, want)
						check()
					}
				}
			}
		}
	})
}

func BenchmarkGemmTile(b *testing.B) {
	const kc = 384
	eachLevelOf(b, "", fmt.Sprint(kc), func(b *testing.B) {
		g := kernel.Gemm()
		rng := rand.New(rand.NewPCG(25, 26))
		l, r := random[float32](rng, "weights", kc*g.MR), random[float32](rng, "weights", kc*g.NR)
		c := make([]float32, g.MR*g.NR)
		for b.Loop() {
			g.Tile(kc, l, r, c, g.NR, g.MR, g.NR, false)
		}
		flops := 2 * float64(b.N) * float64(kc*g.MR*g.NR)
		b.ReportMetric(flops/b.Elapsed().Seconds()/1e9, "GFLOP/s")
	})
}

func BenchmarkGemmPack(b *testing.B) {
	const kc, n = 384, 4 * 14 * 32
	src := random[float32](rand.New(rand.NewPCG(27, 28)), "weights", n*kc)
	sizeA := func(g kernel.GemmKernel) int { return g.PackedA(n, kc) }
	sizeB := func(g kernel.GemmKernel) int { return g.PackedB(kc, n) }
	for _, way := range []struct {
		name string
		size func(g kernel.GemmKernel) int
		pack func(g kernel.GemmKernel, dst []float32)
	}{
		{"A", sizeA, func(g kernel.GemmKernel, dst []float32) { g.PackA(dst, src, kc, n, kc) }},
		{"AT", sizeA, func(g kernel.GemmKernel, dst []float32) { g.PackAT(dst, src, n, n, kc) }},
		{"B", sizeB, func(g kernel.GemmKernel, dst []float32) { g.PackB(dst, src, n, kc, n) }},
		{"BT", sizeB, func(g kernel.GemmKernel, dst []float32) { g.PackBT(dst, src, kc, kc, n) }},
	} {
		eachLevelOf(b, way.name, fmt.Sprintf("%dx%d", n, kc), func(b *testing.B) {
			g := kernel.Gemm()
			dst := make([]float32, way.size(g))
			b.SetBytes(8 * int64(n*kc))
			for b.Loop() {
				way.pack(g, dst)
			}
		})
	}
}
