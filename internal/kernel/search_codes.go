package kernel

import "math"

// Importance sets dst[i] = w[i]*sqrt(sigma2 + x[i]²), by which ggml lets a number count
// when its column has a weight.
func Importance(dst, x, w []float32, sigma2 float32) {
	if len(dst) != len(x) || len(w) != len(x) {
		panic(badPair)
	}
	for i := importanceBlocks(dst, x, w, sigma2); i < len(x); i++ {
		// Go 1.26 fuses this sum for arm64 unless both operands are converted.
		dst[i] = w[i] * sqrt32(float32(sigma2)+float32(x[i]*x[i]))
	}
}

// Recode chooses, for each of len(scales) groups, codes 0..most-least so that
// scale*(code+least) - offset is near x. The codes of a group whose scale is zero stay.
// Without offsets, these are zero. least is from -64 to 0, most from 0 to 63.
func Recode(codes []uint8, scales, offsets, x []float32, least, most int32) {
	size := groupSize(len(codes), scales, x, x)
	if offsets != nil && len(offsets) != len(scales) {
		panic(badGroups)
	}
	for g, scale := range scales {
		if scale == 0 {
			continue
		}
		codes, x := codes[g*size:][:size], x[g*size:][:size]
		var offset float32
		if offsets != nil {
			offset = offsets[g]
		}
		for i := recodeBlocks(codes, x, scale, offset, least, most); i < size; i++ {
			codes[i] = uint8(min(max(nearest((x[i]+offset)/scale), least), most) - least)
		}
	}
}

func sqrt32(x float32) float32 { return float32(math.Sqrt(float64(x))) }
