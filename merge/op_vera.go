package merge

import (
	"fmt"

	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/torchrand"
	"github.com/loratool/loratool/plan"
)

// AddVeRA adds a product of two projections shared by the whole model, cut to
// the size of the layer and scaled by two small vectors:
//
//	W' = W + (diag(b)·B[:out,:]) · (diag(d)·A[:,:in])
//
// A is (rank, widest in), B is (widest out, rank). There is no alpha; Weight is
// the adapter's. Sides: A, B, d, b. Follows peft tuners/vera/layer.py,
// Linear.get_delta_weight; arXiv 2310.11454.
type AddVeRA struct {
	Weight     float64 `json:"weight"`
	In         int64   `json:"in"`
	Out        int64   `json:"out"`
	Transposed bool    `json:"transposed,omitempty"`
	Region     Region  `json:"region"`
}

func (AddVeRA) Kind() string { return "add_vera" }

func (op AddVeRA) times(w float64) plan.Op {
	op.Weight *= w
	return op
}

func (op AddVeRA) Bind(s []tensor.Matrix[float32]) (plan.Func[float32], error) {
	return bindVeRA(op, s), nil
}

func (op AddVeRA) Bind64(s []tensor.Matrix[float64]) (plan.Func[float64], error) {
	return bindVeRA(op, s), nil
}

func bindVeRA[T tensor.Float](op AddVeRA, s []tensor.Matrix[T]) plan.Func[T] {
	a := scaled(leading(s[0], s[0].Rows(), int(op.In)), s[2].Data, nil)
	b := scaled(leading(s[1], int(op.Out), s[1].Cols()), s[3].Data, nil)
	return &lowRankFunc[T]{pair(a, b, op.Transposed, op.Weight), op.Region}
}

// leading returns the top left rows x cols of m, without copying when the
// columns are all taken.
func leading[T tensor.Float](m tensor.Matrix[T], rows, cols int) tensor.Matrix[T] {
	width := m.Cols()
	out := tensor.Matrix[T]{Shape: tensor.Shape{int64(rows), int64(cols)}}
	if cols == width {
		out.Data = m.Data[:rows*cols]
		return out
	}
	out.Data = make([]T, rows*cols)
	for i := range rows {
		copy(out.Data[i*cols:(i+1)*cols], m.Data[i*width:])
	}
	return out
}

// vera reads a VeRA module.
func (r *reader) vera(t *adapter.Target) error {
	d, err := r.part(t, "vera_lambda_d")
	if err != nil {
		return err
	}
	b, err := r.part(t, "vera_lambda_b")
	if err != nil {
		return err
	}
	out, in, transposed, err := r.veraShape(t, d, b)
	if err != nil {
		return err
	}
	projA, projB := r.shared["vera_A"], r.shared["vera_B"]
	rank := r.config.Rank
	if projA.Rows() != rank || projB.Cols != rank || projA.Cols < in || projB.Rows() < out {
		return r.refuse(d, "the projections %v and %v are too small for rank %d and a layer of %v",
			projA.Spec.Shape, projB.Spec.Shape, rank, t.Shape)
	}
	r.change(t, true, func(region Region) []plan.Stage {
		return []plan.Stage{{
			Op:    AddVeRA{Weight: 1, In: in, Out: out, Transposed: transposed, Region: region},
			Sides: []plan.Slice{projA, projB, r.whole(d), r.whole(b)},
		}}
	})
	return nil
}

// veraShape checks the vectors of a module against its weight and the config.
func (r *reader) veraShape(t *adapter.Target, d, b tensor.Spec) (out, in int64, transposed bool, err error) {
	if err := r.checkRank(t, d, d.NumElements()); err != nil {
		return 0, 0, false, err
	}
	if len(t.Shape) != 2 {
		return 0, 0, false, r.refuse(d, "VeRA needs a linear layer, the base has %v", t.Shape)
	}
	out = b.NumElements()
	in = t.Shape[0] + t.Shape[1] - out
	transposed, ok := r.orientation(t, out, in)
	if !ok {
		return 0, 0, false, r.refuse(b, "%d outputs do not fit the base's %v", out, t.Shape)
	}
	return out, in, transposed, nil
}

// maxProjection bounds the elements of a projection that is drawn again, which
// is held in memory: rank 1024 for layers of 262144.
const maxProjection = 1 << 28

// projections finds the shared matrices: in the file, or drawn again from the
// seed when they were not saved. Their size is that of the widest adapted
// layer.
func (r *reader) projections() error {
	if r.config.Type != "VERA" || len(r.adapter.Targets) == 0 {
		return nil
	}
	r.shared = make(map[string]plan.Slice)
	for _, part := range []string{"vera_A", "vera_B"} {
		s, ok := r.adapter.Shared[part]
		if ok {
			if err := r.floats(s); err != nil {
				return err
			}
			r.shared[part] = r.whole(s)
		}
	}
	switch {
	case len(r.shared) == 2:
		return nil
	case len(r.shared) == 1:
		have, ok := r.shared["vera_A"]
		if !ok {
			have = r.shared["vera_B"]
		}
		return r.refuse(have.Spec, "only one of the projections vera_A and vera_B is in the file")
	case r.config.SaveProjection:
		first := r.adapter.Targets[0]
		return r.refuse(first.Parts[anyPart(first)], "save_projection is true, but vera_A and vera_B are not in the file")
	}
	var in, out int64
	for _, t := range r.adapter.Targets {
		d, okD := t.Part("vera_lambda_d")
		b, okB := t.Part("vera_lambda_b")
		if !okD || !okB {
			continue // refused when it is read, as is every other fault of it
		}
		o, i, _, err := r.veraShape(t, d, b)
		if err != nil {
			return err
		}
		out, in = max(out, o), max(in, i)
	}
	if rows := max(in, out); rows > maxProjection/r.config.Rank {
		return &checkpoint.InputError{Path: r.adapter.Source.Path, Err: fmt.Errorf(
			"projections of rank %d for layers of up to %d are too large to be drawn again", r.config.Rank, rows)}
	}
	g := torchrand.New(uint64(r.config.ProjectionKey))
	// A before B, from one generator.
	a := torchrand.KaimingUniform(g, int(r.config.Rank), int(in))
	b := torchrand.KaimingUniform(g, int(out), int(r.config.Rank))
	input, memory := r.p.addMemory()
	r.shared["vera_A"] = memory.add(input, "vera_A", tensor.Shape{r.config.Rank, in}, a)
	r.shared["vera_B"] = memory.add(input, "vera_B", tensor.Shape{out, r.config.Rank}, b)
	r.p.decide("vera-projections-regenerated", fmt.Sprintf(
		"the projections of %s were not saved: drawn again from seed %d as torch does on a CPU with FMA", r.adapter.Source.Name, r.config.ProjectionKey))
	return nil
}
