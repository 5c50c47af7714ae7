package merge

import (
	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/plan"
)

// AddExpertsLoRA adds one low-rank product per expert of a 3-D parameter:
//
//	W[e] += scale · B_e·A_e       W stored (experts, out, in)
//	W[e] += scale · (B_e·A_e)^T   Transposed: W stored (experts, in, out)
//
// with A_e = A[e·rank : (e+1)·rank, :], and B_e[:,k] = B[:, k·experts+e] as PEFT
// packs it (rank-major, the expert runs fastest), or B[:, e·rank+k] with
// ExpertMajor, as Unsloth writes it under the same name. Sides: A, B. Follows
// peft tuners/lora/layer.py, ParamWrapper.get_delta_weight.
type AddExpertsLoRA struct {
	Scale       float64 `json:"scale"`
	Experts     int64   `json:"experts"`
	ExpertMajor bool    `json:"expert_major,omitempty"`
	Transposed  bool    `json:"transposed,omitempty"`
	Region      Region  `json:"region"`
}

func (AddExpertsLoRA) Kind() string { return "add_experts_lora" }

func (op AddExpertsLoRA) times(w float64) plan.Op {
	op.Scale *= w
	return op
}

func (op AddExpertsLoRA) Bind(s []tensor.Matrix[float32]) (plan.Func[float32], error) {
	return bindExperts(op, s), nil
}

func (op AddExpertsLoRA) Bind64(s []tensor.Matrix[float64]) (plan.Func[float64], error) {
	return bindExperts(op, s), nil
}

func bindExperts[T tensor.Float](op AddExpertsLoRA, s []tensor.Matrix[T]) plan.Func[T] {
	a, b := s[0], s[1]
	experts, out, in := int(op.Experts), b.Rows(), a.Cols()
	rank := a.Rows() / experts
	column := func(e, k int) int {
		if op.ExpertMajor {
			return e*rank + k
		}
		return k*experts + e
	}
	d := lowRank[T]{rank: rank, scale: T(op.Scale)}
	if op.Transposed {
		// L_e = A_e^T (in x rank), R_e = B_e^T (rank x out).
		d.cols, d.perGroup = out, in
		d.l = make([]T, experts*in*rank)
		d.r = make([]T, experts*rank*out)
		for e := range experts {
			for k := range rank {
				for i, v := range a.Data[(e*rank+k)*in : (e*rank+k+1)*in] {
					d.l[(e*in+i)*rank+k] = v
				}
				for o := range out {
					d.r[(e*rank+k)*out+o] = b.Data[o*experts*rank+column(e, k)]
				}
			}
		}
		return &lowRankFunc[T]{d, op.Region}
	}
	// L_e = B_e (out x rank), R_e = A_e, which lies there already.
	d.cols, d.perGroup, d.r = in, out, a.Data
	d.l = make([]T, experts*out*rank)
	for e := range experts {
		for o := range out {
			for k := range rank {
				d.l[(e*out+o)*rank+k] = b.Data[o*experts*rank+column(e, k)]
			}
		}
	}
	return &lowRankFunc[T]{d, op.Region}
}

// experts reads the factors of a stacked parameter.
func (r *reader) experts(t *adapter.Target, a, b tensor.Spec) error {
	if r.config.Init != "" || r.config.KaSA {
		return r.refuse(a, "an adapter of stacked experts that was made by changing the base is not supported")
	}
	if r.config.DoRA {
		return r.refuse(a, "DoRA of stacked experts has no weight that PEFT would make")
	}
	experts := t.Shape[0]
	if experts == 0 || len(a.Shape) != 2 || len(b.Shape) != 2 || a.Shape[0]%experts != 0 || b.Shape[1] != a.Shape[0] {
		return r.refuse(a, "factors of %v and %v do not divide over %d experts", b.Shape, a.Shape, experts)
	}
	if err := r.checkRank(t, a, a.Shape[0]/experts); err != nil {
		return err
	}
	out, in := b.Shape[0], a.Shape[1]
	straight := out == t.Shape[1] && in == t.Shape[2]
	transposed := in == t.Shape[1] && out == t.Shape[2]
	switch {
	case straight && transposed:
		// Experts that are modules of their own are linear layers in any model.
		transposed = len(t.Places) == 1 && arch.StoresExpertsTransposed(r.p.modelType)
	case !straight && !transposed:
		return r.refuse(a, "a product of %v and %v does not fit the base's %v", b.Shape, a.Shape, t.Shape)
	}
	expertMajor := false
	if a.Shape[0] > experts && experts > 1 {
		var err error
		if expertMajor, err = r.expertMajor(t); err != nil {
			return err
		}
	}
	r.change(t, true, func(region Region) []plan.Stage {
		return []plan.Stage{{
			Op: AddExpertsLoRA{
				Scale: r.scaleOf(t), Experts: experts, ExpertMajor: expertMajor,
				Transposed: transposed, Region: region,
			},
			Sides: []plan.Slice{r.whole(a), r.whole(b)},
		}}
	})
	return nil
}

// expertMajor decides how the columns of B are packed. Shapes can't tell; PEFT
// and Unsloth write the same names with different orders.
func (r *reader) expertMajor(t *adapter.Target) (bool, error) {
	switch r.p.options.MoEBLayout {
	case "rank":
		return false, nil
	case "expert":
		return true, nil
	}
	if mark := r.adapter.Unsloth(); mark != "" {
		r.p.decide("moe-b-layout-expert", "lora_B of stacked experts is read expert-major, since "+mark+"; --moe-b-layout rank overrules", t.Places[0].Tensor)
		return true, nil
	}
	return false, nil
}
