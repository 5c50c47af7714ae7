package kernel_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
	"golang.org/x/sys/unix"
)

func cpuTime() time.Duration {
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts)
	return time.Duration(ts.Nano())
}

type variant struct {
	name string
	run  func()
	best time.Duration
}

// race interleaves
func race(rounds int, vs []*variant) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for range rounds {
		for _, v := range vs {
			t := cpuTime()
			v.run()
			d := cpuTime() - t
			if v.best == 0 || d < v.best {
				v.best = d
			}
		}
	}
}

func TestTmpMerge(t *testing.T) {
	if os.Getenv("TMPB") == "" {
		t.Skip()
	}
	const rows, cols = 256, 14336
	c := codec(t, tensor.BF16)
	rng := rand.New(rand.NewPCG(43, 44))
	src, dst := make([]byte, 2*rows*cols), make([]byte, 2*rows*cols)
	c.Encode32(src, random[float32](rng, "weights", rows*cols))
	stats := make([]kernel.RowStats, rows)
	for _, rank := range []int{8, 16, 32, 64} {
		l, r := random[float32](rng, "weights", rows*rank), random[float32](rng, "weights", rank*cols)
		var vs []*variant
		add := func(name string, f func()) { vs = append(vs, &variant{name: name, run: f}) }
		for _, level := range kernel.Levels()[1:] {
			var m kernel.Merger
			var s steps
			banded := func(high int, st bool, merge func(dst, src []byte, rows int, u kernel.LowRank, stats []kernel.RowStats)) func() {
				return func() {
					kernel.Use(level)
					for i := 0; i < rows; i += high {
						part := stats[i:][:high]
						if !st {
							part = nil
						}
						merge(dst[2*i*cols:][:2*high*cols], src[2*i*cols:][:2*high*cols], high, kernel.LowRank{L: l[i*rank:][:high*rank], R: r, Rank: rank, Scale: 0.5}, part)
					}
				}
			}
			tiles := func(dst, src []byte, rows int, u kernel.LowRank, stats []kernel.RowStats) {
				m.Merge(dst, c, src, c, rows, cols, u, stats)
			}
			inSteps := func(dst, src []byte, rows int, u kernel.LowRank, stats []kernel.RowStats) {
				s.merge(dst, c, src, c, rows, cols, u, stats)
			}
			add(level+" tiles", banded(256, true, tiles))
			add(level+" tiles nostats", banded(256, false, tiles))
			add(level+" steps8", banded(2, true, inSteps))
			add(level+" steps8 nostats", banded(2, false, inSteps))
			add(level+" steps256", banded(256, true, inSteps))
			x := make([]float32, 16*cols)
			add(level+" addlowrank x2M", func() {
				kernel.Use(level)
				for range rows / 16 {
					kernel.AddLowRank(x, 16, cols, l[:16*rank], r, rank, 0.5)
				}
			})
			add(level+" stats x2M", func() {
				kernel.Use(level)
				for range rows / 2 {
					kernel.Stats(stats[:2], x[:2*cols], x[2*cols:4*cols], x[4*cols:6*cols], 2, cols)
				}
			})
			add(level+" encode x2M", func() {
				for range rows / 2 {
					c.Encode32(dst[:2*2*cols], x[:2*cols])
				}
			})
		}
		add("copy", func() { copy(dst, src) })
		race(15, vs)
		for _, v := range vs {
			fmt.Printf("rank %d %-22s %8.3f ms  %6.2f GB/s of W\n", rank, v.name, v.best.Seconds()*1e3, float64(2*rows*cols)/v.best.Seconds()/1e9)
		}
	}
}
