package merge

import (
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/plan"
)

// Blend combines changes of which at least one depends on the weights it
// changes, each seen from the base:
//
//	W' = W + sum_i weight_i · (M_i(W) - W)
//
// M_i are the stages of branch i. It is the meaning of several adapters at
// once: the exact sum of what each does alone, in the order given. Sides: those
// of the branches, one after another.
type Blend struct {
	Branches []Branch `json:"branches"`
}

// Branch is one term of a [Blend].
type Branch struct {
	Weight float64      `json:"weight"`
	Stages []plan.Stage `json:"stages"`
}

func (Blend) Kind() string { return "blend" }

// Scratch is what the operations of the branches need.
func (op Blend) Scratch(rows, cols int64) int64 {
	var n int64
	for _, br := range op.Branches {
		for _, st := range br.Stages {
			if s, ok := st.Op.(plan.Scratcher); ok {
				n += s.Scratch(rows, cols)
			}
		}
	}
	return n
}

// sides returns the side inputs of all branches in binding order.
func (op Blend) sides() []plan.Slice {
	var all []plan.Slice
	for _, br := range op.Branches {
		for _, st := range br.Stages {
			all = append(all, st.Sides...)
		}
	}
	return all
}

func (op Blend) Bind(s []tensor.Matrix[float32]) (plan.Func[float32], error) {
	return bindBlend(op, s, plan.Op.Bind)
}

func (op Blend) Bind64(s []tensor.Matrix[float64]) (plan.Func[float64], error) {
	return bindBlend(op, s, plan.Op.Bind64)
}

func bindBlend[T tensor.Float](op Blend, s []tensor.Matrix[T], bind func(plan.Op, []tensor.Matrix[T]) (plan.Func[T], error)) (plan.Func[T], error) {
	f := new(blend[T])
	for _, br := range op.Branches {
		b := branch[T]{weight: T(br.Weight)}
		for _, st := range br.Stages {
			fn, err := bind(st.Op, s[:len(st.Sides)])
			if err != nil {
				return nil, err
			}
			s = s[len(st.Sides):]
			b.funcs = append(b.funcs, fn)
			if o, ok := fn.(plan.Observer[T]); ok {
				for pass := range o.Passes() {
					f.passes = append(f.passes, observation[T]{o, pass, b.funcs[:len(b.funcs)-1]})
				}
			}
		}
		f.branches = append(f.branches, b)
	}
	return f, nil
}

type blend[T tensor.Float] struct {
	branches []branch[T]
	passes   []observation[T]
}

type branch[T tensor.Float] struct {
	weight T
	funcs  []plan.Func[T]
}

// observation is one pass that one stage of a branch asks for, with the stages
// of the branch that come before it.
type observation[T tensor.Float] struct {
	observer plan.Observer[T]
	pass     int
	earlier  []plan.Func[T]
}

func (f *blend[T]) Passes() int { return len(f.passes) }

func (f *blend[T]) Observe(pass int, b plan.Band[T]) error {
	o := f.passes[pass]
	y := b
	y.X = append([]T(nil), b.X...)
	for _, fn := range o.earlier {
		if err := fn.Apply(y); err != nil {
			return err
		}
	}
	return o.observer.Observe(o.pass, y)
}

func (f *blend[T]) Finish(pass int) error {
	o := f.passes[pass]
	return o.observer.Finish(o.pass)
}

func (f *blend[T]) Apply(b plan.Band[T]) error {
	w := append([]T(nil), b.X...)
	y := b
	y.X = make([]T, len(w))
	for _, br := range f.branches {
		copy(y.X, w)
		for _, fn := range br.funcs {
			if err := fn.Apply(y); err != nil {
				return err
			}
		}
		for i, v := range y.X {
			b.X[i] += T(br.weight * T(v-w[i]))
		}
	}
	return nil
}
