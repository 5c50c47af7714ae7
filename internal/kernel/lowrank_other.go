//go:build !amd64 || noasm

package kernel

func addLowRank(x, w []float32, rows, cols int, l, r []float32, rank int, scale float32) bool {
	return false
}

func packPanels(dst, r []float32, ldr, width, rank int) bool { return false }

func addPanels(x, w []float32, rows, pitch int, l, packed []float32, rank int, scale float32) {}
