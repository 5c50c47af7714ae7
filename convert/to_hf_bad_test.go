package convert_test

import (
	"bytes"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/loratool/loratool/convert"
	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
)

// spoiled writes a golden file with other keys and tensors.
func spoiled(t *testing.T, name string, keys func(*gguf.Metadata), tensors func([]gguf.Spec) []gguf.Spec) string {
	t.Helper()
	from, err := gguf.Open(filepath.Join(golden, "convert", "expected", name+".gguf"))
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	m := from.Metadata().Clone()
	if keys != nil {
		keys(m)
	}
	var specs []gguf.Spec
	for _, s := range from.Tensors() {
		specs = append(specs, s.Spec)
	}
	if tensors != nil {
		specs = tensors(specs)
	}
	l, err := gguf.NewLayout(m, specs, gguf.LayoutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	data := l.Header()
	for _, s := range l.Tensors() {
		data = append(data, make([]byte, s.Offset-int64(len(data)))...)
		raw := make([]byte, s.Size())
		if section, err := from.Section(s.Name); err == nil {
			if _, err := section.ReadAt(raw, 0); err != nil && int64(len(raw)) == section.Size() {
				t.Fatal(err)
			}
		}
		data = append(data, raw...)
	}
	const alignment = 32
	data = append(data, bytes.Repeat([]byte{0}, (alignment-len(data)%alignment)%alignment)...)
	path := filepath.Join(t.TempDir(), "spoiled.gguf")
	if err := os.WriteFile(path, data, 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}

// without leaves out tensors whose name has a text.
func without(text string) func([]gguf.Spec) []gguf.Spec {
	return func(specs []gguf.Spec) (kept []gguf.Spec) {
		for _, s := range specs {
			if !strings.Contains(s.Name, text) {
				kept = append(kept, s)
			}
		}
		return kept
	}
}

// renamed gives a tensor another name.
func renamed(from, to string) func([]gguf.Spec) []gguf.Spec {
	return func(specs []gguf.Spec) []gguf.Spec {
		for i := range specs {
			if specs[i].Name == from {
				specs[i].Name = to
			}
		}
		return specs
	}
}

func put[T gguf.Scalar](key string, v T) func(*gguf.Metadata) {
	return func(m *gguf.Metadata) {
		if !m.Replace(key, gguf.ValueOf(v)) {
			m.Set(key, gguf.ValueOf(v))
		}
	}
}

// TestFromGGUFRefused has models that can't be brought to transformers as what they are.
// All are errors of the input that say what was seen and what was expected.
func TestFromGGUFRefused(t *testing.T) {
	for _, c := range []struct {
		name, model string
		keys        func(*gguf.Metadata)
		tensors     func([]gguf.Spec) []gguf.Spec
		want        string
	}{
		{"architecture", "qwen3", put("general.architecture", "mamba"), nil, `"mamba", for which there are no tables; there are for bert`},
		{"no architecture", "qwen3", put("general.architecture", ""), nil, "no tables"},
		{"adapter", "qwen3", put("general.type", "lora"), nil, `general.type is "lora"`},
		{"key", "qwen3", put("qwen3.attention.scale", float32(2)), nil, `key "qwen3.attention.scale": it is not known what it changes`},
		{"layers", "qwen3", put("qwen3.block_count", uint32(3)), nil, `no tensor "blk.2.attn_norm.weight"`},
		{"layers too few", "qwen3", put("qwen3.block_count", uint32(1)), nil, "is of a layer that qwen3.block_count does not have: there are 1"},
		{"no layers", "qwen3", put("qwen3.block_count", uint32(0)), nil, "state 0 layers"},
		{"very many heads", "qwen3", put("qwen3.attention.head_count", uint32(math.MaxUint32)), nil, "4294967295 heads"},
		{"heads", "llama3-7b1-chat", put("llama.attention.head_count", uint32(3)), nil, "is not that of 3 heads"},
		{"context", "qwen3", put("qwen3.context_length", "long"), nil, "qwen3.context_length"},
		{"tensor", "qwen3", nil, renamed("blk.0.attn_q.weight", "blk.0.attn_qq.weight"), `nearest names: "blk.#.attn_q"`},
		{"tensor missing", "qwen3", nil, without("blk.1.ffn_up."), `no tensor "blk.1.ffn_up.weight"`},
		{"embedding missing", "qwen3", nil, without("token_embd"), `no tensor "token_embd.weight"`},
		{"bias missing", "llama3-7b1-chat", nil, without("blk.1.attn_q.bias"), `no "blk.1.attn_q.bias": the file is incomplete`},
		{"experts missing", "mixtral", nil, without("blk.1.ffn_up_exps"), `no tensor "blk.1.ffn_up_exps.weight"`},
		{"number of experts", "mixtral", put("llama.expert_count", uint32(4)), nil, "is not that of a stack of 4 experts"},
		{"negative experts", "mixtral", put("llama.expert_count", int32(-1)), nil, "-1 experts"},
		{"vocabulary", "mixtral", put("llama.vocab_size", uint32(7)), nil, "has 48 rows, llama.vocab_size is 7"},
		{"rotated part", "mixtral", put("llama.rope.dimension_count", uint32(2)), nil, "2 of them rotated"},
		{"scaling", "qwen3", put("qwen3.rope.scaling.type", "longrope"), nil, `"longrope"; linear and yarn`},
		{"factor", "qwen3", put("qwen3.rope.scaling.type", "linear"), nil, "no key qwen3.rope.scaling.factor"},
		{"not a number", "qwen3", put("qwen3.rope.freq_base", float32(math.NaN())), nil, "rope_theta"},
		{"factors", "llama3-7b1-chat", put("llama.rope.freq_base", float32(123)), nil, "are not those of a Llama 3 scaling"},
		{"tokenizer", "qwen3", put("tokenizer.ggml.model", "rwkv"), nil, `its tokenizer is "rwkv"`},
		{"pre-tokenizer", "qwen3", put("tokenizer.ggml.pre", "falcon"), nil, `its pre-tokenizer is "falcon", of which`},
		{"more tokens", "qwen3", func(m *gguf.Metadata) { m.Replace("tokenizer.ggml.tokens", gguf.ArrayOf(make([]string, 60))) }, nil, "60 tokens, the embedding 48 rows"},
		{"fewer types", "qwen3", func(m *gguf.Metadata) { m.Replace("tokenizer.ggml.token_type", gguf.ArrayOf(make([]int32, 3))) }, nil, "type 0, which is none"},
		{"merges", "qwen3", func(m *gguf.Metadata) { m.Replace("tokenizer.ggml.merges", gguf.ArrayOf([]string{"ab"})) }, nil, `merge 0, "ab", is no pair`},
		{"merges of no tokens", "qwen3", func(m *gguf.Metadata) { m.Replace("tokenizer.ggml.merges", gguf.ArrayOf([]string{"a nothing"})) }, nil, "is no token"},
		{"scores", "gemma", func(m *gguf.Metadata) { m.Replace("tokenizer.ggml.scores", gguf.ArrayOf([]float32{1, 2})) }, nil, "2 scores"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, err := checkpoint.Open(spoiled(t, c.model, c.keys, c.tensors), hfrepo.Cache{})
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			_, err = convert.Plan(m, convert.Options{Output: filepath.Join(t.TempDir(), "out")})
			if _, ok := errors.AsType[*checkpoint.InputError](err); !ok || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want an error that says %q", err, c.want)
			}
		})
	}
}

// TestFromGGUFRecovered has what is found out although the keys do not say it.
func TestFromGGUFRecovered(t *testing.T) {
	plan := func(path string) *checkpoint.Model {
		h, err := convert.AsHF(open(t, path))
		if err != nil {
			t.Fatal(err)
		}
		return h.Model
	}
	scaling, err := plan(filepath.Join(golden, "convert", "expected", "llama3-7b1-chat.gguf")).Config.Object("rope_scaling")
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":64}`
	if got := strings.Join(strings.Fields(string(scaling.Encode(""))), ""); got != want {
		t.Errorf("rope_scaling %s, want %s", got, want)
	}
	headless := func(specs []gguf.Spec) []gguf.Spec {
		return slices.DeleteFunc(specs, func(s gguf.Spec) bool { return s.Name == "output.weight" })
	}
	// A head that is not stored is the embedding.
	for _, c := range []struct {
		tensors func([]gguf.Spec) []gguf.Spec
		tied    bool
	}{{nil, false}, {headless, true}} {
		if tied, err := plan(spoiled(t, "mixtral", nil, c.tensors)).Config.Bool("tie_word_embeddings"); err != nil || tied != c.tied {
			t.Errorf("tied is %v, %v; want %v", tied, err, c.tied)
		}
	}
	// llama-quantize leaves out dimensions of 1.
	trimmed := func(specs []gguf.Spec) []gguf.Spec {
		for i, s := range specs {
			if strings.Contains(s.Name, "ffn_gate_inp_shexp") {
				specs[i].Shape = tensor.Shape{s.Shape[len(s.Shape)-1]}
			}
		}
		return specs
	}
	m := plan(spoiled(t, "qwen2-moe", nil, trimmed))
	if s, ok := m.Lookup("model.layers.0.mlp.shared_expert_gate.weight"); !ok || !s.Shape.Equal(tensor.Shape{1, 16}) {
		t.Errorf("the gate is %v", s)
	}
}

// TestFromGGUFLayersOfOneSize takes a list of one number for each layer if all are one.
func TestFromGGUFLayersOfOneSize(t *testing.T) {
	list := func(n ...int32) func(*gguf.Metadata) {
		return func(m *gguf.Metadata) { m.Replace("qwen3.attention.head_count_kv", gguf.ArrayOf(n)) }
	}
	if _, err := convert.AsHF(open(t, spoiled(t, "qwen3", list(2, 2), nil))); err != nil {
		t.Error(err)
	}
	_, err := convert.AsHF(open(t, spoiled(t, "qwen3", list(2, 4), nil)))
	if err == nil || !strings.Contains(err.Error(), "layers of different sizes") {
		t.Errorf("%v", err)
	}
}

// TestFromGGUFConfig has settings that no key says as it is.
func TestFromGGUFConfig(t *testing.T) {
	deep := func(layers int) func([]gguf.Spec) []gguf.Spec {
		return func(specs []gguf.Spec) []gguf.Spec {
			for _, s := range specs {
				for i := 2; i < layers && strings.HasPrefix(s.Name, "blk.0."); i++ {
					s.Name = strings.Replace(s.Name[:len("blk.")]+"#"+s.Name[len("blk.0"):], "#", strconv.Itoa(i), 1)
					specs = append(specs, s)
					s.Name = "blk.0." + s.Name[len("blk."+strconv.Itoa(i)+"."):]
				}
			}
			return specs
		}
	}
	for _, c := range []struct {
		model         string
		keys          func(*gguf.Metadata)
		tensors       func([]gguf.Spec) []gguf.Spec
		setting, want string
	}{
		{"llama3-7b1-chat", nil, nil, "attention_bias", "true"},
		{"linear", nil, nil, "attention_bias", "false"},
		{"qwen3-moe", nil, nil, "norm_topk_prob", "true"},
		{"qwen2-moe", nil, nil, "norm_topk_prob", "false"},
		{"qwen3", nil, nil, "rms_norm_eps", "1e-05"},
		{"gemma2", nil, nil, "query_pre_attn_scalar", "8"},
		{"gemma2", put("gemma2.block_count", uint32(46)), deep(46), "query_pre_attn_scalar", "4"},
		{"gemma3", put("gemma3.block_count", uint32(62)), deep(62), "query_pre_attn_scalar", "4"},
		{"gemma3", put("gemma3.block_count", uint32(46)), deep(46), "query_pre_attn_scalar", "8"},
	} {
		h, err := convert.AsHF(open(t, spoiled(t, c.model, c.keys, c.tensors)))
		if err != nil {
			t.Errorf("%s: %v", c.model, err)
			continue
		}
		if v, ok := h.Model.Config.Get(c.setting); !ok || string(v.Encode("")) != c.want {
			t.Errorf("%s: %s is %s, want %s", c.model, c.setting, v.Encode(""), c.want)
		}
	}
	// A space is put in front of texts unless the file says otherwise.
	for name, prefix := range map[string]bool{"mixtral": true, "gemma": false} {
		folder := writeHF(t, filepath.Join(golden, "convert", "expected", name+".gguf"), convert.Options{}, engine.Options{Jobs: 1})
		data, err := os.ReadFile(filepath.Join(folder, "tokenizer.json"))
		if err != nil || strings.Contains(string(data), `"Prepend"`) != prefix {
			t.Errorf("%s: %v; a space in front: want %v", name, err, prefix)
		}
	}
}
