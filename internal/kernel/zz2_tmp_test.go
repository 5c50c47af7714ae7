package kernel_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/loratool/loratool/internal/kernel"
)

func TestTmpLow(t *testing.T) {
	if os.Getenv("TMPB") == "" {
		t.Skip()
	}
	rng := rand.New(rand.NewPCG(43, 44))
	for _, rank := range []int{8, 16, 32, 64, 128} {
		var vs []*variant
		for _, cols := range []int{4096, 11008} {
			for _, rows := range []int{8, 16, 32, 256} {
				x := make([]float32, rows*cols)
				l, r := random[float32](rng, "weights", rows*rank), random[float32](rng, "weights", rank*cols)
				for _, level := range []string{"avx2", "avx512"} {
					vs = append(vs, &variant{name: fmt.Sprintf("%s %dx%d", level, rows, cols), run: func() {
						kernel.Use(level)
						for range 256 / rows {
							kernel.AddLowRank(x, rows, cols, l, r, rank, 1e-9)
						}
					}})
				}
			}
		}
		race(9, vs)
		for i, v := range vs {
			cols := 4096
			if i >= 8 {
				cols = 11008
			}
			fmt.Printf("rank %3d %-20s %6.1f GF/s\n", rank, v.name, 2*256*float64(cols*(rank+1))/v.best.Seconds()/1e9)
		}
	}
}
