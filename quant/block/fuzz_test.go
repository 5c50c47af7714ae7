package block_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/quant/block"
)

// FuzzEncode guards, for any number in either precision, that the code is the
// nearest one, and that what was read back encodes to the same code.
func FuzzEncode(f *testing.F) {
	for _, x := range []float64{0, 1, -1.0009765625, 65520, 464, 0x1p-25, math.Inf(-1), math.NaN()} {
		f.Add(math.Float64bits(x))
	}
	all := formats()
	f.Fuzz(func(t *testing.T, bits uint64) {
		x, y := math.Float64frombits(bits), math.Float32frombits(uint32(bits))
		for _, f := range all {
			c := codecOf(t, f.dtype)
			code64, code32 := f.encode64(c, x)[0], f.encode32(c, y)[0]
			if x == x && !f.nearest(x, code64) || y == y && !f.nearest(float64(y), code32) {
				t.Fatalf("%s: %x became %#x, %x became %#x", f.dtype, x, code64, y, code32)
			}
			for _, code := range []int{code64, code32} {
				numbers := make([]float64, 1)
				c.Decode64(numbers, []byte{byte(code), byte(code >> 8)}[:f.bits/8])
				sameCode(t, f.dtype.String(), f.encode64(c, numbers...)[0], code)
			}
			if x != x {
				numbers := make([]float64, 1)
				c.Decode64(numbers, []byte{byte(code64), byte(code64 >> 8)}[:f.bits/8])
				if numbers[0] == numbers[0] || math.Signbit(numbers[0]) != math.Signbit(x) {
					t.Fatalf("%s: NaN %#x became %#x", f.dtype, bits, code64)
				}
			}
		}
	})
}

func BenchmarkCodec(b *testing.B) {
	const count = 1 << 16
	rng := rand.New(rand.NewPCG(6, 7))
	weights, wide := make([]float32, count), make([]float64, count)
	for i := range weights {
		wide[i] = rng.NormFloat64() * 0.02 // like a linear layer
		weights[i] = float32(wide[i])
	}
	for _, d := range []tensor.DType{tensor.F16, tensor.BF16, tensor.F32, tensor.F64, tensor.F8E4M3, tensor.F8E5M2} {
		c, _ := block.For(d)
		data := make([]byte, count*d.Bits()/8)
		c.Encode32(data, weights)
		run := func(name string, width int, call func()) {
			b.Run(fmt.Sprintf("%s/%s/%s/%d", d, name, kernel.Level(), count), func(b *testing.B) {
				b.SetBytes(int64(len(data) + width*count)) // read and written
				for b.Loop() {
					call()
				}
			})
		}
		run("Decode32", 4, func() { block.Decode(c, weights, data) })
		run("Encode32", 4, func() { block.Encode(c, data, weights) })
		run("Decode64", 8, func() { block.Decode(c, wide, data) })
		run("Encode64", 8, func() { block.Encode(c, data, wide) })
		run("AnyNonFinite", 0, func() { block.AnyNonFinite(c, data) })
	}
}
