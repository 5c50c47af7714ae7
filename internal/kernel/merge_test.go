package kernel_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/quant/block"
)

// steps is the sequence that a merge fuses, with its buffers.
type steps struct{ base, exact, stored []float32 }

func (s *steps) merge(dst []byte, to block.Codec, src []byte, from block.Codec, rows, cols int, u kernel.LowRank, stats []kernel.RowStats) {
	n := rows * cols
	if len(s.base) < n {
		s.base, s.exact, s.stored = make([]float32, n), make([]float32, n), make([]float32, n)
	}
	base, exact, stored := s.base[:n], s.exact[:n], s.stored[:n]
	from.Decode32(base, src)
	copy(exact, base)
	kernel.AddLowRank(exact, rows, cols, u.L, u.R, u.Rank, u.Scale)
	to.Encode32(dst, exact)
	if stats != nil {
		to.Decode32(stored, dst)
		kernel.Stats(stats, base, exact, stored, rows, cols)
	}
}

func codec(t testing.TB, d tensor.DType) block.Codec {
	c, ok := block.For(d)
	if !ok {
		t.Fatal(d)
	}
	return c
}

// TestMerge holds the tiles to the bytes and sums of the steps on whole rows, with
// one Merger for all sizes.
func TestMerge(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		var m kernel.Merger
		rng := rand.New(rand.NewPCG(41, 42))
		types := []tensor.DType{tensor.BF16, tensor.F16, tensor.F32, tensor.F8E4M3}
		for _, cols := range []int{0, 1, 15, 63, 64, 65, 100, 511, 512, 513, 576, 1027, 1100} {
			for _, rows := range []int{0, 1, 3, 15, 16, 17, 35} {
				for _, rank := range []int{0, 1, 5, 16, 67} {
					if rank == 67 && rows > 17 {
						continue
					}
					from, to := codec(t, types[rng.IntN(4)]), codec(t, types[rng.IntN(4)])
					if rng.IntN(3) > 0 {
						to = from // the fused kernels
					}
					kind := kinds[rng.IntN(len(kinds))]
					u := kernel.LowRank{L: random[float32](rng, kind, rows*rank), R: random[float32](rng, kind, rank*cols), Rank: rank, Scale: 0.5}
					src := make([]byte, rows*cols*int(from.DType().Bits()/8))
					from.Encode32(src, random[float32](rng, kind, rows*cols))
					want := make([]byte, rows*cols*int(to.DType().Bits()/8))
					wantStats, stats := make([]kernel.RowStats, rows), make([]kernel.RowStats, rows)
					for i := range stats {
						stats[i].Base, stats[i].NonFiniteBase = 99, 99
					}
					new(steps).merge(want, to, src, from, rows, cols, u, wantStats)

					what := fmt.Sprintf("%s %s to %s, %dx%d, rank %d", kind, from.DType(), to.DType(), rows, cols, rank)
					var guard canaries
					got := guard.bytes(len(want))
					m.Merge(got, to, src, from, rows, cols, u, stats)
					if !bytes.Equal(got, want) {
						t.Fatalf("%s: other bytes", what)
					}
					for i := range stats {
						if stats[i] != wantStats[i] {
							t.Fatalf("%s: row %d has %+v, want %+v", what, i, stats[i], wantStats[i])
						}
					}
					clear(got)
					m.Merge(got, to, src, from, rows, cols, u, nil)
					if !bytes.Equal(got, want) {
						t.Fatalf("%s: other bytes without stats", what)
					}
					guard.check()
				}
			}
		}
	})
}

// TestMergeLengths guards the checks.
func TestMergeLengths(t *testing.T) {
	c := codec(t, tensor.BF16)
	good := kernel.LowRank{L: make([]float32, 2), R: make([]float32, 3), Rank: 1}
	for name, call := range map[string]func(m *kernel.Merger){
		"l": func(m *kernel.Merger) {
			m.Merge(make([]byte, 12), c, make([]byte, 12), c, 2, 3, kernel.LowRank{L: make([]float32, 3), R: good.R, Rank: 1}, nil)
		},
		"r": func(m *kernel.Merger) {
			m.Merge(make([]byte, 12), c, make([]byte, 12), c, 2, 3, kernel.LowRank{L: good.L, R: make([]float32, 2), Rank: 1}, nil)
		},
		"dst": func(m *kernel.Merger) { m.Merge(make([]byte, 11), c, make([]byte, 12), c, 2, 3, good, nil) },
		"src": func(m *kernel.Merger) { m.Merge(make([]byte, 12), c, make([]byte, 13), c, 2, 3, good, nil) },
		"stats": func(m *kernel.Merger) {
			m.Merge(make([]byte, 12), c, make([]byte, 12), c, 2, 3, good, make([]kernel.RowStats, 3))
		},
		"rows": func(m *kernel.Merger) { m.Merge(nil, c, nil, c, -2, -3, good, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if _, ok := recover().(string); !ok {
					t.Error("no panic with a constant string")
				}
			}()
			call(new(kernel.Merger))
		})
	}
}

// BenchmarkMerge merges a bf16 matrix of 4096 columns: in tiles, in the steps on
// bands of 32 Ki and of 1 Mi elements. Bytes are those of W.
func BenchmarkMerge(b *testing.B) {
	const rows, cols = 1024, 4096
	c := codec(b, tensor.BF16)
	rng := rand.New(rand.NewPCG(43, 44))
	src, dst := make([]byte, 2*rows*cols), make([]byte, 2*rows*cols)
	c.Encode32(src, random[float32](rng, "weights", rows*cols))
	stats := make([]kernel.RowStats, rows)
	for _, rank := range []int{8, 16, 32, 64} {
		l, r := random[float32](rng, "weights", rows*rank), random[float32](rng, "weights", rank*cols)
		for _, level := range kernel.Levels() {
			run := func(name string, high int, stats []kernel.RowStats, merge func(dst, src []byte, rows int, u kernel.LowRank, stats []kernel.RowStats)) {
				b.Run(fmt.Sprintf("rank%d/%s/%s", rank, name, level), func(b *testing.B) {
					use(b, level)
					b.SetBytes(2 * rows * cols)
					for b.Loop() {
						for i := 0; i < rows; i += high {
							part := stats
							if stats != nil {
								part = stats[i:][:high]
							}
							merge(dst[2*i*cols:][:2*high*cols], src[2*i*cols:][:2*high*cols], high, kernel.LowRank{L: l[i*rank:][:high*rank], R: r, Rank: rank, Scale: 0.5}, part)
						}
					}
				})
			}
			var m kernel.Merger
			var s steps
			tiles := func(dst, src []byte, rows int, u kernel.LowRank, stats []kernel.RowStats) {
				m.Merge(dst, c, src, c, rows, cols, u, stats)
			}
			inSteps := func(dst, src []byte, rows int, u kernel.LowRank, stats []kernel.RowStats) {
				s.merge(dst, c, src, c, rows, cols, u, stats)
			}
			run("tiles", 256, stats, tiles)
			run("tilesnostats", 256, nil, tiles)
			run("steps32Ki", 8, stats, inSteps)
			run("steps1Mi", 256, stats, inSteps)
		}
	}
	b.Run("copy", func(b *testing.B) {
		b.SetBytes(2 * rows * cols)
		for b.Loop() {
			copy(dst, src)
		}
	})
}
