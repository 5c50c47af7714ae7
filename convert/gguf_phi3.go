package convert

import "math"

// phi3Keys are those of Phi 3 and 4, which have an order of their own (llama.cpp,
// conversion/phi.py). A window of 0 is how a runtime tells Phi 4 from Phi 3.
func (g *ggufPlanner) phi3Keys() error {
	if err := g.mustBe("hidden_act", "silu", "swish"); err != nil {
		return err
	}
	p, err := g.phi3Rope()
	if err != nil {
		return err
	}
	context, err := g.mustInt("n_positions", "max_position_embeddings")
	if err != nil {
		return err
	}
	param(g, "context_length", uint32(context))
	param(g, "rope.scaling.original_context_length", uint32(p.original))
	if err := g.mustInts(
		setting{"embedding_length", []string{"hidden_size", "n_embd"}},
		setting{"feed_forward_length", []string{"intermediate_size"}},
	); err != nil {
		return err
	}
	param(g, "block_count", uint32(g.layers))
	param(g, "attention.head_count", uint32(g.heads))
	param(g, "attention.head_count_kv", uint32(g.kvHeads))
	epsilon, err := g.mustFloat("rms_norm_eps")
	if err != nil {
		return err
	}
	param(g, "attention.layer_norm_rms_epsilon", float32(epsilon))
	param(g, "rope.dimension_count", uint32(p.rotated))
	base, ok, err := p.float("rope_theta")
	if err == nil && !ok {
		err = g.errorf("its config.json has no rope_theta")
	}
	if err != nil {
		return err
	}
	param(g, "rope.freq_base", float32(base))
	set(g, "general.file_type", fileTypes[g.fixed])
	window, _, err := g.optInt("sliding_window")
	param(g, "attention.sliding_window", uint32(window))
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
	hidden, err := g.mustInt("hidden_size", "n_embd")
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

// longFactors adds what the wavelengths are divided by in long and in short texts, of a
// model that was made for longer ones than it was first trained on, and the key that its
// attention is scaled with. With s the ratio of both lengths and n the shorter one:
//
//	sqrt(1 + ln s / ln n)   longrope, also called su
//	0.1 ln s + 1            yarn
//	1                       where s is at most 1
func (g *ggufPlanner) longFactors() error {
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
	context, err := g.mustInt("n_positions", "max_position_embeddings")
	if err != nil {
		return err
	}
	attention := 1.0
	switch scale := float64(context) / float64(p.original); {
	case kind != "su" && kind != "longrope" && kind != "yarn":
		return g.errorf("its rope scaling is %q; of Phi 3 longrope, su and yarn can be converted", kind)
	case scale <= 1:
	case kind == "yarn":
		attention = float64(0.1*math.Log(scale)) + 1
	default:
		attention = math.Sqrt(1 + math.Log(scale)/math.Log(float64(p.original)))
	}
	g.text("general.architecture", g.family.Name) // the first key of every file
	param(g, "rope.scaling.attn_factor", float32(attention))
	if err := g.addFactors("rope_factors_long.weight", long); err != nil {
		return err
	}
	return g.addFactors("rope_factors_short.weight", short)
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
