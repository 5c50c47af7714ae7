package diff

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/plan"
	"github.com/loratool/loratool/quant/block"
)

const (
	// chunk is how many elements are compared at a time: what is read and decoded of
	// both sides stays in the cache of a core.
	chunk = 64 << 10
	// pieceElements is how many elements are one task: enough to make up for starting
	// it, and little enough that the largest tensor is shared by all processors.
	pieceElements = 64 * chunk
	// pieceScratch is what a task holds: both sides as stored and decoded, in up to 8
	// bytes each, and both in the coarser of their types.
	pieceScratch = 6 * 8 * chunk
)

// piece is a run of elements of a pair, and what was found in it.
type piece struct {
	*pair
	from, n int64
	found   finding
	equal   []span // whose bytes are equal, so that their norm is not known yet
}

// span is a run of elements of a tensor.
type span struct{ from, n int64 }

// finding is what the comparison of some elements has shown.
type finding struct {
	kernel.Comparison
	ulp     Histogram
	changed int64 // elements that are not the same number
	unequal bool  // not the same bits throughout
	beyond  int64 // elements that no limit covers
	first   int64 // of these, -1 without one
	worst   worst
}

// worst is the element with the largest difference.
type worst struct {
	at   int64
	a, b float64
}

// cut makes the pieces of a pair.
func (d *Diff) cut(p *pair) {
	if p.apart != "" {
		return
	}
	n := p.a.NumElements()
	step := int64(pieceElements)
	if p.stored = d.storedAlike(p); p.stored != nil {
		step = max(n, 1) // the stored parts are compared as one
	}
	for from := int64(0); from < n; from += step {
		piece := &piece{pair: p, from: from, n: min(step, n-from), found: finding{first: -1}}
		p.pieces = append(p.pieces, piece)
		d.pieces = append(d.pieces, piece)
	}
}

// Tasks returns the comparisons, those of the tensors in the order of A's data.
func (d *Diff) Tasks() []plan.Task {
	var tasks []plan.Task
	for _, p := range d.pieces {
		tasks = append(tasks, plan.Task{
			Name: p.a.Name, Reads: p.bytes(), Scratch: pieceScratch,
			Do: func(ctx context.Context, _ int) error { return d.compare(ctx, p) },
		})
	}
	for _, p := range d.products {
		tasks = append(tasks, p.task())
	}
	return tasks
}

// Norms returns what is left to read when [Diff.Tasks] are done: the norms of the equal
// parts of tensors that differ elsewhere.
func (d *Diff) Norms() []plan.Task {
	var tasks []plan.Task
	for _, p := range d.pieces {
		if len(p.equal) == 0 || p.opaque || !p.pair.unequal() {
			continue
		}
		tasks = append(tasks, plan.Task{
			Name: p.a.Name, Reads: p.bytes() / 2, Scratch: pieceScratch,
			Do: func(ctx context.Context, _ int) error { return d.measure(ctx, p) },
		})
	}
	return tasks
}

// bytes is what a piece reads of both sides.
func (p *piece) bytes() int64 { return p.n * (p.a.DType.Bits() + p.b.DType.Bits()) / 8 }

// unequal reports whether any piece has found a difference.
func (p *pair) unequal() bool {
	for _, piece := range p.pieces {
		if piece.found.unequal {
			return true
		}
	}
	return false
}

// compare compares a piece, in float64 if one side is.
func (d *Diff) compare(ctx context.Context, p *piece) error {
	switch same, err := d.sameStored(ctx, p); {
	case err != nil:
		return err
	case same:
		p.foundEqual(p.from, p.n)
		return nil
	case p.opaque:
		return d.compareOpaque(ctx, p)
	case p.a.DType == tensor.F64 || p.b.DType == tensor.F64:
		return compareAs[float64](ctx, d, p)
	}
	return compareAs[float32](ctx, d, p)
}

// foundEqual notes a run of elements with equal bytes.
func (p *piece) foundEqual(from, n int64) {
	p.found.ulp.Counts[0] += n
	if last := len(p.equal) - 1; last >= 0 && p.equal[last].from+p.equal[last].n == from {
		p.equal[last].n += n
		return
	}
	p.equal = append(p.equal, span{from, n})
}

// compareAs is compare in the precision T.
func compareAs[T tensor.Float](ctx context.Context, d *Diff, p *piece) error {
	a, err := openSide[T](d.a, p.a)
	if err != nil {
		return err
	}
	b, err := openSide[T](d.b, p.b)
	if err != nil {
		return err
	}
	m := newMeter[T](d.opts.Limits, p)
	for run := range chunks(p.from, p.n) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := a.read(run); err != nil {
			return err
		}
		if err := b.read(run); err != nil {
			return err
		}
		if p.a.DType == p.b.DType && bytes.Equal(a.raw, b.raw) {
			p.foundEqual(run.from, run.n)
			continue
		}
		a.decode()
		b.decode()
		m.add(run.from, &a, &b)
	}
	return nil
}

// measure adds the norms of the equal parts of a piece.
func (d *Diff) measure(ctx context.Context, p *piece) error {
	if p.a.DType == tensor.F64 {
		return measureAs[float64](ctx, d, p)
	}
	return measureAs[float32](ctx, d, p)
}

func measureAs[T tensor.Float](ctx context.Context, d *Diff, p *piece) error {
	a, err := openSide[T](d.a, p.a)
	if err != nil {
		return err
	}
	for _, s := range p.equal {
		for run := range chunks(s.from, s.n) {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := a.read(run); err != nil {
				return err
			}
			a.decode()
			p.found.Comparison.Add(kernel.Compare(a.values, a.values))
		}
	}
	p.equal = nil
	return nil
}

// compareOpaque counts the elements whose bits are not the same.
func (d *Diff) compareOpaque(ctx context.Context, p *piece) error {
	srcA, err := d.a.Open(p.a.Name)
	if err != nil {
		return err
	}
	srcB, err := d.b.Open(p.b.Name)
	if err != nil {
		return err
	}
	bits := p.a.DType.Bits()
	bufA, bufB := make([]byte, chunk*bits/8), make([]byte, chunk*bits/8)
	for run := range chunks(p.from, p.n) {
		if err := ctx.Err(); err != nil {
			return err
		}
		x, y := bufA[:run.n*bits/8], bufB[:run.n*bits/8]
		if err := readFull(srcA, x, run.from*bits/8); err != nil {
			return readError(d.a, p.a.Name, err)
		}
		if err := readFull(srcB, y, run.from*bits/8); err != nil {
			return readError(d.b, p.b.Name, err)
		}
		if bytes.Equal(x, y) {
			continue
		}
		p.found.unequal = true
		for i := range run.n {
			if !sameBits(x, y, i*bits, bits) {
				p.found.changed++
				p.found.exceed(run.from + i)
			}
		}
	}
	return nil
}

// sameBits compares an element, which may begin and end within a byte.
func sameBits(x, y []byte, at, bits int64) bool {
	if at%8 == 0 && bits%8 == 0 {
		return bytes.Equal(x[at/8:(at+bits)/8], y[at/8:(at+bits)/8])
	}
	for i := at; i < at+bits; i++ {
		if (x[i/8]^y[i/8])>>(i%8)&1 != 0 {
			return false
		}
	}
	return true
}

// exceed counts an element that no limit covers.
func (f *finding) exceed(at int64) {
	f.beyond++
	if f.first < 0 || at < f.first {
		f.first = at
	}
}

// add adds what was found in further elements.
func (f *finding) add(o *finding) {
	if o.MaxDiff > f.MaxDiff {
		f.worst = o.worst
	}
	f.Comparison.Add(o.Comparison)
	f.ulp.merge(&o.ulp)
	f.changed += o.changed
	f.unequal = f.unequal || o.unequal
	f.beyond += o.beyond
	if f.first < 0 {
		f.first = o.first
	}
}

// chunks cuts a run of elements. The cuts are multiples of [chunk], which is a multiple of
// eight: of types of 4 and 6 bits, too, whole bytes are read.
func chunks(from, n int64) func(yield func(span) bool) {
	return func(yield func(span) bool) {
		for at := from; at < from+n; at += chunk {
			if !yield(span{at, min(chunk, from+n-at)}) {
				return
			}
		}
	}
}

// side is one checkpoint's tensor while it is compared.
type side[T tensor.Float] struct {
	model  *checkpoint.Model
	spec   tensor.Spec
	src    io.ReaderAt
	codec  block.Codec
	raw    []byte // of the present chunk
	values []T
}

func openSide[T tensor.Float](m *checkpoint.Model, spec tensor.Spec) (side[T], error) {
	codec, ok := block.For(spec.DType)
	if !ok {
		return side[T]{}, inputErrorf(m, "tensor %q: no arithmetic is done with %s", spec.Name, spec.DType)
	}
	src, err := m.Open(spec.Name)
	if err != nil {
		return side[T]{}, err
	}
	n := min(chunk, spec.NumElements())
	return side[T]{m, spec, src, codec, make([]byte, n*spec.DType.Bits()/8), make([]T, n)}, nil
}

// read reads a run of elements.
func (s *side[T]) read(run span) error {
	size := s.spec.DType.Bits() / 8
	s.raw, s.values = s.raw[:run.n*size], s.values[:run.n]
	if err := readFull(s.src, s.raw, run.from*size); err != nil {
		return readError(s.model, s.spec.Name, err)
	}
	return nil
}

func (s *side[T]) decode() { block.Decode(s.codec, s.values, s.raw) }

// meter compares chunks whose bytes are not equal.
type meter[T tensor.Float] struct {
	limits  Limits
	piece   *piece
	coarse  tensor.DType // the coarser of the two element types
	codec   block.Codec  // of it
	rounded [2][]byte    // for the side that has another
}

func newMeter[T tensor.Float](l Limits, p *piece) *meter[T] {
	m := &meter[T]{limits: l, piece: p, coarse: coarser(p.a.DType, p.b.DType)}
	m.codec, _ = block.For(m.coarse)
	for i, spec := range []tensor.Spec{p.a, p.b} {
		if spec.DType != m.coarse {
			m.rounded[i] = make([]byte, min(chunk, p.n)*m.coarse.Bits()/8)
		}
	}
	return m
}

// add compares a chunk.
func (m *meter[T]) add(from int64, a, b *side[T]) {
	f := &m.piece.found
	c := kernel.Compare(a.values, b.values)
	if c.MaxDiff > f.MaxDiff {
		f.worst = findWorst(from, a.values, b.values, c.MaxDiff)
	}
	f.Comparison.Add(c)
	codesA, codesB := m.codes(0, a), m.codes(1, b)
	equal := f.ulp.add(m.coarse, codesA, codesB)
	n := int64(len(a.values))
	if a.spec.DType == b.spec.DType {
		f.changed += n - equal
		f.unequal = true
	} else {
		changed := countUnlike(a.values, b.values)
		f.changed += changed
		f.unequal = f.unequal || changed > 0
	}
	if m.limits.elements() && !m.within(c) {
		m.findBeyond(from, a.values, b.values, codesA, codesB)
	}
}

// codes returns a chunk in the coarser type.
func (m *meter[T]) codes(i int, s *side[T]) []byte {
	if s.spec.DType == m.coarse {
		return s.raw
	}
	codes := m.rounded[i][:int64(len(s.values))*m.coarse.Bits()/8]
	block.Encode(m.codec, codes, s.values)
	return codes
}

// within reports whether no element can be beyond the limits: most chunks need no look at
// single elements.
func (m *meter[T]) within(c kernel.Comparison) bool {
	return c.NonFiniteUnlike == 0 && c.MaxDiff <= m.limits.Abs
}

// findBeyond counts the elements that no limit covers.
func (m *meter[T]) findBeyond(from int64, a, b []T, codesA, codesB []byte) {
	size := int(m.coarse.Bits() / 8)
	for i, v := range a {
		x, y := float64(v), float64(b[i])
		if alike(x, y) || math.Abs(x-y) <= m.limits.Abs+m.limits.Rel*math.Max(math.Abs(x), math.Abs(y)) && !math.IsInf(x, 0) && !math.IsInf(y, 0) {
			continue
		}
		if m.limits.ULP > 0 && isFinite(x) && isFinite(y) && steps(codesA[i*size:][:size], codesB[i*size:][:size]) <= m.limits.ULP {
			continue
		}
		m.piece.found.exceed(from + int64(i))
	}
}

// alike reports whether two values are the same number, or both NaN.
func alike(x, y float64) bool { return x == y || x != x && y != y }

func isFinite(x float64) bool { return x-x == 0 }

// countUnlike counts the elements that are not the same number.
func countUnlike[T tensor.Float](a, b []T) (n int64) {
	b = b[:len(a)]
	for i, x := range a {
		if y := b[i]; x != y && (x == x || y == y) {
			n++
		}
	}
	return n
}

// findWorst finds the first element with the largest difference.
func findWorst[T tensor.Float](from int64, a, b []T, most float64) worst {
	for i := range a {
		if x, y := float64(a[i]), float64(b[i]); math.Abs(x-y) == most {
			return worst{from + int64(i), x, y}
		}
	}
	return worst{}
}

func readFull(src io.ReaderAt, p []byte, off int64) error {
	n, err := src.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errChanged
	}
	return err
}

// errChanged is a file that has become shorter: somebody else changed it, which is a
// fault of the input.
var errChanged = errors.New("the file changed while it was read")

// readError names the tensor.
func readError(m *checkpoint.Model, name string, err error) error {
	if errors.Is(err, errChanged) {
		return inputErrorf(m, "tensor %q: %w", name, err)
	}
	return fmt.Errorf("reading %q: %w", name, err)
}

// inputErrorf is the error for a fault of one of the two checkpoints.
func inputErrorf(m *checkpoint.Model, format string, args ...any) error {
	return &checkpoint.InputError{Path: m.Path, Err: fmt.Errorf(format, args...)}
}
