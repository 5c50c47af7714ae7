package convert

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/strictjson"
	"github.com/loratool/loratool/plan"
)

// This file makes an adapter of PEFT from a LoRA adapter of llama.cpp: rows in the order
// of Hugging Face, a module for each expert, and a config whose ranks and alphas give
// every pair the scale that it has in the file.

// peftPair is a module of the adapter that is made.
type peftPair struct {
	module string // as the base calls it
	rank   int64
	alpha  float64 // scale·rank
}

// planAdapterHF decides how to write an adapter in GGUF as one of PEFT.
func planAdapterHF(p *planner) (*Conversion, error) {
	if strings.HasSuffix(p.options.Output, ".safetensors") {
		return nil, p.errorf("an adapter of PEFT is a folder: a file of weights does not say ranks and scales")
	}
	c, view, pairs, err := seeAdapter(p)
	if err != nil {
		return nil, err
	}
	return c.writePEFT(view, pairs)
}

// AdapterAsHF sees a LoRA adapter of llama.cpp as the one of PEFT that it is for a base, a
// folder or a GGUF file. Its factors are computed when they are read.
func AdapterAsHF(source, base *checkpoint.Model) (*checkpoint.Model, error) {
	c, view, pairs, err := seeAdapter(&planner{source: source, options: Options{Base: base}, plan: new(plan.Plan)})
	if err != nil {
		return nil, err
	}
	seen := source.As(view)
	seen.Config, err = c.peftConfig(pairs)
	return seen, err
}

// seeAdapter finds the modules of PEFT that the pairs of an adapter in GGUF are for.
func seeAdapter(p *planner) (*adapterPlanner, *factorView, []peftPair, error) {
	from, err := adapter.Open(p.source)
	if err != nil {
		return nil, nil, nil, err
	}
	c := &adapterPlanner{planner: p, from: from}
	if err := c.openBase(); err != nil {
		return nil, nil, nil, err
	}
	if name := from.Architecture(); name != c.family.Name {
		return nil, nil, nil, c.errorf("it is for models of %q, and %s is %q in GGUF", name, c.options.Base.Name, c.family.Name)
	}
	view := &factorView{source: c.source, tensors: make(map[string]*factorTensor)}
	var pairs []peftPair
	for _, m := range from.Modules {
		more, err := c.modulesOf(m, view)
		if err != nil {
			return nil, nil, nil, err
		}
		pairs = append(pairs, more...)
	}
	if len(from.Ignored) > 0 {
		c.decide("left-out", "llama.cpp passes over norms in an adapter, and so does this", from.Ignored...)
	}
	return c, view, pairs, nil
}

// modulesOf adds the factors of a tensor of GGUF: of one module, or of one for each
// expert of a stack.
func (c *adapterPlanner) modulesOf(m *adapter.Module, view *factorView) ([]peftPair, error) {
	p, err := c.from.PairOf(m)
	if err != nil {
		return nil, err
	}
	t, spec, err := c.placeOf(m, p)
	if err != nil {
		return nil, err
	}
	rows, cols := spec.Shape[0], spec.Shape[len(spec.Shape)-1]
	if t.Change == arch.Transposed {
		rows, cols = cols, rows
	}
	stack := int64(1)
	if t.Change == arch.Stacked {
		stack = c.experts
	}
	if p.Groups != stack || p.Rows != rows || p.Cols != cols || len(spec.Shape) != 2 {
		return nil, c.from.Mismatch(p.A.Name, "factors of %v and %v do not fit %q of the base, which is %v", p.A.Shape, p.B.Shape, spec.Name, spec.Shape)
	}
	row := func(i int64) int64 { return i }
	if t.Change == arch.PairQ || t.Change == arch.PairK {
		heads := c.heads
		if t.Change == arch.PairK {
			heads = c.kvHeads
		}
		if rows%(2*heads) != 0 {
			return nil, c.from.Mismatch(p.B.Name, "it has %d rows, which are no %d heads", rows, heads)
		}
		head := rows / heads
		row = func(i int64) int64 { j := i % head; return i - j + j%(head/2)*2 + j/(head/2) }
	}
	var made []peftPair
	for e := range stack {
		module := strings.TrimSuffix(strings.Replace(t.Name, "*", strconv.FormatInt(e, 10), 1), ".weight")
		nameA, nameB := peftPrefix+module+".lora_A.weight", peftPrefix+module+".lora_B.weight"
		a := &factorTensor{spec: tensor.Spec{Shape: tensor.Shape{p.Rank, cols}}, from: []tensor.Spec{p.A}}
		b := &factorTensor{spec: tensor.Spec{Shape: tensor.Shape{rows, p.Rank}}, from: []tensor.Spec{p.B}}
		a.at = func(i int64) (int, int64, float64) { return 0, e*p.Rank*cols + i, 1 }
		b.at = func(i int64) (int, int64, float64) { return 0, (e*rows+row(i/p.Rank))*p.Rank + i%p.Rank, 1 }
		if p.Embedding {
			nameA, nameB = peftPrefix+module+".lora_embedding_A", peftPrefix+module+".lora_embedding_B"
			a.spec.Shape, b.spec.Shape = tensor.Shape{p.Rank, rows}, tensor.Shape{cols, p.Rank}
			a.at = func(i int64) (int, int64, float64) { return 0, i%rows*p.Rank + i/rows, 1 }
			b.at = func(i int64) (int, int64, float64) { return 0, i, 1 }
		}
		a.spec.Name, b.spec.Name = nameA, nameB
		for _, f := range []*factorTensor{a, b} {
			if err := view.add(f); err != nil {
				return nil, c.errorf("%w", err)
			}
		}
		made = append(made, peftPair{module, p.Rank, p.Scale * float64(p.Rank)})
	}
	return made, nil
}

// peftPrefix is what PEFT puts before the name of a module.
const peftPrefix = "base_model.model."

// placeOf finds the tensor of the base that a tensor of GGUF was.
func (c *adapterPlanner) placeOf(m *adapter.Module, p adapter.Pair) (arch.HFTensor, tensor.Spec, error) {
	found := c.family.ToHF(m.Name)
	if len(found) == 0 {
		return arch.HFTensor{}, tensor.Spec{}, c.from.Mismatch(p.A.Name, "there is no tensor %q in the tables of %q", m.Name, c.family.Name)
	}
	for _, t := range found {
		for _, name := range []string{t.Name, strings.TrimPrefix(t.Name, c.family.Prefix)} {
			spec, ok := c.base.Lookup(strings.Replace(name, "*", "0", 1))
			if !ok {
				continue
			}
			switch t.Change {
			case arch.Same, arch.PairQ, arch.PairK, arch.Transposed, arch.Stacked:
				t.Name = name
				return t, spec, nil
			}
			return t, spec, c.instead("%q is a part of %q in the base: PEFT has no pair for a part of a stack", m.Name, name)
		}
	}
	return arch.HFTensor{}, tensor.Spec{}, c.from.Mismatch(p.A.Name, "the base has no tensor %q", found[0].Name)
}

// writePEFT plans the folder.
func (c *adapterPlanner) writePEFT(view *factorView, pairs []peftPair) (*Conversion, error) {
	out := c.options.DType
	if out == tensor.NoDType {
		out = c.ownType()
	}
	slices.SortFunc(view.specs, func(a, b tensor.Spec) int { return cmp.Compare(a.Name, b.Name) })
	for _, s := range view.specs {
		step := plan.Step{Read: plan.Whole(0, s), Write: plan.Placement{Tensor: s.Name, DType: out}}
		step.Judge = !step.Copies()
		c.plan.Steps = append(c.plan.Steps, step)
		c.specs = append(c.specs, tensor.Spec{Name: s.Name, DType: out, Shape: s.Shape})
	}
	config, err := c.peftConfig(pairs)
	if err != nil {
		return nil, err
	}
	c.decide("adapter-names", fmt.Sprintf("names, heads and shapes are those of %s", c.options.Base.Name))
	done := &Conversion{Plan: c.plan, View: view, source: c.source, opts: c.options}
	sidecars := []checkpoint.Sidecar{
		{Name: adapterConfigName, Data: append(config.Encode("  "), '\n')},
		{Name: "README.md", Data: done.card(nil), Final: func() []byte { return done.card(done.final) }},
	}
	done.Layout, err = checkpoint.NewLayout(c.options.Output, c.specs, sidecars,
		checkpoint.Options{Weights: adapterWeightsName, ShardSize: noLimit, Metadata: done.Metadata(nil)})
	return done, err
}

// ownType is the one type that all factors have, else F32.
func (c *adapterPlanner) ownType() tensor.DType {
	own := tensor.NoDType
	for _, s := range c.source.Specs() {
		if _, derived := c.source.Derived(s.Name); derived || own != tensor.NoDType && own != s.DType {
			return tensor.F32
		}
		own = s.DType
	}
	return own
}

// peftConfig says which modules there are and gives each its rank and scale.
func (c *adapterPlanner) peftConfig(pairs []peftPair) (*strictjson.Object, error) {
	rank := most(pairs, func(p peftPair) int64 { return p.rank })
	alpha := most(pairs, func(p peftPair) float64 { return p.alpha })
	ranks, alphas := strictjson.NewObject(), strictjson.NewObject()
	for _, p := range pairs {
		if p.rank != rank {
			ranks.Set(p.module, strictjson.NewInt(p.rank))
		}
		if p.alpha != alpha {
			v, err := numberOf(p.alpha)
			if err != nil {
				return nil, err
			}
			alphas.Set(p.module, v)
		}
	}
	stated, err := numberOf(alpha)
	if err != nil {
		return nil, err
	}
	dropout, _ := strictjson.NewFloat(0)
	none := strictjson.NewNull()
	values := map[string]strictjson.Value{
		"alpha_pattern": alphas.Value(), "auto_mapping": none, "base_model_name_or_path": strictjson.NewString(c.options.Base.Name),
		"bias": strictjson.NewString("none"), "fan_in_fan_out": strictjson.NewBool(c.isTransposed(pairs[0].module + ".weight")),
		"inference_mode": strictjson.NewBool(true), "init_lora_weights": strictjson.NewBool(true), "layers_pattern": none,
		"layers_to_transform": none, "lora_alpha": stated, "lora_bias": strictjson.NewBool(false), "lora_dropout": dropout,
		"modules_to_save": none, "peft_type": strictjson.NewString("LORA"), "r": strictjson.NewInt(rank), "rank_pattern": ranks.Value(),
		"revision": none, "target_modules": strictjson.NewStrings(c.targets(pairs)), "task_type": none,
		"use_dora": strictjson.NewBool(false), "use_rslora": strictjson.NewBool(false),
	}
	if !c.family.Has(arch.TextEmbeddings) {
		values["task_type"] = strictjson.NewString("CAUSAL_LM")
	}
	if c.options.Base.Commit != "" {
		values["revision"] = strictjson.NewString(c.options.Base.Commit)
	}
	o := strictjson.NewObject()
	for _, key := range slices.Sorted(maps.Keys(values)) {
		o.Set(key, values[key])
	}
	return o, c.checkConfig(o, pairs)
}

// checkConfig reads the config as PEFT does: what it says of every module must be what
// was meant.
func (c *adapterPlanner) checkConfig(o *strictjson.Object, pairs []peftPair) error {
	config, err := adapter.ParseConfig(o)
	if err != nil {
		return fmt.Errorf("adapter_config.json: %w", err)
	}
	for _, p := range pairs {
		if config.RankOf(p.module) != p.rank || config.ScaleOf(p.module) != p.alpha/float64(p.rank) || !config.Covers(p.module) {
			return c.errorf("no adapter_config.json gives %q its rank and scale beside the others", p.module)
		}
	}
	return nil
}

// most is the value that most pairs have, of several the first.
func most[T comparable](pairs []peftPair, of func(peftPair) T) (best T) {
	count := make(map[T]int)
	for _, p := range pairs {
		count[of(p)]++
	}
	for _, p := range pairs {
		if count[of(p)] > count[best] {
			best = of(p)
		}
	}
	return best
}

// numberOf is a number as PEFT writes it: whole ones without a point.
func numberOf(v float64) (strictjson.Value, error) {
	if v == math.Trunc(v) && math.Abs(v) < 1<<53 {
		return strictjson.NewInt(int64(v)), nil
	}
	return strictjson.NewFloat(v)
}

// targets lists target_modules: the last part of a name where every module of that name
// has a pair, else whole names.
func (c *adapterPlanner) targets(pairs []peftPair) []string {
	has := make(map[string]bool)
	for _, p := range pairs {
		has[p.module] = true
	}
	last := func(module string) string { return module[strings.LastIndexByte(module, '.')+1:] }
	partial := make(map[string]bool)
	for _, s := range c.base.Specs() {
		if module, ok := strings.CutSuffix(s.Name, ".weight"); ok && !has[module] {
			partial[last(module)] = true
		}
	}
	names := make(map[string]bool)
	for module := range has {
		if name := last(module); !partial[name] {
			names[name] = true
		} else {
			names[module] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}
