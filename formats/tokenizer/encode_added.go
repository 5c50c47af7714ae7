package tokenizer

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// tokenFinder finds added tokens in a text: the leftmost, the longest of those that begin
// at one place.
type tokenFinder struct {
	prefixes prefixes
	tokens   []AddedToken
}

// readAdded makes the finders. The library gives a token of the model the model's id,
// whatever the file says: files where the two differ are refused.
func (e *Encoder) readAdded(f *Fast, vocab map[string]int) error {
	e.raw, e.normal = new(tokenFinder), new(tokenFinder)
	e.added = make(map[int64]AddedToken)
	for _, t := range f.Added {
		if t.Content == "" {
			continue // the library passes over it
		}
		if id, ok := vocab[t.Content]; ok && int64(id) != t.ID {
			return fmt.Errorf("added_tokens: %q has the id %d, and %d in the vocabulary", t.Content, t.ID, id)
		}
		if other, ok := e.vocab[t.ID]; ok && other != t.Content {
			return fmt.Errorf("added_tokens: the id %d is that of %q and of %q", t.ID, other, t.Content)
		}
		content, finder := t.Content, e.raw
		if t.Normalized {
			finder = e.normal
			if e.normalize != nil {
				p, err := e.normalize(piece{text: content})
				if err != nil {
					return err
				}
				content = p.text
			}
		}
		e.added[t.ID] = AddedToken{ID: t.ID, Content: content, Special: t.Special}
		if content != "" {
			finder.prefixes.add(content, len(finder.tokens))
		}
		finder.tokens = append(finder.tokens, t)
	}
	e.raw.prefixes.sort()
	e.normal.prefixes.sort()
	return nil
}

// cut returns the pieces between added tokens, and the tokens. The spaces that a token
// takes with it are not looked at again.
func (f *tokenFinder) cut(p piece) []piece {
	var all []piece
	text := func(start, end int) {
		if start < end {
			all = append(all, piece{text: p.text[start:end], first: p.first && start == 0, id: -1})
		}
	}
	done := 0
	for at := 0; at < len(p.text); {
		index, end := -1, 0
		f.prefixes.find(p.text[at:], func(length, value int) { index, end = value, at+length })
		if index < 0 {
			at++
			continue
		}
		start, stop, token := at, end, f.tokens[index]
		at = end
		if token.SingleWord && (endsWord(p.text[:start]) || beginsWord(p.text[stop:])) {
			continue
		}
		if token.LStrip {
			start = max(done, len(strings.TrimRightFunc(p.text[:start], unicode.IsSpace)))
		}
		if token.RStrip {
			stop = len(p.text) - len(strings.TrimLeftFunc(p.text[stop:], unicode.IsSpace))
		}
		text(done, start)
		all = append(all, piece{text: p.text[start:stop], first: p.first && start == 0, id: int(token.ID)})
		done = stop
	}
	text(done, len(p.text))
	return all
}

func endsWord(text string) bool {
	r, size := utf8.DecodeLastRuneInString(text)
	return size > 0 && isWord(r)
}

func beginsWord(text string) bool {
	r, size := utf8.DecodeRuneInString(text)
	return size > 0 && isWord(r)
}

// isWord reports what \w stands for in Unicode's recommendation for regular expressions
// (UTS 18, annex C): letters, marks, decimal digits, connectors, and joiners.
func isWord(r rune) bool {
	return unicode.In(r, unicode.L, unicode.M, unicode.Nd, unicode.Nl, unicode.Pc, unicode.Other_Alphabetic, unicode.Join_Control)
}
