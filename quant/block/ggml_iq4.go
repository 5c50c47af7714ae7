package block

import "encoding/binary"

// Types of 4-bit codes that stand for uneven steps.
//
//	IQ4_NL  32 elements         x = d T(q)          d, 16 bytes
//	IQ4_XS  8 groups of 32      x = d (s-32) T(q)   d, 2 bytes upper bits of s, 4 bytes low bits, 128 bytes
//
// Element j of the first half of 32 is in the low nibble of byte j. Groups 2i and
// 2i+1 have the nibbles of byte i for the low four bits of their 6-bit scales, and group g bits 2g and
// 2g+1 of the word for the upper two.

var iq4Values = [16]float32{-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113}

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
		low[j] = scale * iq4Values[b&15]
		high[j] = scale * iq4Values[b>>4]
	}
}

func encodeIQ4NL(dst []byte, row, weights []float32) {
	var w [32]float32
	for at := 0; at < len(row); at += 32 {
		x := row[at:][:32]
		iq4Weights(w[:], x, weightsOf(weights, at, 32), float32(sumSquares(x)*(2.0/32)))
		d := fitIQ4(x, w[:])
		putHalf(dst, d)
		putIQ4(dst[2:18], x, inverse(d))
		dst = dst[18:]
	}
}

// encodeIQ4XS maps the scale of the largest magnitude to -32.
func encodeIQ4XS(dst []byte, row, weights []float32) {
	var w [32]float32
	var scales [8]float32
	for at := 0; at < len(row); at += superBlock {
		x := row[at:][:superBlock]
		sigma2 := float32(sumSquares(x) * (2.0 / superBlock))
		for g := range scales {
			group := x[32*g:][:32]
			iq4Weights(w[:], group, weightsOf(weights, at+32*g, 32), sigma2)
			scales[g] = fitIQ4(group, w[:])
		}
		_, scale := peak(scales[:])
		d := -scale / 32
		id := inverse(d)
		clear(dst[:8])
		putHalf(dst, d)
		var upper uint16
		for g, s := range scales {
			l := clamp(nearest(float32(id*s)), -32, 31)
			putIQ4(dst[8+16*g:][:16], x[32*g:][:32], inverse(float32(d*float32(l))))
			l += 32
			dst[4+g/2] |= byte(l & 15 << (g % 2 * 4))
			upper |= uint16(l >> 4 << (2 * g))
		}
		binary.LittleEndian.PutUint16(dst[2:], upper)
		dst = dst[136:]
	}
}

// iq4Weights weighs elements by their squares if columns have no weights.
func iq4Weights(dst, x, weights []float32, sigma2 float32) {
	if weights != nil {
		importance(dst, x, weights, sigma2)
		return
	}
	for i, v := range x {
		dst[i] = v * v
	}
}

// fitIQ4 looks for the scale d with d*T(q) near x for the nearest q: candidates map
// the element of the largest magnitude to 127, and then to -134, -133, ..., -120. It
// maximises (sum w T x)² / sum w T², and d is (sum w T x) / (sum w T²).
func fitIQ4(x, w []float32) float32 {
	size, element := peak(x)
	if size < negligible {
		return 0
	}
	var d, best float32
	take := func(sums iq4Sums) {
		d = sums.tx / sums.tt
		best = d * sums.tx
	}
	first, second := sumIQ4(x, w, 1/(-element/iq4Values[0]), (-7+iq4Values[0])/element)
	if first.tt > 0 {
		take(first)
	}
	for step := float32(-7); ; step += 2 {
		if second.better(best) {
			take(second)
		}
		if step == 7 {
			return d
		}
		first, second = sumIQ4(x, w, (step+1+iq4Values[0])/element, (step+2+iq4Values[0])/element)
		if first.better(best) {
			take(first)
		}
	}
}

// iq4Sums are sum w T x and sum w T² of a candidate.
type iq4Sums struct{ tx, tt float32 }

func (s iq4Sums) better(best float32) bool {
	return s.tt > 0 && float32(s.tx*s.tx) > float32(best*s.tt)
}

// sumIQ4 returns the sums of two candidates at once, so that their additions overlap.
func sumIQ4(x, w []float32, inverseA, inverseB float32) (a, b iq4Sums) {
	w = w[:len(x)]
	for i, v := range x {
		ta := iq4Values[nearestIQ4(float32(inverseA*v))&15]
		tb := iq4Values[nearestIQ4(float32(inverseB*v))&15]
		wa, wb := float32(w[i]*ta), float32(w[i]*tb)
		a.tx += float32(wa * v)
		b.tx += float32(wb * v)
		a.tt += float32(wa * ta)
		b.tt += float32(wb * tb)
	}
	return a, b
}

func putIQ4(dst []byte, x []float32, inverseScale float32) {
	for j := range dst {
		dst[j] = nearestIQ4(float32(inverseScale*x[j])) | nearestIQ4(float32(inverseScale*x[j+16]))<<4
	}
}

// iq4Codes are the nearest codes of numbers from -128 on in steps of a half, which all
// the middles between steps of T are multiples of.
var iq4Codes = func() (codes [512]byte) {
	code := 0
	for i := range codes {
		x := float32(i-256) / 2
		for code < 15 && x >= (iq4Values[code]+iq4Values[code+1])/2 {
			code++
		}
		codes[i] = byte(code)
	}
	return codes
}()

// nearestIQ4 returns the code of the nearest step, of two equally near the larger, and 15
// for NaN. The sum in float64 rounds at most what is far from a middle.
func nearestIQ4(x float32) byte {
	if x <= iq4Values[0] {
		return 0
	}
	if !(x < iq4Values[15]) {
		return 15
	}
	return iq4Codes[int32(float64(float64(x)*2)+256)&511]
}
