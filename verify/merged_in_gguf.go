package verify

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/loratool/loratool/convert"
	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/plan"
	"github.com/loratool/loratool/quant/block"
)

// This file compares a merge of PEFT adapters into a GGUF model. Both files are seen as the
// models of Hugging Face that they are, so that what adapters change is planned and computed
// again as for any other model, and findings have the names of Hugging Face. Blocks go along
// rows, which keep their values in the view and have another order at most, so that the rows
// of the merge can be encoded again there too.

// seenGGUF is a merge into a GGUF model while its files are seen as others.
type seenGGUF struct {
	base, merged         *checkpoint.Model // the files
	seenBase, seenMerged *convert.FromGGUF
}

// areAllPEFT reports whether no adapter is a GGUF file.
func areAllPEFT(adapters []merge.Source) bool {
	return !slices.ContainsFunc(adapters, func(s merge.Source) bool { return s.Adapter.IsGGUF() })
}

// planSeen decides a merge of PEFT adapters into a GGUF model.
func (c *mergeCheck) planSeen(adapters []merge.Source, mo merge.Options) error {
	s := &seenGGUF{base: c.base, merged: c.merged}
	var err error
	if s.seenBase, err = convert.AsHF(c.base); err != nil {
		return err
	}
	if s.seenMerged, err = convert.AsHF(c.merged); err != nil {
		return err
	}
	c.seen, c.base, c.merged = s, s.seenBase.Model, s.seenMerged.Model
	return c.planMerge(adapters, merge.Options{Output: "merged", MoEBLayout: mo.MoEBLayout, MHAFormula: mo.MHAFormula})
}

// typesOf returns what the tensors of a pair are stored as.
func (s *seenGGUF) typesOf(step *plan.Step, stored tensor.Spec) (was, is gguf.Type) {
	is = storedType(s.merged, s.seenMerged, stored.Name)
	if was = storedType(s.base, s.seenBase, step.Write.Tensor); step.Read.Input == 0 {
		was = storedType(s.base, s.seenBase, step.Read.Tensor)
	}
	return was, is
}

func storedType(file *checkpoint.Model, seen *convert.FromGGUF, name string) gguf.Type {
	stored, _ := seen.Stored(name)
	t, _ := file.GGUF().Lookup(stored)
	return t.Type
}

// addSeenPair takes up a comparison of two tensors of one shape.
func (c *mergeCheck) addSeenPair(s *plan.Step, stored tensor.Spec) {
	was, is := c.seen.typesOf(s, stored)
	p := mergePair{step: s, stored: stored}
	if was != is {
		c.types[fmt.Sprintf("%s instead of %s", is, was)]++
	}
	if _, plain := is.DType(); !plain && (s.Judge || was != is) {
		kind := block.GGML(is)
		module, _ := strings.CutSuffix(stored.Name, ".weight")
		switch err := kind.CanQuantize(); {
		case err != nil:
			c.add("not-compared", stored.Name, "it is stored as %s, which can't be encoded again", is)
			return
		case arch.StoresConv1D(hfrepo.NewConfig(c.base.Config).ModelType(), module):
			c.add("not-compared", stored.Name, "it is stored as %s, along the columns that it has in Hugging Face", is)
			return
		}
		p.codes = &kind
	}
	p.shifted = c.seen.isShifted(stored.Name)
	c.pairs = append(c.pairs, p)
}

// isShifted reports whether a tensor is a norm to which GGUF files have 1 added.
func (s *seenGGUF) isShifted(name string) bool {
	architecture, _, _ := s.merged.GGUF().Metadata().OptText("general.architecture")
	stored, _ := s.seenMerged.Stored(name)
	return slices.Contains(shiftedNorms, architecture) && strings.HasSuffix(stored, "_norm.weight")
}

// checkUnseen compares what the files have beside the tensors of Hugging Face: factors of
// rotations, which no adapter changes.
func (c *mergeCheck) checkUnseen(ctx context.Context) error {
	if c.seen == nil {
		return nil
	}
	seen := make(map[string]bool)
	for _, spec := range c.base.Specs() {
		name, _ := c.seen.seenBase.Stored(spec.Name)
		seen[name] = true
	}
	for _, spec := range c.seen.base.Specs() {
		if seen[spec.Name] {
			continue
		}
		stored, ok := c.seen.merged.Lookup(spec.Name)
		switch {
		case !ok:
			c.add("merge-missing", spec.Name, "the base has it, the model does not")
			continue
		case !stored.Shape.Equal(spec.Shape):
			c.add("merge-shape", spec.Name, "its shape is %s, that of the base %s", stored.Shape, spec.Shape)
			continue
		}
		n, _, err := countDifferent(ctx, c.seen.base, spec, c.seen.merged, stored)
		if err != nil {
			return err
		}
		if n > 0 {
			c.add("tensor-changed", spec.Name, "no adapter changes it, but %d of its %d values are not the base's", n, spec.NumElements()).
				measured(float64(n), 0)
		}
	}
	return nil
}

// runnable sees a merge of PEFT adapters into a GGUF model as the models that are run. How
// far quantized weights may move the logits does not follow from roundings.
func runnable(base, merged *checkpoint.Model, adapters []merge.Source) (*checkpoint.Model, *checkpoint.Model, error) {
	if base.GGUF() == nil || merged.GGUF() == nil || !areAllPEFT(adapters) {
		return base, merged, nil
	}
	seenBase, err := convert.AsHF(base)
	if err != nil {
		return nil, nil, err
	}
	seenMerged, err := convert.AsHF(merged)
	if err != nil {
		return nil, nil, err
	}
	if kinds := seenMerged.Quantized; len(kinds) > 0 {
		return nil, nil, &checkpoint.InputError{Path: merged.Path, Err: fmt.Errorf(
			"it has tensors in %s: logits are compared of merges in 16 and 32 bits", strings.Join(kinds, ", "))}
	}
	return seenBase.Model, seenMerged.Model, nil
}
