package arch

import "slices"

// Llama, and the families that are built like it.

// llamaLayers are the tensors of Llama.
var llamaLayers = with(without(decoder, ggufHeadNorms...), paired...)

// mixtralExperts are single experts by the names of Mixtral.
var mixtralExperts = []Rename{
	{"model.layers.#.block_sparse_moe.gate", "blk.#.ffn_gate_inp", Same},
	{"model.layers.#.block_sparse_moe.experts.*.w1", "blk.#.ffn_gate_exps", Stacked},
	{"model.layers.#.block_sparse_moe.experts.*.w2", "blk.#.ffn_down_exps", Stacked},
	{"model.layers.#.block_sparse_moe.experts.*.w3", "blk.#.ffn_up_exps", Stacked},
}

// llamaParams are the common ones, and two sizes that follow from others.
var llamaParams = and(llama3(common),
	Param{Key: "vocab_size", Names: []string{"vocab_size"}, Need: InHF, OneWay: true},
	Param{Rule: RotatedSize},
)

// llama3 returns a table where Llama 3's scaling is a tensor.
func llama3(table []Param) []Param {
	table = slices.Clone(table)
	table[slices.IndexFunc(table, func(p Param) bool { return p.Rule == Rotary })].Rule = Llama3Rotary
	return table
}

// llamaTokens are the tokenizers of Llama and its like.
var llamaTokens = Tokens{MadeScores: true}

// llamaBiases are the switches that Llama has.
var llamaBiases = []Bias{{"attention_bias", attentionAll}, {"mlp_bias", gated}}

var siluGate = []Fixed{{Name: "hidden_act", Texts: silu}}

var llamaFamilies = []Family{
	{
		Name: "llama", Prefix: "model.", ModelType: "llama",
		Architectures: []string{"LlamaForCausalLM", "LLaMAForCausalLM", "LlamaModel", "MistralForCausalLM", "MixtralForCausalLM"},
		Renames:       slices.Concat(llamaLayers, mixtralExperts),
		Params:        and(llamaParams, Param{Rule: MixtralExperts}, Param{Rule: NoWindow}),
		Fixed:         siluGate, Biases: llamaBiases, Tokens: llamaTokens,
		Decoders: map[string]Decoder{
			"llama":   llamaLike,
			"mistral": llamaKind(attention, mlp, twoNorms),
		},
	},
	{
		Name: "smollm3", ModelType: "smollm3", Architectures: []string{"SmolLM3ForCausalLM"},
		Renames:  llamaLayers,
		Params:   slices.Concat([]Param{{Rule: SmolLM3Rotation}}, llamaParams, []Param{{Rule: SwitchedWindow}}),
		Decoders: map[string]Decoder{"smollm3": llamaLike},
		Fixed:    siluGate, Biases: llamaBiases, Tokens: llamaTokens,
	},
	{
		// What embeddings, scores, residuals and logits are scaled with. The size of heads
		// is the share of the hidden size, whatever head_dim says.
		Name: "granite", ModelType: "granite", Architectures: []string{"GraniteForCausalLM"},
		Renames: llamaLayers,
		Params: slices.Concat([]Param{{Rule: GraniteHeads}}, less(llamaParams, "attention.key_length", "attention.value_length"), []Param{
			{Key: "attention.scale", Names: []string{"attention_multiplier"}, Kind: Real, ZeroIsNone: true},
			{Key: "embedding_scale", Names: []string{"embedding_multiplier"}, Kind: Real, ZeroIsNone: true},
			{Key: "residual_scale", Names: []string{"residual_multiplier"}, Kind: Real, ZeroIsNone: true},
			{Key: "logit_scale", Names: []string{"logits_scaling"}, Kind: Real, ZeroIsNone: true},
			{Rule: GraniteScales},
		}),
		Decoders: map[string]Decoder{"granite": llamaLike},
		Fixed:    siluGate, Biases: llamaBiases, Tokens: llamaTokens,
	},
}
