package block

import "github.com/loratool/loratool/internal/kernel"

// Q3_K: 16 groups of 16, x = d (s-32) (q-4) with 6-bit s and 3-bit q.
//
//	32 bytes third bits of q, 64 bytes low bits, 12 bytes s, d
//
// Bit i of byte j of the first are element 32i+j. The low four bits of s are in
// the nibbles of 8 bytes, those of group j+8 above those of group j; the upper two
// bits of group j are bits 2(j/4) and the next of byte 8 + j%4.

func decodeQ3K(dst []float32, src []byte) {
	for ; len(src) > 0; dst, src = dst[superBlock:], src[110:] {
		d, thirds, codes, scales := half(src[108:]), src[:32], src[32:96], src[96:108]
		for g := range 16 {
			scale := d * float32(scale6(scales, g)-32)
			out, from, shift := dst[16*g:][:16], codes[g/8*32+g%2*16:][:16], g/2%4*2
			third, bit := thirds[g%2*16:][:16], g/2
			for j, b := range from {
				out[j] = scale * float32(int32(b>>shift&3|third[j]>>bit&1<<2)-4)
			}
		}
	}
}

func scale6(scales []byte, g int) int32 {
	low, high := scales[g%8]>>(g/8*4)&15, scales[8+g%4]>>(g/4*2)&3
	return int32(low | high<<4)
}

// putScales6 stores 6-bit integers.
func putScales6(dst []byte, scales *[16]uint8) {
	clear(dst[:12])
	for g, s := range scales {
		dst[g%8] |= s & 15 << (g / 8 * 4)
		dst[8+g%4] |= s >> 4 << (g / 4 * 2)
	}
}

func encodeQ3K(dst []byte, row, weights []float32) {
	var g groups16
	for at := 0; at < len(row); at += superBlock {
		x := row[at:][:superBlock]
		var scales [16]uint8
		var d float32
		if weights == nil {
			d = g.round3(x, &scales)
		} else {
			d = g.fit3(x, weights[at:][:superBlock], &scales)
		}
		putScales6(dst[96:108], &scales)
		putHalf(dst[108:], d)
		d = half(dst[108:])
		for j, s := range scales {
			g.scales[j] = d * float32(int32(s)-32)
		}
		kernel.Recode(g.codes[:], g.scales[:], nil, x, -4, 3)
		putThirdBits(dst[:32], &g.codes)
		putTwoBits(dst[32:96], &g.codes)
		dst = dst[110:]
	}
}

// round3 finds scales and codes 0..7 of each group, and maps the scale of the largest
// magnitude to -32. All scales stay 0 if that is 0.
func (g *groups16) round3(x []float32, scales *[16]uint8) (d float32) {
	kernel.FitDescent(g.codes[:], g.scales[:], x, 4)
	_, scale := peak(g.scales[:])
	if scale == 0 {
		return 0
	}
	inverseScale := -32 / scale
	for j, s := range g.scales {
		scales[j] = uint8(clamp(nearest(float32(inverseScale*s)), -32, 31) + 32)
	}
	return 1 / inverseScale
}

// fit3 is round3 with weights, by the search that also fits the codes.
func (g *groups16) fit3(x, weights []float32, scales *[16]uint8) (d float32) {
	g.weigh(x, weights, float32(2*sumSquares(x))/superBlock)
	kernel.FitSymmetric(g.codes[:], g.scales[:], x, g.elementWeights[:], 4)
	var one [1]float32
	kernel.FitSymmetric(scales[:], one[:], g.scales[:], g.weights[:], 32)
	return one[0]
}

// putThirdBits stores bit 2 of 256 codes.
func putThirdBits(dst []byte, codes *[superBlock]uint8) {
	for j := range 32 {
		var b byte
		for i := range 8 {
			b |= codes[32*i+j] >> 2 & 1 << i
		}
		dst[j] = b
	}
}
