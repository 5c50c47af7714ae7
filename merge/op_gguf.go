package merge

import (
	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/plan"
)

// AddStackedLoRA adds one low-rank product to each matrix of a stack, as GGUF files
// have them for experts:
//
//	W_g' = W_g + scale · B_g·A_g      W (groups, out, in)
//
// A is (groups·rank, in), B is (groups·out, rank). Sides: A, B. Follows llama.cpp
// src/llama-graph.cpp, build_lora_mm_id.
type AddStackedLoRA struct {
	Scale  float64 `json:"scale"`
	Groups int64   `json:"groups"`
	Region Region  `json:"region"`
}

func (AddStackedLoRA) Kind() string { return "add_stacked_lora" }

func (op AddStackedLoRA) times(w float64) plan.Op {
	op.Scale *= w
	return op
}

func (op AddStackedLoRA) Bind(s []tensor.Matrix[float32]) (plan.Func[float32], error) {
	return bindStacked(op, s), nil
}

func (op AddStackedLoRA) Bind64(s []tensor.Matrix[float64]) (plan.Func[float64], error) {
	return bindStacked(op, s), nil
}

func bindStacked[T tensor.Float](op AddStackedLoRA, s []tensor.Matrix[T]) plan.Func[T] {
	a, b := s[0], s[1]
	return &lowRankFunc[T]{lowRank[T]{
		l: b.Data, r: a.Data, rank: b.Cols(), cols: a.Cols(),
		perGroup: b.Rows() / int(op.Groups), scale: T(op.Scale),
	}, op.Region}
}

// AddRowsLoRA adds a low-rank product whose first factor has a row for every row of
// the tensor, as GGUF files have it for embeddings:
//
//	W' = W + scale · A·B^T      W (rows, cols), A (rows, rank), B (cols, rank)
//
// Sides: A, B. Follows llama.cpp src/llama-graph.cpp, build_inp_embd.
type AddRowsLoRA struct {
	Scale  float64 `json:"scale"`
	Region Region  `json:"region"`
}

func (AddRowsLoRA) Kind() string { return "add_rows_lora" }

func (op AddRowsLoRA) times(w float64) plan.Op {
	op.Scale *= w
	return op
}

func (op AddRowsLoRA) Bind(s []tensor.Matrix[float32]) (plan.Func[float32], error) {
	return bindRows(op, s), nil
}

func (op AddRowsLoRA) Bind64(s []tensor.Matrix[float64]) (plan.Func[float64], error) {
	return bindRows(op, s), nil
}

func bindRows[T tensor.Float](op AddRowsLoRA, s []tensor.Matrix[T]) plan.Func[T] {
	a, b := s[0], s[1]
	return &lowRankFunc[T]{lowRank[T]{
		l: a.Data, r: b.Transpose().Data, rank: a.Cols(), cols: b.Rows(), perGroup: max(a.Rows(), 1), scale: T(op.Scale),
	}, op.Region}
}

// gguf reads a pair of a GGUF adapter. Its shapes were compared with the base's when
// it was aligned.
func (r *reader) gguf(t *adapter.Target) error {
	r.used["lora_a"], r.used["lora_b"] = true, true
	p, err := r.adapter.PairOf(t.Module)
	if err != nil {
		return err
	}
	// Matrices of a stack lie one below the other, also where the file leaves out a
	// dimension of 1.
	sides := []plan.Slice{
		{Input: r.input, Tensor: p.A.Name, Spec: p.A, Cols: p.Cols, To: p.Groups * p.Rank},
		{Input: r.input, Tensor: p.B.Name, Spec: p.B, Cols: p.Rank, To: p.Groups * p.Rows},
	}
	if p.Embedding {
		sides[0].Cols, sides[0].To = p.Rank, p.Rows
		sides[1].Cols, sides[1].To = p.Rank, p.Cols
	}
	r.change(t, true, func(region Region) []plan.Stage {
		var op plan.Op
		switch {
		case p.Embedding:
			op = AddRowsLoRA{Scale: p.Scale, Region: region}
		case p.Groups > 1:
			op = AddStackedLoRA{Scale: p.Scale, Groups: p.Groups, Region: region}
		default:
			op = AddLoRA{Scale: p.Scale, Region: region}
		}
		return []plan.Stage{{Op: op, Sides: sides}}
	})
	return nil
}
