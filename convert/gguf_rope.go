package convert

import (
	"math"
	"strings"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/strictjson"
)

// This file writes what config.json says about rotary embeddings: keys, and tensors that
// frequencies are divided by.

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

// ropeKeys writes scaling and bases.
func (g *ggufPlanner) ropeKeys() error { return g.rotaryKeys("") }

// llama3Keys are the same where the factors of a llama3 scaling are a tensor.
func (g *ggufPlanner) llama3Keys() error { return g.rotaryKeys(llama3Scale) }

// llama3Scale is the name of Llama 3's scaling.
const llama3Scale = "llama3"

// rotaryKeys writes scaling and bases, without a scaling that a tensor has.
func (g *ggufPlanner) rotaryKeys(inTensor string) error {
	r, err := g.rope()
	if err != nil {
		return err
	}
	switch kind, err := r.kind(); {
	case err != nil:
		return err
	case kind == "", kind == "default", kind == inTensor:
	case kind == "linear", kind == "yarn":
		if err := r.scalingKeys(kind); err != nil {
			return err
		}
	case kind == llama3Scale:
		return g.errorf("its rope scaling is %q, which a GGUF file of %s has no place for; linear and yarn can be converted", kind, g.family.Name)
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
	for _, s := range yarnSettings {
		for _, name := range s.Names {
			f, ok, err := r.float(name)
			if err != nil {
				return err
			}
			if ok {
				param(r.g, s.Key, float32(f))
				break
			}
		}
	}
	return nil
}

// checkRotary refuses what a family without keys for it has not: a runtime takes the base
// that all its models have, and no scaling.
func (g *ggufPlanner) checkRotary() error {
	r, err := g.rope()
	if err != nil {
		return err
	}
	kind, err := r.kind()
	if err != nil {
		return err
	}
	base, ok, err := r.float("rope_theta")
	switch {
	case err != nil:
		return err
	case ok && base != defaultRopeBase:
		return g.errorf("its config.json: rope_theta is %v; a GGUF file of %s stands for %d", base, g.family.Name, defaultRopeBase)
	case kind != "" && kind != "default":
		return g.errorf("its rope scaling is %q; a GGUF file of %s has none", kind, g.family.Name)
	}
	return nil
}

// addExtras adds the tensors that are computed from the config, which come first.
func (g *ggufPlanner) addExtras() error {
	for _, p := range g.family.Params {
		if add := rules[p.Rule].tensors; add != nil {
			if err := add(g); err != nil {
				return err
			}
		}
	}
	return nil
}

func (g *ggufPlanner) llama3Factors() error {
	r, err := g.rope()
	if err != nil {
		return err
	}
	if kind, err := r.kind(); err != nil || kind != llama3Scale {
		return err
	}
	factors, err := r.llama3()
	if err != nil {
		return err
	}
	return g.addFactors(ropeFactors, factors)
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
