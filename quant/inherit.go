package quant

import (
	"strings"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
)

// Inherit returns options of a type with what a base says that is stored in it: block
// size, scales in 8 bits, and the types of codes and computation. Of any other base it
// returns the type alone.
func Inherit(base *checkpoint.Model, kind Type) Options {
	o := Options{Type: kind}
	if kind == Int8 {
		return o
	}
	raw := make(map[string]tensor.DType)
	for _, s := range base.RawSpecs() {
		raw[s.Name] = s.DType
	}
	for _, s := range base.Specs() {
		d, ok := base.Derived(s.Name)
		if !ok || d.Kind != string(kind) {
			continue
		}
		o.BlockSize, o.DoubleQuant, o.Storage = d.BlockSize, d.Nested, raw[d.Parts[0]]
		o.ComputeDType = computeOf(hfrepo.NewConfig(base.Config))
		break // a file has one format
	}
	return o
}

// inBase returns the weights that the base of a merge stores in a format of bitsandbytes;
// nil if it has none of those.
func (p *planner) inBase() map[string]bool {
	if p.options.From == nil {
		return nil
	}
	var all map[string]bool
	for _, s := range p.base.Specs() {
		d, ok := p.base.Derived(s.Name)
		switch Type(d.Kind) {
		case NF4, FP4, Int8:
			if all == nil {
				all = make(map[string]bool)
			}
			all[s.Name] = ok
		}
	}
	return all
}

// storedAs returns the tensors that the base has for a weight, if they are just these and
// nothing changes it: decoding it to 16 bits and encoding it again would not give its
// codes back. What is stored about it may be longer or shorter.
func (p *planner) storedAs(t *target, parts []tensor.Spec) ([]tensor.Spec, bool) {
	d, ok := p.base.Derived(t.spec.Name)
	same := ok && d.Kind == string(p.options.Type) && (p.options.Type == Int8 || d.BlockSize == p.options.BlockSize)
	if p.options.From == nil || !same || len(d.Parts) != len(parts) || !p.options.From.Unchanged(t.spec.Name) {
		return nil, false
	}
	raw := p.base.Stored().(interface {
		Lookup(name string) (tensor.Spec, bool)
	})
	stored := make([]tensor.Spec, len(parts))
	for i, s := range parts {
		if stored[i], ok = raw.Lookup(s.Name); !ok || stored[i].DType != s.DType {
			return nil, false
		}
		if !stored[i].Shape.Equal(s.Shape) && !strings.Contains(s.Name, ".quant_state.") {
			return nil, false
		}
	}
	return stored, true
}

// computeOf is the type that the config of a 4-bit model computes in, if it is one of
// those that are written.
func computeOf(config hfrepo.Config) tensor.DType {
	q := config.Quantization()
	if q == nil {
		return tensor.NoDType
	}
	name, _, _ := q.OptString("bnb_4bit_compute_dtype")
	for d, torch := range computeNames {
		if torch == name {
			return d
		}
	}
	return tensor.NoDType
}
