package block

// The searches by which ggml finds the scale of a group. Each follows its
// namesake in ggml-quants.c operation for operation, as ties and rounding errors
// decide which candidate wins.
//
// In all of them x is the group, w the weights, codes receives the integers.

// negligible is the magnitude below which a group counts as zero.
const negligible = 1e-15

// fitSymmetric looks for a scale s and codes l in -n..n-1 with s*l near x, and
// stores l+n (make_qx_quants, with rmse_type 1). The first candidate maps the
// element of the largest magnitude to -n; the others move n by tenths, up to 0.9.
//
//	maximise (sum w x l)² / sum w l²,  s = (sum w x l) / (sum w l²)
func fitSymmetric(codes []uint8, x, w []float32, n int32) float32 {
	codes, w = codes[:len(x)], w[:len(x)]
	size, element := peak(x)
	if size < negligible {
		clear(codes)
		return 0
	}
	inverse := func(step float32) float32 { return -(float32(n) + float32(0.1*step)) / element }
	inverseScale := float32(-n) / element
	first, second := sumSymmetric(x, w, inverseScale, inverse(-9), n)
	var scale float32
	if first.ll != 0 {
		scale = first.xl / first.ll
	}
	best := scale * first.xl
	try := func(sums symmetricSums, step float32) {
		if sums.ll > 0 && float32(sums.xl*sums.xl) > float32(best*sums.ll) {
			inverseScale = inverse(step)
			scale = sums.xl / sums.ll
			best = scale * sums.xl
		}
	}
	try(second, -9)
	for _, step := range [...]float32{-8, -6, -4, -2, 1, 3, 5, 7} {
		first, second = sumSymmetric(x, w, inverse(step), inverse(step+1), n)
		try(first, step)
		try(second, step+1)
	}
	first, _ = sumSymmetric(x, w, inverse(9), inverse(9), n)
	try(first, 9)
	symmetricCodes(codes, x, inverseScale, n)
	return scale
}

// symmetricSums are sum w x l and sum w l² of a candidate.
type symmetricSums struct{ xl, ll float32 }

// sumSymmetric returns the sums of two candidates at once, so that their additions overlap.
func sumSymmetric(x, w []float32, inverseA, inverseB float32, n int32) (a, b symmetricSums) {
	w = w[:len(x)]
	for i, v := range x {
		la := float32(clamp(nearest(float32(inverseA*v)), -n, n-1))
		lb := float32(clamp(nearest(float32(inverseB*v)), -n, n-1))
		wi := w[i]
		wx := float32(wi * v)
		a.xl += float32(wx * la)
		b.xl += float32(wx * lb)
		a.ll += float32(float32(wi*la) * la)
		b.ll += float32(float32(wi*lb) * lb)
	}
	return a, b
}

func symmetricCodes(codes []uint8, x []float32, inverseScale float32, n int32) {
	for i, v := range x {
		codes[i] = uint8(clamp(nearest(float32(inverseScale*v)), -n, n-1) + n)
	}
}

// fitDescent is fitSymmetric for a few codes (make_q3_quants): it starts from the
// first candidate, weighs by x², and moves one code at a time while that helps, in
// five sweeps at most.
func fitDescent(codes []uint8, x []float32, n int32) float32 {
	size, element := peak(x)
	if size < negligible {
		clear(codes[:len(x)])
		return 0
	}
	var room [16]float32
	levels := room[:len(x)]
	inverseScale := float32(-n) / element
	var xl, ll float32
	for i, v := range x {
		l := float32(clamp(nearest(float32(inverseScale*v)), -n, n-1))
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
			moved := float32(clamp(nearest(float32(v*restLL)/restXL), -n, n-1))
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

// affineSearch is the range of candidates of fitAffine: the codes span the group
// with n+from, n+from+by, ... steps, the last after count more.
type affineSearch struct {
	from, by float32
	count    int
	absolute bool // the error of an element counts as it is, not squared
}

// fitAffine looks for a scale s, a minimum m <= 0 and codes l in 0..n with s*l + m
// near x, and returns s and -m (make_qkx2_quants and make_qkx3_quants, which agree
// for finite numbers). Each candidate of the search gives codes; the weighted least
// squares for those give s and m; it stays if its error is less.
//
// The minimum of an accepted candidate is the one that the following candidates
// start from.
func fitAffine(codes []uint8, x, w []float32, n int32, search affineSearch) (scale, negativeMin float32) {
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
	inverseScale := float32(n) / (high - low)
	scale = 1 / inverseScale
	affineCodes(codes, x, low, inverseScale, n)
	least := affineError(codes, x, w, scale, low, search.absolute)
	var room [32]uint8
	tried := room[:len(x)]
	for step := 0; step <= search.count; step++ {
		inverseScale = (search.from + float32(search.by*float32(step)) + float32(n)) / (high - low)
		affineCodes(tried, x, low, inverseScale, n)
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
		if e := affineError(tried, x, w, newScale, newLow, search.absolute); e < least {
			copy(codes, tried)
			least, scale, low = e, newScale, newLow
		}
	}
	return scale, -low
}

func affineCodes(codes []uint8, x []float32, low, inverseScale float32, n int32) {
	codes = codes[:len(x)]
	for i, v := range x {
		codes[i] = uint8(clamp(nearest(float32(inverseScale*(v-low))), 0, n))
	}
}

// affineError returns the weighted sum of the errors, as they are or squared.
func affineError(codes []uint8, x, w []float32, scale, low float32, absolute bool) float32 {
	codes, w = codes[:len(x)], w[:len(x)]
	var sum float32
	for i, v := range x {
		diff := float32(scale*float32(codes[i])) + low - v
		if absolute {
			diff = magnitude(diff)
		} else {
			diff = float32(diff * diff)
		}
		sum += float32(w[i] * diff)
	}
	return sum
}

// fitPositive looks for a scale s and codes l in 0..n with s*l near x >= 0, and
// returns s (make_qp_quants): the least error among candidates that map the largest
// element to n, n ± 0.1, ... n ± 0.4, then single codes moved while that helps, in
// five sweeps at most. It has up to 16 elements.
//
// x comes from fitAffine, whose scale may come out a little below zero where rounding
// errors outweigh it. A negative code wraps to a byte, as it does in C.
func fitPositive(codes []uint8, x, w []float32, n int32) float32 {
	codes, w = codes[:len(x)], w[:len(x)]
	var high float32
	for _, v := range x {
		if !(high > v) {
			high = v
		}
	}
	if high < negligible {
		clear(codes)
		return 0
	}
	inverseScale := float32(n) / high
	for i, v := range x {
		codes[i] = uint8(nearest(float32(inverseScale * v)))
	}
	var least float32
	scale := 1 / inverseScale
	for i, v := range x {
		diff := v - float32(scale*float32(codes[i]))
		least += float32(float32(w[i]*diff) * diff)
	}
	for step := float32(-4); step <= 4; step++ {
		if step == 0 {
			continue
		}
		candidate := (float32(0.1*step) + float32(n)) / high
		scale := 1 / candidate
		var e float32
		for i, v := range x {
			l := min(nearest(float32(candidate*v)), n)
			diff := v - float32(scale*float32(l))
			e += float32(float32(w[i]*diff) * diff)
		}
		if e < least {
			least, inverseScale = e, candidate
		}
	}
	var xl, ll float32
	for i, v := range x {
		code := min(nearest(float32(inverseScale*v)), n)
		codes[i] = uint8(code)
		l := float32(code)
		xl += float32(float32(w[i]*v) * l)
		ll += float32(float32(w[i]*l) * l)
	}
	for range 5 {
		changed := false
		for i, v := range x {
			wx, l := float32(w[i]*v), float32(codes[i])
			restXL := xl - float32(wx*l)
			restLL := ll - float32(float32(w[i]*l)*l)
			if !(restXL > 0 && restLL > 0) {
				continue
			}
			code := min(nearest(float32(v*restLL)/restXL), n)
			if code == int32(codes[i]) {
				continue
			}
			moved := float32(code)
			restXL += float32(wx * moved)
			restLL += float32(float32(w[i]*moved) * moved)
			if float32(float32(restXL*restXL)*ll) > float32(float32(xl*xl)*restLL) {
				codes[i], xl, ll = uint8(code), restXL, restLL
				changed = true
			}
		}
		if !changed {
			break
		}
	}
	if !(ll > 0) {
		return 0
	}
	return xl / ll
}

// importance sets dst[i] = w[i]*sqrt(sigma2 + x[i]²), by which an element counts when
// columns have weights.
func importance(dst, x, w []float32, sigma2 float32) {
	dst, w = dst[:len(x)], w[:len(x)]
	for i, v := range x {
		dst[i] = w[i] * sqrt32(float32(sigma2)+float32(v*v))
	}
}

// sum adds in order.
func sum(x []float32) float32 {
	var total float32
	for _, v := range x {
		total += v
	}
	return total
}

func clamp(x, low, high int32) int32 { return min(max(x, low), high) }
