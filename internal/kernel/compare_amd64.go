//go:build !noasm

package kernel

// compareBlocks adds pairs in pieces of at most chunkElements and returns how many it
// took, a multiple of eight.
func compareBlocks(sums *compareLanes, c *Comparison, a, b []float32) int {
	b = b[:len(a)]
	counts := [3]int64{}
	s, done := (*[5][8]float64)(sums), 0
	for n := range chunks(len(a)) {
		if current() == avx512 {
			compareAVX512(s, &counts, &a[done], &b[done], n/8)
		} else {
			compareAVX2(s, &counts, &a[done], &b[done], n/8)
		}
		done += n
	}
	c.NonFiniteA += counts[0]
	c.NonFiniteB += counts[1]
	c.NonFiniteUnlike += counts[2]
	return done
}

// ulpChunk is how many pairs have their bins in the cache before these are counted,
// 128 blocks of 32.
const ulpChunk = 4096

// ulpBlocks counts pairs and returns how many bytes of a it took, a multiple of 32
// elements.
func ulpBlocks(h *ULPHistogram, s Storage, a, b []byte) int {
	size, top := s.size(), s.topCode()
	b = b[:len(a)]
	var bins [ulpChunk]byte
	done := 0
	for len(a)-done >= 32*size {
		blocks := min((len(a)-done)/size, ulpChunk) / 32
		var found [2][16]uint32
		distances(size, &bins, &found, &a[done], &b[done], top, blocks)
		largest := uint32(0)
		for i, bin := range found[0] {
			largest = max(largest, bin)
			h.OneNaN += int64(found[1][i])
		}
		for first := uint32(0); first <= largest; first += 8 {
			var counts [8][4]uint64
			countBytesAVX2(&counts, &bins[0], first, blocks)
			for i, c := range counts {
				if n := int64(c[0] + c[1] + c[2] + c[3]); n > 0 {
					h.Counts[int(first)+i] += n
				}
			}
		}
		done += 32 * size * blocks
	}
	return done
}

// distances puts the bins of 32*blocks pairs into bins.
func distances(size int, bins *[ulpChunk]byte, found *[2][16]uint32, a, b *byte, top uint32, blocks int) {
	wide := current() == avx512
	switch {
	case size == 1 && wide:
		distances8AVX512(&bins[0], found, a, b, top, blocks)
	case size == 1:
		distances8AVX2(&bins[0], found, a, b, top, blocks)
	case size == 2 && wide:
		distances16AVX512(&bins[0], found, a, b, top, blocks)
	case size == 2:
		distances16AVX2(&bins[0], found, a, b, top, blocks)
	case wide:
		distances32AVX512(&bins[0], found, a, b, top, blocks)
	default:
		distances32AVX2(&bins[0], found, a, b, top, blocks)
	}
}
