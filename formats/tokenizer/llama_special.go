package tokenizer

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// specialToken is a token that is cut out of a text before anything else is done to it.
type specialToken struct {
	id   int
	text string
	// control tokens, and unknown ones, are only cut out if the caller asks for it.
	control     bool
	left, right bool // blanks before it, and behind it, belong to it
}

// Flags of what a token is: several at a time, as some are set by their text.
type tokenFlags uint8

const (
	flagControl tokenFlags = 1 << iota
	flagUserDefined
	flagUnknown
)

// controlTexts are tokens that llama.cpp takes for control tokens whatever their types
// say: those that end a turn or a text.
var controlTexts = strings.Fields(`<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s>
	<|eom_id|> <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> <｜end▁of▁sentence｜> [e~[`)

// fillTexts are tokens for code with a hole in it, by the keys that name them. Where a key
// is missing, the first that is there is a control token.
var fillTexts = map[string]string{
	"fim_pre_token_id": "<|fim_prefix|> <fim-prefix> <fim_prefix> <｜fim▁begin｜> <PRE> ▁<PRE> <|code_prefix|> <|prefix|>",
	"fim_suf_token_id": "<|fim_suffix|> <fim-suffix> <fim_suffix> <｜fim▁hole｜> <SUF> ▁<SUF> <|code_suffix|> <|suffix|>",
	"fim_mid_token_id": "<|fim_middle|> <fim-middle> <fim_middle> <｜fim▁end｜> <MID> ▁<MID> <|code_middle|> <|middle|>",
	"fim_pad_token_id": "<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]",
	"fim_rep_token_id": "<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame>",
	"fim_sep_token_id": "<|file_sep|>",
}

// olderKeys are the names that some keys had before.
var olderKeys = map[string]string{
	"fim_pre_token_id": "prefix_token_id", "fim_suf_token_id": "suffix_token_id", "fim_mid_token_id": "middle_token_id",
}

// readTypes returns what the tokens are, by their types and then by their texts.
func (l *Llama) readTypes(v LlamaKeys) ([]tokenFlags, error) {
	if len(v.Types) > 0 && len(v.Types) < len(l.tokens) {
		return nil, &FormatError{-1, fmt.Sprintf("%d types for %d tokens", len(v.Types), len(l.tokens))}
	}
	flags := make([]tokenFlags, len(l.tokens))
	for id := range min(len(v.Types), len(flags)) {
		switch PieceType(v.Types[id]) {
		case Control:
			flags[id] = flagControl
		case UserDefined:
			flags[id] = flagUserDefined
		case Unknown:
			flags[id] = flagUnknown
		}
	}
	for key, texts := range fillTexts {
		if l.id(v, key, -1) >= 0 || l.id(v, olderKeys[key], -1) >= 0 {
			continue
		}
		for _, text := range strings.Fields(texts) {
			if id, ok := l.ids[text]; ok {
				flags[id] |= flagControl
				break
			}
		}
	}
	for _, text := range controlTexts {
		if id, ok := l.ids[text]; ok {
			flags[id] |= flagControl
		}
	}
	l.exceptions(flags)
	return flags, nil
}

// exceptions sets what llama.cpp sets last, for the models of the texts.
func (l *Llama) exceptions(flags []tokenFlags) {
	has := func(text string) bool {
		_, ok := l.ids[text]
		return ok
	}
	set := func(text string, to tokenFlags) {
		if id, ok := l.ids[text]; ok {
			flags[id] = to
		}
	}
	for _, text := range []string{"<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"} {
		set(text, flagUserDefined)
	}
	if has("<|return|>") && (has("<|call|>") || has("<|calls|>")) || (has("<|call|>") || has("<|calls|>")) && has("<|flush|>") {
		set("<|end|>", flagUserDefined)
	}
	if has("<|tool_response>") {
		set("</s>", 0)
	}
}

// specialTokens returns the tokens that are cut out, the longest first; of those of one
// length, which llama.cpp leaves to chance, those of the lower id.
func (l *Llama) specialTokens(v LlamaKeys, flags []tokenFlags) ([]specialToken, error) {
	var all []specialToken
	for id, f := range flags {
		if f != 0 {
			all = append(all, specialToken{id: id, text: l.tokens[id], control: f&(flagControl|flagUnknown) != 0})
		}
	}
	slices.SortStableFunc(all, func(a, b specialToken) int { return cmp.Compare(len(b.text), len(a.text)) })
	return all, l.takeBlanks(v, all)
}

// takeBlanks says which tokens take the blanks beside them along. No key tells: llama.cpp
// goes by the names of models.
func (l *Llama) takeBlanks(v LlamaKeys, all []specialToken) error {
	name := strings.ToLower(v.Name)
	contains := func(s string, any ...string) bool {
		return slices.ContainsFunc(any, func(a string) bool { return strings.Contains(s, a) })
	}
	mask := ""
	switch {
	case contains(v.Pre, "jina-v2-de", "jina-v2-es", "jina-v2-code"), contains(v.Architecture, "nomic-bert-moe", "jina-bert-v3"):
		mask = "<mask>"
	case contains(name, "phi-3", "phi3"):
		without := []string{"<unk>", "<s>", "<|endoftext|>"}
		for _, text := range append(without, "</s>") {
			if _, ok := l.ids[text]; !ok {
				return &FormatError{-1, fmt.Sprintf("no token %q, without which llama.cpp does not load a model named %q", text, v.Name)}
			}
		}
		for i := range all {
			all[i].right = !slices.Contains(without, all[i].text)
		}
	case contains(name, "modern-bert"):
		mask = "[MASK]"
	}
	for i := range all {
		all[i].left = all[i].text == mask
	}
	return nil
}

// fragment is a part of a text: a token, or text, for which id is -1.
type fragment struct {
	id   int
	text string
}

// cut takes the tokens out of a text that stand for themselves: one token after the other,
// each wherever it still is.
func (l *Llama) cut(text string, special bool) []fragment {
	if text == "" {
		return nil
	}
	parts := []fragment{{-1, text}}
	for i := range l.special {
		t := &l.special[i]
		if t.control && !special || !strings.Contains(text, t.text) {
			continue
		}
		var next []fragment
		for _, p := range parts {
			if p.id >= 0 {
				next = append(next, p)
				continue
			}
			next = append(next, t.split(p.text)...)
		}
		parts = next
	}
	return parts
}

// asciiBlanks are what C calls space.
const asciiBlanks = " \t\n\v\f\r"

func (t *specialToken) split(text string) []fragment {
	var parts []fragment
	for text != "" {
		before, after, found := strings.Cut(text, t.text)
		if !found {
			return append(parts, fragment{-1, text})
		}
		if t.left {
			before = strings.TrimRight(before, asciiBlanks)
		}
		if t.right {
			after = strings.TrimLeft(after, asciiBlanks)
		}
		if before != "" {
			parts = append(parts, fragment{-1, before})
		}
		parts = append(parts, fragment{t.id, t.text})
		text = after
	}
	return parts
}
