// Package arch knows what no file says about a model family: which of its
// layers are stored transposed, how its experts are named on disk and in
// memory, and which two tensors are the tied embeddings.
//
// It is data in typed tables; nothing here reads a file. The sources are the
// modelling files and the weight conversion tables of transformers 5.23.
package arch

import (
	"slices"
	"strings"
)

// conv1D are the model types whose linear layers are transformers' Conv1D, which
// stores a weight as (in, out).
var conv1D = map[string]bool{"gpt2": true, "openai-gpt": true, "imagegpt": true, "decision_transformer": true, "clvp": true, "clvp_decoder": true}

// conv1DModules are the names those layers have.
var conv1DModules = map[string]bool{"c_attn": true, "q_attn": true, "c_proj": true, "c_fc": true}

// StoresConv1D reports whether a module of a model type is stored as (in, out).
// It only decides square weights; all others show their orientation.
func StoresConv1D(modelType, module string) bool {
	return conv1D[modelType] && conv1DModules[module[strings.LastIndex(module, ".")+1:]]
}

// bodyPrefixes are what the names of the model without its head begin with, for the
// types whose published files were saved without the head although their config
// names it: base_model_prefix of transformers 5.23.
var bodyPrefixes = map[string]string{"gpt2": "transformer.", "bloom": "transformer.", "opt": "model."}

// BodyPrefix returns what files of a model type may leave out of the names that their
// tensors have in memory, where there is a head; empty if it is nothing.
func BodyPrefix(modelType string) string { return bodyPrefixes[modelType] }

// transposedExperts are the model types that store stacked experts as
// (experts, in, out).
var transposedExperts = map[string]bool{"gpt_oss": true, "llama4": true, "llama4_text": true}

// StoresExpertsTransposed reports whether a model type stores its stacked
// experts as (experts, in, out). It only decides square ones.
func StoresExpertsTransposed(modelType string) bool { return transposedExperts[modelType] }

// ExpertNames are the names of an expert's three projections when every expert
// is a module of its own. In memory they are stacked: gate_up_proj holds the
// gate's rows and then up's, for each expert, and down_proj the third.
type ExpertNames struct{ Gate, Up, Down string }

// Experts are the naming schemes in use: Mixtral's, and that of Qwen, DeepSeek,
// OLMoE and most others.
var Experts = []ExpertNames{
	{"w1", "w3", "w2"},
	{"gate_proj", "up_proj", "down_proj"},
}

// The stacked parameters, in the order in which the modules register them.
const (
	GateUp = "gate_up_proj"
	Down   = "down_proj"
)

// RegistrationOrder lists parameters of expert modules in the order in which
// the modelling code registers them; PEFT nests its wrappers in that order.
var RegistrationOrder = []string{GateUp, GateUp + "_bias", Down, Down + "_bias"}

// aliases are components that a module has in memory and the name they have in
// files written before transformers 5.
var aliases = [][2]string{{".mlp.", ".block_sparse_moe."}}

// OldNames returns the names that a tensor may have in an older file.
func OldNames(name string) []string {
	var names []string
	for _, a := range aliases {
		for _, from := range []int{0, 1} {
			if strings.Contains(name, a[from]) {
				names = append(names, strings.Replace(name, a[from], a[1-from], 1))
			}
		}
	}
	return names
}

// embeddings are the names of input embeddings with the name of the head that
// is tied to them.
var embeddings = []struct{ embedding, head string }{
	{"embed_tokens.weight", "lm_head.weight"},
	{"wte.weight", "lm_head.weight"},
	{"word_embeddings.weight", "lm_head.weight"},
	{"embed_in.weight", "embed_out.weight"},
	{"tok_embeddings.weight", "output.weight"},
	{"shared.weight", "lm_head.weight"},
}

// maskedHeads are the heads of masked language models, by the first component
// of their tensors' names (base_model_prefix).
var maskedHeads = map[string]string{
	"albert":     "predictions.decoder.weight",
	"bert":       "cls.predictions.decoder.weight",
	"distilbert": "vocab_projector.weight",
	"electra":    "generator_lm_head.weight",
	"roberta":    "lm_head.decoder.weight",
}

// withHead are the endings of architectures with a language-model head.
var withHead = []string{"ForCausalLM", "LMHeadModel", "DoubleHeadsModel", "ForConditionalGeneration", "ForMaskedLM"}

// HasHead reports whether an architecture has a language-model head.
func HasHead(architecture string) bool {
	for _, suffix := range withHead {
		if strings.HasSuffix(architecture, suffix) {
			return true
		}
	}
	return false
}

// Embeddings finds the input embedding among tensor names and returns it with
// the name of its head, which need not exist. Of several (a decoder beside a
// vision tower) the one of the shortest path counts.
func Embeddings(names func(yield func(string) bool), architecture string) (embedding, head string, ok bool) {
	best := -1
	for name := range names {
		for i, e := range embeddings {
			if name != e.embedding && !strings.HasSuffix(name, "."+e.embedding) {
				continue
			}
			if best < 0 || len(name) < len(embedding) {
				best, embedding = i, name
			}
		}
	}
	if best < 0 {
		return "", "", false
	}
	head = embeddings[best].head
	if strings.HasSuffix(architecture, "ForMaskedLM") {
		family, _, _ := strings.Cut(embedding, ".")
		if masked, ok := maskedHeads[family]; ok {
			head = masked
		}
		return embedding, head, true
	}
	// A language model inside another ("language_model.model.embed_tokens")
	// has its head at its own level.
	if prefix, found := strings.CutSuffix(embedding, ".model."+embeddings[best].embedding); found {
		head = prefix + "." + head
	}
	return embedding, head, true
}

// buffers are the ends of tensor names that old files hold although the model
// computes them when it is made: position tables and attention masks.
var buffers = []string{".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias",
	".attention.masked_bias", "embeddings.position_ids"}

// IsBuffer reports whether a tensor is one that the model computes itself.
func IsBuffer(name string) bool {
	return slices.ContainsFunc(buffers, func(b string) bool { return strings.HasSuffix(name, b) })
}
