package linalg

import (
	"math"

	"github.com/loratool/loratool/internal/kernel"
)

// certificateError is how far the two computations of the squared relative
// residual may differ. The coefficients behind the singular values are float32
// products, whose errors grow with the root of at most 2^16 terms and so are
// right to 2^-16 at worst, 2^-24 as a rule; errors of U and VT count squared.
const certificateError = 0x1p-16

// certify computes the residual of the decomposition d of factor*a by
// subtraction and compares it with the captured energy.
func (p problem) certify(a Matrix, factor float32, d *SVD) error {
	left, right := d.U, d.VT
	if a.Transposed {
		a, left, right = a.T(), d.VT.T(), d.U.T()
	}
	scaled := NewMatrix(left.Rows, len(d.S), nil)
	for i := range left.Rows {
		for j, s := range d.S {
			scaled.Data[i*scaled.Stride+j] = -left.At(i, j) * float32(s)
		}
	}
	if p.squares == 0 {
		return nil
	}
	const band = 128
	sums := make([]float64, a.Rows)
	k := kernel.Gemm()
	packed := packRight(k, right, p.threads)
	parallel(p.threads, a.Rows, band, func(from, to int) {
		rest := NewMatrix(band, a.Cols, nil)
		for i := from; i < to; i += band {
			rest.Rows = min(band, to-i)
			multiply(k, 1, leftOperand{view: scaled.slice(i, i+rest.Rows, 0, scaled.Cols)}, packed, 0, rest, 1)
			for x := range rest.Rows {
				row := rest.row(x)
				for j, v := range a.row(i + x) {
					row[j] += factor * v
				}
				sums[i+x], _, _ = summarizeRow(row)
			}
		}
	})
	total := 0.0
	for _, sum := range sums {
		total += sum
	}
	total /= p.squares
	d.Residual = math.Sqrt(total)
	if !(math.Abs(total-(1-d.Captured)) <= certificateError) {
		return &CertificateError{ByEnergy: 1 - d.Captured, BySubtraction: total}
	}
	return nil
}

// probes is the number of random vectors that check the residual of an
// operator. If a single direction is left, the worst case, the mean of their
// squares scatters like chi-square of 28 degrees divided by 28: it is outside
// these bounds once in ten million times.
const (
	probes    = 28
	probeLow  = 0.2
	probeHigh = 2.4
)

// certifyOperator checks the captured energy with random probes: the mean of
// |(A - U*S*VT)*x|^2 over x with independent elements of variance 1 is the
// squared residual.
func (p problem) certifyOperator(a Operator, d *SVD) error {
	rest := max(0, 1-d.Captured)
	d.Residual = math.Sqrt(rest)
	if p.squares == 0 {
		return nil
	}
	x, y := NewMatrix(probes, p.cols, nil), NewMatrix(probes, p.rows, nil)
	generator := newRandom(^p.seed)
	for i := range x.Data {
		x.Data[i] = generator.sign()
	}
	a.Mul(y, x, p.threads)
	inner := NewMatrix(probes, len(d.S), nil)
	Gemm(1, x, d.VT.T(), 0, inner, p.threads)
	for i := range inner.Rows {
		for j, s := range d.S {
			inner.row(i)[j] *= float32(s)
		}
	}
	Gemm(-1, inner, d.U.T(), 1, y, p.threads)
	total := 0.0
	for i := range y.Rows {
		sum, _, _ := summarizeRow(y.row(i))
		total += sum
	}
	total /= probes * p.squares
	if !(total >= probeLow*rest-certificateError && total <= probeHigh*rest+certificateError) {
		return &CertificateError{ByEnergy: rest, BySubtraction: total}
	}
	if rest < rounding { // the difference of two nearly equal numbers
		d.Residual = math.Sqrt(total)
	}
	return nil
}
