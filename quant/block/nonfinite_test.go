package block_test

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/quant/block"
)

// TestAnyNonFinite guards the search by lanes against decoding: every code of
// the narrow formats alone, then random data of all lengths, where a wrong carry
// would reach the next element.
func TestAnyNonFinite(t *testing.T) {
	for _, f := range formats() {
		c := codecOf(t, f.dtype)
		data, size := f.every(), f.bits/8
		for at := 0; at < len(data); at += size {
			sameSearch(t, c, data[at:at+size])
		}
		sameSearch(t, c, data)
	}
	rng := rand.New(rand.NewPCG(4, 5))
	for _, d := range tensor.All() {
		c, ok := block.For(d)
		if !ok {
			continue
		}
		size := int(d.Bits() / 8)
		for count := range 40 {
			for range 100 {
				data := make([]byte, count*size)
				for i := range data {
					// Exponents of all ones, or one less, are common then.
					data[i] = []byte{0x7f, 0xff, 0x7c, 0x7b, 0x80, 0xf0, 0, byte(rng.Uint32())}[rng.IntN(8)]
				}
				sameSearch(t, c, data)
			}
		}
	}
}

// TestAnyNonFiniteWide guards the edges of the formats with long exponents.
func TestAnyNonFiniteWide(t *testing.T) {
	for _, x := range []float64{0, math.Copysign(0, -1), 1, math.MaxFloat64, -math.MaxFloat64, math.Inf(1), math.Inf(-1), math.NaN(), -math.NaN(), math.SmallestNonzeroFloat64} {
		for before := range 5 {
			single, double := make([]byte, 4*before), make([]byte, 8*before)
			single = binary.LittleEndian.AppendUint32(single, math.Float32bits(float32(x)))
			double = binary.LittleEndian.AppendUint64(double, math.Float64bits(x))
			sameSearch(t, codecOf(t, tensor.F32), append(single, 0, 0, 0x80, 0x7f))
			sameSearch(t, codecOf(t, tensor.F64), append(double, double...))
		}
	}
}

func sameSearch(t *testing.T, c block.Codec, data []byte) {
	t.Helper()
	numbers := make([]float64, int64(len(data))*8/c.DType().Bits())
	c.Decode64(numbers, data)
	want, found := int64(0), false
	for i, x := range numbers {
		if math.IsNaN(x) || math.IsInf(x, 0) {
			want, found = int64(i), true
			break
		}
	}
	if got, ok := block.AnyNonFinite(c, data); got != want || ok != found {
		t.Fatalf("%s % x: %d %v, want %d %v", c.DType(), data, got, ok, want, found)
	}
}
