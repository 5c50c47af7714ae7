package kernel

import (
	"encoding/binary"
	"math/bits"
)

// ULPBins is the number of bins of a [ULPHistogram]: enough for the two infinities of
// float32, which are 2^32-2^24 steps apart.
const ULPBins = 34

// ULPHistogram counts pairs of codes of one element type by their distance in units
// of the last place: the number of steps from one to the other through the codes of
// the type in the order of their numbers. Both zeros are one number. An infinity is
// one step from the largest finite number. Two NaNs are equal whatever their bits,
// and a NaN and a number are no distance apart but counted on their own.
//
// The zero value is empty. Counts do not depend on any order.
type ULPHistogram struct {
	// Counts[0] counts equal pairs, Counts[1] neighbours, Counts[2] distances of 2,
	// and Counts[i] those from 2^(i-2)+1 to 2^(i-1), see [ULPRange].
	Counts [ULPBins]int64
	// OneNaN counts pairs of which one is NaN.
	OneNaN int64
}

// ULPRange returns the least and the largest distance of a bin.
func ULPRange(bin int) (least, most uint64) {
	if bin < 2 {
		return uint64(bin), uint64(bin)
	}
	return 1<<(bin-2) + 1, 1 << (bin - 1)
}

// Add counts the pairs of two slices of whole elements, which have the same length.
func (h *ULPHistogram) Add(s Storage, a, b []byte) {
	size := s.size()
	switch {
	case s <= NoStorage || s > E5M2:
		panic(badType)
	case len(a)%size != 0:
		panic(badSrc)
	case len(a) != len(b):
		panic(badPair)
	}
	done := 0
	if current() != generic {
		done = ulpBlocks(h, s, a, b)
	}
	h.addPairs(s, a[done:], b[done:])
}

// Merge adds the counts of o to h.
func (h *ULPHistogram) Merge(o *ULPHistogram) {
	for bin, n := range o.Counts {
		h.Counts[bin] += n
	}
	h.OneNaN += o.OneNaN
}

func (h *ULPHistogram) addPairs(s Storage, a, b []byte) {
	size, top := s.size(), s.topCode()
	shift := uint(32 - 8*size)
	for ; len(a) >= size; a, b = a[size:], b[size:] {
		x, y := upperWord(a, size), upperWord(b, size)
		nanX, nanY := x&^sign > top, y&^sign > top
		switch {
		case nanX && nanY:
			h.Counts[0]++
		case nanX || nanY:
			h.OneNaN++
		default:
			p, q := ordered(x), ordered(y)
			h.Counts[ulpBin(uint32(max(p, q)-min(p, q))>>shift)]++
		}
	}
}

const sign = 1 << 31

// topCode returns the largest code without sign that is not NaN, at the upper end of
// a word.
func (s Storage) topCode() uint32 {
	switch s {
	case F32:
		return 0xff << 23
	case BF16:
		return 0x7f80 << 16
	case F16:
		return 0x7c00 << 16
	case E4M3:
		return 0x7e << 24
	}
	return 0x7c << 24
}

// upperWord returns the next code at the upper end of a word.
func upperWord(src []byte, size int) uint32 {
	switch size {
	case 1:
		return uint32(src[0]) << 24
	case 2:
		return uint32(binary.LittleEndian.Uint16(src)) << 16
	}
	return binary.LittleEndian.Uint32(src)
}

// ordered maps codes to integers in the order of their numbers.
func ordered(x uint32) int64 {
	if x&sign != 0 {
		return -int64(x &^ sign)
	}
	return int64(x)
}

// ulpBin returns the bin of a distance.
func ulpBin(d uint32) int {
	if d == 0 {
		return 0
	}
	return 1 + bits.Len32(d-1)
}
