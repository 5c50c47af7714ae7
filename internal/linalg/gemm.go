package linalg

import "github.com/loratool/loratool/internal/kernel"

// Sizes of the blocks, in numbers: a block of A (mc x kc, 0.5 MiB) stays in a
// second-level cache of 1 MiB, one packed panel of B (kc x NR, at most 64 KiB)
// is used once per panel of A, and a block of B (kc x nc) stays in the last
// level. If all of A fits one block, B is cut narrower, so that what has just
// been packed is still in the second level.
const (
	kc       = 512
	mc       = 252
	nc       = 4096
	narrowNC = 128
)

// Gemm computes
//
//	C = alpha * A * B + beta * C
//
// with A rows x inner, B inner x cols and C rows x cols; A and B may be
// transposed views, C may not and must not overlap them. C is not read if beta
// is 0. A is scaled by alpha before it is multiplied. The sum over the inner
// dimension is cut at multiples of 512; each piece is one sum of
// [kernel.GemmKernel] and the pieces are added in ascending order, so the result
// does not depend on threads, nor an element on the other rows and columns.
func Gemm(alpha float32, a, b Matrix, beta float32, c Matrix, threads int) {
	a.check()
	b.check()
	c.check()
	switch {
	case a.Rows != c.Rows || b.Cols != c.Cols || a.Cols != b.Rows:
		panic(badShape)
	case c.Transposed:
		panic(badC)
	case threads < 1:
		panic(badThreads)
	}
	k := kernel.Gemm()
	multiply(k, alpha, leftOperand{view: a}, rightOperand{view: b}, beta, c, threads)
}

// leftOperand is A of a product: a view that is packed block by block, or panels
// that were packed before.
type leftOperand struct {
	view   Matrix
	packed []float32 // blocks of kc columns, each panels of MR rows; nil if not packed
}

// rightOperand is B of a product, likewise.
type rightOperand struct {
	view   Matrix
	packed []float32 // blocks of kc rows, each panels of NR columns; nil if not packed
}

// packRight packs all of b for later products.
func packRight(k kernel.GemmKernel, b Matrix, threads int) rightOperand {
	width := (b.Cols + k.NR - 1) / k.NR * k.NR
	packed := make([]float32, width*b.Rows)
	parallel(threads, b.Rows, kc, func(from, to int) {
		for p := from; p < to; p += kc {
			depth := min(kc, to-p)
			packB(k, packed[p*width:][:depth*width], b.slice(p, p+depth, 0, b.Cols))
		}
	})
	return rightOperand{view: b, packed: packed}
}

func packA(k kernel.GemmKernel, dst []float32, a Matrix, alpha float32) {
	if a.Transposed {
		k.PackAT(dst, a.Data, a.Stride, a.Rows, a.Cols)
	} else {
		k.PackA(dst, a.Data, a.Stride, a.Rows, a.Cols)
	}
	if alpha != 1 {
		for i, v := range dst {
			dst[i] = alpha * v
		}
	}
}

func packB(k kernel.GemmKernel, dst []float32, b Matrix) {
	if b.Transposed {
		k.PackBT(dst, b.Data, b.Stride, b.Rows, b.Cols)
	} else {
		k.PackB(dst, b.Data, b.Stride, b.Rows, b.Cols)
	}
}

// multiply is [Gemm] after the checks.
func multiply(k kernel.GemmKernel, alpha float32, a leftOperand, b rightOperand, beta float32, c Matrix, threads int) {
	rows, cols, inner := c.Rows, c.Cols, a.view.Cols
	if rows == 0 || cols == 0 {
		return
	}
	if inner == 0 || alpha == 0 {
		scale(beta, c)
		return
	}
	if beta != 0 && beta != 1 {
		scale(beta, c)
	}
	if rows <= mc && cols > narrowNC {
		a = packLeft(k, alpha, a.view)
	}
	// The longer side is split, in whole tiles; each thread packs for itself.
	if rows > mc && (rows >= cols || b.packed != nil) {
		parallel(threads, rows, k.MR, func(from, to int) {
			multiplyBlocks(k, alpha, a, b, beta != 0, c, from, to, 0, cols)
		})
		return
	}
	parallel(threads, cols, k.NR, func(from, to int) {
		multiplyBlocks(k, alpha, a, b, beta != 0, c, 0, rows, from, to)
	})
}

// packLeft packs all of a, which must not have more than mc rows.
func packLeft(k kernel.GemmKernel, alpha float32, a Matrix) leftOperand {
	height := k.PackedA(a.Rows, 1)
	packed := make([]float32, height*a.Cols)
	for p := 0; p < a.Cols; p += kc {
		depth := min(kc, a.Cols-p)
		packA(k, packed[p*height:][:depth*height], a.slice(0, a.Rows, p, p+depth), alpha)
	}
	return leftOperand{view: a, packed: packed}
}

// multiplyBlocks computes rows [i0,i1) and columns [j0,j1) of the product; i0
// and j0 are multiples of the tile.
func multiplyBlocks(k kernel.GemmKernel, alpha float32, a leftOperand, b rightOperand, accumulate bool, c Matrix, i0, i1, j0, j1 int) {
	inner := a.view.Cols
	depth := min(kc, inner)
	blockRows := mc / k.MR * k.MR
	blockCols := nc
	if a.packed != nil {
		blockCols = narrowNC
	}
	if b.packed != nil {
		blockCols = j1 - j0
	}
	var bufferA, bufferB []float32
	if a.packed == nil {
		bufferA = make([]float32, k.PackedA(min(blockRows, i1-i0), depth))
	}
	if b.packed == nil {
		bufferB = make([]float32, k.PackedB(depth, min(blockCols, j1-j0)))
	}
	for j := j0; j < j1; j += blockCols {
		width := min(blockCols, j1-j)
		for p := 0; p < inner; p += kc {
			depth := min(kc, inner-p)
			var right []float32
			if b.packed != nil {
				right = b.packed[p*k.PackedB(1, b.view.Cols):][j*depth:][:k.PackedB(depth, width)]
			} else {
				right = bufferB[:k.PackedB(depth, width)]
				packB(k, right, b.view.slice(p, p+depth, j, j+width))
			}
			for i := i0; i < i1; i += blockRows {
				height := min(blockRows, i1-i)
				var left []float32
				if a.packed != nil {
					left = a.packed[p*k.PackedA(a.view.Rows, 1):][i*depth:][:k.PackedA(height, depth)]
				} else {
					left = bufferA[:k.PackedA(height, depth)]
					packA(k, left, a.view.slice(i, i+height, p, p+depth), alpha)
				}
				tiles(k, depth, left, right, c.slice(i, i+height, j, j+width), accumulate || p > 0)
			}
		}
	}
}

// tiles multiplies a packed block of A with a packed block of B.
func tiles(k kernel.GemmKernel, depth int, left, right []float32, c Matrix, accumulate bool) {
	for j := 0; j < c.Cols; j += k.NR {
		panel := right[j*depth:][:k.NR*depth]
		width := min(k.NR, c.Cols-j)
		for i := 0; i < c.Rows; i += k.MR {
			k.Tile(depth, left[i*depth:][:k.MR*depth], panel, c.Data[i*c.Stride+j:], c.Stride, min(k.MR, c.Rows-i), width, accumulate)
		}
	}
}

// scale computes C = beta * C; C becomes 0 if beta is 0, whatever it was.
func scale(beta float32, c Matrix) {
	for i := range c.Rows {
		row := c.row(i)
		if beta == 0 {
			clear(row)
			continue
		}
		for j, v := range row {
			row[j] = beta * v
		}
	}
}
