package kernel

import "math"

// The searches by which ggml finds the scales of groups of numbers. Each follows its
// namesake in ggml-quants.c of llama.cpp operation for operation, as ties and rounding
// errors decide which candidate wins.
//
// Groups follow one another in x. In all searches w holds the weight of each number,
// and codes receives the integers. x and w are finite; sums may overflow.

// maxGroup is the largest size of a group.
const maxGroup = 32

// negligible is the magnitude below which a group counts as zero.
const negligible = 1e-15

// AffineSearch is the range of candidates of [FitAffine].
type AffineSearch struct {
	Most     int32     // the largest code, up to 127
	Spans    []float32 // the candidates: how many steps the codes span the group with
	Absolute bool      // the error of a number counts as it is, not squared
}

// FitAffine looks, for each of len(scales) groups of up to 32 numbers, for a scale s, a
// minimum m <= 0 and codes l in 0..Most with s*l + m near x, and gives s and -m
// (make_qkx2_quants and make_qkx3_quants, which agree for finite numbers). Each
// candidate gives codes; the weighted least squares for those give s and m; it stays if
// its error is less.
//
//	D = sum w · sum w l² - (sum w l)²
//	s = (sum w · sum w l x - sum w x · sum w l) / D
//	m = (sum w l² · sum w x - sum w l · sum w l x) / D, or m = 0 and s = sum w l x / sum w l² if that is less
//
// The minimum of an accepted candidate is the one that the following candidates
// start from.
func FitAffine(codes []uint8, scales, offsets, x, w []float32, search *AffineSearch) {
	size := groupSize(len(codes), scales, x, w)
	if len(offsets) != len(scales) {
		panic(badGroups)
	}
	for g := fitAffineEights(codes, scales, offsets, x, w, size, search); g < len(scales); g++ {
		at := g * size
		s, o := fitAffine(codes[at:][:size], x[at:][:size], w[at:][:size], search)
		scales[g], offsets[g] = canonical(s), canonical(o)
	}
}

// groupSize returns the size of groups whose number is that of scales.
func groupSize(codes int, scales, x, w []float32) int {
	if codes != len(x) || len(w) != len(x) {
		panic(badGroups)
	}
	if len(scales) == 0 && len(x) == 0 {
		return 1
	}
	if len(scales) == 0 || len(x) == 0 || len(x)%len(scales) != 0 || len(x)/len(scales) > maxGroup {
		panic(badGroups)
	}
	return len(x) / len(scales)
}

func fitAffine(codes []uint8, x, w []float32, search *AffineSearch) (scale, offset float32) {
	codes, w = codes[:len(x)], w[:len(x)]
	low, high := extent(x)
	sumW, sumX := w[0], float32(w[0]*x[0])
	for i := 1; i < len(x); i++ {
		sumW += w[i]
		sumX += float32(w[i] * x[i])
	}
	if low > 0 {
		low = 0
	}
	if high == low {
		clear(codes)
		return 0, -low
	}
	inverseScale := float32(search.Most) / (high - low)
	scale = 1 / inverseScale
	affineCodes(codes, x, low, inverseScale, search.Most)
	least := affineError(codes, x, w, scale, low, search.Absolute)
	var room [maxGroup]uint8
	tried := room[:len(x)]
	for _, span := range search.Spans {
		affineCodes(tried, x, low, span/(high-low), search.Most)
		var sumL, sumLL, sumXL float32
		for i, code := range tried {
			l := float32(code)
			wl := float32(w[i] * l)
			sumL += wl
			sumLL += float32(wl * l)
			sumXL += float32(wl * x[i])
		}
		determinant := float32(sumW*sumLL) - float32(sumL*sumL)
		if !(determinant > 0) {
			continue
		}
		newScale := (float32(sumW*sumXL) - float32(sumX*sumL)) / determinant
		newLow := (float32(sumLL*sumX) - float32(sumL*sumXL)) / determinant
		if newLow > 0 {
			newLow = 0
			newScale = sumXL / sumLL
		}
		if e := affineError(tried, x, w, newScale, newLow, search.Absolute); e < least {
			copy(codes, tried)
			least, scale, low = e, newScale, newLow
		}
	}
	return scale, -low
}

// extent returns the smallest and the largest number, the first of equal ones.
func extent(x []float32) (low, high float32) {
	low, high = x[0], x[0]
	for _, v := range x[1:] {
		if v < low {
			low = v
		}
		if v > high {
			high = v
		}
	}
	return low, high
}

func affineCodes(codes []uint8, x []float32, low, inverseScale float32, most int32) {
	codes = codes[:len(x)]
	for i, v := range x {
		codes[i] = uint8(min(max(nearest(float32(inverseScale*(v-low))), 0), most))
	}
}

// affineError returns the weighted sum of the errors, as they are or squared.
func affineError(codes []uint8, x, w []float32, scale, low float32, absolute bool) float32 {
	codes, w = codes[:len(x)], w[:len(x)]
	var sum float32
	for i, v := range x {
		diff := float32(scale*float32(codes[i])) + low - v
		if absolute {
			diff = math.Float32frombits(math.Float32bits(diff) &^ (1 << 31))
		} else {
			diff = float32(diff * diff)
		}
		sum += float32(w[i] * diff)
	}
	return sum
}

// nearest rounds to an integer, half to even, by adding 1.5*2^23, beside which a
// float32 has no room for a fraction. From 2^22 on the result is meaningless, but
// the same on every CPU, and callers clamp it.
func nearest(x float32) int32 {
	return int32(math.Float32bits(x+12582912)&(1<<23-1)) - 1<<22
}
