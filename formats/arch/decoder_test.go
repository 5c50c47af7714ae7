package arch_test

import (
	"math"
	"slices"
	"testing"

	"github.com/loratool/loratool/formats/arch"
)

// TestResolve computes shapes from settings as the modelling files do, with their
// defaults.
func TestResolve(t *testing.T) {
	for _, c := range []struct {
		name, family, tensor string
		settings             map[string]int64
		want                 []int64 // nil: not known
	}{
		{"stated", "llama", "self_attn.k_proj.weight",
			map[string]int64{"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24}, []int64{48, 64}},
		{"size of a head", "llama", "self_attn.q_proj.weight", map[string]int64{"hidden_size": 64, "num_attention_heads": 4}, []int64{64, 64}},
		{"as many keys as heads", "llama", "self_attn.k_proj.weight", map[string]int64{"hidden_size": 64, "num_attention_heads": 4}, []int64{64, 64}},
		{"all in one", "phi3", "self_attn.qkv_proj.weight",
			map[string]int64{"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}, []int64{128, 64}},
		{"gate and up", "phi3", "mlp.gate_up_proj.weight", map[string]int64{"hidden_size": 64, "intermediate_size": 100}, []int64{200, 64}},
		{"four times the width", "gpt2", "mlp.c_fc.weight", map[string]int64{"n_embd": 48}, []int64{48, 192}},
		{"own width", "gpt2", "mlp.c_fc.weight", map[string]int64{"n_embd": 48, "n_inner": 50}, []int64{48, 50}},
		{"three in one", "gpt2", "attn.c_attn.bias", map[string]int64{"n_embd": 48}, []int64{144}},
		{"a norm of all keys", "olmo3", "self_attn.k_norm.weight",
			map[string]int64{"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}, []int64{32}},
		{"no gate", "starcoder2", "mlp.c_proj.weight", map[string]int64{"hidden_size": 64, "intermediate_size": 100}, []int64{64, 100}},
		{"no width", "llama", "mlp.up_proj.weight", map[string]int64{"intermediate_size": 100}, nil},
		{"no number of keys", "llama", "self_attn.k_proj.weight",
			map[string]int64{"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 0}, nil},
		{"heads that do not divide", "llama", "self_attn.q_proj.weight", map[string]int64{"hidden_size": 64, "num_attention_heads": 5}, nil},
		{"negative", "llama", "input_layernorm.weight", map[string]int64{"hidden_size": -64}, nil},
		{"absurd", "llama", "self_attn.q_proj.weight",
			map[string]int64{"hidden_size": math.MaxInt64, "num_attention_heads": math.MaxInt64, "head_dim": math.MaxInt64}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, ok := arch.DecoderOf(c.family)
			if !ok {
				t.Fatalf("no table of %q", c.family)
			}
			i := slices.IndexFunc(d.Layer, func(x arch.DecoderTensor) bool { return x.Name == c.tensor })
			sizes := d.Keys.Resolve(func(key string) (int64, bool) {
				v, ok := c.settings[key]
				return v, ok
			})
			if got, ok := sizes.Shape(d.Layer[i]); ok != (c.want != nil) || !slices.Equal(got, c.want) {
				t.Errorf("shape %v (known: %v), want %v", got, ok, c.want)
			}
		})
	}
}

// TestDecoderUnknown guards that a family without a table is not taken for another.
func TestDecoderUnknown(t *testing.T) {
	for _, name := range []string{"", "mixtral", "llama4", "qwen2_moe"} {
		if _, ok := arch.DecoderOf(name); ok {
			t.Errorf("there is a table of %q", name)
		}
		if _, ok := arch.GGUFDecoder(name); ok {
			t.Errorf("there is a table of %q in GGUF", name)
		}
	}
}
