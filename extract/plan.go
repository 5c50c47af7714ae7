package extract

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/internal/strictjson"
	"github.com/loratool/loratool/plan"
)

// Extraction is an extraction decided: a plan, the place of every output byte,
// where its inputs are read from, and what the adapter will carry.
type Extraction struct {
	Plan        *plan.Plan
	Layout      *checkpoint.Layout
	Inputs      []checkpoint.Checkpoint // by the plan's input numbers
	Certificate Certificate

	opts    Options
	models  []*checkpoint.Model // whose cards have something to hand down
	command string              // for provenance
	config  *strictjson.Object
	final   map[string]string // hashes once known, by path
}

// The numbers of the plan's inputs. The third is no file and is not listed in the
// plan.
const (
	baseInput = iota
	tunedInput
	madeInput
)

// weightsName is where PEFT looks for the tensors of an adapter.
const weightsName = "adapter_model.safetensors"

// Plan chooses the ranks and gives every change its form and every byte its place.
// All tasks of the survey must have run. Without a store the plan can be looked at
// but not be run.
func (s *Survey) Plan(store *Store) (*Extraction, error) {
	if err := s.checkChanged(); err != nil {
		return nil, err
	}
	// A file's header grows with the number of tensors, which the ranks decide:
	// the budget for a size shrinks by what the first attempt exceeds it.
	over := int64(0)
	for {
		x, err := s.plan(store, over)
		if err != nil || s.opts.Rule.Size == 0 {
			return x, err
		}
		size := x.Layout.Files[0].Size()
		if size <= s.opts.Rule.Size {
			return x, nil
		}
		over += size - s.opts.Rule.Size
	}
}

// checkChanged refuses two models that are the same.
func (s *Survey) checkChanged() error {
	for i, it := range s.items {
		if f := &s.findings[i]; f.changed && !f.rounding && !it.tie {
			return nil
		}
	}
	return inputErrorf(s.tuned, "it does not differ from the base: there is nothing to extract")
}

func (s *Survey) plan(store *Store, over int64) (*Extraction, error) {
	d, err := s.newDraft()
	if err != nil {
		return nil, err
	}
	if err := d.chooseRanks(over); err != nil {
		return nil, err
	}
	if s.opts.DenseWhenCheaper {
		if err := d.saveDense(); err != nil {
			return nil, err
		}
	}
	d.settleBiases()
	if err := d.checkPairs(); err != nil {
		return nil, err
	}
	x := &Extraction{Plan: &plan.Plan{Decisions: slices.Clone(s.decisions), Unhashed: s.opts.NoProvenance}, opts: s.opts,
		models: []*checkpoint.Model{s.base, s.tuned}, command: "extract"}
	for i := range x.Plan.Decisions {
		x.Plan.Decisions[i].Tensors = slices.Clone(x.Plan.Decisions[i].Tensors)
	}
	d.decideForms(x.decide)
	s.addInputs(x)
	w := &writer{d: d, x: x, store: store, made: new(made)}
	w.tensors()
	x.Inputs = []checkpoint.Checkpoint{s.base, s.tuned, w.made}
	if !s.gguf {
		if x.config, err = d.config(); err != nil {
			return nil, err
		}
	}
	x.Certificate = d.certificate(w.bytes)
	x.Certificate.explain(x)
	if s.gguf {
		x.Layout, err = d.ggufLayout(x, w.specs)
		return x, err
	}
	if err := x.decideConsumers(); err != nil {
		return nil, err
	}
	x.Layout, err = d.layout(x, w.specs)
	return x, err
}

func (x *Extraction) decide(code, message string, tensors ...string) {
	decide(&x.Plan.Decisions, code, message, tensors...)
}

func (s *Survey) addInputs(x *Extraction) {
	for _, in := range []struct {
		role string
		m    *checkpoint.Model
	}{{"base", s.base}, {"tuned", s.tuned}} {
		p := plan.Input{Role: in.role, Name: in.m.Name, Path: in.m.Path, Note: in.m.Commit, Weight: 1}
		for _, f := range in.m.Files() {
			p.Files = append(p.Files, plan.File{Name: f.Name, Path: f.Path, Size: f.Size})
		}
		x.Plan.Inputs = append(x.Plan.Inputs, p)
	}
}

// ranks applies the rule to all pairs and returns what is written of each, and what
// it needs by itself. Readers of a plain adapter take one rank and one scale for all.
func (o Options) ranks(spectra []Spectrum, budget int64) (choices []Choice, needed []int64) {
	if !o.Plain {
		choices = o.Rule.Ranks(spectra, budget)
		for _, c := range choices {
			needed = append(needed, c.Rank)
		}
		return choices, needed
	}
	rank, choices := o.Rule.OneRank(spectra, budget)
	for i := range choices {
		needed = append(needed, choices[i].Rank)
		choices[i].Rank = rank
	}
	return choices, needed
}

// chooseRanks applies the rule to all pairs. Over is taken off a budget of bytes.
func (d *draft) chooseRanks(over int64) error {
	var pairs []*carried
	var spectra []Spectrum
	var fixedBytes, fixedParams int64
	for _, c := range d.all {
		switch c.form {
		case pairForm:
			pairs, spectra = append(pairs, c), append(spectra, c.spectrum)
		case savedForm:
			fixedBytes, fixedParams = fixedBytes+c.size(), fixedParams+c.size()*8/c.parts[0].tuned.DType.Bits()
		case rowsForm:
			n := int64(len(c.finding.rows)) * c.shape[1]
			fixedBytes, fixedParams = fixedBytes+n*c.parts[0].tuned.DType.Bits()/8, fixedParams+n
		}
		if c.role == Bias && c.form != savedForm && c.form != lostForm {
			// It may have to be written, depending on the others.
			n := c.parts[0].tuned.NumElements()
			bits := max(c.parts[0].tuned.DType.Bits(), d.s.opts.factorType().Bits())
			fixedBytes, fixedParams = fixedBytes+n*bits/8, fixedParams+n
		}
	}
	rule, bits := d.s.opts.Rule, d.s.opts.factorType().Bits()
	budget := rule.Params - fixedParams
	if rule.Size > 0 {
		budget = (rule.Size - over - fixedBytes) * 8 / bits
	}
	if rule.budgeted() && budget < 0 {
		return &fsatomic.RefusedError{Path: d.s.opts.Output, Reason: fmt.Sprintf(
			"what has to be saved whole takes %d parameters in %d bytes, more than the budget", fixedParams, fixedBytes)}
	}
	choices, needed := d.s.opts.ranks(spectra, budget)
	if rule.budgeted() && len(pairs) > 0 && !slices.ContainsFunc(choices, func(c Choice) bool { return c.Rank > 0 }) {
		return &fsatomic.RefusedError{Path: d.s.opts.Output, Reason: fmt.Sprintf(
			"no direction of any layer fits into the budget beside %d parameters in %d bytes that are saved whole", fixedParams, fixedBytes)}
	}
	for i, c := range pairs {
		c.choice, c.needed = choices[i], needed[i]
		if c.choice.Rank == 0 {
			c.form, c.why = lostForm, "the budget is better spent on others"
		}
	}
	return nil
}

// checkPairs refuses an adapter without a pair, which PEFT does not load, and
// modules that would be adapted in two ways at once.
func (d *draft) checkPairs() error {
	weights, parameters := make(map[string]bool), make(map[string]bool)
	for _, c := range d.all {
		if c.form != pairForm {
			continue
		}
		d.ranks = max(d.ranks, c.rank())
		if c.isParameter() {
			parameters[c.module] = true
		} else {
			weights[c.module] = true
		}
	}
	if len(weights)+len(parameters) == 0 {
		return inputErrorf(d.s.tuned, "no layer that factors could hold has changed or is left by --target, --exclude and the budget: there is no LoRA adapter of it")
	}
	for module := range parameters {
		if weights[module] {
			return inputErrorf(d.s.tuned, "module %q has a weight and other matrices that have changed: PEFT adapts one or the other; --exclude one of them", module)
		}
	}
	return nil
}

// scale is the factor that the adapter's config gives the product of a pair.
func (d *draft) scale(c *carried) float64 {
	switch {
	case d.s.gguf:
		return d.ggufAlpha() / float64(c.rank())
	case d.s.opts.Alpha == 0:
		return 1
	}
	return d.s.opts.Alpha / float64(c.rank())
}

// writer makes the steps of the plan.
type writer struct {
	d     *draft
	x     *Extraction
	store *Store
	made  *made
	specs []tensor.Spec
	bytes map[*carried]int64 // data that an item takes in the adapter
}

// keyPrefixPEFT stands before the name of every tensor of an adapter.
const keyPrefixPEFT = "base_model.model."

// tensors plans every tensor of the adapter, in the order of the tuned model.
func (w *writer) tensors() {
	w.bytes = make(map[*carried]int64)
	for _, c := range w.d.all {
		switch c.form {
		case pairForm:
			w.pair(c)
		case savedForm:
			w.whole(c, c.name())
		case biasForm:
			name := c.module + ".bias"
			if owner := w.d.s.weights[c.module]; owner != nil && w.adapted(owner) {
				name = c.module + ".base_layer.bias"
			}
			w.whole(c, name)
		case addForm:
			scale := 1.0
			if owner := w.d.ofItem(w.d.s.weights[c.module]); owner != nil {
				scale = w.d.scale(owner)
			}
			w.make(c, c.module+".lora_B.bias", c.shape, w.d.s.difference(c.item, c.fromBase, scale))
		case rowsForm:
			name := c.module + ".token_adapter.trainable_tokens_delta"
			spec := tensor.Spec{Name: keyPrefixPEFT + name, DType: c.parts[0].tuned.DType, Shape: tensor.Shape{int64(len(c.finding.rows)), c.shape[1]}}
			w.made.add(spec, gathered(w.d.s.tuned, c.parts[0].tuned, c.finding.rows))
			w.step(c, plan.Whole(madeInput, spec), spec)
		}
	}
}

func (w *writer) adapted(it *item) bool {
	c := w.d.ofItem(it)
	return c != nil && c.form == pairForm
}

func (d *draft) ofItem(it *item) *carried {
	i := slices.IndexFunc(d.all, func(c *carried) bool { return c.item == it })
	if i < 0 {
		return nil
	}
	return d.all[i]
}

// pair plans the factors of an item, in the shapes that PEFT gives them.
func (w *writer) pair(c *carried) {
	if w.d.s.gguf {
		w.ggufPair(c)
		return
	}
	r, n := c.rank(), c.blocks
	module, a, b := c.module, "lora_A.weight", "lora_B.weight"
	shapeA, shapeB := tensor.Shape{n * r, c.in}, tensor.Shape{c.out, r * n}
	switch c.role {
	case Embedding:
		a, b = "lora_embedding_A", "lora_embedding_B"
	case Conv:
		shapeA = append(tensor.Shape{r}, c.shape[1:]...)
		for range c.shape[2:] {
			shapeB = append(shapeB, 1)
		}
	case Experts, Parameter:
		module += strings.Repeat(".base_layer", w.depth(c))
	}
	w.make(c, module+"."+a, shapeA, w.store.factorA(c.item, r))
	w.make(c, module+"."+b, shapeB, w.store.factorB(c.item, r, w.d.scale(c)))
}

// depth is how many wrappers stand around the one of a parameter: PEFT nests them
// in the order of registration, the first innermost.
func (w *writer) depth(c *carried) int {
	order := func(it *item) int {
		if i := slices.Index(arch.RegistrationOrder, it.param); i >= 0 {
			return i
		}
		return len(arch.RegistrationOrder) + slices.Index(w.d.s.items, it)
	}
	depth := 0
	for _, other := range w.d.all {
		if other.form == pairForm && other.isParameter() && other.module == c.module && order(other.item) > order(c.item) {
			depth++
		}
	}
	return depth
}

// make plans a tensor that is computed when it is read.
func (w *writer) make(c *carried, name string, shape tensor.Shape, open opener) {
	if !w.d.s.gguf {
		name = keyPrefixPEFT + name
	}
	spec := tensor.Spec{Name: name, DType: tensor.F64, Shape: shape}
	w.made.add(spec, open)
	out := spec
	out.DType = w.d.s.opts.factorType()
	w.step(c, plan.Whole(madeInput, spec), out)
}

// whole plans a tensor that is copied from the tuned model, or from the base where
// the user wants it left alone.
func (w *writer) whole(c *carried, name string) {
	from, input := c.parts[0].tuned, tunedInput
	if c.fromBase {
		from, input = c.parts[0].base, baseInput
	}
	out := tensor.Spec{Name: keyPrefixPEFT + name, DType: from.DType, Shape: from.Shape}
	w.step(c, plan.Whole(input, from), out)
}

func (w *writer) step(c *carried, read plan.Slice, out tensor.Spec) {
	w.x.Plan.Steps = append(w.x.Plan.Steps, plan.Step{Read: read, Write: plan.Placement{Tensor: out.Name, DType: out.DType}})
	w.specs = append(w.specs, out)
	w.bytes[c] += out.Size()
}

// layout places the output folder.
func (d *draft) layout(x *Extraction, specs []tensor.Spec) (*checkpoint.Layout, error) {
	if strings.HasSuffix(d.s.opts.Output, ".safetensors") {
		return nil, errors.New("an adapter is a folder: its config can't be in a .safetensors file")
	}
	sidecars := []checkpoint.Sidecar{{Name: "adapter_config.json", Data: append(x.config.Encode("  "), '\n')}}
	tokenizer, err := d.tokenizer(x)
	if err != nil {
		return nil, err
	}
	sidecars = append(sidecars, tokenizer...)
	sidecars = append(sidecars, checkpoint.Sidecar{
		Name: "README.md", Data: x.card(nil), Final: func() []byte { return x.card(x.final) },
	})
	return checkpoint.NewLayout(d.s.opts.Output, specs, sidecars, checkpoint.Options{
		ShardSize: math.MaxInt64, Weights: weightsName, Metadata: x.Metadata(nil),
	})
}

// tokenizerFiles are what belongs to a vocabulary.
var tokenizerFiles = []string{"added_tokens.json", "chat_template.jinja", "merges.txt", "special_tokens_map.json",
	"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt"}

// tokenizer returns the tuned model's tokenizer if the vocabulary was resized: the
// base's does not know the new tokens.
func (d *draft) tokenizer(x *Extraction) ([]checkpoint.Sidecar, error) {
	if !slices.ContainsFunc(d.all, func(c *carried) bool { return c.resized && c.form == savedForm }) {
		return nil, nil
	}
	files, err := d.s.tuned.SideFiles()
	if err != nil {
		return nil, err
	}
	var all []checkpoint.Sidecar
	for _, f := range files {
		if slices.Contains(tokenizerFiles, f.Name) {
			all = append(all, checkpoint.Sidecar{Name: f.Name, Source: f.Path, Size: f.Size})
		}
	}
	if len(all) > 0 {
		x.decide("tokenizer", "the vocabulary has another size: the tuned model's tokenizer is copied")
	}
	return all, nil
}
