package extract_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sort"
	"strings"
	"testing"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/extract"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
)

// config reads what an adapter says of itself.
func config(t *testing.T, dir string) map[string]any {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "adapter_config.json"))
	if err != nil {
		t.Fatal(err)
	}
	var c map[string]any
	if err := json.Unmarshal(data, &c); err != nil {
		t.Fatal(err)
	}
	return c
}

// tensors lists the names of an adapter's tensors, without the prefix that all have.
func tensors(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	for _, s := range openAdapter(t, dir).Source.Specs() {
		name, ok := strings.CutPrefix(s.Name, "base_model.model.")
		if !ok {
			t.Errorf("tensor %q", s.Name)
		}
		all = append(all, name)
	}
	sort.Strings(all)
	return all
}

// typed is a model of a type with a layer's tensors as name:shape.
func typed(modelType string, names ...string) *model {
	m := newModel(map[string]any{"model_type": modelType})
	for _, n := range names {
		name, dims, _ := strings.Cut(n, ":")
		var shape []int64
		for _, d := range strings.FieldsFunc(dims, func(r rune) bool { return r == 'x' }) {
			var v int64
			fmt.Sscan(d, &v)
			shape = append(shape, v)
		}
		m.add(name, tensor.F32, shape...)
	}
	return m
}

// TestRoles guards the form that every kind of tensor is held in, the names it gets
// there, and that merging gives the tuned model back, to float32 (see
// TestPlantedRank). The rank is more than any matrix has.
func TestRoles(t *testing.T) {
	for _, c := range []struct {
		name    string
		base    *model
		change  []string // tensors to change; empty for all
		options extract.Options
		forms   map[string]string
		tensors string
		config  map[string]any
	}{
		{
			name: "linear", base: typed("llama", "l.0.q.weight:6x4", "l.1.q.weight:6x4"),
			forms:   map[string]string{"l.0.q.weight": "lora", "l.1.q.weight": "lora"},
			tensors: "l.0.q.lora_A.weight l.0.q.lora_B.weight l.1.q.lora_A.weight l.1.q.lora_B.weight",
			config:  map[string]any{"target_modules": []any{"q"}, "fan_in_fan_out": false, "bias": "none", "modules_to_save": nil, "r": 4.0, "lora_alpha": 4.0},
		},
		{
			name: "one of two layers", base: typed("llama", "l.0.q.weight:6x4", "l.1.q.weight:6x4"), change: []string{"l.1.q.weight"},
			forms:   map[string]string{"l.1.q.weight": "lora"},
			tensors: "l.1.q.lora_A.weight l.1.q.lora_B.weight",
			config:  map[string]any{"target_modules": []any{"l.1.q"}},
		},
		{
			name: "ranks that differ", base: typed("llama", "l.0.q.weight:6x4", "l.0.k.weight:2x4"),
			forms:   map[string]string{"l.0.q.weight": "lora", "l.0.k.weight": "lora"},
			tensors: "l.0.k.lora_A.weight l.0.k.lora_B.weight l.0.q.lora_A.weight l.0.q.lora_B.weight",
			config: map[string]any{"r": 4.0, "lora_alpha": 4.0, "rank_pattern": map[string]any{"l.0.k": 2.0},
				"alpha_pattern": map[string]any{"l.0.k": 2.0}},
		},
		{
			name: "alpha", base: typed("llama", "l.0.q.weight:6x4", "l.0.k.weight:2x4"), options: extract.Options{Alpha: 2.5},
			forms:   map[string]string{"l.0.q.weight": "lora", "l.0.k.weight": "lora"},
			tensors: "l.0.k.lora_A.weight l.0.k.lora_B.weight l.0.q.lora_A.weight l.0.q.lora_B.weight",
			config:  map[string]any{"lora_alpha": 2.5, "rank_pattern": map[string]any{"l.0.k": 2.0}, "alpha_pattern": map[string]any{}},
		},
		{
			name: "gpt2", base: typed("gpt2", "h.0.attn.c_proj.weight:4x4", "h.0.attn.c_attn.weight:4x12", "h.0.attn.c_proj.bias:4", "h.0.attn.c_attn.bias:12"),
			forms: map[string]string{"h.0.attn.c_proj.weight": "lora", "h.0.attn.c_attn.weight": "lora",
				"h.0.attn.c_proj.bias": "lora_bias", "h.0.attn.c_attn.bias": "lora_bias"},
			tensors: "h.0.attn.c_attn.lora_A.weight h.0.attn.c_attn.lora_B.bias h.0.attn.c_attn.lora_B.weight h.0.attn.c_proj.lora_A.weight h.0.attn.c_proj.lora_B.bias h.0.attn.c_proj.lora_B.weight",
			config:  map[string]any{"fan_in_fan_out": true, "lora_bias": true, "bias": "none"},
		},
		{
			name: "one bias of two changed", base: typed("x", "l.q.weight:6x4", "l.q.bias:6", "l.k.weight:6x4", "l.k.bias:6"),
			change:  []string{"l.q.weight", "l.q.bias", "l.k.weight"},
			options: extract.Options{Alpha: 2},
			forms:   map[string]string{"l.q.weight": "lora", "l.q.bias": "lora_bias", "l.k.weight": "lora", "l.k.bias": "lora_bias"},
			tensors: "l.k.lora_A.weight l.k.lora_B.bias l.k.lora_B.weight l.q.lora_A.weight l.q.lora_B.bias l.q.lora_B.weight",
			config:  map[string]any{"lora_bias": true},
		},
		{
			name: "not every pair has a bias", base: typed("qwen2", "l.q.weight:6x4", "l.q.bias:6", "l.o.weight:6x4"),
			forms:   map[string]string{"l.q.weight": "lora", "l.q.bias": "bias", "l.o.weight": "lora"},
			tensors: "l.o.lora_A.weight l.o.lora_B.weight l.q.base_layer.bias l.q.lora_A.weight l.q.lora_B.weight",
			config:  map[string]any{"lora_bias": false, "bias": "lora_only"},
		},
		{
			name: "a bias without a pair", base: typed("x", "l.q.weight:6x4", "l.q.bias:6", "l.o.weight:6x4"), change: []string{"l.q.bias", "l.o.weight"},
			forms:   map[string]string{"l.q.bias": "bias", "l.o.weight": "lora"},
			tensors: "l.o.lora_A.weight l.o.lora_B.weight l.q.bias",
			config:  map[string]any{"lora_bias": false, "bias": "all"},
		},
		{
			name: "norms", base: typed("x", "l.q.weight:6x4", "l.ln.weight:4", "l.ln.bias:4", "l.other_ln.weight:4"), change: []string{"l.q.weight", "l.ln.bias"},
			forms:   map[string]string{"l.q.weight": "lora", "l.ln.bias": "saved", "l.ln.weight": "saved"},
			tensors: "l.ln.bias l.ln.weight l.q.lora_A.weight l.q.lora_B.weight",
			config:  map[string]any{"modules_to_save": []any{"l.ln"}, "bias": "none"},
		},
		{
			name: "convolutions", base: typed("x", "a.weight:6x4x3", "b.weight:6x4x3x3", "c.weight:5x4x2x3x2", "point.weight:6x4x1x1", "deep.weight:6x1x3"),
			forms: map[string]string{"a.weight": "lora", "b.weight": "lora", "c.weight": "lora", "point.weight": "lora", "deep.weight": "saved"},
			tensors: "a.lora_A.weight a.lora_B.weight b.lora_A.weight b.lora_B.weight c.lora_A.weight c.lora_B.weight deep.weight " +
				"point.lora_A.weight point.lora_B.weight",
			config: map[string]any{"modules_to_save": []any{"deep"}, "target_modules": []any{"a", "b", "c", "point"}},
		},
		{
			name: "tables and routers", base: typed("x", "wpe.weight:8x4", "m.gate.weight:3x4", "m.experts.0.up.weight:6x4", "m.position_embeddings.weight:8x4", "l.gate.weight:6x4"),
			forms: map[string]string{"wpe.weight": "saved", "m.gate.weight": "saved", "m.position_embeddings.weight": "saved",
				"m.experts.0.up.weight": "lora", "l.gate.weight": "lora"},
			tensors: "l.gate.lora_A.weight l.gate.lora_B.weight m.experts.0.up.lora_A.weight m.experts.0.up.lora_B.weight m.gate.weight m.position_embeddings.weight wpe.weight",
			config:  map[string]any{"target_modules": []any{"l.gate", "up"}, "modules_to_save": []any{"m.gate", "m.position_embeddings", "wpe"}},
		},
		{
			name: "leaves that are layers too", base: typed("x", "seq.0.weight:6x4", "layers.0.q.weight:6x4"),
			forms:   map[string]string{"seq.0.weight": "lora", "layers.0.q.weight": "lora"},
			tensors: "layers.0.q.lora_A.weight layers.0.q.lora_B.weight seq.0.lora_A.weight seq.0.lora_B.weight",
			config:  map[string]any{"target_modules": []any{"q", "seq.0"}},
		},
		{
			name: "stacked experts", base: typed("qwen3_moe", "m.experts.gate_up_proj:3x8x4", "m.experts.down_proj:3x4x6", "l.q.weight:6x4"),
			forms: map[string]string{"m.experts.gate_up_proj": "lora", "m.experts.down_proj": "lora", "l.q.weight": "lora"},
			tensors: "l.q.lora_A.weight l.q.lora_B.weight m.experts.base_layer.lora_A.weight m.experts.base_layer.lora_B.weight " +
				"m.experts.lora_A.weight m.experts.lora_B.weight",
			config: map[string]any{"target_parameters": []any{"m.experts.down_proj", "m.experts.gate_up_proj"}, "target_modules": []any{"q"}},
		},
		{
			name: "stacked experts, transposed and square", base: typed("gpt_oss", "m.experts.gate_up_proj:3x4x8", "m.experts.down_proj:3x4x4"),
			forms: map[string]string{"m.experts.gate_up_proj": "lora", "m.experts.down_proj": "lora"},
			tensors: "m.experts.base_layer.lora_A.weight m.experts.base_layer.lora_B.weight " +
				"m.experts.lora_A.weight m.experts.lora_B.weight",
			config: map[string]any{"target_modules": []any{}},
		},
		{
			name: "one stacked parameter of two", base: typed("qwen3_moe", "m.experts.gate_up_proj:3x8x4", "m.experts.down_proj:3x4x6"), change: []string{"m.experts.gate_up_proj"},
			forms:   map[string]string{"m.experts.gate_up_proj": "lora"},
			tensors: "m.experts.lora_A.weight m.experts.lora_B.weight",
			config:  map[string]any{"target_parameters": []any{"m.experts.gate_up_proj"}},
		},
		{
			name: "experts of files that are stacked in memory", base: typed("mixtral",
				"m.block_sparse_moe.experts.0.w1.weight:6x4", "m.block_sparse_moe.experts.0.w2.weight:4x6", "m.block_sparse_moe.experts.0.w3.weight:6x4",
				"m.block_sparse_moe.experts.1.w1.weight:6x4", "m.block_sparse_moe.experts.1.w2.weight:4x6", "m.block_sparse_moe.experts.1.w3.weight:6x4"),
			forms: map[string]string{"m.mlp.experts.gate_up_proj": "lora", "m.mlp.experts.down_proj": "lora"},
			tensors: "m.mlp.experts.base_layer.lora_A.weight m.mlp.experts.base_layer.lora_B.weight " +
				"m.mlp.experts.lora_A.weight m.mlp.experts.lora_B.weight",
			config: map[string]any{"r": 4.0},
		},
		{
			name: "experts of files for plain readers", base: typed("mixtral", "m.block_sparse_moe.experts.0.w1.weight:6x4", "m.block_sparse_moe.experts.1.w1.weight:2x4"),
			options: extract.Options{Plain: true},
			forms:   map[string]string{"m.block_sparse_moe.experts.0.w1.weight": "lora", "m.block_sparse_moe.experts.1.w1.weight": "lora"},
			tensors: "m.block_sparse_moe.experts.0.w1.lora_A.weight m.block_sparse_moe.experts.0.w1.lora_B.weight " +
				"m.block_sparse_moe.experts.1.w1.lora_A.weight m.block_sparse_moe.experts.1.w1.lora_B.weight",
			config: map[string]any{"r": 4.0, "rank_pattern": map[string]any{}}, // one rank, with zeros
		},
		{
			name: "attention with its own projections", base: typed("x", "a.in_proj_weight:12x4", "a.in_proj_bias:12", "a.out_proj.weight:4x4", "a.out_proj.bias:4", "l.weight:6x4"),
			forms: map[string]string{"a.in_proj_weight": "saved", "a.in_proj_bias": "saved", "a.out_proj.weight": "saved", "a.out_proj.bias": "saved",
				"l.weight": "lora"},
			tensors: "a.in_proj_bias a.in_proj_weight a.out_proj.bias a.out_proj.weight l.lora_A.weight l.lora_B.weight",
			config:  map[string]any{"modules_to_save": []any{"a"}},
		},
		{
			name: "dense when cheaper", base: typed("x", "l.q.weight:6x4", "l.q.bias:6", "l.wide.weight:40x30"), options: extract.Options{DenseWhenCheaper: true, Rule: extract.Rule{Rank: 4}},
			forms:   map[string]string{"l.q.weight": "saved", "l.q.bias": "saved", "l.wide.weight": "lora"},
			tensors: "l.q.bias l.q.weight l.wide.lora_A.weight l.wide.lora_B.weight",
			config:  map[string]any{"modules_to_save": []any{"l.q"}},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			tuned := c.base.clone()
			change := c.change
			if len(change) == 0 {
				change = tuned.names
			}
			for i, name := range change {
				tuned.shift(name, 0.05, uint64(i))
			}
			b, tu := pairOf(t, c.base, tuned)
			if (c.options.Rule == extract.Rule{}) {
				c.options.Rule.Rank = 50
			}
			x, out := run(t, b, tu, c.options, engine.Options{})
			if got := forms(x); !maps.Equal(got, c.forms) {
				t.Errorf("forms %v, want %v", got, c.forms)
			}
			if got := strings.Join(tensors(t, out), " "); got != c.tensors {
				t.Errorf("tensors\n%s, want\n%s", got, c.tensors)
			}
			got := config(t, out)
			for key, want := range c.config {
				if !reflect.DeepEqual(got[key], want) {
					t.Errorf("%s is %v, want %v", key, got[key], want)
				}
			}
			checkSums(t, x)
			if c.options.Rule.Rank < 50 {
				return
			}
			merged := mergeBack(t, b, out, tensor.F32)
			for _, name := range c.base.names {
				if off, norm := distance(values(t, merged, name), values(t, tu, name)); off > 1e-6*norm {
					t.Errorf("%s: merged back, off by %.3g", name, off/norm)
				}
			}
		})
	}
}

// TestPrefix guards files that were saved without the head that their config names:
// in memory their tensors have a prefix, and so must the adapter's.
func TestPrefix(t *testing.T) {
	for _, architecture := range []string{"GPT2LMHeadModel", "GPT2Model"} {
		prefix := ""
		if architecture == "GPT2LMHeadModel" {
			prefix = "transformer."
		}
		base := typed("gpt2", "wte.weight:20x4", "h.0.attn.c_attn.weight:4x12", "h.0.attn.c_attn.bias:12", "h.0.ln_1.weight:4", "h.0.ln_1.bias:4")
		base.config["architectures"] = []string{architecture}
		tuned := base.clone()
		tuned.shiftAll(0.05)
		b, tu := pairOf(t, base, tuned)
		_, out := run(t, b, tu, extract.Options{Rule: extract.Rule{Rank: 50}}, engine.Options{})
		for _, name := range tensors(t, out) {
			if !strings.HasPrefix(name, prefix) && name != "lm_head.weight" {
				t.Errorf("%s: tensor %s", architecture, name)
			}
		}
		saved := fmt.Sprint(config(t, out)["modules_to_save"])
		if !strings.Contains(saved, prefix+"h.0.ln_1") || strings.Contains(saved, "lm_head") != (prefix != "") {
			t.Errorf("%s: modules_to_save %s", architecture, saved)
		}
		merged := mergeBack(t, b, out, tensor.F32)
		for _, name := range base.names {
			if off, norm := distance(values(t, merged, name), values(t, tu, name)); off > 1e-6*norm {
				t.Errorf("%s: %s: merged back, off by %.3g", architecture, name, off/norm)
			}
		}
	}
}

// TestOneExpert guards stacks in which some matrices are unchanged: they have the
// others' rank and no change of their own.
func TestOneExpert(t *testing.T) {
	base := typed("qwen3_moe", "m.experts.gate_up_proj:4x8x6", "l.q.weight:6x4")
	tuned := base.clone()
	a := tuned.tensors["m.experts.gate_up_proj"]
	for _, e := range []int{0, 2} {
		for i := range 48 {
			a.values[e*48+i] += 0.01 * float64(i%7*(e+1)) * float64(1+i%5)
		}
	}
	b, tu := pairOf(t, base, tuned)
	x, out := run(t, b, tu, extract.Options{Rule: extract.Rule{Energy: 1 - 1e-9}}, engine.Options{})
	merged := mergeBack(t, b, out, tensor.F32)
	got, want, before := values(t, merged, "m.experts.gate_up_proj"), values(t, tu, "m.experts.gate_up_proj"), values(t, b, "m.experts.gate_up_proj")
	if off, norm := distance(got, want); off > 1e-6*norm {
		t.Errorf("off by %.3g", off/norm)
	}
	for i := range 48 {
		if got[48+i] != before[48+i] || got[144+i] != before[144+i] {
			t.Fatalf("an expert that did not change has another value %d", i)
		}
	}
	if m := module(t, x, "m.experts.gate_up_proj"); m.Parameters != 4*m.Rank*(8+6) || m.Rank > 6 {
		t.Errorf("rank %d, %d parameters", m.Rank, m.Parameters)
	}
}

// tiedModel is a model of a tied or untied embedding and one layer.
func tiedModel(tied, head bool) *model {
	m := newModel(map[string]any{"model_type": "llama", "architectures": []string{"LlamaForCausalLM"}, "tie_word_embeddings": tied})
	m.add("model.embed_tokens.weight", tensor.F32, 20, 8)
	m.add("model.layers.0.q_proj.weight", tensor.F32, 12, 8)
	if head {
		m.add("lm_head.weight", tensor.F32, 20, 8)
		if tied {
			m.set("lm_head.weight", tensor.F32, slices.Clone(m.tensors["model.embed_tokens.weight"].values), 20, 8)
		}
	}
	return m
}

// rows changes some rows of the embedding, and of the head if it is stored as one
// with it.
func (m *model) rows(list ...int) {
	for _, name := range []string{"model.embed_tokens.weight", "lm_head.weight"} {
		a, ok := m.tensors[name]
		if !ok || name == "lm_head.weight" && m.config["tie_word_embeddings"] != true {
			continue
		}
		for _, row := range list {
			for j := range 8 {
				a.values[row*8+j] += 0.1 * float64(1+j+row)
			}
		}
	}
}

// TestTies guards tied and untied embeddings, stored once or twice: what changes
// together stays together, and merging gives the tuned model back.
func TestTies(t *testing.T) {
	all := []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19}
	grow := func(m *model) {
		for _, name := range []string{"model.embed_tokens.weight", "lm_head.weight"} {
			if a, ok := m.tensors[name]; ok {
				m.set(name, a.dtype, append(slices.Clone(a.values), make([]float64, 2*8)...), 22, 8)
			}
		}
	}
	const saved, rows, pair = "saved", "token_rows", "lora"
	for _, c := range []struct {
		name    string
		base    *model
		tuned   func(m *model)
		target  []string
		forms   map[string]string // of embedding and head
		tensors string            // beside the pair of q_proj
	}{
		{"untied, both", tiedModel(false, true), func(m *model) { m.rows(all...); m.shift("lm_head.weight", 1, 1) }, nil,
			map[string]string{"embed": saved, "head": saved}, "lm_head.weight model.embed_tokens.weight"},
		{"untied, few rows", tiedModel(false, true), func(m *model) { m.rows(3, 17) }, nil,
			map[string]string{"embed": rows}, "model.embed_tokens.token_adapter.trainable_tokens_delta"},
		{"untied, half of the rows", tiedModel(false, true), func(m *model) { m.rows(all[:10]...) }, nil,
			map[string]string{"embed": rows}, "model.embed_tokens.token_adapter.trainable_tokens_delta"},
		{"untied, more than half", tiedModel(false, true), func(m *model) { m.rows(all[:11]...) }, nil,
			map[string]string{"embed": saved}, "model.embed_tokens.weight"},
		{"untied, targeted", tiedModel(false, true), func(m *model) { m.rows(all...); m.shift("lm_head.weight", 1, 1) }, []string{"embed_tokens", "lm_head", "q_proj"},
			map[string]string{"embed": pair, "head": pair},
			"lm_head.lora_A.weight lm_head.lora_B.weight model.embed_tokens.lora_embedding_A model.embed_tokens.lora_embedding_B"},
		{"tied", tiedModel(true, false), func(m *model) { m.rows(all...) }, nil,
			map[string]string{"embed": saved, "head": saved}, "lm_head.weight model.embed_tokens.weight"},
		{"tied and stored twice", tiedModel(true, true), func(m *model) { m.rows(all...) }, nil,
			map[string]string{"embed": saved, "head": saved}, "lm_head.weight model.embed_tokens.weight"},
		{"tied, tuned stored twice", tiedModel(true, false), func(m *model) {
			m.rows(all...)
			m.set("lm_head.weight", tensor.F32, m.tensors["model.embed_tokens.weight"].values, 20, 8)
		}, nil, map[string]string{"embed": saved, "head": saved}, "lm_head.weight model.embed_tokens.weight"},
		{"tied, base stored twice", tiedModel(true, true), func(m *model) { m.rows(all...); m.remove("lm_head.weight") }, nil,
			map[string]string{"embed": saved, "head": saved}, "lm_head.weight model.embed_tokens.weight"},
		{"tied, few rows", tiedModel(true, false), func(m *model) { m.rows(3) }, nil,
			map[string]string{"embed": rows}, "model.embed_tokens.token_adapter.trainable_tokens_delta"},
		{"tied, targeted", tiedModel(true, false), func(m *model) { m.rows(all...) }, []string{"embed_tokens", "q_proj"},
			map[string]string{"embed": pair}, "model.embed_tokens.lora_embedding_A model.embed_tokens.lora_embedding_B"},
		{"tied, unchanged", tiedModel(true, true), func(*model) {}, nil, map[string]string{}, ""},
		{"untied in training", tiedModel(true, false), func(m *model) {
			m.config["tie_word_embeddings"] = false
			m.add("lm_head.weight", tensor.F32, 20, 8)
			m.rows(3)
		}, nil, map[string]string{"embed": saved, "head": saved}, "lm_head.weight model.embed_tokens.weight"},
		{"grown", tiedModel(false, true), grow, nil, map[string]string{"embed": saved, "head": saved}, "lm_head.weight model.embed_tokens.weight"},
		{"grown and tied", tiedModel(true, false), grow, nil, map[string]string{"embed": saved, "head": saved}, "lm_head.weight model.embed_tokens.weight"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tuned := c.base.clone()
			tuned.shift("model.layers.0.q_proj.weight", 0.05, 1)
			c.tuned(tuned)
			b, tu := pairOf(t, c.base, tuned)
			x, out := run(t, b, tu, extract.Options{Rule: extract.Rule{Rank: 50}, Target: c.target}, engine.Options{})
			got := make(map[string]string)
			for name, form := range forms(x) {
				switch name {
				case "model.embed_tokens.weight":
					got["embed"] = form
				case "lm_head.weight":
					got["head"] = form
				}
			}
			if !maps.Equal(got, c.forms) {
				t.Errorf("forms %v, want %v", got, c.forms)
			}
			var names []string
			for _, name := range tensors(t, out) {
				if !strings.Contains(name, "q_proj") {
					names = append(names, name)
				}
			}
			if got := strings.Join(names, " "); got != c.tensors {
				t.Errorf("tensors %s, want %s", got, c.tensors)
			}
			if ensure := config(t, out)["ensure_weight_tying"]; (ensure == true) != (c.name == "tied, targeted") {
				t.Errorf("ensure_weight_tying is %v", ensure)
			}
			merged := mergeBack(t, b, out, tensor.F32)
			read := func(m *checkpoint.Model, name string) []float64 {
				if _, ok := m.Lookup(name); !ok && name == "lm_head.weight" {
					name = "model.embed_tokens.weight"
				}
				return values(t, m, name)
			}
			for _, name := range []string{"model.embed_tokens.weight", "lm_head.weight", "model.layers.0.q_proj.weight"} {
				got, want := read(merged, name), read(tu, name)
				if off, norm := distance(got, want); len(got) != len(want) || off > 1e-6*norm {
					t.Errorf("%s: merged back, off by %.3g", name, off/norm)
				}
			}
			checkSums(t, x)
		})
	}
}

// TestRowsInBudget guards that trained rows are paid for.
func TestRowsInBudget(t *testing.T) {
	base := tiedModel(false, true)
	tuned := base.clone()
	tuned.rows(3, 17)
	tuned.shift("model.layers.0.q_proj.weight", 0.05, 1)
	b, tu := pairOf(t, base, tuned)
	for _, rule := range []extract.Rule{{Params: 2*8 + 3*20 + 19}, {Size: 1500}} {
		x, out := run(t, b, tu, extract.Options{Rule: rule}, engine.Options{})
		total := int64(0)
		for _, s := range openAdapter(t, out).Source.Specs() {
			total += s.NumElements()
		}
		if total != x.Certificate.Parameters || rule.Params > 0 && total != 2*8+3*20 {
			t.Errorf("%d parameters of %d", total, rule.Params)
		}
		if n := x.Layout.Files[0].Size(); rule.Size > 0 && (n > rule.Size || n+4*20 <= rule.Size) {
			t.Errorf("%d bytes of %d", n, rule.Size)
		}
	}
}

// TestLeavingOut guards what patterns cover, and that what is left out is listed
// and counted as lost.
func TestLeavingOut(t *testing.T) {
	base := llama(tensor.F32)
	tuned := base.clone()
	tuned.shiftAll(0.01)
	b, tu := pairOf(t, base, tuned)
	for _, c := range []struct {
		target, exclude []string
		plain           bool
		want            int // items held
	}{
		{nil, nil, false, 15},
		{[]string{"q_proj"}, nil, false, 2},
		{[]string{"layers.1.*"}, nil, false, 6},
		{[]string{"model.layers.0.self_attn.q_proj", "norm"}, nil, false, 2},
		{[]string{"*norm"}, nil, false, -1}, // no pair is left
		{nil, []string{"self_attn.*", "lm_head"}, false, 8},
		{[]string{"*_proj"}, []string{"layers.0.*"}, false, 5},
		{nil, nil, true, 10},
		{[]string{"q_proj", "lm_head"}, nil, true, 2},
	} {
		x, _, err := tryRun(t, b, tu, extract.Options{Rule: extract.Rule{Rank: 50}, Target: c.target, Exclude: c.exclude, Plain: c.plain}, engine.Options{})
		if c.want < 0 {
			if _, ok := err.(*checkpoint.InputError); !ok {
				t.Errorf("%q: error %v", c.target, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q without %q: %v", c.target, c.exclude, err)
			continue
		}
		held, lost := 0, 0.0
		for _, m := range x.Certificate.Modules {
			if m.Form != "left_out" {
				held++
			} else {
				lost += m.DeltaNorm * m.DeltaNorm
			}
		}
		listed := 0
		for _, d := range x.Plan.Decisions {
			if d.Code == "left-out" {
				listed += len(d.Tensors)
			}
		}
		all := x.Certificate.DeltaNorm * x.Certificate.DeltaNorm
		if held != c.want || listed != len(base.names)-held || x.Certificate.LeftOut < lost/all-1e-12 || x.Certificate.Share > 1-lost/all+1e-9 {
			t.Errorf("%q without %q: %d held, %d listed, left out %v", c.target, c.exclude, held, listed, x.Certificate.LeftOut)
		}
	}
}

var nan, inf = math.NaN(), math.Inf(1)

// TestLeftInModule guards that what is left out of a module that is held whole, or
// whose bias every pair needs, keeps the base's values and counts as lost.
func TestLeftInModule(t *testing.T) {
	base := typed("x", "l.q.weight:6x4", "l.q.bias:6", "l.k.weight:6x4", "l.k.bias:6", "l.ln.weight:4", "l.ln.bias:4")
	tuned := base.clone()
	tuned.shiftAll(0.05)
	b, tu := pairOf(t, base, tuned)
	exclude := []string{"l.q.bias", "l.ln.bias"}
	x, out := run(t, b, tu, extract.Options{Rule: extract.Rule{Rank: 50}, Exclude: exclude, Alpha: 3}, engine.Options{})
	merged := mergeBack(t, b, out, tensor.F32)
	var lost, all float64
	for _, name := range base.names {
		want := tu
		d, _ := distance(values(t, tu, name), values(t, b, name))
		all += d * d
		if slices.Contains(exclude, name) {
			want = b
			lost += d * d
		}
		if off, norm := distance(values(t, merged, name), values(t, want, name)); off > 1e-6*norm {
			t.Errorf("%s: off by %.3g", name, off/norm)
		}
	}
	if c := x.Certificate; math.Abs(c.LeftOut-lost/all) > 1e-9 || math.Abs(c.Share-(1-lost/all)) > 1e-9 {
		t.Errorf("left out %v, share %v; lost are %v", c.LeftOut, c.Share, lost/all)
	}
	if f := forms(x); f["l.q.bias"] != "lora_bias" || f["l.ln.bias"] != "saved" {
		t.Errorf("forms %v", f)
	}
	for _, d := range x.Plan.Decisions {
		if d.Code == "left-out-in-module" && slices.Equal(d.Tensors, []string{"l.ln.bias", "l.q.bias"}) {
			return
		}
	}
	t.Errorf("decisions %+v", x.Plan.Decisions)
}

// TestRefusals guards that what does not fit is an error of the input that names
// the tensor.
func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		name    string
		change  func(base, tuned *model)
		options extract.Options
		want    string
	}{
		{"nothing changed", func(_, tuned *model) {}, extract.Options{}, "does not differ from the base"},
		{"another type", func(_, tuned *model) { tuned.config["model_type"] = "qwen2" }, extract.Options{}, `model_type is "qwen2", the base's is "llama"`},
		{"another architecture", func(_, tuned *model) { tuned.config["architectures"] = []string{"LlamaModel"} }, extract.Options{}, "architectures"},
		{"another number of layers", func(_, tuned *model) { tuned.config["num_hidden_layers"] = 3 }, extract.Options{}, "it has 3 layers, the base has 2"},
		{"a tensor too few", func(_, tuned *model) { tuned.remove("model.norm.weight") }, extract.Options{}, `tensor "model.norm.weight" of the base is missing`},
		{"a tensor too many", func(_, tuned *model) { tuned.add("score.weight", tensor.F32, 2, 24) }, extract.Options{}, `tensor "score.weight" is not in the base`},
		{"another shape", func(_, tuned *model) { tuned.add("model.layers.0.self_attn.q_proj.weight", tensor.F32, 16, 24) }, extract.Options{}, `"model.layers.0.self_attn.q_proj.weight" has shape [16, 24], the base's is [32, 24]`},
		{"a table of another width", func(_, tuned *model) { tuned.add("lm_head.weight", tensor.F32, 40, 25) }, extract.Options{}, `"lm_head.weight" has shape`},
		{"quantized", func(base, _ *model) {
			base.config["quantization_config"] = map[string]any{"quant_method": "gptq"}
		}, extract.Options{}, "quantized (gptq)"},
		{"fp8 without a scale in a quantized model", func(_, tuned *model) {
			tuned.add("model.norm.weight", tensor.F8E4M3, 24)
			tuned.add("model.layers.1.mlp.up_proj.weight", tensor.F8E4M3, 44, 24)
			tuned.add("model.layers.1.mlp.up_proj.weight_scale", tensor.F32, 1)
		}, extract.Options{}, `"model.norm.weight" is FP8 without a scale`},
		{"integers that differ", func(base, tuned *model) {
			base.set("a.mask", tensor.U8, nil, 4)
			tuned.set("a.mask", tensor.I8, nil, 4)
		}, extract.Options{}, `"a.mask" is stored as I8 and differs from the base's U8`},
		{"nan", func(_, tuned *model) { tuned.tensors["model.layers.1.mlp.up_proj.weight"].values[77] = nan }, extract.Options{}, `"model.layers.1.mlp.up_proj.weight": element 77 is not finite`},
		{"infinity in the base", func(base, _ *model) { base.tensors["model.norm.weight"].values[3] = inf }, extract.Options{}, `"model.norm.weight": element 3 is not finite`},
		{"nan in new rows", func(_, tuned *model) {
			a := tuned.tensors["lm_head.weight"]
			tuned.set("lm_head.weight", a.dtype, append(slices.Clone(a.values), append(make([]float64, 23), nan)...), 41, 24)
		}, extract.Options{}, `"lm_head.weight": element 983 is not finite`},
		{"beyond float32", func(base, tuned *model) {
			base.tensors["model.layers.1.mlp.up_proj.weight"].values[0] = -3e38
			tuned.tensors["model.layers.1.mlp.up_proj.weight"].values[0] = 3e38
		}, extract.Options{}, `"model.layers.1.mlp.up_proj.weight": its difference from the base is beyond float32`},
		{"no layer changed", func(_, tuned *model) { tuned.shift("model.norm.weight", 1, 1) }, extract.Options{}, "there is no LoRA adapter of it"},
		{"parameter beside modules", func(base, tuned *model) {
			for _, m := range []*model{base, tuned} {
				m.add("model.layers.0.self_attn.sinks", tensor.F32, 4)
			}
			tuned.shift("model.layers.0.self_attn.sinks", 1, 1)
		}, extract.Options{}, `"model.layers.0.self_attn.sinks" (vector) has changed, and no form of PEFT holds`},
		{"parameter of the model itself", func(base, tuned *model) {
			for _, m := range []*model{base, tuned} {
				m.add("logit_scale", tensor.F32)
			}
			tuned.shift("logit_scale", 1, 1)
		}, extract.Options{}, `"logit_scale" (vector) has changed`},
		{"a pattern that names nothing", func(_, tuned *model) {}, extract.Options{Target: []string{"qproj"}}, `--target "qproj" names no module`},
		{"an exclusion that names nothing", func(_, tuned *model) {}, extract.Options{Exclude: []string{"q_pro"}}, `--exclude "q_pro" names no module`},
		{"a tie that is none", func(base, tuned *model) {
			base.config["tie_word_embeddings"], tuned.config["tie_word_embeddings"] = true, true
		}, extract.Options{}, `"lm_head.weight" differs from "model.embed_tokens.weight" although the config ties them`},
		{"experts that are not complete", func(base, tuned *model) {
			for _, m := range []*model{base, tuned} {
				m.config["model_type"] = "qwen3_moe"
				m.add("m.experts.0.gate_proj.weight", tensor.F32, 6, 4)
				m.add("m.experts.0.up_proj.weight", tensor.F32, 6, 4)
				m.add("m.experts.2.gate_proj.weight", tensor.F32, 6, 4)
				m.add("m.experts.2.up_proj.weight", tensor.F32, 6, 4)
			}
		}, extract.Options{}, `the experts of "m.experts" are not complete`},
		{"experts of other shapes", func(base, tuned *model) {
			for _, m := range []*model{base, tuned} {
				m.config["model_type"] = "qwen3_moe"
				m.add("m.experts.0.gate_proj.weight", tensor.F32, 6, 4)
				m.add("m.experts.0.up_proj.weight", tensor.F32, 5, 4)
			}
		}, extract.Options{}, `"m.experts.0.up_proj.weight" has shape [5, 4], other experts of its layer have another`},
		{"a budget without a direction", func(_, tuned *model) { tuned.shift("model.layers.0.mlp.up_proj.weight", 1, 1) }, extract.Options{Rule: extract.Rule{Params: 67}}, "no direction of any layer fits"},
		{"a budget without a direction, plain", func(_, tuned *model) { tuned.shift("model.layers.0.mlp.up_proj.weight", 1, 1) }, extract.Options{Rule: extract.Rule{Params: 67}, Plain: true}, "no direction of any layer fits"},
		{"a budget that what is saved exceeds", func(_, tuned *model) { tuned.shiftAll(0.01) }, extract.Options{Rule: extract.Rule{Params: 100}}, "more than the budget"},
	} {
		t.Run(c.name, func(t *testing.T) {
			base := llama(tensor.F32)
			tuned := base.clone()
			c.change(base, tuned)
			b, tu := pairOf(t, base, tuned)
			if (c.options.Rule == extract.Rule{}) {
				c.options.Rule.Rank = 4
			}
			_, _, err := tryRun(t, b, tu, c.options, engine.Options{})
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}
