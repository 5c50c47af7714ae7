package arch

import "slices"

// The families of Qwen 2 and 3, without and with experts.

// qwenExperts are the experts of Qwen, single or stacked.
var qwenExperts = []Rename{
	{"model.layers.#.mlp.gate", "blk.#.ffn_gate_inp", Same},
	{"model.layers.#.mlp.experts.*.down_proj", "blk.#.ffn_down_exps", Stacked},
	{"model.layers.#.mlp.experts.*.gate_proj", "blk.#.ffn_gate_exps", Stacked},
	{"model.layers.#.mlp.experts.*.up_proj", "blk.#.ffn_up_exps", Stacked},
	{"model.layers.#.mlp.experts.down_proj", "blk.#.ffn_down_exps", Same},
	{"model.layers.#.mlp.experts.gate_up_proj", "blk.#.ffn_gate_exps", SplitGate},
	{"model.layers.#.mlp.experts.gate_up_proj", "blk.#.ffn_up_exps", SplitUp},
}

// qwenShared is the expert that every token goes through.
var qwenShared = []Rename{
	{"model.layers.#.mlp.shared_expert_gate", "blk.#.ffn_gate_inp_shexp", Same},
	{"model.layers.#.mlp.shared_expert.gate_proj", "blk.#.ffn_gate_shexp", Same},
	{"model.layers.#.mlp.shared_expert.up_proj", "blk.#.ffn_up_shexp", Same},
	{"model.layers.#.mlp.shared_expert.down_proj", "blk.#.ffn_down_shexp", Same},
}

var (
	qwenParams       = and(common, Param{Rule: SwitchedWindow})
	qwenExpertParams = and(put(qwenParams, Param{Key: "expert_used_count", Names: []string{"num_experts_per_tok"}, Need: InGGUF}),
		Param{Key: "expert_feed_forward_length", Names: []string{"moe_intermediate_size"}},
		Param{Key: "expert_shared_feed_forward_length", Names: []string{"shared_expert_intermediate_size"}},
		Param{Rule: QwenExperts})

	qwen2Biases = []Bias{{"", queryKeyValue}}
	qwen3Biases = []Bias{{"attention_bias", attentionAll}}
)

var qwenFamilies = []Family{
	{
		Name: "qwen2", Prefix: "model.", ModelType: "qwen2", Architectures: []string{"Qwen2ForCausalLM", "Qwen2Model"},
		Renames: without(decoder, ggufHeadNorms...),
		Params:  qwenParams, Fixed: siluGate, Biases: qwen2Biases,
		Decoders: map[string]Decoder{"qwen2": llamaKind(attention, mlp, twoNorms, biases(false))},
	},
	{
		Name: "qwen2moe", ModelType: "qwen2_moe", Architectures: []string{"Qwen2MoeForCausalLM"},
		Renames: slices.Concat(without(without(decoder, ggufHeadNorms...), denseLayers...), qwenExperts, qwenShared),
		Params:  qwenExpertParams, Biases: qwen2Biases, Tokens: Tokens{Kind: BytesOnly},
		Fixed: append([]Fixed{{Name: "norm_topk_prob", Flag: false}}, siluGate...),
	},
	{
		Name: "qwen3", Prefix: "model.", ModelType: "qwen3", Architectures: []string{"Qwen3ForCausalLM", "Qwen3Model"},
		Renames: decoder,
		Params:  qwenParams, Fixed: siluGate, Biases: qwen3Biases, OwnHeadSize: true,
		Decoders: map[string]Decoder{"qwen3": llamaKind(attention, mlp, twoNorms, headNorms, biases(true), otherBiases[:1])},
	},
	{
		Name: "qwen3moe", ModelType: "qwen3_moe", Architectures: []string{"Qwen3MoeForCausalLM"},
		Renames: slices.Concat(without(decoder, denseLayers...), qwenExperts),
		Params:  less(qwenExpertParams, "expert_shared_feed_forward_length"), Biases: qwen3Biases, OwnHeadSize: true, Tokens: Tokens{Kind: BytesOnly},
		Fixed: append([]Fixed{{Name: "norm_topk_prob", Flag: true}}, siluGate...),
	},
}
