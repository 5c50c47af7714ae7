package convert

import (
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/plan"
	"github.com/loratool/loratool/quant/block"
)

// AddOne adds 1 to every value:
//
//	W' = W + 1
//
// The Gemma families multiply with 1 + w, llama.cpp with what the file has. Half rounds
// the sum to F16, as the converter does for weights of that type (llama.cpp,
// conversion/gemma.py).
type AddOne struct {
	Half bool `json:"half,omitempty"`
}

func (AddOne) Kind() string { return "add_one" }

func (op AddOne) Bind([]tensor.Matrix[float32]) (plan.Func[float32], error) {
	return addOne[float32](op), nil
}

func (op AddOne) Bind64([]tensor.Matrix[float64]) (plan.Func[float64], error) {
	return addOne[float64](op), nil
}

type addOne[T tensor.Float] AddOne

func (f addOne[T]) Apply(b plan.Band[T]) error {
	for i := range b.X {
		b.X[i]++
	}
	if !f.Half {
		return nil
	}
	half, _ := block.For(tensor.F16)
	raw := make([]byte, 2*len(b.X))
	block.Encode(half, raw, b.X)
	block.Decode(half, b.X, raw)
	return nil
}
