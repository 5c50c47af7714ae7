//go:build !noasm

package kernel

const (
	// panelRank is the rank up to which a panel of R is packed on the stack: with
	// 16 KiB it leaves half of a small first-level cache.
	panelRank = 64
	// rowsAtATime is the number of rows that avx512 takes together.
	rowsAtATime = 32
	// callProducts bounds the products of one call of assembly: about 20 us.
	callProducts = 1 << 20
)

// addLowRank computes X = W + scale·L·R, where X and W may be the same, and
// reports whether it did: generic and narrow matrices are left to the caller.
//
// The rows of R are cols apart, often a power of two, and then fall into a few sets
// of the cache only. At avx2, which has few registers and so reads R four times as
// often, each panel of R is packed for all rows. At avx512 that does not pay; there,
// few rows at a time keep the pages they lie on known to the CPU.
func addLowRank(x, w []float32, rows, cols int, l, r []float32, rank int, scale float32) bool {
	level := current()
	if level == generic || cols < 16 || rows == 0 || rank == 0 {
		return false
	}
	var buffer [panelRank * panelWidth]float32
	packed := buffer[:]
	if rank > panelRank {
		packed = make([]float32, rank*panelWidth)
	}
	step := rows
	if level == avx512 {
		step = rowsAtATime
	}
	for i := 0; i < rows; i += step {
		n := min(step, rows-i)
		x, w, l := x[i*cols:(i+n)*cols], w[i*cols:(i+n)*cols], l[i*rank:(i+n)*rank]
		for first := 0; first < cols; first += panelWidth {
			width := min(panelWidth, cols-first)
			switch {
			case width < panelWidth:
				packPanel(packed, r[first:], cols, width, rank)
				lowRankEdge(level, x[first:], w[first:], cols, width, l, packed, rank, scale, n)
			case level == avx2 && n >= 16:
				packPanel(packed, r[first:], cols, width, rank)
				lowRankPanel(level, x[first:], cols, w[first:], cols, l, packed, panelWidth, rank, scale, n)
			default:
				lowRankPanel(level, x[first:], cols, w[first:], cols, l, r[first:], cols, rank, scale, n)
			}
		}
	}
	return true
}

// packPanel copies width columns of rank rows, with zeros up to panelWidth.
func packPanel(dst, r []float32, ldr, width, rank int) {
	if width == panelWidth {
		_, _ = dst[rank*panelWidth-1], r[(rank-1)*ldr+panelWidth-1]
		gather64AVX2(&dst[0], &r[0], ldr, rank)
		return
	}
	for k := range rank {
		row := dst[k*panelWidth:][:panelWidth]
		clear(row[copy(row, r[k*ldr:][:width]):])
	}
}

// lowRankEdge works on a panel that is not full, by way of a copy that is.
func lowRankEdge(level level, x, w []float32, ldx, width int, l, packed []float32, rank int, scale float32, rows int) {
	const height = 8
	var tile [height * panelWidth]float32
	for i := 0; i < rows; i += height {
		n := min(height, rows-i)
		for row := range n {
			copy(tile[row*panelWidth:][:width], w[(i+row)*ldx:])
		}
		lowRankPanel(level, tile[:], panelWidth, tile[:], panelWidth, l[i*rank:], packed, panelWidth, rank, scale, n)
		for row := range n {
			copy(x[(i+row)*ldx:][:width], tile[row*panelWidth:])
		}
	}
}

// lowRankPanel works on panelWidth columns.
func lowRankPanel(level level, x []float32, ldx int, w []float32, ldw int, l, r []float32, ldr, rank int, scale float32, rows int) {
	step := max(callProducts/(panelWidth*rank)&^3, 4)
	for i := 0; i < rows; i += step {
		n := min(step, rows-i)
		x, w, l := x[i*ldx:], w[i*ldw:], l[i*rank:]
		_, _, _, _ = x[(n-1)*ldx+panelWidth-1], w[(n-1)*ldw+panelWidth-1], l[n*rank-1], r[(rank-1)*ldr+panelWidth-1]
		if level == avx512 {
			lowRankAVX512(&x[0], ldx, &w[0], ldw, &l[0], &r[0], ldr, rank, scale, n)
			continue
		}
		for at := 0; at < panelWidth; at += 16 {
			lowRankAVX2(&x[at], ldx, &w[at], ldw, &l[0], &r[at], ldr, rank, scale, n)
		}
	}
}

// packPanels packs the panels of a tile one behind the other and reports whether
// it did.
func packPanels(dst, r []float32, ldr, width, rank int) bool {
	if current() == generic || rank == 0 {
		return false
	}
	for first := 0; first < width; first += panelWidth {
		packPanel(dst[first*rank:], r[first:], ldr, min(panelWidth, width-first), rank)
	}
	return true
}

// addPanels computes X = W + scale·L·R for packed panels. Columns up to the pitch,
// a multiple of panelWidth, are computed whatever they hold. A level that has
// become generic since the packing is avx2 here.
func addPanels(x, w []float32, rows, pitch int, l, packed []float32, rank int, scale float32) {
	level := max(current(), avx2)
	for first := 0; first < pitch; first += panelWidth {
		lowRankPanel(level, x[first:], pitch, w[first:], pitch, l, packed[first*rank:], panelWidth, rank, scale, rows)
	}
}
