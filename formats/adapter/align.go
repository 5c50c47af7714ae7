package adapter

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/formats/tensor"
)

// Base is what alignment needs to know of a base checkpoint.
type Base interface {
	Specs() []tensor.Spec
	Lookup(name string) (tensor.Spec, bool)
}

// Place says where rows of an adapted parameter lie in the base: row From+i of
// the parameter is row At+i of the tensor.
type Place struct {
	Tensor         string
	At, From, Rows int64
}

// Target is an adapted module with its place in the base.
type Target struct {
	*Module
	// Param is the adapted parameter: "weight", "in_proj_weight",
	// "gate_up_proj".
	Param  string
	Shape  tensor.Shape // of the parameter as the adapter saw it
	Places []Place
	Bias   *Place // of the module's bias, nil without one
	// PatternName is what rank_pattern and alpha_pattern are matched against.
	PatternName string
}

// Aligned is an adapter with the tensors of a base it belongs to.
type Aligned struct {
	*Adapter
	Targets []*Target
	// Renamed maps a prefix of the adapter's names to that of the base, when
	// the adapter was trained on a class with or without a head.
	From, To string
	names    map[string]string // trained tensor name -> base name, for saved tensors
}

// Align finds the tensors of a base for every module of the adapter.
func Align(a *Adapter, base Base, modelType string) (*Aligned, error) {
	al := &aligner{adapter: a, base: base, modelType: modelType}
	al.choosePrefix()
	out := &Aligned{Adapter: a, From: al.from, To: al.to, names: make(map[string]string)}
	for i := 0; i < len(a.Modules); {
		n := i + 1
		for n < len(a.Modules) && a.Modules[n].Name == a.Modules[i].Name {
			n++
		}
		targets, err := al.module(a.Modules[i:n])
		if err != nil {
			return nil, err
		}
		out.Targets = append(out.Targets, targets...)
		i = n
	}
	for _, s := range a.Saved {
		name, ok := al.tensor(s.Name)
		if !ok {
			// A head that the base lacks because it is tied has no name there.
			name = al.rename(s.Name)
		}
		out.names[s.Name] = name
	}
	return out, al.checkComplete(out)
}

// BaseName returns the name that a saved tensor has in the base.
func (a *Aligned) BaseName(saved string) string { return a.names[saved] }

type aligner struct {
	adapter   *Adapter
	base      Base
	modelType string
	from, to  string
}

// rename applies the prefix rule to a trained name.
func (al *aligner) rename(name string) string {
	if rest, ok := strings.CutPrefix(name, al.from); ok {
		return al.to + rest
	}
	return name
}

// tensor finds the base tensor of a trained tensor name.
func (al *aligner) tensor(name string) (string, bool) {
	for _, candidate := range []string{al.rename(name), name} {
		if _, ok := al.base.Lookup(candidate); ok {
			return candidate, true
		}
		for _, old := range arch.OldNames(candidate) {
			if _, ok := al.base.Lookup(old); ok {
				return old, true
			}
		}
	}
	return "", false
}

// choosePrefix finds how the names of the adapter's model differ from those of
// the base. The same layers often lie below another prefix ("model.",
// "transformer."): the rule that places most modules wins, and no rule if it
// does as well.
func (al *aligner) choosePrefix() {
	best := al.placed()
	for _, rule := range al.prefixRules() {
		if best == len(al.adapter.Modules)+len(al.adapter.Saved) {
			return
		}
		from, to := al.from, al.to
		al.from, al.to = rule[0], rule[1]
		if n := al.placed(); n > best {
			best = n
			continue
		}
		al.from, al.to = from, to
	}
}

// placed counts the modules and saved tensors that the present rule finds.
func (al *aligner) placed() int {
	n := 0
	for _, m := range al.adapter.Modules {
		if len(al.candidates(m)) > 0 {
			n++
		}
	}
	for _, s := range al.adapter.Saved {
		if _, ok := al.tensor(s.Name); ok {
			n++
		}
	}
	return n
}

// prefixRules lists replacements of a name's beginning that would place the
// first module or saved tensor somewhere in the base: those that share its
// longest ending.
func (al *aligner) prefixRules() [][2]string {
	var paths []string
	for _, m := range al.adapter.Modules {
		paths = append(paths, m.Name+".weight")
	}
	for _, s := range al.adapter.Saved {
		paths = append(paths, s.Name)
	}
	seen := make(map[[2]string]bool)
	var rules [][2]string
	// A few are enough: they are meant to be alike.
	step := max(len(paths)/4, 1)
	for i := 0; i < len(paths); i += step {
		longest := 0
		var found [][2]string
		for _, spec := range al.base.Specs() {
			n := commonEnding(paths[i], spec.Name)
			if n < 2 || n < longest {
				continue
			}
			if n > longest {
				longest, found = n, nil
			}
			found = append(found, [2]string{dropEnding(paths[i], n), dropEnding(spec.Name, n)})
		}
		for _, r := range found {
			if !seen[r] && r[0] != r[1] {
				seen[r] = true
				rules = append(rules, r)
			}
		}
	}
	sort.SliceStable(rules, func(i, j int) bool {
		return len(rules[i][0])+len(rules[i][1]) < len(rules[j][0])+len(rules[j][1])
	})
	return rules
}

// commonEnding counts the components that two names share at their ends.
func commonEnding(a, b string) int {
	x, y := strings.Split(a, "."), strings.Split(b, ".")
	n := 0
	for n < len(x) && n < len(y) && x[len(x)-1-n] == y[len(y)-1-n] {
		n++
	}
	return n
}

// dropEnding removes the last n components; what remains keeps its last dot.
func dropEnding(name string, n int) string {
	parts := strings.Split(name, ".")
	if n >= len(parts) {
		return ""
	}
	return strings.Join(parts[:len(parts)-n], ".") + "."
}

// module places all wrappers of one module.
func (al *aligner) module(wrappers []*Module) ([]*Target, error) {
	m := wrappers[0]
	options := al.candidates(m)
	if len(options) == 0 {
		return nil, al.noTarget(m)
	}
	if len(wrappers) == 1 && m.Depth == 0 && options[0].Param != "" && len(options) == 1 {
		return []*Target{al.finish(m, options[0])}, nil
	}
	return al.nested(wrappers, options)
}

// option is one parameter of a module that could be the adapted one.
type option struct {
	Param  string
	Shape  tensor.Shape
	Places []Place
}

// candidates lists the parameters of a module that the base has: its weight,
// an attention's in_proj_weight, or the stacked parameters of experts.
func (al *aligner) candidates(m *Module) []option {
	if name, ok := al.tensor(m.Name + ".weight"); ok {
		return []option{al.whole("weight", name)}
	}
	if name, ok := al.tensor(m.Name + ".in_proj_weight"); ok {
		return []option{al.whole("in_proj_weight", name)}
	}
	if o, ok := al.oneExpert(m.Name); ok {
		return []option{o}
	}
	var options []option
	for _, p := range al.parameters(m.Name) {
		if !al.targeted(m.Name + "." + p.Param) {
			continue
		}
		options = append(options, p)
	}
	return options
}

func (al *aligner) whole(param, name string) option {
	spec, _ := al.base.Lookup(name)
	rows := spec.Rows()
	if len(spec.Shape) == 3 && param != "weight" {
		rows *= spec.Shape[1] // stacked matrices, not the kernel of a convolution
	}
	return option{param, spec.Shape, []Place{{Tensor: name, Rows: rows}}}
}

// targeted reports whether target_parameters covers a parameter; without the
// list every one may be.
func (al *aligner) targeted(path string) bool {
	list := al.adapter.Config.TargetParameters
	if len(list) == 0 {
		return true
	}
	return slices.ContainsFunc(list, func(t string) bool { return MatchName(t, path) })
}

// parameters lists the 2-D and 3-D parameters directly below a module, in the
// order of their registration: those in the base as they are, and those that
// the base keeps as one module per expert.
func (al *aligner) parameters(module string) []option {
	var options []option
	for _, name := range arch.RegistrationOrder {
		if t, ok := al.tensor(module + "." + name); ok {
			if spec, _ := al.base.Lookup(t); len(spec.Shape) >= 2 {
				options = append(options, al.whole(name, t))
			}
			continue
		}
		if o, ok := al.stacked(module, name); ok {
			options = append(options, o)
		}
	}
	for _, prefix := range []string{al.rename(module), module} {
		for _, spec := range al.base.Specs() {
			rest, ok := strings.CutPrefix(spec.Name, prefix+".")
			if ok && !strings.Contains(rest, ".") && len(spec.Shape) >= 2 && !slices.Contains(arch.RegistrationOrder, rest) {
				options = append(options, al.whole(rest, spec.Name))
			}
		}
		if len(options) > 0 {
			return options
		}
	}
	return options
}

// stacked puts a stacked parameter together from the experts' own modules.
func (al *aligner) stacked(module, param string) (option, bool) {
	for _, names := range arch.Experts {
		parts := []string{names.Down}
		if param == arch.GateUp {
			parts = []string{names.Gate, names.Up}
		} else if param != arch.Down {
			continue
		}
		o := option{Param: param}
		var row, experts, cols int64
		for ; ; experts++ {
			complete := true
			for _, part := range parts {
				t, ok := al.tensor(fmt.Sprintf("%s.%d.%s.weight", module, experts, part))
				if !ok {
					complete = false
					break
				}
				spec, _ := al.base.Lookup(t)
				if len(spec.Shape) != 2 {
					return option{}, false
				}
				o.Places = append(o.Places, Place{Tensor: t, From: row, Rows: spec.Shape[0]})
				row += spec.Shape[0]
				cols = spec.Shape[1]
			}
			if !complete {
				break
			}
		}
		if experts > 0 && row%experts == 0 {
			o.Shape = tensor.Shape{experts, row / experts, cols}
			return o, true
		}
	}
	return option{}, false
}

// oneExpert finds the rows of a stacked parameter that were one expert's own
// module: "experts.3.w1", "experts.3.gate_proj".
func (al *aligner) oneExpert(module string) (option, bool) {
	parts := strings.Split(module, ".")
	if len(parts) < 3 || !isNumber(parts[len(parts)-2]) {
		return option{}, false
	}
	var expert int64
	if _, err := fmt.Sscan(parts[len(parts)-2], &expert); err != nil {
		return option{}, false
	}
	parent := strings.Join(parts[:len(parts)-2], ".")
	for _, names := range arch.Experts {
		param, half := "", int64(0)
		switch parts[len(parts)-1] {
		case names.Gate:
			param = arch.GateUp
		case names.Up:
			param, half = arch.GateUp, 1
		case names.Down:
			param = arch.Down
		default:
			continue
		}
		t, ok := al.tensor(parent + "." + param)
		if !ok {
			continue
		}
		spec, _ := al.base.Lookup(t)
		if len(spec.Shape) != 3 || expert >= spec.Shape[0] || arch.StoresExpertsTransposed(al.modelType) {
			return option{}, false
		}
		perExpert, rows := spec.Shape[1], spec.Shape[1]
		if param == arch.GateUp {
			rows /= 2
		}
		return option{
			Param: "weight", Shape: tensor.Shape{rows, spec.Shape[2]},
			Places: []Place{{Tensor: t, At: expert*perExpert + half*rows, Rows: rows}},
		}, true
	}
	return option{}, false
}

// nested gives each wrapper its parameter. PEFT wraps the parameters of a
// module in the order of their registration, the first innermost; the file
// does not say which is which, so the shapes must agree.
func (al *aligner) nested(wrappers []*Module, options []option) ([]*Target, error) {
	var fits [][]option
	choose(options, len(wrappers), func(chosen []option) {
		for i, m := range wrappers { // deepest first: registered first
			if !al.fits(m, chosen[i]) {
				return
			}
		}
		fits = append(fits, slices.Clone(chosen))
	})
	first := wrappers[0]
	any := anyTensor(first)
	switch len(fits) {
	case 0:
		var shapes []string
		for _, o := range options {
			shapes = append(shapes, fmt.Sprintf("%s %v", o.Param, o.Shape))
		}
		return nil, al.adapter.mismatch(any, "its shape %v fits no parameter of the module at rank %d (%s)",
			first.Parts[partOf(first, any)].Shape, al.adapter.Config.RankOf(first.Name), strings.Join(shapes, ", "))
	case 1:
	default:
		return nil, al.adapter.mismatch(any, "several parameters of the module have its shape, and target_parameters does not say which is meant")
	}
	var targets []*Target
	for i, m := range wrappers {
		targets = append(targets, al.finish(m, fits[0][i]))
	}
	return targets, nil
}

// choose calls f with every selection of n options in their order.
func choose(options []option, n int, f func([]option)) {
	var rec func(from int, chosen []option)
	rec = func(from int, chosen []option) {
		if len(chosen) == n {
			f(chosen)
			return
		}
		for i := from; i < len(options); i++ {
			rec(i+1, append(chosen, options[i]))
		}
	}
	rec(0, nil)
}

// fits reports whether the factors of a wrapper have the shapes that a
// parameter asks for: A (experts·r, in) and B (out, experts·r).
func (al *aligner) fits(m *Module, o option) bool {
	a, okA := m.Part("lora_A")
	b, okB := m.Part("lora_B")
	if !okA || !okB || len(a.Shape) != 2 || len(b.Shape) != 2 {
		return false
	}
	experts, x, y := int64(1), o.Shape[0], o.Shape[len(o.Shape)-1]
	if len(o.Shape) == 3 {
		experts, x = o.Shape[0], o.Shape[1]
	}
	rank := al.adapter.Config.RankOf(m.Name + "." + o.Param)
	if a.Shape[0] != experts*rank || b.Shape[1] != experts*rank {
		return false
	}
	in, out := a.Shape[1], b.Shape[0]
	return in == y && out == x || len(o.Shape) == 3 && in == x && out == y
}

// finish makes the target of a wrapper and its parameter.
func (al *aligner) finish(m *Module, o option) *Target {
	t := &Target{Module: m, Param: o.Param, Shape: o.Shape, Places: o.Places, PatternName: m.Name}
	path := m.Name + "." + o.Param
	if o.Param != "weight" && o.Param != "in_proj_weight" || len(al.adapter.Config.TargetParameters) > 0 && al.targeted(path) {
		t.PatternName = path
	}
	if name, ok := al.tensor(m.Name + ".bias"); ok {
		spec, _ := al.base.Lookup(name)
		t.Bias = &Place{Tensor: name, Rows: spec.NumElements()}
	}
	return t
}

// noTarget is the error for a module that the base does not have.
func (al *aligner) noTarget(m *Module) error {
	name := anyTensor(m)
	err := al.adapter.mismatch(name, "the base has no tensor %q", al.rename(m.Name)+".weight").(*MismatchError)
	err.Near = nearest(al.rename(m.Name)+".weight", al.base.Specs())
	return err
}

// anyTensor returns the first tensor of a module, by part name.
func anyTensor(m *Module) string {
	first := ""
	for _, s := range m.Parts {
		if first == "" || s.Name < first {
			first = s.Name
		}
	}
	return first
}

func partOf(m *Module, name string) string {
	for part, s := range m.Parts {
		if s.Name == name {
			return part
		}
	}
	return ""
}

// checkComplete looks for modules that the config's targets cover and the file
// leaves out: a layer that would silently stay as it was. Only modules of the
// same place in other layers count, as a checkpoint may hold towers that the
// training never saw.
func (al *aligner) checkComplete(a *Aligned) error {
	c := a.Config
	if !c.Targets.Known() || c.Targets.Empty() || len(c.LayerReplication) > 0 {
		return nil
	}
	adapted := make(map[string]bool)
	families := make(map[string]bool)
	for _, t := range a.Targets {
		for _, p := range t.Places {
			adapted[p.Tensor] = true
			if p.Tensor == al.rename(t.Name)+"."+t.Param {
				families[family(p.Tensor)] = true
			}
		}
	}
	for _, s := range a.Saved {
		adapted[a.BaseName(s.Name)] = true
	}
	for _, spec := range al.base.Specs() {
		module, ok := strings.CutSuffix(spec.Name, ".weight")
		if !ok || adapted[spec.Name] || !families[family(spec.Name)] {
			continue
		}
		if rest, ok := strings.CutPrefix(module, al.to); ok {
			module = al.from + rest
		}
		if c.Covers(module) {
			return &MismatchError{
				File: a.Source.Path + "/adapter_config.json", Tensor: spec.Name,
				Reason: "target_modules covers it, but the adapter holds no tensors for it",
			}
		}
	}
	return nil
}

// family is a tensor name with its numbers left out.
func family(name string) string {
	parts := strings.Split(name, ".")
	for i, p := range parts {
		if isNumber(p) {
			parts[i] = "#"
		}
	}
	return strings.Join(parts, ".")
}

// nearest returns up to three tensor names closest to a name, for a hint.
func nearest(name string, specs []tensor.Spec) []string {
	type scored struct {
		name     string
		distance int
	}
	var all []scored
	for _, s := range specs {
		if d := editDistance(name, s.Name); d <= len(name)/2 {
			all = append(all, scored{s.Name, d})
		}
	}
	sort.Slice(all, func(i, j int) bool {
		return all[i].distance < all[j].distance || all[i].distance == all[j].distance && all[i].name < all[j].name
	})
	var names []string
	for _, s := range all[:min(len(all), 3)] {
		names = append(names, s.name)
	}
	return names
}

// editDistance counts the insertions, deletions and replacements between two
// names.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
