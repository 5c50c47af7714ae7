package verify_test

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/verify"
)

// defect is something wrong with a checkpoint, and exactly what is found: a code and
// the tensor.
type defect struct {
	name string
	path func(t *testing.T) string
	want []string
}

// llama is a defect of the tiny model that edit makes.
func llama(edit func(f *fixture)) func(t *testing.T) string {
	return func(t *testing.T) string {
		f := tinyLlama(t)
		edit(f)
		return f.write()
	}
}

func lora(edit func(f *fixture)) func(t *testing.T) string {
	return func(t *testing.T) string {
		f := tinyLoRA(t)
		edit(f)
		return f.write()
	}
}

// codes is a defect of the config of a quantized model.
func codes(o quant.Options, edit func(map[string]any)) func(t *testing.T) string {
	return func(t *testing.T) string { return editConfig(t, tinyLlama(t).quantize(o), edit) }
}

func setting(key string, value any) func(map[string]any) {
	return func(config map[string]any) { config["quantization_config"].(map[string]any)[key] = value }
}

// fp8 stores one weight in FP8 with a scale for each row; method goes to the config.
func fp8(method string) func(t *testing.T) string {
	return llama(func(f *fixture) {
		name := layer1 + "mlp.up_proj.weight"
		f.set(tensor.Spec{Name: name, DType: tensor.F8E4M3, Shape: tensor.Shape{40, 32}}, f.values[name])
		f.set(tensor.Spec{Name: name + "_scale", DType: tensor.F32, Shape: tensor.Shape{40, 1}}, slices.Repeat([]float64{0.5}, 40))
		if method != "" {
			f.config["quantization_config"] = map[string]any{"quant_method": method}
		}
	})
}

const layer1 = "model.layers.1."

var structureDefects = []defect{
	{"clean", llama(func(*fixture) {}), nil},
	{"clean shards", func(t *testing.T) string { f := tinyLlama(t); return f.writeSharded(f.size()) }, nil},
	{"clean adapter", lora(func(*fixture) {}), nil},
	{"clean nf4", codes(quant.Options{Type: quant.NF4}, func(map[string]any) {}), nil},
	{"clean nf4 double", codes(quant.Options{Type: quant.NF4, DoubleQuant: true}, func(map[string]any) {}), nil},
	{"clean int8", codes(quant.Options{Type: quant.Int8}, func(map[string]any) {}), nil},
	{"clean fp8", fp8("fbgemm_fp8"), nil},
	{"clean gguf", func(t *testing.T) string { return tinyGGUF(t, func(*gguf.Metadata) {}, 8, 0) }, nil},
	{"clean without head", llama(func(f *fixture) {
		f.config["architectures"] = []string{"LlamaModel"}
		f.remove("lm_head.weight")
		for _, s := range slices.Clone(f.specs) {
			values := f.values[s.Name]
			f.remove(s.Name)
			s.Name = strings.TrimPrefix(s.Name, "model.")
			f.set(s, values)
		}
	}), nil},
	{"clean tied", llama(func(f *fixture) {
		f.config["tie_word_embeddings"] = true
		f.remove("lm_head.weight")
	}), nil},

	{"stray shard", llama(func(f *fixture) { f.files["model-00002-of-00002.safetensors"] = "any" }), []string{"shard-stray"}},
	{"total size", func(t *testing.T) string { f := tinyLlama(t); return f.writeSharded(f.size() + 1) }, []string{"index-size"}},
	{"trailing bytes", func(t *testing.T) string { return tinyGGUF(t, func(*gguf.Metadata) {}, 8, 3) }, []string{"gguf-key", "trailing-bytes"}},
	{"gguf key", func(t *testing.T) string {
		return tinyGGUF(t, func(m *gguf.Metadata) {
			m.Replace("general.architecture", gguf.ValueOf("llama"))
			m.Set("general.name", gguf.ValueOf(int32(1)))
		}, 8, 0)
	}, []string{"gguf-key"}},
	{"gguf shape", func(t *testing.T) string {
		return tinyGGUF(t, func(m *gguf.Metadata) { m.Replace("llama.feed_forward_length", gguf.ValueOf(uint32(40))) }, 8, 0)
	}, []string{"shape-config blk.0.ffn_up.weight"}},
	{"gguf vocabulary", func(t *testing.T) string { return tinyGGUF(t, func(*gguf.Metadata) {}, 9, 0) },
		[]string{"shape-config token_embd.weight", "vocabulary-short"}},
	{"shape", llama(func(f *fixture) { f.reshape(layer1+"mlp.up_proj.weight", 41, 32) }), []string{"shape-config " + layer1 + "mlp.up_proj.weight"}},
	{"transposed", llama(func(f *fixture) { f.reshape(layer1+"self_attn.k_proj.weight", 32, 16) }), []string{"shape-config " + layer1 + "self_attn.k_proj.weight"}},
	{"vocabulary of the config", llama(func(f *fixture) { f.config["vocab_size"] = 13 }),
		[]string{"shape-config lm_head.weight", "shape-config model.embed_tokens.weight"}},
	{"heads", llama(func(f *fixture) { f.config["num_key_value_heads"] = 4 }), []string{
		"shape-config model.layers.0.self_attn.k_proj.weight", "shape-config model.layers.0.self_attn.v_proj.weight",
		"shape-config model.layers.1.self_attn.k_proj.weight", "shape-config model.layers.1.self_attn.v_proj.weight"}},
	{"layers of the config", llama(func(f *fixture) { f.config["num_hidden_layers"] = 1 }), []string{"layer-count"}},
	{"layer cut off", llama(func(f *fixture) { f.config["num_hidden_layers"] = 3 }), []string{"tensor-missing"}},
	{"tensor lost", llama(func(f *fixture) { f.remove("model.layers.0.mlp.down_proj.weight") }), []string{"tensor-missing model.layers.0.mlp.down_proj.weight"}},
	{"norm lost", llama(func(f *fixture) { f.remove("model.norm.weight") }), []string{"tensor-missing model.norm.weight"}},
	{"other family", llama(func(f *fixture) { f.config["model_type"] = "novel" }), []string{"family-unknown"}},
	{"head lost", llama(func(f *fixture) { f.remove("lm_head.weight") }), []string{"head-missing lm_head.weight"}},
	{"tied and different", llama(func(f *fixture) { f.config["tie_word_embeddings"] = true }), []string{"tied-differs lm_head.weight"}},
	{"tied but for one value", llama(func(f *fixture) {
		f.config["tie_word_embeddings"] = true
		f.values["lm_head.weight"] = slices.Clone(f.values["model.embed_tokens.weight"])
		f.values["lm_head.weight"][383] *= -1
	}), []string{"tied-differs lm_head.weight"}},
	{"tied with another shape", llama(func(f *fixture) {
		f.config["tie_word_embeddings"] = true
		f.reshape("lm_head.weight", 13, 32)
	}), []string{"shape-config lm_head.weight", "tied-differs lm_head.weight"}},
	{"tied and stored", llama(func(f *fixture) {
		f.config["tie_word_embeddings"] = true
		f.values["lm_head.weight"] = f.values["model.embed_tokens.weight"]
	}), []string{"tied-stored lm_head.weight"}},
	{"vocabulary short", llama(func(f *fixture) { f.files["tokenizer.json"] = tokenizer(13) }), []string{"vocabulary-short"}},
	{"vocabulary short, older files", llama(func(f *fixture) {
		delete(f.files, "tokenizer.json")
		f.files["vocab.json"], f.files["added_tokens.json"] = `{"a": 0, "b": 11}`, `{"<pad>": 12}`
	}), []string{"vocabulary-short"}},
	{"vocabulary short, sentencepiece", llama(func(f *fixture) {
		delete(f.files, "tokenizer.json")
		f.files["tokenizer.model"] = strings.Repeat("\x0a\x05\x0a\x03abc", 13) + "\x12\x02\x08\x01"
	}), []string{"vocabulary-short"}},
	{"vocabulary fits, sentencepiece", llama(func(f *fixture) {
		delete(f.files, "tokenizer.json")
		f.files["tokenizer.model"] = strings.Repeat("\x0a\x05\x0a\x03abc", 12) + "\x12\x02\x08\x01"
	}), nil},
	{"vocabulary as a list", llama(func(f *fixture) {
		f.files["tokenizer.json"] = `{"model": {"vocab": [` + strings.Repeat(`["a", -1.5], `, 12) + `["b", 0]]}}`
	}), []string{"vocabulary-short"}},
	{"vocabulary padded", llama(func(f *fixture) { f.files["tokenizer.json"] = tokenizer(11) }), []string{"vocabulary-padded"}},
	{"tokenizer cut", llama(func(f *fixture) { f.files["tokenizer.json"] = tokenizer(12)[:90] }), []string{"tokenizer-unreadable"}},
	{"tokenizer with odd ids", llama(func(f *fixture) { f.files["tokenizer.json"] = `{"model": {"vocab": {"a": "1"}}}` }), []string{"tokenizer-unreadable"}},
	{"type of the config", llama(func(f *fixture) { f.config["dtype"] = "float16" }), []string{"dtype-config"}},
	{"mixed types", llama(func(f *fixture) {
		name := layer1 + "mlp.up_proj.weight"
		f.set(tensor.Spec{Name: name, DType: tensor.F32, Shape: tensor.Shape{40, 32}}, f.values[name])
	}), []string{"dtype-mixed"}},
	{"stale quantization_config", llama(func(f *fixture) {
		f.config["quantization_config"] = map[string]any{"quant_method": "bitsandbytes", "load_in_4bit": true}
	}), []string{"quantization-stale"}},
	{"quantization_config lost", codes(quant.Options{Type: quant.NF4}, func(c map[string]any) { delete(c, "quantization_config") }), []string{"quantization-missing"}},
	{"quantization_config of fp8 lost", fp8(""), []string{"quantization-missing"}},
	{"bitsandbytes for fp8", fp8("bitsandbytes"), []string{"quantization-differs"}},
	{"other method", codes(quant.Options{Type: quant.NF4}, setting("quant_method", "gptq")), []string{"quantization-differs"}},
	{"other 4-bit type", codes(quant.Options{Type: quant.NF4}, setting("bnb_4bit_quant_type", "fp4")), []string{"quantization-differs model.layers.0.mlp.down_proj.weight"}},
	{"other scales", codes(quant.Options{Type: quant.NF4}, setting("bnb_4bit_use_double_quant", true)), []string{"quantization-differs model.layers.0.mlp.down_proj.weight"}},
	{"8 for 4 bits", codes(quant.Options{Type: quant.Int8}, setting("load_in_8bit", false)), []string{"quantization-differs model.layers.0.mlp.down_proj.weight"}},
	{"code", llama(func(f *fixture) { f.config["auto_map"] = map[string]any{"AutoModel": "modeling.Model"} }), []string{"custom-code"}},
	{"code of the tokenizer", llama(func(f *fixture) { f.files["tokenizer_config.json"] = `{"auto_map": {"AutoTokenizer": ["a.B", null]}}` }), []string{"custom-code"}},
	{"code beside", llama(func(f *fixture) { f.files["modeling.py"] = "pass" }), []string{"custom-code"}},
	{"template", llama(func(f *fixture) { f.files["tokenizer_config.json"] = `{"chat_template": "{{ x }}"}` }), []string{"chat-template"}},
	{"template beside", llama(func(f *fixture) { f.files["chat_template.jinja"] = "{{ x }}" }), []string{"chat-template"}},
	{"no template", llama(func(f *fixture) { f.files["tokenizer_config.json"] = `{"chat_template": null, "auto_map": null}` }), nil},
	{"NaN", llama(func(f *fixture) { f.values[layer1+"mlp.up_proj.weight"][1279] = math.NaN() }), []string{"non-finite " + layer1 + "mlp.up_proj.weight"}},
	{"infinity of overflow", llama(func(f *fixture) {
		f.config["dtype"] = "float16"
		f.values["lm_head.weight"][0] = 65520 // rounds up to 65536, which half has not
		f.cast(tensor.F16)
	}), []string{"non-finite lm_head.weight"}},
	{"zero matrix", llama(func(f *fixture) {
		name := "model.layers.0.mlp.up_proj.weight"
		f.values[name] = make([]float64, len(f.values[name]))
		f.values[name][7] = math.Copysign(0, -1)
	}), []string{"all-zero model.layers.0.mlp.up_proj.weight"}},
	{"scale of codes", func(t *testing.T) string {
		dir := tinyLlama(t).quantize(quant.Options{Type: quant.Int8})
		m := openPath(t, dir)
		file, at := m.Origin("model.layers.0.mlp.up_proj.SCB")
		f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt(encode(tensor.F32, []float64{math.Inf(1)}), at); err != nil {
			t.Fatal(err)
		}
		return dir
	}, []string{"tensor-unreadable model.layers.0.mlp.up_proj.weight"}},

	{"adapter of no module", lora(func(f *fixture) { f.config["target_modules"] = []string{"q_proj", "v_proj", "gate_proj"} }), []string{"adapter-config"}},
	{"half a pair", lora(func(f *fixture) { f.remove("base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight") }),
		[]string{"adapter-half base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight"}},
	{"other half of a pair", lora(func(f *fixture) { f.remove("base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight") }),
		[]string{"adapter-half base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"}},
	{"ranks", lora(func(f *fixture) { f.reshape("base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight", 16, 5) }),
		[]string{"adapter-rank base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"}},
	{"swapped", lora(func(f *fixture) {
		name := "base_model.model.model.layers.1.self_attn.v_proj.lora_"
		f.reshape(name+"A.weight", 16, 4)
		f.reshape(name+"B.weight", 4, 32)
	}), []string{"factor-swapped base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight"}},
	{"transposed", lora(func(f *fixture) { f.reshape("base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight", 4, 16) }),
		[]string{"factor-transposed base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"}},
	{"rank of the config", lora(func(f *fixture) { f.config["rank_pattern"] = map[string]any{"layers.1.self_attn.v_proj": 2} }),
		[]string{"adapter-rank base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight"}},
	{"larger rank of the config", lora(func(f *fixture) { f.config["rank_pattern"] = map[string]any{"layers.1.self_attn.v_proj": 8} }),
		[]string{"adapter-rank base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight"}},
	{"idle module", lora(func(f *fixture) {
		name := "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"
		f.values[name] = make([]float64, 64)
	}), []string{"zero-delta base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"}},
	{"untrained", lora(func(f *fixture) {
		for name, values := range f.values {
			if strings.Contains(name, "lora_B") {
				f.values[name] = make([]float64, len(values))
			}
		}
	}), []string{
		"no-effect",
		"zero-delta base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight", "zero-delta base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight",
		"zero-delta base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight", "zero-delta base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"}},
	{"NaN in an adapter", lora(func(f *fixture) {
		f.values["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"][5] = math.Inf(-1)
	}),
		[]string{"non-finite base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"}},
}

// TestStructure finds each planted defect by its code and tensor, and nothing else;
// a clean checkpoint has no findings at all.
func TestStructure(t *testing.T) {
	caught := make(map[string]bool)
	for _, d := range structureDefects {
		t.Run(d.name, func(t *testing.T) {
			r, err := verify.Structure(t.Context(), openPath(t, d.path(t)), verify.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if got := found(r); !slices.Equal(got, d.want) {
				t.Errorf("found %q, want %q", got, d.want)
				for _, f := range r.Findings {
					t.Log(f.Code, f.Tensor, f.Message)
				}
			}
			for _, f := range r.Findings {
				caught[f.Code] = true
			}
		})
	}
	for _, c := range verify.Codes() {
		if c.Family == "structure" && !caught[c.Name] {
			t.Errorf("no planted defect shows %q", c.Name)
		}
	}
}

// TestHeadersOnly guards that nothing but headers is read, and that what they show
// is still found.
func TestHeadersOnly(t *testing.T) {
	f := tinyLlama(t)
	f.values["lm_head.weight"][0] = math.NaN()
	f.remove("model.norm.weight")
	r, err := verify.Structure(t.Context(), openPath(t, f.write()), verify.Options{HeadersOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if got := found(r); !slices.Equal(got, []string{"tensor-missing model.norm.weight"}) {
		t.Errorf("found %q", got)
	}
}

// tinyGGUF writes a GGUF file with one feed-forward matrix, a tokenizer of so many
// tokens, and bytes behind the end.
func tinyGGUF(t *testing.T, edit func(*gguf.Metadata), tokens, trailing int) string {
	t.Helper()
	m := new(gguf.Metadata)
	m.Set("general.architecture", gguf.ValueOf("llama"))
	m.Set("llama.embedding_length", gguf.ValueOf(uint32(32)))
	m.Set("llama.feed_forward_length", gguf.ValueOf(uint32(64)))
	m.Set("llama.attention.head_count", gguf.ValueOf(uint32(4)))
	m.Set("llama.block_count", gguf.ValueOf(uint32(1)))
	m.Set("tokenizer.ggml.model", gguf.ValueOf("gpt2"))
	var list []string
	for i := range tokens {
		list = append(list, strings.Repeat("a", i+1))
	}
	m.Set("tokenizer.ggml.tokens", gguf.ArrayOf(list))
	edit(m)
	f32, err := gguf.ParseType("f32")
	if err != nil {
		t.Fatal(err)
	}
	var specs []gguf.Spec
	for _, s := range []struct {
		name  string
		shape tensor.Shape
	}{
		{"token_embd.weight", tensor.Shape{8, 32}}, {"blk.0.attn_norm.weight", tensor.Shape{32}}, {"blk.0.ffn_norm.weight", tensor.Shape{32}},
		{"blk.0.ffn_up.weight", tensor.Shape{64, 32}}, {"output_norm.weight", tensor.Shape{32}},
	} {
		specs = append(specs, gguf.Spec{Name: s.name, Type: f32, Shape: s.shape})
	}
	layout, err := gguf.NewLayout(m, specs, gguf.LayoutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	data := append(layout.Header(), make([]byte, layout.Size()-int64(len(layout.Header()))+int64(trailing))...)
	for _, s := range specs {
		at, _ := layout.Offset(s.Name)
		copy(data[at:], encode(tensor.F32, []float64{1}))
	}
	path := filepath.Join(t.TempDir(), "model.gguf")
	if err := os.WriteFile(path, data, 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}
