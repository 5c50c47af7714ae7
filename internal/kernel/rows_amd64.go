//go:build !noasm

package kernel

// Rows are passed to assembly in pieces of at most chunkElements, see there. The
// functions that return a number return how many elements they took, a multiple
// of eight.

func scaleBlocks(x []float32, factor float32) int {
	done := 0
	for n := range chunks(len(x)) {
		scaleAVX2(&x[done], factor, n/8)
		done += n
	}
	return done
}

func multiplyBlocks(x, s []float32) int {
	s = s[:len(x)]
	done := 0
	for n := range chunks(len(x)) {
		multiplyAVX2(&x[done], &s[done], n/8)
		done += n
	}
	return done
}

func rowSquareBlocks(sums *[lanes]float64, row []float32) int {
	done := 0
	for n := range chunks(len(row)) {
		rowSquaresAVX2(sums, &row[done], n/8)
		done += n
	}
	return done
}

// colSquareBlocks leaves the rows beyond a multiple of four to portable code, so
// that dst is loaded and stored once for four rows.
func colSquareBlocks(dst []float64, x []float32, rows, cols int) int {
	done := cols &^ 7
	if done == 0 {
		return 0
	}
	i := 0
	for ; i+4 <= rows; i += 4 {
		at := 0
		for n := range chunks(cols) {
			colSquaresAVX2(&dst[at], &x[i*cols+at], cols, n/8)
			at += n
		}
	}
	for ; i < rows; i++ {
		row := x[i*cols:][:done]
		for j, v := range row {
			dst[j] = canonical(dst[j] + float64(float64(v)*float64(v)))
		}
	}
	return done
}

func statBlocks(sums *statLanes, w, x, y []float32) int {
	x, y = x[:len(w)], y[:len(w)]
	done := 0
	for n := range chunks(len(w)) {
		statsAVX2((*[4][8]float64)(sums), &w[done], &x[done], &y[done], n/8)
		done += n
	}
	return done
}

func maxAbsBlocks(largest *[lanes]uint32, x []float32) int {
	done := 0
	for n := range chunks(len(x)) {
		maxAbsAVX2(largest, &x[done], n/8)
		done += n
	}
	return done
}

// skipFinite returns the length of a beginning of src in which no element of width
// bytes has all of ones set.
func skipFinite(src []byte, width int, ones uint32) int {
	done := 0
	for len(src)-done >= 128 {
		blocks := min(len(src)-done, 4*chunkElements) / 128
		skipped := 0
		switch width {
		case 1:
			skipped = skipFinite8AVX2(&src[done], ones*0x0101_0101, blocks)
		case 2:
			skipped = skipFinite16AVX2(&src[done], ones*0x0001_0001, blocks)
		case 4:
			skipped = skipFinite32AVX2(&src[done], ones, blocks)
		}
		done += 128 * skipped
		if skipped < blocks {
			break
		}
	}
	return done
}

// chunks cuts the multiple of eight in n.
func chunks(n int) func(yield func(int) bool) {
	return func(yield func(int) bool) {
		for n &^= 7; n > 0; n -= chunkElements {
			if !yield(min(n, chunkElements)) {
				return
			}
		}
	}
}
