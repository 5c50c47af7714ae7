package adapter

import (
	"fmt"
	"regexp"
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
	re, err := compile(`^(?:.*\.)?(?:` + key + `)$`)
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

// MatchName reports whether one entry of a list covers a module.
func MatchName(name, module string) bool {
	return module == name || strings.HasSuffix(module, "."+name)
}

// layerIndex finds the number that PEFT takes for the index of the layer: the
// first numeric component, or the one after a component named in patterns.
func layerIndex(module string, patterns []string) (index string, ok bool) {
	parts := strings.Split(module, ".")
	for i := 1; i < len(parts); i++ {
		if !isNumber(parts[i]) {
			continue
		}
		if len(patterns) == 0 {
			return parts[i], true
		}
		for _, p := range patterns {
			// The pattern needs something before it: it never is the first part.
			if i >= 2 && parts[i-1] == p {
				return parts[i], true
			}
		}
	}
	return "", false
}

func isNumber(s string) bool {
	for _, c := range s {
		if c < '0' || c > '9' {
			return false
		}
	}
	return s != ""
}
