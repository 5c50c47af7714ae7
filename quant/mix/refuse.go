package mix

import (
	"fmt"
	"strconv"

	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/quant/block"
)

// Rule is a short code for why a tensor is refused.
type Rule string

// The rules. The first three stop the reference's dry run, too.
const (
	BadLayer     Rule = "layer"       // the name of a tensor of experts tells no layer of the model
	NoFallback   Rule = "no-fallback" // rows are not whole blocks, and nothing stands in for the type
	PartialBlock Rule = "rows"        // the same for a type chosen by an option, which does not fall back
	NeedsMatrix  Rule = "matrix"      // the type is useless without an importance matrix
	WrongMatrix  Rule = "matrix-size" // the importance matrix is not of this model
	Requantize   Rule = "requantize"  // quantized before, and not allowed
	NoDecoder    Rule = "source"      // integers, F64 and types that are never stored
	TooManyDims  Rule = "dimensions"  // four dimensions
)

// Refusal is a tensor that can't get its type.
type Refusal struct {
	Tensor string
	Rule   Rule
	Reason string
}

// RefusalError lists the tensors that the quantizer refuses, in their order.
type RefusalError struct{ Refusals []Refusal }

// Error names the first tensor, and how many more there are.
func (e *RefusalError) Error() string {
	first := e.Refusals[0]
	text := fmt.Sprintf("tensor %s: %s", quote(first.Tensor), first.Reason)
	if more := len(e.Refusals) - 1; more > 0 {
		text += fmt.Sprintf(" (and %d more)", more)
	}
	return text
}

// OptionError reports an option that makes no sense for any model.
type OptionError struct{ Option, Reason string }

// Error names the option and the reason.
func (e *OptionError) Error() string { return e.Option + ": " + e.Reason }

func (w *walk) refuse(tensor string, rule Rule, reason string) {
	w.refusals = append(w.refusals, Refusal{Tensor: tensor, Rule: rule, Reason: reason})
}

// judge finds the weights of a tensor, and refuses what can't be quantized.
//
// Source: llama_model_quantize_impl of src/llama-quant.cpp, and ggml_quantize_chunk of
// ggml/src/ggml.c, which stop a run.
func (w *walk) judge(d *Decision, t gguf.Spec) {
	// Without any matrix, this is asked even of tensors that are copied.
	if len(w.options.Matrix) == 0 && w.uselessWithoutWeights(t.Name, d.To) {
		w.refuse(t.Name, NeedsMatrix, fmt.Sprintf("%s needs an importance matrix", d.To))
		return
	}
	if !d.Quantize() {
		w.judgeCopy(t)
		return
	}
	columns := size(t, 0)
	switch {
	case !w.findWeights(d, t):
	case !d.Weights && (w.uselessWithoutWeights(t.Name, d.To) || block.GGML(d.To).NeedsWeights()):
		w.refuse(t.Name, NeedsMatrix, fmt.Sprintf("%s needs weights for it in an importance matrix", d.To))
	case isQuantized(t.Type) && !w.options.AllowRequantize:
		w.refuse(t.Name, Requantize, fmt.Sprintf("it is %s already, and quantizing twice loses twice", t.Type))
	case !isFloat(t.Type) && !isQuantized(t.Type) || t.Type == gguf.Q8_1 || t.Type == gguf.Q8K:
		w.refuse(t.Name, NoDecoder, fmt.Sprintf("%s can't be converted to %s", t.Type, d.To))
	case columns%d.To.BlockSize() != 0:
		w.refuse(t.Name, PartialBlock, fmt.Sprintf("%s of %s", notBlocks(columns, d.To), d.To))
	case rank(t) > 3:
		w.refuse(t.Name, TooManyDims, fmt.Sprintf("shape %s has four dimensions, at most three are quantized", t.Shape))
	}
}

// judgeCopy refuses what can't even be copied: the reference checks the numbers of
// all tensors (ggml_validate_row_data of ggml/src/ggml-quants.c) and knows no Q8_1.
func (w *walk) judgeCopy(t gguf.Spec) {
	if t.Type == gguf.Q8_1 {
		w.refuse(t.Name, NoDecoder, fmt.Sprintf("%s exists while a model runs, not in files", t.Type))
	}
}

// findWeights sets whether the importance matrix has weights for the tensor, or
// refuses: there must be one per column, for each expert.
func (w *walk) findWeights(d *Decision, t gguf.Spec) bool {
	if len(w.options.Matrix) == 0 {
		return true
	}
	n, ok := w.options.Matrix[t.Name]
	if !ok {
		w.warn(WarnNoWeights, t.Name, "the importance matrix has no weights for it")
		return true
	}
	columns, experts := size(t, 0), max(size(t, 2), 1)
	if n%experts == 0 && n/experts == columns {
		d.Weights, w.usedWeights = true, true
		return true
	}
	text := fmt.Sprintf("the importance matrix has %d weights for %d columns of %d experts", n, columns, experts)
	if experts == 1 {
		text = fmt.Sprintf("the importance matrix has %d weights for %d columns", n, columns)
	}
	if roleOf(t.Name) == embedding { // of which a matrix counts tokens, if anything
		w.warn(WarnWeightsSize, t.Name, text)
		return true
	}
	w.refuse(t.Name, WrongMatrix, text)
	return false
}

// uselessWithoutWeights reports whether the reference takes a type for useless without
// an importance matrix. It does not ask for one for embeddings and output.
//
// Source: tensor_requires_imatrix of src/llama-quant.cpp.
func (w *walk) uselessWithoutWeights(name string, t gguf.Type) bool {
	if r := roleOf(name); r == output || r == embedding {
		return false
	}
	switch t {
	case gguf.IQ1S, gguf.IQ1M, gguf.IQ2XXS, gguf.IQ2XS, gguf.IQ2S, gguf.IQ3XXS:
		return true
	case gguf.Q2K:
		return w.options.Type == Q2KS
	}
	return false
}

// quote quotes a name from a file, which may be long.
func quote(name string) string {
	const limit = 128
	if len(name) > limit {
		return strconv.Quote(name[:limit]) + "..."
	}
	return strconv.Quote(name)
}
