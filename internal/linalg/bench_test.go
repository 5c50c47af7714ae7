package linalg_test

import (
	"fmt"
	"testing"

	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/internal/linalg"
	"github.com/loratool/loratool/internal/linalg/linalgtest"
	"gonum.org/v1/gonum/mat"
)

// BenchmarkTruncate reports CPU seconds and the excess of the residual over the
// best one, on the reference spectra. A full decomposition by gonum is beside it
// where that takes seconds, not minutes.
func BenchmarkTruncate(b *testing.B) {
	for _, n := range []int{512, 1024, 4096} {
		for _, kind := range linalgtest.Spectra {
			s := linalgtest.Spectrum(kind, n)
			a := linalgtest.WithSpectrum(n, n, s, 1)
			for _, o := range []linalg.Options{
				{Rank: 16}, {Rank: 64}, {Rank: 256}, {Rank: 64, Threads: 2}, {Rank: 256, Threads: 2},
				{Energy: 0.5}, {Energy: 0.9, MaxRank: 256}, {Rank: 64, Exact: true},
			} {
				name := fmt.Sprintf("%s/%d/%s/rank=%d", kernel.Level(), n, kind, o.Rank)
				switch {
				case o.Exact:
					name += "/exact"
				case o.Energy > 0:
					name += fmt.Sprintf("/energy=%v,%d", o.Energy, o.MaxRank)
				}
				b.Run(fmt.Sprintf("%s/threads=%d", name, max(1, o.Threads)), func(b *testing.B) {
					start := cpuSeconds()
					var d linalg.SVD
					for b.Loop() {
						var err error
						if d, err = linalg.Truncate(a, o); err != nil {
							b.Fatal(err)
						}
					}
					b.ReportMetric((cpuSeconds()-start)/float64(b.N), "cpu-s/op")
					b.ReportMetric(d.Residual*d.Norm/linalgtest.Tail(s, len(d.S))-1, "excess")
					b.ReportMetric(float64(d.Steps), "steps")
					b.ReportMetric(float64(len(d.S)), "rank")
				})
			}
			if n > 1024 || kind != "P" {
				continue
			}
			b.Run(fmt.Sprintf("gonum/%d/%s", n, kind), func(b *testing.B) {
				dense := mat.NewDense(n, n, nil)
				for i, v := range a.Data {
					dense.RawMatrix().Data[i] = float64(v)
				}
				start := cpuSeconds()
				for b.Loop() {
					var svd mat.SVD
					svd.Factorize(dense, mat.SVDThin)
				}
				b.ReportMetric((cpuSeconds()-start)/float64(b.N), "cpu-s/op")
			})
		}
	}
}
