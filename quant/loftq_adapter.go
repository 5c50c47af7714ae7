package quant

import (
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/strictjson"
	"github.com/loratool/loratool/plan"
)

// pairs are the factors as a checkpoint: they are read from the store.
type pairs struct {
	find   func(*pairing) (*finding, error)
	suffix string // of the name of a factor A
	specs  []tensor.Spec
	of     map[string]*pairing
}

// The names of the factors of a module in an adapter file.
const (
	peftPrefix = "base_model.model."
	suffixA    = ".lora_A.weight"
	suffixB    = ".lora_B.weight"
)

// newPairs takes what stands before and behind the names of modules, behind A and B.
func newPairs(all []*pairing, prefix, suffixA, suffixB string, find func(*pairing) (*finding, error)) *pairs {
	p := &pairs{find: find, suffix: suffixA, of: make(map[string]*pairing)}
	for _, pair := range all {
		out, in := pair.target.shape[0], pair.target.shape[1]
		for suffix, shape := range map[string]tensor.Shape{suffixA: {pair.rank, in}, suffixB: {out, pair.rank}} {
			name := prefix + pair.name + suffix
			p.of[name] = pair
			p.specs = append(p.specs, tensor.Spec{Name: name, DType: tensor.F32, Shape: shape})
		}
	}
	slices.SortFunc(p.specs, func(a, b tensor.Spec) int {
		if i, j := p.of[a.Name].index, p.of[b.Name].index; i != j {
			return i - j
		}
		return strings.Compare(a.Name, b.Name)
	})
	return p
}

func (p *pairs) Specs() []tensor.Spec { return p.specs }

func (p *pairs) Open(name string) (io.ReaderAt, error) {
	pair, ok := p.of[name]
	if !ok {
		return nil, fmt.Errorf("there is no factor %q", name)
	}
	f, err := p.find(pair)
	if err != nil {
		return nil, err
	}
	if strings.HasSuffix(name, p.suffix) {
		return bytesReader(encodeFloats(f.pair.A.Data)), nil
	}
	return bytesReader(encodeFloats(f.pair.B.Data)), nil
}

// planAdapter makes the plan of the adapter and places it.
func (r *Repair) planAdapter() error {
	all := newPairs(r.pairs, peftPrefix, suffixA, suffixB, func(p *pairing) (*finding, error) { return r.store.find(p) })
	r.Adapter, r.AdapterPlan = all, all.plan()
	r.config = r.adapterConfig()
	if err := r.checkConfig(); err != nil {
		return err
	}
	return r.layoutAdapter(nil)
}

// plan copies every factor.
func (p *pairs) plan() *plan.Plan {
	all := &plan.Plan{Unhashed: true}
	for _, s := range p.specs {
		all.Steps = append(all.Steps, plan.Step{Read: plan.Whole(0, s), Write: plan.Placement{Tensor: s.Name, DType: s.DType}})
	}
	return all
}

// layoutAdapter places the adapter. Its card has the figures of what was found, if
// there are any yet.
func (r *Repair) layoutAdapter(figures []Repaired) (err error) {
	sidecars := []checkpoint.Sidecar{
		{Name: "adapter_config.json", Data: append(r.config.Encode("  "), '\n')},
		{Name: "README.md", Data: r.adapterCard(figures, nil), Final: func() []byte { return r.adapterCard(figures, r.final) }},
	}
	r.AdapterLayout, err = checkpoint.NewLayout(r.opts.LoftQ.Output, r.Adapter.Specs(), sidecars, checkpoint.Options{
		ShardSize: math.MaxInt64, Weights: "adapter_model.safetensors", Metadata: r.AdapterMetadata(nil),
	})
	return err
}

// AdapterMetadata is what goes into the header of the adapter's weights. Hashes are
// those of the inputs, by path; nil leaves placeholders of the same length.
func (r *Repair) AdapterMetadata(hashes map[string]string) map[string]string {
	if r.opts.NoProvenance {
		return nil
	}
	return map[string]string{provenanceKey: string(r.provenance(hashes).Encode(""))}
}

// SetHashes completes the cards and returns the metadata of the two outputs.
func (r *Repair) SetHashes(hashes map[string]string) (quantized, adapter map[string]string) {
	r.final, r.Quantization.final = hashes, hashes
	return r.Metadata(hashes), r.AdapterMetadata(hashes)
}

// adapterConfig has the members that PEFT writes. init_lora_weights is true: with
// "loftq" PEFT would quantize the base once more when it makes the layers.
func (r *Repair) adapterConfig() *strictjson.Object {
	l := r.opts.LoftQ
	values := map[string]strictjson.Value{
		"alpha_pattern": strictjson.NewObject().Value(), "auto_mapping": strictjson.NewNull(),
		"base_model_name_or_path": strictjson.NewString(r.BaseName()),
		"bias":                    strictjson.NewString("none"), "exclude_modules": strictjson.NewNull(),
		"fan_in_fan_out": strictjson.NewBool(r.allConv1D()), "inference_mode": strictjson.NewBool(true),
		"init_lora_weights": strictjson.NewBool(true), "layers_pattern": strictjson.NewNull(),
		"layers_to_transform": strictjson.NewNull(), "loftq_config": strictjson.NewObject().Value(),
		"lora_alpha": floatValue(l.alpha()), "lora_bias": strictjson.NewBool(false), "lora_dropout": strictjson.NewInt(0),
		"modules_to_save": strictjson.NewNull(), "peft_type": strictjson.NewString("LORA"),
		"r": strictjson.NewInt(int64(l.Rank)), "rank_pattern": strictjson.NewObject().Value(),
		"revision": strictjson.NewNull(), "target_modules": strictjson.NewStrings(r.targetModules()),
		"target_parameters": strictjson.NewNull(), "task_type": strictjson.NewNull(),
		"trainable_token_indices": strictjson.NewNull(), "use_dora": strictjson.NewBool(false),
		"use_rslora": strictjson.NewBool(l.RSLoRA),
	}
	if a := r.planner.config.Architecture(); strings.HasSuffix(a, "ForCausalLM") || strings.HasSuffix(a, "LMHeadModel") {
		values["task_type"] = strictjson.NewString("CAUSAL_LM")
	}
	o := strictjson.NewObject()
	for _, key := range slices.Sorted(maps.Keys(values)) {
		o.Set(key, values[key])
	}
	return o
}

// allConv1D is fan_in_fan_out: whether the adapted layers are Conv1D still when the
// adapter is loaded. What bitsandbytes has codes for is a linear layer by then.
func (r *Repair) allConv1D() bool {
	return r.opts.plainNumbers() && !slices.ContainsFunc(r.pairs, func(p *pairing) bool { return !p.target.transposed })
}

// modules returns the modules of the model, by their names in memory, and those that
// they are in.
func (r *Repair) modules() map[string]bool {
	prefix := ""
	if p := r.pairs[0]; p.name != p.target.module {
		prefix = strings.TrimSuffix(p.name, p.target.module)
	}
	all := make(map[string]bool)
	for _, s := range r.base.Specs() {
		for name := prefix + s.Name; ; {
			i := strings.LastIndexByte(name, '.')
			if i < 0 {
				break
			}
			name = name[:i]
			all[name] = true
		}
	}
	return all
}

// targetModules lists target_modules: the last part of a name where every module that
// ends so has a pair, else the whole name.
func (r *Repair) targetModules() []string {
	last := func(name string) string { return name[strings.LastIndexByte(name, '.')+1:] }
	paired, spoiled := make(map[string]bool), make(map[string]bool)
	for _, p := range r.pairs {
		paired[p.name] = true
	}
	for module := range r.modules() {
		if !paired[module] {
			spoiled[last(module)] = true
		}
	}
	var all []string
	for _, p := range r.pairs {
		name := last(p.name)
		if spoiled[name] {
			name = p.name
		}
		if !slices.Contains(all, name) {
			all = append(all, name)
		}
	}
	return all
}

// decidePairs records what the pairs turned out to be: decisions of the adapter's plan.
func decidePairs(to *plan.Plan, figures []Repaired) {
	var none, part []string
	for _, f := range figures {
		switch {
		case f.Kept == 0:
			none = append(none, f.Module)
		case f.Unused > 0:
			part = append(part, f.Module)
		}
	}
	to.Decisions = nil
	decide := func(code, message string, modules []string) {
		if len(modules) > 0 {
			to.Decisions = append(to.Decisions, plan.Decision{Code: code, Message: message, Tensors: modules})
		}
	}
	decide("pair-of-zero", "no pair makes them better than plain quantization: A has PEFT's random start and B is 0", none)
	decide("pair-unused", "less is left of them than the rank could hold: the other rows of A have PEFT's random start", part)
}
