package quant

import (
	"slices"

	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/quant/block"
	"github.com/loratool/loratool/quant/mix"
)

// This file gives tensors the types that llama.cpp's converter gives them when it is asked
// for a type of blocks, --outtype q8_0 (conversion/base.py of llama.cpp 0.5): one for all
// matrices, where the quantizer has a recipe.

// converterTypes are the types that the converter writes.
var converterTypes = map[mix.FileType]gguf.Type{mix.Q8_0: gguf.Q8_0, mix.TQ1_0: gguf.TQ1_0, mix.TQ2_0: gguf.TQ2_0}

// The tables of tokens, which stay F16 beside weights of three values.
var tokenTables = []string{"token_embd.weight", "output.weight"}

// The reasons of the converter.
const (
	always32   mix.Reason = "f32"
	allMatrix  mix.Reason = "matrix"
	tokenTable mix.Reason = "token-table"
)

// convert decides as the converter does, for tensors that are all F32.
func (p *ggufPlanner) convert(q *GGUF) error {
	kind, ok := converterTypes[p.options.Mix.Type]
	if !ok {
		return &OptionError{Option: "dtype", Reason: "of the types of blocks q8_0, tq1_0 and tq2_0 can be written"}
	}
	q.Mix = &mix.Mix{FileType: uint32(p.options.Mix.Type)}
	for _, t := range p.tensors {
		d := mix.Decision{Name: t.Name, From: t.Type, To: kind, Wanted: kind, Reason: allMatrix, Why: "a matrix"}
		switch {
		case arch.KeepsF32(t.Name, len(t.Shape)):
			d.To, d.Wanted, d.Reason, d.Why = gguf.F32, gguf.F32, always32, "F32 in every file"
		case kind != gguf.Q8_0 && slices.Contains(tokenTables, t.Name):
			d.To, d.Wanted, d.Reason, d.Why = gguf.F16, gguf.F16, tokenTable, "a table of tokens"
		case columnsOf(t)%int64(kind.BlockSize()) != 0:
			d.To, d.Reason, d.Why = gguf.F16, mix.Fallback, "rows that are not whole blocks"
			q.Mix.Warnings = append(q.Mix.Warnings, mix.Warning{
				Code: "fallback", Tensor: t.Name, Text: "F16 instead of " + kind.String() + ": their rows are not whole blocks",
			})
		}
		q.Mix.Decisions = append(q.Mix.Decisions, d)
		if d.Quantize() {
			if err := block.GGML(d.To).CanQuantize(); err != nil {
				return p.errorf("tensor %q: %w", t.Name, err)
			}
		}
	}
	return nil
}

// converterSplit cuts the tensors as the converter does.
func (p *ggufPlanner) converterSplit(specs []gguf.Spec) checkpoint.GGUFOptions {
	if p.options.Split == nil {
		return checkpoint.GGUFOptions{}
	}
	return checkpoint.GGUFOptions{Counts: gguf.ConverterCounts(specs, p.options.Split.MaxBytes, p.options.Split.MaxTensors)}
}
