package tokenizer

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/dlclark/regexp2"
)

// This file runs the regular expressions of the tokenizers library, which are those of
// Oniguruma in Ruby's syntax (its doc/RE). They look ahead and behind, which package
// regexp cannot; regexp2 can, but reads some things otherwise: what \w and $ stand for,
// which characters are one without case, sets in sets, and quantifiers that give nothing
// back. So an expression is parsed here and written anew in what both take alike; what
// isn't known is refused.

// regexTime is how long one search may take: expressions of a file may take for ever.
const regexTime = 2 * time.Second

// newRegex makes a finder of an expression.
func newRegex(pattern string) (finder, error) {
	translated, err := translateRegex(pattern)
	if err != nil {
		return nil, err
	}
	re, err := regexp2.Compile(translated, regexp2.None)
	if err != nil {
		return nil, err
	}
	re.MatchTimeout = regexTime
	return func(text string) ([]span, error) {
		runes := []rune(text)
		offsets := make([]int, 0, len(runes)+1)
		for i := range text {
			offsets = append(offsets, i)
		}
		offsets = append(offsets, len(text))
		var all []span
		done, last := 0, -1
		m, err := re.FindRunesMatch(runes)
		for ; m != nil && err == nil; m, err = re.FindNextMatch(m) {
			start, end := offsets[m.Index], offsets[m.Index+m.Length]
			if start == end && start == last {
				continue // nothing, right after a match, is none
			}
			if done < start {
				all = append(all, span{done, start, false})
			}
			all = append(all, span{start, end, true})
			done, last = end, end
		}
		if err != nil {
			return nil, fmt.Errorf("the regular expression %q: %w", pattern, err)
		}
		if done < len(text) {
			all = append(all, span{done, len(text), false})
		}
		return all, nil
	}, nil
}

// The classes that the two write alike are not taken alike: these are Oniguruma's. By
// itself, but not in a set, \w has also the digits of Latin-1 that are no decimal ones.
const (
	regexSpace = `\p{White_Space}`
	regexDigit = `\p{Nd}`
	regexWord  = `\p{L}\p{M}\p{Nd}\p{Nl}\p{Pc}\p{Other_Alphabetic}`
	regexAlone = regexWord + `²³¹¼½¾`
	regexHex   = `0-9A-Fa-f`
)

// regexParser reads an expression. Its methods return what they have read, translated.
type regexParser struct {
	rest  string
	depth int
	fold  bool // without case
	last  rune // the letter right before, without case
}

// Bounds of what is read, far above any tokenizer's.
const (
	maxRegex      = 1 << 16
	maxRegexDepth = 50
	maxRepeat     = 1000
)

// translateRegex writes an expression of Oniguruma as one of regexp2.
func translateRegex(pattern string) (string, error) {
	if len(pattern) > maxRegex || !utf8.ValidString(pattern) {
		return "", fmt.Errorf("it is longer than %d bytes or no UTF-8", maxRegex)
	}
	p := &regexParser{rest: pattern}
	translated, err := p.alternatives()
	if err == nil && p.rest != "" {
		err = fmt.Errorf("a ) that nothing opens")
	}
	return translated, err
}

func (p *regexParser) take(prefix string) bool {
	rest, ok := strings.CutPrefix(p.rest, prefix)
	p.rest = rest
	return ok
}

// next takes one character; 0 at the end, which no expression holds.
func (p *regexParser) next() rune {
	r, size := utf8.DecodeRuneInString(p.rest)
	if size == 0 {
		return 0
	}
	p.rest = p.rest[size:]
	return r
}

// alternatives reads up to the end or a ).
func (p *regexParser) alternatives() (string, error) {
	var b strings.Builder
	p.last = 0
	for p.rest != "" && p.rest[0] != ')' {
		if p.take("|") {
			b.WriteByte('|')
			p.last = 0
			continue
		}
		atom, err := p.atom()
		if err != nil {
			return "", err
		}
		if atom, err = p.quantified(atom); err != nil {
			return "", err
		}
		b.WriteString(atom)
	}
	return b.String(), nil
}

// quantified reads the quantifiers after an atom. An atom that lets itself be repeated is
// one character, one set, or a group.
func (p *regexParser) quantified(atom string) (string, error) {
	for n := 0; ; n++ {
		times, interval, err := p.quantifier()
		if err != nil || times == "" {
			return atom, err
		}
		if n == maxRegexDepth {
			return "", fmt.Errorf("%d quantifiers, one after the other", n)
		}
		switch {
		case p.take("?"):
			if interval && !strings.Contains(times, ",") {
				return "", fmt.Errorf("%s? is not known", times)
			}
			atom = "(?:" + atom + times + "?)"
		case !interval && p.take("+"):
			atom = "(?>" + atom + times + ")"
		default:
			atom = "(?:" + atom + times + ")"
		}
	}
}

// quantifier reads one quantifier; an empty one where there is none.
func (p *regexParser) quantifier() (times string, interval bool, err error) {
	for _, q := range []string{"?", "*", "+"} {
		if p.take(q) {
			return q, false, nil
		}
	}
	m := regexInterval.FindStringSubmatch(p.rest)
	if m == nil || m[1] == "" && m[3] == "" {
		return "", false, nil // a brace is text where it holds no numbers
	}
	p.rest = p.rest[len(m[0]):]
	for _, digits := range []string{m[1], m[3]} {
		if n, err := strconv.Atoi("0" + digits); err != nil || n > maxRepeat {
			return "", false, fmt.Errorf("%s repetitions", digits)
		}
	}
	if m[1] == "" {
		m[1] = "0"
	}
	return "{" + m[1] + m[2] + m[3] + "}", true, nil
}

// regexInterval is {n}, {n,}, {,n} or {n,m}.
var regexInterval = regexp.MustCompile(`^\{([0-9]*)(,?)([0-9]*)\}`)

// atom reads what a quantifier applies to.
func (p *regexParser) atom() (string, error) {
	switch {
	case p.take("("):
		return p.group()
	case p.take("["):
		set, err := p.set()
		if err != nil {
			return "", err
		}
		return set.write(), nil
	case p.take("."):
		return `[^\n]`, nil
	case p.take("^"):
		return `(?:\A|(?<=\n)(?!\z))`, nil
	case p.take("$"):
		return `(?=\n|\z)`, nil
	case p.take(`\`):
		return p.escape()
	}
	r := p.next()
	if r == '*' || r == '+' || r == '?' {
		return "", fmt.Errorf("%c repeats nothing", r)
	}
	return p.letter(r)
}

// letter writes a character, with those that are the same without case if that is asked
// for. Some letters in a row are one other letter without case, ss and the sharp s: these
// are refused.
func (p *regexParser) letter(r rune) (string, error) {
	if p.fold && unicode.IsLetter(r) {
		pair := string(p.last) + string(unicode.ToLower(r))
		if p.last >= utf8.RuneSelf || p.last != 0 && r >= utf8.RuneSelf || strings.Contains("ss st ff fi fl", pair) {
			return "", fmt.Errorf("%s without case", pair)
		}
		p.last = unicode.ToLower(r)
	} else {
		p.last = 0
	}
	s := regexSet{fold: p.fold}
	s.add(r, r)
	return s.write(), nil
}

// group reads a group after its (. Groups that catch are not told from others, as nothing
// may refer to them.
func (p *regexParser) group() (string, error) {
	if p.depth++; p.depth > maxRegexDepth {
		return "", fmt.Errorf("groups in groups, %d deep", maxRegexDepth)
	}
	fold := p.fold
	defer func() { p.depth, p.fold = p.depth-1, fold }()
	defer func() { p.last = 0 }()
	kind := "(?:"
	if p.take("?") {
		i := slices.IndexFunc(regexGroups, p.take)
		if i < 0 {
			return "", fmt.Errorf("the group (?%.5s is not known", p.rest)
		}
		switch regexGroups[i] {
		case "i:":
			p.fold = true
		case "-i:":
			p.fold = false
		default:
			kind = "(?" + regexGroups[i]
		}
	}
	inner, err := p.alternatives()
	if err == nil && !p.take(")") {
		err = fmt.Errorf("a ( that nothing closes")
	}
	return kind + inner + ")", err
}

// regexGroups are the kinds of groups.
var regexGroups = []string{":", "=", "!", ">", "<=", "<!", "i:", "-i:"}

// set reads a set after its [. Sets in it are part of it; && cuts it with what follows.
func (p *regexParser) set() (*regexSet, error) {
	if p.depth++; p.depth > maxRegexDepth {
		return nil, fmt.Errorf("sets in sets, %d deep", maxRegexDepth)
	}
	defer func() { p.depth-- }()
	s := &regexSet{fold: p.fold, not: p.take("^")}
	for first := true; ; first = false {
		switch {
		case p.rest == "":
			return nil, fmt.Errorf("a [ that nothing closes")
		case first && p.rest[0] == ']', strings.HasPrefix(p.rest, "[:"), strings.HasPrefix(p.rest, "&&&"):
			return nil, fmt.Errorf("the set [%.5s is not known", p.rest)
		case p.take("]"):
			return s, nil
		case p.take("&&"):
			if first || strings.HasPrefix(p.rest, "]") {
				return nil, fmt.Errorf("a set cut with nothing")
			}
			s.cut()
		case p.take("["):
			inner, err := p.set()
			if err != nil {
				return nil, err
			}
			s.also = append(s.also, inner.write())
		default:
			if err := p.member(s); err != nil {
				return nil, err
			}
		}
	}
}

// member reads a character of a set, a range or a class.
func (p *regexParser) member(s *regexSet) error {
	low, single, err := p.bound(s)
	if err != nil || !single {
		return err
	}
	high := low
	if strings.HasPrefix(p.rest, "-") && !strings.HasPrefix(p.rest, "-]") && !strings.HasPrefix(p.rest, "-[") && !strings.HasPrefix(p.rest, "-&&") {
		p.take("-")
		if high, single, err = p.bound(s); err != nil {
			return err
		}
		if !single || high < low {
			return fmt.Errorf("a range from %q to nothing after it", low)
		}
	}
	s.add(low, high)
	return nil
}

// bound reads one character, single, or adds a class to the set.
func (p *regexParser) bound(s *regexSet) (r rune, single bool, err error) {
	if r = p.next(); r != '\\' {
		return r, true, nil
	}
	if p.rest != "" && strings.IndexByte("sdwhSDWHpP", p.rest[0]) >= 0 {
		return 0, false, p.escaped(s)
	}
	r, err = p.character(p.next())
	return r, true, err
}

// escape reads what follows a backslash, outside of sets.
func (p *regexParser) escape() (string, error) {
	switch {
	case p.take("b"):
		return fmt.Sprintf(`(?:(?<=[%[1]s])(?![%[1]s])|(?<![%[1]s])(?=[%[1]s]))`, regexAlone), nil
	case p.take("B"):
		return fmt.Sprintf(`(?:(?<=[%[1]s])(?=[%[1]s])|(?<![%[1]s])(?![%[1]s]))`, regexAlone), nil
	case p.take("A"):
		return `\A`, nil
	case p.take("z"):
		return `\z`, nil
	case p.take("Z"):
		return `(?=\n?\z)`, nil
	case p.take("w"):
		return "[" + regexAlone + "]", nil
	case p.take("W"):
		return "[^" + regexAlone + "]", nil
	}
	s := regexSet{fold: p.fold}
	if err := p.escaped(&s); err != nil {
		return "", err
	}
	return s.write(), nil
}

// escaped adds what follows a backslash to a set: a class, or one character.
func (p *regexParser) escaped(s *regexSet) error {
	r := p.next()
	switch r {
	case 's':
		return s.class(regexSpace)
	case 'd':
		return s.class(regexDigit)
	case 'w':
		return s.class(regexWord)
	case 'h':
		return s.class(regexHex)
	case 'S':
		return s.others(regexSpace)
	case 'D':
		return s.others(regexDigit)
	case 'W':
		return s.others(regexWord)
	case 'H':
		return s.others(regexHex)
	case 'p', 'P':
		return p.property(s, r == 'P')
	}
	c, err := p.character(r)
	if err != nil {
		return err
	}
	s.add(c, c)
	return nil
}

// character returns the one character that an escape stands for.
func (p *regexParser) character(r rune) (rune, error) {
	if i := strings.IndexRune("nrtfvae", r); i >= 0 {
		return rune("\n\r\t\f\v\a\x1b"[i]), nil
	}
	digits, braces := 0, false
	switch r {
	case 'x':
		digits, braces = 2, true
	case 'u':
		digits = 4
	}
	switch {
	case digits == 0 && r < utf8.RuneSelf && (unicode.IsLetter(r) || unicode.IsDigit(r)), r == 0:
		return 0, fmt.Errorf(`\%c is not known`, r)
	case digits == 0:
		return r, nil
	}
	text := p.rest[:min(digits, len(p.rest))]
	if braces && p.take("{") {
		var ok bool
		if text, p.rest, ok = strings.Cut(p.rest, "}"); !ok {
			return 0, fmt.Errorf(`a \x{ that nothing closes`)
		}
	} else {
		p.rest = p.rest[len(text):]
	}
	n, err := strconv.ParseUint(text, 16, 31)
	if err != nil || !utf8.ValidRune(rune(n)) {
		return 0, fmt.Errorf(`\%c%s is no character`, r, text)
	}
	return rune(n), nil
}

// property reads {L}, {^L}, {Han}: a category, a script or a property of Unicode.
func (p *regexParser) property(s *regexSet, not bool) error {
	if !p.take("{") {
		return fmt.Errorf(`\p without {`)
	}
	not = p.take("^") != not
	name, rest, ok := strings.Cut(p.rest, "}")
	if !ok {
		return fmt.Errorf(`a \p{ that nothing closes`)
	}
	p.rest = rest
	known, ok := regexProperties[plainName(name)]
	if !ok {
		return fmt.Errorf(`\p{%s} is not known`, name)
	}
	if s.fold && len(known) > 1 {
		return fmt.Errorf(`\p{%s} without case`, name)
	}
	if not {
		return s.others(`\p{` + known + `}`)
	}
	return s.class(`\p{` + known + `}`)
}

// plainName is a property's name as it is compared.
func plainName(name string) string {
	return strings.ToLower(strings.NewReplacer(" ", "", "_", "", "-", "").Replace(name))
}

// regexProperties are the names of properties, of both by plain names. C and Cn hold what
// Unicode has not assigned yet, which the tables here do not.
var regexProperties = func() map[string]string {
	all := make(map[string]string)
	for name := range unicode.Properties {
		all[plainName(name)] = name
	}
	for name := range unicode.Scripts {
		all[plainName(name)] = name
	}
	for name := range unicode.Categories {
		all[plainName(name)] = name
	}
	delete(all, "c")
	delete(all, "cn")
	for long, short := range map[string]string{
		"letter": "L", "mark": "M", "number": "N", "punctuation": "P", "punct": "P", "symbol": "S", "separator": "Z",
		"uppercaseletter": "Lu", "lowercaseletter": "Ll", "titlecaseletter": "Lt", "modifierletter": "Lm", "otherletter": "Lo",
		"nonspacingmark": "Mn", "spacingmark": "Mc", "enclosingmark": "Me", "decimalnumber": "Nd", "letternumber": "Nl", "othernumber": "No",
		"control": "Cc", "cntrl": "Cc", "format": "Cf", "space": "White_Space",
	} {
		all[long] = short
	}
	return all
}()

// regexSet is a set of characters: what stands in [], and any single one.
type regexSet struct {
	fold, not bool
	content   strings.Builder
	also      []string // expressions of one character that do not fit in brackets
	within    []string // sets that it is cut with
}

// add adds the characters from low to high, and those that are the same without case.
func (s *regexSet) add(low, high rune) {
	s.content.WriteString(regexQuote(low))
	if low != high {
		s.content.WriteString("-" + regexQuote(high))
	}
	for r := low; s.fold && r <= high; r++ {
		for c := unicode.SimpleFold(r); c != r; c = unicode.SimpleFold(c) {
			s.content.WriteString(regexQuote(c))
		}
	}
}

func (s *regexSet) class(content string) error {
	s.content.WriteString(content)
	return nil
}

func (s *regexSet) others(content string) error {
	s.also = append(s.also, "[^"+content+"]")
	return nil
}

// cut makes what was read so far a set to be cut with.
func (s *regexSet) cut() {
	so := regexSet{also: s.also}
	so.content.WriteString(s.content.String())
	s.within = append(s.within, so.write())
	s.also = nil
	s.content.Reset()
}

// write writes the set as an expression for one character.
func (s *regexSet) write() string {
	all := slices.Clone(s.also)
	if s.content.Len() > 0 {
		all = append([]string{"[" + s.content.String() + "]"}, all...)
	}
	if len(all) == 1 && len(s.within) == 0 {
		if !s.not {
			return all[0]
		}
		if len(s.also) == 0 {
			return "[^" + s.content.String() + "]"
		}
	}
	one := "(?:" + strings.Join(all, "|") + ")"
	for _, w := range s.within {
		one = "(?:(?=" + w + ")" + one + ")"
	}
	if s.not {
		return "(?:(?!" + one + `)[\s\S])`
	}
	return one
}

// regexQuote writes a character so that it stands for itself everywhere.
func regexQuote(r rune) string {
	switch {
	case r < 0x20 || 0x7F <= r && r <= 0xFFFF:
		return fmt.Sprintf(`\u%04X`, r)
	case r < 0x7F && !unicode.IsLetter(r) && !unicode.IsDigit(r):
		return fmt.Sprintf(`\x%02X`, r)
	}
	return string(r)
}
