package block

import "github.com/loratool/loratool/internal/kernel"

// Q4_K and Q5_K: 8 groups of 32, x = d s q - m o with 6-bit s and o, 4- or 5-bit q.
//
//	Q4_K  d, m, 12 bytes s and o, 128 bytes q
//	Q5_K  d, m, 12 bytes s and o, 32 bytes fifth bits of q, 128 bytes low bits
//
// Each 32 bytes of q hold group 2i in the low nibbles and group 2i+1 in the high
// ones. The fifth bits of group g are bit g of the 32 bytes.

func decodeQ4K(dst []float32, src []byte) {
	for ; len(src) > 0; dst, src = dst[superBlock:], src[144:] {
		d, m, pairs := half(src), half(src[2:]), src[4:16]
		for g := range 8 {
			s, o := pair6(pairs, g)
			scale, offset := d*float32(s), float32(m*float32(o))
			out, shift := dst[32*g:][:32], g%2*4
			for j, b := range src[16+g/2*32:][:32] {
				out[j] = float32(scale*float32(b>>shift&15)) - offset
			}
		}
	}
}

func decodeQ5K(dst []float32, src []byte) {
	for ; len(src) > 0; dst, src = dst[superBlock:], src[176:] {
		d, m, pairs, fifths := half(src), half(src[2:]), src[4:16], src[16:48]
		for g := range 8 {
			s, o := pair6(pairs, g)
			scale, offset := d*float32(s), float32(m*float32(o))
			out, shift := dst[32*g:][:32], g%2*4
			for j, b := range src[48+g/2*32:][:32] {
				out[j] = float32(scale*float32(b>>shift&15|fifths[j]>>g&1<<4)) - offset
			}
		}
	}
}

// pair6 returns scale and offset of group g, 6 bits each. The first four groups have
// bytes 0..3 and 4..7 for them, but for two upper bits in each; those belong to
// the other four groups, whose low bits share bytes 8..11.
func pair6(pairs []byte, g int) (scale, offset byte) {
	if g < 4 {
		return pairs[g] & 63, pairs[g+4] & 63
	}
	return pairs[g+4]&15 | pairs[g-4]>>6<<4, pairs[g+4]>>4 | pairs[g]>>6<<4
}

func putPairs6(dst []byte, scales, offsets *[8]uint8) {
	copy(dst, scales[:4])
	copy(dst[4:], offsets[:4])
	for g := 4; g < 8; g++ {
		dst[g+4] = scales[g]&15 | offsets[g]<<4
		dst[g-4] |= scales[g] >> 4 << 6
		dst[g] |= offsets[g] >> 4 << 6
	}
}

func encodeQ4K(dst []byte, row, weights []float32) {
	g := groups32{search: &affine15}
	for at := 0; at < len(row); at += superBlock {
		g.encode(dst[:16], row[at:][:superBlock], weightsOf(weights, at, superBlock))
		g.putNibbles(dst[16:144])
		dst = dst[144:]
	}
}

func encodeQ5K(dst []byte, row, weights []float32) {
	g := groups32{search: &affine31}
	for at := 0; at < len(row); at += superBlock {
		g.encode(dst[:16], row[at:][:superBlock], weightsOf(weights, at, superBlock))
		g.putFifthBits(dst[16:48])
		g.putNibbles(dst[48:176])
		dst = dst[176:]
	}
}

// groups32 is the state of a block in groups of 32 while it is encoded.
type groups32 struct {
	search *affineSearches

	codes          [superBlock]uint8
	scales         [8]float32
	offsets        [8]float32 // negative minima
	weights        [8]float32 // sum of the weights of each group
	elementWeights [superBlock]float32
}

// encode finds the codes, and stores d, m, and the scales and offsets of the groups.
func (g *groups32) encode(dst []byte, x, weights []float32) {
	var scales, offsets [8]uint8
	var d, m float32
	if weights == nil {
		g.searchPlain(x)
		d, m = g.round(&scales, &offsets)
	} else {
		g.searchWeighted(x, weights)
		d, m = g.fit(&scales, &offsets)
	}
	putHalf(dst, d)
	putHalf(dst[2:], m)
	putPairs6(dst[4:16], &scales, &offsets)
	d, m = half(dst), half(dst[2:])
	for j := range g.scales {
		s, o := pair6(dst[4:16], j)
		g.scales[j], g.offsets[j] = d*float32(s), float32(m*float32(o))
	}
	kernel.Recode(g.codes[:], g.scales[:], g.offsets[:], x, 0, g.search.plain.Most)
}

// searchPlain weighs elements by their magnitude and the root mean square of the group.
func (g *groups32) searchPlain(x []float32) {
	for j := range g.scales {
		group, w := x[32*j:][:32], g.elementWeights[32*j:][:32]
		rms := sqrt32(sumSquares(group) / 32)
		for i, v := range group {
			w[i] = rms + magnitude(v)
		}
	}
	kernel.FitAffine(g.codes[:], g.scales[:], g.offsets[:], x, g.elementWeights[:], &g.search.plain)
}

func (g *groups32) searchWeighted(x, weights []float32) {
	kernel.Importance(g.elementWeights[:], x, weights, float32(2*sumSquares(x))/superBlock)
	for j := range g.weights {
		g.weights[j] = sum(g.elementWeights[32*j:][:32])
	}
	kernel.FitAffine(g.codes[:], g.scales[:], g.offsets[:], x, g.elementWeights[:], &g.search.weighted)
}

// round gives scales and offsets as integers that map the largest to 63.
func (g *groups32) round(scales, offsets *[8]uint8) (d, m float32) {
	scale, offset := maxima(g.scales[:], g.offsets[:])
	var inverseScale, inverseOffset float32
	if scale > 0 {
		inverseScale = 63 / scale
	}
	if offset > 0 {
		inverseOffset = 63 / offset
	}
	for j := range scales {
		scales[j] = min(uint8(nearest(float32(inverseScale*g.scales[j]))), 63)
		offsets[j] = min(uint8(nearest(float32(inverseOffset*g.offsets[j]))), 63)
	}
	return scale / 63, offset / 63
}

// fit gives scales and offsets as the integers that fit best, each group counting by
// its weights. A negative code, which wrapped to more than 63 (see fitPositive), is cut to
// 63 by ggml's Q5_K and to its low bits by its Q4_K.
func (g *groups32) fit(scales, offsets *[8]uint8) (d, m float32) {
	d = fitPositive(scales[:], g.scales[:], g.weights[:], 63)
	m = fitPositive(offsets[:], g.offsets[:], g.weights[:], 63)
	if g.search == &affine31 {
		for j := range scales {
			scales[j], offsets[j] = min(scales[j], 63), min(offsets[j], 63)
		}
	}
	return d, m
}

func (g *groups32) putNibbles(dst []byte) {
	for at := 0; at < 128; at += 32 {
		low, high := g.codes[2*at:][:32], g.codes[2*at+32:][:32]
		for j := range 32 {
			dst[at+j] = low[j]&15 | high[j]<<4
		}
	}
}

func (g *groups32) putFifthBits(dst []byte) {
	for j := range 32 {
		var b byte
		for i := range 8 {
			b |= g.codes[32*i+j] >> 4 & 1 << i
		}
		dst[j] = b
	}
}
