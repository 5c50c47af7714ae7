package arch_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/arch"
)

// TestGGUFNames compares the names of tensors with those of llama.cpp, and finds every
// one of them again on the way back.
func TestGGUFNames(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("..", "..", "testdata", "golden", "convert", "names.tsv"))
	if err != nil {
		t.Fatal(err)
	}
	families := make(map[string]int)
	for line := range strings.Lines(string(data)) {
		fields := strings.Split(strings.TrimSpace(line), "\t")
		architecture, name, want := fields[0], fields[1], fields[2]
		f, ok := arch.GGUFOf(architecture)
		if !ok {
			t.Fatalf("no family of %s", architecture)
		}
		families[architecture]++
		got := f.FromHF(name)
		if len(got) != 1 || got[0].Name != want {
			t.Errorf("%s: %q becomes %v, want %q", architecture, name, got, want)
			continue
		}
		if f.IsDropped(name) {
			t.Errorf("%s: %q is left out", architecture, name)
		}
		if strings.Contains(name, ".3.") != (got[0].Layer == 3) || strings.Contains(name, "experts.2.") != (got[0].Expert == 2) {
			t.Errorf("%s: %q is of layer %d, expert %d", architecture, name, got[0].Layer, got[0].Expert)
		}
		pattern := strings.Replace(name, "experts.2.", "experts.*.", 1)
		if !slices.ContainsFunc(f.ToHF(want), func(h arch.HFTensor) bool {
			return (h.Name == pattern || h.Name == f.Prefix+pattern) && h.Change == got[0].Change && h.Layer == got[0].Layer
		}) {
			t.Errorf("%s: %q was %v, want %q", architecture, want, f.ToHF(want), pattern)
		}
	}
	// Every row of every table is judged, but for the halves of fused stacks, which
	// TestGGUFChanges has.
	for architecture, n := range families {
		f, _ := arch.GGUFOf(architecture)
		rows := 0
		for _, r := range f.Renames {
			if r.Change != arch.SplitGate && r.Change != arch.SplitUp {
				rows++
			}
		}
		if n < rows {
			t.Errorf("%s: %d names for %d rows", architecture, n, rows)
		}
	}
}

// TestGGUFChanges guards what is done to a tensor beside its name.
func TestGGUFChanges(t *testing.T) {
	for _, c := range []struct {
		architecture, name string
		want               []arch.Change
	}{
		{"LlamaForCausalLM", "model.layers.0.self_attn.q_proj.weight", []arch.Change{arch.PairQ}},
		{"LlamaForCausalLM", "model.layers.0.self_attn.q_proj.bias", []arch.Change{arch.PairQ}},
		{"MistralForCausalLM", "model.layers.10.self_attn.k_proj.weight", []arch.Change{arch.PairK}},
		{"LlamaModel", "layers.0.self_attn.k_proj.weight", []arch.Change{arch.PairK}},
		{"LlamaForCausalLM", "model.layers.0.self_attn.v_proj.weight", []arch.Change{arch.Same}},
		{"MixtralForCausalLM", "model.layers.0.block_sparse_moe.experts.7.w2.weight", []arch.Change{arch.Stacked}},
		{"Qwen2ForCausalLM", "model.layers.0.self_attn.q_proj.weight", []arch.Change{arch.Same}},
		{"Qwen3MoeForCausalLM", "model.layers.0.mlp.experts.gate_up_proj", []arch.Change{arch.SplitGate, arch.SplitUp}},
		{"Qwen2MoeForCausalLM", "model.layers.0.mlp.experts.gate_up_proj", []arch.Change{arch.SplitGate, arch.SplitUp}},
		{"Qwen3MoeForCausalLM", "model.layers.0.mlp.shared_expert.up_proj.weight", nil},
		{"GemmaForCausalLM", "model.norm.weight", []arch.Change{arch.PlusOne}},
		{"Gemma2ForCausalLM", "model.layers.0.pre_feedforward_layernorm.weight", []arch.Change{arch.PlusOne}},
		{"Gemma3ForCausalLM", "model.layers.0.self_attn.k_norm.weight", []arch.Change{arch.PlusOne}},
		{"Gemma3ForCausalLM", "model.layers.0.self_attn.k_proj.weight", []arch.Change{arch.Same}},
		{"GPT2LMHeadModel", "transformer.h.0.mlp.c_fc.weight", []arch.Change{arch.Transposed}},
		{"GPT2LMHeadModel", "h.0.mlp.c_fc.bias", []arch.Change{arch.Same}},
		{"BertModel", "encoder.layer.0.output.dense.weight", []arch.Change{arch.Same}},
		{"BertForMaskedLM", "bert.encoder.layer.0.output.dense.weight", []arch.Change{arch.Same}},
		{"BertModel", "encoder.layer.0.output.LayerNorm.gamma", []arch.Change{arch.Same}},
		{"GPT2LMHeadModel", "transformer.h.0.ln_1.gamma", nil},
		{"LlamaForCausalLM", "model.layers.01.self_attn.q_proj.weight", nil},
		{"LlamaForCausalLM", "model.layers.-1.self_attn.q_proj.weight", nil},
		{"LlamaForCausalLM", "model.layers.x.self_attn.q_proj.weight", nil},
		{"LlamaForCausalLM", "model.layers.0.self_attn.q_proj.weight.weight", nil},
		{"LlamaForCausalLM", "model.layers.0.self_attn.q_norm.weight", nil},
		{"LlamaForCausalLM", "", nil},
	} {
		f, ok := arch.GGUFOf(c.architecture)
		if !ok {
			t.Fatalf("no family of %s", c.architecture)
		}
		var got []arch.Change
		for _, g := range f.FromHF(c.name) {
			got = append(got, g.Change)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s %q: changes %v, want %v", c.architecture, c.name, got, c.want)
		}
	}
	f, _ := arch.GGUFOf("Qwen3MoeForCausalLM")
	halves := f.FromHF("model.layers.5.mlp.experts.gate_up_proj")
	if halves[0].Name != "blk.5.ffn_gate_exps.weight" || halves[1].Name != "blk.5.ffn_up_exps.weight" {
		t.Errorf("a fused stack becomes %v", halves)
	}
	var back []string
	for _, h := range f.ToHF("blk.5.ffn_up_exps.weight") {
		back = append(back, h.Name)
	}
	if want := []string{"model.layers.5.mlp.experts.*.up_proj.weight", "model.layers.5.mlp.experts.gate_up_proj"}; !slices.Equal(back, want) {
		t.Errorf("a stack was %q, want %q", back, want)
	}
}

// TestGGUFDropped guards what has no place in GGUF, and that nothing else is lost.
func TestGGUFDropped(t *testing.T) {
	for _, c := range []struct {
		architecture, name string
		want               bool
	}{
		{"LlamaForCausalLM", "model.layers.0.self_attn.rotary_emb.inv_freq", true},
		{"LlamaForCausalLM", "lm_head.weight", false},
		{"GemmaForCausalLM", "lm_head.weight", true},
		{"Gemma3ForCausalLM", "lm_head.weight", false},
		{"GPT2LMHeadModel", "h.0.attn.bias", true},
		{"GPT2LMHeadModel", "h.0.attn.c_attn.bias", false},
		{"BertModel", "pooler.dense.weight", true},
		{"BertForMaskedLM", "cls.predictions.bias", true},
		{"BertModel", "encoder.layer.0.output.dense.bias", false},
	} {
		f, _ := arch.GGUFOf(c.architecture)
		if got := f.IsDropped(c.name); got != c.want {
			t.Errorf("%s %q: dropped is %v", c.architecture, c.name, got)
		}
	}
	if _, ok := arch.GGUFOf("NoSuchModel"); ok {
		t.Error("a family of an unknown architecture")
	}
	if got := arch.GGUFNamed("llama"); len(got) != 1 || !slices.Contains(got[0].Architectures, "MixtralForCausalLM") {
		t.Errorf("families called llama: %v", got)
	}
}

// TestKeepsF32 has the tensors that are F32 in every file.
func TestKeepsF32(t *testing.T) {
	for _, c := range []struct {
		name string
		dims int
		want bool
	}{
		{"blk.0.attn_q.weight", 2, false}, {"blk.0.attn_q.bias", 1, true}, {"blk.0.attn_norm.weight", 1, true},
		{"blk.0.attn_q_norm.weight", 2, true}, {"blk.0.ffn_gate_inp.weight", 2, true}, {"blk.0.ffn_gate_exps.weight", 3, false},
		{"blk.0.ffn_gate_inp_shexp.weight", 2, true}, {"blk.0.ffn_gate_shexp.weight", 2, false}, {"position_embd.weight", 2, true},
		{"token_types.weight", 2, true}, {"token_embd.weight", 2, false}, {"output.weight", 2, false}, {"rope_freqs.weight", 1, true},
	} {
		if got := arch.KeepsF32(c.name, c.dims); got != c.want {
			t.Errorf("%s of %d dimensions: %v", c.name, c.dims, got)
		}
	}
}
