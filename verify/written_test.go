package verify_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/plan"
	"github.com/loratool/loratool/quant/block"
	"github.com/loratool/loratool/verify"
)

// output is a written output in memory.
type output struct {
	mu   sync.Mutex
	data map[string][]byte
}

func (o *output) WriteAt(_ int, name string, p []byte, off int64) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	copy(o.data[name][off:], p)
	return nil
}

func (o *output) Open(name string) (io.ReaderAt, error) {
	return bytes.NewReader(o.data[name]), nil
}

// merged runs a plan of a copied tensor and one with a LoRA of rank 3 in the
// given output type.
func merged(t *testing.T, d tensor.DType) (*plan.Plan, []engine.Source, *output) {
	t.Helper()
	mem := new(checkpoint.Memory)
	rng := rand.New(rand.NewPCG(1, 2))
	slice := func(name string, shape ...int64) plan.Slice {
		s, err := tensor.NewSpec(name, tensor.F32, shape)
		if err != nil {
			t.Fatal(err)
		}
		values := make([]float32, s.NumElements())
		for i := range values {
			values[i] = float32(rng.NormFloat64())
		}
		codec, _ := block.For(tensor.F32)
		data := make([]byte, s.Size())
		codec.Encode32(data, values)
		mem.Add(s, data)
		return plan.Whole(0, s)
	}
	w, a, b, c := slice("w", 24, 40), slice("a", 3, 40), slice("b", 24, 3), slice("c", 17)
	p := &plan.Plan{Steps: []plan.Step{
		{Read: c, Write: plan.Placement{Tensor: "c", DType: tensor.F32}},
		{
			Read: w, Judge: true, Write: plan.Placement{Tensor: "w", DType: d},
			Stages: []plan.Stage{{Op: merge.AddLoRA{Scale: 0.5, Region: merge.Region{Rows: 24}}, Sides: []plan.Slice{a, b}}},
		},
	}}
	out := &output{data: map[string][]byte{"c": make([]byte, 17*4), "w": make([]byte, p.Steps[1].OutBytes())}}
	in := []engine.Source{mem}
	if _, err := engine.Run(t.Context(), p, in, out, engine.Options{}); err != nil {
		t.Fatal(err)
	}
	return p, in, out
}

// TestWritten passes what the engine wrote, and finds one changed bit in any
// byte of it that is worth more than the rounding.
func TestWritten(t *testing.T) {
	for _, d := range []tensor.DType{tensor.F32, tensor.BF16, tensor.F16, tensor.F64} {
		t.Run(fmt.Sprint(d), func(t *testing.T) {
			p, in, out := merged(t, d)
			r, err := verify.Written(t.Context(), p, in, out, engine.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if r.Copied != 1 || r.Computed != 1 || r.Values != 24*40 {
				t.Errorf("result %+v", r)
			}
			// A float32 sum is finer than 16 bits, not than float32 itself.
			if d != tensor.F32 && r.Nearest < r.Values*99/100 {
				t.Errorf("only %d of %d values are the nearest", r.Nearest, r.Values)
			}
			size := int(d.Bits() / 8)
			for element := range 24 * 40 {
				at := element*size + size - 1 // sign and exponent
				out.data["w"][at] ^= 0x40
				var deviation *verify.DeviationError
				if _, err := verify.Written(t.Context(), p, in, out, engine.Options{}); !errors.As(err, &deviation) || deviation.Element != int64(element) {
					t.Fatalf("element %d was changed, verify says %v", element, err)
				}
				out.data["w"][at] ^= 0x40
			}
			for at := range out.data["c"] {
				out.data["c"][at] ^= 1
				var copied *verify.CopyError
				if _, err := verify.Written(t.Context(), p, in, out, engine.Options{}); !errors.As(err, &copied) {
					t.Fatalf("byte %d of a copy was changed, verify says %v", at, err)
				}
				out.data["c"][at] ^= 1
			}
		})
	}
}

// TestNextButOne guards that the bound is not so wide that it hides a value two
// steps away from where it should be.
func TestNextButOne(t *testing.T) {
	p, in, out := merged(t, tensor.BF16)
	found := 0
	for element := range 24 * 40 {
		out.data["w"][2*element] += 2
		if _, err := verify.Written(t.Context(), p, in, out, engine.Options{}); err != nil {
			found++
		}
		out.data["w"][2*element] -= 2
	}
	// Elements next to zero may be off by more than two of their own steps: a
	// float32 sum is as good as its largest terms.
	if found < 24*40*95/100 {
		t.Errorf("%d of %d changes by two units in the last place were found", found, 24*40)
	}
}
