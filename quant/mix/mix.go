// Package mix decides which tensor of a GGUF model gets which type when the model
// is quantized: the policy of llama.cpp's quantizer (release v0.5.0,
// src/llama-quant.cpp and tools/quantize/quantize.cpp) as one pure function.
//
// A [FileType] such as Q4_K_M is no single type but a recipe. [Plan] walks over
// the tensors and gives a [Decision] for each: the type, a [Reason] and a
// sentence. [ModelOf] reads what the recipes want to know about a model from its
// keys, [Sort] brings tensors into the order in which the reference writes them,
// [Mix.SetKeys] writes the keys that tell how a file was quantized.
//
// What the reference refuses only once it runs is a [RefusalError] that names every
// tensor concerned; it comes with the plan, which can still be shown. Where the
// reference is silent (a pattern that names no tensor, an option without effect)
// there is a [Warning].
//
// Nothing here reads or writes a tensor, and nothing knows which encoders exist.
package mix

import (
	"fmt"

	"github.com/loratool/loratool/formats/gguf"
)

// Options says what to make of a model. The zero value makes every tensor F32 that
// is not to be left as it is.
type Options struct {
	Type FileType
	// Pure gives every tensor the type that the file type is named after,
	// without its recipe. Rows that are no whole blocks still fall back.
	Pure bool
	// LeaveOutput leaves output.weight as it is.
	LeaveOutput bool
	// OutputType and EmbeddingType, if not nil, are the types of the output matrix
	// and of the token embedding. They win over everything, and do not fall back.
	OutputType, EmbeddingType *gguf.Type
	// Overrides give tensors types by name; the first that matches counts. They
	// have no effect if the file type is F32, F16 or BF16.
	Overrides []Override
	// Matrix has, per tensor, the number of weights in the importance matrix. A
	// matrix without tensors is none.
	Matrix map[string]int64
	// AllowRequantize permits to quantize what was quantized before.
	AllowRequantize bool
}

// Mix is the decision on a whole model.
type Mix struct {
	Decisions []Decision // in the order of the tensors
	FileType  uint32     // the value of general.file_type
	Warnings  []Warning
}

// Decision is what becomes of one tensor.
type Decision struct {
	Name     string
	From, To gguf.Type
	Wanted   gguf.Type // differs from To if the reason is [Fallback]
	Reason   Reason
	Why      string // a sentence about the reason, without full stop
	// Weights is true if the tensor is to be encoded with its weights in the
	// importance matrix.
	Weights bool
}

// Quantize reports whether the tensor is encoded anew. If not, its bytes are copied.
func (d Decision) Quantize() bool { return d.From != d.To }

// Reason is a short code for the reason of a decision.
type Reason string

// The reasons to leave a tensor as it is.
const (
	Vector    Reason = "vector"     // fewer than two dimensions
	NotWeight Reason = "not-weight" // the name does not end with "weight"
	Norm      Reason = "norm"
	Router    Reason = "router"   // chooses experts
	Position  Reason = "position" // of tokens, or their kind
	Small     Reason = "small"    // small or delicate tables of some families
	LeftAlone Reason = "left"     // Options.LeaveOutput
	Copied    Reason = "copy"     // the file type is [Copy]
)

// The reasons for a type.
const (
	Base          Reason = "base"           // the type that the file type is named after
	Recipe        Reason = "recipe"         // a rule of the file type
	Pure          Reason = "pure"           // Options.Pure
	Overridden    Reason = "override"       // Options.Overrides
	OutputType    Reason = "output-type"    // Options.OutputType
	EmbeddingType Reason = "embedding-type" // Options.EmbeddingType
	Fallback      Reason = "fallback"       // rows are not whole blocks of the type wanted
)

// Warning tells what went not as one may expect.
type Warning struct {
	Code   string // "fallback", "no-weights", "weights-size" or "no-effect"
	Tensor string // "" if it is about the whole
	Text   string
}

// The codes of warnings.
const (
	WarnFallback    = "fallback"     // a tensor got another type than wanted
	WarnNoWeights   = "no-weights"   // the matrix has none for a tensor
	WarnWeightsSize = "weights-size" // those for a token embedding do not fit and are not used
	WarnNoEffect    = "no-effect"    // an option changed nothing
)

// Plan decides on all tensors. Their order counts: many rules depend on how many
// tensors of a kind came before. The reference walks in the order of [Sort], or, if
// it keeps the shards of a split model, in the order of the files.
//
// An error is an [*OptionError], without a Mix, or a [*RefusalError], with the Mix as it
// would be.
func Plan(m Model, tensors []gguf.Spec, o Options) (*Mix, error) {
	w, err := newWalk(m, tensors, o)
	if err != nil {
		return nil, err
	}
	mix := &Mix{FileType: w.fileType(tensors), Decisions: make([]Decision, len(tensors))}
	for i, t := range tensors {
		mix.Decisions[i] = w.decide(t)
	}
	w.warnNoEffect()
	mix.Warnings = w.warnings
	if len(w.refusals) > 0 {
		return mix, &RefusalError{Refusals: w.refusals}
	}
	return mix, nil
}

// QuantizationVersion is the version of all block formats together
// (GGML_QNT_VERSION); readers of ggml refuse newer ones.
const QuantizationVersion = 2

// SetKeys sets the keys that tell how a file was quantized. Like the reference, it
// leaves them at the end.
func (m *Mix) SetKeys(keys *gguf.Metadata) {
	keys.Set("general.quantization_version", gguf.ValueOf(uint32(QuantizationVersion)))
	keys.Set(keyFileType, gguf.ValueOf(m.FileType))
}

// check refuses options that can't be carried out for any model.
func (o Options) check() error {
	if _, ok := recipes[o.Type]; !ok && o.Type != Copy {
		return &OptionError{Option: "file type", Reason: fmt.Sprintf("%d has no recipe", uint32(o.Type))}
	}
	for _, t := range []struct {
		option string
		typ    *gguf.Type
	}{{"output type", o.OutputType}, {"token embedding type", o.EmbeddingType}} {
		if t.typ == nil {
			continue
		}
		if err := checkTarget(*t.typ); err != nil {
			return &OptionError{Option: t.option, Reason: err.Error()}
		}
	}
	return nil
}

// checkTarget refuses types that no quantizer writes.
func checkTarget(t gguf.Type) error {
	switch {
	case !t.Known():
		return fmt.Errorf("%s is no type of the format", t)
	case t.BlockSize() == 1 && !isFloat(t):
		return fmt.Errorf("weights can't be stored as %s", t)
	case t == gguf.Q8_1 || t == gguf.Q8K:
		return fmt.Errorf("%s exists while a model runs, not in files", t)
	}
	return nil
}

// isFloat reports whether a type of single numbers can be quantized and written.
// The reference does neither with F64.
func isFloat(t gguf.Type) bool { return t == gguf.F32 || t == gguf.F16 || t == gguf.BF16 }

// isQuantized reports whether elements are stored in blocks.
func isQuantized(t gguf.Type) bool { return t.BlockSize() > 1 }
