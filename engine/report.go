package engine

import (
	"fmt"
	"math"
	"unsafe"

	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/plan"
)

// TensorReport says what a step did to its tensor. Norms are Frobenius norms.
type TensorReport struct {
	Tensor string
	Shape  []int64
	DType  string
	// BaseNorm is ||W||, DeltaNorm ||D|| with D the exact change, and
	// RoundingNorm ||Y - (W+D)|| with Y the stored result.
	BaseNorm, DeltaNorm, RoundingNorm float64
	// Survival is <Y - W, D> / ||D||^2: how much of the change is left after
	// rounding to the output dtype. 1 when there is no change.
	Survival float64
}

// NonFiniteError says that an output got an infinity or NaN that the input did
// not have.
type NonFiniteError struct {
	Tensor, DType string
	Row           int64
	Count         int64
}

func (e *NonFiniteError) Error() string {
	return fmt.Sprintf("%q: %d values are not finite as %s although the base's are, first in row %d", e.Tensor, e.Count, e.DType, e.Row)
}

// rowStatBytes is the memory of one row's figures.
const rowStatBytes = int64(unsafe.Sizeof(kernel.RowStats{}))

// reduce sums the figures of the rows in order, so that the sum does not
// depend on the bands, and refuses values that are newly not finite.
func reduce(s *plan.Step, rows []kernel.RowStats) (TensorReport, error) {
	if err := checkFinite(s, 0, rows); err != nil {
		return TensorReport{}, err
	}
	var sum kernel.RowStats
	for _, row := range rows {
		sum.Add(row)
	}
	t := TensorReport{
		Tensor: s.Write.Tensor, Shape: s.Read.Spec.Shape, DType: s.Write.DType.String(),
		BaseNorm: math.Sqrt(sum.Base), DeltaNorm: math.Sqrt(sum.Change), RoundingNorm: math.Sqrt(sum.Rounding),
		Survival: 1,
	}
	if sum.Change > 0 {
		t.Survival = sum.Kept / sum.Change
	}
	return t, nil
}

// checkFinite refuses rows, the first of them at an offset in the step, with values
// that are newly not finite.
func checkFinite(s *plan.Step, first int64, rows []kernel.RowStats) error {
	bad := NonFiniteError{Tensor: s.Write.Tensor, DType: s.Write.DType.String()}
	for i, row := range rows {
		if n := row.NonFiniteStored - row.NonFiniteBase; n > 0 {
			if bad.Count == 0 {
				bad.Row = s.Write.Row + first + int64(i)
			}
			bad.Count += n
		}
	}
	if bad.Count > 0 {
		return &bad
	}
	return nil
}
