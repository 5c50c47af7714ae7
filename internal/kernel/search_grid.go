package kernel

import "math"

// The searches of the types whose codes are indices into a grid. A level l stands for
// 2l+1 in the searches here; a group has up to 32 numbers, in whole tuples.

// gridValues are what levels stand for.
var gridValues = [8]float32{1, 3, 5, 7, 9, 11, 13, 15}

// GridFit is what a search over a grid found. Outside are the tuples whose nearest levels
// were not in the grid, as bits.
type GridFit struct {
	Scale   float32
	Outside uint8
	Found   bool // any candidate was better than nothing
	Lost    bool // of some tuple every error was infinite
}

// FitGrid looks for a scale s and levels l, in the grid, with s*(2l+1) near x. Candidates
// map extent to each of the spans, and choose the nearest levels; a tuple outside the grid
// becomes the neighbour with the least error, each number counting by its root (see
// [NearestTuple]). The best candidate stays, with w the weights:
//
//	maximise (sum w x q)² / sum w q²,  s = (sum w x q) / (sum w q²),  q = 2l+1
func FitGrid(levels []uint8, x, w, roots []float32, grid *Grid, spans []float32, extent float32) GridFit {
	checkGrid(levels, x, w, roots, grid)
	f := gridFit{levels: levels}
	if gridEights(&f, x, w, roots, grid, spans, extent) {
		return f.GridFit
	}
	var room [maxGroup]uint8
	tried := room[:len(x)]
	for _, span := range spans {
		inverse := span / extent
		outside, lost := chooseTuples(tried, x, roots, grid, inverse, 1/inverse, 0xff)
		f.Lost = f.Lost || lost != 0
		xq, qq := sumGrid(tried, x, w)
		if f.better(xq, qq) {
			f.Outside = outside
			copy(levels, tried)
		}
	}
	return f.GridFit
}

// Regrid chooses the levels of some tuples, those whose bits are set, again for a scale. It
// returns the sums with all levels, and whether of some tuple every error was infinite.
func Regrid(levels []uint8, x, w, roots []float32, grid *Grid, scale float32, set uint8) (xq, qq float32, lost bool) {
	checkGrid(levels, x, w, roots, grid)
	failed, done := regridOne(levels, x, w, roots, grid, scale, set)
	if !done {
		_, failed = chooseTuples(levels, x, roots, grid, 1/scale, scale, set)
	}
	xq, qq = sumGrid(levels, x, w)
	return xq, qq, failed != 0
}

func checkGrid(levels []uint8, x, w, roots []float32, grid *Grid) {
	if len(levels) != len(x) || len(w) != len(x) || len(roots) != len(x) || len(x) > maxGroup || len(x)%grid.width != 0 {
		panic(badTuple)
	}
}

// gridFit is a search in progress.
type gridFit struct {
	GridFit
	levels []uint8
	best   float32
}

// better takes the sums of a candidate if they are better.
func (f *gridFit) better(xq, qq float32) bool {
	if !(qq > 0 && float32(xq*xq) > float32(f.best*qq)) {
		return false
	}
	f.Scale = xq / qq
	f.best = f.Scale * xq
	f.Found = true
	return true
}

// chooseTuples sets the levels of the tuples in a set. Bits of the results are tuples.
func chooseTuples(levels []uint8, x, roots []float32, grid *Grid, inverse, scale float32, set uint8) (outside, lost uint8) {
	var scaled [8]float32
	for i, v := range gridValues[:grid.radix] {
		scaled[i] = float32(scale * v)
	}
	width, most := grid.width, int32(grid.radix-1)
	for k := range len(x) / width {
		if set>>k&1 == 0 {
			continue
		}
		x, tuple := x[k*width:][:width], levels[k*width:][:width]
		for i, v := range x {
			tuple[i] = uint8(min(max(nearest(float32(0.5*(float32(inverse*v)-1))), 0), most))
		}
		number := grid.Number(tuple)
		if grid.places[number] >= 0 {
			continue
		}
		outside |= 1 << k
		packed, ok := NearestTuple(grid.Neighbours(number), x, roots[k*width:][:width], &scaled)
		if !ok {
			lost |= 1 << k
			packed = 0
		}
		for i := range tuple {
			tuple[i] = uint8(packed >> (3 * i) & 7)
		}
	}
	return outside, lost
}

// sumGrid returns sum w x q and sum w q².
func sumGrid(levels []uint8, x, w []float32) (xq, qq float32) {
	w, levels = w[:len(x)], levels[:len(x)]
	for i, v := range x {
		q := gridValues[levels[i]&7]
		xq += float32(float32(w[i]*v) * q)
		qq += float32(float32(w[i]*q) * q)
	}
	return xq, qq
}

// NearestTuple returns the first of the tuples in list with the least error to x, which
// has 4 or 8 numbers (iq2_find_best_neighbour, iq3_find_best_neighbour and
// iq1_find_best_neighbour2):
//
//	sum w (scaled[level] - x)²
//
// Tuples are packed, as in [Grid]. ok is false if no error is below the largest float32.
func NearestTuple(list []uint32, x, w []float32, scaled *[8]float32) (tuple uint32, ok bool) {
	if len(x) != len(w) || len(x) != 4 && len(x) != 8 {
		panic(badTuple)
	}
	var least float32 = math.MaxFloat32
	done, at := nearestTupleBlocks(list, x, w, scaled, &least)
	if at >= 0 {
		tuple, ok = list[at], true
	}
	if done == len(list) {
		return tuple, ok
	}
	var errors [8][8]float32
	for i, v := range x {
		for level, s := range scaled {
			diff := s - v
			errors[i][level] = float32(float32(w[i]*diff) * diff)
		}
	}
	for _, t := range list[done:] {
		e := errors[0][t&7] + errors[1][t>>3&7] + errors[2][t>>6&7] + errors[3][t>>9&7]
		if len(x) == 8 {
			e = e + errors[4][t>>12&7] + errors[5][t>>15&7] + errors[6][t>>18&7] + errors[7][t>>21&7]
		}
		if e < least {
			least, tuple, ok = e, t, true
		}
	}
	return tuple, ok
}
