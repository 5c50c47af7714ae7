package hfrepo_test

import (
	"testing"

	"github.com/loratool/loratool/formats/hfrepo"
)

func TestIsSideFile(t *testing.T) {
	for _, name := range []string{
		"tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json",
		"vocab.txt", "merges.txt", "chat_template.jinja", "generation_config.json", "preprocessor_config.json",
		"modeling_custom.py", "LICENSE", "license", "LICENSE.txt", "NOTICE", "USE_POLICY.md", "qwen.tiktoken", "spiece.model",
	} {
		if !hfrepo.IsSideFile(name) {
			t.Errorf("%q is not copied", name)
		}
	}
	for _, name := range []string{
		"model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
		"pytorch_model.bin.index.json", "model.gguf", "consolidated.00.pth", "config.json", "adapter_config.json",
		"adapter_model.safetensors", "README.md", ".gitattributes", ".git", ".hidden.json", "training_args.bin", "trainer_state.json",
		"optimizer.pt", "params.json", "manifest.json", "out.partial-0123abcd", "x.partial-0123abcd.json", "tf_model.h5", "rng_state.pth", "noname",
	} {
		if hfrepo.IsSideFile(name) {
			t.Errorf("%q is copied", name)
		}
	}
}
