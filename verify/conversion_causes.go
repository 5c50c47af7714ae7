package verify

import (
	"context"
	"fmt"
)

// This file finds out why a tensor of a converted model is not what it should be: each
// mistake that converters make is tried, and what explains every value is the cause.

// cause is a mistake that explains all values of a tensor; without a code there is none.
type cause struct {
	code, message string
}

// explain looks for the cause.
func (c *conversionCheck) explain(ctx context.Context, p *convertedPair) (cause, error) {
	for _, try := range []func(context.Context, *convertedPair) (cause, error){c.inOtherOrder, c.notShifted, c.elsewhere, c.transposed} {
		if found, err := try(ctx, p); err != nil || found.code != "" {
			return found, err
		}
	}
	return cause{}, nil
}

// inOtherOrder tries other orders of the rows of queries and keys.
func (c *conversionCheck) inOtherOrder(ctx context.Context, p *convertedPair) (cause, error) {
	w := p.way
	if w == nil || w.head == 0 {
		return cause{}, nil
	}
	type order struct {
		rows rowOrder
		head int64
		what string
	}
	twice := func(r, head int64) int64 { return intoPairs(intoPairs(r, head), head) }
	orders := []order{
		{inOrder, w.head, "in the order of the base"},
		{intoPairs, w.head, "brought from halves into pairs"},
		{intoHalves, w.head, "brought from pairs into halves"},
		{twice, w.head, "brought from halves into pairs twice"},
	}
	for _, head := range w.other {
		orders = append(orders, order{intoPairs, head, fmt.Sprintf("brought into pairs by heads of %d rows", head)},
			order{intoHalves, head, fmt.Sprintf("brought into halves by heads of %d rows", head)})
	}
	for _, o := range orders {
		from, err := w.openAs(o.rows, o.head, 0)
		if err != nil {
			return cause{}, err
		}
		if ok, err := c.matches(ctx, from, p, p.stored.NumElements()); err != nil || ok {
			return cause{"rows-permuted", fmt.Sprintf("its rows are %s; they should be %s, heads of %d rows", o.what, w.describe(), w.head)}, err
		}
	}
	return cause{}, nil
}

// describe says in which order the rows should be.
func (w *way) describe() string {
	switch w.order(1, 8) { // of a head of 8 rows
	case intoPairs(1, 8):
		return "brought from halves into pairs"
	case intoHalves(1, 8):
		return "brought from pairs into halves"
	}
	return "in the order of the base"
}

// notShifted tries norms that are off by 1.
func (c *conversionCheck) notShifted(ctx context.Context, p *convertedPair) (cause, error) {
	if len(p.stored.Shape) != 1 {
		return cause{}, nil
	}
	for _, by := range []float64{-1, 1} {
		var from elements
		var err error
		if p.way != nil {
			from, err = p.way.openAs(nil, 0, p.way.shift+by)
		} else if from, err = c.open(p); from != nil {
			from = &shifted{from, by}
		}
		if err != nil || from == nil {
			return cause{}, err
		}
		if ok, err := c.matches(ctx, from, p, p.stored.NumElements()); err != nil || ok {
			return cause{"norm-shift", fmt.Sprintf("every value is %+g off: one runtime multiplies with the weight, the other with 1 + weight", by)}, err
		}
	}
	return cause{}, nil
}

// shifted adds to values.
type shifted struct {
	elements
	by float64
}

func (s *shifted) read(x []float64, first int64) error {
	err := s.elements.read(x, first)
	for i := range x {
		x[i] += s.by
	}
	return err
}

// elsewhere tries the other tensors of the shape.
func (c *conversionCheck) elsewhere(ctx context.Context, p *convertedPair) (cause, error) {
	for _, q := range c.pairs {
		if q == p || !q.want.Shape.Equal(p.want.Shape) {
			continue
		}
		from, err := c.open(q)
		if err != nil || from == nil {
			return cause{}, err
		}
		if ok, err := c.matches(ctx, from, p, p.stored.NumElements()); err != nil || ok {
			return cause{"tensor-elsewhere", fmt.Sprintf("it holds the values of %q", q.stored.Name)}, err
		}
	}
	return cause{}, nil
}

// transposedRows of a square matrix are looked at: to be equal in as many by chance is
// out of the question.
const transposedRows = 4

// transposed tries the transpose of a square matrix.
func (c *conversionCheck) transposed(ctx context.Context, p *convertedPair) (cause, error) {
	s := p.stored.Shape
	if len(s) != 2 || s[0] != s[1] || s[0] == 0 {
		return cause{}, nil
	}
	from, err := c.open(p)
	if err != nil || from == nil {
		return cause{}, err
	}
	ok, err := c.matches(ctx, &columns{from, s[0]}, p, min(transposedRows, s[0])*s[1])
	if err != nil || !ok {
		return cause{}, err
	}
	return cause{"tensor-transposed", "it holds the transpose of what it should"}, nil
}

// columns reads a square matrix column by column.
type columns struct {
	elements
	size int64
}

func (t *columns) read(x []float64, first int64) error {
	for i := range x {
		at := first + int64(i)
		if err := t.elements.read(x[i:i+1], at%t.size*t.size+at/t.size); err != nil {
			return err
		}
	}
	return nil
}

// matches reports whether the first values of a converted tensor are those given, rounded
// once at most. It begins with a few, which nearly always suffice for a no.
func (c *conversionCheck) matches(ctx context.Context, want elements, p *convertedPair, total int64) (bool, error) {
	got, ok, err := newReader(c.converted, p.stored)
	if err != nil || !ok || want == nil {
		return false, err
	}
	const few = 64
	x, y := make([]float64, min(chunkElements, total)), make([]float64, min(chunkElements, total))
	rounded := make([]float64, len(x))
	r := rounder{stored: p.stored.DType, source: p.way.widest(p.want.DType)}
	for first, n := int64(0), min(few, total); first < total; first, n = first+n, min(chunkElements, total-first-n) {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		if err := want.read(x[:n], first); err != nil {
			return false, err
		}
		if err := got.read(y[:n], first); err != nil {
			return false, err
		}
		var f convertedFound
		if f.look(&r, x[:n], y[:n], rounded[:n], first); f.differ > 0 {
			return false, nil
		}
	}
	return true, nil
}
