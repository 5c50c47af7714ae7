package linalg

// exact decomposes factor*a in float64.
func (p problem) exact(a Matrix, factor float64) SVD {
	short := a // one vector per row, no more vectors than their length
	flip := a.Rows > a.Cols
	if flip {
		short = a.T()
	}
	if short.Transposed {
		short = transposed(short.T())
	}
	if factor != 1 {
		scaled := NewMatrix(short.Rows, short.Cols, nil)
		for i := range short.Rows {
			for j, v := range short.row(i) {
				scaled.Data[i*scaled.Stride+j] = float32(factor) * v
			}
		}
		short = scaled
	}
	g := newDense64(short.Rows, short.Rows)
	gram(short.Data, short.Rows, short.Cols, short.Stride, g, p.threads)
	e := symEigen(g, p.threads)
	rank, _, met := p.chooseRank(e.values)
	c := shortSVD(short.Data, short.Cols, short.Stride, e, rank, p.threads)
	left, right := c.left.float32s(), c.right.float32s()
	if flip {
		left, right = right, left
	}
	return p.finish(left, right, c.s, Report{Exact: true, Converged: met})
}
