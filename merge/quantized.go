package merge

import (
	"fmt"
	"slices"
	"strings"

	"github.com/loratool/loratool/formats/tensor"
)

// restore settles what becomes of a base whose tensors are stored as codes. The
// checkpoint shows them as the weights that they stand for, so there is nothing to do
// for a merge but to write 16 bits, and a config that says so.
func (p *planner) restore() error {
	if err := p.base.CheckScales(); err != nil {
		return err
	}
	var fp8, scaled bool
	var others []string // types of bitsandbytes
	for _, spec := range p.base.Specs() {
		d, derived := p.base.Derived(spec.Name)
		switch {
		case derived && d.FP8:
			fp8, scaled = true, true
		case derived && !slices.Contains(others, d.Kind):
			others = append(others, d.Kind)
		case spec.DType.IsFP8():
			fp8 = true
		}
	}
	p.restored = fp8 || len(others) > 0
	if fp8 {
		out := p.outDType(tensor.F8E4M3)
		message := fmt.Sprintf("the base stores FP8: its weights are restored and written as %s", out)
		if scaled {
			message = fmt.Sprintf("the base stores FP8 with scales: its weights are restored and written as %s, and the scales and quantization_config are left out", out)
		}
		p.config.SetDType(out)
		p.decide("fp8-restored", message)
	}
	if len(others) > 0 {
		slices.Sort(others)
		out := p.restoredDType()
		p.config.SetDType(out)
		then := fmt.Sprintf("written as %s, and quantization_config is left out", out)
		if p.options.Encoding != nil {
			then = fmt.Sprintf("%s when they are stored again", out)
		}
		p.decide("quantized-restored", fmt.Sprintf(
			"the base stores %s of bitsandbytes: its weights are what those stand for, %s", strings.Join(others, " and "), then))
	}
	if p.restored {
		p.config.DropQuantization()
		p.dropped = p.base.Hidden()
	}
	return nil
}

// writtenAs is the type that an entry is written as.
func (p *planner) writtenAs(e *entry) tensor.DType {
	d, derived := p.base.Derived(e.read.Tensor)
	switch {
	case !derived || e.read.Input != 0:
		return p.outDType(e.spec.DType)
	case d.FP8:
		return p.outDType(tensor.F8E4M3)
	}
	return p.restoredDType()
}

// restoredDType is what the weights of a base of bitsandbytes are written as: the
// type asked for or the config's, of 16 bits if there is neither. LLM.int8 does not
// say what it was made of, and after PEFT's own merge a 4-bit state says float32.
func (p *planner) restoredDType() tensor.DType {
	switch d := p.config.DType(); {
	case p.options.DType != tensor.NoDType:
		return p.options.DType
	case d == tensor.F16, d == tensor.BF16, d == tensor.F32:
		return d
	}
	return tensor.BF16
}

// outDType is the type a tensor is written as: the one asked for, 16 bits
// instead of FP8, else what it was.
func (p *planner) outDType(in tensor.DType) tensor.DType {
	switch {
	case !in.IsFloat():
		return in
	case p.options.DType != tensor.NoDType:
		return p.options.DType
	case in.IsFP8():
		return p.sixteenBit()
	}
	return in
}

// sixteenBit is what an FP8 model computes in: the config's type if it is one
// of 16 bits, else BF16.
func (p *planner) sixteenBit() tensor.DType {
	if p.config.DType() == tensor.F16 {
		return tensor.F16
	}
	return tensor.BF16
}
