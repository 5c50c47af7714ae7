package arch

// phi3Family are Phi 3 and 4, whose queries, keys and values are one matrix, as are gate
// and up (llama.cpp, conversion/phi.py). A window of 0 is how a runtime tells Phi 4 from
// Phi 3.
var phi3Family = Family{
	Name: "phi3", ModelType: "phi3", Architectures: []string{"Phi3ForCausalLM"},
	Renames: with(without(without(decoder, ggufHeadNorms...), "model.layers.#.self_attn.q_proj", "model.layers.#.self_attn.k_proj",
		"model.layers.#.self_attn.v_proj", "model.layers.#.mlp.gate_proj", "model.layers.#.mlp.up_proj"),
		Rename{"model.layers.#.self_attn.qkv_proj", "blk.#.attn_qkv", Same},
		Rename{"model.layers.#.mlp.gate_up_proj", "blk.#.ffn_up", Same}),
	Params: []Param{
		{Key: "context_length", Names: []string{"n_positions", "max_position_embeddings"}, Back: "max_position_embeddings", Need: Always},
		{Rule: LongContext},
		{Key: "embedding_length", Names: []string{"hidden_size", "n_embd"}, Need: Always},
		{Key: "feed_forward_length", Names: []string{"intermediate_size"}, Need: Always},
		{Key: "block_count", Names: []string{"num_hidden_layers", "n_layers", "n_layer", "num_layers"}, Need: Always},
		{Key: "attention.head_count", Names: []string{"num_attention_heads", "n_heads", "n_head"}, Need: Always},
		{Key: "attention.head_count_kv", Names: []string{"num_key_value_heads", "n_kv_heads", "num_attention_heads", "n_heads", "n_head"}, Need: InHF, OneWay: true},
		rmsEpsilon,
		{Rule: LongRotary},
		{Rule: FileType},
		{Rule: Phi3Window},
		{Rule: Heads},
	},
	Fixed:    siluGate,
	Tokens:   Tokens{Kind: PiecesOrGPT2, Literal: true},
	Decoders: map[string]Decoder{"phi3": llamaKind(fused, twoNorms)},
}
