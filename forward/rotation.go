package forward

import (
	"fmt"
	"math"

	"github.com/loratool/loratool/internal/strictjson"
)

// rotations sets the frequencies of each layer: rope_parameters as transformers 5
// writes it, for all layers or by kind of layer, or rope_theta and rope_scaling.
func (r *reader) rotations(s *settings, kinds []string) {
	s.frequencies = make([][]float32, s.layers)
	if r.err != nil {
		return
	}
	made := make(map[string][]float32)
	for i, kind := range kinds {
		if made[kind] == nil {
			made[kind] = r.frequencies(s, kind)
		}
		s.frequencies[i] = made[kind]
	}
}

// frequencies are those of a kind of layer: theta^(-2i/head), scaled.
func (r *reader) frequencies(s *settings, kind string) []float32 {
	params, theta := r.rotation(s.family, kind)
	if read(r, params, "partial_rotary_factor", 1, strictjson.Value.Float) != 1 {
		r.fail(&UnsupportedError{"partial_rotary_factor", "other than 1"})
	}
	if theta = read(r, params, "rope_theta", theta, strictjson.Value.Float); !(theta > 0) {
		r.fail(&ConfigError{"rope_theta", fmt.Sprintf("is %v", theta)})
	}
	all := make([]float32, s.headSize/2)
	for i := range all {
		all[i] = float32(1 / math.Pow(theta, float64(2*i)/float64(s.headSize)))
	}
	kindOfScaling := read(r, params, "type", "default", strictjson.Value.Text)
	switch kindOfScaling = read(r, params, "rope_type", kindOfScaling, strictjson.Value.Text); kindOfScaling {
	case "default":
	case "linear":
		factor := r.parameter(params, "factor")
		for i := range all {
			all[i] = float32(float64(all[i]) / factor)
		}
	case "llama3":
		r.llama3(params, all)
	default:
		if r.err == nil {
			r.fail(&UnsupportedError{"rope_type", fmt.Sprintf("%q", kindOfScaling)})
		}
	}
	return all
}

// rotation finds the object with the parameters of a kind of layer, and the base that
// holds unless it has one. rope_scaling goes first, as in transformers.
func (r *reader) rotation(f family, kind string) (params *strictjson.Object, theta float64) {
	theta = r.number("rope_theta", 10000)
	params, _, _ = r.root.OptObject("rope_parameters")
	scaling, scaled, err := r.root.OptObject("rope_scaling")
	if err != nil {
		r.fail(&ConfigError{"rope_scaling", err.Error()})
	}
	if f.twoBases {
		theta = r.number("rope_theta", 1e6)
		if kind == slidingLayer {
			theta, scaled = r.number("rope_local_base_freq", 1e4), false
		}
	}
	if nested := params; nested != nil {
		if own, ok, err := nested.OptObject(kind); ok && err == nil {
			params = own
		} else if f.twoBases {
			r.fail(&UnsupportedError{"rope_parameters", "without an entry for " + kind})
		}
	}
	switch {
	case scaled && params != nil && f.twoBases:
		r.fail(&UnsupportedError{"rope_scaling", "beside rope_parameters"})
	case scaled:
		params = scaling
	case params == nil:
		params = strictjson.NewObject()
	}
	return params, theta
}

// llama3 leaves short wavelengths, divides long ones, and goes over between the two.
func (r *reader) llama3(params *strictjson.Object, all []float32) {
	factor, low, high := r.parameter(params, "factor"), r.parameter(params, "low_freq_factor"), r.parameter(params, "high_freq_factor")
	trained := read(r, params, "original_max_position_embeddings", r.number("max_position_embeddings", 0), strictjson.Value.Float)
	if r.err == nil && !(trained > 0 && high > low) {
		r.fail(&ConfigError{"rope_parameters", "of llama3 have no wavelengths to go over at"})
	}
	for i, f := range all {
		frequency := float64(f)
		waves := trained * frequency / (2 * math.Pi) // in the trained length
		smooth := min(max((waves-low)/(high-low), 0), 1)
		all[i] = float32((1-smooth)*frequency/factor + smooth*frequency)
	}
}

// parameter reads a number above 0 that has no default.
func (r *reader) parameter(params *strictjson.Object, key string) float64 {
	v := read(r, params, key, 0, strictjson.Value.Float)
	if !(v > 0) || math.IsInf(v, 0) {
		r.fail(&ConfigError{key, "is missing, or no number above 0"})
		return 1
	}
	return v
}
