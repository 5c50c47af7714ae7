//go:build !noasm

package kernel

// encodeFourBit and decodeFourBit work on whole blocks, a multiple of eight elements
// each, and return how many elements they took. A block of more elements than a
// call may take is left to portable code; such blocks are not in use.

func encodeFourBit(f FourBit, dst []byte, absmax, src []float32, blockSize int) int {
	var thresholds [15 * 8]float32 // each eight times
	sorted := nf4Thresholds[:]
	if f == FP4 {
		sorted = fp4Thresholds[:]
	}
	for i, t := range sorted {
		for lane := range 8 {
			thresholds[8*i+lane] = t
		}
	}
	done := 0
	for n := range wholeBlocks(len(src), blockSize) {
		d, a, s := &dst[done/2], &absmax[done/blockSize], &src[done]
		if f == FP4 {
			encodeFP4AVX2(d, a, s, &thresholds[0], blockSize/8, n)
		} else {
			encodeNF4AVX2(d, a, s, &thresholds[0], blockSize/8, n)
		}
		done += n * blockSize
	}
	return done
}

func decodeFourBit(values *[16]float32, dst []float32, src []byte, absmax []float32, blockSize int) int {
	done := 0
	for n := range wholeBlocks(len(dst), blockSize) {
		decode4AVX2(&dst[done], &src[done/2], &absmax[done/blockSize], values, blockSize/8, n)
		done += n * blockSize
	}
	return done
}

// wholeBlocks cuts the whole blocks of n elements into numbers of them for a call.
func wholeBlocks(n, blockSize int) func(yield func(int) bool) {
	return func(yield func(int) bool) {
		step := chunkElements / 2 / blockSize
		for blocks := n / blockSize; step > 0 && blocks > 0; blocks -= step {
			if !yield(min(blocks, step)) {
				return
			}
		}
	}
}
