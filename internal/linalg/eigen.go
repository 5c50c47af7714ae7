package linalg

import (
	"cmp"
	"math"
	"slices"
)

// machineEpsilon is the distance from 1 to the next float64.
const machineEpsilon = 0x1p-52

// eigen is the decomposition of a symmetric matrix: all eigenvalues, and on
// demand the orthonormal eigenvectors of the largest.
//
// Householder reflections make a tridiagonal, QL with implicit shifts gives the
// values, and inverse iteration (a few vectors) or the rotations of QL (many)
// give the vectors. Values are right to a few n*machineEpsilon of the largest
// magnitude; vectors have residuals of that size. The reduction reads and writes
// n^3/3 numbers, which is most of the time if few vectors are asked for. gonum's
// EigenSym takes four times as long for 256 vectors of 576 rows.
type eigen struct {
	values []float64 // descending
	order  []int     // of the values in the order that QL finds them
	t      tridiagonal
}

// symEigen finds the eigenvalues of the symmetric matrix a, which it destroys.
func symEigen(a dense64, threads int) eigen {
	n := a.rows
	// A power of two keeps squares within range and changes no digit.
	factor := 1.0
	if largest := maxAbs(a.data); largest > 0 {
		_, exponent := math.Frexp(largest)
		factor = math.Ldexp(1, exponent)
		scaleVector(1/factor, a.data)
	}
	t := tridiagonalize(a, threads)
	values := slices.Clone(t.d)
	t.ql(values, dense64{})
	order := descending(values)
	e := eigen{make([]float64, n), order, t}
	for to, from := range order {
		e.values[to] = values[from]
	}
	scaleVector(factor, e.values)
	e.t.factor = factor
	return e
}

// descending returns the order in which x descends, equal numbers as they come.
func descending(x []float64) []int {
	order := make([]int, len(x))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(i, j int) int { return cmp.Compare(x[j], x[i]) })
	return order
}

// vectors returns the eigenvectors of the first want values, one per row.
func (e eigen) vectors(want, threads int) dense64 {
	n := len(e.values)
	vectors := newDense64(want, n)
	if want == 0 {
		return vectors
	}
	values := slices.Clone(e.values[:want])
	scaleVector(1/e.t.factor, values)
	if n <= smallEigen || want > n/2 || !e.t.inverseIteration(values, vectors) {
		// QL with vectors takes the same shifts as without: the order is known.
		z := identity(n)
		e.t.ql(slices.Clone(e.t.d), z)
		for to, from := range e.order[:want] {
			copy(vectors.row(to), z.row(from))
		}
	}
	e.t.back(vectors, threads)
	return vectors
}

// smallEigen is the size up to which QL with vectors is as fast as inverse iteration.
const smallEigen = 48

func identity(n int) dense64 {
	m := newDense64(n, n)
	for i := range n {
		m.data[i*n+i] = 1
	}
	return m
}

// tridiagonal is a symmetric matrix A = Q*T*Q^T: d is the diagonal of T, e[i]
// couples i-1 and i, and Q is the product H(n-1)...H(1) of reflections
// H(i) = I - tau[i]*v*v^T with v in row i of reflectors, of length i.
type tridiagonal struct {
	d, e, tau  []float64
	reflectors dense64
	factor     float64 // what the matrix was divided by before
}

// tridiagonalize reduces the lower triangle of a, from the last row up, so that
// every reflection and every loop runs along rows. The update of one reflection,
//
//	A -= v*w^T + w*v^T   with  w = p - tau/2*(p.v)*v  and  p = tau*A*v
//
// is put off and done in the same pass as the product with the next v. A pass is cut
// into parts of about as many numbers, each with sums of its own.
func tridiagonalize(a dense64, threads int) tridiagonal {
	n := a.rows
	t := tridiagonal{d: make([]float64, n), e: make([]float64, n), tau: make([]float64, n), reflectors: a}
	v, w := make([]float64, n), make([]float64, n) // of the update put off
	next, y := make([]float64, n), make([]float64, n)
	sums := newDense64(passParts(n), n)
	for i := n - 1; i >= 0; i-- {
		row := a.row(i)[:i+1]
		axpy(-v[i], w[:i+1], row)
		axpy(-w[i], v[:i+1], row)
		t.d[i] = row[i]
		if i == 0 {
			break
		}
		row = row[:i]
		t.tau[i], t.e[i] = reflect(row)
		copy(next, row)
		tau := t.tau[i]
		parts := passParts(i)
		parallel(threads, parts, 1, func(from, to int) {
			for p := from; p < to; p++ {
				clear(sums.row(p)[:i])
				updateRows(a, passBound(i, parts, p), passBound(i, parts, p+1), v, w, next, sums.row(p))
			}
		})
		copy(y, sums.row(0)[:i])
		for p := 1; p < parts; p++ {
			axpy(1, sums.row(p)[:i], y)
		}
		scaleVector(tau, y[:i])
		axpy(-tau/2*dot(y[:i], next[:i]), next[:i], y[:i])
		v, next = next, v
		w, y = y, w
	}
	return t
}

// passParts is the number of parts of a pass over n rows: it must not depend on
// threads, and the sums of a part are worth their while from some 128 rows on.
func passParts(n int) int { return max(1, min(8, n/128)) }

// passBound is the first row of a part; the triangle above it has its share of the
// numbers. It is even, since rows are taken in pairs.
func passBound(n, parts, part int) int {
	if part == parts {
		return n
	}
	return int(float64(n)*math.Sqrt(float64(part)/float64(parts))) &^ 1
}

// updateRows does one pass of tridiagonalize over rows [from,to) and leaves their part of
// the product in y.
func updateRows(a dense64, from, to int, v, w, next, y []float64) {
	j := from
	for ; j+2 <= to; j += 2 {
		updatePair(a, j, v, w, next, y)
	}
	if j == to {
		return
	}
	r := a.row(j)[:j+1]
	sum := 0.0
	vj, wj, nj := v[j], w[j], next[j]
	for k := range r {
		x := r[k] - vj*w[k] - wj*v[k]
		r[k] = x
		sum += x * next[k]
		y[k] += x * nj
	}
	y[j] = sum // the diagonal is counted once: y[j] is replaced
}

// updatePair is updateRows of rows j and j+1 of the lower
// triangle. y of the rows themselves is complete only when all later rows are.
func updatePair(a dense64, j int, v, w, next, y []float64) {
	r0, r1 := a.row(j)[:j], a.row(j + 1)[:j]
	n := len(r0)
	v0, v1, w0, w1, n0, n1 := v[j], v[j+1], w[j], w[j+1], next[j], next[j+1]
	vs, ws, ns, ys := v[:n], w[:n], next[:n], y[:n]
	r1 = r1[:n]
	var s0, s1 float64
	for k, x0 := range r0 {
		vk, wk, nk := vs[k], ws[k], ns[k]
		x0 -= v0*wk + w0*vk
		x1 := r1[k] - (v1*wk + w1*vk)
		r0[k], r1[k] = x0, x1
		s0 += x0 * nk
		s1 += x1 * nk
		ys[k] += x0*n0 + x1*n1
	}
	d0 := a.row(j)[j] - 2*v0*w0
	a.row(j)[j] = d0
	off := a.row(j + 1)[j] - (v1*w0 + w1*v0)
	d1 := a.row(j + 1)[j+1] - 2*v1*w1
	a.row(j + 1)[j], a.row(j + 1)[j+1] = off, d1
	y[j] += s0 + d0*n0 + off*n1
	y[j+1] += s1 + off*n0 + d1*n1
}

// reflect replaces x by the v of a reflection I - tau*v*v^T that maps x to beta
// times the last unit vector; the last element of v is 1.
func reflect(x []float64) (tau, beta float64) {
	last := len(x) - 1
	rest := norm(x[:last])
	alpha := x[last]
	if rest == 0 {
		clear(x)
		x[last] = 1
		return 0, alpha
	}
	beta = -math.Copysign(math.Hypot(alpha, rest), alpha)
	tau = (beta - alpha) / beta
	scaleVector(1/(alpha-beta), x[:last])
	x[last] = 1
	return tau, beta
}

// back turns eigenvectors of T, one per row of z, into those of A. Four go
// together, so that the reflections are read once for all of them.
func (t tridiagonal) back(z dense64, threads int) {
	parallel(threads, z.rows, 4, func(from, to int) {
		for first := from; first < to; first += 4 {
			for i := 1; i < len(t.d); i++ {
				if t.tau[i] == 0 {
					continue
				}
				v := t.reflectors.row(i)[:i]
				for k := first; k < min(first+4, to); k++ {
					x := z.row(k)[:i]
					axpy(-t.tau[i]*dot(v, x), v, x)
				}
			}
		}
	})
}

// ql finds the eigenvalues of T by QL with implicit shifts; d starts as a copy
// of the diagonal. Rows of z, if there are any, are rotated along.
func (t tridiagonal) ql(d []float64, z dense64) {
	n := len(d)
	e := make([]float64, n)
	copy(e, t.e[min(1, n):]) // e[i] couples i and i+1 here
	anorm := 0.0
	for i := range n {
		anorm = max(anorm, math.Abs(d[i])+math.Abs(e[i]))
	}
	const maxShifts = 60 // per value; two are usual
	for l := range n {
		for range maxShifts {
			m := l
			for ; m < n-1; m++ {
				if scale := math.Abs(d[m]) + math.Abs(d[m+1]); math.Abs(e[m]) <= machineEpsilon*scale || math.Abs(e[m]) <= machineEpsilon/8*anorm/float64(n) {
					break
				}
			}
			if m == l {
				break
			}
			g := (d[l+1] - d[l]) / (2 * e[l])
			r := math.Hypot(g, 1)
			g = d[m] - d[l] + e[l]/(g+math.Copysign(r, g))
			s, c, p := 1.0, 1.0, 0.0
			i := m - 1
			for ; i >= l; i-- {
				f, b := s*e[i], c*e[i]
				r = math.Sqrt(f*f + g*g)
				e[i+1] = r
				if r == 0 {
					d[i+1] -= p
					e[m] = 0
					break
				}
				s, c = f/r, g/r
				g = d[i+1] - p
				r = (d[i]-g)*s + 2*c*b
				p = s * r
				d[i+1] = g + p
				g = c*r - b
				if z.rows > 0 {
					rotate(z.row(i), z.row(i+1), c, s)
				}
			}
			if i >= l {
				continue
			}
			d[l] -= p
			e[l] = g
			e[m] = 0
		}
	}
}

// rotate computes (x, y) = (c*x - s*y, s*x + c*y).
func rotate(x, y []float64, c, s float64) {
	y = y[:len(x)]
	for k, a := range x {
		b := y[k]
		x[k] = c*a - s*b
		y[k] = s*a + c*b
	}
}

// inverseIteration finds the eigenvectors of T to the given descending
// eigenvalues, or reports that it could not. Vectors whose values are closer
// than clusterGap of the largest are kept orthogonal by Gram and Schmidt.
func (t tridiagonal) inverseIteration(values []float64, z dense64) bool {
	const (
		clusterGap = 1e-3
		maxTries   = 6
	)
	n := len(t.d)
	tnorm := 0.0
	for i := range n {
		right := 0.0
		if i+1 < n {
			right = math.Abs(t.e[i+1])
		}
		tnorm = max(tnorm, math.Abs(t.d[i])+math.Abs(t.e[i])+right)
	}
	if tnorm == 0 {
		for i := range z.rows {
			z.row(i)[i] = 1
		}
		return true
	}
	// A vector counts when its residual is at the level of the rounding of the
	// values themselves.
	limit := 16 * machineEpsilon * tnorm * math.Sqrt(float64(n))
	generator := newRandom(uint64(n))
	lu := newTridiagonalLU(n)
	first := 0 // of the cluster
	shift := math.Inf(1)
	for k, value := range values {
		if k > 0 && values[k-1]-value > clusterGap*tnorm {
			first = k
		}
		// Equal values get slightly different shifts, so that their vectors differ.
		shift = min(value, shift-4*machineEpsilon*tnorm)
		if k == first {
			shift = value
		}
		lu.factor(t, shift, tnorm)
		x := z.row(k)
		for i := range x {
			x[i] = float64(generator.next())
		}
		done := false
		for range maxTries {
			lu.solve(x)
			scaleVector(1/maxAbs(x), x)
			for j := first; j < k; j++ {
				axpy(-dot(z.row(j), x), z.row(j), x)
			}
			size := norm(x)
			if size == 0 {
				return false
			}
			scaleVector(1/size, x)
			for j := first; j < k; j++ { // once more: the first pass may have cancelled
				axpy(-dot(z.row(j), x), z.row(j), x)
			}
			scaleVector(1/norm(x), x)
			if t.residual(x, value) <= limit {
				if done {
					break
				}
				done = true // one more step after the first success costs little
			}
		}
		if !done {
			return false
		}
	}
	return true
}

// residual returns the norm of T*x - value*x.
func (t tridiagonal) residual(x []float64, value float64) float64 {
	sum := 0.0
	n := len(x)
	for i := range n {
		r := (t.d[i] - value) * x[i]
		if i > 0 {
			r += t.e[i] * x[i-1]
		}
		if i+1 < n {
			r += t.e[i+1] * x[i+1]
		}
		sum += r * r
	}
	return math.Sqrt(sum)
}

// tridiagonalLU is T - shift = P*L*U with partial pivoting: U has two diagonals
// above its own.
type tridiagonalLU struct {
	lower, diag, upper, upper2 []float64
	swapped                    []bool
}

func newTridiagonalLU(n int) *tridiagonalLU {
	f := func() []float64 { return make([]float64, n) }
	return &tridiagonalLU{f(), f(), f(), f(), make([]bool, n)}
}

func (u *tridiagonalLU) factor(t tridiagonal, shift, tnorm float64) {
	n := len(t.d)
	tiny := machineEpsilon * tnorm
	for i := range n {
		u.diag[i] = t.d[i] - shift
		u.upper[i], u.upper2[i] = 0, 0
		if i+1 < n {
			u.upper[i] = t.e[i+1]
		}
	}
	for i := range n - 1 {
		below := t.e[i+1]
		u.swapped[i] = math.Abs(below) > math.Abs(u.diag[i])
		if u.swapped[i] {
			u.lower[i] = u.diag[i] / below
			u.diag[i] = below
			u.upper[i], u.diag[i+1] = u.diag[i+1], u.upper[i]-u.lower[i]*u.diag[i+1]
			if i+2 < n {
				u.upper2[i] = u.upper[i+1]
				u.upper[i+1] *= -u.lower[i]
			}
			continue
		}
		if math.Abs(u.diag[i]) < tiny {
			u.diag[i] = math.Copysign(tiny, u.diag[i])
		}
		u.lower[i] = below / u.diag[i]
		u.diag[i+1] -= u.lower[i] * u.upper[i]
	}
	if last := &u.diag[n-1]; math.Abs(*last) < tiny {
		*last = math.Copysign(tiny, *last)
	}
}

func (u *tridiagonalLU) solve(x []float64) {
	n := len(x)
	for i := range n - 1 {
		if u.swapped[i] {
			x[i], x[i+1] = x[i+1], x[i]-u.lower[i]*x[i+1]
		} else {
			x[i+1] -= u.lower[i] * x[i]
		}
	}
	for i := n - 1; i >= 0; i-- {
		s := x[i]
		if i+1 < n {
			s -= u.upper[i] * x[i+1]
		}
		if i+2 < n {
			s -= u.upper2[i] * x[i+2]
		}
		x[i] = s / u.diag[i]
		if math.Abs(x[i]) > 1e100 { // only the direction matters
			scaleVector(1e-100, x)
		}
	}
}
