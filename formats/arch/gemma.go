package arch

// The families of Gemma, whose norms multiply with 1 + w.

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

// gemmaParams are in an order of their own. Rotary embeddings have no keys.
var gemmaParams = []Param{
	{Key: "context_length", Names: []string{"max_position_embeddings"}, Need: Always},
	{Key: "embedding_length", Names: []string{"hidden_size"}, Need: Always},
	{Key: "block_count", Names: []string{"num_hidden_layers"}, Need: Always},
	{Key: "feed_forward_length", Names: []string{"intermediate_size"}, Need: InHF},
	{Key: "attention.head_count", Names: []string{"num_attention_heads"}, Need: Always},
	{Key: "attention.head_count_kv", Names: []string{"num_key_value_heads", "num_attention_heads"}, Need: InHF, OneWay: true},
	rmsEpsilon,
	{Key: "attention.key_length", Names: []string{"head_dim"}, Need: InHF, OneWay: true},
	{Key: "attention.value_length", Names: []string{"head_dim"}, Need: InHF, OneWay: true},
	{Rule: FileType},
	{Rule: Heads},
	{Rule: RotaryByDefault},
}

// gemma3Params are the common ones with the defaults of the family, which its configs
// may leave out.
var gemma3Params = and(common,
	Param{Key: "context_length", Names: []string{"max_position_embeddings"}, Need: InGGUF, Default: 131072},
	Param{Key: "attention.head_count", Names: []string{"num_attention_heads"}, Need: InGGUF, Default: 8},
	Param{Key: rmsNormEpsilon, Names: []string{"rms_norm_eps"}, Kind: Real, Need: InGGUF, Default: 1e-6},
	Param{Key: "attention.key_length", Names: []string{"head_dim"}, Default: 256, OneWay: true},
	Param{Key: "attention.value_length", Names: []string{"head_dim"}, Default: 256, OneWay: true},
	Param{Rule: Gemma3Base},
	Param{Key: "final_logit_softcapping", Names: []string{"final_logit_softcapping"}, Kind: Real, ZeroIsNone: true},
	Param{Rule: Gemma3Window},
	Param{Key: "attention.head_count_kv", Names: []string{"num_key_value_heads"}, Default: 4, OneWay: true},
	Param{Rule: QueryScale},
)

var (
	gemmaFixed  = []Fixed{{Name: "hidden_activation", Texts: gelu}}
	gemmaBiases = []Bias{{"attention_bias", attentionAll}}
)

var gemmaFamilies = []Family{
	{
		Name: "gemma", ModelType: "gemma", Architectures: []string{"GemmaForCausalLM"}, Dropped: []string{"lm_head.weight"},
		Renames: with(without(without(decoder, ggufHeadNorms...), "lm_head"), plusOne...),
		Params:  gemmaParams,
		Fixed:   append([]Fixed{{Name: "hidden_act", Texts: gelu}}, gemmaFixed...), Biases: gemmaBiases, OwnHeadSize: true,
		Tokens:   Tokens{Kind: PiecesOnly, NoSpace: true, EndOfTurn: 107},
		Decoders: map[string]Decoder{"gemma": llamaKind(attention, mlp, twoNorms, biases(true), otherBiases[:1])},
	},
	{
		Name: "gemma2", ModelType: "gemma2", Architectures: []string{"Gemma2ForCausalLM"}, Dropped: []string{"lm_head.weight"},
		Renames: with(without(without(decoder, ggufHeadNorms...), "lm_head"), aroundNorms...),
		Params: and(gemmaParams,
			Param{Key: "attn_logit_softcapping", Names: []string{"attn_logit_softcapping"}, Kind: Real, Null: true},
			Param{Key: "final_logit_softcapping", Names: []string{"final_logit_softcapping"}, Kind: Real, Null: true},
			Param{Key: "attention.sliding_window", Names: []string{"sliding_window"}, Need: Always},
			Param{Rule: QueryScale}),
		Fixed: gemmaFixed, Biases: gemmaBiases, OwnHeadSize: true,
		Tokens:   Tokens{Kind: PiecesOnly, NoSpace: true},
		Decoders: map[string]Decoder{"gemma2": llamaKind(attention, mlp, twoNorms, fourNorms, biases(true), otherBiases[:1])},
	},
	{
		Name: "gemma3", ModelType: "gemma3_text", Architectures: []string{"Gemma3ForCausalLM"},
		Renames: with(with(decoder, aroundNorms...),
			Rename{ggufHeadNorms[0], "blk.#.attn_q_norm", PlusOne}, Rename{ggufHeadNorms[1], "blk.#.attn_k_norm", PlusOne}),
		Params: gemma3Params, Fixed: gemmaFixed, Biases: gemmaBiases, OwnHeadSize: true,
		Tokens:   Tokens{NoSpace: true, CutRows: true},
		Decoders: map[string]Decoder{"gemma3_text": llamaKind(attention, mlp, twoNorms, fourNorms, headNorms, biases(true), otherBiases[:1])},
	},
}
