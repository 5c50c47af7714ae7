package convert

import "strings"

// gpt2Keys are those of GPT-2, which have an order of their own (llama.cpp,
// conversion/gpt2.py). What a runtime does not compute is refused, where the converter
// does not look.
func (g *ggufPlanner) gpt2Keys() error {
	if err := g.mustBe("activation_function", "gelu_new", "gelu", "gelu_pytorch_tanh", "gelu_fast"); err != nil {
		return err
	}
	if err := g.mustNot("scale_attn_by_inverse_layer_idx", true); err != nil {
		return err
	}
	if err := g.mustNot("scale_attn_weights", false); err != nil {
		return err
	}
	context, err := g.mustInt("n_ctx", "n_positions")
	if err != nil {
		return err
	}
	hidden, err := g.mustInt("n_embd")
	if err != nil {
		return err
	}
	const widening = 4
	if inner, ok, err := g.optInt("n_inner"); err != nil {
		return err
	} else if ok && inner != widening*hidden {
		return g.errorf("its config.json: n_inner is %d; a GGUF file of GPT-2 has %d times n_embd, which is %d", inner, widening, widening*hidden)
	}
	epsilon, err := g.mustFloat("layer_norm_epsilon")
	if err != nil {
		return err
	}
	param(g, "block_count", uint32(g.layers))
	param(g, "context_length", uint32(context))
	param(g, "embedding_length", uint32(hidden))
	param(g, "feed_forward_length", uint32(widening*hidden))
	param(g, "attention.head_count", uint32(g.heads))
	param(g, "attention.layer_norm_epsilon", float32(epsilon))
	set(g, "general.file_type", fileTypes[g.fixed])
	return g.checkRows("position_embd.weight", context, "n_ctx")
}

// checkRows refuses a table that has not as many rows as config.json says: no runtime
// loads it.
func (g *ggufPlanner) checkRows(name string, rows int64, setting string) error {
	v, ok := g.view.tensors[name]
	if !ok {
		return g.errorf("there is no tensor that becomes %q", name)
	}
	if s := v.spec.Shape; len(s) != 2 || s[0] != rows {
		return g.errorf("tensor %q has the shape %v, config.json %s = %d", v.parts[0].Name, s, setting, rows)
	}
	return nil
}

// mustBe refuses a setting that is there and none of some values.
func (g *ggufPlanner) mustBe(name string, values ...string) error {
	text, ok, err := g.hparams.OptString(name)
	if err != nil {
		return g.errorf("its config.json: %w", err)
	}
	if !ok {
		return nil
	}
	for _, v := range values {
		if text == v {
			return nil
		}
	}
	return g.errorf("its config.json: %s is %q; a GGUF file of %s stands for %s", name, text, g.family.Name, strings.Join(values, ", "))
}

// mustNot refuses a switch that is set in a way that no GGUF file can say.
func (g *ggufPlanner) mustNot(name string, value bool) error {
	v, ok, err := g.hparams.OptBool(name)
	if err != nil {
		return g.errorf("its config.json: %w", err)
	}
	if ok && v == value {
		return g.errorf("its config.json: %s is %v, which a GGUF file of %s can't say", name, value, g.family.Name)
	}
	return nil
}

// mustFloat returns a number that must be there.
func (g *ggufPlanner) mustFloat(name string) (float64, error) {
	f, ok, err := g.optFloat(name)
	if err == nil && !ok {
		err = g.errorf("its config.json has no %s", name)
	}
	return f, err
}
