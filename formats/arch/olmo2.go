package arch

// olmo2Family are OLMo 2 and 3, which have norms behind each half of a layer and over all
// heads of queries and of keys. OLMo 3 is the one with a sliding window.
var olmo2Family = Family{
	Name: "olmo2", ModelType: "olmo2", Architectures: []string{"Olmo2ForCausalLM", "Olmo3ForCausalLM"},
	Renames: with(without(decoder, "model.layers.#.input_layernorm"),
		Rename{"model.layers.#.post_attention_layernorm", "blk.#.post_attention_norm", Same},
		Rename{"model.layers.#.post_feedforward_layernorm", "blk.#.post_ffw_norm", Same}),
	Params: and(common, Param{Rule: OlmoWindow}),
	Decoders: map[string]Decoder{
		"olmo2": llamaKind(attention, mlp, wholeNorms, biases(true), otherBiases[:1]),
		"olmo3": llamaKind(attention, mlp, wholeNorms, biases(true), otherBiases[:1]),
	},
	Fixed: siluGate, Biases: []Bias{{"attention_bias", attentionAll}}, Tokens: Tokens{Kind: BytesOnly},
}
