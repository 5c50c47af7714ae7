package linalg

import (
	"errors"
	"fmt"
	"math"
)

// SVDOfProduct decomposes scale * B * A without forming it, B rows x rank and A
// rank x cols: with B = Qb*Rb and A^T = Qa*Ra it is Qb * (scale*Rb*Ra^T) * Qa^T,
// whose core is decomposed in float64. The result has min(rank, rows, cols)
// triplets, zeros included.
//
// Norm is that of the product; Captured is 1 and Residual and Excess are 0,
// because nothing is cut off: cut S, U and VT to a smaller rank as needed, the sum
// of the squares of what is cut is the squared error. Singular values are right
// to a few 2^-24*rank of the largest.
func SVDOfProduct(b, a Matrix, scale float64, threads int) (SVD, error) {
	a.check()
	b.check()
	switch {
	case a.Rows != b.Cols:
		panic(badShape)
	case threads < 1:
		panic(badThreads)
	case math.IsNaN(scale) || math.IsInf(scale, 0):
		return SVD{}, errors.New("scale is not a finite number")
	}
	if _, err := summarize(b, threads); err != nil {
		return SVD{}, fmt.Errorf("first factor: %w", err)
	}
	if _, err := summarize(a, threads); err != nil {
		return SVD{}, fmt.Errorf("second factor: %w", err)
	}
	qb, lb := factorRows(b.T(), threads)
	qa, la := factorRows(a, threads)
	// X = lb^T * la is the core, kb x ka.
	x := newDense64(lb.cols, la.cols)
	multiply64(transposed64(lb), la.data, la.cols, x, threads)
	factor := maxAbs(x.data)
	if factor > 0 {
		_, e := math.Frexp(factor)
		factor = math.Ldexp(1, e) // squares must neither overflow nor vanish
		scaleVector(1/factor, x.data)
	}
	flip := x.rows > x.cols
	if flip {
		x = transposed64(x)
	}
	g := newDense64(x.rows, x.rows)
	gram(x.data, x.rows, x.cols, x.cols, g, threads)
	c := shortSVD(x.data, x.cols, x.cols, symEigen(g, threads), x.rows, threads)
	if flip {
		c.left, c.right = c.right, c.left
	}
	left, right := NewMatrix(c.left.rows, b.Rows, nil), NewMatrix(c.right.rows, a.Cols, nil)
	Gemm(1, c.left.float32s(), qb, 0, left, threads)
	Gemm(1, c.right.float32s(), qa, 0, right, threads)
	squares := 0.0
	for i, s := range c.s {
		c.s[i] = s * factor * math.Abs(scale)
		squares += c.s[i] * c.s[i]
	}
	if scale < 0 {
		for i := range right.Rows {
			negate(right.row(i))
		}
	}
	d := problem{squares: squares}.finish(left, right, c.s, Report{Converged: true, Exact: true})
	d.Captured = 1
	return d, nil
}

// factorRows returns X = L * Q with orthonormal rows in Q, for X of any shape: L
// has as many columns as Q has rows, the smaller of the sides of X.
func factorRows(x Matrix, threads int) (q Matrix, l dense64) {
	if x.Rows <= x.Cols {
		return orthonormalRows(x, threads)
	}
	l = newDense64(x.Rows, x.Cols)
	for i := range x.Rows {
		for j := range x.Cols {
			l.row(i)[j] = float64(x.At(i, j))
		}
	}
	return identity(x.Cols).float32s(), l
}

func transposed64(m dense64) dense64 {
	t := newDense64(m.cols, m.rows)
	for i := range m.rows {
		for j, v := range m.row(i) {
			t.data[j*t.cols+i] = v
		}
	}
	return t
}
