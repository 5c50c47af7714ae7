package tokenizer

import (
	"strings"
	"unicode"

	"golang.org/x/text/unicode/norm"
)

// wordPiece sets up "bert": words without case and accents, each cut from the left into
// the longest tokens. A word that can't be cut whole is the unknown token.
func (l *Llama) wordPiece(v LlamaKeys) (err error) {
	unknown, err := l.wanted(v, "unknown_token_id", 100)
	if err != nil {
		return err
	}
	if l.before, err = l.wanted(v, "bos_token_id", 101); err != nil {
		return err
	}
	if l.after, err = l.wanted(v, "seperator_token_id", 102); err != nil {
		return err
	}
	lower := v.flag("normalizer.lowercase", true)
	strip := v.flag("normalizer.strip_accents", lower)
	l.encode = func(text string, _ bool) ([]int, error) {
		var ids []int
		for _, word := range bertWords(text, lower, strip) {
			if found := l.longest("▁" + word); len(found) > 0 {
				ids = append(ids, found...)
				continue
			}
			ids = append(ids, unknown)
		}
		return ids, nil
	}
	return nil
}

// longest cuts a word from the left into the longest tokens; nil where it can't be.
func (l *Llama) longest(word string) []int {
	var ids []int
	for word != "" {
		size := min(len(word), l.max)
		id, ok := l.ids[word[:size]]
		for ; !ok && size > 1; id, ok = l.ids[word[:size]] {
			size--
		}
		if !ok {
			return nil
		}
		ids = append(ids, int(id))
		word = word[size:]
	}
	return ids
}

// bertWords splits a text at blanks and around punctuation and Chinese characters. What
// decomposes is its first character alone, marks or not: of a Korean syllable only the
// first letter is left, unlike in BERT.
func bertWords(text string, lower, strip bool) []string {
	var words []string
	var word strings.Builder
	end := func() {
		if word.Len() > 0 {
			words = append(words, word.String())
			word.Reset()
		}
	}
	for _, r := range text {
		if strip {
			r = []rune(norm.NFD.String(string(r)))[0]
		}
		class := classOf(r)
		switch {
		case class&classBlank != 0:
			end()
			continue
		case r == 0, r == unicode.ReplacementChar, class&classControl != 0, strip && class&classMark != 0:
			continue
		}
		alone := class&classPunctuation != 0 || r < 0x7F && class&classSymbol != 0 || isBertHan(r)
		if lower {
			r = unicode.ToLower(r)
		}
		if alone {
			end()
		}
		word.WriteRune(r)
		if alone {
			end()
		}
	}
	end()
	return words
}

// isBertHan goes by the blocks of tokenizers' BertNormalizer.
func isBertHan(r rune) bool {
	return 0x4E00 <= r && r <= 0x9FFF || 0x3400 <= r && r <= 0x4DBF || 0x20000 <= r && r <= 0x2A6DF ||
		0x2A700 <= r && r <= 0x2B81F || 0x2B920 <= r && r <= 0x2CEAF || 0xF900 <= r && r <= 0xFAFF || 0x2F800 <= r && r <= 0x2FA1F
}
