package verify

import (
	"context"
	"errors"
	"math"

	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/checkpoint"
)

// LoftQReport judges a LoftQ pair by what [LoftQ] measures: a pair that fits best at
// another scale than the one it is applied with corrects too little or too much.
func LoftQReport(ctx context.Context, base, quantized *checkpoint.Model, a *adapter.Adapter, o Options) (*Report, error) {
	result, err := LoftQ(ctx, base, quantized, a, o.Engine)
	if scope, ok := errors.AsType[*ScopeError](err); ok {
		return nil, &checkpoint.InputError{Path: a.Source.Path, Err: scope}
	}
	if err != nil {
		return nil, err
	}
	r := &Report{LoftQ: result, Tensors: len(result.Modules)}
	r.begin(familyLoftQ)
	for i := range result.Modules {
		r.judgePair(&result.Modules[i])
	}
	for _, name := range result.Others {
		r.add("loftq-other", name, "the adapter changes it without a pair of factors: not looked at")
	}
	return r, nil
}

func (r *Report) judgePair(m *LoftQModule) {
	switch {
	case m.BestScale == 0:
		r.add("loftq-empty", m.Tensor, "its pair is orthogonal to what quantization left out, or zero: it corrects nothing")
	case m.Misscaled():
		ratio := m.BestScale / m.Scale
		r.add("loftq-scale", m.Tensor, "it fits best at %.4g times the scale that it is applied with, %.4g; rounding allows for 1 ± %.2g",
			ratio, m.Scale, m.Limit).measured(ratio, 1+math.Copysign(m.Limit, ratio-1))
	}
	if m.Repaired > m.Quantized {
		r.add("loftq-worse", m.Tensor, "with its pair the relative error is %.4g, without %.4g", m.Repaired, m.Quantized).
			measured(m.Repaired, m.Quantized)
	}
}
