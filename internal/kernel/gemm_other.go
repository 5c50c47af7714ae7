//go:build !amd64 || noasm

package kernel

// fullTile computes a full tile.
func (g GemmKernel) fullTile(kc int, a, b, c []float32, ldc int, accumulate bool) {
	gemmTile(kc, a, b, c, ldc, accumulate)
}

// transpose packs the first k of a full panel and returns how many it took.
func (g GemmKernel) transpose(panel, src []float32, lds, kc int) int { return 0 }

// gather packs a full panel and reports whether it did.
func (g GemmKernel) gather(panel, src []float32, lds, kc int) bool { return false }
