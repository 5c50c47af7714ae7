package tokenizer

import "unicode"

// charClass is what llama.cpp knows of a character (src/unicode-data.cpp, Unicode 15.1). A
// character that is there is never 0; the place behind the end is.
type charClass uint8

const (
	classLetter charClass = 1 << iota
	classNumber
	classMark
	classPunctuation
	classSymbol
	classControl
	classBlank // besides another class
	classOther

	classWord = classLetter | classNumber
)

func classOf(r rune) charClass {
	class := classOther
	switch {
	case unicode.IsLetter(r), 0x2EBF0 <= r && r <= 0x2EE5D: // new in 15.1, which package unicode may lack
		class = classLetter
	case unicode.IsNumber(r):
		class = classNumber
	case unicode.IsMark(r):
		class = classMark
	case unicode.IsPunct(r):
		class = classPunctuation
	case unicode.IsSymbol(r), 0x2FFC <= r && r <= 0x2FFF, r == 0x31EF: // the same
		class = classSymbol
	case unicode.In(r, unicode.Cc, unicode.Cf, unicode.Co, unicode.Cs):
		class = classControl
	}
	if unicode.IsSpace(r) {
		class |= classBlank
	}
	return class
}

// splittersByHand are the expressions that llama.cpp does not run: it has written them out
// in C++ (src/unicode.cpp), not always to the letter.
var splittersByHand = map[string]func([]rune) []int{
	llamaGPT2: splitGPT2,
	llamaCased + letters + `|\p{N}{1,3}` + rest: words{digits: 3, with: classLetter}.split,
	llamaCased + letters + `|\p{N}` + rest:      words{digits: 1, with: classLetter}.split,
	llamaQwen35:                                 words{digits: 1, with: classLetter | classMark}.split,
	`\p{Han}+`:                                  splitKimi,
	`\p{AFMoE_digits}`:                          splitThousands,
	`\d{1,3}(?=(?:\d{3})*\b)`:                   splitThousands,
	llamaNewlines:                               splitNewlines,
}

const llamaQwen35 = llamaCased + `|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*` + spaces

// cutter walks over a text and notes where it was cut.
type cutter struct {
	text       []rune
	classes    []charClass
	at, before int // here, and the last cut
	lengths    []int
}

func newCutter(text []rune) *cutter {
	c := &cutter{text: text, classes: make([]charClass, len(text))}
	for i, r := range text {
		c.classes[i] = classOf(r)
	}
	return c
}

func (c *cutter) more() bool { return c.at < len(c.text) }

// cut ends a part n characters ahead.
func (c *cutter) cut(n int) {
	c.at += n
	c.lengths = append(c.lengths, c.at-c.before)
	c.before = c.at
}

// rune and class are those n characters ahead; -1 and 0 behind the end.
func (c *cutter) rune(n int) rune {
	if c.at+n >= len(c.text) {
		return -1
	}
	return c.text[c.at+n]
}

func (c *cutter) class(n int) charClass {
	if c.at+n >= len(c.text) {
		return 0
	}
	return c.classes[c.at+n]
}

// run counts the characters of some classes from n ahead; it returns where they end.
func (c *cutter) run(n int, classes charClass) int {
	for c.class(n)&classes != 0 {
		n++
	}
	return n
}

// others counts the characters of no such class.
func (c *cutter) others(n int, classes charClass) int {
	for class := c.class(n); class != 0 && class&classes == 0; class = c.class(n) {
		n++
	}
	return n
}

// newlines counts line ends.
func (c *cutter) newlines(n int) int {
	for c.rune(n) == '\r' || c.rune(n) == '\n' {
		n++
	}
	return n
}

// contraction returns the length of 's, 't, 're, 've, 'm, 'll or 'd n characters ahead, or
// 0. Fold is how a letter is looked at.
func (c *cutter) contraction(n int, fold func(rune) rune) int {
	if c.rune(n) != '\'' || c.rune(n+1) < 0 {
		return 0
	}
	switch first := fold(c.rune(n + 1)); first {
	case 's', 't', 'm', 'd':
		return 2
	case 'r', 'v', 'l':
		second := c.rune(n + 2)
		if second >= 0 && (first != 'l' && fold(second) == 'e' || first == 'l' && fold(second) == 'l') {
			return 3
		}
	}
	return 0
}

// blanks cuts blanks: the last one is left for the word behind them.
func (c *cutter) blanks() {
	switch n := c.run(0, classBlank); {
	case n > 1 && c.class(n) != 0:
		c.cut(n - 1)
	default:
		c.cut(max(n, 1))
	}
}

// splitGPT2 cuts words with a space before them, numbers, and the rest.
func splitGPT2(text []rune) []int {
	c := newCutter(text)
	for c.more() {
		if n := c.contraction(0, func(r rune) rune { return r }); n > 0 {
			c.cut(n)
			continue
		}
		start := 0
		if c.rune(0) == ' ' {
			start = 1
		}
		switch class := c.class(start); {
		case class&classLetter != 0:
			c.cut(c.run(start, classLetter))
		case class&classNumber != 0:
			c.cut(c.run(start, classNumber))
		case class != 0 && class&classBlank == 0:
			c.cut(c.others(start, classWord|classBlank))
		default:
			c.blanks()
		}
	}
	return c.lengths
}

// words is the expression of Llama 3 and its kin: how many digits a number has at most,
// and what its words are made of.
type words struct {
	digits int
	with   charClass
}

func (w words) split(text []rune) []int {
	c := newCutter(text)
	for c.more() {
		switch here, r := c.class(0), c.rune(0); {
		case c.contraction(0, unicode.ToLower) > 0:
			c.cut(c.contraction(0, unicode.ToLower))
		case r != '\r' && r != '\n' && here&classNumber == 0 && (here|c.class(1))&w.with != 0:
			c.cut(c.run(1, w.with))
		case here&classNumber != 0:
			c.digits(w.digits)
		default:
			c.rest(w.with)
		}
	}
	return c.lengths
}

// digits cuts a number of at most n digits.
func (c *cutter) digits(n int) {
	c.cut(min(n, c.run(0, classNumber)))
}

// rest cuts what is no word: signs with a space before them and line ends behind, blanks
// up to the last line end, other blanks.
func (c *cutter) rest(word charClass) {
	start := 0
	if c.rune(0) == ' ' {
		start = 1
	}
	word |= classNumber | classBlank
	if c.class(start) != 0 && c.class(start)&word == 0 {
		c.cut(c.newlines(c.others(start, word)))
		return
	}
	end := 0
	for n := 0; c.class(n)&classBlank != 0; n++ {
		if c.rune(n) == '\r' || c.rune(n) == '\n' {
			end = n + 1
		}
	}
	if end > 0 {
		c.cut(end)
		return
	}
	c.blanks()
}

// splitKimi is the expression of Kimi K2, which its name stands for: like that of Llama 3,
// but Chinese characters are words of their own and contractions part of the word before.
// Marks are no part of words here, though the expression of the model has them.
func splitKimi(text []rune) []int {
	c := newCutter(text)
	letter := func(n int) bool { return c.class(n)&classLetter != 0 && !isHan(c.rune(n)) }
	for c.more() {
		here, r := c.class(0), c.rune(0)
		n := 0
		if r != '\r' && r != '\n' && here&classWord == 0 {
			n = 1
		}
		switch {
		case isHan(r):
			for isHan(c.rune(n)) {
				n++
			}
			c.cut(n)
		case letter(n):
			for letter(n) {
				n++
			}
			c.cut(n + c.contraction(n, unicode.ToLower))
		case here&classNumber != 0:
			c.digits(3)
		default:
			c.rest(classLetter)
		}
	}
	return c.lengths
}

// isHan goes by blocks, up to extension F.
func isHan(r rune) bool {
	return 0x4E00 <= r && r <= 0x9FFF || 0x3400 <= r && r <= 0x4DBF || 0x20000 <= r && r <= 0x2A6DF ||
		0x2A700 <= r && r <= 0x2EBEF || 0xF900 <= r && r <= 0xFAFF || 0x2F800 <= r && r <= 0x2FA1F
}

// splitThousands cuts numbers into groups of three from the right. What stands before a
// number stays with its first group, which is not what the expressions say.
func splitThousands(text []rune) []int {
	c := newCutter(text)
	for c.more() {
		if c.class(0)&classNumber == 0 {
			c.at++
			continue
		}
		if n := c.run(0, classNumber) % 3; n > 0 {
			c.cut(n)
		}
		for c.class(0)&classNumber != 0 {
			c.cut(3)
		}
	}
	c.cut(0)
	return c.lengths
}

// splitNewlines cuts line ends from what is between them.
func splitNewlines(text []rune) []int {
	c := newCutter(text)
	for c.more() {
		n := 1
		for n < len(text)-c.at && (c.rune(n) == '\n') == (c.rune(0) == '\n') {
			n++
		}
		c.cut(n)
	}
	return c.lengths
}
