package quant

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/plan"
	"github.com/loratool/loratool/quant/block"
	"github.com/loratool/loratool/quant/encode"
	"github.com/loratool/loratool/quant/mix"
)

// This file plans what llama.cpp's quantizer does to a GGUF model. What becomes of
// each tensor is decided by package mix, the bytes come from package encode; the keys,
// their order and that of the tensors are the reference's, so that whole files are
// equal. Nothing is added to them, no provenance either.
//
// Source: llama_model_quantize_impl of src/llama-quant.cpp, release v0.5.0.

// GGUFOptions shapes the quantization of a GGUF model. Output and Mix must be given;
// the matrix in Mix is taken from Matrix.
type GGUFOptions struct {
	Output string
	Mix    mix.Options
	// Matrix is an importance matrix, MatrixName the path that the output names.
	Matrix     *gguf.Imatrix
	MatrixName string
	// Keys are set in the output, over those of the input.
	Keys []gguf.Pair
	// KeepSplit writes as many files as the model has, each with the same tensors;
	// Split cuts the output anew. At most one may be set, and Output is a folder then.
	KeepSplit bool
	Split     *gguf.SplitOptions
	// Changed has tensors that take the place of the model's own of the same names and
	// shapes, as numbers: what a merge makes. With Keep, order, keys and types of all
	// tensors stay as they are, without a mix.
	Changed checkpoint.Checkpoint
	Keep    bool
	// Converter gives a model that is all F32 the types, order, keys and files that
	// llama.cpp's converter gives it; of the mix only the type counts.
	Converter bool
	// Inputs are what a model was computed from that is no file; none for the model itself.
	Inputs []plan.Input

	// The rest is for [PlanGGUFLoftQ]. The outputs of that name the inputs in a key,
	// unless NoProvenance is set; MatrixIdentity tells the matrix from any other.
	LoftQ          *LoftQ
	NoProvenance   bool
	Version        string // of the tool
	MatrixIdentity string
}

// GGUF is the quantization of a GGUF model decided: a plan, the place of every output
// byte, and the view that the bytes come from.
type GGUF struct {
	Mix    *mix.Mix
	Plan   *plan.Plan
	Layout *checkpoint.Layout
	View   *encode.View // the plan's only input
}

// noEncoder is the rule of a refusal for want of an encoder.
const noEncoder mix.Rule = "encoder"

// PlanGGUF decides how to quantize a GGUF model. If the error is a [*mix.RefusalError],
// it comes with the decisions as they would be, and nothing else.
func PlanGGUF(base *checkpoint.Model, o GGUFOptions) (*GGUF, error) {
	p := &ggufPlanner{base: base, options: o}
	if base.GGUF() == nil {
		return nil, p.errorf("it is no GGUF model: the types of llama.cpp are made of GGUF models only")
	}
	p.sort()
	if err := p.setKeys(); err != nil {
		return nil, err
	}
	q := &GGUF{Plan: &plan.Plan{Unhashed: true}}
	if err := p.decide(q); err != nil {
		return q, err
	}
	return q, p.place(q)
}

// ggufPlanner is the state of one call of PlanGGUF.
type ggufPlanner struct {
	base    *checkpoint.Model
	options GGUFOptions

	tensors []gguf.Spec // in the order of the output
	counts  []int       // per file, to be kept; nil otherwise
	model   mix.Model
	keys    *gguf.Metadata
}

func (p *ggufPlanner) errorf(format string, args ...any) error {
	return &checkpoint.InputError{Path: p.base.Path, Err: fmt.Errorf(format, args...)}
}

// sort puts the tensors into the order of the output, with shapes as the reference
// writes them.
func (p *ggufPlanner) sort() {
	set := p.base.GGUF()
	if p.options.KeepSplit {
		p.counts = make([]int, len(set.Files()))
	}
	for _, t := range set.Tensors() {
		s := t.Spec
		if !p.isKept() {
			s.Shape = gguf.TrimShape(s.Shape)
		}
		p.tensors = append(p.tensors, s)
		if p.counts != nil {
			p.counts[t.File]++
		}
	}
	if p.counts == nil && !p.isKept() {
		mix.Sort(p.tensors)
	}
}

// setKeys reads what the recipes want to know, and makes the keys of the output but for
// those that the mix sets.
func (p *ggufPlanner) setKeys() error {
	p.keys = p.base.GGUF().Metadata()
	if p.isKept() {
		return nil
	}
	known := p.keys.Clone()
	for _, k := range p.options.Keys {
		known.Set(k.Key, k.Value)
	}
	var err error
	if p.model, err = mix.ModelOf(known); err != nil {
		return &checkpoint.InputError{Path: p.base.Path, Err: err}
	}
	return nil
}

// decide asks for the type of every tensor, and whether there are encoders.
func (p *ggufPlanner) decide(q *GGUF) error {
	o := p.options.Mix
	if p.options.Matrix != nil {
		o.Matrix = p.options.Matrix.Sizes()
	}
	switch {
	case p.options.Keep:
		return p.keep(q)
	case p.options.Converter:
		return p.convert(q)
	}
	var refusal *mix.RefusalError
	m, err := mix.Plan(p.model, p.tensors, o)
	if option, ok := errors.AsType[*mix.OptionError](err); ok {
		return &OptionError{Option: "type", Reason: option.Error()}
	} else if err != nil && !errors.As(err, &refusal) {
		return err
	}
	if refusal == nil {
		refusal = new(mix.RefusalError)
	}
	q.Mix = m
	for _, d := range m.Decisions {
		if !d.Quantize() {
			continue
		}
		if err := block.GGML(d.To).CanQuantize(); err != nil {
			refusal.Refusals = append(refusal.Refusals, mix.Refusal{Tensor: d.Name, Rule: noEncoder, Reason: err.Error()})
		}
	}
	if len(refusal.Refusals) > 0 {
		return &checkpoint.InputError{Path: p.base.Path, Err: refusal}
	}
	return nil
}

// place makes view, steps and layout of the decisions.
func (p *ggufPlanner) place(q *GGUF) error {
	targets := make([]encode.Target, len(p.tensors))
	specs := slices.Clone(p.tensors)
	encoded := make(map[string]bool)
	for i, d := range q.Mix.Decisions {
		specs[i].Type = d.To
		targets[i].Spec = specs[i]
		if d.Quantize() {
			encoded[d.Name] = true
		}
		targets[i].Before = p.before(d.Name)
		if d.Weights {
			targets[i].Weights = func() ([]float32, error) { return p.options.Matrix.Weights(d.Name) }
		}
	}
	var err error
	if q.View, err = encode.New(p.sources(encoded), p.base.Path, targets); err != nil {
		return &checkpoint.InputError{Path: p.base.Path, Err: err}
	}
	p.finishKeys(q.Mix)
	if q.Layout, err = checkpoint.NewGGUFLayout(p.options.Output, specs, p.keys, p.split(specs)); err != nil {
		return err
	}
	p.addInputs(q.Plan)
	for _, f := range q.Layout.Files {
		for _, t := range f.Tensors() {
			q.Plan.Steps = append(q.Plan.Steps, plan.Step{
				Read: plan.Whole(0, t.Spec), Write: plan.Placement{Tensor: t.Name, DType: t.DType},
			})
		}
	}
	p.explain(q)
	return nil
}

// finishKeys leaves the keys as the reference does: what the mix sets behind all others,
// then what was asked for, then the importance matrix.
func (p *ggufPlanner) finishKeys(m *mix.Mix) {
	switch {
	case p.options.Converter:
		p.keys.Replace(keyFileType, gguf.ValueOf(m.FileType))
	case !p.options.Keep:
		m.SetKeys(p.keys)
	}
	for _, k := range p.options.Keys {
		p.keys.Set(k.Key, k.Value)
	}
	if p.options.Matrix != nil {
		p.options.Matrix.SetKeys(p.keys, p.options.MatrixName)
	}
}

// keyFileType says what most tensors are.
const keyFileType = "general.file_type"

// isKept reports whether order, shapes and keys stay as they are.
func (p *ggufPlanner) isKept() bool { return p.options.Keep || p.options.Converter }

func (p *ggufPlanner) split(specs []gguf.Spec) checkpoint.GGUFOptions {
	if p.options.Converter {
		return p.converterSplit(specs)
	}
	return checkpoint.GGUFOptions{Split: p.options.Split, Counts: p.counts}
}

func (p *ggufPlanner) addInputs(to *plan.Plan) {
	to.Inputs = slices.Clone(p.options.Inputs)
	if to.Inputs == nil {
		to.Inputs = []plan.Input{inputOf("base", p.base)}
	}
	if m := p.options.Matrix; m != nil {
		name := p.options.MatrixName
		file := plan.File{Name: filepath.Base(name), Path: name, Size: m.Size()}
		to.Inputs = append(to.Inputs, plan.Input{Role: "imatrix", Name: file.Name, Path: name, Weight: 1, Files: []plan.File{file}})
	}
}

// explain records what is worth a line beside the table of types.
func (p *ggufPlanner) explain(q *GGUF) {
	decide := func(code, message string, tensors []string) {
		q.Plan.Decisions = append(q.Plan.Decisions, plan.Decision{Code: code, Message: message, Tensors: append([]string{}, tensors...)})
	}
	var again []string
	for _, d := range q.Mix.Decisions {
		if d.Quantize() && d.From.BlockSize() > 1 {
			again = append(again, d.Name)
		}
	}
	if len(again) > 0 {
		decide("requantized", "these are quantized already: what they stand for is quantized once more, as asked for", again)
	}
	for i, w := range q.Mix.Warnings {
		text := func(other mix.Warning) bool { return other.Code == w.Code && other.Text == w.Text }
		if slices.ContainsFunc(q.Mix.Warnings[:i], text) {
			continue // with the first that says the same
		}
		var names []string
		for _, other := range q.Mix.Warnings[i:] {
			if text(other) && other.Tensor != "" {
				names = append(names, other.Tensor)
			}
		}
		decide(w.Code, w.Text, names)
	}
}

// Counts says how many tensors become which type, and how many are copied.
func (q *GGUF) Counts() map[string]int {
	counts := make(map[string]int)
	for _, d := range q.Mix.Decisions {
		if d.Quantize() {
			counts[d.To.String()]++
		} else {
			counts["copy"]++
		}
	}
	return counts
}

// partlyStored is a model of which some tensors are the numbers that they stand for, the
// others bytes as they are stored.
type partlyStored struct {
	model   *checkpoint.Model
	stored  checkpoint.Checkpoint
	encoded map[string]bool
}

func (s *partlyStored) Specs() []tensor.Spec {
	var specs []tensor.Spec
	for _, t := range s.stored.Specs() {
		if s.encoded[t.Name] {
			t, _ = s.model.Lookup(t.Name)
		}
		specs = append(specs, t)
	}
	return specs
}

func (s *partlyStored) Open(name string) (io.ReaderAt, error) {
	if s.encoded[name] {
		return s.model.Open(name)
	}
	return s.stored.Open(name)
}
