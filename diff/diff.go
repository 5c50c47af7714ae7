// Package diff says how two checkpoints differ: first their structure (tensors of
// one side only, shapes, element types, settings, files), then the numbers of every
// tensor that both have.
//
// [Open] pairs the tensors from headers. [Diff.Tasks] are the reading, cut into
// pieces of bounded size that engine.Each runs: equal bytes are recognised before
// anything is decoded, and all else is compared as the numbers that it stands for,
// whatever it is stored as. [Diff.Norms] are what is left to read of tensors of which
// only a part was equal. [Diff.Result] adds up, always in the order of the data, so
// that the figures do not depend on jobs or memory.
//
// Two adapters are also compared by what they do: the products of their factors, see
// [Product]. Equal changes may have factors that are far apart.
package diff

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
)

// Options shapes a comparison.
type Options struct {
	Limits Limits
	// Only, if not empty, names the modules or tensors to compare; Exclude those to
	// leave out. A name covers a module as in PEFT, whole or from a dot on; an
	// asterisk stands for anything.
	Only, Exclude []string
	// TensorsOnly leaves config.json, the keys of GGUF and the files beside the
	// weights out of the comparison.
	TensorsOnly bool
}

// Validate reports the first field that does not make sense.
func (o Options) Validate() error { return o.Limits.validate() }

// Limits says which differences of numbers are none. Without any, two tensors must
// hold the same bits and two models must be stored alike; with one, only numbers
// count and not how they are stored.
//
// An element is within the limits if |a-b| <= Abs + Rel·max(|a|,|b|), or if no more
// than ULP steps of the coarser of the two element types lie between a and b. Two
// NaNs are within any limits and so is the same infinity twice; any other value that
// is not finite is in none.
//
// A tensor is within the limits if all its elements are, and if its relative error
// is at most Error: ||A-B|| / max(||A||,||B||), Frobenius norms. Error does not
// bind elements: where it alone is given, they may be anything.
type Limits struct {
	Abs, Rel float64
	ULP      uint64
	Error    float64
}

// None reports whether nothing but equality is good enough.
func (l Limits) None() bool { return l == Limits{} }

// elements reports whether single elements have limits.
func (l Limits) elements() bool { return l.Abs > 0 || l.Rel > 0 || l.ULP > 0 }

func (l Limits) validate() error {
	for _, v := range []struct {
		name  string
		value float64
	}{{"absolute", l.Abs}, {"relative", l.Rel}, {"error", l.Error}} {
		if !(v.value >= 0) || math.IsInf(v.value, 1) {
			return fmt.Errorf("the %s limit %v is not a number from 0 on", v.name, v.value)
		}
	}
	return nil
}

// Diff is two checkpoints side by side, and what is found when they are compared.
type Diff struct {
	a, b      *checkpoint.Model
	opts      Options
	structure []Difference
	pairs     []*pair
	products  []*product
	pieces    []*piece
	rename    string // how names of the two sides were brought together

	rawA, rawB map[string]tensor.Spec // as stored, by name
}

// Open pairs the tensors of two checkpoints and compares their structure. It reads
// headers, settings and the small files beside the weights only. A GGUF file is compared
// with another one, or with a model that is seen as one ([checkpoint.Model.As]): of those
// two only tensors are compared, and how they are stored is no difference.
func Open(a, b *checkpoint.Model, o Options) (*Diff, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if (a.GGUF() == nil) != (b.GGUF() == nil) && !a.Computed && !b.Computed {
		m := a
		if a.GGUF() == nil {
			m = b
		}
		return nil, inputErrorf(m, "it is GGUF and the other side is not: their tensors have other names, and the rows of some another order; convert one of them")
	}
	d := &Diff{a: a, b: b, opts: o, rawA: rawSpecs(a), rawB: rawSpecs(b)}
	if err := d.checkPatterns(); err != nil {
		return nil, err
	}
	d.match()
	if err := d.findProducts(); err != nil {
		return nil, err
	}
	if !o.TensorsOnly && !d.computed() {
		d.compareSettings()
		if err := d.compareFiles(); err != nil {
			return nil, err
		}
	}
	for _, p := range d.pairs {
		d.compareSpecs(p)
		d.cut(p)
	}
	return d, nil
}

// computed reports whether one side is not read as it is stored.
func (d *Diff) computed() bool { return d.a.Computed || d.b.Computed }

// checkPatterns refuses a pattern that covers nothing: it is a mistake, and a
// comparison of nothing finds no difference.
func (d *Diff) checkPatterns() error {
	for _, list := range []struct {
		flag     string
		patterns []string
	}{{"only", d.opts.Only}, {"exclude", d.opts.Exclude}} {
		for _, pattern := range list.patterns {
			if !d.namesAny(pattern) {
				return &PatternError{list.flag, pattern}
			}
		}
	}
	return nil
}

func (d *Diff) namesAny(pattern string) bool {
	for _, m := range []*checkpoint.Model{d.a, d.b} {
		for _, s := range m.Specs() {
			if covers(pattern, s.Name) {
				return true
			}
		}
	}
	return false
}

// PatternError says that a pattern covers no tensor of either side.
type PatternError struct{ List, Pattern string }

func (e *PatternError) Error() string {
	return fmt.Sprintf("--%s %q names no module or tensor of either side", e.List, e.Pattern)
}

// chosen reports whether a tensor is to be compared.
func (d *Diff) chosen(name string) bool {
	named := func(p string) bool { return covers(p, name) }
	return (len(d.opts.Only) == 0 || slices.ContainsFunc(d.opts.Only, named)) && !slices.ContainsFunc(d.opts.Exclude, named)
}

// covers reports whether a pattern names a tensor or one of the modules it lies in.
func covers(pattern, tensor string) bool {
	for name := tensor; ; {
		if adapter.MatchGlob("*."+pattern, "."+name) {
			return true
		}
		i := strings.LastIndexByte(name, '.')
		if i < 0 {
			return false
		}
		name = name[:i]
	}
}
