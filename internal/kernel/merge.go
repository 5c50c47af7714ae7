package kernel

import "math"

// Converter reads and writes the bytes of one element type; the codecs of package
// quant/block are such. Elements do not depend on each other.
type Converter interface {
	Decode32(dst []float32, src []byte)
	Encode32(dst []byte, src []float32)
}

// Storager is a [Converter] that says which element type it is. A merge from and to
// the same one runs in one kernel.
type Storager interface{ Storage() Storage }

// Storage is an element type that there are kernels for.
type Storage int

// The element types, with NaNs as package quant/block has them.
const (
	NoStorage Storage = iota
	F32
	BF16
	F16
	E4M3
	E5M2
)

// LowRank is the update scale·L·R of a band of rows: L is rows x Rank, R is
// Rank x cols.
type LowRank struct {
	L, R  []float32
	Rank  int
	Scale float32
}

// Tiles of a merge. Three tiles and a piece of R are worked on together, which
// are 130 KiB at rank 16: they stay in a second-level cache. The results do not
// depend on it.
const (
	tileRows = 16
	tileCols = 512
	// panelWidth is the number of columns of one panel, four vectors of AVX-512.
	panelWidth = 64
)

// Merger merges bands of rows in tiles that never leave the cache. The zero value
// is ready; it keeps memory between calls and serves one goroutine.
type Merger struct {
	base, exact, stored [tileRows * tileCols]float32
	packed              []float32
	sums                []statLanes
}

// Size returns how many bytes a Merger holds for bands of that many rows and rank.
func (m *Merger) Size(rows, rank int) int {
	return 4*3*tileRows*tileCols + 4*tileCols*rank + 8*4*lanes*rows
}

// Merge decodes W from src, adds scale·L·R, encodes the result to dst and, unless
// stats is nil, sets stats[i] from row i of W, of the exact result and of what
// dst decodes to. W is rows x cols. Every byte and every sum is what Decode32,
// [AddLowRank], Encode32 and [Stats] give one after the other.
func (m *Merger) Merge(dst []byte, to Converter, src []byte, from Converter, rows, cols int, u LowRank, stats []RowStats) {
	switch {
	case rows < 0 || cols < 0 || u.Rank < 0:
		panic(badSize)
	case len(u.L) != rows*u.Rank:
		panic(badL)
	case len(u.R) != u.Rank*cols:
		panic(badR)
	case stats != nil && len(stats) != rows:
		panic(badDst)
	case rows*cols > 0 && len(src)%(rows*cols) != 0:
		panic(badSrc)
	case rows*cols > 0 && len(dst)%(rows*cols) != 0:
		panic(badDst)
	}
	clear(stats)
	if rows*cols == 0 {
		return
	}
	b := band{
		to: to, from: from, storage: fusedStorage(to, from),
		dst: dst, dstSize: len(dst) / (rows * cols),
		src: src, srcSize: len(src) / (rows * cols),
		cols: cols, l: u.L, rank: u.Rank, scale: u.Scale, stats: stats,
	}
	m.packed = grow(m.packed, u.Rank*tileCols)
	m.sums = grow(m.sums, len(stats))
	clear(m.sums)
	for first := 0; first < cols; first += b.width {
		b.first, b.width = first, min(tileCols, cols-first)
		fused := b.storage != NoStorage && b.width >= panelWidth
		if fused {
			b.width &^= panelWidth - 1 // the rest is a tile of its own
		}
		b.tile = packTile(m.packed, u.R[min(first, len(u.R)):], cols, b.width, u.Rank)
		for i := 0; i < rows; i += tileRows {
			n := min(tileRows, rows-i)
			if fused && b.tile.panels {
				m.panels(&b, i, n)
				continue
			}
			m.tile(&b, i, n)
			for row := i; row < i+n && stats != nil; row++ {
				m.addStats(&b, row, i)
			}
		}
	}
	for i := range stats {
		m.sums[i].fold(&stats[i])
		if stats[i].odd() {
			m.oddRow(&b, u.R, i)
		}
	}
}

// fusedStorage returns the element type of both ends if it is the same known one.
func fusedStorage(to, from Converter) Storage {
	if to, ok := to.(Storager); ok {
		if from, ok := from.(Storager); ok && to.Storage() == from.Storage() {
			return to.Storage()
		}
	}
	return NoStorage
}

// band is what all tiles of a call have in common.
type band struct {
	to, from         Converter
	storage          Storage // of both, if it is the same
	dst, src         []byte
	dstSize, srcSize int
	cols             int
	l                []float32
	rank             int
	scale            float32
	stats            []RowStats

	// Of the tiles in work: their first column, their width, and R as packTile left
	// it.
	first, width int
	tile         packedTile
}

// tile works on n rows from row i on, without statistics. It leaves decoded, exact
// and stored values behind.
func (m *Merger) tile(b *band, i, n int) {
	pitch := b.tile.pitch
	for row := range n {
		at := (i+row)*b.cols + b.first
		b.from.Decode32(m.base[row*pitch:][:b.width], b.src[at*b.srcSize:][:b.width*b.srcSize])
	}
	b.tile.add(m.exact[:n*pitch], m.base[:n*pitch], n, b.l[i*b.rank:][:n*b.rank], b.rank, b.scale)
	for row := range n {
		at := (i+row)*b.cols + b.first
		out := b.dst[at*b.dstSize:][:b.width*b.dstSize]
		b.to.Encode32(out, m.exact[row*pitch:][:b.width])
		if b.stats != nil {
			b.to.Decode32(m.stored[row*pitch:][:b.width], out)
		}
	}
}

// values returns what tile, called for row i first, left behind of a row.
func (m *Merger) values(b *band, row, i int) (base, exact, stored []float32) {
	at := (row - i) * b.tile.pitch
	return m.base[at:][:b.width], m.exact[at:][:b.width], m.stored[at:][:b.width]
}

// addStats adds a row of the tile that begins with row i to the sums.
func (m *Merger) addStats(b *band, row, i int) {
	base, exact, stored := m.values(b, row, i)
	sums := &m.sums[row]
	done := statVectors(sums, base, exact, stored)
	var s RowStats
	addStats(&s, sums, base[done:], exact[done:], stored[done:])
	if s.NonFiniteBase+s.NonFiniteExact+s.NonFiniteStored > 0 {
		sums[0][0] = math.Inf(1) // marks the row as odd
	}
}

// oddRow computes a row with infinities or NaNs again, to count them and to leave
// them out of the sums.
func (m *Merger) oddRow(b *band, r []float32, i int) {
	s, sums := &b.stats[i], statLanes{}
	*s = RowStats{}
	for first := 0; first < b.cols; first += tileCols {
		b.first, b.width = first, min(tileCols, b.cols-first)
		b.tile = packTile(m.packed, r[min(first, len(r)):], b.cols, b.width, b.rank)
		m.tile(b, i, 1)
		base, exact, stored := m.values(b, i, i)
		addStats(s, &sums, base, exact, stored)
	}
	sums.fold(s)
}

// packedTile is a piece of R, rank rows of numbers pitch apart or panels of them.
type packedTile struct {
	r      []float32
	pitch  int
	panels bool // packed for vectors, see addPanels
}

// packTile copies width columns of R to dst, for vectors if there are any.
func packTile(dst, r []float32, ldr, width, rank int) packedTile {
	if packPanels(dst, r, ldr, width, rank) {
		return packedTile{dst, panels(width, panelWidth) * panelWidth, true}
	}
	for k := range rank {
		copy(dst[k*width:][:width], r[k*ldr:])
	}
	return packedTile{dst[:rank*width], width, false}
}

// add computes X = W + scale·L·R for a tile.
func (t *packedTile) add(x, w []float32, rows int, l []float32, rank int, scale float32) {
	if t.panels {
		addPanels(x, w, rows, t.pitch, l, t.r, rank, scale)
		return
	}
	copy(x, w)
	AddLowRank(x, rows, t.pitch, l, t.r, rank, scale)
}

// grow returns a slice of length n, reusing buf when it is large enough.
func grow[E any](buf []E, n int) []E {
	if cap(buf) < n {
		return make([]E, n)
	}
	return buf[:n]
}
