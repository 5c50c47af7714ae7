package tokenizer

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// newNormalizer makes a step of the normalizer.
func newNormalizer(c *config) (normalizer, error) {
	switch kind := c.text("type"); kind {
	case "Sequence":
		steps, err := items(c, "normalizers", newNormalizer)
		return func(p piece) (piece, error) {
			for _, step := range steps {
				var err error
				if p, err = step(p); err != nil {
					return p, err
				}
			}
			return p, nil
		}, err
	case "NFC":
		return composed(norm.NFC), nil
	case "NFD":
		return composed(norm.NFD), nil
	case "NFKC":
		return composed(norm.NFKC), nil
	case "NFKD":
		return composed(norm.NFKD), nil
	case "Lowercase":
		return each(lowerCase), nil
	case "StripAccents":
		return each(without(unicode.M)), nil
	case "Strip":
		return stripped(c.flag("strip_left", true), c.flag("strip_right", true)), nil
	case "Nmt":
		return each(nmt), nil
	case "ByteLevel":
		return func(p piece) (piece, error) { p.text = toByteAlphabet(p.text); return p, nil }, nil
	case "Prepend":
		return prepended(c.text("prepend")), nil
	case "Replace":
		return newReplacement(c)
	case "BertNormalizer":
		return newBertNormalizer(c), nil
	default:
		return nil, c.unsupported("%q is not known", kind)
	}
}

// composed brings a text into a normal form of Unicode.
func composed(form norm.Form) normalizer {
	return func(p piece) (piece, error) {
		if manyMarks(p.text) {
			p.text = byDefinition(p.text, form)
		} else {
			p.text = form.String(p.text)
		}
		return p, nil
	}
}

// manyMarks reports a run of marks in which x/text may put a joiner, which the library
// does not. It does so after 30 that follow each other (Unicode's stream-safe format); a
// character brings 4 at most.
func manyMarks(text string) bool {
	run := 0
	for _, r := range text {
		if norm.NFD.PropertiesString(string(r)).CCC() == 0 {
			run = 0
		} else if run++; run > 6 {
			return true
		}
	}
	return false
}

// byDefinition takes the steps of a normal form one by one (Unicode 15, section 3.11):
// every character is decomposed, marks are sorted by their classes, and characters are
// composed with the one before, where nothing of their class lies between.
func byDefinition(text string, form norm.Form) string {
	class := func(r rune) uint8 { return norm.NFD.PropertiesString(string(r)).CCC() }
	apart := map[norm.Form]norm.Form{norm.NFC: norm.NFD, norm.NFD: norm.NFD, norm.NFKC: norm.NFKD, norm.NFKD: norm.NFKD}[form]
	var all []rune
	for _, r := range text {
		all = append(all, []rune(apart.String(string(r)))...)
	}
	for start := 0; start < len(all); start++ {
		end := start
		for end < len(all) && class(all[end]) != 0 {
			end++
		}
		slices.SortStableFunc(all[start:end], func(a, b rune) int { return int(class(a)) - int(class(b)) })
		start = end
	}
	if form == apart {
		return string(all)
	}
	var out []rune
	starter, last := -1, uint8(0) // where the last one of class 0 is, and the class after it
	for _, r := range all {
		c := class(r)
		if starter >= 0 && (last < c || starter == len(out)-1) {
			if pair := []rune(norm.NFC.String(string([]rune{out[starter], r}))); len(pair) == 1 {
				out[starter] = pair[0]
				continue
			}
		}
		out, last = append(out, r), c
		if c == 0 {
			starter = len(out) - 1
		}
	}
	return string(out)
}

// each replaces every character by a text; what is deleted from the front moves the
// beginning.
func each(replace func(rune) string) normalizer {
	return func(p piece) (piece, error) {
		var b strings.Builder
		for i, r := range p.text {
			s := replace(r)
			if i == 0 && s == "" {
				p.first = false
			}
			b.WriteString(s)
		}
		p.text = b.String()
		return p, nil
	}
}

// lowerCase is the lower case of a character by itself. Only one has a lower case of two
// characters (Unicode, SpecialCasing.txt).
func lowerCase(r rune) string {
	if r == '\u0130' {
		return "i\u0307"
	}
	return string(unicode.ToLower(r))
}

func without(table *unicode.RangeTable) func(rune) string {
	return func(r rune) string {
		if unicode.Is(table, r) {
			return ""
		}
		return string(r)
	}
}

// nmt deletes control characters and makes one space of every kind of blank, as the
// normalization of SentencePiece's that it is named after.
func nmt(r rune) string {
	switch {
	case r == '\t', r == '\n', r == '\f', r == '\r', r == 0x1680, 0x200B <= r && r <= 0x200F, r == 0x2028, r == 0x2029, r == 0x2581,
		r == 0xFEFF, r == 0xFFFD:
		return " "
	case 0 < r && r <= 0x1F, r == 0x7F, r == 0x8F, r == 0x9F:
		return ""
	}
	return string(r)
}

func stripped(left, right bool) normalizer {
	return func(p piece) (piece, error) {
		if left {
			rest := strings.TrimLeftFunc(p.text, unicode.IsSpace)
			p.first = p.first && len(rest) == len(p.text)
			p.text = rest
		}
		if right {
			p.text = strings.TrimRightFunc(p.text, unicode.IsSpace)
		}
		return p, nil
	}
}

func prepended(text string) normalizer {
	return func(p piece) (piece, error) {
		if p.text != "" {
			p.text = text + p.text
		}
		return p, nil
	}
}

// newReplacement replaces what a pattern finds.
func newReplacement(c *config) (normalizer, error) {
	find, err := newPattern(c)
	if err != nil {
		return nil, err
	}
	content := c.text("content")
	return func(p piece) (piece, error) {
		spans, err := find(p.text)
		if err != nil {
			return p, err
		}
		var b strings.Builder
		for i, s := range spans {
			if !s.match {
				b.WriteString(p.text[s.start:s.end])
				continue
			}
			if i == 0 && content == "" && s.end > s.start {
				p.first = false
			}
			b.WriteString(content)
		}
		p.text = b.String()
		return p, nil
	}, nil
}

// newBertNormalizer does what BERT does before it looks for words: it cleans, sets
// ideographs apart, takes accents off and writes lower case, in this order.
func newBertNormalizer(c *config) normalizer {
	lowercase := c.flag("lowercase", true)
	accents := c.flag("strip_accents", lowercase)
	var steps []normalizer
	if c.flag("clean_text", true) {
		steps = append(steps, each(clean))
	}
	if c.flag("handle_chinese_chars", true) {
		steps = append(steps, each(apart))
	}
	if accents {
		steps = append(steps, composed(norm.NFD), each(without(unicode.Mn)))
	}
	if lowercase {
		steps = append(steps, each(lowerCase))
	}
	return func(p piece) (piece, error) {
		for _, step := range steps {
			var err error
			if p, err = step(p); err != nil {
				return p, err
			}
		}
		return p, nil
	}
}

// clean deletes what is no text and makes one space of every kind of blank.
func clean(r rune) string {
	switch {
	case unicode.IsSpace(r) && !(0x0B <= r && r <= 0x0C) && r != 0x85:
		return " "
	case r == 0, r == utf8.RuneError, unicode.In(r, unicode.Cc, unicode.Cf, unicode.Co):
		return ""
	}
	return string(r)
}

// apart puts spaces around ideographs. One block begins 0x100 too late, as in the library.
func apart(r rune) string {
	switch {
	case 0x4E00 <= r && r <= 0x9FFF, 0x3400 <= r && r <= 0x4DBF, 0x20000 <= r && r <= 0x2A6DF, 0x2A700 <= r && r <= 0x2B73F,
		0x2B740 <= r && r <= 0x2B81F, 0x2B920 <= r && r <= 0x2CEAF, 0xF900 <= r && r <= 0xFAFF, 0x2F800 <= r && r <= 0x2FA1F:
		return " " + string(r) + " "
	}
	return string(r)
}
