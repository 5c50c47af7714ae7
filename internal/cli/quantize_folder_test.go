package cli_test

import (
	"encoding/binary"
	"encoding/json"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/internal/fsatomic"
)

// writeAdapter writes a PEFT adapter of noise in float32.
func writeAdapter(t *testing.T, dir string, config map[string]any, shapes map[string][]int) {
	t.Helper()
	header, data := make(map[string]any), []byte{}
	random := rand.New(rand.NewPCG(5, 6))
	for _, name := range slices.Sorted(maps.Keys(shapes)) {
		shape := shapes[name]
		begin, n := len(data), 1
		for _, d := range shape {
			n *= d
		}
		for range n {
			data = binary.LittleEndian.AppendUint32(data, math.Float32bits(float32(random.NormFloat64())/8))
		}
		header[name] = map[string]any{"dtype": "F32", "shape": shape, "data_offsets": []int{begin, len(data)}}
	}
	encode := func(v any) []byte {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	head := encode(header)
	file := append(binary.LittleEndian.AppendUint64(nil, uint64(len(head))), append(head, data...)...)
	for name, content := range map[string][]byte{"adapter_model.safetensors": file, "adapter_config.json": encode(config)} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o666); err != nil {
			t.Fatal(err)
		}
	}
}

// TestQuantizeFolderFiles: the one pass takes the files that the merged folder would have:
// the tokenizer of an adapter that resizes the vocabulary, and the card that says where the
// model comes from.
func TestQuantizeFolderFiles(t *testing.T) {
	const vocabulary, width = 50, 16 // two tokens more than the base
	base := filepath.Join("..", "..", "testdata", "golden", "convert", "models", "qwen3")
	dir := t.TempDir()
	adapter := filepath.Join(dir, "adapter")
	if err := os.Mkdir(adapter, 0o777); err != nil {
		t.Fatal(err)
	}
	writeAdapter(t, adapter, map[string]any{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none",
		"target_modules": []string{"v_proj"}, "layers_to_transform": []int{0}, "modules_to_save": []string{"embed_tokens", "lm_head"}},
		map[string][]int{
			"base_model.model.model.embed_tokens.weight":                     {vocabulary, width},
			"base_model.model.lm_head.weight":                                {vocabulary, width},
			"base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight": {2, width},
			"base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight": {16, 2},
		})
	for _, name := range []string{"tokenizer.json", "tokenizer_config.json"} {
		text, err := os.ReadFile(filepath.Join(base, name))
		if err != nil {
			t.Fatal(err)
		}
		if name == "tokenizer.json" {
			var all map[string]any
			if err := json.Unmarshal(text, &all); err != nil {
				t.Fatal(err)
			}
			all["added_tokens"] = append(all["added_tokens"].([]any), map[string]any{"id": 18, "content": "<|new|>", "single_word": false,
				"lstrip": false, "rstrip": false, "normalized": false, "special": true})
			if text, err = json.Marshal(all); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(adapter, name), text, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, args := range [][]string{
		{"merge", "--base", base, "--adapter", adapter, "-o", at("merged"), "--dtype", "f32"},
		{"convert", at("merged"), "-o", at("merged.gguf"), "--dtype", "f32", "--name", "Model", "--pre", "qwen2"},
		{"quantize", at("merged.gguf"), "-o", at("steps.gguf"), "--type", "q8_0"},
		{"quantize", base, "--adapter", adapter, "-o", at("once.gguf"), "--type", "q8_0", "--name", "Model", "--pre", "qwen2"},
	} {
		if code, _, stderr := run(fsatomic.OS{}, noEnv, args...); code != 0 {
			t.Fatalf("%s: exit %d: %s", args, code, stderr)
		}
	}
	steps, once := read(t, at("steps.gguf"))[""], read(t, at("once.gguf"))[""]
	if steps != once || once == "" {
		t.Error("one pass makes another file than three commands")
	}
	for _, want := range []string{"<|new|>", "general.base_model.1.name"} {
		if !strings.Contains(once, want) {
			t.Errorf("no %s in the file", want)
		}
	}
}
