package block

// What the K types share: blocks of 256 elements in groups with scales of their own,
// which are integers times a binary16 of the block.
//
// Encoding finds the scales of all groups in float32, rounds them to integers, and
// then chooses the codes again for the scales as they are stored. Where a stored
// scale is zero, the codes of the search stay.

// putTwoBits stores the low two bits of 256 codes: every 32 bytes hold 128 of them, 32 to
// each two bits.
func putTwoBits(dst []byte, codes *[superBlock]uint8) {
	for at := 0; at < 64; at += 32 {
		c := codes[4*at:][:128]
		for j := range 32 {
			dst[at+j] = c[j]&3 | c[j+32]&3<<2 | c[j+64]&3<<4 | c[j+96]<<6
		}
	}
}

// maxima returns the largest scale and the largest offset, 0 if none is positive.
func maxima(scales, offsets []float32) (scale, offset float32) {
	for i := range scales {
		if scales[i] > scale {
			scale = scales[i]
		}
		if offsets[i] > offset {
			offset = offsets[i]
		}
	}
	return scale, offset
}

// weightsOf returns the weights of n columns from at on, nil if there are none.
func weightsOf(weights []float32, at, n int) []float32 {
	if weights == nil {
		return nil
	}
	return weights[at:][:n]
}
