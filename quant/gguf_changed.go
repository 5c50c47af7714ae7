package quant

import (
	"fmt"
	"io"
	"slices"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/quant/block"
	"github.com/loratool/loratool/quant/encode"
	"github.com/loratool/loratool/quant/mix"
)

// This file stores tensors that were changed beside those that were not.

// The reasons of the decisions where every tensor keeps its type.
const (
	changedTensor mix.Reason = "changed"
	sameTensor    mix.Reason = "unchanged"
)

// keep decides that every tensor has the type that it had. What is changed must be
// of a type that can be written, with weights where it is useless without.
func (p *ggufPlanner) keep(q *GGUF) error {
	changed := make(map[string]tensor.Spec)
	for _, s := range p.options.Changed.Specs() {
		changed[s.Name] = s
	}
	var sizes map[string]int64
	if p.options.Matrix != nil {
		sizes = p.options.Matrix.Sizes()
	}
	q.Mix = new(mix.Mix)
	refusal := new(mix.RefusalError)
	for _, t := range p.tensors {
		d := mix.Decision{Name: t.Name, From: t.Type, To: t.Type, Wanted: t.Type, Reason: sameTensor, Why: "nothing changes it"}
		if s, ok := changed[t.Name]; ok {
			d.Reason, d.Why = changedTensor, "keeps its type"
			if stored, plain := t.Type.DType(); !plain || stored != s.DType {
				size, known := sizes[t.Name]
				d.Weights = known && block.GGML(t.Type).Weighted()
				p.checkEncoder(t, d.Weights, size, refusal)
			}
		}
		q.Mix.Decisions = append(q.Mix.Decisions, d)
	}
	if len(refusal.Refusals) > 0 {
		return &checkpoint.InputError{Path: p.base.Path, Err: refusal}
	}
	return nil
}

// checkEncoder adds to the refusals if a changed tensor can't be written as it was.
func (p *ggufPlanner) checkEncoder(t gguf.Spec, weights bool, size int64, refusal *mix.RefusalError) {
	refuse := func(rule mix.Rule, reason string) {
		refusal.Refusals = append(refusal.Refusals, mix.Refusal{Tensor: t.Name, Rule: rule, Reason: reason})
	}
	if err := block.GGML(t.Type).CanQuantize(); err != nil {
		refuse(noEncoder, err.Error()+"; give the changed tensors another type with --type")
	} else if block.GGML(t.Type).NeedsWeights() && !weights {
		refuse(mix.NeedsMatrix, fmt.Sprintf("it changes, and %s is not written without an importance matrix: --imatrix", t.Type))
	} else if columns := columnsOf(t); weights && size != columns {
		refuse(mix.WrongMatrix, fmt.Sprintf("the importance matrix has %d weights for its %d columns", size, columns))
	}
}

// columnsOf counts the columns, which are those of each expert.
func columnsOf(t gguf.Spec) int64 {
	n := len(t.Shape)
	if n > 2 {
		return t.Shape[n-1] * t.Shape[n-3]
	}
	return t.Shape[n-1]
}

// sources is where the tensors come from: what is changed from there, the others as
// the numbers that they stand for or as the bytes that they are.
func (p *ggufPlanner) sources(encoded map[string]bool) checkpoint.Checkpoint {
	own := &partlyStored{p.base, p.base.Stored(), encoded}
	if p.options.Changed == nil {
		return own
	}
	o := &overlay{over: p.options.Changed, own: own, changed: make(map[string]tensor.Spec)}
	for _, s := range o.over.Specs() {
		o.changed[s.Name] = s
	}
	return o
}

// before is what a tensor was that is changed, nil if it is not.
func (p *ggufPlanner) before(name string) *encode.Before {
	if p.options.Changed == nil {
		return nil
	}
	isIt := func(s tensor.Spec) bool { return s.Name == name }
	was, ok := p.base.Lookup(name)
	if !ok || !slices.ContainsFunc(p.options.Changed.Specs(), isIt) {
		return nil
	}
	return &encode.Before{Spec: was, In: p.base}
}

// overlay is a checkpoint of which some tensors are those of another one.
type overlay struct {
	over, own checkpoint.Checkpoint
	changed   map[string]tensor.Spec
}

func (o *overlay) Specs() []tensor.Spec {
	specs := make([]tensor.Spec, 0, len(o.changed))
	for _, s := range o.own.Specs() {
		if c, ok := o.changed[s.Name]; ok {
			s = c
		}
		specs = append(specs, s)
	}
	return specs
}

func (o *overlay) Open(name string) (io.ReaderAt, error) {
	if _, ok := o.changed[name]; ok {
		return o.over.Open(name)
	}
	return o.own.Open(name)
}
