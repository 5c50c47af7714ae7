package adapter_test

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
)

const lora4 = `{"peft_type":"LORA","r":4,"lora_alpha":8}`

// TestOpen guards how the tensors of a file are sorted into modules, whole
// tensors and training state.
func TestOpen(t *testing.T) {
	a := mustOpen(t, lora4, concat(
		pair("m.k", 8, 4, 6), pair("m.experts", 8, 4, 6), pair("m.experts.base_layer", 6, 4, 8),
		[]string{
			"base_model.model.lm_head.weight:5x6", "base_model.model.m.q.base_layer.bias:8",
			"base_model.model.score.modules_to_save.default.weight:2x6", "base_model.model.score.original_module.weight:2x6",
			"base_model.model.emb.modules_to_save.default.weight:5x6", "base_model.model.emb.weight:5x6",
			"base_model.model.m.k.lora_velora_embed:3",
		})...)
	var modules []string
	for _, m := range a.Modules {
		modules = append(modules, m.Name+"/"+string(rune('0'+m.Depth)))
	}
	// The innermost wrapper of a module comes first.
	if got := strings.Join(modules, " "); got != "m.experts/1 m.experts/0 m.k/0" {
		t.Errorf("modules %s", got)
	}
	var saved []string
	for _, s := range a.Saved {
		name := s.Name
		if s.BaseCopy {
			name += "*"
		}
		saved = append(saved, name)
	}
	if got := strings.Join(saved, " "); got != "emb.weight lm_head.weight m.q.bias* score.weight" {
		t.Errorf("saved %s", got)
	}
	want := []string{
		"base_model.model.emb.modules_to_save.default.weight", // PEFT's own copy wins
		"base_model.model.m.k.lora_velora_embed", "base_model.model.score.original_module.weight",
	}
	if !slices.Equal(a.Ignored, want) {
		t.Errorf("ignored %q, want %q", a.Ignored, want)
	}
	if s, ok := a.Modules[2].Part("lora_A"); !ok || s.Name != "base_model.model.m.k.lora_A.weight" {
		t.Errorf("part %v, %v", s, ok)
	}
}

func TestOpenRefuses(t *testing.T) {
	targets := func(list string) string {
		return `{"peft_type":"LORA","r":4,"lora_alpha":8,"target_modules":` + list + `}`
	}
	for _, c := range []struct {
		name    string
		config  string
		tensors []string
		want    []string
	}{
		{"no tensors", lora4, nil, []string{"holds no tensors"}},
		{"only training state", lora4, []string{"base_model.model.q.lora_velora_embed:3"}, []string{"no tensor of the file belongs to a LORA adapter"}},
		{"bad config", `{"peft_type":"LORA"}`, pair("q", 8, 4, 6), []string{"adapter_config.json", `"r"`, "missing"}},
		{"empty tensor", lora4, []string{"base_model.model.q.lora_A.weight:0x6"}, []string{`"base_model.model.q.lora_A.weight"`, "it is empty"}},
		{"one part twice", lora4, append(pair("q", 8, 4, 6), "base_model.model.q.lora_A.default.weight:4x6"),
			[]string{"stored for the same part"}},
		{"one tensor twice", lora4, []string{"base_model.model.head.weight:4x6", "head.weight:4x6"}, []string{"stored for the same tensor"}},
		{"one saved tensor of two adapters", lora4,
			[]string{"base_model.model.head.modules_to_save.a.weight:4x6", "base_model.model.head.modules_to_save.b.weight:4x6"},
			[]string{"stored for the same tensor"}},
		{"one shared tensor twice", `{"peft_type":"VERA","r":4}`, []string{"base_model.model.q.vera_lambda_d:4", "base_model.vera_A:4x4", "base_model.vera_A.default:4x4"},
			[]string{`"base_model.vera_A`, "stored for the same part"}},
		{"target without tensors", targets(`["q","v_proj"]`), pair("m.q", 8, 4, 6), []string{"target_modules", `"v_proj"`}},
		{"target inside a name", targets(`["q"]`), pair("m.xq", 8, 4, 6), []string{"target_modules", `"q"`}},
		{"expression without tensors", targets(`".*v_proj"`), pair("m.q", 8, 4, 6), []string{"target_modules", `".*v_proj"`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := adapter.Open(source(t, c.config, c.tensors...))
			checkError(t, err, c.want...)
			_, isInput := errors.AsType[*checkpoint.InputError](err)
			_, isMismatch := errors.AsType[*adapter.MismatchError](err)
			if !isInput && !isMismatch {
				t.Errorf("error %v of type %T is neither an InputError nor a MismatchError", err, err)
			}
		})
	}
}

// TestOpenAccepts has what must not be refused.
func TestOpenAccepts(t *testing.T) {
	for _, c := range []struct {
		name    string
		config  string
		tensors []string
	}{
		{"targets by ending and path", `{"peft_type":"LORA","r":4,"lora_alpha":8,"target_modules":["q","m.1.k"]}`, concat(pair("m.0.q", 8, 4, 6), pair("m.1.k", 8, 4, 6))},
		{"all linear layers", `{"peft_type":"LORA","r":4,"lora_alpha":8,"target_modules":"all-linear"}`, pair("m.0.q", 8, 4, 6)},
		{"broken expression", `{"peft_type":"LORA","r":4,"lora_alpha":8,"target_modules":"(?!x)y"}`, pair("m.0.q", 8, 4, 6)},
		{"single experts in fused parameters", `{"peft_type":"LORA","r":4,"lora_alpha":8,"target_modules":["w1","w2"]}`, pair("m.experts", 8, 4, 6)},
		{"pruned away", `{"peft_type":"ADALORA","init_r":4,"lora_alpha":8}`, []string{"base_model.model.q.lora_A:0x6", "base_model.model.q.lora_B:8x0", "base_model.model.q.lora_E:0x1"}},
	} {
		t.Run(c.name, func(t *testing.T) { mustOpen(t, c.config, c.tensors...) })
	}
}

// TestOpenNoConfig guards the message for weights without a config.
func TestOpenNoConfig(t *testing.T) {
	m := source(t, lora4, pair("q", 8, 4, 6)...)
	weights, err := checkpoint.Open(filepath.Join(m.Path, "adapter_model.safetensors"), hfrepo.Cache{})
	if err != nil {
		t.Fatal(err)
	}
	defer weights.Close()
	_, err = adapter.Open(weights)
	checkError(t, err, "no adapter_config.json")
}

func TestUnsloth(t *testing.T) {
	for config, want := range map[string]bool{
		`"auto_mapping":{"unsloth_fixed":true}`: true, `"auto_mapping":{"unsloth_fixed":false}`: false, `"auto_mapping":null`: false,
		`"auto_mapping":{"base_model_class":"X"}`: false, `"auto_mapping":"x"`: false, `"a":1`: false,
	} {
		a := mustOpen(t, `{"peft_type":"LORA","r":4,"lora_alpha":8,`+config+`}`, pair("q", 8, 4, 6)...)
		if got := a.Unsloth() != ""; got != want {
			t.Errorf("%s: marked %v, want %v", config, got, want)
		}
	}
}
