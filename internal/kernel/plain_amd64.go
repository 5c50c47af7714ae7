//go:build !noasm

package kernel

func encodeQ8Blocks(dst []byte, x []float32) int { return encodePlain(encodeQ8AVX2, dst, x, 34) }
func encodeQ4Blocks(dst []byte, x []float32) int { return encodePlain(encodeQ4AVX2, dst, x, 18) }

// encodePlain encodes blocks of size bytes each in pieces, see chunkElements.
func encodePlain(encode func(dst *byte, x *float32, blocks int), dst []byte, x []float32, size int) int {
	if current() == generic {
		return 0
	}
	for at := 0; at < len(x); at += chunkElements {
		encode(&dst[at/plainBlock*size], &x[at], min(len(x)-at, chunkElements)/plainBlock)
	}
	return len(x)
}
