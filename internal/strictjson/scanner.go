// Package strictjson reads JSON from files that are not trusted, and edits and
// writes the small configuration files that travel with a model.
//
// The standard decoder keeps the last of two equal keys, matches keys of other
// case, replaces invalid UTF-8 and lone surrogates by U+FFFD and turns null
// into a zero value, so that two readers of one file may see two things. This
// package follows RFC 8259 to the letter and refuses all of that.
//
// [Scanner] pulls tokens with their byte offsets and keeps nothing but the
// open containers and their keys; a header of 100 MB needs little memory.
// [Parse] builds an ordered tree of [Value] and [Object] that can be edited
// and encoded again without loss: keys keep their order and numbers their
// spelling.
package strictjson

import (
	"fmt"
	"math"
	"unicode/utf8"
)

// MaxDepth is the number of containers that may lie in each other. It is the
// limit of the reader that most model files were written for.
const MaxDepth = 128

// maxInput keeps offsets within the 32 bits that the set of seen keys stores.
const maxInput = math.MaxUint32

// Kind tells tokens and values apart.
type Kind uint8

// The kinds of tokens. The first six are also the kinds of values; for the
// scanner, KindArray and KindObject open a container.
const (
	KindNull Kind = iota
	KindBool
	KindNumber
	KindString
	KindArray
	KindObject
	KindKey
	KindArrayEnd
	KindObjectEnd
	KindEnd
)

var kindNames = [...]string{
	KindNull:      "null",
	KindBool:      "a boolean",
	KindNumber:    "a number",
	KindString:    "a string",
	KindArray:     "an array",
	KindObject:    "an object",
	KindKey:       "a key",
	KindArrayEnd:  "the end of an array",
	KindObjectEnd: "the end of an object",
	KindEnd:       "the end of the text",
}

// String returns the kind as part of a sentence: "an array".
func (k Kind) String() string { return kindNames[k] }

// Token is one piece of JSON text.
type Token struct {
	Kind Kind
	// Offset is the position of the token's first byte.
	Offset int64
	// Text holds the contents of a key or string with escapes resolved, and
	// the spelling of a number, boolean or null. It is valid until the next
	// call of [Scanner.Next].
	Text []byte
}

// SyntaxError reports text that is not strict JSON.
type SyntaxError struct {
	Offset int64 // of the first byte that is wrong
	Reason string
}

// Error returns the reason and the place.
func (e *SyntaxError) Error() string {
	return fmt.Sprintf("%s at byte %d", e.Reason, e.Offset)
}

// Scanner pulls the tokens of one JSON text. It holds on to the text and never
// changes it.
type Scanner struct {
	data    []byte
	pos     int
	expect  expectation
	open    []container // one per container around pos
	scratch []byte      // the last string that had escapes
	err     error

	// python allows the numbers that Python writes and JSON does not have.
	python bool
}

// expectation is what the grammar allows next.
type expectation uint8

const (
	expectValue        expectation = iota
	expectItemOrEnd                // after [
	expectKeyOrEnd                 // after {
	expectCommaOrClose             // after a value in a container
	expectNothing                  // after the outermost value
)

// container is an open array or object.
type container struct {
	isObject bool
	keys     keySet
}

// NewScanner returns a scanner at the start of data.
func NewScanner(data []byte) *Scanner {
	s := &Scanner{data: data}
	if uint64(len(data)) > maxInput {
		s.err = &SyntaxError{Reason: "text is longer than 4 GiB", Offset: maxInput}
	}
	return s
}

// Next returns the next token. After the outermost value it returns
// [KindEnd], for ever, provided that nothing but white space is left: a text
// is only known to be valid once KindEnd was seen. Errors are of type
// [*SyntaxError] and final.
func (s *Scanner) Next() (Token, error) {
	if s.err != nil {
		return Token{}, s.err
	}
	t, err := s.next()
	if err != nil {
		s.err = err
		return Token{}, err
	}
	return t, nil
}

func (s *Scanner) next() (Token, error) {
	s.skipSpace()
	if s.expect == expectCommaOrClose && s.pos < len(s.data) && s.data[s.pos] == ',' {
		s.pos++
		s.skipSpace()
		if s.top().isObject {
			return s.key()
		}
		return s.value()
	}
	switch s.expect {
	case expectItemOrEnd, expectKeyOrEnd, expectCommaOrClose:
		if s.atClose() {
			return s.close(), nil
		}
	}
	switch s.expect {
	case expectKeyOrEnd:
		return s.key()
	case expectCommaOrClose:
		return Token{}, s.unexpected(fmt.Sprintf("want ',' or '%c'", s.top().closer()))
	case expectNothing:
		if s.pos < len(s.data) {
			return Token{}, s.unexpected("after the end of the value")
		}
		return Token{Kind: KindEnd, Offset: int64(s.pos)}, nil
	}
	return s.value()
}

// key reads a key and the colon after it.
func (s *Scanner) key() (Token, error) {
	if s.pos == len(s.data) || s.data[s.pos] != '"' {
		return Token{}, s.unexpected("want a key in double quotes")
	}
	start := s.pos
	text, err := s.quoted()
	if err != nil {
		return Token{}, err
	}
	if !s.top().keys.add(s.data, start, text) {
		return Token{}, s.errorAt(start, "duplicate key "+excerpt(text))
	}
	s.skipSpace()
	if s.pos == len(s.data) || s.data[s.pos] != ':' {
		return Token{}, s.unexpected("want ':' after a key")
	}
	s.pos++
	s.expect = expectValue
	return Token{Kind: KindKey, Offset: int64(start), Text: text}, nil
}

// value reads a scalar or opens a container.
func (s *Scanner) value() (Token, error) {
	start := s.pos
	if start == len(s.data) {
		return Token{}, s.unexpected("want a value")
	}
	t := Token{Offset: int64(start)}
	var err error
	switch c := s.data[start]; c {
	case '{', '[':
		if len(s.open) == MaxDepth {
			return Token{}, s.errorAt(start, fmt.Sprintf("nesting deeper than %d levels", MaxDepth))
		}
		return s.enter(c == '{'), nil
	case '"':
		t.Kind = KindString
		t.Text, err = s.quoted()
	case 't':
		t.Kind = KindBool
		t.Text, err = s.literal("true")
	case 'f':
		t.Kind = KindBool
		t.Text, err = s.literal("false")
	case 'n':
		t.Kind = KindNull
		t.Text, err = s.literal("null")
	case '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'N', 'I':
		t.Kind = KindNumber
		if word := s.nonFinite(); word != "" {
			t.Text, err = s.literal(word)
			break
		}
		if c > '9' {
			return Token{}, s.unexpected("want a value")
		}
		t.Text, err = s.number()
	default:
		return Token{}, s.unexpected("want a value")
	}
	if err != nil {
		return Token{}, err
	}
	s.afterValue()
	return t, nil
}

func (s *Scanner) enter(isObject bool) Token {
	t := Token{Kind: KindArray, Offset: int64(s.pos)}
	s.expect = expectItemOrEnd
	if isObject {
		t.Kind = KindObject
		s.expect = expectKeyOrEnd
	}
	s.pos++
	// A closed container's place is used again, with the memory of its keys:
	// most objects have few keys and many siblings.
	if len(s.open) < cap(s.open) {
		s.open = s.open[:len(s.open)+1]
		s.top().keys.reset()
	} else {
		s.open = append(s.open, container{})
	}
	s.top().isObject = isObject
	return t
}

func (s *Scanner) atClose() bool {
	return s.pos < len(s.data) && s.data[s.pos] == s.top().closer()
}

func (s *Scanner) close() Token {
	t := Token{Kind: KindArrayEnd, Offset: int64(s.pos)}
	if s.top().isObject {
		t.Kind = KindObjectEnd
	}
	s.pos++
	s.open = s.open[:len(s.open)-1]
	s.afterValue()
	return t
}

func (s *Scanner) afterValue() {
	s.expect = expectCommaOrClose
	if len(s.open) == 0 {
		s.expect = expectNothing
	}
}

func (s *Scanner) top() *container { return &s.open[len(s.open)-1] }

func (c *container) closer() byte {
	if c.isObject {
		return '}'
	}
	return ']'
}

func (s *Scanner) skipSpace() {
	for s.pos < len(s.data) {
		switch s.data[s.pos] {
		case ' ', '\t', '\n', '\r':
			s.pos++
		default:
			return
		}
	}
}

// unexpected reports the byte at pos, or that there is none.
func (s *Scanner) unexpected(want string) error {
	if s.pos == len(s.data) {
		return s.errorAt(s.pos, "text ends early, "+want)
	}
	if s.pos == 0 && hasBOM(s.data) {
		return s.errorAt(0, "text starts with a byte order mark")
	}
	r, size := utf8.DecodeRune(s.data[s.pos:])
	if r == utf8.RuneError && size == 1 {
		return s.errorAt(s.pos, "invalid UTF-8")
	}
	return s.errorAt(s.pos, fmt.Sprintf("unexpected %q, %s", r, want))
}

func (s *Scanner) errorAt(offset int, reason string) error {
	return &SyntaxError{Offset: int64(offset), Reason: reason}
}

func hasBOM(data []byte) bool {
	return len(data) >= 3 && data[0] == 0xEF && data[1] == 0xBB && data[2] == 0xBF
}
