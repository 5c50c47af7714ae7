package loftq

import (
	"fmt"
	"math"
)

// Uniform is the uniform quantization of LoftQ with 2, 3 or 4 bits: 2^bits levels
// at equal distances over the whole weight, from mean - 2σ to mean + 2σ.
//
//	C = W clipped to mean ± 2·σ
//	a = max C - min C + 1e-8
//	Q = round((C - min C)/a·n)/n·a + min C,   n = 2^bits - 1
//
// in float32, each operation rounded, round being to even on a tie. σ is that of a
// sample, with count-1; mean and σ are summed in float64. (LoftQ:
// glue/utils_qaunt.py, quant_uniform; its other quantizer of that name, of blocks, is
// not the one that the published scripts use.)
type Uniform struct{ Bits int }

// RoundTrip implements [Quantizer].
func (u Uniform) RoundTrip(dst, src []float32, rows, cols, threads int) error {
	checkSize(src, rows, cols, badWeight)
	checkSize(dst, rows, cols, badDst)
	if u.Bits < 2 || u.Bits > 4 {
		return &OptionError{"bits", fmt.Sprintf("uniform quantization has 2, 3 or 4, not %d", u.Bits)}
	}
	if err := checkFinite("what is to be quantized", src, rows, cols, threads); err != nil {
		return err
	}
	low, high := uniformRange(src, rows, cols, threads)
	width := float32(high-low) + 1e-8
	if math.IsInf(float64(width), 1) {
		return &RangeError{low, high}
	}
	steps := float32(int(1)<<u.Bits - 1)
	parallel(threads, rows, bandRows, func(from, to int) {
		for i := from * cols; i < to*cols; i++ {
			x := float32(min(max(src[i], low), high)-low) / width
			code := float32(math.RoundToEven(float64(float32(x * steps))))
			dst[i] = float32(float32(code/steps)*width) + low
		}
	})
	return nil
}

// uniformRange returns the least and the largest number of what is left after
// clipping.
func uniformRange(src []float32, rows, cols, threads int) (low, high float32) {
	sums := make([]float64, rows)
	lows, highs := make([]float32, rows), make([]float32, rows)
	eachRow := func(f func(i int, row []float32)) {
		parallel(threads, rows, bandRows, func(from, to int) {
			for i := from; i < to; i++ {
				f(i, src[i*cols:(i+1)*cols])
			}
		})
	}
	eachRow(func(i int, row []float32) {
		lows[i], highs[i] = row[0], row[0]
		for _, v := range row {
			sums[i] += float64(v)
			lows[i], highs[i] = min(lows[i], v), max(highs[i], v)
		}
	})
	low, high = lows[0], highs[0]
	for i := range rows {
		low, high = min(low, lows[i]), max(high, highs[i])
	}
	mean := sum(sums) / float64(len(src))
	eachRow(func(i int, row []float32) {
		sums[i] = 0
		for _, v := range row {
			d := float64(v) - mean
			sums[i] += float64(d * d) // not fused: the same everywhere
		}
	})
	spread := 2 * float32(math.Sqrt(sum(sums)/float64(max(len(src)-1, 1))))
	return max(low, float32(mean)-spread), min(high, float32(mean)+spread)
}
