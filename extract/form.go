package extract

import (
	"fmt"
	"strings"
)

// form is how an adapter holds the change of an item.
type form uint8

const (
	unchanged form = iota
	pairForm       // lora_A and lora_B
	savedForm      // whole, with its module, in modules_to_save
	rowsForm       // the changed rows of a table, in trainable_token_indices
	addForm        // lora_B.bias, added to the bias
	biasForm       // a bias of its own, through the setting "bias"
	lostForm       // left out
)

var formNames = [...]string{
	unchanged: "unchanged", pairForm: "lora", savedForm: "saved", rowsForm: "token_rows", addForm: "lora_bias",
	biasForm: "bias", lostForm: "left_out",
}

func (f form) String() string { return formNames[f] }

// carried is what was decided on one item.
type carried struct {
	*item
	finding  *finding
	form     form
	choice   Choice
	needed   int64 // the rank without [Options.Plain], which gives all pairs the largest
	spectrum Spectrum
	root     string // the module of modules_to_save
	fromBase bool   // the base's own values, as the user wants this part left alone
	why      string // of what is left out
}

// rank is the number of directions that are written.
func (c *carried) rank() int64 { return c.choice.Rank }

// draft is a planner's state: every item with its form.
type draft struct {
	s     *Survey
	all   []*carried
	bias  string // the setting "bias"
	add   bool   // the setting "lora_bias"
	ranks int64  // the largest one
}

// newDraft gives every item the form that follows from its role and from what was
// found; forms that depend on ranks come later.
func (s *Survey) newDraft() (*draft, error) {
	d := &draft{s: s, bias: "none"}
	for i, it := range s.items {
		c := &carried{item: it, finding: &s.findings[i]}
		c.form = d.formOf(c)
		if c.form == pairForm {
			c.spectrum = it.stackOf(*c.finding)
		}
		if c.form == lostForm {
			c.why = it.leave
		}
		d.all = append(d.all, c)
	}
	d.followTie()
	return d, d.closeSaved()
}

func (d *draft) formOf(c *carried) form {
	f := c.finding
	switch {
	case c.role == Fixed || !f.changed || f.rounding:
		return unchanged
	case c.tie:
		return unchanged // until the embedding's form is known
	case c.leave != "":
		return lostForm
	case c.solve:
		return pairForm
	case c.role == Bias && d.ownerSolves(c.item):
		return biasForm
	case c.role == Embedding && !c.resized && d.s.tiedBase == d.s.tiedTuned && d.fewRows(c):
		return rowsForm
	}
	return savedForm
}

// ownerSolves reports whether the weight beside a bias is one that gets a pair if
// it has changed: then saving the module whole is not what is meant.
func (d *draft) ownerSolves(bias *item) bool {
	owner := d.s.weights[bias.module]
	return owner != nil && (owner.solve || owner.leave != "" && (owner.role == Linear || owner.role == Conv1D || owner.role == Conv))
}

// fewRows reports whether listing the changed rows of a table takes less than half
// of the table.
func (d *draft) fewRows(c *carried) bool {
	n := int64(len(c.finding.rows))
	return n > 0 && n <= maxTokenRows && 2*n <= c.shape[0]
}

// followTie gives a head that is tied to the embedding on both sides the form that
// keeps the two one: saved beside a saved embedding, nothing of its own beside
// trained rows and factors.
func (d *draft) followTie() {
	if !d.s.tiedBase || !d.s.tiedTuned {
		return
	}
	embedding := d.find(d.s.embedding)
	if embedding == nil || embedding.form == unchanged {
		return
	}
	head := d.find(d.s.head)
	switch {
	case head != nil:
	case embedding.form == savedForm:
		// The head is stored nowhere. Saved once more under its own name it stays
		// what the embedding is, wherever the adapter is loaded.
		it := *embedding.item
		it.module, it.param = splitName(d.s.head)
		it.role, it.tie = Head, true
		head = &carried{item: &it, finding: &finding{}}
		d.all = append(d.all, head)
	default:
		return
	}
	if embedding.form == savedForm {
		head.form = savedForm
	}
}

// find returns an item by the name that its tensor has in the files.
func (d *draft) find(name string) *carried {
	name = d.s.memoryName(name)
	for _, c := range d.all {
		if c.name() == name {
			return c
		}
	}
	return nil
}

// closeSaved gives every parameter of a saved module the form of the module: PEFT
// replaces modules, not tensors. What the user wants left alone there is written
// with the base's values.
func (d *draft) closeSaved() error {
	for _, c := range d.all {
		if c.form != savedForm {
			continue
		}
		c.root = d.s.saveRoot(c.item)
		if err := d.checkRoot(c); err != nil {
			return err
		}
		for _, other := range d.all {
			if !within(other.module, c.root) || other.role == Fixed {
				continue
			}
			if other.parts[0].name != other.parts[len(other.parts)-1].name {
				return inputErrorf(d.s.tuned, "%s has changed, and its module holds experts that can't be saved with it: --exclude %s leaves the change out",
					c.describe(), c.name())
			}
			if other.form == lostForm || other.form == unchanged {
				other.fromBase = !other.resized
			}
			other.form, other.root = savedForm, c.root
		}
	}
	return nil
}

// within reports whether a module is another one or below it.
func within(module, root string) bool {
	return module == root || strings.HasPrefix(module, root+".")
}

// saveRoot is the module that has to be saved for an item: its own, or the
// attention whose projections are its own parameters.
func (s *Survey) saveRoot(it *item) string {
	for module := it.module; module != ""; module, _ = splitName(module) {
		if s.attention[module] {
			return module
		}
	}
	return it.module
}

// checkRoot refuses to save a module that has others below it: it would take away
// their place from the factors.
func (d *draft) checkRoot(c *carried) error {
	if d.s.attention[c.root] {
		return nil
	}
	for module := range d.s.modules {
		if c.root == "" || module != c.root && within(module, c.root) {
			return inputErrorf(d.s.tuned, "%s has changed, and no form of PEFT holds a parameter of a module that has other modules: --exclude %s leaves the change out",
				c.describe(), c.name())
		}
	}
	return nil
}

// saveDense turns the pairs that take as many bytes as their weights into saved
// modules.
func (d *draft) saveDense() error {
	for _, c := range d.all {
		if c.form == pairForm && !c.isParameter() && c.rank()*c.cost()*d.s.opts.factorType().Bits()/8 >= c.size() {
			c.form = savedForm
		}
	}
	return d.closeSaved()
}

// settleBiases decides how the biases beside pairs are held: added through
// lora_B.bias if every pair has one, else replaced.
func (d *draft) settleBiases() {
	pairs, changed := make(map[string]bool), false
	plain := true
	for _, c := range d.all {
		if c.form == pairForm {
			pairs[c.module] = true
			plain = plain && (c.role == Linear || c.role == Conv1D || c.role == Conv || c.role == Head)
		}
		changed = changed || c.form == biasForm
	}
	if !changed {
		return
	}
	with, without := 0, false // modules with a pair
	for _, c := range d.all {
		if c.role != Bias {
			continue
		}
		if pairs[c.module] {
			with++
		} else if c.form == biasForm {
			without = true
		}
	}
	switch {
	case plain && !without && with == len(pairs):
		d.add = true
		for _, c := range d.all {
			if c.role == Bias && pairs[c.module] {
				c.fromBase = c.form != biasForm
				c.form = addForm
			}
		}
	case without:
		d.bias = "all"
	default:
		d.bias = "lora_only"
	}
}

// decideForms records what became of every change, with the rule that it follows.
func (d *draft) decideForms(decide func(code, message string, tensors ...string)) {
	for _, c := range d.all {
		name := c.parts[0].name
		switch {
		case c.form == pairForm:
		case c.fromBase && c.why != "":
			decide("left-out-in-module", "left out: "+c.why+"; the base's values are written, as the rest of the module is held", name)
		case c.form == savedForm && c.tie:
			decide("tied-head", "the head is tied to the embedding and saved with it, so that the two stay one", d.s.head)
		case c.form == savedForm && c.resized:
			decide("vocabulary-resized", "the vocabulary has another size: these tables are saved whole, and the base has to be resized before PEFT loads the adapter", name)
		case c.form == savedForm && c.solve:
			decide("dense", "factors would take as many bytes: these weights are saved whole", name)
		case c.form == savedForm && c.finding.changed:
			decide("saved-"+c.role.String(), "saved whole (modules_to_save): "+savedReason[c.role], name)
		case c.form == savedForm:
			decide("saved-with-module", "unchanged, but saved with the rest of their module", name)
		case c.form == rowsForm:
			decide("token-rows", fmt.Sprintf("only %d of %d rows have changed: they are held as trainable tokens", len(c.finding.rows), c.shape[0]), name)
		case c.form == addForm && !c.fromBase:
			decide("lora-bias", "biases are added through lora_B.bias, as every adapted layer has one", name)
		case c.form == biasForm:
			decide("bias", fmt.Sprintf("biases are replaced (bias: %s), as not every adapted layer has one or not every bias belongs to one", d.bias), name)
		case c.form == lostForm:
			decide("left-out", "left out: "+c.why, name)
		case c.finding.rounding:
			decide("rounding-only", "they differ only as the base's values were rounded to the tuned model's type: unchanged", name)
		}
	}
	if d.s.tiedBase && d.s.tiedTuned {
		if head := d.find(d.s.head); head != nil && head.form == unchanged {
			decide("tied-head-once", "the head is the embedding once more: it is handled with it", d.s.head)
		}
	}
}

// savedReason says why a change of a role is not held by factors.
var savedReason = [...]string{
	Linear: "part of an attention that keeps its projections as parameters", Conv1D: "part of a saved module", Conv: "part of a saved module",
	Experts: "part of a saved module", Parameter: "an attention keeps its projections as parameters",
	Embedding: "most rows of the embedding have changed; --target names it for factors instead",
	Head:      "a head of its own; --target names it for factors instead",
	Table:     "a table that is not indexed by tokens", Router: "a router, which is no linear layer in memory",
	Grouped: "a convolution with groups, which PEFT does not adapt", Vector: "norms and other vectors", Bias: "biases of saved modules",
	Fixed: "",
}
