package convert_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/convert"
	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
)

var ggufGolden = filepath.Join(golden, "gguf", "models")

// TestAdapterGolden makes the adapters that llama.cpp's converter made of the same folders,
// byte for byte, from names of a GGUF base and of the folder that it stands for.
func TestAdapterGolden(t *testing.T) {
	for _, c := range []struct {
		base, adapter string
		dtype         tensor.DType
	}{
		{"llama/expected-f16.gguf", "llama/lora-all", tensor.F32},
		{"llama/expected-f16.gguf", "llama/lora-all", tensor.F16},
		{"llama/expected-f16.gguf", "llama/lora-embed", tensor.F32},
		{"llama/base-q8_0.gguf", "llama/lora-embed", tensor.F32},
		{"mixtral/expected-bf16.gguf", "mixtral/lora-experts", tensor.F32},
	} {
		base := filepath.Join(ggufGolden, c.base)
		for _, path := range []string{base, writeHF(t, base, convert.Options{}, engine.Options{})} {
			got, err := writeGGUF(t, filepath.Join(ggufGolden, c.adapter, "peft"), convert.Options{Base: open(t, path), DType: c.dtype}, engine.Options{})
			if err != nil {
				t.Fatal(err)
			}
			want, err := os.ReadFile(filepath.Join(ggufGolden, c.adapter, "expected-"+c.dtype.String()+".gguf"))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s for %s: %s", c.adapter, path, difference(t, got, want))
			}
		}
	}
}

// peft is an adapter in the making.
type peft struct {
	config  map[string]any
	tensors []stored
	random  *rand.Rand
}

func newPEFT(seed uint64, config map[string]any) *peft {
	all := map[string]any{"peft_type": "LORA", "r": 2, "lora_alpha": 3, "base_model_name_or_path": "base", "bias": "none"}
	for k, v := range config {
		all[k] = v
	}
	return &peft{config: all, random: rand.New(rand.NewPCG(seed, 9))}
}

// matrix adds a tensor of noise in float32.
func (p *peft) matrix(name string, rows, cols int64) []float64 {
	values := make([]float64, rows*cols)
	for i := range values {
		values[i] = float64(float32(p.random.NormFloat64()))
	}
	p.tensors = append(p.tensors, floats(name, tensor.F32, tensor.Shape{rows, cols}, values...))
	return values
}

func (p *peft) write(t *testing.T) string {
	t.Helper()
	config, err := json.Marshal(p.config)
	if err != nil {
		t.Fatal(err)
	}
	return writeModel(t, "adapter_model.safetensors", map[string]string{"adapter_config.json": string(config)}, p.tensors...)
}

// product is b·a with a (rank, in), b (out, rank).
func product(a, b []float64, rank int64) []float64 {
	r, out, in := int(rank), len(b)/int(rank), len(a)/int(rank)
	d := make([]float64, out*in)
	for i := range out {
		for j := range in {
			for k := range r {
				d[i*in+j] += b[i*r+k] * a[k*in+j]
			}
		}
	}
	return d
}

// openAdapter opens an adapter in GGUF or of PEFT.
func openAdapter(t *testing.T, path string) *adapter.Adapter {
	t.Helper()
	m, err := checkpoint.OpenAdapter(path, hfrepo.Cache{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	a, err := adapter.Open(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func values64(t *testing.T, c checkpoint.Checkpoint, s tensor.Spec) []float64 {
	t.Helper()
	var all []float64
	for _, v := range values(t, c, s) {
		all = append(all, float64(v))
	}
	return all
}

// changeOf is what a runtime adds to a tensor of GGUF: alpha/rank · B·A, of an embedding
// A·B^T, matrix by matrix of a stack.
func changeOf(t *testing.T, a *adapter.Adapter, m *adapter.Module) []float64 {
	t.Helper()
	p, err := a.PairOf(m)
	if err != nil {
		t.Fatal(err)
	}
	x, y := values64(t, a.Source, p.A), values64(t, a.Source, p.B)
	var change []float64
	if p.Embedding {
		change = product(transposed(y, int(p.Rank)), x, p.Rank)
	} else {
		for g := range p.Groups {
			change = append(change, product(x[g*p.Rank*p.Cols:(g+1)*p.Rank*p.Cols], y[g*p.Rows*p.Rank:(g+1)*p.Rows*p.Rank], p.Rank)...)
		}
	}
	for i := range change {
		change[i] *= p.Scale
	}
	return change
}

// transposed is the transpose of a matrix with so many columns.
func transposed(x []float64, cols int) []float64 {
	rows := len(x) / cols
	all := make([]float64, len(x))
	for i, v := range x {
		all[i%cols*rows+i/cols] = v
	}
	return all
}

// TestAdapterOfFamilies: what an adapter adds to a model's weights, seen as a model of its
// own and converted, is what the converted adapter adds to the converted model - in every
// family, for every weight that llama.cpp applies adapters to, with ranks and alphas of
// their own and rank-stabilised. Both sides are products of two or three float32 numbers
// summed in float64, of which one factor may have been rounded once more, to 2^-24 of
// itself; the sum of the absolute products of a row is below 40.
func TestAdapterOfFamilies(t *testing.T) {
	for i, name := range goldenNames(t) {
		for _, stabilised := range []bool{false, true} {
			folder := weightsOnly(t, name)
			base := open(t, folder)
			family, ok := arch.GGUFOf(hfrepo.NewConfig(base.Config).Architecture())
			if !ok {
				t.Fatal(name)
			}
			ranks, alphas := make(map[string]int), make(map[string]float64)
			p := newPEFT(uint64(i), map[string]any{"use_rslora": stabilised, "rank_pattern": ranks, "alpha_pattern": alphas})
			var deltas []stored
			var targets []string
			for j, s := range base.Specs() {
				delta := make([]float64, s.NumElements())
				found := family.FromHF(s.Name)
				module, isWeight := strings.CutSuffix(s.Name, ".weight")
				adapted := isWeight && len(s.Shape) == 2 && len(found) > 0 &&
					(adapter.HasGGUFProduct(strings.TrimSuffix(found[0].Name, ".weight")) || found[0].Name == "token_embd.weight")
				if _, head := base.Lookup("lm_head.weight"); !head && arch.HasHead(hfrepo.NewConfig(base.Config).Architecture()) && adapted && found[0].Name == "token_embd.weight" {
					adapted = false // the head is tied to it
				}
				if adapted && (found[0].Expert < 0 || found[0].Expert != 1) { // an expert stays without
					rank, alpha := int64(1+j%3), float64(1+j%4)
					if found[0].Expert >= 0 {
						rank = 2
					}
					if rank != 2 {
						ranks[module] = int(rank)
					}
					if alpha != 3 {
						alphas[module] = alpha
					}
					scale := alpha / float64(rank)
					if stabilised {
						scale = alpha / math.Sqrt(float64(rank))
					}
					rows, cols := s.Shape[0], s.Shape[1]
					switch {
					case found[0].Name == "token_embd.weight":
						a := p.matrix("base_model.model."+module+".lora_embedding_A", rank, rows)
						b := p.matrix("base_model.model."+module+".lora_embedding_B", cols, rank)
						delta = transposed(product(a, b, rank), int(rows))
					case found[0].Change == arch.Transposed:
						a := p.matrix("base_model.model."+module+".lora_A.weight", rank, rows)
						b := p.matrix("base_model.model."+module+".lora_B.weight", cols, rank)
						delta = transposed(product(a, b, rank), int(rows))
					default:
						a := p.matrix("base_model.model."+module+".lora_A.weight", rank, cols)
						b := p.matrix("base_model.model."+module+".lora_B.weight", rows, rank)
						delta = product(a, b, rank)
					}
					for k := range delta {
						delta[k] *= scale
					}
					targets = append(targets, module)
				}
				deltas = append(deltas, floats(s.Name, tensor.F32, s.Shape, delta...))
			}
			p.config["target_modules"] = targets
			config, err := os.ReadFile(filepath.Join(folder, "config.json"))
			if err != nil {
				t.Fatal(err)
			}
			asModel, err := convert.PlanTensors(open(t, writeModel(t, "model.safetensors", map[string]string{"config.json": string(config)}, deltas...)), 0)
			if err != nil {
				t.Fatal(err)
			}
			want := make(map[string][]float64)
			for _, s := range asModel.View.Specs() {
				want[s.Name] = values64(t, asModel.View, s)
			}
			source := p.write(t)
			file := filepath.Join(t.TempDir(), "adapter.gguf")
			data, err := writeGGUF(t, source, convert.Options{Base: base}, engine.Options{Jobs: 2})
			if err == nil {
				err = os.WriteFile(file, data, 0o666)
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			made := openAdapter(t, file)
			if len(made.Modules) == 0 {
				t.Fatalf("%s: no modules", name)
			}
			for _, m := range made.Modules {
				got, largest := changeOf(t, made, m), 0.0
				if len(got) != len(want[m.Name]) {
					t.Fatalf("%s: %s changes %d values of %d", name, m.Name, len(got), len(want[m.Name]))
				}
				for k, v := range got {
					largest = max(largest, math.Abs(v-want[m.Name][k]))
				}
				if largest > 40*0x1p-23 {
					t.Errorf("%s: the change of %s is off by %.3g", name, m.Name, largest)
				}
				delete(want, m.Name)
			}
			for rest, values := range want { // gpt2 has its embedding a second time
				if slices.ContainsFunc(values, func(v float64) bool { return v != 0 }) && !(rest == "output.weight" && strings.HasPrefix(name, "gpt2")) {
					if !strings.HasPrefix(rest, "rope_") { // made of the config
						t.Errorf("%s: nothing changes %s", name, rest)
					}
				}
			}
			checkBack(t, name, file, base, source)
		}
	}
}

// checkBack brings an adapter in GGUF back to PEFT: the modules of the first that are not
// of an expert without factors, each with its change.
func checkBack(t *testing.T, name, file string, base *checkpoint.Model, source string) {
	t.Helper()
	back, first := openAdapter(t, writeHF(t, file, convert.Options{Base: base}, engine.Options{})), openAdapter(t, source)
	change := func(a *adapter.Adapter, m *adapter.Module) []float64 {
		x, okA := m.Part("lora_A")
		y, _ := m.Part("lora_B")
		if !okA {
			x, _ = m.Part("lora_embedding_A")
			y, _ = m.Part("lora_embedding_B")
		}
		d := product(values64(t, a.Source, x), values64(t, a.Source, y), x.Rows())
		for i := range d {
			d[i] *= a.Config.ScaleOf(m.Name)
		}
		return d
	}
	modules := make(map[string]*adapter.Module)
	for _, m := range back.Modules {
		modules[m.Name] = m
	}
	for _, m := range first.Modules {
		other, ok := modules[m.Name]
		if !ok {
			t.Errorf("%s: %s did not come back", name, m.Name)
			continue
		}
		want, got := change(first, m), change(back, other)
		for i := range want {
			if math.Abs(got[i]-want[i]) > 40*0x1p-23 {
				t.Fatalf("%s: the change of %s came back as %v, was %v", name, m.Name, got[i], want[i])
			}
		}
		delete(modules, m.Name)
	}
	for rest, m := range modules {
		for _, v := range change(back, m) {
			if v != 0 {
				t.Fatalf("%s: %s came back and never was there", name, rest)
			}
		}
	}
}

// TestAdapterScale: scales that the file's one alpha says leave the factors as they are.
func TestAdapterScale(t *testing.T) {
	base := open(t, filepath.Join(ggufGolden, "llama", "expected-f16.gguf"))
	for _, c := range []struct {
		name   string
		config map[string]any
		alpha  float32
		folded string
	}{
		{"plain", nil, 3, ""},
		{"stabilised", map[string]any{"use_rslora": true}, float32(3 * math.Sqrt2), ""},
		{"one of its own", map[string]any{"alpha_pattern": map[string]float64{"layers.0.self_attn.q_proj": 12}}, 3, "blk.0.attn_q.weight"},
		{"half of their own", map[string]any{"alpha_pattern": map[string]float64{"q_proj": 12}}, 12, "blk.0.attn_v.weight blk.1.attn_v.weight"},
		{"none", map[string]any{"lora_alpha": 0}, 1, "blk.0.attn_q.weight blk.0.attn_v.weight blk.1.attn_q.weight blk.1.attn_v.weight"},
	} {
		p := newPEFT(1, c.config)
		p.config["target_modules"] = []string{"layers.0.self_attn.q_proj", "v_proj", "layers.1.self_attn.q_proj"}
		for _, module := range []string{"0.self_attn.q_proj", "0.self_attn.v_proj", "1.self_attn.v_proj", "1.self_attn.q_proj"} {
			out := int64(32)
			if strings.HasSuffix(module, "v_proj") {
				out = 16
			}
			p.matrix("base_model.model.model.layers."+module+".lora_A.weight", 2, 32)
			p.matrix("base_model.model.model.layers."+module+".lora_B.weight", out, 2)
		}
		plan, err := convert.Plan(open(t, p.write(t)), convert.Options{Output: "x.gguf", Base: base})
		if err != nil {
			t.Fatal(err)
		}
		folded := ""
		for _, d := range plan.Plan.Decisions {
			if d.Code == "scale-folded" {
				folded = strings.Join(d.Tensors, " ")
			}
		}
		alpha, err := plan.Layout.Files[0].GGUF().Metadata().Float("adapter.lora.alpha")
		if err != nil || float32(alpha) != c.alpha || folded != c.folded {
			t.Errorf("%s: alpha %v, folded %q, want %v and %q (%v)", c.name, alpha, folded, c.alpha, c.folded, err)
		}
	}
}

// TestAdapterCopies: copies of the base's tables beside their factors are left out, and said
// so; of a table that was resized they are no copies.
func TestAdapterCopies(t *testing.T) {
	base := open(t, filepath.Join(ggufGolden, "llama", "expected-f16.gguf"))
	for _, rows := range []int64{288, 290} {
		p := newPEFT(4, nil)
		p.matrix("base_model.model.lm_head.lora_A.weight", 2, 32)
		p.matrix("base_model.model.lm_head.lora_B.weight", 288, 2)
		p.matrix("base_model.model.lm_head.base_layer.weight", rows, 32)
		c, err := convert.Plan(open(t, p.write(t)), convert.Options{Output: "x.gguf", Base: base})
		var instead *convert.MergeInsteadError
		switch {
		case rows != 288 && !errors.As(err, &instead):
			t.Errorf("%d rows: %v", rows, err)
		case rows == 288 && (err != nil || len(c.Layout.Files[0].Tensors()) != 2 || c.Plan.Decisions[0].Code != "base-copies"):
			t.Errorf("%d rows: %v", rows, err)
		}
	}
}

// TestAdapterRefused: what no adapter of llama.cpp can hold is named, with the way out.
func TestAdapterRefused(t *testing.T) {
	base := filepath.Join(ggufGolden, "llama", "expected-f16.gguf")
	const q, a, b = "base_model.model.model.layers.0.self_attn.q_proj", ".lora_A.weight", ".lora_B.weight"
	pairOf := func(config map[string]any, more func(*peft)) string {
		p := newPEFT(2, config)
		p.matrix(q+a, 2, 32)
		p.matrix(q+b, 32, 2)
		if more != nil {
			more(p)
		}
		return p.write(t)
	}
	for _, c := range []struct {
		name, path, base, want string
		instead                bool
	}{
		{"DoRA", pairOf(map[string]any{"use_dora": true}, func(p *peft) { p.matrix(q+".lora_magnitude_vector", 1, 32) }), base, "no DoRA", true},
		{"saved", pairOf(map[string]any{"modules_to_save": []string{"lm_head"}}, func(p *peft) { p.matrix("base_model.model.lm_head.weight", 288, 32) }), base, "replaces 1 tensors as a whole", true},
		{"bias", pairOf(map[string]any{"lora_bias": true}, func(p *peft) { p.matrix(q+".lora_B.bias", 32, 1) }), base, "no lora_B.bias", true},
		{"PiSSA", pairOf(map[string]any{"init_lora_weights": "pissa"}, nil), base, "changing the base", true},
		{"kind", writeModel(t, "adapter_model.safetensors", map[string]string{"adapter_config.json": `{"peft_type":"IA3","target_modules":["k_proj"],"feedforward_modules":[]}`},
			floats("base_model.model.model.layers.0.self_attn.k_proj.ia3_l", tensor.F32, tensor.Shape{16, 1}, make([]float64, 16)...)), base, "it is IA3", true},
		{"tied", pairOf(nil, func(p *peft) {
			p.matrix("base_model.model.lm_head"+a, 2, 16)
			p.matrix("base_model.model.lm_head"+b, 48, 2)
		}), filepath.Join(golden, "convert", "expected", "gemma3.gguf"), "ties to its embedding", true},
		{"tied embedding", pairOf(nil, func(p *peft) {
			p.matrix("base_model.model.model.embed_tokens.lora_embedding_A", 2, 48)
			p.matrix("base_model.model.model.embed_tokens.lora_embedding_B", 16, 2)
		}), filepath.Join(golden, "convert", "models", "gemma3"), "to which the base ties its head", true},
		{"another model", pairOf(nil, nil), filepath.Join(golden, "convert", "expected", "qwen3.gguf"), "do not fit", false},
		{"another rank", pairOf(map[string]any{"r": 4}, nil), base, "its rank is 2, the config says 4", false},
		{"an adapter as base", pairOf(nil, nil), filepath.Join(ggufGolden, "llama", "lora-all", "expected-f32.gguf"), "not the model that the adapter is for", false},
	} {
		_, err := convert.Plan(open(t, c.path), convert.Options{Output: "x.gguf", Base: open(t, c.base)})
		var instead *convert.MergeInsteadError
		if err == nil || !strings.Contains(err.Error(), c.want) || errors.As(err, &instead) != c.instead {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	_, err := convert.Plan(open(t, pairOf(nil, nil)), convert.Options{Output: "x.gguf"})
	var option *convert.OptionError
	if !errors.As(err, &option) || option.Option != "base" {
		t.Errorf("without a base: %v", err)
	}
	_, err = convert.Plan(open(t, pairOf(nil, nil)), convert.Options{Output: "x", Base: open(t, base)})
	if !errors.As(err, &option) || option.Option != "base" {
		t.Errorf("a base for nothing: %v", err)
	}
	for _, c := range []struct{ file, base, want string }{
		{"llama/lora-all/expected-f32.gguf", filepath.Join(golden, "convert", "expected", "qwen3.gguf"), `it is for models of "llama"`},
		{"llama/lora-all/expected-f32.gguf", filepath.Join(golden, "convert", "models", "mixtral"), "do not fit"},
		{"llama/lora-all/expected-f32.gguf", filepath.Join(golden, "convert", "models", "pair"), "do not fit"},
	} {
		_, err := convert.Plan(open(t, filepath.Join(ggufGolden, c.file)), convert.Options{Output: "x", Base: open(t, c.base)})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s back for %s: %v, want %q", c.file, c.base, err, c.want)
		}
	}
}

// TestAdapterStack: a pair of PEFT for a stack of experts does what it did.
func TestAdapterStack(t *testing.T) {
	const experts, in, inner, rank = 3, 8, 4, 2
	config := fmt.Sprintf(`{"architectures":["Qwen3MoeForCausalLM"],"model_type":"qwen3_moe","num_hidden_layers":1,"num_attention_heads":2,"num_key_value_heads":2,
		"hidden_size":%d,"intermediate_size":%d,"num_experts":%d,"vocab_size":4}`, in, inner, experts)
	const stack = "model.layers.0.mlp.experts.gate_up_proj"
	base := open(t, writeModel(t, "model.safetensors", map[string]string{"config.json": config},
		floats(stack, tensor.F32, tensor.Shape{experts, 2 * inner, in}, make([]float64, experts*2*inner*in)...),
		floats("model.layers.0.mlp.experts.down_proj", tensor.F32, tensor.Shape{experts, in, inner}, make([]float64, experts*in*inner)...)))
	for _, unsloth := range []bool{false, true} {
		p := newPEFT(3, map[string]any{"target_parameters": []string{"mlp.experts.gate_up_proj"}, "auto_mapping": map[string]any{"unsloth_fixed": unsloth}})
		a := p.matrix("base_model.model.model.layers.0.mlp.experts.lora_A.weight", experts*rank, in)
		b := p.matrix("base_model.model.model.layers.0.mlp.experts.lora_B.weight", 2*inner, experts*rank)
		data, err := writeGGUF(t, p.write(t), convert.Options{Base: base}, engine.Options{})
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "x.gguf")
		if err := os.WriteFile(file, data, 0o666); err != nil {
			t.Fatal(err)
		}
		made := openAdapter(t, file)
		if len(made.Modules) != 2 {
			t.Fatalf("%d tensors, want gates and ups", len(made.Modules))
		}
		for _, m := range made.Modules {
			got, half := changeOf(t, made, m), 0
			if strings.Contains(m.Name, "up_exps") {
				half = inner
			}
			for i, v := range got {
				e, row, col := i/(inner*in), i/in%inner+half, i%in
				want := 0.0
				for k := range rank {
					column := k*experts + e
					if unsloth {
						column = e*rank + k
					}
					want += 1.5 * b[row*experts*rank+column] * a[(e*rank+k)*in+col]
				}
				if math.Abs(v-want) > 1e-12 {
					t.Fatalf("%s: element %d of expert %d is %v, want %v", m.Name, i, e, v, want)
				}
			}
		}
	}
}
