package kernel

import "math"

// The searches of IQ1, whose numbers become -1, 0 or 1 with a shift of an eighth up or
// down, times a scale. A group is sorted, so that two places decide: up to the first
// numbers become -1, from the second on 1. What a search gets are the sums over
// beginnings of the sorted group, of w x and of w. It tries all pairs of places with all
// shifts, in this order, and keeps the best:
//
//	maximise (sum w x q)² / sum w q²,  s = (sum w x q) / (sum w q²)

// The values of -1, 0 and 1, with the shift up and down.
var (
	ternaryUp   = [3]float32{-0.875, 0.125, 1.125}
	ternaryDown = [3]float32{-1.125, -0.125, 0.875}
)

// TernaryFit is what a search found. Downs has a bit for each shift that is down.
type TernaryFit struct {
	Scale         float32
	First, Second int
	Downs         uint8
	Found         bool

	best float32
}

// try takes a candidate if it is better.
func (f *TernaryFit) try(xq, qq float32, first, second int, downs uint8) {
	if qq > 0 && float32(xq*xq) > float32(f.best*qq) {
		f.Scale = xq / qq
		f.best = f.Scale * xq
		f.First, f.Second, f.Downs, f.Found = first, second, downs, true
	}
}

// FitTernary searches a group of 32 with one shift (quantize_row_iq1_s_impl).
func FitTernary(wx, w *[33]float32) TernaryFit {
	f := TernaryFit{best: -math.MaxFloat32}
	if ternaryVectors(&f, wx, w) {
		return f
	}
	for first := range wx {
		for second := first; second < len(wx); second++ {
			f.tryPair(wx, w, first, second)
		}
	}
	return f
}

// tryPair tries a pair of places with both shifts.
func (f *TernaryFit) tryPair(wx, w *[33]float32, first, second int) {
	firstX, middleX, lastX := wx[first], wx[second]-wx[first], wx[32]-wx[second]
	firstW, middleW, lastW := w[first], w[second]-w[first], w[32]-w[second]
	up, down := &ternaryUp, &ternaryDown
	f.try(
		float32(firstX*up[0])+float32(middleX*up[1])+float32(lastX*up[2]),
		float32(float32(firstW*up[0])*up[0])+float32(float32(middleW*up[1])*up[1])+float32(float32(lastW*up[2])*up[2]),
		first, second, 0)
	f.try(
		float32(firstX*down[0])+float32(middleX*down[1])+float32(lastX*down[2]),
		float32(float32(firstW*down[0])*down[0])+float32(float32(middleW*down[1])*down[1])+float32(float32(lastW*down[2])*down[2]),
		first, second, 1)
}

// FitTernaryPair searches a group of 16 whose halves have shifts of their own
// (quantize_row_iq1_m_impl), by the sums over the numbers of each half. Values differ by
// 1, so with sums S,
//
//	sum w x q  = S[16] q2 - S[first] - S[second]
//	sum w q²   = S[16] q2² + S[first] (q0² - q1²) + S[second] (q1² - q2²)
func FitTernaryPair(wx, w *[2][17]float32) TernaryFit {
	f := TernaryFit{best: -math.MaxFloat32}
	if ternaryPairVectors(&f, wx, w) {
		return f
	}
	for first := range 17 {
		for second := first; second < 17; second++ {
			f.tryPairs(wx, w, first, second)
		}
	}
	return f
}

// tryPairs tries a pair of places with all shifts.
func (f *TernaryFit) tryPairs(wx, w *[2][17]float32, first, second int) {
	upX0, upW0, downX0, downW0 := ternaryHalf(&wx[0], &w[0], first, second)
	upX1, upW1, downX1, downW1 := ternaryHalf(&wx[1], &w[1], first, second)
	f.try(upX0+upX1, upW0+upW1, first, second, 0)
	f.try(upX0+downX1, upW0+downW1, first, second, 2)
	f.try(downX0+upX1, downW0+upW1, first, second, 1)
	f.try(downX0+downX1, downW0+downW1, first, second, 3)
}

// ternaryHalf returns sum w x q and sum w q² of a half for both shifts. The squares of
// the values are 49, 1 and 81 of 64 with the shift up, and 81, 1 and 49 with that down.
func ternaryHalf(wx, w *[17]float32, first, second int) (upX, upW, downX, downW float32) {
	up, down := ternaryUp[2], ternaryDown[2]
	both := wx[first] + wx[second]
	upX = float32(wx[16]*up) - both
	downX = float32(wx[16]*down) - both
	upW = float32(float32(w[16]*up)*up) + float32(w[first]*0.75) + float32(w[second]*-1.25)
	downW = float32(float32(w[16]*down)*down) + float32(w[first]*1.25) + float32(w[second]*-0.75)
	return upX, upW, downX, downW
}
