package block

import (
	"encoding/binary"

	"github.com/loratool/loratool/internal/kernel"
)

// Types of 32 elements with one scale, or a scale and a minimum. Element j of the
// first half of a block is in the low nibble of byte j, element j+16 in the high
// one; the fifth bits of the Q5 types are in a 32-bit word, bit j for element j.
//
//	Q4_0  x = d (q - 8)      d, 16 bytes
//	Q4_1  x = d q + m        d, m, 16 bytes
//	Q5_0  x = d (q - 16)     d, 4 bytes, 16 bytes
//	Q5_1  x = d q + m        d, m, 4 bytes, 16 bytes
//	Q8_0  x = d q            d, 32 signed bytes
//	Q8_1  x = d q            d, d times the sum of q, 32 signed bytes

// plainBlock is the number of elements in a block.
const plainBlock = 32

func decodeQ4_0(dst []float32, src []byte) {
	for len(src) > 0 {
		d, out := half(src), (*[plainBlock]float32)(dst)
		for j, b := range (*[16]byte)(src[2:]) {
			out[j] = d * float32(int32(b&15)-8)
			out[j+16] = d * float32(int32(b>>4)-8)
		}
		dst, src = dst[plainBlock:], src[18:]
	}
}

func decodeQ4_1(dst []float32, src []byte) {
	for len(src) > 0 {
		d, m, out := half(src), half(src[2:]), (*[plainBlock]float32)(dst)
		for j, b := range (*[16]byte)(src[4:]) {
			out[j] = float32(d*float32(b&15)) + m
			out[j+16] = float32(d*float32(b>>4)) + m
		}
		dst, src = dst[plainBlock:], src[20:]
	}
}

func decodeQ5_0(dst []float32, src []byte) {
	for len(src) > 0 {
		d, fifth, out := half(src), binary.LittleEndian.Uint32(src[2:]), (*[plainBlock]float32)(dst)
		for j, b := range (*[16]byte)(src[6:]) {
			out[j] = d * float32(int32(uint32(b&15)|fifth>>j&1<<4)-16)
			out[j+16] = d * float32(int32(uint32(b>>4)|fifth>>(j+16)&1<<4)-16)
		}
		dst, src = dst[plainBlock:], src[22:]
	}
}

func decodeQ5_1(dst []float32, src []byte) {
	for len(src) > 0 {
		d, m, out := half(src), half(src[2:]), (*[plainBlock]float32)(dst)
		fifth := binary.LittleEndian.Uint32(src[4:])
		for j, b := range (*[16]byte)(src[8:]) {
			out[j] = float32(d*float32(uint32(b&15)|fifth>>j&1<<4)) + m
			out[j+16] = float32(d*float32(uint32(b>>4)|fifth>>(j+16)&1<<4)) + m
		}
		dst, src = dst[plainBlock:], src[24:]
	}
}

func decodeQ8_0(dst []float32, src []byte) { decodeBytes(dst, src, 2) }
func decodeQ8_1(dst []float32, src []byte) { decodeBytes(dst, src, 4) }

// decodeBytes decodes blocks whose signed bytes begin at the given place.
func decodeBytes(dst []float32, src []byte, at int) {
	for len(src) > 0 {
		d, out := half(src), (*[plainBlock]float32)(dst)
		for j, b := range (*[plainBlock]byte)(src[at:]) {
			out[j] = d * float32(int8(b))
		}
		dst, src = dst[plainBlock:], src[at+plainBlock:]
	}
}

// encodeQ4_0 maps the element of the largest magnitude to code 0, that is -8.
func encodeQ4_0(dst []byte, row, weights []float32) {
	if weights == nil {
		done := kernel.EncodeQ4(dst, row)
		dst, row = dst[done/plainBlock*18:], row[done:]
	}
	encodeSymmetric(row, weights, 8, func(codes *[plainBlock]uint8, d float32) {
		putHalf(dst, d)
		putNibbles(dst[2:18], codes)
		dst = dst[18:]
	})
}

// encodeQ5_0 maps the element of the largest magnitude to code 0, that is -16.
func encodeQ5_0(dst []byte, row, weights []float32) {
	encodeSymmetric(row, weights, 16, func(codes *[plainBlock]uint8, d float32) {
		putHalf(dst, d)
		putFifthBits(dst[2:6], codes)
		putNibbles(dst[6:22], codes)
		dst = dst[22:]
	})
}

// encodeSymmetric finds the scale and the codes 0..2n-1 of each block of a row. They
// belong to the scale before it is rounded to binary16.
func encodeSymmetric(row, weights []float32, n int32, put func(codes *[plainBlock]uint8, d float32)) {
	var codes [plainBlock]uint8
	if weights == nil {
		for ; len(row) > 0; row = row[plainBlock:] {
			put(&codes, roundSymmetric(&codes, (*[plainBlock]float32)(row), n))
		}
		return
	}
	sigma2 := sumSquares(row) / float32(len(row))
	var g plainGroups
	for len(row) > 0 {
		x := g.weigh(&row, &weights, sigma2)
		kernel.FitSymmetric(g.codes[:len(x)], g.scales[:len(x)/plainBlock], x, g.weights[:len(x)], n)
		for j := range len(x) / plainBlock {
			put((*[plainBlock]uint8)(g.codes[plainBlock*j:]), g.scales[j])
		}
	}
}

// plainGroups is the state of up to eight blocks, as many as vectors take at once, while
// they are encoded by weight.
type plainGroups struct {
	codes           [8 * plainBlock]uint8
	weights         [8 * plainBlock]float32
	scales, offsets [8]float32
}

// weigh takes the next blocks of a row and finds the weights of their elements.
func (g *plainGroups) weigh(row, weights *[]float32, sigma2 float32) (x []float32) {
	n := min(len(*row), len(g.weights))
	x = (*row)[:n]
	kernel.Importance(g.weights[:n], x, (*weights)[:n], sigma2)
	*row, *weights = (*row)[n:], (*weights)[n:]
	return x
}

func roundSymmetric(codes *[plainBlock]uint8, x *[plainBlock]float32, n int32) (d float32) {
	_, element := peak(x[:])
	d = element / float32(-n)
	id := inverse(d)
	if !finite32(id) {
		// d rounds to zero as binary16, so that codes don't matter. These are the ones
		// that conversions of NaN and infinity give on x86-64.
		*codes = [plainBlock]uint8{}
		return d
	}
	for j, v := range x {
		codes[j] = uint8(min(int32(float32(v*id)+(float32(n)+0.5)), 2*n-1))
	}
	return d
}

// encodeQ4_1 maps the smallest element to 0 and the largest to 15.
func encodeQ4_1(dst []byte, row, weights []float32) {
	encodeAffine(row, weights, &affine15, func(codes *[plainBlock]uint8, d, m float32) {
		putHalf(dst, d)
		putHalf(dst[2:], m)
		putNibbles(dst[4:20], codes)
		dst = dst[20:]
	})
}

// encodeQ5_1 maps the smallest element to 0 and the largest to 31.
func encodeQ5_1(dst []byte, row, weights []float32) {
	encodeAffine(row, weights, &affine31, func(codes *[plainBlock]uint8, d, m float32) {
		putHalf(dst, d)
		putHalf(dst[2:], m)
		putFifthBits(dst[4:8], codes)
		putNibbles(dst[8:24], codes)
		dst = dst[24:]
	})
}

// encodeAffine finds the scale, the minimum and the codes of each block of a
// row. Codes belong to the scale before it is rounded to binary16.
func encodeAffine(row, weights []float32, search *affineSearches, put func(codes *[plainBlock]uint8, d, m float32)) {
	var codes [plainBlock]uint8
	if weights == nil {
		for ; len(row) > 0; row = row[plainBlock:] {
			d, m := roundAffine(&codes, (*[plainBlock]float32)(row), search.weighted.Most)
			put(&codes, d, m)
		}
		return
	}
	sigma2 := sumSquares(row) / float32(len(row))
	var g plainGroups
	for len(row) > 0 {
		x := g.weigh(&row, &weights, sigma2)
		blocks := len(x) / plainBlock
		kernel.FitAffine(g.codes[:len(x)], g.scales[:blocks], g.offsets[:blocks], x, g.weights[:len(x)], &search.weighted)
		for j := range blocks {
			put((*[plainBlock]uint8)(g.codes[plainBlock*j:]), g.scales[j], -g.offsets[j])
		}
	}
}

func roundAffine(codes *[plainBlock]uint8, x *[plainBlock]float32, n int32) (d, m float32) {
	m, high := extent(x[:])
	d = (high - m) / float32(n)
	id := inverse(d)
	if !finite32(id) {
		id = 0 // d rounds to zero as binary16, codes don't matter: 0, as on x86-64
	}
	for j, v := range x {
		codes[j] = uint8(min(int32(float32((v-m)*id)+0.5), n))
	}
	return d, m
}

// encodeQ8_0 maps the largest magnitude to 127.
func encodeQ8_0(dst []byte, row, _ []float32) {
	done := kernel.EncodeQ8(dst, row)
	dst, row = dst[done/plainBlock*34:], row[done:]
	for ; len(row) > 0; dst, row = dst[2+plainBlock:], row[plainBlock:] {
		x, out := (*[plainBlock]float32)(row), (*[plainBlock]byte)(dst[2:])
		size, _ := peak(x[:])
		d := size / 127
		putHalf(dst, d)
		id := inverse(d)
		if !finite32(id) {
			id = 0 // as in roundAffine
		}
		for j, v := range x {
			out[j] = byte(roundAway(float32(v * id)))
		}
	}
}

// putNibbles stores the low four bits of 32 codes.
func putNibbles(dst []byte, codes *[plainBlock]uint8) {
	for j := range (*[16]byte)(dst) {
		dst[j] = codes[j]&15 | codes[j+16]<<4
	}
}

// putFifthBits stores bit 4 of 32 codes.
func putFifthBits(dst []byte, codes *[plainBlock]uint8) {
	var word uint32
	for j, code := range codes {
		word |= uint32(code>>4&1) << j
	}
	binary.LittleEndian.PutUint32(dst, word)
}
