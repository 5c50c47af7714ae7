package kernel

// IQ4Values are what the codes of IQ4_NL and IQ4_XS stand for.
var IQ4Values = [16]float32{-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113}

// FitIQ4 looks, for each of len(scales) groups of up to 32 numbers, for a scale d with
// d*T near x, where T is the nearest of [IQ4Values] (quantize_row_iq4_nl_impl):
// candidates map the number of the largest magnitude to 127, and then to -134, -133,
// ..., -120.
//
//	maximise (sum w T x)² / sum w T²,  d = (sum w T x) / (sum w T²)
func FitIQ4(scales, x, w []float32) {
	size := groupSize(len(x), scales, x, w)
	for g := fitIQ4Eights(scales, x, w, size); g < len(scales); g++ {
		at := g * size
		scales[g] = canonical(fitIQ4(x[at:][:size], w[at:][:size]))
	}
}

// RecodeIQ4 chooses codes whose values are nearest to inverseScale*x, of two equally near
// the larger, and 15 for NaN.
func RecodeIQ4(codes []uint8, x []float32, inverseScale float32) {
	if len(codes) != len(x) {
		panic(badCodes)
	}
	for i := recodeIQ4Blocks(codes, x, inverseScale); i < len(x); i++ {
		codes[i] = nearestIQ4(float32(inverseScale * x[i]))
	}
}

// iq4Numerators are what the candidates of FitIQ4 but the first divide by the number of
// the largest magnitude.
var iq4Numerators = func() (numerators [15]float32) {
	for i := range numerators {
		numerators[i] = float32(i-7) + IQ4Values[0]
	}
	return numerators
}()

func fitIQ4(x, w []float32) float32 {
	size, element := peak(x)
	if size < negligible {
		return 0
	}
	var d, best float32
	first, second := sumIQ4(x, w, 1/(-element/IQ4Values[0]), iq4Numerators[0]/element)
	if first.tt > 0 {
		d = first.tx / first.tt
		best = d * first.tx
	}
	try := func(sums iq4Sums) {
		if sums.tt > 0 && float32(sums.tx*sums.tx) > float32(best*sums.tt) {
			d = sums.tx / sums.tt
			best = d * sums.tx
		}
	}
	try(second)
	for i := 1; i < len(iq4Numerators); i += 2 {
		first, second = sumIQ4(x, w, iq4Numerators[i]/element, iq4Numerators[i+1]/element)
		try(first)
		try(second)
	}
	return d
}

// iq4Sums are sum w T x and sum w T² of a candidate.
type iq4Sums struct{ tx, tt float32 }

// sumIQ4 returns the sums of two candidates at once, so that their additions overlap.
func sumIQ4(x, w []float32, inverseA, inverseB float32) (a, b iq4Sums) {
	w = w[:len(x)]
	for i, v := range x {
		ta := IQ4Values[nearestIQ4(float32(inverseA*v))&15]
		tb := IQ4Values[nearestIQ4(float32(inverseB*v))&15]
		wa, wb := float32(w[i]*ta), float32(w[i]*tb)
		a.tx += float32(wa * v)
		b.tx += float32(wb * v)
		a.tt += float32(wa * ta)
		b.tt += float32(wb * tb)
	}
	return a, b
}

// iq4Codes are the nearest codes of numbers from -128 on in steps of a half, which all
// the middles between values are multiples of.
var iq4Codes = func() (codes [512]byte) {
	code := 0
	for i := range codes {
		x := float32(i-256) / 2
		for code < 15 && x >= (IQ4Values[code]+IQ4Values[code+1])/2 {
			code++
		}
		codes[i] = byte(code)
	}
	return codes
}()

// nearestIQ4 returns the code of the nearest value, of two equally near the larger, and
// 15 for NaN. The sum in float64 rounds at most what is far from a middle.
func nearestIQ4(x float32) byte {
	if x <= IQ4Values[0] {
		return 0
	}
	if !(x < IQ4Values[15]) {
		return 15
	}
	return iq4Codes[int32(float64(float64(x)*2)+256)&511]
}
