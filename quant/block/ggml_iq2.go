package block

import "encoding/binary"

// The encoders of the IQ2 types; see ggml_iq.go for their layout.

var (
	searchIQ2XXS = gridSearch{
		book: bookIQ2XXS, group: 32, spans: gridSpans(3, 6, 0.1),
		negligible: negligible, sigma2: 1, evenSigns: true, fudge: 1, fit: true,
	}
	searchIQ2XS = gridSearch{
		book: bookIQ2XS, group: 16, spans: gridSpans(3, 9, 0.1),
		negligible: negligible, sigma2: 1, evenSigns: true, fudge: 1,
	}
	searchIQ2S = gridSearch{
		book: bookIQ2S, group: 16, spans: gridSpans(3, 9, 0.1),
		negligible: 1e-8, sigma2: 2, fudge: 0.9875, without: raisedSquares, keep: true,
	}
)

// raisedSquares weighs elements by their squares, and a quarter of sigma2 more.
func raisedSquares(weights, x []float32, sigma2 float32) {
	quarter := float32(0.25 * sigma2)
	for i, v := range x {
		weights[i] = quarter + float32(v*v)
	}
}

func encodeIQ2XXS(dst []byte, row, weights []float32) {
	b := newGridBlock(&searchIQ2XXS)
	for at := 0; at < len(row); at += superBlock {
		b.encode(row[at:][:superBlock], weightsOf(weights, at, superBlock))
		putHalf(dst, b.d)
		for g := range 8 {
			codes := dst[2+8*g:][:8]
			for l := range 4 {
				codes[l] = byte(b.indices[4*g+l])
			}
			binary.LittleEndian.PutUint32(codes[4:], b.signsAndScale(g))
		}
		dst = dst[66:]
	}
}

// signsAndScale returns the word of a group of 32: four times seven signs, and the scale.
func (b *gridBlock) signsAndScale(g int) uint32 {
	word := uint32(b.scales[g]) << 28
	for l, signs := range b.signs[4*g:][:4] {
		word |= uint32(signs&127) << (7 * l)
	}
	return word
}

func encodeIQ2XS(dst []byte, row, weights []float32) {
	b := newGridBlock(&searchIQ2XS)
	for at := 0; at < len(row); at += superBlock {
		b.encode(row[at:][:superBlock], weightsOf(weights, at, superBlock))
		putHalf(dst, b.d)
		for l, index := range b.indices[:32] {
			binary.LittleEndian.PutUint16(dst[2+2*l:], index|uint16(b.signs[l]&127)<<9)
		}
		b.putScales(dst[66:74])
		dst = dst[74:]
	}
}

// putScales stores two scales in a byte.
func (b *gridBlock) putScales(dst []byte) {
	for i := range dst {
		dst[i] = b.scales[2*i] | b.scales[2*i+1]<<4
	}
}

func encodeIQ2S(dst []byte, row, weights []float32) {
	b := newGridBlock(&searchIQ2S)
	for at := 0; at < len(row); at += superBlock {
		b.encode(row[at:][:superBlock], weightsOf(weights, at, superBlock))
		putHalf(dst, b.d)
		upper := dst[66:74]
		clear(upper)
		for l, index := range b.indices[:32] {
			dst[2+l] = byte(index)
			upper[l/4] |= byte(index>>8) << (l % 4 * 2)
		}
		copy(dst[34:66], b.signs[:])
		b.putScales(dst[74:82])
		dst = dst[82:]
	}
}
