//go:build !amd64 || noasm

package kernel

// None of these is called at generic.

func scaleBlocks([]float32, float32) int                       { return 0 }
func multiplyBlocks(x, s []float32) int                        { return 0 }
func rowSquareBlocks(*[lanes]float64, []float32) int           { return 0 }
func colSquareBlocks(dst []float64, x []float32, _, _ int) int { return 0 }
func statBlocks(sums *statLanes, w, x, y []float32) int        { return 0 }
func maxAbsBlocks(*[lanes]uint32, []float32) int               { return 0 }
func skipFinite(src []byte, width int, ones uint32) int        { return 0 }
