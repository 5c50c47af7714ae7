package block

import "encoding/binary"

// The encoders of the IQ3 types; see ggml_iq.go for their layout.

var (
	searchIQ3XXS = gridSearch{
		book: bookIQ3XXS, group: 32, spans: gridSpans(8, 15, 0.2),
		negligible: 1e-8, sigma2: 2, evenSigns: true, fudge: 1.0125, without: squares,
	}
	searchIQ3S = gridSearch{
		book: bookIQ3S, group: 32, spans: gridSpans(8, 9, 0.2),
		sigma2: 2, fudge: 1.033, without: squares, whole: true, keep: true,
	}
)

// squares weighs elements by their squares.
func squares(weights, x []float32, _ float32) {
	for i, v := range x {
		weights[i] = v * v
	}
}

func encodeIQ3XXS(dst []byte, row, weights []float32) {
	b := newGridBlock(&searchIQ3XXS)
	for at := 0; at < len(row); at += superBlock {
		b.encode(row[at:][:superBlock], weightsOf(weights, at, superBlock))
		putHalf(dst, b.d)
		for k, index := range b.indices {
			dst[2+k] = byte(index)
		}
		for g := range 8 {
			binary.LittleEndian.PutUint32(dst[66+4*g:], b.signsAndScale(g))
		}
		dst = dst[98:]
	}
}

// encodeIQ3S repeats what ggml does with groups of zeros: they take no room among indices
// and signs, so that the groups behind them move up, where the decoder does not look for
// them. (In quantize_row_iq3_s_impl, the continue for such a group skips the steps of qs
// and signs.) Upper bits and scales stay where they belong.
func encodeIQ3S(dst []byte, row, weights []float32) {
	b := newGridBlock(&searchIQ3S)
	for at := 0; at < len(row); at += superBlock {
		b.encode(row[at:][:superBlock], weightsOf(weights, at, superBlock))
		clear(dst[:110])
		putHalf(dst, b.d)
		codes, upper, signs := dst[2:66], dst[66:74], dst[74:106]
		for g := range upper {
			if b.zero[g] {
				continue
			}
			for k, index := range b.indices[8*g:][:8] {
				codes[k] = byte(index)
				upper[g] |= byte(index>>8) << k
			}
			copy(signs, b.signs[4*g:][:4])
			codes, signs = codes[8:], signs[4:]
		}
		b.putScales(dst[106:110])
		dst = dst[110:]
	}
}
