package block

import (
	"encoding/binary"
	"math/bits"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
)

// AnyNonFinite returns the index of the first element of src that is NaN or
// infinite. A number is not finite when all bits of its exponent are set, for
// F8_E4M3 when those of its fraction are set as well.
func AnyNonFinite(c Codec, src []byte) (index int64, found bool) {
	width, ones := exponent(c.DType())
	checkSize(len(src), len(src)/width, width)
	first := 0
	if width <= 4 {
		first = kernel.SkipFinite(src, width, uint32(ones))
	}
	// Eight bytes at a time, each element a lane. In a lane that has all of ones
	// set, adding the lowest of them carries into the bit above, the sign, which is
	// masked off before; no carry leaves a lane.
	lowest := ones & -ones
	top := uint64(1) << (8*width - 1)
	lanes := ^uint64(0) / (top<<1 - 1)
	ones, lowest, top = ones*lanes, lowest*lanes, top*lanes
	for at := first; at < len(src); at += 8 {
		word := load(src[at:])
		if hit := (word&ones + lowest) & top; hit != 0 {
			return int64((at + bits.TrailingZeros64(hit)/8) / width), true
		}
	}
	return 0, false
}

// exponent returns the size of an element in bytes and the bits that are all set
// in a NaN or an infinity.
func exponent(d tensor.DType) (width int, ones uint64) {
	switch d {
	case tensor.F16:
		return 2, 0x7c00
	case tensor.BF16:
		return 2, 0x7f80
	case tensor.F32:
		return 4, 0x7f80_0000
	case tensor.F64:
		return 8, 0x7ff0_0000_0000_0000
	case tensor.F8E4M3:
		return 1, 0x7f
	case tensor.F8E5M2:
		return 1, 0x7c
	}
	panic("block: not a codec of this package")
}

// load returns the next eight bytes, zeros behind the end.
func load(src []byte) uint64 {
	if len(src) >= 8 {
		return binary.LittleEndian.Uint64(src)
	}
	var word [8]byte
	copy(word[:], src)
	return binary.LittleEndian.Uint64(word[:])
}
