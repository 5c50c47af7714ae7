package linalg

import (
	"fmt"
	"math"
)

// Options say how many singular triplets to compute and how well. Exactly one of
// Rank, Energy and Error is set.
type Options struct {
	Rank   int     // this many triplets, at most min(rows, cols)
	Energy float64 // as few as hold this share of ||A||_F^2, in (0,1]
	Error  float64 // as few as leave a residual of at most Error*||A||_F, in (0,1)

	// MaxRank bounds the triplets of Energy and Error; 0 stands for min(rows, cols).
	MaxRank int
	// Excess is how much larger than the best one of the same rank the residual
	// may be, relatively. The iteration stops when its own estimate is below.
	// 0 stands for 5e-4 up to rank 64 and 2.5e-3 above.
	Excess float64
	// MaxSteps bounds the blocks of the iteration, which takes as many as the rank
	// needs anyway; 0 stands for 24.
	MaxSteps int
	// Exact asks for a decomposition in float64 without iteration.
	Exact bool
	// Start holds vectors near the first right singular ones, one per row, such as
	// VT of a matrix nearby; no rows stand for a random start. They need not be
	// orthonormal, nor as many as the rank. A bad start costs time, not accuracy.
	// The exact path does not need it.
	Start Matrix
	// Threads is the number of goroutines to use; 0 stands for 1. No result
	// depends on it.
	Threads int
}

// Validate reports the first field that does not make sense.
func (o Options) Validate() error {
	set := 0
	for _, given := range []bool{o.Rank != 0, o.Energy != 0, o.Error != 0} {
		if given {
			set++
		}
	}
	switch {
	case set != 1:
		return fmt.Errorf("one of rank, energy and error must be given, not %d of them", set)
	case o.Rank < 0:
		return fmt.Errorf("rank %d is negative", o.Rank)
	case !(o.Energy >= 0 && o.Energy <= 1):
		return fmt.Errorf("energy %v is not between 0 and 1", o.Energy)
	case !(o.Error >= 0 && o.Error < 1):
		return fmt.Errorf("error %v is not between 0 and 1", o.Error)
	case o.MaxRank < 0:
		return fmt.Errorf("maximal rank %d is negative", o.MaxRank)
	case !(o.Excess >= 0 && o.Excess < 1):
		return fmt.Errorf("excess %v is not between 0 and 1", o.Excess)
	case o.MaxSteps < 0:
		return fmt.Errorf("number of steps %d is negative", o.MaxSteps)
	case o.Threads < 0:
		return fmt.Errorf("number of threads %d is negative", o.Threads)
	}
	return nil
}

// checkStart panics unless the start, if there is one, has vectors of length cols.
func (o Options) checkStart(cols int) {
	o.Start.check()
	if o.Start.Rows > 0 && o.Start.Cols != cols {
		panic(badShape)
	}
}

// SVD is a truncated singular value decomposition, A = U * diag(S) * VT + rest.
// Each column of U has its element of largest magnitude positive, the one with
// the lowest index where several are equal.
type SVD struct {
	U  Matrix    // rows x rank, orthonormal columns
	S  []float64 // descending, not negative
	VT Matrix    // rank x cols, orthonormal rows
	Report
}

// Report says how good a decomposition is.
type Report struct {
	Norm     float64 // ||A||_F
	Captured float64 // sum of S^2 divided by ||A||_F^2
	// Residual is ||A - U*diag(S)*VT||_F divided by ||A||_F. For a matrix it was
	// computed by subtraction and found to agree with Captured; for an operator
	// it is sqrt(1-Captured), found to agree with random probes, or below 1e-3
	// what the probes say.
	Residual float64
	// Excess estimates how much larger Residual is than the best one of this
	// rank, relatively, from the growth of the captured energy.
	Excess    float64
	Steps     int  // blocks of the iteration, 0 if there was none
	Converged bool // the estimate met Options.Excess, and the target was reached
	Exact     bool // computed without iteration
}

// NotFiniteError reports a NaN or an infinity in a matrix.
type NotFiniteError struct {
	Row, Col int
	Value    float32
}

func (e *NotFiniteError) Error() string {
	return fmt.Sprintf("element [%d,%d] is %v", e.Row, e.Col, e.Value)
}

// CertificateError reports that a decomposition does not fit its matrix: the
// two ways to compute the residual differ by more than rounding explains. It
// means a fault of the machine or of this package.
type CertificateError struct {
	ByEnergy, BySubtraction float64 // squares of the relative residual
}

func (e *CertificateError) Error() string {
	return fmt.Sprintf("squared residual is %.3g by energy and %.3g by subtraction", e.ByEnergy, e.BySubtraction)
}

// Truncate computes a truncated singular value decomposition of a.
//
// By default it is a block Lanczos iteration with full reorthogonalisation (see
// krylov), whose start is drawn from a generator seeded by the numbers of a.
// Small matrices, and ranks that need most of the space, take the exact path,
// and so do errors below exactError, which float32 cannot measure.
//
// The exact path is the float64 Gram matrix of the shorter side, its eigenvectors
// and a clean-up (see shortSVD): singular values are right to 1e-7 of the
// largest, the residual is the best there is to 2^-23 of itself. With n the
// shorter side it costs about rows*cols*n operations, n^3/3 numbers to read and
// write for the eigenvalues, 4*rank*n^2 operations for the vectors, and 8*n^2
// bytes. On one 3.6 GHz core that is 0.8 s for rank 256 of 1024 x 1024 and 31 s
// for rank 64 of 4096 x 4096, where the iteration takes 0.3 s and LAPACK's sgesdd,
// all triplets in float32, 18 s.
//
// Besides the result it takes memory for a packed copy of a and about
// 4*rank*(rows+cols) numbers. An Energy or Error that needs a high rank first
// builds a basis of up to 24 blocks and then, in vain, takes the exact path.
func Truncate(a Matrix, o Options) (SVD, error) {
	a.check()
	if err := o.Validate(); err != nil {
		return SVD{}, err
	}
	o.checkStart(a.Cols)
	threads := max(1, o.Threads)
	summary, err := summarize(a, threads)
	if err != nil {
		return SVD{}, err
	}
	if a.Rows == 0 || a.Cols == 0 {
		return SVD{U: NewMatrix(a.Rows, 0, nil), VT: NewMatrix(0, a.Cols, nil), Report: Report{Captured: 1, Converged: true}}, nil
	}
	p := newProblem(a.Rows, a.Cols, summary.squares*summary.factor*summary.factor, summary.seed, o)
	var result SVD
	if p.wantsExact(o) {
		result = p.exact(a, summary.factor)
	} else {
		if result, err = p.iterate(newDenseOperator(a, float32(summary.factor), threads), o.Start); err != nil {
			return SVD{}, err
		}
		if p.rank == 0 && result.Captured*p.squares < p.target && len(result.S) < p.maxRank {
			result = p.exact(a, summary.factor) // the rank is beyond the iteration
		}
	}
	if err := p.certify(a, float32(summary.factor), &result); err != nil {
		return SVD{}, err
	}
	result.unscale(summary.factor)
	return result, nil
}

// Operator is a matrix known by its products. Vectors are rows.
type Operator interface {
	// Dims returns the size of A.
	Dims() (rows, cols int)
	// Mul computes dst = X * A^T, X with one vector of length cols per row, and
	// MulT dst = X * A, X with one vector of length rows per row. The results
	// must not depend on threads.
	Mul(dst, x Matrix, threads int)
	MulT(dst, x Matrix, threads int)
}

// TruncateOperator is [Truncate] of a matrix that is given by its products, whose
// ||A||_F^2 the caller knows. There is no exact path: it is an error to ask for
// it or for an Error below 2e-3. Products should be between 1e-30 and 1e30.
func TruncateOperator(a Operator, sumSquares float64, o Options) (SVD, error) {
	rows, cols := a.Dims()
	if err := o.Validate(); err != nil {
		return SVD{}, err
	}
	switch {
	case rows < 1 || cols < 1:
		panic(badOp)
	case o.Exact || o.Error > 0 && o.Error < exactError:
		return SVD{}, fmt.Errorf("an exact decomposition needs the matrix itself")
	case !(sumSquares >= 0) || math.IsInf(sumSquares, 1):
		return SVD{}, fmt.Errorf("sum of squares %v is not a finite number", sumSquares)
	}
	o.checkStart(cols)
	// The products with a fixed block stand for the content.
	probe, product := NewMatrix(1, cols, nil), NewMatrix(1, rows, nil)
	newRandom(0).fill(probe.Data)
	a.Mul(product, probe, max(1, o.Threads))
	if err := checkProduct(product, 1); err != nil {
		return SVD{}, err
	}
	content, _ := summarize(product, 1)
	p := newProblem(rows, cols, sumSquares, content.seed, o)
	result, err := p.iterate(a, o.Start)
	if err != nil {
		return SVD{}, err
	}
	if err := p.certifyOperator(a, &result); err != nil {
		return SVD{}, err
	}
	return result, nil
}

// exactError is the relative residual below which float32 products cannot tell
// whether a target is met: its square is 2^-18, 2^6 times the rounding of one.
const exactError = 2e-3

// problem is what both paths need to know.
type problem struct {
	rows, cols int
	squares    float64 // ||A||_F^2, of the scaled matrix
	seed       uint64
	rank       int     // fixed, or 0
	maxRank    int     // of any result
	target     float64 // of the captured energy if rank is 0, between 0 and squares
	excess     float64 // 0 for the default of the rank
	maxSteps   int
	threads    int
}

func newProblem(rows, cols int, squares float64, seed uint64, o Options) problem {
	p := problem{
		rows: rows, cols: cols, squares: squares, seed: seed,
		maxRank: min(rows, cols), excess: o.Excess, maxSteps: o.MaxSteps, threads: max(1, o.Threads),
	}
	switch {
	case o.Rank > 0:
		p.rank = min(o.Rank, p.maxRank)
		p.maxRank = p.rank
	case o.MaxRank > 0:
		p.maxRank = min(o.MaxRank, p.maxRank)
	}
	switch {
	case o.Energy > 0:
		p.target = o.Energy * squares
	case o.Error > 0:
		p.target = (1 - o.Error*o.Error) * squares
	}
	if p.maxSteps == 0 {
		p.maxSteps = 24
	}
	return p
}

// excessLimit is the excess at which the iteration stops.
func (p problem) excessLimit(rank int) float64 {
	switch {
	case p.excess > 0:
		return p.excess
	case rank <= 64:
		return 5e-4
	}
	return 2.5e-3
}

// wantsExact reports whether the exact path is asked for or no slower.
func (p problem) wantsExact(o Options) bool {
	const (
		alwaysExact = 192  // the core of an iteration is no smaller
		cheapExact  = 1100 // here n^3 is less than a second
	)
	n := min(p.rows, p.cols)
	basis := p.typicalSteps() * p.blockWidth()
	switch {
	case o.Exact || o.Error > 0 && o.Error < exactError || n <= alwaysExact || p.squares == 0:
		return true
	case n <= cheapExact:
		return basis > n/2
	}
	return basis > n*9/10
}

// chooseRank returns how many of the descending squared singular values to take,
// their sum, and whether that meets the target.
func (p problem) chooseRank(squares []float64) (rank int, captured float64, met bool) {
	for rank < min(len(squares), p.maxRank) {
		if p.rank == 0 && rank > 0 && captured >= p.target {
			break
		}
		captured += max(0, squares[rank])
		rank++
	}
	if p.rank > 0 {
		return rank, captured, rank == p.rank
	}
	return rank, captured, captured >= p.target
}

// finish fixes signs, brings U to columns and fills in what both paths report.
// left and right have one vector per row.
func (p problem) finish(left, right Matrix, s []float64, report Report) SVD {
	captured := 0.0
	for i, v := range s {
		captured += v * v
		if row := left.row(i); negative(row) {
			negate(row)
			negate(right.row(i))
		}
	}
	report.Norm = math.Sqrt(p.squares)
	report.Captured = 1
	if p.squares > 0 {
		report.Captured = captured / p.squares
	}
	return SVD{U: transposed(left), S: s, VT: right, Report: report}
}

// negative reports whether the first element of largest magnitude is negative.
func negative(x []float32) bool {
	largest, sign := float32(0), false
	for _, v := range x {
		if magnitude := max(v, -v); magnitude > largest {
			largest, sign = magnitude, v < 0
		}
	}
	return sign
}

func negate(x []float32) {
	for i, v := range x {
		x[i] = -v
	}
}

// unscale turns the decomposition of factor*A into that of A.
func (d *SVD) unscale(factor float64) {
	for i := range d.S {
		d.S[i] /= factor
	}
	d.Norm /= factor
}
