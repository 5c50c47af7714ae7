package verify_test

import (
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/verify"
)

// ggufCopy is a GGUF file that a test changes.
type ggufCopy struct {
	t     *testing.T
	keys  *gguf.Metadata
	specs []gguf.Spec
	data  map[string][]byte
}

// copyOf reads what llama.cpp's converter made of a folder.
func copyOf(t *testing.T, name string) *ggufCopy {
	t.Helper()
	f, err := gguf.Open(filepath.Join(convertGolden, "expected", name+".gguf"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c := &ggufCopy{t: t, keys: f.Metadata().Clone(), data: make(map[string][]byte)}
	for _, s := range f.Tensors() {
		section, err := f.Section(s.Name)
		if err != nil {
			t.Fatal(err)
		}
		data := make([]byte, s.Size())
		if _, err := section.ReadAt(data, 0); err != nil {
			t.Fatal(err)
		}
		c.specs, c.data[s.Name] = append(c.specs, gguf.Spec{Name: s.Name, Type: s.Type, Shape: s.Shape}), data
	}
	return c
}

func (c *ggufCopy) write() string {
	c.t.Helper()
	l, err := gguf.NewLayout(c.keys, c.specs, gguf.LayoutOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	data := append(l.Header(), make([]byte, l.Size()-int64(len(l.Header())))...)
	for _, s := range c.specs {
		at, _ := l.Offset(s.Name)
		copy(data[at:], c.data[s.Name])
	}
	path := filepath.Join(c.t.TempDir(), "model.gguf")
	if err := os.WriteFile(path, data, 0o666); err != nil {
		c.t.Fatal(err)
	}
	return path
}

func (c *ggufCopy) spec(name string) *gguf.Spec {
	c.t.Helper()
	i := slices.IndexFunc(c.specs, func(s gguf.Spec) bool { return s.Name == name })
	if i < 0 {
		c.t.Fatalf("no tensor %q", name)
	}
	return &c.specs[i]
}

func (c *ggufCopy) remove(name string) {
	s := *c.spec(name)
	c.specs = slices.DeleteFunc(c.specs, func(o gguf.Spec) bool { return o.Name == s.Name })
}

func (c *ggufCopy) swap(a, b string) { c.data[a], c.data[b] = c.data[b], c.data[a] }

// replace changes a key that is there.
func replace[T gguf.Scalar](c *ggufCopy, key string, v T) {
	c.t.Helper()
	if !c.keys.Replace(key, gguf.ValueOf(v)) {
		c.t.Fatalf("no key %s", key)
	}
}

// rowsFrom brings the rows of a tensor of so many heads into an order: row r of a head of
// D rows is what was row from(r, D).
func rowsFrom(data []byte, rows, heads int, from func(r, head int) int) []byte {
	head, row := rows/heads, len(data)/rows
	turned := make([]byte, 0, len(data))
	for r := range rows {
		at := r/head*head + from(r%head, head)
		turned = append(turned, data[at*row:(at+1)*row]...)
	}
	return turned
}

// The order that llama.cpp wants of what is in the order of transformers, and the inverse.
func pairs(r, head int) int  { return r%2*(head/2) + r/2 }
func halves(r, head int) int { return r/(head/2) + r%(head/2)*2 }

func (c *ggufCopy) turn(name string, heads int, from func(r, head int) int) {
	c.data[name] = rowsFrom(c.data[name], int(c.spec(name).Shape[0]), heads, from)
}

// addF32 adds to every value of a tensor in F32.
func (c *ggufCopy) addF32(name string, by float32) {
	data := c.data[name]
	for i := 0; i < len(data); i += 4 {
		v := math.Float32frombits(binary.LittleEndian.Uint32(data[i:])) + by
		binary.LittleEndian.PutUint32(data[i:], math.Float32bits(v))
	}
}

// cut leaves the first rows of a tensor.
func (c *ggufCopy) cut(name string, rows int64) {
	s := c.spec(name)
	s.Shape = tensor.Shape{rows, s.Shape[1]}
	c.data[name] = c.data[name][:int64(len(c.data[name]))*rows/48]
}

// inFile plants a fault in the GGUF file that was made of a folder.
func inFile(model string, edit func(*ggufCopy)) func(*testing.T, bool) (*verify.Report, error) {
	return func(t *testing.T, fault bool) (*verify.Report, error) {
		c := copyOf(t, model)
		c.keys.Delete("tokenizer.ggml.mask_token_id") // one of the models has one that is no token
		if fault {
			edit(c)
		}
		return checkConversion(t, filepath.Join(convertGolden, "models", model), c.write())
	}
}

// inFolderOf plants a fault in the folder that was made of a GGUF file.
func inFolderOf(model string, edit func(t *testing.T, dir string)) func(*testing.T, bool) (*verify.Report, error) {
	return func(t *testing.T, fault bool) (*verify.Report, error) {
		dir := copyFolder(t, filepath.Join(convertGolden, "models", model))
		for _, name := range []string{"tokenizer.model", "added_tokens.json"} { // have ids that are no rows, on purpose
			if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
		if fault {
			edit(t, dir)
		}
		return checkConversion(t, filepath.Join(convertGolden, "expected", model+".gguf"), dir)
	}
}

// inCopy plants a fault in the copy of a folder, which stays one of Hugging Face.
func inCopy(edit func(*fixture)) func(*testing.T, bool) (*verify.Report, error) {
	return func(t *testing.T, fault bool) (*verify.Report, error) {
		base, f := tinyLlama(t), tinyLlama(t)
		base.config["rope_theta"], f.config["rope_theta"] = 5e5, 500000
		if fault {
			edit(f)
		}
		return checkConversion(t, base.write(), f.write())
	}
}

func checkConversion(t *testing.T, base, converted string) (*verify.Report, error) {
	t.Helper()
	return verify.Conversion(t.Context(), openPath(t, base), openPath(t, converted), verify.Options{})
}

func copyFolder(t *testing.T, from string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "model")
	if err := os.CopyFS(dir, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// rewrite changes the bytes of a tensor of a folder.
func rewrite(t *testing.T, dir, name string, change func(spec tensor.Spec, data []byte) []byte) {
	t.Helper()
	m := openPath(t, dir)
	spec, ok := m.Lookup(name)
	if !ok {
		t.Fatalf("no tensor %q", name)
	}
	file, at := m.Origin(name)
	path := filepath.Join(dir, file)
	all, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	copy(all[at:], change(spec, slices.Clone(all[at:at+spec.Size()])))
	if err := os.WriteFile(path, all, 0o666); err != nil {
		t.Fatal(err)
	}
}

// conversionFaults are those that converters make, in both directions.
var conversionFaults = []planted{
	{fault: "rows of q not brought into pairs", code: "rows-permuted", check: inFile("llama3-7b1-chat", func(c *ggufCopy) {
		c.turn("blk.1.attn_q.weight", 4, halves)
	})},
	{fault: "rows of q brought into pairs twice", code: "rows-permuted", check: inFile("llama3-7b1-chat", func(c *ggufCopy) {
		c.turn("blk.1.attn_q.weight", 4, pairs)
	})},
	{fault: "rows of k by the heads of q", code: "rows-permuted", check: inFile("llama3-7b1-chat", func(c *ggufCopy) {
		c.turn("blk.0.attn_k.weight", 2, halves)
		c.turn("blk.0.attn_k.weight", 4, pairs)
	})},
	{fault: "rows of q in pairs where halves are turned", code: "rows-permuted", check: inFile("qwen3", func(c *ggufCopy) {
		c.turn("blk.0.attn_q.weight", 4, pairs)
	})},
	{fault: "two tensors in each other's place", code: "tensor-elsewhere", check: inFile("llama3-7b1-chat", func(c *ggufCopy) {
		c.swap("blk.0.ffn_gate.weight", "blk.0.ffn_up.weight")
	})},
	{fault: "layers in each other's place", code: "tensor-elsewhere", check: inFile("llama3-7b1-chat", func(c *ggufCopy) {
		c.swap("blk.0.attn_q.weight", "blk.1.attn_q.weight")
	})},
	{fault: "experts stacked in another order", code: "value-differs", check: inFile("mixtral", func(c *ggufCopy) {
		data := c.data["blk.0.ffn_up_exps.weight"]
		third := len(data) / 3
		c.data["blk.0.ffn_up_exps.weight"] = slices.Concat(data[third:], data[:third])
	})},
	{fault: "a norm of Gemma without the 1", code: "norm-shift", check: inFile("gemma3", func(c *ggufCopy) { c.addF32("blk.0.ffn_norm.weight", -1) })},
	{fault: "a norm of Gemma with the 1 twice", code: "norm-shift", check: inFile("gemma3", func(c *ggufCopy) { c.addF32("output_norm.weight", 1) })},
	{fault: "a norm of Llama with a 1", code: "norm-shift", check: inFile("llama3-7b1-chat", func(c *ggufCopy) { c.addF32("output_norm.weight", 1) })},
	{fault: "a square matrix of GPT-2 not transposed", code: "tensor-transposed", check: inFile("gpt2", func(c *ggufCopy) {
		data := c.data["blk.0.attn_output.weight"]
		width := len(data) / (16 * 16)
		turned := make([]byte, 0, len(data))
		for i := range 16 * 16 {
			turned = append(turned, data[(i%16*16+i/16)*width:][:width]...)
		}
		c.data["blk.0.attn_output.weight"] = turned
	})},
	{fault: "a matrix of GPT-2 not transposed", code: "tensor-transposed", check: inFile("gpt2", func(c *ggufCopy) {
		s := c.spec("blk.0.ffn_up.weight").Shape
		c.spec("blk.0.ffn_up.weight").Shape = tensor.Shape{s[1], s[0]}
	})},
	{fault: "a tensor of a file is missing", code: "convert-missing", check: inFile("llama3-7b1-chat", func(c *ggufCopy) { c.remove("blk.1.ffn_down.weight") })},
	{fault: "the factors of Llama 3 are missing", code: "convert-missing", check: inFile("llama3-7b1-chat", func(c *ggufCopy) { c.remove("rope_freqs.weight") })},
	{fault: "the factors of Llama 3 are others", code: "value-differs", check: inFile("llama3-7b1-chat", func(c *ggufCopy) { c.addF32("rope_freqs.weight", 0.5) })},
	{fault: "the lowest bit of a value in a file", code: "value-differs", check: inFile("llama3-7b1-chat", func(c *ggufCopy) { c.data["blk.1.attn_v.weight"][6] ^= 1 })},
	{fault: "the head of a file is lost", code: "head-lost", check: inFile("gpt2-head", func(c *ggufCopy) { c.remove("output.weight") })},
	{fault: "a file has a head of its own", code: "head-untied", check: inFile("llama3-7b1-chat", func(c *ggufCopy) {
		s := *c.spec("token_embd.weight")
		s.Name = "output.weight"
		c.specs = append(c.specs, s)
		c.data[s.Name] = slices.Clone(c.data["token_embd.weight"])
		c.data[s.Name][3] ^= 2
	})},
	{fault: "tokens of a file are lost", code: "vocabulary-lost", check: inFile("qwen3", func(c *ggufCopy) {
		tokens, _ := c.keys.Strings("tokenizer.ggml.tokens")
		replaceTokens(c, tokens[:17])
	})},
	{fault: "rows of the last tokens are lost", code: "rows-missing", check: inFile("qwen3", func(c *ggufCopy) { c.cut("token_embd.weight", 17) })},
	{fault: "another epsilon", code: "key-differs", check: inFile("llama3-7b1-chat", func(c *ggufCopy) {
		replace(c, "llama.attention.layer_norm_rms_epsilon", float32(1e-6))
	})},
	{fault: "another end of text", code: "key-differs", check: inFile("qwen3", func(c *ggufCopy) { replace(c, "tokenizer.ggml.eos_token_id", uint32(14)) })},
	{fault: "another context length", code: "key-differs", check: inFile("qwen3", func(c *ggufCopy) { replace(c, "qwen3.context_length", uint32(4096)) })},
	{fault: "key-value heads not stated", code: "key-differs", check: inFile("qwen3", func(c *ggufCopy) { c.keys.Delete("qwen3.attention.head_count_kv") })},
	{fault: "the size of a head not stated", code: "key-differs", check: inFile("qwen3", func(c *ggufCopy) { c.keys.Delete("qwen3.attention.key_length") })},
	{fault: "the base of the rotation not stated", code: "key-differs", check: inFile("llama3-7b1-chat", func(c *ggufCopy) { c.keys.Delete("llama.rope.freq_base") })},
	{fault: "the epsilon not stated", code: "key-missing", check: inFile("qwen3", func(c *ggufCopy) { c.keys.Delete("qwen3.attention.layer_norm_rms_epsilon") })},
	{fault: "the scaling of the rotation lost", code: "key-differs", check: inFile("yarn", func(c *ggufCopy) { c.keys.Delete("qwen2.rope.scaling.type") })},
	{fault: "another factor of the scaling", code: "key-differs", check: inFile("linear", func(c *ggufCopy) { replace(c, "llama.rope.scaling.factor", float32(4)) })},
	{fault: "another number of experts used", code: "key-differs", check: inFile("mixtral", func(c *ggufCopy) { replace(c, "llama.expert_used_count", uint32(1)) })},
	{fault: "another window", code: "key-differs", check: inFile("gemma3", func(c *ggufCopy) { replace(c, "gemma3.attention.sliding_window", uint32(8)) })},
	{fault: "two tokens in each other's place", code: "token-differs", check: inFile("qwen3", func(c *ggufCopy) {
		tokens, _ := c.keys.Strings("tokenizer.ggml.tokens")
		tokens[3], tokens[4] = tokens[4], tokens[3]
		c.keys.Replace("tokenizer.ggml.tokens", gguf.ArrayOf(tokens))
	})},
	{fault: "merges in another order", code: "token-differs", check: inFile("qwen3", func(c *ggufCopy) {
		merges, _ := c.keys.Strings("tokenizer.ggml.merges")
		merges[0], merges[1] = merges[1], merges[0]
		c.keys.Replace("tokenizer.ggml.merges", gguf.ArrayOf(merges))
	})},
	{fault: "merges are lost", code: "token-differs", check: inFile("qwen3", func(c *ggufCopy) {
		merges, _ := c.keys.Strings("tokenizer.ggml.merges")
		c.keys.Replace("tokenizer.ggml.merges", gguf.ArrayOf(merges[:len(merges)-1]))
	})},
	{fault: "a merge too many", code: "token-differs", check: inFile("qwen3", func(c *ggufCopy) {
		merges, _ := c.keys.Strings("tokenizer.ggml.merges")
		c.keys.Replace("tokenizer.ggml.merges", gguf.ArrayOf(append(merges, "a a")))
	})},
	{fault: "no token in front of texts", code: "key-differs", check: inFile("qwen3", func(c *ggufCopy) { replace(c, "tokenizer.ggml.add_bos_token", false) })},
	{fault: "the token in front of texts not stated", code: "key-differs", check: inFile("qwen3", func(c *ggufCopy) { c.keys.Delete("tokenizer.ggml.add_bos_token") })},
	{fault: "two tokens in each other's place on the way back", code: "token-differs", check: inFolderOf("qwen3", func(t *testing.T, dir string) {
		edited(t, dir, "tokenizer.json", `"a"`, `"A"`)
	})},
	{fault: "the chat template is lost", code: "template-missing", check: inFile("roberta", func(c *ggufCopy) { c.keys.Delete("tokenizer.chat_template") })},
	{fault: "another chat template", code: "key-differs", check: inFile("roberta", func(c *ggufCopy) {
		if !c.keys.Replace("tokenizer.chat_template", gguf.ValueOf("{{ x }}")) {
			c.t.Fatal("no template")
		}
	})},

	{fault: "rows of q left in pairs on the way back", code: "rows-permuted", check: inFolderOf("llama3-7b1-chat", func(t *testing.T, dir string) {
		rewrite(t, dir, q1, func(s tensor.Spec, data []byte) []byte { return rowsFrom(data, int(s.Shape[0]), 4, pairs) })
	})},
	{fault: "a bit on the way back", code: "value-differs", check: inFolderOf("qwen3", func(t *testing.T, dir string) {
		rewrite(t, dir, v1, func(_ tensor.Spec, data []byte) []byte { data[10] ^= 1; return data })
	})},
	{fault: "two tensors in each other's place on the way back", code: "tensor-elsewhere", check: inFolderOf("qwen3", func(t *testing.T, dir string) {
		var gate []byte
		rewrite(t, dir, "model.layers.0.mlp.gate_proj.weight", func(_ tensor.Spec, data []byte) []byte { gate = data; return data })
		rewrite(t, dir, up0, func(tensor.Spec, []byte) []byte { return gate })
	})},
	{fault: "a norm of Gemma with the 1 on the way back", code: "norm-shift", check: inFolderOf("gemma3", func(t *testing.T, dir string) {
		rewrite(t, dir, "model.layers.1.input_layernorm.weight", func(s tensor.Spec, data []byte) []byte {
			x := decode(s.DType, data)
			for i := range x {
				x[i]++
			}
			return encode(s.DType, x)
		})
	})},
	{fault: "the scaling of Llama 3 lost on the way back", code: "key-differs", check: inFolderOf("llama3-7b1-chat", func(t *testing.T, dir string) {
		edited(t, dir, "config.json", `"rope_type": "llama3"`, `"rope_type": "default"`)
	})},
	{fault: "another factor of Llama 3 on the way back", code: "key-differs", check: inFolderOf("llama3-7b1-chat", func(t *testing.T, dir string) {
		edited(t, dir, "config.json", `"high_freq_factor": 4.0`, `"high_freq_factor": 4.001`)
	})},
	{fault: "another epsilon on the way back", code: "key-differs", check: inFolderOf("qwen3", func(t *testing.T, dir string) {
		edited(t, dir, "config.json", "1e-05", "1e-06")
	})},
	{fault: "another base of the rotation on the way back", code: "key-differs", check: inFolderOf("llama3-7b1-chat", func(t *testing.T, dir string) {
		edited(t, dir, "config.json", `"rope_theta": 100.0`, `"rope_theta": 500000.0`)
	})},

	{fault: "a bit of a copy", code: "value-differs", check: inCopy(func(f *fixture) { f.values[up0][3] *= 1 + 0x1p-7 })},
	{fault: "a tensor missing in a copy", code: "convert-missing", check: inCopy(func(f *fixture) { f.remove(up0) })},
	{fault: "another setting of a copy", code: "key-differs", check: inCopy(func(f *fixture) { f.config["rope_theta"] = 1e6 })},
	{fault: "the head of a copy is lost", code: "head-lost", check: inCopy(func(f *fixture) { f.remove("lm_head.weight") })},
}

// replaceTokens gives a file other tokens, and as many kinds of them.
func replaceTokens(c *ggufCopy, tokens []string) {
	kinds, _ := c.keys.Get("tokenizer.ggml.token_type")
	ints, err := kinds.Ints()
	if err != nil {
		c.t.Fatal(err)
	}
	var short []int32
	for _, k := range ints[:len(tokens)] {
		short = append(short, int32(k))
	}
	c.keys.Replace("tokenizer.ggml.tokens", gguf.ArrayOf(tokens))
	c.keys.Replace("tokenizer.ggml.token_type", gguf.ArrayOf(short))
}
