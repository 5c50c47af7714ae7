package convert

import "github.com/loratool/loratool/formats/gguf"

// This file has the keys of families that are built like others, with few of their own.

// smolLM3Keys are those of Llama. That every fourth layer has no positions is known to a
// runtime and in no key.
func (g *ggufPlanner) smolLM3Keys() error {
	const step = 4
	if interval, ok, err := g.optInt("no_rope_layer_interval"); err != nil {
		return err
	} else if ok && interval != step {
		return g.errorf("its config.json: no_rope_layer_interval is %d; a GGUF file of SmolLM3 stands for %d", interval, step)
	}
	layers, _, err := g.hparams.OptInts("no_rope_layers")
	if err != nil {
		return g.errorf("its config.json: %w", err)
	}
	for i, rotated := range layers {
		if (rotated != 0) != ((i+1)%step != 0) {
			return g.errorf("its config.json: no_rope_layers has %d for layer %d; a GGUF file of SmolLM3 stands for a 0 at every fourth layer alone", rotated, i)
		}
	}
	return g.llamaKeys()
}

// graniteKeys are those of Llama, and what embeddings, scores, residuals and logits are
// scaled with.
func (g *ggufPlanner) graniteKeys() error {
	if size, ok, err := g.source.Config.OptInt("head_dim"); err != nil {
		return g.errorf("its config.json: %w", err)
	} else if head, err := g.headSize(); err != nil {
		return err
	} else if ok && size != head {
		return g.errorf("its config.json: head_dim is %d; a GGUF file of Granite has hidden_size / num_attention_heads, which is %d", size, head)
	}
	if err := g.llamaKeys(); err != nil {
		return err
	}
	for _, s := range []setting{
		{"attention.scale", []string{"attention_multiplier"}},
		{"embedding_scale", []string{"embedding_multiplier"}},
		{"residual_scale", []string{"residual_multiplier"}},
		{"logit_scale", []string{"logits_scaling"}},
	} {
		f, ok, err := g.optFloat(s.names...)
		if err != nil {
			return err
		}
		if ok && f != 0 { // the converter takes 0 for none
			param(g, s.key, float32(f))
		}
	}
	return nil
}

// olmo2Keys are the common ones, and the window of OLMo 3 with the layers that have it.
func (g *ggufPlanner) olmo2Keys() error {
	if err := g.commonKeys(); err != nil {
		return err
	}
	window, ok, err := g.optInt("sliding_window")
	if err != nil || !ok {
		return err
	}
	param(g, "attention.sliding_window", uint32(window))
	types, listed, err := g.hparams.OptStrings("layer_types")
	if err != nil {
		return g.errorf("its config.json: %w", err)
	}
	if listed && int64(len(types)) != g.layers {
		return g.errorf("its config.json: layer_types has %d layers, there are %d", len(types), g.layers)
	}
	const step = 4 // of the layers with full attention, where they are not listed
	pattern := make([]bool, g.layers)
	for i := range pattern {
		pattern[i] = (i+1)%step != 0
		if !listed {
			continue
		}
		if types[i] != "sliding_attention" && types[i] != "full_attention" {
			return g.errorf("its config.json: layer_types has %q, expected sliding_attention or full_attention", types[i])
		}
		pattern[i] = types[i] == "sliding_attention"
	}
	g.keys.Set(g.family.Name+".attention.sliding_window_pattern", gguf.ArrayOf(pattern))
	return nil
}

// starcoder2Keys are the common ones. A runtime attends to the whole text.
func (g *ggufPlanner) starcoder2Keys() error {
	if err := g.mustBe("hidden_act", "gelu_pytorch_tanh", "gelu_new", "gelu", "gelu_fast"); err != nil {
		return err
	}
	if window, ok, err := g.optInt("sliding_window"); err != nil {
		return err
	} else if ok && window > 0 {
		g.decide("sliding-window", "config.json has a sliding_window: a GGUF file of StarCoder 2 has no place for it, a runtime attends to the whole text")
	}
	return g.commonKeys()
}
