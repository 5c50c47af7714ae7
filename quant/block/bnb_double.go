package block

import (
	"slices"

	"github.com/loratool/loratool/internal/kernel"
)

// NestedSize is the block size of the second quantization.
const NestedSize = 256

// DynamicMap returns the values of the 256 codes that bitsandbytes stores absmax
// with: seven decades, 1e-6 to 1, with twice as many values in each as in the one
// below, of both signs; 0; and 1. (functional.py, create_dynamic_map.)
//
// The values of a decade are the middles of 2^i equal parts of [0.1, 1], in float32.
// The ends of the parts are counted from the nearer end of the interval, with one
// rounding, as torch.linspace does on a CPU with FMA.
func DynamicMap() [256]float32 {
	values := make([]float32, 0, 256)
	powers := [7]float32{1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1}
	for i, power := range powers {
		ends := linspace(0.1, 1, 1<<i+1)
		for j := range 1 << i {
			mean := float32(ends[j]+ends[j+1]) / 2
			values = append(values, power*mean, -power*mean)
		}
	}
	values = append(values, 0, 1)
	slices.Sort(values)
	return [256]float32(values)
}

func linspace(from, to float32, n int) []float32 {
	step := (to - from) / float32(n-1)
	all := make([]float32, n)
	for i := range all {
		// The product is exact in float64.
		if i < n/2 {
			all[i] = float32(float64(from) + float64(step)*float64(i))
		} else {
			all[i] = float32(float64(to) - float64(step)*float64(n-1-i))
		}
	}
	return all
}

// Nested is absmax quantized once more:
//
//	absmax[i] = Map[Codes[i]]·Absmax[i / 256] + Offset
type Nested struct {
	Codes  []byte
	Absmax []float32 // of the blocks of codes
	Map    [256]float32
	Offset float32
}

// Nest quantizes absmax to 8 bits: what is left after the mean is taken away, in
// blocks of [NestedSize], to the nearest value of [DynamicMap]. The mean is the
// exact one, rounded; torch sums in float32, in an order that depends on the
// device, and may be a unit in the last place off.
func Nest(absmax []float32) Nested {
	n := Nested{
		Codes: make([]byte, len(absmax)), Map: DynamicMap(), Offset: mean(absmax),
		Absmax: make([]float32, (len(absmax)+NestedSize-1)/NestedSize),
	}
	rest := make([]float32, 0, NestedSize)
	for b := range n.Absmax {
		from, to := b*NestedSize, min((b+1)*NestedSize, len(absmax))
		rest = rest[:0]
		for _, a := range absmax[from:to] {
			rest = append(rest, a-n.Offset)
		}
		n.Absmax[b] = kernel.MaxAbs(rest)
		inverse := 1 / n.Absmax[b]
		for i, x := range rest {
			n.Codes[from+i] = nearestCode(&n.Map, x*inverse)
		}
	}
	return n
}

// mean sums in float64: 2^29 numbers of 24 bits lose nothing that the rounding at
// the end would keep.
func mean(x []float32) float32 {
	if len(x) == 0 {
		return 0
	}
	sum := 0.0
	for _, v := range x {
		sum += float64(v)
	}
	return float32(sum / float64(len(x)))
}

// nearestCode finds the nearest value of a sorted map in the order of
// csrc/kernels.cu, dQuantize. The order decides ties: what lies in the middle
// between two values gets the one that was compared with last. A NaN, which is what
// zeros in a block of zeros become, is above nothing and ends at code 0.
func nearestCode(values *[256]float32, x float32) byte {
	pivot, lower, upper := 127, 0, 255
	for step := 64; step > 0; step /= 2 {
		if x > values[pivot] {
			lower = pivot
			pivot += step
		} else {
			upper = pivot
			pivot -= step
		}
	}
	if x > values[pivot] {
		if x > (values[upper]+values[pivot])*0.5 {
			return byte(upper)
		}
		return byte(pivot)
	}
	if x < (values[lower]+values[pivot])*0.5 {
		return byte(lower)
	}
	return byte(pivot)
}

// DecodeNested sets dst to the absmax that codes stand for, the first of them being
// number first of the tensor's; blocks of size codes share an element of nested. The
// product is rounded before the offset is added.
func DecodeNested(dst []float32, codes []byte, first int64, values *[256]float32, nested []float32, offset float32, size int64) {
	for i, c := range codes {
		dst[i] = float32(values[c]*nested[(first+int64(i))/size-first/size]) + offset
	}
}
