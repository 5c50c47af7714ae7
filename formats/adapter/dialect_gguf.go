package adapter

import (
	"fmt"
	"math"
	"sort"
	"strings"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/tensor"
)

// This file reads LoRA adapters in GGUF files, by the rules of llama.cpp's loader
// (src/llama-adapter.cpp). A pair has the name of the tensor that it changes:
//
//	X.lora_a   (rank, in)    or (experts, rank, in)
//	X.lora_b   (out, rank)   or (experts, out, rank)
//
// and the embeddings, whose rows are looked up in the first factor,
//
//	token_embd.weight.lora_a   (vocabulary, rank)
//	token_embd.weight.lora_b   (embedding, rank)
//
// The change is alpha/rank · B·A with the rank of the pair itself, or just B·A if
// alpha is 0 or absent.

// GGUFLoRA is the [Config.Type] of an adapter in a GGUF file. Its modules have the
// whole names of tensors of the base, and the parts lora_a and lora_b.
const GGUFLoRA = "GGUF_LORA"

// The keys of an adapter.
const (
	keyType         = "general.type"
	keyArchitecture = "general.architecture"
	keyAdapterType  = "adapter.type"
	keyAlpha        = "adapter.lora.alpha"
	keyInvocation   = "adapter.alora.invocation_tokens"
)

// IsGGUF reports whether the adapter is a GGUF file.
func (a *Adapter) IsGGUF() bool { return a.Config.Type == GGUFLoRA }

// openGGUF checks the keys and sorts the tensors of an opened GGUF file.
func openGGUF(m *checkpoint.Model) (*Adapter, error) {
	config, err := ggufConfig(m.GGUF().Metadata())
	if err != nil {
		return nil, &checkpoint.InputError{Path: m.Path, Err: err}
	}
	a := &Adapter{Source: m, Config: config, Shared: make(map[string]tensor.Spec)}
	modules := make(map[string]*Module)
	for _, spec := range m.Specs() {
		base, part, ok := cutGGUF(spec.Name)
		switch {
		case !ok && strings.HasSuffix(spec.Name, "_norm.weight"):
			a.Ignored = append(a.Ignored, spec.Name)
			continue
		case !ok:
			return nil, a.mismatch(spec.Name, "its name ends in neither .lora_a nor .lora_b")
		}
		if modules[base] == nil {
			modules[base] = &Module{Name: base, Parts: make(map[string]tensor.Spec)}
			a.Modules = append(a.Modules, modules[base])
		}
		modules[base].Parts[part] = spec // names are unique in the file
	}
	if len(a.Modules) == 0 {
		return nil, &checkpoint.InputError{Path: m.Path, Err: fmt.Errorf("the adapter holds no pair of factors")}
	}
	sort.Slice(a.Modules, func(i, j int) bool { return a.Modules[i].Name < a.Modules[j].Name })
	for _, module := range a.Modules {
		if _, err := a.PairOf(module); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// cutGGUF takes the name of a factor apart.
func cutGGUF(name string) (base, part string, ok bool) {
	at := strings.LastIndexByte(name, '.')
	if at < 0 || name[at:] != ".lora_a" && name[at:] != ".lora_b" {
		return "", "", false
	}
	return name[:at], name[at+1:], true
}

// ggufConfig reads the keys. What is not LoRA, or acts on some tokens only, is
// refused.
func ggufConfig(keys *gguf.Metadata) (*Config, error) {
	for _, k := range []struct{ key, want string }{{keyType, "adapter"}, {keyAdapterType, "lora"}} {
		if text, err := keys.Text(k.key); err != nil {
			return nil, fmt.Errorf("it is not an adapter of llama.cpp: %w", err)
		} else if text != k.want {
			return nil, fmt.Errorf("it is not a LoRA adapter of llama.cpp: key %s is %q, not %q", k.key, clip(text), k.want)
		}
	}
	if v, ok := keys.Get(keyInvocation); ok && (v.Type() != gguf.Array || v.Len() > 0) {
		return nil, &UnmergeableError{"aLoRA", "it acts only after its invocation tokens: no single set of weights computes the same"}
	}
	if _, err := keys.Text(keyArchitecture); err != nil {
		return nil, err
	}
	alpha, _, err := keys.OptFloat(keyAlpha)
	if err != nil {
		return nil, err
	}
	if math.IsNaN(alpha) || math.IsInf(alpha, 0) {
		return nil, fmt.Errorf("key %s is %v", keyAlpha, alpha)
	}
	return &Config{Type: GGUFLoRA, Alpha: alpha, Bias: "none"}, nil
}

// Architecture returns the architecture that a GGUF adapter was made for.
func (a *Adapter) Architecture() string {
	text, _ := a.Source.GGUF().Metadata().Text(keyArchitecture) // was read before
	return text
}

// Pair is the two factors of a tensor in a GGUF adapter, as stacks of matrices.
type Pair struct {
	A, B tensor.Spec
	// Embedding says that the rows are in A: W changes by A·B^T, with A (rows, rank)
	// and B (columns, rank). Otherwise it changes by B·A, with A (rank, columns) and
	// B (rows, rank), for each of the matrices of a stack.
	Embedding          bool
	Groups, Rows, Cols int64
	Rank               int64
	Scale              float64 // alpha/rank, or 1
}

// PairOf checks the factors of a module against each other. Dimensions of 1 in front
// may be left out in a file.
func (a *Adapter) PairOf(m *Module) (Pair, error) {
	first, okA := m.Part("lora_a")
	second, okB := m.Part("lora_b")
	switch {
	case !okA:
		return Pair{}, a.mismatch(second.Name, "its counterpart %s.lora_a is missing", m.Name)
	case !okB:
		return Pair{}, a.mismatch(first.Name, "its counterpart %s.lora_b is missing", m.Name)
	}
	for _, s := range []tensor.Spec{first, second} {
		if len(s.Shape) == 0 || len(s.Shape) > 3 || s.NumElements() == 0 {
			return Pair{}, a.mismatch(s.Name, "%v is no shape of a factor", s.Shape)
		}
		if !s.DType.IsFloat() {
			return Pair{}, a.mismatch(s.Name, "%s is not a type that an adapter can have", s.DType)
		}
	}
	x, y := stackOf(first.Shape), stackOf(second.Shape)
	p := Pair{A: first, B: second, Groups: x[0], Rows: y[1], Cols: x[2], Rank: y[2], Scale: 1}
	counterpart := x[1]
	if strings.HasSuffix(m.Name, "token_embd.weight") {
		p.Embedding, p.Rows, p.Cols, counterpart = true, x[1], y[1], x[2]
	}
	if counterpart != p.Rank || x[0] != y[0] || p.Embedding && x[0] != 1 {
		return Pair{}, a.mismatch(first.Name, "factors of %v and %v make no product", first.Shape, second.Shape)
	}
	if a.Config.Alpha != 0 {
		p.Scale = a.Config.Alpha / float64(p.Rank)
	}
	return p, nil
}

// stackOf sees a shape as a stack of matrices.
func stackOf(s tensor.Shape) [3]int64 {
	stack := [3]int64{1, 1, 1}
	copy(stack[3-len(s):], s)
	return stack
}

// alignGGUF finds the tensor of a GGUF base for every pair: names are whole there and
// nothing is looked for elsewhere.
func alignGGUF(a *Adapter, base Base) (*Aligned, error) {
	out := &Aligned{Adapter: a, names: make(map[string]string)}
	for _, m := range a.Modules {
		p, err := a.PairOf(m)
		if err != nil {
			return nil, err
		}
		spec, ok := base.Lookup(m.Name)
		if !ok {
			err := a.mismatch(p.A.Name, "the base has no tensor %q", m.Name).(*MismatchError)
			err.Near = nearest(m.Name, base.Specs())
			return nil, err
		}
		if n := len(spec.Shape); n == 0 || n > 3 || stackOf(spec.Shape) != [3]int64{p.Groups, p.Rows, p.Cols} {
			return nil, a.mismatch(p.A.Name, "factors of %v and %v do not fit the base's %v", p.A.Shape, p.B.Shape, spec.Shape)
		}
		out.Targets = append(out.Targets, &Target{
			Module: m, Shape: spec.Shape, PatternName: m.Name,
			Places: []Place{{Tensor: m.Name, Rows: p.Groups * p.Rows}},
		})
	}
	return out, nil
}
