package convert

import (
	"fmt"
	"slices"

	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/formats/gguf"
)

// rule is a computation that the tables of formats/arch name where a number is not
// enough: a part of config.json becomes keys, and keys become a part of config.json.
type rule struct {
	keys []string // of the architecture, that it writes or reads
	to   func(*ggufPlanner) error
	from func(*hfPlanner) error
	// tensors adds those that are computed from config.json, which come first.
	tensors func(*ggufPlanner) error
}

// rules are all of them; a side that has nothing to do is nil.
var rules = map[arch.Rule]rule{
	arch.Heads:       {keys: headKeys, from: (*hfPlanner).headConfig},
	arch.RotatedSize: {keys: []string{"rope.dimension_count"}, to: (*ggufPlanner).rotatedKey},
	arch.Causal:      {keys: []string{"attention.causal"}, to: (*ggufPlanner).causalKey, from: (*hfPlanner).causalConfig},
	arch.FileType:    {to: (*ggufPlanner).fileTypeKey},
	arch.QueryScale:  {to: (*ggufPlanner).checkQueryScale, from: (*hfPlanner).queryScale},

	arch.Rotary:          {keys: rotaryKeys, to: (*ggufPlanner).ropeKeys, from: (*hfPlanner).ropeConfig},
	arch.Llama3Rotary:    {keys: rotaryKeys, to: (*ggufPlanner).llama3Keys, from: (*hfPlanner).ropeConfig, tensors: (*ggufPlanner).llama3Factors},
	arch.RotaryByDefault: {keys: rotaryKeys, to: (*ggufPlanner).checkRotary, from: (*hfPlanner).ropeConfig},
	arch.LongContext:     {keys: []string{originalKey}, to: (*ggufPlanner).longContextKey},
	arch.LongRotary:      {keys: longRotaryKeys, to: (*ggufPlanner).longRotaryKeys, from: (*hfPlanner).longRotaryConfig, tensors: (*ggufPlanner).addLongFactors},

	arch.NoWindow:       {to: (*ggufPlanner).checkWindow},
	arch.SwitchedWindow: {to: (*ggufPlanner).checkSwitchedWindow, from: (*hfPlanner).switchedWindow},
	arch.Gemma3Window:   {keys: []string{windowKey}, to: (*ggufPlanner).gemma3Window, from: (*hfPlanner).gemma3Window},
	arch.Phi3Window:     {keys: []string{windowKey}, to: (*ggufPlanner).phi3Window, from: (*hfPlanner).phi3Window},
	arch.OlmoWindow:     {keys: []string{windowKey, windowKey + "_pattern", localBaseKey}, to: (*ggufPlanner).olmoWindow, from: (*hfPlanner).olmoWindow},

	arch.LearnedPositions: {to: (*ggufPlanner).checkPositions},
	arch.TokenTypes:       {to: (*ggufPlanner).checkTokenTypes, from: (*hfPlanner).tokenTypes},
	arch.TextEmbeddings:   {keys: []string{poolingKey}, to: (*ggufPlanner).embeddingKeys, from: (*hfPlanner).embeddingConfig},

	arch.MixtralExperts:  {from: (*hfPlanner).mixtralConfig},
	arch.QwenExperts:     {to: (*ggufPlanner).checkExpertWeights, from: (*hfPlanner).qwenExperts},
	arch.Gemma3Base:      {keys: []string{localBaseKey}, to: (*ggufPlanner).gemma3Base, from: (*hfPlanner).gemma3Base},
	arch.SmolLM3Rotation: {to: (*ggufPlanner).checkSmolLM3, from: (*hfPlanner).smolLM3Config},
	arch.GraniteHeads:    {to: (*ggufPlanner).checkGranite},
	arch.GraniteScales:   {from: (*hfPlanner).graniteScales},
	arch.GPT2Widening:    {keys: []string{"feed_forward_length"}, to: (*ggufPlanner).gpt2Widening, from: (*hfPlanner).gpt2Widening},
}

const windowKey = "attention.sliding_window"

// rotatedKey says that whole heads are rotated.
func (g *ggufPlanner) rotatedKey() error {
	head, err := g.headSize()
	if err == nil {
		param(g, "rope.dimension_count", uint32(head))
	}
	return err
}

// headSize is the size of a head of queries.
func (g *ggufPlanner) headSize() (int64, error) {
	if n, ok, err := g.optInt("head_dim"); ok || err != nil {
		return n, err
	}
	hidden, err := g.mustInt("hidden_size")
	return hidden / g.heads, err
}

// checkQueryScale says that queries are scaled with another number than the model's.
func (g *ggufPlanner) checkQueryScale() error {
	const byDefault = 256 // of transformers
	stated, ok, err := g.optFloat("query_pre_attn_scalar")
	if err != nil {
		return err
	}
	if !ok {
		stated = byDefault
	}
	head, err := g.sizeOf("attention.key_length")
	if err != nil {
		return err
	}
	hidden, err := g.sizeOf("embedding_length")
	if err != nil {
		return err
	}
	if scalar := queryScalar(g.family.Name, g.layers, head, hidden, g.heads); stated != float64(scalar) {
		g.decide("query-scale", fmt.Sprintf("query_pre_attn_scalar is %v in config.json or by default: a GGUF file of %s has no place for it, llama.cpp computes with %d, "+
			"so that the model is another one there", stated, g.family.Name, scalar))
	}
	return nil
}

func (g *ggufPlanner) causalKey() error {
	if causal, ok, err := g.hparams.OptBool("is_causal"); err == nil && ok && !causal {
		param(g, "attention.causal", false)
	}
	return nil
}

func (g *ggufPlanner) fileTypeKey() error {
	set(g, "general.file_type", fileTypes[g.fixed])
	return nil
}

// checkWindow says what becomes of a window that is shorter than the context.
func (g *ggufPlanner) checkWindow() error {
	window, err := g.window()
	if err != nil || window == 0 {
		return err
	}
	context, err := g.sizeOf("context_length")
	if err == nil && window < context {
		g.decide("sliding-window", fmt.Sprintf("config.json has a sliding_window of %d: a GGUF file of %s has no place for it, a runtime attends to the whole text", window, g.family.Name))
	}
	return err
}

// window is the sliding window; 0 if there is none.
func (g *ggufPlanner) window() (int64, error) {
	n, _, err := g.optInt("sliding_window")
	return n, err
}

// checkSwitchedWindow is checkWindow where a setting says whether there is one.
func (g *ggufPlanner) checkSwitchedWindow() error {
	on, _, err := g.hparams.OptBool("use_sliding_window")
	if err != nil {
		return g.errorf("its config.json: %w", err)
	}
	if !on {
		return nil
	}
	return g.checkWindow()
}

// gemma3Window is that of most layers, or of none.
func (g *ggufPlanner) gemma3Window() error {
	if pattern, ok, err := g.optInt("sliding_window_pattern"); err != nil || ok && pattern == 1 {
		return err
	}
	window, err := g.mustInt("sliding_window")
	if err == nil {
		param(g, windowKey, uint32(window))
	}
	return err
}

// gemma3Base is a number that its configs may leave out. A limit of scores is what Gemma 2
// had.
func (g *ggufPlanner) gemma3Base() error {
	const theta = 1e6
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
	return nil
}

// checkExpertWeights says that the weights of the chosen experts add up to 1 in a runtime,
// of a model that does not say so: in transformers they do not then.
func (g *ggufPlanner) checkExpertWeights() error {
	const setting = "norm_topk_prob"
	_, stated, err := g.hparams.OptBool(setting)
	fixed := slices.ContainsFunc(g.family.Fixed, func(f arch.Fixed) bool { return f.Name == setting && f.Flag })
	if err == nil && !stated && fixed {
		g.decide("expert-weights", fmt.Sprintf("config.json has no %s: transformers takes it for false, a GGUF file of %s stands for true", setting, g.family.Name))
	}
	return nil
}

// phi3Window is 0 where there is none.
func (g *ggufPlanner) phi3Window() error {
	window, err := g.window()
	param(g, windowKey, uint32(window))
	return err
}

// olmoWindow is that of OLMo 3, with the layers that have it.
func (g *ggufPlanner) olmoWindow() error {
	window, ok, err := g.optInt("sliding_window")
	if err != nil || !ok {
		return err
	}
	param(g, windowKey, uint32(window))
	types, listed, err := g.hparams.OptStrings("layer_types")
	if err != nil {
		return g.errorf("its config.json: %w", err)
	}
	if listed && int64(len(types)) != g.layers {
		return g.errorf("its config.json: layer_types has %d layers, there are %d", len(types), g.layers)
	}
	pattern := make([]bool, g.layers)
	for i := range pattern {
		pattern[i] = (i+1)%olmoStep != 0
		if !listed {
			continue
		}
		if types[i] != slidingLayer && types[i] != fullLayer {
			return g.errorf("its config.json: layer_types has %q, expected %s or %s", types[i], slidingLayer, fullLayer)
		}
		pattern[i] = types[i] == slidingLayer
	}
	g.keys.Set(g.family.Name+"."+windowKey+"_pattern", gguf.ArrayOf(pattern))
	return nil
}

// What layer_types calls layers, and the step of those of OLMo 3 that see the whole text
// where they are not listed.
const (
	slidingLayer = "sliding_attention"
	fullLayer    = "full_attention"
	olmoStep     = 4
)

// smolLM3Step is the step of the layers without positions, which a runtime knows and no
// key says.
const smolLM3Step = 4

func (g *ggufPlanner) checkSmolLM3() error {
	if interval, ok, err := g.optInt("no_rope_layer_interval"); err != nil {
		return err
	} else if ok && interval != smolLM3Step {
		return g.errorf("its config.json: no_rope_layer_interval is %d; a GGUF file of SmolLM3 stands for %d", interval, smolLM3Step)
	}
	layers, _, err := g.hparams.OptInts("no_rope_layers")
	if err != nil {
		return g.errorf("its config.json: %w", err)
	}
	for i, rotated := range layers {
		if (rotated != 0) != ((i+1)%smolLM3Step != 0) {
			return g.errorf("its config.json: no_rope_layers has %d for layer %d; a GGUF file of SmolLM3 stands for a 0 at every fourth layer alone", rotated, i)
		}
	}
	return nil
}

// checkGranite refuses heads that are not the share of the hidden size: the converter does
// not look at head_dim.
func (g *ggufPlanner) checkGranite() error {
	size, ok, err := g.optInt("head_dim")
	if err != nil || !ok {
		return err
	}
	hidden, err := g.mustInt("hidden_size")
	if err == nil && size != hidden/g.heads {
		err = g.errorf("its config.json: head_dim is %d; a GGUF file of Granite has hidden_size / num_attention_heads, which is %d", size, hidden/g.heads)
	}
	return err
}

// gpt2Widening is the width of feed-forward layers as a multiple of the width.
const gpt2Widening = 4

func (g *ggufPlanner) gpt2Widening() error {
	hidden, err := g.sizeOf("embedding_length")
	if err != nil {
		return err
	}
	if inner, ok, err := g.optInt("n_inner"); err != nil {
		return err
	} else if ok && inner != gpt2Widening*hidden {
		return g.errorf("its config.json: n_inner is %d; a GGUF file of GPT-2 has %d times n_embd, which is %d", inner, gpt2Widening, gpt2Widening*hidden)
	}
	param(g, "feed_forward_length", uint32(gpt2Widening*hidden))
	return nil
}

// checkPositions refuses a table of positions that is not as long as the context.
func (g *ggufPlanner) checkPositions() error {
	context, err := g.sizeOf("context_length")
	if err != nil {
		return err
	}
	p, _ := g.family.Param("context_length")
	setting, _, _ := g.find(p.Names...)
	return g.checkRows("position_embd.weight", context, setting)
}

// checkTokenTypes refuses a table that has not a row for each type.
func (g *ggufPlanner) checkTokenTypes() error {
	return g.checkRows("token_types.weight", int64(g.vocab.segments), "type_vocab_size")
}

// checkRows refuses a table that has not as many rows as config.json says: no runtime
// loads it.
func (g *ggufPlanner) checkRows(name string, rows int64, setting string) error {
	v, ok := g.view.tensors[name]
	if !ok {
		return g.errorf("there is no tensor that becomes %q", name)
	}
	if s := v.spec.Shape; len(s) != 2 || s[0] != rows {
		return g.errorf("tensor %q has the shape %v, config.json %s = %d", v.parts[0].Name, s, setting, rows)
	}
	return nil
}
