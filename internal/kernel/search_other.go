//go:build !amd64 || noasm

package kernel

// What vectors would take over; the portable code does all.

func fitAffineEights([]uint8, []float32, []float32, []float32, []float32, int, *AffineSearch) int {
	return 0
}

func fitSymmetricEights([]uint8, []float32, []float32, []float32, int, int32, *[20]float32) int {
	return 0
}

func fitDescentEights([]uint8, []float32, []float32, int, int32) int { return 0 }

func importanceBlocks([]float32, []float32, []float32, float32) int { return 0 }

func recodeBlocks([]uint8, []float32, float32, float32, int32, int32) int { return 0 }

func fitIQ4Eights([]float32, []float32, []float32, int) int { return 0 }

func recodeIQ4Blocks([]uint8, []float32, float32) int { return 0 }

func gridEights(*gridFit, []float32, []float32, []float32, *Grid, []float32, float32) bool {
	return false
}

func regridOne([]uint8, []float32, []float32, []float32, *Grid, float32, uint8) (lost uint8, done bool) {
	return 0, false
}

func nearestTupleBlocks([]uint32, []float32, []float32, *[8]float32, *float32) (done, at int) {
	return 0, -1
}

func ternaryVectors(*TernaryFit, *[33]float32, *[33]float32) bool { return false }

func ternaryPairVectors(*TernaryFit, *[2][17]float32, *[2][17]float32) bool { return false }
