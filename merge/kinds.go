package merge

import (
	"maps"
	"slices"
	"strings"

	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/plan"
)

// readers turn a module of each PEFT type into stages. A kind is its row in
// formats/adapter, its line here, and its file with reader and operation.
var readers = map[string]func(*reader, *adapter.Target) error{
	"LORA":             (*reader).lora,
	"ADALORA":          (*reader).adalora,
	"LOHA":             (*reader).loha,
	"LOKR":             (*reader).lokr,
	"IA3":              (*reader).ia3,
	"VERA":             (*reader).vera,
	"LN_TUNING":        (*reader).lnTuning,
	"TRAINABLE_TOKENS": (*reader).tokens,
	adapter.GGUFLoRA:   (*reader).gguf,
}

// reader reads the modules of one adapter into terms of the planner's entries.
type reader struct {
	p       *planner
	adapter *adapter.Aligned
	config  *adapter.Config
	index   int     // of the adapter
	input   int     // of its source
	weight  float64 // of the adapter
	init    *adapter.Aligned
	initIn  int
	shared  map[string]plan.Slice // model-level tensors by part
	used    map[string]bool       // parts of the module being read
}

// module reads one module, with all its parts.
func (r *reader) module(t *adapter.Target) error {
	r.p.resize(t, r.index)
	parts := slices.Sorted(maps.Keys(t.Parts))
	for _, name := range parts {
		if err := r.floats(t.Parts[name]); err != nil {
			return err
		}
	}
	r.used = make(map[string]bool)
	if err := r.read(t); err != nil {
		return err
	}
	for _, name := range parts {
		if !r.used[name] {
			return r.refuse(t.Parts[name], "it has no use beside the other tensors of its module and the config")
		}
	}
	return nil
}

func (r *reader) read(t *adapter.Target) error {
	if _, ok := t.Part("trainable_tokens_delta"); ok {
		return r.tokens(t)
	}
	if len(t.Shape) < 2 && r.config.Type != "LN_TUNING" {
		return r.refuse(t.Parts[anyPart(t)], "the base's %v is not a layer that can be adapted so", t.Shape)
	}
	return readers[r.config.Type](r, t)
}

// whole is a part as a side input.
func (r *reader) whole(s tensor.Spec) plan.Slice { return plan.Whole(r.input, s) }

// part returns a part that must be there.
func (r *reader) part(t *adapter.Target, name string) (tensor.Spec, error) {
	s, ok := r.optional(t, name)
	if !ok {
		return s, r.refuse(t.Parts[anyPart(t)], "its counterpart %s is missing", name)
	}
	return s, nil
}

// optional returns a part that may be there, and marks it as used.
func (r *reader) optional(t *adapter.Target, name string) (tensor.Spec, bool) {
	r.used[name] = true
	return t.Part(name)
}

// floats refuses parts that hold no numbers to compute with.
func (r *reader) floats(s tensor.Spec) error {
	if !s.DType.IsFloat() {
		return r.adapter.Mismatch(s.Name, "%s is not a type that an adapter can have", s.DType)
	}
	return nil
}

// refuse is the error for a part that does not fit its target.
func (r *reader) refuse(s tensor.Spec, format string, args ...any) error {
	return r.adapter.Mismatch(s.Name, format, args...)
}

// change adds stages to the tensors of a target; make builds them for the
// region of one place.
func (r *reader) change(t *adapter.Target, additive bool, make func(Region) []plan.Stage) {
	for _, pl := range t.Places {
		e := r.p.entries[pl.Tensor]
		e.stacked = e.stacked || len(e.spec.Shape) == 3 && !(t.Param == "weight" && t.Shape.Equal(e.spec.Shape))
		term := r.p.term(pl.Tensor, r.index, r.weight)
		term.additive = term.additive && additive
		term.stages = append(term.stages, make(Region{At: pl.At, From: pl.From, Rows: pl.Rows})...)
	}
}

// changeBias adds a stage to the bias of a target.
func (r *reader) changeBias(t *adapter.Target, additive bool, st plan.Stage) {
	term := r.p.term(t.Bias.Tensor, r.index, r.weight)
	term.additive = term.additive && additive
	term.stages = append(term.stages, st)
}

// scaleOf returns the factor of a module's product. The adapter's weight comes
// in when it is clear what the adapter does to the tensor in all.
func (r *reader) scaleOf(t *adapter.Target) float64 { return r.config.ScaleOf(t.PatternName) }

// checkRank compares the rank of a factor with the config's. A pattern that
// can't be evaluated does no harm as long as the others say the same.
func (r *reader) checkRank(t *adapter.Target, s tensor.Spec, have int64) error {
	if want := r.config.RankOf(t.PatternName); have != want {
		if broken := r.config.RankPattern.Broken; len(broken) > 0 {
			return r.refuse(s, "its rank is %d, and whether rank_pattern %q says so can't be evaluated here", have, broken[0])
		}
		return r.refuse(s, "its rank is %d, the config says %d for %q", have, want, t.PatternName)
	}
	return nil
}

// orientation decides whether a weight is stored (out, in) or (in, out), from
// the base and not from the config's fan_in_fan_out, which PEFT overrules.
func (r *reader) orientation(t *adapter.Target, out, in int64) (transposed, ok bool) {
	rows, cols := t.Shape[0], int64(1)
	for _, d := range t.Shape[1:] {
		cols *= d
	}
	straight, crossed := rows == out && cols == in, rows == in && cols == out && len(t.Shape) == 2
	switch {
	case straight && crossed:
		return r.p.storesConv1D(t.Name), true
	case straight || crossed:
		return crossed, true
	}
	return false, false
}

// storesConv1D decides square weights: by the model type, or without one by
// what the other layers of the model look like.
func (p *planner) storesConv1D(module string) bool {
	if p.modelType != "" {
		return arch.StoresConv1D(p.modelType, module)
	}
	if !arch.StoresConv1D("gpt2", module) {
		return false
	}
	// c_attn makes three outputs of each input: (in, 3·in) as Conv1D.
	for _, s := range p.view.Specs() {
		if len(s.Shape) == 2 && hasComponent(s.Name, "c_attn") {
			return s.Shape[1] == 3*s.Shape[0]
		}
	}
	return false
}

// factors checks a pair A (rank, in, ...) and B (out, rank, 1, ...) against a
// weight and returns whether the weight is stored transposed.
func (r *reader) factors(t *adapter.Target, a, b tensor.Spec) (transposed bool, err error) {
	if len(a.Shape) < 2 || len(b.Shape) != len(a.Shape) {
		return false, r.refuse(a, "factors of shapes %v and %v make no product", a.Shape, b.Shape)
	}
	if len(t.Shape) > 2 {
		return false, r.convolution(t, a, b)
	}
	if len(a.Shape) > 2 {
		return false, r.refuse(a, "a kernel of %v does not fit the base's %v", a.Shape, t.Shape)
	}
	if b.Cols() != a.Rows() {
		return false, r.refuse(b, "its %d columns do not match the rank %d of its counterpart", b.Cols(), a.Rows())
	}
	transposed, ok := r.orientation(t, b.Rows(), a.Cols())
	if !ok {
		return false, r.refuse(a, "a product of %v and %v does not fit the base's %v", b.Shape, a.Shape, t.Shape)
	}
	return transposed, nil
}

// convolution checks factors of a convolution: the kernel is in A, B is 1 wide.
func (r *reader) convolution(t *adapter.Target, a, b tensor.Spec) error {
	one, _ := b.Shape[2:].NumElements()
	if len(a.Shape) != len(t.Shape) || b.Shape[0] != t.Shape[0] || b.Shape[1] != a.Rows() || one != 1 || !a.Shape[1:].Equal(t.Shape[1:]) {
		return r.refuse(a, "a kernel of %v with %v does not fit the base's %v; LoRA on a grouped convolution has no grouped weight that computes the same",
			a.Shape, b.Shape, t.Shape)
	}
	return nil
}

// tokens replaces the rows of an embedding that were trained on their own.
func (r *reader) tokens(t *adapter.Target) error {
	rows, err := r.part(t, "trainable_tokens_delta")
	if err != nil {
		return err
	}
	indices, ok := r.config.TokensOf(t.Name)
	if !ok {
		return r.refuse(rows, "the config names no token indices for it")
	}
	if len(t.Shape) != 2 || !r.coversWhole(t) || len(rows.Shape) != 2 || rows.Shape[0] != int64(len(indices)) || rows.Shape[1] != t.Shape[1] {
		return r.refuse(rows, "%v rows for %d token indices do not fit the base's %v", rows.Shape, len(indices), t.Shape)
	}
	for _, i := range indices {
		if i < 0 || i >= t.Shape[0] {
			return r.refuse(rows, "token index %d is outside the table of %d rows", i, t.Shape[0])
		}
	}
	r.change(t, false, func(Region) []plan.Stage {
		return []plan.Stage{{Op: SetRows{Rows: indices}, Sides: []plan.Slice{r.whole(rows)}}}
	})
	r.p.term(t.Places[0].Tensor, r.index, r.weight).throughTie = true
	return nil
}

// lnTuning replaces the parameters of a norm.
func (r *reader) lnTuning(t *adapter.Target) error {
	if s, ok := r.optional(t, "ln_tuning_layers"); ok {
		if err := r.replace(t.Places[0].Tensor, s); err != nil {
			return err
		}
	}
	if s, ok := r.optional(t, "ln_tuning_layers.bias"); ok {
		if t.Bias == nil {
			return r.refuse(s, "the base has no bias there")
		}
		return r.replace(t.Bias.Tensor, s)
	}
	return nil
}

// replace puts a tensor of the adapter in the place of one of the base.
func (r *reader) replace(name string, s tensor.Spec) error {
	if err := r.floats(s); err != nil {
		return err
	}
	e, ok := r.p.entries[name]
	if !ok {
		return r.refuse(s, "the base has no tensor %q", name)
	}
	if !s.Shape.Equal(e.spec.Shape) {
		if !r.p.isTable(name) || len(s.Shape) != len(e.spec.Shape) || !s.Shape[1:].Equal(e.spec.Shape[1:]) {
			return r.refuse(s, "its shape is %v, the base's %v", s.Shape, e.spec.Shape)
		}
	}
	if !e.spec.DType.IsFloat() {
		return r.refuse(s, "it can't take the place of what the base stores as %s", e.spec.DType)
	}
	term := r.p.term(name, r.index, r.weight)
	if term.replaces != nil {
		return r.refuse(s, "the adapter replaces %q twice", name)
	}
	slice := r.whole(s)
	term.replaces = &slice
	term.additive = false
	return nil
}

// coversWhole reports whether a target is one tensor of the base and all of it.
func (r *reader) coversWhole(t *adapter.Target) bool {
	if len(t.Places) != 1 {
		return false
	}
	e := r.p.entries[t.Places[0].Tensor]
	return t.Places[0].At == 0 && t.Places[0].From == 0 && t.Shape.Equal(e.shape())
}

// hasComponent reports whether a dotted name has a component.
func hasComponent(name, component string) bool {
	return strings.Contains("."+name+".", "."+component+".")
}

// colsOf returns the product of all dimensions but the first.
func colsOf(shape tensor.Shape) int64 {
	n, _ := shape[1:].NumElements()
	return n
}

// anyPart names a part that the module has, for messages.
func anyPart(t *adapter.Target) string {
	first := ""
	for name := range t.Parts {
		if first == "" || name < first {
			first = name
		}
	}
	return first
}
