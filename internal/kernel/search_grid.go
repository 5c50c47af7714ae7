package kernel

import "math"

// NearestTuple returns the first of the tuples in list with the least error to x, which
// has 4 or 8 numbers (iq2_find_best_neighbour, iq3_find_best_neighbour and
// iq1_find_best_neighbour2):
//
//	sum w (scaled[level] - x)²
//
// A tuple is packed, three bits a level, the first lowest. ok is false if no error is
// below the largest float32.
func NearestTuple(list []uint32, x, w []float32, scaled *[8]float32) (tuple uint32, ok bool) {
	if len(x) != len(w) || len(x) != 4 && len(x) != 8 {
		panic(badTuple)
	}
	var errors [8][8]float32
	for i, v := range x {
		for level, s := range scaled {
			diff := s - v
			errors[i][level] = float32(float32(w[i]*diff) * diff)
		}
	}
	if len(x) == 4 {
		return nearest4(list, &errors)
	}
	return nearest8(list, &errors)
}

func nearest4(list []uint32, errors *[8][8]float32) (tuple uint32, ok bool) {
	var least float32 = math.MaxFloat32
	for _, t := range list {
		e := errors[0][t&7] + errors[1][t>>3&7] + errors[2][t>>6&7] + errors[3][t>>9&7]
		if e < least {
			least, tuple, ok = e, t, true
		}
	}
	return tuple, ok
}

func nearest8(list []uint32, errors *[8][8]float32) (tuple uint32, ok bool) {
	var least float32 = math.MaxFloat32
	for _, t := range list {
		e := errors[0][t&7] + errors[1][t>>3&7] + errors[2][t>>6&7] + errors[3][t>>9&7]
		e = e + errors[4][t>>12&7] + errors[5][t>>15&7] + errors[6][t>>18&7] + errors[7][t>>21&7]
		if e < least {
			least, tuple, ok = e, t, true
		}
	}
	return tuple, ok
}
