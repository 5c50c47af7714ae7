package merge

import (
	"math"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/plan"
)

// DoRA renormalises V = W + D, which the stage before it has made:
//
//	W'[o,:] = m[o] / ||V[o,:]||₂ · V[o,:]    an output per row
//	W'[:,o] = m[o] / ||V[:,o]||₂ · V[:,o]    ByColumn: Conv1D and embeddings
//
// The squares are summed in float64, in ascending order; the norm is rounded to
// the precision of the step. Side: m. Follows peft tuners/lora/variants.py
// (Dora*Variant.merge_unsafe) and tuners/lora/dora.py (get_weight_norm);
// arXiv 2402.09353.
type DoRA struct {
	ByColumn bool   `json:"by_column,omitempty"`
	Region   Region `json:"region"`
}

func (DoRA) Kind() string { return "dora" }

// Scratch holds one sum and one factor per column.
func (op DoRA) Scratch(_, cols int64) int64 {
	if !op.ByColumn {
		return 0
	}
	return 3 * cols
}

func (op DoRA) Bind(s []tensor.Matrix[float32]) (plan.Func[float32], error) {
	return bindDoRA(op, s[0].Data), nil
}

func (op DoRA) Bind64(s []tensor.Matrix[float64]) (plan.Func[float64], error) {
	return bindDoRA(op, s[0].Data), nil
}

func bindDoRA[T tensor.Float](op DoRA, m []T) plan.Func[T] {
	if op.ByColumn {
		return &doraColumns[T]{m: m, squares: make([]float64, len(m)), factor: make([]T, len(m))}
	}
	return doraRows[T]{op.Region, m}
}

type doraRows[T tensor.Float] struct {
	region Region
	m      []T
}

func (f doraRows[T]) Apply(b plan.Band[T]) error {
	at, from, n := f.region.in(b.Row, b.Rows)
	x := b.X[at*b.Cols : (at+n)*b.Cols]
	factor := make([]T, n)
	squares := make([]float64, n)
	kernel.RowSumSquares(squares, x, n, b.Cols)
	for i := range factor {
		factor[i] = f.m[from+i] / T(math.Sqrt(squares[i]))
	}
	kernel.ScaleRows(x, n, b.Cols, factor)
	return nil
}

// doraColumns sees the whole tensor once for the norms, then scales.
type doraColumns[T tensor.Float] struct {
	m       []T
	squares []float64
	factor  []T
}

func (*doraColumns[T]) Passes() int { return 1 }

func (f *doraColumns[T]) Observe(_ int, b plan.Band[T]) error {
	kernel.AddColSumSquares(f.squares, b.X, b.Rows, b.Cols)
	return nil
}

func (f *doraColumns[T]) Finish(int) error {
	for j, sum := range f.squares {
		f.factor[j] = f.m[j] / T(math.Sqrt(sum))
	}
	return nil
}

func (f *doraColumns[T]) Apply(b plan.Band[T]) error {
	kernel.ScaleCols(b.X, b.Rows, b.Cols, f.factor)
	return nil
}
