package verify

import (
	"context"
	"errors"
	"math"
	"strings"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/plan"
	"github.com/loratool/loratool/quant/block"
)

// chunkBytes of a tensor are looked at at a time: long enough for a disk, short
// enough that what a worker holds does not matter. It is a whole number of elements
// of every type.
const chunkBytes = 1 << 20

// scan is what was seen of the values of a tensor.
type scan struct {
	nonFinite int64
	first     int64 // element that is not finite
	zero      bool  // all are
	failed    error // the values can't be computed
}

// checkValues reads every floating-point tensor once.
func checkValues(ctx context.Context, s *subject) error {
	if s.options.HeadersOnly {
		return nil
	}
	var specs []tensor.Spec
	for _, spec := range s.model.Specs() {
		if _, ok := block.For(spec.DType); ok && spec.NumElements() > 0 {
			specs = append(specs, spec)
		}
	}
	found := make([]scan, len(specs))
	tasks := make([]plan.Task, len(specs))
	for i, spec := range specs {
		tasks[i] = plan.Task{Name: spec.Name, Reads: spec.Size(), Scratch: 9 * chunkBytes, Do: func(ctx context.Context, _ int) error {
			var err error
			found[i], err = scanTensor(ctx, s.model, spec)
			return err
		}}
	}
	if err := engine.Each(ctx, tasks, s.options.Engine); err != nil {
		return err
	}
	s.zero = make(map[string]bool)
	for i, spec := range specs {
		s.judgeValues(spec, found[i])
	}
	s.checkZeroFactors()
	return nil
}

func (s *subject) judgeValues(spec tensor.Spec, f scan) {
	switch {
	case f.failed != nil:
		s.add("tensor-unreadable", spec.Name, "%v", f.failed)
	case f.nonFinite > 0:
		s.add("non-finite", spec.Name, "%d of its %d elements are not finite, first element %d", f.nonFinite, spec.NumElements(), f.first).
			measured(float64(f.nonFinite), 0)
	case f.zero:
		s.zero[spec.Name] = true
		// Biases, also those of stacked experts, begin as zeros and may stay so.
		if len(spec.Shape) >= 2 && !strings.HasSuffix(spec.Name, "bias") && !s.model.IsAdapter() {
			s.add("all-zero", spec.Name, "all of its %d elements are zero", spec.NumElements()).measured(float64(spec.NumElements()), math.NaN())
		}
	}
}

// scanTensor looks at all elements of a tensor.
func scanTensor(ctx context.Context, m *checkpoint.Model, spec tensor.Spec) (scan, error) {
	f := scan{zero: true}
	src, err := m.Open(spec.Name)
	if err != nil {
		return f, err
	}
	codec, _ := block.For(spec.DType)
	width := spec.DType.Bits() / 8
	raw := make([]byte, min(chunkBytes, spec.Size()))
	values := make([]float64, int64(len(raw))/width)
	for off := int64(0); off < spec.Size(); off += chunkBytes {
		if err := ctx.Err(); err != nil {
			return f, err
		}
		p := raw[:min(chunkBytes, spec.Size()-off)]
		if err := readFull(src, p, off); err != nil {
			// Scales that are no numbers come up when the values are computed.
			if input, ok := errors.AsType[*checkpoint.InputError](err); ok {
				f.failed = input
				return f, nil
			}
			return f, readError(m, spec.Name, err)
		}
		at, bad := block.AnyNonFinite(codec, p)
		if !bad && !f.zero {
			continue
		}
		x := values[:int64(len(p))/width]
		codec.Decode64(x, p)
		if bad && f.nonFinite == 0 {
			f.first = off/width + at
		}
		for _, v := range x {
			if v-v != 0 {
				f.nonFinite++
			}
			f.zero = f.zero && v == 0
		}
	}
	return f, nil
}
