package arch

// bertFamily makes embeddings of texts (llama.cpp, conversion/bert.py). Its heads, which
// learn masked words, and the pooler have no place in GGUF.
var bertFamily = Family{
	Name: "bert", Prefix: "bert.", Bare: true, ModelType: "bert", Architectures: []string{"BertModel", "BertForMaskedLM"},
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
	Params: and(put(less(common, rmsNormEpsilon, "attention.head_count_kv", "attention.key_length", "attention.value_length", string(Rotary), string(Heads)),
		Param{Key: "feed_forward_length", Names: []string{"intermediate_size"}, Need: Always},
		Param{Key: layerNormEpsilon, Names: layerNormNames, Kind: Real, Need: Always}),
		Param{Rule: LearnedPositions}, Param{Rule: TokenTypes}, Param{Rule: TextEmbeddings}),
	Tokens: Tokens{Kind: WordsOnly},
	Fixed: []Fixed{
		{Name: "hidden_act", Texts: []string{"gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast"}},
		{Name: "position_embedding_type", Texts: []string{"absolute"}},
		{Name: "is_decoder", Flag: false},
	},
	Biases: []Bias{{"", []string{"token_embd_norm", "attn_q", "attn_k", "attn_v", "attn_output", "attn_output_norm", "ffn_up", "ffn_down", "layer_output_norm"}}},
}
