package kernel

// RowStats holds what a report says about one row, or about several rows added
// up: W is the base, X the exact result before rounding, Y the stored result.
// The sums leave out every column where W, X or Y is not finite, so that one
// bad element does not hide the others; the counts name what was left out.
type RowStats struct {
	Base     float64 // sum of W^2
	Change   float64 // sum of (X-W)^2
	Rounding float64 // sum of (Y-X)^2
	Kept     float64 // sum of (Y-W)*(X-W); equals Change if nothing was lost

	NonFiniteBase   int64 // NaN and infinities in W
	NonFiniteExact  int64 // in X; a type without infinity stores some as numbers
	NonFiniteStored int64 // in Y
}

// Stats computes dst[i] from row i of W, X and Y, all rows x cols, with dst of
// length rows. Elements are widened to float64; each difference, each product
// and each sum is rounded to float64, in ascending column order from +0.
func Stats[T Float](dst []RowStats, w, x, y []T, rows, cols int) {
	switch {
	case rows < 0 || cols < 0:
		panic(badSize)
	case len(w) != rows*cols:
		panic(badW)
	case len(x) != rows*cols:
		panic(badX)
	case len(y) != rows*cols:
		panic(badY)
	case len(dst) != rows:
		panic(badDst)
	}
	for i := range dst {
		from, to := i*cols, (i+1)*cols
		dst[i] = rowStats(w[from:to], x[from:to], y[from:to])
	}
}

// Add adds the numbers of o to s, one addition each. Rows are added in
// ascending order wherever the total must not depend on how rows were split.
func (s *RowStats) Add(o RowStats) {
	s.Base += o.Base
	s.Change += o.Change
	s.Rounding += o.Rounding
	s.Kept += o.Kept
	s.NonFiniteBase += o.NonFiniteBase
	s.NonFiniteExact += o.NonFiniteExact
	s.NonFiniteStored += o.NonFiniteStored
}

func rowStats[T Float](w, x, y []T) RowStats {
	var s RowStats
	// Locals, because the fields of a struct this size do not live in registers.
	var sumBase, sumChange, sumRounding, sumKept float64
	x, y = x[:len(w)], y[:len(w)]
	for j := range w {
		base, exact, stored := float64(w[j]), float64(x[j]), float64(y[j])
		if !finite(base) || !finite(exact) || !finite(stored) {
			s.NonFiniteBase += nonFinite(base)
			s.NonFiniteExact += nonFinite(exact)
			s.NonFiniteStored += nonFinite(stored)
			continue
		}
		change, rounding, kept := exact-base, stored-exact, stored-base
		sumBase += float64(base * base)
		sumChange += float64(change * change)
		sumRounding += float64(rounding * rounding)
		sumKept += float64(kept * change)
	}
	s.Base, s.Change, s.Rounding, s.Kept = sumBase, sumChange, sumRounding, sumKept
	return s
}

func finite(v float64) bool { return v-v == 0 }

func nonFinite(v float64) int64 {
	if finite(v) {
		return 0
	}
	return 1
}
