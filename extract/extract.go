// Package extract turns the difference between a base and a full fine-tune into
// a PEFT adapter, and says how much of the difference the adapter carries.
//
//	D = W_tuned - W_base  ~  scale · B·A
//
// [Open] pairs the tensors of the two checkpoints from their headers and gives
// every one a role. [Survey.Tasks] are the reading: each tensor is compared once,
// and the singular value decomposition of each changed weight goes to a [Store].
// [Survey.Plan] is pure: it picks the ranks, gives every change the form it is
// carried in, and places every byte; the engine then writes what it says.
// [Survey.Sweep] answers what other ranks would keep.
//
// Whatever no form of PEFT can hold is an error that names it; what a user asks
// to leave out is a decision of the plan and counts as lost in the
// [Certificate].
package extract

import (
	"fmt"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
)

// Options shapes an extraction.
type Options struct {
	Output string
	Rule   Rule
	// Alpha is lora_alpha of every module. 0 makes it the rank, so that the
	// factors are the change without a scale.
	Alpha float64
	// Target, if not empty, names the only modules to extract; Exclude those to
	// leave out. A name covers a module as in PEFT, whole or from a dot on;
	// an asterisk stands for anything.
	Target, Exclude []string
	// DType is the element type of factors; none is F32. Tensors that are saved
	// whole keep the tuned model's.
	DType tensor.DType
	// Exact asks for decompositions in float64 without iteration.
	Exact bool
	// DenseWhenCheaper saves a weight whole where its factors would take as
	// many bytes.
	DenseWhenCheaper bool
	// Plain writes nothing but pairs of linear layers, of one rank and scale.
	Plain        bool
	NoProvenance bool
	Version      string // of the tool, for provenance
}

// Validate reports the first field that does not make sense.
func (o Options) Validate() error {
	if err := o.Rule.Validate(); err != nil {
		return err
	}
	switch {
	case !(o.Alpha >= 0 && o.Alpha <= maxAlpha):
		return fmt.Errorf("alpha %v is not between 0 and %g", o.Alpha, float64(maxAlpha))
	case o.DType != tensor.NoDType && (!o.DType.IsFloat() || o.DType.IsFP8()):
		return fmt.Errorf("factors can't be stored as %s", o.DType)
	case o.Plain && o.DenseWhenCheaper:
		return fmt.Errorf("a plain adapter holds no weight whole")
	}
	return nil
}

// maxAlpha is far beyond any use, and 1/maxAlpha still leaves factors that f16
// can hold.
const maxAlpha = 1e6

// factorType is the element type that factors are written as.
func (o Options) factorType() tensor.DType {
	if o.DType == tensor.NoDType {
		return tensor.F32
	}
	return o.DType
}

// inputErrorf is the error for a fault of one of the two checkpoints.
func inputErrorf(m *checkpoint.Model, format string, args ...any) error {
	return &checkpoint.InputError{Path: m.Path, Err: fmt.Errorf(format, args...)}
}
