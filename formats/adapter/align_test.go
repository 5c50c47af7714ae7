package adapter_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/tensor"
)

// llama is a base of n layers with the given prefix.
func llama(t *testing.T, prefix string, n int, more ...string) base {
	t.Helper()
	list := []string{prefix + "embed_tokens.weight:32x8", prefix + "norm.weight:8"}
	for i := range n {
		for _, m := range []string{"self_attn.q_proj.weight:8x8", "self_attn.v_proj.weight:4x8", "mlp.up_proj.weight:12x8", "mlp.down_proj.weight:8x12", "input_layernorm.weight:8"} {
			list = append(list, fmt.Sprintf("%slayers.%d.%s", prefix, i, m))
		}
	}
	return specs(t, append(list, more...)...)
}

// qv are LoRA pairs for q_proj and v_proj of the layers with numbers in list.
func qv(prefix string, list ...int) []string {
	var all []string
	for _, i := range list {
		all = append(all, pair(fmt.Sprintf("%slayers.%d.self_attn.q_proj", prefix, i), 8, 2, 8)...)
		all = append(all, pair(fmt.Sprintf("%slayers.%d.self_attn.v_proj", prefix, i), 4, 2, 8)...)
	}
	return all
}

const lora2 = `{"peft_type":"LORA","r":2,"lora_alpha":4,"target_modules":["q_proj","v_proj"]}`

func align(t *testing.T, a *adapter.Adapter, b base, f adapter.Family) *adapter.Aligned {
	t.Helper()
	out, err := adapter.Align(a, b, f)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// places lists module, parameter and places of every target.
func places(a *adapter.Aligned) string {
	var all []string
	for _, t := range a.Targets {
		var at []string
		for _, p := range t.Places {
			at = append(at, fmt.Sprintf("%s[%d:%d]<%d", p.Tensor, p.At, p.At+p.Rows, p.From))
		}
		all = append(all, fmt.Sprintf("%s.%s %v = %s", t.Name, t.Param, t.Shape, strings.Join(at, " ")))
	}
	return strings.Join(all, "\n")
}

// TestPrefix guards that adapters of the class with a head and of the one
// without fit both kinds of base, and that no rule moves a layer.
func TestPrefix(t *testing.T) {
	head := "lm_head.weight:32x8"
	for _, c := range []struct {
		name     string
		adapter  string // prefix of its names
		base     base
		from, to string
	}{
		{"the same", "model.", llama(t, "model.", 2, head), "", ""},
		{"headless adapter, base with head", "", llama(t, "model.", 2, head), "", "model."},
		{"adapter with head, headless base", "model.", llama(t, "", 2), "model.", ""},
		{"replaced", "model.", llama(t, "transformer.", 2, head), "model.", "transformer."},
		{"language model inside", "model.", llama(t, "language_model.model.", 2), "", "language_model."},
		{"language model in another place", "model.language_model.", llama(t, "model.", 2, head), "model.language_model.", "model."},
		{"part of a pipeline", "0.auto_model.", llama(t, "", 2), "0.auto_model.", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := align(t, mustOpen(t, lora2, qv(c.adapter, 0, 1)...), c.base, adapter.Family{})
			if a.From != c.from || a.To != c.to {
				t.Errorf("rule %q -> %q, want %q -> %q", a.From, a.To, c.from, c.to)
			}
			for _, target := range a.Targets {
				trained := strings.TrimPrefix(target.Name, c.adapter)
				if got := target.Places[0].Tensor; !strings.HasSuffix(got, trained+".weight") {
					t.Errorf("%s is put onto %s", target.Name, got)
				}
			}
		})
	}
}

// TestPrefixOfNorms guards that the rule also holds for parameters that are no
// matrices.
func TestPrefixOfNorms(t *testing.T) {
	a := align(t, mustOpen(t, `{"peft_type":"LN_TUNING"}`, "base_model.model.layers.0.input_layernorm.ln_tuning_layers.weight:8"), llama(t, "model.", 1), adapter.Family{})
	if want := "layers.0.input_layernorm.weight [8] = model.layers.0.input_layernorm.weight[0:8]<0"; places(a) != want {
		t.Errorf("got %s, want %s", places(a), want)
	}
}

// TestOtherLayer guards that an adapter of a deeper model is refused: its last
// layer must not end up on another one.
func TestOtherLayer(t *testing.T) {
	for _, layers := range [][]int{{4}, {0, 1, 2, 3, 4}, {7, 8}} {
		config := fmt.Sprintf(`{"peft_type":"LORA","r":2,"lora_alpha":4,"target_modules":["q_proj","v_proj"],"layers_to_transform":%s}`,
			strings.ReplaceAll(fmt.Sprint(layers), " ", ","))
		_, err := adapter.Align(mustOpen(t, config, qv("model.", layers...)...), llama(t, "model.", 4), adapter.Family{})
		checkError(t, err, fmt.Sprintf("layers.%d.", layers[max(len(layers)-2, 0)]+len(layers)/5), "the base has no tensor")
	}
}

// TestNoTarget guards the error for a module that the base lacks and the names
// it suggests.
func TestNoTarget(t *testing.T) {
	a := mustOpen(t, `{"peft_type":"LORA","r":2,"lora_alpha":4}`, append(qv("model.", 0), pair("model.layers.0.self_attn.qq_proj", 8, 2, 8)...)...)
	_, err := adapter.Align(a, llama(t, "model.", 1), adapter.Family{})
	checkError(t, err, "adapter_model.safetensors", `"base_model.model.model.layers.0.self_attn.qq_proj.lora_A.weight"`, `the base has no tensor "model.layers.0.self_attn.qq_proj.weight"`)
	mismatch, ok := errors.AsType[*adapter.MismatchError](err)
	want := []string{"model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.v_proj.weight", "model.layers.0.mlp.down_proj.weight"}
	if !ok || !slices.Equal(mismatch.Near, want) {
		t.Errorf("near %q, want %q", mismatch.Near, want)
	}
	long := mustOpen(t, `{"peft_type":"LORA","r":2,"lora_alpha":4}`, pair(strings.Repeat("x", 5000), 8, 2, 8)...)
	_, err = adapter.Align(long, llama(t, "model.", 1, strings.Repeat("x", 4990)+".weight:8x8"), adapter.Family{})
	if mismatch, ok := errors.AsType[*adapter.MismatchError](err); !ok || len(mismatch.Near) != 0 || len(err.Error()) > 1500 {
		t.Errorf("error %T of %d bytes, want a short MismatchError without near names", err, len(err.Error()))
	}
}

// TestComplete guards that a layer without tensors is refused, and what is no
// such layer.
func TestComplete(t *testing.T) {
	tower := []string{"vision.layers.0.self_attn.q_proj.weight:8x8", "vision.layers.0.self_attn.v_proj.weight:4x8"}
	const all = `"target_modules":["q_proj","v_proj"]`
	for _, c := range []struct {
		name    string
		config  string
		tensors []string
		base    base
		family  adapter.Family
		want    string // the tensor that is missing; empty to accept
	}{
		{"complete", all, qv("model.", 0, 1, 2), llama(t, "model.", 3), adapter.Family{}, ""},
		{"one layer missing", all, qv("model.", 0, 2), llama(t, "model.", 3), adapter.Family{}, "model.layers.1.self_attn.q_proj.weight"},
		{"one module missing", all, qv("model.", 0, 1, 2)[:10], llama(t, "model.", 3), adapter.Family{}, "model.layers.2.self_attn.v_proj.weight"},
		{"missing behind a prefix rule", all, qv("", 0, 2), llama(t, "model.", 3), adapter.Family{}, "model.layers.1.self_attn.q_proj.weight"},
		{"a tower that training never saw", all, qv("model.", 0, 1), llama(t, "model.", 2, tower...), adapter.Family{}, ""},
		{"layers by number", all + `,"layers_to_transform":[0,2]`, qv("model.", 0, 2), llama(t, "model.", 3), adapter.Family{}, ""},
		{"one of the numbered layers missing", all + `,"layers_to_transform":[0,1]`, qv("model.", 0), llama(t, "model.", 3), adapter.Family{}, "model.layers.1.self_attn.q_proj.weight"},
		{"excluded layer", all + `,"exclude_modules":".*\\.1\\..*"`, qv("model.", 0, 2), llama(t, "model.", 3), adapter.Family{}, ""},
		{"excluded by an expression nobody can evaluate", all + `,"exclude_modules":"(?!x)y"`, qv("model.", 0, 2), llama(t, "model.", 3), adapter.Family{}, ""},
		{"expression", `"target_modules":"model\\.layers\\.[02]\\..*_proj"`, qv("model.", 0, 2), llama(t, "model.", 3), adapter.Family{}, ""},
		{"expression covers more", `"target_modules":"model\\.layers\\.[012]\\.self.*_proj"`, qv("model.", 0, 2), llama(t, "model.", 3), adapter.Family{}, "model.layers.1.self_attn.q_proj.weight"},
		{"all linear layers are not known", `"target_modules":"all-linear"`, qv("model.", 0, 2), llama(t, "model.", 3), adapter.Family{}, ""},
		{"no targets", `"target_modules":null`, qv("model.", 0, 2), llama(t, "model.", 3), adapter.Family{}, ""},
		{"layers beyond the config's", all, qv("model.", 0, 1), llama(t, "model.", 3), adapter.Family{Layers: 2}, ""},
		{"layers within the config's", all, qv("model.", 0, 1), llama(t, "model.", 3), adapter.Family{Layers: 3}, "model.layers.2.self_attn.q_proj.weight"},
		{"saved instead", `"target_modules":["q_proj","v_proj"],"modules_to_save":["layers.1.self_attn"]`,
			append(qv("model.", 0, 2), "base_model.model.model.layers.1.self_attn.q_proj.weight:8x8", "base_model.model.model.layers.1.self_attn.v_proj.weight:4x8"),
			llama(t, "model.", 3), adapter.Family{}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := mustOpen(t, `{"peft_type":"LORA","r":2,"lora_alpha":4,`+c.config+`}`, c.tensors...)
			_, err := adapter.Align(a, c.base, c.family)
			if c.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			checkError(t, err, "adapter_config.json", fmt.Sprintf("%q", c.want), "target_modules covers it, but the adapter holds no tensors for it")
		})
	}
}

// TestSaved guards modules_to_save: what the base has must be in the file,
// whole.
func TestSaved(t *testing.T) {
	b := llama(t, "model.", 1, "lm_head.weight:32x8", "score.weight:2x8", "score.bias:2", "vision.norm.weight:8")
	const save = "base_model.model."
	for _, c := range []struct {
		name    string
		entries string
		tensors []string
		want    string // the tensor that is missing; empty to accept
	}{
		{"there", `"lm_head"`, []string{save + "lm_head.weight:32x8"}, ""},
		{"there in a raw dump", `"lm_head"`, []string{save + "lm_head.modules_to_save.default.weight:32x8"}, ""},
		{"not there", `"lm_head"`, nil, "lm_head.weight"},
		{"the base has no such module", `"classifier"`, nil, ""},
		{"by path", `"model.embed_tokens"`, nil, "model.embed_tokens.weight"},
		{"half of it", `"score"`, []string{save + "score.weight:2x8"}, "score.bias"},
		{"the other half", `"score"`, []string{save + "score.bias:2"}, "score.weight"},
		{"whole", `"score"`, []string{save + "score.bias:2", save + "score.weight:2x8"}, ""},
		{"another tower has one too", `"norm"`, []string{save + "model.norm.weight:8"}, ""},
		{"none of the towers", `"norm"`, nil, "model.norm.weight"},
		{"a part of a component", `"head"`, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := mustOpen(t, `{"peft_type":"LORA","r":2,"lora_alpha":4,"modules_to_save":[`+c.entries+`]}`, append(qv("model.", 0), c.tensors...)...)
			_, err := adapter.Align(a, b, adapter.Family{})
			if c.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			checkError(t, err, fmt.Sprintf("%q", c.want), "modules_to_save names", c.entries)
		})
	}
}

// TestSavedNames guards that whole tensors get their names by the same rule.
func TestSavedNames(t *testing.T) {
	a := mustOpen(t, lora2, append(qv("", 0), "base_model.model.norm.weight:8", "base_model.model.fresh.weight:8", "base_model.model.lm_head.weight:32x8")...)
	out := align(t, a, llama(t, "model.", 1, "lm_head.weight:32x8"), adapter.Family{})
	if got := out.BaseName("lm_head.weight"); got != "lm_head.weight" {
		t.Errorf("lm_head.weight, which is in the base by that name, is %q", got)
	}
	if got := out.BaseName("norm.weight"); got != "model.norm.weight" {
		t.Errorf("norm.weight is %q", got)
	}
	if got := out.BaseName("fresh.weight"); got != "model.fresh.weight" {
		t.Errorf("fresh.weight, which the base lacks, is %q", got)
	}
}

func TestTokensMissing(t *testing.T) {
	a := mustOpen(t, `{"peft_type":"LORA","r":2,"lora_alpha":4,"trainable_token_indices":[1,2]}`, qv("model.", 0)...)
	_, err := adapter.Align(a, llama(t, "model.", 1), adapter.Family{})
	checkError(t, err, "adapter_config.json", "trainable tokens", "trainable_tokens_delta")
}

// TestPlaces guards where the parameters of a module lie: biases, attentions,
// older names.
func TestPlaces(t *testing.T) {
	t.Run("bias", func(t *testing.T) {
		b := specs(t, "m.q.weight:8x6", "m.q.bias:8", "m.k.weight:8x6")
		a := align(t, mustOpen(t, lora4, concat(pair("m.q", 8, 4, 6), pair("m.k", 8, 4, 6))...), b, adapter.Family{})
		if a.Targets[0].Bias != nil || a.Targets[1].Bias == nil || *a.Targets[1].Bias != (adapter.Place{Tensor: "m.q.bias", Rows: 8}) {
			t.Errorf("biases %v, %v", a.Targets[0].Bias, a.Targets[1].Bias)
		}
	})
	t.Run("attention", func(t *testing.T) {
		b := specs(t, "m.attn.in_proj_weight:24x8", "m.attn.out_proj.weight:8x8")
		a := align(t, mustOpen(t, lora4, concat(pair("m.attn", 24, 4, 8), pair("m.attn.base_layer.out_proj", 8, 4, 8))...), b, adapter.Family{})
		want := "m.attn.in_proj_weight [24, 8] = m.attn.in_proj_weight[0:24]<0\nm.attn.out_proj.weight [8, 8] = m.attn.out_proj.weight[0:8]<0"
		if got := places(a); got != want || a.Targets[0].Inner || !a.Targets[1].Inner {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	})
	t.Run("older name", func(t *testing.T) {
		b := specs(t, "m.block_sparse_moe.gate.weight:4x8")
		a := align(t, mustOpen(t, lora4, pair("m.mlp.gate", 4, 4, 8)...), b, adapter.Family{})
		if want := "m.mlp.gate.weight [4, 8] = m.block_sparse_moe.gate.weight[0:4]<0"; places(a) != want || a.From != a.To {
			t.Errorf("got %s by the rule %q -> %q, want %s by none", places(a), a.From, a.To, want)
		}
	})
	t.Run("convolution", func(t *testing.T) {
		b := specs(t, "conv.weight:8x3x5")
		a := align(t, mustOpen(t, lora4, "base_model.model.conv.lora_A.weight:4x3x5", "base_model.model.conv.lora_B.weight:8x4x1"), b, adapter.Family{})
		if want := "conv.weight [8, 3, 5] = conv.weight[0:8]<0"; places(a) != want {
			t.Errorf("got %s, want %s", places(a), want)
		}
	})
}

// fused are two layers with stacked experts: 3 experts, inner width 5, hidden 4.
func fused(t *testing.T, layers ...int) base {
	var list []string
	for _, i := range layers {
		list = append(list, fmt.Sprintf("m.layers.%d.mlp.experts.gate_up_proj:3x10x4", i), fmt.Sprintf("m.layers.%d.mlp.experts.down_proj:3x4x5", i))
	}
	return specs(t, list...)
}

// single are the same experts as modules of their own.
func single(t *testing.T, names [3]string, layers ...int) base {
	var list []string
	for _, i := range layers {
		for e := range 3 {
			for n, dims := range []string{"5x4", "5x4", "4x5"} {
				list = append(list, fmt.Sprintf("m.layers.%d.mlp.experts.%d.%s.weight:%s", i, e, names[n], dims))
			}
		}
	}
	return specs(t, list...)
}

// stackedPairs are factors of rank 2 for the stacked parameters of a layer:
// gate_up_proj is the inner wrapper.
func stackedPairs(layer int) []string {
	module := fmt.Sprintf("m.layers.%d.mlp.experts", layer)
	return concat(pair(module+".base_layer", 10, 6, 4), pair(module, 4, 6, 5))
}

// TestExperts guards where stacked and single experts lie in each other, and
// which wrapper belongs to which parameter.
func TestExperts(t *testing.T) {
	moe := func(targets string) string {
		return `{"peft_type":"LORA","r":2,"lora_alpha":4,"target_parameters":[` + targets + `]}`
	}
	both := moe(`"mlp.experts.gate_up_proj","mlp.experts.down_proj"`)
	const e = "m.layers.0.mlp.experts"
	for _, c := range []struct {
		name    string
		config  string
		tensors []string
		base    base
		want    string
	}{
		{"both parameters, stacked", both, stackedPairs(0), fused(t, 0),
			e + ".gate_up_proj [3, 10, 4] = " + e + ".gate_up_proj[0:30]<0\n" + e + ".down_proj [3, 4, 5] = " + e + ".down_proj[0:12]<0"},
		{"both parameters, single", both, stackedPairs(0), single(t, [3]string{"gate_proj", "up_proj", "down_proj"}, 0),
			e + ".gate_up_proj [3, 10, 4] = " +
				e + ".0.gate_proj.weight[0:5]<0 " + e + ".0.up_proj.weight[0:5]<5 " + e + ".1.gate_proj.weight[0:5]<10 " +
				e + ".1.up_proj.weight[0:5]<15 " + e + ".2.gate_proj.weight[0:5]<20 " + e + ".2.up_proj.weight[0:5]<25\n" +
				e + ".down_proj [3, 4, 5] = " + e + ".0.down_proj.weight[0:4]<0 " + e + ".1.down_proj.weight[0:4]<4 " + e + ".2.down_proj.weight[0:4]<8"},
		{"Mixtral's names, in which w3 goes up", moe(`"experts.gate_up_proj"`), pair(e, 10, 6, 4), single(t, [3]string{"w1", "w3", "w2"}, 0),
			e + ".gate_up_proj [3, 10, 4] = " + e + ".0.w1.weight[0:5]<0 " + e + ".0.w3.weight[0:5]<5 " + e + ".1.w1.weight[0:5]<10 " +
				e + ".1.w3.weight[0:5]<15 " + e + ".2.w1.weight[0:5]<20 " + e + ".2.w3.weight[0:5]<25"},
		{"one parameter, by its name", moe(`"down_proj"`), pair(e, 4, 6, 5), fused(t, 0), e + ".down_proj [3, 4, 5] = " + e + ".down_proj[0:12]<0"},
		{"single experts on a stacked base", `{"peft_type":"LORA","r":2,"lora_alpha":4}`,
			concat(pair(e+".1.w1", 5, 2, 4), pair(e+".1.w3", 5, 2, 4), pair(e+".2.w2", 4, 2, 5)), fused(t, 0),
			e + ".1.w1.weight [5, 4] = " + e + ".gate_up_proj[10:15]<0\n" + e + ".1.w3.weight [5, 4] = " + e + ".gate_up_proj[15:20]<0\n" +
				e + ".2.w2.weight [4, 5] = " + e + ".down_proj[8:12]<0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := align(t, mustOpen(t, c.config, c.tensors...), c.base, adapter.Family{})
			if got := places(a); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

// TestExpertsByShape guards that without target_parameters the shapes decide,
// and only if they can.
func TestExpertsByShape(t *testing.T) {
	const e = "m.layers.0.mlp.experts"
	const config = `{"peft_type":"LORA","r":2,"lora_alpha":4}`
	a := align(t, mustOpen(t, config, pair(e, 4, 6, 5)...), fused(t, 0), adapter.Family{})
	if want := e + ".down_proj [3, 4, 5] = " + e + ".down_proj[0:12]<0"; places(a) != want {
		t.Errorf("got %s, want %s", places(a), want)
	}
	same := base(specs(t, e+".gate_up_proj:3x4x4", e+".down_proj:3x4x4"))
	_, err := adapter.Align(mustOpen(t, config, pair(e, 4, 6, 4)...), same, adapter.Family{})
	checkError(t, err, "several parameters of the module have its shape")
	// Two wrappers, two parameters: their order is that of registration.
	a = align(t, mustOpen(t, config, concat(pair(e+".base_layer", 4, 6, 4), pair(e, 4, 6, 4))...), same, adapter.Family{})
	if a.Targets[0].Param != "gate_up_proj" || a.Targets[0].Depth != 1 || a.Targets[1].Param != "down_proj" {
		t.Errorf("targets\n%s", places(a))
	}
	// The order of registration of others is not known.
	others := base(specs(t, e+".alpha:3x4x4", e+".beta:3x4x4"))
	_, err = adapter.Align(mustOpen(t, config, concat(pair(e+".base_layer", 4, 6, 4), pair(e, 4, 6, 4))...), others, adapter.Family{})
	checkError(t, err, "several parameters of the module have its shape")
	differ := base(specs(t, e+".alpha:3x4x4", e+".beta:3x4x7"))
	a = align(t, mustOpen(t, config, concat(pair(e+".base_layer", 4, 6, 4), pair(e, 4, 6, 7))...), differ, adapter.Family{})
	if a.Targets[0].Param != "alpha" || a.Targets[1].Param != "beta" {
		t.Errorf("targets\n%s", places(a))
	}
}

func TestExpertsRefuse(t *testing.T) {
	const e = "m.layers.0.mlp.experts"
	const config = `{"peft_type":"LORA","r":2,"lora_alpha":4`
	many := []string{}
	for i := range 200 {
		many = append(many, fmt.Sprintf("%s.p%03d:3x4x4", e, i))
	}
	var deep []string
	for i := range 40 {
		deep = append(deep, pair(e+strings.Repeat(".base_layer", i), 4, 6, 4)...)
	}
	odd := single(t, [3]string{"w1", "w3", "w2"}, 0)
	odd[4].Shape = []int64{6, 4} // the up projection of expert 1
	odd = slices.DeleteFunc(odd, func(s tensor.Spec) bool { return strings.Contains(s.Name, "w2") })
	for _, c := range []struct {
		name    string
		config  string
		tensors []string
		base    base
		want    string
	}{
		{"shape of no parameter", config + `}`, pair(e, 4, 6, 6), fused(t, 0), "fits no parameter of the module at rank 2 (gate_up_proj [3, 10, 4], down_proj [3, 4, 5])"},
		{"another rank", config + `}`, pair(e, 4, 3, 5), fused(t, 0), "fits no parameter"},
		{"three wrappers, two parameters", config + `}`, concat(stackedPairs(0), pair(e+".base_layer.base_layer", 4, 6, 5)), fused(t, 0), "fits no parameter"},
		{"wrappers in the other order", config + `}`, concat(pair(e+".base_layer", 4, 6, 5), pair(e, 10, 6, 4)), fused(t, 0), "fits no parameter"},
		{"experts of several sizes", config + `}`, pair(e, 10, 6, 4), odd, "the base has no tensor"},
		{"expert behind the last", config + `}`, pair(e+".3.w1", 5, 2, 4), fused(t, 0), "the base has no tensor"},
		{"expert with a number of 65 bits", config + `}`, pair(e+".99999999999999999999.w1", 5, 2, 4), fused(t, 0), "the base has no tensor"},
		{"halves of an odd number", config + `}`, pair(e+".0.w1", 2, 2, 4), specs(t, e+".gate_up_proj:3x5x4"), "the base has no tensor"},
		{"many wrappers and parameters", config + `}`, deep, specs(t, many...), "several parameters"},
		{"a parameter that is not in the file", config + `,"target_parameters":["mlp.experts.gate_up_proj","mlp.experts.down_proj"]}`, pair(e, 10, 6, 4), fused(t, 0),
			`target_parameters: "mlp.experts.down_proj" matches no tensor of the adapter`},
		{"a layer that is not in the file", config + `,"target_parameters":["mlp.experts.gate_up_proj"]}`, pair(e, 10, 6, 4), fused(t, 0, 1),
			`"m.layers.1.mlp.experts.gate_up_proj": target_parameters covers it`},
		{"a layer of single experts that is not in the file", config + `,"target_parameters":["mlp.experts.down_proj"]}`, pair(e, 4, 6, 5),
			single(t, [3]string{"w1", "w3", "w2"}, 0, 1), `"m.layers.1.mlp.experts.0.w2.weight": target_parameters covers it`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := adapter.Align(mustOpen(t, c.config, c.tensors...), c.base, adapter.Family{})
			checkError(t, err, c.want)
		})
	}
	t.Run("transposed experts have no rows of one", func(t *testing.T) {
		_, err := adapter.Align(mustOpen(t, config+`}`, pair(e+".0.w1", 5, 2, 4)...), fused(t, 0), adapter.Family{ModelType: "gpt_oss"})
		checkError(t, err, "the base has no tensor")
	})
	t.Run("a layer beyond the config's", func(t *testing.T) {
		a := mustOpen(t, config+`,"target_parameters":["mlp.experts.gate_up_proj"]}`, pair(e, 10, 6, 4)...)
		align(t, a, fused(t, 0, 1), adapter.Family{Layers: 1})
	})
}

// TestPatternName guards what rank_pattern and alpha_pattern are matched with.
func TestPatternName(t *testing.T) {
	const e = "m.layers.0.mlp.experts"
	a := align(t, mustOpen(t, `{"peft_type":"LORA","r":2,"lora_alpha":4,"target_parameters":["gate_up_proj","down_proj"]}`, stackedPairs(0)...), fused(t, 0), adapter.Family{})
	if a.Targets[0].PatternName != e+".gate_up_proj" || a.Targets[1].PatternName != e+".down_proj" {
		t.Errorf("pattern names %q, %q", a.Targets[0].PatternName, a.Targets[1].PatternName)
	}
	a = align(t, mustOpen(t, lora2, qv("", 0)...), llama(t, "model.", 1), adapter.Family{})
	if a.Targets[0].PatternName != "layers.0.self_attn.q_proj" {
		t.Errorf("pattern name %q, want the trained one", a.Targets[0].PatternName)
	}
	a = align(t, mustOpen(t, `{"peft_type":"LORA","r":2,"lora_alpha":4,"target_parameters":["q_proj.weight","v_proj.weight"]}`, qv("model.", 0)...), llama(t, "model.", 1), adapter.Family{})
	if a.Targets[0].PatternName != "model.layers.0.self_attn.q_proj.weight" {
		t.Errorf("pattern name %q, want the parameter's", a.Targets[0].PatternName)
	}
}

// TestAlignIsStable guards that two runs say the same.
func TestAlignIsStable(t *testing.T) {
	b := llama(t, "language_model.model.", 3)
	first := ""
	for range 10 {
		a := align(t, mustOpen(t, lora2, qv("model.", 0, 1, 2)...), b, adapter.Family{})
		if got := places(a); first == "" {
			first = got
		} else if got != first {
			t.Fatalf("once\n%s\nonce\n%s", first, got)
		}
	}
}
