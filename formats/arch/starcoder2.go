package arch

import "slices"

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
	Decoders: map[string]Decoder{"starcoder2": {
		Root: "model.", Layers: "layers.", Keys: llamaKeys,
		Layer: slices.Concat(attention, twoNorms, biases(true), otherBiases[:1], []DecoderTensor{
			{Name: "input_layernorm.bias", Shape: []Size{Hidden}},
			{Name: "post_attention_layernorm.bias", Shape: []Size{Hidden}},
			{Name: "mlp.c_fc.weight", Shape: []Size{Intermediate, Hidden}},
			{Name: "mlp.c_fc.bias", Shape: []Size{Intermediate}, Optional: true},
			{Name: "mlp.c_proj.weight", Shape: []Size{Hidden, Intermediate}},
			{Name: "mlp.c_proj.bias", Shape: []Size{Hidden}, Optional: true},
		}),
		Model: append([]DecoderTensor{{Name: "model.norm.bias", Shape: []Size{Hidden}}}, llamaModel...),
	}},
}
