package block

import "encoding/binary"

// Types whose codes are indices into a grid of tuples. All have 256 elements in
// groups of 32, which below are numbered g.
//
//	IQ2_XXS  d, per group: 4 bytes of indices, a word of 4*7 bits of signs and 4 of scale
//	IQ2_XS   d, 32 words of 9 bits of index and 7 of signs, 8 bytes of two scales
//	IQ2_S    d, 32 bytes of indices, 32 of signs, 8 upper bits of indices, 8 of two scales
//	IQ3_XXS  d, 64 bytes of indices, per group: a word of 4*7 bits of signs and 4 of scale
//	IQ3_S    d, 64 bytes of indices, 8 upper bits of indices, 32 of signs, 4 of two scales
//	IQ1_S    d, 32 bytes of indices, per group: 4*3 upper bits of indices, 3 of scale, 1 of shift
//	IQ1_M    32 bytes of indices, 16 of upper bits and shifts, 4 words of 4 scales, and d in their top nibbles
//
// A scale s of 4 bits stands for (s + 1/2) / 4 in IQ2, (s + 1/2) / 2 in IQ3_XXS and
// 2s + 1 in IQ3_S; one of 3 bits for 2s + 1 in IQ1. Values of IQ2 and IQ3 are magnitudes; signs of 7 bits
// stand for 8 whose number of negative ones is even. Elements of IQ1 are -1, 0 or 1,
// plus or minus a shift of 1/8.

func decodeIQ2XXS(dst []float32, src []byte) {
	grid := gridIQ2XXS()
	for ; len(src) > 0; src = src[66:] {
		d := half(src)
		for g := range 8 {
			codes := src[2+8*g:][:8]
			word := binary.LittleEndian.Uint32(codes[4:])
			scale := iq2Scale(d, byte(word>>28))
			for l, index := range codes[:4] {
				decodeSigned(dst[:8], grid[index][:], evenSigns(word>>(7*l)), scale)
				dst = dst[8:]
			}
		}
	}
}

func decodeIQ2XS(dst []float32, src []byte) {
	grid := gridIQ2XS()
	for ; len(src) > 0; src = src[74:] {
		d := half(src)
		for l := range 32 {
			scale := iq2Scale(d, src[66+l/4]>>(l/2%2*4)&15)
			word := binary.LittleEndian.Uint16(src[2+2*l:])
			decodeSigned(dst[:8], grid[word&511][:], evenSigns(uint32(word>>9)), scale)
			dst = dst[8:]
		}
	}
}

func decodeIQ2S(dst []float32, src []byte) {
	grid := gridIQ2S()
	for ; len(src) > 0; src = src[82:] {
		d := half(src)
		for l := range 32 {
			scale := iq2Scale(d, src[74+l/4]>>(l/2%2*4)&15)
			index := uint(src[2+l]) | uint(src[66+l/4]>>(l%4*2)&3)<<8
			decodeSigned(dst[:8], grid[index][:], src[34+l], scale)
			dst = dst[8:]
		}
	}
}

func iq2Scale(d float32, s byte) float32 { return d * (0.5 + float32(s)) * 0.25 }

func decodeIQ3XXS(dst []float32, src []byte) {
	grid := gridIQ3XXS()
	for ; len(src) > 0; src = src[98:] {
		d := half(src)
		for g := range 8 {
			word := binary.LittleEndian.Uint32(src[66+4*g:])
			scale := d * (0.5 + float32(word>>28)) * 0.5
			for l := range 4 {
				signs, pair := evenSigns(word>>(7*l)), src[2+8*g+2*l:]
				decodeSigned(dst[:4], grid[pair[0]][:], signs, scale)
				decodeSigned(dst[4:8], grid[pair[1]][:], signs>>4, scale)
				dst = dst[8:]
			}
		}
	}
}

func decodeIQ3S(dst []float32, src []byte) {
	grid := gridIQ3S()
	for ; len(src) > 0; src = src[110:] {
		d := half(src)
		for l := range 64 {
			scale := d * float32(1+2*int32(src[106+l/16]>>(l/8%2*4)&15))
			index := uint(src[2+l]) | uint(src[66+l/8]>>(l%8)&1)<<8
			decodeSigned(dst[:4], grid[index][:], src[74+l/2]>>(l%2*4), scale)
			dst = dst[4:]
		}
	}
}

// decodeSigned negates the values whose bit in signs is set.
func decodeSigned(dst []float32, values []int8, signs byte, scale float32) {
	for j, v := range values[:len(dst)] {
		x := scale * float32(v)
		if signs>>j&1 != 0 {
			x = -x
		}
		dst[j] = x
	}
}

// evenSigns completes 7 signs to 8, an even number of them negative.
func evenSigns(word uint32) byte {
	signs := byte(word & 127)
	parity := signs ^ signs>>4
	parity ^= parity >> 2
	parity ^= parity >> 1
	return signs | parity<<7
}

func decodeIQ1S(dst []float32, src []byte) {
	grid := gridIQ1()
	for ; len(src) > 0; src = src[50:] {
		d := half(src)
		for g := range 8 {
			word := uint(binary.LittleEndian.Uint16(src[34+2*g:]))
			scale, shift := iq1Scale(d, word>>12), iq1Shift(word>>15)
			for l := range 4 {
				index := uint(src[2+4*g+l]) | word>>(3*l)&7<<8
				decodeShifted(dst[:8], &grid[index], scale, shift)
				dst = dst[8:]
			}
		}
	}
}

func decodeIQ1M(dst []float32, src []byte) {
	grid := gridIQ1()
	for ; len(src) > 0; src = src[56:] {
		d := halfToFloat32(iq1mHalf(src))
		for l := range 32 {
			scales := uint(binary.LittleEndian.Uint16(src[48+l/8*2:]))
			scale := iq1Scale(d, scales>>(l/2%4*3))
			upper := uint(src[32+l/2] >> (l % 2 * 4))
			decodeShifted(dst[:8], &grid[uint(src[l])|upper&7<<8], scale, iq1Shift(upper>>3))
			dst = dst[8:]
		}
	}
}

// iq1mHalf gathers the scale of a block of IQ1_M.
func iq1mHalf(block []byte) uint16 {
	var h uint16
	for i := range 4 {
		h |= binary.LittleEndian.Uint16(block[48+2*i:]) >> 12 << (4 * i)
	}
	return h
}

func finiteIQ1M(block []byte) bool { return finiteHalf(iq1mHalf(block)) }

func iq1Scale(d float32, bits uint) float32 { return d * float32(2*(bits&7)+1) }

func iq1Shift(bit uint) float32 {
	if bit&1 != 0 {
		return -0.125
	}
	return 0.125
}

func decodeShifted(dst []float32, values *[8]int8, scale, shift float32) {
	for j, v := range values {
		dst[j] = scale * (float32(v) + shift)
	}
}
