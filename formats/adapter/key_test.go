package adapter

import "testing"

// TestParseKey guards how tensor names are taken apart: wrappers of training,
// raw dumps with the adapter's name, parts of modules and whole tensors.
func TestParseKey(t *testing.T) {
	for _, c := range []struct {
		name string
		kind string
		want key
	}{
		// PEFT's own files.
		{"base_model.model.m.q.lora_A.weight", "LORA", key{module: "m.q", part: "lora_A"}},
		{"base_model.model.m.q.lora_B.bias", "LORA", key{module: "m.q", part: "lora_B.bias"}},
		{"base_model.model.m.emb.lora_embedding_A", "LORA", key{module: "m.emb", part: "lora_embedding_A"}},
		{"base_model.model.m.q.lora_magnitude_vector", "LORA", key{module: "m.q", part: "lora_magnitude_vector"}},
		{"base_model.model.m.q.lora_E", "ADALORA", key{module: "m.q", part: "lora_E"}},
		{"base_model.model.m.q.ia3_l", "IA3", key{module: "m.q", part: "ia3_l"}},
		{"base_model.model.lm_head.weight", "LORA", key{module: "lm_head.weight"}},
		{"base_model.model.m.norm.ln_tuning_layers.bias", "LN_TUNING", key{module: "m.norm", part: "ln_tuning_layers.bias"}},
		// Raw training states carry the adapter's name.
		{"base_model.model.m.q.lora_A.default.weight", "LORA", key{module: "m.q", part: "lora_A"}},
		{"base_model.model.m.q.lora_B.my-adapter.bias", "LORA", key{module: "m.q", part: "lora_B.bias"}},
		{"base_model.model.m.q.lora_E.default", "ADALORA", key{module: "m.q", part: "lora_E"}},
		{"base_model.model.m.emb.lora_embedding_B.default", "LORA", key{module: "m.emb", part: "lora_embedding_B"}},
		{"base_model.model.m.q.lora_magnitude_vector.default.weight", "LORA", key{module: "m.q", part: "lora_magnitude_vector"}},
		// Bare keys and other beginnings.
		{"m.q.lora_A.weight", "LORA", key{module: "m.q", part: "lora_A"}},
		{"lora_A.weight", "LORA", key{module: "", part: "lora_A"}},
		{"base_model.m.q.lora_A.weight", "LORA", key{module: "m.q", part: "lora_A"}},
		// Wrappers that training puts in between.
		{"base_model.model._orig_mod.m.q.lora_A.weight", "LORA", key{module: "m.q", part: "lora_A"}},
		{"base_model.model.m._fsdp_wrapped_module.q._fsdp_wrapped_module.lora_A.default.weight", "LORA", key{module: "m.q", part: "lora_A"}},
		{"base_model.model.m.emb.token_adapter.trainable_tokens_delta", "LORA", key{module: "m.emb", part: "trainable_tokens_delta"}},
		{"base_model.model.m.emb.token_adapter.base_layer.weight", "LORA", key{module: "m.emb.weight", depth: 1}},
		{"base_model.model.m.q.base_layer.bias", "LORA", key{module: "m.q.bias", depth: 1}},
		{"base_model.model.m.q.base_layer.weight", "LORA", key{module: "m.q.weight", depth: 1}},
		// Several parameters of one module: nested wrappers.
		{"base_model.model.m.experts.base_layer.lora_A.weight", "LORA", key{module: "m.experts", part: "lora_A", depth: 1}},
		{"base_model.model.m.experts.base_layer.base_layer.lora_B.weight", "LORA", key{module: "m.experts", part: "lora_B", depth: 2}},
		// A part of an adapted module: the projection of an attention.
		{"base_model.model.m.attn.base_layer.out_proj.lora_A.weight", "LORA", key{module: "m.attn.out_proj", part: "lora_A", inner: true}},
		{"base_model.model.m.attn.base_layer.out_proj.base_layer.lora_A.weight", "LORA", key{module: "m.attn.out_proj", part: "lora_A", inner: true, depth: 1}},
		// modules_to_save in raw dumps, and the untrained copy beside it.
		{"base_model.model.score.modules_to_save.default.weight", "LORA", key{module: "score.weight", copy: true}},
		{"base_model.model.score.modules_to_save.weight", "LORA", key{module: "score.weight", copy: true}},
		{"base_model.model.classifier.modules_to_save.default.dense.bias", "LORA", key{module: "classifier.dense.bias", copy: true}},
		{"base_model.model.score.original_module.weight", "LORA", key{module: "score.weight", ignore: true}},
		// Tensors of the whole model, and training state.
		{"base_model.vera_A", "VERA", key{part: "vera_A", shared: true}},
		{"base_model.vera_B.default", "VERA", key{part: "vera_B", shared: true}},
		{"base_model.vera_A", "LORA", key{module: "vera_A"}},
		{"base_model.model.m.q.lora_velora_embed", "LORA", key{module: "m.q.lora_velora_embed", ignore: true}},
		// Parts of other types and words that only look like a part are names.
		{"base_model.model.m.q.hada_w1_a", "LORA", key{module: "m.q.hada_w1_a"}},
		{"base_model.model.m.lora_A.inner.deep.weight", "LORA", key{module: "m.lora_A.inner.deep.weight"}},
		{"base_model.model.m.lora_A_proj.weight", "LORA", key{module: "m.lora_A_proj.weight"}},
		{"base_model.model.lora.q.lora_A.weight", "LORA", key{module: "lora.q", part: "lora_A"}},
		{"base_model.model.m.weight_proj.lora_A.weight", "LORA", key{module: "m.weight_proj", part: "lora_A"}},
	} {
		kind, err := lookupKind(c.kind)
		if err != nil {
			t.Fatal(err)
		}
		if got := parseKey(c.name, kind); got != c.want {
			t.Errorf("%s:\n got %+v\nwant %+v", c.name, got, c.want)
		}
	}
}

func TestLayerIndex(t *testing.T) {
	for _, c := range []struct {
		module   string
		patterns []string
		want     int64 // -1 for none
	}{
		{"model.layers.3.q", nil, 3},
		{"model.layers.3.experts.7.w1", nil, 3},
		{"model.layers.003.q", nil, 3},
		{"layers.3.q", nil, -1},                              // nothing before the name of the list
		{"model.layers.3", nil, -1},                          // nothing behind the number
		{"model.layers.3a.q", nil, -1},                       // no number
		{"model.layers.99999999999999999999.q", nil, -1},     // no number of 64 bits
		{"model.vision.1.layers.3.q", []string{"layers"}, 3}, // the number of the list that is named
		{"model.blocks.1.layers.3.q", []string{"h", "blocks"}, 1},
		{"model.layers.3.q", []string{"h"}, -1},
		{"layers.3.q", []string{"layers"}, -1},
		{"", nil, -1},
	} {
		got, ok := layerIndex(c.module, c.patterns)
		if ok != (c.want >= 0) || ok && got != c.want {
			t.Errorf("layerIndex(%q, %q) is %d, %v; want %d", c.module, c.patterns, got, ok, c.want)
		}
	}
}

func TestEditDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"abc", "abc", 0}, {"abc", "", 3}, {"", "abc", 3}, {"abc", "abd", 1}, {"abc", "ac", 1}, {"abc", "xabc", 1}, {"kitten", "sitting", 3}} {
		if got := editDistance(c.a, c.b); got != c.want {
			t.Errorf("editDistance(%q, %q) is %d, want %d", c.a, c.b, got, c.want)
		}
	}
}
