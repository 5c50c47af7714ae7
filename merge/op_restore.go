package merge

import (
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/plan"
)

// Dequantize turns FP8 values into the weights they stand for:
//
//	W[i,j] = q[i,j] · s[i / BlockRows, j / BlockCols]
//
// with one scale per block, per row (BlockRows 1, BlockCols all) or for the
// whole tensor. Stacked experts of RowsPerExpert rows have their own scales
// each. Side: s, as stored ("weight_scale_inv" is multiplied with too, in
// spite of its name). Follows transformers integrations/finegrained_fp8.py and
// the compressed-tensors float-quantized format.
type Dequantize struct {
	BlockRows     int64 `json:"block_rows"`
	BlockCols     int64 `json:"block_cols"`
	RowsPerExpert int64 `json:"rows_per_expert,omitempty"`
}

func (Dequantize) Kind() string { return "dequantize_fp8" }

func (op Dequantize) Bind(s []tensor.Matrix[float32]) (plan.Func[float32], error) {
	return bindDequantize(op, s[0].Data), nil
}

func (op Dequantize) Bind64(s []tensor.Matrix[float64]) (plan.Func[float64], error) {
	return bindDequantize(op, s[0].Data), nil
}

func bindDequantize[T tensor.Float](op Dequantize, scales []T) plan.Func[T] {
	return dequantize[T]{op, scales}
}

type dequantize[T tensor.Float] struct {
	op     Dequantize
	scales []T
}

func (f dequantize[T]) Apply(b plan.Band[T]) error {
	blockCols := int(f.op.BlockCols)
	perRow := (b.Cols + blockCols - 1) / blockCols
	perExpert := (f.op.RowsPerExpert + f.op.BlockRows - 1) / f.op.BlockRows
	for i := range b.Rows {
		row := b.Row + int64(i)
		blockRow := row/f.op.RowsPerExpert*perExpert + row%f.op.RowsPerExpert/f.op.BlockRows
		scales := f.scales[blockRow*int64(perRow):][:perRow]
		x := b.X[i*b.Cols : (i+1)*b.Cols]
		for j := range x {
			x[j] *= scales[j/blockCols]
		}
	}
	return nil
}
