package kernel

// ScaleRows computes
//
//	X[i,j] = s[i] * X[i,j]
//
// with X rows x cols and s of length rows, one product rounded to T.
func ScaleRows[T Float](x []T, rows, cols int, s []T) {
	switch {
	case rows < 0 || cols < 0:
		panic(badSize)
	case len(x) != rows*cols:
		panic(badX)
	case len(s) != rows:
		panic(badS)
	}
	for i, factor := range s {
		row := x[i*cols : (i+1)*cols]
		row = row[scaleVectors(row, factor):]
		for j, v := range row {
			row[j] = canonical(factor * v)
		}
	}
}

// ScaleCols computes
//
//	X[i,j] = X[i,j] * s[j]
//
// with X rows x cols and s of length cols, one product rounded to T.
func ScaleCols[T Float](x []T, rows, cols int, s []T) {
	switch {
	case rows < 0 || cols < 0:
		panic(badSize)
	case len(x) != rows*cols:
		panic(badX)
	case len(s) != cols:
		panic(badS)
	}
	for i := range rows {
		row := x[i*cols:][:len(s)]
		done := multiplyVectors(row, s)
		row, factors := row[done:], s[done:]
		for j, factor := range factors {
			row[j] = canonical(row[j] * factor)
		}
	}
}

// scaleVectors multiplies leading elements of x by factor and returns how many: as
// many as vectors take, none if there are no vectors for T.
func scaleVectors[T Float](x []T, factor T) int {
	if x, ok := any(x).([]float32); ok && current() != generic {
		return scaleBlocks(x, float32(factor))
	}
	return 0
}

// multiplyVectors does the same with a factor for each element.
func multiplyVectors[T Float](x, s []T) int {
	if x, ok := any(x).([]float32); ok && current() != generic {
		return multiplyBlocks(x, any(s).([]float32))
	}
	return 0
}
