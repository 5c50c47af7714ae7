package merge

import (
	"fmt"
	"math"

	"gonum.org/v1/gonum/blas/blas64"
	"gonum.org/v1/gonum/lapack/lapack64"
	"gonum.org/v1/gonum/mat"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/plan"
)

// SubtractOLoRA takes the initial product of an OLoRA adapter out of the base,
// as PEFT did when the adapter was made:
//
//	W' = W - scale · Q_r·R_r,   W = Q·R
//
// Q_r are the first r columns of Q, an orthonormal basis of the first r columns
// of W, and R_r = Q_r^T·W: the product is a projection and does not depend on
// the signs of the factorisation. Two passes: the first r columns are collected
// and orthonormalised in float64, then R_r is summed over the rows in ascending
// order. Follows peft tuners/lora/layer.py, olora_init; arXiv 2406.01775.
type SubtractOLoRA struct {
	Scale float64 `json:"scale"`
	Rank  int64   `json:"rank"`
	Rows  int64   `json:"rows"`
	Cols  int64   `json:"cols"`
}

func (SubtractOLoRA) Kind() string { return "subtract_olora_init" }

// Scratch holds Q_r, R_r and the factorisation, all in float64.
func (op SubtractOLoRA) Scratch(rows, cols int64) int64 { return 2 * op.Rank * (rows + cols) }

func (op SubtractOLoRA) Bind([]tensor.Matrix[float32]) (plan.Func[float32], error) {
	return newOLoRA[float32](op), nil
}

func (op SubtractOLoRA) Bind64([]tensor.Matrix[float64]) (plan.Func[float64], error) {
	return newOLoRA[float64](op), nil
}

func newOLoRA[T tensor.Float](op SubtractOLoRA) *olora[T] {
	return &olora[T]{op: op, q: make([]float64, op.Rows*op.Rank), r: make([]float64, op.Rank*op.Cols)}
}

type olora[T tensor.Float] struct {
	op   SubtractOLoRA
	q, r []float64 // rows x rank, rank x cols
}

func (*olora[T]) Passes() int { return 2 }

func (f *olora[T]) Observe(pass int, b plan.Band[T]) error {
	rank := int(f.op.Rank)
	for i := range b.Rows {
		row := b.X[i*b.Cols : (i+1)*b.Cols]
		q := f.q[(int(b.Row)+i)*rank:][:rank]
		if pass == 0 {
			for k := range q {
				q[k] = float64(row[k])
			}
			continue
		}
		for k, v := range q {
			r := f.r[k*b.Cols : (k+1)*b.Cols]
			for j, w := range row {
				r[j] += float64(v * float64(w))
			}
		}
	}
	return nil
}

func (f *olora[T]) Finish(pass int) error {
	if pass > 0 {
		return nil
	}
	rows, rank := int(f.op.Rows), int(f.op.Rank)
	a := blas64.General{Rows: rows, Cols: rank, Stride: rank, Data: f.q}
	tau := make([]float64, rank)
	work := make([]float64, workSize(func(work []float64, n int) { lapack64.Geqrf(a, tau, work, n) }))
	lapack64.Geqrf(a, tau, work, len(work))
	// A dependent column leaves its direction of Q to the library that did
	// the factorisation: then the adapter's start can't be known.
	for k := range rank {
		if math.Abs(f.q[k*rank+k]) <= dependent*math.Abs(f.q[0]) {
			return fmt.Errorf("the first %d columns of the base are linearly dependent: the OLoRA start is not unique, give --init-adapter", rank)
		}
	}
	work = make([]float64, workSize(func(work []float64, n int) { lapack64.Orgqr(a, tau, work, n) }))
	lapack64.Orgqr(a, tau, work, len(work))
	return nil
}

// dependent is where PEFT's float32 factorisation loses a column: the
// rounding of the column's entries is as large as what is left of it.
const dependent = 0x1p-23

// workSize asks a LAPACK routine how much work space it wants.
func workSize(query func(work []float64, n int)) int {
	want := make([]float64, 1)
	query(want, -1)
	return int(want[0])
}

func (f *olora[T]) Apply(b plan.Band[T]) error {
	rank := int(f.op.Rank)
	for i := range b.Rows {
		x := b.X[i*b.Cols : (i+1)*b.Cols]
		q := f.q[(int(b.Row)+i)*rank:][:rank]
		for j := range x {
			var acc float64
			for k, v := range q {
				acc += float64(v * f.r[k*b.Cols+j])
			}
			x[j] = T(float64(x[j]) - float64(f.op.Scale*acc))
		}
	}
	return nil
}

// SubtractTail drops the r smallest singular components of the base, as PEFT
// does when a KaSA adapter is made:
//
//	W' = W - sum_{k > min(out,in)-r} s_k · u_k·v_k^T
//
// It needs the whole matrix in float64 and an exact SVD: slow beyond a few
// thousand rows. Follows peft tuners/lora/variants.py,
// KasaLinearVariant._truncate_base_weight; arXiv 2412.06071.
type SubtractTail struct {
	Rank int64 `json:"rank"`
	Rows int64 `json:"rows"`
	Cols int64 `json:"cols"`
}

func (SubtractTail) Kind() string { return "subtract_svd_tail" }

// Scratch holds the matrix, its factors and the work space of the SVD.
func (op SubtractTail) Scratch(rows, cols int64) int64 {
	k := min(rows, cols)
	return 2 * (2*rows*cols + 2*k*(rows+cols))
}

func (op SubtractTail) Bind([]tensor.Matrix[float32]) (plan.Func[float32], error) {
	return &tail[float32]{op: op, w: make([]float64, op.Rows*op.Cols)}, nil
}

func (op SubtractTail) Bind64([]tensor.Matrix[float64]) (plan.Func[float64], error) {
	return &tail[float64]{op: op, w: make([]float64, op.Rows*op.Cols)}, nil
}

type tail[T tensor.Float] struct {
	op   SubtractTail
	w    []float64
	u, v []float64 // rows x rank with the singular values, rank x cols
}

func (*tail[T]) Passes() int { return 1 }

func (f *tail[T]) Observe(_ int, b plan.Band[T]) error {
	at := f.w[b.Row*f.op.Cols:]
	for i, v := range b.X {
		at[i] = float64(v)
	}
	return nil
}

func (f *tail[T]) Finish(int) error {
	rows, cols, rank := int(f.op.Rows), int(f.op.Cols), int(f.op.Rank)
	var svd mat.SVD
	if !svd.Factorize(mat.NewDense(rows, cols, f.w), mat.SVDThin) {
		return fmt.Errorf("the singular value decomposition did not converge")
	}
	f.w = nil
	s := svd.Values(nil)
	var u, v mat.Dense
	svd.UTo(&u)
	svd.VTo(&v)
	f.u, f.v = make([]float64, rows*rank), make([]float64, rank*cols)
	for k := range rank {
		at := len(s) - rank + k
		for i := range rows {
			f.u[i*rank+k] = u.At(i, at) * s[at]
		}
		for j := range cols {
			f.v[k*cols+j] = v.At(j, at)
		}
	}
	return nil
}

func (f *tail[T]) Apply(b plan.Band[T]) error {
	rank := int(f.op.Rank)
	for i := range b.Rows {
		u := f.u[(int(b.Row)+i)*rank:][:rank]
		x := b.X[i*b.Cols : (i+1)*b.Cols]
		for j := range x {
			var acc float64
			for k, s := range u {
				acc += float64(s * f.v[k*b.Cols+j])
			}
			x[j] = T(float64(x[j]) - acc)
		}
	}
	return nil
}
