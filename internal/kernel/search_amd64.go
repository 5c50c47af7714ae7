//go:build !noasm

package kernel

import "math"

// searchState and searchRoom are what eight groups need while they are searched: the
// figures of each, and their numbers, weights and codes with a row for each place.
type (
	searchState = [8][8]float32
	searchRoom  = [3 * maxGroup][8]float32
)

// eights returns how many groups, a multiple of eight, vectors take.
func eights(groups, size int) int {
	if current() == generic || size%8 != 0 {
		return 0
	}
	return groups &^ 7
}

// fitAffineEights fits leading groups and returns how many.
func fitAffineEights(codes []uint8, scales, offsets, x, w []float32, size int, search *AffineSearch) int {
	groups, count := eights(len(scales), size), len(search.Spans)
	if groups == 0 || count == 0 {
		return 0
	}
	var room searchRoom
	for g := 0; g < groups; g += 8 {
		at := g * size
		x, w, codes := x[at:][:8*size], w[at:][:8*size], codes[at:][:8*size]
		var state searchState
		if search.Absolute {
			fitAffineAbsoluteAVX2(&state, &room, &x[0], &w[0], size/8, &search.Spans[0], count, search.Most)
		} else {
			fitAffineAVX2(&state, &room, &x[0], &w[0], size/8, &search.Spans[0], count, search.Most)
		}
		pickAVX2(&codes[0], &x[0], &state[2], &state[3], size/8, 0, search.Most)
		for i := range 8 {
			scales[g+i], offsets[g+i] = canonical(state[0][i]), canonical(-state[1][i])
		}
	}
	return groups
}

// fitSymmetricEights fits leading groups and returns how many.
func fitSymmetricEights(codes []uint8, scales, x, w []float32, size int, n int32, numerators *[20]float32) int {
	groups := eights(len(scales), size)
	if groups == 0 {
		return 0
	}
	var room searchRoom
	for g := 0; g < groups; g += 8 {
		at := g * size
		x, w, codes := x[at:][:8*size], w[at:][:8*size], codes[at:][:8*size]
		var state searchState
		var low [8]float32
		fitSymmetricAVX2(&state, &room, &x[0], &w[0], size/8, numerators, -n, n-1)
		pickAVX2(&codes[0], &x[0], &low, &state[1], size/8, -n, n-1)
		for i, scale := range state[0] {
			scales[g+i] = canonical(scale)
			if state[3][i] < negligible {
				scales[g+i] = 0
				clear(codes[i*size:][:size])
			}
		}
	}
	return groups
}

// fitDescentEights fits leading groups and returns how many.
func fitDescentEights(codes []uint8, scales, x []float32, size int, n int32) int {
	groups := eights(len(scales), size)
	if groups == 0 {
		return 0
	}
	var room searchRoom
	for g := 0; g < groups; g += 8 {
		x, codes := x[g*size:][:8*size], codes[g*size:][:8*size]
		var state searchState
		fitDescentAVX2(&state, &room, &codes[0], &x[0], size/8, -n, n-1)
		for i, scale := range state[0] {
			scales[g+i] = canonical(scale)
			if state[3][i] < negligible {
				scales[g+i] = 0
				clear(codes[i*size:][:size])
			}
		}
	}
	return groups
}

// fitIQ4Eights fits leading groups and returns how many.
func fitIQ4Eights(scales, x, w []float32, size int) int {
	groups := eights(len(scales), size)
	if groups == 0 {
		return 0
	}
	var room searchRoom
	for g := 0; g < groups; g += 8 {
		at := g * size
		x, w := x[at:][:8*size], w[at:][:8*size]
		var state searchState
		fitIQ4AVX2(&state, &room, &x[0], &w[0], size/8, &iq4Numerators)
		for i, scale := range state[0] {
			scales[g+i] = canonical(scale)
			if state[3][i] < negligible {
				scales[g+i] = 0
			}
		}
	}
	return groups
}

// recodeIQ4Blocks chooses leading codes and returns how many, a multiple of eight.
func recodeIQ4Blocks(codes []uint8, x []float32, inverseScale float32) int {
	if current() == generic {
		return 0
	}
	codes = codes[:len(x)]
	done := 0
	for n := range chunks(len(x)) {
		recodeIQ4AVX2(&codes[done], &x[done], n/8, inverseScale)
		done += n
	}
	return done
}

// importanceBlocks weighs leading numbers and returns how many, a multiple of eight.
func importanceBlocks(dst, x, w []float32, sigma2 float32) int {
	if current() == generic {
		return 0
	}
	dst, w = dst[:len(x)], w[:len(x)]
	done := 0
	for n := range chunks(len(x)) {
		importanceAVX2(&dst[done], &x[done], &w[done], n/8, sigma2)
		done += n
	}
	return done
}

// recodeBlocks chooses leading codes of a group and returns how many, a multiple of
// eight.
func recodeBlocks(codes []uint8, x []float32, scale, offset float32, least, most int32) int {
	n := len(x) &^ 7
	if current() == generic || n == 0 {
		return 0
	}
	codes = codes[:n]
	recodeAVX2(&codes[0], &x[0], n/8, scale, offset, least, most)
	return n
}

// gridRoom is what eight candidates of a search over a grid need: what their levels stand
// for, with a row for each place, and behind it the rows named here. Some hold integers.
type gridRoom = [39][8]float32

const (
	gridNumbers  = 32 + iota // of a tuple
	gridOutside              // bits of tuples
	gridLost                 // bits of tuples
	gridProducts             // sum w x q
	gridSquares              // sum w q²
	gridInverse
	gridScale
)

// gridEights tries all candidates, eight at a time.
func gridEights(f *gridFit, x, w, roots []float32, grid *Grid, spans []float32, extent float32) bool {
	if current() == generic || len(x) == 0 {
		return false
	}
	var room gridRoom
	for len(spans) > 0 {
		n := min(len(spans), 8)
		for i, span := range spans[:n] {
			room[gridInverse][i] = span / extent
			room[gridScale][i] = 1 / room[gridInverse][i]
		}
		tryGrid(&room, n, x, w, roots, grid)
		best := -1
		for i := range n {
			f.Lost = f.Lost || math.Float32bits(room[gridLost][i]) != 0
			if f.better(room[gridProducts][i], room[gridSquares][i]) {
				f.Outside = uint8(math.Float32bits(room[gridOutside][i]))
				best = i
			}
		}
		if best >= 0 {
			takeLevels(f.levels, &room, best, 0xff, grid.width)
		}
		spans = spans[n:]
	}
	return true
}

// regridOne is one candidate, of which a set of tuples counts.
func regridOne(levels []uint8, x, w, roots []float32, grid *Grid, scale float32, set uint8) (lost uint8, done bool) {
	if current() == generic || len(x) == 0 {
		return 0, false
	}
	var room gridRoom
	room[gridInverse][0], room[gridScale][0] = 1/scale, scale
	tryGrid(&room, 1, x, w, roots, grid)
	takeLevels(levels, &room, 0, set, grid.width)
	return uint8(math.Float32bits(room[gridLost][0])) & set, true
}

// tryGrid chooses levels for n candidates.
func tryGrid(room *gridRoom, n int, x, w, roots []float32, grid *Grid) {
	clear(room[gridOutside][:])
	clear(room[gridLost][:])
	if grid.width == 8 {
		grid8AVX2(room, &x[0], &w[0], &roots[0], len(x)/8, n, &grid.places[0], &grid.lists[0])
	} else {
		grid4AVX2(room, &x[0], &w[0], &roots[0], len(x)/4, n, &grid.places[0], &grid.lists[0])
	}
}

// takeLevels takes those of a candidate, for a set of tuples.
func takeLevels(levels []uint8, room *gridRoom, candidate int, set uint8, width int) {
	for i := range levels {
		if set>>(i/width)&1 != 0 {
			levels[i] = uint8(int32(room[i][candidate]) / 2)
		}
	}
}

// nearestTupleBlocks searches leading tuples, a multiple of eight, and returns how many, and
// the place of the best or -1.
func nearestTupleBlocks(list []uint32, x, w []float32, scaled *[8]float32, least *float32) (done, at int) {
	done = len(list) &^ 7
	if current() == generic || done == 0 {
		return 0, -1
	}
	if len(x) == 8 {
		at = nearestTuple8AVX2(&list[0], done/8, &x[0], &w[0], scaled, least)
	} else {
		at = nearestTuple4AVX2(&list[0], done/8, &x[0], &w[0], scaled, least)
	}
	if *least == math.MaxFloat32 {
		at = -1
	}
	return done, at
}

// ternaryRoom holds what a scan for better places needs, see the assembly. Behind the
// last place stands NaN, which is never better.
type ternaryRoom = [6][40]float32

// ternaryVectors tries eight second places at a time. Those that are better than the best
// so far are tried again one by one, as the best changes.
func ternaryVectors(f *TernaryFit, wx, w *[33]float32) bool {
	if current() == generic {
		return false
	}
	var room ternaryRoom
	copy(room[0][:], wx[:])
	copy(room[1][:], w[:])
	for i, v := range wx {
		lastX, lastW := wx[32]-v, w[32]-w[i]
		room[2][i] = lastX * ternaryUp[2]
		room[3][i] = float32(lastW*ternaryUp[2]) * ternaryUp[2]
		room[4][i] = lastX * ternaryDown[2]
		room[5][i] = float32(lastW*ternaryDown[2]) * ternaryDown[2]
	}
	for i := len(wx); i < len(room[0]); i++ {
		room[3][i], room[5][i] = float32(math.NaN()), float32(math.NaN())
	}
	for first := range wx {
		for second := first; second < len(wx); second++ {
			second = ternaryAVX2(&room, first, second, f.best)
			if second < len(wx) {
				f.tryPair(wx, w, first, second)
			}
		}
	}
	return true
}

// ternaryPairVectors does the same for halves.
func ternaryPairVectors(f *TernaryFit, wx, w *[2][17]float32) bool {
	if current() == generic {
		return false
	}
	var room ternaryRoom
	for h := range wx {
		copy(room[2*h][:], wx[h][:])
		copy(room[2*h+1][:], w[h][:])
		for i := 17; i < 24; i++ {
			room[2*h+1][i] = float32(math.NaN())
		}
	}
	up, down := ternaryUp[2], ternaryDown[2]
	for first := range 17 {
		for h := range wx {
			wx, w, shared := &wx[h], &w[h], room[4][5*h:][:5]
			shared[0] = wx[first]
			shared[1] = wx[16] * up
			shared[2] = wx[16] * down
			shared[3] = float32(float32(w[16]*up)*up) + float32(w[first]*0.75)
			shared[4] = float32(float32(w[16]*down)*down) + float32(w[first]*1.25)
		}
		for second := first; second < 17; second++ {
			second = ternaryPairAVX2(&room, second, f.best)
			if second < 17 {
				f.tryPairs(wx, w, first, second)
			}
		}
	}
	return true
}
