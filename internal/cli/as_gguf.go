package cli

import (
	"fmt"
	"strings"

	"github.com/loratool/loratool/convert"
	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/gguf"
)

// asGGUF is a model of the Hugging Face layout that is seen as the GGUF file it would
// become, tensor by tensor, computed when it is read.
type asGGUF struct {
	model  *checkpoint.Model
	memory int64  // that the computation holds
	note   string // what was left out, "" for nothing
}

// seeAsGGUF makes the tensors of a model comparable with those of a GGUF file.
func seeAsGGUF(m, file *checkpoint.Model, o engine.Options) (*asGGUF, error) {
	t, err := convert.PlanTensors(m, tokensOf(file))
	if err != nil {
		return nil, err
	}
	// Rows of q and k that are in another order would be differences without a reason.
	if name := architectureOf(file); name != t.Architecture {
		return nil, &checkpoint.InputError{Path: file.Path, Err: fmt.Errorf(
			"its architecture is %q, and %s would be %q in GGUF: they are no forms of one model", name, m.Name, t.Architecture)}
	}
	view, err := viewOf(t.Plan, t.Specs, []checkpoint.Checkpoint{t.View}, o)
	if err != nil {
		return nil, err
	}
	seen := &asGGUF{model: m.As(view), memory: view.Memory()}
	for _, d := range t.Plan.Decisions {
		if len(d.Tensors) > 0 {
			seen.note += fmt.Sprintf("; %s (%s)", d.Message, strings.Join(d.Tensors, ", "))
		}
	}
	return seen, nil
}

// tokensOf counts the tokens of a GGUF file; 0 if it has no tokenizer.
func tokensOf(m *checkpoint.Model) int64 {
	v, ok := m.GGUF().Metadata().Get("tokenizer.ggml.tokens")
	if !ok || v.Type() != gguf.Array {
		return 0
	}
	return int64(v.Len())
}

// architectureOf is what a GGUF file says it is, "" if it does not.
func architectureOf(m *checkpoint.Model) string {
	v, ok := m.GGUF().Metadata().Get("general.architecture")
	if !ok {
		return ""
	}
	name, _ := v.Text() // no text is no name
	return name
}

// seePairAsGGUF makes a pair comparable if one of the two is GGUF: the other is replaced by
// the tensors that it has there. It returns the memory that computing them holds, and what
// to say of it by the name that it has in the pair.
func seePairAsGGUF(pair *[2]*checkpoint.Model, names [2]string, o engine.Options) (memory int64, note string, err error) {
	for i, m := range pair {
		file := pair[1-i]
		if m.GGUF() != nil || file.GGUF() == nil {
			continue
		}
		seen, err := seeAsGGUF(m, file, o)
		if err != nil {
			return 0, "", err
		}
		pair[i] = seen.model
		return seen.memory, fmt.Sprintf("%s is compared as the GGUF file it would become, computed in F32; settings, tokenizer and files are not compared%s",
			names[i], seen.note), nil
	}
	return 0, "", nil
}
