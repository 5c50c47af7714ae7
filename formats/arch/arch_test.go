package arch_test

import (
	"slices"
	"testing"

	"github.com/loratool/loratool/formats/arch"
)

// TestEmbeddings guards which two tensors are taken for tied embeddings.
func TestEmbeddings(t *testing.T) {
	for _, c := range []struct {
		name         string
		architecture string
		names        []string
		embedding    string // empty for none
		head         string
	}{
		{"llama", "LlamaForCausalLM", []string{"model.norm.weight", "model.embed_tokens.weight"}, "model.embed_tokens.weight", "lm_head.weight"},
		{"gpt2", "GPT2LMHeadModel", []string{"transformer.wte.weight", "transformer.wpe.weight"}, "transformer.wte.weight", "lm_head.weight"},
		{"gpt2 without head class", "GPT2Model", []string{"wte.weight"}, "wte.weight", "lm_head.weight"},
		{"neox", "GPTNeoXForCausalLM", []string{"gpt_neox.embed_in.weight"}, "gpt_neox.embed_in.weight", "embed_out.weight"},
		{"t5", "T5ForConditionalGeneration", []string{"encoder.embed_tokens.weight", "shared.weight"}, "shared.weight", "lm_head.weight"},
		{"language model inside", "LlavaForConditionalGeneration", []string{"language_model.model.embed_tokens.weight"},
			"language_model.model.embed_tokens.weight", "language_model.lm_head.weight"},
		{"language model as a component of model", "Qwen2_5_VLForConditionalGeneration", []string{"model.language_model.embed_tokens.weight"},
			"model.language_model.embed_tokens.weight", "lm_head.weight"},
		{"the nearest of two", "X", []string{"audio.decoder.model.embed_tokens.weight", "model.embed_tokens.weight"}, "model.embed_tokens.weight", "lm_head.weight"},
		{"bert", "BertForMaskedLM", []string{"bert.embeddings.word_embeddings.weight"}, "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"},
		{"roberta", "RobertaForMaskedLM", []string{"roberta.embeddings.word_embeddings.weight"}, "roberta.embeddings.word_embeddings.weight", "lm_head.decoder.weight"},
		{"distilbert", "DistilBertForMaskedLM", []string{"distilbert.embeddings.word_embeddings.weight"}, "distilbert.embeddings.word_embeddings.weight", "vocab_projector.weight"},
		{"another masked model", "NewForMaskedLM", []string{"new.embed_tokens.weight"}, "new.embed_tokens.weight", "lm_head.weight"},
		{"part of a component", "X", []string{"model.not_embed_tokens.weight", "model.embed_tokens.weight_scale"}, "", ""},
		{"nothing", "X", nil, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			embedding, head, ok := arch.Embeddings(func(yield func(string) bool) {
				for _, n := range c.names {
					if !yield(n) {
						return
					}
				}
			}, c.architecture)
			if ok != (c.embedding != "") || embedding != c.embedding || head != c.head {
				t.Errorf("got %q, %q, %v; want %q, %q", embedding, head, ok, c.embedding, c.head)
			}
		})
	}
}

func TestHasHead(t *testing.T) {
	for architecture, want := range map[string]bool{
		"LlamaForCausalLM": true, "GPT2LMHeadModel": true, "GPT2DoubleHeadsModel": true, "T5ForConditionalGeneration": true,
		"BertForMaskedLM": true, "LlamaModel": false, "BertForSequenceClassification": false, "": false,
	} {
		if got := arch.HasHead(architecture); got != want {
			t.Errorf("HasHead(%q) is %v, want %v", architecture, got, want)
		}
	}
}

func TestOrientation(t *testing.T) {
	for _, c := range []struct {
		modelType, module string
		want              bool
	}{
		{"gpt2", "transformer.h.0.attn.c_proj", true},
		{"gpt2", "c_attn", true},
		{"gpt2", "transformer.h.0.attn.q_proj", false},
		{"gpt2", "transformer.h.0.c_proj.inner", false},
		{"llama", "model.layers.0.c_proj", false},
		{"", "c_proj", false},
	} {
		if got := arch.StoresConv1D(c.modelType, c.module); got != c.want {
			t.Errorf("StoresConv1D(%q, %q) is %v, want %v", c.modelType, c.module, got, c.want)
		}
	}
	if !arch.StoresExpertsTransposed("gpt_oss") || arch.StoresExpertsTransposed("mixtral") {
		t.Error("orientation of stacked experts")
	}
}

func TestOldNames(t *testing.T) {
	got := arch.OldNames("model.layers.0.mlp.experts.1.w1.weight")
	if want := []string{"model.layers.0.block_sparse_moe.experts.1.w1.weight"}; !slices.Equal(got, want) {
		t.Errorf("old names %q, want %q", got, want)
	}
	if back := arch.OldNames(got[0]); len(back) != 1 || back[0] != "model.layers.0.mlp.experts.1.w1.weight" {
		t.Errorf("and back: %q", back)
	}
	if got := arch.OldNames("model.norm.weight"); len(got) != 0 {
		t.Errorf("old names %q of a name without", got)
	}
}
