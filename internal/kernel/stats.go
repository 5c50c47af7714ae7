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
// and each sum is rounded to float64. Every sum has eight lanes that start at +0:
// lane j%8 takes the products of its columns in ascending j; then lanes i and i+4
// are added, then i and i+2, then 0 and 1.
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

// statLanes are the lanes of Base, Change, Rounding and Kept.
type statLanes [4][lanes]float64

func rowStats[T Float](w, x, y []T) RowStats {
	var s RowStats
	var sums statLanes
	done := statVectors(&sums, w, x, y)
	addStats(&s, &sums, w[done:], x[done:], y[done:])
	if sums.fold(&s); done > 0 && s.odd() {
		s, sums = RowStats{}, statLanes{}
		addStats(&s, &sums, w, x, y)
		sums.fold(&s)
	}
	return s
}

// odd reports whether s is the sum of vectors with a number that is not finite:
// that number's square or a difference of it is in one of the sums, which have no
// negative terms and are far from the largest float64 otherwise.
func (s *RowStats) odd() bool { return !finite(s.Base + s.Change + s.Rounding) }

// fold stores the sums.
func (l *statLanes) fold(s *RowStats) {
	s.Base, s.Change, s.Rounding, s.Kept = fold(&l[0]), fold(&l[1]), fold(&l[2]), fold(&l[3])
}

// addStats adds columns that begin at lane 0 to the lanes and to the counts of s.
func addStats[T Float](s *RowStats, sums *statLanes, w, x, y []T) {
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
		lane := j % lanes
		sums[0][lane] += float64(base * base)
		sums[1][lane] += float64(change * change)
		sums[2][lane] += float64(rounding * rounding)
		sums[3][lane] += float64(kept * change)
	}
}

// statVectors adds leading columns, a multiple of lanes, as if all numbers were
// finite, and returns how many.
func statVectors[T Float](sums *statLanes, w, x, y []T) int {
	if w, ok := any(w).([]float32); ok && current() != generic {
		return statBlocks(sums, w, any(x).([]float32), any(y).([]float32))
	}
	return 0
}

func finite(v float64) bool { return v-v == 0 }

func nonFinite(v float64) int64 {
	if finite(v) {
		return 0
	}
	return 1
}
