package linalg

import "math"

// dense64 is a float64 matrix without gaps.
type dense64 struct {
	data       []float64
	rows, cols int
}

func newDense64(rows, cols int) dense64 {
	return dense64{make([]float64, rows*cols), rows, cols}
}

func (m dense64) row(i int) []float64 { return m.data[i*m.cols:][:m.cols] }

// float32s returns the matrix rounded to float32.
func (m dense64) float32s() Matrix {
	dst := NewMatrix(m.rows, m.cols, nil)
	for i, v := range m.data {
		dst.Data[i] = float32(v)
	}
	return dst
}

// Sizes of the blocks of [gram]: the terms of a sum that are worked on together,
// and the rows whose terms (256 KiB) stay in a second-level cache meanwhile.
const (
	gramDepth = 512
	gramRows  = 64
)

// gram computes G = X * X^T in float64 for X with contiguous rows. Each sum goes
// in ascending order in pieces of gramDepth, which are added in ascending order.
// Only the lower triangle is computed; the upper one is its mirror.
func gram[T float32 | float64](x []T, rows, cols, stride int, g dense64, threads int) {
	clear(g.data)
	// Rows are dealt in units so that each thread gets about as much of the triangle: unit u
	// of the first half goes with its mirror.
	units := (rows + 3) / 4
	parallel(threads, (units+1)/2, 1, func(from, to int) {
		wide := newDense64(4*units, min(gramDepth, cols))
		for k := 0; k < cols; k += gramDepth {
			depth := min(gramDepth, cols-k)
			widen(wide, x, rows, stride, 0, k, depth)
			for j0 := 0; j0 < rows; j0 += gramRows {
				j1 := min(j0+gramRows, 4*units)
				for u := from; u < to; u++ {
					gramUnit(wide, depth, g, 4*u, j0, j1)
					if mirror := units - 1 - u; mirror != u {
						gramUnit(wide, depth, g, 4*mirror, j0, j1)
					}
				}
			}
		}
	})
	for i := range rows {
		for j := range i {
			g.data[j*g.cols+i] = g.data[i*g.cols+j]
		}
	}
}

// gram32 computes X * X^T in float32.
func gram32(x Matrix, threads int) dense64 {
	product := NewMatrix(x.Rows, x.Rows, nil)
	Gemm(1, x, x.T(), 0, product, threads)
	g := newDense64(x.Rows, x.Rows)
	for i, v := range product.Data {
		g.data[i] = float64(v)
	}
	return g
}

// gramUnit adds the products of four rows from i on with rows [j0,j1), up to the
// diagonal of G.
func gramUnit(wide dense64, depth int, g dense64, i, j0, j1 int) {
	left := dense64{wide.data[i*wide.cols:], 4, wide.cols}
	for j := j0; j < min(j1, i+4, g.rows); j += 2 {
		s := dots(left, wide.row(j)[:depth], wide.row(j + 1)[:depth])
		for x := range min(4, g.rows-i) {
			for y := range min(2, g.rows-j) {
				g.data[(i+x)*g.cols+j+y] += s[2*x+y]
			}
		}
	}
}

// widen copies depth numbers of as many rows as dst has, zeros beyond the last row.
func widen[T float32 | float64](dst dense64, x []T, rows, stride, first, k, depth int) {
	for i := range dst.rows {
		to := dst.row(i)[:depth]
		if first+i >= rows {
			clear(to)
			continue
		}
		for j, v := range x[(first+i)*stride+k:][:depth] {
			to[j] = float64(v)
		}
	}
}

// dots returns the dot products of four rows with two, row by row.
func dots(a dense64, b0, b1 []float64) [8]float64 {
	n := len(b0)
	a0, a1, a2, a3, b1 := a.row(0)[:n], a.row(1)[:n], a.row(2)[:n], a.row(3)[:n], b1[:n]
	var s00, s01, s10, s11, s20, s21, s30, s31 float64
	for k, x := range b0 {
		y := b1[k]
		s00 += a0[k] * x
		s01 += a0[k] * y
		s10 += a1[k] * x
		s11 += a1[k] * y
		s20 += a2[k] * x
		s21 += a2[k] * y
		s30 += a3[k] * x
		s31 += a3[k] * y
	}
	return [8]float64{s00, s01, s10, s11, s20, s21, s30, s31}
}

// multiply64 computes C = A * B in float64; B may be float32 and has A.cols
// rows. Each sum goes in ascending order, four terms at a time.
func multiply64[T float32 | float64](a dense64, b []T, bStride int, c dense64, threads int) {
	const width = 256 // columns worked on together; four rows of B and one of C take 10 KiB
	parallel(threads, c.cols, width, func(from, to int) {
		terms := newDense64(4, width)
		for j := from; j < to; j += width {
			n := min(width, to-j)
			for i := range c.rows {
				clear(c.row(i)[j : j+n])
			}
			for k := 0; k < a.cols; k += 4 {
				for t := range min(4, a.cols-k) {
					row := terms.row(t)
					for i, v := range b[(k+t)*bStride+j:][:n] {
						row[i] = float64(v)
					}
				}
				if k+4 > a.cols {
					for i := range c.rows {
						for t := range a.cols - k {
							axpy(a.row(i)[k+t], terms.row(t)[:n], c.row(i)[j:])
						}
					}
					continue
				}
				t0, t1, t2, t3 := terms.row(0)[:n], terms.row(1)[:n], terms.row(2)[:n], terms.row(3)[:n]
				for i := range c.rows {
					f := (*[4]float64)(a.row(i)[k:])
					f0, f1, f2, f3 := f[0], f[1], f[2], f[3]
					sums := c.row(i)[j:][:n]
					for x, s := range sums {
						sums[x] = s + f0*t0[x] + f1*t1[x] + f2*t2[x] + f3*t3[x]
					}
				}
			}
		}
	})
}

// axpy computes y += f * x.
func axpy(f float64, x, y []float64) {
	y = y[:len(x)]
	for i, v := range x {
		y[i] += f * v
	}
}

// dot returns the sum of x[i]*y[i], in four interleaved sums.
func dot(x, y []float64) float64 {
	y = y[:len(x)]
	var s0, s1, s2, s3 float64
	i := 0
	for ; i+4 <= len(x); i += 4 {
		p, q := (*[4]float64)(x[i:]), (*[4]float64)(y[i:])
		s0 += p[0] * q[0]
		s1 += p[1] * q[1]
		s2 += p[2] * q[2]
		s3 += p[3] * q[3]
	}
	for ; i < len(x); i++ {
		s0 += x[i] * y[i]
	}
	return (s0 + s1) + (s2 + s3)
}

// norm returns the Euclidean norm; x must be scaled so that squares neither
// overflow nor vanish.
func norm(x []float64) float64 { return math.Sqrt(dot(x, x)) }

func scaleVector(f float64, x []float64) {
	for i := range x {
		x[i] *= f
	}
}

// maxAbs returns the largest magnitude.
func maxAbs(x []float64) float64 {
	largest := 0.0
	for _, v := range x {
		largest = max(largest, math.Abs(v))
	}
	return largest
}
