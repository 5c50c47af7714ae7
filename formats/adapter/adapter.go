// Package adapter reads PEFT adapters into one model of what they hold -
// adapted modules, whole replaced tensors, replaced rows - and finds the
// tensors of a base that they belong to.
//
// The main types are [Adapter], [Config] and [Aligned]. The tensors in the
// file decide which modules are adapted; the config decides how, and must agree
// with them. Whatever has no place is an error that names it: nothing is
// skipped.
package adapter

import (
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/saferead"
)

// Adapter is an opened adapter.
type Adapter struct {
	Source  *checkpoint.Model
	Config  *Config
	Modules []*Module              // adapted modules, by name
	Saved   []*Saved               // whole tensors that replace those of the base
	Shared  map[string]tensor.Spec // tensors of the whole model, such as vera_A
	Ignored []string               // tensors without a use, each with its reason
}

// Module is one adapted module: its parts by name ("lora_A", "lora_B.bias").
type Module struct {
	Name string // path in the trained model, without wrappers
	// Depth counts the wrappers below: several parameters of one module are
	// adapted by nested wrappers, the first registered innermost.
	Depth int
	// Inner says that the module is a part of an adapted module, as out_proj
	// is of an attention.
	Inner bool
	Parts map[string]tensor.Spec
}

// Part returns a part of the module.
func (m *Module) Part(name string) (tensor.Spec, bool) {
	s, ok := m.Parts[name]
	return s, ok
}

// Saved is a tensor that the adapter holds whole.
type Saved struct {
	Name string // path in the trained model, without wrappers: "lm_head.weight"
	Spec tensor.Spec
	// BaseCopy says that it is the weight under an adapted module rather than
	// a module of modules_to_save.
	BaseCopy bool
}

// MismatchError says which tensor of an adapter does not fit, and why. Near are
// the closest names of the base.
type MismatchError struct {
	File, Tensor, Reason string
	Near                 []string
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("%s: tensor %q: %s", saferead.Printable(e.File), clip(e.Tensor), clip(e.Reason))
}

// clip shortens text from a file for a message: names may have any length.
func clip(text string) string {
	const limit = 512
	if len(text) <= limit {
		return text
	}
	return strings.ToValidUTF8(text[:limit], "") + "..."
}

// TargetError says that an entry of target_modules covers nothing that the
// adapter holds.
type TargetError struct{ Target string }

func (e *TargetError) Error() string {
	return fmt.Sprintf("target_modules: %q matches no tensor of the adapter", e.Target)
}

// Hint tells the way out.
func (e *TargetError) Hint() string {
	return "either the file is incomplete, or the entry never matched a module in training; then take it out of adapter_config.json"
}

// Open parses the config and sorts the tensors of an opened adapter, a folder of PEFT
// or a GGUF file.
func Open(m *checkpoint.Model) (*Adapter, error) {
	if m.GGUF() != nil {
		return openGGUF(m)
	}
	if m.Config == nil {
		return nil, &checkpoint.InputError{Path: m.Path, Err: fmt.Errorf("no adapter_config.json: not a PEFT adapter folder")}
	}
	config, err := ParseConfig(m.Config)
	if err != nil {
		return nil, &checkpoint.InputError{Path: m.Path + ": adapter_config.json", Err: err}
	}
	a := &Adapter{Source: m, Config: config, Shared: make(map[string]tensor.Spec)}
	if len(m.Specs()) == 0 {
		return nil, &checkpoint.InputError{Path: m.Path, Err: fmt.Errorf("the adapter holds no tensors")}
	}
	if err := a.sortTensors(); err != nil {
		return nil, err
	}
	return a, a.checkTargets()
}

// mismatch makes the error for one of the adapter's tensors.
func (a *Adapter) mismatch(tensor, format string, args ...any) error {
	file, _ := a.Source.Origin(tensor)
	return &MismatchError{File: a.Source.Path + "/" + file, Tensor: tensor, Reason: fmt.Sprintf(format, args...)}
}

// Mismatch makes the error for a part of one of the adapter's modules.
func (a *Adapter) Mismatch(tensor, format string, args ...any) error {
	return a.mismatch(tensor, format, args...)
}

// sortTensors gives every tensor of the file its place in the model.
func (a *Adapter) sortTensors() error {
	kind, _ := lookupKind(a.Config.Type)
	type id struct {
		name  string
		depth int
	}
	modules := make(map[id]*Module)
	saved := make(map[string]*Saved)
	dumps := make(map[string]string) // second copies in raw dumps, by tensor
	for _, spec := range a.Source.Specs() {
		k := parseKey(spec.Name, kind)
		if n, ok := spec.Shape.NumElements(); ok && n == 0 && a.Config.Type != "ADALORA" {
			return a.mismatch(spec.Name, "it is empty, as sharded training leaves it when it is saved without gathering")
		}
		switch {
		case k.ignore:
			a.Ignored = append(a.Ignored, spec.Name)
		case k.shared:
			if other, ok := a.Shared[k.part]; ok {
				return a.mismatch(spec.Name, "%q is stored for the same part", other.Name)
			}
			a.Shared[k.part] = spec
		case k.part == "" && k.copy:
			if other, ok := dumps[k.module]; ok {
				return a.mismatch(spec.Name, "%q is stored for the same tensor", other)
			}
			dumps[k.module] = spec.Name
		case k.part == "":
			if other, ok := saved[k.module]; ok {
				return a.mismatch(spec.Name, "%q is stored for the same tensor", other.Spec.Name)
			}
			saved[k.module] = &Saved{Name: k.module, Spec: spec, BaseCopy: k.depth > 0}
		default:
			m := modules[id{k.module, k.depth}]
			if m == nil {
				m = &Module{Name: k.module, Depth: k.depth, Inner: k.inner, Parts: make(map[string]tensor.Spec)}
				modules[id{k.module, k.depth}] = m
			}
			if other, ok := m.Parts[k.part]; ok {
				return a.mismatch(spec.Name, "%q is stored for the same part", other.Name)
			}
			m.Parts[k.part] = spec
		}
	}
	// A raw training dump holds a saved module under its wrapper's name; PEFT's
	// own files, which win as they do when PEFT loads them, do not.
	for _, module := range slices.Sorted(maps.Keys(dumps)) {
		name := dumps[module]
		if _, ok := saved[module]; ok {
			a.Ignored = append(a.Ignored, name)
			continue
		}
		spec, _ := a.Source.Lookup(name)
		saved[module] = &Saved{Name: module, Spec: spec}
	}
	for _, m := range modules {
		a.Modules = append(a.Modules, m)
	}
	sort.Slice(a.Modules, func(i, j int) bool {
		x, y := a.Modules[i], a.Modules[j]
		return x.Name < y.Name || x.Name == y.Name && x.Depth > y.Depth
	})
	for _, s := range saved {
		a.Saved = append(a.Saved, s)
	}
	sort.Slice(a.Saved, func(i, j int) bool { return a.Saved[i].Name < a.Saved[j].Name })
	sort.Strings(a.Ignored)
	if len(a.Modules)+len(a.Saved) == 0 {
		return &checkpoint.InputError{Path: a.Source.Path, Err: fmt.Errorf("no tensor of the file belongs to a %s adapter", a.Config.Type)}
	}
	return nil
}

// key is a tensor name of an adapter file taken apart.
type key struct {
	module string // module path, or the tensor's path when there is no part
	part   string
	depth  int  // number of base_layer wrappers
	inner  bool // a wrapper stood before the last component of the module
	copy   bool // under modules_to_save of a raw dump
	ignore bool
	shared bool
}

// wrappers are path components that training puts between a module and its
// tensors; the base knows nothing of them.
var wrappers = map[string]bool{
	"base_layer": true, "token_adapter": true, "modules_to_save": true, "original_module": true,
	"_orig_mod": true, "_fsdp_wrapped_module": true,
}

// parseKey takes a tensor name apart:
//
//	base_model.model.<module>.<part>[.<adapter name>][.weight|.bias]
//
// with wrappers anywhere in the module path. Without a part the tensor is a
// whole one.
func parseKey(name string, kind *Kind) key {
	rest, ok := strings.CutPrefix(name, "base_model.model.")
	if !ok {
		if rest, ok = strings.CutPrefix(name, "base_model."); ok {
			first, _, _ := strings.Cut(rest, ".")
			for _, s := range kind.Shared {
				if first == s {
					return key{part: s, shared: true}
				}
			}
		} else {
			rest = name
		}
	}
	var k key
	parts := strings.Split(rest, ".")
	at := len(parts)
	for i := len(parts) - 1; i >= 0; i-- {
		if isPart(parts[i], kind) {
			at = i
			break
		}
		for _, ig := range kind.Ignore {
			k.ignore = k.ignore || parts[i] == ig
		}
	}
	if at < len(parts) {
		k.part = parts[at]
		switch tail := parts[at+1:]; {
		case len(tail) > 0 && tail[len(tail)-1] == "bias":
			k.part += ".bias"
		case len(tail) > 2 || len(tail) == 2 && tail[1] != "weight":
			// More than an adapter's name and "weight": not this part at all.
			k.part, at = "", len(parts)
		}
	}
	var path []string
	pending := 0 // wrappers since the last component of the module
	for i, p := range parts[:at] {
		switch p {
		case "original_module":
			// The untrained original beside a saved or token-adapted module.
			k.ignore = true
		case "modules_to_save":
			k.copy = true
			if k.part == "" && len(parts)-i >= 3 {
				// modules_to_save.<adapter name>.weight, or .dense.weight of
				// a module that has others below it
				k.module = strings.Join(append(path, parts[i+2:]...), ".")
				return k
			}
		}
		if wrappers[p] {
			if p == "base_layer" {
				pending++
			}
			continue
		}
		if pending > 0 && k.part != "" {
			k.inner = true
		}
		k.depth += pending
		pending = 0
		path = append(path, p)
	}
	if k.part != "" {
		if k.inner {
			k.depth = 0
		}
		k.depth += pending
	}
	k.module = strings.Join(path, ".")
	return k
}

func isPart(name string, kind *Kind) bool {
	for _, p := range kind.Parts {
		if p == name {
			return true
		}
	}
	return name == tokensPart
}

// tokensPart holds rows of an embedding; adapters of every type may have it.
const tokensPart = "trainable_tokens_delta"

// checkTargets compares the config's targets with the modules in the file: an
// entry that covers no adapted module means that something is missing.
func (a *Adapter) checkTargets() error {
	c := a.Config
	config := a.Source.Path + "/adapter_config.json"
	covers := func(match func(module string) bool) bool {
		for _, m := range a.Modules {
			if match(m.Name) {
				return true
			}
		}
		return false
	}
	for _, name := range c.Targets.Names {
		if !covers(func(m string) bool { return MatchName(name, m) || a.coveredExperts(name, m) }) {
			return &checkpoint.InputError{Path: config, Err: &TargetError{name}}
		}
	}
	if c.Targets.re != nil && !covers(c.Targets.Match) {
		return &checkpoint.InputError{Path: config, Err: &TargetError{c.Targets.Expr}}
	}
	return nil
}

// coveredExperts reports whether a target that was named by the modules of
// single experts (w1, gate_proj) is covered by the fused parameters that newer
// versions keep them in.
func (a *Adapter) coveredExperts(target, module string) bool {
	switch target[strings.LastIndex(target, ".")+1:] {
	case "w1", "w2", "w3", "gate_proj", "up_proj", "down_proj":
		return module == "experts" || strings.HasSuffix(module, ".experts")
	}
	return false
}

// Covers reports whether the config's rule for choosing modules includes a
// module, following peft tuners/tuners_utils.py, check_target_module_exists.
func (c *Config) Covers(module string) bool {
	if c.Exclude.Match(module) {
		return false
	}
	for _, saved := range c.ModulesToSave {
		if MatchName(saved, module) || strings.Contains("."+module+".", "."+saved+".") {
			return false
		}
	}
	if !c.Targets.Match(module) {
		return false
	}
	if c.LayersToUse == nil || c.Targets.Expr != "" {
		return true
	}
	index, ok := layerIndex(module, c.LayersPattern)
	if !ok {
		return false
	}
	return slices.Contains(c.LayersToUse, index)
}

// Unsloth returns the mark that Unsloth leaves in the config of the adapters
// it trains, empty without one. Unsloth packs the factors of stacked experts
// in another order than PEFT.
func (a *Adapter) Unsloth() string {
	mapping, ok, err := a.Config.raw.OptObject("auto_mapping")
	if err != nil || !ok {
		return ""
	}
	if fixed, ok, err := mapping.OptBool("unsloth_fixed"); err == nil && ok && fixed {
		return "auto_mapping says unsloth_fixed"
	}
	return ""
}
