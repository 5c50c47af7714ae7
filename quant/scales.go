package quant

import (
	"fmt"
	"io"
	"math"
	"slices"
	"sync"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/quant/block"
	"github.com/loratool/loratool/quant/loftq"
)

// scales is what is found out about a weight while it is read: the scale of every
// unit - a block of a 4-bit weight, a row of LLM.int8 - and how far the codes are off.
//
// A weight is cut into segments of whole units. The first reader of a segment leaves
// its scales here; who comes for codes later computes them again, who comes for the
// scales finds them. Sums are kept by segment and added up in order, so that nothing
// depends on who was first.
type scales struct {
	view   *View
	target *target
	source source
	codes  int64 // bytes
	unit   int64 // elements
	units  int64
	per    int64 // units of a segment

	mu       sync.Mutex
	absmax   []float32
	done     []bool
	left     int // segments that are not done
	segments []segmentSums
	cross    []float32 // of each unit: sum of x·v, v the value of its code; when nested
	square   []float32 // sum of v²
	along    []float32 // sum of D·v, if there is a change
	change   *change   // nil if none is known

	once   sync.Once
	nested block.Nested
}

// segmentSums are figures of one segment. With W0 what the weight was and D the change,
// change is <D,D> and kept <Q-W0,D>, or <-W0,D> where the scales of Q come later.
type segmentSums struct{ norm, off, largest, change, kept float64 }

// elementsPerSegment is small enough for a cache, and a whole number of blocks.
const elementsPerSegment = 64 << 10

// transposedSegment is larger, so that the columns of the source are read in runs.
const transposedSegment = 1 << 20

// segmentElements is how many elements of a weight are worked on at a time, if its
// rows are not longer.
func segmentElements(t *target) int64 {
	if t.transposed {
		return max(transposedSegment, t.shape[1])
	}
	return max(elementsPerSegment, t.shape[1])
}

func newScales(v *View, t *target) (*scales, error) {
	src, err := v.source.Open(t.spec.Name)
	if err != nil {
		return nil, err
	}
	reader := newSource(src, t)
	if v.shift != nil {
		if reader.shift, err = v.shift(t); err != nil {
			return nil, err
		}
	}
	s := &scales{
		view: v, target: t, source: reader, unit: v.unit(t), units: v.units(t),
		codes: codeBytes(v.format.kind, t.spec.NumElements()),
	}
	if s.change, err = v.changes.of(t); err != nil {
		return nil, err
	}
	s.per = max(segmentElements(t)/s.unit, 1)
	n := int(ceilDiv(s.units, s.per))
	s.absmax, s.done, s.segments, s.left = make([]float32, s.units), make([]bool, n), make([]segmentSums, n), n
	if v.format.double {
		s.cross, s.square, s.along = make([]float32, s.units), make([]float32, s.units), make([]float32, s.units)
	}
	return s, nil
}

// scratch is the memory of one reader.
type scratch struct {
	x, back, gathered   []float32
	codes, raw          []byte
	absmax, ones, zeros []float32
	stats               []kernel.RowStats
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// grow returns a slice of length n, reusing buf when it is large enough.
func grow[E any](buf []E, n int) []E {
	if cap(buf) < n {
		return make([]E, n)
	}
	return buf[:n]
}

// readCodes fills p with codes from a byte offset on.
func (s *scales) readCodes(p []byte, off int64) error {
	b := scratches.Get().(*scratch)
	defer scratches.Put(b)
	width := codeBytes(s.view.format.kind, s.per*s.unit) // of a segment; units are even where two codes share a byte
	for i := off / width; i*width < off+int64(len(p)); i++ {
		if err := s.compute(b, int(i)); err != nil {
			return err
		}
		from, to := max(i*width, off), min(i*width+int64(len(b.codes)), off+int64(len(p)))
		copy(p[from-off:to-off], b.codes[from-i*width:to-i*width])
	}
	return nil
}

// readScales fills p with F32 scales from a byte offset on.
func (s *scales) readScales(p []byte, off int64) error {
	first, last := off/4, ceilDiv(off+int64(len(p)), 4)
	if err := s.ensure(int(first/s.per), int(ceilDiv(last, s.per))); err != nil {
		return err
	}
	s.mu.Lock()
	data := encodeFloats(s.absmax[first:last])
	s.mu.Unlock()
	copy(p, data[off-4*first:])
	return nil
}

// ensure computes what is missing of some segments.
func (s *scales) ensure(from, to int) error {
	b := scratches.Get().(*scratch)
	defer scratches.Put(b)
	for i := from; i < to; i++ {
		s.mu.Lock()
		done := s.done[i]
		s.mu.Unlock()
		if done {
			continue
		}
		if err := s.compute(b, i); err != nil {
			return err
		}
	}
	return nil
}

// nest quantizes the scales, once all of them are there; without double
// quantization there is nothing in it.
func (s *scales) nest() (*block.Nested, error) {
	if !s.view.format.double {
		return new(block.Nested), nil
	}
	if err := s.ensure(0, len(s.done)); err != nil {
		return nil, err
	}
	s.once.Do(func() {
		s.nested = block.Nest(s.absmax)
		s.noteNested()
	})
	return &s.nested, nil
}

// compute quantizes a segment: its codes go to b.codes, and what is new to s.
func (s *scales) compute(b *scratch, segment int) error {
	first := int64(segment) * s.per * s.unit
	n := min(s.per*s.unit, s.target.spec.NumElements()-first)
	x, err := s.source.values(b, first, int(n))
	if err != nil {
		return err
	}
	if err := s.checkFinite(x, first); err != nil {
		return err
	}
	b.absmax = grow(b.absmax, int(ceilDiv(n, s.unit)))
	b.codes = grow(b.codes, int(codeBytes(s.view.format.kind, n)))
	if s.view.format.kind == Int8 {
		if err := s.encodeRows(b, x, first); err != nil {
			return err
		}
	} else {
		block.EncodeFourBit(s.view.format.kind.fourBit(), b.codes, b.absmax, x, s.view.format.blockSize)
	}
	s.mu.Lock()
	done := s.done[segment]
	s.mu.Unlock()
	if done {
		return nil
	}
	return s.keep(b, x, segment)
}

// encodeRows quantizes whole rows by LLM.int8, which rounds to F16 first.
func (s *scales) encodeRows(b *scratch, x []float32, first int64) error {
	f16, _ := block.For(tensor.F16)
	b.raw, b.back = grow(b.raw, 2*len(x)), grow(b.back, len(x))
	f16.Encode32(b.raw, x)
	f16.Decode32(b.back, b.raw)
	for i := range b.absmax {
		from, to := i*int(s.unit), (i+1)*int(s.unit)
		b.absmax[i] = block.EncodeInt8(b.codes[from:to], b.back[from:to])
	}
	if at := slices.IndexFunc(b.back, func(v float32) bool { return math.Abs(float64(v)) > math.MaxFloat32 }); at >= 0 {
		return s.errorf("element %d is %g: LLM.int8 rounds to f16 first, which ends at 65504", first+int64(at), x[at])
	}
	return nil
}

// checkFinite refuses numbers that would make a whole block or row infinite or NaN.
func (s *scales) checkFinite(x []float32, first int64) error {
	if largest := kernel.MaxAbs(x); largest <= math.MaxFloat32 {
		return nil
	}
	at := slices.IndexFunc(x, func(v float32) bool { return !(math.Abs(float64(v)) <= math.MaxFloat32) })
	return s.errorf("element %d is not finite", first+int64(at))
}

func (s *scales) errorf(format string, args ...any) error {
	where := fmt.Sprintf("tensor %q: ", s.target.spec.Name)
	if s.target.transposed {
		where = fmt.Sprintf("tensor %q, transposed: ", s.target.spec.Name)
	}
	return &checkpoint.InputError{Path: s.view.path, Err: fmt.Errorf(where+format, args...)}
}

// keep stores the scales and figures of a segment, once.
func (s *scales) keep(b *scratch, x []float32, segment int) error {
	sums := segmentSums{largest: float64(kernel.MaxAbs(x))}
	b.back = grow(b.back, len(x))
	first := int64(segment) * s.per
	c, err := s.change.read(first*s.unit, len(x))
	if err != nil {
		return err
	}
	defer c.release()
	var cross, square, along []float32
	switch {
	case s.view.format.kind == Int8:
		for i, scale := range b.absmax {
			from, to := i*int(s.unit), (i+1)*int(s.unit)
			block.DecodeInt8(b.back[from:to], b.codes[from:to], scale)
		}
		sums.norm, sums.off = difference(b, x)
	case s.view.format.double:
		cross, square = s.products(b, x)
		along = c.products(b, s.view.format.blockSize, &sums)
		sums.norm, _ = difference(b, x)
	default:
		kernel.DecodeFourBit(s.view.format.kind.fourBit(), b.back, b.codes, b.absmax, s.view.format.blockSize)
		sums.norm, sums.off = difference(b, x)
	}
	if !s.view.format.double {
		c.compare(b, &sums)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done[segment] {
		return nil
	}
	copy(s.absmax[first:], b.absmax)
	if cross != nil {
		copy(s.cross[first:], cross)
		copy(s.square[first:], square)
		copy(s.along[first:], along)
	}
	s.segments[segment] = sums
	s.done[segment] = true
	if s.left--; s.left == 0 && !s.view.format.double {
		s.noteFigures(0, 0)
	}
	return nil
}

// difference returns the sums of x² and (b.back - x)².
func difference(b *scratch, x []float32) (norm, off float64) {
	b.stats = grow(b.stats, 1)
	kernel.Stats(b.stats, x, x, b.back, 1, len(x))
	return b.stats[0].Base, b.stats[0].Rounding
}

// products returns, for each block, the sums of x·v and v² with v the values of the
// codes: with them the error is known for any scale. They are what a report of a
// change v of a base of zeros, stored as x, calls kept and change.
func (s *scales) products(b *scratch, x []float32) (cross, square []float32) {
	size, blocks := s.view.format.blockSize, len(b.absmax)
	b.ones, b.zeros = grow(b.ones, blocks), grow(b.zeros, len(x)) // zeros are never written to
	for i := range b.ones {
		b.ones[i] = 1
	}
	kernel.DecodeFourBit(s.view.format.kind.fourBit(), b.back, b.codes, b.ones, size)
	b.stats = grow(b.stats, blocks)
	full := len(x) / size
	kernel.Stats(b.stats[:full], b.zeros[:full*size], b.back[:full*size], x[:full*size], full, size)
	if full < blocks {
		rest := len(x) - full*size
		kernel.Stats(b.stats[full:], b.zeros[:rest], b.back[full*size:], x[full*size:], 1, rest)
	}
	cross, square = make([]float32, blocks), make([]float32, blocks)
	for i, st := range b.stats {
		cross[i], square[i] = float32(st.Kept), float32(st.Change)
	}
	return cross, square
}

// noteNested sums up the error with the scales that the nested ones stand for.
func (s *scales) noteNested() {
	n := &s.nested
	scale := make([]float32, s.units)
	block.DecodeNested(scale, n.Codes, 0, &n.Map, n.Absmax, n.Offset, block.NestedSize)
	off, kept := 0.0, 0.0
	for i, a := range scale {
		a := float64(a)
		off += float64(a*a*float64(s.square[i])) - float64(2*a*float64(s.cross[i]))
		kept += float64(a * float64(s.along[i]))
	}
	s.noteFigures(off, kept)
}

// noteFigures reports the weight; off and kept are added to what the segments have, and their
// norms with it if the scales are nested: |x - av|² = x² - 2axv + a²v².
func (s *scales) noteFigures(off, kept float64) {
	var norm, largest, change float64
	for _, seg := range s.segments {
		norm += seg.norm
		off += seg.off
		change += seg.change
		kept += seg.kept
		largest = max(largest, seg.largest)
	}
	if s.view.format.double {
		off += norm
	}
	f := Figures{Tensor: s.target.spec.Name, Shape: s.target.shape, Bytes: s.target.bytes, Bits: s.view.nominalBits(s.target), AbsMax: largest}
	f.set(norm, off)
	f.Survival = s.change.survival(change, kept)
	s.view.note(s.target, f)
}

// set takes the sums of squares of a weight and of its error.
func (f *Figures) set(norm, off float64) {
	f.Norm = math.Sqrt(norm)
	if norm > 0 {
		f.Error = math.Sqrt(max(off, 0) / norm)
	}
}

// source reads the numbers of a weight in the order in which they are quantized.
type source struct {
	src    io.ReaderAt
	target *target
	codec  block.Codec
	width  int64
	shift  loftq.Factors // taken off the numbers
}

func newSource(src io.ReaderAt, t *target) source {
	codec, _ := block.For(t.spec.DType) // its type was checked when it was chosen
	return source{src: src, target: t, codec: codec, width: t.spec.DType.Bits() / 8}
}

// values returns elements [first, first+n), in b.x.
func (r source) values(b *scratch, first int64, n int) ([]float32, error) {
	x, err := r.stored(b, first, n)
	if err == nil && r.shift.Rank() > 0 {
		r.takeOff(b, x, first)
	}
	return x, err
}

// takeOff subtracts the shift, row by row as loftq.Shifted does.
func (r source) takeOff(b *scratch, x []float32, first int64) {
	in, rank := r.target.shape[1], r.shift.Rank()
	subtract := func(rows []float32, row int64) {
		n := len(rows) / int(in)
		kernel.AddLowRank(rows, n, int(in), r.shift.B.Data[int(row)*rank:(int(row)+n)*rank], r.shift.A.Data[:rank*int(in)], rank, -1)
	}
	for len(x) > 0 {
		row, col := first/in, first%in
		n := int64(len(x)) / in * in
		if col == 0 && n > 0 {
			subtract(x[:n], row)
		} else {
			// A part of a row goes by way of a whole one.
			n = min(int64(len(x)), in-col)
			b.gathered = grow(b.gathered, int(in))
			clear(b.gathered)
			copy(b.gathered[col:], x[:n])
			subtract(b.gathered, row)
			copy(x[:n], b.gathered[col:])
		}
		x, first = x[n:], first+n
	}
}

// stored returns elements as they are in the source.
func (r source) stored(b *scratch, first int64, n int) ([]float32, error) {
	b.x = grow(b.x, n)
	if !r.target.transposed {
		return b.x, r.read(b, b.x, first)
	}
	// Rows of the weight are columns of the source.
	in, out := r.target.shape[1], r.target.shape[0]
	from, to := first/in, (first+int64(n)-1)/in+1
	b.gathered = grow(b.gathered, int(to-from))
	for i := range in {
		if err := r.read(b, b.gathered, i*out+from); err != nil {
			return nil, err
		}
		for j, v := range b.gathered {
			if at := (from+int64(j))*in + i - first; at >= 0 && at < int64(n) {
				b.x[at] = v
			}
		}
	}
	return b.x, nil
}

// read decodes len(dst) stored elements.
func (r source) read(b *scratch, dst []float32, first int64) error {
	b.raw = grow(b.raw, len(dst)*int(r.width))
	n, err := r.src.ReadAt(b.raw, first*r.width)
	if n < len(b.raw) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("reading %q: %w", r.target.spec.Name, err)
	}
	r.codec.Decode32(dst, b.raw)
	return nil
}
