package kernel

// lanes is the number of sums that a sum over a row is split into: element j is
// added to lane j%lanes, in ascending j, and then [fold] adds the lanes. That is
// the definition at every level; vectors of any width up to eight float64 follow
// it.
const lanes = 8

// fold adds lanes i and i+4, then i and i+2, then 0 and 1, each sum rounded.
func fold(l *[lanes]float64) float64 {
	return ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]))
}

// RowSumSquares computes
//
//	dst[i] = sum_j X[i,j]^2
//
// with X rows x cols and dst of length rows. The sum is float64, in eight lanes
// that start at +0: lane j%8 takes its squares in ascending j, each square and
// each sum rounded to float64; then lanes i and i+4 are added, then i and i+2,
// then 0 and 1.
func RowSumSquares[T Float](dst []float64, x []T, rows, cols int) {
	switch {
	case rows < 0 || cols < 0:
		panic(badSize)
	case len(x) != rows*cols:
		panic(badX)
	case len(dst) != rows:
		panic(badDst)
	}
	for i := range dst {
		var sums [lanes]float64
		row := x[i*cols : (i+1)*cols]
		row = row[rowSquareVectors(&sums, row):]
		for len(row) >= lanes {
			for lane, v := range (*[lanes]T)(row) {
				sums[lane] += float64(float64(v) * float64(v))
			}
			row = row[lanes:]
		}
		for lane, v := range row {
			sums[lane] += float64(float64(v) * float64(v))
		}
		dst[i] = canonical(fold(&sums))
	}
}

// AddColSumSquares computes
//
//	dst[j] += sum_i X[i,j]^2
//
// with X rows x cols and dst of length cols. The squares are added to dst one
// by one in ascending i, each square and each sum rounded to float64. The sum
// over a matrix is therefore the same for any bands, as long as they are added
// from the first row to the last.
func AddColSumSquares[T Float](dst []float64, x []T, rows, cols int) {
	switch {
	case rows < 0 || cols < 0:
		panic(badSize)
	case len(x) != rows*cols:
		panic(badX)
	case len(dst) != cols:
		panic(badDst)
	}
	first := colSquareVectors(dst, x, rows, cols)
	for i := range rows {
		row := x[i*cols:][:len(dst)]
		for j := first; j < len(row); j++ {
			v := row[j]
			dst[j] = canonical(dst[j] + float64(float64(v)*float64(v)))
		}
	}
}

// rowSquareVectors adds the squares of leading elements, a multiple of lanes, and
// returns how many.
func rowSquareVectors[T Float](sums *[lanes]float64, row []T) int {
	if row, ok := any(row).([]float32); ok && current() != generic {
		return rowSquareBlocks(sums, row)
	}
	return 0
}

// colSquareVectors adds the squares of all rows of leading columns and returns how
// many columns.
func colSquareVectors[T Float](dst []float64, x []T, rows, cols int) int {
	if x, ok := any(x).([]float32); ok && current() != generic {
		return colSquareBlocks(dst, x, rows, cols)
	}
	return 0
}
