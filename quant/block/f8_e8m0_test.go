package block_test

import (
	"math"
	"testing"

	"github.com/loratool/loratool/quant/block"
)

// TestDecodeE8M0 goes through all codes: float64 has every power.
func TestDecodeE8M0(t *testing.T) {
	src, dst := make([]byte, 256), make([]float32, 256)
	for i := range src {
		src[i] = byte(i)
	}
	block.DecodeE8M0(dst, src)
	for i, got := range dst[:255] {
		if want := math.Ldexp(1, i-127); float64(got) != want {
			t.Errorf("code %d is %v, want %v", i, got, want)
		}
	}
	if got := dst[255]; got == got {
		t.Errorf("code 255 is %v, want NaN", got)
	}
}
