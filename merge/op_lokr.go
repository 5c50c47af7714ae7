package merge

import (
	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/plan"
)

// AddLoKr adds a Kronecker product:
//
//	W'[o1·O2+o2, (i1·I2+i2, k)] = W[...] + scale · w1[o1,i1] · w2[o2,i2,k]
//
// Each factor is stored whole or as a product of two (SplitW1, SplitW2), the
// second also as a core with two factors (Core). Sides: w1 or w1a, w1b; then w2
// or w2a, w2b, then t2. Follows peft tuners/lokr/layer.py, get_delta_weight and
// make_kron.
type AddLoKr struct {
	Scale   float64 `json:"scale"`
	SplitW1 bool    `json:"split_w1,omitempty"`
	SplitW2 bool    `json:"split_w2,omitempty"`
	Core    bool    `json:"core,omitempty"`
	Region  Region  `json:"region"`
}

func (AddLoKr) Kind() string { return "add_lokr" }

func (op AddLoKr) times(w float64) plan.Op {
	op.Scale *= w
	return op
}

func (op AddLoKr) Bind(s []tensor.Matrix[float32]) (plan.Func[float32], error) {
	return bindLoKr(op, s), nil
}

func (op AddLoKr) Bind64(s []tensor.Matrix[float64]) (plan.Func[float64], error) {
	return bindLoKr(op, s), nil
}

func bindLoKr[T tensor.Float](op AddLoKr, s []tensor.Matrix[T]) plan.Func[T] {
	w1 := s[0]
	s = s[1:]
	if op.SplitW1 {
		w1, s = multiply(w1, s[0]), s[1:]
	}
	w2 := flatten(s[0])
	switch {
	case op.Core:
		d := cp(s[2], s[0], s[1])
		w2 = dense(d, s[0].Cols())
	case op.SplitW2:
		w2 = multiply(s[0], s[1])
	}
	return &lokrFunc[T]{w1: w1, w2: w2, scale: T(op.Scale), region: op.Region}
}

type lokrFunc[T tensor.Float] struct {
	w1, w2 tensor.Matrix[T]
	scale  T
	region Region
}

func (f *lokrFunc[T]) Apply(b plan.Band[T]) error {
	at, from, n := f.region.in(b.Row, b.Rows)
	inner, width, wide := f.w2.Rows(), f.w2.Cols(), f.w1.Cols()
	for i := range n {
		o1, o2 := (from+i)/inner, (from+i)%inner
		row := f.w2.Data[o2*width : (o2+1)*width]
		for i1 := range wide {
			outer := f.w1.Data[o1*wide+i1]
			x := b.X[(at+i)*b.Cols+i1*width:][:width]
			for j, v := range row {
				x[j] += T(T(outer*v) * f.scale)
			}
		}
	}
	return nil
}

// multiply returns a·b in new memory.
func multiply[T tensor.Float](a, b tensor.Matrix[T]) tensor.Matrix[T] {
	a, b = flatten(a), flatten(b)
	return dense(pair(b, a, false, 1), a.Rows())
}

// dense multiplies a low-rank product out.
func dense[T tensor.Float](d lowRank[T], rows int) tensor.Matrix[T] {
	m := tensor.Matrix[T]{Shape: tensor.Shape{int64(rows), int64(d.cols)}, Data: make([]T, rows*d.cols)}
	kernel.AddLowRank(m.Data, rows, d.cols, d.l, d.r, d.rank, 1)
	return m
}

// lokr reads a LoKr module. Which parts there are decides its form.
func (r *reader) lokr(t *adapter.Target) error {
	op := AddLoKr{Scale: r.scaleOf(t)}
	var sides []plan.Slice
	var w1 [2]int64
	if s, ok := r.optional(t, "lokr_w1"); ok {
		w1 = [2]int64{s.Rows(), s.Cols()}
		sides = append(sides, r.whole(s))
	} else {
		a, err := r.part(t, "lokr_w1_a")
		if err != nil {
			return err
		}
		b, err := r.part(t, "lokr_w1_b")
		if err != nil {
			return err
		}
		if a.Cols() != b.Rows() {
			return r.refuse(a, "factors of %v and %v make no product", a.Shape, b.Shape)
		}
		if err := r.checkRank(t, b, b.Rows()); err != nil {
			return err
		}
		op.SplitW1, w1 = true, [2]int64{a.Rows(), b.Cols()}
		sides = append(sides, r.whole(a), r.whole(b))
	}
	w2, more, err := r.secondFactor(t, &op)
	if err != nil {
		return err
	}
	sides = append(sides, more...)
	if broken := r.config.RankPattern.Broken; len(broken) > 0 && !op.SplitW1 && !op.SplitW2 && !op.Core {
		return r.refuse(sides[0].Spec, "its rank does not show in its shape, and rank_pattern %q can't be evaluated here", broken[0])
	}
	if w1[0]*w2[0] != t.Shape[0] || w1[1]*w2[1] != colsOf(t.Shape) {
		return r.refuse(sides[0].Spec, "a Kronecker product of %v and %v does not fit the base's %v", w1, w2, t.Shape)
	}
	r.change(t, true, func(region Region) []plan.Stage {
		op.Region = region
		return []plan.Stage{{Op: op, Sides: sides}}
	})
	return nil
}

// secondFactor reads w2 in whichever form it is stored and returns its rows
// and columns.
func (r *reader) secondFactor(t *adapter.Target, op *AddLoKr) (w2 [2]int64, sides []plan.Slice, err error) {
	if s, ok := r.optional(t, "lokr_w2"); ok {
		if len(s.Shape) > 2 && !sameKernel(s.Shape, t.Shape) {
			return w2, nil, r.refuse(s, "a kernel of %v does not fit the base's %v", s.Shape, t.Shape)
		}
		return [2]int64{s.Rows(), s.Cols()}, []plan.Slice{r.whole(s)}, nil
	}
	a, err := r.part(t, "lokr_w2_a")
	if err != nil {
		return w2, nil, err
	}
	b, err := r.part(t, "lokr_w2_b")
	if err != nil {
		return w2, nil, err
	}
	sides = []plan.Slice{r.whole(a), r.whole(b)}
	if err := r.checkRank(t, b, b.Rows()); err != nil {
		return w2, nil, err
	}
	core, ok := r.optional(t, "lokr_t2")
	if !ok {
		op.SplitW2 = true
		if a.Cols() != b.Rows() {
			return w2, nil, r.refuse(a, "factors of %v and %v make no product", a.Shape, b.Shape)
		}
		return [2]int64{a.Rows(), b.Cols()}, sides, nil
	}
	op.Core = true
	if len(core.Shape) != 4 || core.Shape[0] != a.Rows() || core.Shape[1] != b.Rows() || a.Rows() != b.Rows() || !sameKernel(core.Shape, t.Shape) {
		return w2, nil, r.refuse(core, "a core of %v does not fit factors of %v and %v", core.Shape, a.Shape, b.Shape)
	}
	return [2]int64{a.Cols(), b.Cols() * core.Shape[2] * core.Shape[3]}, append(sides, r.whole(core)), nil
}
