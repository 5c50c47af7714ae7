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
		for j, factor := range s {
			row[j] = canonical(row[j] * factor)
		}
	}
}
