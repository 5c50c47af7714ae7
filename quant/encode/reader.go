package encode

import (
	"errors"
	"fmt"
	"io"
	"math"
	"sync"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/quant/block"
)

// A tensor is encoded in segments of its elements, which do not depend on how it is
// read: of whole rows where weights go by column, else of whole blocks. A read
// computes the segments that it touches, so that one is computed twice where a read
// ends within it. The figures are sums over segments, added in their order.

const (
	// segmentElements is small enough for a core's cache, and little where a read of
	// 2 MiB computes a part of one in vain.
	segmentElements = 16 << 10
	// copyBytes are checked at a time.
	copyBytes = 64 << 10
	// segmentBytes is what a reader holds for an element: bytes of source and result,
	// the number, what it became, and what it was.
	segmentBytes = 4 + 4 + 4 + 4 + 4
	sumBytes     = 32
)

// segment returns how many elements are encoded at a time.
func (t *target) segment(byRow bool) int64 {
	if byRow {
		return t.cols * max(1, segmentElements/max(t.cols, 1))
	}
	return segmentElements // a multiple of every type's block
}

// reader computes the bytes of one tensor. It may be used concurrently.
type reader struct {
	view    *View
	target  *target
	src     io.ReaderAt
	size    int64
	weights []float32
	before  *beforeReader // nil if it is not known

	elements int64 // of a segment
	mu       sync.Mutex
	sums     []sums
	missing  int // segments that were not computed yet
}

// sums are those of the squares of a segment: of the numbers W, of what encoding changed,
// Q - W, and of the change D = W - W0 that is to be stored; kept is that of (Q - W0)·D.
type sums struct{ norm, off, change, kept float64 }

// scratch is the memory of one call of ReadAt.
type scratch struct {
	raw, codes []byte
	x, back, w []float32
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// cut decides the segments.
func (r *reader) cut() {
	t := r.target
	r.elements = t.segment(r.weights != nil)
	r.missing = int(ceilDiv(t.rows*t.cols, r.elements))
	r.sums = make([]sums, r.missing)
	for i := range r.sums {
		r.sums[i].norm = math.NaN() // not computed
	}
}

func ceilDiv(a, b int64) int64 { return a/b + min(a%b, 1) }

func (r *reader) ReadAt(p []byte, off int64) (int, error) {
	p, short, err := rangeOf(p, off, r.size)
	if err != nil {
		return 0, err
	}
	b := scratches.Get().(*scratch)
	defer scratches.Put(b)
	some := r.encodeSome
	if r.target.decode == nil {
		some = r.copySome
	}
	for done := 0; done < len(p); {
		n, err := some(b, p[done:], off+int64(done))
		if err != nil {
			return done, err
		}
		done += n
	}
	if short {
		return len(p), io.EOF
	}
	return len(p), nil
}

// encodeSome fills the beginning of p from the segment that it begins in.
func (r *reader) encodeSome(b *scratch, p []byte, off int64) (int, error) {
	elements, size := int64(r.target.kind.BlockElements()), int64(r.target.kind.BlockBytes())
	i := off / size * elements / r.elements
	first := i * r.elements
	n := min(r.elements, r.target.rows*r.target.cols-first)
	at, bytes := first/elements*size, n/elements*size
	dst := p
	whole := off == at && int64(len(p)) >= bytes
	if whole {
		dst = p[:bytes]
	} else {
		b.codes = grow(b.codes, bytes)
		dst = b.codes
	}
	if err := r.encode(b, dst, first, n); err != nil {
		return 0, err
	}
	if whole {
		return len(dst), nil
	}
	return copy(p, dst[off-at:]), nil
}

// encode sets dst to a segment of n elements from the first on.
func (r *reader) encode(b *scratch, dst []byte, first, n int64) error {
	t := r.target
	width := t.from.DType.Bits() / 8
	b.raw, b.x = grow(b.raw, n*width), grow(b.x, n)
	if err := readFull(r.src, b.raw, first*width); err != nil {
		return err
	}
	t.decode.Decode32(b.x, b.raw)
	if err := r.quantize(dst, b.x, first); err != nil {
		return err
	}
	return r.measure(b, dst, first)
}

// quantize encodes x, which begins with an element of the tensor: the rows of each
// expert with its weights, or one row where there are none.
func (r *reader) quantize(dst []byte, x []float32, first int64) error {
	t := r.target
	if r.weights == nil {
		return r.explain(t.kind.Quantize(dst, x, len(x), nil), first, int64(len(x)))
	}
	rowBytes, perExpert := len(dst)/(len(x)/int(t.cols)), t.rows/t.experts
	for len(x) > 0 {
		row := first / t.cols
		expert := row / perExpert
		n := min(int64(len(x))/t.cols, (expert+1)*perExpert-row)
		err := t.kind.Quantize(dst[:int(n)*rowBytes], x[:n*t.cols], int(t.cols), r.weights[expert*t.cols:][:t.cols])
		if err != nil {
			return r.explain(err, first, t.cols)
		}
		dst, x, first = dst[int(n)*rowBytes:], x[n*t.cols:], first+n*t.cols
	}
	return nil
}

// explain says which element of the tensor an error is about. It was told in rows of
// cols from the first element on.
func (r *reader) explain(err error, first, cols int64) error {
	if value, ok := errors.AsType[*block.GGMLValueError](err); ok {
		at := first + int64(value.Row)*cols + int64(value.Column)
		err = fmt.Errorf("tensor %q: row %d, column %d: %g %s, encoding as %s",
			r.target.Name, at/r.target.cols, at%r.target.cols, value.Value, value.Reason, r.target.Type)
		return &checkpoint.InputError{Path: r.view.path, Err: err}
	}
	return err
}

// measure adds what became of a segment to the figures.
func (r *reader) measure(b *scratch, codes []byte, first int64) error {
	i := first / r.elements
	r.mu.Lock()
	known := !math.IsNaN(r.sums[i].norm)
	r.mu.Unlock()
	if known {
		return nil
	}
	b.back = grow(b.back, int64(len(b.x)))
	if err := r.target.kind.Decode(b.back, codes); err != nil {
		return err
	}
	var stats [1]kernel.RowStats
	kernel.Stats(stats[:], b.x, b.back, b.back, 1, len(b.x))
	found := sums{norm: stats[0].Base, off: stats[0].Change}
	if r.before != nil {
		b.w = grow(b.w, int64(len(b.x)))
		if err := r.before.read(b, first); err != nil {
			return fmt.Errorf("reading %q as it was: %w", r.target.Name, err)
		}
		kernel.Stats(stats[:], b.w, b.x, b.back, 1, len(b.x))
		found.change, found.kept = stats[0].Change, stats[0].Kept
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !math.IsNaN(r.sums[i].norm) {
		return nil // another read was faster
	}
	r.sums[i] = found
	if r.missing--; r.missing == 0 {
		r.finish()
	}
	return nil
}

// finish notes the figures of a tensor that was read whole.
func (r *reader) finish() {
	t := r.target
	var all sums
	for _, s := range r.sums {
		all.norm += s.norm
		all.off += s.off
		all.change += s.change
		all.kept += s.kept
	}
	f := Figures{Tensor: t.Name, Type: t.Type, Shape: t.Shape, Bytes: r.size, Norm: math.Sqrt(all.norm)}
	if all.norm > 0 {
		f.Error = math.Sqrt(all.off / all.norm)
	}
	f.Change, f.Survival = math.Sqrt(all.change), 1
	if all.change > 0 {
		f.Survival = all.kept / all.change
	}
	if r.before == nil {
		f.Survival = math.NaN()
	}
	r.view.note(t, f)
}

// beforeReader reads what a tensor was before it was changed.
type beforeReader struct {
	src   io.ReaderAt
	codec block.Codec
	width int64
}

func openBefore(b *Before) (*beforeReader, error) {
	codec, ok := block.For(b.Spec.DType)
	if !ok {
		return nil, fmt.Errorf("tensor %q: its numbers of type %s are not known", b.Spec.Name, b.Spec.DType)
	}
	src, err := b.In.Open(b.Spec.Name)
	return &beforeReader{src, codec, b.Spec.DType.Bits() / 8}, err
}

// read sets b.w to the elements from the first on.
func (r *beforeReader) read(b *scratch, first int64) error {
	b.raw = grow(b.raw, int64(len(b.w))*r.width)
	if err := readFull(r.src, b.raw, first*r.width); err != nil {
		return err
	}
	r.codec.Decode32(b.w, b.raw)
	return nil
}

// copySome copies the beginning of p and looks for numbers that are not finite in the
// blocks that it is of.
func (r *reader) copySome(b *scratch, p []byte, off int64) (int, error) {
	t, size := r.target, int64(r.target.kind.BlockBytes())
	p = p[:min(len(p), copyBytes)]
	from, to := off/size*size, ceilDiv(off+int64(len(p)), size)*size
	data := p
	if from != off || to-from != int64(len(p)) {
		b.raw = grow(b.raw, to-from)
		data = b.raw
	}
	if err := readFull(r.src, data, from); err != nil {
		return 0, err
	}
	if at, found := t.kind.NonFinite(data); found {
		return 0, &checkpoint.InputError{Path: r.view.path,
			Err: fmt.Errorf("tensor %q: block %d of type %s is not finite", t.Name, from/size+at, t.Type)}
	}
	copy(p, data[off-from:])
	return len(p), nil
}

// readFull reads len(p) bytes; a source that ends early is an error.
func readFull(src io.ReaderAt, p []byte, off int64) error {
	n, err := src.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
