package convert

import (
	"fmt"
	"slices"
	"strings"

	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
)

// This file plans the way from a GGUF file to a folder for transformers: the tensors of
// the model as Hugging Face knows it, in one type, and the JSON files made from its keys.

// planHF decides how to write a GGUF model as a folder, or its weights as one file.
func planHF(p *planner) (*Conversion, error) {
	if p.options.isGGUF() {
		return nil, p.errorf("it is a GGUF file already: 'loratool quantize' writes it in other types; without .gguf the output is a folder for transformers")
	}
	h, from, err := asHF(p.source)
	if err != nil {
		return nil, err
	}
	p.options.DType = p.typeOfHF(from)
	files, err := h.tokenizerFiles(p.options.PreTokenizer)
	if err != nil {
		return nil, err
	}
	p.gguf = append([]checkpoint.Sidecar{{Name: configName}}, files...)
	h.leftOver()
	p.plan.Decisions = append(p.plan.Decisions, h.decisions...)
	p.source, p.config = from.Model, hfrepo.NewConfig(from.Model.Config)
	if err := p.addSteps(); err != nil {
		return nil, err
	}
	c := &Conversion{Plan: p.plan, View: p.source, source: p.source, opts: p.options}
	c.Layout, err = p.layout(c)
	return c, err
}

// typeOfHF settles the type of all tensors: the one asked for, BF16 if the file is
// quantized, else that of the first matrix.
func (p *planner) typeOfHF(from *FromGGUF) tensor.DType {
	d := p.options.DType
	if len(from.Quantized) > 0 {
		if d == tensor.NoDType {
			d = tensor.BF16
		}
		p.decide("gguf-decoded", fmt.Sprintf("the file is quantized (%s): its weights are what the blocks stand for, rounded to %s; what quantization lost is lost",
			strings.Join(from.Quantized, ", "), d))
		return d
	}
	if d == tensor.NoDType {
		d = firstMatrix(from)
		p.decide("gguf-type", fmt.Sprintf("every tensor is written as %s, which the first matrix of the file is; the file has vectors and norms in F32", d))
	}
	return d
}

// firstMatrix is the type of the first tensor that is not F32 in every file.
func firstMatrix(from *FromGGUF) tensor.DType {
	for _, s := range from.Model.Specs() {
		if stored, ok := from.Stored(s.Name); ok && !arch.KeepsF32(stored, len(s.Shape)) {
			return s.DType
		}
	}
	return tensor.F32
}

// ggufSidecars are the files beside weights that come from a GGUF file.
func (p *planner) ggufSidecars(c *Conversion) []checkpoint.Sidecar {
	all := slices.Clone(p.gguf)
	all[0].Data = p.config.Encode()
	return append(all, checkpoint.Sidecar{
		Name: "README.md", Data: c.card(nil), Final: func() []byte { return c.card(c.final) },
	})
}
