package kernel

import (
	"encoding/binary"
	"math"

	"github.com/x448/float16"
)

// MatVec computes y = W·x the way a run in limited precision does,
//
//	dst[i] = sum_j W[i,j]*x[j]
//
// with W rows x cols of type s, x of length cols and dst of length rows. Each product
// and each sum is rounded to float32 and then to the type in, nearest even: F32 stands
// for hardware that adds up in float32, s itself for one that does not. Every sum has
// eight lanes that start at +0: lane j%8 takes the products of its columns in ascending
// j; then lanes i and i+4 are added, then i and i+2, then 0 and 1. Real hardware has
// orders of its own, so this is a sample of what such a run does and not a copy.
//
// For 16-bit types both roundings together are one: the product of two numbers of the
// type is exact in float32 unless it is subnormal there, and of a sum float32 keeps
// more than twice the bits. s and in are F32, BF16 or F16.
func MatVec(dst []float32, s Storage, w []byte, x []float32, rows, cols int, in Storage) {
	switch {
	case s < F32 || s > F16 || in < F32 || in > F16:
		panic(badType)
	case rows < 0 || cols < 0:
		panic(badSize)
	case len(w) != rows*cols*s.size():
		panic(badW)
	case len(x) != cols:
		panic(badX)
	case len(dst) != rows:
		panic(badDst)
	}
	pitch := cols * s.size()
	for i := 0; i < rows; i += matVecRows {
		var sums [matVecRows][lanes]float32
		n := min(matVecRows, rows-i)
		done := 0
		if current() != generic {
			done = matVecBlocks(&sums, s, w[i*pitch:(i+n)*pitch], x, n, in)
		}
		for row := range n {
			rest := w[(i+row)*pitch:][done*s.size() : pitch]
			dst[i+row] = matVecRow(&sums[row], s, rest, x[done:], in)
		}
	}
}

// matVecRows is how many rows have their sums at once.
const matVecRows = 4

// matVecRow adds columns that begin at lane 0 and returns the sum of the lanes.
func matVecRow(l *[lanes]float32, s Storage, w []byte, x []float32, in Storage) float32 {
	size := s.size()
	for j, v := range x {
		product := in.round(s.number(w[j*size:]) * v)
		l[j%lanes] = in.round(l[j%lanes] + product)
	}
	for half := lanes / 2; half > 0; half /= 2 {
		for i := range half {
			l[i] = in.round(l[i] + l[i+half])
		}
	}
	return canonical(l[0])
}

// number decodes the first element of src; a NaN may get any bits.
func (s Storage) number(src []byte) float32 {
	switch s {
	case BF16:
		return math.Float32frombits(uint32(binary.LittleEndian.Uint16(src)) << 16)
	case F16:
		return float16.Frombits(binary.LittleEndian.Uint16(src)).Float32()
	}
	return math.Float32frombits(binary.LittleEndian.Uint32(src))
}

// round rounds a float32 to the type; a NaN may get any bits. The conversion keeps
// the compiler from fusing what is rounded here with what comes next.
func (s Storage) round(v float32) float32 {
	v = float32(v)
	switch {
	case s == F32 || v != v:
		return v
	case s == F16:
		return float16.Fromfloat32(v).Float32()
	}
	b := math.Float32bits(v)
	return math.Float32frombits((b + 0x7fff + b>>16&1) &^ 0xffff)
}
