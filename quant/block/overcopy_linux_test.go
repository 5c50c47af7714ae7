package block

import (
	"fmt"
	"runtime"
	"slices"
	"testing"

	"github.com/loratool/loratool/internal/kernel"
	"golang.org/x/sys/unix"
)

// BenchmarkOverCopy measures conversions of 16 Mi elements against a copy that reads
// and writes as many bytes in all, in turns and in CPU time of the thread, so that
// other programs count for little. It reports the median of the ratios of their speeds
// as x-of-copy.
func BenchmarkOverCopy(b *testing.B) {
	const count = 16 << 20
	numbers, codes := make([]float32, count), make([]byte, 4*count)
	from, to := slices.Repeat([]byte{1}, 4*count), slices.Repeat([]byte{2}, 4*count)
	for i := range numbers {
		numbers[i] = float32(i%1000) * 1e-4
	}
	for _, c := range vectorCodecs {
		codes, half := codes[:c.size*count], (4+c.size)*count/2
		for _, way := range []string{"encode", "decode"} {
			call := func() { c.Encode32(codes, numbers) }
			if way == "decode" {
				call = func() { c.Decode32(numbers, codes) }
			}
			b.Run(fmt.Sprintf("%s/%s/%s/%d", c.DType(), way, kernel.Level(), count), func(b *testing.B) {
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				var ratios []float64
				for b.Loop() {
					start := threadTime(b)
					copy(to[:half], from[:half])
					between := threadTime(b)
					call()
					ratios = append(ratios, (between-start)/(threadTime(b)-between))
				}
				slices.Sort(ratios)
				b.ReportMetric(ratios[len(ratios)/2], "x-of-copy")
			})
		}
	}
}

// threadTime returns the CPU seconds of the thread.
func threadTime(b *testing.B) float64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		b.Fatal(err)
	}
	return float64(t.Sec) + 1e-9*float64(t.Nsec)
}
