package linalg

import "math"

// QR computes the thin factorisation
//
//	A = Q * R
//
// of A with at least as many rows as columns: Q is rows x cols with orthonormal
// columns (Q^T*Q - I is a few 2^-24 in every element), R is cols x cols, upper
// triangular and row by row, with a diagonal that is not negative. Q*R equals A
// to a few 2^-24 of the norm of each column. A may be rank-deficient; R then has
// zeros on the diagonal, up to rounding, and Q is still orthonormal.
//
// The method is Cholesky-QR twice, with Gram matrices in float64, after the
// columns were scaled by powers of two. When a column is within choleskyLimit of
// a combination of those before it, Householder reflections in float64 are used
// for the whole matrix (about ten times slower, and 8*rows*cols bytes).
// Y. Yamamoto et al., "Roundoff error analysis of the CholeskyQR2 algorithm", 2015.
func QR(a Matrix, threads int) (q Matrix, r []float64) {
	a.check()
	switch {
	case threads < 1:
		panic(badThreads)
	case a.Rows < a.Cols:
		panic(badWide)
	}
	rows, l := orthonormalRows(a.T(), threads)
	upper := newDense64(a.Cols, a.Cols)
	for i := range a.Cols {
		for j := range i + 1 {
			upper.row(j)[i] = l.row(i)[j]
		}
	}
	return transposed(rows), upper.data
}

// choleskyLimit is the smallest ratio of a pivot to the norm of its row that
// Cholesky-QR twice is trusted with: the first pass then leaves rows orthonormal
// to about 2^-24/choleskyLimit, which the second repairs.
const choleskyLimit = 1e-3

// orthonormalRows returns X = L * Q with orthonormal rows in Q, a copy, and a
// lower triangle L.
func orthonormalRows(x Matrix, threads int) (q Matrix, l dense64) {
	k := x.Rows
	if x.Transposed {
		q = transposed(x.T())
	} else {
		q = NewMatrix(k, x.Cols, nil)
		for i := range k {
			copy(q.row(i), x.row(i))
		}
	}
	exponents := make([]int, k)
	for i := range k {
		exponents[i] = normalizeRow(q.row(i))
	}
	original := q
	l = identity(k)
	for range 2 {
		g := newDense64(k, k)
		gram(q.Data, k, q.Cols, q.Stride, g, threads)
		factor := cholesky(g, choleskyLimit, 0)
		if factor.deficient > 0 {
			q, l = householderRows(original)
			break
		}
		next := applyInverse(factor, q, threads)
		product := newDense64(k, k)
		multiply64(l, factor.l.data, k, product, 1)
		q, l = next, product
	}
	for i, e := range exponents {
		for j := range l.row(i) {
			l.row(i)[j] = math.Ldexp(l.row(i)[j], e)
		}
	}
	return q, l
}

// normalizeRow divides x by a power of two so that its largest magnitude is in
// [0.5,1), and returns the exponent; zeros stay.
func normalizeRow(x []float32) int {
	largest := float32(0)
	for _, v := range x {
		largest = max(largest, v, -v)
	}
	if largest == 0 {
		return 0
	}
	_, e := math.Frexp(float64(largest))
	// In two factors, because 2^-e itself may be beyond float32.
	half := e / 2
	f, g := float32(math.Ldexp(1, -half)), float32(math.Ldexp(1, half-e))
	for i := range x {
		x[i] = x[i] * f * g
	}
	return e
}

// choleskyFactor is G = L*L^T, with zeros in the rows and columns of L that
// were found deficient.
type choleskyFactor struct {
	l         dense64
	zero      []bool // rows whose pivot was too small
	deficient int
	scatter   float64 // largest |G-I|, a measure of how orthonormal the rows were
	pivot     float64 // smallest ratio of a pivot to the norm of its row, of the others
}

// cholesky factors G. A row is deficient if its pivot, the norm of its part
// that is orthogonal to all rows before, is at most relative times its norm, or
// at most floor.
func cholesky(g dense64, relative, floor float64) choleskyFactor {
	n := g.rows
	f := choleskyFactor{l: newDense64(n, n), zero: make([]bool, n), pivot: 1}
	for i := range n {
		row := f.l.row(i)
		for j := range i {
			v := g.row(i)[j]
			f.scatter = max(f.scatter, math.Abs(v))
			if !f.zero[j] {
				row[j] = (v - dot(row[:j], f.l.row(j)[:j])) / f.l.row(j)[j]
			}
		}
		whole := g.row(i)[i]
		f.scatter = max(f.scatter, math.Abs(whole-1))
		pivot := whole - dot(row[:i], row[:i])
		if !(pivot > relative*relative*whole) || !(pivot > floor*floor) {
			f.zero[i] = true
			f.deficient++
			continue
		}
		row[i] = math.Sqrt(pivot)
		f.pivot = min(f.pivot, math.Sqrt(pivot/whole))
	}
	return f
}

// applyInverse returns L^-1 * Y. With large elements in the inverse the rounding
// of a float32 product would stay in L times the result, so it is float64 then:
// ten times slower, and only rounded at the end.
func applyInverse(f choleskyFactor, y Matrix, threads int) Matrix {
	const tame = 1.0 / 16 // pivots above cost at most four bits
	inverse := invertLower(f.l)
	if f.pivot < tame {
		wide := newDense64(y.Rows, y.Cols)
		multiply64(inverse, y.Data, y.Stride, wide, threads)
		return wide.float32s()
	}
	product := NewMatrix(y.Rows, y.Cols, nil)
	Gemm(1, inverse.float32s(), y, 0, product, threads)
	return product
}

// invertLower returns the inverse of a lower triangle.
func invertLower(l dense64) dense64 {
	n := l.rows
	inverse := newDense64(n, n)
	for i := range n {
		row := inverse.row(i)
		row[i] = 1
		for j := range i {
			axpy(-l.row(i)[j], inverse.row(j)[:j+1], row)
		}
		scaleVector(1/l.row(i)[i], row[:i+1])
	}
	return inverse
}

// householderRows is orthonormalRows by reflections in float64.
func householderRows(x Matrix) (q Matrix, l dense64) {
	k, n := x.Rows, x.Cols
	a, tau := newDense64(k, n), make([]float64, k)
	l = newDense64(k, k)
	for i := range k {
		for j, v := range x.row(i) {
			a.row(i)[j] = float64(v)
		}
	}
	for i := range k {
		row := a.row(i)
		copy(l.row(i)[:i], row[:i])
		clear(row[:i])
		// reflect keeps the last element; here the first one is kept.
		row[i], row[n-1] = row[n-1], row[i]
		tau[i], l.row(i)[i] = reflect(row[i:])
		row[i], row[n-1] = row[n-1], row[i]
		v := row[i:]
		for j := i + 1; j < k; j++ {
			axpy(-tau[i]*dot(v, a.row(j)[i:]), v, a.row(j)[i:])
		}
	}
	// Q = rows of the identity, reflected from the last to the first.
	full := newDense64(k, n)
	for i := k - 1; i >= 0; i-- {
		full.row(i)[i] = 1
		v := a.row(i)[i:]
		for j := i; j < k; j++ {
			axpy(-tau[i]*dot(v, full.row(j)[i:]), v, full.row(j)[i:])
		}
	}
	for i := range k {
		if l.row(i)[i] < 0 {
			scaleVector(-1, full.row(i))
			for j := i; j < k; j++ {
				l.row(j)[i] = -l.row(j)[i]
			}
		}
	}
	return full.float32s(), l
}
