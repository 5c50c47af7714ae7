package block_test

import (
	"bytes"
	"math"
	"testing"

	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/quant/block"
)

// plainKinds are the types whose blocks of 32 numbers are encoded by kernels.
var plainKinds = []block.GGML{block.Q8_0, block.Q4_0}

// atLevels runs a test at every level.
func atLevels(t *testing.T, test func(t *testing.T)) {
	before := kernel.Level()
	t.Cleanup(func() {
		if err := kernel.Use(before); err != nil {
			t.Fatal(err)
		}
	})
	for _, name := range kernel.Levels() {
		if err := kernel.Use(name); err != nil {
			t.Fatal(err)
		}
		t.Run(name, test)
	}
}

// TestGGMLPlainRounds guards rounding against math, in blocks whose scale is 1: a number at
// or within four steps of every halfway point, in every place of a block.
func TestGGMLPlainRounds(t *testing.T) {
	numbers := func(largest float32) (x []float32) {
		for half := -2 * largest; half <= 2*largest; half++ {
			bits := math.Float32bits(half / 2)
			for step := uint32(0); step < 9; step++ {
				if v := math.Float32frombits(bits + step - 4); float32(math.Abs(float64(v))) <= largest {
					x = append(x, v)
				}
			}
		}
		return x
	}
	atLevels(t, func(t *testing.T) {
		for i, v := range numbers(127) {
			x := make([]float32, 32)
			x[i%32], x[(i+7)%32] = v, 127
			got := int8(quantize(t, block.Q8_0, x, 32, nil)[2+i%32])
			if want := math.Round(float64(v)); float64(got) != want {
				t.Errorf("Q8_0: %x in place %d has code %d, want %g", v, i%32, got, want)
			}
		}
		for i, v := range numbers(8) {
			x := make([]float32, 32)
			at := 1 + i%31
			x[0], x[at] = -8, v
			got := quantize(t, block.Q4_0, x, 32, nil)[2+at%16] >> (at / 16 * 4) & 15
			// ggml adds in float32 and cuts.
			if want := min(math.Floor(float64(v+8.5)), 15); float64(got) != want {
				t.Errorf("Q4_0: %x in place %d has code %d, want %g", v, at, got, want)
			}
		}
	})
}

// TestGGMLPlainFirst guards that of two equal magnitudes the first one gives Q4_0 its sign.
func TestGGMLPlainFirst(t *testing.T) {
	atLevels(t, func(t *testing.T) {
		for first := range 32 {
			for second := first + 1; second < 32; second++ {
				x := make([]float32, 32)
				x[first], x[second] = -8, 8
				if got := quantize(t, block.Q4_0, x, 32, nil); !bytes.Equal(got[:2], []byte{0, 0x3c}) {
					t.Errorf("-8 in place %d, 8 in place %d: scale % x, want that of 1", first, second, got[:2])
				}
				x[first], x[second] = 8, -8
				if got := quantize(t, block.Q4_0, x, 32, nil); !bytes.Equal(got[:2], []byte{0, 0xbc}) {
					t.Errorf("8 in place %d, -8 in place %d: scale % x, want that of -1", first, second, got[:2])
				}
			}
		}
	})
}

// TestGGMLPlainScales guards blocks of every size of numbers, from zeros of either sign
// and subnormal ones, whose scale is zero or has no finite inverse, up to those that binary16
// can just hold: levels with vectors have the bytes of the one without.
func TestGGMLPlainScales(t *testing.T) {
	var x []float32
	add := func(bits uint32) {
		for place := range 32 {
			v := math.Float32frombits(bits ^ uint32(place&1)<<31)
			x = append(x, v*float32(32-place)/32)
		}
	}
	for bits := range uint32(2100) { // the smallest, among them those that 127 and 8 divide to a tie
		add(bits)
	}
	for exponent := uint32(0); exponent < 127+18; exponent++ {
		for _, fraction := range []uint32{0, 1, 0x2aaaaa, 0x3fffff, 0x400000, 0x555555, 0x7e0000, 0x7ffffe, 0x7fffff} {
			add(exponent<<23 | fraction)
			add(1<<31 | exponent<<23 | fraction)
		}
	}
	for range 32 {
		x = append(x, float32(math.Copysign(0, -1)))
	}
	want := map[block.GGML][]byte{}
	atLevels(t, func(t *testing.T) {
		for _, kind := range plainKinds {
			got := quantize(t, kind, x, len(x), nil)
			if want[kind] == nil {
				want[kind] = got // of generic, the first
			}
			if at, same := firstDifference(got, want[kind]); !same {
				size, _ := kind.RowBytes(32)
				n := at / int(size)
				t.Errorf("%s: byte %d is %#x, want %#x, in the block of %x", kind, at, got[at], want[kind][at], x[32*n:][:32])
			}
		}
	})
}
