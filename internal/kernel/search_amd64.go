//go:build !noasm

package kernel

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
