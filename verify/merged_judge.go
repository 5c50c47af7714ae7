package verify

import (
	"math"

	"github.com/loratool/loratool/plan"
)

// This file says what the comparison of a tensor with the merge means.

// survivalLimit is the share of a change below which its loss by rounding is worth a
// warning: a twentieth of the fine-tune. A merge warns at the same.
const survivalLimit = 0.95

// figures are those of one tensor.
func (p *mergePair) figures() MergedTensor {
	f := &p.found
	t := MergedTensor{Tensor: p.stored.Name, Changed: p.step.Judge, Values: f.values, Nearest: f.nearest, Outside: f.outside, Survival: 1}
	if p.step.Judge && f.delta > 0 {
		t.DeltaNorm, t.Survival = math.Sqrt(f.delta), f.kept/f.delta
	}
	return t
}

// judge turns what was found about one tensor into findings.
func (c *mergeCheck) judge(p *mergePair) {
	f, name := &p.found, p.stored.Name
	if p.codes != nil {
		c.judgeCodes(p)
		return
	}
	if f.overflowed > 0 {
		c.add("overflow", name, "%d of its %d values are infinite in %s, and finite in the merge", f.overflowed, f.values, p.stored.DType).
			measured(float64(f.overflowed), 0)
	}
	switch {
	case f.outside == 0:
	case f.recipe != nil:
		c.add(f.recipe.code, name, "%d of its %d values are not the nearest: %s", f.outside, f.values, f.recipe.name).
			measured(float64(f.outside), 0)
	case !p.step.Judge:
		c.add("tensor-changed", name, "no adapter changes it, but %d of its %d values are not the base's, by up to %.4g, first element %d",
			f.outside, f.values, f.largest, f.first).measured(float64(f.outside), 0)
		return
	default:
		c.blame(p)
		return
	}
	switch {
	case p.step.Judge && f.delta == 0 && p.step.Read.Input == 0:
		c.add("delta-zero", name, "the adapters have factors for it, and change nothing")
	case p.step.Judge && f.delta > 0 && f.kept/f.delta < survivalLimit:
		c.add("delta-survival", name, "%.4g of the change is left after rounding to %s", f.kept/f.delta, p.stored.DType).
			measured(f.kept/f.delta, survivalLimit)
	}
}

// blame says how a changed tensor is wrong. With D the change and Y - W what is
// there, c = <Y-W,D>/<D,D> is the scale at which D explains most of it. If what is
// left is within rounding, the tensor holds c times the change.
func (c *mergeCheck) blame(p *mergePair) {
	f, name := &p.found, p.stored.Name
	norm := math.Sqrt(f.delta)
	scale := f.kept / f.delta
	left := math.Sqrt(math.Max(f.change-scale*scale*f.delta, 0))
	// Neither the stored values nor the base as somebody else rounded it are nearer.
	rounding := 2 * math.Sqrt(f.rounding)
	switch {
	case f.change == 0:
		c.add("delta-missing", name, "it is the base, value by value: the change of the adapters is not in it").measured(0, 1)
	case f.delta == 0 || left > rounding || math.Abs(scale-1)*norm <= rounding:
		c.add("deviates", name, "%d of its %d values are not those of the merge, by up to %.4g; first element %d is %v, computed %v",
			f.outside, f.values, f.largest, f.first, f.stored, f.exact).measured(f.largest, f.allowed)
	case math.Abs(scale)*norm <= rounding:
		c.add("delta-missing", name, "it is the base up to rounding: the change of the adapters is not in it").measured(scale, 1)
	default:
		c.add("delta-scale", name, "it holds %.4g times the change%s", scale, explainScale(p.step, scale, rounding/norm)).measured(scale, 1)
	}
}

// explainScale names the mistakes that give a known scale, within a tolerance.
func explainScale(s *plan.Step, scale, tolerance float64) string {
	is := func(want float64) bool { return math.Abs(scale-want) <= tolerance }
	root := rootOfRank(s)
	switch {
	case is(2):
		return ": it was applied twice"
	case is(-1):
		return ": it was subtracted"
	case root > 1 && is(root):
		return ": alpha/sqrt(r) was taken, where the config says alpha/r"
	case root > 1 && is(1/root):
		return ": alpha/r was taken, where the config says alpha/sqrt(r)"
	}
	return ""
}

// rootOfRank is sqrt(r) of a step that adds one low-rank product, 0 of others.
func rootOfRank(s *plan.Step) float64 {
	if stages := s.Stages; len(stages) == 1 && stages[0].Op.Kind() == "add_lora" {
		return math.Sqrt(float64(stages[0].Sides[0].Rows()))
	}
	return 0
}

// judgeAll adds what the findings mean together.
func (c *mergeCheck) judgeAll() {
	counts := make(map[string]int)
	for _, f := range c.Findings {
		counts[f.Code]++
	}
	if n := counts["delta-missing"]; n > 0 && n == c.Merge.Changed {
		c.add("adapter-missing", "", "none of the %d changed tensors holds the change: this is the base", n).measured(float64(n), 0)
	}
	if n := counts["tensor-changed"]; n > 0 && 2*n > c.Merge.Unchanged {
		c.add("other-base", "", "%d of the %d tensors that no adapter changes are not those of this base", n, c.Merge.Unchanged).
			measured(float64(n), 0)
	}
}
