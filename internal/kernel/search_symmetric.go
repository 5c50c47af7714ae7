package kernel

import "math"

// FitSymmetric looks, for each of len(scales) groups of up to 32 numbers, for a scale s
// and codes l in -n..n-1 with s*l near x, and stores l+n (make_qx_quants, with rmse_type
// 1). n is 1 to 64. The first candidate maps the number of the largest magnitude to -n;
// the others move n by tenths, up to 0.9.
//
//	maximise (sum w x l)² / sum w l²,  s = (sum w x l) / (sum w l²)
func FitSymmetric(codes []uint8, scales, x, w []float32, n int32) {
	size := groupSize(len(codes), scales, x, w)
	numerators := symmetricNumerators(n)
	for g := fitSymmetricEights(codes, scales, x, w, size, n, &numerators); g < len(scales); g++ {
		at := g * size
		scales[g] = canonical(fitSymmetric(codes[at:][:size], x[at:][:size], w[at:][:size], n, &numerators))
	}
}

// symmetricNumerators returns what the candidates divide by the number of the largest
// magnitude, in their order. The last is there twice, which changes nothing, as they
// are tried in pairs.
func symmetricNumerators(n int32) (numerators [20]float32) {
	numerators[0] = float32(-n)
	for i := range 9 {
		numerators[1+i] = -(float32(n) + float32(0.1*float32(i-9)))
		numerators[10+i] = -(float32(n) + float32(0.1*float32(i+1)))
	}
	numerators[19] = numerators[18]
	return numerators
}

func fitSymmetric(codes []uint8, x, w []float32, n int32, numerators *[20]float32) float32 {
	size, element := peak(x)
	if size < negligible {
		clear(codes)
		return 0
	}
	var scale, best, inverseScale float32
	try := func(sums symmetricSums, inverse float32) {
		if sums.ll > 0 && float32(sums.xl*sums.xl) > float32(best*sums.ll) {
			scale = sums.xl / sums.ll
			best = scale * sums.xl
			inverseScale = inverse
		}
	}
	for i := 0; i < len(numerators); i += 2 {
		inverseA, inverseB := numerators[i]/element, numerators[i+1]/element
		a, b := sumSymmetric(x, w, inverseA, inverseB, n)
		if i > 0 {
			try(a, inverseA)
		} else {
			inverseScale = inverseA
			if a.ll != 0 {
				scale = a.xl / a.ll
			}
			best = scale * a.xl
		}
		try(b, inverseB)
	}
	for i, v := range x {
		codes[i] = uint8(min(max(nearest(float32(inverseScale*v)), -n), n-1) + n)
	}
	return scale
}

// peak returns the largest magnitude of x and the number that has it first, 0 and 0 if
// all are zero.
func peak(x []float32) (size, element float32) {
	var top uint32 // magnitudes are ordered as their bits are
	for _, v := range x {
		top = max(top, math.Float32bits(v)&^(1<<31))
	}
	if top == 0 {
		return 0, 0
	}
	for _, v := range x {
		if math.Float32bits(v)&^(1<<31) == top {
			element = v
			break
		}
	}
	return math.Float32frombits(top), element
}

// symmetricSums are sum w x l and sum w l² of a candidate.
type symmetricSums struct{ xl, ll float32 }

// sumSymmetric returns the sums of two candidates at once, so that their additions overlap.
func sumSymmetric(x, w []float32, inverseA, inverseB float32, n int32) (a, b symmetricSums) {
	w = w[:len(x)]
	for i, v := range x {
		la := float32(min(max(nearest(float32(inverseA*v)), -n), n-1))
		lb := float32(min(max(nearest(float32(inverseB*v)), -n), n-1))
		wi := w[i]
		wx := float32(wi * v)
		a.xl += float32(wx * la)
		b.xl += float32(wx * lb)
		a.ll += float32(float32(wi*la) * la)
		b.ll += float32(float32(wi*lb) * lb)
	}
	return a, b
}
