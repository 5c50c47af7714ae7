package block_test

import (
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/quant/block"
)

// stepBound returns how far an element may be moved without weights, as a part of the
// largest magnitude of its block, by the definition of the type; 0 where a search leaves
// no bound but that numbers keep their size.
//
// A half has 11 bits, so a scale is off by 2^-11 of itself, which every bound includes:
// no element is more than a scale times its largest code.
func stepBound(kind block.GGML) float64 {
	const half = 0x1p-11
	switch kind {
	case block.F32:
		return 0x1p-149 // nothing, but 0 has another meaning
	case block.F16:
		return half
	case block.BF16:
		return 0x1p-8
	case block.Q8_0:
		return 1./254 + half // half a step of max/127
	case block.Q4_0:
		return 1./8 + half // a whole step where +8 is cut to +7
	case block.Q5_0:
		return 1./16 + half
	case block.Q4_1:
		return 1./15 + 3*half // half a step of at most 2 max/15; of the minimum too
	case block.Q5_1:
		return 1./31 + 3*half
	case block.Q2_0, block.TQ1_0, block.TQ2_0:
		return 1./2 + half
	case block.Q1_0:
		return 1 + half // the mean magnitude, for any number
	case block.MXFP4:
		return 1./4 + 0x1p-20 // half the step from 4 to 6, or the cut from 8 to 6, of 4..8; the
		// logarithm rounds by less than 2^-17
	}
	return 0
}

// FuzzGGMLQuantize guards, for any numbers and any weights, that rows are refused for a
// reason or come back finite, and without weights near what they were. Numbers are those
// of data, and behind them random ones about 2^size and up to 2^spread larger or smaller,
// rounded to a few bits so that ties occur.
func FuzzGGMLQuantize(f *testing.F) {
	types := writable()
	for i := range types {
		f.Add(uint8(i), int8(-6), uint8(2), uint8(23), uint64(i), []byte{}, false)
		f.Add(uint8(i), int8(2), uint8(40), uint8(3), uint64(i), littleEndian([]float32{1, -1, 6e4, 1e-45, 0x1p-126}), true)
		f.Add(uint8(i), int8(-120), uint8(29), uint8(1), uint64(i), littleEndian([]float32{-0x1p-125, 0x1p-10}), false)
		f.Add(uint8(i), int8(16), uint8(1), uint8(10), uint64(i), littleEndian([]float32{3e38, 0}), true)
	}
	f.Fuzz(func(t *testing.T, number uint8, size int8, spread, bits uint8, seed uint64, data []byte, weighted bool) {
		const rows, cols = 2, 256
		kind := types[int(number)%len(types)]
		rng := rand.New(rand.NewPCG(seed, 0))
		src, weights := make([]float32, rows*cols), make([]float32, cols)
		for i := range src {
			exponent := int(size) + rng.IntN(2*int(spread)+1) - int(spread)
			x := math.Float32bits(float32(math.Ldexp(rng.NormFloat64(), exponent)))
			src[i] = math.Float32frombits(x >> (23 - bits%24) << (23 - bits%24))
		}
		for i := 0; i < min(len(data)/4, len(src)); i++ {
			src[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[4*i:]))
		}
		for i := range weights {
			weights[i] = float32(math.Ldexp(rng.Float64(), rng.IntN(2*int(spread)+1)-int(spread)))
		}
		if !weighted {
			weights = even(kind, cols)
		}
		bytes, _ := kind.RowBytes(rows * cols)
		coded := make([]byte, bytes)
		if err := kind.Quantize(coded, src, cols, weights); err != nil {
			var value *block.GGMLValueError
			if !errors.As(err, &value) || value.Row >= rows || value.Column >= cols {
				t.Fatal(err)
			}
			return
		}
		if at, found := kind.NonFinite(coded); found {
			t.Fatalf("%s: block %d of the result is not finite", kind, at)
		}
		numbers := decode(t, kind, coded)
		for at := 0; at < len(src); at += kind.BlockElements() {
			checkBlock(t, kind, src[at:][:kind.BlockElements()], numbers[at:][:kind.BlockElements()], weighted)
		}
	})
}

func checkBlock(t *testing.T, kind block.GGML, src, numbers []float32, weighted bool) {
	t.Helper()
	peak := 0.0
	for _, x := range src {
		peak = max(peak, math.Abs(float64(x)))
	}
	// The smallest binary16 is 2^-24; a scale is off by half of that, and a code by less
	// than 256. MXFP4 begins at 2^-128.
	floor := 0x1p-25 * 256
	if kind == block.F32 || kind == block.BF16 || kind == block.F64 || kind == block.MXFP4 {
		floor = 0x1p-125
	}
	for i, x := range numbers {
		y, original := float64(x), float64(src[i])
		if math.IsNaN(y) || math.IsInf(y, 0) {
			t.Fatalf("%s: %g became %g", kind, original, y)
		}
		if weighted && kind.Weighted() {
			continue // an element that does not count may come out as anything
		}
		bound := stepBound(kind)
		if bound == 0 && kind != block.NVFP4 {
			if math.Abs(y) > growth(kind)*peak+floor {
				t.Fatalf("%s: %g became %g, in a block of at most %g", kind, original, y, peak)
			}
			continue
		}
		if kind == block.NVFP4 {
			// Half of the step from 4 to 6, of a scale that is at most 1.75 times too large,
			// or the cut at 2688.
			bound, floor = 0.3, 0x1p-9*6
			if peak > 2688 {
				bound = 1
			}
		}
		if math.Abs(y-original) > bound*peak+floor {
			t.Fatalf("%s: %g became %g, in a block of at most %g", kind, original, y, peak)
		}
	}
}

// growth returns what the largest magnitude may become at most, as a multiple.
//
// The scale of a group, sum w x q / sum w q², is at most the largest magnitude over the
// least |q|, 1/8 in IQ1, and elements of no weight may have the largest, 9/8. IQ1_S
// stores that times 9/8. IQ1_M does the same again with the scale of the block, where
// the largest |q| is 15 times as much, and stores it times 1.1125.
func growth(kind block.GGML) float64 {
	const half = 1 + 0x1p-11
	switch kind {
	case block.IQ1_S:
		return 8 * 9. / 8 * 9 / 8 * half
	case block.IQ1_M:
		return 8 * 9. / 8 * 15 * 1.1125 * half
	}
	return 2
}

// FuzzGGMLDecode guards that any bytes decode, every element is set, and blocks with finite
// scales give finite numbers.
func FuzzGGMLDecode(f *testing.F) {
	f.Add([]byte("any bytes at all"))
	f.Add(make([]byte, 300))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, kind := range ggmlTypes() {
			if kind.CanDecode() != nil {
				continue
			}
			src := make([]byte, (len(data)/kind.BlockBytes()+1)*kind.BlockBytes())
			copy(src, data)
			numbers := decode(t, kind, src) // prefilled with NaN
			_, found := kind.NonFinite(src)
			for i, x := range numbers {
				switch kind {
				case block.F64, block.MXFP4, block.Q8_K: // scales near the largest float32
					if x != x && !found {
						t.Fatalf("%s: element %d is NaN", kind, i)
					}
					continue
				}
				if !found && (x != x || math.IsInf(float64(x), 0)) {
					t.Fatalf("%s: element %d is %g", kind, i, x)
				}
			}
		}
	})
}
