package block

import (
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"github.com/loratool/loratool/internal/kernel"
)

// BenchmarkOverGeneric measures the encoding of a row by each type at the level in use
// against portable Go, in turns and in CPU time of the thread, so that other programs
// count for little. It reports the median of the ratios of their speeds as x-of-generic.
func BenchmarkOverGeneric(b *testing.B) {
	const cols = 4096
	rng := rand.New(rand.NewPCG(1, 1))
	row, weights := make([]float32, cols), make([]float32, cols)
	for i := range row {
		row[i], weights[i] = float32(rng.NormFloat64()*0.02), float32(rng.ExpFloat64())
	}
	fast := kernel.Level()
	b.Cleanup(func() { use(b, fast) })
	for i := range ggmlTypes {
		kind := GGML(i)
		if !kind.Known() || kind.CanQuantize() != nil {
			continue
		}
		size, _ := kind.RowBytes(cols)
		dst := make([]byte, size)
		measure := func(name string, weights []float32) {
			b.Run(name+"/"+fast, func(b *testing.B) {
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				timed := func(level string) float64 {
					use(b, level)
					start := threadTime(b)
					if err := kind.Quantize(dst, row, cols, weights); err != nil {
						b.Fatal(err)
					}
					return threadTime(b) - start
				}
				var ratios []float64
				for b.Loop() {
					slow := timed("generic")
					ratios = append(ratios, slow/timed(fast))
				}
				slices.Sort(ratios)
				b.ReportMetric(ratios[len(ratios)/2], "x-of-generic")
			})
		}
		if !kind.NeedsWeights() {
			measure(kind.String(), nil)
		}
		if kind.Weighted() {
			measure(kind.String()+"-weighted", weights)
		}
	}
}
