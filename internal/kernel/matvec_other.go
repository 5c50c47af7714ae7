//go:build !amd64 || noasm

package kernel

// matVecBlocks is never called at generic.
func matVecBlocks(*[matVecRows][lanes]float32, Storage, []byte, []float32, int, Storage) int {
	return 0
}
