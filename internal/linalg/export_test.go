package linalg

// SymEigen opens symEigen to tests: a is n x n without gaps and is destroyed.
func SymEigen(a []float64, n, want int) (values, vectors []float64) {
	e := symEigen(dense64{a, n, n})
	return e.values, e.vectors(want, 1).data
}

// Gram opens gram to tests.
func Gram(x Matrix, threads int) []float64 {
	g := newDense64(x.Rows, x.Rows)
	gram(x.Data, x.Rows, x.Cols, x.Stride, g, threads)
	return g.data
}
