package verify

import (
	"errors"
	"fmt"
	"strings"

	"github.com/loratool/loratool/formats/tokenizer"
)

// This file has both tokenizers of a conversion, tokenizer.json and the one that llama.cpp makes
// of the keys, turn one text into ids.

// compareEncoding compares the ids of tokenizer.Sample, a text in many scripts, as far as the
// tokenizer has tokens for its characters. Folders with a
// tokenizer.model alone have no rules of text to ids beside it.
func (k *keyCheck) compareEncoding(s *subject) error {
	data, ok, err := s.sideFile("tokenizer.json", maxTokenizer)
	if err != nil || !ok {
		return err
	}
	keys, ok := k.llamaKeys()
	if !ok {
		return nil
	}
	unknown := func(what string, err error) error {
		k.add("tokenizer-not-run", "", "%s: %v", what, err)
		return nil
	}
	fast, err := tokenizer.ParseFast(data)
	if err != nil {
		return unknown("tokenizer.json", err)
	}
	if _, ok := fast.Root.Get("model"); !ok {
		return nil // it adds to a tokenizer.model
	}
	encoder, err := tokenizer.NewEncoder(fast)
	if err != nil {
		return unknown("tokenizer.json", err)
	}
	llama, err := tokenizer.NewLlama(keys)
	var unsupported *tokenizer.UnsupportedError
	switch {
	case errors.As(err, &unsupported):
		return unknown("the keys of the file", err)
	case err != nil:
		k.add("tokenizer-differs", "", "llama.cpp can't use the tokenizer of the file: %v", err)
		return nil
	}
	differences, err := tokenizer.Compare(encoder, llama)
	if err != nil {
		return unknown("a text", err)
	}
	for _, d := range differences {
		where := fmt.Sprintf("line %d of the text, %.40q", d.Line, d.Text)
		if d.Line == 0 {
			where = "the text as a whole"
		}
		k.add("tokenizer-differs", "", "%s: from token %d on tokenizer.json makes %q, llama.cpp %q", where, d.At, d.Fast, d.Llama)
	}
	return nil
}

// llamaKeys reads the keys of the tokenizer; false if there is none.
func (k *keyCheck) llamaKeys() (tokenizer.LlamaKeys, bool) {
	const prefix = "tokenizer.ggml."
	keys := tokenizer.LlamaKeys{IDs: make(map[string]int64), Flags: make(map[string]bool)}
	keys.Model, _, _ = k.keys.OptText(prefix + "model")
	keys.Pre, _, _ = k.keys.OptText(prefix + "pre")
	keys.Architecture = k.arch
	keys.Name, _, _ = k.keys.OptText("general.name")
	keys.Tokens, _, _ = k.keys.OptStrings(prefix + "tokens")
	keys.Merges, _, _ = k.keys.OptStrings(prefix + "merges")
	if v, ok := k.keys.Get(prefix + "scores"); ok {
		scores, _ := v.Floats()
		for _, f := range scores {
			keys.Scores = append(keys.Scores, float32(f))
		}
	}
	if v, ok := k.keys.Get(prefix + "token_type"); ok {
		kinds, _ := v.Ints()
		for _, kind := range kinds {
			keys.Types = append(keys.Types, int32(kind))
		}
	}
	for key, v := range k.keys.All() {
		name, ok := strings.CutPrefix(key, prefix)
		if !ok {
			continue
		}
		if n, err := v.Int(); err == nil {
			keys.IDs[name] = n
		}
		if b, err := v.Bool(); err == nil {
			keys.Flags[name] = b
		}
	}
	return keys, keys.Model != "" && len(keys.Tokens) > 0
}
