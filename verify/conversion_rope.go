package verify

import (
	"math"
	"slices"
)

// This file compares the scaling of rotary embeddings, and what differs from layer to layer.

// checkScaling compares the scaling of the rotary embedding. That of Llama 3 and of long
// ropes are factors of their own, a tensor.
func (k *keyCheck) checkScaling() {
	v, name := k.config.rope("rope_type", "type")
	kind, err := v.Text()
	if err != nil {
		kind = ""
	}
	is, _, _ := k.keys.OptText(k.arch + ".rope.scaling.type")
	want := map[string]string{"linear": "linear", "yarn": "yarn"}[kind]
	if is == "none" || is == "longrope" {
		is = ""
	}
	if k.arch == "phi3" { // which has factors for any kind of scaling
		want = ""
	}
	if is != want {
		k.add("key-differs", "", "%s.rope.scaling.type is %q, in config.json %s is %q", k.arch, is, name, kind)
		return
	}
	for _, r := range scalingRules[want] {
		k.compare(&keyRule{key: "rope.scaling." + r.key, names: r.names, rope: true, families: all})
	}
}

// scalingRules are the parameters of a kind of scaling.
var scalingRules = map[string][]keyRule{
	"linear": {{key: "factor", names: []string{"factor"}}},
	"yarn": {
		{key: "factor", names: []string{"factor"}},
		{key: "original_context_length", names: []string{"original_max_position_embeddings"}},
		{key: "yarn_ext_factor", names: []string{"extrapolation_factor"}},
		{key: "yarn_attn_factor", names: []string{"attention_factor", "attn_factor"}},
		{key: "yarn_beta_fast", names: []string{"beta_fast"}},
		{key: "yarn_beta_slow", names: []string{"beta_slow"}},
	},
}

// noWindow is what Phi 3 has for attention to the whole text.
func (k *keyCheck) noWindow() (float64, bool) { return 0, k.arch == "phi3" }

// context is the length of texts.
func (k *keyCheck) context() (float64, bool) {
	n, _, ok := k.config.number("max_position_embeddings", "n_positions", "n_ctx")
	return n, ok
}

// phi3Factor is what Phi 3 multiplies attention with when the context is s times the one that
// it was trained with: sqrt(1 + ln s / ln original), with yarn 0.1·ln s + 1
// (modeling_rope_utils.py of transformers).
func (k *keyCheck) phi3Factor() (float64, bool) {
	context, ok := k.context()
	v, _ := k.config.rope("original_max_position_embeddings")
	original, err := v.Float()
	kind, _ := k.config.rope("rope_type", "type")
	name, notText := kind.Text()
	factors, _ := k.config.rope("long_factor")
	if !ok || err != nil || notText != nil || factors.IsNull() || !(original > 1) || !(context > original) {
		return 1, k.arch == "phi3"
	}
	if name == "yarn" {
		return 0.1*math.Log(context/original) + 1, true
	}
	return math.Sqrt(1 + math.Log(context/original)/math.Log(original)), true
}

// checkLayers compares what is for each layer, or a flag.
func (k *keyCheck) checkLayers() {
	if v, name := k.config.find("rope_local_base_freq", "local_rope_theta", "rope_local_theta"); name != "" {
		if base, err := v.Float(); err == nil {
			k.compareLocal(base, name)
		}
	} else if v, _ := k.config.find("rope_parameters"); !v.IsNull() {
		if o, err := v.Object(); err == nil {
			if local, ok, err := o.OptObject("sliding_attention"); err == nil && ok {
				if base, ok, err := local.OptFloat("rope_theta"); err == nil && ok {
					k.compareLocal(base, "rope_parameters.sliding_attention.rope_theta")
				}
			}
		}
	}
	k.checkWindows()
	k.checkCausal()
}

// compareLocal compares the base of the rotation in layers with a window.
func (k *keyCheck) compareLocal(want float64, name string) {
	const otherwise = 10000 // in llama.cpp for Gemma 3
	is, ok := k.stated("rope.freq_base_swa")
	if !ok {
		is = otherwise
	}
	if float32(is) != float32(want) {
		k.add("key-differs", "", "%s.rope.freq_base_swa is %v, in config.json %s is %v", k.arch, is, name, want).measured(is, want)
	}
}

// checkWindows compares which layers have a window.
func (k *keyCheck) checkWindows() {
	v, ok := k.keys.Get(k.arch + ".attention.sliding_window_pattern")
	types, name := k.config.find("layer_types")
	flags, err := v.Bools()
	kinds, notTexts := types.Strings()
	if !ok || err != nil || name == "" || notTexts != nil {
		return
	}
	want := make([]bool, len(kinds))
	for i, kind := range kinds {
		want[i] = kind == "sliding_attention"
	}
	if !slices.Equal(flags, want) {
		k.add("key-differs", "", "%s.attention.sliding_window_pattern is %v, by layer_types of config.json it is %v", k.arch, flags, want)
	}
}

// checkCausal compares whether tokens see only those before them.
func (k *keyCheck) checkCausal() {
	is, stated, err := k.keys.OptBool(k.arch + ".attention.causal")
	if err != nil {
		return
	}
	if !stated {
		is = true
	}
	want := k.arch != "bert"
	if v, name := k.config.find("is_causal"); name != "" {
		if causal, err := v.Bool(); err == nil {
			want = causal
		}
	}
	if is != want {
		k.add("key-differs", "", "%s.attention.causal is %v, by config.json it is %v", k.arch, is, want)
	}
}
