package arch

import (
	"slices"
	"strconv"
	"strings"
)

// This file says what llama.cpp makes of a model family: how it names the tensors and
// what it does to them (llama.cpp 0.5, gguf-py/gguf/tensor_mapping.py and conversion/).
// Names are patterns: # stands for the number of a layer, * for that of an expert.

// Change is what a tensor goes through on its way from Hugging Face to GGUF.
type Change int

const (
	Same Change = iota
	// PairQ and PairK bring the rows of each head from halves into pairs: row 2i+j is
	// what was row j·D/2+i of a head of D rows, for j 0 and 1. Q has the query heads,
	// K the key-value heads. Biases go through it too.
	PairQ
	PairK
	// PlusOne adds 1: the family multiplies with 1 + w.
	PlusOne
	// Transposed is a linear layer that was stored as (in, out).
	Transposed
	// Stacked is one expert's matrix of a stack of (experts, out, in).
	Stacked
	// SplitGate and SplitUp are the first and the second half of the rows of every
	// expert of a stack that holds both.
	SplitGate
	SplitUp
)

// Rename pairs the names of a module, or of a tensor without a suffix, in both worlds.
type Rename struct {
	HF, GGUF string
	Change   Change
}

// Family is one architecture of GGUF: one or more of transformers.
type Family struct {
	Name          string   // general.architecture
	Architectures []string // of config.json; a GGUF file becomes the first, if no rule says otherwise
	ModelType     string   // of the first
	Prefix        string   // that tensors of the decoder have, in files of some classes
	Bare          bool     // the first class has names without the prefix
	Renames       []Rename
	Suffixes      map[string]string // what older files have for .weight and .bias
	Dropped       []string          // tensors without a place in GGUF, by the end of their name
	Params        []Param
	Fixed         []Fixed
	Biases        []Bias
	Tokens        Tokens
	// OwnHeadSize: without a head_dim transformers takes a number of its own, and not the
	// share of the hidden size.
	OwnHeadSize bool
	Decoders    map[string]Decoder // shapes, by model_type
}

// GGUFTensor is what a tensor of Hugging Face becomes in GGUF.
type GGUFTensor struct {
	Name   string
	Layer  int // -1 outside of layers
	Expert int // -1 for what is no single expert's
	Change Change
}

// HFTensor is what a tensor of GGUF was in Hugging Face. Of stacked experts the name
// has a * for the number.
type HFTensor struct {
	Name   string
	Layer  int
	Change Change
}

// GGUFOf finds the family of an architecture of config.json.
func GGUFOf(architecture string) (*Family, bool) {
	i := slices.IndexFunc(ggufFamilies, func(f Family) bool { return slices.Contains(f.Architectures, architecture) })
	if i < 0 {
		return nil, false
	}
	return &ggufFamilies[i], true
}

// GGUFNamed finds the families that GGUF files call by a name. There may be several:
// the first that has every tensor of a file is the file's.
func GGUFNamed(name string) []*Family {
	var all []*Family
	for i := range ggufFamilies {
		if ggufFamilies[i].Name == name {
			all = append(all, &ggufFamilies[i])
		}
	}
	return all
}

// GGUFArchitectures lists the architectures of config.json that have a family.
func GGUFArchitectures() []string {
	var all []string
	for _, f := range ggufFamilies {
		all = append(all, f.Architectures...)
	}
	slices.Sort(all)
	return all
}

// GGUFNames lists what GGUF files call the families.
func GGUFNames() []string {
	var all []string
	for _, f := range ggufFamilies {
		all = append(all, f.Name)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// suffixes are what follows the name of a module.
var suffixes = []string{".weight", ".bias"}

// IsDropped reports whether a tensor of Hugging Face has no place in GGUF and is left
// out: masks and tables that are computed, heads that nothing reads.
func (f *Family) IsDropped(name string) bool {
	for _, ends := range [][]string{f.Dropped, {".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq"}} {
		for _, end := range ends {
			if name == end || strings.HasSuffix(name, "."+strings.TrimPrefix(end, ".")) {
				return true
			}
		}
	}
	return false
}

// FromHF returns what a tensor becomes: one tensor of GGUF, two for a stack of gates
// and ups, none if the name is not known.
func (f *Family) FromHF(name string) []GGUFTensor {
	var found []GGUFTensor
	for older, newer := range f.Suffixes {
		if module, ok := strings.CutSuffix(name, older); ok {
			name = module + newer
		}
	}
	module, suffix := cutSuffix(name)
	for _, r := range f.Renames {
		numbers, ok := match(r.HF, module)
		if !ok && f.Prefix != "" && strings.HasPrefix(r.HF, f.Prefix) {
			numbers, ok = match(strings.TrimPrefix(r.HF, f.Prefix), module)
		}
		if !ok {
			continue
		}
		t := GGUFTensor{Layer: numbers.layer, Expert: numbers.expert, Change: r.change(suffix)}
		end := suffix
		if end == "" {
			end = ".weight" // of a parameter that is no module's
		}
		t.Name = fill(r.GGUF, numbers) + end
		found = append(found, t)
		if r.Change != SplitGate {
			break
		}
	}
	return found
}

// ToHF returns what a tensor was: one tensor of Hugging Face, or several ways of
// storing it of which a model has one.
func (f *Family) ToHF(name string) []HFTensor {
	var found []HFTensor
	module, suffix := cutSuffix(name)
	for _, r := range f.Renames {
		numbers, ok := match(r.GGUF, module)
		if !ok {
			continue
		}
		end := suffix
		if r.Change == SplitGate || r.Change == SplitUp || isParameter(r.HF) {
			end = ""
		}
		found = append(found, HFTensor{Name: fill(r.HF, numbers) + end, Layer: numbers.layer, Change: r.change(suffix)})
	}
	return found
}

// isParameter reports whether a name is a stack of experts, which is a parameter and
// no module with a weight.
func isParameter(pattern string) bool {
	return strings.HasSuffix(pattern, ".experts."+Down) || strings.HasSuffix(pattern, ".experts."+GateUp)
}

// change is what is done to a tensor of the module: a bias has no columns to
// transpose.
func (r Rename) change(suffix string) Change {
	if r.Change == Transposed && suffix == ".bias" {
		return Same
	}
	return r.Change
}

func cutSuffix(name string) (module, suffix string) {
	for _, s := range suffixes {
		if module, ok := strings.CutSuffix(name, s); ok {
			return module, s
		}
	}
	return name, ""
}

// numbers are what the marks of a pattern stand for, -1 where there is none.
type numbers struct{ layer, expert int }

// match compares a name with a pattern, component by component.
func match(pattern, name string) (numbers, bool) {
	n := numbers{-1, -1}
	for pattern != "" || name != "" {
		var p, c string
		p, pattern, _ = strings.Cut(pattern, ".")
		c, name, _ = strings.Cut(name, ".")
		if p != "#" && p != "*" {
			if p != c {
				return n, false
			}
			continue
		}
		v, err := strconv.Atoi(c)
		if err != nil || v < 0 || strconv.Itoa(v) != c {
			return n, false
		}
		if p == "#" {
			n.layer = v
		} else {
			n.expert = v
		}
	}
	return n, true
}

// fill replaces the marks of a pattern. One without a number stays.
func fill(pattern string, n numbers) string {
	if n.layer >= 0 {
		pattern = strings.Replace(pattern, "#", strconv.Itoa(n.layer), 1)
	}
	if n.expert >= 0 {
		pattern = strings.Replace(pattern, "*", strconv.Itoa(n.expert), 1)
	}
	return pattern
}

// KeepsF32 reports whether a tensor of GGUF is F32 in every file: vectors, norms,
// routers, tables of positions, and what is no weight.
func KeepsF32(name string, dims int) bool {
	if dims <= 1 || strings.HasSuffix(name, "_norm.weight") || !strings.HasSuffix(name, ".weight") {
		return true
	}
	switch name[strings.LastIndex(strings.TrimSuffix(name, ".weight"), ".")+1:] {
	case "ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", "position_embd.weight", "token_types.weight":
		return true
	}
	return false
}
