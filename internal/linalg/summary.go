package linalg

import (
	"math"
	"math/bits"
)

// summary is what one pass over a matrix tells.
type summary struct {
	squares float64 // ||A||_F^2
	seed    uint64  // a hash of every number, by rows of the data
	// factor is a power of two to multiply the matrix with, so that products and
	// sums stay within float32: 1 unless its largest magnitude is far from 1.
	factor float64
}

// summarize reads a once and refuses numbers that are not finite. The rows of
// the data are summed and hashed on their own and then put together in order.
func summarize(a Matrix, threads int) (summary, error) {
	data := a
	if a.Transposed {
		data = a.T()
	}
	squares, hashes := make([]float64, data.Rows), make([]uint64, data.Rows)
	largest := make([]uint32, data.Rows)
	parallel(threads, data.Rows, 1, func(from, to int) {
		for i := from; i < to; i++ {
			squares[i], hashes[i], largest[i] = summarizeRow(data.row(i))
		}
	})
	s := summary{seed: mix(uint64(data.Rows)<<32 ^ uint64(data.Cols)), factor: 1}
	top := uint32(0)
	for i, sum := range squares {
		if largest[i] >= 0x7f800000 {
			return summary{}, notFinite(a, data, i)
		}
		s.squares += sum
		s.seed = mix(s.seed + hashes[i])
		top = max(top, largest[i])
	}
	const (
		usual    = 40 // exponents up to this are left alone
		furthest = 60 // the factor goes to a block of unit vectors, which must keep its digits
	)
	if _, e := math.Frexp(float64(math.Float32frombits(top))); top > 0 && (e > usual || e < -usual) {
		s.factor = math.Ldexp(1, -max(-furthest, min(furthest, e)))
	}
	return s, nil
}

// summarizeRow returns the sum of squares, in four interleaved sums, a hash and
// the bits of the largest magnitude.
func summarizeRow(x []float32) (squares float64, hash uint64, largest uint32) {
	const prime = 0x9e3779b185ebca87
	var s [4]float64
	h := [3]uint64{1, 2, 3}
	i := 0
	for ; i+4 <= len(x); i += 4 {
		p := (*[4]float32)(x[i:])
		v0, v1, v2, v3 := float64(p[0]), float64(p[1]), float64(p[2]), float64(p[3])
		s[0] += v0 * v0
		s[1] += v1 * v1
		s[2] += v2 * v2
		s[3] += v3 * v3
		b0, b1, b2, b3 := math.Float32bits(p[0]), math.Float32bits(p[1]), math.Float32bits(p[2]), math.Float32bits(p[3])
		largest = max(largest, b0&^(1<<31), b1&^(1<<31), b2&^(1<<31), b3&^(1<<31))
		h[0] = bits.RotateLeft64((h[0]^uint64(b0)<<32^uint64(b1))*prime, 29)
		h[1] = bits.RotateLeft64((h[1]^uint64(b2)<<32^uint64(b3))*prime, 29)
	}
	for ; i < len(x); i++ {
		v, b := float64(x[i]), math.Float32bits(x[i])
		s[i&3] += v * v
		largest = max(largest, b&^(1<<31))
		h[2] = bits.RotateLeft64((h[2]^uint64(b))*prime, 29)
	}
	return (s[0] + s[1]) + (s[2] + s[3]), mix(h[0]) ^ mix(h[1]+1) ^ mix(h[2]+2), largest
}

// notFinite names the first element of row i of the data that is not finite.
func notFinite(a, data Matrix, i int) error {
	for j, v := range data.row(i) {
		if v-v != 0 {
			if a.Transposed {
				i, j = j, i
			}
			return &NotFiniteError{Row: i, Col: j, Value: v}
		}
	}
	return nil
}
