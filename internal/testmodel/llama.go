// Package testmodel writes made-up checkpoints and adapters: the shapes and
// names of real ones, any size, and values that depend on nothing but a seed.
//
// The main types are [Llama] and [LoRA]; [Llama.Write] and [LoRA.Write] stream
// through formats/checkpoint, so a model of any size takes a few MiB of memory.
// The values are noise of a plausible size: such a model loads, computes and
// says nothing.
package testmodel

import (
	"fmt"

	"github.com/loratool/loratool/formats/tensor"
)

// Llama is a model of the Llama architecture, by its sizes, stored as BF16.
type Llama struct {
	Layers, Hidden, Intermediate   int64
	Heads, KVHeads, HeadDim, Vocab int64
}

// Tiny returns a model of 0.2 MB with every tensor of a large one.
func Tiny() Llama {
	return Llama{Layers: 2, Hidden: 64, Intermediate: 160, Heads: 4, KVHeads: 2, HeadDim: 16, Vocab: 256}
}

// Large returns a model with the layers of Llama 3 8B, as many as it takes for
// at least sizeBytes of weights; 8B itself has 32 and 16.1 GB.
func Large(sizeBytes int64) Llama {
	m := Llama{Layers: 1, Hidden: 4096, Intermediate: 14336, Heads: 32, KVHeads: 8, HeadDim: 128, Vocab: 128256}
	one := m.Size()
	m.Layers = 2
	perLayer := m.Size() - one
	m.Layers = max(1, 1+(sizeBytes-one+perLayer-1)/perLayer)
	return m
}

// linear is a linear layer of a decoder layer: a module with a weight of out
// rows and in columns.
type linear struct {
	module  string
	out, in int64
}

// linears lists the linear layers of decoder layer i.
func (m Llama) linears(i int64) []linear {
	attention, mlp := fmt.Sprintf("model.layers.%d.self_attn.", i), fmt.Sprintf("model.layers.%d.mlp.", i)
	q, kv := m.Heads*m.HeadDim, m.KVHeads*m.HeadDim
	return []linear{
		{attention + "q_proj", q, m.Hidden},
		{attention + "k_proj", kv, m.Hidden},
		{attention + "v_proj", kv, m.Hidden},
		{attention + "o_proj", m.Hidden, q},
		{mlp + "gate_proj", m.Intermediate, m.Hidden},
		{mlp + "up_proj", m.Intermediate, m.Hidden},
		{mlp + "down_proj", m.Hidden, m.Intermediate},
	}
}

// Specs returns the tensors in the order of the modules, as transformers saves
// them.
func (m Llama) Specs() []tensor.Spec {
	var specs []tensor.Spec
	add := func(module string, shape ...int64) {
		specs = append(specs, tensor.Spec{Name: module + ".weight", DType: tensor.BF16, Shape: shape})
	}
	add("model.embed_tokens", m.Vocab, m.Hidden)
	for i := range m.Layers {
		for _, l := range m.linears(i) {
			add(l.module, l.out, l.in)
		}
		add(fmt.Sprintf("model.layers.%d.input_layernorm", i), m.Hidden)
		add(fmt.Sprintf("model.layers.%d.post_attention_layernorm", i), m.Hidden)
	}
	add("model.norm", m.Hidden)
	add("lm_head", m.Vocab, m.Hidden)
	return specs
}

// Size returns the bytes of all weights.
func (m Llama) Size() int64 {
	var n int64
	for _, s := range m.Specs() {
		n += s.Size()
	}
	return n
}

// config is the config.json of the model, complete enough for transformers to
// load it.
func (m Llama) config() ([]byte, error) {
	return encode(map[string]any{
		"architectures":           []string{"LlamaForCausalLM"},
		"attention_bias":          false,
		"attention_dropout":       0.0,
		"bos_token_id":            1,
		"dtype":                   "bfloat16",
		"eos_token_id":            2,
		"head_dim":                m.HeadDim,
		"hidden_act":              "silu",
		"hidden_size":             m.Hidden,
		"initializer_range":       deviation,
		"intermediate_size":       m.Intermediate,
		"max_position_embeddings": 8192,
		"mlp_bias":                false,
		"model_type":              "llama",
		"num_attention_heads":     m.Heads,
		"num_hidden_layers":       m.Layers,
		"num_key_value_heads":     m.KVHeads,
		"rms_norm_eps":            1e-5,
		"rope_parameters":         map[string]any{"rope_theta": 500000.0, "rope_type": "default"},
		"tie_word_embeddings":     false,
		"use_cache":               true,
		"vocab_size":              m.Vocab,
	})
}
