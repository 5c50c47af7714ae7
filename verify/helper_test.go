package verify_test

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/quant/block"
	"github.com/loratool/loratool/verify"
)

// fixture is a checkpoint folder that a test makes, changes and writes.
type fixture struct {
	t       *testing.T
	config  map[string]any // of a model or an adapter
	adapter bool
	specs   []tensor.Spec
	values  map[string][]float64
	files   map[string]string // beside the weights
}

// config of the smallest Llama that has everything: 2 layers, 4 heads of 8 for
// queries and 2 for keys, a vocabulary of 12.
func tinyLlama(t *testing.T) *fixture {
	f := &fixture{t: t, values: make(map[string][]float64), files: make(map[string]string), config: map[string]any{
		"architectures": []string{"LlamaForCausalLM"}, "model_type": "llama", "hidden_size": 32, "intermediate_size": 40,
		"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 12, "dtype": "bfloat16",
		"tie_word_embeddings": false,
	}}
	f.add("model.embed_tokens.weight", tensor.BF16, 12, 32)
	for _, layer := range []string{"model.layers.0.", "model.layers.1."} {
		for _, m := range []struct {
			name    string
			out, in int64
		}{
			{"self_attn.q_proj", 32, 32}, {"self_attn.k_proj", 16, 32}, {"self_attn.v_proj", 16, 32}, {"self_attn.o_proj", 32, 32},
			{"mlp.gate_proj", 40, 32}, {"mlp.up_proj", 40, 32}, {"mlp.down_proj", 32, 40},
		} {
			f.add(layer+m.name+".weight", tensor.BF16, m.out, m.in)
		}
		f.add(layer+"input_layernorm.weight", tensor.BF16, 32)
		f.add(layer+"post_attention_layernorm.weight", tensor.BF16, 32)
	}
	f.add("model.norm.weight", tensor.BF16, 32)
	f.add("lm_head.weight", tensor.BF16, 12, 32)
	f.files["tokenizer.json"] = tokenizer(12)
	return f
}

// tinyLoRA adapts two modules of tinyLlama, with rank 4 and alpha 8.
func tinyLoRA(t *testing.T) *fixture {
	f := &fixture{t: t, adapter: true, values: make(map[string][]float64), files: make(map[string]string), config: map[string]any{
		"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": []string{"q_proj", "v_proj"}, "bias": "none",
	}}
	for _, m := range []struct {
		name    string
		out, in int64
	}{
		{"model.layers.0.self_attn.q_proj", 32, 32}, {"model.layers.0.self_attn.v_proj", 16, 32},
		{"model.layers.1.self_attn.q_proj", 32, 32}, {"model.layers.1.self_attn.v_proj", 16, 32},
	} {
		f.add("base_model.model."+m.name+".lora_A.weight", tensor.F32, 4, m.in)
		f.add("base_model.model."+m.name+".lora_B.weight", tensor.F32, m.out, 4)
	}
	return f
}

// tokenizer is a tokenizer.json with so many ids, the last of them an added one.
func tokenizer(ids int) string {
	vocab := make(map[string]int)
	for i := range ids - 1 {
		vocab[strings.Repeat("a", i+1)] = i
	}
	data, err := json.Marshal(map[string]any{
		"model":        map[string]any{"type": "BPE", "vocab": vocab, "merges": []string{"a a"}},
		"added_tokens": []any{map[string]any{"id": ids - 1, "content": "</s>"}},
	})
	if err != nil {
		panic(err)
	}
	return string(data)
}

// add adds a tensor of noise, rounded to its type: of the size of weights, norms
// around 1.
func (f *fixture) add(name string, d tensor.DType, shape ...int64) {
	spec, err := tensor.NewSpec(name, d, shape)
	if err != nil {
		f.t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(7, uint64(len(f.specs))))
	values := make([]float64, spec.NumElements())
	for i := range values {
		values[i] = 0.05 * rng.NormFloat64()
		if strings.Contains(name, "norm") {
			values[i]++
		}
	}
	f.set(spec, values)
}

// set adds a tensor or replaces it.
func (f *fixture) set(spec tensor.Spec, values []float64) {
	if i := f.index(spec.Name); i >= 0 {
		f.specs[i] = spec
	} else {
		f.specs = append(f.specs, spec)
	}
	f.values[spec.Name] = decode(spec.DType, encode(spec.DType, values))
}

// reshape gives a tensor another shape and new noise.
func (f *fixture) reshape(name string, shape ...int64) {
	i := f.index(name)
	d := f.specs[i].DType
	f.remove(name)
	f.add(name, d, shape...)
}

func (f *fixture) remove(name string) {
	i := f.index(name)
	if i < 0 {
		f.t.Fatalf("no tensor %q", name)
	}
	f.specs = slices.Delete(f.specs, i, i+1)
	delete(f.values, name)
}

func (f *fixture) index(name string) int {
	return slices.IndexFunc(f.specs, func(s tensor.Spec) bool { return s.Name == name })
}

// cast stores every tensor as another type.
func (f *fixture) cast(d tensor.DType) {
	for _, s := range slices.Clone(f.specs) {
		s.DType = d
		f.set(s, f.values[s.Name])
	}
}

func encode(d tensor.DType, values []float64) []byte {
	codec, _ := block.For(d)
	data := make([]byte, int64(len(values))*d.Bits()/8)
	codec.Encode64(data, values)
	return data
}

func decode(d tensor.DType, data []byte) []float64 {
	codec, _ := block.For(d)
	values := make([]float64, int64(len(data))*8/d.Bits())
	codec.Decode64(values, data)
	return values
}

// write writes the folder and returns its path.
func (f *fixture) write() string {
	f.t.Helper()
	dir := f.t.TempDir()
	weights, config := "model.safetensors", "config.json"
	if f.adapter {
		weights, config = "adapter_model.safetensors", "adapter_config.json"
	}
	f.writeFile(dir, weights, f.weights(f.specs))
	if f.config != nil {
		data, err := json.Marshal(f.config)
		if err != nil {
			f.t.Fatal(err)
		}
		f.writeFile(dir, config, data)
	}
	for name, text := range f.files {
		f.writeFile(dir, name, []byte(text))
	}
	return dir
}

// writeSharded writes the folder in two files with an index that states a total size.
func (f *fixture) writeSharded(totalSize int64) string {
	f.t.Helper()
	dir := f.write()
	if err := os.Remove(filepath.Join(dir, "model.safetensors")); err != nil {
		f.t.Fatal(err)
	}
	half := len(f.specs) / 2
	fileOf := make(map[string]string)
	var names []string
	for name, specs := range map[string][]tensor.Spec{
		"model-00001-of-00002.safetensors": f.specs[:half], "model-00002-of-00002.safetensors": f.specs[half:],
	} {
		f.writeFile(dir, name, f.weights(specs))
		for _, s := range specs {
			fileOf[s.Name] = name
			names = append(names, s.Name)
		}
	}
	f.writeFile(dir, "model.safetensors.index.json", hfrepo.EncodeIndex(totalSize, names, fileOf))
	return dir
}

func (f *fixture) size() int64 {
	var n int64
	for _, s := range f.specs {
		n += s.Size()
	}
	return n
}

func (f *fixture) weights(specs []tensor.Spec) []byte {
	l, err := safetensors.NewLayout(specs, map[string]string{"format": "pt"})
	if err != nil {
		f.t.Fatal(err)
	}
	data := append(l.Header(), make([]byte, l.Size()-int64(len(l.Header())))...)
	for _, s := range specs {
		at, _ := l.Offset(s.Name)
		copy(data[at:], encode(s.DType, f.values[s.Name]))
	}
	return data
}

func (f *fixture) writeFile(dir, name string, data []byte) {
	f.t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), data, 0o666); err != nil {
		f.t.Fatal(err)
	}
}

func openPath(t *testing.T, path string) *checkpoint.Model {
	t.Helper()
	m, err := checkpoint.Open(path, hfrepo.Cache{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// quantize writes the folder as bitsandbytes stores it and returns the path.
func (f *fixture) quantize(o quant.Options) string {
	f.t.Helper()
	o.Output = filepath.Join(f.t.TempDir(), "codes")
	q, err := quant.Plan(openPath(f.t, f.write()), o)
	if err != nil {
		f.t.Fatal(err)
	}
	sink, err := checkpoint.Create(fsatomic.OS{}, q.Layout, false)
	if err != nil {
		f.t.Fatal(err)
	}
	r, err := engine.Run(f.t.Context(), q.Plan, []engine.Source{q.View}, oneSink{sink}, engine.Options{})
	if err != nil {
		f.t.Fatal(err)
	}
	if err := sink.Commit(q.Metadata(r.Hashes)); err != nil {
		f.t.Fatal(err)
	}
	return o.Output
}

type oneSink struct{ *checkpoint.Sink }

func (s oneSink) WriteAt(_ int, name string, p []byte, off int64) error {
	return s.Sink.WriteAt(name, p, off)
}

// editConfig changes the config of a folder that is written.
func editConfig(t *testing.T, dir string, edit func(map[string]any)) string {
	t.Helper()
	path := filepath.Join(dir, "config.json")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var config map[string]any
	if err := json.Unmarshal(data, &config); err != nil {
		t.Fatal(err)
	}
	edit(config)
	if data, err = json.Marshal(config); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o666); err != nil {
		t.Fatal(err)
	}
	return dir
}

// found lists the findings as "code tensor", sorted, each once.
func found(r *verify.Report) []string {
	var list []string
	for _, f := range r.Findings {
		list = append(list, strings.TrimSpace(f.Code+" "+f.Tensor))
	}
	slices.Sort(list)
	return slices.Compact(list)
}
