package diff

import (
	"math/bits"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
)

// Histogram counts pairs of elements by their distance in steps of an element type, as
// [kernel.ULPHistogram] does, which has the bins; F64 has more of them.
type Histogram struct {
	// Counts[0] counts equal numbers, Counts[i] distances within [kernel.ULPRange](i).
	Counts [bins]int64
	OneNaN int64 // pairs of which one is NaN, no distance apart
}

// bins are as many as the distance of the two infinities of float64 takes, which is below
// 2^64.
const bins = 66

// Median returns the bin that the middle of all pairs with a distance lies in.
func (h *Histogram) Median() int {
	var total, sum int64
	for _, n := range h.Counts {
		total += n
	}
	for bin, n := range h.Counts {
		if sum += n; 2*sum >= total {
			return bin
		}
	}
	return 0
}

// Last returns the last bin with a count, 0 if all are empty.
func (h *Histogram) Last() int {
	for bin := bins - 1; bin > 0; bin-- {
		if h.Counts[bin] > 0 {
			return bin
		}
	}
	return 0
}

// merge adds the counts of o.
func (h *Histogram) merge(o *Histogram) {
	for bin, n := range o.Counts {
		h.Counts[bin] += n
	}
	h.OneNaN += o.OneNaN
}

// storages are the types that the kernels count.
var storages = map[tensor.DType]kernel.Storage{
	tensor.F32: kernel.F32, tensor.BF16: kernel.BF16, tensor.F16: kernel.F16, tensor.F8E4M3: kernel.E4M3, tensor.F8E5M2: kernel.E5M2,
}

// add counts pairs of codes and returns how many of them are equal.
func (h *Histogram) add(d tensor.DType, a, b []byte) (equal int64) {
	var batch kernel.ULPHistogram
	if s, ok := storages[d]; ok {
		batch.Add(s, a, b)
		for bin, n := range batch.Counts {
			h.Counts[bin] += n
		}
		h.OneNaN += batch.OneNaN
		return batch.Counts[0]
	}
	return h.addDouble(a, b)
}

// addDouble is add for F64.
func (h *Histogram) addDouble(a, b []byte) (equal int64) {
	const size = 8
	for ; len(a) >= size; a, b = a[size:], b[size:] {
		nanA, nanB := isNaN64(a), isNaN64(b)
		if nanA != nanB {
			h.OneNaN++
			continue
		}
		distance := uint64(0)
		if !nanA {
			distance = steps(a[:size], b[:size])
		}
		if distance == 0 {
			equal++
		}
		h.Counts[binOf(distance)]++
	}
	return equal
}

// isNaN64 reports whether a code of F64 is NaN.
func isNaN64(code []byte) bool { return word(code[:8])&^(1<<63) > 0x7ff<<52 }

// binOf returns the bin of a distance.
func binOf(d uint64) int {
	if d == 0 {
		return 0
	}
	return 1 + bits.Len64(d-1)
}

// steps is the distance of two codes of one type, neither of them NaN: the number of steps
// through the codes in the order of their numbers. Both zeros are one number.
func steps(a, b []byte) uint64 {
	sign := uint64(1) << (8*len(a) - 1)
	x, y := word(a), word(b)
	if x&sign == y&sign {
		return max(x, y) - min(x, y)
	}
	return x&^sign + y&^sign
}

// word returns the bytes of a code as a number.
func word(code []byte) (w uint64) {
	for i := len(code) - 1; i >= 0; i-- {
		w = w<<8 | uint64(code[i])
	}
	return w
}

// coarseness orders the element types by how few digits they have.
var coarseness = map[tensor.DType]int{tensor.F64: 53, tensor.F32: 24, tensor.F16: 11, tensor.BF16: 8, tensor.F8E4M3: 4, tensor.F8E5M2: 3}

// coarser returns the type of fewer digits.
func coarser(a, b tensor.DType) tensor.DType {
	if coarseness[b] < coarseness[a] {
		return b
	}
	return a
}
