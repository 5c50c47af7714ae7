package quant

import (
	"fmt"
	"io"
	"math"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
)

// This file measures how much of a merge's change is left in the codes of its result:
//
//	survival = <Q - W0, D> / ||D||²,   D = W - W0
//
// with W0 the weight before, W the exact result of the merge, and Q what the codes stand
// for: the figure of a merge that is stored as numbers (docs/numerics.md). What is
// encoded is not W but its rounding to a type of 16 bits, so W is read beside it.

// changes are those of all weights.
type changes struct {
	from          *Source
	before, after map[string]tensor.Spec
}

func newChanges(from *Source) *changes {
	return &changes{from, specsOf(from.Before), specsOf(from.After)}
}

func specsOf(c checkpoint.Checkpoint) map[string]tensor.Spec {
	all := make(map[string]tensor.Spec)
	for _, s := range c.Specs() {
		all[s.Name] = s
	}
	return all
}

// change is that of one weight.
type change struct{ before, after source }

// of opens the change of a weight; nil if there is none, or nothing is known of it.
func (c *changes) of(t *target) (*change, error) {
	if c == nil || c.from.Unchanged(t.spec.Name) {
		return nil, nil
	}
	before, ok := c.before[t.spec.Name]
	after, known := c.after[t.spec.Name]
	if !ok || !known || !before.Shape.Equal(t.spec.Shape) || !before.DType.IsFloat() {
		return nil, nil
	}
	w0, err := c.from.Before.Open(t.spec.Name)
	if err != nil {
		return nil, err
	}
	w, err := c.from.After.Open(t.spec.Name)
	if err != nil {
		return nil, err
	}
	return &change{sourceOf(w0, t, before), sourceOf(w, t, after)}, nil
}

// sourceOf reads a weight from another place than it is quantized from.
func sourceOf(src io.ReaderAt, t *target, spec tensor.Spec) source {
	other := *t
	other.spec = spec
	return newSource(src, &other)
}

// changed is a part of a weight before and after.
type changed struct {
	w0, w []float32
	used  [2]*scratch
}

// read returns n elements from the first on, in the order of the codes; nil of no change.
func (c *change) read(first int64, n int) (_ *changed, err error) {
	if c == nil {
		return nil, nil
	}
	d := new(changed)
	for i, from := range []source{c.before, c.after} {
		d.used[i] = scratches.Get().(*scratch)
		x, err := from.values(d.used[i], first, n)
		if err != nil {
			d.release()
			return nil, fmt.Errorf("reading the change of %q: %w", from.target.spec.Name, err)
		}
		d.w0, d.w = d.w, x
	}
	return d, nil
}

// release gives the memory back.
func (d *changed) release() {
	if d == nil {
		return
	}
	for _, b := range d.used {
		if b != nil {
			scratches.Put(b)
		}
	}
}

// compare adds what is left of the change in b.back.
func (d *changed) compare(b *scratch, sums *segmentSums) {
	if d == nil {
		return
	}
	var stats [1]kernel.RowStats
	kernel.Stats(stats[:], d.w0, d.w, b.back, 1, len(d.w))
	sums.change, sums.kept = stats[0].Change, stats[0].Kept
}

// products returns the sum of D·v of each block, with v in b.back the values of codes for
// a scale of 1, and adds <D,D> and <-W0,D>: so survival is known for any scales. It leaves
// D in the place of W.
func (d *changed) products(b *scratch, size int, sums *segmentSums) []float32 {
	if d == nil {
		return nil
	}
	for i, w0 := range d.w0 {
		d.w[i] -= w0
	}
	var stats [1]kernel.RowStats
	zeros := b.zeros[:len(d.w)] // which are there for the other products
	kernel.Stats(stats[:], zeros, d.w, d.w0, 1, len(d.w))
	sums.change, sums.kept = stats[0].Change, -stats[0].Kept
	along := make([]float32, 0, ceilDiv(int64(len(d.w)), int64(size)))
	for from := 0; from < len(d.w); from += size {
		to := min(from+size, len(d.w))
		kernel.Stats(stats[:], zeros[from:to], b.back[from:to], d.w[from:to], 1, to-from)
		along = append(along, float32(stats[0].Kept))
	}
	return along
}

// survival is the figure of a weight, of the sums over all of it.
func (c *change) survival(change, kept float64) float64 {
	switch {
	case c == nil:
		return math.NaN()
	case change == 0:
		return 1
	}
	return kept / change
}
