package torchrand

import "math"

// KaimingBound returns
//
//	sqrt(3) * (sqrt(2) / sqrt(fanIn))
//
// in float64, each step rounded in that order: the bound of _kaiming_init in
// PEFT's tuners/vera/model.py. [Generator.Uniform] rounds it to float32.
func KaimingBound(fanIn int) float64 {
	std := math.Sqrt(2) / math.Sqrt(float64(fanIn))
	return math.Sqrt(3) * std
}

// KaimingUniform returns a row-major rows x cols matrix of
//
//	U(-bound, bound),    bound = KaimingBound(cols)
//
// as PEFT's _kaiming_init((rows, cols), generator) does. VeRA draws A with rank
// rows and then B with rank columns from one generator. The caller answers for
// the size of the product. A matrix without elements draws nothing; PEFT fails
// if there are no columns.
func KaimingUniform(g *Generator, rows, cols int) []float32 {
	if rows <= 0 || cols <= 0 {
		return nil
	}
	bound := KaimingBound(cols)
	x := make([]float32, rows*cols)
	g.Uniform(x, -bound, bound)
	return x
}
