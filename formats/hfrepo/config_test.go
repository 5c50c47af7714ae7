package hfrepo_test

import (
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/strictjson"
)

func config(t *testing.T, text string) hfrepo.Config {
	t.Helper()
	root, err := strictjson.ParseObject([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return hfrepo.NewConfig(root)
}

// TestConfigEdits guards what each edit writes, and that nothing else changes:
// neither order nor spelling nor unknown keys.
func TestConfigEdits(t *testing.T) {
	for _, c := range []struct {
		name         string
		before, want string
		edit         func(c hfrepo.Config)
	}{
		{"untied on top", `{"a":1.50,"tie_word_embeddings":true,"b":[]}`, `{"a":1.50,"tie_word_embeddings":false,"b":[]}`,
			func(c hfrepo.Config) { c.SetTied(false) }},
		{"untied though not stated", `{"a":1}`, `{"a":1,"tie_word_embeddings":false}`,
			func(c hfrepo.Config) { c.SetTied(false) }},
		{"untied in the text config too", `{"text_config":{"tie_word_embeddings":true},"vision_config":{"tie_word_embeddings":true}}`,
			`{"text_config":{"tie_word_embeddings":false},"vision_config":{"tie_word_embeddings":true},"tie_word_embeddings":false}`,
			func(c hfrepo.Config) { c.SetTied(false) }},
		{"int where stated", `{"text_config":{"vocab_size":8}}`, `{"text_config":{"vocab_size":9}}`,
			func(c hfrepo.Config) { c.SetInt("vocab_size", 9) }},
		{"int stated twice", `{"vocab_size":8,"llm_config":{"vocab_size":8}}`, `{"vocab_size":9,"llm_config":{"vocab_size":9}}`,
			func(c hfrepo.Config) { c.SetInt("vocab_size", 9) }},
		{"int not stated", `{"text_config":{}}`, `{"text_config":{},"vocab_size":9}`,
			func(c hfrepo.Config) { c.SetInt("vocab_size", 9) }},
		{"dtype by its new name", `{"dtype":"float32","x":1}`, `{"dtype":"bfloat16","x":1}`,
			func(c hfrepo.Config) { c.SetDType(tensor.BF16) }},
		{"dtype by its old name", `{"torch_dtype":"float32"}`, `{"torch_dtype":"float16"}`,
			func(c hfrepo.Config) { c.SetDType(tensor.F16) }},
		{"dtype of all towers", `{"torch_dtype":"float32","vision_config":{"dtype":"float32","deep_config":{"dtype":"float32"}},"other":{"dtype":"x"}}`,
			`{"torch_dtype":"float64","vision_config":{"dtype":"float64","deep_config":{"dtype":"float64"}},"other":{"dtype":"x"}}`,
			func(c hfrepo.Config) { c.SetDType(tensor.F64) }},
		{"dtype not stated", `{}`, `{"torch_dtype":"float32"}`,
			func(c hfrepo.Config) { c.SetDType(tensor.F32) }},
		{"dtype of a quantization stays", `{"dtype":"float32","quantization_config":{"dtype":"x","inner_config":{"dtype":"y"}}}`,
			`{"dtype":"bfloat16","quantization_config":{"dtype":"x","inner_config":{"dtype":"y"}}}`,
			func(c hfrepo.Config) { c.SetDType(tensor.BF16) }},
		{"quantization everywhere", `{"quantization_config":{"quant_method":"fp8"},"text_config":{"quantization_config":{},"a":1},"b":2}`,
			`{"text_config":{"a":1},"b":2}`,
			func(c hfrepo.Config) { c.DropQuantization() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := config(t, c.before)
			edited := before.Clone()
			c.edit(edited)
			want := string(config(t, c.want).Encode())
			if got := string(edited.Encode()); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
			if !before.Equal(config(t, c.before)) {
				t.Error("the edit of a clone changed the original")
			}
		})
	}
}

// TestRepeatLayers guards the number of layers under every name that families
// give it, and the lists that have an entry per layer.
func TestRepeatLayers(t *testing.T) {
	for _, c := range []struct{ name, before, want string }{
		{"most families", `{"num_hidden_layers":2}`, `{"num_hidden_layers":3}`},
		{"gpt2", `{"n_layer":2,"n_head":4}`, `{"n_layer":3,"n_head":4}`},
		{"chatglm", `{"num_layers":2}`, `{"num_layers":3}`},
		{"mpt", `{"n_layers":2}`, `{"n_layers":3}`},
		{"two names", `{"num_hidden_layers":2,"n_layer":2,"layer_types":["a","b"]}`, `{"num_hidden_layers":3,"n_layer":3,"layer_types":["b","a","b"]}`},
		{"none", `{"x":1}`, `{"x":1,"num_hidden_layers":3}`},
		{"nested", `{"text_config":{"num_hidden_layers":2,"layer_types":["a","b"]}}`, `{"text_config":{"num_hidden_layers":3,"layer_types":["b","a","b"]}}`},
		{"other towers stay", `{"num_hidden_layers":2,"vision_config":{"num_hidden_layers":2}}`, `{"num_hidden_layers":3,"vision_config":{"num_hidden_layers":2}}`},
		{"lists of another length stay", `{"num_hidden_layers":2,"layer_types":["a"],"eos_token_id":[1,2],"mlp_layer_types":[1,2]}`,
			`{"num_hidden_layers":3,"layer_types":["a"],"eos_token_id":[1,2],"mlp_layer_types":[2,1,2]}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			edited := config(t, c.before)
			edited.RepeatLayers([]int64{1, 0, 1})
			if got, want := string(edited.Encode()), string(config(t, c.want).Encode()); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// TestRepeatLayersSameCount guards that lists are not repeated once per name of
// the count.
func TestRepeatLayersSameCount(t *testing.T) {
	edited := config(t, `{"num_hidden_layers":2,"n_layer":2,"layer_types":["a","b"]}`)
	edited.RepeatLayers([]int64{1, 0})
	if got := string(edited.Encode()); !strings.Contains(got, "\"b\",\n    \"a\"") {
		t.Errorf("got\n%s\nwant the layers swapped once", got)
	}
}

func TestConfigReads(t *testing.T) {
	for _, c := range []struct {
		name, text   string
		tied, stated bool
		dtype        tensor.DType
		layers       int64 // -1 for none
		modelType    string
		architecture string
		method       string // quant_method, "-" for no quantization
	}{
		{"nothing", `{}`, false, false, tensor.NoDType, -1, "", "", "-"},
		{"plain", `{"model_type":"llama","architectures":["LlamaForCausalLM","x"],"tie_word_embeddings":true,"torch_dtype":"float16","num_hidden_layers":2}`,
			true, true, tensor.F16, 2, "llama", "LlamaForCausalLM", "-"},
		{"nested", `{"text_config":{"tie_word_embeddings":true,"dtype":"torch.bfloat16","n_layer":3,"quantization_config":{"quant_method":"fp8"}},"tie_word_embeddings":false}`,
			true, true, tensor.BF16, 3, "", "", "fp8"},
		{"one of two says tied", `{"tie_word_embeddings":true,"text_config":{"tie_word_embeddings":false}}`, true, true, tensor.NoDType, -1, "", "", "-"},
		{"null is not stated", `{"tie_word_embeddings":null,"architectures":null,"quantization_config":null,"num_hidden_layers":null}`,
			false, false, tensor.NoDType, -1, "", "", "-"},
		{"wrong kinds are not stated", `{"tie_word_embeddings":1,"torch_dtype":7,"num_hidden_layers":"2","architectures":"x","model_type":["y"]}`,
			false, false, tensor.NoDType, -1, "", "", "-"},
		{"unknown dtype", `{"dtype":"int8"}`, false, false, tensor.NoDType, -1, "", "", "-"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := config(t, c.text)
			if tied, stated := cfg.Tied(); tied != c.tied || stated != c.stated {
				t.Errorf("tied %v, stated %v; want %v, %v", tied, stated, c.tied, c.stated)
			}
			if got := cfg.DType(); got != c.dtype {
				t.Errorf("dtype %v, want %v", got, c.dtype)
			}
			if n, ok := cfg.Layers(); ok != (c.layers >= 0) || ok && n != c.layers {
				t.Errorf("layers %d, %v; want %d", n, ok, c.layers)
			}
			if got := cfg.ModelType(); got != c.modelType {
				t.Errorf("model type %q, want %q", got, c.modelType)
			}
			if got := cfg.Architecture(); got != c.architecture {
				t.Errorf("architecture %q, want %q", got, c.architecture)
			}
			method := "-"
			if q := cfg.Quantization(); q != nil {
				method, _ = q.String("quant_method")
			}
			if method != c.method {
				t.Errorf("quantization %q, want %q", method, c.method)
			}
		})
	}
}

func TestDropQuantizationReports(t *testing.T) {
	if !config(t, `{"text_config":{"quantization_config":{}}}`).DropQuantization() {
		t.Error("a nested quantization_config was not reported as removed")
	}
	if config(t, `{"text_config":{}}`).DropQuantization() {
		t.Error("nothing was reported as removed")
	}
}
