package arch

import "slices"

// decoder are the tensors of a decoder with RMS norms and gated feed-forward layers.
var decoder = []Rename{
	{"model.embed_tokens", "token_embd", Same},
	{"model.norm", "output_norm", Same},
	{"lm_head", "output", Same},
	{"model.layers.#.input_layernorm", "blk.#.attn_norm", Same},
	{"model.layers.#.self_attn.q_proj", "blk.#.attn_q", Same},
	{"model.layers.#.self_attn.k_proj", "blk.#.attn_k", Same},
	{"model.layers.#.self_attn.v_proj", "blk.#.attn_v", Same},
	{"model.layers.#.self_attn.o_proj", "blk.#.attn_output", Same},
	{"model.layers.#.self_attn.q_norm", "blk.#.attn_q_norm", Same},
	{"model.layers.#.self_attn.k_norm", "blk.#.attn_k_norm", Same},
	{"model.layers.#.post_attention_layernorm", "blk.#.ffn_norm", Same},
	{"model.layers.#.mlp.gate_proj", "blk.#.ffn_gate", Same},
	{"model.layers.#.mlp.up_proj", "blk.#.ffn_up", Same},
	{"model.layers.#.mlp.down_proj", "blk.#.ffn_down", Same},
}

// mixtralExperts are single experts by the names of Mixtral.
var mixtralExperts = []Rename{
	{"model.layers.#.block_sparse_moe.gate", "blk.#.ffn_gate_inp", Same},
	{"model.layers.#.block_sparse_moe.experts.*.w1", "blk.#.ffn_gate_exps", Stacked},
	{"model.layers.#.block_sparse_moe.experts.*.w2", "blk.#.ffn_down_exps", Stacked},
	{"model.layers.#.block_sparse_moe.experts.*.w3", "blk.#.ffn_up_exps", Stacked},
}

// qwenExperts are the experts of Qwen, single or stacked.
var qwenExperts = []Rename{
	{"model.layers.#.mlp.gate", "blk.#.ffn_gate_inp", Same},
	{"model.layers.#.mlp.experts.*.down_proj", "blk.#.ffn_down_exps", Stacked},
	{"model.layers.#.mlp.experts.*.gate_proj", "blk.#.ffn_gate_exps", Stacked},
	{"model.layers.#.mlp.experts.*.up_proj", "blk.#.ffn_up_exps", Stacked},
	{"model.layers.#.mlp.experts.down_proj", "blk.#.ffn_down_exps", Same},
	{"model.layers.#.mlp.experts.gate_up_proj", "blk.#.ffn_gate_exps", SplitGate},
	{"model.layers.#.mlp.experts.gate_up_proj", "blk.#.ffn_up_exps", SplitUp},
	{"model.layers.#.mlp.shared_expert_gate", "blk.#.ffn_gate_inp_shexp", Same},
	{"model.layers.#.mlp.shared_expert.gate_proj", "blk.#.ffn_gate_shexp", Same},
	{"model.layers.#.mlp.shared_expert.up_proj", "blk.#.ffn_up_shexp", Same},
	{"model.layers.#.mlp.shared_expert.down_proj", "blk.#.ffn_down_shexp", Same},
}

// with returns a table with some of its rows replaced, by the name in Hugging Face, and
// others added.
func with(table []Rename, rows ...Rename) []Rename {
	table = slices.Clone(table)
	for _, row := range rows {
		if i := slices.IndexFunc(table, func(r Rename) bool { return r.HF == row.HF }); i >= 0 && row.Change != SplitUp {
			table[i] = row
			continue
		}
		table = append(table, row)
	}
	return table
}

// without returns a table without the rows of some names in Hugging Face.
func without(table []Rename, names ...string) []Rename {
	return slices.DeleteFunc(slices.Clone(table), func(r Rename) bool { return slices.Contains(names, r.HF) })
}

// ggufHeadNorms are the norms of query and key heads, which newer families have.
var ggufHeadNorms = []string{"model.layers.#.self_attn.q_norm", "model.layers.#.self_attn.k_norm"}

// denseLayers are the feed-forward layers that models of experts have in no layer, or
// in some for which GGUF has no place.
var denseLayers = []string{"model.layers.#.mlp.gate_proj", "model.layers.#.mlp.up_proj", "model.layers.#.mlp.down_proj"}

// paired are the rows of the families whose heads are rotated in pairs.
var paired = []Rename{
	{"model.layers.#.self_attn.q_proj", "blk.#.attn_q", PairQ},
	{"model.layers.#.self_attn.k_proj", "blk.#.attn_k", PairK},
}

// plusOne are the norms of the Gemma families that have no others.
var plusOne = []Rename{
	{"model.norm", "output_norm", PlusOne},
	{"model.layers.#.input_layernorm", "blk.#.attn_norm", PlusOne},
	{"model.layers.#.post_attention_layernorm", "blk.#.ffn_norm", PlusOne},
}

// aroundNorms are the norms before and after each half of a layer, as Gemma 2 has them.
var aroundNorms = with(plusOne,
	Rename{"model.layers.#.post_attention_layernorm", "blk.#.post_attention_norm", PlusOne},
	Rename{"model.layers.#.pre_feedforward_layernorm", "blk.#.ffn_norm", PlusOne},
	Rename{"model.layers.#.post_feedforward_layernorm", "blk.#.post_ffw_norm", PlusOne},
)

// llamaLayers are those of Llama and of what is built like it.
var llamaLayers = with(without(decoder, ggufHeadNorms...), paired...)

// ggufFamilies are the families that can be converted.
var ggufFamilies = []GGUFFamily{
	{
		Name: "llama", Prefix: "model.",
		Architectures: []string{"LlamaForCausalLM", "LLaMAForCausalLM", "LlamaModel", "MistralForCausalLM", "MixtralForCausalLM"},
		Renames:       append(slices.Clone(llamaLayers), mixtralExperts...),
	},
	{
		Name: "qwen2", Prefix: "model.", Architectures: []string{"Qwen2ForCausalLM", "Qwen2Model"},
		Renames: without(decoder, ggufHeadNorms...),
	},
	{
		Name: "qwen2moe", Architectures: []string{"Qwen2MoeForCausalLM"},
		Renames: append(without(without(decoder, ggufHeadNorms...), denseLayers...), qwenExperts...),
	},
	{
		Name: "qwen3", Prefix: "model.", Architectures: []string{"Qwen3ForCausalLM", "Qwen3Model"},
		Renames: decoder,
	},
	{
		Name: "qwen3moe", Architectures: []string{"Qwen3MoeForCausalLM"},
		Renames: append(without(decoder, denseLayers...), qwenExperts[:7]...), // no shared expert
	},
	{
		Name: "gemma", Architectures: []string{"GemmaForCausalLM"}, Dropped: []string{"lm_head.weight"},
		Renames: with(without(without(decoder, ggufHeadNorms...), "lm_head"), plusOne...),
	},
	{
		Name: "gemma2", Architectures: []string{"Gemma2ForCausalLM"}, Dropped: []string{"lm_head.weight"},
		Renames: with(without(without(decoder, ggufHeadNorms...), "lm_head"), aroundNorms...),
	},
	{
		Name: "gemma3", Architectures: []string{"Gemma3ForCausalLM"},
		Renames: with(with(decoder, aroundNorms...),
			Rename{ggufHeadNorms[0], "blk.#.attn_q_norm", PlusOne}, Rename{ggufHeadNorms[1], "blk.#.attn_k_norm", PlusOne}),
	},
	{
		Name: "phi3", Architectures: []string{"Phi3ForCausalLM"},
		Renames: with(without(without(decoder, ggufHeadNorms...), "model.layers.#.self_attn.q_proj", "model.layers.#.self_attn.k_proj",
			"model.layers.#.self_attn.v_proj", "model.layers.#.mlp.gate_proj", "model.layers.#.mlp.up_proj"),
			Rename{"model.layers.#.self_attn.qkv_proj", "blk.#.attn_qkv", Same},
			Rename{"model.layers.#.mlp.gate_up_proj", "blk.#.ffn_up", Same}),
	},
	{Name: "smollm3", Like: "llama", Architectures: []string{"SmolLM3ForCausalLM"}, Renames: llamaLayers},
	{Name: "granite", Like: "llama", Architectures: []string{"GraniteForCausalLM"}, Renames: llamaLayers},
	{
		Name: "olmo2", Architectures: []string{"Olmo2ForCausalLM", "Olmo3ForCausalLM"},
		Renames: with(without(decoder, "model.layers.#.input_layernorm"),
			Rename{"model.layers.#.post_attention_layernorm", "blk.#.post_attention_norm", Same},
			Rename{"model.layers.#.post_feedforward_layernorm", "blk.#.post_ffw_norm", Same}),
	},
	{
		Name: "starcoder2", Architectures: []string{"Starcoder2ForCausalLM"},
		Renames: append(without(without(decoder, ggufHeadNorms...), denseLayers...),
			Rename{"model.layers.#.mlp.c_fc", "blk.#.ffn_up", Same},
			Rename{"model.layers.#.mlp.c_proj", "blk.#.ffn_down", Same}),
	},
	{
		Name: "gpt2", Prefix: "transformer.", Architectures: []string{"GPT2LMHeadModel"},
		Dropped: []string{".attn.bias", ".attn.masked_bias"},
		Renames: []Rename{
			{"transformer.wte", "token_embd", Same},
			{"transformer.wpe", "position_embd", Same},
			{"transformer.ln_f", "output_norm", Same},
			{"lm_head", "output", Same},
			{"transformer.h.#.ln_1", "blk.#.attn_norm", Same},
			{"transformer.h.#.attn.c_attn", "blk.#.attn_qkv", Transposed},
			{"transformer.h.#.attn.c_proj", "blk.#.attn_output", Transposed},
			{"transformer.h.#.ln_2", "blk.#.ffn_norm", Same},
			{"transformer.h.#.mlp.c_fc", "blk.#.ffn_up", Transposed},
			{"transformer.h.#.mlp.c_proj", "blk.#.ffn_down", Transposed},
		},
	},
	{
		Name: "bert", Prefix: "bert.", Architectures: []string{"BertModel", "BertForMaskedLM"},
		Suffixes: map[string]string{".gamma": ".weight", ".beta": ".bias"},
		Dropped: []string{"embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias", "cls.predictions.bias",
			"cls.predictions.decoder.weight", "cls.predictions.decoder.bias", "cls.predictions.transform.dense.weight",
			"cls.predictions.transform.dense.bias", "cls.predictions.transform.LayerNorm.weight",
			"cls.predictions.transform.LayerNorm.bias",
			"cls.predictions.transform.LayerNorm.gamma", "cls.predictions.transform.LayerNorm.beta", "cls.seq_relationship.weight", "cls.seq_relationship.bias"},
		Renames: []Rename{
			{"bert.embeddings.word_embeddings", "token_embd", Same},
			{"bert.embeddings.token_type_embeddings", "token_types", Same},
			{"bert.embeddings.position_embeddings", "position_embd", Same},
			{"bert.embeddings.LayerNorm", "token_embd_norm", Same},
			{"bert.encoder.layer.#.attention.self.query", "blk.#.attn_q", Same},
			{"bert.encoder.layer.#.attention.self.key", "blk.#.attn_k", Same},
			{"bert.encoder.layer.#.attention.self.value", "blk.#.attn_v", Same},
			{"bert.encoder.layer.#.attention.output.dense", "blk.#.attn_output", Same},
			{"bert.encoder.layer.#.attention.output.LayerNorm", "blk.#.attn_output_norm", Same},
			{"bert.encoder.layer.#.intermediate.dense", "blk.#.ffn_up", Same},
			{"bert.encoder.layer.#.output.dense", "blk.#.ffn_down", Same},
			{"bert.encoder.layer.#.output.LayerNorm", "blk.#.layer_output_norm", Same},
		},
	},
}
