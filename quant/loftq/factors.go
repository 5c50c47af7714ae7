package loftq

import (
	"math"

	"github.com/loratool/loratool/internal/linalg"
)

// balanced makes a pair of U and the rows that belong to its columns, S·VT, or VT as
// it is if s is nil: each row a_k, of norm n_k, is cut into sqrt(n_k) for the column
// and a_k/sqrt(n_k) for the row. What is missing to the rank is zeros.
func balanced(u, vt linalg.Matrix, s []float64, rank int) Factors {
	f := zeroFactors(u.Rows, vt.Cols, rank)
	for k := range vt.Rows {
		row := vt.Data[k*vt.Stride:][:vt.Cols]
		// The row has norm 1 if s is given.
		column, factor := 0.0, 0.0
		if s != nil {
			column = math.Sqrt(s[k])
			factor = column
		} else if n := norm(row); n > 0 {
			column = math.Sqrt(n)
			factor = 1 / column
		}
		for j, v := range row {
			f.A.Data[k*f.A.Stride+j] = float32(factor * float64(v))
		}
		for i := range u.Rows {
			f.B.Data[i*rank+k] = float32(float64(u.At(i, k)) * column)
		}
	}
	return f
}

// norm returns the Euclidean norm of a row of float32, whose squares neither
// overflow nor vanish in float64.
func norm(x []float32) float64 {
	sum := 0.0
	for _, v := range x {
		sum += float64(v) * float64(v)
	}
	return math.Sqrt(sum)
}

// divided returns the pair whose product is B·A/scale, each side divided by the
// root, so that it stays balanced.
func (f Factors) divided(scale float64) Factors {
	root := math.Sqrt(scale)
	by := func(m linalg.Matrix) linalg.Matrix {
		d := linalg.NewMatrix(m.Rows, m.Cols, nil)
		for i, v := range m.Data {
			d.Data[i] = float32(float64(v) / root)
		}
		return d
	}
	return Factors{B: by(f.B), A: by(f.A)}
}

func zeroFactors(out, in, rank int) Factors {
	return Factors{B: linalg.NewMatrix(out, rank, nil), A: linalg.NewMatrix(rank, in, nil)}
}

// checkFactors panics unless the pair is one for an out x in weight, without gaps.
func checkFactors(f Factors, out, in int) {
	rank := f.Rank()
	switch {
	case f.B.Transposed || f.A.Transposed, f.B.Stride != rank, f.A.Stride != in,
		f.B.Rows != out, f.B.Cols != rank, f.A.Cols != in,
		len(f.B.Data) < out*rank, len(f.A.Data) < rank*in:
		panic(badFactors)
	}
}
