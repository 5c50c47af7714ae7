package forward

import (
	"fmt"
	"math"
)

// family is what distinguishes one family's block from another's. Source: the
// modelling and configuration files of transformers 5.23.
type family struct {
	scaledEmbedding bool // by sqrt(hidden)
	normPlusOne     bool // norms multiply by 1 + w
	fourNorms       bool // behind attention and perceptron too
	headNorms       bool // of queries and keys, head by head
	qkvBias         bool // always
	mayBias         bool // attention_bias counts
	mayMLPBias      bool // mlp_bias counts
	queryScalar     bool // scores are scaled by query_pre_attn_scalar
	tied            bool // unless the config says otherwise
	headSize        int64

	activationKey, activation string // the setting, and its default
	attentionCap, finalCap    float64
	capped                    bool // final_logit_softcapping counts

	window   windowRule
	twoBases bool // rotation differs between layers with and without a window
}

// windowRule says which layers see a window only.
type windowRule uint8

const (
	noWindow   windowRule = iota
	everywhere            // where the config has a sliding_window
	behindMax             // from layer max_window_layers on, with use_sliding_window
	everyOther            // the first, the third, ...
	pattern               // all but each sixth, or each sliding_window_pattern-th
)

var families = map[string]family{
	"llama":   {mayBias: true, mayMLPBias: true, activationKey: "hidden_act", activation: "silu"},
	"mistral": {activationKey: "hidden_act", activation: "silu", window: everywhere},
	"qwen2":   {qkvBias: true, activationKey: "hidden_act", activation: "silu", window: behindMax},
	"qwen3":   {mayBias: true, headNorms: true, headSize: 128, activationKey: "hidden_act", activation: "silu", window: behindMax},
	"gemma": {
		scaledEmbedding: true, normPlusOne: true, mayBias: true, tied: true, headSize: 256,
		activationKey: "hidden_act", activation: "gelu_pytorch_tanh",
	},
	"gemma2": {
		scaledEmbedding: true, normPlusOne: true, fourNorms: true, mayBias: true, queryScalar: true, tied: true, headSize: 256,
		activationKey: "hidden_activation", activation: "gelu_pytorch_tanh", attentionCap: 50, finalCap: 30, capped: true,
		window: everyOther,
	},
	"gemma3_text": {
		scaledEmbedding: true, normPlusOne: true, fourNorms: true, headNorms: true, mayBias: true, queryScalar: true, tied: true,
		headSize: 256, activationKey: "hidden_activation", activation: "gelu_pytorch_tanh", capped: true,
		window: pattern, twoBases: true,
	},
}

// activation returns the function between gate and up. The first Gemma's configs say
// "gelu" and mean the other.
func (r *reader) activation(f family) func(float64) float64 {
	name := r.text(f.activationKey, f.activation)
	switch {
	case name == "silu":
		return func(x float64) float64 { return x / (1 + math.Exp(-x)) }
	case name == "gelu_pytorch_tanh", name == "gelu" && f.activationKey == "hidden_act" && f.scaledEmbedding:
		return func(x float64) float64 {
			return x / 2 * (1 + math.Tanh(math.Sqrt(2/math.Pi)*(x+0.044715*x*x*x)))
		}
	}
	if r.err == nil {
		r.fail(&UnsupportedError{f.activationKey, fmt.Sprintf("%q", name)})
	}
	return nil
}

// The kinds of layers, as configs call them.
const (
	slidingLayer = "sliding_attention"
	fullLayer    = "full_attention"
)

// layerKinds returns the kind of every layer: layer_types, or the family's rule.
func (r *reader) layerKinds(s *settings) []string {
	kinds := make([]string, s.layers)
	rule := s.family.window
	from, every := 0.0, 0.0
	switch rule {
	case behindMax:
		from = r.number("max_window_layers", 28)
	case pattern:
		every = r.positive("sliding_window_pattern", 6)
	}
	for i := range kinds {
		sliding := rule == everywhere || rule == behindMax && float64(i) >= from && r.flag("use_sliding_window", false) ||
			rule == everyOther && i%2 == 0 || rule == pattern && (i+1)%max(int(every), 1) != 0
		kinds[i] = fullLayer
		if sliding {
			kinds[i] = slidingLayer
		}
	}
	if rule == noWindow || rule == everywhere {
		return kinds // these families have no such list
	}
	listed, ok, err := r.root.OptStrings("layer_types")
	if err != nil || ok && len(listed) != len(kinds) {
		r.fail(&ConfigError{"layer_types", "is no list with an entry for each layer"})
	}
	if !ok || r.err != nil {
		return kinds
	}
	for _, k := range listed {
		if k != slidingLayer && k != fullLayer {
			r.fail(&UnsupportedError{"layer_types", fmt.Sprintf("%q", k)})
		}
	}
	return listed
}

// windows sets how far each layer sees.
func (r *reader) windows(s *settings, kinds []string) {
	s.windows = make([]int, s.layers)
	if s.family.window == noWindow {
		return
	}
	size := r.number("sliding_window", 4096)
	if s.family.window == behindMax && !r.flag("use_sliding_window", false) {
		size = 0
	}
	for i, k := range kinds {
		if k == slidingLayer {
			s.windows[i] = int(min(size, 1<<30))
		}
	}
}
