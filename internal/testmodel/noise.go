package testmodel

import (
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"strings"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/quant/block"
)

// deviation is the standard deviation of the values, Llama's initializer_range.
const deviation = 0.02

// places is the number of quantiles that values are drawn from: as many as there
// are BF16 numbers, and 16 random bits each.
const places = 1 << 16

// noise is the source of a model that looks trained: normally distributed
// values. Each tensor has a generator of its own, so that it does not depend on
// those before it.
type noise struct {
	seed      uint64
	quantiles []float32
}

func newNoise(seed uint64) *noise {
	n := &noise{seed, make([]float32, places)}
	for i := range n.quantiles {
		p := (float64(i) + 0.5) / places
		n.quantiles[i] = float32(deviation * math.Sqrt2 * math.Erfinv(2*p-1))
	}
	return n
}

func (n *noise) start(spec tensor.Spec) (func(p []byte), error) {
	codec, ok := block.For(spec.DType)
	if !ok {
		return nil, fmt.Errorf("no noise for elements of %s", spec.DType)
	}
	name := fnv.New64a()
	name.Write([]byte(spec.Name)) // never fails
	generator := rand.NewPCG(n.seed, name.Sum64())
	mean := float32(0)
	if isNorm(spec.Name) {
		mean = 1
	}
	size := int(spec.DType.Bits() / 8)
	buffer := make([]float32, chunk/size)
	return func(p []byte) {
		values := buffer[:len(p)/size]
		n.draw(values, generator, mean)
		codec.Encode32(p, values)
	}, nil
}

// draw takes four values from each number of the generator.
func (n *noise) draw(values []float32, generator *rand.PCG, mean float32) {
	var bits uint64
	for i := range values {
		if i%4 == 0 {
			bits = generator.Uint64()
		}
		values[i] = mean + n.quantiles[bits%places]
		bits /= places
	}
}

// isNorm reports whether a tensor is the gain of a norm, which is near one.
func isNorm(name string) bool { return strings.HasSuffix(name, "norm.weight") }
