package tokenizer

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/loratool/loratool/internal/strictjson"
)

// readModel makes the model, and returns its vocabulary.
func (e *Encoder) readModel(f *Fast) (map[string]int, error) {
	o, ok, err := f.Root.OptObject("model")
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, &UnsupportedError{"model", "there is none"}
	}
	c := &config{object: o, part: "model"}
	vocab := f.ids
	e.vocab = f.Vocab
	keep := func(id int, text string) {
		vocab[text], e.vocab[int64(id)] = id, text
	}
	switch f.Model {
	case "BPE":
		e.model, err = newBPE(c, f, vocab)
	case "WordPiece":
		e.model = &wordPiece{vocab, c.text("unk_token"), c.text("continuing_subword_prefix"), int(c.number("max_input_chars_per_word", 100))}
	case "WordLevel":
		e.model = &wordLevel{vocab, c.text("unk_token")}
	case "Unigram":
		e.model, err = newUnigram(c, vocab, keep)
	default:
		return nil, c.unsupported("%q is not known", f.Model)
	}
	return vocab, errors.Join(err, c.err)
}

// bpe merges pairs of tokens, the one that comes first in the list of merges before all
// others.
type bpe struct {
	vocab          map[string]int
	ranks          map[[2]int32]int32 // of pairs of ids
	unknown        string
	prefix, suffix string // of what continues a word, of what ends it
	fuse           bool   // unknown characters in a row are one token
	bytes          bool   // unknown characters become tokens of bytes
	words          bool   // words that are tokens are not merged
}

func newBPE(c *config, f *Fast, vocab map[string]int) (*bpe, error) {
	m := &bpe{vocab: vocab, unknown: c.text("unk_token"), prefix: c.text("continuing_subword_prefix"), suffix: c.text("end_of_word_suffix"),
		fuse: c.flag("fuse_unk", false), bytes: f.ByteFallback, words: c.flag("ignore_merges", false)}
	if dropout := setting(c, "dropout", 0, (*strictjson.Object).OptFloat); dropout != 0 {
		return nil, c.unsupported("a dropout of %v: what is encoded depends on chance", dropout)
	}
	m.ranks = make(map[[2]int32]int32, len(f.Merges))
	for rank, pair := range f.Merges {
		right, ok := strings.CutPrefix(pair[1], m.prefix)
		if !ok {
			return nil, c.unsupported("merge %d: %q does not begin with %q", rank, pair[1], m.prefix)
		}
		for _, token := range []string{pair[0], pair[1], pair[0] + right} {
			if _, ok := vocab[token]; !ok {
				return nil, fmt.Errorf("model: merge %d: %q is not in the vocabulary", rank, token)
			}
		}
		m.ranks[[2]int32{int32(vocab[pair[0]]), int32(vocab[pair[1]])}] = int32(rank)
	}
	return m, nil
}

// Marks of symbols, bytes that no text holds: the first of a word, whose token has no
// prefix, and unknown ones, which are never merged.
const (
	firstMark   = "\xff"
	unknownMark = "\xfe"
)

// token returns the token of a symbol.
func (m *bpe) token(symbol string) string {
	if m.prefix == "" {
		return symbol
	}
	if token, ok := strings.CutPrefix(symbol, firstMark); ok {
		return token
	}
	return m.prefix + symbol
}

func (m *bpe) tokens(word string) ([]int, error) {
	if id, ok := m.vocab[word]; ok && m.words {
		return []int{id}, nil
	}
	symbols, err := m.symbols(word)
	if err != nil {
		return nil, err
	}
	merged := mergePairs(symbols, func(left, right string) (float64, bool) {
		l, known := m.vocab[m.token(left)]
		r, too := m.vocab[m.token(right)]
		rank, ok := m.ranks[[2]int32{int32(l), int32(r)}]
		return float64(rank), ok && known && too
	})
	ids := make([]int, len(merged))
	for i, symbol := range merged {
		token := m.token(symbol)
		if symbol == unknownMark {
			token = m.unknown
		}
		ids[i] = m.vocab[token]
	}
	return ids, nil
}

// symbols are what merging begins with: characters. One without a token becomes tokens
// of bytes, or the unknown token; where there is none it is passed over, as in the
// library. A pending unknown token comes after the bytes that follow it, likewise.
func (m *bpe) symbols(word string) ([]string, error) {
	var all []string
	pending := false
	flush := func() {
		if pending {
			all, pending = append(all, unknownMark), false
		}
	}
	for i, r := range word {
		end := i + utf8.RuneLen(r)
		symbol := word[i:end]
		if end == len(word) {
			symbol += m.suffix
		}
		if i == 0 && m.prefix != "" {
			symbol = firstMark + symbol
		}
		token := m.token(symbol)
		if _, ok := m.vocab[token]; ok {
			flush()
			all = append(all, symbol)
			continue
		}
		if names, ok := m.byteTokens(token); ok && m.prefix == "" {
			all = append(all, names...)
			continue
		}
		if m.unknown == "" {
			continue
		}
		if _, ok := m.vocab[m.unknown]; !ok {
			return nil, fmt.Errorf("model: %q is unknown, and so is the unknown token %q", token, m.unknown)
		}
		if !m.fuse {
			flush()
		}
		pending = true
	}
	flush()
	return all, nil
}

// byteTokens are the tokens of the bytes of a text, if all of them have one.
func (m *bpe) byteTokens(text string) ([]string, bool) {
	if !m.bytes {
		return nil, false
	}
	return byteTokens(text, m.vocab)
}

func byteTokens(text string, vocab map[string]int) ([]string, bool) {
	var names []string
	for i := range len(text) {
		name := fmt.Sprintf("<0x%02X>", text[i])
		if _, ok := vocab[name]; !ok {
			return nil, false
		}
		names = append(names, name)
	}
	return names, true
}

// wordLevel takes words as they are.
type wordLevel struct {
	vocab   map[string]int
	unknown string
}

func (m *wordLevel) tokens(word string) ([]int, error) {
	for _, token := range []string{word, m.unknown} {
		if id, ok := m.vocab[token]; ok {
			return []int{id}, nil
		}
	}
	return nil, fmt.Errorf("model: %q is unknown, and so is the unknown token %q", word, m.unknown)
}

// wordPiece takes the longest token that a word begins with, and so on; a word that
// can't be taken apart is unknown as a whole.
type wordPiece struct {
	vocab           map[string]int
	unknown, prefix string
	most            int // characters of a word
}

func (m *wordPiece) tokens(word string) ([]int, error) {
	var ids []int
	for at := 0; at < len(word); {
		id, end := m.longest(word, at)
		if end == at {
			ids = nil
			break
		}
		ids, at = append(ids, id), end
	}
	if ids != nil && utf8.RuneCountInString(word) <= m.most {
		return ids, nil
	}
	id, ok := m.vocab[m.unknown]
	if !ok {
		return nil, fmt.Errorf("model: %q is unknown, and so is the unknown token %q", word, m.unknown)
	}
	return []int{id}, nil
}

// longest finds the longest token at a place; where there is none it ends where it began.
func (m *wordPiece) longest(word string, at int) (id, end int) {
	for end = len(word); end > at; {
		text := word[at:end]
		if at > 0 {
			text = m.prefix + text
		}
		if id, ok := m.vocab[text]; ok {
			return id, end
		}
		_, size := utf8.DecodeLastRuneInString(word[at:end])
		end -= size
	}
	return 0, at
}

// unigram takes a word apart into the tokens with the highest sum of scores.
type unigram struct {
	vocab   map[string]int
	scores  []float64
	texts   prefixes
	unknown int // -1 where there is none
	penalty float64
	bytes   bool
}

// unknownPenalty is how much lower an unknown character's score is than any token's
// (tokenizers, models/unigram).
const unknownPenalty = 10

func newUnigram(c *config, vocab map[string]int, keep func(int, string)) (*unigram, error) {
	m := &unigram{vocab: vocab, unknown: int(c.number("unk_id", -1)), bytes: c.flag("byte_fallback", false)}
	entries, err := c.object.Items("vocab")
	if err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	lowest := math.Inf(1)
	for id, entry := range entries {
		text, score, err := scored(entry)
		if err != nil {
			return nil, fmt.Errorf("model: vocab: %d: %w", id, err)
		}
		if other, ok := vocab[text]; ok {
			return nil, fmt.Errorf("model: vocab: %q is there twice, as %d and %d", text, other, id)
		}
		keep(id, text)
		m.texts.add(text, id)
		m.scores = append(m.scores, score)
		lowest = min(lowest, score)
	}
	if m.unknown >= len(entries) {
		return nil, fmt.Errorf("model: the unknown token is %d of %d", m.unknown, len(entries))
	}
	m.texts.sort()
	m.penalty = lowest - unknownPenalty
	return m, nil
}

// scored reads ["text", score].
func scored(entry strictjson.Value) (string, float64, error) {
	pair, err := entry.Items()
	if err != nil {
		return "", 0, err
	}
	if len(pair) != 2 {
		return "", 0, fmt.Errorf("%d parts, want 2", len(pair))
	}
	text, err := pair[0].Text()
	if err != nil {
		return "", 0, err
	}
	literal, err := pair[1].Literal()
	if err != nil {
		return "", 0, err
	}
	if score, ok := libraryFloat(literal); ok {
		return text, score, nil
	}
	score, err := pair[1].Float()
	return text, score, err
}

// libraryFloat reads -D.DDD as the library does (serde_json without float_roundtrip): the
// digits as a whole number, over a power of ten. The last bit may be another one than that
// of the nearest number, and it decides between words that can be taken apart in two ways.
func libraryFloat(literal string) (float64, bool) {
	digits, negative := strings.CutPrefix(literal, "-")
	whole, fraction, _ := strings.Cut(digits, ".")
	n, err := strconv.ParseUint(whole+fraction, 10, 64)
	if err != nil || len(fraction) > 22 { // powers of ten are exact up to here
		return 0, false
	}
	score := float64(n) / math.Pow10(len(fraction))
	if negative {
		score = -score
	}
	return score, true
}

// node is the best way to an end of a prefix of a word: its last token begins at start.
type node struct {
	score     float64
	start, id int
	reached   bool
}

// reach keeps the better way; of equals that which was found first.
func (n *node) reach(score float64, start, id int) {
	if !n.reached || score > n.score {
		*n = node{score, start, id, true}
	}
}

func (m *unigram) tokens(word string) ([]int, error) {
	best := make([]node, len(word)+1)
	for at, r := range word {
		size := utf8.RuneLen(r)
		single := false
		m.texts.find(word[at:], func(length, id int) {
			best[at+length].reach(best[at].score+m.scores[id], at, id)
			single = single || length == size
		})
		if single {
			continue
		}
		if m.unknown < 0 {
			return nil, fmt.Errorf("model: %q is unknown, and there is no unknown token", word[at:at+size])
		}
		best[at+size].reach(best[at].score+m.penalty, at, m.unknown)
	}
	return m.trace(word, best), nil
}

// trace follows the best ways back. Unknown characters in a row are one token, or the
// tokens of their bytes.
func (m *unigram) trace(word string, best []node) []int {
	var back []int
	for end := len(word); end > 0; {
		n := best[end]
		start := n.start
		if n.id != m.unknown {
			back, end = append(back, n.id), start
			continue
		}
		for start > 0 && best[start].id == m.unknown {
			start = best[start].start
		}
		ids := []int{m.unknown}
		if names, ok := byteTokens(word[start:end], m.vocab); ok && m.bytes {
			ids = ids[:0]
			for i := range names {
				ids = append(ids, m.vocab[names[len(names)-1-i]])
			}
		}
		back, end = append(back, ids...), start
	}
	for i, j := 0, len(back)-1; i < j; i, j = i+1, j-1 {
		back[i], back[j] = back[j], back[i]
	}
	return back
}
