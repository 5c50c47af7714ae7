package block

import "math"

// DecodeE8M0 sets every element of dst from its code, an exponent: F8_E8M0 of the OCP
// Microscaling specification, torch.float8_e8m0fnu,
//
//	x = 2^(code - 127), NaN for 255
//
// It has no zero and no sign: it is a type of scales and not one to store weights as,
// which is why it is no [Codec].
func DecodeE8M0(dst []float32, src []byte) {
	checkSize(len(src), len(dst), 1)
	for i, code := range src {
		switch code {
		case 0:
			dst[i] = math.Float32frombits(1 << 22) // subnormal
		case 255:
			dst[i] = float32(math.NaN())
		default:
			dst[i] = math.Float32frombits(uint32(code) << 23)
		}
	}
}
