package block

import (
	"encoding/binary"
	"flag"
	"math"
	"testing"

	"github.com/x448/float16"
)

var exhaustive = flag.Bool("exhaustive", false, "try all 2^32 patterns of a float32, which takes minutes")

// TestF16 guards the shortcuts of F16 against x448/float16, which its author
// checked on all patterns: every code, and the float32 patterns in steps.
func TestF16(t *testing.T) {
	codes, numbers := make([]byte, 2), make([]float32, 1)
	for h := range 1 << 16 {
		binary.LittleEndian.PutUint16(codes, uint16(h))
		f16{}.Decode32(numbers, codes)
		want := float16.Frombits(uint16(h)).Float32()
		if got := numbers[0]; math.Float32bits(got) != math.Float32bits(want) {
			t.Fatalf("f16 %#04x = %x, want %x", h, got, want)
		}
	}
	eachFloat32(func(bits uint32) {
		numbers[0] = math.Float32frombits(bits)
		f16{}.Encode32(codes, numbers)
		got, want := binary.LittleEndian.Uint16(codes), float16.Fromfloat32(numbers[0]).Bits()
		if got != want {
			t.Fatalf("float32 %#08x became %#04x, want %#04x", bits, got, want)
		}
	})
}

// TestBF16 guards the carry of the integer rounding: the result, seen as the
// float32 it stands for, is at most half a step away, and exactly half only if it
// is even.
func TestBF16(t *testing.T) {
	eachFloat32(func(bits uint32) {
		got := uint32(float32ToBF16(math.Float32frombits(bits)))
		if bits&^sign32 > inf32 {
			if want := bits>>16 | 0x40; got != want {
				t.Fatalf("NaN %#08x became %#04x, want %#04x", bits, got, want)
			}
			return
		}
		// Codes are as ordered as the numbers, so the distance is one of integers.
		distance := int64(got)<<16 - int64(bits)
		if distance < -0x8000 || distance > 0x8000 || (distance == -0x8000 || distance == 0x8000) && got%2 == 1 {
			t.Fatalf("float32 %#08x became %#04x", bits, got)
		}
	})
}

// eachFloat32 visits the patterns of float32 in prime steps, so that the bits
// that rounding drops take all values.
func eachFloat32(visit func(bits uint32)) {
	step := uint64(127)
	switch {
	case *exhaustive:
		step = 1
	case testing.Short():
		step = 7919
	}
	for bits := uint64(0); bits < 1<<32; bits += step {
		visit(uint32(bits))
	}
}
