package mix

import (
	"github.com/loratool/loratool/formats/gguf"
)

// recipe is how a file type spreads types over tensors. Where no rule holds, a tensor
// gets the base type.
type recipe struct {
	name string
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
	F32:  {name: "F32", base: gguf.F32},
	F16:  {name: "F16", base: gguf.F16},
	BF16: {name: "BF16", base: gguf.BF16},
	Q1_0: {name: "Q1_0", base: gguf.Q1_0},
	Q2_0: {name: "Q2_0", base: gguf.Q2_0, embedding: gguf.Q4K},
	Q4_0: {name: "Q4_0", base: gguf.Q4_0, ffnDown: []rule{{gguf.Q4_1, both(eighth, weighed)}}},
	Q4_1: {name: "Q4_1", base: gguf.Q4_1},
	Q5_0: {name: "Q5_0", base: gguf.Q5_0, ffnDown: []rule{{gguf.Q5_1, both(eighth, weighed)}}},
	Q5_1: {name: "Q5_1", base: gguf.Q5_1},
	Q8_0: {name: "Q8_0", base: gguf.Q8_0, output: gguf.Q8_0},

	Q2K: {
		name: "Q2_K", base: gguf.Q2K,
		values:     []rule{{gguf.Q4K, shared}, {gguf.Q3K, always}},
		attnOutput: []rule{moe8, {gguf.Q3K, noneOfThem}},
		ffnDown:    all(gguf.Q3K),
	},
	Q2KS: {
		name: "Q2_K_S", base: gguf.Q2K,
		values:  []rule{{gguf.Q4K, shared}},
		ffnDown: []rule{{gguf.Q4K, eighth}},
	},
	Q3KS: {name: "Q3_K_S", base: gguf.Q3K, attnOutput: []rule{moe8}},
	Q3KM: {
		name: "Q3_K_M", base: gguf.Q3K,
		values:     []rule{{gguf.Q5K, firstTwo}, {gguf.Q4K, always}},
		attnOutput: []rule{moe8, {gguf.Q4K, noneOfThem}},
		ffnDown:    []rule{{gguf.Q5K, sixth16}, {gguf.Q4K, noFalcon}, {gguf.Q4K, outer}},
	},
	Q3KL: {
		name: "Q3_K_L", base: gguf.Q3K,
		values:     all(gguf.Q5K),
		attnOutput: []rule{{gguf.Q4K, falcon}, {gguf.Q5K, noneOfThem}},
		ffnDown:    []rule{{gguf.Q4K, falcon}, {gguf.Q5K, always}},
	},
	Q4KS: {
		name: "Q4_K_S", base: gguf.Q4K,
		values:     []rule{{gguf.Q5K, first4}},
		attnOutput: []rule{moe8},
		ffnDown:    []rule{{gguf.Q5K, both(eighth, noFalcon)}},
	},
	Q4KM: {
		name: "Q4_K_M", base: gguf.Q4K,
		values:     []rule{{gguf.Q6K, outer}},
		attnOutput: []rule{moe8},
		ffnDown: []rule{
			{gguf.Q6K, both(sixth16, falcon)},
			{gguf.Q5K, both(outer, falcon)},
			{gguf.Q6K, both(outer, noFalcon)},
		},
	},
	Q5KS: {name: "Q5_K_S", base: gguf.Q5K},
	Q5KM: {
		name: "Q5_K_M", base: gguf.Q5K,
		values:  []rule{{gguf.Q6K, outer}},
		ffnDown: []rule{{gguf.Q6K, outer}},
	},
	Q6K: {name: "Q6_K", base: gguf.Q6K},

	IQ4NL: {
		name: "IQ4_NL", base: gguf.IQ4NL,
		values:     []rule{{gguf.Q5K, shared}},
		attnOutput: []rule{moe8},
		ffnDown:    []rule{{gguf.Q5K, both(eighth, unweighed)}},
	},
	IQ4XS: {
		name: "IQ4_XS", base: gguf.IQ4XS,
		values:     []rule{{gguf.Q5K, shared}},
		attnOutput: []rule{moe8},
		ffnDown:    []rule{{gguf.Q5K, both(eighth, unweighed)}},
	},
	IQ3XXS: {
		name: "IQ3_XXS", base: gguf.IQ3XXS, output: gguf.Q5K, embedding: gguf.IQ3S,
		values:     []rule{{gguf.Q4K, shared}, {gguf.IQ3S, unweighed}},
		keys:       all(gguf.IQ2S),
		queries:    all(gguf.IQ2S),
		attnOutput: []rule{moe8, {gguf.IQ3S, noneOfThem}},
		ffnDown:    []rule{{gguf.Q4K, both(eighth, unweighed)}, {gguf.Q3K, unweighed}},
	},
	IQ3XS: {
		name: "IQ3_XS", base: gguf.IQ3S,
		values:     []rule{{gguf.Q4K, shared}},
		keys:       all(gguf.IQ3XXS),
		queries:    all(gguf.IQ3XXS),
		attnOutput: []rule{moe8},
		ffnGate:    []rule{{gguf.IQ3XXS, inner}},
		ffnUp:      []rule{{gguf.IQ3XXS, inner}},
	},
	IQ3S: {
		name: "IQ3_S", base: gguf.IQ3S,
		values:     []rule{{gguf.Q4K, shared}},
		attnOutput: []rule{moe8},
	},
	IQ3M: {
		name: "IQ3_M", base: gguf.IQ3S,
		values:     all(gguf.Q4K),
		attnOutput: []rule{moe8, {gguf.Q4K, noneOfThem}},
		ffnDown:    []rule{{gguf.Q4K, eighth}, {gguf.Q4K, both(outer, eight)}},
	},

	IQ1S:   tiny("IQ1_S", gguf.IQ1S, gguf.Q2K, all(gguf.IQ2XXS)),
	IQ1M:   tiny("IQ1_M", gguf.IQ1M, gguf.Q2K, all(gguf.IQ2XXS)),
	IQ2XXS: tiny("IQ2_XXS", gguf.IQ2XXS, gguf.Q2K, nil),
	IQ2XS:  tiny("IQ2_XS", gguf.IQ2XS, gguf.Q2K, nil),
	IQ2S:   tiny("IQ2_S", gguf.IQ2XS, gguf.IQ3S, all(gguf.IQ3S)),
	IQ2M:   tiny("IQ2_M", gguf.IQ2S, gguf.IQ3S, all(gguf.IQ3S)),

	TQ1_0: {name: "TQ1_0", base: gguf.TQ1_0, embedding: gguf.Q4K},
	TQ2_0: {name: "TQ2_0", base: gguf.TQ2_0, embedding: gguf.Q4K},

	// Its rules look at dimensions, see walk.floating.
	MXFP4MoE: {name: "MXFP4_MOE", base: gguf.MXFP4, output: gguf.Q8_0},
}

// tiny returns a recipe for about two bits: one better type for all that is
// sensitive, another for the attention's output unless there are eight experts.
func tiny(name string, base, better gguf.Type, attnOutput []rule) recipe {
	return recipe{
		name: name, base: base, tiny: true,
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
