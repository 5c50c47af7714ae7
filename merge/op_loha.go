package merge

import (
	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/plan"
)

// AddLoHa adds the Hadamard product of two low-rank products:
//
//	W' = W + scale · ((w1a·w1b) ∘ (w2a·w2b))
//
// With cores (CP form, convolutions) each product is
// P[o,(i,k,l)] = sum_p wa[p,o] · sum_q t[p,q,k,l] · wb[q,i].
// Sides: w1a, w1b, w2a, w2b, and t1, t2 with cores. Follows peft
// tuners/loha/layer.py, HadaWeight and HadaWeightCP; arXiv 2108.06098.
type AddLoHa struct {
	Scale  float64 `json:"scale"`
	Core   bool    `json:"core,omitempty"`
	Region Region  `json:"region"`
}

func (AddLoHa) Kind() string { return "add_loha" }

func (op AddLoHa) times(w float64) plan.Op {
	op.Scale *= w
	return op
}

func (op AddLoHa) Bind(s []tensor.Matrix[float32]) (plan.Func[float32], error) {
	return bindLoHa(op, s), nil
}

func (op AddLoHa) Bind64(s []tensor.Matrix[float64]) (plan.Func[float64], error) {
	return bindLoHa(op, s), nil
}

func bindLoHa[T tensor.Float](op AddLoHa, s []tensor.Matrix[T]) plan.Func[T] {
	f := &lohaFunc[T]{scale: T(op.Scale), region: op.Region}
	if op.Core {
		f.first, f.second = cp(s[4], s[0], s[1]), cp(s[5], s[2], s[3])
	} else {
		f.first, f.second = pair(s[1], s[0], false, 1), pair(s[3], s[2], false, 1)
	}
	return f
}

type lohaFunc[T tensor.Float] struct {
	first, second lowRank[T]
	scale         T
	region        Region
}

func (f *lohaFunc[T]) Apply(b plan.Band[T]) error {
	at, from, n := f.region.in(b.Row, b.Rows)
	// One row at a time: the two products of a row stay in the cache.
	p, q := make([]T, b.Cols), make([]T, b.Cols)
	for i := range n {
		clear(p)
		clear(q)
		f.first.add(p, from+i, 1)
		f.second.add(q, from+i, 1)
		x := b.X[(at+i)*b.Cols : (at+i+1)*b.Cols]
		for j := range x {
			x[j] += T(T(p[j]*q[j]) * f.scale)
		}
	}
	return nil
}

// cp brings a Tucker-2 core t (rank, rank, k, l) with factors wa (rank, out)
// and wb (rank, in) into low-rank form: L = wa^T and
// R[p,(i,k,l)] = sum_q t[p,q,k,l] · wb[q,i], q ascending. Follows
// make_weight_cp in peft tuners/loha/layer.py and tuners/lokr/layer.py.
func cp[T tensor.Float](t, wa, wb tensor.Matrix[T]) lowRank[T] {
	rank, in := wb.Rows(), wb.Cols()
	kernelSize := t.Cols() / rank
	r := make([]T, rank*in*kernelSize)
	for p := range rank {
		core := t.Data[p*rank*kernelSize : (p+1)*rank*kernelSize] // (q, k·l)
		// sum_q wb[q,i] · core[q,(k,l)] = wb^T · core
		kernel.AddLowRank(r[p*in*kernelSize:(p+1)*in*kernelSize], in, kernelSize, wb.Transpose().Data, core, rank, 1)
	}
	l := wa.Transpose()
	return lowRank[T]{l: l.Data, r: r, rank: rank, cols: in * kernelSize, perGroup: max(l.Rows(), 1), scale: 1}
}

// loha reads a LoHa module.
func (r *reader) loha(t *adapter.Target) error {
	var parts [4]tensor.Spec
	var err error
	for i, name := range []string{"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"} {
		if parts[i], err = r.part(t, name); err != nil {
			return err
		}
	}
	sides := []plan.Slice{r.whole(parts[0]), r.whole(parts[1]), r.whole(parts[2]), r.whole(parts[3])}
	_, core1 := r.optional(t, "hada_t1")
	_, core2 := r.optional(t, "hada_t2")
	core := core1 || core2
	if core {
		for _, name := range []string{"hada_t1", "hada_t2"} {
			s, err := r.part(t, name)
			if err != nil {
				return err
			}
			sides = append(sides, r.whole(s))
		}
	}
	rank := parts[1].Rows()
	if err := r.checkRank(t, parts[1], rank); err != nil {
		return err
	}
	for i := 0; i < 4; i += 2 {
		a, b := parts[i], parts[i+1]
		fits := a.Cols() == rank && b.Rows() == rank && a.Rows() == t.Shape[0] && b.Cols() == colsOf(t.Shape)
		if core {
			fits = fitsCore(sides[4+i/2].Spec, a, b, t.Shape)
		}
		if !fits {
			return r.refuse(a, "factors of %v and %v do not fit the base's %v", a.Shape, b.Shape, t.Shape)
		}
	}
	r.change(t, true, func(region Region) []plan.Stage {
		return []plan.Stage{{
			Op:    AddLoHa{Scale: r.scaleOf(t), Core: core, Region: region},
			Sides: sides,
		}}
	})
	return nil
}

// fitsCore reports whether a core (rank, rank, k, l) with factors (rank, out)
// and (rank, in) makes a kernel of the given shape.
func fitsCore(core, a, b tensor.Spec, shape tensor.Shape) bool {
	rank := a.Rows()
	return len(core.Shape) == 4 && len(shape) > 2 && core.Shape[0] == rank && core.Shape[1] == rank && b.Rows() == rank &&
		a.Cols() == shape[0] && b.Cols() == shape[1] && sameKernel(core.Shape, shape)
}

// sameKernel reports whether two shapes have the same dimensions behind the
// first two. The kernel of a 1-D convolution may have a 1 behind it.
func sameKernel(a, b tensor.Shape) bool {
	if len(a) < 2 || len(b) < 2 {
		return false
	}
	a, b = a[2:], b[2:]
	if len(a) == 2 && len(b) == 1 {
		return a[0] == b[0] && a[1] == 1
	}
	return a.Equal(b)
}
