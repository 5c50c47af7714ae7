package checkpoint

import (
	"io"
	"math"
	"slices"
	"strings"

	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/quant/block"
)

// An FP8 weight is stored as
//
//	W          F8_E4M3 or F8_E5M2
//	a scale    one number for all, one for each row, or one for each block
//
// and stands for the products of both, computed in float32:
//
//	W[i,j] = q[i,j] · s[i / BlockRows, j / BlockCols]
//
// A product has 4 + 24 significant bits at most. It is exact if the scale is a power
// of two or in 16 bits, and else rounded once to float32, never to the 16 bits that
// the model computes in. Scales are numbers, or exponents as F8_E8M0 or U8 (see
// [block.DecodeE8M0]); one in float64 is rounded to float32 before. Follows
// transformers 5.23, integrations/finegrained_fp8.py, and compressed-tensors'
// float-quantized format.

// scaleNames are the names that the scale of a weight may have. All of them are
// multiplied with, whatever "inv" promises. The first two are those of transformers
// and compressed-tensors, the others those of DeepSeek's own files and of ComfyUI.
func scaleNames(weight string) []string {
	names := []string{weight + inverseSuffix, weight + "_scale"}
	if module, ok := strings.CutSuffix(weight, weightSuffix); ok {
		names = append(names, module+".scale", module+".scale_weight")
	}
	return names
}

// inverseSuffix ends the name of a scale and of nothing else.
const inverseSuffix = "_scale_inv"

// runtimeSuffixes end the names of what belongs to FP8 arithmetic at run time, not to
// the weights: scales of activations and of the cache of keys and values.
var runtimeSuffixes = []string{".input_scale", ".input_scale_inv", ".activation_scale", ".k_scale", ".v_scale", ".q_scale",
	".output_scale", "_activation_scale", ".scale_input", "scaled_fp8"}

func isRuntimeScale(name string) bool {
	return slices.ContainsFunc(runtimeSuffixes, func(suffix string) bool { return strings.HasSuffix(name, suffix) })
}

// fp8 returns the weight that an FP8 tensor stands for, nil if it has no scale: its
// values may be the weights themselves, see [Model.CheckScales].
func (m *Model) fp8(s tensor.Spec) (*derived, error) {
	if !s.DType.IsFP8() || m.derived[s.Name] != nil {
		return nil, nil
	}
	codes := m.byName[s.Name]
	var scale located
	for _, name := range scaleNames(s.Name) {
		other, ok := m.byName[name]
		if ok && scale.Name != "" {
			return nil, inputErrorf(codes.file.path, "tensor %q has two scales, %q and %q", s.Name, scale.Name, name)
		}
		if ok {
			scale = other
		}
	}
	if scale.Name == "" {
		return nil, nil
	}
	grid, ok := gridOf(s.Shape, scale.Shape, m.weightBlock())
	if _, known := scaleDecoder(scale.DType); !ok || !known || scale.DType.IsFP8() {
		return nil, inputErrorf(scale.file.path, "tensor %q: scales %v of %s do not fit the shape %v of %q",
			scale.Name, scale.Shape, scale.DType.Safetensors(), s.Shape, s.Name)
	}
	d := &derived{path: codes.file.path, Derived: Derived{Kind: s.DType.String(), FP8: true, Parts: []string{s.Name, scale.Name}}}
	var err error
	if d.spec, err = quantizedSpec(codes, tensor.F32, s.Shape); err != nil {
		return nil, err
	}
	r := &fp8Reader{grid: grid, name: s.Name, path: codes.file.path}
	r.codec, _ = block.For(s.DType) // both have one
	if r.codes, err = codes.section(); err != nil {
		return nil, err
	}
	r.scales, err = scale.floats()
	d.values = r
	return d, err
}

// weightBlock returns the block that the config states, zero without one.
func (m *Model) weightBlock() [2]int64 {
	q := hfrepo.NewConfig(m.Config).Quantization()
	if q == nil {
		return [2]int64{}
	}
	if b, ok, err := q.OptInts("weight_block_size"); err == nil && ok && len(b) == 2 && b[0] > 0 && b[1] > 0 {
		return [2]int64{b[0], b[1]}
	}
	return [2]int64{}
}

// CheckScales returns an [*InputError] if FP8 tensors of the model do not say what
// they stand for, for those who need weights: one without a scale where others have
// one or where the config calls the model quantized, a scale without its weight, and
// codes of another kind with scales beside those of FP8. A model may be opened
// without, as one of its files has not all there is.
func (m *Model) CheckScales() error {
	scaled := slices.ContainsFunc(m.specs, func(s tensor.Spec) bool { d := m.derived[s.Name]; return d != nil && d.FP8 })
	quantized := scaled || hfrepo.NewConfig(m.Config).Quantization() != nil
	for _, s := range m.specs {
		l := m.byName[s.Name]
		if m.derived[s.Name] != nil {
			continue
		}
		if s.DType.IsFP8() && quantized {
			return inputErrorf(l.file.path, "tensor %q is FP8 without a scale in a quantized model: its values are not weights", s.Name)
		}
		if weight, ok := strings.CutSuffix(s.Name, inverseSuffix); ok && !isRuntimeScale(s.Name) {
			if _, ok := m.byName[weight]; !ok {
				return inputErrorf(l.file.path, "tensor %q is a scale, but there is no %q", s.Name, weight)
			}
		}
		if !scaled || s.DType.IsFloat() {
			continue
		}
		for _, name := range scaleNames(s.Name) {
			if _, ok := m.byName[name]; ok {
				return inputErrorf(l.file.path, "tensor %q is stored as %s with the scale %q: beside FP8, no other codes are supported", s.Name, s.DType.Safetensors(), name)
			}
		}
	}
	return nil
}

// grid says how scales spread over a weight: one for each block of so many rows and
// columns, in rows of blocks. Each matrix of a stack has its own.
type grid struct {
	cols                 int64
	blockRows, blockCols int64
	rowsPerExpert        int64 // of one matrix of a stack
}

// gridOf finds the grid: one scale for all, one for each row, or one for each block;
// of a stack of matrices each has its own.
func gridOf(shape, dims tensor.Shape, stated [2]int64) (grid, bool) {
	if len(shape) < 2 {
		n, _ := shape.NumElements()
		shape = tensor.Shape{n, 1}
	}
	experts, rows, cols := int64(1), shape[0], shape[len(shape)-1]
	n, _ := dims.NumElements()
	switch {
	case len(shape) == 3:
		experts, rows = shape[0], shape[1]
		if len(dims) > 0 && dims[0] == experts {
			dims = dims[1:]
		} else if n != 1 {
			return grid{}, false
		} else {
			rows *= experts // one scale for the whole stack
		}
	case len(shape) > 3:
		return grid{}, false
	}
	n, _ = dims.NumElements()
	g := grid{cols: cols, blockRows: rows, blockCols: cols, rowsPerExpert: rows}
	switch {
	case rows == 0 || cols == 0:
		return g, false
	case n == 1:
		return g, true
	case n == rows && (len(dims) == 1 || dims[0] == rows):
		g.blockRows = 1
		return g, true
	case len(dims) != 2 || dims[0] == 0 || dims[1] == 0:
		return g, false
	}
	for _, b := range [][2]int64{stated, {128, 128}, even(rows, cols, dims)} {
		if b[0] > 0 && b[1] > 0 && ceilDiv(rows, b[0]) == dims[0] && ceilDiv(cols, b[1]) == dims[1] {
			g.blockRows, g.blockCols = b[0], b[1]
			return g, true
		}
	}
	return g, false
}

// even is the block that divides a matrix into as many as there are scales, zero if
// that could be done in several ways: a block that leaves a rest, or whose sides are
// no powers of two, is nothing that quantizers make.
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

// index returns which scale an element has.
func (g grid) index(row, col int64) int64 {
	blockRow := row/g.rowsPerExpert*ceilDiv(g.rowsPerExpert, g.blockRows) + row%g.rowsPerExpert/g.blockRows
	return blockRow*ceilDiv(g.cols, g.blockCols) + col/g.blockCols
}

// fp8Reader computes the values of an FP8 tensor.
type fp8Reader struct {
	grid       grid
	name, path string
	codec      block.Codec
	codes      io.ReaderAt
	scales     floats
}

func (r *fp8Reader) values(b *scratch, first int64, n int) ([]float32, error) {
	b.codes, b.x = grow(b.codes, n), grow(b.x, n)
	if err := readFull(r.codes, b.codes, first); err != nil {
		return nil, err
	}
	r.codec.Decode32(b.x, b.codes)
	// Whole rows at a time, or a part of one: then there are no more scales than
	// elements, whatever the grid.
	for done := int64(0); done < int64(n); {
		row, col := (first+done)/r.grid.cols, (first+done)%r.grid.cols
		run := min(int64(n)-done, r.grid.cols-col)
		if col == 0 && run == r.grid.cols {
			run = (int64(n) - done) / r.grid.cols * r.grid.cols
		}
		if err := r.scale(b, b.x[done:done+run], row, col); err != nil {
			return nil, err
		}
		done += run
	}
	return b.x, nil
}

// largestCode is that of E5M2.
const largestCode = 57344

// scale multiplies elements from a place on, of whole rows or of one, with their
// scales.
func (r *fp8Reader) scale(b *scratch, x []float32, row, col int64) (err error) {
	g := r.grid
	rows := ceilDiv(int64(len(x)), g.cols)
	from := g.index(row, col)
	to := g.index(row+rows-1, col+(int64(len(x))-1)%g.cols) + 1
	if b.absmax, err = r.scales.read(b, b.absmax, from, int(to-from)); err != nil {
		return err
	}
	at := int64(0)
	for i := row; i < row+rows; i++ {
		for j := col; j < g.cols && at < int64(len(x)); {
			n := min((j/g.blockCols+1)*g.blockCols, g.cols, col+int64(len(x))) - j
			k := g.index(i, j) - from
			kernel.ScaleRows(x[at:at+n], 1, int(n), b.absmax[k:k+1])
			at, j = at+n, j+n
		}
	}
	if kernel.MaxAbs(b.absmax) > math.MaxFloat32/largestCode {
		return checkFinite(r.path, r.name, x, row*g.cols+col)
	}
	return nil
}
