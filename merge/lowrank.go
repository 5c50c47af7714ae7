package merge

import (
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/plan"
)

// Region says which rows of the tensor an operation changes and where they
// stand in the operation's own matrix: tensor row At+i takes row From+i, for
// Rows rows. Most changes cover a whole tensor; one expert of a fused tensor
// is a part of it, and a fused change is cut over the tensors of its experts.
type Region struct {
	At   int64 `json:"at"`
	From int64 `json:"from"`
	Rows int64 `json:"rows"`
}

// in returns the overlap of the region with a band: the first row inside the
// band, the first row of the operation's matrix, and the number of rows.
func (r Region) in(row int64, rows int) (band, own, n int) {
	first := max(row, r.At)
	last := min(row+int64(rows), r.At+r.Rows)
	if last <= first {
		return 0, 0, 0
	}
	return int(first - row), int(first - r.At + r.From), int(last - first)
}

// lowRank is the one form that every product of factors is brought into:
//
//	D[i,:] = scale · sum_k L[i,k] · R[g·rank+k,:],  g = i / perGroup
//
// L is rows x rank and R is (groups·rank) x cols. A plain LoRA has one group;
// stacked experts have one each.
type lowRank[T tensor.Float] struct {
	l, r     []T
	rank     int
	cols     int
	perGroup int
	scale    T
}

// add adds the rows [from, from+n) of the product to x.
func (d *lowRank[T]) add(x []T, from, n int) {
	for n > 0 {
		p, m := d.product(from, n)
		kernel.AddLowRank(x[:m*d.cols], m, d.cols, p.L, p.R, p.Rank, p.Scale)
		x, from, n = x[m*d.cols:], from+m, n-m
	}
}

// product returns the factors of those of the rows [from, from+n) that are in
// the group of the first, and how many they are.
func (d *lowRank[T]) product(from, n int) (p plan.Product[T], m int) {
	g := from / d.perGroup
	m = min(n, (g+1)*d.perGroup-from)
	return plan.Product[T]{
		L:    d.l[from*d.rank : (from+m)*d.rank],
		R:    d.r[g*d.rank*d.cols : (g+1)*d.rank*d.cols],
		Rank: d.rank, Scale: d.scale,
	}, m
}

// lowRankFunc applies a low-rank product to the rows of a region.
type lowRankFunc[T tensor.Float] struct {
	lowRank[T]
	region Region
}

func (f *lowRankFunc[T]) Apply(b plan.Band[T]) error {
	at, from, n := f.region.in(b.Row, b.Rows)
	f.add(b.X[at*b.Cols:(at+n)*b.Cols], from, n)
	return nil
}

// Product returns what Apply adds to the rows from the given one on.
func (f *lowRankFunc[T]) Product(row int64, rows int) (p plan.Product[T], n int, ok bool) {
	at, from, n := f.region.in(row, rows)
	switch {
	case n == 0:
		return p, rows, false
	case at > 0:
		return p, at, false
	}
	p, n = f.product(from, n)
	return p, n, true
}

// flatten sees a factor as rows x rest, whatever its rank.
func flatten[T tensor.Float](m tensor.Matrix[T]) tensor.Matrix[T] {
	return tensor.Matrix[T]{Shape: tensor.Shape{int64(m.Rows()), int64(m.Cols())}, Data: m.Data}
}

// pair orders two factors A (rank x in) and B (out x rank) for a target stored
// as (out, in): L = B and R = A; or stored the other way round, as Conv1D and
// embeddings are: W^T changes by (B·A)^T = A^T·B^T, so L = A^T and R = B^T.
func pair[T tensor.Float](a, b tensor.Matrix[T], transposed bool, scale float64) lowRank[T] {
	a, b = flatten(a), flatten(b)
	rank := a.Rows()
	if transposed {
		a, b = b.Transpose(), a.Transpose()
	}
	return lowRank[T]{l: b.Data, r: a.Data, rank: rank, cols: a.Cols(), perGroup: max(b.Rows(), 1), scale: T(scale)}
}
