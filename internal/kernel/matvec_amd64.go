//go:build !noasm

package kernel

// matVecBlocks adds the products of leading columns, a multiple of eight, to the lanes
// of up to four rows and returns how many columns it took. Fewer rows than four are
// read several times.
func matVecBlocks(sums *[matVecRows][lanes]float32, s Storage, w []byte, x []float32, rows int, in Storage) int {
	if s == F32 || in != F32 && in != s {
		return 0
	}
	if rows == matVecRows {
		return matVecFour(sums, s, w, x, 2*len(x), in)
	}
	done := 0
	for row := range rows {
		var same [matVecRows][lanes]float32
		done = matVecFour(&same, s, w[2*row*len(x):][:2*len(x)], x, 0, in)
		sums[row] = same[0]
	}
	return done
}

// matVecFour does so for four rows that are pitch bytes apart.
func matVecFour(sums *[matVecRows][lanes]float32, s Storage, w []byte, x []float32, pitch int, in Storage) int {
	done := 0
	for left := len(x) &^ 7; left > 0; left = len(x)&^7 - done {
		blocks := min(left, chunkElements/matVecRows) / 8
		p, v := &w[2*done], &x[done]
		switch {
		case s == BF16 && in == F32:
			matVecBF16AVX2(sums, p, pitch, v, blocks)
		case s == BF16:
			matVecInBF16AVX2(sums, p, pitch, v, blocks)
		case in == F32:
			matVecF16AVX2(sums, p, pitch, v, blocks)
		default:
			matVecInF16AVX2(sums, p, pitch, v, blocks)
		}
		done += 8 * blocks
	}
	return done
}
