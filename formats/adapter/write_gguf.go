package adapter

import (
	"strings"

	"github.com/loratool/loratool/formats/gguf"
)

// This file has what all writers of GGUF adapters share.

// The ends of the names of factors, behind the whole name of the tensor that they change.
const (
	GGUFSuffixA = ".lora_a"
	GGUFSuffixB = ".lora_b"
)

// ggufProducts are the modules of a layer whose product llama.cpp computes with an adapter
// (build_lora_mm and build_lora_mm_id). An adapter of another one would be loaded and
// have no effect.
var ggufProducts = map[string]bool{
	"attn_q": true, "attn_k": true, "attn_v": true, "attn_qkv": true, "attn_output": true,
	"attn_q_a": true, "attn_q_b": true, "attn_kv_a_mqa": true, "attn_kv_b": true,
	"ffn_gate": true, "ffn_up": true, "ffn_down": true, "ffn_gate_inp": true,
	"ffn_gate_shexp": true, "ffn_up_shexp": true, "ffn_down_shexp": true,
	"ffn_gate_exps": true, "ffn_up_exps": true, "ffn_down_exps": true,
}

// HasGGUFProduct reports whether llama.cpp applies an adapter to the weight of a module,
// which has its name in GGUF, such as blk.0.attn_q.
func HasGGUFProduct(module string) bool {
	return ggufProducts[module[strings.LastIndexByte(module, '.')+1:]]
}

// GGUFKeys are the keys that a LoRA adapter must have, in the order of llama.cpp's
// converter (convert_lora_to_gguf.py). Each pair's scale is alpha over its own rank.
func GGUFKeys(architecture string, alpha float32) *gguf.Metadata {
	keys := new(gguf.Metadata)
	keys.Set(keyType, gguf.ValueOf("adapter"))
	keys.Set(keyArchitecture, gguf.ValueOf(architecture))
	keys.Set(keyAdapterType, gguf.ValueOf("lora"))
	keys.Set(keyAlpha, gguf.ValueOf(alpha))
	return keys
}
