package merge

import (
	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/plan"
)

// AddAdaLoRA adds a product with a diagonal between its factors:
//
//	W' = W + scale · B·(A ∘ E)     E (rank, 1) scales the rows of A
//
// Sides: A, B, E. AdaLoRA's lora_E and KaSA's lora_diag are both such a
// diagonal; PEFT multiplies it onto A in the one (tuners/adalora/layer.py,
// SVDLinear.get_delta_weight) and onto B in the other, which differs by
// rounding only. OntoB follows the latter.
type AddAdaLoRA struct {
	Scale      float64 `json:"scale"`
	OntoB      bool    `json:"onto_b,omitempty"`
	Transposed bool    `json:"transposed,omitempty"`
	Region     Region  `json:"region"`
}

func (AddAdaLoRA) Kind() string { return "add_diagonal_lora" }

func (op AddAdaLoRA) times(w float64) plan.Op {
	op.Scale *= w
	return op
}

func (op AddAdaLoRA) Bind(s []tensor.Matrix[float32]) (plan.Func[float32], error) {
	return bindAdaLoRA(op, s), nil
}

func (op AddAdaLoRA) Bind64(s []tensor.Matrix[float64]) (plan.Func[float64], error) {
	return bindAdaLoRA(op, s), nil
}

func bindAdaLoRA[T tensor.Float](op AddAdaLoRA, s []tensor.Matrix[T]) plan.Func[T] {
	a, b, e := flatten(s[0]), flatten(s[1]), s[2].Data
	if op.OntoB {
		b = scaled(b, nil, e)
	} else {
		a = scaled(a, e, nil)
	}
	return &lowRankFunc[T]{pair(a, b, op.Transposed, op.Scale), op.Region}
}

// scaled returns diag(rows) · m · diag(cols) in new memory; nil is the
// identity. Each product is rounded once.
func scaled[T tensor.Float](m tensor.Matrix[T], rows, cols []T) tensor.Matrix[T] {
	n := m.Cols()
	out := tensor.Matrix[T]{Shape: m.Shape, Data: make([]T, len(m.Data))}
	for i, v := range m.Data {
		if rows != nil {
			v *= rows[i/n]
		}
		if cols != nil {
			v *= cols[i%n]
		}
		out.Data[i] = v
	}
	return out
}

// adalora reads an AdaLoRA module. Its scale is alpha / (init_r + 1e-5) with the
// rank at the start of training, whatever the pruning has left.
func (r *reader) adalora(t *adapter.Target) error {
	a, err := r.part(t, "lora_A")
	if err != nil {
		return err
	}
	b, err := r.part(t, "lora_B")
	if err != nil {
		return err
	}
	e, err := r.part(t, "lora_E")
	if err != nil {
		return err
	}
	want := r.config.Rank
	if mask, ok := r.config.PrunedRank(t.Name); ok {
		want = mask
	}
	if a.Rows() != want || e.NumElements() != want {
		return r.refuse(a, "its rank is %d, the config says %d for %q", a.Rows(), want, t.Name)
	}
	if len(a.Shape) != 2 || len(b.Shape) != 2 || b.Cols() != want {
		return r.refuse(b, "factors of %v and %v make no product", b.Shape, a.Shape)
	}
	transposed, ok := r.orientation(t, b.Rows(), a.Cols())
	if !ok {
		return r.refuse(a, "a product of %v and %v does not fit the base's %v", b.Shape, a.Shape, t.Shape)
	}
	if want == 0 {
		return nil // pruned away: the module stays as it is
	}
	alpha := r.config.Alpha
	if alpha <= 0 {
		alpha = float64(r.config.Rank)
	}
	scale := alpha / (float64(r.config.Rank) + 1e-5)
	r.change(t, true, func(region Region) []plan.Stage {
		return []plan.Stage{{
			Op:    AddAdaLoRA{Scale: scale, Transposed: transposed, Region: region},
			Sides: []plan.Slice{r.whole(a), r.whole(b), r.whole(e)},
		}}
	})
	return nil
}
