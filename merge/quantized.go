package merge

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/loratool/loratool/formats/tensor"
)

// restoreQuantized settles what becomes of a base whose tensors are stored as
// codes. The checkpoint shows them as the weights that they stand for, so there is
// nothing to do for a merge but to write 16 bits, and a config that says so.
func (p *planner) restoreQuantized() {
	kinds := slices.Sorted(maps.Keys(p.base.Quantization()))
	if len(kinds) == 0 {
		return
	}
	out := p.restoredDType()
	p.config.DropQuantization()
	p.config.SetDType(out)
	p.decide("quantized-restored", fmt.Sprintf(
		"the base stores %s of bitsandbytes: its weights are what those stand for, written as %s, and quantization_config is left out",
		strings.Join(kinds, " and "), out))
}

// restoredDType is what the weights of a quantized base are written as: the type
// asked for or the config's, of 16 bits if there is neither. LLM.int8 does not say
// what it was made of, and after PEFT's own merge a 4-bit state says float32.
func (p *planner) restoredDType() tensor.DType {
	switch d := p.config.DType(); {
	case p.options.DType != tensor.NoDType:
		return p.options.DType
	case d == tensor.F16, d == tensor.BF16, d == tensor.F32:
		return d
	}
	return tensor.BF16
}

// writtenAs is the type that an entry is written as.
func (p *planner) writtenAs(e *entry) tensor.DType {
	if _, ok := p.base.Derived(e.read.Tensor); ok && e.read.Input == 0 {
		return p.restoredDType()
	}
	return p.outDType(e.spec.DType)
}
