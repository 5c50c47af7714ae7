package block

import (
	"encoding/binary"
	"math"

	"github.com/loratool/loratool/internal/kernel"
)

// The encoders of the IQ1 types; see ggml_iq.go for their layout. They follow
// quantize_row_iq1_s_impl and quantize_row_iq1_m_impl operation for operation.
//
// Elements are -1, 0 or 1, so that sorting a group leaves only two boundaries to find: up
// to where elements become -1, and from where on 1. Every pair of boundaries is tried
// with both shifts, by sums over beginnings of the sorted group, and its tuples are then
// moved into the grid. ggml sorts with qsort, which in glibc keeps the order of equal
// elements; with weights their order counts.

// The values of the elements, with the shift up and down.
var (
	iq1Up   = [8]float32{-0.875, 0.125, 1.125}
	iq1Down = [8]float32{-1.125, -0.125, 0.875}
)

// iq1Values returns the values of a shift.
func iq1Values(down bool) *[8]float32 {
	if down {
		return &iq1Down
	}
	return &iq1Up
}

// iq1Group is the search of a group of 32 (IQ1_S) or 16 (IQ1_M).
type iq1Group struct {
	book *kernel.Grid
	x, w []float32

	order  [32]uint8 // the elements, sorted
	levels [32]uint8 // 0, 1 or 2

	scale float32
	downs uint8 // which eights of the group are shifted down, by bits; in IQ1_S all or none
}

// Magnitudes below which groups count as zero.
const (
	negligibleIQ1S = 1e-12
	negligibleIQ1M = 1e-7
)

// sort sorts the elements, equal ones in their order.
func (g *iq1Group) sort() {
	for i, v := range g.x {
		at := i
		for ; at > 0 && g.x[g.order[at-1]] > v; at-- {
			g.order[at] = g.order[at-1]
		}
		g.order[at] = uint8(i)
	}
}

// settle sets the levels for what was found, with a positive scale.
func (g *iq1Group) settle(fit kernel.TernaryFit) {
	g.scale, g.downs = fit.Scale, fit.Downs
	for i, at := range g.order[:len(g.x)] {
		switch {
		case i < fit.First:
			g.levels[at] = 0
		case i < fit.Second:
			g.levels[at] = 1
		default:
			g.levels[at] = 2
		}
	}
	if g.scale < 0 {
		g.scale = -g.scale
		g.downs = ^g.downs
		for i, l := range g.levels[:len(g.x)] {
			g.levels[i] = 2 - l
		}
	}
}

// values returns those of eight elements.
func (g *iq1Group) values(k int) *[8]float32 { return iq1Values(g.downs>>k&1 != 0) }

// snap moves the tuples into the grid, and if one was outside, finds the scale again. It
// returns false if a tuple is infinitely far from the grid, or the scale is no number.
func (g *iq1Group) snap(indices []uint16) bool {
	outside := false
	for k := range indices {
		tuple := g.levels[8*k:][:8]
		if g.book.Index(g.book.Number(tuple)) < 0 {
			outside = true
			if !g.move(tuple, k) {
				return false
			}
		}
		indices[k] = uint16(g.book.Index(g.book.Number(tuple)))
	}
	if !outside {
		return g.scale >= 0
	}
	var xq, qq float32
	for i, v := range g.x {
		q := g.values(i / 8)[g.levels[i]]
		wq := float32(g.w[i] * q)
		xq += float32(wq * v)
		qq += float32(wq * q)
	}
	if xq > 0 && qq > 0 {
		g.scale = xq / qq
	}
	return g.scale >= 0
}

// move replaces a tuple by its neighbour with the least error. It returns false if every
// error is infinite.
func (g *iq1Group) move(tuple []uint8, k int) bool {
	var scaled [8]float32
	for l, v := range g.values(k)[:3] {
		scaled[l] = float32(g.scale * v)
	}
	packed, ok := kernel.NearestTuple(g.book.Neighbours(g.book.Number(tuple)), g.x[8*k:][:8], g.w[8*k:][:8], &scaled)
	for i := range tuple {
		tuple[i] = uint8(packed >> (3 * i) & 7)
	}
	return ok
}

// overflows reports whether the square of a sum may be infinite, so that no candidate would
// be better than the first. (ggml loses such a group without a word.) Values are up to
// 1.125, and the square of that, with all rounding errors, is below 2.
func (g *iq1Group) overflows() bool {
	var total float32
	for i, v := range g.x {
		total += magnitude(float32(g.w[i] * v))
	}
	return !finite32(float32(float32(total*total) * 2))
}

// iq1Block is the state of a block while it is encoded.
type iq1Block struct {
	weights [superBlock]float32
	scales  [16]float32
	indices [32]uint16
	downs   [16]uint8
}

func encodeIQ1S(dst []byte, row, weights []float32) {
	var b iq1Block
	g := iq1Group{book: bookIQ1()}
	for at := 0; at < len(row); at += superBlock {
		b.encodeS(dst[:50], row[at:][:superBlock], weights[at:][:superBlock], &g)
		dst = dst[50:]
	}
}

// encodeS finds and stores a block of IQ1_S. One that can't be encoded gets an infinite
// scale.
func (b *iq1Block) encodeS(dst []byte, x, weights []float32, g *iq1Group) {
	kernel.Importance(b.weights[:], x, weights, float32(2*sumSquares(x))/superBlock)
	clear(b.indices[:])
	var largest float32
	for i := range 8 {
		g.x, g.w = x[32*i:][:32], b.weights[32*i:][:32]
		b.scales[i], b.downs[i] = 0, 0
		if !g.searchS() {
			continue
		}
		if g.overflows() || !g.snap(b.indices[4*i:][:4]) {
			largest = float32(math.Inf(1))
			break
		}
		b.scales[i], b.downs[i] = g.scale, g.downs&1
		largest = max(largest, g.scale)
	}
	d := largest / 15
	putHalf(dst, float32(d*1.125))
	inverseD := 1 / d
	for i := range 8 {
		word := uint16(0)
		if largest != 0 {
			word = uint16(gridLevel(float32(inverseD*b.scales[i]), 7)|b.downs[i]<<3) << 12
		}
		for k, index := range b.indices[4*i:][:4] {
			dst[2+4*i+k] = byte(index)
			word |= index >> 8 << (3 * k)
		}
		binary.LittleEndian.PutUint16(dst[34+2*i:], word)
	}
}

// searchS looks for boundaries and a shift of 32 elements. It returns false if there are
// none.
func (g *iq1Group) searchS() bool {
	if largest, _ := peak(g.x); largest < negligibleIQ1S {
		return false
	}
	g.sort()
	var wx, w [33]float32 // sums over beginnings of the sorted elements
	for j, i := range g.order {
		wx[j+1] = wx[j] + float32(g.w[i]*g.x[i])
		w[j+1] = w[j] + g.w[i]
	}
	fit := kernel.FitTernary(&wx, &w)
	fit.Downs *= 0xff
	g.settle(fit)
	return fit.Found
}

func encodeIQ1M(dst []byte, row, weights []float32) {
	var b iq1Block
	g := iq1Group{book: bookIQ1()}
	for at := 0; at < len(row); at += superBlock {
		b.encodeM(dst[:56], row[at:][:superBlock], weightsOf(weights, at, superBlock), &g)
		dst = dst[56:]
	}
}

// encodeM finds and stores a block of IQ1_M. One that can't be encoded gets an infinite
// scale.
func (b *iq1Block) encodeM(dst []byte, x, weights []float32, g *iq1Group) {
	if weights != nil {
		kernel.Importance(b.weights[:], x, weights, float32(2*sumSquares(x))/superBlock)
	} else {
		squares(b.weights[:], x, 0)
	}
	clear(b.indices[:])
	clear(dst)
	var largest float32
	for i := range 16 {
		g.x, g.w = x[16*i:][:16], b.weights[16*i:][:16]
		b.scales[i], b.downs[i] = 0, 0
		if !g.searchM() {
			continue
		}
		if g.overflows() || !g.snap(b.indices[2*i:][:2]) {
			putHalfIQ1M(dst, float32(math.Inf(1)))
			return
		}
		b.scales[i], b.downs[i] = g.scale, g.downs&3
		largest = max(largest, g.scale)
	}
	if largest != 0 {
		putHalfIQ1M(dst, float32(b.round(dst[48:], x, largest/15)*1.1125))
	} else {
		clear(b.downs[:])
	}
	for i, down := range b.downs {
		low, high := b.indices[2*i], b.indices[2*i+1]
		dst[2*i], dst[2*i+1] = byte(low), byte(high)
		dst[32+i] = byte(low>>8|high>>8<<4) | down&1<<3 | down>>1<<7
	}
}

// round stores the scales of the groups as integers times d, and returns the d that
// fits best with those.
func (b *iq1Block) round(dst []byte, x []float32, d float32) float32 {
	inverseD := 1 / d
	grid := gridIQ1()
	var xq, qq float32
	for i, scale := range b.scales {
		l := gridLevel(float32(inverseD*scale), 7)
		word := dst[i/4*2:][:2]
		binary.LittleEndian.PutUint16(word, binary.LittleEndian.Uint16(word)|uint16(l)<<(3*(i%4)))
		for j, v := range x[16*i:][:16] {
			values := iq1Values(b.downs[i]>>(j/8)&1 != 0)
			q := float32(values[grid[b.indices[2*i+j/8]][j%8]+1] * float32(2*int32(l)+1))
			wq := float32(b.weights[16*i+j] * q)
			xq += float32(wq * v)
			qq += float32(wq * q)
		}
	}
	if qq > 0 {
		return xq / qq
	}
	return d
}

// putHalfIQ1M spreads the scale of a block over the top nibbles of the words of scales.
func putHalfIQ1M(block []byte, d float32) {
	for i := range 4 {
		block[49+2*i] |= byte(float32ToHalf(d) >> (4 * i) & 15 << 4)
	}
}

// searchM looks for boundaries and two shifts of 16 elements. It returns false if there
// are none.
func (g *iq1Group) searchM() bool {
	if largest, _ := peak(g.x); largest < negligibleIQ1M {
		return false
	}
	g.sort()
	var wx, w [2][17]float32 // sums over beginnings of the sorted elements, of each half
	for j, i := range g.order[:16] {
		for h := range wx {
			wx[h][j+1], w[h][j+1] = wx[h][j], w[h][j]
		}
		wx[i/8][j+1] += float32(g.w[i] * g.x[i])
		w[i/8][j+1] += g.w[i]
	}
	fit := kernel.FitTernaryPair(&wx, &w)
	g.settle(fit)
	return fit.Found
}
