package verify

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/internal/strictjson"
)

// This file compares the keys of a GGUF file with a config.json. What either lacks has the
// value that its runtime takes instead (src/llama-model.cpp of llama.cpp, configuration_*.py
// of transformers), so that a key may be left out where nothing depends on it.

// checkConvertedKeys compares the settings of both models.
func checkConvertedKeys(_ context.Context, c *conversionCheck, _ Options) error {
	folder, file, across := c.sides()
	switch {
	case across && folder.Config == nil:
		return nil // a file of weights alone says nothing
	case across:
		k := &keyCheck{conversionCheck: c, file: file, keys: file.GGUF().Metadata(), config: configOf(folder)}
		k.arch, _, _ = k.keys.OptText("general.architecture")
		k.run()
		if err := k.checkFactors(); err != nil {
			return err
		}
		return k.checkTokens(folder)
	case c.base.GGUF() != nil:
		c.compareMetadata()
	default:
		c.compareConfigs()
	}
	return nil
}

// keyCheck compares the keys of a file with the settings of a folder.
type keyCheck struct {
	*conversionCheck
	file   *checkpoint.Model
	keys   *gguf.Metadata
	arch   string
	config settings
}

// settings are those of the language model in a config.json.
type settings struct{ inner, outer *strictjson.Object }

func configOf(folder *checkpoint.Model) settings {
	s := settings{inner: folder.Config, outer: folder.Config}
	if text, ok, err := folder.Config.OptObject("text_config"); err == nil && ok {
		s.inner = text
	}
	return s
}

// find returns the first of some settings that is there and not null, and its name.
func (s settings) find(names ...string) (strictjson.Value, string) {
	for _, o := range []*strictjson.Object{s.inner, s.outer} {
		for _, name := range names {
			if v, ok := o.Get(name); ok && !v.IsNull() {
				return v, name
			}
		}
	}
	return strictjson.NewNull(), ""
}

// number returns a setting as a number.
func (s settings) number(names ...string) (float64, string, bool) {
	v, name := s.find(names...)
	f, err := v.Float()
	return f, name, name != "" && err == nil
}

// rope returns a setting of the rotary embedding, of the layers with full attention.
func (s settings) rope(names ...string) (strictjson.Value, string) {
	for _, name := range []string{"rope_parameters", "rope_scaling"} {
		v, _ := s.find(name)
		o, err := v.Object()
		if err != nil {
			continue
		}
		if full, ok, err := o.OptObject("full_attention"); err == nil && ok {
			o = full
		}
		for _, n := range names {
			if v, ok := o.Get(n); ok && !v.IsNull() {
				return v, name + "." + n
			}
		}
	}
	return s.find(names...)
}

// keyRule pairs a key with a setting.
type keyRule struct {
	key   string // behind the name of the architecture
	names []string
	rope  bool // the setting is one of the rotary embedding
	// The values that runtimes take where nothing is stated; nil or false for none.
	inFile, inConfig func(k *keyCheck) (float64, bool)
	// families are the only ones that need the key; of others it is compared if both
	// state it.
	families []string
}

func always(v float64) func(*keyCheck) (float64, bool) {
	return func(*keyCheck) (float64, bool) { return v, true }
}

// byFamily are values of some families, and of the others.
func byFamily(values map[string]float64, otherwise float64) func(*keyCheck) (float64, bool) {
	return func(k *keyCheck) (float64, bool) {
		if v, ok := values[k.arch]; ok {
			return v, true
		}
		return otherwise, otherwise != 0
	}
}

// all marks what every family needs if its config states it.
var all = []string{""}

// keyRules are the hyperparameters.
var keyRules = []keyRule{
	{key: "block_count", names: []string{"num_hidden_layers", "n_layer", "n_layers", "num_layers"}, families: all},
	{key: "context_length", names: []string{"max_position_embeddings", "n_positions", "n_ctx"}, families: all,
		inConfig: byFamily(map[string]float64{"gemma3": 131072}, 0)},
	{key: "embedding_length", names: []string{"hidden_size", "n_embd", "dim"}, families: all},
	{key: "feed_forward_length", names: []string{"intermediate_size", "n_inner"}, families: all, inConfig: fourTimesWidth},
	{key: "attention.head_count", names: []string{"num_attention_heads", "n_head", "n_heads"}, families: all,
		inConfig: byFamily(map[string]float64{"gemma3": 8}, 0)},
	{key: "attention.head_count_kv", names: []string{"num_key_value_heads", "n_kv_heads"}, families: all,
		inFile: (*keyCheck).headsInFile, inConfig: (*keyCheck).keyHeadsInConfig},
	{key: "attention.key_length", names: []string{"head_dim"}, families: all, inFile: (*keyCheck).headSizeInFile, inConfig: (*keyCheck).headSizeInConfig},
	{key: "attention.value_length", names: []string{"head_dim"}, families: all, inFile: (*keyCheck).headSizeInFile, inConfig: (*keyCheck).headSizeInConfig},
	{key: "attention.layer_norm_rms_epsilon", names: []string{"rms_norm_eps"}, families: all},
	{key: "attention.layer_norm_epsilon", names: []string{"layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"}, families: all},
	{key: "rope.freq_base", names: []string{"rope_theta"}, rope: true, families: all,
		inFile: always(10000), inConfig: byFamily(map[string]float64{"gemma3": 1e6}, 10000)},
	{key: "rope.dimension_count", families: []string{"llama", "phi3", "granite", "smollm3"}, inFile: (*keyCheck).headSizeInFile, inConfig: (*keyCheck).turnedSize},
	{key: "rope.scaling.original_context_length", names: []string{"original_max_position_embeddings"}, rope: true, families: []string{"phi3"},
		inConfig: (*keyCheck).context},
	{key: "rope.scaling.attn_factor", families: []string{"phi3"}, inFile: always(1), inConfig: (*keyCheck).phi3Factor},
	{key: "expert_count", names: []string{"num_local_experts", "num_experts", "n_routed_experts"}, families: all},
	{key: "expert_used_count", names: []string{"num_experts_per_tok", "num_experts_per_token"}, families: all},
	{key: "expert_feed_forward_length", names: []string{"moe_intermediate_size"}, families: []string{"qwen2moe", "qwen3moe"}},
	{key: "expert_shared_feed_forward_length", names: []string{"shared_expert_intermediate_size"}, families: []string{"qwen2moe"}},
	{key: "attention.sliding_window", names: []string{"sliding_window"}, families: []string{"gemma2", "gemma3", "olmo2", "phi3"},
		inFile: (*keyCheck).noWindow, inConfig: (*keyCheck).noWindow},
	{key: "attn_logit_softcapping", names: []string{"attn_logit_softcapping"}, families: []string{"gemma2"}, inFile: always(50)},
	{key: "final_logit_softcapping", names: []string{"final_logit_softcapping"}, families: []string{"gemma2", "gemma3"},
		inFile: byFamily(map[string]float64{"gemma2": 30}, 0)},
	{key: "vocab_size", names: []string{"vocab_size"}},
	{key: "attention.scale", names: []string{"attention_multiplier"}, families: []string{"granite"}},
	{key: "embedding_scale", names: []string{"embedding_multiplier"}, families: []string{"granite"}},
	{key: "residual_scale", names: []string{"residual_multiplier"}, families: []string{"granite"}},
	{key: "logit_scale", names: []string{"logits_scaling"}, families: []string{"granite"}},
}

// fourTimesWidth is what GPT-2 has for no n_inner.
func fourTimesWidth(k *keyCheck) (float64, bool) {
	width, _, ok := k.config.number("n_embd")
	return 4 * width, ok
}

func (k *keyCheck) headsInFile() (float64, bool) { return k.stated("attention.head_count") }

func (k *keyCheck) keyHeadsInConfig() (float64, bool) {
	heads, _, ok := k.config.number("num_attention_heads", "n_head", "n_heads")
	return byFamilyOr(k, map[string]float64{"gemma3": 4}, heads, ok)
}

func byFamilyOr(k *keyCheck, values map[string]float64, otherwise float64, ok bool) (float64, bool) {
	if v, has := values[k.arch]; has {
		return v, true
	}
	return otherwise, ok
}

// headSizeInFile is what llama.cpp takes for heads without a size of their own.
func (k *keyCheck) headSizeInFile() (float64, bool) {
	if size, ok := k.stated("attention.key_length"); ok {
		return size, true
	}
	width, hasWidth := k.stated("embedding_length")
	heads, hasHeads := k.stated("attention.head_count")
	return math.Floor(width / heads), hasWidth && hasHeads && heads > 0
}

// headSizeInConfig is what transformers takes.
func (k *keyCheck) headSizeInConfig() (float64, bool) {
	width, _, hasWidth := k.config.number("hidden_size", "n_embd", "dim")
	heads, _, hasHeads := k.config.number("num_attention_heads", "n_head", "n_heads")
	return byFamilyOr(k, map[string]float64{"gemma": 256, "gemma2": 256, "gemma3": 256, "qwen3": 128}, math.Floor(width/heads), hasWidth && hasHeads && heads > 0)
}

// turnedSize is how much of a head is turned.
func (k *keyCheck) turnedSize() (float64, bool) {
	size, _, ok := k.config.number("head_dim")
	if !ok {
		if size, ok = k.headSizeInConfig(); !ok {
			return 0, false
		}
	}
	v, _ := k.config.rope("partial_rotary_factor")
	if part, err := v.Float(); err == nil {
		size = math.Floor(size * part)
	}
	return size, true
}

// stated returns a number of the file.
func (k *keyCheck) stated(key string) (float64, bool) {
	v, ok := k.keys.Get(k.arch + "." + key)
	if !ok {
		return 0, false
	}
	return numberOf(v)
}

func numberOf(v gguf.Value) (float64, bool) {
	if n, err := v.Int(); err == nil {
		return float64(n), true
	}
	f, err := v.Float()
	return f, err == nil
}

// run goes through the rules.
func (k *keyCheck) run() {
	k.checkArchitecture()
	for i := range keyRules {
		k.compare(&keyRules[i])
	}
	k.checkScaling()
	k.checkLayers()
}

// architectures are the names of GGUF for model types of transformers that have another.
var architectures = map[string]string{
	"mistral": "llama", "mixtral": "llama", "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe", "gemma3_text": "gemma3", "olmo3": "olmo2",
}

// checkArchitecture compares the family.
func (k *keyCheck) checkArchitecture() {
	kind, name, err := "", "", error(nil)
	if v, found := k.config.find("model_type"); found != "" {
		kind, err = v.Text()
		name = found
	}
	want, ok := architectures[kind]
	if !ok {
		want = kind
	}
	if name != "" && err == nil && want != k.arch {
		k.add("key-differs", "", "general.architecture is %q, the model_type %q of config.json is %q in GGUF", k.arch, kind, want)
	}
}

// compare compares one key.
func (k *keyCheck) compare(r *keyRule) {
	key := k.arch + "." + r.key
	want, name, stated := k.config.number(r.names...)
	if r.rope {
		var v strictjson.Value
		var err error
		v, name = k.config.rope(r.names...)
		want, err = v.Float()
		stated = name != "" && err == nil
	}
	v, inFile := k.keys.Get(key)
	needed := slices.Equal(r.families, all) || slices.Contains(r.families, k.arch)
	if !stated && (inFile || needed) && r.inConfig != nil {
		want, stated = r.inConfig(k)
		name = "its default"
	}
	if !stated {
		return
	}
	is := []float64{}
	switch {
	case inFile && v.Type() == gguf.Array: // a value for each layer
		is, _ = numbersOf(v)
	case inFile:
		if f, ok := numberOf(v); ok {
			is = append(is, f)
		}
	case needed && r.inFile != nil:
		if f, ok := r.inFile(k); ok {
			is = append(is, f)
		}
		key += " (not stated)"
	}
	if len(is) == 0 && inFile {
		k.add("key-differs", "", "%s is %s, and no number; config.json has %s = %v", key, v.Describe(), name, want)
		return
	}
	if len(is) == 0 && needed {
		k.add("key-missing", "", "%s is not there; config.json has %s = %v", key, name, want)
		return
	}
	for _, f := range is {
		if float32(f) != float32(want) {
			k.add("key-differs", "", "%s is %v, in config.json %s is %v", key, f, name, want).measured(f, want)
			return
		}
	}
}

func numbersOf(v gguf.Value) ([]float64, bool) {
	if ints, err := v.Ints(); err == nil {
		all := make([]float64, len(ints))
		for i, n := range ints {
			all[i] = float64(n)
		}
		return all, true
	}
	floats, err := v.Floats()
	return floats, err == nil
}

// ofFile are keys of a GGUF file that say how it is stored or what it is called, and not
// what is computed.
func ofFile(key string) bool {
	return strings.HasPrefix(key, "split.") || strings.HasPrefix(key, "general.") && key != "general.architecture"
}

// compareMetadata compares two GGUF models.
func (c *conversionCheck) compareMetadata() {
	base, converted := c.base.GGUF().Metadata(), c.converted.GGUF().Metadata()
	for key, want := range base.All() {
		is, ok := converted.Get(key)
		switch {
		case ofFile(key):
		case !ok:
			c.add("key-missing", "", "%s is not there; in the base it is %s", key, want.Describe())
		case !is.Equal(want):
			c.add("key-differs", "", "%s is %s, in the base %s", key, is.Describe(), want.Describe())
		}
	}
}

// notOfModel are settings that say how weights are stored, and with what.
var notOfModel = []string{"dtype", "torch_dtype", "transformers_version", "_name_or_path", "quantization_config", "architectures", "auto_map"}

// compareConfigs compares two folders: what both state must be one value. What only one
// states may be a default that a tool wrote, or left out.
func (c *conversionCheck) compareConfigs() {
	if c.base.Config != nil && c.converted.Config != nil {
		c.compareObjects("", c.base.Config, c.converted.Config)
	}
}

func (c *conversionCheck) compareObjects(path string, base, converted *strictjson.Object) {
	for key, want := range base.All() {
		is, ok := converted.Get(key)
		if !ok || slices.Contains(notOfModel, key) || is.Equal(want) || sameNumber(is, want) {
			continue
		}
		a, errA := want.Object()
		b, errB := is.Object()
		if errA == nil && errB == nil {
			c.compareObjects(path+key+".", a, b)
			continue
		}
		c.add("key-differs", "", "config.json: %s%s is %s, in the base %s", path, key, clipped(is), clipped(want))
	}
}

// sameNumber reports whether two values are one number: 1e-05 and 0.00001.
func sameNumber(a, b strictjson.Value) bool {
	x, errA := a.Float()
	y, errB := b.Float()
	return errA == nil && errB == nil && x == y
}

// clipped is a value in as many letters as a message has room for.
func clipped(v strictjson.Value) string {
	const most = 60
	text := []rune(string(v.Encode("")))
	if len(text) > most {
		return fmt.Sprintf("%s...", string(text[:most]))
	}
	return string(text)
}
