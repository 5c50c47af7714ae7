package kernel_test

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/quant/block"
)

// plainEncoders are run by package quant/block, which has the portable code.
var plainEncoders = []operation{
	{"EncodeQ8", func(m memory, rng *rand.Rand, n int) []uint64 { return encodePlain(m, rng, n, block.Q8_0) }},
	{"EncodeQ4", func(m memory, rng *rand.Rand, n int) []uint64 { return encodePlain(m, rng, n, block.Q4_0) }},
}

// encodePlain encodes the whole blocks of n numbers, without those that are refused.
func encodePlain(m memory, rng *rand.Rand, n int, kind block.GGML) []uint64 {
	n &^= 31
	if n == 0 {
		return nil
	}
	x := values(m, rng, n)
	for i, v := range x {
		if !(math.Abs(float64(v)) < 5e5) { // below 8 times the largest binary16
			x[i] = 1
		}
	}
	size, _ := kind.RowBytes(int64(n))
	dst := m.bytes(int(size))
	if err := kind.Quantize(dst, x, n, nil); err != nil {
		panic(err)
	}
	var out []uint64
	for _, b := range dst {
		out = append(out, uint64(b))
	}
	return out
}

// TestEncodePlainCounts guards that a level with vectors takes all blocks, more than
// one call of assembly does at once too, and generic none; and that lengths are checked.
func TestEncodePlainCounts(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		for _, n := range []int{0, 32, 96, 64<<10 + 32, 192 << 10} {
			want := n
			if kernel.Level() == "generic" {
				want = 0
			}
			x := make([]float32, n)
			if got := kernel.EncodeQ8(make([]byte, n/32*34), x); got != want {
				t.Errorf("EncodeQ8 of %d numbers took %d", n, got)
			}
			if got := kernel.EncodeQ4(make([]byte, n/32*18), x); got != want {
				t.Errorf("EncodeQ4 of %d numbers took %d", n, got)
			}
		}
		for _, lengths := range [][2]int{{33, 32}, {34, 33}, {68, 32}} {
			if !panics(func() { kernel.EncodeQ8(make([]byte, lengths[0]), make([]float32, lengths[1])) }) {
				t.Errorf("EncodeQ8 takes %d numbers for %d bytes", lengths[1], lengths[0])
			}
		}
		if !panics(func() { kernel.EncodeQ4(make([]byte, 19), make([]float32, 32)) }) {
			t.Error("EncodeQ4 takes 32 numbers for 19 bytes")
		}
	})
}

func panics(call func()) (did bool) {
	defer func() { did = recover() != nil }()
	call()
	return
}
