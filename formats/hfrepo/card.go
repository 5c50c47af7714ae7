package hfrepo

import (
	"strings"
	"unicode"
)

// EscapeCell keeps a name from an input from becoming markup in a card, from ending its
// line and from reordering the text around it.
func EscapeCell(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.IsControl(r) || unicode.Is(unicode.Zl, r) || unicode.Is(unicode.Zp, r):
			return ' '
		case unicode.Is(unicode.Bidi_Control, r) || strings.ContainsRune("|<>`[]*\\", r):
			return '_'
		}
		return r
	}, s)
}

// FrontMatter returns the YAML block at the beginning of a card.
func FrontMatter(card string) ([]byte, bool) {
	rest, ok := strings.CutPrefix(strings.ReplaceAll(card, "\r\n", "\n"), "---\n")
	if !ok {
		return nil, false
	}
	front, _, ok := strings.Cut(rest, "\n---")
	return []byte(front), ok
}
