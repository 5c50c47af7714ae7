package strictjson

import (
	"bytes"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// quoted reads the string whose opening quote is at pos. The result is a part
// of the text itself, or of the scratch buffer if the string has escapes.
func (s *Scanner) quoted() ([]byte, error) {
	s.pos++
	start := s.pos
	if err := s.plain(); err != nil {
		return nil, err
	}
	if s.data[s.pos] == '"' {
		text := s.data[start:s.pos]
		s.pos++
		return text, nil
	}
	s.scratch = append(s.scratch[:0], s.data[start:s.pos]...)
	for {
		if err := s.escape(); err != nil {
			return nil, err
		}
		start = s.pos
		if err := s.plain(); err != nil {
			return nil, err
		}
		s.scratch = append(s.scratch, s.data[start:s.pos]...)
		if s.data[s.pos] == '"' {
			s.pos++
			return s.scratch, nil
		}
	}
}

// plain moves to the next quote or backslash. What lies before it is valid
// UTF-8 without control characters.
func (s *Scanner) plain() error {
	for s.pos < len(s.data) {
		c := s.data[s.pos]
		switch {
		case c == '"' || c == '\\':
			return nil
		case c < 0x20:
			return s.errorAt(s.pos, "control character "+strconv.QuoteRune(rune(c))+" in a string")
		case c < utf8.RuneSelf:
			s.pos++
		default:
			r, size := utf8.DecodeRune(s.data[s.pos:])
			if r == utf8.RuneError && size == 1 {
				return s.errorAt(s.pos, "invalid UTF-8 in a string")
			}
			s.pos += size
		}
	}
	return s.errorAt(s.pos, "text ends early, inside a string")
}

// escape appends what the escape at pos stands for to the scratch buffer.
func (s *Scanner) escape() error {
	start := s.pos
	if start+1 >= len(s.data) {
		return s.errorAt(len(s.data), "text ends early, inside a string")
	}
	c := s.data[start+1]
	s.pos += 2
	switch c {
	case '"', '\\', '/':
		s.scratch = append(s.scratch, c)
	case 'b':
		s.scratch = append(s.scratch, '\b')
	case 'f':
		s.scratch = append(s.scratch, '\f')
	case 'n':
		s.scratch = append(s.scratch, '\n')
	case 'r':
		s.scratch = append(s.scratch, '\r')
	case 't':
		s.scratch = append(s.scratch, '\t')
	case 'u':
		return s.unicodeEscape(start)
	default:
		return s.errorAt(start, "unknown escape in a string")
	}
	return nil
}

// unicodeEscape resolves the \u whose backslash is at start; pos is behind
// the u. A character outside the basic plane takes two of them, and one half
// alone stands for nothing.
func (s *Scanner) unicodeEscape(start int) error {
	r, ok := s.hex4()
	if !ok {
		return s.errorAt(start, `\u without four hexadecimal digits`)
	}
	if utf16.IsSurrogate(r) {
		if !bytes.HasPrefix(s.data[s.pos:], []byte(`\u`)) {
			return s.errorAt(start, "lone surrogate in a string")
		}
		s.pos += 2
		low, ok := s.hex4()
		if !ok {
			return s.errorAt(s.pos-2, `\u without four hexadecimal digits`)
		}
		if r = utf16.DecodeRune(r, low); r == utf8.RuneError {
			return s.errorAt(start, "lone surrogate in a string")
		}
	}
	s.scratch = utf8.AppendRune(s.scratch, r)
	return nil
}

// hex4 reads four hexadecimal digits of either case, and stays in place if
// they are not there.
func (s *Scanner) hex4() (rune, bool) {
	if len(s.data)-s.pos < 4 {
		return 0, false
	}
	var r rune
	for _, c := range s.data[s.pos : s.pos+4] {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	s.pos += 4
	return r, true
}

// literal reads true, false or null.
func (s *Scanner) literal(word string) ([]byte, error) {
	if !bytes.HasPrefix(s.data[s.pos:], []byte(word)) {
		return nil, s.errorAt(s.pos, "unknown literal, want "+word)
	}
	text := s.data[s.pos : s.pos+len(word)]
	s.pos += len(word)
	return text, nil
}

// nonFinite returns the word that stands at the position, of those that
// Python writes for numbers JSON does not have; empty if there is none or they
// are not allowed.
func (s *Scanner) nonFinite() string {
	if !s.python {
		return ""
	}
	for _, word := range []string{"NaN", "Infinity", "-Infinity"} {
		if bytes.HasPrefix(s.data[s.pos:], []byte(word)) {
			return word
		}
	}
	return ""
}

// number reads -? (0 | [1-9] digits) (. digits)? ([eE] [+-]? digits)?.
func (s *Scanner) number() ([]byte, error) {
	start := s.pos
	if s.peek() == '-' {
		s.pos++
	}
	if s.peek() == '0' {
		s.pos++
		if isDigit(s.peek()) {
			return nil, s.errorAt(start, "number with a leading zero")
		}
	} else if !s.digits() {
		return nil, s.unexpected("want a digit")
	}
	if s.peek() == '.' {
		s.pos++
		if !s.digits() {
			return nil, s.unexpected("want a digit after the decimal point")
		}
	}
	if c := s.peek(); c == 'e' || c == 'E' {
		s.pos++
		if c := s.peek(); c == '+' || c == '-' {
			s.pos++
		}
		if !s.digits() {
			return nil, s.unexpected("want a digit in the exponent")
		}
	}
	return s.data[start:s.pos], nil
}

// digits moves behind a run of digits and reports whether there was one.
func (s *Scanner) digits() bool {
	start := s.pos
	for isDigit(s.peek()) {
		s.pos++
	}
	return s.pos > start
}

// peek returns the byte at pos, or 0, which no number contains, at the end.
func (s *Scanner) peek() byte {
	if s.pos == len(s.data) {
		return 0
	}
	return s.data[s.pos]
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// excerpt quotes text for an error message, on one line and not all of it if
// it is long: keys come from the file and may have any length.
func excerpt[T string | []byte](text T) string {
	const limit = 64
	if len(text) <= limit {
		return strconv.Quote(string(text))
	}
	cut := limit
	for cut > 0 && !utf8.RuneStart(text[cut]) {
		cut--
	}
	return strconv.Quote(string(text[:cut])) + "..."
}
