package forward

import (
	"errors"
	"fmt"
	"math"

	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/internal/strictjson"
)

// UnsupportedError names a setting of a config that this package does not follow.
type UnsupportedError struct{ Setting, Value string }

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("%s %s has no forward pass here", e.Setting, e.Value)
}

// ConfigError says that a setting is missing or can't be.
type ConfigError struct{ Setting, Reason string }

func (e *ConfigError) Error() string { return e.Setting + " " + e.Reason }

// TensorError says that a tensor is not there, or is not what the config asks for.
type TensorError struct{ Tensor, Reason string }

func (e *TensorError) Error() string { return fmt.Sprintf("%q %s", e.Tensor, e.Reason) }

const (
	embeddingName = "model.embed_tokens.weight"
	headName      = "lm_head.weight"
)

// settings are a config read for the forward pass.
type settings struct {
	family     family
	modelType  string
	activation func(float64) float64

	hidden, intermediate, heads, keyHeads, headSize, layers, vocabulary int

	epsilon                float64
	queryScale             float64 // of the scores
	attentionCap, finalCap float64 // 0 for none
	windows                []int   // of each layer, 0 for none
	frequencies            [][]float32
	tied                   bool

	qkvBias, outBias, mlpBias bool
}

func readSettings(root *strictjson.Object) (settings, error) {
	if root == nil {
		return settings{}, &ConfigError{"config.json", "is missing"}
	}
	r := &reader{root: root}
	var s settings
	s.modelType = r.text("model_type", "")
	f, ok := families[s.modelType]
	if r.err == nil && !ok {
		return s, &UnsupportedError{"model_type", fmt.Sprintf("%q", s.modelType)}
	}
	s.family = f
	r.sizes(&s)
	s.tied = r.flag("tie_word_embeddings", f.tied)
	s.epsilon = r.number("rms_norm_eps", 1e-6)
	s.queryScale = 1 / math.Sqrt(float64(s.headSize))
	if f.queryScalar {
		s.queryScale = 1 / math.Sqrt(r.positive("query_pre_attn_scalar", 256))
	}
	if f.attentionCap > 0 {
		s.attentionCap = r.number("attn_logit_softcapping", f.attentionCap)
	}
	if f.capped {
		s.finalCap = r.number("final_logit_softcapping", f.finalCap)
	}
	bias := f.mayBias && r.flag("attention_bias", false)
	s.qkvBias, s.outBias = bias || f.qkvBias, bias
	s.mlpBias = f.mayMLPBias && r.flag("mlp_bias", false)
	s.activation = r.activation(f)
	if r.err == nil && r.flag("use_bidirectional_attention", false) {
		r.fail(&UnsupportedError{"use_bidirectional_attention", "true"})
	}
	kinds := r.layerKinds(&s)
	r.windows(&s, kinds)
	r.rotations(&s, kinds)
	return s, r.err
}

// check compares the shapes of all tensors with the config.
func (d *Decoder) check() error {
	at := func(name string, shape ...int64) error {
		spec, ok := d.weights.Lookup(name)
		if !ok {
			return &TensorError{name, "is missing"}
		}
		if fmt.Sprint([]int64(spec.Shape)) != fmt.Sprint(shape) {
			return &TensorError{name, fmt.Sprintf("is %v, the config asks for %v", []int64(spec.Shape), shape)}
		}
		return nil
	}
	hidden, inner, head := int64(d.hidden), int64(d.intermediate), int64(d.headSize)
	queries, keys, vocabulary := int64(d.heads)*head, int64(d.keyHeads)*head, int64(d.vocabulary)
	err := errors.Join(at(embeddingName, vocabulary, hidden), at(d.head, vocabulary, hidden), at("model.norm.weight", hidden))
	for i := 0; i < d.layers && err == nil; i++ {
		layer := fmt.Sprintf("model.layers.%d.", i)
		linear := func(name string, bias bool, out, in int64) {
			err = errors.Join(err, at(layer+name+".weight", out, in))
			if bias {
				err = errors.Join(err, at(layer+name+".bias", out))
			} else if _, stored := d.weights.Lookup(layer + name + ".bias"); stored {
				err = errors.Join(err, &TensorError{layer + name + ".bias", "is stored, but the config has no such bias"})
			}
		}
		linear("self_attn.q_proj", d.qkvBias, queries, hidden)
		linear("self_attn.k_proj", d.qkvBias, keys, hidden)
		linear("self_attn.v_proj", d.qkvBias, keys, hidden)
		linear("self_attn.o_proj", d.outBias, hidden, queries)
		linear("mlp.gate_proj", d.mlpBias, inner, hidden)
		linear("mlp.up_proj", d.mlpBias, inner, hidden)
		linear("mlp.down_proj", d.mlpBias, hidden, inner)
		norms := []string{"input_layernorm.weight", "post_attention_layernorm.weight"}
		if d.family.fourNorms {
			norms = append(norms, "pre_feedforward_layernorm.weight", "post_feedforward_layernorm.weight")
		}
		for _, name := range norms {
			err = errors.Join(err, at(layer+name, hidden))
		}
		if d.family.headNorms {
			err = errors.Join(err, at(layer+"self_attn.q_norm.weight", head), at(layer+"self_attn.k_norm.weight", head))
		}
	}
	return err
}

// biasOf returns the name of the bias that belongs to a weight.
func biasOf(weight string) string { return weight[:len(weight)-len("weight")] + "bias" }

// reader reads settings and keeps the first error.
type reader struct {
	root *strictjson.Object
	err  error
}

func (r *reader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

// text, number and flag read a setting; one that is not there has its default, and
// null is none at all: "", 0 or false.
func (r *reader) text(key, missing string) string {
	return read(r, r.root, key, missing, strictjson.Value.Text)
}

func (r *reader) number(key string, missing float64) float64 {
	v := read(r, r.root, key, missing, strictjson.Value.Float)
	if v < 0 || math.IsInf(v, 0) || math.IsNaN(v) {
		r.fail(&ConfigError{key, fmt.Sprintf("is %v", v)})
	}
	return v
}

func (r *reader) flag(key string, missing bool) bool {
	return read(r, r.root, key, missing, strictjson.Value.Bool)
}

func read[T any](r *reader, o *strictjson.Object, key string, missing T, as func(strictjson.Value) (T, error)) T {
	var none T
	v, ok := o.Get(key)
	switch {
	case !ok:
		return missing
	case v.IsNull():
		return none
	}
	got, err := as(v)
	if err != nil {
		r.fail(&ConfigError{key, err.Error()})
		return none
	}
	return got
}

// positive reads a number that can't be 0.
func (r *reader) positive(key string, missing float64) float64 {
	v := r.number(key, missing)
	if v == 0 {
		r.fail(&ConfigError{key, "is 0 or null"})
		return 1
	}
	return v
}

// sizes reads the sizes with the rules that all readers of configs share.
func (r *reader) sizes(s *settings) {
	config := hfrepo.NewConfig(r.root)
	decoder, _ := arch.DecoderOf(s.modelType)
	if _, stated := config.Int(decoder.Keys.KVHeads); !stated && s.modelType != "llama" {
		r.fail(&ConfigError{decoder.Keys.KVHeads, "is missing"}) // its default is not the number of heads
	}
	sizes := decoder.Keys.Resolve(func(key string) (int64, bool) {
		v, ok := config.Int(key)
		if !ok && key == decoder.Keys.HeadSize && s.family.headSize > 0 {
			return s.family.headSize, true
		}
		return v, ok
	})
	get := func(size arch.Size, what string) int {
		v := sizes[size]
		if v <= 0 {
			r.fail(&ConfigError{what, "is missing or no number of use"})
			return 1
		}
		return int(v)
	}
	k := decoder.Keys
	s.hidden, s.intermediate = get(arch.Hidden, k.Hidden), get(arch.Intermediate, k.Intermediate)
	s.headSize, s.vocabulary = get(arch.HeadSize, k.HeadSize), get(arch.Vocabulary, k.Vocabulary)
	s.heads, s.keyHeads = get(arch.Queries, k.Heads)/s.headSize, get(arch.Keys, k.KVHeads)/s.headSize
	layers, _ := config.Int(k.Layers)
	if layers < 1 || layers > maxLayers {
		r.fail(&ConfigError{k.Layers, fmt.Sprintf("is %d", layers)})
		layers = 0
	}
	s.layers = int(layers)
	if r.err == nil && (s.keyHeads < 1 || s.heads%s.keyHeads != 0 || s.headSize%2 != 0 || s.headSize > maxHeadSize) {
		r.fail(&ConfigError{k.Heads, fmt.Sprintf("is %d, with %d heads of keys of size %d", s.heads, s.keyHeads, s.headSize)})
	}
}

// What a config can ask for before a tensor was looked up; real models stay below a
// tenth of either.
const (
	maxLayers   = 4096
	maxHeadSize = 1 << 14
)
