package merge

import (
	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/plan"
)

// AddLoRA adds a low-rank product:
//
//	W' = W + scale · B·A          W stored (out, in)
//	W' = W + scale · (B·A)^T      Transposed: W stored (in, out), and embeddings
//
// A is (rank, in, ...), B is (out, rank, ...); kernels of convolutions are
// columns like any other. The accumulation runs over the rank in ascending
// order (see kernel.AddLowRank). Sides: A, B. Follows peft tuners/lora/layer.py,
// get_delta_weight of Linear, Embedding and _ConvNd.
type AddLoRA struct {
	Scale      float64 `json:"scale"`
	Transposed bool    `json:"transposed,omitempty"`
	Region     Region  `json:"region"`
}

func (AddLoRA) Kind() string { return "add_lora" }

func (op AddLoRA) Bind(s []tensor.Matrix[float32]) (plan.Func[float32], error) {
	return bindLoRA(op, s), nil
}

func (op AddLoRA) Bind64(s []tensor.Matrix[float64]) (plan.Func[float64], error) {
	return bindLoRA(op, s), nil
}

func bindLoRA[T tensor.Float](op AddLoRA, s []tensor.Matrix[T]) plan.Func[T] {
	return &lowRankFunc[T]{pair(s[0], s[1], op.Transposed, op.Scale), op.Region}
}

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

// lora reads a LoRA module: linear, Conv1D, convolution, embedding, attention
// or stacked experts, with its variants.
func (r *reader) lora(t *adapter.Target) error {
	a, b, embedding, err := r.pairOf(t)
	if err != nil {
		return err
	}
	magnitude, hasMagnitude := t.Part("lora_magnitude_vector")
	if hasMagnitude != r.config.DoRA {
		return r.refuse(a, "use_dora is %v in the config, but the magnitude vector says otherwise", r.config.DoRA)
	}
	if err := r.loraBias(t, b); err != nil {
		return err
	}
	if len(t.Shape) == 3 && t.Param != "weight" {
		return r.experts(t, a, b)
	}
	if err := r.checkRank(t, a, a.Rows()); err != nil {
		return err
	}
	transposed := embedding
	if embedding {
		if b.Cols() != a.Rows() || len(t.Shape) != 2 || a.Cols() != t.Shape[0] || b.Rows() != t.Shape[1] {
			return r.refuse(a, "an embedding change of %v and %v does not fit the base's %v", a.Shape, b.Shape, t.Shape)
		}
	} else if transposed, err = r.factors(t, a, b); err != nil {
		return err
	}
	if hasMagnitude {
		if n := magnitude.NumElements(); n != b.Rows() {
			return r.refuse(magnitude, "%d magnitudes for %d outputs", n, b.Rows())
		}
	}
	start, err := r.start(t, transposed)
	if err != nil {
		return err
	}
	additive := !hasMagnitude && !start.dependent
	scale, fold := r.scaleOf(t), 1.0
	if additive {
		fold = r.weight
	}
	if t.Inner && !r.p.options.MHAFormula && adapter.MatchName("out_proj", t.Name) {
		scale *= 2
		r.p.decide("mha-out-proj-twice", "out_proj of an attention gets its change twice, as PEFT applies it in training (merge and inner merge); --mha-formula applies it once", t.Places[0].Tensor)
	}
	scale *= fold
	rows, _ := t.Part("lora_diag")
	r.change(t, additive, func(region Region) []plan.Stage {
		stages := start.stages(region, fold)
		if r.config.KaSA {
			stages = append(stages, plan.Stage{
				Op:    AddAdaLoRA{Scale: scale, OntoB: true, Transposed: transposed, Region: region},
				Sides: []plan.Slice{r.whole(a), r.whole(b), r.whole(rows)},
			})
		} else {
			stages = append(stages, plan.Stage{
				Op:    AddLoRA{Scale: scale, Transposed: transposed, Region: region},
				Sides: []plan.Slice{r.whole(a), r.whole(b)},
			})
		}
		if hasMagnitude {
			stages = append(stages, plan.Stage{
				Op:    DoRA{ByColumn: transposed, Region: region},
				Sides: []plan.Slice{r.whole(magnitude)},
			})
		}
		return stages
	})
	if embedding && r.config.EnsureTied {
		r.p.term(t.Places[0].Tensor, r.index, r.weight).throughTie = true
	}
	return nil
}

// pairOf returns the factors of a module, in the order A, B.
func (r *reader) pairOf(t *adapter.Target) (a, b tensor.Spec, embedding bool, err error) {
	first, second := "lora_A", "lora_B"
	_, hasA := t.Part("lora_embedding_A")
	_, hasB := t.Part("lora_embedding_B")
	if embedding = hasA || hasB; embedding {
		first, second = "lora_embedding_A", "lora_embedding_B"
	}
	for _, name := range []string{first, second, "lora_magnitude_vector", "lora_B.bias", "lora_diag"} {
		if s, ok := t.Part(name); ok {
			if a, err = r.part(t, first, partName(t, s)); err == nil {
				b, err = r.part(t, second, partName(t, s))
			}
			break
		}
	}
	if err == nil && r.config.KaSA {
		var diag tensor.Spec
		if diag, err = r.part(t, "lora_diag", first); err == nil && diag.NumElements() != a.Rows() {
			err = r.refuse(diag, "%d diagonal entries for rank %d", diag.NumElements(), a.Rows())
		}
	}
	return a, b, embedding, err
}

// partName finds the name of a part.
func partName(t *adapter.Target, s tensor.Spec) string {
	for name, part := range t.Parts {
		if part.Name == s.Name {
			return name
		}
	}
	return ""
}

// loraBias adds scale · lora_B.bias to the bias of the base.
func (r *reader) loraBias(t *adapter.Target, b tensor.Spec) error {
	bias, ok := t.Part("lora_B.bias")
	switch {
	case ok != r.config.LoRABias:
		return r.refuse(b, "lora_bias is %v in the config, but the tensors say otherwise", r.config.LoRABias)
	case !ok:
		return nil
	case t.Bias == nil:
		return r.refuse(bias, "the base has no bias to add it to")
	case bias.NumElements() != t.Bias.Rows:
		return r.refuse(bias, "%d entries for a bias of %d", bias.NumElements(), t.Bias.Rows)
	}
	r.changeBias(t, true, plan.Stage{
		Op:    AddVector{Scale: r.scaleOf(t) * r.weight, Region: Region{Rows: t.Bias.Rows}},
		Sides: []plan.Slice{r.whole(bias)},
	})
	return nil
}

// experts reads the factors of a stacked parameter.
func (r *reader) experts(t *adapter.Target, a, b tensor.Spec) error {
	experts := t.Shape[0]
	if len(a.Shape) != 2 || len(b.Shape) != 2 || a.Shape[0]%experts != 0 || b.Shape[1] != a.Shape[0] {
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
		transposed = arch.StoresExpertsTransposed(r.p.modelType)
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
				Scale: r.scaleOf(t) * r.weight, Experts: experts, ExpertMajor: expertMajor,
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

// start is what brings the base to the weights that an adapter was trained on,
// when making the adapter changed them: stages for a region, with the factor
// that additive changes carry. Dependent says that they depend on the base.
type start struct {
	stages    func(region Region, fold float64) []plan.Stage
	dependent bool
}

// start finds the start of a module. Adapters whose start can't be known were
// refused when they were opened.
func (r *reader) start(t *adapter.Target, transposed bool) (start, error) {
	rank := r.config.RankOf(t.PatternName)
	switch {
	case r.config.KaSA:
		return r.residual(t, SubtractTail{Rank: rank, Rows: t.Shape[0], Cols: t.Shape[1]}, transposed)
	case r.config.Init != "" && r.init != nil:
		return r.initial(t, transposed)
	case r.config.Init == "olora":
		return r.residual(t, SubtractOLoRA{Scale: r.scaleOf(t), Rank: rank, Rows: t.Shape[0], Cols: t.Shape[1]}, transposed)
	}
	return start{stages: func(Region, float64) []plan.Stage { return nil }}, nil
}

// residual recomputes a start from the base.
func (r *reader) residual(t *adapter.Target, op plan.Op, transposed bool) (start, error) {
	rank := r.config.RankOf(t.PatternName)
	if transposed || len(t.Shape) != 2 || len(t.Places) != 1 || rank >= min(t.Shape[0], t.Shape[1]) {
		first, _ := t.Part("lora_A")
		return start{}, r.refuse(first, "the adapter's start can only be recomputed for a plain linear layer wider than the rank; give --init-adapter")
	}
	return start{stages: func(Region, float64) []plan.Stage { return []plan.Stage{{Op: op}} }, dependent: true}, nil
}

// initial subtracts the product of the initial adapter:
// W_start = W - s0 · B0·A0.
func (r *reader) initial(t *adapter.Target, transposed bool) (start, error) {
	first, _ := t.Part("lora_A")
	for _, other := range r.init.Targets {
		if other.Name != t.Name || other.Depth != t.Depth {
			continue
		}
		a, okA := other.Part("lora_A")
		b, okB := other.Part("lora_B")
		trained, _ := t.Part("lora_B")
		if !okA || !okB || a.Cols() != first.Cols() || b.Rows() != trained.Rows() {
			return start{}, r.refuse(first, "the initial adapter's factors for this module do not fit")
		}
		scale := r.init.Config.ScaleOf(other.PatternName)
		return start{stages: func(region Region, fold float64) []plan.Stage {
			return []plan.Stage{{
				Op:    AddLoRA{Scale: -scale * fold, Transposed: transposed, Region: region},
				Sides: []plan.Slice{plan.Whole(r.initIn, a), plan.Whole(r.initIn, b)},
			}}
		}}, nil
	}
	return start{}, r.refuse(first, "the initial adapter has no such module")
}
