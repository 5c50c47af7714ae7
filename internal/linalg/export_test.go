package linalg

// SymEigen opens symEigen to tests: a is n x n without gaps and is destroyed.
func SymEigen(a []float64, n, want, threads int) (values, vectors []float64) {
	e := symEigen(dense64{a, n, n}, threads)
	return e.values, e.vectors(want, threads).data
}

// Gram opens gram to tests.
func Gram(x Matrix, threads int) []float64 {
	g := newDense64(x.Rows, x.Rows)
	gram(x.Data, x.Rows, x.Cols, x.Stride, g, threads)
	return g.data
}

// Certify opens the check of a decomposition of a to tests.
func Certify(a Matrix, d *SVD) error {
	p := problem{rows: a.Rows, cols: a.Cols, squares: d.Norm * d.Norm, threads: 1}
	return p.certify(a, 1, d)
}
