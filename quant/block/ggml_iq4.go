package block

import (
	"encoding/binary"

	"github.com/loratool/loratool/internal/kernel"
)

// Types of 4-bit codes that stand for uneven steps.
//
//	IQ4_NL  32 elements         x = d T(q)          d, 16 bytes
//	IQ4_XS  8 groups of 32      x = d (s-32) T(q)   d, 2 bytes upper bits of s, 4 bytes low bits, 128 bytes
//
// Element j of the first half of 32 is in the low nibble of byte j. Groups 2i and
// 2i+1 have the nibbles of byte i for the low four bits of their 6-bit scales, and group g bits 2g and
// 2g+1 of the word for the upper two.

func decodeIQ4NL(dst []float32, src []byte) {
	for ; len(src) > 0; dst, src = dst[32:], src[18:] {
		decodeIQ4(dst[:32], src[2:18], half(src))
	}
}

func decodeIQ4XS(dst []float32, src []byte) {
	for ; len(src) > 0; dst, src = dst[superBlock:], src[136:] {
		d, upper := half(src), binary.LittleEndian.Uint16(src[2:])
		for g := range 8 {
			s := int32(src[4+g/2]>>(g%2*4)&15) | int32(upper>>(2*g)&3<<4)
			decodeIQ4(dst[32*g:][:32], src[8+16*g:][:16], d*float32(s-32))
		}
	}
}

func decodeIQ4(dst []float32, codes []byte, scale float32) {
	low, high := dst[:16], dst[16:32]
	for j, b := range codes[:16] {
		low[j] = scale * kernel.IQ4Values[b&15]
		high[j] = scale * kernel.IQ4Values[b>>4]
	}
}

func encodeIQ4NL(dst []byte, row, weights []float32) {
	var g groupsIQ4
	for at := 0; at < len(row); at += superBlock {
		x := row[at:min(at+superBlock, len(row))]
		w := g.weights[:len(x)]
		for j := 0; j < len(x); j += 32 {
			block := x[j:][:32]
			iq4Weights(w[j:][:32], block, weightsOf(weights, at+j, 32), float32(sumSquares(block)*(2.0/32)))
		}
		scales := g.scales[:len(x)/32]
		kernel.FitIQ4(scales, x, w)
		for j, d := range scales {
			putHalf(dst, d)
			putIQ4(dst[2:18], x[32*j:][:32], inverse(d))
			dst = dst[18:]
		}
	}
}

// groupsIQ4 is the state of eight groups of 32, as many as vectors take at once, while
// they are encoded.
type groupsIQ4 struct {
	weights [superBlock]float32
	scales  [8]float32
}

// encodeIQ4XS maps the scale of the largest magnitude to -32.
func encodeIQ4XS(dst []byte, row, weights []float32) {
	var g groupsIQ4
	for at := 0; at < len(row); at += superBlock {
		x := row[at:][:superBlock]
		sigma2 := float32(sumSquares(x) * (2.0 / superBlock))
		iq4Weights(g.weights[:], x, weightsOf(weights, at, superBlock), sigma2)
		kernel.FitIQ4(g.scales[:], x, g.weights[:])
		_, scale := peak(g.scales[:])
		d := -scale / 32
		id := inverse(d)
		clear(dst[:8])
		putHalf(dst, d)
		var upper uint16
		for j, s := range g.scales {
			l := clamp(nearest(float32(id*s)), -32, 31)
			putIQ4(dst[8+16*j:][:16], x[32*j:][:32], inverse(float32(d*float32(l))))
			l += 32
			dst[4+j/2] |= byte(l & 15 << (j % 2 * 4))
			upper |= uint16(l >> 4 << (2 * j))
		}
		binary.LittleEndian.PutUint16(dst[2:], upper)
		dst = dst[136:]
	}
}

// iq4Weights weighs elements by their squares if columns have no weights.
func iq4Weights(dst, x, weights []float32, sigma2 float32) {
	if weights != nil {
		kernel.Importance(dst, x, weights, sigma2)
		return
	}
	for i, v := range x {
		dst[i] = v * v
	}
}

func putIQ4(dst []byte, x []float32, inverseScale float32) {
	var codes [32]uint8
	kernel.RecodeIQ4(codes[:], x, inverseScale)
	putNibbles(dst, &codes)
}
