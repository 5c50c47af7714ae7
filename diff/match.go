package diff

import (
	"fmt"
	"slices"
	"strings"

	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
)

// pair is a tensor with its counterpart.
type pair struct {
	a, b tensor.Spec
	// opaque says that the elements are no floating-point numbers: all that can be
	// said is which are equal.
	opaque bool
	// why the two can't be compared, "" if they can.
	apart string
	// covered says that the product of the pair's module is held to the limit
	// instead of the factor.
	covered bool
	pieces  []*piece
	stored  []*storedPart // what both are computed from, if they are of one kind
}

// match pairs the tensors by name, in the order of A. What one side calls otherwise is
// found by older names, and by the prefix that one side puts before all.
func (d *Diff) match() {
	taken := make(map[string]bool)
	var onlyA, onlyB []tensor.Spec
	for _, s := range d.a.Specs() {
		if !d.chosen(s.Name) {
			continue
		}
		if t, ok := counterpart(d.b, s.Name); ok && !taken[t.Name] {
			taken[t.Name] = true
			d.pairs = append(d.pairs, &pair{a: s, b: t})
			continue
		}
		onlyA = append(onlyA, s)
	}
	for _, t := range d.b.Specs() {
		if !taken[t.Name] && d.chosen(t.Name) {
			onlyB = append(onlyB, t)
		}
	}
	onlyA, onlyB = d.matchRenamed(onlyA, onlyB)
	onlyA, onlyB = d.matchTied(onlyA, onlyB)
	d.reportLone(CodeOnlyA, onlyA)
	d.reportLone(CodeOnlyB, onlyB)
	d.sortPairs()
}

// counterpart finds a tensor by its name or by the one it had in older files.
func counterpart(m *checkpoint.Model, name string) (tensor.Spec, bool) {
	for _, n := range append([]string{name}, arch.OldNames(name)...) {
		if spec, ok := m.Lookup(n); ok {
			return spec, true
		}
	}
	return tensor.Spec{}, false
}

// matchRenamed pairs what is left when one side has a prefix that the other lacks, as
// models saved with and without a head do, or has another one in its place. The rule
// that pairs most wins, of those equally good the shorter.
func (d *Diff) matchRenamed(onlyA, onlyB []tensor.Spec) (restA, restB []tensor.Spec) {
	byName := make(map[string]tensor.Spec)
	for _, t := range onlyB {
		byName[t.Name] = t
	}
	var best rule
	most := 0
	for _, r := range rules(onlyA, onlyB) {
		n := 0
		for _, s := range onlyA {
			if t, ok := byName[r.apply(s.Name)]; ok && t.Shape.Equal(s.Shape) {
				n++
			}
		}
		if n > most || n == most && n > 0 && r.size() < best.size() {
			best, most = r, n
		}
	}
	if most == 0 {
		return onlyA, onlyB
	}
	d.rename = best.String()
	for _, s := range onlyA {
		t, ok := byName[best.apply(s.Name)]
		if !ok {
			restA = append(restA, s)
			continue
		}
		d.pairs = append(d.pairs, &pair{a: s, b: t})
		delete(byName, t.Name)
	}
	for _, t := range onlyB {
		if _, left := byName[t.Name]; left {
			restB = append(restB, t)
		}
	}
	return restA, restB
}

// rule turns names of A into names of B: one beginning for another. Both are empty or
// end with a dot.
type rule struct{ from, to string }

func (r rule) apply(name string) string {
	rest, ok := strings.CutPrefix(name, r.from)
	if !ok {
		return "" // the name of no tensor
	}
	return r.to + rest
}

func (r rule) size() int { return len(r.from) + len(r.to) }

func (r rule) String() string {
	switch {
	case r.from == "":
		return fmt.Sprintf("names of B begin with %q, which those of A lack", r.to)
	case r.to == "":
		return fmt.Sprintf("names of A begin with %q, which those of B lack", r.from)
	}
	return fmt.Sprintf("names of A begin with %q where those of B begin with %q", r.from, r.to)
}

// sampled is how many names rules are made of; they are meant to be alike.
const sampled = 8

// rules lists the replacements of a beginning that give a few of A's names, spread over
// all, one in B with the same ending of two components or more and the same numbers: a
// layer is never taken for another.
func rules(onlyA, onlyB []tensor.Spec) []rule {
	endings := make(map[string][]string) // of two components, to the names in B
	for _, t := range onlyB {
		endings[ending(t.Name)] = append(endings[ending(t.Name)], t.Name)
	}
	seen := make(map[rule]bool)
	var all []rule
	for i := 0; i < len(onlyA); i += max(len(onlyA)/sampled, 1) {
		for _, name := range endings[ending(onlyA[i].Name)] {
			r := ruleOf(onlyA[i].Name, name)
			if !seen[r] && !strings.ContainsAny(r.from+r.to, "0123456789") {
				seen[r] = true
				all = append(all, r)
			}
		}
	}
	return all
}

// ending returns the last two components of a name.
func ending(name string) string {
	i := strings.LastIndexByte(name, '.')
	return name[strings.LastIndexByte(name[:max(i, 0)], '.')+1:]
}

// ruleOf drops the components that two names end with alike.
func ruleOf(a, b string) rule {
	x, y := strings.Split(a, "."), strings.Split(b, ".")
	for len(x) > 0 && len(y) > 0 && x[len(x)-1] == y[len(y)-1] {
		x, y = x[:len(x)-1], y[:len(y)-1]
	}
	prefix := func(parts []string) string {
		if len(parts) == 0 {
			return ""
		}
		return strings.Join(parts, ".") + "."
	}
	return rule{prefix(x), prefix(y)}
}

// matchTied pairs a head that one side stores with the embedding that it is tied to on
// the other.
func (d *Diff) matchTied(onlyA, onlyB []tensor.Spec) (restA, restB []tensor.Spec) {
	for _, s := range onlyA {
		if t, ok := embeddingOf(d.b, s.Name); ok {
			d.pairs = append(d.pairs, &pair{a: s, b: t})
			d.report(CodeTied, s.Name, "stored", "tied to "+t.Name)
			continue
		}
		restA = append(restA, s)
	}
	for _, t := range onlyB {
		if s, ok := embeddingOf(d.a, t.Name); ok {
			d.pairs = append(d.pairs, &pair{a: s, b: t})
			d.report(CodeTied, t.Name, "tied to "+s.Name, "stored")
			continue
		}
		restB = append(restB, t)
	}
	return restA, restB
}

// embeddingOf finds the embedding that a head, which the model does not store, is tied
// to by its config.
func embeddingOf(m *checkpoint.Model, head string) (tensor.Spec, bool) {
	config := hfrepo.NewConfig(m.Config)
	tied, stated := config.Tied()
	if m.GGUF() != nil || stated && !tied || !stated && !arch.HasHead(config.Architecture()) {
		return tensor.Spec{}, false
	}
	names := func(yield func(string) bool) {
		for _, s := range m.Specs() {
			if !yield(s.Name) {
				return
			}
		}
	}
	embedding, name, ok := arch.Embeddings(names, config.Architecture())
	if !ok || name != head {
		return tensor.Spec{}, false
	}
	return m.Lookup(embedding)
}

// reportLone reports tensors of one side. What a model computes itself is no
// difference of two models.
func (d *Diff) reportLone(code Code, lone []tensor.Spec) {
	for _, s := range lone {
		of := code
		if arch.IsBuffer(s.Name) {
			of = CodeBuffer
		}
		if code == CodeOnlyA {
			d.report(of, s.Name, describe(d.a, s), "")
		} else {
			d.report(of, s.Name, "", describe(d.b, s))
		}
	}
}

// describe says what a tensor is.
func describe(m *checkpoint.Model, s tensor.Spec) string {
	return fmt.Sprintf("%s %v", storedAs(m, s), s.Shape)
}

// sortPairs brings the pairs into the order of A's data.
func (d *Diff) sortPairs() {
	place := make(map[string]int)
	for i, s := range d.a.Specs() {
		place[s.Name] = i
	}
	slices.SortStableFunc(d.pairs, func(x, y *pair) int { return place[x.a.Name] - place[y.a.Name] })
}
