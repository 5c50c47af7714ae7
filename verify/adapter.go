package verify

import (
	"context"
	"strings"

	"github.com/loratool/loratool/formats/adapter"
)

// checkAdapter compares the config of an adapter with its tensors, and the factors
// of a module with each other. Whether it fits a base is for a merge to say.
func checkAdapter(_ context.Context, s *subject) error {
	if !s.model.IsAdapter() {
		return nil
	}
	a, err := adapter.Open(s.model)
	if err != nil {
		s.add("adapter-config", "", "%v", err)
		return nil
	}
	if a.Config.Type != "LORA" {
		return nil
	}
	for _, m := range a.Modules {
		s.checkFactors(a.Config, m)
	}
	return nil
}

// factorPairs are the names of A and B; the ranks are rows of A, columns of B.
var factorPairs = [][2]string{{"lora_A", "lora_B"}, {"lora_embedding_A", "lora_embedding_B"}}

// checkFactors compares the two factors of a LoRA module.
func (s *subject) checkFactors(c *adapter.Config, m *adapter.Module) {
	if s.addMisplaced(c, m, nil) {
		return
	}
	for _, names := range factorPairs {
		a, hasA := m.Part(names[0])
		b, hasB := m.Part(names[1])
		switch {
		case hasA != hasB:
			spec, missing := a, names[1]
			if hasB {
				spec, missing = b, names[0]
			}
			s.add("adapter-half", spec.Name, "its module has no %s", missing)
			continue
		case !hasA || len(a.Shape) == 0 || len(b.Shape) < 2:
			continue
		}
		rank, other := a.Shape[0], b.Shape[1]
		if rank != other {
			s.add("adapter-rank", b.Name, "it is for rank %d, %q for rank %d", other, a.Name, rank).measured(float64(other), float64(rank))
			continue
		}
		// Factors of stacked experts have a rank for each of them.
		if want := c.RankOf(m.Name); rank != want && (len(c.TargetParameters) == 0 || rank%want != 0) {
			s.add("adapter-rank", a.Name, "its rank is %d, that of the config %d", rank, want).measured(float64(rank), float64(want))
		}
	}
}

// checkZeroFactors finds modules that change nothing, once it is known which tensors
// are zero. It knows those types where a zero factor says so; what training started
// from a changed base is none of them.
func (s *subject) checkZeroFactors() {
	if !s.model.IsAdapter() {
		return
	}
	a, err := adapter.Open(s.model)
	if err != nil || a.Config.DoRA || a.Config.Init != "" || len(a.Modules) == 0 {
		return
	}
	factors := map[string]string{
		"LORA": "lora_A lora_B lora_embedding_A lora_embedding_B", "ADALORA": "lora_A lora_B lora_E", "VERA": "vera_lambda_b vera_lambda_d",
	}[a.Config.Type]
	idle := 0
	for _, m := range a.Modules {
		for _, part := range strings.Fields(factors) {
			if spec, ok := m.Part(part); ok && s.zero[spec.Name] {
				s.add("zero-delta", spec.Name, "it is zero: module %q changes nothing", m.Name)
				idle++
				break
			}
		}
	}
	if idle == len(a.Modules) && len(a.Saved) == 0 {
		s.add("no-effect", "", "each of the %d modules has a factor of zeros", idle).measured(float64(idle), 0)
	}
}
