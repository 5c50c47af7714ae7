package verify_test

import (
	"fmt"
	"math"
	"path/filepath"
	"testing"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/quant/block"
)

// TestHalfProducts compares the kernels that stand for runtimes with torch's products in 16
// bits. Both add up in float32 in orders of their own and round once: with n products, g =
// n·2^-24/(1 - n·2^-24) and u the roundoff of the type, they are at most 2·g·|W||x| + 2u·|y|
// apart, the second with room for |y| of either side.
func TestHalfProducts(t *testing.T) {
	for _, c := range []struct {
		name    string
		storage kernel.Storage
		dtype   tensor.DType
		u       float64
	}{{"float16", kernel.F16, tensor.F16, 0x1p-11}, {"bfloat16", kernel.BF16, tensor.BF16, 0x1p-8}} {
		m := openPath(t, filepath.Join("../testdata/golden/half", c.name+".safetensors"))
		codec, _ := block.For(c.dtype)
		read := func(name string) (tensor.Spec, []byte, []float32) {
			spec, ok := m.Lookup(name)
			if !ok {
				t.Fatal(name)
			}
			src, err := m.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			raw, x := make([]byte, spec.Size()), make([]float32, spec.NumElements())
			if n, err := src.ReadAt(raw, 0); n < len(raw) {
				t.Fatal(err)
			}
			codec.Decode32(x, raw)
			return spec, raw, x
		}
		same, total := 0, 0
		for _, n := range []int{3, 64, 200, 1000} {
			spec, w, values := read(fmt.Sprintf("%d.w", n))
			_, _, x := read(fmt.Sprintf("%d.x", n))
			_, _, want := read(fmt.Sprintf("%d.y", n))
			rows := int(spec.Rows())
			got := make([]float32, rows)
			for input := range len(x) / n {
				in := x[input*n : (input+1)*n]
				kernel.MatVec(got, c.storage, w, in, rows, n, kernel.F32)
				raw := make([]byte, 2*rows)
				codec.Encode32(raw, got)
				codec.Decode32(got, raw)
				for i, v := range got {
					y, sizes := want[input*rows+i], 0.0
					for j, u := range values[i*n : (i+1)*n] {
						sizes += math.Abs(float64(u) * float64(in[j]))
					}
					nu := float64(n) * 0x1p-24
					limit := 2*nu/(1-nu)*sizes + c.u*(math.Abs(float64(v))+math.Abs(float64(y)))
					if off := math.Abs(float64(v) - float64(y)); !(off <= limit) {
						t.Errorf("%s, %d products: %v, torch has %v: %.3g apart, at most %.3g", c.name, n, v, y, off, limit)
					}
					if total++; v == y {
						same++
					}
				}
			}
		}
		t.Logf("%s: %d of %d results are torch's", c.name, same, total)
		if same < total*9/10 { // what is rounded once in 16 bits is nearly always the same
			t.Errorf("%s: only %d of %d results are torch's", c.name, same, total)
		}
	}
}
