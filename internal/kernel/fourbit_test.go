package kernel_test

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/internal/kernel"
)

// nf4Neighbours are the constants of bitsandbytes, in the order of its source.
var nf4Neighbours = []float32{
	-0.8480964004993439, -0.6106329262256622, -0.4599952697753906, -0.33967943489551544, -0.23460740596055984,
	-0.13791173323988914, -0.045525018125772476, 0.03979014977812767, 0.1202552504837513, 0.2035212516784668,
	0.2920137718319893, 0.3893125355243683, 0.5016634166240692, 0.6427869200706482, 0.8614784181118011,
}

// naiveNF4 and naiveFP4 decide as bitsandbytes does, one comparison at a time.
func naiveNF4(x float32) byte {
	code := byte(0)
	for _, t := range nf4Neighbours {
		if x > t {
			code++
		}
	}
	return code
}

func naiveFP4(x float32) byte {
	sign := byte(0)
	if x < 0 {
		sign = 8
	}
	x = float32(math.Abs(float64(x)))
	switch {
	case x > 0.29166667 && x > 0.583333 && x > 0.8333333:
		return 3 | sign
	case x > 0.29166667 && x > 0.583333:
		return 2 | sign
	case x > 0.29166667 && x > 0.4166667:
		return 5 | sign
	case x > 0.29166667:
		return 4 | sign
	case x > 0.0859375 && x > 0.20833333:
		return 7 | sign
	case x > 0.0859375:
		return 6 | sign
	case x > 0.00260417:
		return 1 | sign
	}
	return sign
}

// fourBitInput mixes ordinary numbers, thresholds and their neighbours, values of
// codes, zeros, blocks of zeros, tiny and odd ones.
func fourBitInput(rng *rand.Rand, n, blockSize int) []float32 {
	x := random[float32](rng, kinds[rng.IntN(3)], n)
	for i := range x {
		t := nf4Neighbours[rng.IntN(15)]
		switch rng.IntN(12) {
		case 0:
			x[i] = t
		case 1:
			x[i] = math.Nextafter32(t, 2)
		case 2:
			x[i] = math.Nextafter32(t, -2)
		case 3:
			x[i] = []float32{0.00260417, 0.0859375, 0.20833333, 0.29166667, 0.4166667, 0.583333, 0.8333333}[rng.IntN(7)]
		case 4:
			x[i] = kernel.FP4.Values()[rng.IntN(16)]
		}
	}
	for from := 0; from < n; from += blockSize {
		block := x[from:min(from+blockSize, n)]
		switch rng.IntN(6) {
		case 0:
			clear(block)
		case 1:
			block[rng.IntN(len(block))] = 1 // the products are the numbers then
			for i := range block {
				block[i] = min(1, max(-1, block[i]))
			}
		case 2:
			copy(block, random[float32](rng, "special", len(block)))
		}
	}
	return x
}

// TestFourBit compares encoding and decoding with the formulas, bit for bit.
func TestFourBit(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(51, 52))
		for _, f := range []kernel.FourBit{kernel.NF4, kernel.FP4} {
			code := naiveNF4
			if f == kernel.FP4 {
				code = naiveFP4
			}
			for _, blockSize := range []int{1, 7, 8, 32, 64, 128, 4096} {
				for n := range 258 {
					if blockSize == 4096 && n > 200 {
						n = 4096*2 + n
					}
					x := fourBitInput(rng, n, blockSize)
					wantAbsmax, want := make([]float32, (n+blockSize-1)/blockSize), make([]byte, (n+1)/2)
					numbers := make([]float32, n)
					for b := range wantAbsmax {
						for _, v := range x[b*blockSize : min((b+1)*blockSize, n)] {
							if a := float32(math.Abs(float64(v))); a > wantAbsmax[b] {
								wantAbsmax[b] = a
							}
						}
					}
					for i, v := range x {
						c := code(v * (1 / wantAbsmax[i/blockSize]))
						want[i/2] |= c << (4 - 4*(i%2))
						numbers[i] = oneNaN(f.Values()[c] * wantAbsmax[i/blockSize])
					}
					what := fmt.Sprintf("type %d, %d in blocks of %d", f, n, blockSize)
					var m canaries
					src, got, absmax, back := m.float32s(n), m.bytes(len(want)), m.float32s(len(wantAbsmax)), m.float32s(n)
					copy(src, x)
					kernel.EncodeFourBit(f, got, absmax, src, blockSize)
					sameBits(t, what, absmax, wantAbsmax)
					if !bytes.Equal(got, want) {
						t.Fatalf("%s: got %x, want %x", what, got, want)
					}
					kernel.DecodeFourBit(f, back, got, absmax, blockSize)
					sameBits(t, what, back, numbers)
					m.check()
				}
			}
		}
	})
}

// TestFourBitConstants guards the constants: the thresholds of NF4 are nearest to
// the middles of neighbours, ties rounded as the decimal digits of bitsandbytes are,
// and a value of a code keeps its code.
func TestFourBitConstants(t *testing.T) {
	values := kernel.NF4.Values()
	for i, threshold := range nf4Neighbours {
		middle := (float64(values[i]) + float64(values[i+1])) / 2 // exact
		step := math.Abs(float64(math.Nextafter32(threshold, 2)) - float64(threshold))
		if math.Abs(float64(threshold)-middle) > step/2 {
			t.Errorf("threshold %d is %v, the middle %v", i, threshold, middle)
		}
	}
	for _, f := range []kernel.FourBit{kernel.NF4, kernel.FP4} {
		values := f.Values()
		codes, absmax := make([]byte, 8), make([]float32, 1)
		kernel.EncodeFourBit(f, codes, absmax, values[:], 16)
		for c := range values {
			got := codes[c/2] >> (4 - 4*(c%2)) & 15
			if f == kernel.FP4 && c == 8 {
				continue // +0 and -0 are equal
			}
			if got != byte(c) {
				t.Errorf("type %d: value %v of code %d has code %d", f, values[c], c, got)
			}
		}
	}
}

// FuzzFourBit compares the levels on arbitrary bits.
func FuzzFourBit(f *testing.F) {
	f.Add(uint64(1), uint16(100), uint8(8))
	f.Fuzz(func(t *testing.T, seed uint64, n uint16, size uint8) {
		blockSize := 1 + int(size)
		rng := rand.New(rand.NewPCG(seed, 0))
		x := fourBitInput(rng, int(n), blockSize)
		for _, kind := range []kernel.FourBit{kernel.NF4, kernel.FP4} {
			var want []byte
			var wantAbsmax, wantBack []float32
			for i, name := range kernel.Levels() {
				use(t, name)
				codes, absmax, back := make([]byte, (len(x)+1)/2), make([]float32, (len(x)+blockSize-1)/blockSize), make([]float32, len(x))
				kernel.EncodeFourBit(kind, codes, absmax, x, blockSize)
				kernel.DecodeFourBit(kind, back, codes, absmax, blockSize)
				if i == 0 {
					want, wantAbsmax, wantBack = codes, absmax, back
					continue
				}
				if !bytes.Equal(codes, want) {
					t.Fatalf("codes differ at %s", name)
				}
				sameBits(t, "absmax", absmax, wantAbsmax)
				sameBits(t, "back", back, wantBack)
			}
		}
	})
}

func BenchmarkFourBit(b *testing.B) {
	const n = 1 << 18
	x := random[float32](rand.New(rand.NewPCG(53, 54)), "weights", n)
	codes, absmax := make([]byte, n/2), make([]float32, n/64)
	for _, f := range []kernel.FourBit{kernel.NF4, kernel.FP4} {
		name := []string{"NF4", "FP4"}[f]
		eachLevelOf(b, "encode/"+name, fmt.Sprint(n), func(b *testing.B) {
			b.SetBytes(4*n + n/2)
			for b.Loop() {
				kernel.EncodeFourBit(f, codes, absmax, x, 64)
			}
			b.ReportMetric(float64(b.N)*n/b.Elapsed().Seconds()/1e6, "Melem/s")
		})
		eachLevelOf(b, "decode/"+name, fmt.Sprint(n), func(b *testing.B) {
			b.SetBytes(4*n + n/2)
			for b.Loop() {
				kernel.DecodeFourBit(f, x, codes, absmax, 64)
			}
			b.ReportMetric(float64(b.N)*n/b.Elapsed().Seconds()/1e6, "Melem/s")
		})
	}
}
