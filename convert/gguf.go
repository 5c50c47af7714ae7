package convert

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/strictjson"
	"github.com/loratool/loratool/plan"
)

// This file makes a GGUF file of a model folder as llama.cpp's converter does
// (convert_hf_to_gguf.py and conversion/ of llama.cpp 0.5): the same tensors in the same
// order and types, the same keys in the same order.

// ggufExt is how the path of an output ends that is to be GGUF.
const ggufExt = ".gguf"

// ggufPlanner is the state of a conversion to GGUF.
type ggufPlanner struct {
	*planner
	family  *arch.Family
	class   string             // architectures[0]
	hparams *strictjson.Object // config.json
	tokens  int64              // rows that an embedding may have; 0 for all it has
	layers  int64
	heads   int64
	kvHeads int64

	view  *View
	fixed tensor.DType // of matrices
	out   []gguf.Spec
	keys  *gguf.Metadata
	vocab *vocabulary
	// stacks are the layers of experts that are being collected.
	stacks  map[int]map[string]string
	skipped []string
}

// planGGUF decides how to make a GGUF file of a model.
func planGGUF(p *planner) (*Conversion, error) {
	g := &ggufPlanner{planner: p, keys: new(gguf.Metadata), stacks: make(map[int]map[string]string)}
	for _, step := range []func() error{g.open, g.chooseType, g.readVocabulary, g.countTokens, g.addExtras, g.addTensors, g.checkComplete, g.addKeys} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	g.decide("gguf-type", fmt.Sprintf("matrices are written as %s; vectors, norms and routers are F32 in every file", g.fixed))
	p.plan.Unhashed = true // a GGUF file has no place for what it was made from
	c := &Conversion{Plan: p.plan, View: g.view, source: p.source, opts: p.options}
	layout, err := checkpoint.NewGGUFLayout(p.options.Output, g.out, g.keys, checkpoint.GGUFOptions{
		Counts: gguf.ConverterCounts(g.out, g.options.ShardSize, g.options.ShardTensors),
	})
	if err != nil {
		return nil, g.errorf("%w", err)
	}
	c.Layout = layout
	return c, nil
}

// open finds the family of the model and refuses what is no model of one.
func (g *ggufPlanner) open() error {
	g.class = g.config.Architecture()
	switch {
	case g.source.IsAdapter():
		return g.errorf("it is an adapter: a conversion to GGUF takes models; merge it into its base first")
	case g.source.Config == nil:
		return g.errorf("no config.json: a GGUF file says what a model is, a file of weights alone does not")
	case g.class == "":
		return g.errorf("its config.json names no architectures")
	}
	var ok bool
	if g.family, ok = arch.GGUFOf(g.class); !ok {
		return g.errorf("%s: there are no tables for this architecture; there are for %s", g.class, strings.Join(arch.GGUFArchitectures(), ", "))
	}
	kinds, scaled, err := g.codes()
	if err != nil {
		return err
	}
	if scaled {
		kinds = append(kinds, "FP8 with scales")
	}
	if len(kinds) > 0 {
		g.decide("quantized-restored", fmt.Sprintf("the input stores %s: its weights are what those stand for", strings.Join(kinds, " and ")))
	}
	g.view = &View{source: g.source, tensors: make(map[string]*viewTensor)}
	return g.readSizes()
}

// readSizes reads what the tensors depend on.
func (g *ggufPlanner) readSizes() (err error) {
	g.hparams = g.source.Config
	for _, size := range []struct {
		key string
		to  *int64
	}{{"block_count", &g.layers}, {"attention.head_count", &g.heads}, {"attention.head_count_kv", &g.kvHeads}} {
		if *size.to, err = g.sizeOf(size.key); err != nil {
			return err
		}
	}
	if g.kvHeads == 0 {
		g.kvHeads = g.heads
	}
	if g.heads <= 0 || g.layers <= 0 {
		return g.errorf("its config.json has %d layers, %d heads, %d key-value heads", g.layers, g.heads, g.kvHeads)
	}
	return nil
}

// sources are the names of the tensors in the order of the converter: file by file,
// sorted by name.
func (g *ggufPlanner) sources() []tensor.Spec {
	specs := slices.Clone(g.source.Specs())
	file := func(s tensor.Spec) string { name, _ := g.source.Origin(s.Name); return name }
	slices.SortFunc(specs, func(a, b tensor.Spec) int {
		if c := strings.Compare(file(a), file(b)); c != 0 {
			return c
		}
		return strings.Compare(a.Name, b.Name)
	})
	return specs
}

// chooseType settles the type of matrices: the one asked for, or that of the first
// matrix of the file if it is one of 16 bits, else F16.
func (g *ggufPlanner) chooseType() error {
	g.fixed = g.options.DType
	if g.fixed == tensor.F64 {
		return &OptionError{"dtype", "GGUF files of models have f32, f16 or bf16"}
	}
	if g.fixed != tensor.NoDType {
		return nil
	}
	for _, s := range g.sources() {
		if len(s.Shape) >= 2 && (s.DType == tensor.BF16 || s.DType == tensor.F16) && !g.family.IsDropped(s.Name) {
			g.fixed = s.DType
			return nil
		}
	}
	g.fixed = tensor.F16
	return nil
}

// addTensors gives every tensor of the input its place.
func (g *ggufPlanner) addTensors() error {
	for _, s := range g.sources() {
		if g.family.IsDropped(s.Name) {
			g.skipped = append(g.skipped, s.Name)
			continue
		}
		found := g.family.FromHF(s.Name)
		if len(found) == 0 {
			return g.errorf("tensor %q: %s has no such tensor in GGUF; nearest names: %s", s.Name, g.class, strings.Join(g.nearest(s.Name), ", "))
		}
		if !s.DType.IsFloat() {
			return g.errorf("tensor %q is %s, not a weight", s.Name, s.DType.Safetensors())
		}
		for _, t := range found {
			if int64(t.Layer) >= g.layers {
				return g.errorf("tensor %q is of a layer that config.json does not have: there are %d", s.Name, g.layers)
			}
			if err := g.addTensor(s, t); err != nil {
				return err
			}
		}
	}
	if len(g.skipped) > 0 {
		g.decide("left-out", "GGUF has no place for these, and nothing computes with them there", g.skipped...)
	}
	return nil
}

// addTensor adds one tensor, or an expert to its layer's.
func (g *ggufPlanner) addTensor(s tensor.Spec, t arch.GGUFTensor) error {
	v := &viewTensor{spec: tensor.Spec{Name: t.Name, DType: s.DType, Shape: s.Shape}, parts: []tensor.Spec{s}}
	switch t.Change {
	case arch.Same:
		return g.add(g.cutRows(s, v), nil)
	case arch.PlusOne:
		return g.add(v, []plan.Stage{{Op: AddOne{Half: s.DType == tensor.F16}}})
	case arch.PairQ:
		return g.addPaired(v, g.heads)
	case arch.PairK:
		return g.addPaired(v, g.kvHeads)
	case arch.SplitGate, arch.SplitUp:
		return g.addHalf(v, t.Change == arch.SplitUp)
	case arch.Stacked:
		return g.collect(s, t)
	}
	return g.addTurned(v)
}

// countTokens says how many rows an embedding has by the tokenizer.
func (g *ggufPlanner) countTokens() error {
	g.tokens = int64(len(g.vocab.tokens))
	return nil
}

// cutRows leaves out rows of an embedding that no token has, where the family may have
// them.
func (g *ggufPlanner) cutRows(s tensor.Spec, v *viewTensor) *viewTensor {
	if g.family.Tokens.CutRows && v.spec.Name == "token_embd.weight" && len(s.Shape) == 2 && g.tokens > 0 && s.Shape[0] > g.tokens {
		v.spec.Shape = tensor.Shape{g.tokens, s.Shape[1]}
		g.decide("rows-left-out", fmt.Sprintf("the last %d rows belong to no token of the tokenizer", s.Shape[0]-g.tokens), s.Name)
	}
	return v
}

// addTurned adds the transpose of a matrix.
func (g *ggufPlanner) addTurned(v *viewTensor) error {
	s := v.spec.Shape
	if len(s) != 2 || v.spec.DType.Bits()%8 != 0 {
		return g.errorf("tensor %q: %s of shape %v can't be transposed; expected a matrix of (in, out)", v.parts[0].Name, v.spec.DType.Safetensors(), s)
	}
	v.spec.Shape, v.turned = tensor.Shape{s[1], s[0]}, true
	return g.add(v, nil)
}

func (g *ggufPlanner) addPaired(v *viewTensor, heads int64) error {
	s := v.spec.Shape
	if len(s) == 0 || len(s) > 2 || s[0]%(2*heads) != 0 || s[0] == 0 {
		return g.errorf("tensor %q: its shape %v is not that of %d heads of an even number of rows", v.parts[0].Name, s, heads)
	}
	v.head = s[0] / heads
	return g.add(v, nil)
}

// addHalf adds the first or second half of the rows of every expert.
func (g *ggufPlanner) addHalf(v *viewTensor, second bool) error {
	s := v.spec.Shape
	if len(s) != 3 || s[1]%2 != 0 {
		return g.errorf("tensor %q: its shape %v is not that of a stack of gates and ups", v.parts[0].Name, s)
	}
	v.spec.Shape = tensor.Shape{s[0], s[1] / 2, s[2]}
	v.half, v.second = true, second
	return g.add(v, nil)
}

// collect notes one matrix of an expert, and adds the stacks of a layer when all of
// its matrices are there: where the last of them is, all three behind each other.
func (g *ggufPlanner) collect(s tensor.Spec, t arch.GGUFTensor) error {
	experts, err := g.mustInt("num_local_experts", "num_experts")
	if err != nil {
		return err
	}
	if int64(t.Expert) >= experts {
		return g.errorf("tensor %q is of an expert that config.json does not have: there are %d", s.Name, experts)
	}
	layer := g.stacks[t.Layer]
	if layer == nil {
		layer = make(map[string]string)
		g.stacks[t.Layer] = layer
	}
	layer[fmt.Sprintf("%s %d", t.Name, t.Expert)] = s.Name
	const matrices = 3
	if int64(len(layer)) < matrices*experts {
		return nil
	}
	delete(g.stacks, t.Layer)
	for _, name := range g.stackNames(t.Layer) {
		if err := g.addStack(name, layer, experts); err != nil {
			return err
		}
	}
	return nil
}

// stackNames are the stacks of a layer in the order of the table.
func (g *ggufPlanner) stackNames(layer int) []string {
	var names []string
	for _, r := range g.family.Renames {
		if r.Change == arch.Stacked {
			names = append(names, strings.Replace(r.GGUF, "#", fmt.Sprint(layer), 1)+".weight")
		}
	}
	return names
}

func (g *ggufPlanner) addStack(name string, layer map[string]string, experts int64) error {
	v := &viewTensor{}
	for e := range experts {
		hf := layer[fmt.Sprintf("%s %d", name, e)]
		s, ok := g.source.Lookup(hf)
		if !ok {
			return g.errorf("expert %d has no matrix for %q", e, name)
		}
		if first := v.parts; len(first) > 0 && (!first[0].Shape.Equal(s.Shape) || first[0].DType != s.DType) || len(s.Shape) != 2 {
			return g.errorf("tensor %q is %s of shape %v; the experts of a layer are matrices of one type and shape", hf, s.DType.Safetensors(), s.Shape)
		}
		v.parts = append(v.parts, s)
	}
	s := v.parts[0]
	v.spec = tensor.Spec{Name: name, DType: s.DType, Shape: append(tensor.Shape{experts}, s.Shape...)}
	return g.add(v, nil)
}

// add places a tensor of the view in the output.
func (g *ggufPlanner) add(v *viewTensor, stages []plan.Stage) error {
	spec, err := tensor.NewSpec(v.spec.Name, v.spec.DType, v.spec.Shape)
	if err != nil {
		return g.errorf("tensor %q: %w", v.spec.Name, err)
	}
	if _, twice := g.view.tensors[spec.Name]; twice {
		return g.errorf("two of its tensors become %q: %s and another", spec.Name, v.parts[0].Name)
	}
	out := g.fixed
	if arch.KeepsF32(spec.Name, len(spec.Shape)) {
		out = tensor.F32
	}
	kind, ok := gguf.TypeOf(out)
	if !ok {
		return g.errorf("tensor %q: GGUF has no %s", spec.Name, out)
	}
	g.view.tensors[spec.Name], g.view.specs = v, append(g.view.specs, spec)
	step := plan.Step{Read: plan.Whole(0, spec), Write: plan.Placement{Tensor: spec.Name, DType: out}, Stages: stages}
	step.Judge = !step.Copies()
	g.plan.Steps = append(g.plan.Steps, step)
	g.out = append(g.out, gguf.Spec{Name: spec.Name, Type: kind, Shape: spec.Shape})
	return nil
}

// checkComplete refuses a model that lacks tensors, and tokens without a row.
func (g *ggufPlanner) checkComplete() error {
	if err := g.checkStacks(); err != nil {
		return err
	}
	v, ok := g.view.tensors["token_embd.weight"]
	if !ok {
		return g.errorf("there is no embedding of tokens")
	}
	for layer := range g.layers {
		// Every layer of every family has the norm that comes first in its table.
		i := slices.IndexFunc(g.family.Renames, func(r arch.Rename) bool {
			return strings.HasPrefix(r.GGUF, "blk.#.") && strings.HasSuffix(r.GGUF, "_norm")
		})
		norm := strings.Replace(g.family.Renames[i].GGUF, "#", fmt.Sprint(layer), 1) + ".weight"
		if _, ok := g.view.tensors[norm]; !ok {
			return g.errorf("layer %d of %d has no tensor that becomes %q: tensors are missing", layer, g.layers, norm)
		}
	}
	if len(v.spec.Shape) != 2 {
		return g.errorf("tensor %q: its shape %v is not that of an embedding", v.parts[0].Name, v.spec.Shape)
	}
	if rows := v.spec.Shape[0]; rows != g.tokens {
		return g.errorf("the embedding has %d rows, the tokenizer with config.json's vocab_size %d tokens: resize the embedding, or set vocab_size to its rows",
			rows, g.tokens)
	}
	return nil
}

// checkStacks refuses a layer that lacks matrices of experts.
func (g *ggufPlanner) checkStacks() error {
	for _, layer := range slices.Sorted(maps.Keys(g.stacks)) {
		return g.errorf("layer %d has only %d matrices of its experts: a stack needs all of them", layer, len(g.stacks[layer]))
	}
	return nil
}

// nearest are the known names that are most like one that is not.
func (g *ggufPlanner) nearest(name string) []string {
	var known []string
	for _, r := range g.family.Renames {
		known = append(known, r.HF)
	}
	return nearestOf(known, name)
}

// nearestOf are the three names that are most like one that is not among them, quoted.
func nearestOf(known []string, name string) []string {
	type near struct {
		name     string
		distance int
	}
	var all []near
	for _, k := range known {
		all = append(all, near{fmt.Sprintf("%q", k), distance(k, name)})
	}
	slices.SortStableFunc(all, func(a, b near) int { return a.distance - b.distance })
	var names []string
	for _, n := range all[:min(3, len(all))] {
		names = append(names, n.name)
	}
	return names
}

// distance is the number of letters by which two short names differ (Levenshtein).
func distance(a, b string) int {
	const longest = 256 // a name that is longer is not near to anything
	a, b = a[:min(len(a), longest)], b[:min(len(b), longest)]
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := before
			if a[i] != b[j] {
				change++
			}
			before = row[j+1]
			row[j+1] = min(change, row[j]+1, before+1)
		}
	}
	return row[len(b)]
}
