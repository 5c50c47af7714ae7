//go:build !amd64 || noasm

package kernel

// decodeBlocks and encodeBlocks are never called at generic.
func decodeBlocks(Storage, []float32, []byte, int) {}

func encodeBlocks(Storage, []byte, []float32, int) {}
