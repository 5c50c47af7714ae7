package loftq

import "sync"

// Scratch bounds the memory that [Solve] takes for a weight of out rows and in
// columns, in bytes, result included, but for the weight itself and what the
// quantizer takes.
//
// It is x and Q, float32; the solver's packed copy of x, and its basis of a few
// vectors of either side for each triplet (see linalg.Truncate); the pairs of this
// iterate, of the last, and of the kept one and its shift; the last singular
// vectors. Where the exact path may be taken, its Gram matrix and eigenvectors are
// float64.
func Scratch(out, in int, o Options) int64 {
	const float, double, exactSide, pairs = 4, 8, 1100, 6
	rows, cols, rank := int64(out), int64(in), int64(o.Rank)
	side := min(rows, cols)
	triplets := min(rank, side)
	bytes := 3*float*rows*cols + 4*float*min(triplets+32, side)*(rows+cols) + pairs*float*rank*(rows+cols)
	if o.Exact || side <= exactSide {
		bytes += 2*double*side*side + 2*double*triplets*(rows+cols) + float*rows*cols
	}
	return bytes
}

// parallel cuts [0,n) into at most threads ranges whose bounds are multiples of
// unit, calls f for each and waits. The cuts must not change any result.
func parallel(threads, n, unit int, f func(from, to int)) {
	units := (n + unit - 1) / unit
	parts := min(threads, units)
	if parts <= 1 {
		f(0, n)
		return
	}
	var wg sync.WaitGroup
	for p := range parts {
		from, to := p*units/parts*unit, min((p+1)*units/parts*unit, n)
		wg.Go(func() { f(from, to) })
	}
	wg.Wait()
}
