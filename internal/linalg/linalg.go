// Package linalg is the dense linear algebra of the solvers: the product
// [Gemm], the thin factorisation [QR], the truncated singular value
// decomposition ([Truncate], [TruncateOperator]) and that of a product of two
// factors ([SVDOfProduct]).
//
// Matrices are float32 and row-major ([Matrix]); whatever decides accuracy
// (Gram matrices, triangular factors, eigenproblems of cores, norms) is
// float64. Inside the solvers a set of vectors is a matrix with one vector per
// row, so that every vector is contiguous.
//
// Results do not depend on the number of threads: work is split over elements
// of results, never over the terms of a sum. They do depend on the level of the
// kernels (see [kernel.GemmKernel]) and, in the last bits, on whether a compiler
// fuses products and sums; singular values agree to about 1e-6 of the largest
// between levels.
//
// Shapes that do not fit together are a bug of the caller and panic. Numbers
// that cannot be decomposed, NaN and infinities, are an error. Functions keep no
// state and may run concurrently on different memory.
package linalg

// Panics for misuse, constants so that a stack trace names the fault.
const (
	badMatrix  = "linalg: matrix data do not fit its shape"
	badShape   = "linalg: shapes do not fit together"
	badThreads = "linalg: threads is less than 1"
	badC       = "linalg: result is a transposed view"
	badWide    = "linalg: QR of a matrix with fewer rows than columns"
	badOp      = "linalg: operator without rows or columns"
)

// Matrix is a float32 matrix or the transposed view of one. Element [i,j] is
// Data[i*Stride+j], or Data[j*Stride+i] if Transposed is set.
type Matrix struct {
	Data       []float32
	Rows, Cols int
	Stride     int // distance in Data from row to row, or column to column if Transposed
	Transposed bool
}

// NewMatrix returns a matrix without gaps over data, or over new zeros if data
// is nil.
func NewMatrix(rows, cols int, data []float32) Matrix {
	if rows < 0 || cols < 0 {
		panic(badMatrix)
	}
	if data == nil {
		data = make([]float32, rows*cols)
	}
	m := Matrix{Data: data, Rows: rows, Cols: cols, Stride: cols}
	m.check()
	return m
}

// T returns the transposed view.
func (m Matrix) T() Matrix {
	m.Rows, m.Cols, m.Transposed = m.Cols, m.Rows, !m.Transposed
	return m
}

// At returns element [i,j].
func (m Matrix) At(i, j int) float32 {
	if m.Transposed {
		i, j = j, i
	}
	return m.Data[i*m.Stride+j]
}

// slice returns the view of rows [i0,i1) and columns [j0,j1).
func (m Matrix) slice(i0, i1, j0, j1 int) Matrix {
	from := i0*m.Stride + j0
	if m.Transposed {
		from = j0*m.Stride + i0
	}
	if i0 == i1 || j0 == j1 {
		from = 0 // an empty view must not point behind the data
	}
	m.Data, m.Rows, m.Cols = m.Data[from:], i1-i0, j1-j0
	return m
}

// row returns row i of a matrix that is not transposed.
func (m Matrix) row(i int) []float32 { return m.Data[i*m.Stride:][:m.Cols] }

func (m Matrix) check() {
	rows, cols := m.Rows, m.Cols
	if m.Transposed {
		rows, cols = cols, rows
	}
	if rows < 0 || cols < 0 || m.Stride < cols {
		panic(badMatrix)
	}
	if rows > 0 && cols > 0 && len(m.Data) < (rows-1)*m.Stride+cols {
		panic(badMatrix)
	}
}

// transposed returns a copy with rows and columns exchanged, without gaps.
func transposed(m Matrix) Matrix {
	const block = 16 // 16 numbers are one cache line on both sides
	if m.Transposed {
		dst := NewMatrix(m.Cols, m.Rows, nil)
		for i := range dst.Rows {
			copy(dst.row(i), m.T().row(i))
		}
		return dst
	}
	dst := NewMatrix(m.Cols, m.Rows, nil)
	for i0 := 0; i0 < m.Rows; i0 += block {
		i1 := min(i0+block, m.Rows)
		for j0 := 0; j0 < m.Cols; j0 += block {
			j1 := min(j0+block, m.Cols)
			for i := i0; i < i1; i++ {
				for j, v := range m.row(i)[j0:j1] {
					dst.Data[(j0+j)*dst.Stride+i] = v
				}
			}
		}
	}
	return dst
}
