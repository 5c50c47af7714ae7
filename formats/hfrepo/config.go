package hfrepo

import (
	"strings"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/strictjson"
)

// Config is a view of a config.json that keeps everything it does not know, in
// its order. Models of several towers nest the language model's settings in
// text_config; a setting is looked up there when the top level lacks it.
type Config struct{ root *strictjson.Object }

// NewConfig wraps a parsed config.json; nil is an empty config.
func NewConfig(root *strictjson.Object) Config {
	if root == nil {
		root = strictjson.NewObject()
	}
	return Config{root}
}

// nested are the names under which multi-modal configs keep the settings of
// their language model.
var nested = []string{"text_config", "llm_config", "language_config"}

// objects returns the root and the nested text configs.
func (c Config) objects() []*strictjson.Object {
	all := []*strictjson.Object{c.root}
	for _, key := range nested {
		if o, ok, err := c.root.OptObject(key); err == nil && ok {
			all = append(all, o)
		}
	}
	return all
}

// all returns the root and every nested "..._config" object, at any depth: the
// towers of multi-modal models.
func (c Config) all() []*strictjson.Object {
	var all []*strictjson.Object
	var walk func(o *strictjson.Object)
	walk = func(o *strictjson.Object) {
		all = append(all, o)
		for key, v := range o.All() {
			if child, err := v.Object(); err == nil && strings.HasSuffix(key, "_config") && key != "quantization_config" {
				walk(child)
			}
		}
	}
	walk(c.root)
	return all
}

// ModelType returns model_type, empty if unknown.
func (c Config) ModelType() string {
	s, _, _ := c.root.OptString("model_type")
	return s
}

// Architecture returns the first entry of architectures, empty if unknown.
func (c Config) Architecture() string {
	list, _, _ := c.root.OptStrings("architectures")
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

// Int returns an integer setting, from the text config if need be.
func (c Config) Int(key string) (int64, bool) {
	for _, o := range c.objects() {
		if v, ok, err := o.OptInt(key); err == nil && ok {
			return v, true
		}
	}
	return 0, false
}

// Tied reports whether the config says that input and output embeddings are
// one tensor, and whether it says anything.
func (c Config) Tied() (tied, stated bool) {
	for _, o := range c.objects() {
		if v, ok, err := o.OptBool("tie_word_embeddings"); err == nil && ok {
			tied, stated = tied || v, true
		}
	}
	return tied, stated
}

// Quantization returns the quantization_config, nil without one.
func (c Config) Quantization() *strictjson.Object {
	for _, o := range c.objects() {
		if q, ok, err := o.OptObject("quantization_config"); err == nil && ok {
			return q
		}
	}
	return nil
}

// SetTied sets tie_word_embeddings wherever it is stated and on the top level.
func (c Config) SetTied(tied bool) {
	for i, o := range c.objects() {
		if _, ok := o.Get("tie_word_embeddings"); ok || i == 0 {
			o.Set("tie_word_embeddings", strictjson.NewBool(tied))
		}
	}
}

// SetInt sets an integer setting wherever it is stated; on the top level if it
// is stated nowhere.
func (c Config) SetInt(key string, v int64) {
	found := false
	for _, o := range c.objects() {
		if _, ok := o.Get(key); ok {
			o.Set(key, strictjson.NewInt(v))
			found = true
		}
	}
	if !found {
		c.root.Set(key, strictjson.NewInt(v))
	}
}

// torchNames are the names of element types in config.json.
var torchNames = map[tensor.DType]string{
	tensor.F16: "float16", tensor.BF16: "bfloat16", tensor.F32: "float32", tensor.F64: "float64",
}

// SetDType sets dtype and its older spelling torch_dtype wherever stated; on
// the top level, as torch_dtype, which every version reads, if stated nowhere.
func (c Config) SetDType(d tensor.DType) {
	found := false
	for _, o := range c.all() {
		for _, key := range []string{"dtype", "torch_dtype"} {
			if _, ok := o.Get(key); ok {
				o.Set(key, strictjson.NewString(torchNames[d]))
				found = true
			}
		}
	}
	if !found {
		c.root.Set("torch_dtype", strictjson.NewString(torchNames[d]))
	}
}

// DropQuantization removes quantization_config everywhere and reports whether
// there was one.
func (c Config) DropQuantization() bool {
	dropped := false
	for _, o := range c.all() {
		dropped = o.Delete("quantization_config") || dropped
	}
	return dropped
}

// Encode writes the config as transformers does.
func (c Config) Encode() []byte { return append(c.root.Encode("  "), '\n') }

// Clone returns a copy that can be changed on its own.
func (c Config) Clone() Config {
	root, err := strictjson.ParsePythonObject(c.root.Encode(""))
	if err != nil {
		panic("hfrepo: an encoded config does not parse") // encoding and parsing are inverse
	}
	return Config{root}
}

// Equal reports whether two configs say the same in the same order.
func (c Config) Equal(d Config) bool { return c.root.Value().Equal(d.root.Value()) }

// DType returns the element type that the config states, none if it states
// none.
func (c Config) DType() tensor.DType {
	for _, o := range c.objects() {
		for _, key := range []string{"dtype", "torch_dtype"} {
			name, ok, err := o.OptString(key)
			if err != nil || !ok {
				continue
			}
			for d, torch := range torchNames {
				if torch == strings.TrimPrefix(name, "torch.") {
					return d
				}
			}
		}
	}
	return tensor.NoDType
}

// layerCounts are the names that families give to the number of layers: most,
// GPT-2 and its like, T5 and ChatGLM, MPT.
var layerCounts = []string{"num_hidden_layers", "n_layer", "num_layers", "n_layers"}

// Layers returns how many layers the language model has, if the config says so.
func (c Config) Layers() (int64, bool) {
	for _, key := range layerCounts {
		if n, ok := c.Int(key); ok {
			return n, true
		}
	}
	return 0, false
}

// RepeatLayers rewrites the number of layers and the lists that have one entry
// per layer, after layers were copied: entry i of the new list is entry from[i]
// of the old one. Every from[i] must be a layer of the config, if it states how
// many there are.
func (c Config) RepeatLayers(from []int64) {
	stated := false
	for _, o := range c.objects() {
		repeated := false
		for _, key := range layerCounts {
			count, ok, err := o.OptInt(key)
			if err != nil || !ok {
				continue
			}
			if !repeated {
				repeatLists(o, count, from)
			}
			o.Set(key, strictjson.NewInt(int64(len(from))))
			repeated, stated = true, true
		}
	}
	if !stated {
		c.root.Set(layerCounts[0], strictjson.NewInt(int64(len(from))))
	}
}

// repeatLists rewrites the lists of an object that have count entries and are
// about layers.
func repeatLists(o *strictjson.Object, count int64, from []int64) {
	for key, v := range o.All() {
		items, err := v.Items()
		if err != nil || int64(len(items)) != count || !strings.Contains(key, "layer") {
			continue
		}
		repeated := make([]strictjson.Value, len(from))
		for i, f := range from {
			repeated[i] = items[f]
		}
		o.Set(key, strictjson.NewArray(repeated...))
	}
}
