package checkpoint

import (
	"cmp"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/tensor"
)

// The keys of GGUF that a summary reads (gguf-py, constants.py).
const (
	keyType         = "general.type"
	keyArchitecture = "general.architecture"
	keyName         = "general.name"
	keySizeLabel    = "general.size_label"
	keyFileType     = "general.file_type"

	keyAdapterType  = "adapter.type"
	keyAdapterAlpha = "adapter.lora.alpha"

	tokenizerPrefix    = "tokenizer."
	keyTokenizerModel  = "tokenizer.ggml.model"
	keyTokenizerPre    = "tokenizer.ggml.pre"
	keyTokenizerTokens = "tokenizer.ggml.tokens"
	keyTokenizerMerges = "tokenizer.ggml.merges"
	keyChatTemplate    = "tokenizer.chat_template"
	specialPrefix      = "tokenizer.ggml."
	specialSuffix      = "_token_id"
)

// GGUFSummary is what the header of a GGUF model says of it. What a file does not
// say is empty.
type GGUFSummary struct {
	Kind         string // "model", "adapter", "mmproj", "imatrix", ...
	Architecture string
	Name         string
	SizeLabel    string
	FileType     string // what llama.cpp calls the mix of types, as "Q4_K_M"
	Version      int    // of the format
	Alignment    int64
	Types        []TypeCount // largest first
	Files        []FileCount
	Tokenizer    *GGUFTokenizer // nil without any of its keys
	Adapter      *GGUFAdapter   // nil unless Kind is "adapter"
	Problems     []string       // what is odd, a sentence each
}

// TypeCount counts the tensors of one type.
type TypeCount struct {
	Type              gguf.Type
	Tensors           int
	Parameters, Bytes int64
}

// FileCount describes one file of a model.
type FileCount struct {
	Name    string
	Bytes   int64
	Tensors int
}

// GGUFTokenizer is the tokenizer in a GGUF file.
type GGUFTokenizer struct {
	Model, Pre     string
	Tokens, Merges int
	Special        []SpecialToken // in the order of the file
	ChatTemplate   string
}

// SpecialToken is a token with a role, as "bos".
type SpecialToken struct {
	Role string
	ID   int64
	Text string // empty if the list of tokens has no such token
}

// GGUFAdapter is a LoRA in a GGUF file.
type GGUFAdapter struct {
	Type    string
	Alpha   float64 // 0 leaves the scale to who applies it, as in llama.cpp
	Modules int
	Ranks   []RankCount // rising
}

// RankCount counts the modules of one rank.
type RankCount struct {
	Rank    int64
	Modules int
}

// GGUFSummary reads the header of a GGUF model, or reports false for any other. A key
// of another type than it should have is a problem and no error: what can't be used
// can still be looked at.
func (m *Model) GGUFSummary() (GGUFSummary, bool) {
	if m.gguf == nil {
		return GGUFSummary{}, false
	}
	first := m.gguf.Files()[0]
	r := &ggufSummarizer{set: m.gguf, keys: m.gguf.Metadata()}
	s := GGUFSummary{
		Kind: cmp.Or(r.text(keyType), "model"), Architecture: r.text(keyArchitecture),
		Name: r.text(keyName), SizeLabel: r.text(keySizeLabel), FileType: r.fileType(),
		Version: first.Version(), Alignment: first.Alignment(), Types: r.types(), Files: r.files(), Tokenizer: r.tokenizer(),
	}
	if s.Kind == "adapter" {
		s.Adapter = r.adapter()
	}
	s.Problems = r.problems
	return s, true
}

// ggufSummarizer reads keys and collects what is odd about them.
type ggufSummarizer struct {
	set      *gguf.Set
	keys     *gguf.Metadata
	problems []string
}

func (r *ggufSummarizer) problem(format string, args ...any) {
	r.problems = append(r.problems, fmt.Sprintf(format, args...))
}

// note makes a problem of the error of a key.
func (r *ggufSummarizer) note(err error) {
	if err != nil {
		r.problem("%v", err)
	}
}

// text returns a key that is a string, empty without one.
func (r *ggufSummarizer) text(key string) string {
	text, _, err := r.keys.OptText(key)
	r.note(err)
	return text
}

// strings returns the number of strings in a key, 0 without one.
func (r *ggufSummarizer) strings(key string) (gguf.Value, int) {
	v, ok := r.keys.Get(key)
	switch {
	case !ok:
		return v, 0
	case v.Type() != gguf.Array || v.ElemType() != gguf.String:
		r.problem("key %q: %s, not an array of strings", key, v.Describe())
		return v, 0
	}
	return v, v.Len()
}

// fileType names the mix of types that the file says it is.
func (r *ggufSummarizer) fileType() string {
	n, ok, err := r.keys.OptInt(keyFileType)
	r.note(err)
	if !ok {
		return ""
	}
	if name, known := gguf.FileTypeName(n); known {
		return name
	}
	return fmt.Sprintf("number %d", n)
}

// types counts the tensors by their types.
func (r *ggufSummarizer) types() []TypeCount {
	counts := make(map[gguf.Type]TypeCount)
	for _, t := range r.set.Tensors() {
		c := counts[t.Type]
		c.Type = t.Type
		c.Tensors++
		c.Parameters += t.NumElements()
		c.Bytes += t.Size()
		counts[t.Type] = c
	}
	return slices.SortedFunc(maps.Values(counts), func(a, b TypeCount) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Type, b.Type))
	})
}

// files lists the files. What readers may stumble over is a problem.
func (r *ggufSummarizer) files() []FileCount {
	var all []FileCount
	for i, f := range r.set.Files() {
		name := filepath.Base(r.set.Paths()[i])
		if n := f.Trailing(); n > 0 {
			r.problem("%s: %d bytes behind the last tensor belong to nothing", name, n)
		}
		if n := f.MissingPadding(); n > 0 {
			r.problem("%s: the padding of the last tensor lacks %d bytes; some readers refuse that", name, n)
		}
		all = append(all, FileCount{name, f.Size(), len(f.Tensors())})
	}
	return all
}

// tokenizer describes the tokenizer, nil if there is none.
func (r *ggufSummarizer) tokenizer() *GGUFTokenizer {
	var special []string
	found := false
	for key := range r.keys.All() {
		found = found || strings.HasPrefix(key, tokenizerPrefix)
		if strings.HasPrefix(key, specialPrefix) && strings.HasSuffix(key, specialSuffix) {
			special = append(special, key)
		}
	}
	if !found {
		return nil
	}
	t := &GGUFTokenizer{Model: r.text(keyTokenizerModel), Pre: r.text(keyTokenizerPre), ChatTemplate: r.text(keyChatTemplate)}
	var tokens gguf.Value
	tokens, t.Tokens = r.strings(keyTokenizerTokens)
	_, t.Merges = r.strings(keyTokenizerMerges)
	for _, key := range special {
		id, ok, err := r.keys.OptInt(key)
		r.note(err)
		if !ok {
			continue
		}
		token := SpecialToken{Role: strings.TrimSuffix(strings.TrimPrefix(key, specialPrefix), specialSuffix), ID: id}
		if id >= 0 && id < int64(t.Tokens) {
			v, _ := tokens.Elem(int(id)) // there is one
			token.Text, _ = v.Text()     // it is a string
		} else {
			r.problem("key %q: is %d, there are %d tokens", key, id, t.Tokens)
		}
		t.Special = append(t.Special, token)
	}
	return t
}

// The tensors of an adapter are named like the weight that they change, with a
// suffix (llama.cpp, src/llama-adapter.cpp).
const (
	suffixA    = ".lora_a"
	suffixB    = ".lora_b"
	suffixNorm = "_norm.weight"
	embedding  = "token_embd.weight"
)

// adapter counts the pairs of factors of a LoRA by their ranks.
func (r *ggufSummarizer) adapter() *GGUFAdapter {
	a := &GGUFAdapter{Type: r.text(keyAdapterType)}
	if a.Type != "lora" {
		r.problem("key %q: is %q; llama.cpp knows adapters of type lora only", keyAdapterType, a.Type)
	}
	var err error
	a.Alpha, _, err = r.keys.OptFloat(keyAdapterAlpha)
	r.note(err)
	ranks := make(map[int64]int)
	for _, t := range r.set.Tensors() {
		module, isB := strings.CutSuffix(t.Name, suffixB)
		if !isB {
			r.checkAlone(t.Name)
			continue
		}
		first, ok := r.set.Lookup(module + suffixA)
		if !ok {
			r.problem("tensor %q: there is no %q", t.Name, module+suffixA)
			continue
		}
		rank := dimFromEnd(t.Shape, 0)
		if other := rankOfA(module, first.Shape); other != rank {
			r.problem("tensor %q: %v is of rank %d, %q of rank %d", t.Name, t.Shape, rank, first.Name, other)
		}
		ranks[rank]++
		a.Modules++
	}
	for _, rank := range slices.Sorted(maps.Keys(ranks)) {
		a.Ranks = append(a.Ranks, RankCount{rank, ranks[rank]})
	}
	return a
}

// checkAlone finds tensors of an adapter that are no second factor and no first
// factor of one. Norms are let pass, as llama.cpp does.
func (r *ggufSummarizer) checkAlone(name string) {
	module, isA := strings.CutSuffix(name, suffixA)
	switch {
	case isA:
		if _, ok := r.set.Lookup(module + suffixB); !ok {
			r.problem("tensor %q: there is no %q", name, module+suffixB)
		}
	case !strings.HasSuffix(name, suffixNorm):
		r.problem("tensor %q is no factor of a LoRA", name)
	}
}

// rankOfA returns the rank of a first factor: [..., rank, in], but of the token
// embedding [vocabulary, rank], as its rows are looked up.
func rankOfA(module string, shape tensor.Shape) int64 {
	if strings.HasSuffix(module, embedding) {
		return dimFromEnd(shape, 0)
	}
	return dimFromEnd(shape, 1)
}

// dimFromEnd returns a dimension, counted from the innermost. Leading dimensions of
// 1 are often not stored.
func dimFromEnd(shape tensor.Shape, i int) int64 {
	if i >= len(shape) {
		return 1
	}
	return shape[len(shape)-1-i]
}
