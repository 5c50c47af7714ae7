package kernel

// chunkElements is what one call of assembly works on at most: the scheduler
// can't stop a goroutine inside. 64 Ki elements take about 20 us. Where bytes are
// only copied a call takes copyElements: the runtime stores copies of 1 MiB and more
// past the caches.
const (
	chunkElements = 64 << 10
	copyElements  = 512 << 10
)

// DecodeBF16 and its like set leading elements of dst from src and return how
// many: as many as the vectors of the level in use take, none at generic. The
// rest is left to package quant/block, whose loops define every bit, NaNs
// included.
func DecodeBF16(dst []float32, src []byte) int { return decode(BF16, dst, src) }

// DecodeF16 is described at [DecodeBF16].
func DecodeF16(dst []float32, src []byte) int { return decode(F16, dst, src) }

// DecodeE4M3 is described at [DecodeBF16].
func DecodeE4M3(dst []float32, src []byte) int { return decode(E4M3, dst, src) }

// DecodeE5M2 is described at [DecodeBF16].
func DecodeE5M2(dst []float32, src []byte) int { return decode(E5M2, dst, src) }

// DecodeF32 is described at [DecodeBF16].
func DecodeF32(dst []float32, src []byte) int { return decode(F32, dst, src) }

// EncodeBF16 and its like set leading elements of dst from src, as [DecodeBF16]
// does.
func EncodeBF16(dst []byte, src []float32) int { return encode(BF16, dst, src) }

// EncodeF16 is described at [EncodeBF16].
func EncodeF16(dst []byte, src []float32) int { return encode(F16, dst, src) }

// EncodeE4M3 is described at [EncodeBF16].
func EncodeE4M3(dst []byte, src []float32) int { return encode(E4M3, dst, src) }

// EncodeE5M2 is described at [EncodeBF16].
func EncodeE5M2(dst []byte, src []float32) int { return encode(E5M2, dst, src) }

// EncodeF32 is described at [EncodeBF16].
func EncodeF32(dst []byte, src []float32) int { return encode(F32, dst, src) }

// size returns the bytes of an element.
func (s Storage) size() int {
	switch s {
	case F32:
		return 4
	case BF16, F16:
		return 2
	}
	return 1
}

// chunk returns how many of n elements a call converts, a multiple of 16.
func (s Storage) chunk(n int) int {
	if s == F32 {
		return min(n, copyElements) &^ 15
	}
	return min(n, chunkElements) &^ 15
}

func decode(s Storage, dst []float32, src []byte) int {
	if len(src) != len(dst)*s.size() {
		panic(badSrc)
	}
	done := 0
	for len(dst)-done >= 16 && current() != generic {
		count := s.chunk(len(dst) - done)
		decodeBlocks(s, dst[done:done+count], src[done*s.size():], 4*len(dst))
		done += count
	}
	return done
}

func encode(s Storage, dst []byte, src []float32) int {
	if len(dst) != len(src)*s.size() {
		panic(badDst)
	}
	done := 0
	for len(src)-done >= 16 && current() != generic {
		count := s.chunk(len(src) - done)
		encodeBlocks(s, dst[done*s.size():], src[done:done+count], len(dst))
		done += count
	}
	return done
}
