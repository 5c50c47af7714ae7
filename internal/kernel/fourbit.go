package kernel

// FourBit is one of the 4-bit types of bitsandbytes: a number is a code of sixteen
// values times the largest magnitude of its block.
type FourBit int

// The types.
const (
	NF4 FourBit = iota
	FP4
)

// nf4Values and fp4Values are the values of the codes (functional.py,
// get_4bit_type).
var (
	nf4Values = [16]float32{
		-1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
		-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0,
		0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
		0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1,
	}
	fp4Values = [16]float32{
		0, 0.0625 / 12.0, 8 / 12.0, 1, 4 / 12.0, 6 / 12.0, 2 / 12.0, 3 / 12.0,
		0, -0.0625 / 12.0, -8 / 12.0, -1, -4 / 12.0, -6 / 12.0, -2 / 12.0, -3 / 12.0,
	}
)

// nf4Thresholds and fp4Thresholds are what numbers are compared with
// (csrc/kernels.cu, dQuantizeNF4 and dQuantizeFP4). Those of NF4 are the middles of
// neighbours, of which four are ties between two float32 and fall where the digits of
// the source put them, one step from the middle that float32 arithmetic gives; one of
// FP4, 0.583333, is a little off.
var (
	nf4Thresholds = [15]float32{
		-0.8480964004993439, -0.6106329262256622, -0.4599952697753906, -0.33967943489551544,
		-0.23460740596055984, -0.13791173323988914, -0.045525018125772476, 0.03979014977812767,
		0.1202552504837513, 0.2035212516784668, 0.2920137718319893, 0.3893125355243683,
		0.5016634166240692, 0.6427869200706482, 0.8614784181118011,
	}
	fp4Thresholds = [7]float32{0.00260417, 0.0859375, 0.20833333, 0.29166667, 0.4166667, 0.583333, 0.8333333}
	// fp4Order are the codes of the magnitudes in ascending order.
	fp4Order = [8]byte{0, 1, 6, 7, 4, 5, 2, 3}
)

// Values returns the values of the sixteen codes.
func (f FourBit) Values() [16]float32 {
	if f == FP4 {
		return fp4Values
	}
	return nf4Values
}

// EncodeFourBit quantizes src in blocks of blockSize elements, the last of which
// may be shorter. absmax gets the largest magnitude of each block, dst two codes per
// byte, the first in the upper half, and 0 behind an odd end.
//
// As bitsandbytes does on a GPU, a number is multiplied by the rounded reciprocal
// of absmax. Its NF4 code is the count of thresholds below the product, its FP4
// code goes by the count of thresholds below the magnitude of the product, plus 8
// if the product is less than 0; what equals a threshold gets the lower code. A NaN
// does not count for absmax and has code 0, and so does all of a block of zeros,
// whose reciprocal is infinite.
func EncodeFourBit(f FourBit, dst []byte, absmax, src []float32, blockSize int) {
	checkFourBit(dst, absmax, src, blockSize)
	done := 0
	if blockSize%8 == 0 && current() != generic {
		done = encodeFourBit(f, dst, absmax, src, blockSize)
	}
	for block := done / blockSize; block*blockSize < len(src); block++ {
		from := block * blockSize
		to := min(from+blockSize, len(src))
		absmax[block] = encodeBlock(f, dst, src[:to], from)
	}
}

// encodeBlock encodes the numbers from an index on and returns the largest
// magnitude. A block may begin in the middle of a byte.
func encodeBlock(f FourBit, dst []byte, src []float32, from int) float32 {
	largest := float32(0)
	for _, x := range src[from:] {
		if x < 0 {
			x = -x
		}
		if x > largest {
			largest = x
		}
	}
	inverse := 1 / largest
	for i := from; i < len(src); i++ {
		code := codeNF4(src[i] * inverse)
		if f == FP4 {
			code = codeFP4(src[i] * inverse)
		}
		if i%2 == 0 {
			dst[i/2] = code << 4
			continue
		}
		dst[i/2] |= code
	}
	return largest
}

// codeNF4 counts thresholds by halves. The comparisons become bits without a
// jump, which nobody could predict.
func codeNF4(x float32) byte {
	t := &nf4Thresholds
	c := bit(x > t[7]) << 3
	c += bit(x > t[c+3]) << 2
	c += bit(x > t[c+1]) << 1
	return c + bit(x > t[c])
}

func codeFP4(x float32) byte {
	negative := bit(x < 0)
	if x < 0 {
		x = -x
	}
	t := &fp4Thresholds
	c := bit(x > t[3]) << 2
	c += bit(x > t[c+1]) << 1
	c += bit(x > t[c])
	return fp4Order[c] | negative<<3
}

func bit(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// DecodeFourBit sets every element of dst to the value of its code times the absmax
// of its block, one product; see [EncodeFourBit] for the layout.
func DecodeFourBit(f FourBit, dst []float32, src []byte, absmax []float32, blockSize int) {
	checkFourBit(src, absmax, dst, blockSize)
	values := f.Values()
	done := 0
	if blockSize%8 == 0 && current() != generic {
		done = decodeFourBit(&values, dst, src, absmax, blockSize)
	}
	for i := done; i < len(dst); i++ {
		code := src[i/2] >> 4
		if i%2 == 1 {
			code = src[i/2] & 15
		}
		dst[i] = canonical(values[code] * absmax[i/blockSize])
	}
}

// checkFourBit panics unless the lengths belong together.
func checkFourBit(codes []byte, absmax, numbers []float32, blockSize int) {
	switch {
	case blockSize <= 0:
		panic(badBlock)
	case len(codes) != (len(numbers)+1)/2:
		panic(badCodes)
	case len(absmax) != (len(numbers)+blockSize-1)/blockSize:
		panic(badAbsmax)
	}
}
