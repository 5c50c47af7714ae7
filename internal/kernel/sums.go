package kernel

// RowSumSquares computes
//
//	dst[i] = sum_j X[i,j]^2
//
// with X rows x cols and dst of length rows. The sum is float64, starts at +0
// and goes in ascending j; each square and each sum is rounded to float64.
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
		sum := 0.0
		for _, v := range x[i*cols : (i+1)*cols] {
			sum += float64(float64(v) * float64(v))
		}
		dst[i] = canonical(sum)
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
	for i := range rows {
		row := x[i*cols:][:len(dst)]
		for j, v := range row {
			dst[j] = canonical(dst[j] + float64(float64(v)*float64(v)))
		}
	}
}
