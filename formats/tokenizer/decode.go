package tokenizer

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// decoder turns the texts of tokens into parts of a text.
type decoder func(tokens []string) ([]string, error)

// Decode returns the text of ids, as the decoder of the file says; without special tokens
// unless special is set. Where the file has no decoder, spaces stand between the tokens.
func (e *Encoder) Decode(ids []int, special bool) (string, error) {
	var tokens []string
	for _, id := range ids {
		text, ok := e.Token(id)
		if !ok {
			return "", fmt.Errorf("no token has the id %d", id)
		}
		if special || !e.added[int64(id)].Special {
			tokens = append(tokens, text)
		}
	}
	if e.decode == nil {
		return strings.Join(tokens, " "), nil
	}
	parts, err := e.decode(tokens)
	return strings.Join(parts, ""), err
}

// newDecoder makes a step of the decoder. What is not known fails when it is used: many
// need no decoder.
func newDecoder(c *config) (decoder, error) {
	switch kind := c.text("type"); kind {
	case "Sequence":
		steps, err := items(c, "decoders", newDecoder)
		return func(tokens []string) ([]string, error) {
			var err error
			for _, step := range steps {
				if tokens, err = step(tokens); err != nil {
					return nil, err
				}
			}
			return tokens, nil
		}, err
	case "ByteLevel":
		return fromByteAlphabet, nil
	case "ByteFallback":
		return fromByteTokens, nil
	case "Fuse":
		return func(tokens []string) ([]string, error) { return []string{strings.Join(tokens, "")}, nil }, nil
	case "Replace":
		replace, err := newReplacement(c)
		return eachToken(func(_ int, t string) (string, error) {
			p, err := replace(piece{text: t})
			return p.text, err
		}), err
	case "Strip":
		content, start, stop := c.text("content"), int(c.number("start", 0)), int(c.number("stop", 0))
		return eachToken(func(_ int, t string) (string, error) { return cutEnds(t, content, start, stop), nil }), nil
	case "Metaspace":
		mark, keep := c.text("replacement"), c.text("prepend_scheme") == "never" || !c.flag("add_prefix_space", true)
		return eachToken(func(i int, t string) (string, error) {
			if i == 0 && !keep {
				return strings.ReplaceAll(t, mark, ""), nil
			}
			return strings.ReplaceAll(t, mark, " "), nil
		}), nil
	case "WordPiece":
		return newWordPieceDecoder(c.text("prefix"), c.flag("cleanup", true)), nil
	case "BPEDecoder":
		return newSuffixDecoder(c.text("suffix")), nil
	default:
		err := c.unsupported("%q is not known", kind)
		return func([]string) ([]string, error) { return nil, err }, nil
	}
}

// newSuffixDecoder makes spaces of what ends words, except at the end.
func newSuffixDecoder(suffix string) decoder {
	return func(tokens []string) ([]string, error) {
		all := make([]string, len(tokens))
		for i, t := range tokens {
			space := " "
			if i == len(tokens)-1 {
				space = ""
			}
			all[i] = strings.ReplaceAll(t, suffix, space)
		}
		return all, nil
	}
}

func eachToken(change func(i int, token string) (string, error)) decoder {
	return func(tokens []string) ([]string, error) {
		all := make([]string, len(tokens))
		for i, t := range tokens {
			var err error
			if all[i], err = change(i, t); err != nil {
				return nil, err
			}
		}
		return all, nil
	}
}

// fromByteAlphabet is the inverse of toByteAlphabet. A token with other characters, an
// added one, is text already.
func fromByteAlphabet(tokens []string) ([]string, error) {
	var b []byte
	for _, t := range tokens {
		whole := len(b)
		for _, r := range t {
			c, ok := byteOf[r]
			if !ok {
				b = append(b[:whole], t...)
				break
			}
			b = append(b, c)
		}
	}
	return []string{strings.ToValidUTF8(string(b), string(utf8.RuneError))}, nil
}

// fromByteTokens joins the bytes of tokens such as <0x0A>; bytes that are no text become
// one replacement character each.
func fromByteTokens(tokens []string) ([]string, error) {
	var all []string
	var b []byte
	flush := func() {
		switch {
		case utf8.Valid(b):
			all = append(all, string(b))
		default:
			all = append(all, strings.Repeat(string(utf8.RuneError), len(b)))
		}
		b = nil
	}
	for _, t := range tokens {
		if len(t) == 6 && strings.HasPrefix(t, "<0x") && t[5] == '>' {
			if c, err := strconv.ParseUint(t[3:5], 16, 8); err == nil {
				b = append(b, byte(c))
				continue
			}
		}
		flush()
		all = append(all, t)
	}
	flush()
	return all, nil
}

// cutEnds takes a text off the ends of a token, so many times at most.
func cutEnds(token, content string, start, stop int) string {
	for ; start > 0 && content != "" && strings.HasPrefix(token, content); start-- {
		token = token[len(content):]
	}
	for ; stop > 0 && content != "" && strings.HasSuffix(token, content); stop-- {
		token = token[:len(token)-len(content)]
	}
	return token
}

// tidier undoes the spaces that stand before punctuation and in contractions.
var tidier = []string{" .", ".", " ?", "?", " !", "!", " ,", ",", " ' ", "'", " n't", "n't", " 'm", "'m", " do not", " don't",
	" 's", "'s", " 've", "'ve", " 're", "'re"}

// newWordPieceDecoder puts spaces before the tokens that begin a word.
func newWordPieceDecoder(prefix string, tidy bool) decoder {
	return eachToken(func(i int, t string) (string, error) {
		if i > 0 {
			if rest, ok := strings.CutPrefix(t, prefix); ok {
				t = rest
			} else {
				t = " " + t
			}
		}
		for j := 0; tidy && j < len(tidier); j += 2 {
			t = strings.ReplaceAll(t, tidier[j], tidier[j+1])
		}
		return t, nil
	})
}
