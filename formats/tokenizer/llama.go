package tokenizer

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// LlamaKeys is what the keys of a GGUF file say about its tokenizer. Tokens, scores and
// merges are kept, not copied.
type LlamaKeys struct {
	Model  string // tokenizer.ggml.model: "llama", "gpt2", "bert", ...
	Pre    string // tokenizer.ggml.pre, the name of the pre-tokenizer; empty where there is none
	Tokens []string
	Scores []float32 // of the tokens; may be missing
	Types  []int32   // of the tokens, as [PieceType]; may be missing
	Merges []string  // "left right", the first to be done first

	// IDs and Flags are the keys that are numbers and booleans, without the
	// "tokenizer.ggml." that they begin with: "bos_token_id", "add_bos_token", ...
	IDs   map[string]int64
	Flags map[string]bool

	Architecture, Name string // general.*: some tokens of some models take blanks along
}

// Llama turns text into ids as llama.cpp does with a GGUF file (version 0.5,
// src/llama-vocab.cpp and src/unicode.cpp). It does not change and may be used by many at
// once.
//
// A text goes through three steps: tokens that stand for themselves are cut out, the rest
// is split into words by the pre-tokenizer if the model is "gpt2", and each word becomes
// tokens. What llama.cpp stops at, or cannot load, is an error here.
type Llama struct {
	tokens  []string
	ids     map[string]int32 // the last of equal tokens
	special []specialToken
	encode  func(text string, first bool) ([]int, error)
	// before and after are put around a text; -1 is nothing.
	before, after int
	max           int // bytes of the longest token
}

// NewLlama makes the tokenizer of a vocabulary. An [UnsupportedError] names what is not
// known here, a [FormatError] what is wrong.
func NewLlama(v LlamaKeys) (*Llama, error) {
	family, ok := llamaFamilies[v.Model]
	if !ok {
		return nil, &UnsupportedError{"tokenizer.ggml.model", fmt.Sprintf("tokenizers of the kind %q", v.Model)}
	}
	l := &Llama{before: -1, after: -1}
	if err := l.readTokens(v); err != nil {
		return nil, err
	}
	types, err := l.readTypes(v)
	if err != nil {
		return nil, err
	}
	if l.special, err = l.specialTokens(v, types); err != nil {
		return nil, err
	}
	return l, family(l, v)
}

// llamaFamilies are the kinds of tokenizers, by tokenizer.ggml.model.
var llamaFamilies = map[string]func(*Llama, LlamaKeys) error{
	"llama":      (*Llama).sentencePiece,
	"bert":       (*Llama).wordPiece,
	"gpt2":       (*Llama).bytePairs,
	"gemma4":     (*Llama).bytePairs,
	"whitespace": (*Llama).betweenBlanks,
}

func (l *Llama) readTokens(v LlamaKeys) error {
	if len(v.Tokens) == 0 || len(v.Tokens) > maxPieces {
		return &FormatError{-1, fmt.Sprintf("%d tokens", len(v.Tokens))}
	}
	if len(v.Scores) > 0 && len(v.Scores) < len(v.Tokens) {
		return &FormatError{-1, fmt.Sprintf("%d scores for %d tokens", len(v.Scores), len(v.Tokens))}
	}
	l.tokens = slices.Clone(v.Tokens)
	l.ids = make(map[string]int32, len(v.Tokens))
	for id, token := range v.Tokens {
		if token == "" {
			token = fmt.Sprintf("[EMPTY_%d]", id)
			l.tokens[id] = token
		}
		if other, ok := l.ids[token]; ok {
			return &FormatError{-1, fmt.Sprintf("the token %q has the ids %d and %d", token, other, id)}
		}
		l.ids[token] = int32(id)
		l.max = max(l.max, len(token))
	}
	return nil
}

// Encode returns the ids of a text. Around asks for the tokens that the model wants in
// front of a text and behind it, special for control tokens to be found in it.
func (l *Llama) Encode(text string, around, special bool) ([]int, error) {
	if !utf8.ValidString(text) {
		return nil, fmt.Errorf("the text is not UTF-8")
	}
	ids := []int{}
	if around && l.before >= 0 {
		ids = append(ids, l.before)
	}
	first := true // in the text, or right behind a token that stands for itself
	for _, p := range l.cut(text, special) {
		if p.id >= 0 {
			ids, first = append(ids, p.id), true
			continue
		}
		more, err := l.encode(p.text, first)
		if err != nil {
			return nil, err
		}
		ids, first = append(ids, more...), false
	}
	if around && l.after >= 0 {
		ids = append(ids, l.after)
	}
	return ids, nil
}

// Token returns the text of a token as the vocabulary has it.
func (l *Llama) Token(id int) (string, bool) {
	if id < 0 || id >= len(l.tokens) {
		return "", false
	}
	return l.tokens[id], true
}

// id returns that of a key, or the usual one where the file has none that is in the
// vocabulary; -1 is none.
func (l *Llama) id(v LlamaKeys, key string, usual int) int {
	if usual >= len(l.tokens) {
		usual = -1
	}
	if id, ok := v.IDs[key]; ok && id >= 0 && id < int64(len(l.tokens)) {
		return int(id)
	}
	return usual
}

// wanted returns the id of a token that a text needs.
func (l *Llama) wanted(v LlamaKeys, key string, usual int) (int, error) {
	id := l.id(v, key, usual)
	if id < 0 {
		return 0, &FormatError{-1, fmt.Sprintf("no tokenizer.ggml.%s, which a text is to have", key)}
	}
	return id, nil
}

// surround sets the tokens around a text. Usual says which of the two are there unless the
// file says otherwise.
func (l *Llama) surround(v LlamaKeys, usualBegin bool, usualBOS, usualEOS int) (err error) {
	if v.flag("add_bos_token", usualBegin) {
		if l.before, err = l.wanted(v, "bos_token_id", usualBOS); err != nil {
			return err
		}
	}
	if v.flag("add_eos_token", false) {
		l.after, err = l.wanted(v, "eos_token_id", usualEOS)
	}
	return err
}

func (v LlamaKeys) flag(key string, usual bool) bool {
	if set, ok := v.Flags[key]; ok {
		return set
	}
	return usual
}

// sentencePiece sets up "llama": the text, with blanks written as U+2581, is merged into
// the pieces of the highest score; what is no piece becomes tokens of bytes.
func (l *Llama) sentencePiece(v LlamaKeys) error {
	if i := slices.IndexFunc(v.Scores, func(s float32) bool { return math.IsNaN(float64(s)) }); i >= 0 {
		return &FormatError{-1, fmt.Sprintf("the score of the token %d is no number", i)}
	}
	prefix := v.flag("add_space_prefix", true)
	rank := func(left, right string) (float64, bool) {
		id, ok := l.ids[left+right]
		if !ok || len(v.Scores) == 0 {
			return 0, ok
		}
		return -float64(v.Scores[id]), true
	}
	l.encode = func(text string, first bool) ([]int, error) {
		if first && prefix {
			text = " " + text
		}
		text = strings.ReplaceAll(text, " ", "▁")
		var ids []int
		for _, symbol := range mergePairs(strings.Split(text, ""), rank) {
			if id, ok := l.ids[symbol]; ok {
				ids = append(ids, int(id))
				continue
			}
			for _, b := range []byte(symbol) {
				id, err := l.byteToken(b)
				if err != nil {
					return nil, err
				}
				ids = append(ids, id)
			}
		}
		return ids, nil
	}
	return l.surround(v, true, 1, 2)
}

// byteToken returns the token of a byte: <0x0A>, or the byte itself.
func (l *Llama) byteToken(b byte) (int, error) {
	for _, text := range []string{fmt.Sprintf("<0x%02X>", b), string([]byte{b})} {
		if id, ok := l.ids[text]; ok {
			return int(id), nil
		}
	}
	return 0, fmt.Errorf("no token for the byte %#02x", b)
}

// bytePairs sets up "gpt2": the text is split into words, their bytes written in the
// alphabet of GPT-2, and merged.
func (l *Llama) bytePairs(v LlamaKeys) error {
	if v.Model == "gemma4" {
		v.Pre = "gemma4"
	}
	if v.Pre == noBlanks && v.Model != "whitespace" {
		return &UnsupportedError{"tokenizer.ggml.pre", fmt.Sprintf("the pre-tokenizer %q, at which llama.cpp stops with the kind %q", v.Pre, v.Model)}
	}
	pre, err := newLlamaPre(v.Pre)
	if err != nil {
		return err
	}
	ranks := make(map[string]int32, len(v.Merges))
	for i, merge := range v.Merges {
		if _, ok := ranks[merge]; !ok {
			ranks[merge] = int32(i)
		}
	}
	if len(ranks) == 0 && pre.name != "kimi-k2" {
		return &FormatError{-1, "no merges"}
	}
	rank := func(left, right string) (float64, bool) {
		r, ok := ranks[left+" "+right]
		return float64(r), ok
	}
	l.encode = func(text string, _ bool) ([]int, error) {
		if pre.escape {
			text = strings.ReplaceAll(text, " ", "▁")
		}
		words, err := pre.split(text)
		if err != nil {
			return nil, err
		}
		var ids []int
		for _, word := range words {
			ids = append(ids, l.mergeWord(word, pre, rank)...)
		}
		return ids, nil
	}
	bos, eos := 11, 11
	if v.Model == "gemma4" {
		bos, eos = -1, -1
	}
	if pre.name == "gemma4" {
		// The runtime sets it whatever the file says.
		v.Flags = map[string]bool{"add_bos_token": true, "add_eos_token": v.Flags["add_eos_token"]}
	}
	if pre.noBOS {
		bos = -1
	}
	return l.surround(v, pre.begin, bos, eos)
}

// betweenBlanks sets up "whitespace": blanks are gone, and what is between them is as in
// "gpt2".
func (l *Llama) betweenBlanks(v LlamaKeys) error {
	if err := l.bytePairs(v); err != nil {
		return err
	}
	lower := v.flag("normalizer.lowercase", v.Pre != noBlanks)
	encode := l.encode
	l.encode = func(text string, _ bool) ([]int, error) {
		var ids []int
		for _, word := range strings.FieldsFunc(text, unicode.IsSpace) {
			if lower {
				word = strings.Map(unicode.ToLower, word)
			}
			more, err := encode(word, false)
			if err != nil {
				return nil, err
			}
			ids = append(ids, more...)
		}
		return ids, nil
	}
	return nil
}

// noBlanks is the pre-tokenizer that llama.cpp stops at blanks with.
const noBlanks = "whitespace"

// mergeWord returns the ids of a word. Symbols without a token become those of their
// bytes; what has none of these either is lost, as in llama.cpp.
func (l *Llama) mergeWord(word string, pre *llamaPre, rank func(left, right string) (float64, bool)) []int {
	if !pre.raw {
		word = toByteAlphabet(word)
	}
	whole := pre.whole || pre.name == "gemma4" && strings.Trim(word, "\n") == ""
	if id, ok := l.ids[word]; ok && whole {
		return []int{int(id)}
	}
	var ids []int
	for _, symbol := range mergePairs(strings.Split(word, ""), rank) {
		if id, ok := l.ids[symbol]; ok {
			ids = append(ids, int(id))
			continue
		}
		for _, b := range []byte(symbol) {
			text := string([]byte{b})
			if pre.raw {
				text = fmt.Sprintf("<0x%02X>", b)
			}
			if id, ok := l.ids[text]; ok {
				ids = append(ids, int(id))
			}
		}
	}
	return ids
}
