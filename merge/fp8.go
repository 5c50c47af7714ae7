package merge

import (
	"fmt"
	"strings"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/plan"
)

// scales says how the FP8 tensors of a base become weights, and which tensors
// have no meaning once they have.
type scales struct {
	of   map[string]plan.Stage
	drop map[string]bool
}

// scaleSuffixes are what the name of a weight's scale has instead of, or after,
// the weight's own name. All of them are multiplied with.
var scaleSuffixes = []string{"_scale_inv", "_scale"}

// activationScales belong to FP8 arithmetic at run time, not to the weights.
var activationScales = []string{".input_scale", ".input_scale_inv", ".activation_scale", ".k_scale", ".v_scale", ".q_scale", ".output_scale"}

// findScales finds the scale of every FP8 tensor. FP8 without scales is only
// taken for plain values when nothing says that the model is quantized.
func (p *planner) findScales() (scales, error) {
	s := scales{of: make(map[string]plan.Stage), drop: make(map[string]bool)}
	var bare []string
	for _, spec := range p.base.Specs() {
		if !spec.DType.IsFP8() {
			continue
		}
		p.fp8 = true
		scale, ok := p.scaleOf(spec.Name)
		if !ok {
			bare = append(bare, spec.Name)
			continue
		}
		op, ok := scaleGeometry(spec, scale, p.blockSize())
		if !ok || !scale.DType.IsFloat() {
			return s, p.baseError("tensor %q: scales %v of %s do not fit its shape %v", scale.Name, scale.Shape, scale.DType.Safetensors(), spec.Shape)
		}
		s.of[spec.Name] = plan.Stage{Op: op, Sides: []plan.Slice{plan.Whole(0, scale)}}
		s.drop[scale.Name] = true
	}
	if !p.fp8 {
		return s, nil
	}
	quantized := p.config.Quantization() != nil
	if len(bare) > 0 && (quantized || len(s.of) > 0) {
		return s, p.baseError("tensor %q is FP8 without a scale in a quantized model: its values are not weights", bare[0])
	}
	for _, spec := range p.base.Specs() {
		for _, suffix := range activationScales {
			if strings.HasSuffix(spec.Name, suffix) {
				s.drop[spec.Name] = true
			}
		}
	}
	out := p.outDType(tensor.F8E4M3)
	message := fmt.Sprintf("the base stores FP8: its weights are restored and written as %s", out)
	if len(s.of) > 0 {
		message = fmt.Sprintf("the base stores FP8 with scales: its weights are restored and written as %s, and the scales and quantization_config are left out", out)
	}
	p.config.DropQuantization()
	p.config.SetDType(out)
	p.decide("fp8-restored", message)
	return s, nil
}

func (p *planner) baseError(format string, args ...any) error {
	return &checkpoint.InputError{Path: p.base.Path, Err: fmt.Errorf(format, args...)}
}

// scaleOf finds the scale tensor of a weight.
func (p *planner) scaleOf(name string) (tensor.Spec, bool) {
	for _, suffix := range scaleSuffixes {
		if s, ok := p.base.Lookup(name + suffix); ok {
			return s, true
		}
	}
	return tensor.Spec{}, false
}

// blockSize returns the block the config states, zero without one.
func (p *planner) blockSize() [2]int64 {
	q := p.config.Quantization()
	if q == nil {
		return [2]int64{}
	}
	if b, ok, err := q.OptInts("weight_block_size"); err == nil && ok && len(b) == 2 && b[0] > 0 && b[1] > 0 {
		return [2]int64{b[0], b[1]}
	}
	return [2]int64{}
}

// scaleGeometry finds how scales spread over a weight: one for all, one per
// row, or one per block; of a stack of matrices each has its own.
func scaleGeometry(w, s tensor.Spec, block [2]int64) (Dequantize, bool) {
	shape := w.Shape
	if len(shape) < 2 {
		shape = tensor.Shape{w.Rows(), 1} // as the engine sees it
	}
	experts, rows, cols := int64(1), shape[0], shape[len(shape)-1]
	dims := s.Shape
	switch {
	case len(shape) == 3:
		experts, rows = shape[0], shape[1]
		if len(dims) > 0 && dims[0] == experts {
			dims = dims[1:]
		} else if s.NumElements() != 1 {
			return Dequantize{}, false
		} else {
			rows *= experts // one scale for the whole stack
			experts = 1
		}
	case len(shape) > 3:
		return Dequantize{}, false
	}
	op := Dequantize{BlockRows: rows, BlockCols: cols, RowsPerExpert: rows}
	n, _ := dims.NumElements()
	switch {
	case rows == 0 || cols == 0:
		return op, false
	case n == 1:
		return op, true
	case n == rows && (len(dims) == 1 || dims[0] == rows):
		op.BlockRows = 1
		return op, true
	case len(dims) != 2 || dims[0] == 0 || dims[1] == 0:
		return op, false
	}
	for _, b := range [][2]int64{block, {128, 128}, even(rows, cols, dims)} {
		if b[0] > 0 && b[1] > 0 && ceil(rows, b[0]) == dims[0] && ceil(cols, b[1]) == dims[1] {
			op.BlockRows, op.BlockCols = b[0], b[1]
			return op, true
		}
	}
	return op, false
}

// even is the block that divides a matrix into as many as there are scales,
// zero if that could be done in several ways: a block that leaves a rest, or
// whose sides are no powers of two, is nothing that quantizers make.
func even(rows, cols int64, dims tensor.Shape) [2]int64 {
	return [2]int64{evenPart(rows, dims[0]), evenPart(cols, dims[1])}
}

func evenPart(n, parts int64) int64 {
	size := n / parts
	if size*parts != n || parts > 1 && size&(size-1) != 0 {
		return 0
	}
	return size
}

func ceil(a, b int64) int64 { return (a + b - 1) / b }
