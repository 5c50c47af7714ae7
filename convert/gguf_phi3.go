package convert

import "math"

// This file converts the rotary embeddings of Phi 3 and 4 (llama.cpp, conversion/phi.py).

func (g *ggufPlanner) longContextKey() error {
	p, err := g.phi3Rope()
	if err == nil {
		param(g, "rope.scaling.original_context_length", uint32(p.original))
	}
	return err
}

func (g *ggufPlanner) longRotaryKeys() error {
	p, err := g.phi3Rope()
	if err != nil {
		return err
	}
	param(g, "rope.dimension_count", uint32(p.rotated))
	base, ok, err := p.float("rope_theta")
	if err == nil && !ok {
		err = g.errorf("its config.json has no rope_theta")
	}
	if err == nil {
		param(g, "rope.freq_base", float32(base))
	}
	return err
}

// phi3Rope are the rotary embeddings of Phi 3.
type phi3Rope struct {
	*ropeParams
	original int64 // context that the model was first trained on
	rotated  int64 // dimensions of a head that are rotated
}

func (g *ggufPlanner) phi3Rope() (*phi3Rope, error) {
	r, err := g.rope()
	if err != nil {
		return nil, err
	}
	p := &phi3Rope{ropeParams: r}
	original, ok, err := r.float("original_max_position_embeddings")
	if err != nil {
		return nil, err
	}
	if !ok || original != math.Trunc(original) || original < 1 || original > math.MaxUint32 {
		return nil, g.errorf("its config.json has no original_max_position_embeddings that is a number of positions")
	}
	p.original = int64(original)
	hidden, err := g.sizeOf("embedding_length")
	if err != nil {
		return nil, err
	}
	part, ok, err := r.float("partial_rotary_factor")
	if !ok {
		part = 1
	}
	if err == nil && !(part > 0 && part <= 1) {
		err = g.errorf("its config.json: partial_rotary_factor is %v", part)
	}
	p.rotated = int64(part*float64(hidden)) / g.heads
	return p, err
}

// addLongFactors adds what the wavelengths are divided by in long and in short texts, of a
// model that was made for longer ones than it was first trained on, and the key that its
// attention is scaled with. With s the ratio of both lengths and n the shorter one:
//
//	sqrt(1 + ln s / ln n)   longrope, also called su
//	0.1 ln s + 1            yarn
//	1                       where s is at most 1
func (g *ggufPlanner) addLongFactors() error {
	p, err := g.phi3Rope()
	if err != nil {
		return err
	}
	long, err := p.factors("long_factor")
	if err != nil {
		return err
	}
	kind, err := p.kind()
	if err != nil {
		return err
	}
	if len(long) == 0 {
		if kind != "" && kind != "default" {
			return g.errorf("its rope scaling is %q without a long_factor: a GGUF file of Phi 3 has no place for it", kind)
		}
		return nil
	}
	short, err := p.factors("short_factor")
	if err != nil {
		return err
	}
	if len(long) != len(short) || int64(2*len(long)) != p.rotated {
		return g.errorf("its rope scaling has a long_factor of %d numbers and a short_factor of %d; expected %d, half of the dimensions that are rotated",
			len(long), len(short), p.rotated/2)
	}
	context, err := g.sizeOf("context_length")
	if err != nil {
		return err
	}
	var attention float64
	switch scale := float64(context) / float64(p.original); {
	case kind != "su" && kind != "longrope" && kind != "yarn":
		return g.errorf("its rope scaling is %q; of Phi 3 longrope, su and yarn can be converted", kind)
	case kind == "yarn" && scale > 1:
		attention = float64(0.1*math.Log(scale)) + 1
	default:
		attention = longAttention(context, p.original)
	}
	// transformers takes a stated factor, the converter looks at none.
	if stated, ok, err := p.float("attention_factor"); err != nil {
		return err
	} else if ok {
		attention = stated
	}
	g.text("general.architecture", g.family.Name) // the first key of every file
	param(g, "rope.scaling.attn_factor", float32(attention))
	if err := g.addFactors(longFactors, long); err != nil {
		return err
	}
	return g.addFactors(shortFactors, short)
}

// longFactors and shortFactors are the tensors of the factors.
const (
	longFactors  = "rope_factors_long.weight"
	shortFactors = "rope_factors_short.weight"
)

// longAttention is what longrope scales attention with, which transformers computes where
// config.json has no attention_factor.
func longAttention(context, original int64) float64 {
	scale := float64(context) / float64(original)
	if scale <= 1 {
		return 1
	}
	return math.Sqrt(1 + math.Log(scale)/math.Log(float64(original)))
}

// factors returns a list of numbers; none if there is no such setting.
func (r *ropeParams) factors(name string) ([]float32, error) {
	v, ok := r.full.Get(name)
	if !ok || v.IsNull() {
		return nil, nil
	}
	items, err := v.Items()
	if err != nil {
		return nil, r.g.errorf("its config.json: rope parameters: %s: %w", name, err)
	}
	var factors []float32
	for _, item := range items {
		f, err := item.Float()
		if err != nil {
			return nil, r.g.errorf("its config.json: rope parameters: %s: %w", name, err)
		}
		factors = append(factors, float32(f))
	}
	return factors, nil
}
