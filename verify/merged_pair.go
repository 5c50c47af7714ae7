package verify

import (
	"fmt"
	"maps"
	"slices"

	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/plan"
)

// This file finds the tensor of a model that should hold what a step of the merge makes.

// pair finds the stored tensor of every step. Of tied embeddings a file holds one or
// both, as its writer liked.
func (c *mergeCheck) pair(base *checkpoint.Model) {
	embedding, head := tiedNames(base, c.merged)
	c.types = make(map[string]int)
	planned := make(map[string]bool)
	steps := make(map[string]*plan.Step)
	for i := range c.steps {
		s := &c.steps[i]
		name := s.Write.Tensor
		planned[name], steps[name] = true, s
		stored, ok := c.lookup(name)
		if !ok && name == head {
			stored, ok = c.lookup(embedding)
		}
		if !ok {
			c.add("merge-missing", name, "the merge has it, the model does not")
			continue
		}
		planned[stored.Name] = true
		c.addPair(s, stored)
	}
	for _, spec := range c.merged.Specs() {
		switch {
		case planned[spec.Name]:
		case spec.Name == head && steps[embedding] != nil:
			c.addPair(steps[embedding], spec)
		default:
			c.add("merge-extra", spec.Name, "the model has it, the merge does not")
		}
	}
	for _, change := range slices.Sorted(maps.Keys(c.types)) {
		c.add("merge-dtype", "", "%d tensors are stored as %s", c.types[change], change)
	}
}

// lookup finds a tensor by its name, or by one that older files have for it.
func (c *mergeCheck) lookup(name string) (tensor.Spec, bool) {
	spec, ok := c.merged.Lookup(name)
	for _, old := range arch.OldNames(name) {
		if ok {
			break
		}
		spec, ok = c.merged.Lookup(old)
	}
	return spec, ok
}

// tiedNames returns the names of the embedding and the head if the model's config
// ties them; "" otherwise.
func tiedNames(base, merged *checkpoint.Model) (embedding, head string) {
	config := hfrepo.NewConfig(base.Config)
	if merged.Config != nil {
		config = hfrepo.NewConfig(merged.Config)
	}
	names := func(yield func(string) bool) {
		for _, s := range base.Specs() {
			if !yield(s.Name) {
				return
			}
		}
	}
	embedding, head, ok := arch.Embeddings(names, config.Architecture())
	tied, stated := config.Tied()
	_, stored := base.Lookup(head)
	if !ok || stated && !tied || !stated && stored || !arch.HasHead(config.Architecture()) {
		return "", ""
	}
	return embedding, head
}

// addPair takes up a comparison unless shapes or types say already that there is
// nothing to compare.
func (c *mergeCheck) addPair(s *plan.Step, stored tensor.Spec) {
	want := c.shapes[s.Write.Tensor]
	d, derived := c.merged.Derived(stored.Name)
	switch {
	case !stored.Shape.Equal(want):
		c.add("merge-shape", stored.Name, "its shape is %s, that of the merge %s", stored.Shape, want)
		return
	case c.seen != nil:
		c.addSeenPair(s, stored)
		return
	case c.merged.GGUF() != nil:
		c.addGGUFPair(s, stored)
		return
	case derived:
		c.add("not-compared", stored.Name, "it is stored as %s: that is another change than the merge, see --quantized", d.Kind)
		return
	case stored.DType.IsFloat() != s.Write.DType.IsFloat(), !stored.DType.IsFloat() && stored.DType != s.Write.DType, stored.DType.IsFP8():
		c.add("not-compared", stored.Name, "it is stored as %s, the merge has %s", stored.DType, s.Write.DType)
		return
	case stored.DType != s.Write.DType:
		c.types[fmt.Sprintf("%s instead of %s", stored.DType, s.Write.DType)]++
	}
	c.pairs = append(c.pairs, mergePair{step: s, stored: stored})
}
