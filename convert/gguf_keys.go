package convert

import (
	"fmt"
	"math"
	"strings"

	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/strictjson"
)

// ggufFamilyKeys write the hyperparameters of the families that can be converted, in the
// order of the converter.
var ggufFamilyKeys = map[string]func(*ggufPlanner) error{
	"llama":    (*ggufPlanner).llamaKeys,
	"qwen2":    (*ggufPlanner).commonKeys,
	"qwen3":    (*ggufPlanner).commonKeys,
	"qwen2moe": (*ggufPlanner).qwenExpertKeys,
	"qwen3moe": (*ggufPlanner).qwenExpertKeys,
	"gemma":    (*ggufPlanner).gemmaKeys,
	"gemma2":   (*ggufPlanner).gemma2Keys,
	"gemma3":   (*ggufPlanner).gemma3Keys,
	"phi3":     (*ggufPlanner).phi3Keys,
	"gpt2":     (*ggufPlanner).gpt2Keys,
	"bert":     (*ggufPlanner).bertKeys,

	"smollm3":    (*ggufPlanner).smolLM3Keys,
	"granite":    (*ggufPlanner).graniteKeys,
	"olmo2":      (*ggufPlanner).olmo2Keys,
	"starcoder2": (*ggufPlanner).starcoder2Keys,
}

// fileTypes are the numbers of general.file_type.
var fileTypes = map[tensor.DType]uint32{tensor.F32: 0, tensor.F16: 1, tensor.BF16: 32}

// quantizationVersion is that of ggml's types.
const quantizationVersion = 2

// addKeys writes all keys.
func (g *ggufPlanner) addKeys() error {
	g.text("general.architecture", g.family.Name)
	g.text("general.type", "model")
	if err := g.aboutKeys(); err != nil {
		return err
	}
	if err := ggufFamilyKeys[g.family.Name](g); err != nil {
		return err
	}
	if _, ok := g.keys.Get(g.family.Name + ".context_length"); !ok {
		return g.errorf("its config.json has no max_position_embeddings: no runtime loads a GGUF file without")
	}
	set(g, "general.quantization_version", uint32(quantizationVersion))
	g.vocabularyKeys()
	return nil
}

// set puts a key at the end, or gives it another value where it stands.
func set[T gguf.Scalar](g *ggufPlanner, key string, v T) {
	if !g.keys.Replace(key, gguf.ValueOf(v)) {
		g.keys.Set(key, gguf.ValueOf(v))
	}
}

// text sets a key to a text; the converter leaves out empty ones.
func (g *ggufPlanner) text(key, text string) {
	if text != "" {
		set(g, key, text)
	}
}

// param sets a key of the architecture.
func param[T gguf.Scalar](g *ggufPlanner, key string, v T) { set(g, g.family.Name+"."+key, v) }

// find returns the first of some settings that config.json has; false if it is null.
func (g *ggufPlanner) find(names ...string) (name string, v strictjson.Value, ok bool) {
	for _, name := range names {
		if v, ok := g.hparams.Get(name); ok {
			return name, v, !v.IsNull()
		}
	}
	return "", strictjson.Value{}, false
}

// mustInt returns the first of some settings, which must be there.
func (g *ggufPlanner) mustInt(names ...string) (int64, error) {
	n, ok, err := g.optInt(names...)
	if err == nil && !ok {
		err = g.errorf("its config.json has no %s", strings.Join(names, ", nor "))
	}
	return n, err
}

func (g *ggufPlanner) intOr(otherwise int64, names ...string) (int64, error) {
	if otherwise == 0 {
		return g.mustInt(names...)
	}
	n, ok, err := g.optInt(names...)
	if !ok {
		n = otherwise
	}
	return n, err
}

// optInt returns the first of some settings if it is there. It has to fit 32 bits, as
// in the file.
func (g *ggufPlanner) optInt(names ...string) (int64, bool, error) {
	name, v, ok := g.find(names...)
	if !ok {
		return 0, false, nil
	}
	n, err := v.Int()
	if err != nil {
		return 0, false, g.errorf("its config.json: %s: %w", name, err)
	}
	if n < 0 || n > math.MaxUint32 {
		return 0, false, g.errorf("its config.json: %s is %d", name, n)
	}
	return n, true, nil
}

func (g *ggufPlanner) optFloat(names ...string) (float64, bool, error) {
	name, v, ok := g.find(names...)
	if !ok {
		return 0, false, nil
	}
	f, err := v.Float()
	if err != nil {
		return 0, false, g.errorf("its config.json: %s: %w", name, err)
	}
	return f, true, nil
}

// A setting is a key with the names that config.json may have for it.
type setting struct {
	key   string
	names []string
}

// ints writes the settings that config.json has.
func (g *ggufPlanner) ints(settings ...setting) error {
	for _, s := range settings {
		n, ok, err := g.optInt(s.names...)
		if err != nil {
			return err
		}
		if ok {
			param(g, s.key, uint32(n))
		}
	}
	return nil
}

// mustInts writes settings that config.json must have.
func (g *ggufPlanner) mustInts(settings ...setting) error {
	for _, s := range settings {
		if _, err := g.mustInt(s.names...); err != nil {
			return err
		}
	}
	return g.ints(settings...)
}

func (g *ggufPlanner) floats(settings ...setting) error {
	for _, s := range settings {
		f, ok, err := g.optFloat(s.names...)
		if err != nil {
			return err
		}
		if ok {
			param(g, s.key, float32(f))
		}
	}
	return nil
}

// commonKeys are those of most families.
func (g *ggufPlanner) commonKeys() error {
	param(g, "block_count", uint32(g.layers))
	if err := g.ints(
		setting{"context_length", []string{"max_position_embeddings", "n_ctx", "n_positions", "max_length", "max_sequence_length", "model_max_length"}},
		setting{"embedding_length", []string{"hidden_size", "n_embd", "dim"}},
		setting{"feed_forward_length", []string{"prefix_dense_intermediate_size", "dense_intermediate_size", "intermediate_size", "n_inner", "hidden_dim"}},
		setting{"attention.head_count", []string{"num_attention_heads", "n_head", "n_heads"}},
		setting{"attention.head_count_kv", []string{"num_key_value_heads", "n_kv_heads"}},
	); err != nil {
		return err
	}
	if causal, ok, err := g.hparams.OptBool("is_causal"); err == nil && ok && !causal {
		param(g, "attention.causal", false)
	}
	if err := g.ropeKeys(); err != nil {
		return err
	}
	if err := g.floats(
		setting{"attention.layer_norm_rms_epsilon", []string{"rms_norm_eps", "norm_eps"}},
		setting{"attention.layer_norm_epsilon", []string{"layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"}},
	); err != nil {
		return err
	}
	if err := g.ints(
		setting{"expert_count", []string{"num_local_experts", "num_experts", "n_routed_experts"}},
		setting{"expert_used_count", []string{"num_experts_per_tok", "num_experts_per_token", "top_k_experts"}},
		setting{"expert_group_count", []string{"n_group"}},
		setting{"expert_group_used_count", []string{"topk_group"}},
		setting{"attention.key_length", []string{"head_dim"}},
		setting{"attention.value_length", []string{"head_dim"}},
	); err != nil {
		return err
	}
	set(g, "general.file_type", fileTypes[g.fixed])
	return nil
}

func (g *ggufPlanner) llamaKeys() error {
	if err := g.commonKeys(); err != nil {
		return err
	}
	if err := g.mustInts(setting{"vocab_size", []string{"vocab_size"}}); err != nil {
		return err
	}
	head, err := g.headSize()
	if err != nil {
		return err
	}
	param(g, "rope.dimension_count", uint32(head))
	return nil
}

// headSize is the size of a head of queries.
func (g *ggufPlanner) headSize() (int64, error) {
	if n, ok, err := g.optInt("head_dim"); ok || err != nil {
		return n, err
	}
	hidden, err := g.mustInt("hidden_size")
	return hidden / g.heads, err
}

func (g *ggufPlanner) qwenExpertKeys() error {
	if err := g.commonKeys(); err != nil {
		return err
	}
	return g.ints(
		setting{"expert_feed_forward_length", []string{"moe_intermediate_size"}},
		setting{"expert_shared_feed_forward_length", []string{"shared_expert_intermediate_size"}},
	)
}

// gemmaKeys are those of the first Gemma, which has an order of its own.
func (g *ggufPlanner) gemmaKeys() error {
	if err := g.mustInts(
		setting{"context_length", []string{"max_position_embeddings"}},
		setting{"embedding_length", []string{"hidden_size"}},
	); err != nil {
		return err
	}
	param(g, "block_count", uint32(g.layers))
	if err := g.mustInts(setting{"feed_forward_length", []string{"intermediate_size"}}, setting{"attention.head_count", []string{"num_attention_heads"}}); err != nil {
		return err
	}
	param(g, "attention.head_count_kv", uint32(g.kvHeads))
	if err := g.floats(setting{"attention.layer_norm_rms_epsilon", []string{"rms_norm_eps"}}); err != nil {
		return err
	}
	if err := g.mustInts(setting{"attention.key_length", []string{"head_dim"}}, setting{"attention.value_length", []string{"head_dim"}}); err != nil {
		return err
	}
	set(g, "general.file_type", fileTypes[g.fixed])
	return nil
}

func (g *ggufPlanner) gemma2Keys() error {
	if err := g.gemmaKeys(); err != nil {
		return err
	}
	if err := g.floats(
		setting{"attn_logit_softcapping", []string{"attn_logit_softcapping"}},
		setting{"final_logit_softcapping", []string{"final_logit_softcapping"}},
	); err != nil {
		return err
	}
	return g.mustInts(setting{"attention.sliding_window", []string{"sliding_window"}})
}

// gemma3Keys are the common ones with the defaults of the family, which its configs may
// leave out.
func (g *ggufPlanner) gemma3Keys() error {
	if err := g.commonKeys(); err != nil {
		return err
	}
	const context, heads, kvHeads, head, theta, epsilon = 131072, 8, 4, 256, 1e6, 1e-6
	for _, s := range []struct {
		key, name string
		otherwise int64
	}{{"context_length", "max_position_embeddings", context}, {"attention.head_count", "num_attention_heads", heads}} {
		n, err := g.intOr(s.otherwise, s.name)
		if err != nil {
			return err
		}
		param(g, s.key, uint32(n))
	}
	eps, ok, err := g.optFloat("rms_norm_eps")
	if err != nil {
		return err
	}
	if !ok {
		eps = epsilon
	}
	param(g, "attention.layer_norm_rms_epsilon", float32(eps))
	size, err := g.intOr(head, "head_dim")
	if err != nil {
		return err
	}
	param(g, "attention.key_length", uint32(size))
	param(g, "attention.value_length", uint32(size))
	rope, err := g.rope()
	if err != nil {
		return err
	}
	base, ok, err := rope.float("rope_theta")
	if err != nil {
		return err
	}
	if !ok {
		base = theta
	}
	param(g, "rope.freq_base", float32(base))
	if _, capped, err := g.optFloat("attn_logit_softcapping"); err != nil || capped {
		return g.errorf("its config.json has attn_logit_softcapping, which Gemma 3 has not")
	}
	if limit, ok, err := g.optFloat("final_logit_softcapping"); err != nil {
		return err
	} else if ok && limit != 0 {
		param(g, "final_logit_softcapping", float32(limit))
	}
	if pattern, ok, err := g.optInt("sliding_window_pattern"); err != nil {
		return err
	} else if !ok || pattern != 1 {
		if err := g.mustInts(setting{"attention.sliding_window", []string{"sliding_window"}}); err != nil {
			return err
		}
	}
	kv, err := g.intOr(kvHeads, "num_key_value_heads")
	param(g, "attention.head_count_kv", uint32(kv))
	return err
}

// ropeParams are the settings of rotary embeddings: those of layers with full attention,
// and the base of the others.
type ropeParams struct {
	g     *ggufPlanner
	full  *strictjson.Object
	local *strictjson.Object // of layers with a sliding window; nil without
}

// rope finds the settings in the places where older and newer configs have them.
func (g *ggufPlanner) rope() (*ropeParams, error) {
	name, v, ok := g.find("rope_parameters", "rope_scaling")
	all := strictjson.NewObject()
	if ok {
		o, err := v.Object()
		if err != nil {
			return nil, g.errorf("its config.json: %s: %w", name, err)
		}
		for k, v := range o.All() {
			all.Set(k, v)
		}
	}
	r := &ropeParams{g: g, full: all}
	_, hasFull := all.Get("full_attention")
	_, hasLocal := all.Get("sliding_attention")
	if hasFull || hasLocal {
		var err error
		if o, ok, e := all.OptObject("full_attention"); e != nil {
			err = e
		} else if ok {
			r.full = o
		}
		if o, ok, e := all.OptObject("sliding_attention"); e != nil {
			err = e
		} else if ok {
			r.local = o
		}
		if err != nil {
			return nil, g.errorf("its config.json: %s: %w", name, err)
		}
		return r, nil
	}
	mirror := func(to string, from ...string) {
		if _, there := all.Get(to); there {
			return
		}
		if _, v, ok := g.find(from...); ok {
			all.Set(to, v)
		}
	}
	if _, v, ok := g.find("local_rope_theta", "rope_local_theta", "rope_theta_local", "swa_rope_theta", "rope_local_base_freq"); ok {
		r.local = strictjson.NewObject()
		r.local.Set("rope_theta", v)
	}
	mirror("rope_theta", "global_rope_theta", "rope_global_theta", "rope_theta_global", "rope_theta", "rotary_emb_base")
	if kind, ok := all.Get("type"); ok {
		if _, there := all.Get("rope_type"); !there {
			all.Set("rope_type", kind)
		}
	}
	mirror("partial_rotary_factor", "partial_rotary_factor", "rope_pct", "rope_percent")
	mirror("original_max_position_embeddings", "original_max_position_embeddings")
	return r, nil
}

func (r *ropeParams) float(name string) (float64, bool, error) {
	f, ok, err := r.full.OptFloat(name)
	if err != nil {
		return 0, false, r.g.errorf("its config.json: rope parameters: %w", err)
	}
	return f, ok, nil
}

func (r *ropeParams) kind() (string, error) {
	kind, _, err := r.full.OptString("rope_type")
	if err != nil {
		return "", r.g.errorf("its config.json: rope parameters: %w", err)
	}
	return strings.ToLower(kind), nil
}

// ropeKeys writes scaling and bases. The factors of llama3 are a tensor instead.
func (g *ggufPlanner) ropeKeys() error {
	r, err := g.rope()
	if err != nil {
		return err
	}
	kind, err := r.kind()
	if err != nil {
		return err
	}
	switch kind {
	case "", "default", "llama3":
	case "linear", "yarn":
		if err := r.scalingKeys(kind); err != nil {
			return err
		}
	default:
		return g.errorf("its rope scaling is %q; llama3, linear and yarn can be converted", kind)
	}
	if base, ok, err := r.float("rope_theta"); err != nil {
		return err
	} else if ok {
		param(g, "rope.freq_base", float32(base))
	}
	if r.local == nil {
		return nil
	}
	base, ok, err := r.local.OptFloat("rope_theta")
	if err != nil {
		return g.errorf("its config.json: rope parameters: %w", err)
	}
	if ok {
		param(g, "rope.freq_base_swa", float32(base))
	}
	return nil
}

// scalingKeys writes a scaling that has a factor.
func (r *ropeParams) scalingKeys(kind string) error {
	factor, ok, err := r.float("factor")
	if err != nil || !ok {
		return err
	}
	param(r.g, "rope.scaling.type", kind)
	param(r.g, "rope.scaling.factor", float32(factor))
	if kind == "linear" {
		return nil
	}
	original, ok, err := r.float("original_max_position_embeddings")
	if err != nil {
		return err
	}
	if !ok || original != math.Trunc(original) || original < 0 || original > math.MaxUint32 {
		return r.g.errorf("its yarn scaling has no original_max_position_embeddings")
	}
	param(r.g, "rope.scaling.original_context_length", uint32(original))
	for _, s := range []setting{
		{"rope.scaling.yarn_ext_factor", []string{"extrapolation_factor"}},
		{"rope.scaling.yarn_attn_factor", []string{"attention_factor", "attn_factor"}},
		{"rope.scaling.yarn_beta_fast", []string{"beta_fast"}},
		{"rope.scaling.yarn_beta_slow", []string{"beta_slow"}},
	} {
		for _, name := range s.names {
			f, ok, err := r.float(name)
			if err != nil {
				return err
			}
			if ok {
				param(r.g, s.key, float32(f))
				break
			}
		}
	}
	return nil
}

// addExtras adds the tensors that are computed from the config, which come first.
func (g *ggufPlanner) addExtras() error {
	switch {
	case g.family.IsLike("llama"):
		return g.llama3Factors()
	case g.family.Name == "phi3":
		return g.longFactors()
	}
	return nil
}

func (g *ggufPlanner) llama3Factors() error {
	r, err := g.rope()
	if err != nil {
		return err
	}
	if kind, err := r.kind(); err != nil || kind != "llama3" {
		return err
	}
	factors, err := r.llama3()
	if err != nil {
		return err
	}
	return g.addFactors("rope_freqs.weight", factors)
}

// addFactors adds numbers that are in no file.
func (g *ggufPlanner) addFactors(name string, factors []float32) error {
	v := &viewTensor{data: encodeF32(factors)}
	v.spec = tensor.Spec{Name: name, DType: tensor.F32, Shape: tensor.Shape{int64(len(factors))}}
	return g.add(v, nil)
}

// llama3 returns what the wavelength of each pair of a head is divided by, in float32 as
// the converter computes it:
//
//	1                        where the wavelength is below original / high
//	factor                   where it is above original / low
//	1 / ((1-s)/factor + s)   between, s = (original/wavelength - low) / (high - low)
func (r *ropeParams) llama3() ([]float32, error) {
	param := map[string]float64{"rope_theta": 10000, "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 8192}
	for name := range param {
		f, ok, err := r.float(name)
		if err != nil {
			return nil, err
		}
		if ok {
			param[name] = f
		}
	}
	dim, err := r.g.headSize()
	if err != nil {
		return nil, err
	}
	const largest = 1 << 16 // far above any head
	if dim <= 0 || dim > largest {
		return nil, r.g.errorf("its config.json: heads of size %d", dim)
	}
	s := llama3Scaling{param["rope_theta"], param["factor"], param["low_freq_factor"], param["high_freq_factor"], param["original_max_position_embeddings"]}
	if !(s.low > 0) || !(s.high > s.low) || !(s.factor > 0) || !(s.original > 0) || !(s.base > 0) {
		return nil, r.g.errorf("its llama3 scaling has factors that make no sense: low %v, high %v, factor %v, original %v", s.low, s.high, s.factor, s.original)
	}
	return s.factors(dim), nil
}

// llama3Scaling are the parameters of the scaling of Llama 3.
type llama3Scaling struct{ base, factor, low, high, original float64 }

// factors returns the factors of the pairs of a head.
func (s llama3Scaling) factors(dim int64) []float32 {
	var factors []float32
	for i := int64(0); i < dim; i += 2 {
		freq := 1 / float32(math.Pow(s.base, float64(float32(i)/float32(dim))))
		wavelength := float32(2*math.Pi) / freq
		switch {
		case float64(wavelength) < s.original/s.high:
			factors = append(factors, 1)
		case float64(wavelength) > s.original/s.low:
			factors = append(factors, float32(s.factor))
		default:
			smooth := (float32(s.original)/wavelength - float32(s.low)) / float32(s.high-s.low)
			factors = append(factors, 1/float32((1-smooth)/float32(s.factor)+smooth))
		}
	}
	return factors
}

// sizes counts the parameters, and says it in words: of a model of experts, how many one
// of them would have, and how many there are.
func (g *ggufPlanner) sizes() (total int64, label string) {
	var shared, expert, stacks, experts int64
	for _, s := range g.out {
		n, _ := s.Shape.NumElements()
		total += n
		if strings.Contains(s.Name, "_exps.") && len(s.Shape) >= 3 && s.Shape[0] > 0 {
			expert += n / s.Shape[0]
			experts += s.Shape[0]
			stacks++
			continue
		}
		shared += n
	}
	switch {
	case total == 0: // an adapter has no size of its own
		return 0, ""
	case stacks > 0:
		return total, fmt.Sprintf("%dx%s", experts/stacks, sizeLabel(shared+expert))
	}
	return total, sizeLabel(total)
}

// sizeLabel is a number of parameters in words: two digits, in thousands and up.
func sizeLabel(n int64) string {
	for _, unit := range []struct {
		scale, above float64
		suffix       string
	}{{1e-12, 1e12, "T"}, {1e-9, 1e9, "B"}, {1e-6, 1e6, "M"}, {1e-3, -1, "K"}} {
		if float64(n) <= unit.above {
			continue
		}
		scaled := float64(n) * unit.scale
		digits := len(strings.TrimLeft(fmt.Sprintf("%.0f", math.RoundToEven(scaled)), "0"))
		return fmt.Sprintf("%.*f%s", max(2-digits, 0), scaled, unit.suffix)
	}
	return ""
}
