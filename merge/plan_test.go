package merge_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/merge"
)

// linear is a base of one linear layer with a bias, a norm and a plain tensor.
var linear = model{config: `{"architectures":["LlamaModel"],"model_type":"llama"}`, tensors: []string{"m.q.weight:4x6", "m.q.bias:4", "m.norm.weight:6"}}

// TestWeights guards what weights mean: every adapter's change is seen from the
// base and multiplied once, whatever else the adapter does to the tensor.
func TestWeights(t *testing.T) {
	w, bias := linear.of(t, "m.q.weight"), linear.of(t, "m.q.bias")
	plain := func(seed string) model { return model{config: lora(""), seed: seed, tensors: pair("m.q", 4, 6)} }
	ia3 := model{config: `{"peft_type":"IA3"}`, tensors: []string{"base_model.model.m.q.ia3_l:4x1"}}
	replaced := model{config: lora(`"lora_bias":true,"bias":"lora_only"`), tensors: append(pair("m.q", 4, 6),
		"base_model.model.m.q.base_layer.weight:4x6", "base_model.model.m.q.base_layer.bias:4", "base_model.model.m.q.lora_B.bias:4")}
	a, b := plain("a"), plain("b")
	scaled := func(m model, x mat) mat {
		l := m.of(t, "base_model.model.m.q.ia3_l")
		x = x.clone()
		for i := range x {
			for j := range x[i] {
				x[i][j] *= l[i][0]
			}
		}
		return x
	}
	// own is what the adapter makes of weight and bias, alone and at weight 1.
	own := plus(replaced.of(t, "base_model.model.m.q.base_layer.weight"), 1, replaced.change(t, "m.q"))
	ownBias := plus(replaced.of(t, "base_model.model.m.q.base_layer.bias"), 2, replaced.of(t, "base_model.model.m.q.lora_B.bias"))
	for _, c := range []struct {
		name     string
		adapters []weighted
		want     mat
		wantBias mat
	}{
		{"one", []weighted{{model: a, weight: 1}}, plus(w, 1, a.change(t, "m.q")), bias},
		{"one, weighted", []weighted{{model: a, weight: 0.7}}, plus(w, 0.7, a.change(t, "m.q")), bias},
		{"taken away", []weighted{{model: a, weight: -0.5}}, plus(w, -0.5, a.change(t, "m.q")), bias},
		{"two", []weighted{{model: a, weight: 0.7}, {model: b, weight: -0.3}}, plus(plus(w, 0.7, a.change(t, "m.q")), -0.3, b.change(t, "m.q")), bias},
		{"scaled", []weighted{{model: ia3, weight: 1}}, scaled(ia3, w), scaled(ia3, bias)},
		{"scaled, weighted", []weighted{{model: ia3, weight: -0.5}}, plus(w, -0.5, plus(scaled(ia3, w), -1, w)), plus(bias, -0.5, plus(scaled(ia3, bias), -1, bias))},
		{"scaled and added", []weighted{{model: ia3, weight: 0.5}, {model: a, weight: 2}}, plus(plus(w, 0.5, plus(scaled(ia3, w), -1, w)), 2, a.change(t, "m.q")),
			plus(bias, 0.5, plus(scaled(ia3, bias), -1, bias))},
		{"replaced and added", []weighted{{model: replaced, weight: 1}}, own, ownBias},
		{"replaced and added, weighted", []weighted{{model: replaced, weight: 0.5}}, plus(w, 0.5, plus(own, -1, w)), plus(bias, 0.5, plus(ownBias, -1, bias))},
		{"replaced, and another adds", []weighted{{model: replaced, weight: 1}, {model: a, weight: 0.5}}, plus(own, 0.5, a.change(t, "m.q")), ownBias},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := merged(t, linear, c.adapters, merge.Options{})
			checkTensor(t, r, "m.q.weight", c.want)
			checkTensor(t, r, "m.q.bias", c.wantBias)
			checkTensor(t, r, "m.norm.weight", linear.of(t, "m.norm.weight"))
		})
	}
}

// TestOutputTypes guards in which type a tensor is written.
func TestOutputTypes(t *testing.T) {
	base := model{config: `{"model_type":"llama","torch_dtype":"float32"}`,
		tensors: []string{"m.q.weight:4x6", "half:f16:2", "brain:bf16:2", "wide:f64:2", "ids:i64:2", "flags:bool:2", "bytes:u8:3", "nibbles:f4:4"}}
	a := model{config: lora(""), tensors: pair("m.q", 4, 6)}
	for _, c := range []struct {
		dtype tensor.DType
		want  string
		torch string
	}{
		{tensor.NoDType, "m.q.weight:f32 half:f16 brain:bf16 wide:f64 ids:i64 flags:bool bytes:u8 nibbles:f4", "float32"},
		{tensor.BF16, "m.q.weight:bf16 half:bf16 brain:bf16 wide:bf16 ids:i64 flags:bool bytes:u8 nibbles:f4", "bfloat16"},
		{tensor.F64, "m.q.weight:f64 half:f64 brain:f64 wide:f64 ids:i64 flags:bool bytes:u8 nibbles:f4", "float64"},
	} {
		r := merged(t, base, []weighted{{model: a, weight: 1}}, merge.Options{DType: c.dtype})
		for _, entry := range strings.Fields(c.want) {
			name, want, _ := strings.Cut(entry, ":")
			if got := r.specs[name].DType.String(); got != want {
				t.Errorf("--dtype %q: %s is written as %s, want %s", c.dtype, name, got, want)
			}
		}
		if s, _ := sidecar(r.Merge, "config.json"); !strings.Contains(string(s.Data), fmt.Sprintf("%q", c.torch)) {
			t.Errorf("--dtype %q: config\n%s", c.dtype, s.Data)
		}
	}
}

// TestOverflow guards that a type asked for is overflowed loudly.
func TestOverflow(t *testing.T) {
	base := model{tensors: []string{"m.q.weight:2x2"}, set: map[string][]float64{"m.q.weight": {1, 70000, 2, 3}}}
	a := model{config: lora(""), tensors: pair("m.q", 2, 2)}
	m, err := planOf(t, base, []weighted{{model: a, weight: 1}}, merge.Options{DType: tensor.F16})
	if err != nil {
		t.Fatal(err)
	}
	_, err = execute(t, m)
	if e, ok := errors.AsType[*engine.NonFiniteError](err); !ok || e.Tensor != "m.q.weight" || e.Count != 1 || e.Row != 0 || e.DType != "f16" {
		t.Errorf("error %v, want a NonFiniteError", err)
	}
}

// TestFP8 guards a base that is stored with scales, from its bytes to config and
// left-out tensors.
func TestFP8(t *testing.T) {
	quantized := `{"model_type":"llama","dtype":"float16","quantization_config":{"quant_method":"fp8","weight_block_size":[2,3]}}`
	a := model{config: lora(""), tensors: pair("m.q", 4, 6)}
	base := model{config: quantized, files: map[string]string{"hf_quant_config.json": "{}", "tokenizer.json": "{}"},
		tensors: []string{"m.q.weight:f8_e4m3:4x6", "m.q.weight_scale_inv:2x2", "m.v.weight:f8_e5m2:4x6", "m.v.weight_scale:", "m.q.input_scale:", "m.norm.weight:bf16:6"}}
	w, s := base.of(t, "m.q.weight"), base.of(t, "m.q.weight_scale_inv")
	for i := range w {
		for j := range w[i] {
			w[i][j] *= s[i/2][j/3]
		}
	}
	r := merged(t, base, []weighted{{model: a, weight: 1}}, merge.Options{DType: tensor.F32})
	checkTensor(t, r, "m.q.weight", plus(w, 1, a.change(t, "m.q")))
	checkTensor(t, r, "m.v.weight", plus(newMat(4, 6), base.of(t, "m.v.weight_scale")[0][0], base.of(t, "m.v.weight")))
	if len(r.specs) != 3 {
		t.Errorf("tensors %v", r.specs)
	}
	if r.config(t).Quantization() != nil {
		t.Error("the quantization_config is still there")
	}
	if _, ok := sidecar(r.Merge, "hf_quant_config.json"); ok {
		t.Error("hf_quant_config.json is copied")
	}
	if !strings.Contains(codes(r.Merge), "fp8-restored") {
		t.Errorf("decisions %s", codes(r.Merge))
	}
	// Without a type asked for, 16 bits: the config's, or bf16.
	for config, want := range map[string]tensor.DType{quantized: tensor.F16, strings.Replace(quantized, "float16", "float32", 1): tensor.BF16} {
		base.config = config
		r := merged(t, base, []weighted{{model: a, weight: 1}}, merge.Options{})
		if r.specs["m.q.weight"].DType != want || r.specs["m.norm.weight"].DType != tensor.BF16 || r.config(t).DType() != want {
			t.Errorf("written as %v beside %v, the config says %v; want %v", r.specs["m.q.weight"].DType, r.specs["m.norm.weight"].DType, r.config(t).DType(), want)
		}
	}
}

// TestFP8Stack guards the scales of stacked experts under a change of single
// ones.
func TestFP8Stack(t *testing.T) {
	base := model{config: `{"model_type":"mixtral"}`, tensors: []string{"m.experts.gate_up_proj:f8_e4m3:2x4x6", "m.experts.gate_up_proj_scale:2x1x1"}}
	a := model{config: lora(""), tensors: pair("m.experts.1.w3", 2, 6)}
	r := merged(t, base, []weighted{{model: a, weight: 1}}, merge.Options{DType: tensor.F32})
	s := base.of(t, "m.experts.gate_up_proj_scale")
	want := rowsOf(8, 6, base.values(tensor.Spec{Name: "m.experts.gate_up_proj", Shape: tensor.Shape{2, 4, 6}}))
	change := a.change(t, "m.experts.1.w3")
	for i := range want {
		for j := range want[i] {
			want[i][j] *= s[i/4][0]
			if i >= 6 { // the upper half of the second expert
				want[i][j] += change[i-6][j]
			}
		}
	}
	got := r.of(t, "m.experts.gate_up_proj")
	var flat mat
	for _, row := range got {
		flat = append(flat, rowsOf(4, 6, row)...)
	}
	compare(t, "experts", flat, want, opTolerance32)
}

// TestFP8Replaced guards that what takes the place of an FP8 tensor is not
// scaled.
func TestFP8Replaced(t *testing.T) {
	base := model{config: `{"model_type":"llama"}`, tensors: []string{"m.q.weight:f8_e4m3:4x6", "m.q.weight_scale:", "m.v.weight:4x6"}}
	a := model{config: lora(""), tensors: append(pair("m.v", 4, 6), "base_model.model.m.q.weight:4x6")}
	r := merged(t, base, []weighted{{model: a, weight: 1}}, merge.Options{DType: tensor.F32})
	checkTensor(t, r, "m.q.weight", a.of(t, "base_model.model.m.q.weight"))
}

// TestSquareExperts guards the orientation that shapes don't show: experts that
// are modules of their own are linear layers, whatever the model does with
// stacked ones.
func TestSquareExperts(t *testing.T) {
	a := model{config: lora(`"target_parameters":["down_proj"]`), tensors: []string{"base_model.model.m.experts.lora_A.weight:4x3", "base_model.model.m.experts.lora_B.weight:3x4"}}
	fa, fb := a.of(t, "base_model.model.m.experts.lora_A.weight"), a.of(t, "base_model.model.m.experts.lora_B.weight")
	change := func(e int) mat {
		d := newMat(3, 3)
		for o := range d {
			for i := range d[o] {
				for k := range 2 {
					d[o][i] += 2 * fb[o][k*2+e] * fa[e*2+k][i]
				}
			}
		}
		return d
	}
	single := model{config: `{"model_type":"gpt_oss"}`, tensors: []string{"m.experts.0.w2.weight:3x3", "m.experts.1.w2.weight:3x3"}}
	r := merged(t, single, []weighted{{model: a, weight: 1}}, merge.Options{})
	for e := range 2 {
		name := fmt.Sprintf("m.experts.%d.w2.weight", e)
		checkTensor(t, r, name, plus(single.of(t, name), 1, change(e)))
	}
	for modelType, transposed := range map[string]bool{"gpt_oss": true, "mixtral": false} {
		stacked := model{config: `{"model_type":"` + modelType + `"}`, tensors: []string{"m.experts.down_proj:2x3x3"}}
		r := merged(t, stacked, []weighted{{model: a, weight: 1}}, merge.Options{})
		w := stacked.of(t, "m.experts.down_proj")
		for e := range 2 {
			d := change(e)
			if transposed {
				d = transpose(d)
			}
			want := plus(rowsOf(3, 3, w[e]), 1, d)
			compare(t, modelType, rowsOf(3, 3, r.of(t, "m.experts.down_proj")[e]), want, opTolerance32)
		}
	}
}

// TestOddEmbeddings guards that a base whose tables are no matrices is planned.
func TestOddEmbeddings(t *testing.T) {
	a := model{config: lora(""), tensors: pair("m.q", 4, 6)}
	for _, tables := range [][]string{
		{"model.embed_tokens.weight:", "lm_head.weight:4x6"}, {"model.embed_tokens.weight:4", "lm_head.weight:"}, {"model.embed_tokens.weight:4x6", "lm_head.weight:"},
		{"model.embed_tokens.weight:4x6", "lm_head.weight:4x6", "lm_head.bias:"}, {"model.embed_tokens.weight:0x6"},
	} {
		base := model{config: `{"architectures":["LlamaForCausalLM"],"tie_word_embeddings":true}`, tensors: append([]string{"m.q.weight:4x6"}, tables...)}
		r := merged(t, base, []weighted{{model: a, weight: 1}}, merge.Options{})
		if len(r.specs) != len(base.tensors) {
			t.Errorf("%q: tensors %v", tables, r.specs)
		}
	}
}

// TestFP8Refuses has FP8 tensors that do not say what they stand for. What does not
// fit a weight is refused when the base is opened.
func TestFP8Refuses(t *testing.T) {
	a := model{config: lora(""), tensors: pair("m.q", 4, 6)}
	for _, c := range []struct {
		name, config string
		tensors      []string
		want         string // empty to accept
	}{
		{"no scale, nothing says quantized", `{}`, []string{"m.q.weight:f8_e4m3:4x6"}, ""},
		{"no scale, quantized", `{"quantization_config":{"quant_method":"fp8"}}`, []string{"m.q.weight:f8_e4m3:4x6"}, `"m.q.weight" is FP8 without a scale`},
		{"no scale beside one with", `{}`, []string{"m.q.weight:f8_e4m3:4x6", "m.v.weight:f8_e4m3:4x6", "m.v.weight_scale:1"}, `"m.q.weight" is FP8 without a scale`},
		{"no weight", `{}`, []string{"m.q.weight:4x6", "m.v.weight_scale_inv:1"}, `"m.v.weight_scale_inv" is a scale`},
		{"scalar weight with a scale", `{}`, []string{"m.q.weight:f8_e4m3:4x6", "m.q.weight_scale:1", "x:f8_e4m3:", "x_scale:1"}, ""},
		{"vector with a scale", `{}`, []string{"m.q.weight:f8_e4m3:4x6", "m.q.weight_scale:1", "x:f8_e4m3:7", "x_scale:"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, err := planOf(t, model{config: c.config, tensors: c.tensors}, []weighted{{model: a, weight: 1}}, merge.Options{})
			if c.want != "" {
				checkRefused(t, err, c.want)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := execute(t, m); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestFP8Convolution guards a kernel in FP8, of which each output has a scale: a
// convolution of one dimension has as many as a stack of matrices.
func TestFP8Convolution(t *testing.T) {
	base := model{config: `{}`, tensors: []string{"conv.weight:f8_e4m3:4x3x5", "conv.weight_scale:4x1x1"}}
	a := model{config: lora(""), tensors: []string{"base_model.model.conv.lora_A.weight:2x3x5", "base_model.model.conv.lora_B.weight:4x2x1"}}
	r := merged(t, base, []weighted{{model: a, weight: 1}}, merge.Options{DType: tensor.F32})
	w, s := base.of(t, "conv.weight"), base.of(t, "conv.weight_scale")
	for i := range w {
		for j := range w[i] {
			w[i][j] *= s[i][0]
		}
	}
	change := product(2, a.of(t, "base_model.model.conv.lora_B.weight"), a.of(t, "base_model.model.conv.lora_A.weight"))
	compare(t, "conv.weight", r.of(t, "conv.weight"), plus(w, 1, change), opTolerance32)
}

// TestReplication guards layers that are written out more than once, with
// adapters that name the new ones.
func TestReplication(t *testing.T) {
	base := model{config: `{"model_type":"gpt2","n_layer":2,"layer_types":["a","b"]}`, tensors: []string{"h.0.q.weight:4x4", "h.1.q.weight:4x4", "wte.weight:5x4", "other.0.x:2"}}
	a := func(seed string, layers ...int) model {
		m := model{config: lora(`"layer_replication":[[0,2],[1,2]]`), seed: seed}
		for _, l := range layers {
			m.tensors = append(m.tensors, pair(fmt.Sprintf("h.%d.q", l), 4, 4)...)
		}
		return m
	}
	first, second := a("a", 0, 1, 2), a("b", 2)
	r := merged(t, base, []weighted{{model: first, weight: 1}, {model: second, weight: -0.5}}, merge.Options{})
	for i, from := range []int{0, 1, 1} {
		module := fmt.Sprintf("h.%d.q", i)
		want := plus(base.of(t, fmt.Sprintf("h.%d.q.weight", from)), 1, first.change(t, module))
		if i == 2 {
			want = plus(want, -0.5, second.change(t, module))
		}
		checkTensor(t, r, module+".weight", want)
	}
	if len(r.specs) != 5 {
		t.Errorf("tensors %v", r.specs)
	}
	config, _ := sidecar(r.Merge, "config.json")
	if n, _ := r.config(t).Int("n_layer"); n != 3 || strings.Contains(string(config.Data), "num_hidden_layers") || strings.Count(string(config.Data), `"b"`) != 2 {
		t.Errorf("config\n%s", config.Data)
	}

	refuse := func(name string, want string, base model, adapters ...weighted) {
		t.Run(name, func(t *testing.T) {
			_, err := planOf(t, base, adapters, merge.Options{})
			checkRefused(t, err, want)
		})
	}
	refuse("one adapter without", "its layer_replication differs from that of lora", base, weighted{model: first, weight: 1},
		weighted{model: model{config: lora(""), tensors: pair("h.0.q", 4, 4)}, weight: 1})
	refuse("the first adapter without", "its layer_replication differs", base, weighted{model: model{config: lora(""), tensors: pair("h.0.q", 4, 4)}, weight: 1}, weighted{model: first, weight: 1})
	deep := first
	deep.config = lora(`"layer_replication":[[0,2],[1,3]]`)
	refuse("more layers than there are", "takes layers up to 3 of a base that has 2", base, weighted{model: deep, weight: 1})
	shallow := base
	shallow.config = `{"model_type":"gpt2","n_layer":1,"layer_types":["a"]}`
	refuse("layers that the config does not count", "takes layers up to 2 of a base that has 1", shallow, weighted{model: first, weight: 1})
	refuse("no layers", "takes layers up to 2 of a base that has 0", model{tensors: []string{"q.weight:4x4"}}, weighted{model: first, weight: 1})
}

// TestPlanRefuses has adapters that do not fit the base or their config, each
// with the tensor that the message must name.
func TestPlanRefuses(t *testing.T) {
	const q = "base_model.model.m.q."
	base := model{config: `{"model_type":"llama"}`, tensors: []string{
		"m.q.weight:4x6", "m.q.bias:4", "m.k.weight:4x6", "m.norm.weight:6", "m.scalar.weight:", "m.ids.weight:i64:4x6",
		"conv.weight:4x3x2x5", "grouped.weight:4x1x2x5", "m.experts.gate_up_proj:2x4x6", "m.experts.down_proj:2x6x2", "emb.weight:5x6",
		"none.experts.gate_up_proj:0x4x6", "m.wide.weight:1x4097",
	}}
	loha := `{"peft_type":"LOHA","r":2,"alpha":2}`
	lokr := `{"peft_type":"LOKR","r":2,"alpha":2}`
	ada := `{"peft_type":"ADALORA","init_r":2,"lora_alpha":2}`
	for _, c := range []struct {
		name    string
		config  string
		tensors []string
		want    []string
	}{
		{"A without B", lora(""), []string{q + "lora_A.weight:2x6"}, []string{q + "lora_A.weight", "its counterpart lora_B is missing"}},
		{"B without A", lora(""), []string{q + "lora_B.weight:4x2"}, []string{q + "lora_B.weight", "its counterpart lora_A is missing"}},
		{"magnitude alone", lora(`"use_dora":true`), []string{q + "lora_magnitude_vector:4"}, []string{q + "lora_magnitude_vector", "lora_A is missing"}},
		{"bias of A alone", lora(""), []string{q + "lora_A.bias:4"}, []string{q + "lora_A.bias", "lora_A is missing"}},
		{"rank of the config", lora(""), []string{q + "lora_A.weight:3x6", q + "lora_B.weight:4x3"}, []string{q + "lora_A.weight", `its rank is 3, the config says 2 for "m.q"`}},
		{"two ranks", lora(""), []string{q + "lora_A.weight:2x6", q + "lora_B.weight:4x3"}, []string{q + "lora_B.weight", "3 columns"}},
		{"inputs", lora(""), []string{q + "lora_A.weight:2x5", q + "lora_B.weight:4x2"}, []string{q + "lora_A.weight", "does not fit the base's [4, 6]"}},
		{"outputs", lora(""), []string{q + "lora_A.weight:2x6", q + "lora_B.weight:5x2"}, []string{"does not fit the base's [4, 6]"}},
		{"kernel for a linear layer", lora(""), []string{q + "lora_A.weight:2x3x2x1", q + "lora_B.weight:4x2x1x1"}, []string{q + "lora_A.weight", "kernel"}},
		{"factors of different dimensions", lora(""), []string{q + "lora_A.weight:2x6", q + "lora_B.weight:4x2x1"}, []string{"make no product"}},
		{"vectors", lora(""), []string{q + "lora_A.weight:2", q + "lora_B.weight:4"}, []string{"make no product"}},
		{"scalars", `{"peft_type":"LORA","r":1,"lora_alpha":1}`, []string{q + "lora_A.weight:", q + "lora_B.weight:"}, []string{"make no product"}},
		{"a norm", lora(""), pair("m.norm", 6, 1), []string{"m.norm.lora_A", "[6] is not a layer"}},
		{"a scalar", lora(""), pair("m.scalar", 1, 1), []string{"m.scalar.lora_A", "[] is not a layer"}},
		{"integers in the base", lora(""), pair("m.ids", 4, 6), []string{`"m.ids.weight" is stored as I64`, "floating-point"}},
		{"integers in the adapter", lora(""), []string{q + "lora_A.weight:i64:2x6", q + "lora_B.weight:4x2"}, []string{q + "lora_A.weight", "i64"}},
		{"integers in a magnitude", lora(`"use_dora":true`), append(pair("m.q", 4, 6), q+"lora_magnitude_vector:u8:4"), []string{q + "lora_magnitude_vector", "u8"}},
		{"DoRA without a magnitude", lora(`"use_dora":true`), pair("m.q", 4, 6), []string{"use_dora is true"}},
		{"a magnitude without DoRA", lora(""), append(pair("m.q", 4, 6), q+"lora_magnitude_vector:4"), []string{"use_dora is false"}},
		{"magnitudes of another number", lora(`"use_dora":true`), append(pair("m.q", 4, 6), q+"lora_magnitude_vector:6"), []string{q + "lora_magnitude_vector", "6 magnitudes for 4 outputs"}},
		{"bias of B that the config lacks", lora(""), append(pair("m.q", 4, 6), q+"lora_B.bias:4"), []string{"lora_bias is false"}},
		{"bias of B that is missing", lora(`"lora_bias":true`), pair("m.q", 4, 6), []string{"lora_bias is true"}},
		{"bias of B without one in the base", lora(`"lora_bias":true`), append(pair("m.k", 4, 6), "base_model.model.m.k.lora_B.bias:4"), []string{"m.k.lora_B.bias", "the base has no bias"}},
		{"bias of B of another size", lora(`"lora_bias":true`), append(pair("m.q", 4, 6), q+"lora_B.bias:3"), []string{q + "lora_B.bias", "3 entries for a bias of 4"}},
		{"bias of A", lora(""), append(pair("m.q", 4, 6), q+"lora_A.bias:2"), []string{q + "lora_A.bias", "it has no use"}},
		{"diagonal without KaSA", lora(""), append(pair("m.q", 4, 6), q+"lora_diag:2"), []string{q + "lora_diag", "it has no use"}},
		{"factors of an embedding beside others", lora(""), concat(pair("emb", 5, 6), embeddingPair("emb", 5, 6)), []string{"emb.lora_A.weight", "it has no use"}},
		{"tokens beside factors", lora(`"trainable_token_indices":[1]`), append(embeddingPair("emb", 5, 6), "base_model.model.emb.trainable_tokens_delta:1x6"), []string{"emb.lora_embedding_A", "it has no use"}},
		{"embedding of another size", lora(""), embeddingPair("emb", 4, 6), []string{"an embedding change of [2, 4]"}},
		{"embedding factors of three dimensions", lora(""), []string{"base_model.model.emb.lora_embedding_A:2x5x1", "base_model.model.emb.lora_embedding_B:6x2"}, []string{"embedding change"}},
		{"convolution with a wide B", lora(""), []string{"base_model.model.conv.lora_A.weight:2x3x2x5", "base_model.model.conv.lora_B.weight:4x1x2x1"}, []string{"conv.lora_A", "kernel"}},
		{"convolution with a kernel in B", lora(""), []string{"base_model.model.conv.lora_A.weight:2x3x2x5", "base_model.model.conv.lora_B.weight:4x2x2x1"}, []string{"conv.lora_A", "kernel"}},
		{"convolution with its kernel turned", lora(""), []string{"base_model.model.conv.lora_A.weight:2x3x5x2", "base_model.model.conv.lora_B.weight:4x2x1x1"}, []string{"conv.lora_A", "kernel"}},
		{"grouped convolution", lora(""), []string{"base_model.model.grouped.lora_A.weight:2x4x2x5", "base_model.model.grouped.lora_B.weight:4x2x1x1"}, []string{"grouped"}},
		{"experts of another shape", lora(""), pair("m.experts", 4, 6), []string{"m.experts.lora_A", "fits no parameter"}},
		{"experts with DoRA", lora(`"use_dora":true,"target_parameters":["gate_up_proj"]`), []string{"base_model.model.m.experts.lora_A.weight:4x6", "base_model.model.m.experts.lora_B.weight:4x4", "base_model.model.m.experts.lora_magnitude_vector:4"},
			[]string{"m.experts.lora_A", "DoRA of stacked experts"}},
		{"experts of a changed base", lora(`"init_lora_weights":"olora","target_parameters":["gate_up_proj"]`), []string{"base_model.model.m.experts.lora_A.weight:4x6", "base_model.model.m.experts.lora_B.weight:4x4"},
			[]string{"m.experts.lora_A", "not supported"}},
		{"no experts", lora(`"target_parameters":["gate_up_proj"]`), []string{"base_model.model.none.experts.lora_A.weight:2x6", "base_model.model.none.experts.lora_B.weight:4x2"}, []string{"none.experts.lora_A", "over 0 experts"}},
		{"OLoRA on one of several experts", lora(`"init_lora_weights":"olora"`), pair("m.experts.0.w1", 2, 6), []string{"m.experts.0.w1.lora_A", "plain linear layer"}},
		{"OLoRA on a part of a tensor", `{"peft_type":"LORA","r":1,"lora_alpha":1,"init_lora_weights":"olora"}`,
			[]string{"base_model.model.m.experts.0.w1.lora_A.weight:1x6", "base_model.model.m.experts.0.w1.lora_B.weight:2x1"}, []string{"m.experts.0.w1.lora_A", "plain linear layer"}},
		{"KaSA as wide as the layer", `{"peft_type":"LORA","r":4,"lora_alpha":4,"kasa_config":{"a":1}}`, []string{q + "lora_A.weight:4x6", q + "lora_B.weight:4x4", q + "lora_diag:4"}, []string{"wider than the rank"}},
		{"KaSA without its diagonal", lora(`"kasa_config":{"a":1}`), pair("m.q", 4, 6), []string{"its counterpart lora_diag is missing"}},
		{"KaSA with a short diagonal", lora(`"kasa_config":{"a":1}`), append(pair("m.q", 4, 6), q+"lora_diag:1"), []string{q + "lora_diag", "1 diagonal entries for rank 2"}},
		{"a start nobody knows", lora(`"init_lora_weights":"pissa"`), pair("m.q", 4, 6), []string{"lora", "pissa", "count its start twice"}},
		{"LoftQ", lora(`"init_lora_weights":"loftq"`), pair("m.q", 4, 6), []string{"loftq", "quantized base"}},
		{"rank that only a broken pattern could explain", lora(`"rank_pattern":{"(?!k).*q":3}`), []string{q + "lora_A.weight:3x6", q + "lora_B.weight:4x3"}, []string{q + "lora_A.weight", "its rank is 3", "(?!k).*q", "can't be evaluated"}},
		{"AdaLoRA without its diagonal", ada, []string{q + "lora_A:2x6", q + "lora_B:4x2"}, []string{"its counterpart lora_E is missing"}},
		{"AdaLoRA of another rank", ada, []string{q + "lora_A:1x6", q + "lora_B:4x1", q + "lora_E:1x1"}, []string{"its rank is 1, the config says 2"}},
		{"AdaLoRA pruned otherwise", `{"peft_type":"ADALORA","init_r":2,"lora_alpha":2,"rank_pattern":{"m.q.lora_E":[true,false]}}`, []string{q + "lora_A:2x6", q + "lora_B:4x2", q + "lora_E:2x1"}, []string{"its rank is 2, the config says 1"}},
		{"LoHa without a factor", loha, []string{q + "hada_w1_a:4x2", q + "hada_w1_b:2x6", q + "hada_w2_a:4x2"}, []string{"hada_w2_b is missing"}},
		{"LoHa with a core on a linear layer", loha, []string{q + "hada_w1_a:2x4", q + "hada_w1_b:2x6", q + "hada_w2_a:2x4", q + "hada_w2_b:2x6", q + "hada_t1:2x2x1x1", q + "hada_t2:2x2x1x1"}, []string{q + "hada_w1_a", "do not fit"}},
		{"LoHa with one core", loha, []string{q + "hada_w1_a:4x2", q + "hada_w1_b:2x6", q + "hada_w2_a:4x2", q + "hada_w2_b:2x6", q + "hada_t1:2x2x1x1"}, []string{"hada_t2 is missing"}},
		{"LoHa of stacked experts", loha, []string{"base_model.model.m.experts.hada_w1_a:4x2", "base_model.model.m.experts.hada_w1_b:2x6", "base_model.model.m.experts.hada_w2_a:4x2", "base_model.model.m.experts.hada_w2_b:2x6"},
			[]string{"m.experts.hada_w1_a", `the base has no tensor "m.experts.weight"`}},
		{"LoHa with its kernel turned", loha, []string{"base_model.model.conv.hada_w1_a:2x4", "base_model.model.conv.hada_w1_b:2x3", "base_model.model.conv.hada_w2_a:2x4", "base_model.model.conv.hada_w2_b:2x3",
			"base_model.model.conv.hada_t1:2x2x5x2", "base_model.model.conv.hada_t2:2x2x5x2"}, []string{"do not fit"}},
		{"LoKr with w1 twice", lokr, []string{q + "lokr_w1:2x2", q + "lokr_w1_a:2x2", q + "lokr_w1_b:2x2", q + "lokr_w2:2x3"}, []string{q + "lokr_w1_a", "it has no use"}},
		{"LoKr with w2 twice", lokr, []string{q + "lokr_w1:2x2", q + "lokr_w2:2x3", q + "lokr_w2_b:2x3"}, []string{q + "lokr_w2_b", "it has no use"}},
		{"LoKr with a core for a whole factor", lokr, []string{q + "lokr_w1:2x2", q + "lokr_w2:2x3", q + "lokr_t2:2x2x1x1"}, []string{q + "lokr_t2", "it has no use"}},
		{"LoKr of another size", lokr, []string{q + "lokr_w1:2x2", q + "lokr_w2:2x2"}, []string{"Kronecker product", "[4, 6]"}},
		{"LoKr of another rank", lokr, []string{q + "lokr_w1_a:2x3", q + "lokr_w1_b:3x2", q + "lokr_w2:2x3"}, []string{"lokr_w1_b", "its rank is 3"}},
		{"LoKr of another rank behind", lokr, []string{q + "lokr_w1:2x2", q + "lokr_w2_a:2x3", q + "lokr_w2_b:3x3"}, []string{"lokr_w2_b", "its rank is 3"}},
		{"LoKr with its kernel turned", lokr, []string{"base_model.model.conv.lokr_w1:2x3", "base_model.model.conv.lokr_w2:2x1x5x2"}, []string{"lokr_w2", "kernel"}},
		{"LoKr whose rank does not show", `{"peft_type":"LOKR","r":2,"alpha":2,"rank_pattern":{"(?!k).*q":3}}`, []string{q + "lokr_w1:2x2", q + "lokr_w2:2x3"}, []string{"(?!k).*q", "can't be evaluated"}},
		{"IA3 of another size", `{"peft_type":"IA3"}`, []string{q + "ia3_l:5x1"}, []string{q + "ia3_l", "5 factors"}},
		{"IA3 on the other side", `{"peft_type":"IA3"}`, []string{q + "ia3_l:1x6"}, []string{q + "ia3_l", "feedforward_modules"}},
		{"IA3 of two dimensions", `{"peft_type":"IA3"}`, []string{q + "ia3_l:2x2"}, []string{q + "ia3_l", "[2, 2]"}},
		{"IA3 as a vector", `{"peft_type":"IA3"}`, []string{q + "ia3_l:4"}, []string{q + "ia3_l", "[4]"}},
		{"VeRA without projections", `{"peft_type":"VERA","r":2}`, []string{q + "vera_lambda_d:2", q + "vera_lambda_b:4"}, []string{"save_projection is true"}},
		{"VeRA with one projection", `{"peft_type":"VERA","r":2}`, []string{q + "vera_lambda_d:2", q + "vera_lambda_b:4", "base_model.vera_B:4x2"}, []string{`"base_model.vera_B"`, "only one of the projections"}},
		{"VeRA with small projections", `{"peft_type":"VERA","r":2}`, []string{q + "vera_lambda_d:2", q + "vera_lambda_b:4", "base_model.vera_A:2x5", "base_model.vera_B:4x2"}, []string{"too small"}},
		{"VeRA of another rank", `{"peft_type":"VERA","r":2,"save_projection":false}`, []string{q + "vera_lambda_d:3", q + "vera_lambda_b:4"}, []string{q + "vera_lambda_d", "its rank is 3"}},
		{"VeRA of another size", `{"peft_type":"VERA","r":2,"save_projection":false}`, []string{q + "vera_lambda_d:2", q + "vera_lambda_b:77"}, []string{q + "vera_lambda_b", "77 outputs"}},
		{"VeRA with huge projections to draw", `{"peft_type":"VERA","r":65536,"save_projection":false}`,
			[]string{"base_model.model.m.wide.vera_lambda_d:65536", "base_model.model.m.wide.vera_lambda_b:1"}, []string{"rank 65536", "4097", "too large"}},
		{"VeRA without a vector", `{"peft_type":"VERA","r":2,"save_projection":false}`, []string{q + "vera_lambda_d:2"}, []string{"vera_lambda_b is missing"}},
		{"norm of another shape", `{"peft_type":"LN_TUNING"}`, []string{"base_model.model.m.norm.ln_tuning_layers.weight:5"}, []string{"m.norm.ln_tuning_layers.weight", "its shape is [5], the base's [6]"}},
		{"bias of a norm without one", `{"peft_type":"LN_TUNING"}`, []string{"base_model.model.m.norm.ln_tuning_layers.weight:6", "base_model.model.m.norm.ln_tuning_layers.bias:6"}, []string{"ln_tuning_layers.bias", "no bias"}},
		{"tokens without indices", lora(""), append(pair("m.q", 4, 6), "base_model.model.emb.trainable_tokens_delta:1x6"), []string{"trainable_tokens_delta", "names no token indices"}},
		{"tokens of another number", lora(`"trainable_token_indices":[1,2]`), append(pair("m.q", 4, 6), "base_model.model.emb.trainable_tokens_delta:1x6"), []string{"trainable_tokens_delta", "2 token indices"}},
		{"token behind the table", lora(`"trainable_token_indices":[5]`), append(pair("m.q", 4, 6), "base_model.model.emb.trainable_tokens_delta:1x6"), []string{"token index 5 is outside"}},
		{"token before the table", lora(`"trainable_token_indices":[-1]`), append(pair("m.q", 4, 6), "base_model.model.emb.trainable_tokens_delta:1x6"), []string{"token index -1 is outside"}},
		{"tokens of a part of a tensor", lora(`"trainable_token_indices":[1]`), append(pair("m.q", 4, 6), "base_model.model.m.experts.1.w1.trainable_tokens_delta:1x6"), []string{"trainable_tokens_delta"}},
		{"whole tensor that the base lacks", lora(""), append(pair("m.q", 4, 6), "base_model.model.score.weight:2x6"), []string{`"base_model.model.score.weight"`, `the base has no tensor "score.weight"`}},
		{"whole tensor of another shape", lora(""), append(pair("m.q", 4, 6), "base_model.model.m.k.weight:4x5"), []string{"m.k.weight", "its shape is [4, 5]"}},
		{"whole tensor of integers", lora(""), append(pair("m.q", 4, 6), "base_model.model.m.k.weight:i64:4x6"), []string{"m.k.weight", "i64"}},
		{"whole tensor over integers", lora(""), append(pair("m.q", 4, 6), "base_model.model.m.ids.weight:4x6"), []string{"m.ids.weight", "stores as i64"}},
		{"a part of another type", lora(""), append(pair("m.q", 4, 6), q+"hada_w1_a:4x2"), []string{q + "hada_w1_a", "the base has no tensor"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := model{config: c.config, tensors: c.tensors}
			_, err := planOf(t, base, []weighted{{model: m, weight: 1}}, merge.Options{})
			checkRefused(t, err, c.want...)
		})
	}
}

// TestPlanAccepts has the neighbours of what is refused.
func TestPlanAccepts(t *testing.T) {
	const q = "base_model.model.m.q."
	base := model{config: `{"model_type":"llama"}`, tensors: []string{"m.q.weight:4x6", "m.q.bias:4", "conv.weight:4x3x2x5", "emb.weight:5x6"}}
	for _, c := range []struct {
		name    string
		config  string
		tensors []string
		code    string // of a decision, empty for none
	}{
		{"broken pattern, the default rank", lora(`"rank_pattern":{"(?!k).*q":2}`), pair("m.q", 4, 6), "rank-pattern-not-checked"},
		{"broken pattern, a matching other", lora(`"rank_pattern":{"(?!k).*q":2,"q":3}`), []string{q + "lora_A.weight:3x6", q + "lora_B.weight:4x3"}, "rank-pattern-not-checked"},
		{"broken targets", lora(`"target_modules":"(?!k).*q"`), pair("m.q", 4, 6), "target-pattern-not-checked"},
		{"unknown keys", lora(`"use_new_thing":true`), pair("m.q", 4, 6), "unknown-config-keys"},
		{"LoKr, both factors split", `{"peft_type":"LOKR","r":2,"alpha":2}`, []string{q + "lokr_w1_a:2x2", q + "lokr_w1_b:2x2", q + "lokr_w2_a:2x2", q + "lokr_w2_b:2x3"}, ""},
		{"LoKr with a core and a broken pattern", `{"peft_type":"LOKR","r":2,"alpha":2,"rank_pattern":{"(?!k).*q":2}}`,
			[]string{"base_model.model.conv.lokr_w1:2x3", "base_model.model.conv.lokr_w2_a:2x2", "base_model.model.conv.lokr_w2_b:2x1", "base_model.model.conv.lokr_t2:2x2x2x5"}, "rank-pattern-not-checked"},
		{"AdaLoRA pruned away", `{"peft_type":"ADALORA","init_r":2,"lora_alpha":2,"rank_pattern":{"m.q.lora_E":[false,false]}}`, []string{q + "lora_A:0x6", q + "lora_B:4x0", q + "lora_E:0x1"}, ""},
		{"VeRA without modules", `{"peft_type":"VERA","r":2}`, []string{"base_model.vera_A:2x6", "base_model.model.emb.weight:5x6"}, "replaced"},
		{"convolution", lora(""), []string{"base_model.model.conv.lora_A.weight:2x3x2x5", "base_model.model.conv.lora_B.weight:4x2x1x1"}, ""},
		{"training state", lora(""), append(pair("m.q", 4, 6), q+"lora_velora_embed:3"), "training-state-ignored"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := merged(t, base, []weighted{{model: model{config: c.config, tensors: c.tensors}, weight: 1}}, merge.Options{})
			if codes(r.Merge) != c.code {
				t.Errorf("decisions %q, want %q", codes(r.Merge), c.code)
			}
		})
	}
}

// TestNotFinite guards that an infinity or NaN in an adapter is refused with its
// place.
func TestNotFinite(t *testing.T) {
	for _, dtype := range []string{"f32", "f16", "bf16", "f64"} {
		m := model{config: lora(""), tensors: []string{"base_model.model.m.q.lora_A.weight:2x6", "base_model.model.m.q.lora_B.weight:" + dtype + ":4x2"}, set: map[string][]float64{}}
		v := values("x", 8)
		v[5] = math.Inf(-1)
		m.set["base_model.model.m.q.lora_B.weight"] = v
		_, err := planOf(t, linear, []weighted{{model: m, weight: 1}}, merge.Options{})
		checkRefused(t, err, "base_model.model.m.q.lora_B.weight", "element 5 is not finite")
	}
}

// TestChangedWhilePlanned guards that a file that is cut short after it was
// opened is a fault of the input.
func TestChangedWhilePlanned(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("an open file can't be cut short")
	}
	for _, c := range []struct {
		name string
		keep int64 // bytes that stay
	}{{"lora/adapter_model.safetensors", 300}, {"model/model.safetensors", 300}} {
		base := tiedBase("false", true)
		a := model{config: lora(""), tensors: append(pair("model.layers.0.q_proj", 4, 4), saved+embed+".weight:6x4"),
			set: map[string][]float64{saved + embed + ".weight": values(embed+".weight", 24)}}
		opened := base.openBase(t)
		source, err := a.openAdapter(t)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(source.Source.Path, "adapter_model.safetensors")
		if strings.HasPrefix(c.name, "model") {
			path = filepath.Join(opened.Path, "model.safetensors")
		}
		if err := os.Truncate(path, c.keep); err != nil {
			t.Fatal(err)
		}
		_, err = merge.Plan(opened, []merge.Source{{Adapter: source, Weight: 1}}, merge.Options{Output: "out"})
		checkRefused(t, err, filepath.Dir(c.name), "the file changed while it was read")
	}
}

// TestInitAdapter guards the adapter as it was before training.
func TestInitAdapter(t *testing.T) {
	trained := model{config: lora(`"init_lora_weights":"pissa"`), seed: "trained", tensors: pair("m.q", 4, 6)}
	start := model{name: "init", config: lora(`"init_lora_weights":"pissa"`), seed: "start", tensors: pair("m.q", 4, 6)}
	w := linear.of(t, "m.q.weight")
	for _, weight := range []float64{1, -0.5} {
		r := merged(t, linear, []weighted{{model: trained, weight: weight, init: &start}}, merge.Options{})
		checkTensor(t, r, "m.q.weight", plus(plus(w, weight, trained.change(t, "m.q")), -weight, start.change(t, "m.q")))
		if len(r.Plan.Inputs) != 3 || r.Plan.Inputs[2].Role != "init-adapter" {
			t.Errorf("inputs %v", r.Plan.Inputs)
		}
	}
	for _, c := range []struct {
		name    string
		trained model
		start   model
		want    string
	}{
		{"no use for it", model{config: lora(""), tensors: pair("m.q", 4, 6)}, start, "it has no use for an initial adapter"},
		{"another type", trained, model{name: "init", config: `{"peft_type":"IA3"}`, tensors: []string{"base_model.model.m.q.ia3_l:4x1"}}, "has to be a LoRA"},
		{"another module", trained, model{name: "init", config: lora(""), tensors: pair("m.k", 4, 6)}, "the base has no tensor"},
		{"one module more", model{config: trained.config, tensors: pair("m.q", 4, 6)}, model{name: "init", config: lora(""), tensors: concat(pair("m.q", 4, 6), pair("m.norm2", 4, 6))}, "the trained adapter has no such module"},
		{"no product", trained, model{name: "init", config: lora(""), tensors: []string{"base_model.model.m.q.lora_A.weight:2x6", "base_model.model.m.q.lora_B.weight:4x3"}}, "do not fit"},
		{"another rank than its config", trained, model{name: "init", config: lora(""), tensors: []string{"base_model.model.m.q.lora_A.weight:3x6", "base_model.model.m.q.lora_B.weight:4x3"}}, "do not fit"},
		{"another size", trained, model{name: "init", config: lora(""), tensors: pair("m.q", 4, 5)}, "do not fit"},
		{"scalars", trained, model{name: "init", config: `{"peft_type":"LORA","r":1,"lora_alpha":1}`, tensors: []string{"base_model.model.m.q.lora_A.weight:", "base_model.model.m.q.lora_B.weight:"}}, "do not fit"},
		{"integers", trained, model{name: "init", config: lora(""), tensors: []string{"base_model.model.m.q.lora_A.weight:i64:2x6", "base_model.model.m.q.lora_B.weight:4x2"}}, "do not fit"},
		{"LoftQ", model{config: lora(`"init_lora_weights":"loftq"`), tensors: pair("m.q", 4, 6)}, start, "quantized base"},
	} {
		t.Run(c.name, func(t *testing.T) {
			base := linear
			base.tensors = append([]string{"m.norm2.weight:4x6"}, linear.tensors...)
			_, err := planOf(t, base, []weighted{{model: c.trained, weight: 1, init: &c.start}}, merge.Options{})
			checkRefused(t, err, c.want)
		})
	}
}

// TestAdapterAsBase guards the message for a mixed-up command line.
func TestAdapterAsBase(t *testing.T) {
	a := model{name: "lora", config: lora(""), tensors: pair("m.q", 4, 6)}
	base, err := checkpoint.Open(a.write(t, "adapter_model.safetensors", "adapter_config.json"), hfrepo.Cache{})
	if err != nil {
		t.Fatal(err)
	}
	defer base.Close()
	_, err = merge.Plan(base, nil, merge.Options{Output: "out"})
	checkRefused(t, err, "it is an adapter")
}

// TestHostileAdapters gives every adapter case of the corpus its verdict.
func TestHostileAdapters(t *testing.T) {
	root := filepath.Join("..", "testdata", "hostile")
	data, err := os.ReadFile(filepath.Join(root, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	var manifest struct {
		Cases []struct{ File, Format, Expected, Reason, Base string }
	}
	if err := json.Unmarshal(data, &manifest); err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, c := range manifest.Cases {
		if c.Format != "adapter" {
			continue
		}
		seen++
		t.Run(filepath.Base(c.File), func(t *testing.T) {
			base, err := checkpoint.Open(filepath.Join(root, c.Base), hfrepo.Cache{})
			if err != nil {
				t.Fatal(err)
			}
			defer base.Close()
			err = openAndPlan(t, base, filepath.Join(root, c.File))
			if c.Expected == "accept" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil {
				t.Fatalf("accepted: %s", c.Reason)
			}
			checkRefused(t, err, filepath.Base(c.File))
		})
	}
	if seen != 13 {
		t.Errorf("%d cases, the manifest counts 13", seen)
	}
}

func openAndPlan(t *testing.T, base *checkpoint.Model, path string) error {
	t.Helper()
	source, err := checkpoint.OpenAdapter(path, hfrepo.Cache{})
	if err != nil {
		return err
	}
	defer source.Close()
	a, err := adapter.Open(source)
	if err != nil {
		return err
	}
	_, err = merge.Plan(base, []merge.Source{{Adapter: a, Weight: 1}}, merge.Options{Output: "out"})
	return err
}

// TestAttention guards out_proj of an attention, whose change PEFT makes twice,
// and the option that makes it once.
func TestAttention(t *testing.T) {
	base := model{config: `{}`, tensors: []string{"attn.in_proj_weight:12x4", "attn.out_proj.weight:4x4"}}
	a := model{config: lora(""), tensors: concat(pair("attn", 12, 4), []string{"base_model.model.attn.base_layer.out_proj.lora_A.weight:2x4", "base_model.model.attn.base_layer.out_proj.lora_B.weight:4x2"})}
	change := product(2, a.of(t, "base_model.model.attn.base_layer.out_proj.lora_B.weight"), a.of(t, "base_model.model.attn.base_layer.out_proj.lora_A.weight"))
	for formula, times := range map[bool]float64{false: 2, true: 1} {
		r := merged(t, base, []weighted{{model: a, weight: 0.5}}, merge.Options{MHAFormula: formula})
		checkTensor(t, r, "attn.in_proj_weight", plus(base.of(t, "attn.in_proj_weight"), 0.5, a.change(t, "attn")))
		checkTensor(t, r, "attn.out_proj.weight", plus(base.of(t, "attn.out_proj.weight"), 0.5*times, change))
		if told := codes(r.Merge) == "mha-out-proj-twice"; told == formula {
			t.Errorf("formula %v: decisions %q", formula, codes(r.Merge))
		}
	}
}

// TestExpertPacking guards who decides how the columns of B are packed: the
// option, else a mark of Unsloth, else PEFT's way.
func TestExpertPacking(t *testing.T) {
	const e = "base_model.model.m.experts."
	base := model{config: `{"model_type":"mixtral"}`, tensors: []string{"m.experts.down_proj:2x3x4"}}
	for _, c := range []struct {
		layout string
		marked bool
		major  bool // the columns of one expert lie together
	}{{"", false, false}, {"", true, true}, {"rank", true, false}, {"expert", false, true}} {
		a := model{config: lora(`"target_parameters":["down_proj"]`), tensors: []string{e + "lora_A.weight:4x4", e + "lora_B.weight:3x4"}}
		if c.marked {
			a.config = lora(`"target_parameters":["down_proj"],"auto_mapping":{"unsloth_fixed":true}`)
		}
		r := merged(t, base, []weighted{{model: a, weight: 1}}, merge.Options{MoEBLayout: c.layout})
		fa, fb := a.of(t, e+"lora_A.weight"), a.of(t, e+"lora_B.weight")
		got, w := r.of(t, "m.experts.down_proj"), base.of(t, "m.experts.down_proj")
		for x := range 2 {
			want := rowsOf(3, 4, w[x])
			for o := range 3 {
				for i := range 4 {
					for k := range 2 {
						column := k*2 + x
						if c.major {
							column = x*2 + k
						}
						want[o][i] += 2 * fb[o][column] * fa[x*2+k][i]
					}
				}
			}
			compare(t, fmt.Sprintf("%+v, expert %d", c, x), rowsOf(3, 4, got[x]), want, opTolerance32)
		}
		if told := codes(r.Merge) == "moe-b-layout-expert"; told != (c.layout == "" && c.marked) {
			t.Errorf("%+v: decisions %q", c, codes(r.Merge))
		}
	}
}
