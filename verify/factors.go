package verify

import (
	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/merge"
)

// What can be wrong with the places of the factors A (rank, in) and B (out, rank).
const (
	factorsSwapped    = "factor-swapped"
	factorsTransposed = "factor-transposed"
)

// misplaced compares the shapes of the factors of a linear layer with a rank and, where it
// is known, the shape (out, in) of the weight. It returns the code of what is wrong, ""
// if nothing is or if it is something else, and whether the shapes leave both open: of a
// swapped pair A is (out, rank) and B (rank, in), of a transposed one (in, rank) and
// (rank, out), which are told apart by a weight that is not square.
func misplaced(a, b tensor.Shape, rank int64, weight tensor.Shape) (code string, open bool) {
	if len(a) != 2 || len(b) != 2 || rank < 1 {
		return "", false
	}
	right := func(a, b int64) bool { return len(weight) != 2 || a == weight[1] && b == weight[0] }
	if a[0] == rank && b[1] == rank && right(a[1], b[0]) {
		return "", false
	}
	switch {
	case a[1] == rank && b[0] == rank && len(weight) != 2:
		return factorsSwapped, true
	case a[1] == rank && b[0] == rank && right(b[1], a[0]):
		return factorsSwapped, right(a[0], b[1])
	case a[1] == rank && b[0] == rank && right(a[0], b[1]),
		a[1] == rank && b[1] == rank && right(a[0], b[0]),
		a[0] == rank && b[0] == rank && right(a[1], b[1]):
		return factorsTransposed, false
	}
	return "", false
}

// addMisplaced adds a finding about the factors of a module if they are in each other's
// place or transposed.
func (r *Report) addMisplaced(c *adapter.Config, m *adapter.Module, weight tensor.Shape) bool {
	a, hasA := m.Part("lora_A")
	b, hasB := m.Part("lora_B")
	if !hasA || !hasB || len(c.TargetParameters) > 0 {
		return false
	}
	code, open := misplaced(a.Shape, b.Shape, c.RankOf(m.Name), weight)
	switch {
	case code == "":
		return false
	case open:
		r.add(code, a.Name, "its shape is %s and that of %q %s: of rank %d they are in each other's place, or both transposed", a.Shape, b.Name, b.Shape, c.RankOf(m.Name))
	case code == factorsSwapped:
		r.add(code, a.Name, "its shape is %s and that of %q %s, and the weight is %s: they are in each other's place", a.Shape, b.Name, b.Shape, weight)
	default:
		one, other := a, b
		if a.Shape[0] == c.RankOf(m.Name) {
			one, other = b, a
		}
		r.add(code, one.Name, "its shape is %s and that of %q %s: of rank %d not both are as (rank, in) and (out, rank)", one.Shape, other.Name, other.Shape, c.RankOf(m.Name))
	}
	return true
}

// misplacedFactors looks for such factors in the adapters of a merge, for which there would be
// no merge to compare with; the result is nil if there are none.
func misplacedFactors(base *checkpoint.Model, adapters []merge.Source) *Report {
	r := new(Report)
	r.begin(familyStructure)
	for _, s := range adapters {
		if s.Adapter.Config.Type != "LORA" {
			continue
		}
		r.Tensors += len(s.Adapter.Source.Specs())
		for _, m := range s.Adapter.Modules {
			var weight tensor.Shape
			if spec, ok := base.Lookup(m.Name + ".weight"); ok && !arch.StoresConv1D(hfrepo.NewConfig(base.Config).ModelType(), m.Name) {
				weight = spec.Shape
			}
			r.addMisplaced(s.Adapter.Config, m, weight)
		}
	}
	if len(r.Findings) == 0 {
		return nil
	}
	return r
}
