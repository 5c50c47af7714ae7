// Package torchrand reproduces the random numbers of PyTorch's CPU generator,
// as far as it takes to make again what an adapter file leaves out: the frozen
// projections of VeRA are stored as a seed only.
//
// A [Generator] made with [New] gives the sequence of
// torch.Generator(device="cpu").manual_seed(seed); [Generator.Uniform] is
// Tensor.uniform_ and [KaimingUniform] the initialisation that PEFT builds on
// it. The numbers do not depend on the CPU that runs this package, but torch's
// own depend on the CPU that ran torch: see [Variant].
//
// The reference is torch 2.15.0 (ATen/core/MT19937RNGEngine.h,
// TransformationHelper.h, native/cpu/DistributionTemplates.h). A Generator is
// not safe for concurrent use, since the order of draws is the result.
package torchrand

import "math"

// Variant names the rounding of the last step of a uniform number, which torch
// compiles once for each CPU capability.
type Variant uint8

const (
	// Fused rounds x*(to-from)+from once. torch does so wherever it finds AVX2 or
	// AVX-512, which is nearly every x86-64 machine that trains a model; that is
	// why it is the default.
	Fused Variant = iota
	// Plain rounds the product, then the sum: torch on x86-64 without AVX2, or
	// with ATEN_CPU_CAPABILITY=default. The numbers differ from Fused in the last
	// bits.
	Plain
)

// Generator is torch's CPU generator. The zero value is not seeded; use [New].
type Generator struct {
	// Variant may be chosen before the first draw.
	Variant Variant

	engine mt19937
}

// New returns the generator of manual_seed(seed). torch takes a negative seed as
// 2^64+seed, which is uint64 of an int64, and uses the lower 32 bits only.
func New(seed uint64) *Generator {
	g := new(Generator)
	g.engine.seed(uint32(seed))
	return g
}

// Uniform sets
//
//	dst[i] = x * (to - from) + from,    x = (draw mod 2^24) / 2^24
//
// as Tensor.uniform_(from, to) does for a float32 tensor, in memory order. There
// is one draw of 32 bits for an element, whatever the length, so that a long
// tensor may be made piece by piece. The bounds are rounded to float32, and so is
// their difference; the product and the sum are rounded as the [Variant] says. A
// number that comes out as to becomes from, for to is not part of the range.
// (Releases of torch before that correction gave to; with bounds of equal size
// and opposite sign, as [KaimingUniform] has them, it does not occur.)
//
// torch refuses bounds with from > to, bounds that are not finite and a
// difference beyond float32; here the formula is applied as it stands.
func (g *Generator) Uniform(dst []float32, from, to float64) {
	low, high := float32(from), float32(to)
	width := high - low
	for i := range dst {
		x := float32(g.engine.next()&(1<<24-1)) * 0x1p-24 // exact
		v := fma(x, width, low)
		if g.Variant == Plain {
			v = float32(x*width) + low
		}
		if v == high {
			v = low
		}
		dst[i] = v
	}
}

// fma returns x*y+z rounded once to float32, for finite values, without a fused
// instruction. The product is exact in float64. The sum is rounded to odd there:
// where it is not exact and its last bit is even, the neighbour on the side of
// the true sum is taken. With 53 bits of significand, 2 more than twice the 24 of
// float32 would need, the second rounding then gives what a single one does.
func fma(x, y, z float32) float32 {
	product, addend := float64(float64(x)*float64(y)), float64(z)
	sum := product + addend
	// Knuth's two-sum: rest is what the rounding of sum left out, exactly.
	part := sum - product
	rest := (product - (sum - part)) + (addend - part)
	bits := math.Float64bits(sum)
	if rest != 0 && bits&1 == 0 {
		if (rest > 0) == (sum > 0) {
			bits++
		} else {
			bits--
		}
	}
	return float32(math.Float64frombits(bits))
}
