package verify

import (
	"math"
	"slices"
)

// This file compares the scaling of rotary embeddings, and what differs from layer to layer.

// checkScaling compares the scaling of the rotary embedding. That of Llama 3 and of long
// ropes are factors of their own, a tensor.
func (k *keyCheck) checkScaling() {
	v, name := k.config.rope("rope_type", "type")
	kind, err := v.Text()
	if err != nil {
		kind = ""
	}
	is, _, _ := k.keys.OptText(k.arch + ".rope.scaling.type")
	want := map[string]string{"linear": "linear", "yarn": "yarn"}[kind]
	if is == "none" || is == "longrope" {
		is = ""
	}
	if k.arch == "phi3" { // which has factors for any kind of scaling
		want = ""
	}
	if is != want {
		k.add("key-differs", "", "%s.rope.scaling.type is %q, in config.json %s is %q", k.arch, is, name, kind)
		return
	}
	for _, r := range scalingRules[want] {
		k.compare(&keyRule{key: "rope.scaling." + r.key, names: r.names, rope: true, families: all})
	}
}

// scalingRules are the parameters of a kind of scaling.
var scalingRules = map[string][]keyRule{
	"linear": {{key: "factor", names: []string{"factor"}}},
	"yarn": {
		{key: "factor", names: []string{"factor"}},
		{key: "original_context_length", names: []string{"original_max_position_embeddings"}},
		{key: "yarn_ext_factor", names: []string{"extrapolation_factor"}},
		{key: "yarn_attn_factor", names: []string{"attention_factor", "attn_factor"}},
		{key: "yarn_beta_fast", names: []string{"beta_fast"}},
		{key: "yarn_beta_slow", names: []string{"beta_slow"}},
	},
}

// factorsName is the tensor that has what Llama 3 divides the wavelengths by.
const factorsName = "rope_freqs.weight"

// maxFactors is far above half the size of any head.
const maxFactors = 1 << 16

// checkFactors compares the factors of a file with the scaling of Llama 3 in config.json:
// the wavelength 2π·base^(2i/D) of pair i of D dimensions is divided by
//
//	1                          below original/high
//	factor                     above original/low
//	1 / ((1-s)/factor + s)     between, s = (original/wavelength - low) / (high - low)
//
// (modeling_rope_utils.py of transformers), which has no steps.
func (k *keyCheck) checkFactors() error {
	spec, stored := k.file.Lookup(factorsName)
	v, _ := k.config.rope("rope_type", "type")
	kind, _ := v.Text() // no text is no kind
	want, ok := k.llama3()
	switch {
	case kind != "llama3" && !stored:
		return nil
	case kind != "llama3":
		k.add("key-differs", "", "%s is there, but config.json has no scaling of the kind llama3", factorsName)
		return nil
	case !stored:
		k.add("key-missing", "", "%s is not there; config.json has a scaling of the kind llama3", factorsName)
		return nil
	case !ok || spec.NumElements() != int64(len(want)):
		k.add("key-differs", "", "%s has %d factors, by config.json there are %d", factorsName, spec.NumElements(), len(want))
		return nil
	}
	r, ok, err := newReader(k.file, spec)
	if err != nil || !ok {
		return err
	}
	is := make([]float64, len(want))
	if err := r.read(is, 0); err != nil {
		return err
	}
	for i, f := range want {
		if !(math.Abs(is[i]-f.value) <= f.noise) {
			k.add("key-differs", "", "factor %d of %s is %v, by config.json %v", i, factorsName, is[i], f.value).measured(is[i], f.value)
			return nil
		}
	}
	return nil
}

// ropeFactor is a factor and what float32 arithmetic may make of it.
type ropeFactor struct{ value, noise float64 }

// llama3 computes the factors. In float32 a wavelength is off by six roundings at most, those
// of the exponent counted as often as the logarithm of the base is large, which is below 2^5:
// relative to itself, 2^-24·2^5·6. s is off by as much of original/wavelength, which is at
// most high, over high - low, and the factor by that times its square; all else is less.
func (k *keyCheck) llama3() ([]ropeFactor, bool) {
	size, ok := k.turnedSize()
	p := map[string]float64{"rope_theta": 10000, "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 8192}
	for name := range p {
		v, _ := k.config.rope(name)
		if f, err := v.Float(); err == nil {
			p[name] = f
		}
	}
	base, factor, low, high, original := p["rope_theta"], p["factor"], p["low_freq_factor"], p["high_freq_factor"], p["original_max_position_embeddings"]
	if !ok || !(size >= 2 && size/2 <= maxFactors) || !(base > 0 && factor > 0 && low > 0 && high > low && original > 0) {
		return nil, false
	}
	all := make([]ropeFactor, int(size)/2)
	for i := range all {
		wavelength := 2 * math.Pi * math.Pow(base, 2*float64(i)/size)
		s := min(max((original/wavelength-low)/(high-low), 0), 1)
		value := 1 / ((1-s)/factor + s)
		ofS := 0x1p-19 * 6 * high / (high - low)
		all[i] = ropeFactor{value, value*value*ofS*math.Abs(1-1/factor) + value*0x1p-21}
	}
	return all, true
}

// noWindow is what Phi 3 has for attention to the whole text.
func (k *keyCheck) noWindow() (float64, bool) { return 0, k.arch == "phi3" }

// context is the length of texts.
func (k *keyCheck) context() (float64, bool) {
	n, _, ok := k.config.number("max_position_embeddings", "n_positions", "n_ctx")
	return n, ok
}

// phi3Factor is what Phi 3 multiplies attention with when the context is s times the one that
// it was trained with: sqrt(1 + ln s / ln original), with yarn 0.1·ln s + 1
// (modeling_rope_utils.py of transformers).
func (k *keyCheck) phi3Factor() (float64, bool) {
	context, ok := k.context()
	v, _ := k.config.rope("original_max_position_embeddings")
	original, err := v.Float()
	kind, _ := k.config.rope("rope_type", "type")
	name, notText := kind.Text()
	factors, _ := k.config.rope("long_factor")
	if !ok || err != nil || notText != nil || factors.IsNull() || !(original > 1) || !(context > original) {
		return 1, k.arch == "phi3"
	}
	stated, _ := k.config.rope("attention_factor")
	if f, err := stated.Float(); err == nil && !stated.IsNull() {
		return f, true
	}
	if name == "yarn" {
		return 0.1*math.Log(context/original) + 1, true
	}
	return math.Sqrt(1 + math.Log(context/original)/math.Log(original)), true
}

// checkLayers compares what is for each layer, or a flag.
func (k *keyCheck) checkLayers() {
	if v, name := k.config.find("rope_local_base_freq", "local_rope_theta", "rope_local_theta"); name != "" {
		if base, err := v.Float(); err == nil {
			k.compareLocal(base, name)
		}
	} else if v, _ := k.config.find("rope_parameters"); !v.IsNull() {
		if o, err := v.Object(); err == nil {
			if local, ok, err := o.OptObject("sliding_attention"); err == nil && ok {
				if base, ok, err := local.OptFloat("rope_theta"); err == nil && ok {
					k.compareLocal(base, "rope_parameters.sliding_attention.rope_theta")
				}
			}
		}
	}
	k.checkWindows()
	k.checkCausal()
}

// compareLocal compares the base of the rotation in layers with a window.
func (k *keyCheck) compareLocal(want float64, name string) {
	const otherwise = 10000 // in llama.cpp for Gemma 3
	is, ok := k.stated("rope.freq_base_swa")
	if !ok {
		is = otherwise
	}
	if float32(is) != float32(want) {
		k.add("key-differs", "", "%s.rope.freq_base_swa is %v, in config.json %s is %v", k.arch, is, name, want).measured(is, want)
	}
}

// checkWindows compares which layers have a window.
func (k *keyCheck) checkWindows() {
	v, ok := k.keys.Get(k.arch + ".attention.sliding_window_pattern")
	types, name := k.config.find("layer_types")
	flags, err := v.Bools()
	kinds, notTexts := types.Strings()
	if !ok || err != nil || name == "" || notTexts != nil {
		return
	}
	want := make([]bool, len(kinds))
	for i, kind := range kinds {
		want[i] = kind == "sliding_attention"
	}
	if !slices.Equal(flags, want) {
		k.add("key-differs", "", "%s.attention.sliding_window_pattern is %v, by layer_types of config.json it is %v", k.arch, flags, want)
	}
}

// checkCausal compares whether tokens see only those before them.
func (k *keyCheck) checkCausal() {
	is, stated, err := k.keys.OptBool(k.arch + ".attention.causal")
	if err != nil {
		return
	}
	if !stated {
		is = true
	}
	want := k.arch != "bert"
	if v, name := k.config.find("is_causal"); name != "" {
		if causal, err := v.Bool(); err == nil {
			want = causal
		}
	}
	if is != want {
		k.add("key-differs", "", "%s.attention.causal is %v, by config.json it is %v", k.arch, is, want)
	}
}
