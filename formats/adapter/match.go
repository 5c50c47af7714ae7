package adapter

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/internal/strictjson"
)

// maxPattern bounds the length of a regular expression from a config.
const maxPattern = 4096

// Patterns is a table of regular expressions to values, in file order; the
// first that matches counts, as in PEFT's get_pattern_key.
type Patterns[V any] struct {
	keys   []string
	res    []*regexp.Regexp
	values []V
	// Broken are the keys that Go's regular expressions can't express
	// (lookaround, backreferences).
	Broken []string
}

// add appends a pattern. PEFT matches "(.*\.)?(key)$" from the start of the
// module name.
func (p *Patterns[V]) add(key string, v V) {
	re, err := compile(`^(?:(?:.*\.)?(?:` + key + `)$)`)
	if err != nil {
		p.Broken = append(p.Broken, key)
		return
	}
	p.keys, p.res, p.values = append(p.keys, key), append(p.res, re), append(p.values, v)
}

func (p *Patterns[V]) lookup(module string) (v V, ok bool) {
	for i, re := range p.res {
		if re.MatchString(module) {
			return p.values[i], true
		}
	}
	return v, false
}

func compile(expr string) (*regexp.Regexp, error) {
	if len(expr) > maxPattern {
		return nil, fmt.Errorf("longer than %d characters", maxPattern)
	}
	if strings.Contains(expr, "{,") {
		return nil, fmt.Errorf("a repeat without a lower bound means something else here")
	}
	// In Python "." does not match a newline and "$" may stand before a last
	// one; module names contain none.
	return regexp.Compile(expr)
}

// Matcher is target_modules and its like: a list of names, of which each
// matches itself and everything that ends in "." and itself; or one regular
// expression for the whole name; or "all-linear". The zero value matches
// nothing.
type Matcher struct {
	Names     []string
	Expr      string
	AllLinear bool
	re        *regexp.Regexp
}

func newMatcher(v strictjson.Value) (Matcher, error) {
	if v.IsNull() {
		return Matcher{}, nil
	}
	if v.Kind() == strictjson.KindArray {
		names, err := v.Strings()
		return Matcher{Names: names}, err
	}
	expr, err := v.Text()
	if err != nil {
		return Matcher{}, err
	}
	if strings.EqualFold(expr, "all-linear") {
		return Matcher{Expr: expr, AllLinear: true}, nil
	}
	m := Matcher{Expr: expr}
	m.re, _ = compile(`^(?:` + expr + `)$`)
	return m, nil
}

// Empty reports whether the matcher was not given.
func (m Matcher) Empty() bool { return len(m.Names) == 0 && m.Expr == "" }

// Known reports whether Match can be relied on: not for "all-linear", which
// depends on the classes of the modules, nor for expressions that Go can't
// compile.
func (m Matcher) Known() bool { return m.Expr == "" || m.re != nil }

// Match reports whether the matcher covers a module.
func (m Matcher) Match(module string) bool {
	if m.re != nil {
		return m.re.MatchString(module)
	}
	for _, name := range m.Names {
		if MatchName(name, module) {
			return true
		}
	}
	return false
}

// MatchEnding reports whether the matcher covers a module when an entry of a
// list may begin anywhere in a component, as in feedforward_modules ("proj"
// covers "c_proj").
func (m Matcher) MatchEnding(module string) bool {
	if m.re != nil {
		return m.re.MatchString(module)
	}
	return slices.ContainsFunc(m.Names, func(name string) bool { return strings.HasSuffix(module, name) })
}

// MatchName reports whether one entry of a list covers a module.
func MatchName(name, module string) bool {
	return module == name || strings.HasSuffix(module, "."+name)
}

// MatchGlob matches a name against a pattern in which an asterisk stands for any
// text.
func MatchGlob(pattern, name string) bool {
	pieces := strings.Split(pattern, "*")
	rest, ok := strings.CutPrefix(name, pieces[0])
	if !ok {
		return false
	}
	for _, piece := range pieces[1 : len(pieces)-1] {
		i := strings.Index(rest, piece)
		if i < 0 {
			return false
		}
		rest = rest[i+len(piece):]
	}
	return strings.HasSuffix(rest, pieces[len(pieces)-1])
}

// layerIndex finds the number that PEFT takes for the index of the layer: the
// first numeric component, or the one after a component named in patterns. It
// has a component before and behind it, and another before that one.
func layerIndex(module string, patterns []string) (index int64, ok bool) {
	parts := strings.Split(module, ".")
	for i := 2; i < len(parts)-1; i++ {
		if !isNumber(parts[i]) || len(patterns) > 0 && !slices.Contains(patterns, parts[i-1]) {
			continue
		}
		index, err := strconv.ParseInt(parts[i], 10, 64)
		return index, err == nil
	}
	return 0, false
}

func isNumber(s string) bool {
	for _, c := range s {
		if c < '0' || c > '9' {
			return false
		}
	}
	return s != ""
}
