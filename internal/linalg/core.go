package linalg

import "math"

// core is a singular value decomposition in float64, X = L^T * diag(S) * R, with
// one vector per row of left and right and S descending.
type core struct {
	s           []float64
	left, right dense64
}

// shortSVD returns the first want triplets of X, rows x cols with rows <= cols
// and want <= rows. e is the decomposition of its Gram matrix X*X^T.
//
// The eigenvectors P of the Gram matrix give W = P*X, whose rows are orthogonal
// up to machineEpsilon*s1^2/(si*sj); rotations of pairs (one-sided Jacobi, one or
// two sweeps) remove that. So singular values have errors of a few
// machineEpsilon*s1, except that among those below 1e-8*s1, which the Gram matrix
// cannot tell apart, the first want may not be the largest. Rows of W without a
// norm above rounding get a singular value of 0 and any orthonormal vectors.
func shortSVD[T float32 | float64](x []T, cols, stride int, e eigen, want, threads int) core {
	left := e.vectors(want, threads)
	right := newDense64(want, cols)
	multiply64(left, x, stride, right, threads)
	order := descending(jacobi(right, left))
	c := core{make([]float64, want), newDense64(want, left.cols), newDense64(want, cols)}
	for to, from := range order {
		copy(c.left.row(to), left.row(from))
		c.s[to] = norm(right.row(from))
		if !(c.s[to] > 4*float64(cols)*machineEpsilon*c.s[0]) {
			c.s[to] = 0
			completeRow(c.right, to)
			continue
		}
		copy(c.right.row(to), right.row(from))
		scaleVector(1/c.s[to], c.right.row(to))
	}
	return c
}

// jacobi makes the rows of w orthogonal by rotations, which it applies to the
// rows of p too, and returns the squares of the norms of w.
func jacobi(w, p dense64) []float64 {
	const (
		maxSweeps = 30
		tolerance = 8 * machineEpsilon // cosine of the angle that is left
	)
	squares := make([]float64, w.rows)
	for range maxSweeps {
		largest := 0.0
		for i := range squares {
			squares[i] = dot(w.row(i), w.row(i))
			largest = max(largest, squares[i])
		}
		nothing := largest * float64(w.cols*w.cols) * machineEpsilon * machineEpsilon
		rotated := false
		for i := range w.rows {
			for j := i + 1; j < w.rows; j++ {
				if squares[i] <= nothing || squares[j] <= nothing {
					continue
				}
				product := dot(w.row(i), w.row(j))
				if math.Abs(product) <= tolerance*math.Sqrt(float64(w.cols))*math.Sqrt(squares[i])*math.Sqrt(squares[j]) {
					continue
				}
				rotated = true
				zeta := (squares[j] - squares[i]) / (2 * product)
				t := math.Copysign(1, zeta) / (math.Abs(zeta) + math.Hypot(1, zeta))
				c := 1 / math.Sqrt(1+t*t)
				rotate(w.row(i), w.row(j), c, c*t)
				rotate(p.row(i), p.row(j), c, c*t)
				squares[i] -= t * product
				squares[j] += t * product
			}
		}
		if !rotated {
			break
		}
	}
	return squares
}

// completeRow sets row i to a unit vector orthogonal to the rows before.
func completeRow(m dense64, i int) {
	row := m.row(i)
	generator := newRandom(uint64(i))
	for {
		for j := range row {
			row[j] = float64(generator.next())
		}
		before := norm(row)
		for range 2 {
			for j := range i {
				axpy(-dot(m.row(j), row), m.row(j), row)
			}
		}
		if after := norm(row); after > 1e-6*before {
			scaleVector(1/after, row)
			return
		}
	}
}
