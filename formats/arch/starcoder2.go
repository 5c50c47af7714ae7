package arch

// starcoder2Family has layer norms and plain feed-forward layers.
var starcoder2Family = Family{
	Name: "starcoder2", ModelType: "starcoder2", Architectures: []string{"Starcoder2ForCausalLM"},
	Renames: append(without(without(decoder, ggufHeadNorms...), denseLayers...),
		Rename{"model.layers.#.mlp.c_fc", "blk.#.ffn_up", Same},
		Rename{"model.layers.#.mlp.c_proj", "blk.#.ffn_down", Same}),
	Params: and(put(less(common, rmsNormEpsilon),
		Param{Key: layerNormEpsilon, Names: layerNormNames, Back: "norm_epsilon", Kind: Real, Need: Always}),
		Param{Rule: NoWindow}),
	Fixed:  []Fixed{{Name: "hidden_act", Texts: gelu}},
	Tokens: Tokens{Kind: BytesOnly},
	Biases: []Bias{
		{"use_bias", append([]string{"ffn_up", "ffn_down"}, attentionAll...)},
		{"", []string{"attn_norm", "ffn_norm", "output_norm"}},
	},
}
