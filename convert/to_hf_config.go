package convert

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/strictjson"
)

// This file builds config.json from the keys of a GGUF file, by the tables of formats/arch.
// What a family has by definition in llama.cpp (src/models of llama.cpp 0.5) is stated,
// whatever the default of transformers is; what the file does not say and nothing computes
// with is left to that default. A key of the architecture that is in no table may change
// what the model computes, and is refused.

// buildConfig makes config.json.
func (h *hfPlanner) buildConfig() error {
	h.config = strictjson.NewObject()
	h.setClass(h.family.Architectures[0], h.family.ModelType)
	for _, step := range []func() error{h.refuseUnknown, h.numberConfig, h.vocabConfig, h.biasConfig} {
		if err := step(); err != nil {
			return err
		}
	}
	for _, f := range h.family.Fixed {
		if len(f.Texts) > 0 {
			h.setText(f.Name, f.Texts[0])
		} else {
			h.setBool(f.Name, f.Flag)
		}
	}
	for _, p := range h.family.Params { // rules may look at all that is there before
		if from := rules[p.Rule].from; from != nil {
			if err := from(h); err != nil {
				return err
			}
		}
	}
	h.decide("config-defaults", "config.json is made from the keys of the file, which do not say how the model was initialised or trained: "+
		"initializer_range and the dropouts are the defaults of transformers")
	return nil
}

// setClass says which class of transformers the model is.
func (h *hfPlanner) setClass(class, modelType string) {
	h.config.Set("architectures", strictjson.NewStrings([]string{class}))
	h.setText("model_type", modelType)
}

// refuseUnknown names a key of the architecture that is in no table.
func (h *hfPlanner) refuseUnknown() error {
	known := []string{"vocab_size"}
	for _, p := range h.family.Params {
		known = append(append(known, p.Key), rules[p.Rule].keys...)
	}
	for key := range h.keys.All() {
		name, ok := strings.CutPrefix(key, h.arch+".")
		if ok && !slices.Contains(known, name) {
			return h.errorf("key %q: it is not known what it changes in a model of %q, so the model would not be the same in transformers", key, h.arch)
		}
	}
	return nil
}

// numberConfig writes the settings that are plain numbers.
func (h *hfPlanner) numberConfig() error {
	for i, p := range h.family.Params {
		later := slices.ContainsFunc(h.family.Params[i+1:], func(later arch.Param) bool { return later.Key == p.Key })
		if p.Rule != "" || p.OneWay || later {
			continue
		}
		if err := h.setParam(p); err != nil {
			return err
		}
	}
	return nil
}

// setParam writes one setting that is a number.
func (h *hfPlanner) setParam(p arch.Param) error {
	var whole int64
	var real float64
	var ok bool
	var err error
	if p.Kind == arch.Real {
		real, ok, err = h.optFloat(p.Key)
	} else {
		whole, ok, err = h.optInt(p.Key)
	}
	switch {
	case err != nil:
		return err
	case !ok && p.Need.GGUF():
		return h.errorf("it has no key %s.%s", h.arch, p.Key)
	case !ok && p.Null:
		h.config.Set(p.BackName(), strictjson.NewNull())
		return nil
	case !ok:
		return nil
	case p.Kind == arch.Real:
		return h.setFloat(h.config, p.BackName(), real)
	}
	h.setInt(p.BackName(), whole)
	return nil
}

// biasConfig sets the switches of biases, by those of the first layer, and refuses biases
// that the model would not have in transformers.
func (h *hfPlanner) biasConfig() error {
	known := make(map[string]bool)
	for _, b := range h.family.Biases {
		var with, without []string
		for _, module := range b.Modules {
			name := "blk.0." + module
			if slices.ContainsFunc(h.family.Renames, func(r arch.Rename) bool { return r.GGUF == module }) {
				name = module // of no layer
			}
			if _, ok := h.stored[name+".weight"]; !ok {
				continue
			}
			known[module] = true
			if _, ok := h.stored[name+".bias"]; ok {
				with = append(with, name+".bias")
			} else {
				without = append(without, name+".bias")
			}
		}
		switch {
		case len(without) > 0 && b.Setting == "":
			return h.errorf("it has no tensor %q, which %s has in transformers", without[0], h.family.Architectures[0])
		case b.Setting == "":
			continue
		case len(with) > 0 && len(without) > 0:
			h.decide("biases-left-zero", fmt.Sprintf("%s is true for all of a layer's modules or for none: transformers has zeros for the biases that the file has not", b.Setting), without...)
		}
		h.setBool(b.Setting, len(with) > 0)
	}
	for _, s := range h.source.Specs() {
		module, ok := strings.CutSuffix(s.Name, ".bias")
		if ok && !known[module[strings.LastIndex(module, ".")+1:]] {
			return h.errorf("tensor %q: %s has no such bias in transformers", s.Name, h.family.Architectures[0])
		}
	}
	return nil
}

func (h *hfPlanner) setInt(name string, n int64) { h.config.Set(name, strictjson.NewInt(n)) }

func (h *hfPlanner) setBool(name string, b bool) { h.config.Set(name, strictjson.NewBool(b)) }

func (h *hfPlanner) setText(name, text string) { h.config.Set(name, strictjson.NewString(text)) }

// setFloat writes a number that the file has in float32.
func (h *hfPlanner) setFloat(o *strictjson.Object, name string, f float64) error {
	v, err := floatValue(f)
	if err != nil {
		return h.errorf("%s: %w", name, err)
	}
	o.Set(name, v)
	return nil
}

// floatValue puts a number of float32 as the shortest decimal that stands for it: that is
// the one that was there before, in every config that people write.
func floatValue(f float64) (strictjson.Value, error) {
	if float64(float32(f)) == f {
		f, _ = strconv.ParseFloat(strconv.FormatFloat(f, 'g', -1, 32), 64)
	}
	return strictjson.NewFloat(f)
}

// headSize is the number of rows of a head of queries.
func (h *hfPlanner) headSize() (int64, error) {
	hidden, err := h.mustInt("embedding_length")
	if err != nil {
		return 0, err
	}
	return h.intOr("attention.key_length", hidden/h.heads)
}

// headKeys are the keys of the sizes of heads.
var headKeys = []string{"attention.head_count_kv", "attention.key_length", "attention.value_length", "rope.dimension_count"}

// headConfig writes the sizes of heads and checks them against the tensors.
func (h *hfPlanner) headConfig() error {
	h.setInt("num_attention_heads", h.heads)
	h.setInt("num_key_value_heads", h.kvHeads)
	head, err := h.headSize()
	if err != nil {
		return err
	}
	value, err := h.intOr("attention.value_length", head)
	if err != nil {
		return err
	}
	rotated, err := h.intOr("rope.dimension_count", head)
	if err != nil {
		return err
	}
	if part := h.family.Has(arch.LongRotary); value != head || rotated != head && !part || rotated > head {
		return h.errorf("its heads have %d numbers of keys and %d of values, %d of them rotated: transformers has one size for all in this family", head, value, rotated)
	}
	for _, c := range []struct {
		name  string
		heads int64
	}{{"blk.0.attn_q.weight", h.heads}, {"blk.0.attn_k.weight", h.kvHeads}, {"blk.0.attn_qkv.weight", h.heads + 2*h.kvHeads}} {
		if s := h.stored[c.name]; len(s.Shape) == 2 && s.Shape[0] != c.heads*head {
			return h.errorf("tensor %q has %d rows, the keys state %d heads of %d", c.name, s.Shape[0], c.heads, head)
		}
	}
	// Without a size of heads most share the hidden size in transformers too.
	if _, stated, _ := h.optInt("attention.key_length"); stated || h.family.OwnHeadSize {
		h.setInt("head_dim", head)
	}
	return nil
}

// causalConfig says whether tokens are blind for what follows, if the file does.
func (h *hfPlanner) causalConfig() error {
	causal, ok, err := h.keys.OptBool(h.arch + ".attention.causal")
	if err != nil {
		return h.errorf("%w", err)
	}
	if ok {
		h.setBool("is_causal", causal)
	}
	return nil
}

// vocabConfig writes the size of the vocabulary, the special tokens, and whether the head
// is the embedding.
func (h *hfPlanner) vocabConfig() error {
	embedding, ok := h.stored["token_embd.weight"]
	if !ok || len(embedding.Shape) != 2 {
		return h.errorf("it has no embedding of tokens")
	}
	rows := embedding.Shape[0]
	if n, err := h.intOr("vocab_size", rows); err != nil {
		return err
	} else if n != rows {
		return h.errorf("the embedding has %d rows, %s.vocab_size is %d", rows, h.arch, n)
	}
	h.setInt("vocab_size", rows)
	if h.family.Has(arch.TextEmbeddings) { // without a head, for texts without ends
		if id, ok, err := h.keys.OptInt("tokenizer.ggml.padding_token_id"); err == nil && ok && id >= 0 && id < rows {
			h.setInt("pad_token_id", id)
		}
		return nil
	}
	_, head := h.stored["output.weight"]
	h.setBool("tie_word_embeddings", !head)
	if !head {
		h.decide("tied-head", "the file has no output.weight: the head is the embedding, tie_word_embeddings is true")
	}
	for _, kind := range []struct{ key, name string }{{"bos", "bos"}, {"eos", "eos"}, {"padding", "pad"}} {
		id, ok, err := h.keys.OptInt("tokenizer.ggml." + kind.key + "_token_id")
		switch {
		case err != nil:
			return h.errorf("%w", err)
		case !ok || id < 0 || id >= rows: // transformers has defaults that are wrong here
			h.config.Set(kind.name+"_token_id", strictjson.NewNull())
		default:
			h.setInt(kind.name+"_token_id", id)
		}
	}
	return nil
}

// rotaryKeys are the keys of rotary embeddings.
var rotaryKeys = []string{"rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.finetuned",
	"rope.scaling.original_context_length", "rope.scaling.yarn_ext_factor", "rope.scaling.yarn_attn_factor",
	"rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"}

// defaultRopeBase is llama.cpp's, of files that state none.
const defaultRopeBase = 10000

// ropeConfig writes the base and the scaling of rotary embeddings.
func (h *hfPlanner) ropeConfig() error {
	base, ok, err := h.optFloat("rope.freq_base")
	if err != nil {
		return err
	}
	if !ok {
		base = defaultRopeBase
	}
	if err := h.setFloat(h.config, "rope_theta", base); err != nil {
		return err
	}
	kind, _, err := h.keys.OptText(h.arch + ".rope.scaling.type")
	if err != nil {
		return h.errorf("%w", err)
	}
	_, hasFactors := h.stored[ropeFactors]
	switch {
	case hasFactors && kind != "" && kind != "none":
		return h.errorf("it has both %s and a scaling of type %q", ropeFactors, kind)
	case hasFactors:
		return h.factorsConfig(base)
	case kind == "", kind == "none":
		return nil
	case kind == "linear", kind == "yarn":
		return h.scalingConfig(kind)
	}
	return h.errorf("its %s.rope.scaling.type is %q; linear and yarn can be converted", h.arch, kind)
}

// yarnSettings are the optional numbers of a yarn scaling.
var yarnSettings = []arch.Param{
	{Key: "rope.scaling.yarn_ext_factor", Names: []string{"extrapolation_factor"}},
	{Key: "rope.scaling.yarn_attn_factor", Names: []string{"attention_factor", "attn_factor"}},
	{Key: "rope.scaling.yarn_beta_fast", Names: []string{"beta_fast"}},
	{Key: "rope.scaling.yarn_beta_slow", Names: []string{"beta_slow"}},
}

// scalingConfig writes a scaling that has keys.
func (h *hfPlanner) scalingConfig(kind string) error {
	scaling := strictjson.NewObject()
	scaling.Set("rope_type", strictjson.NewString(kind))
	settings := []arch.Param{{Key: "rope.scaling.factor", Names: []string{"factor"}, Need: arch.Always}}
	if kind == "yarn" {
		settings = append(settings, yarnSettings...)
	}
	for _, s := range settings {
		f, ok, err := h.optFloat(s.Key)
		if err == nil && !ok && s.Need.GGUF() {
			err = h.errorf("it has no key %s.%s", h.arch, s.Key)
		}
		if err == nil && ok {
			err = h.setFloat(scaling, s.BackName(), f)
		}
		if err != nil {
			return err
		}
	}
	if kind == "yarn" {
		n, err := h.mustInt("rope.scaling.original_context_length")
		if err != nil {
			return err
		}
		scaling.Set("original_max_position_embeddings", strictjson.NewInt(n))
	}
	h.config.Set("rope_scaling", scaling.Value())
	return nil
}

// factorsConfig finds the scaling that the factors of rope_freqs.weight come from: none
// if all are 1, linear if all are one number, else that of Llama 3 with its usual
// parameters.
func (h *hfPlanner) factorsConfig(base float64) error {
	head, err := h.headSize()
	if err != nil {
		return err
	}
	factors, err := h.factorsOf(ropeFactors, head)
	if err != nil {
		return err
	}
	last := factors[len(factors)-1]
	scaling := strictjson.NewObject()
	if !slices.ContainsFunc(factors, func(f float32) bool { return f != last }) {
		if last == 1 {
			return nil
		}
		scaling.Set("rope_type", strictjson.NewString("linear"))
		h.config.Set("rope_scaling", scaling.Value())
		return h.setFloat(scaling, "factor", float64(last))
	}
	p, ok := findLlama3(factors, base)
	if !ok {
		return h.errorf("the factors of %s are not those of a Llama 3 scaling (low 1, high 4, factor %v, original context 2^9 to 2^18): "+
			"config.json has no other place for them", ropeFactors, last)
	}
	scaling.Set("rope_type", strictjson.NewString("llama3"))
	for _, s := range []struct {
		name  string
		value float64
	}{{"factor", p.factor}, {"low_freq_factor", p.low}, {"high_freq_factor", p.high}} {
		if err := h.setFloat(scaling, s.name, s.value); err != nil {
			return err
		}
	}
	scaling.Set("original_max_position_embeddings", strictjson.NewInt(int64(p.original)))
	h.config.Set("rope_scaling", scaling.Value())
	h.decide("rope-scaling", fmt.Sprintf("the factors of %s are those of Llama 3's scaling by %v from %v tokens, which config.json states", ropeFactors, p.factor, p.original))
	return nil
}

// factorsOf reads the factors of a tensor, one for each pair of dimensions.
func (h *hfPlanner) factorsOf(name string, rotated int64) ([]float32, error) {
	s := h.stored[name]
	const largest = 1 << 16 // far above any head
	if s.DType != tensor.F32 || len(s.Shape) != 1 || s.Shape[0] == 0 || s.Shape[0] > largest || 2*s.Shape[0] != rotated {
		return nil, h.errorf("tensor %q is %s of shape %v, not a factor in F32 for each pair of %d", s.Name, s.DType, s.Shape, rotated)
	}
	src, err := h.source.Open(s.Name)
	if err != nil {
		return nil, err
	}
	data := make([]byte, s.Size())
	if err := readAll(src, data, 0); err != nil {
		return nil, h.errorf("tensor %q: %w", s.Name, err)
	}
	factors := decodeF32(data)
	for _, f := range factors {
		if !(f > 0) || math.IsInf(float64(f), 0) {
			return nil, h.errorf("tensor %q has a factor of %v", s.Name, f)
		}
	}
	return factors, nil
}

// findLlama3 finds the parameters of a Llama 3 scaling that gives the factors to the bit.
// Only the ratios of low, high and original count, so that 1 and 4, which all published
// models have, lose nothing but the way it is put.
func findLlama3(factors []float32, base float64) (llama3Scaling, bool) {
	const smallest, largest = 1 << 4, 1 << 18
	for original := smallest; original <= largest; original *= 2 {
		p := llama3Scaling{base: base, factor: float64(factors[len(factors)-1]), low: 1, high: 4, original: float64(original)}
		if slices.Equal(p.factors(2*int64(len(factors))), factors) {
			return p, true
		}
	}
	return llama3Scaling{}, false
}
