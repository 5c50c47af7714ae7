package merge

import (
	"github.com/loratool/loratool/formats/adapter"
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

func (op AddLoRA) times(w float64) plan.Op {
	op.Scale *= w
	return op
}

func (op AddLoRA) Bind(s []tensor.Matrix[float32]) (plan.Func[float32], error) {
	return bindLoRA(op, s), nil
}

func (op AddLoRA) Bind64(s []tensor.Matrix[float64]) (plan.Func[float64], error) {
	return bindLoRA(op, s), nil
}

func bindLoRA[T tensor.Float](op AddLoRA, s []tensor.Matrix[T]) plan.Func[T] {
	return &lowRankFunc[T]{pair(s[0], s[1], op.Transposed, op.Scale), op.Region}
}

// lora reads a LoRA module: linear, Conv1D, convolution, embedding, attention
// or stacked experts, with its variants.
func (r *reader) lora(t *adapter.Target) error {
	a, b, embedding, err := r.pairOf(t)
	if err != nil {
		return err
	}
	magnitude, hasMagnitude := r.optional(t, "lora_magnitude_vector")
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
		if len(a.Shape) != 2 || len(b.Shape) != 2 || len(t.Shape) != 2 || b.Cols() != a.Rows() || a.Cols() != t.Shape[0] || b.Rows() != t.Shape[1] {
			return r.refuse(a, "an embedding change of %v and %v does not fit the base's %v", a.Shape, b.Shape, t.Shape)
		}
	} else if transposed, err = r.factors(t, a, b); err != nil {
		return err
	}
	if hasMagnitude && transposed && !r.coversWhole(t) {
		return r.refuse(magnitude, "its norm runs over more than the part of the tensor that is adapted")
	}
	if hasMagnitude && magnitude.NumElements() != b.Rows() {
		return r.refuse(magnitude, "%d magnitudes for %d outputs", magnitude.NumElements(), b.Rows())
	}
	prod, err := r.product(t, a, b, transposed)
	if err != nil {
		return err
	}
	r.change(t, !hasMagnitude && !prod.dependent, func(region Region) []plan.Stage {
		stages := prod.stages(region)
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
	if a, err = r.part(t, first); err == nil {
		b, err = r.part(t, second)
	}
	if err == nil && r.config.KaSA {
		var diag tensor.Spec
		if diag, err = r.part(t, "lora_diag"); err == nil && diag.NumElements() != a.Rows() {
			err = r.refuse(diag, "%d diagonal entries for rank %d", diag.NumElements(), a.Rows())
		}
	}
	return a, b, embedding, err
}

// loraBias adds scale · lora_B.bias to the bias of the base.
func (r *reader) loraBias(t *adapter.Target, b tensor.Spec) error {
	bias, ok := r.optional(t, "lora_B.bias")
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
		Op:    AddVector{Scale: r.scaleOf(t), Region: Region{Rows: t.Bias.Rows}},
		Sides: []plan.Slice{r.whole(bias)},
	})
	return nil
}
