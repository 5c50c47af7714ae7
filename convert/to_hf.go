package convert

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/strictjson"
	"github.com/loratool/loratool/plan"
)

// This file undoes what llama.cpp's converter does to the tensors of a model: names, the
// pairs of rotated heads, the 1 in the norms of Gemma, stacks of experts.

// FromGGUF is a GGUF model as Hugging Face knows it.
type FromGGUF struct {
	// Model has the tensors, with the names and shapes of Hugging Face and the types that
	// they are read as, and config.json. It belongs to the GGUF model.
	Model *checkpoint.Model
	// Decisions say what could not be recovered.
	Decisions []plan.Decision
	Quantized []string // types of blocks that the file has
	view      *hfView
}

// Stored returns the name of the tensor in the GGUF file that one of the model is seen
// of: experts of a stack have one.
func (f *FromGGUF) Stored(name string) (string, bool) {
	t, ok := f.view.tensors[name]
	if !ok {
		return "", false
	}
	return t.from.Name, true
}

// AsHF sees a GGUF model as one of Hugging Face. Nothing is read but headers: tensors are
// computed when they are read. A tensor or an architecture without tables, and a model
// that lacks tensors, are errors that name them.
func AsHF(source *checkpoint.Model) (*FromGGUF, error) {
	_, from, err := asHF(source)
	return from, err
}

func asHF(source *checkpoint.Model) (*hfPlanner, *FromGGUF, error) {
	h := &hfPlanner{source: source, stored: make(map[string]tensor.Spec), view: &hfView{source: source, tensors: make(map[string]*hfTensor)}}
	for _, step := range []func() error{h.open, h.readSizes, h.addTensors, h.checkComplete, h.buildConfig} {
		if err := step(); err != nil {
			return nil, nil, err
		}
	}
	model := source.As(h.view)
	model.Config = h.config
	return h, &FromGGUF{Model: model, Decisions: h.decisions, Quantized: h.quantized(), view: h.view}, nil
}

// hfPlanner is the state of one call of AsHF.
type hfPlanner struct {
	source *checkpoint.Model
	keys   *gguf.Metadata
	arch   string // general.architecture
	family *arch.Family

	layers, heads, kvHeads, experts int64
	stored                          map[string]tensor.Spec // by the names of GGUF

	view      *hfView
	config    *strictjson.Object
	decisions []plan.Decision
}

func (h *hfPlanner) errorf(format string, args ...any) error {
	return &checkpoint.InputError{Path: h.source.Path, Err: fmt.Errorf(format, args...)}
}

func (h *hfPlanner) decide(code, message string, tensors ...string) {
	h.decisions = append(h.decisions, plan.Decision{Code: code, Message: message, Tensors: append([]string{}, tensors...)})
}

// open finds the family of the model.
func (h *hfPlanner) open() error {
	set := h.source.GGUF()
	if set == nil {
		return h.errorf("it is not a GGUF file")
	}
	h.keys = set.Metadata()
	if kind, ok, err := h.keys.OptText("general.type"); err != nil {
		return h.errorf("%w", err)
	} else if ok && kind != "model" {
		return h.errorf("its general.type is %q: a conversion from GGUF takes models", kind)
	}
	var err error
	if h.arch, err = h.keys.Text("general.architecture"); err != nil {
		return h.errorf("%w", err)
	}
	for _, s := range h.source.Specs() {
		h.stored[s.Name] = s
	}
	families := arch.GGUFNamed(h.arch)
	if len(families) == 0 {
		return h.errorf("its architecture is %q, for which there are no tables; there are for %s", h.arch, strings.Join(arch.GGUFNames(), ", "))
	}
	h.family = families[0]
	for _, f := range slices.Backward(families) {
		if !slices.ContainsFunc(h.source.Specs(), func(s tensor.Spec) bool { return !isExtra(f, s.Name) && len(f.ToHF(s.Name)) == 0 }) {
			h.family = f
		}
	}
	return nil
}

// readSizes reads what the tensors depend on.
func (h *hfPlanner) readSizes() (err error) {
	if h.layers, err = h.mustInt("block_count"); err != nil {
		return err
	}
	if h.heads, err = h.mustInt("attention.head_count"); err != nil {
		return err
	}
	if h.kvHeads, err = h.intOr("attention.head_count_kv", h.heads); err != nil {
		return err
	}
	if h.experts, err = h.intOr("expert_count", 0); err != nil {
		return err
	}
	const most = 1 << 16 // far above any model
	for _, n := range []int64{h.layers, h.heads, h.kvHeads, h.experts + 1} {
		if n <= 0 || n > most {
			return h.errorf("its keys state %d layers, %d heads, %d key-value heads, %d experts", h.layers, h.heads, h.kvHeads, h.experts)
		}
	}
	return nil
}

// mustInt returns a key of the architecture. A list, of a number for each layer, is taken
// if all its numbers are one.
func (h *hfPlanner) mustInt(key string) (int64, error) {
	n, ok, err := h.optInt(key)
	if err == nil && !ok {
		err = h.errorf("it has no key %s.%s", h.arch, key)
	}
	return n, err
}

func (h *hfPlanner) intOr(key string, otherwise int64) (int64, error) {
	n, ok, err := h.optInt(key)
	if !ok {
		n = otherwise
	}
	return n, err
}

func (h *hfPlanner) optInt(key string) (int64, bool, error) {
	key = h.arch + "." + key
	v, ok := h.keys.Get(key)
	if !ok {
		return 0, false, nil
	}
	if list, err := v.Ints(); err == nil {
		if list = slices.Compact(list); len(list) != 1 {
			return 0, false, h.errorf("%s has several numbers, %s: layers of different sizes have no config in transformers", key, v.Describe())
		}
		return list[0], true, nil
	}
	n, err := v.Int()
	if err != nil {
		return 0, false, h.errorf("%s: %w", key, err)
	}
	return n, true, nil
}

func (h *hfPlanner) optFloat(key string) (float64, bool, error) {
	f, ok, err := h.keys.OptFloat(h.arch + "." + key)
	if err != nil {
		return 0, false, h.errorf("%w", err)
	}
	return f, ok, nil
}

// ropeFactors is the tensor that llama.cpp divides frequencies by. Hugging Face has a
// formula in its place, or lists in config.json.
const ropeFactors = "rope_freqs.weight"

// isExtra reports whether a tensor of a family is none in Hugging Face.
func isExtra(f *arch.Family, name string) bool {
	if f.Has(arch.LongRotary) {
		return name == longFactors || name == shortFactors
	}
	return name == ropeFactors
}

// addTensors gives every tensor its name in Hugging Face.
func (h *hfPlanner) addTensors() error {
	for _, s := range h.source.Specs() {
		if isExtra(h.family, s.Name) {
			continue
		}
		found := h.family.ToHF(s.Name)
		if len(found) == 0 {
			return h.errorf("tensor %q: there is no such tensor in the tables of %q; nearest names: %s", s.Name, h.arch, strings.Join(h.nearest(s.Name), ", "))
		}
		t := found[0]
		if i := slices.IndexFunc(found, func(t arch.HFTensor) bool { return t.Change == arch.Stacked }); i >= 0 {
			t = found[i] // single experts are what every version of transformers reads
		}
		if int64(t.Layer) >= h.layers {
			return h.errorf("tensor %q is of a layer that %s.block_count does not have: there are %d", s.Name, h.arch, h.layers)
		}
		if !s.DType.IsFloat() {
			return h.errorf("tensor %q is %s, not a weight", s.Name, s.DType)
		}
		if err := h.addTensor(s, t); err != nil {
			return err
		}
	}
	return nil
}

// addTensor adds what a tensor was: one tensor, or one for each expert.
func (h *hfPlanner) addTensor(s tensor.Spec, t arch.HFTensor) error {
	if h.family.Bare {
		t.Name = strings.TrimPrefix(t.Name, h.family.Prefix)
	}
	v := &hfTensor{from: s, spec: tensor.Spec{Name: t.Name, DType: s.DType, Shape: h.untrimmed(s, t)}}
	shape := v.spec.Shape
	switch t.Change {
	case arch.Same:
	case arch.PlusOne:
		v.minusOne, v.spec.DType = true, tensor.F32
	case arch.PairQ, arch.PairK:
		heads := h.heads
		if t.Change == arch.PairK {
			heads = h.kvHeads
		}
		if len(shape) == 0 || len(shape) > 2 || shape[0]%(2*heads) != 0 || shape[0] == 0 {
			return h.errorf("tensor %q: its shape %v is not that of %d heads of an even number of rows", s.Name, shape, heads)
		}
		v.head = shape[0] / heads
	case arch.Transposed:
		if len(shape) != 2 || s.DType.Bits()%8 != 0 {
			return h.errorf("tensor %q: %s of shape %v can't be transposed", s.Name, s.DType, shape)
		}
		v.transposed, v.spec.Shape = true, tensor.Shape{shape[1], shape[0]}
	case arch.Stacked:
		return h.addExperts(s, t, shape)
	default:
		return h.errorf("tensor %q can't be brought back to what it was in Hugging Face", s.Name)
	}
	return h.add(v)
}

// untrimmed puts back dimensions of 1 that llama.cpp's tools leave out: of a gate with
// one row, of a stack of one expert.
func (h *hfPlanner) untrimmed(s tensor.Spec, t arch.HFTensor) tensor.Shape {
	want := 0
	switch {
	case t.Change == arch.Stacked:
		want = 3
	case strings.HasSuffix(s.Name, ".ffn_gate_inp_shexp.weight"), strings.HasSuffix(s.Name, ".ffn_gate_inp.weight"):
		want = 2
	}
	shape := slices.Clone(s.Shape)
	for len(shape) < want {
		shape = slices.Insert(shape, 0, 1)
	}
	return shape
}

// addExperts adds the matrix of every expert of a stack.
func (h *hfPlanner) addExperts(s tensor.Spec, t arch.HFTensor, shape tensor.Shape) error {
	if len(shape) != 3 || shape[0] != h.experts {
		return h.errorf("tensor %q: its shape %v is not that of a stack of %d experts (%s.expert_count)", s.Name, shape, h.experts, h.arch)
	}
	for e := range h.experts {
		v := &hfTensor{from: s, spec: tensor.Spec{
			Name: strings.Replace(t.Name, "*", strconv.FormatInt(e, 10), 1), DType: s.DType, Shape: shape[1:],
		}}
		v.skip = e * v.spec.Size()
		if err := h.add(v); err != nil {
			return err
		}
	}
	return nil
}

func (h *hfPlanner) add(v *hfTensor) error {
	spec, err := tensor.NewSpec(v.spec.Name, v.spec.DType, v.spec.Shape)
	if err != nil {
		return h.errorf("tensor %q: %w", v.from.Name, err)
	}
	if _, twice := h.view.tensors[spec.Name]; twice {
		return h.errorf("two of its tensors are %q in Hugging Face: %s and another", spec.Name, v.from.Name)
	}
	v.spec = spec
	h.view.tensors[spec.Name], h.view.specs = v, append(h.view.specs, spec)
	return nil
}

// checkComplete refuses a model that lacks tensors: transformers would put random
// numbers in their place.
func (h *hfPlanner) checkComplete() error {
	for _, r := range h.family.Renames {
		if !h.isRequired(r.GGUF) {
			continue
		}
		layers := h.layers
		if !strings.Contains(r.GGUF, "#") {
			layers = 1
		}
		for layer := range layers {
			name := strings.Replace(r.GGUF, "#", strconv.FormatInt(layer, 10), 1) + ".weight"
			if _, ok := h.stored[name]; !ok {
				return h.errorf("it has no tensor %q, which %q must have: the file is incomplete, or of another kind than its architecture", name, h.arch)
			}
		}
	}
	if slices.ContainsFunc(h.family.Renames, func(r arch.Rename) bool { return r.Change == arch.PlusOne }) {
		h.decide("norms", "the file has 1 + w of each norm of this family: what is below the last place of that sum, 2^-23, is lost, and so is the sign of a zero")
	}
	return h.checkBiases()
}

// isRequired reports whether every model of the family, with or without experts, has a
// weight.
func (h *hfPlanner) isRequired(pattern string) bool {
	switch name := pattern[strings.LastIndex(pattern, ".")+1:]; {
	case name == "output":
		return false
	case strings.HasSuffix(name, "_exps"), strings.HasSuffix(name, "_shexp"), name == "ffn_gate_inp":
		return h.experts > 0
	case strings.HasPrefix(name, "ffn_") && !strings.Contains(name, "norm"):
		return h.experts == 0
	}
	return true
}

// checkBiases refuses a module that has a bias in some layers only.
func (h *hfPlanner) checkBiases() error {
	for _, r := range h.family.Renames {
		if !strings.Contains(r.GGUF, "#") {
			continue
		}
		var without, with []string
		for layer := range h.layers {
			name := strings.Replace(r.GGUF, "#", strconv.FormatInt(layer, 10), 1) + ".bias"
			if _, ok := h.stored[name]; ok {
				with = append(with, name)
			} else {
				without = append(without, name)
			}
		}
		if len(with) > 0 && len(without) > 0 {
			return h.errorf("it has a tensor %q, but no %q: the file is incomplete", with[0], without[0])
		}
	}
	return nil
}

// nearest are the known names that are most like one that is not.
func (h *hfPlanner) nearest(name string) []string {
	var known []string
	for _, r := range h.family.Renames {
		known = append(known, r.GGUF)
	}
	return nearestOf(known, name)
}

// quantized are the types of blocks that the file has.
func (h *hfPlanner) quantized() []string {
	var kinds []string
	for _, s := range h.source.Specs() {
		if d, ok := h.source.Derived(s.Name); ok && !slices.Contains(kinds, d.Kind) {
			kinds = append(kinds, d.Kind)
		}
	}
	slices.Sort(kinds)
	return kinds
}
