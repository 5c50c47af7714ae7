package mix

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/loratool/loratool/formats/gguf"
)

// Override gives a type to the tensors whose name has a place that the pattern matches.
//
// The pattern is a regular expression of the kind that C++ calls ECMAScript, as far as
// Go's means the same by it; what they read differently is refused, as are
// references back and looks ahead, which Go's lack. Letters are put in lower case,
// as the reference does.
type Override struct {
	Pattern string
	Type    gguf.Type
}

// ParseOverride reads an override from PATTERN=TYPE, as "attn_v=q8_0".
func ParseOverride(text string) (Override, error) {
	pattern, name, ok := strings.Cut(text, "=")
	switch {
	case !ok:
		return Override{}, patternError(text, errors.New("no type behind a \"=\""))
	case pattern == "":
		return Override{}, patternError(text, errors.New("no pattern before the \"=\""))
	}
	t, err := gguf.ParseType(name)
	if err != nil {
		return Override{}, patternError(text, err)
	}
	o := Override{Pattern: pattern, Type: t}
	_, err = o.compile()
	return o, err
}

// String returns the override as [ParseOverride] takes it.
func (o Override) String() string { return o.Pattern + "=" + o.Type.String() }

// pattern is an override in use.
type pattern struct {
	Override
	expr *regexp.Regexp
	used bool
}

// compileAll makes the overrides ready for use.
func compileAll(overrides []Override) ([]pattern, error) {
	patterns := make([]pattern, len(overrides))
	for i, o := range overrides {
		expr, err := o.compile()
		if err != nil {
			return nil, err
		}
		patterns[i] = pattern{Override: o, expr: expr}
	}
	return patterns, nil
}

// compile returns the regular expression of the pattern.
func (o Override) compile() (*regexp.Regexp, error) {
	if err := checkTarget(o.Type); err != nil {
		return nil, patternError(o.String(), err)
	}
	if err := checkPattern(o.Pattern); err != nil {
		return nil, patternError(o.String(), err)
	}
	expr, err := regexp.Compile(strings.ToLower(o.Pattern))
	if err != nil {
		return nil, patternError(o.String(), err)
	}
	return expr, nil
}

func patternError(text string, err error) error {
	return &OptionError{Option: "override " + quote(text), Reason: err.Error()}
}

// Escapes that mean the same to C++ and Go, and those that mean the opposite in
// lower case.
const (
	sameEscapes    = "dswbfnrtv"
	flippedEscapes = "DSWB"
)

var (
	// class is a class of characters inside a set, of those that both sides know.
	class = regexp.MustCompile(`^\[:(alnum|alpha|blank|cntrl|digit|graph|lower|print|punct|space|upper|xdigit):\]`)
	// repeat is a number of repeats.
	repeat = regexp.MustCompile(`^\{\d+(,\d*)?\}`)
)

// checkPattern refuses what Go takes for something else than C++ does, or C++ does
// not take.
func checkPattern(pattern string) error {
	inSet := false // between brackets
	for i := 0; i < len(pattern); i++ {
		c, rest := pattern[i], pattern[i:]
		var err error
		switch {
		case c < 32 || c > 126:
			err = errors.New("only printable ASCII is supported")
		case c == '\\':
			err = checkEscape(rest)
			i++
		case inSet && c == ']':
			inSet = false
		case inSet && c == '[':
			known := class.FindString(rest)
			if known == "" && len(rest) > 1 && strings.IndexByte(":=.", rest[1]) >= 0 {
				err = fmt.Errorf("\"%s\" in a set is not supported", rest[:2])
			}
			i += max(len(known)-1, 0)
		case inSet:
		case c == '[':
			inSet = true
			if strings.HasPrefix(rest, "[]") || strings.HasPrefix(rest, "[^]") {
				err = errors.New("an empty set: write \\] for a bracket in a set")
			}
		case c == '{' && !repeat.MatchString(rest):
			err = errors.New("a \"{\" that begins no number of repeats: write \\{")
		case strings.HasPrefix(rest, "(?") && !strings.HasPrefix(rest, "(?:"):
			err = errors.New("of the groups that begin with \"(?\", only \"(?:\" is supported")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// checkEscape refuses escapes other than those that all sides agree on.
func checkEscape(rest string) error {
	if len(rest) < 2 {
		return errors.New("a backslash at the end")
	}
	c := rest[1]
	switch {
	case strings.IndexByte(sameEscapes, c) >= 0:
		return nil
	case strings.IndexByte(flippedEscapes, c) >= 0:
		return fmt.Errorf("\\%c would mean \\%c: patterns are put in lower case", c, c|0x20)
	case '0' <= c && c <= '9', 'a' <= c|0x20 && c|0x20 <= 'z':
		return fmt.Errorf("\\%c is not supported", c)
	}
	return nil
}
