package kernel

// panelCols is the number of columns worked on together. Four rows of a float32
// panel and its accumulator are 10 KiB, which leaves room in a first-level
// cache of 32 KiB; the results do not depend on it.
const panelCols = 512

// AddLowRank computes
//
//	X[i,j] += scale * sum_k L[i,k] * R[k,j]
//
// with X rows x cols, L rows x rank and R rank x cols. The sum starts at +0 and
// takes its products in ascending k, each product and each sum rounded to T;
// then come one product with scale and one addition, each rounded to T. It is
// carried out as written when rank or scale is 0 too: the addition of +0 turns
// -0 into +0. The levels above generic work on 16 or 64 columns of float32 at
// once, each in a lane of its own, and need no other order.
func AddLowRank[T Float](x []T, rows, cols int, l, r []T, rank int, scale T) {
	switch {
	case rows < 0 || cols < 0 || rank < 0:
		panic(badSize)
	case len(x) != rows*cols:
		panic(badX)
	case len(l) != rows*rank:
		panic(badL)
	case len(r) != rank*cols:
		panic(badR)
	}
	if x, ok := any(x).([]float32); ok {
		l, r, scale := any(l).([]float32), any(r).([]float32), float32(scale)
		if addLowRank(x, x, rows, cols, l, r, rank, scale) {
			return
		}
	}
	var buffer [panelCols]T
	for first := 0; first < cols; first += panelCols {
		acc := buffer[:min(panelCols, cols-first)]
		for i := range rows {
			clear(acc)
			accumulate(acc, l[i*rank:(i+1)*rank], r, first, cols)
			dst := x[i*cols+first:][:len(acc)]
			for j, sum := range acc {
				dst[j] = canonical(dst[j] + T(scale*sum))
			}
		}
	}
}

// MatMul computes
//
//	Dst[i,j] = sum_k A[i,k] * B[k,j]
//
// with Dst m x n, A m x k and B k x n, overwriting Dst. The sum starts at +0
// and takes its products in ascending k, each product and each sum rounded to
// T. It is meant for products of small factors.
func MatMul[T Float](dst, a, b []T, m, k, n int) {
	switch {
	case m < 0 || k < 0 || n < 0:
		panic(badSize)
	case len(dst) != m*n:
		panic(badDst)
	case len(a) != m*k:
		panic(badA)
	case len(b) != k*n:
		panic(badB)
	}
	for first := 0; first < n; first += panelCols {
		width := min(panelCols, n-first)
		for i := range m {
			acc := dst[i*n+first:][:width]
			clear(acc)
			accumulate(acc, a[i*k:(i+1)*k], b, first, n)
			for j, sum := range acc {
				acc[j] = canonical(sum)
			}
		}
	}
}

// accumulate computes
//
//	acc[j] += sum_k row[k] * R[k, first+j]
//
// where R has the given number of columns. The products are added to acc[j] one
// by one in ascending k. Taking four k at a time keeps the running sum in a
// register between them and changes no rounding.
func accumulate[T Float](acc, row, r []T, first, cols int) {
	n := len(acc)
	k := 0
	for ; k+4 <= len(row); k += 4 {
		l0, l1, l2, l3 := row[k], row[k+1], row[k+2], row[k+3]
		// Slices of exactly n elements let the compiler drop the bounds checks.
		r0 := r[k*cols+first:][:n]
		r1 := r[(k+1)*cols+first:][:n]
		r2 := r[(k+2)*cols+first:][:n]
		r3 := r[(k+3)*cols+first:][:n]
		for j, sum := range acc {
			sum += T(l0 * r0[j])
			sum += T(l1 * r1[j])
			sum += T(l2 * r2[j])
			sum += T(l3 * r3[j])
			acc[j] = sum
		}
	}
	for ; k < len(row); k++ {
		l0, r0 := row[k], r[k*cols+first:][:n]
		for j, sum := range acc {
			acc[j] = sum + T(l0*r0[j])
		}
	}
}
