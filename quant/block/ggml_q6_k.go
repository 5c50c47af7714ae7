package block

import (
	"encoding/binary"
	"math"

	"github.com/loratool/loratool/internal/kernel"
)

// Q6_K: 16 groups of 16, x = d s (q-32) with signed 8-bit s and 6-bit q.
//
//	128 bytes low four bits of q, 64 bytes upper two, 16 bytes s, d
//
// Each half of the block has 64 bytes of low bits, elements 0..63 in the low nibbles
// and 64..127 in the high ones, and 32 bytes of upper bits, 32 elements to every
// two bits.
//
// Q8_K: x = d q, with float32 d.
//
//	d, 256 signed bytes, 16 sums of 16 of them

func decodeQ6K(dst []float32, src []byte) {
	for ; len(src) > 0; dst, src = dst[superBlock:], src[210:] {
		d, scales := half(src[208:]), src[192:208]
		for g := range 16 {
			scale := d * float32(int8(scales[g]))
			part, at := g/8, g%8*16 // the half of the block, and the place in it
			low, high := src[64*part+at%64:][:16], src[128+32*part+at%32:][:16]
			lowShift, highShift := at/64*4, at/32*2
			out := dst[16*g:][:16]
			for j := range out {
				q := low[j]>>lowShift&15 | high[j]>>highShift&3<<4
				out[j] = scale * float32(int32(q)-32)
			}
		}
	}
}

// encodeQ6K maps the scale of the largest magnitude to -128. The weight of an element is
// that of its column alone, or its square.
func encodeQ6K(dst []byte, row, weights []float32) {
	var g groups16
	for at := 0; at < len(row); at += superBlock {
		x := row[at:][:superBlock]
		w := g.elementWeights[:]
		if weights == nil {
			for i, v := range x {
				w[i] = v * v
			}
		} else {
			w = weights[at:][:superBlock]
		}
		kernel.FitSymmetric(g.codes[:], g.scales[:], x, w, 32)
		g.put6(dst[:210], x)
		dst = dst[210:]
	}
}

func (g *groups16) put6(dst []byte, x []float32) {
	size, scale := peak(g.scales[:])
	if size < negligible {
		clear(dst)
		return
	}
	inverseScale := -128 / scale
	putHalf(dst[208:], 1/inverseScale)
	d, scales := half(dst[208:]), dst[192:208]
	for j, s := range g.scales {
		code := int8(min(nearest(float32(inverseScale*s)), 127))
		scales[j] = byte(code)
		g.scales[j] = d * float32(code)
	}
	kernel.Recode(g.codes[:], g.scales[:], nil, x, -32, 31)
	for part := range 2 {
		low, high, c := dst[64*part:][:64], dst[128+32*part:][:32], g.codes[128*part:][:128]
		for j := range low {
			low[j] = c[j]&15 | c[j+64]<<4
		}
		for j := range high {
			high[j] = c[j]>>4 | c[j+32]>>4<<2 | c[j+64]>>4<<4 | c[j+96]>>4<<6
		}
	}
}

func decodeQ8K(dst []float32, src []byte) {
	for ; len(src) > 0; dst, src = dst[superBlock:], src[292:] {
		d, out := math.Float32frombits(binary.LittleEndian.Uint32(src)), dst[:superBlock]
		for j, b := range src[4:260] {
			out[j] = d * float32(int8(b))
		}
	}
}

func finiteQ8K(block []byte) bool {
	return finite32(math.Float32frombits(binary.LittleEndian.Uint32(block)))
}
