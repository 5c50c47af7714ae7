package block

// Types of one and two bits with one scale.
//
//	Q1_0  128 elements   x = d or -d       d, bit i of byte k is element 8k+i
//	Q2_0  64 elements    x = d (q - 1)     d, bits 2i and 2i+1 of byte k are element 4k+i

func decodeQ1_0(dst []float32, src []byte) {
	for ; len(src) > 0; dst, src = dst[128:], src[18:] {
		d, out := half(src), (*[128]float32)(dst)
		for j := range out {
			if src[2+j/8]>>(j%8)&1 != 0 {
				out[j] = d
			} else {
				out[j] = -d
			}
		}
	}
}

func decodeQ2_0(dst []float32, src []byte) {
	for ; len(src) > 0; dst, src = dst[64:], src[18:] {
		d, out := half(src), (*[64]float32)(dst)
		for j := range out {
			out[j] = d * float32(int32(src[2+j/4]>>(j%4*2)&3)-1)
		}
	}
}

// encodeQ1_0 keeps signs and the mean magnitude.
func encodeQ1_0(dst []byte, row, _ []float32) {
	for ; len(row) > 0; dst, row = dst[18:], row[128:] {
		var total float32
		codes := (*[16]byte)(dst[2:])
		clear(codes[:])
		for j, v := range row[:128] {
			total += magnitude(v)
			if v >= 0 {
				codes[j/8] |= 1 << (j % 8)
			}
		}
		putHalf(dst, total/128)
	}
}

// encodeQ2_0 maps the largest magnitude to 1, so that of the codes -1, 0, 1 and 2 the
// last never occurs.
func encodeQ2_0(dst []byte, row, _ []float32) {
	for ; len(row) > 0; dst, row = dst[18:], row[64:] {
		x, codes := row[:64], (*[16]byte)(dst[2:])
		d, _ := peak(x)
		putHalf(dst, d)
		clear(codes[:])
		id := inverse(d)
		if !finite32(id) {
			continue // d rounds to zero as binary16, codes don't matter: 0, as on x86-64
		}
		for j, v := range x {
			q := clamp(roundAway(float32(v*id))+1, 0, 3)
			codes[j/4] |= byte(q) << (j % 4 * 2)
		}
	}
}
