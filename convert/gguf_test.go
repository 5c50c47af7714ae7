package convert_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/convert"
	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/plan"
)

// writeGGUF converts a folder to a file and returns its bytes.
func writeGGUF(t *testing.T, folder string, o convert.Options, run engine.Options) ([]byte, error) {
	t.Helper()
	o.Output = filepath.Join(t.TempDir(), "out.gguf")
	c, err := convert.Plan(open(t, folder), o)
	if err != nil {
		return nil, err
	}
	sink, err := checkpoint.Create(fsatomic.OS{}, c.Layout, false)
	if err != nil {
		t.Fatal(err)
	}
	report, err := engine.Run(t.Context(), c.Plan, []engine.Source{c.View}, toSink{sink}, run)
	if err == nil {
		err = sink.Commit(c.SetHashes(report.Hashes))
	}
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(o.Output)
	if err != nil {
		t.Fatal(err)
	}
	return data, nil
}

type toSink struct{ *checkpoint.Sink }

func (s toSink) WriteAt(_ int, name string, p []byte, off int64) error {
	return s.Sink.WriteAt(name, p, off)
}

// TestGGUFGolden makes the files that llama.cpp's converter made of the same folders,
// byte for byte: names, order, types, values, keys.
func TestGGUFGolden(t *testing.T) {
	var cases []struct{ Name, Type, Pre string }
	data, err := os.ReadFile(filepath.Join(golden, "convert", "cases.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &cases); err != nil {
		t.Fatal(err)
	}
	types := map[string]tensor.DType{"auto": tensor.NoDType, "f32": tensor.F32, "f16": tensor.F16, "bf16": tensor.BF16}
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			want, err := os.ReadFile(filepath.Join(golden, "convert", "expected", c.Name+".gguf"))
			if err != nil {
				t.Fatal(err)
			}
			folder := filepath.Join(golden, "convert", "models", c.Name)
			for _, run := range []engine.Options{{Jobs: 1}, {Jobs: 3, Memory: 16 << 20}} {
				// The pre-tokenizer is found from the expressions: the name is the witness.
				got, err := writeGGUF(t, folder, convert.Options{DType: types[c.Type]}, run)
				if err != nil {
					t.Fatal(err)
				}
				if c.Name == "fallback" {
					got = sameScores(t, got)
				}
				if !bytes.Equal(got, want) {
					t.Fatal(difference(t, got, want))
				}
			}
		})
	}
	if len(cases) < 28 {
		t.Errorf("only %d cases", len(cases))
	}
}

// sameScores gives all tokens the score that the converter gives to those of a model that
// has none. What they were is looked at first: in the order of the merges.
func sameScores(t *testing.T, file []byte) []byte {
	t.Helper()
	f, err := gguf.New(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	tokens, err := mustGet(t, f, "tokenizer.ggml.tokens").Strings()
	if err != nil {
		t.Fatal(err)
	}
	scores, err := mustGet(t, f, "tokenizer.ggml.scores").Floats()
	if err != nil {
		t.Fatal(err)
	}
	const none = -1000
	want := map[string]float64{"\u2581t": 0, "he": -1, "\u2581the": -2, "the": -3, "ee": -4, "<unk>": none, "<0x0A>": none, "<|im_start|>": none}
	var stored, same []byte
	for i, token := range tokens {
		if score, ok := want[token]; ok && scores[i] != score {
			t.Errorf("token %q has the score %v, want %v", token, scores[i], score)
		}
		if strings.Contains("\u2581eth\u00e9<|x|>", token) && scores[i] != -270 {
			t.Errorf("token %q, which no merge makes, has the score %v, want %v", token, scores[i], -270)
		}
		stored = binary.LittleEndian.AppendUint32(stored, math.Float32bits(float32(scores[i])))
		same = binary.LittleEndian.AppendUint32(same, math.Float32bits(none))
	}
	if bytes.Count(file, stored) != 1 {
		t.Fatal("the scores are not found once")
	}
	return bytes.Replace(file, stored, same, 1)
}

func mustGet(t *testing.T, f *gguf.File, key string) gguf.Value {
	t.Helper()
	v, ok := f.Metadata().Get(key)
	if !ok {
		t.Fatalf("no key %s", key)
	}
	return v
}

// difference says where two GGUF files part.
func difference(t *testing.T, got, want []byte) string {
	t.Helper()
	read := func(data []byte) *gguf.File {
		f, err := gguf.New(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	g, w := read(got), read(want)
	keys := func(f *gguf.File) (all []string) {
		for k, v := range f.Metadata().All() {
			all = append(all, k+" "+v.Describe())
		}
		return all
	}
	for i, k := range keys(w) {
		if ours := append(keys(g), "nothing"); ours[min(i, len(ours)-1)] != k {
			return "key " + ours[min(i, len(ours)-1)] + ", want " + k
		}
	}
	for i, s := range w.Tensors() {
		ours := g.Tensors()
		if i >= len(ours) || ours[i].Name != s.Name || ours[i].Type != s.Type || !slices.Equal(ours[i].Shape, s.Shape) {
			return "other tensors from " + s.Name + " on"
		}
		if !bytes.Equal(got[ours[i].Offset:][:s.Size()], want[s.Offset:][:s.Size()]) {
			return "other values in " + s.Name
		}
	}
	return "other values of keys"
}

// edit copies a golden model and changes its files; what becomes nil is removed.
func edit(t *testing.T, name string, changes map[string]func(string) string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(golden, "convert", "models", name))); err != nil {
		t.Fatal(err)
	}
	for file, change := range changes {
		path := filepath.Join(dir, file)
		if change == nil {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			continue
		}
		old, _ := os.ReadFile(path) // of a new file nothing
		text := change(string(old))
		if text == string(old) {
			t.Fatalf("%s has not changed", file)
		}
		if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func replace(old, with string) func(string) string {
	return func(text string) string { return strings.Replace(text, old, with, 1) }
}

func write(text string) func(string) string { return func(string) string { return text } }

// TestGGUFRefusals has models that can't become GGUF files, and what the error names.
func TestGGUFRefusals(t *testing.T) {
	const config, fast, pooling, phi3 = "config.json", "tokenizer.json", "1_Pooling/config.json", "Phi-3-mini-128k-instruct"
	type changes = map[string]func(string) string
	for _, c := range []struct {
		name, model string
		changes     changes
		o           convert.Options
		want        []string
	}{
		{"another architecture", "qwen3", changes{config: replace("Qwen3ForCausalLM", "NewForCausalLM")}, convert.Options{}, []string{"NewForCausalLM", "LlamaForCausalLM"}},
		{"no architecture", "qwen3", changes{config: replace("architectures", "architecture")}, convert.Options{}, []string{"names no architectures"}},
		{"no config", "qwen3", changes{config: nil}, convert.Options{}, []string{"no config.json"}},
		{"quantized by others", "qwen3", changes{config: replace("{", `{"quantization_config":{"quant_method":"gptq"},`)}, convert.Options{}, []string{`quantized ("gptq")`}},
		{"another type", "qwen3", nil, convert.Options{DType: tensor.F64}, []string{"dtype"}},
		{"a tensor of another family", "qwen3", changes{config: replace("Qwen3ForCausalLM", "Qwen2ForCausalLM")}, convert.Options{}, []string{"self_attn.k_norm.weight", "nearest names", "self_attn.k_proj"}},
		{"fewer layers", "qwen3", changes{config: replace(`"num_hidden_layers": 2`, `"num_hidden_layers": 1`)}, convert.Options{}, []string{"model.layers.1.", "there are 1"}},
		{"more layers", "qwen3", changes{config: replace(`"num_hidden_layers": 2`, `"num_hidden_layers": 3`)}, convert.Options{}, []string{"layer 2 of 3 has no tensor that becomes"}},
		{"no layers", "qwen3", changes{config: replace(`"num_hidden_layers": 2`, `"num_hidden_layers": 0`)}, convert.Options{}, []string{"0 layers"}},
		{"layers that are no number", "qwen3", changes{config: replace(`"num_hidden_layers": 2`, `"num_hidden_layers": "2"`)}, convert.Options{}, []string{"num_hidden_layers"}},
		{"heads that do not divide", "linear", changes{config: replace(`"num_attention_heads": 4`, `"num_attention_heads": 3`)}, convert.Options{}, []string{"q_proj.weight", "3 heads"}},
		{"no context", "qwen3", changes{config: replace("max_position_embeddings", "x")}, convert.Options{}, []string{"max_position_embeddings"}},
		{"another activation", "linear", changes{config: replace("{", `{"hidden_act": "gelu",`)}, convert.Options{}, []string{`hidden_act is "gelu"`, "stands for silu, swish"}},
		{"a scaling of Llama in another family", "qwen3", changes{config: replace("{", `{"rope_scaling": {"rope_type": "llama3", "factor": 8.0},`)}, convert.Options{}, []string{`"llama3", which a GGUF file of qwen3 has no place for`}},
		{"weights of experts as they are", "qwen3-moe", changes{config: replace("{", `{"norm_topk_prob": false,`)}, convert.Options{}, []string{"norm_topk_prob is false", "stands for true"}},
		{"another base", "gemma", changes{config: replace(`"rope_theta": 10000.0`, `"rope_theta": 20000.0`)}, convert.Options{}, []string{"rope_theta is 20000", "stands for 10000"}},
		{"more experts", "qwen2-moe", changes{config: replace(`"num_experts": 3`, `"num_experts": 4`)}, convert.Options{}, []string{"layer 0 has only 9 matrices"}},
		{"fewer experts", "qwen2-moe", changes{config: replace(`"num_experts": 3`, `"num_experts": 2`)}, convert.Options{}, []string{"experts.2.", "there are 2"}},
		{"another scaling", "linear", changes{config: replace(`"linear"`, `"dynamic"`)}, convert.Options{}, []string{`rope scaling is "dynamic"`}},
		{"a scaling that makes no sense", "llama3-7b1-chat", changes{config: replace(`"high_freq_factor": 4.0`, `"high_freq_factor": 0.5`)}, convert.Options{}, []string{"llama3 scaling"}},
		{"a negative size", "qwen3", changes{config: replace(`"num_hidden_layers": 2`, `"num_hidden_layers": -2`)}, convert.Options{}, []string{"num_hidden_layers is -2"}},
		{"a size beyond 32 bits", "qwen3", changes{config: replace(`"hidden_size": 16`, `"hidden_size": 4294967296`)}, convert.Options{}, []string{"hidden_size is 4294967296"}},
		{"a special token that is none", "qwen3", changes{"tokenizer_config.json": replace(`"<|im_end|>"`, `"<|end|>"`)}, convert.Options{}, []string{"tokenizer_config.json", `eos_token is "<|end|>"`}},
		{"no tokenizer", "qwen3", changes{fast: nil}, convert.Options{}, []string{"no tokenizer"}},
		{"no SentencePiece model", "gemma", changes{"tokenizer.model": nil}, convert.Options{}, []string{"no tokenizer.model"}},
		{"SentencePiece of a family that has BPE", "qwen3", changes{fast: replace(`"byte_fallback": false`, `"byte_fallback": true`)}, convert.Options{}, []string{"tokenizer.json", "tokenizer.model"}},
		{"an unknown expression", "qwen3", changes{fast: replace(`\\p{N}`, `\\p{N}{2}`)}, convert.Options{}, []string{"no pre-tokenizer", `\p{N}{2}`, "--pre", "qwen2"}},
		{"another model of tokens", "qwen3", changes{fast: replace(`"BPE"`, `"Unigram"`)}, convert.Options{}, []string{"Unigram"}},
		{"an id that the library does not give", "qwen3", changes{fast: replace(`"id": 17`, `"id": 18`)}, convert.Options{}, []string{"id 18", "gives it 17"}},
		{"more tokens than rows", "qwen3", changes{config: replace(`"vocab_size": 48`, `"vocab_size": 17`)}, convert.Options{}, []string{"ids up to 17", "vocab_size of 17"}},
		{"fewer tokens than rows", "qwen3", changes{config: replace(`"vocab_size": 48`, `"vocab_size": 40`)}, convert.Options{}, []string{"48 rows", "40 tokens"}},
		{"a broken tokenizer", "qwen3", changes{fast: replace("{", "[")}, convert.Options{}, []string{"tokenizer.json"}},
		{"factors that do not fit", phi3, changes{config: replace("4.25\n", "4.25,\n1\n")}, convert.Options{}, []string{"long_factor of 3", "expected 2"}},
		{"factors of other heads", phi3, changes{config: func(s string) string {
			return replace("4.25\n", "4.25,\n1\n")(replace("2\n   ]", "2,\n1\n   ]")(replace("2\n  ]", "2,\n1\n  ]")(s)))
		}}, convert.Options{}, []string{"long_factor of 3 numbers and a short_factor of 3", "expected 2"}},
		{"factors that are no numbers", phi3, changes{config: replace("4.25", `"4.25"`)}, convert.Options{}, []string{"long_factor"}},
		{"factors of another scaling", phi3, changes{config: replace(`"su"`, `"linear"`)}, convert.Options{}, []string{`"linear"`, "longrope"}},
		{"a scaling without factors", phi3, changes{config: replace("long_factor", "longer")}, convert.Options{}, []string{`"su" without a long_factor`}},
		{"no original length", phi3, changes{config: replace("original_max", "first_max")}, convert.Options{}, []string{"original_max_position_embeddings"}},
		{"more dimensions than there are", phi3, changes{config: replace("{", `{"partial_rotary_factor": 1.5,`)}, convert.Options{}, []string{"partial_rotary_factor is 1.5"}},
		{"another activation", phi3, changes{config: replace("{", `{"hidden_act": "relu",`)}, convert.Options{}, []string{`hidden_act is "relu"`, "silu"}},
		{"no base", phi3, changes{config: replace("rope_theta", "theta")}, convert.Options{}, []string{"no rope_theta"}},
		{"Phi without pieces", phi3, changes{"tokenizer.model": nil}, convert.Options{}, []string{"no tokenizer.model"}},
		{"a layer of another width", "gpt2", changes{config: replace(`"n_inner": null`, `"n_inner": 32`)}, convert.Options{}, []string{"n_inner is 32", "64"}},
		{"attention scaled by layer", "gpt2", changes{config: replace("{", `{"scale_attn_by_inverse_layer_idx": true,`)}, convert.Options{}, []string{"scale_attn_by_inverse_layer_idx"}},
		{"attention that is not scaled", "gpt2", changes{config: replace("{", `{"scale_attn_weights": false,`)}, convert.Options{}, []string{"scale_attn_weights is false"}},
		{"layers without positions elsewhere", "smollm3", changes{config: replace(`"no_rope_layer_interval": 4`, `"no_rope_layer_interval": 3`)}, convert.Options{}, []string{"no_rope_layer_interval is 3"}},
		{"layers without positions, listed", "smollm3", changes{config: replace("{", `{"no_rope_layers": [1, 0],`)}, convert.Options{}, []string{"no_rope_layers", "layer 1"}},
		{"another activation of StarCoder", "starcoder2", changes{config: replace("{", `{"hidden_act": "silu",`)}, convert.Options{}, []string{`hidden_act is "silu"`}},
		{"layer types that are none", "olmo3", changes{config: replace("sliding_attention", "linear_attention")}, convert.Options{}, []string{"layer_types", "linear_attention"}},
		{"heads of another size", "granite", changes{config: replace(`"head_dim": 4`, `"head_dim": 8`)}, convert.Options{}, []string{"head_dim is 8"}},
		{"more positions", "gpt2", changes{config: replace(`"n_ctx": 32`, `"n_ctx": 64`)}, convert.Options{}, []string{"wpe.weight", "n_ctx = 64"}},
		{"no epsilon", "gpt2", changes{config: replace("layer_norm_epsilon", "epsilon")}, convert.Options{}, []string{"no layer_norm_epsilon"}},
		{"BERT that writes", "bert-mean", changes{config: replace("{", `{"is_decoder": true,`)}, convert.Options{}, []string{"is_decoder is true"}},
		{"relative positions", "bert-mean", changes{config: replace("{", `{"position_embedding_type": "relative_key",`)}, convert.Options{}, []string{`"relative_key"`, "absolute"}},
		{"more segments", "bert-mean", changes{config: replace(`"type_vocab_size": 2`, `"type_vocab_size": 3`)}, convert.Options{}, []string{"token_type_embeddings", "type_vocab_size = 3"}},
		{"one segment for two", "bert-mean", changes{config: replace("type_vocab_size", "types")}, convert.Options{}, []string{"token_type_embeddings", "type_vocab_size = 1"}},
		{"a module that is computed", "bert-mean", changes{"modules.json": replace("models.Normalize", "models.Dense")}, convert.Options{}, []string{"modules.json", "models.Dense", "Normalize"}},
		{"two poolings", "bert-mean", changes{pooling: replace("{", `{"pooling_mode_cls_token": true,`)}, convert.Options{}, []string{pooling, "pooling_mode_cls_token, pooling_mode_mean_tokens", "lasttoken"}},
		{"another pooling", "bert-cls", changes{pooling: replace("cls", "max")}, convert.Options{}, []string{pooling, `"max"`}},
		{"no pooling", "bert-cls", changes{pooling: nil}, convert.Options{}, []string{pooling, "no such file"}},
		{"a pooling elsewhere", "bert-cls", changes{"modules.json": replace("1_Pooling", "../1_Pooling")}, convert.Options{}, []string{"modules.json", "leaves the folder"}},
		{"modules that are none", "bert-cls", changes{"modules.json": write("{}")}, convert.Options{}, []string{"modules.json"}},
		{"BERT with another model of tokens", "bert-cls", changes{fast: replace(`"type": "WordPiece",
  "unk`, `"type": "BPE",
  "unk`)}, convert.Options{}, []string{`"BPE"`, "WordPiece"}},
		{"another mark", "bert-cls", changes{fast: replace(`"continuing_subword_prefix": "##"`, `"continuing_subword_prefix": "@@"`)}, convert.Options{}, []string{`"@@"`}},
		{"another split", "bert-cls", changes{fast: replace("BertPreTokenizer", "Whitespace")}, convert.Options{}, []string{`pre_tokenizer is "Whitespace"`}},
		{"Chinese as words", "bert-cls", changes{fast: replace(`"handle_chinese_chars": true`, `"handle_chinese_chars": false`)}, convert.Options{}, []string{"handle_chinese_chars"}},
		{"SentencePiece that normalizes", "fallback", changes{fast: replace(`"Prepend"`, `"NFKC"`)}, convert.Options{}, []string{"tokenizer.json", "NFKC", "tokenizer.model"}},
		{"SentencePiece with another mark", "fallback", changes{fast: replace(`"content": "▁"`, `"content": "_"`)}, convert.Options{}, []string{"Replace"}},
		{"SentencePiece with more tokens than rows", "fallback", changes{config: replace(`"vocab_size": 272`, `"vocab_size": 271`)}, convert.Options{}, []string{"ids up to 271", "vocab_size of 271"}},
		{"Unigram", "fallback", changes{fast: replace(`"type": "BPE"`, `"type": "Unigram"`)}, convert.Options{}, []string{"Unigram"}},
		{"a broken model of pieces", "linear", changes{"tokenizer.model": write("\x0a\xff")}, convert.Options{}, []string{"tokenizer.model"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := writeGGUF(t, edit(t, c.model, c.changes), c.o, engine.Options{})
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q, want one that says %s", err, want)
				}
			}
		})
	}
}

// TestGGUFTensors has tensors that can't become any of GGUF.
func TestGGUFTensors(t *testing.T) {
	x := func(name string, d tensor.DType, shape ...int64) stored {
		n, _ := tensor.Shape(shape).NumElements()
		return stored{name, d, shape, make([]byte, n*d.Bits()/8)}
	}
	embedding := x("model.embed_tokens.weight", tensor.F16, 3, 4)
	config := `{"architectures":["%"],"num_hidden_layers":1,"num_attention_heads":2,"num_experts":2,"num_local_experts":2,"max_position_embeddings":8,"vocab_size":3,"hidden_size":4}`
	const expert = "model.layers.0.block_sparse_moe.experts."
	for _, c := range []struct {
		name, class string
		tensors     []stored
		want        string
	}{
		{"integers", "LlamaForCausalLM", []stored{embedding, x("model.norm.weight", tensor.I32, 4)}, `"model.norm.weight" is I32, not a weight`},
		{"two names for one", "LlamaForCausalLM", []stored{embedding, x("embed_tokens.weight", tensor.F16, 3, 4)}, `"token_embd.weight"`},
		{"experts of two shapes", "MixtralForCausalLM", []stored{embedding,
			x(expert+"0.w1.weight", tensor.F16, 2, 4), x(expert+"0.w2.weight", tensor.F16, 2, 4), x(expert+"0.w3.weight", tensor.F16, 2, 4),
			x(expert+"1.w1.weight", tensor.F16, 3, 4), x(expert+"1.w2.weight", tensor.F16, 2, 4), x(expert+"1.w3.weight", tensor.F16, 2, 4)}, "matrices of one type and shape"},
		{"experts of two types", "MixtralForCausalLM", []stored{embedding,
			x(expert+"0.w1.weight", tensor.F16, 2, 4), x(expert+"0.w2.weight", tensor.F16, 2, 4), x(expert+"0.w3.weight", tensor.F16, 2, 4),
			x(expert+"1.w1.weight", tensor.F16, 2, 4), x(expert+"1.w2.weight", tensor.BF16, 2, 4), x(expert+"1.w3.weight", tensor.F16, 2, 4)}, "matrices of one type and shape"},
		{"a stack that can't be halved", "Qwen3MoeForCausalLM", []stored{embedding, x("model.layers.0.mlp.experts.gate_up_proj", tensor.F16, 2, 3, 4)}, "gates and ups"},
		{"heads of an odd size", "LlamaForCausalLM", []stored{embedding, x("model.layers.0.self_attn.q_proj.weight", tensor.F16, 6, 4)}, "an even number of rows"},
		{"heads that are no matrix", "LlamaForCausalLM", []stored{embedding, x("model.layers.0.self_attn.q_proj.weight", tensor.F16)}, "an even number of rows"},
		{"a vector to transpose", "GPT2LMHeadModel", []stored{x("wte.weight", tensor.F16, 3, 4), x("h.0.mlp.c_fc.weight", tensor.F16, 6)}, "a matrix of (in, out)"},
		{"no layers", "LlamaForCausalLM", []stored{embedding}, "layer 0 of 1"},
		{"an embedding that is no matrix", "LlamaForCausalLM", []stored{x("model.embed_tokens.weight", tensor.F16), x("model.layers.0.input_layernorm.weight", tensor.F16, 4)}, "not that of an embedding"},
		{"no embedding", "LlamaForCausalLM", []stored{x("model.norm.weight", tensor.F16, 4)}, "no embedding"},
	} {
		dir := writeModel(t, "model.safetensors", map[string]string{
			"config.json":    strings.Replace(config, "%", c.class, 1),
			"tokenizer.json": `{"model":{"type":"BPE","vocab":{"a":0,"b":1,"c":2}},"pre_tokenizer":{"type":"ByteLevel"}}`,
		}, c.tensors...)
		if _, err := writeGGUF(t, dir, convert.Options{}, engine.Options{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error that says %s", c.name, err, c.want)
		}
	}
}

// TestGGUFOptions guards what the caller settles: the model's name, the pre-tokenizer.
func TestGGUFOptions(t *testing.T) {
	dir := edit(t, "qwen3", map[string]func(string) string{"tokenizer.json": replace(`\\p{N}`, `\\p{N}{2}`)})
	data, err := writeGGUF(t, dir, convert.Options{Name: "A Name", PreTokenizer: "mine"}, engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	f, err := gguf.New(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]string)
	for _, key := range []string{"general.name", "tokenizer.ggml.pre"} {
		if got[key], err = f.Metadata().Text(key); err != nil {
			t.Error(err)
		}
	}
	if want := map[string]string{"general.name": "A Name", "tokenizer.ggml.pre": "mine"}; !maps.Equal(got, want) {
		t.Errorf("keys %v, want %v", got, want)
	}
}

// TestGGUFScores guards what is said of a tokenizer without scores, and of one whose
// tokens SentencePiece builds in other ways: from parts that it has no merge of, or whose
// merges are apart. And that a space in front is what tokenizer.json says.
func TestGGUFScores(t *testing.T) {
	const listed, front = `"▁ the",`, "tokenizer.ggml.add_space_prefix"
	for _, c := range []struct {
		name          string
		change        func(string) string
		other         string
		spaced, known bool
	}{
		{"as it is", replace(`"BPE"`, ` "BPE"`), "", true, false},
		{"without a merge", replace(listed, ""), "▁the", true, false},
		{"apart", func(s string) string { return replace(`"e e"`, `"e e", "▁ the"`)(replace(listed, "")(s)) }, "▁the", true, false},
		{"no space in front", replace(`"Prepend",
    "prepend": "▁"`, `"Replace", "pattern": {"String": " "}, "content": "▁"`), "", false, true},
	} {
		dir := edit(t, "fallback", map[string]func(string) string{"tokenizer.json": c.change})
		plan, err := convert.Plan(open(t, dir), convert.Options{Output: filepath.Join(t.TempDir(), "x.gguf")})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		said := ""
		for _, d := range plan.Plan.Decisions {
			if d.Code == "token-scores" {
				said = d.Message
			}
		}
		if said == "" || strings.Contains(said, "1 tokens in ways") != (c.other != "") || !strings.Contains(said, c.other) {
			t.Errorf("%s: %q, want one that names %q", c.name, said, c.other)
		}
		v, known := plan.Layout.Files[0].GGUF().Metadata().Get(front)
		spaced := true
		if known {
			spaced, _ = v.Bool()
		}
		if spaced != c.spaced || known != c.known {
			t.Errorf("%s: a space in front is %v, said is %v", c.name, spaced, known)
		}
	}
}

// TestGGUFDefaults guards what stands in a file for settings that config.json leaves out,
// or has as 0.
func TestGGUFDefaults(t *testing.T) {
	for _, c := range []struct {
		model       string
		change      func(string) string
		key, stated string // the value; empty for no key
	}{
		{"granite", replace(`"logits_scaling": 8.0`, `"logits_scaling": 8.5`), "granite.logit_scale", "8.5"},
		{"granite", replace(`"logits_scaling": 8.0`, `"logits_scaling": 0`), "granite.logit_scale", ""},
		{"olmo3", replace("layer_types", "types"), "olmo2.attention.sliding_window_pattern", "true true"},
		{"olmo3", replace("sliding_window", "window"), "olmo2.attention.sliding_window_pattern", ""},
	} {
		dir := edit(t, c.model, map[string]func(string) string{"config.json": c.change})
		plan, err := convert.Plan(open(t, dir), convert.Options{Output: filepath.Join(t.TempDir(), "x.gguf")})
		if err != nil {
			t.Errorf("%s: %v", c.model, err)
			continue
		}
		v, ok := plan.Layout.Files[0].GGUF().Metadata().Get(c.key)
		got := ""
		if flags, err := v.Bools(); ok && err == nil {
			got = strings.Trim(fmt.Sprint(flags), "[]")
		} else if number, err := v.Float(); ok && err == nil {
			got = fmt.Sprint(number)
		}
		if got != c.stated {
			t.Errorf("%s: %s is %q, want %q", c.model, c.key, got, c.stated)
		}
	}
}

// TestGGUFRows guards that rows of Gemma 3 that no token has are left out, with a
// decision, and that a head that nothing reads is.
func TestGGUFRows(t *testing.T) {
	dir := edit(t, "gemma3", map[string]func(string) string{"config.json": replace(`"vocab_size": 48`, `"vocab_size": 40`)})
	c, err := convert.Plan(open(t, dir), convert.Options{Output: filepath.Join(t.TempDir(), "x.gguf")})
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Layout.Files[0].GGUF().Tensors()[0]; got.Name != "token_embd.weight" || got.Shape[0] != 40 {
		t.Errorf("the embedding is %v", got)
	}
	if !slices.ContainsFunc(c.Plan.Decisions, func(d plan.Decision) bool { return d.Code == "rows-left-out" }) {
		t.Errorf("decisions %v", c.Plan.Decisions)
	}
	c, err = convert.Plan(open(t, filepath.Join(golden, "convert", "models", "gemma")), convert.Options{Output: filepath.Join(t.TempDir(), "x.gguf")})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(c.Plan.Decisions, func(d plan.Decision) bool {
		return d.Code == "left-out" && slices.Equal(d.Tensors, []string{"lm_head.weight"})
	}) {
		t.Errorf("decisions %v", c.Plan.Decisions)
	}
}

// TestGGUFDecisions guards what is said of settings that a GGUF file has no place for, and
// that nothing is where they change nothing.
func TestGGUFDecisions(t *testing.T) {
	config := func(setting string) map[string]func(string) string {
		return map[string]func(string) string{"config.json": replace("{", "{"+setting+",")}
	}
	fast := func(normalizer string) map[string]func(string) string {
		return map[string]func(string) string{"tokenizer.json": write(`{"added_tokens": [], "normalizer": ` + normalizer +
			`, "pre_tokenizer": null, "model": {"type": "BPE", "vocab": {}, "merges": []}}`)}
	}
	const marked = `{"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}`
	for _, c := range []struct {
		name, model string
		changes     map[string]func(string) string
		code        string
		there       bool
	}{
		{"a window", "linear", config(`"sliding_window": 8`), "sliding-window", true},
		{"a window as long as the context", "linear", config(`"sliding_window": 4096000`), "sliding-window", false},
		{"no window", "linear", config(`"sliding_window": null`), "sliding-window", false},
		{"a window that is off", "qwen3", config(`"use_sliding_window": false, "sliding_window": 8`), "sliding-window", false},
		{"a window that is on", "qwen3", config(`"use_sliding_window": true, "sliding_window": 8`), "sliding-window", true},
		{"another scale", "gemma2", config(`"query_pre_attn_scalar": 7`), "query-scale", true},
		{"another scale by default", "gemma2", nil, "query-scale", true},
		{"the scale", "gemma2", config(`"query_pre_attn_scalar": 8`), "query-scale", false},
		{"weights of experts by default", "qwen3-moe", nil, "expert-weights", true},
		{"weights of experts", "qwen3-moe", config(`"norm_topk_prob": true`), "expert-weights", false},
		{"weights of experts of Qwen 2", "qwen2-moe", nil, "expert-weights", false},
		{"no space in front", "linear", fast(marked), "space-prefix", true},
		{"a space in front", "linear", fast(`{"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, ` + marked + `]}`), "space-prefix", false},
	} {
		conversion, err := convert.Plan(open(t, edit(t, c.model, c.changes)), convert.Options{Output: filepath.Join(t.TempDir(), "x.gguf")})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got := slices.ContainsFunc(conversion.Plan.Decisions, func(d plan.Decision) bool { return d.Code == c.code }); got != c.there {
			t.Errorf("%s: %s is %v: %v", c.name, c.code, got, conversion.Plan.Decisions)
		}
		prefix, stated, err := conversion.Layout.Files[0].GGUF().Metadata().OptBool("tokenizer.ggml.add_space_prefix")
		if c.code == "space-prefix" && (err != nil || stated != c.there || prefix) {
			t.Errorf("%s: add_space_prefix is %v, stated %v, %v", c.name, prefix, stated, err)
		}
	}
}

// TestGGUFRestored makes a file of 4-bit weights: they are what those stand for.
func TestGGUFRestored(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "llama-nf4")
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(golden, "bnb", "llama-nf4"))); err != nil {
		t.Fatal(err)
	}
	model, err := checkpoint.Open(dir, hfrepo.Cache{})
	if err != nil {
		t.Fatal(err)
	}
	defer model.Close()
	spec, _ := model.Lookup("model.embed_tokens.weight")
	tokens := make([]string, spec.Shape[0])
	vocab := make(map[string]int)
	for i := range tokens {
		vocab[strings.Repeat("a", i+1)] = i
	}
	fast, err := json.Marshal(map[string]any{"model": map[string]any{"type": "BPE", "vocab": vocab, "merges": []string{}}, "pre_tokenizer": map[string]any{"type": "ByteLevel"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "tokenizer.json"), fast, 0o666); err != nil {
		t.Fatal(err)
	}
	data, err := writeGGUF(t, dir, convert.Options{}, engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	f, err := gguf.New(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	values := mustRun(t, filepath.Join(golden, "bnb", "llama-nf4"), convert.Options{})
	for _, s := range f.Tensors() {
		if s.Name == "blk.0.ffn_down.weight" {
			if !bytes.Equal(data[s.Offset:][:s.Size()], values.data["model.layers.0.mlp.down_proj.weight"]) {
				t.Error("other weights than those that the codes stand for")
			}
			return
		}
	}
	t.Error("no feed-forward layer")
}
