//go:build !noasm

package kernel

// panels merges n rows from row i on in one kernel, all panels of the tile, each in
// one call or, at high ranks, in several.
func (m *Merger) panels(b *band, i, n int) {
	step := max(callProducts/(panelWidth*b.rank)&^3, 4)
	size, pitch := b.srcSize, b.cols*b.srcSize
	for first := 0; first < b.width; first += panelWidth {
		r := b.tile.r[first*b.rank:][:panelWidth*b.rank]
		for row := i; row < i+n; row += step {
			count := min(step, i+n-row)
			l := b.l[row*b.rank:][:count*b.rank]
			var sums *[4][8]float64
			if b.stats != nil {
				sums = (*[4][8]float64)(&m.sums[row])
				_ = m.sums[row+count-1]
			}
			from, to := row*pitch+(b.first+first)*size, (row+count-1)*pitch+(b.first+first+panelWidth)*size
			mergePanel(max(current(), avx2), b.storage, b.dst[from:to], b.src[from:to], pitch, l, r, b.rank, b.scale, count, sums, (*[256]float32)(m.exact[:]))
		}
	}
}

// mergePanel merges panelWidth columns of bytes that end with the last row.
func mergePanel(level level, s Storage, dst, src []byte, pitch int, l, r []float32, rank int, scale float32, rows int, sums *[4][8]float64, scratch *[256]float32) {
	if level == avx512 {
		d, w, l, r := &dst[0], &src[0], &l[0], &r[0]
		switch s {
		case BF16:
			mergeBF16AVX512(d, w, pitch, l, r, rank, scale, rows, sums, scratch)
		case F16:
			mergeF16AVX512(d, w, pitch, l, r, rank, scale, rows, sums, scratch)
		case F32:
			mergeF32AVX512(d, w, pitch, l, r, rank, scale, rows, sums, scratch)
		}
		return
	}
	size := 2
	if s == F32 {
		size = 4
	}
	for at := 0; at < panelWidth; at += 16 {
		d, w, l, r := &dst[at*size], &src[at*size], &l[0], &r[at]
		switch s {
		case BF16:
			mergeBF16AVX2(d, w, pitch, l, r, rank, scale, rows, sums, scratch)
		case F16:
			mergeF16AVX2(d, w, pitch, l, r, rank, scale, rows, sums, scratch)
		case F32:
			mergeF32AVX2(d, w, pitch, l, r, rank, scale, rows, sums, scratch)
		}
	}
}
