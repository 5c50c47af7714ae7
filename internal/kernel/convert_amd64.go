//go:build !noasm

package kernel

import "unsafe"

// streamBytes is the size from on which results go past the caches: no cache holds
// them until they are read. It saves reading the memory that is written.
const streamBytes = 32 << 20

// decodeBlocks and encodeBlocks convert all of the float32 slice, a multiple of 16
// elements and not empty, as part of total bytes.
func decodeBlocks(t Storage, dst []float32, src []byte, total int) {
	d, s, blocks := &dst[0], &src[0], len(dst)/16
	stream := total >= streamBytes && uintptr(unsafe.Pointer(d))%32 == 0
	switch {
	case t == F32:
		copy(bytesOf(dst), src)
	case t == BF16 && stream:
		streamDecodeBF16AVX2(d, s, blocks)
	case t == BF16:
		decodeBF16AVX2(d, s, blocks)
	case t == F16 && stream:
		streamDecodeF16AVX2(d, s, blocks)
	case t == F16:
		decodeF16AVX2(d, s, blocks)
	case t == E4M3 && stream:
		streamDecodeE4M3AVX2(d, s, blocks)
	case t == E4M3:
		decodeE4M3AVX2(d, s, blocks)
	case t == E5M2 && stream:
		streamDecodeE5M2AVX2(d, s, blocks)
	case t == E5M2:
		decodeE5M2AVX2(d, s, blocks)
	}
}

func encodeBlocks(t Storage, dst []byte, src []float32, total int) {
	d, s, blocks := &dst[0], &src[0], len(src)/16
	stream := total >= streamBytes && uintptr(unsafe.Pointer(d))%32 == 0
	switch {
	case t == F32:
		copy(dst, bytesOf(src))
	case t == BF16 && stream:
		streamEncodeBF16AVX2(d, s, blocks)
	case t == BF16:
		encodeBF16AVX2(d, s, blocks)
	case t == F16 && stream:
		streamEncodeF16AVX2(d, s, blocks)
	case t == F16:
		encodeF16AVX2(d, s, blocks)
	case t == E4M3 && stream:
		streamEncodeE4M3AVX2(d, s, blocks)
	case t == E4M3:
		encodeE4M3AVX2(d, s, blocks)
	case t == E5M2 && stream:
		streamEncodeE5M2AVX2(d, s, blocks)
	case t == E5M2:
		encodeE5M2AVX2(d, s, blocks)
	}
}

// bytesOf views numbers as their bytes, which on this CPU are little-endian.
func bytesOf(s []float32) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(&s[0])), 4*len(s))
}
