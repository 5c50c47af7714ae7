package engine

import (
	"context"
	"io"
	"testing"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/plan"
	"math/rand/v2"
)

type memSrc map[string][]byte

func (m memSrc) Open(n string) (io.ReaderAt, error) { return ra(m[n]), nil }

type ra []byte

func (r ra) ReadAt(p []byte, off int64) (int, error) { return copy(p, r[off:]), nil }

type nullSink struct{ b []byte }

func (s nullSink) WriteAt(_ int, _ string, p []byte, off int64) error { copy(s.b[off:], p); return nil }

func BenchmarkMerge(b *testing.B) {
	const out, in, rank = 4096, 4096, 16
	w := make([]byte, out*in*2)
	for i := 0; i < len(w); i += 2 {
		w[i] = byte(rand.Uint32())
		w[i+1] = 0x3c
	}
	f32 := func(n int) []byte {
		p := make([]byte, 4*n)
		for i := 0; i < len(p); i += 4 {
			p[i] = byte(rand.Uint32())
			p[i+3] = 0x3c
		}
		return p
	}
	src := memSrc{"w": w, "a": f32(rank * in), "b": f32(out * rank)}
	spec := tensor.Spec{Name: "w", DType: tensor.BF16, Shape: tensor.Shape{out, in}}
	sa := tensor.Spec{Name: "a", DType: tensor.F32, Shape: tensor.Shape{rank, in}}
	sb := tensor.Spec{Name: "b", DType: tensor.F32, Shape: tensor.Shape{out, rank}}
	p := &plan.Plan{}
	for range 4 {
		p.Steps = append(p.Steps, plan.Step{Read: plan.Whole(0, spec), Write: plan.Placement{Tensor: "w", DType: tensor.BF16}, Judge: true,
			Stages: []plan.Stage{{Op: merge.AddLoRA{Scale: 2, Region: merge.Region{Rows: out}}, Sides: []plan.Slice{plan.Whole(0, sa), plan.Whole(0, sb)}}}})
	}
	for _, jobs := range []int{1, 2} {
		b.Run(map[int]string{1: "j1", 2: "j2"}[jobs], func(b *testing.B) {
			b.SetBytes(int64(4 * len(w)))
			sink := nullSink{make([]byte, len(w))}
			for range b.N {
				if _, err := Run(context.Background(), p, []Source{src}, sink, Options{Jobs: jobs}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
