package checkpoint_test

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/hfrepo"
)

func summaryOf(t *testing.T, path string) checkpoint.GGUFSummary {
	t.Helper()
	s, ok := mustOpen(t, path, hfrepo.Cache{}).GGUFSummary()
	if !ok {
		t.Fatal("no summary")
	}
	return s
}

// summaryText writes a summary out, without the template, for comparisons.
func summaryText(s checkpoint.GGUFSummary) string {
	text := fmt.Sprintf("%s %s %q %s %s v%d a%d types %v files %v", s.Kind, s.Architecture, s.Name, s.SizeLabel, s.FileType, s.Version, s.Alignment, s.Types, s.Files)
	if k := s.Tokenizer; k != nil {
		text += fmt.Sprintf(" tokenizer %s %s %d %d %v %d", k.Model, k.Pre, k.Tokens, k.Merges, k.Special, len(k.ChatTemplate))
	}
	if a := s.Adapter; a != nil {
		text += fmt.Sprintf(" adapter %+v", *a)
	}
	return text
}

// TestGGUFSummary has what llama.cpp's tools write.
func TestGGUFSummary(t *testing.T) {
	for path, want := range map[string]string{
		"models/llama/expected-f16.gguf": `model llama "tiny-llama" 37K F16 v3 a32 types [{f16 16 36864 73728} {f32 5 160 640}]` +
			` files [{expected-f16.gguf 82976 21}] tokenizer llama default 288 0 [{bos 1 <s>} {eos 2 </s>}] 71`,
		"models/llama/base-q8_0.gguf": `model llama "tiny-llama" 37K Q8_0 v3 a32 types [{q8_0 16 36864 39168} {f32 5 160 640}]` +
			` files [{base-q8_0.gguf 48416 21}] tokenizer llama default 288 0 [{bos 1 <s>} {eos 2 </s>}] 71`,
		"models/split": `model llama "tiny-llama" 37K F16 v3 a32 types [{f16 16 36864 73728} {f32 5 160 640}]` +
			` files [{tiny-00001-of-00004.gguf 57120 6} {tiny-00002-of-00004.gguf 6880 6} {tiny-00003-of-00004.gguf 15968 6} {tiny-00004-of-00004.gguf 3488 3}]` +
			` tokenizer llama default 288 0 [{bos 1 <s>} {eos 2 </s>}] 71`,
		"models/llama3/expected-bf16.gguf": `model llama "tiny-llama3" 33K BF16 v3 a32 types [{bf16 15 33280 66560} {f32 6 168 672}]` +
			` files [{expected-bf16.gguf 73504 21}] tokenizer gpt2 llama-bpe 272 7 [{eos 265 <|im_end|>} {padding 263 <|endoftext|>}] 14`,
		"models/llama/lora-all/expected-f16.gguf": `adapter llama "Peft"   v3 a32 types [{f16 28 4096 8192}] files [{expected-f16.gguf 10336 28}]` +
			` adapter {Type:lora Alpha:8 Modules:14 Ranks:[{Rank:4 Modules:14}]}`,
		"models/llama/lora-embed/expected-f32.gguf": `adapter llama "Peft"   v3 a32 types [{f32 12 6336 25344}] files [{expected-f32.gguf 26400 12}]` +
			` adapter {Type:lora Alpha:16 Modules:6 Ranks:[{Rank:2 Modules:2} {Rank:8 Modules:4}]}`,
		"models/mixtral/lora-experts/expected-f32.gguf": `adapter llama "Peft"   v3 a32 types [{f32 16 6656 26624}] files [{expected-f32.gguf 28128 16}]` +
			` adapter {Type:lora Alpha:8 Modules:8 Ranks:[{Rank:4 Modules:8}]}`,
		"python/values.gguf": `model llama ""   v3 a32 types [] files [{values.gguf 2144 0}]`,
	} {
		s := summaryOf(t, filepath.Join(goldenGGUF, path))
		if got := summaryText(s); got != want || len(s.Problems) != 0 {
			t.Errorf("%s:\n%s, want\n%s\nproblems %q", path, got, want, s.Problems)
		}
	}
	if s := summaryOf(t, filepath.Join(goldenGGUF, "imatrix.gguf")); s.Kind != "imatrix" || s.Architecture != "" || s.Tokenizer != nil {
		t.Errorf("%+v", s)
	}
	dir := t.TempDir()
	m := mustOpen(t, writeFile(t, dir, "m.safetensors", weights(t, nil, spec("w", 1))), hfrepo.Cache{})
	if s, ok := m.GGUFSummary(); ok || s.Kind != "" {
		t.Errorf("a summary of safetensors: %+v", s)
	}
}

// TestGGUFFileType names the mixes by the numbers that the reference has for them; a
// number that was removed or is new stays a number.
func TestGGUFFileType(t *testing.T) {
	for n, want := range map[uint32]string{0: "F32", 2: "Q4_0", 10: "Q2_K", 15: "Q4_K_M", 30: "IQ4_XS", 38: "MXFP4_MOE", 41: "Q2_0", 4: "number 4", 33: "number 33", 42: "number 42"} {
		s := summaryOf(t, writeFile(t, t.TempDir(), "m.gguf", ggufFile(t, []pair{{"general.file_type", gguf.ValueOf(n)}})))
		if s.FileType != want {
			t.Errorf("%d: %s, want %s", n, s.FileType, want)
		}
	}
}

// TestGGUFProblems guards that whatever is odd is said and hides nothing else.
func TestGGUFProblems(t *testing.T) {
	text, tokens := gguf.ValueOf[string], gguf.ArrayOf([]string{"a", "b"})
	rng := rand.New(rand.NewPCG(1, 1))
	f32 := func(name string, shape ...int64) blob { return randomBlocks(rng, name, gguf.F32, shape...) }
	lora := []pair{{"general.type", text("adapter")}, {"adapter.type", text("lora")}, {"adapter.lora.alpha", gguf.ValueOf(float32(2))}}
	for _, c := range []struct {
		name  string
		keys  []pair
		blobs []blob
		want  []string // part of each problem, in order
	}{
		{"nothing", nil, nil, nil},
		{"architecture is a number", []pair{{"general.architecture", gguf.ValueOf(uint32(1))}}, nil, []string{`key "general.architecture": u32, not a string`}},
		{"file type is a text", []pair{{"general.file_type", text("Q4")}}, nil, []string{`key "general.file_type": str, not an integer`}},
		{"file type is too large", []pair{{"general.file_type", gguf.ValueOf(uint64(1 << 63))}}, nil, []string{"beyond 63 bits"}},
		{"tokens are numbers", []pair{{"tokenizer.ggml.tokens", gguf.ArrayOf([]int32{1})}}, nil, []string{`key "tokenizer.ggml.tokens": array of 1 i32, not an array of strings`}},
		{"tokens are one text", []pair{{"tokenizer.ggml.tokens", text("a")}}, nil, []string{"str, not an array of strings"}},
		{"no such token", []pair{{"tokenizer.ggml.tokens", tokens}, {"tokenizer.ggml.bos_token_id", gguf.ValueOf(uint32(2))}}, nil, []string{`"tokenizer.ggml.bos_token_id": is 2, there are 2 tokens`}},
		{"token below zero", []pair{{"tokenizer.ggml.tokens", tokens}, {"tokenizer.ggml.bos_token_id", gguf.ValueOf(int32(-1))}}, nil, []string{"is -1"}},
		{"token is a text", []pair{{"tokenizer.ggml.bos_token_id", text("a")}}, nil, []string{"str, not an integer"}},
		{"last token", []pair{{"tokenizer.ggml.tokens", tokens}, {"tokenizer.ggml.eos_token_id", gguf.ValueOf(uint8(1))}}, nil, nil},
		{"a good pair, and a norm", lora, []blob{f32("q.weight.lora_a", 2, 8), f32("q.weight.lora_b", 8, 2), f32("blk.0.attn_norm.weight", 8)}, nil},
		{"rank 1, not stored", lora, []blob{f32("q.weight.lora_a", 8), f32("q.weight.lora_b", 8, 1)}, nil},
		{"no second", lora, []blob{f32("q.weight.lora_a", 2, 8)}, []string{`tensor "q.weight.lora_a": there is no "q.weight.lora_b"`}},
		{"no first", lora, []blob{f32("q.weight.lora_b", 8, 2)}, []string{`tensor "q.weight.lora_b": there is no "q.weight.lora_a"`}},
		{"two ranks", lora, []blob{f32("q.weight.lora_a", 3, 8), f32("q.weight.lora_b", 8, 2)}, []string{`of rank 2, "q.weight.lora_a" of rank 3`}},
		{"embedding like a matrix", lora, []blob{f32("token_embd.weight.lora_a", 2, 8), f32("token_embd.weight.lora_b", 8, 2)}, []string{"of rank 2", "of rank 8"}},
		{"a whole weight", lora, []blob{f32("q.weight", 8, 8)}, []string{`tensor "q.weight" is no factor of a LoRA`}},
		{"another kind", []pair{lora[0], {"adapter.type", text("ia3")}, lora[2]}, nil, []string{`"adapter.type": is "ia3"`}},
		{"alpha is a text", []pair{lora[0], lora[1], {"adapter.lora.alpha", text("2")}}, nil, []string{`"adapter.lora.alpha": str, not a floating-point number`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := summaryOf(t, writeFile(t, t.TempDir(), "m.gguf", ggufFile(t, c.keys, c.blobs...)))
			all := strings.Join(s.Problems, "\n")
			if (len(s.Problems) == 0) != (len(c.want) == 0) {
				t.Errorf("problems %q", s.Problems)
			}
			for _, want := range c.want {
				if !strings.Contains(all, want) {
					t.Errorf("problems %q, want %s", s.Problems, want)
				}
			}
		})
	}
	dir := t.TempDir()
	whole := ggufFile(t, nil, f32("w", 4)) // 16 bytes, padded to 32
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"trailing.gguf": {append(whole, 1, 2, 3), "trailing.gguf: 3 bytes behind the last tensor"},
		"short.gguf":    {whole[:len(whole)-9], "short.gguf: the padding of the last tensor lacks 9 bytes"},
	} {
		if s := summaryOf(t, writeFile(t, dir, name, c.data)); len(s.Problems) != 1 || !strings.HasPrefix(s.Problems[0], c.want) {
			t.Errorf("%s: problems %q", name, s.Problems)
		}
	}
}
