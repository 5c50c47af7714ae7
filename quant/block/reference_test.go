package block_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"testing"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/quant/block"
)

// format describes a narrow float format independently of the codecs.
type format struct {
	dtype    tensor.DType
	bits     int
	frac     int // bits of fraction
	bias     int
	largest  int // code of the largest number
	overflow int // code of what is too large
	values   []float64
	ties     []float64 // ties[c] lies in the middle between codes c and c+1
}

func formats() []*format {
	all := []*format{
		{dtype: tensor.F16, bits: 16, frac: 10, bias: 15, largest: 0x7bff, overflow: 0x7c00},
		{dtype: tensor.BF16, bits: 16, frac: 7, bias: 127, largest: 0x7f7f, overflow: 0x7f80},
		{dtype: tensor.F8E4M3, bits: 8, frac: 3, bias: 7, largest: 0x7e, overflow: 0x7e},
		{dtype: tensor.F8E5M2, bits: 8, frac: 2, bias: 15, largest: 0x7b, overflow: 0x7c},
	}
	for _, f := range all {
		for code := range f.largest + 2 {
			exponent, fraction := code>>f.frac, code&(1<<f.frac-1)
			if exponent == 0 {
				exponent = 1
			} else {
				fraction += 1 << f.frac
			}
			f.values = append(f.values, math.Ldexp(float64(fraction), exponent-f.bias-f.frac))
		}
		for code := range f.largest + 1 {
			f.ties = append(f.ties, (f.values[code]+f.values[code+1])/2) // exact: few bits
		}
	}
	return all
}

// nearest reports whether code is x rounded to nearest even. It compares x with
// the two ties around the code, which float64 holds exactly.
func (f *format) nearest(x float64, code int) bool {
	sign := 1 << (f.bits - 1)
	if math.Signbit(x) != (code&sign != 0) {
		return false
	}
	x, code = math.Abs(x), code&^sign
	last := f.ties[f.largest]
	if tooLarge := x > last || x == last && f.largest%2 == 1; tooLarge {
		return code == f.overflow
	}
	if code > f.largest {
		return false
	}
	even := code%2 == 0
	above := code == 0 || x > f.ties[code-1] || x == f.ties[code-1] && even
	below := x < f.ties[code] || x == f.ties[code] && even
	return above && below
}

// isNaN reports whether a code is NaN: whatever lies beyond the largest number
// and, where there is one, infinity.
func (f *format) isNaN(code int) bool {
	return code&^(1<<(f.bits-1)) > max(f.largest, f.overflow)
}

func (f *format) encode64(c block.Codec, x ...float64) []int {
	dst := make([]byte, len(x)*f.bits/8)
	c.Encode64(dst, x)
	return f.codes(dst)
}

func (f *format) encode32(c block.Codec, x ...float32) []int {
	dst := make([]byte, len(x)*f.bits/8)
	c.Encode32(dst, x)
	return f.codes(dst)
}

func (f *format) codes(data []byte) []int {
	codes := make([]int, 0, len(data))
	for len(data) > 0 {
		if f.bits == 8 {
			codes, data = append(codes, int(data[0])), data[1:]
			continue
		}
		codes, data = append(codes, int(binary.LittleEndian.Uint16(data))), data[2:]
	}
	return codes
}

// every returns the bytes of all codes of the format, in order.
func (f *format) every() []byte {
	var data []byte
	for code := range 1 << f.bits {
		data = append(data, byte(code))
		if f.bits == 16 {
			data = append(data, byte(code>>8))
		}
	}
	return data
}

func codecOf(t testing.TB, d tensor.DType) block.Codec {
	t.Helper()
	c, ok := block.For(d)
	if !ok {
		t.Fatalf("no codec for %s", d)
	}
	if c.DType() != d {
		t.Fatalf("codec for %s says it is for %s", d, c.DType())
	}
	return c
}

// same32 and same64 compare bits, so that -0 is not 0 and NaNs have payloads.
func same32(t *testing.T, what string, got, want float32) {
	t.Helper()
	if g, w := math.Float32bits(got), math.Float32bits(want); g != w {
		t.Fatalf("%s: %v (%#08x), want %v (%#08x)", what, got, g, want, w)
	}
}

func same64(t *testing.T, what string, got, want float64) {
	t.Helper()
	if g, w := math.Float64bits(got), math.Float64bits(want); g != w {
		t.Fatalf("%s: %v (%#016x), want %v (%#016x)", what, got, g, want, w)
	}
}

func sameCode(t *testing.T, what string, got, want int) {
	t.Helper()
	if got != want {
		t.Fatalf("%s: code %#x, want %#x", what, got, want)
	}
}

func label(d tensor.DType, code int) string { return fmt.Sprintf("%s code %#x", d, code) }
