package main

import (
	"fmt"
	"os"
	"testing"

	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/internal/linalg"
	"github.com/loratool/loratool/internal/linalg/linalgtest"
)

// The benchmarks are the same contenders for benchstat, which compares their names:
//
//	OPENBLAS=DIR go test -bench Gemm -count 10 . | benchstat -col /by -

// library returns OpenBLAS, or skips the benchmark or the test.
func library(tb testing.TB) *openBLAS {
	tb.Helper()
	l := blasLoader{path: os.Getenv("OPENBLAS")}
	lib, err := l.open("")
	if err != nil {
		tb.Skip(err)
	}
	return lib
}

// compete runs a contender as a sub-benchmark.
func compete(b *testing.B, name string, c contender, work float64, unit string) {
	b.Run(name, func(b *testing.B) {
		c.run()
		cpu := processCPU()
		for b.Loop() {
			c.run()
		}
		b.ReportMetric((processCPU()-cpu).Seconds()/float64(b.N), "cpu-s/op")
		if work > 0 {
			b.ReportMetric(work*float64(b.N)/b.Elapsed().Seconds()/1e9, unit)
		}
	})
}

func BenchmarkGemm(b *testing.B) {
	lib := library(b)
	defer use(kernel.Level())
	for _, shape := range [][3]int{{1024, 1024, 1024}, {4096, 4096, 4096}, {4096, 64, 4096}, {4096, 128, 4096}, {4096, 266, 4096}} {
		f := newFactors(shape[0], shape[1], shape[2])
		for _, threads := range []int{1, 2} {
			name := fmt.Sprintf("shape=%dx%dx%d/threads=%d/by=", f.m, f.n, f.k, threads)
			for _, level := range vectorLevels() {
				compete(b, name+level, f.ours(level, threads), f.flops(), "GFLOP/s")
			}
			compete(b, name+"openblas", f.openBLAS(lib, threads), f.flops(), "GFLOP/s")
			if f.m <= 1024 {
				compete(b, name+"gonum", f.gonum(threads), f.flops(), "GFLOP/s")
			}
		}
	}
}

func BenchmarkMerge(b *testing.B) {
	for _, rank := range []int{8, 16, 32, 64} {
		t := newTensor(4096, rank)
		for _, threads := range []int{1, 2} {
			name := fmt.Sprintf("rank=%d/threads=%d", rank, threads)
			compete(b, name+"/report=no", t.ours(threads, false), float64(len(t.w)), "GB/s")
			compete(b, name+"/report=yes", t.ours(threads, true), float64(len(t.w)), "GB/s")
		}
	}
}

func BenchmarkConvert(b *testing.B) {
	for _, c := range conversions(conversionElements) {
		compete(b, c.name+"/by=loratool", contender{threads: 1, run: c.run}, float64(c.moved), "GB/s")
		compete(b, c.name+"/by=go-copy", contender{threads: 1, run: c.copyByGo}, float64(c.moved), "GB/s")
		compete(b, c.name+"/by=c-memcpy", contender{threads: 1, run: c.copyByC}, float64(c.moved), "GB/s")
	}
}

func BenchmarkTruncate(b *testing.B) {
	for _, kind := range linalgtest.Spectra {
		s := newSpectrum(kind, 4096)
		for _, rank := range []int{16, 64, 256} {
			for _, threads := range []int{1, 2} {
				t := truncation{options: linalg.Options{Rank: rank, Threads: threads}}
				compete(b, fmt.Sprintf("spectrum=%s/rank=%d/threads=%d", kind, rank, threads), t.contender(s.a), 0, "")
			}
		}
	}
}
