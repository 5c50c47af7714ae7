package loftq

import "fmt"

// Normal is the NormalFloat of LoftQ with 2, 3 or 4 bits: a number is one of 2^bits
// levels times the largest magnitude of its block of consecutive numbers.
//
//	Q = level·m,  the level nearest to W/m, the lower one on a tie
//
// in float32, the quotient, the distances and the product rounded. Quotients of
// a block of zeros are NaN, which is nearest to the first level: it stays zeros.
// (LoftQ: utils.py, NFQuantizer; PEFT had the same until 0.19.) The levels of 4 bits
// are those of NF4, but bitsandbytes multiplies with a reciprocal and compares with
// thresholds, so single codes next to a threshold differ: see [FourBit].
type Normal struct {
	Bits      int
	BlockSize int // 0 stands for 64
}

// normalLevels are quantiles of the normal distribution. With Phi its distribution
// function, n = 2^bits and offset = 1 - (1/32 + 1/30)/2 they are
//
//	 Phi^-1(offset - (offset-1/2)·i/(n/2))      i = 0 .. n/2-1
//	 0
//	-Phi^-1(offset - (offset-1/2)·i/(n/2-1))    i = 0 .. n/2-2
//
// divided by the largest, in float32: one more above 0 than below.
var normalLevels = map[int][]float32{
	2: {-1, 0, 0.33791524171829224, 1},
	3: {
		-1, -0.4786292016506195, -0.217141792178154, 0,
		0.16093020141124725, 0.33791524171829224, 0.5626170039176941, 1,
	},
	4: {
		-1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
		-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0,
		0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
		0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1,
	},
}

// RoundTrip implements [Quantizer].
func (n Normal) RoundTrip(dst, src []float32, rows, cols, threads int) error {
	checkSize(src, rows, cols, badWeight)
	checkSize(dst, rows, cols, badDst)
	levels, ok := normalLevels[n.Bits]
	size := n.BlockSize
	if size == 0 {
		size = 64
	}
	switch {
	case !ok:
		return &OptionError{"bits", fmt.Sprintf("there is no NormalFloat of %d", n.Bits)}
	case size < 1:
		return &OptionError{"block size", fmt.Sprintf("%d is not positive", size)}
	}
	parallel(threads, len(src), size, func(from, to int) {
		for i := from; i < to; i += size {
			end := min(i+size, to)
			normalBlock(dst[i:end], src[i:end], levels)
		}
	})
	return nil
}

func normalBlock(dst, src, levels []float32) {
	largest := float32(0)
	for _, v := range src {
		largest = max(largest, v, -v)
	}
	for i, v := range src {
		x := float32(v / largest)
		nearest, least := levels[0], distance(x, levels[0])
		for _, level := range levels[1:] {
			if d := distance(x, level); d < least {
				nearest, least = level, d
			}
		}
		dst[i] = nearest * largest
	}
}

func distance(x, y float32) float32 {
	d := x - y
	return max(d, -d)
}
