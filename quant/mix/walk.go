package mix

import (
	"fmt"

	"github.com/loratool/loratool/formats/gguf"
)

// walk is the state while tensors are decided one after the other.
type walk struct {
	model    Model
	options  Options
	recipe   recipe
	patterns []pattern

	// tied is true if there is no output matrix: then the token embedding is it.
	tied bool
	// values is the number of attention values in the model. Those of the
	// feed-forward network are taken to be as many as layers.
	values int64
	// met counts the tensors that came to the recipe, per role. Those that an option
	// decides do not count.
	met [len(roleNames)]int64

	usedOutputType, usedEmbeddingType, usedWeights bool

	warnings []Warning
	refusals []Refusal
}

func newWalk(m Model, tensors []gguf.Spec, o Options) (*walk, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	patterns, err := compileAll(o.Overrides)
	if err != nil {
		return nil, err
	}
	w := &walk{model: m, options: o, recipe: recipes[o.Type], patterns: patterns, tied: true}
	for _, t := range tensors {
		switch roleOf(t.Name) {
		case output:
			w.tied = false
		case values:
			w.values++
		}
	}
	return w, nil
}

// fileType returns the number to be written.
func (w *walk) fileType(tensors []gguf.Spec) uint32 {
	switch {
	case w.options.Type != Copy:
		return uint32(w.options.Type)
	case w.model.HasFileType:
		return w.model.FileType
	}
	return guessFileType(tensors)
}

// decide decides on the next tensor.
func (w *walk) decide(t gguf.Spec) Decision {
	d := Decision{Name: t.Name, From: t.Type, To: t.Type, Wanted: t.Type}
	if d.Reason, d.Why = w.options.leave(t); d.Reason != "" {
		w.judgeCopy(t)
		return d
	}
	if w.choose(&d, t) {
		w.judge(&d, t)
	} else {
		d.To = d.From
	}
	return d
}

// choose sets type and reason, or refuses.
//
// Source: llama_tensor_get_type of src/llama-quant.cpp.
func (w *walk) choose(d *Decision, t gguf.Spec) bool {
	o, r := &w.options, roleOf(t.Name)
	switch {
	case o.EmbeddingType != nil && r == embedding && !w.namedTable(t.Name):
		w.usedEmbeddingType = true
		d.set(*o.EmbeddingType, EmbeddingType, "the type chosen for token embeddings")
		return true
	case o.OutputType != nil && r == output:
		w.usedOutputType = true
		d.set(*o.OutputType, OutputType, "the type chosen for the output matrix")
		return true
	case !isQuantized(w.recipe.base):
		d.set(w.recipe.base, Base, o.Type.String())
		return true
	}
	if p := w.match(t.Name); p != nil {
		p.used = true
		d.set(p.Type, Overridden, fmt.Sprintf("named by %q", p.Override.String()))
	} else if o.Pure {
		d.set(w.recipe.base, Pure, o.Type.String()+" without its recipe")
	} else if !w.follow(d, t, r) {
		return false
	}
	return w.fallBack(d, t)
}

// set sets type and reason.
func (d *Decision) set(t gguf.Type, r Reason, why string) {
	d.To, d.Wanted, d.Reason, d.Why = t, t, r, why
}

// namedTable reports whether the tensor is the large table of embeddings per layer and an
// override names it: then it does not follow the token embedding.
func (w *walk) namedTable(name string) bool {
	return name == layerEmbeddingsName && w.match(name) != nil
}

// match returns the override for a name, or nil.
func (w *walk) match(name string) *pattern {
	for i := range w.patterns {
		if w.patterns[i].expr.MatchString(name) {
			return &w.patterns[i]
		}
	}
	return nil
}

// follow sets the type that the recipe gives, or refuses.
//
// Source: llama_tensor_get_type_impl of src/llama-quant.cpp.
func (w *walk) follow(d *Decision, t gguf.Spec, r role) bool {
	switch {
	case r == output, r == embedding && w.tied:
		w.followOutput(d, t, r)
		return true
	case w.options.Type == MXFP4MoE:
		d.set(w.floating(t, r))
		return true
	case r == embedding:
		d.set(w.recipe.base, Base, w.options.Type.String())
		if w.recipe.embedding != 0 {
			d.set(w.recipe.embedding, Recipe, r.String())
		}
		return true
	}
	p, ok := w.place(t, r)
	if !ok {
		return false
	}
	w.followRules(d, r, p)
	w.met[r]++
	return true
}

// followOutput sets the type of the output matrix, which may be the token embedding.
func (w *walk) followOutput(d *Decision, t gguf.Spec, r role) {
	what := r.String()
	if r == embedding {
		what += ", which is the output matrix too"
	}
	columns := size(t, 0)
	switch block := w.recipe.base.BlockSize(); {
	case w.options.OutputType != nil:
		w.usedOutputType = true
		d.set(*w.options.OutputType, OutputType, "the type chosen for the output matrix, which the token embedding is too")
	case columns%block != 0:
		d.set(gguf.Q8_0, Recipe, fmt.Sprintf("%s, whose rows of %d are not whole blocks of %s", what, columns, w.recipe.base))
	case w.model.Arch == "falcon":
		d.set(gguf.Q8_0, Recipe, what+" of a Falcon")
	case w.recipe.output != 0:
		d.set(w.recipe.output, Recipe, what)
	default:
		d.set(gguf.Q6K, Recipe, what)
	}
}

// floating returns the type that MXFP4_MOE gives: stacks of experts MXFP4, all else
// Q8_0. In bailingmoe3, the attention has stacks too.
func (w *walk) floating(t gguf.Spec, r role) (gguf.Type, Reason, string) {
	ffn := r == ffnUp || r == ffnGate || r == ffnDown
	if size(t, 2) > 1 && (w.model.Arch != "bailingmoe3" || ffn) {
		return gguf.MXFP4, Base, "a stack of experts"
	}
	return gguf.Q8_0, Recipe, "no stack of experts"
}

// followRules sets the type that the rules for a role give.
func (w *walk) followRules(d *Decision, r role, p place) {
	d.set(w.recipe.base, Base, w.options.Type.String())
	for _, rule := range w.recipe.rules(r) {
		if rule.when.holds(p) {
			d.set(rule.to, Recipe, sentence(r, rule.when))
			break
		}
	}
	if w.recipe.tiny {
		return
	}
	if r == values && w.model.Large && (d.To == gguf.Q3K || d.To == gguf.Q4K) {
		d.set(gguf.Q5K, Recipe, r.String()+" of a model of 70 billion weights")
	}
	if (r == values || r == keys) && w.model.Experts == 8 {
		d.set(gguf.Q8_0, Recipe, sentence(r, eight))
	}
}

// sentence says that a rule for a role holds.
func sentence(r role, c condition) string {
	if c.words == "" {
		return r.String()
	}
	return r.String() + " " + c.words
}

// place returns where a tensor is among those of its role, or refuses. The layers
// of experts are read from the name, as files need not have them in order.
func (w *walk) place(t gguf.Spec, r role) (place, bool) {
	p := place{i: w.met[r], n: w.model.Layers, model: &w.model, weights: len(w.options.Matrix) > 0}
	switch r {
	case values:
		p.n = w.values
	case ffnDown, ffnGate, ffnUp:
		if w.model.Experts <= 1 || w.recipe.tiny {
			break
		}
		block, ok := blockOf(t.Name)
		if !ok {
			w.refuse(t.Name, BadLayer, "the name does not begin with the number of a block, by which experts are told apart")
			return p, false
		}
		if block < 0 || int64(block) >= p.n {
			w.refuse(t.Name, BadLayer, fmt.Sprintf("block %d of a model of %d", block, p.n))
			return p, false
		}
		p.i = int64(block)
	}
	return p, true
}

// fallbacks gives a type of smaller blocks, of 32, for each of larger ones. Q1_0 and
// NVFP4 have none.
//
// Source: tensor_type_fallback of src/llama-quant.cpp.
var fallbacks = map[gguf.Type]gguf.Type{
	gguf.IQ1S: gguf.IQ4NL, gguf.IQ1M: gguf.IQ4NL,
	gguf.IQ2XXS: gguf.IQ4NL, gguf.IQ2XS: gguf.IQ4NL, gguf.IQ2S: gguf.IQ4NL,
	gguf.IQ3XXS: gguf.IQ4NL, gguf.IQ3S: gguf.IQ4NL, gguf.IQ4XS: gguf.IQ4NL,
	gguf.Q2_0: gguf.Q4_0, gguf.Q2K: gguf.Q4_0, gguf.Q3K: gguf.Q4_0, gguf.TQ1_0: gguf.Q4_0, gguf.TQ2_0: gguf.Q4_0,
	gguf.Q4K: gguf.Q5_0, gguf.Q5K: gguf.Q5_1, gguf.Q6K: gguf.Q8_0,
}

// smallestBlock is the size below which there is only F16.
const smallestBlock = 32

// fallBack replaces a type whose blocks do not fill the rows, or refuses.
func (w *walk) fallBack(d *Decision, t gguf.Spec) bool {
	columns := size(t, 0)
	if columns%d.Wanted.BlockSize() == 0 {
		return true
	}
	to, ok := fallbacks[d.Wanted]
	if !ok && d.Wanted.BlockSize() > smallestBlock {
		w.refuse(t.Name, NoFallback, fmt.Sprintf("%s, and no other type stands in for %s", notBlocks(columns, d.Wanted), d.Wanted))
		return false
	}
	if !ok || columns%to.BlockSize() != 0 {
		to = gguf.F16
	}
	d.To, d.Reason = to, Fallback
	d.Why = fmt.Sprintf("%s instead of %s (%s): %s", to, d.Wanted, d.Why, notBlocks(columns, d.Wanted))
	w.warn(WarnFallback, t.Name, fmt.Sprintf("%s instead of %s: %s", to, d.Wanted, notBlocks(columns, d.Wanted)))
	return true
}

// notBlocks says that rows are no whole blocks.
func notBlocks(columns int64, t gguf.Type) string {
	return fmt.Sprintf("rows of %d are not whole blocks of %d", columns, t.BlockSize())
}

func (w *walk) warn(code, tensor, text string) {
	w.warnings = append(w.warnings, Warning{Code: code, Tensor: tensor, Text: text})
}

// warnNoEffect tells of options that changed nothing.
func (w *walk) warnNoEffect() {
	o, quantizes := &w.options, isQuantized(w.recipe.base)
	if o.OutputType != nil && !w.usedOutputType {
		w.warn(WarnNoEffect, "", "no tensor gets the output matrix's type")
	}
	if o.EmbeddingType != nil && !w.usedEmbeddingType {
		w.warn(WarnNoEffect, "", "no tensor gets the token embedding's type")
	}
	if o.Pure && !quantizes {
		w.warn(WarnNoEffect, "", fmt.Sprintf("%s has no recipe to be left out", o.Type))
	}
	if len(o.Matrix) > 0 && !w.usedWeights {
		w.warn(WarnNoEffect, "", "no tensor is quantized with weights of the importance matrix")
	}
	for _, p := range w.patterns {
		switch {
		case !quantizes:
			w.warn(WarnNoEffect, "", fmt.Sprintf("%q has no effect with %s", p.Override.String(), o.Type))
		case !p.used:
			w.warn(WarnNoEffect, "", fmt.Sprintf("%q decides on no tensor", p.Override.String()))
		}
	}
}
