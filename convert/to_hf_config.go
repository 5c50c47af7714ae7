package convert

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/strictjson"
)

// This file builds config.json from the keys of a GGUF file, by tables. What a family has
// by definition in llama.cpp (src/models of llama.cpp 0.5) is stated, whatever the default
// of transformers is; what the file does not say and nothing computes with is left to that
// default. A key of the architecture that is in no table may change what the model
// computes, and is refused.

// hfConfig is what a family's config.json is made of.
type hfConfig struct {
	class, modelType string
	common, params   []hfParam
	// rest adds what is no plain number.
	rest func(*hfPlanner) error
}

// hfParam is a key of the architecture and the setting it becomes.
type hfParam struct {
	key, name string
	kind      paramKind
}

type paramKind int

const (
	whole         paramKind = iota // a whole number that must be there
	optionalWhole                  // one that need not be
	real                           // a number that must be there
	optionalReal
	read // by rest or by all families, which decide what becomes of it
)

// hfCommon are the settings of all families with RMS norms.
var hfCommon = []hfParam{
	{"context_length", "max_position_embeddings", whole},
	{"embedding_length", "hidden_size", whole},
	{"feed_forward_length", "intermediate_size", optionalWhole},
	{"block_count", "num_hidden_layers", whole},
	{"attention.head_count", "", read},
	{"attention.head_count_kv", "", read},
	{"attention.key_length", "", read},
	{"attention.value_length", "", read},
	{"attention.layer_norm_rms_epsilon", "rms_norm_eps", real},
	{"attention.causal", "", read},
	{"expert_count", "", read},
	{"vocab_size", "", read},
	{"rope.dimension_count", "", read},
	{"rope.freq_base", "", read},
	{"rope.scaling.type", "", read},
	{"rope.scaling.factor", "", read},
	{"rope.scaling.finetuned", "", read},
	{"rope.scaling.original_context_length", "", read},
	{"rope.scaling.yarn_ext_factor", "", read},
	{"rope.scaling.yarn_attn_factor", "", read},
	{"rope.scaling.yarn_beta_fast", "", read},
	{"rope.scaling.yarn_beta_slow", "", read},
}

// hfConfigs are the families that can be converted from GGUF, by general.architecture.
var hfConfigs map[string]*hfConfig

func init() { // as rest reads the table
	hfConfigs = map[string]*hfConfig{
		"llama": {"LlamaForCausalLM", "llama", hfCommon, []hfParam{{"expert_used_count", "num_experts_per_tok", optionalWhole}}, (*hfPlanner).llamaConfig},
		"qwen2": {"Qwen2ForCausalLM", "qwen2", hfCommon, nil, (*hfPlanner).qwenConfig},
		"qwen3": {"Qwen3ForCausalLM", "qwen3", hfCommon, nil, (*hfPlanner).qwenConfig},
		"qwen2moe": {"Qwen2MoeForCausalLM", "qwen2_moe", hfCommon, []hfParam{
			{"expert_used_count", "num_experts_per_tok", whole},
			{"expert_feed_forward_length", "moe_intermediate_size", optionalWhole},
			{"expert_shared_feed_forward_length", "shared_expert_intermediate_size", optionalWhole},
		}, (*hfPlanner).qwenConfig},
		"qwen3moe": {"Qwen3MoeForCausalLM", "qwen3_moe", hfCommon, []hfParam{
			{"expert_used_count", "num_experts_per_tok", whole},
			{"expert_feed_forward_length", "moe_intermediate_size", optionalWhole},
		}, (*hfPlanner).qwenConfig},
		"gemma": {"GemmaForCausalLM", "gemma", hfCommon, nil, (*hfPlanner).gemmaConfig},
		"gemma2": {"Gemma2ForCausalLM", "gemma2", hfCommon, []hfParam{
			{"attention.sliding_window", "sliding_window", whole},
			{"attn_logit_softcapping", "attn_logit_softcapping", optionalReal},
			{"final_logit_softcapping", "final_logit_softcapping", optionalReal},
		}, (*hfPlanner).gemmaConfig},
		"gemma3": {"Gemma3ForCausalLM", "gemma3_text", hfCommon, []hfParam{
			{"attention.sliding_window", "sliding_window", optionalWhole},
			{"final_logit_softcapping", "final_logit_softcapping", optionalReal},
			{"rope.freq_base_swa", "rope_local_base_freq", optionalReal},
		}, (*hfPlanner).gemmaConfig},
		"gpt2": {"GPT2LMHeadModel", "gpt2", nil, []hfParam{
			{"context_length", "n_positions", whole},
			{"embedding_length", "n_embd", whole},
			{"block_count", "n_layer", whole},
			{"attention.head_count", "n_head", whole},
			{"attention.layer_norm_epsilon", "layer_norm_epsilon", real},
			{"feed_forward_length", "", read},
			{"vocab_size", "", read},
		}, (*hfPlanner).gpt2Config},
	}
}

// buildConfig makes config.json.
func (h *hfPlanner) buildConfig() error {
	family := hfConfigs[h.arch]
	h.config = strictjson.NewObject()
	h.config.Set("architectures", strictjson.NewStrings([]string{family.class}))
	h.config.Set("model_type", strictjson.NewString(family.modelType))
	params := slices.Concat(family.common, family.params)
	if err := h.refuseUnknown(params); err != nil {
		return err
	}
	for _, p := range params {
		if err := h.setParam(p); err != nil {
			return err
		}
	}
	steps := []func() error{h.vocabConfig, func() error { return family.rest(h) }}
	if family.common != nil {
		steps = slices.Concat([]func() error{h.headConfig, h.ropeConfig}, steps)
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	h.decide("config-defaults", "config.json is made from the keys of the file, which do not say how the model was initialised or trained: "+
		"initializer_range and the dropouts are the defaults of transformers")
	return nil
}

// refuseUnknown names a key of the architecture that is in no table.
func (h *hfPlanner) refuseUnknown(params []hfParam) error {
	for key := range h.keys.All() {
		name, ok := strings.CutPrefix(key, h.arch+".")
		if ok && !slices.ContainsFunc(params, func(p hfParam) bool { return p.key == name }) {
			return h.errorf("key %q: it is not known what it changes in a model of %q, so the model would not be the same in transformers", key, h.arch)
		}
	}
	return nil
}

// setParam writes one setting that is a number.
func (h *hfPlanner) setParam(p hfParam) error {
	switch p.kind {
	case whole, optionalWhole:
		n, ok, err := h.optInt(p.key)
		if err == nil && !ok && p.kind == whole {
			_, err = h.mustInt(p.key)
		}
		if err != nil || !ok {
			return err
		}
		h.setInt(p.name, n)
	case real, optionalReal:
		f, ok, err := h.optFloat(p.key)
		if err == nil && !ok && p.kind == real {
			err = h.errorf("it has no key %s.%s", h.arch, p.key)
		}
		if err != nil || !ok {
			return err
		}
		return h.setFloat(h.config, p.name, f)
	}
	return nil
}

func (h *hfPlanner) setInt(name string, n int64) { h.config.Set(name, strictjson.NewInt(n)) }

func (h *hfPlanner) setBool(name string, b bool) { h.config.Set(name, strictjson.NewBool(b)) }

func (h *hfPlanner) setText(name, text string) { h.config.Set(name, strictjson.NewString(text)) }

// setFloat writes a number that the file has in float32: the shortest decimal that stands
// for it is the one that was there before, in every config that people write.
func (h *hfPlanner) setFloat(o *strictjson.Object, name string, f float64) error {
	if float64(float32(f)) == f {
		f, _ = strconv.ParseFloat(strconv.FormatFloat(f, 'g', -1, 32), 64)
	}
	v, err := strictjson.NewFloat(f)
	if err != nil {
		return h.errorf("%s: %w", name, err)
	}
	o.Set(name, v)
	return nil
}

// headSize is the number of rows of a head of queries.
func (h *hfPlanner) headSize() (int64, error) {
	hidden, err := h.mustInt("embedding_length")
	if err != nil {
		return 0, err
	}
	return h.intOr("attention.key_length", hidden/h.heads)
}

// headConfig writes the sizes of heads and checks them against the tensors.
func (h *hfPlanner) headConfig() error {
	h.setInt("num_attention_heads", h.heads)
	h.setInt("num_key_value_heads", h.kvHeads)
	head, err := h.headSize()
	if err != nil {
		return err
	}
	value, err := h.intOr("attention.value_length", head)
	if err != nil {
		return err
	}
	rotated, err := h.intOr("rope.dimension_count", head)
	if err != nil {
		return err
	}
	if value != head || rotated != head {
		return h.errorf("its heads have %d numbers of keys and %d of values, %d of them rotated: transformers has one size for all in this family", head, value, rotated)
	}
	for _, c := range []struct {
		name  string
		heads int64
	}{{"blk.0.attn_q.weight", h.heads}, {"blk.0.attn_k.weight", h.kvHeads}} {
		if s := h.stored[c.name]; len(s.Shape) == 2 && s.Shape[0] != c.heads*head {
			return h.errorf("tensor %q has %d rows, the keys state %d heads of %d", c.name, s.Shape[0], c.heads, head)
		}
	}
	// Without a size of heads these share the hidden size in transformers too.
	if _, stated, _ := h.optInt("attention.key_length"); stated || !slices.Contains([]string{"llama", "qwen2", "qwen2moe"}, h.arch) {
		h.setInt("head_dim", head)
	}
	if causal, ok, err := h.keys.OptBool(h.arch + ".attention.causal"); err != nil {
		return h.errorf("%w", err)
	} else if ok {
		h.setBool("is_causal", causal)
	}
	return nil
}

// vocabConfig writes the size of the vocabulary, the special tokens, and whether the head
// is the embedding.
func (h *hfPlanner) vocabConfig() error {
	embedding, ok := h.stored["token_embd.weight"]
	if !ok || len(embedding.Shape) != 2 {
		return h.errorf("it has no embedding of tokens")
	}
	rows := embedding.Shape[0]
	if n, err := h.intOr("vocab_size", rows); err != nil {
		return err
	} else if n != rows {
		return h.errorf("the embedding has %d rows, %s.vocab_size is %d", rows, h.arch, n)
	}
	h.setInt("vocab_size", rows)
	_, head := h.stored["output.weight"]
	h.setBool("tie_word_embeddings", !head)
	if !head {
		h.decide("tied-head", "the file has no output.weight: the head is the embedding, tie_word_embeddings is true")
	}
	for _, kind := range []struct{ key, name string }{{"bos", "bos"}, {"eos", "eos"}, {"padding", "pad"}} {
		id, ok, err := h.keys.OptInt("tokenizer.ggml." + kind.key + "_token_id")
		switch {
		case err != nil:
			return h.errorf("%w", err)
		case !ok || id < 0 || id >= rows: // transformers has defaults that are wrong here
			h.config.Set(kind.name+"_token_id", strictjson.NewNull())
		default:
			h.setInt(kind.name+"_token_id", id)
		}
	}
	return nil
}

// hasTensor reports whether the first layer has a tensor.
func (h *hfPlanner) hasTensor(name string) bool {
	_, ok := h.stored["blk.0."+name]
	return ok
}

// defaultRopeBase is llama.cpp's, of files that state none.
const defaultRopeBase = 10000

// ropeConfig writes the base and the scaling of rotary embeddings.
func (h *hfPlanner) ropeConfig() error {
	base, ok, err := h.optFloat("rope.freq_base")
	if err != nil {
		return err
	}
	if !ok {
		base = defaultRopeBase
	}
	if err := h.setFloat(h.config, "rope_theta", base); err != nil {
		return err
	}
	kind, _, err := h.keys.OptText(h.arch + ".rope.scaling.type")
	if err != nil {
		return h.errorf("%w", err)
	}
	_, hasFactors := h.stored[ropeFactors]
	switch {
	case hasFactors && kind != "" && kind != "none":
		return h.errorf("it has both %s and a scaling of type %q", ropeFactors, kind)
	case hasFactors:
		return h.factorsConfig(base)
	case kind == "", kind == "none":
		return nil
	case kind == "linear", kind == "yarn":
		return h.scalingConfig(kind)
	}
	return h.errorf("its %s.rope.scaling.type is %q; linear and yarn can be converted", h.arch, kind)
}

// scalingConfig writes a scaling that has keys.
func (h *hfPlanner) scalingConfig(kind string) error {
	scaling := strictjson.NewObject()
	scaling.Set("rope_type", strictjson.NewString(kind))
	settings := []hfParam{{"rope.scaling.factor", "factor", real}}
	if kind == "yarn" {
		settings = append(settings, hfParam{"rope.scaling.yarn_ext_factor", "extrapolation_factor", optionalReal},
			hfParam{"rope.scaling.yarn_attn_factor", "attention_factor", optionalReal},
			hfParam{"rope.scaling.yarn_beta_fast", "beta_fast", optionalReal},
			hfParam{"rope.scaling.yarn_beta_slow", "beta_slow", optionalReal})
	}
	for _, s := range settings {
		f, ok, err := h.optFloat(s.key)
		if err == nil && !ok && s.kind == real {
			err = h.errorf("it has no key %s.%s", h.arch, s.key)
		}
		if err == nil && ok {
			err = h.setFloat(scaling, s.name, f)
		}
		if err != nil {
			return err
		}
	}
	if kind == "yarn" {
		n, err := h.mustInt("rope.scaling.original_context_length")
		if err != nil {
			return err
		}
		scaling.Set("original_max_position_embeddings", strictjson.NewInt(n))
	}
	h.config.Set("rope_scaling", scaling.Value())
	return nil
}

// factorsConfig finds the scaling that the factors of rope_freqs.weight come from: none
// if all are 1, linear if all are one number, else that of Llama 3 with its usual
// parameters.
func (h *hfPlanner) factorsConfig(base float64) error {
	factors, err := h.ropeFactors()
	if err != nil {
		return err
	}
	last := factors[len(factors)-1]
	scaling := strictjson.NewObject()
	if !slices.ContainsFunc(factors, func(f float32) bool { return f != last }) {
		if last == 1 {
			return nil
		}
		scaling.Set("rope_type", strictjson.NewString("linear"))
		h.config.Set("rope_scaling", scaling.Value())
		return h.setFloat(scaling, "factor", float64(last))
	}
	p, ok := findLlama3(factors, base)
	if !ok {
		return h.errorf("the factors of %s are not those of a Llama 3 scaling (low 1, high 4, factor %v, original context 2^9 to 2^18): "+
			"config.json has no other place for them", ropeFactors, last)
	}
	scaling.Set("rope_type", strictjson.NewString("llama3"))
	for _, s := range []struct {
		name  string
		value float64
	}{{"factor", p.factor}, {"low_freq_factor", p.low}, {"high_freq_factor", p.high}} {
		if err := h.setFloat(scaling, s.name, s.value); err != nil {
			return err
		}
	}
	scaling.Set("original_max_position_embeddings", strictjson.NewInt(int64(p.original)))
	h.config.Set("rope_scaling", scaling.Value())
	h.decide("rope-scaling", fmt.Sprintf("the factors of %s are those of Llama 3's scaling by %v from %v tokens, which config.json states", ropeFactors, p.factor, p.original))
	return nil
}

// ropeFactors reads the factors, one for each pair of a head.
func (h *hfPlanner) ropeFactors() ([]float32, error) {
	s := h.stored[ropeFactors]
	head, err := h.headSize()
	if err != nil {
		return nil, err
	}
	const largest = 1 << 16 // far above any head
	if s.DType != tensor.F32 || len(s.Shape) != 1 || s.Shape[0] == 0 || s.Shape[0] > largest || 2*s.Shape[0] != head {
		return nil, h.errorf("tensor %q is %s of shape %v, not a factor in F32 for each pair of %d", s.Name, s.DType, s.Shape, head)
	}
	src, err := h.source.Open(s.Name)
	if err != nil {
		return nil, err
	}
	data := make([]byte, s.Size())
	if err := readAll(src, data, 0); err != nil {
		return nil, h.errorf("tensor %q: %w", s.Name, err)
	}
	factors := decodeF32(data)
	for _, f := range factors {
		if !(f > 0) || math.IsInf(float64(f), 0) {
			return nil, h.errorf("tensor %q has a factor of %v", s.Name, f)
		}
	}
	return factors, nil
}

// findLlama3 finds the parameters of a Llama 3 scaling that gives the factors to the bit.
// Only the ratios of low, high and original count, so that 1 and 4, which all published
// models have, lose nothing but the way it is put.
func findLlama3(factors []float32, base float64) (llama3Scaling, bool) {
	const smallest, largest = 1 << 4, 1 << 18
	for original := smallest; original <= largest; original *= 2 {
		p := llama3Scaling{base: base, factor: float64(factors[len(factors)-1]), low: 1, high: 4, original: float64(original)}
		if slices.Equal(p.factors(2*int64(len(factors))), factors) {
			return p, true
		}
	}
	return llama3Scaling{}, false
}

// llamaConfig tells Mixtral from Llama, by its experts. Mistral is the same to llama.cpp.
func (h *hfPlanner) llamaConfig() error {
	h.setText("hidden_act", "silu")
	if h.experts > 0 {
		h.config.Set("architectures", strictjson.NewStrings([]string{"MixtralForCausalLM"}))
		h.setText("model_type", "mixtral")
		h.setInt("num_local_experts", h.experts)
		if _, ok := h.config.Get("num_experts_per_tok"); !ok {
			return h.errorf("it has no key llama.expert_used_count")
		}
		return h.refuseBiases("attn_q", "attn_k", "attn_v", "attn_output")
	}
	h.setBool("attention_bias", h.hasTensor("attn_q.bias"))
	h.setBool("mlp_bias", h.hasTensor("ffn_gate.bias"))
	h.decide("family", "llama.cpp calls Llama, Mistral and Mixtral llama: without experts it is written as LlamaForCausalLM, "+
		"which computes the same as Mistral without a sliding window, of which the file says nothing")
	return nil
}

// refuseBiases refuses biases that the family has not in transformers.
func (h *hfPlanner) refuseBiases(modules ...string) error {
	for _, m := range modules {
		if h.hasTensor(m + ".bias") {
			return h.errorf("tensor %q: %s has no such bias in transformers", "blk.0."+m+".bias", hfConfigs[h.arch].class)
		}
	}
	return nil
}

// qwenConfig adds what the Qwen families have by definition: the weights of the chosen
// experts add up to 1 from Qwen 3 on, and every layer has experts.
func (h *hfPlanner) qwenConfig() error {
	h.setText("hidden_act", "silu")
	h.setBool("use_sliding_window", false)
	if strings.HasPrefix(h.arch, "qwen3") {
		h.setBool("attention_bias", h.hasTensor("attn_q.bias"))
	}
	if h.experts == 0 {
		return nil
	}
	h.setInt("num_experts", h.experts)
	h.setInt("decoder_sparse_step", 1)
	h.config.Set("mlp_only_layers", strictjson.NewArray())
	h.setBool("norm_topk_prob", h.arch == "qwen3moe")
	for _, s := range []struct{ name, tensor string }{{"moe_intermediate_size", "ffn_gate_exps"}, {"shared_expert_intermediate_size", "ffn_gate_shexp"}} {
		if spec, ok := h.stored["blk.0."+s.tensor+".weight"]; ok {
			h.setInt(s.name, spec.Shape[len(spec.Shape)-2])
		}
	}
	return nil
}

// gemmaConfig adds what the Gemma families have by definition.
func (h *hfPlanner) gemmaConfig() error {
	h.setText("hidden_activation", "gelu_pytorch_tanh")
	h.setBool("attention_bias", h.hasTensor("attn_q.bias"))
	if h.arch == "gemma" {
		h.setText("hidden_act", "gelu_pytorch_tanh")
		return nil
	}
	if _, ok := h.config.Get("sliding_window"); !ok {
		h.setInt("sliding_window_pattern", 1) // every layer sees everything
	}
	if h.arch == "gemma2" {
		for _, name := range []string{"attn_logit_softcapping", "final_logit_softcapping"} {
			if _, ok := h.config.Get(name); !ok {
				h.config.Set(name, strictjson.NewNull())
			}
		}
	}
	return h.queryScale()
}

// queryScale writes what queries are divided by the root of, which no key says: llama.cpp
// takes the size of a head, but of the 27B models, which it knows by their layers
// (llama.cpp 0.5, src/models/gemma2.cpp and gemma3.cpp), the share of the hidden size.
func (h *hfPlanner) queryScale() error {
	scalar, err := h.headSize()
	if err != nil {
		return err
	}
	if h.layers == map[string]int64{"gemma2": 46, "gemma3": 62}[h.arch] {
		hidden, err := h.mustInt("embedding_length")
		if err != nil {
			return err
		}
		scalar = hidden / h.heads
	}
	h.setInt("query_pre_attn_scalar", scalar)
	h.decide("query-scale", fmt.Sprintf("the file does not say what queries are scaled by: query_pre_attn_scalar is %d, as llama.cpp computes", scalar))
	return nil
}

// gpt2Config adds what GPT-2 has by definition.
func (h *hfPlanner) gpt2Config() error {
	h.setText("activation_function", "gelu_new")
	hidden, err := h.mustInt("embedding_length")
	if err != nil {
		return err
	}
	inner, err := h.intOr("feed_forward_length", 4*hidden)
	if err != nil {
		return err
	}
	if inner != 4*hidden {
		h.setInt("n_inner", inner)
	}
	for _, name := range []string{"attn_norm", "attn_qkv", "attn_output", "ffn_norm", "ffn_up", "ffn_down"} {
		if !h.hasTensor(name + ".bias") {
			return h.errorf("it has no tensor %q, which GPT-2 has in transformers", "blk.0."+name+".bias")
		}
	}
	return nil
}
