package merge

import (
	"fmt"
	"math"
	"slices"

	"gonum.org/v1/gonum/blas/blas64"
	"gonum.org/v1/gonum/lapack/lapack64"
	"gonum.org/v1/gonum/mat"

	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/plan"
)

// This file has the LoRA variants that changed the base when they were made:
// the adapter's product is the start plus what was learnt, and only the
// difference to the start belongs on the original base.

// AddLoRADifference adds what training added to a start that is known:
//
//	W' = W + scale · B·A - startScale · B0·A0
//
// Sides: A, B, A0, B0. The two products nearly cancel, so their difference is
// formed in float64 and rounded with the sum, once. Follows peft
// tuners/lora/layer.py (pissa_init, corda_init, lora_ga_init, olora_init).
type AddLoRADifference struct {
	Scale      float64 `json:"scale"`
	StartScale float64 `json:"start_scale"`
	Ranks      int64   `json:"ranks"` // of both products together
	Transposed bool    `json:"transposed,omitempty"`
	Region     Region  `json:"region"`
}

func (AddLoRADifference) Kind() string { return "add_lora_difference" }

func (op AddLoRADifference) times(w float64) plan.Op {
	op.Scale *= w
	op.StartScale *= w
	return op
}

func (op AddLoRADifference) Bind(s []tensor.Matrix[float32]) (plan.Func[float32], error) {
	return bindDifference(op, s), nil
}

func (op AddLoRADifference) Bind64(s []tensor.Matrix[float64]) (plan.Func[float64], error) {
	return bindDifference(op, s), nil
}

// Scratch is what the factors take in float64, as read and transposed.
func (op AddLoRADifference) Scratch(rows, cols int64) int64 { return 4 * op.Ranks * (rows + cols) }

func bindDifference[T tensor.Float](op AddLoRADifference, s []tensor.Matrix[T]) plan.Func[T] {
	return &difference[T]{
		learnt: pair(widen(s[0]), widen(s[1]), op.Transposed, op.Scale),
		start:  pair(widen(s[2]), widen(s[3]), op.Transposed, -op.StartScale),
		region: op.Region,
	}
}

// difference adds two products in float64 and rounds the sum.
type difference[T tensor.Float] struct {
	learnt, start lowRank[float64]
	region        Region
}

func (f *difference[T]) Apply(b plan.Band[T]) error {
	at, from, n := f.region.in(b.Row, b.Rows)
	acc := make([]float64, b.Cols)
	for i := range n {
		x := b.X[(at+i)*b.Cols : (at+i+1)*b.Cols]
		clear(acc)
		f.learnt.add(acc, from+i, 1)
		f.start.add(acc, from+i, 1)
		for j := range x {
			x[j] = T(float64(x[j]) + acc[j])
		}
	}
	return nil
}

// widen converts a factor to float64, exactly.
func widen[T tensor.Float](m tensor.Matrix[T]) tensor.Matrix[float64] {
	w := tensor.Matrix[float64]{Shape: m.Shape, Data: make([]float64, len(m.Data))}
	for i, v := range m.Data {
		w.Data[i] = float64(v)
	}
	return w
}

// AddOLoRA adds what training added to OLoRA's start, which follows from the
// base:
//
//	W' = W + scale · (B·A - Q_r·R_r),   W = Q·R
//
// Q_r are the first r columns of Q, an orthonormal basis of the first r columns
// of W, and R_r = Q_r^T·W: the product is a projection and does not depend on
// the signs of the factorisation. Two passes: the first r columns are collected
// and orthonormalised in float64, then R_r is summed over the rows in ascending
// order. Sides: A, B. Follows peft tuners/lora/layer.py, olora_init; arXiv
// 2406.01775.
type AddOLoRA struct {
	Scale float64 `json:"scale"`
	Rank  int64   `json:"rank"`
	Rows  int64   `json:"rows"`
	Cols  int64   `json:"cols"`
}

func (AddOLoRA) Kind() string { return "add_olora" }

// Scratch holds Q_r, R_r and the factors in float64, which may be twice the
// step's size.
func (op AddOLoRA) Scratch(rows, cols int64) int64 { return 4 * op.Rank * (rows + cols) }

func (op AddOLoRA) Bind(s []tensor.Matrix[float32]) (plan.Func[float32], error) {
	return bindOLoRA(op, s), nil
}

func (op AddOLoRA) Bind64(s []tensor.Matrix[float64]) (plan.Func[float64], error) {
	return bindOLoRA(op, s), nil
}

func bindOLoRA[T tensor.Float](op AddOLoRA, s []tensor.Matrix[T]) plan.Func[T] {
	rank := int(op.Rank)
	return &olora[T]{
		difference: difference[T]{
			learnt: pair(widen(s[0]), widen(s[1]), false, op.Scale),
			start: lowRank[float64]{
				l: make([]float64, op.Rows*op.Rank), r: make([]float64, op.Rank*op.Cols),
				rank: rank, cols: int(op.Cols), perGroup: int(op.Rows), scale: -op.Scale,
			},
			region: Region{Rows: op.Rows},
		},
	}
}

// olora is a difference whose start is found in the base first: L is Q_r, R is
// R_r.
type olora[T tensor.Float] struct{ difference[T] }

func (*olora[T]) Passes() int { return 2 }

func (f *olora[T]) Observe(pass int, b plan.Band[T]) error {
	rank := f.start.rank
	for i := range b.Rows {
		row := b.X[i*b.Cols : (i+1)*b.Cols]
		q := f.start.l[(int(b.Row)+i)*rank:][:rank]
		if pass == 0 {
			for k := range q {
				q[k] = float64(row[k])
			}
			continue
		}
		for k, v := range q {
			r := f.start.r[k*b.Cols : (k+1)*b.Cols]
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
	rank := f.start.rank
	q := f.start.l
	a := blas64.General{Rows: f.start.perGroup, Cols: rank, Stride: rank, Data: q}
	tau := make([]float64, rank)
	work := make([]float64, workSize(func(work []float64, n int) { lapack64.Geqrf(a, tau, work, n) }))
	lapack64.Geqrf(a, tau, work, len(work))
	// A dependent column leaves its direction of Q to the library that did
	// the factorisation: then the adapter's start can't be known.
	for k := range rank {
		if math.Abs(q[k*rank+k]) <= dependent*math.Abs(q[0]) {
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

// product is what the factors of a module do to a region of its weight.
type product struct {
	stages    func(region Region) []plan.Stage
	dependent bool // on the weight itself
}

// product picks the form of a module's change by how the adapter was made.
// Adapters whose start can't be known were refused when they were opened.
func (r *reader) product(t *adapter.Target, a, b tensor.Spec, transposed bool) (product, error) {
	scale := r.scaleOf(t)
	if t.Inner && !r.p.options.MHAFormula && adapter.MatchName("out_proj", t.Name) {
		scale *= 2
		r.p.decide("mha-out-proj-twice", "out_proj of an attention gets its change twice, as PEFT applies it in training (merge and inner merge); --mha-formula applies it once", t.Places[0].Tensor)
	}
	sides := []plan.Slice{r.whole(a), r.whole(b)}
	switch {
	case r.config.KaSA:
		return r.kasa(t, sides, scale, transposed)
	case r.config.Init != "" && r.init != nil:
		return r.fromStart(t, sides, scale, transposed)
	case r.config.Init == "olora":
		if err := r.recomputable(t, a, transposed); err != nil {
			return product{}, err
		}
		op := AddOLoRA{Scale: scale, Rank: a.Rows(), Rows: t.Shape[0], Cols: t.Shape[1]}
		return product{func(Region) []plan.Stage { return []plan.Stage{{Op: op, Sides: sides}} }, true}, nil
	}
	return product{stages: func(region Region) []plan.Stage {
		return []plan.Stage{{Op: AddLoRA{Scale: scale, Transposed: transposed, Region: region}, Sides: sides}}
	}}, nil
}

// kasa drops the tail of the base and adds the product with its diagonal.
func (r *reader) kasa(t *adapter.Target, sides []plan.Slice, scale float64, transposed bool) (product, error) {
	a := sides[0].Spec
	if err := r.recomputable(t, a, transposed); err != nil {
		return product{}, err
	}
	diagonal, _ := r.optional(t, "lora_diag")
	tail := SubtractTail{Rank: a.Rows(), Rows: t.Shape[0], Cols: t.Shape[1]}
	return product{func(region Region) []plan.Stage {
		return []plan.Stage{
			{Op: tail},
			{Op: AddAdaLoRA{Scale: scale, OntoB: true, Region: region}, Sides: append(sides, r.whole(diagonal))},
		}
	}, true}, nil
}

// recomputable refuses the layers whose start can't be found from the base.
func (r *reader) recomputable(t *adapter.Target, a tensor.Spec, transposed bool) error {
	if transposed || len(t.Shape) != 2 || !r.coversWhole(t) || a.Rows() >= min(t.Shape[0], t.Shape[1]) {
		return r.refuse(a, "the adapter's start can only be recomputed for a plain linear layer wider than the rank; give --init-adapter")
	}
	return nil
}

// fromStart pairs the factors with those of the initial adapter.
func (r *reader) fromStart(t *adapter.Target, sides []plan.Slice, scale float64, transposed bool) (product, error) {
	a, b := sides[0].Spec, sides[1].Spec
	for _, other := range r.init.Targets {
		if other.Name != t.Name || other.Depth != t.Depth {
			continue
		}
		a0, okA := other.Part("lora_A")
		b0, okB := other.Part("lora_B")
		if !okA || !okB || len(a0.Shape) != len(a.Shape) || !slices.Equal(a0.Shape[1:], a.Shape[1:]) || b0.Rows() != b.Rows() || b0.Cols() != a0.Rows() ||
			a0.Rows() != r.init.Config.RankOf(other.PatternName) || !a0.DType.IsFloat() || !b0.DType.IsFloat() {
			return product{}, r.refuse(a, "the initial adapter's factors for this module do not fit")
		}
		startScale := r.init.Config.ScaleOf(other.PatternName)
		sides = append(sides, plan.Whole(r.initIn, a0), plan.Whole(r.initIn, b0))
		return product{stages: func(region Region) []plan.Stage {
			op := AddLoRADifference{Scale: scale, StartScale: startScale, Ranks: a.Rows() + a0.Rows(), Transposed: transposed, Region: region}
			return []plan.Stage{{Op: op, Sides: sides}}
		}}, nil
	}
	return product{}, r.refuse(a, "the initial adapter has no such module")
}
