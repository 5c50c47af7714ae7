package linalg

import (
	"fmt"
	"math"

	"github.com/loratool/loratool/internal/kernel"
)

// rounding is the relative error that the captured energy of an iteration in
// float32 is trusted to: growth below it says nothing.
const rounding = 1e-6

// blockWidth is the number of vectors of a block, a multiple of 14 since the
// widest kernel takes as much time for 1 row as for 14. Small blocks with more
// steps give more digits for the same work, as long as the basis grows well
// beyond the rank.
func (p problem) blockWidth() int {
	const unit = 14
	rank := p.rank
	if rank == 0 {
		rank = min(p.maxRank, 256) // not known yet
	}
	width := (rank + 10 + unit - 1) / unit * unit
	if rank >= 32 {
		width = max(2*unit, (rank/4+8+unit/2)/unit*unit)
	}
	return min(width, p.rows, p.cols)
}

// typicalSteps is the number of blocks after which an iteration is expected to stop.
func (p problem) typicalSteps() int {
	rank := p.rank
	if rank == 0 {
		rank = min(p.maxRank, 256)
	}
	return max(4, (2*rank+p.blockWidth()-1)/p.blockWidth())
}

// krylov is a block Lanczos bidiagonalisation of A, rows >= cols, with full
// reorthogonalisation. Its invariant, up to rounding, is
//
//	V * A^T = T * U
//
// with orthonormal rows in U and V: row i of T holds the coefficients of A times
// vector i of V. So A restricted to V has the singular values of T, the captured
// energy is the sum of their squares, and it only grows. A block is
//
//	Y = V_j * A^T,  T_j and U_j from orthonormalising Y against U
//	Z = U_j * A,    V_j+1 from orthonormalising Z against V
//
// Nothing relies on T being block bidiagonal in theory: all of its coefficients
// are kept. Directions that vanish, because the space is exhausted or a singular
// value is repeated, are replaced by random ones.
//
// C. Musco, Ch. Musco, "Randomized block Krylov methods for stronger and faster
// approximate singular value decomposition", 2015, for the start and the rate;
// G. H. Golub, F. T. Luk, M. L. Overton, "A block Lanczos method", 1981, for the blocks.
type krylov struct {
	op         Operator
	rows, cols int
	u, v       []float32   // bases, one vector per row
	ku, kv     int         // vectors in u and in v
	t          [][]float64 // T
	gram       [][]float64 // lower triangle of T * T^T
	floor      float64     // norm below which a new direction is rounding
	random     *random
	threads    int
}

// iterate runs the iteration until the estimate of the excess meets the limit. It
// fails only if the start or a product with the operator is not finite.
func (p problem) iterate(a Operator, start Matrix) (SVD, error) {
	start, err := p.turnStart(a, start)
	if err != nil {
		return SVD{}, err
	}
	if p.rows < p.cols {
		a = flipped{a}
	}
	rows, cols := a.Dims()
	k := &krylov{
		op: a, rows: rows, cols: cols,
		floor:  2 * 0x1p-24 * math.Sqrt(p.squares),
		random: newRandom(p.seed), threads: p.threads,
	}
	block := k.start(p.blockWidth(), start)
	report, rank, e := Report{}, 0, eigen{}
	var history [3][]float64 // squared singular values of the last checks, the newest first
	for {
		left, err := k.expandLeft(block)
		if err != nil {
			return SVD{}, err
		}
		report.Steps++
		last := k.kv == cols || report.Steps >= p.maxSteps && k.kv >= p.rank
		if last || p.due(k.kv, len(history[0])) {
			e = symEigen(k.gramMatrix(), p.threads)
			history = [3][]float64{e.values, history[0], history[1]}
			var met bool
			rank, _, met = p.chooseRank(e.values)
			report.Excess = p.estimate(history, rank)
			if k.kv == cols {
				report.Excess = 0
			}
			good := report.Excess <= p.excessLimit(rank)
			report.Converged = met && good
			// A target that needs more than MaxRank is not met, however long it takes.
			settled := met || k.kv >= p.maxRank
			if last || settled && good {
				break
			}
		}
		if block, err = k.expandRight(left); err != nil {
			return SVD{}, err
		}
	}
	left, right, s := k.triplets(e, rank)
	if p.rows < p.cols {
		left, right = right, left
	}
	return p.finish(left, right, s, report), nil
}

// due reports whether a basis of kv vectors is to be checked, checked being its
// size at the last check. While a target is looked for, whose rank may be high,
// checks keep to a geometric series, since each costs kv^3.
func (p problem) due(kv, checked int) bool {
	if p.rank == 0 {
		return 5*kv >= 6*checked
	}
	return kv >= p.rank
}

// estimate returns how much larger the residual of the given rank may be than
// the best one, relatively, from the growth of the captured energy between
// checks: it falls at least geometrically. It is infinite before three checks.
func (p problem) estimate(history [3][]float64, rank int) float64 {
	var captured [3]float64
	for i, squares := range history {
		complete := i > 0 && captured[0] >= (1-rounding)*p.squares
		if len(squares) < rank && !complete {
			return math.Inf(1)
		}
		for _, v := range squares[:min(rank, len(squares))] {
			captured[i] += max(0, v)
		}
	}
	residual := p.squares - captured[0]
	if residual <= rounding*p.squares {
		// Too small for growth to be seen: the step before must say the same,
		// then this one has improved on what was good already.
		if captured[1] >= (1-rounding)*p.squares {
			return 0
		}
		return math.Inf(1)
	}
	growth := max(captured[0]-captured[1], rounding/16*p.squares)
	before := max(captured[1]-captured[2], growth)
	ratio := min(growth/before, 0.9)
	return growth * ratio / (1 - ratio) / (2 * residual)
}

// turnStart returns the start as unit vectors of the shorter side, which is that of
// V: those of the longer one are multiplied with A.
func (p problem) turnStart(a Operator, start Matrix) (Matrix, error) {
	if start.Rows == 0 {
		return Matrix{}, nil
	}
	if _, err := summarize(start, p.threads); err != nil {
		return Matrix{}, fmt.Errorf("start: %w", err)
	}
	rows := NewMatrix(start.Rows, start.Cols, nil)
	for i := range rows.Rows {
		for j := range rows.Cols {
			rows.row(i)[j] = start.At(i, j)
		}
		unitRow(rows.row(i))
	}
	if p.rows >= p.cols {
		return rows, nil
	}
	turned := NewMatrix(rows.Rows, p.rows, nil)
	a.Mul(turned, rows, p.threads)
	if err := checkProduct(turned, p.threads); err != nil {
		return Matrix{}, err
	}
	for i := range turned.Rows {
		unitRow(turned.row(i))
	}
	return turned, nil
}

// unitRow divides x by its norm, unless it is zero.
func unitRow(x []float32) {
	normalizeRow(x) // its squares are within range then
	if squares, _, _ := summarizeRow(x); squares > 0 {
		factor := float32(1 / math.Sqrt(squares))
		for i := range x {
			x[i] *= factor
		}
	}
}

// start makes the first block of V. It is random, or random combinations of the unit
// vectors in near and a random part of a tenth of their size: that finds what near
// has no part of. Combinations leave the block as narrow as without a start, and the
// space of the same number of vectors holds more powers of A^T*A than it would if all
// of near were in it.
func (k *krylov) start(width int, near Matrix) Matrix {
	const apart = 0.1
	block := NewMatrix(width, k.cols, nil)
	k.random.fill(block.Data)
	if near.Rows > 0 {
		factors := NewMatrix(width, near.Rows, nil)
		k.random.fill(factors.Data)
		weight := float32(apart * math.Sqrt(float64(near.Rows)/float64(k.cols)))
		Gemm(1, factors, near, weight, block, k.threads)
	}
	k.orthonormalize(block, Matrix{}, 0)
	k.v = append(k.v, block.Data...)
	k.kv = width
	return block
}

// expandLeft takes the newest block of V and makes the block of U.
func (k *krylov) expandLeft(block Matrix) (Matrix, error) {
	y := NewMatrix(block.Rows, k.rows, nil)
	k.op.Mul(y, block, k.threads)
	if err := checkProduct(y, k.threads); err != nil {
		return y, err
	}
	coefficients := k.orthonormalize(y, NewMatrix(k.ku, k.rows, k.u), k.floor)
	k.u = append(k.u, y.Data...)
	k.ku += y.Rows
	for i := range block.Rows {
		row := coefficients.row(i)
		k.t = append(k.t, row)
		products := make([]float64, len(k.t))
		parallel(k.threads, len(k.t), 64, func(from, to int) {
			for j, earlier := range k.t[from:to] {
				products[from+j] = dot(earlier, row[:len(earlier)])
			}
		})
		k.gram = append(k.gram, products)
	}
	return y, nil
}

// expandRight takes the newest block of U and makes the next one of V.
func (k *krylov) expandRight(left Matrix) (Matrix, error) {
	z := NewMatrix(min(left.Rows, k.cols-k.kv), k.cols, nil)
	if z.Rows < left.Rows { // the space ends within this block
		left = left.slice(0, z.Rows, 0, left.Cols)
	}
	k.op.MulT(z, left, k.threads)
	if err := checkProduct(z, k.threads); err != nil {
		return z, err
	}
	k.orthonormalize(z, NewMatrix(k.kv, k.cols, k.v), k.floor)
	k.v = append(k.v, z.Data...)
	k.kv += z.Rows
	return z, nil
}

// checkProduct refuses a product that is not finite, before it spreads.
func checkProduct(y Matrix, threads int) error {
	if _, err := summarize(y, threads); err != nil {
		return fmt.Errorf("product with the operator: %w", err)
	}
	return nil
}

// orthonormalize makes the rows of y orthonormal to each other and to those of
// basis, and returns coefficients C with
//
//	y before = C * [basis; y after]
//
// Passes of block Gram-Schmidt and Cholesky-QR go on until one finds the rows
// orthonormal to a hundredth already, so that its own correction is the last.
// Rows within floor, or in a later pass within 1e-4, of the others are replaced
// by random ones with a coefficient of 0. The first pass is content with a Gram
// matrix in float32, whose errors of about 1e-6 leave the rows orthonormal to that
// divided by the square of the smallest pivot, unless a pivot is below tame.
func (k *krylov) orthonormalize(y, basis Matrix, floor float64) dense64 {
	const (
		maxPasses = 8
		settled   = 1e-2
		collapsed = 1e-4
		relative  = 1e-6 // a pivot this much below its row is what float32 left of it
		tame      = 1.0 / 32
	)
	b, n := y.Rows, basis.Rows
	total := newDense64(b, n+b)
	mixing := identity(b) // y before = total[:, :n]*basis + mixing*y
	for pass := range maxPasses {
		if n > 0 {
			inner := NewMatrix(b, n, nil)
			Gemm(1, y, basis.T(), 0, inner, k.threads)
			Gemm(-1, inner, basis, 1, y, k.threads)
			part := newDense64(b, n)
			multiply64(mixing, inner.Data, n, part, 1)
			for i := range b {
				axpy(1, part.row(i), total.row(i)[:n])
			}
		}
		var f choleskyFactor
		if pass == 0 {
			f = cholesky(gram32(y, k.threads), relative, floor)
		}
		if pass > 0 || f.deficient > 0 || f.pivot < tame {
			g := newDense64(b, b)
			gram(y.Data, b, y.Cols, y.Stride, g, k.threads)
			f = cholesky(g, relative, floor)
		}
		product := newDense64(b, b)
		multiply64(mixing, f.l.data, b, product, 1)
		mixing = product
		for i, zero := range f.zero {
			if zero {
				f.l.row(i)[i] = 1
			}
		}
		copy(y.Data, applyInverse(f, y, k.threads).Data)
		for i, zero := range f.zero {
			if zero {
				row := y.row(i)
				k.random.fill(row)
				for j := range row { // about a unit vector: the variance of an element is 1/3
					row[j] *= float32(math.Sqrt(3 / float64(len(row))))
				}
			}
		}
		floor = collapsed
		if pass > 0 && f.deficient == 0 && f.scatter < settled {
			break
		}
	}
	for i := range b {
		copy(total.row(i)[n:], mixing.row(i))
	}
	return total
}

// apply returns c * y.
func (k *krylov) apply(c dense64, y Matrix) Matrix {
	product := NewMatrix(c.rows, y.Cols, nil)
	Gemm(1, c.float32s(), y, 0, product, k.threads)
	return product
}

// gramMatrix returns T * T^T.
func (k *krylov) gramMatrix() dense64 {
	g := newDense64(k.kv, k.kv)
	for i, row := range k.gram {
		for j, v := range row {
			g.row(i)[j], g.row(j)[i] = v, v
		}
	}
	return g
}

// triplets returns the first singular triplets, vectors as rows. e is the
// decomposition of T * T^T.
func (k *krylov) triplets(e eigen, rank int) (left, right Matrix, s []float64) {
	t := newDense64(k.kv, k.ku)
	for i, row := range k.t {
		copy(t.row(i), row)
	}
	c := shortSVD(t.data, t.cols, t.cols, e, rank, k.threads)
	left = k.apply(c.right, NewMatrix(k.ku, k.rows, k.u))
	right = k.apply(c.left, NewMatrix(k.kv, k.cols, k.v))
	return left, right, c.s
}

// denseOperator multiplies with factor*A. A is packed once for the products
// that would have to transpose it every time.
type denseOperator struct {
	a      Matrix
	factor float32
	packed rightOperand // of A^T, or of A if a is a transposed view
	kernel kernel.GemmKernel
}

func newDenseOperator(a Matrix, factor float32, threads int) *denseOperator {
	op := &denseOperator{a: a, factor: factor, kernel: kernel.Gemm()}
	view := a
	if !a.Transposed {
		view = a.T()
	}
	op.packed = packRight(op.kernel, view, threads)
	return op
}

func (op *denseOperator) Dims() (rows, cols int) { return op.a.Rows, op.a.Cols }

func (op *denseOperator) Mul(dst, x Matrix, threads int) { op.multiply(dst, x, op.a.T(), threads) }

func (op *denseOperator) MulT(dst, x Matrix, threads int) { op.multiply(dst, x, op.a, threads) }

func (op *denseOperator) multiply(dst, x, a Matrix, threads int) {
	right := rightOperand{view: a}
	if a.Transposed {
		right = op.packed
	}
	multiply(op.kernel, op.factor, leftOperand{view: x}, right, 0, dst, threads)
}

// flipped is the transpose of an operator.
type flipped struct{ Operator }

func (f flipped) Dims() (rows, cols int) {
	cols, rows = f.Operator.Dims()
	return rows, cols
}
func (f flipped) Mul(dst, x Matrix, threads int)  { f.Operator.MulT(dst, x, threads) }
func (f flipped) MulT(dst, x Matrix, threads int) { f.Operator.Mul(dst, x, threads) }
