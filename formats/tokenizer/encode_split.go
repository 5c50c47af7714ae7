package tokenizer

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// span is a part of a text that a pattern found, or that lies between two such.
type span struct {
	start, end int
	match      bool
}

// finder returns spans that cover a text.
type finder func(text string) ([]span, error)

// newSplitter makes a step of the pre-tokenizer.
func newSplitter(c *config) (splitter, error) {
	switch kind := c.text("type"); kind {
	case "Sequence":
		steps, err := items(c, "pretokenizers", newSplitter)
		return inTurn(steps), err
	case "ByteLevel":
		return newByteLevel(c)
	case "Split":
		return newSplit(c)
	case "Metaspace":
		return newMetaspace(c)
	case "Digits":
		how := contiguous
		if c.flag("individual_digits", false) {
			how = isolated
		}
		return cutting(runes(unicode.IsNumber), how), nil
	case "Whitespace":
		return inTurn([]splitter{cutting(runes(unicode.IsSpace), removed), cutting(runes(isWord), contiguous)}), nil
	case "WhitespaceSplit":
		return cutting(runes(unicode.IsSpace), removed), nil
	case "Punctuation":
		how, err := behaviorOf(c, "Isolated")
		return cutting(runes(isPunctuation), how), err
	case "BertPreTokenizer":
		return inTurn([]splitter{cutting(runes(unicode.IsSpace), removed), cutting(runes(isPunctuation), isolated)}), nil
	case "CharDelimiterSplit":
		return cutting(literal(c.text("delimiter")), removed), nil
	case "FixedLength":
		return newFixedLength(c)
	default:
		return nil, c.unsupported("%q is not known", kind)
	}
}

// inTurn lets each splitter split what the one before it left.
func inTurn(steps []splitter) splitter {
	return func(p piece) ([]piece, error) {
		all := []piece{p}
		for _, step := range steps {
			var next []piece
			for _, p := range all {
				more, err := step(p)
				if err != nil {
					return nil, err
				}
				next = append(next, more...)
			}
			all = next
		}
		return all, nil
	}
}

// isPunctuation reports punctuation, and the symbols of ASCII.
func isPunctuation(r rune) bool {
	return unicode.IsPunct(r) || r < utf8.RuneSelf && unicode.IsSymbol(r)
}

// cutting splits a text at what is found.
func cutting(find finder, how behavior) splitter {
	return func(p piece) ([]piece, error) {
		spans, err := find(p.text)
		if err != nil {
			return nil, err
		}
		return p.parts(how(spans)), nil
	}
}

// parts are the pieces of some spans that are not empty.
func (p piece) parts(spans []span) []piece {
	var all []piece
	for _, s := range spans {
		if s.start < s.end {
			all = append(all, piece{text: p.text[s.start:s.end], first: p.first && s.start == 0, id: -1})
		}
	}
	return all
}

// runes finds single characters.
func runes(is func(rune) bool) finder {
	return func(text string) ([]span, error) {
		var all []span
		done := 0
		for i, r := range text {
			if !is(r) {
				continue
			}
			if done < i {
				all = append(all, span{done, i, false})
			}
			done = i + utf8.RuneLen(r)
			all = append(all, span{i, done, true})
		}
		if done < len(text) {
			all = append(all, span{done, len(text), false})
		}
		return all, nil
	}
}

// literal finds a text.
func literal(pattern string) finder {
	return func(text string) ([]span, error) {
		var all []span
		done := 0
		for pattern != "" {
			i := strings.Index(text[done:], pattern)
			if i < 0 {
				break
			}
			if i > 0 {
				all = append(all, span{done, done + i, false})
			}
			all = append(all, span{done + i, done + i + len(pattern), true})
			done += i + len(pattern)
		}
		if done < len(text) {
			all = append(all, span{done, len(text), false})
		}
		return all, nil
	}
}

// newPattern reads a pattern, a text or a regular expression.
func newPattern(c *config) (finder, error) {
	o, err := c.object.Object("pattern")
	if err != nil {
		return nil, c.unsupported("%v", err)
	}
	inner := &config{object: o, part: c.part}
	_, isText := o.Get("String")
	_, isRegex := o.Get("Regex")
	switch {
	case isText && o.Len() == 1:
		text := inner.text("String")
		return literal(text), inner.err
	case isRegex && o.Len() == 1:
		text := inner.text("Regex")
		if inner.err != nil {
			return nil, inner.err
		}
		find, err := newRegex(text)
		if err != nil {
			return nil, c.unsupported("the regular expression %q: %v", text, err)
		}
		return find, nil
	}
	return nil, c.unsupported("the pattern is neither a text nor a regular expression")
}

func newSplit(c *config) (splitter, error) {
	find, err := newPattern(c)
	if err != nil {
		return nil, err
	}
	how, err := behaviorOf(c, "")
	if c.flag("invert", false) {
		return cutting(inverted(find), how), err
	}
	return cutting(find, how), err
}

func inverted(find finder) finder {
	return func(text string) ([]span, error) {
		spans, err := find(text)
		for i := range spans {
			spans[i].match = !spans[i].match
		}
		return spans, err
	}
}

// behavior decides what becomes of the parts of a text that a pattern found.
type behavior func([]span) []span

func behaviorOf(c *config, usual string) (behavior, error) {
	name := c.text("behavior")
	if name == "" {
		name = usual
	}
	switch name {
	case "Removed":
		return removed, nil
	case "Isolated":
		return isolated, nil
	case "MergedWithPrevious":
		return withPrevious, nil
	case "MergedWithNext":
		return withNext, nil
	case "Contiguous":
		return contiguous, nil
	}
	return nil, c.unsupported("the behavior %q is not known", name)
}

// isolated makes a piece of every part.
func isolated(spans []span) []span { return spans }

// removed drops what was found.
func removed(spans []span) []span {
	var all []span
	for _, s := range spans {
		if !s.match {
			all = append(all, s)
		}
	}
	return all
}

// contiguous joins neighbours that were both found, or both not.
func contiguous(spans []span) []span {
	var all []span
	for i, s := range spans {
		if i > 0 && s.match == spans[i-1].match {
			all[len(all)-1].end = s.end
			continue
		}
		all = append(all, s)
	}
	return all
}

// withPrevious joins what was found to the part before it, unless that was found too.
func withPrevious(spans []span) []span {
	var all []span
	for i, s := range spans {
		if s.match && i > 0 && !spans[i-1].match {
			all[len(all)-1].end = s.end
			continue
		}
		all = append(all, s)
	}
	return all
}

// withNext joins what was found to the part after it, unless that was found too.
func withNext(spans []span) []span {
	var all []span
	for i, s := range spans {
		if i > 0 && spans[i-1].match && !s.match {
			all[len(all)-1].end = s.end
			continue
		}
		all = append(all, s)
	}
	return all
}

// gpt2Words is the expression of GPT-2, which the byte level brings along.
const gpt2Words = `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`

// newByteLevel splits by the expression of GPT-2 and writes bytes as characters.
func newByteLevel(c *config) (splitter, error) {
	prefix := c.flag("add_prefix_space", true)
	words := isolatedWhole
	if c.flag("use_regex", true) {
		find, err := newRegex(gpt2Words)
		if err != nil {
			return nil, err
		}
		words = cutting(find, isolated)
	}
	return func(p piece) ([]piece, error) {
		if prefix && !strings.HasPrefix(p.text, " ") {
			p.text = " " + p.text
		}
		all, err := words(p)
		for i := range all {
			all[i].text = toByteAlphabet(all[i].text)
		}
		return all, err
	}, nil
}

func isolatedWhole(p piece) ([]piece, error) { return []piece{p}, nil }

// newMetaspace writes spaces as another character, and begins a word at each.
func newMetaspace(c *config) (splitter, error) {
	mark := c.text("replacement")
	if utf8.RuneCountInString(mark) != 1 {
		return nil, c.unsupported("the replacement of spaces is %q, want one character", mark)
	}
	scheme := c.text("prepend_scheme")
	if scheme == "" {
		scheme = "always"
		if !c.flag("add_prefix_space", true) { // older files
			scheme = "never"
		}
	}
	if scheme != "always" && scheme != "first" && scheme != "never" {
		return nil, c.unsupported("the prepend_scheme %q is not known", scheme)
	}
	words := isolatedWhole
	if c.flag("split", true) {
		words = cutting(literal(mark), withNext)
	}
	return func(p piece) ([]piece, error) {
		p.text = strings.ReplaceAll(p.text, " ", mark)
		if !strings.HasPrefix(p.text, mark) && (scheme == "always" || scheme == "first" && p.first) {
			p.text = mark + p.text
		}
		return words(p)
	}, nil
}

// newFixedLength cuts pieces of so many characters.
func newFixedLength(c *config) (splitter, error) {
	length := c.number("length", 5)
	if length < 1 {
		return nil, c.unsupported("pieces of %d characters", length)
	}
	return func(p piece) ([]piece, error) {
		var spans []span
		count, start := int64(0), 0
		for i := range p.text {
			if count == length {
				spans = append(spans, span{start, i, false})
				count, start = 0, i
			}
			count++
		}
		return p.parts(append(spans, span{start, len(p.text), false})), nil
	}, nil
}

// byteAlphabet writes every byte as a character that can be seen, as GPT-2 does: those of
// Latin-1 that can be seen stand for themselves, the others follow from U+0100.
var byteAlphabet, byteOf = func() (alphabet [256]rune, back map[rune]byte) {
	back = make(map[rune]byte)
	next := rune(0x100)
	for b := range alphabet {
		r := rune(b)
		if !('!' <= r && r <= '~' || '¡' <= r && r <= '¬' || '®' <= r && r <= 'ÿ') {
			r, next = next, next+1
		}
		alphabet[b], back[r] = r, byte(b)
	}
	return alphabet, back
}()

func toByteAlphabet(text string) string {
	var b strings.Builder
	for i := range len(text) {
		b.WriteRune(byteAlphabet[text[i]])
	}
	return b.String()
}
