//go:build !noasm

package kernel

// fullTile computes a full tile.
func (g GemmKernel) fullTile(kc int, a, b, c []float32, ldc int, accumulate bool) {
	if kc == 0 { // there is no first element to point to
		a, b = c, c
	}
	switch g.level {
	case avx512:
		gemmTileAVX512(kc, &a[0], &b[0], &c[0], ldc, accumulate)
	case avx2:
		gemmTileAVX2(kc, &a[0], &b[0], &c[0], ldc, accumulate)
	default:
		gemmTile(kc, a, b, c, ldc, accumulate)
	}
}

// transpose packs the first k of a full panel and returns how many it took. Only
// rows and stores of eight are fast, so a panel of 14 is two of eight that share
// two rows.
func (g GemmKernel) transpose(panel, src []float32, lds, kc int) int {
	blocks := kc / 8
	if g.level == generic || blocks == 0 {
		return 0
	}
	width := len(panel) / kc
	if width < 8 {
		transpose6AVX2(&panel[0], width, &src[0], lds, blocks)
		return 8 * blocks
	}
	for at := 0; at < width; at += 8 {
		at = min(at, width-8)
		transpose8AVX2(&panel[at], width, &src[at*lds], lds, blocks)
	}
	return 8 * blocks
}

// gather packs a full panel of kc rows and reports whether it did.
func (g GemmKernel) gather(panel, src []float32, lds, kc int) bool {
	if g.level == generic {
		return false
	}
	width := len(panel) / kc
	_ = src[(kc-1)*lds+width-1]
	switch width {
	case 6:
		gather6AVX2(&panel[0], &src[0], lds, kc)
	case 14:
		gather14AVX2(&panel[0], &src[0], lds, kc)
	case 16:
		gather16AVX2(&panel[0], &src[0], lds, kc)
	case 32:
		gather32AVX2(&panel[0], &src[0], lds, kc)
	}
	return true
}
