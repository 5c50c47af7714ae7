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

// ggufFamilies are the families that can be converted: one file each, or one for a house.
var ggufFamilies = slices.Concat(llamaFamilies, qwenFamilies, gemmaFamilies,
	[]Family{phi3Family, olmo2Family, starcoder2Family, gpt2Family, bertFamily})
