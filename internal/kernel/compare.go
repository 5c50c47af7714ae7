package kernel

// Comparison holds how far two tensors A and B are apart, or two rows of them, or
// several rows added up. Figures leave out every element where A or B is not finite,
// so that one bad element does not hide the others; the counts name what was left out.
//
// From these follow the relative error, sqrt(DiffSquares/BSquares), and the cosine,
// Dot/sqrt(ASquares·BSquares).
type Comparison struct {
	MaxDiff     float64 // largest |A-B|
	DiffSquares float64 // sum of (A-B)^2
	ASquares    float64 // sum of A^2
	BSquares    float64 // sum of B^2
	Dot         float64 // sum of A*B

	NonFiniteA      int64 // NaN and infinities in A
	NonFiniteB      int64 // in B
	NonFiniteUnlike int64 // in A or B, and neither the same infinity nor two NaNs
}

// Compare compares a and b, which have the same length. Elements are widened to
// float64; each difference, each product and each sum is rounded to float64. Every
// sum has eight lanes that start at +0: lane j%8 takes the products of its elements
// in ascending j; then lanes i and i+4 are added, then i and i+2, then 0 and 1.
// Numbers of float32 are too small to overflow any figure; of float64, a figure may
// become infinite, and Dot the one NaN.
func Compare[T Float](a, b []T) Comparison {
	if len(a) != len(b) {
		panic(badPair)
	}
	var c Comparison
	var sums compareLanes
	done := compareVectors(&sums, &c, a, b)
	addPairs(&sums, &c, a[done:], b[done:])
	for _, diff := range sums[0] {
		c.MaxDiff = max(c.MaxDiff, diff)
	}
	c.DiffSquares, c.ASquares, c.BSquares = fold(&sums[1]), fold(&sums[2]), fold(&sums[3])
	c.Dot = canonical(fold(&sums[4]))
	return c
}

// Add adds what o says of further elements to c, one addition each. Rows are added in
// ascending order wherever the total must not depend on how rows were split.
func (c *Comparison) Add(o Comparison) {
	c.MaxDiff = max(c.MaxDiff, o.MaxDiff)
	c.DiffSquares += o.DiffSquares
	c.ASquares += o.ASquares
	c.BSquares += o.BSquares
	c.Dot += o.Dot
	c.NonFiniteA += o.NonFiniteA
	c.NonFiniteB += o.NonFiniteB
	c.NonFiniteUnlike += o.NonFiniteUnlike
}

// compareLanes are the lanes of MaxDiff, DiffSquares, ASquares, BSquares and Dot.
type compareLanes [5][lanes]float64

// addPairs adds pairs that begin at lane 0 to the lanes and to the counts of c.
func addPairs[T Float](sums *compareLanes, c *Comparison, a, b []T) {
	b = b[:len(a)]
	for j := range a {
		x, y := float64(a[j]), float64(b[j])
		if !finite(x) || !finite(y) {
			c.NonFiniteA += nonFinite(x)
			c.NonFiniteB += nonFinite(y)
			if x != y && (x == x || y == y) {
				c.NonFiniteUnlike++
			}
			continue
		}
		lane, diff := j%lanes, x-y
		sums[0][lane] = max(sums[0][lane], diff, -diff)
		sums[1][lane] += float64(diff * diff)
		sums[2][lane] += float64(x * x)
		sums[3][lane] += float64(y * y)
		sums[4][lane] += float64(x * y)
	}
}

// compareVectors adds leading pairs, a multiple of lanes, and returns how many.
func compareVectors[T Float](sums *compareLanes, c *Comparison, a, b []T) int {
	if a, ok := any(a).([]float32); ok && current() != generic {
		return compareBlocks(sums, c, a, any(b).([]float32))
	}
	return 0
}
