package block_test

import (
	"bytes"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/internal/kernel"
)

// TestGGMLLevels guards that every type has the same bytes at every level, for rows of
// any number of blocks: eight groups or blocks at once go through vectors, and the rest
// does not. Numbers are rounded so that ties occur, and of any size.
func TestGGMLLevels(t *testing.T) {
	before := kernel.Level()
	use := func(name string) {
		if err := kernel.Use(name); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { use(before) })
	rng := rand.New(rand.NewPCG(51, 52))
	for _, kind := range writable() {
		for blocks := 1; blocks < 40; blocks += 1 + blocks/10 {
			cols := blocks * kind.BlockElements()
			src, weights := make([]float32, 2*cols), sampleWeights(rng, cols)
			for i := range src {
				v := math.Float32bits(float32(rng.NormFloat64()))
				src[i] = math.Float32frombits(v >> 12 << 12)
				switch {
				case blocks%7 == 6:
					src[i] *= float32(math.Exp2(float64(rng.IntN(50) - 40)))
				case blocks%5 == 4:
					src[i] += 2
				case blocks%3 == 2:
					src[i] = 1
				}
			}
			for _, w := range [][]float32{even(kind, cols), weights} {
				use("generic")
				want := quantize(t, kind, src, cols, w)
				for _, name := range kernel.Levels()[1:] {
					use(name)
					if got := quantize(t, kind, src, cols, w); !bytes.Equal(got, want) {
						at, _ := firstDifference(got, want)
						t.Fatalf("%s of %d blocks at %s: byte %d is %#x, want %#x", kind, blocks, name, at, got[at], want[at])
					}
				}
			}
		}
	}
}
