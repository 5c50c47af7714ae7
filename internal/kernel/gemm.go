package kernel

// GemmKernel computes tiles of a float32 matrix product at one level. The driver
// in package linalg cuts the matrices, packs the pieces and calls it.
//
// Unlike the rest of the package it may use fused multiply-add, so its sums
// differ in their last bits between levels. At one level they depend on nothing
// but the numbers and on where the driver cuts the inner dimension: the sum of
// one tile starts at +0 and takes its products in ascending k; each step rounds
// once at avx2 and avx512, which therefore give the same bits, and product and
// sum on their own at generic. NaNs keep whatever the CPU makes of them.
type GemmKernel struct {
	// MR and NR are the rows and columns of the tile.
	MR, NR int
	level  level
}

// Gemm returns the kernel of the level in use.
func Gemm() GemmKernel {
	switch l := current(); l {
	case avx512:
		return GemmKernel{14, 32, l}
	case avx2:
		return GemmKernel{6, 16, l}
	}
	return GemmKernel{4, 4, generic}
}

// Tile computes
//
//	C[i,j] = sum_k a[k*MR+i] * b[k*NR+j]
//
// or, to accumulate, C[i,j] += that sum with one addition, for i < rows and
// j < cols, both at most MR and NR. C has ldc numbers from row to row; a and b
// hold kc packed rows. Nothing outside the tile is touched, so tiles may be
// computed concurrently.
func (g GemmKernel) Tile(kc int, a, b, c []float32, ldc, rows, cols int, accumulate bool) {
	switch {
	case kc < 0 || rows < 0 || cols < 0:
		panic(badSize)
	case len(a) != kc*g.MR:
		panic(badA)
	case len(b) != kc*g.NR:
		panic(badB)
	case rows > g.MR || cols > g.NR || ldc < cols:
		panic(badTile)
	case rows == 0 || cols == 0:
		return
	case len(c) < (rows-1)*ldc+cols:
		panic(badC)
	}
	if rows == g.MR && cols == g.NR {
		g.fullTile(kc, a, b, c, ldc, accumulate)
		return
	}
	var edge [14 * 32]float32
	g.fullTile(kc, a, b, edge[:], g.NR, false)
	for i := range rows {
		sums, dst := edge[i*g.NR:][:cols], c[i*ldc:][:cols]
		if !accumulate {
			copy(dst, sums)
			continue
		}
		for j, sum := range sums {
			dst[j] += sum
		}
	}
}

// PackedA returns the length of rows x kc of A when packed, PackedB that of
// kc x cols of B: whole panels of MR rows and of NR columns.
func (g GemmKernel) PackedA(rows, kc int) int { return panels(rows, g.MR) * g.MR * kc }

// PackedB is described at [GemmKernel.PackedA].
func (g GemmKernel) PackedB(kc, cols int) int { return panels(cols, g.NR) * g.NR * kc }

// PackA packs rows x kc of A, stored with A[i,k] at src[i*lds+k], in panels
// of MR rows: dst[(p*kc+k)*MR+i] = A[p*MR+i,k], zeros beyond the last row.
func (g GemmKernel) PackA(dst, src []float32, lds, rows, kc int) {
	g.packAcross(dst, src, lds, rows, kc, g.MR)
}

// PackAT does the same for A[i,k] at src[k*lds+i].
func (g GemmKernel) PackAT(dst, src []float32, lds, rows, kc int) {
	g.packAlong(dst, src, lds, rows, kc, g.MR)
}

// PackB packs kc x cols of B, stored with B[k,j] at src[k*lds+j], in panels of
// NR columns: dst[(p*kc+k)*NR+j] = B[k,p*NR+j], zeros beyond the last column.
func (g GemmKernel) PackB(dst, src []float32, lds, kc, cols int) {
	g.packAlong(dst, src, lds, cols, kc, g.NR)
}

// PackBT does the same for B[k,j] at src[j*lds+k].
func (g GemmKernel) PackBT(dst, src []float32, lds, kc, cols int) {
	g.packAcross(dst, src, lds, cols, kc, g.NR)
}

// packAlong packs n numbers of each of kc rows of the source: the panel lies in
// the source as it does in dst, but for the distance of the rows.
func (g GemmKernel) packAlong(dst, src []float32, lds, n, kc, width int) {
	checkPack(dst, src, lds, n, kc, width, kc, n)
	for first := 0; first < n; first += width {
		panel := dst[:kc*width]
		dst = dst[kc*width:]
		if count := n - first; count < width {
			for k := range kc {
				row := panel[k*width:][:width]
				clear(row[copy(row, src[k*lds+first:][:count]):])
			}
			continue
		}
		if kc > 0 && !g.gather(panel, src[first:], lds, kc) {
			for k := range kc {
				copy(panel[k*width:][:width], src[k*lds+first:])
			}
		}
	}
}

// packAcross packs kc numbers of each of n rows of the source, which turns rows
// into columns.
func (g GemmKernel) packAcross(dst, src []float32, lds, n, kc, width int) {
	checkPack(dst, src, lds, n, kc, width, n, kc)
	for first := 0; first < n; first += width {
		panel := dst[:kc*width]
		dst = dst[kc*width:]
		count := min(width, n-first)
		done := 0
		if count == width {
			done = g.transpose(panel, src[first*lds:], lds, kc)
		} else {
			clear(panel)
		}
		for i := range count {
			row := src[(first+i)*lds:][:kc]
			for k := done; k < kc; k++ {
				panel[k*width+i] = row[k]
			}
		}
	}
}

// checkPack panics unless dst takes the panels and src holds rows x cols.
func checkPack(dst, src []float32, lds, n, kc, width, rows, cols int) {
	switch {
	case n < 0 || kc < 0:
		panic(badSize)
	case len(dst) != panels(n, width)*width*kc:
		panic(badDst)
	case lds < cols || rows > 0 && cols > 0 && len(src) < (rows-1)*lds+cols:
		panic(badSrc)
	}
}

func panels(n, width int) int { return (n + width - 1) / width }

// gemmTile is the full tile of the generic level, in two halves of two columns:
// more sums would not stay in registers.
func gemmTile(kc int, a, b, c []float32, ldc int, accumulate bool) {
	for half := 0; half < 4; half += 2 {
		var s00, s01, s10, s11, s20, s21, s30, s31 float32
		for k := range kc {
			l, r := (*[4]float32)(a[4*k:]), (*[2]float32)(b[4*k+half:])
			s00 += float32(l[0] * r[0])
			s01 += float32(l[0] * r[1])
			s10 += float32(l[1] * r[0])
			s11 += float32(l[1] * r[1])
			s20 += float32(l[2] * r[0])
			s21 += float32(l[2] * r[1])
			s30 += float32(l[3] * r[0])
			s31 += float32(l[3] * r[1])
		}
		for i, s := range [4][2]float32{{s00, s01}, {s10, s11}, {s20, s21}, {s30, s31}} {
			dst := (*[2]float32)(c[i*ldc+half:])
			if accumulate {
				s[0], s[1] = dst[0]+s[0], dst[1]+s[1]
			}
			*dst = s
		}
	}
}
