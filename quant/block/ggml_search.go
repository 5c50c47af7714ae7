package block

import "github.com/loratool/loratool/internal/kernel"

// The searches by which ggml finds the scale of a group, but for those that package
// kernel has. Each follows its namesake in ggml-quants.c operation for operation, as
// ties and rounding errors decide which candidate wins.
//
// In all of them x is the group, w the weights, codes receives the integers.

// negligible is the magnitude below which a group counts as zero.
const negligible = 1e-15

// affineSearches are the candidates of a type with minima, for rows with and without
// weights.
type affineSearches struct{ plain, weighted kernel.AffineSearch }

// The searches of the types, by their largest code. Those of rows without weights are of
// the K types.
var (
	affine3  = affineSearches{candidates(3, -0.5, 0.1, 15, true), candidates(3, -0.9, 0.05, 36, false)}
	affine15 = affineSearches{candidates(15, -1, 0.1, 20, false), candidates(15, -0.9, 0.05, 36, false)}
	affine31 = affineSearches{candidates(31, -0.5, 0.1, 15, false), candidates(31, -0.9, 0.05, 36, false)}
)

// candidates span most+from, most+from+by, ... steps, the last after count more.
func candidates(most int32, from, by float32, count int, absolute bool) kernel.AffineSearch {
	search := kernel.AffineSearch{Most: most, Absolute: absolute}
	for step := range count + 1 {
		search.Spans = append(search.Spans, from+float32(by*float32(step))+float32(most))
	}
	return search
}

// fitPositive looks for a scale s and codes l in 0..n with s*l near x >= 0, and
// returns s (make_qp_quants): the least error among candidates that map the largest
// element to n, n ± 0.1, ... n ± 0.4, then single codes moved while that helps, in
// five sweeps at most. It has up to 16 elements.
//
// x comes from [kernel.FitAffine], whose scale may come out a little below zero where rounding
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

// sum adds in order.
func sum(x []float32) float32 {
	var total float32
	for _, v := range x {
		total += v
	}
	return total
}

func clamp(x, low, high int32) int32 { return min(max(x, low), high) }
