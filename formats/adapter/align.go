package adapter

import (
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/formats/checkpoint"
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

// Family is what a base's config says of it: the model type, and how many
// layers training sees, 0 if unknown. Checkpoints may hold more, such as those
// for predicting several tokens at once.
type Family struct {
	ModelType string
	Layers    int64
}

// Align finds the tensors of a base for every module of the adapter.
func Align(a *Adapter, base Base, family Family) (*Aligned, error) {
	if a.IsGGUF() {
		return alignGGUF(a, base)
	}
	al := &aligner{adapter: a, base: base, family: family, below: make(map[string][]tensor.Spec)}
	for _, spec := range base.Specs() {
		parent := spec.Name[:max(strings.LastIndexByte(spec.Name, '.'), 0)]
		al.below[parent] = append(al.below[parent], spec)
	}
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
	adapter  *Adapter
	base     Base
	family   Family
	below    map[string][]tensor.Spec // the tensors of the base by the module they belong to
	from, to string
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
			if !seen[r] && r[0] != r[1] && sameNumbers(r[0], r[1]) {
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

// sameNumbers reports whether two prefixes name the same layer, if they name
// one: "model.layers.4." in place of "model.layers.0." would put the change of
// one layer onto another. A number in front counts the parts of a pipeline.
func sameNumbers(a, b string) bool {
	numbers := func(prefix string) (all []string) {
		for i, p := range strings.Split(prefix, ".") {
			if i > 0 && isNumber(p) {
				all = append(all, p)
			}
		}
		return all
	}
	return slices.Equal(numbers(a), numbers(b))
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
	if al.adapter.Config.Type != "LORA" {
		return nil // no other type adapts bare parameters
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
		for _, spec := range al.below[prefix] {
			rest := strings.TrimPrefix(spec.Name, prefix+".")
			if len(spec.Shape) >= 2 && !slices.Contains(arch.RegistrationOrder, rest) {
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
		var row, experts int64
		var one tensor.Shape // of every expert's module
		for ; ; experts++ {
			complete := true
			for _, part := range parts {
				t, ok := al.tensor(fmt.Sprintf("%s.%d.%s.weight", module, experts, part))
				if !ok {
					complete = false
					break
				}
				spec, _ := al.base.Lookup(t)
				if one == nil {
					one = spec.Shape
				}
				if len(spec.Shape) != 2 || !spec.Shape.Equal(one) {
					return option{}, false
				}
				o.Places = append(o.Places, Place{Tensor: t, From: row, Rows: spec.Shape[0]})
				row += spec.Shape[0]
			}
			if !complete {
				break
			}
		}
		if experts > 0 {
			o.Shape = tensor.Shape{experts, row / experts, one[1]}
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
	expert, err := strconv.ParseInt(parts[len(parts)-2], 10, 64)
	if err != nil {
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
		if len(spec.Shape) != 3 || expert >= spec.Shape[0] || arch.StoresExpertsTransposed(al.family.ModelType) {
			return option{}, false
		}
		perExpert, rows := spec.Shape[1], spec.Shape[1]
		if param == arch.GateUp {
			if rows /= 2; rows*2 != perExpert {
				return option{}, false
			}
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
	first := wrappers[0]
	any := anyTensor(first)
	// Deepest first, as registered first. If the choice that takes every
	// parameter as early as possible is also the one that takes it as late as
	// possible, there is no other.
	earliest, ok := al.assign(wrappers, options)
	if !ok {
		var shapes []string
		for _, o := range options {
			shapes = append(shapes, fmt.Sprintf("%s %v", o.Param, o.Shape))
		}
		return nil, al.adapter.mismatch(any, "its shape %v fits no parameter of the module at rank %d (%s)",
			first.Parts[partOf(first, any)].Shape, al.adapter.Config.RankOf(first.Name), strings.Join(shapes, ", "))
	}
	if !slices.Equal(earliest, al.assignLate(wrappers, options)) || al.swappable(wrappers, options, earliest) {
		return nil, al.adapter.mismatch(any, "several parameters of the module have its shape, and target_parameters does not say which is meant")
	}
	var targets []*Target
	for i, m := range wrappers {
		targets = append(targets, al.finish(m, options[earliest[i]]))
	}
	return targets, nil
}

// assign gives each wrapper the first option behind that of the wrapper before
// it that fits.
func (al *aligner) assign(wrappers []*Module, options []option) (chosen []int, ok bool) {
	next := 0
	for _, m := range wrappers {
		for next < len(options) && !al.fits(m, options[next]) {
			next++
		}
		if next == len(options) {
			return nil, false
		}
		chosen = append(chosen, next)
		next++
	}
	return chosen, true
}

// assignLate gives each wrapper the last option that leaves one for each of
// the wrappers after it. There is a choice, as assign has found one.
func (al *aligner) assignLate(wrappers []*Module, options []option) []int {
	chosen := make([]int, len(wrappers))
	last := len(options) - 1
	for i := len(wrappers) - 1; i >= 0; i-- {
		for !al.fits(wrappers[i], options[last]) {
			last--
		}
		chosen[i] = last
		last--
	}
	return chosen
}

// swappable reports whether two wrappers could stand for each other's
// parameter, while the order in which the module registers the two is not
// known.
func (al *aligner) swappable(wrappers []*Module, options []option, chosen []int) bool {
	for i := range chosen {
		for j := range i {
			a, b := options[chosen[j]], options[chosen[i]]
			known := slices.Contains(arch.RegistrationOrder, a.Param) && slices.Contains(arch.RegistrationOrder, b.Param)
			if !known && al.fits(wrappers[i], a) && al.fits(wrappers[j], b) {
				return true
			}
		}
	}
	return false
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
	if err := al.checkSaved(a); err != nil {
		return err
	}
	if err := al.checkTokens(); err != nil {
		return err
	}
	if err := al.checkParameters(a); err != nil {
		return err
	}
	c := a.Config
	if !c.Targets.Known() || c.Targets.Empty() || !c.Exclude.Known() || len(c.LayerReplication) > 0 {
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
		if c.Covers(al.trained(module)) && !al.beyond(module) {
			return al.incomplete(spec.Name, "target_modules covers it")
		}
	}
	return nil
}

// trained undoes the prefix rule.
func (al *aligner) trained(name string) string {
	if rest, ok := strings.CutPrefix(name, al.to); ok {
		return al.from + rest
	}
	return name
}

// beyond reports whether a module belongs to a layer that the config does not
// count: training has not seen it.
func (al *aligner) beyond(module string) bool {
	index, ok := layerIndex("."+module+".", nil)
	return ok && al.family.Layers > 0 && index >= al.family.Layers
}

// incomplete is the error for a tensor of the base that the config asks for.
func (al *aligner) incomplete(tensor, why string) error {
	return &MismatchError{
		File: al.adapter.Source.Path + "/adapter_config.json", Tensor: tensor,
		Reason: why + ", but the adapter holds no tensors for it",
	}
}

// checkSaved looks for modules of modules_to_save that the base has and the
// file leaves out. A name that the base has nothing for says nothing: PEFT adds
// "classifier" and "score" to every sequence classifier.
func (al *aligner) checkSaved(a *Aligned) error {
	saved := make(map[string]bool)
	for _, s := range a.Saved {
		saved[a.BaseName(s.Name)] = true
	}
	for _, entry := range a.Config.ModulesToSave {
		// A module is saved whole. Others of its name may be in towers that the
		// training never saw.
		found := make(map[string]bool)
		var missing [][2]string // module, tensor
		for _, spec := range al.base.Specs() {
			module, ok := cutModule(al.trained(spec.Name), entry)
			switch {
			case !ok:
			case saved[spec.Name]:
				found[module] = true
			default:
				missing = append(missing, [2]string{module, spec.Name})
			}
		}
		for _, m := range missing {
			if found[m[0]] || len(found) == 0 {
				return al.incomplete(m[1], fmt.Sprintf("modules_to_save names %q", entry))
			}
		}
	}
	return nil
}

// checkTokens looks for the rows of trained tokens that the config promises.
func (al *aligner) checkTokens() error {
	if len(al.adapter.Config.TokenIndices) == 0 {
		return nil
	}
	for _, m := range al.adapter.Modules {
		if _, ok := m.Part(tokensPart); ok {
			return nil
		}
	}
	return &checkpoint.InputError{Path: al.adapter.Source.Path + "/adapter_config.json", Err: fmt.Errorf(
		"it names trainable tokens, but the adapter holds no tensor %s", tokensPart)}
}

// cutModule returns the module that a list entry names, if a tensor belongs to
// it or to one below it.
func cutModule(tensor, entry string) (module string, ok bool) {
	before, _, ok := strings.Cut("."+tensor, "."+entry+".")
	return before + "." + entry, ok
}

// checkParameters looks for entries of target_parameters that no tensor of the
// file belongs to, and for modules of the same place in other layers that have
// the parameter and are left out.
func (al *aligner) checkParameters(a *Aligned) error {
	list := a.Config.TargetParameters
	if len(list) == 0 {
		return nil
	}
	adapted := make(map[string]bool)
	families := make(map[string]string) // module and parameter without numbers, to the parameter
	for _, t := range a.Targets {
		path := t.Name + "." + t.Param
		adapted[path] = true
		if al.targeted(path) {
			families[family(path)] = t.Param
		}
	}
	for _, entry := range list {
		if !slices.ContainsFunc(a.Targets, func(t *Target) bool { return MatchName(entry, t.Name+"."+t.Param) }) {
			return &checkpoint.InputError{Path: a.Source.Path + "/adapter_config.json", Err: fmt.Errorf(
				"target_parameters: %q matches no tensor of the adapter", entry)}
		}
	}
	for _, module := range al.experts() {
		for _, o := range al.parameters(module) {
			path := module + "." + o.Param
			if families[family(path)] != "" && al.targeted(path) && !adapted[path] && !al.beyond(module) {
				return al.incomplete(o.Places[0].Tensor, "target_parameters covers it")
			}
		}
	}
	return nil
}

// experts lists the modules of the base, by their trained names, that have
// parameters of their own or experts below, in the base's order.
func (al *aligner) experts() []string {
	var modules []string
	seen := make(map[string]bool)
	for _, spec := range al.base.Specs() {
		module := al.trained(spec.Name[:max(strings.LastIndexByte(spec.Name, '.'), 0)])
		// "experts.3.w1" is a part of "experts".
		if parts := strings.Split(module, "."); len(parts) > 2 && isNumber(parts[len(parts)-2]) {
			module = strings.Join(parts[:len(parts)-2], ".")
		}
		if !seen[module] {
			seen[module] = true
			modules = append(modules, module)
		}
	}
	return modules
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
	if len(name) > maxHinted {
		return nil
	}
	for _, s := range specs {
		if n := len(s.Name) - len(name); n > len(name)/2 || -n > len(name)/2 {
			continue // at least that many letters differ
		}
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

// maxHinted bounds the names that near ones are looked for: the time grows with
// the square of the length.
const maxHinted = 512

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
