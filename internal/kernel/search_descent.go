package kernel

// FitDescent is [FitSymmetric] for a few codes (make_q3_quants): it starts from the
// first candidate, weighs by x², and moves one code at a time while that helps, in
// five sweeps at most.
func FitDescent(codes []uint8, scales, x []float32, n int32) {
	size := groupSize(len(codes), scales, x, x)
	for g := fitDescentEights(codes, scales, x, size, n); g < len(scales); g++ {
		scales[g] = canonical(fitDescent(codes[g*size:][:size], x[g*size:][:size], n))
	}
}

func fitDescent(codes []uint8, x []float32, n int32) float32 {
	size, element := peak(x)
	if size < negligible {
		clear(codes)
		return 0
	}
	var room [maxGroup]float32
	levels := room[:len(x)]
	inverseScale := float32(-n) / element
	var xl, ll float32
	for i, v := range x {
		l := float32(min(max(nearest(float32(inverseScale*v)), -n), n-1))
		levels[i] = l
		w := float32(v * v)
		xl += float32(float32(w*v) * l)
		ll += float32(float32(w*l) * l)
	}
	for range 5 {
		changed := false
		for i, v := range x {
			w, l := float32(v*v), levels[i]
			restXL := xl - float32(float32(w*v)*l)
			if !(restXL > 0) {
				continue
			}
			restLL := ll - float32(float32(w*l)*l)
			moved := float32(min(max(nearest(float32(v*restLL)/restXL), -n), n-1))
			if moved == l {
				continue
			}
			restXL += float32(float32(w*v) * moved)
			restLL += float32(float32(w*moved) * moved)
			if restLL > 0 && float32(float32(restXL*restXL)*ll) > float32(float32(xl*xl)*restLL) {
				levels[i], xl, ll = moved, restXL, restLL
				changed = true
			}
		}
		if !changed {
			break
		}
	}
	for i, l := range levels {
		codes[i] = uint8(int32(l) + n)
	}
	if !(ll > 0) {
		return 0
	}
	return xl / ll
}
