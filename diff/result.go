package diff

import (
	"math"
	"slices"
	"strings"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
)

// Result is what a comparison has found.
type Result struct {
	// Structure holds the differences that are none of numbers, tensors first.
	Structure []Difference
	// Renamed says how the names of the two sides were brought together, "" if they are
	// the same.
	Renamed string
	// Tensors are the pairs, in the order of A's data; Products the modules that both
	// adapters change by a product, in that order too.
	Tensors  []Tensor
	Products []Product
	// All are the figures of all tensors; the others those of the tensors of a layer, of
	// a kind of module whatever its layer, and of what each of Options.Only names.
	All                     Sum
	Layers, Kinds, Patterns []Group
	AllProducts             Sum
	// Different says that the two checkpoints differ beyond the limits.
	Different bool
}

// Tensor is a pair and its figures.
type Tensor struct {
	Name   string // in A
	NameB  string // in B if that is another
	Shape  tensor.Shape
	A, B   string // element types as stored
	Apart  string // why the numbers can't be compared, "" if they were; no sum has them
	Opaque bool   // the elements are no floating-point numbers
	// Same says that all elements hold the same bits, or where the types differ, the
	// same numbers.
	Same bool
	// Beyond counts the elements that no limit of elements covers; First is the first.
	Beyond, First int64
	Different     bool // beyond the limits
	Worst         int64
	WorstA        float64
	WorstB        float64
	ULPType       tensor.DType
	ULP           Histogram
	Sum
}

// Product compares what two adapters add to the weight of a module.
type Product struct {
	Module    string
	Ranks     [2]int64
	Scales    [2]float64
	Different bool
	Sum
}

// Group is the sum of some tensors.
type Group struct {
	Name string
	Sum
}

// Sum holds the figures of one tensor or of several. Those of tensors that hold the same
// are left out, and so are their norms: most are never decoded.
type Sum struct {
	Tensors, Differing int   // compared, and those of them that do not hold the same
	Elements, Changed  int64 // elements, and those that are not the same number
	Figures            kernel.Comparison
}

// Norms returns ||A|| and ||B||.
func (s *Sum) Norms() (a, b float64) {
	return math.Sqrt(s.Figures.ASquares), math.Sqrt(s.Figures.BSquares)
}

// DiffNorm returns ||A-B||.
func (s *Sum) DiffNorm() float64 { return math.Sqrt(s.Figures.DiffSquares) }

// Relative is the relative error ||A-B|| / max(||A||,||B||), 0 if nothing differs.
func (s *Sum) Relative() float64 {
	if s.Figures.DiffSquares == 0 {
		return 0
	}
	return math.Sqrt(s.Figures.DiffSquares / math.Max(s.Figures.ASquares, s.Figures.BSquares))
}

// Cosine is that of the angle between A and B, 1 if nothing differs, and NaN if one of
// them is zero.
func (s *Sum) Cosine() float64 {
	if s.Differing == 0 {
		return 1
	}
	return s.Figures.Dot / (math.Sqrt(s.Figures.ASquares) * math.Sqrt(s.Figures.BSquares))
}

// add adds the figures of further tensors.
func (s *Sum) add(o *Sum) {
	s.Tensors += o.Tensors
	s.Differing += o.Differing
	s.Elements += o.Elements
	s.Changed += o.Changed
	s.Figures.Add(o.Figures)
}

// Result adds up what the tasks have found.
func (d *Diff) Result() *Result {
	r := &Result{Structure: d.structure, Renamed: d.rename}
	slices.SortStableFunc(r.Structure, func(x, y Difference) int { return codeOrder(x.Code) - codeOrder(y.Code) })
	for i := range r.Structure {
		r.Different = r.Different || r.Structure[i].Counts
	}
	for _, p := range d.pairs {
		t := d.result(p)
		r.Different = r.Different || t.Different
		r.Tensors = append(r.Tensors, t)
		r.All.add(&t.Sum)
		layer, kind := place(t.Name)
		r.Layers = addTo(r.Layers, layer, &t.Sum)
		r.Kinds = addTo(r.Kinds, kind, &t.Sum)
	}
	for _, pattern := range d.opts.Only {
		g := Group{Name: pattern}
		for i := range r.Tensors {
			if covers(pattern, r.Tensors[i].Name) {
				g.add(&r.Tensors[i].Sum)
			}
		}
		r.Patterns = append(r.Patterns, g)
	}
	for _, p := range d.products {
		x := p.result(d.opts.Limits)
		r.Different = r.Different || x.Different
		r.Products = append(r.Products, x)
		r.AllProducts.add(&x.Sum)
	}
	return r
}

// codeOrder is the order in which differences are told: tensors, then settings, then files.
func codeOrder(c Code) int {
	return slices.Index([]Code{CodeOnlyA, CodeOnlyB, CodeShape, CodeDType, CodeTied, CodeBuffer, CodeConfig, CodeKey, CodeFile}, c)
}

// result adds up the pieces of a pair.
func (d *Diff) result(p *pair) Tensor {
	t := Tensor{
		Name: p.a.Name, Shape: p.a.Shape, A: storedAs(d.a, p.a), B: storedAs(d.b, p.b), Apart: p.apart, Opaque: p.opaque, First: -1,
		ULPType: coarser(p.a.DType, p.b.DType),
	}
	if p.a.Name != p.b.Name {
		t.NameB = p.b.Name
	}
	if p.apart != "" {
		t.Different = !p.covered
		return t
	}
	t.Tensors = 1
	all := finding{first: -1}
	for _, piece := range p.pieces {
		all.add(&piece.found)
	}
	t.Elements, t.Changed, t.ULP = p.a.NumElements(), all.changed, all.ulp
	t.Worst, t.WorstA, t.WorstB = all.worst.at, all.worst.a, all.worst.b
	t.Beyond, t.First = all.beyond, all.first
	t.Same = !all.unequal
	if all.unequal {
		t.Differing, t.Figures = 1, all.Comparison
	}
	t.Different = d.opts.Limits.exceeded(&t, p.covered)
	return t
}

// exceeded decides whether a tensor differs beyond the limits.
func (l Limits) exceeded(t *Tensor, covered bool) bool {
	switch {
	case t.Same:
		return false
	case l.None() || t.Opaque:
		return true
	case l.elements() && t.Beyond > 0:
		return true
	case covered || l.Error == 0:
		return false
	}
	return t.Figures.NonFiniteUnlike > 0 || !(t.Relative() <= l.Error)
}

// result is the figures of a module.
func (p *product) result(l Limits) Product {
	f, g := p.sides[0], p.sides[1]
	x := Product{Module: p.module, Ranks: [2]int64{f.a.Rows(), g.a.Rows()}, Scales: [2]float64{f.scale, g.scale}}
	x.Tensors, x.Elements, x.Figures = 1, f.b.Rows()*f.a.Cols(), p.found
	if p.found.DiffSquares != 0 { // or NaN
		x.Differing = 1
	}
	x.Different = l.Error > 0 && !(x.Relative() <= l.Error)
	return x
}

// addTo adds figures to the group of a name, in the order in which names come up.
func addTo(groups []Group, name string, s *Sum) []Group {
	for i := range groups {
		if groups[i].Name == name {
			groups[i].add(s)
			return groups
		}
	}
	return append(groups, Group{name, *s})
}

// place takes a tensor's name apart: the layer is all up to the first number, the kind what
// follows it, with an asterisk for further numbers. Without a number there is no layer.
func place(name string) (layer, kind string) {
	parts := strings.Split(name, ".")
	for i, p := range parts {
		if !isNumber(p) {
			continue
		}
		rest := slices.Clone(parts[i+1:])
		for j, p := range rest {
			if isNumber(p) {
				rest[j] = "*"
			}
		}
		if len(rest) > 0 {
			return strings.Join(parts[:i+1], "."), strings.Join(rest, ".")
		}
	}
	return "", name
}

func isNumber(s string) bool {
	for _, c := range s {
		if c < '0' || c > '9' {
			return false
		}
	}
	return s != ""
}
