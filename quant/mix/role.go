package mix

import (
	"strings"

	"github.com/loratool/loratool/formats/gguf"
)

// role is what a tensor is for, as far as recipes tell tensors apart.
type role uint8

const (
	other role = iota
	output
	embedding
	values // also those fused with queries and keys, or made from a compressed form
	keys
	queries
	attnOutput
	ffnUp
	ffnGate
	ffnDown
)

// roleNames are for people.
var roleNames = [...]string{
	other: "other weights", output: "the output matrix", embedding: "the token embedding",
	values: "attention values", keys: "attention keys", queries: "attention queries", attnOutput: "the attention's output",
	ffnUp: "ffn_up", ffnGate: "ffn_gate", ffnDown: "ffn_down",
}

// String returns the role in words.
func (r role) String() string { return roleNames[r] }

const (
	outputName          = "output.weight"
	embeddingName       = "token_embd.weight"
	layerEmbeddingsName = "per_layer_token_embd.weight"
)

// parts gives the role by a part of the name; the first that is found counts. Those
// of the feed-forward network also find experts and shared experts.
var parts = []struct {
	part string
	role role
}{
	{"attn_qkv.weight", values},
	{"attn_kv_b.weight", values},
	{"attn_v.weight", values},
	{"attn_k.weight", keys},
	{"attn_q.weight", queries},
	{"attn_output.weight", attnOutput},
	{"ffn_up", ffnUp},
	{"ffn_gate", ffnGate},
	{"ffn_down", ffnDown},
}

// roleOf returns the role of a tensor.
func roleOf(name string) role {
	switch name {
	case outputName:
		return output
	case embeddingName, layerEmbeddingsName:
		return embedding
	}
	for _, p := range parts {
		if strings.Contains(name, p.part) {
			return p.role
		}
	}
	return other
}

// protected gives the tensors that are left as they are, by a part of the name.
var protected = []struct {
	reason Reason
	why    string
	parts  []string
}{
	{Norm, "norms are small and sensitive", []string{"_norm.weight"}},
	{Router, "it chooses the experts", []string{"ffn_gate_inp.weight", "ffn_gate_tid2eid.weight"}},
	{Position, "positions are small and sensitive", []string{
		".position_embd", "sam.pos_embd", ".rel_pos", "attn_rel_b.weight",
	}},
	{Small, "it is a small matrix beside the residual stream", []string{"altup", "laurel", "per_layer_model_proj"}},
	{Small, "it is a short convolution", []string{"ssm_conv1d", "shortconv.conv.weight"}},
	{Small, "it is a small projection of an indexer", []string{"indexer.k_proj.weight", "indexer.q_proj.weight"}},
	{Small, "it is a small matrix of RWKV", []string{
		"time_mix_first.weight", "time_mix_w0.weight", "time_mix_w1.weight", "time_mix_w2.weight",
		"time_mix_v0.weight", "time_mix_v1.weight", "time_mix_v2.weight",
		"time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight",
		"time_mix_g1.weight", "time_mix_g2.weight",
		"time_mix_decay_w1.weight", "time_mix_decay_w2.weight", "time_mix_lerp_fused.weight",
	}},
	{Small, "it turns patches of an image into vectors or merges them", []string{
		"sam.neck.", "sam.net_", ".patch_embd", ".patch_merger",
	}},
	{Small, "it is a codebook for audio", []string{"a.rvq.codebook", "mm.a.code_embd"}},
}

// leave says why a tensor is left as it is, or returns "".
//
// Source: tensor_allows_quantization of src/llama-quant.cpp.
func (o *Options) leave(t gguf.Spec) (Reason, string) {
	switch {
	case o.Type == Copy:
		return Copied, "all tensors are copied"
	case rank(t) < 2:
		return Vector, "only matrices are quantized"
	case !isWeight(t.Name):
		return NotWeight, `only names that end with "weight" are quantized`
	case o.LeaveOutput && t.Name == outputName:
		return LeftAlone, "the output matrix is to be left as it is"
	case t.Name == "position_embd.weight":
		return Position, "positions are small and sensitive"
	case t.Name == "token_types.weight":
		return Position, "the kinds of tokens are few"
	}
	for _, p := range protected {
		for _, part := range p.parts {
			if strings.Contains(t.Name, part) {
				return p.reason, p.why
			}
		}
	}
	return "", ""
}

// isWeight reports whether the reference takes a name for that of a weight: it ends
// with "weight", or has five bytes. (It compares where "weight" is last found with the
// length less six; not found and minus one are the same number.)
func isWeight(name string) bool { return strings.HasSuffix(name, "weight") || len(name) == 5 }

// rank returns the number of dimensions as ggml counts them: at least one, and not
// those on the outside whose size is 1 or 0.
func rank(t gguf.Spec) int {
	for n := len(t.Shape); n > 1; n-- {
		if size(t, n-1) > 1 {
			return n
		}
	}
	return 1
}

// size returns the size of a dimension, counted from the innermost one, the rows'.
func size(t gguf.Spec, dim int) int64 {
	if dim >= len(t.Shape) {
		return 1
	}
	return t.Shape[len(t.Shape)-1-dim]
}
