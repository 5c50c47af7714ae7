package mix

import (
	"github.com/loratool/loratool/formats/gguf"
)

// recipe is how a file type spreads types over tensors. Where no rule holds, a tensor
// gets the base type.
type recipe struct {
	base gguf.Type
	// output is the type of the output matrix if that is not Q6_K, embedding the
	// type of a token embedding that is not the output matrix as well. 0, F32,
	// stands for none.
	output, embedding gguf.Type

	values, keys, queries, attnOutput, ffnDown, ffnGate, ffnUp []rule

	// tiny is true for recipes of about two bits and less. They count blocks by
	// the tensors met, never by name, and know nothing of large models.
	tiny bool
}

// rule is a type and when it applies. Of a list of rules, the first that holds counts.
type rule struct {
	to   gguf.Type
	when condition
}

// condition is a test with its words for people.
type condition struct {
	words string
	holds func(place) bool
}

// place is where a tensor is: number i of n of its kind, counted from 0.
type place struct {
	i, n    int64
	model   *Model
	weights bool // there is an importance matrix
}

// The conditions. "Eighths" are of integer division, so that there is no first
// eighth of seven blocks, but a last one.
var (
	always   = condition{"", func(place) bool { return true }}
	eighth   = condition{"in the first eighth of the blocks", func(p place) bool { return p.i < p.n/8 }}
	sixth16  = condition{"in the first sixteenth of the blocks", func(p place) bool { return p.i < p.n/16 }}
	firstTwo = condition{"in the first two blocks", func(p place) bool { return p.i < 2 }}
	first4   = condition{"in the first four blocks", func(p place) bool { return p.i < 4 }}
	inner    = condition{"between the first and the last eighth of the blocks", func(p place) bool {
		return p.i >= p.n/8 && p.i < 7*p.n/8
	}}
	outer = condition{"in the first and last eighth of the blocks and every third between", func(p place) bool {
		return p.i < p.n/8 || p.i >= 7*p.n/8 || (p.i-p.n/8)%3 == 2
	}}
	shared = condition{"as four or more heads share one", func(p place) bool { return p.model.sharedBy() >= 4 }}
	few    = condition{"as four or more heads share one or there are four or more experts", func(p place) bool {
		return p.model.sharedBy() >= 4 || p.model.Experts >= 4
	}}
	eight      = condition{"of a model with eight experts", func(p place) bool { return p.model.Experts == 8 }}
	falcon     = condition{"of a Falcon", func(p place) bool { return p.model.Arch == "falcon" }}
	noFalcon   = not(falcon, "")
	weighed    = condition{"with an importance matrix", func(p place) bool { return p.weights }}
	unweighed  = not(weighed, "without an importance matrix")
	noneOfThem = both(noFalcon, not(eight, ""))
)

// both holds if both conditions do.
func both(a, b condition) condition {
	words := a.words
	if a.words != "" && b.words != "" {
		words += " "
	}
	return condition{words + b.words, func(p place) bool { return a.holds(p) && b.holds(p) }}
}

// not holds if the condition does not.
func not(c condition, words string) condition {
	return condition{words, func(p place) bool { return !c.holds(p) }}
}

// all is the rule for a type without condition.
func all(t gguf.Type) []rule { return []rule{{t, always}} }

// moe8 is the rule of many recipes for the attention's output: small beside eight
// experts, it may cost more. Falcon has rules of its own.
var moe8 = rule{gguf.Q5K, both(eight, noFalcon)}

// recipes holds the file types.
//
// Source: llama_ftype_get_default_type and llama_tensor_get_type_impl of
// src/llama-quant.cpp, of which this is a table: there, a chain of conditions per role.
var recipes = map[FileType]recipe{
	F32:  {base: gguf.F32},
	F16:  {base: gguf.F16},
	BF16: {base: gguf.BF16},
	Q1_0: {base: gguf.Q1_0},
	Q2_0: {base: gguf.Q2_0, embedding: gguf.Q4K},
	Q4_0: {base: gguf.Q4_0, ffnDown: []rule{{gguf.Q4_1, both(eighth, weighed)}}},
	Q4_1: {base: gguf.Q4_1},
	Q5_0: {base: gguf.Q5_0, ffnDown: []rule{{gguf.Q5_1, both(eighth, weighed)}}},
	Q5_1: {base: gguf.Q5_1},
	Q8_0: {base: gguf.Q8_0, output: gguf.Q8_0},

	Q2K: {
		base:       gguf.Q2K,
		values:     []rule{{gguf.Q4K, shared}, {gguf.Q3K, always}},
		attnOutput: []rule{moe8, {gguf.Q3K, noneOfThem}},
		ffnDown:    all(gguf.Q3K),
	},
	Q2KS: {
		base:    gguf.Q2K,
		values:  []rule{{gguf.Q4K, shared}},
		ffnDown: []rule{{gguf.Q4K, eighth}},
	},
	Q3KS: {base: gguf.Q3K, attnOutput: []rule{moe8}},
	Q3KM: {
		base:       gguf.Q3K,
		values:     []rule{{gguf.Q5K, firstTwo}, {gguf.Q4K, always}},
		attnOutput: []rule{moe8, {gguf.Q4K, noneOfThem}},
		ffnDown:    []rule{{gguf.Q5K, sixth16}, {gguf.Q4K, noFalcon}, {gguf.Q4K, outer}},
	},
	Q3KL: {
		base:       gguf.Q3K,
		values:     all(gguf.Q5K),
		attnOutput: []rule{{gguf.Q4K, falcon}, {gguf.Q5K, noneOfThem}},
		ffnDown:    []rule{{gguf.Q4K, falcon}, {gguf.Q5K, always}},
	},
	Q4KS: {
		base:       gguf.Q4K,
		values:     []rule{{gguf.Q5K, first4}},
		attnOutput: []rule{moe8},
		ffnDown:    []rule{{gguf.Q5K, both(eighth, noFalcon)}},
	},
	Q4KM: {
		base:       gguf.Q4K,
		values:     []rule{{gguf.Q6K, outer}},
		attnOutput: []rule{moe8},
		ffnDown: []rule{
			{gguf.Q6K, both(sixth16, falcon)},
			{gguf.Q5K, both(outer, falcon)},
			{gguf.Q6K, both(outer, noFalcon)},
		},
	},
	Q5KS: {base: gguf.Q5K},
	Q5KM: {
		base:    gguf.Q5K,
		values:  []rule{{gguf.Q6K, outer}},
		ffnDown: []rule{{gguf.Q6K, outer}},
	},
	Q6K: {base: gguf.Q6K},

	IQ4NL: {
		base:       gguf.IQ4NL,
		values:     []rule{{gguf.Q5K, shared}},
		attnOutput: []rule{moe8},
		ffnDown:    []rule{{gguf.Q5K, both(eighth, unweighed)}},
	},
	IQ4XS: {
		base:       gguf.IQ4XS,
		values:     []rule{{gguf.Q5K, shared}},
		attnOutput: []rule{moe8},
		ffnDown:    []rule{{gguf.Q5K, both(eighth, unweighed)}},
	},
	IQ3XXS: {
		base: gguf.IQ3XXS, output: gguf.Q5K, embedding: gguf.IQ3S,
		values:     []rule{{gguf.Q4K, shared}, {gguf.IQ3S, unweighed}},
		keys:       all(gguf.IQ2S),
		queries:    all(gguf.IQ2S),
		attnOutput: []rule{moe8, {gguf.IQ3S, noneOfThem}},
		ffnDown:    []rule{{gguf.Q4K, both(eighth, unweighed)}, {gguf.Q3K, unweighed}},
	},
	IQ3XS: {
		base:       gguf.IQ3S,
		values:     []rule{{gguf.Q4K, shared}},
		keys:       all(gguf.IQ3XXS),
		queries:    all(gguf.IQ3XXS),
		attnOutput: []rule{moe8},
		ffnGate:    []rule{{gguf.IQ3XXS, inner}},
		ffnUp:      []rule{{gguf.IQ3XXS, inner}},
	},
	IQ3S: {
		base:       gguf.IQ3S,
		values:     []rule{{gguf.Q4K, shared}},
		attnOutput: []rule{moe8},
	},
	IQ3M: {
		base:       gguf.IQ3S,
		values:     all(gguf.Q4K),
		attnOutput: []rule{moe8, {gguf.Q4K, noneOfThem}},
		ffnDown:    []rule{{gguf.Q4K, eighth}, {gguf.Q4K, both(outer, eight)}},
	},

	IQ1S:   tiny(gguf.IQ1S, gguf.Q2K, all(gguf.IQ2XXS)),
	IQ1M:   tiny(gguf.IQ1M, gguf.Q2K, all(gguf.IQ2XXS)),
	IQ2XXS: tiny(gguf.IQ2XXS, gguf.Q2K, nil),
	IQ2XS:  tiny(gguf.IQ2XS, gguf.Q2K, nil),
	IQ2S:   tiny(gguf.IQ2XS, gguf.IQ3S, all(gguf.IQ3S)),
	IQ2M:   tiny(gguf.IQ2S, gguf.IQ3S, all(gguf.IQ3S)),

	TQ1_0: {base: gguf.TQ1_0, embedding: gguf.Q4K},
	TQ2_0: {base: gguf.TQ2_0, embedding: gguf.Q4K},

	// Its rules look at dimensions, see walk.floating.
	MXFP4MoE: {base: gguf.MXFP4, output: gguf.Q8_0},
}

// tiny returns a recipe for about two bits: one better type for all that is
// sensitive, another for the attention's output unless there are eight experts.
func tiny(base, better gguf.Type, attnOutput []rule) recipe {
	return recipe{
		base: base, tiny: true,
		output: gguf.Q5K, embedding: better,
		values:     []rule{{gguf.Q4K, few}, {better, always}},
		keys:       []rule{{gguf.Q4K, eight}},
		attnOutput: append([]rule{{gguf.Q5K, eight}}, attnOutput...),
		ffnDown:    []rule{{better, eighth}},
	}
}

// rules returns those for a role in blocks.
func (r *recipe) rules(of role) []rule {
	switch of {
	case values:
		return r.values
	case keys:
		return r.keys
	case queries:
		return r.queries
	case attnOutput:
		return r.attnOutput
	case ffnDown:
		return r.ffnDown
	case ffnGate:
		return r.ffnGate
	case ffnUp:
		return r.ffnUp
	}
	return nil
}
