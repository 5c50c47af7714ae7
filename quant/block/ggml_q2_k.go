package block

import "github.com/loratool/loratool/internal/kernel"

// Q2_K: 16 groups of 16, x = d s q - m o with 4-bit s and o, 2-bit q.
//
//	16 bytes s | o<<4, 64 bytes q, d, m

func decodeQ2K(dst []float32, src []byte) {
	for ; len(src) > 0; dst, src = dst[superBlock:], src[84:] {
		d, m, codes := half(src[80:]), half(src[82:]), src[16:80]
		for g, s := range src[:16] {
			scale, offset := d*float32(s&15), float32(m*float32(s>>4))
			out, from, shift := dst[16*g:][:16], codes[g/8*32+g%2*16:][:16], g/2%4*2
			for j, b := range from {
				out[j] = float32(scale*float32(b>>shift&3)) - offset
			}
		}
	}
}

func encodeQ2K(dst []byte, row, weights []float32) {
	var g groups16
	for at := 0; at < len(row); at += superBlock {
		x, scales := row[at:][:superBlock], dst[:16]
		g.search2(x, weightsOf(weights, at, superBlock))
		var d, m float32
		if weights == nil {
			d, m = g.round2(scales)
		} else {
			d, m = g.fit2(scales)
		}
		putHalf(dst[80:], d)
		putHalf(dst[82:], m)
		d, m = half(dst[80:]), half(dst[82:])
		for j, s := range scales {
			g.scales[j], g.offsets[j] = d*float32(s&15), float32(m*float32(s>>4))
		}
		kernel.Recode(g.codes[:], g.scales[:], g.offsets[:], x, 0, 3)
		putTwoBits(dst[16:80], &g.codes)
		dst = dst[84:]
	}
}

// groups16 is the state of a block in groups of 16 while it is encoded.
type groups16 struct {
	codes          [superBlock]uint8
	scales         [16]float32
	offsets        [16]float32 // negative minima
	weights        [16]float32 // sum of the weights of each group
	elementWeights [superBlock]float32
}

// search2 finds scale, offset and codes 0..3 of each group. Elements count by their
// magnitude if columns have no weights.
func (g *groups16) search2(x, weights []float32) {
	search := &affine3.weighted
	if weights == nil {
		search = &affine3.plain
		for i, v := range x {
			g.elementWeights[i] = magnitude(v)
		}
	} else {
		g.weigh(x, weights, sumSquares(x)/superBlock)
	}
	kernel.FitAffine(g.codes[:], g.scales[:], g.offsets[:], x, g.elementWeights[:], search)
}

// weigh finds the weights of elements and groups.
func (g *groups16) weigh(x, weights []float32, sigma2 float32) {
	kernel.Importance(g.elementWeights[:], x, weights, sigma2)
	for j := range g.weights {
		g.weights[j] = sum(g.elementWeights[16*j:][:16])
	}
}

// round2 stores scales and offsets as integers that map the largest to 15.
func (g *groups16) round2(dst []byte) (d, m float32) {
	scale, offset := maxima(g.scales[:], g.offsets[:])
	clear(dst)
	if scale > 0 {
		inverseScale := 15 / scale
		for j, s := range g.scales {
			dst[j] = uint8(nearest(float32(inverseScale * s)))
		}
	}
	if offset > 0 {
		inverseScale := 15 / offset
		for j, o := range g.offsets {
			dst[j] |= uint8(nearest(float32(inverseScale*o)) << 4)
		}
	}
	return scale / 15, offset / 15
}

// fit2 stores scales and offsets as the integers that fit best, each group counting
// by its weights.
func (g *groups16) fit2(dst []byte) (d, m float32) {
	var scales, offsets [16]uint8
	d = fitPositive(scales[:], g.scales[:], g.weights[:], 15)
	m = fitPositive(offsets[:], g.offsets[:], g.weights[:], 15)
	for j := range dst {
		dst[j] = scales[j] | offsets[j]<<4
	}
	return d, m
}
