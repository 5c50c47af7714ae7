package kernel

// plainBlock is the number of elements in a block of ggml's types with one scale.
const plainBlock = 32

// EncodeQ8 encodes leading blocks of 32 numbers to Q8_0 of ggml and returns how many numbers:
// all at a level with vectors, none at generic. As in [DecodeBF16], the loops of package
// quant/block define the bytes. All numbers must be finite.
func EncodeQ8(dst []byte, x []float32) int {
	checkPlain(dst, x, 34)
	return encodeQ8Blocks(dst, x)
}

// EncodeQ4 does the same for Q4_0.
func EncodeQ4(dst []byte, x []float32) int {
	checkPlain(dst, x, 18)
	return encodeQ4Blocks(dst, x)
}

// checkPlain panics unless dst has room for x, which is whole blocks.
func checkPlain(dst []byte, x []float32, size int) {
	if len(x)%plainBlock != 0 || len(dst) != len(x)/plainBlock*size {
		panic(badCodes)
	}
}
