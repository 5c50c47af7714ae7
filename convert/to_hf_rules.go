package convert

import (
	"fmt"
	"math"
	"strings"

	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/internal/strictjson"
)

// This file makes the parts of config.json that are more than numbers, by the rules that
// the table of a family names.

// mixtralConfig tells Mixtral from Llama, by its experts. Mistral is the same to llama.cpp.
func (h *hfPlanner) mixtralConfig() error {
	if h.experts == 0 {
		h.decide("family", "llama.cpp calls Llama, Mistral and Mixtral llama: without experts it is written as LlamaForCausalLM, "+
			"which computes the same as Mistral without a sliding window, of which the file says nothing")
		return nil
	}
	const class = "MixtralForCausalLM"
	h.setClass(class, "mixtral")
	h.setInt("num_local_experts", h.experts)
	if _, ok := h.config.Get("num_experts_per_tok"); !ok {
		return h.errorf("it has no key llama.expert_used_count")
	}
	for _, s := range h.source.Specs() {
		if strings.HasSuffix(s.Name, ".bias") {
			return h.errorf("tensor %q: %s has no such bias in transformers", s.Name, class)
		}
	}
	for _, b := range h.family.Biases {
		h.config.Delete(b.Setting)
	}
	return nil
}

// qwenExperts adds what the Qwen families with experts have by definition: every layer has
// experts.
func (h *hfPlanner) qwenExperts() error {
	h.setInt("num_experts", h.experts)
	h.setInt("decoder_sparse_step", 1)
	h.config.Set("mlp_only_layers", strictjson.NewArray())
	for _, s := range []struct{ name, tensor string }{{"moe_intermediate_size", "ffn_gate_exps"}, {"shared_expert_intermediate_size", "ffn_gate_shexp"}} {
		if spec, ok := h.stored["blk.0."+s.tensor+".weight"]; ok {
			h.setInt(s.name, spec.Shape[len(spec.Shape)-2])
		}
	}
	return nil
}

func (h *hfPlanner) switchedWindow() error {
	h.setBool("use_sliding_window", false)
	return nil
}

// localBaseKey is the base of layers with a sliding window.
const localBaseKey = "rope.freq_base_swa"

func (h *hfPlanner) gemma3Base() error {
	base, ok, err := h.optFloat(localBaseKey)
	if err != nil || !ok {
		return err
	}
	return h.setFloat(h.config, "rope_local_base_freq", base)
}

// gemma3Window is that of most layers, or of none: then every layer sees everything.
func (h *hfPlanner) gemma3Window() error {
	window, ok, err := h.optInt(windowKey)
	if ok {
		h.setInt("sliding_window", window)
	} else {
		h.setInt("sliding_window_pattern", 1)
	}
	return err
}

// shareScaled are the models whose queries llama.cpp divides by the root of the share of
// the hidden size, by their layers: the 27B ones. Those of all others it divides by the root
// of the size of a head (llama.cpp 0.5, src/models/gemma2.cpp and gemma3.cpp).
var shareScaled = map[string]int64{"gemma2": 46, "gemma3": 62}

// queryScalar is the number that llama.cpp divides queries by the root of.
func queryScalar(arch string, layers, head, hidden, heads int64) int64 {
	if shareScaled[arch] == layers {
		return hidden / heads
	}
	return head
}

// queryScale writes what queries are divided by the root of, which no key says.
func (h *hfPlanner) queryScale() error {
	head, err := h.headSize()
	if err != nil {
		return err
	}
	hidden, err := h.mustInt("embedding_length")
	if err != nil {
		return err
	}
	scalar := queryScalar(h.arch, h.layers, head, hidden, h.heads)
	h.setInt("query_pre_attn_scalar", scalar)
	h.decide("query-scale", fmt.Sprintf("the file does not say what queries are scaled by: query_pre_attn_scalar is %d, as llama.cpp computes", scalar))
	return nil
}

// gpt2Widening states the width of feed-forward layers if it is not the usual one.
func (h *hfPlanner) gpt2Widening() error {
	hidden, err := h.mustInt("embedding_length")
	if err != nil {
		return err
	}
	inner, err := h.intOr("feed_forward_length", gpt2Widening*hidden)
	if err == nil && inner != gpt2Widening*hidden {
		h.setInt("n_inner", inner)
	}
	return err
}

// phi3Window is 0 for none.
func (h *hfPlanner) phi3Window() error {
	window, _, err := h.optInt(windowKey)
	if err != nil || window == 0 {
		h.config.Set("sliding_window", strictjson.NewNull())
		return err
	}
	h.setInt("sliding_window", window)
	h.decide("sliding-window", fmt.Sprintf("the file has a sliding window of %d, which config.json states: llama.cpp attends to the whole text", window))
	return nil
}

// olmoWindow tells OLMo 3 from OLMo 2, by its window.
func (h *hfPlanner) olmoWindow() error {
	window, ok, err := h.optInt(windowKey)
	if err != nil || !ok || window == 0 {
		return err
	}
	h.setClass("Olmo3ForCausalLM", "olmo3")
	h.setInt("sliding_window", window)
	sliding := make([]bool, h.layers)
	for i := range sliding {
		sliding[i] = (i+1)%olmoStep != 0
	}
	if v, ok := h.keys.Get(h.arch + "." + windowKey + "_pattern"); ok {
		if err := h.readPattern(v, sliding); err != nil {
			return err
		}
	}
	types := make([]string, h.layers)
	for i, s := range sliding {
		types[i] = fullLayer
		if s {
			types[i] = slidingLayer
		}
	}
	h.config.Set("layer_types", strictjson.NewStrings(types))

	return h.olmoBases()
}

// olmoBases states the rotary embeddings of both kinds of layers, if they are not those
// that transformers has by default: of layers with a window it takes no other base from a
// config.json of the older form. It scales only those that see the whole text, as
// llama.cpp does.
func (h *hfPlanner) olmoBases() error {
	const byDefault = 500000
	base, _, err := h.config.OptFloat("rope_theta")
	if err != nil {
		return err
	}
	own, stated, err := h.optFloat(localBaseKey)
	if err != nil || !stated && base == byDefault {
		return err
	}
	if !stated {
		own = base
	}
	full, local := strictjson.NewObject(), strictjson.NewObject()
	if scaling, ok, _ := h.config.OptObject("rope_scaling"); ok {
		for name, v := range scaling.All() {
			full.Set(name, v)
		}
		h.config.Delete("rope_scaling")
	} else {
		full.Set("rope_type", strictjson.NewString("default"))
	}
	local.Set("rope_type", strictjson.NewString("default"))
	if err := h.setFloat(full, "rope_theta", base); err != nil {
		return err
	}
	if err := h.setFloat(local, "rope_theta", own); err != nil {
		return err
	}
	both := strictjson.NewObject()
	both.Set(fullLayer, full.Value())
	both.Set(slidingLayer, local.Value())
	h.config.Delete("rope_theta")
	h.config.Set("rope_parameters", both.Value())
	return nil
}

// readPattern reads which layers have a window: a switch for each, or the step of those
// without.
func (h *hfPlanner) readPattern(v gguf.Value, sliding []bool) error {
	key := h.arch + "." + windowKey + "_pattern"
	if list, err := v.Bools(); err == nil {
		if len(list) != len(sliding) {
			return h.errorf("%s is of %d layers, there are %d", key, len(list), len(sliding))
		}
		copy(sliding, list)
		return nil
	}
	step, err := v.Int()
	if err != nil || step < 1 {
		return h.errorf("%s is %s, expected a switch for each layer or the step of those without a window", key, v.Describe())
	}
	for i := range sliding {
		sliding[i] = int64(i+1)%step != 0
	}
	return nil
}

// smolLM3Config says which layers are rotated.
func (h *hfPlanner) smolLM3Config() error {
	h.setInt("no_rope_layer_interval", smolLM3Step)
	rotated := make([]strictjson.Value, h.layers)
	for i := range rotated {
		rotated[i] = strictjson.NewInt(1)
		if (i+1)%smolLM3Step == 0 {
			rotated[i] = strictjson.NewInt(0)
		}
	}
	h.config.Set("no_rope_layers", strictjson.NewArray(rotated...))
	return nil
}

// graniteScales states what the file leaves out: scores are divided by the root of the
// size of a head, and nothing else is scaled.
func (h *hfPlanner) graniteScales() error {
	head, err := h.headSize()
	if err != nil {
		return err
	}
	for _, s := range []struct {
		name string
		none float64
	}{{"attention_multiplier", 1 / math.Sqrt(float64(head))}, {"embedding_multiplier", 1}, {"residual_multiplier", 1}, {"logits_scaling", 1}} {
		if v, ok := h.config.Get(s.name); ok {
			if f, err := v.Float(); err != nil || f != 0 {
				continue
			}
		}
		if err := h.setFloat(h.config, s.name, s.none); err != nil {
			return err
		}
	}
	return nil
}

// originalKey is the context that a model was made for before it was for longer texts.
const originalKey = "rope.scaling.original_context_length"

// longRotaryKeys are those of the rotary embeddings of Phi 3.
var longRotaryKeys = []string{"rope.freq_base", "rope.scaling.attn_factor"}

// longRotaryConfig writes the rotary embeddings of Phi 3: which part of a head is rotated,
// and what wavelengths are divided by in long and in short texts.
func (h *hfPlanner) longRotaryConfig() error {
	head, err := h.headSize()
	if err != nil {
		return err
	}
	rotated, err := h.intOr("rope.dimension_count", head)
	if err != nil {
		return err
	}
	base, ok, err := h.optFloat("rope.freq_base")
	if err != nil {
		return err
	}
	if !ok {
		base = defaultRopeBase
	}
	context, err := h.mustInt("context_length")
	if err != nil {
		return err
	}
	original, err := h.intOr(originalKey, context)
	if err != nil {
		return err
	}
	h.setInt("original_max_position_embeddings", original)
	part := float64(rotated) / float64(head)
	for _, s := range []struct {
		name  string
		value float64
	}{{"rope_theta", base}, {"partial_rotary_factor", part}} {
		if err := h.setFloat(h.config, s.name, s.value); err != nil {
			return err
		}
	}
	_, long := h.stored[longFactors]
	_, short := h.stored[shortFactors]
	switch {
	case !long && !short:
		return nil
	case !long || !short:
		return h.errorf("it has only one of %s and %s", longFactors, shortFactors)
	}
	scaling := strictjson.NewObject()
	scaling.Set("rope_type", strictjson.NewString("longrope"))
	for _, s := range []struct{ name, tensor string }{{"short_factor", shortFactors}, {"long_factor", longFactors}} {
		factors, err := h.factorsOf(s.tensor, rotated)
		if err != nil {
			return err
		}
		list := make([]strictjson.Value, len(factors))
		for i, f := range factors {
			if list[i], err = floatValue(float64(f)); err != nil {
				return h.errorf("tensor %q: %w", s.tensor, err)
			}
		}
		scaling.Set(s.name, strictjson.NewArray(list...))
	}
	attention, ok, err := h.optFloat("rope.scaling.attn_factor")
	if err != nil {
		return err
	}
	if !ok {
		attention = 1
	}
	if float32(attention) != float32(longAttention(context, original)) {
		if err := h.setFloat(scaling, "attention_factor", attention); err != nil {
			return err
		}
	}
	scaling.Set("original_max_position_embeddings", strictjson.NewInt(original))
	h.config.Set("rope_scaling", scaling.Value())
	return nil
}
