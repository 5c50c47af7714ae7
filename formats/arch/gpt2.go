package arch

// gpt2Family stores its matrices as (in, out), and its hyperparameters by names and in an
// order of its own (llama.cpp, conversion/gpt2.py).
var gpt2Family = Family{
	Name: "gpt2", Prefix: "transformer.", ModelType: "gpt2", Architectures: []string{"GPT2LMHeadModel"},
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
	Params: []Param{
		{Key: "block_count", Names: []string{"n_layer", "n_layers", "num_hidden_layers", "num_layers"}, Need: Always},
		{Key: "context_length", Names: []string{"n_ctx", "n_positions"}, Back: "n_positions", Need: Always},
		{Key: "embedding_length", Names: []string{"n_embd"}, Need: Always},
		{Rule: GPT2Widening},
		{Key: "attention.head_count", Names: []string{"n_head", "n_heads", "num_attention_heads"}, Need: Always},
		{Key: layerNormEpsilon, Names: []string{"layer_norm_epsilon"}, Kind: Real, Need: Always},
		{Rule: FileType},
		{Rule: LearnedPositions},
	},
	Fixed: []Fixed{
		{Name: "activation_function", Texts: []string{"gelu_new", "gelu", "gelu_pytorch_tanh", "gelu_fast"}},
		{Name: "scale_attn_by_inverse_layer_idx", Flag: false},
		{Name: "scale_attn_weights", Flag: true},
	},
	Biases: []Bias{{"", []string{"attn_norm", "attn_qkv", "attn_output", "ffn_norm", "ffn_up", "ffn_down", "output_norm"}}},
	Tokens: Tokens{Kind: BytesOnly},
	Decoders: map[string]Decoder{"gpt2": {
		Root: "transformer.", Layers: "h.",
		Layer: []DecoderTensor{
			{Name: "attn.c_attn.weight", Shape: []Size{Hidden, TripleHidden}},
			{Name: "attn.c_attn.bias", Shape: []Size{TripleHidden}},
			{Name: "attn.c_proj.weight", Shape: []Size{Hidden, Hidden}},
			{Name: "attn.c_proj.bias", Shape: []Size{Hidden}},
			{Name: "mlp.c_fc.weight", Shape: []Size{Hidden, Intermediate}},
			{Name: "mlp.c_fc.bias", Shape: []Size{Intermediate}},
			{Name: "mlp.c_proj.weight", Shape: []Size{Intermediate, Hidden}},
			{Name: "mlp.c_proj.bias", Shape: []Size{Hidden}},
			{Name: "ln_1.weight", Shape: []Size{Hidden}},
			{Name: "ln_1.bias", Shape: []Size{Hidden}},
			{Name: "ln_2.weight", Shape: []Size{Hidden}},
			{Name: "ln_2.bias", Shape: []Size{Hidden}},
		},
		Model: []DecoderTensor{
			{Name: "transformer.wte.weight", Shape: []Size{Vocabulary, Hidden}},
			{Name: "transformer.wpe.weight", Shape: []Size{Positions, Hidden}},
			{Name: "transformer.ln_f.weight", Shape: []Size{Hidden}},
			{Name: "transformer.ln_f.bias", Shape: []Size{Hidden}},
			{Name: "lm_head.weight", Shape: []Size{Vocabulary, Hidden}, Optional: true},
		},
		Keys: DecoderKeys{
			Hidden: "n_embd", Intermediate: "n_inner", Heads: "n_head", Layers: "n_layer", Vocabulary: "vocab_size", Positions: "n_positions",
		},
	}},
}
