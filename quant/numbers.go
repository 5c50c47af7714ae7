package quant

import (
	"fmt"
	"math"
	"sync"

	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/quant/block"
	"github.com/loratool/loratool/quant/loftq"
)

// This file has the types that are stored as plain numbers: the values that a few bits
// would stand for, in the element type that the weight had.

// family returns the name of a type without its width.
func (t Type) family() string {
	f, _ := t.dense()
	return f
}

// dense returns the family and the width of a type that can be stored as plain numbers,
// and no width of any other.
func (t Type) dense() (family string, bits int) {
	for _, f := range []string{"nf", "uniform"} {
		for bits := 2; bits <= 4; bits++ {
			if t == Type(fmt.Sprintf("%s%d", f, bits)) {
				return f, bits
			}
		}
	}
	return string(t), 0
}

// inBlocks reports whether the weights have a scale for each block.
func (t Type) inBlocks() bool { return t == FP4 || t.family() == "nf" }

// plainNumbers reports whether the weights are stored as plain numbers: there is no
// format for their type, or they have several widths.
func (o Options) plainNumbers() bool {
	_, bits := o.Type.dense()
	return bits > 0 && o.LoftQ != nil && (o.Type != NF4 || len(o.LoftQ.Bits) > 0)
}

// describeNumbers names the format.
func (o Options) describeNumbers() string {
	width := fmt.Sprint(o.Type)
	if len(o.LoftQ.Bits) > 0 {
		width = fmt.Sprintf("%s of several widths (%s)", o.Type.family(), formatBits(o.LoftQ.Bits))
	}
	if o.Type.inBlocks() {
		width += fmt.Sprintf(" in blocks of %d", o.BlockSize)
	}
	return width + ", stored as plain numbers of the type they had: no library has a format for it, and the file is no smaller"
}

// quantizer returns what a weight goes through.
func (v *View) quantizer(t *target) loftq.Quantizer {
	switch {
	case t.bits > 0 && v.format.kind.family() == "nf":
		return loftq.Stored{Quantizer: loftq.Normal{Bits: t.bits, BlockSize: v.format.blockSize}, DType: t.dtype}
	case t.bits > 0:
		return loftq.Stored{Quantizer: loftq.Uniform{Bits: t.bits}, DType: t.dtype}
	case v.format.kind == Int8:
		return loftq.Int8{}
	}
	return loftq.FourBit{Type: v.format.kind.fourBit(), BlockSize: v.format.blockSize, Double: v.format.double}
}

// nominalBits is what a weight would take in a file of its format, per element.
func (v *View) nominalBits(t *target) float64 {
	if t.bits == 0 {
		return 8 * float64(t.bytes) / float64(t.spec.NumElements())
	}
	bits := float64(t.bits)
	if v.format.kind.inBlocks() {
		bits += 32 * float64(v.units(t)) / float64(t.spec.NumElements())
	}
	return bits
}

// numbers are the bytes of a weight that is quantized as a whole. They are made when
// they are first read.
type numbers struct {
	view   *View
	target *target
	once   sync.Once
	data   []byte
	err    error
}

// numbersOf returns the bytes of a weight, those of the last one again.
func (v *View) numbersOf(t *target) *numbers {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.numbers == nil || v.numbers.target != t {
		v.numbers = &numbers{view: v, target: t}
	}
	return v.numbers
}

func (n *numbers) ReadAt(p []byte, off int64) (int, error) {
	n.once.Do(n.make)
	if n.err != nil {
		return 0, n.err
	}
	return bytesReader(n.data).ReadAt(p, off)
}

// make quantizes the weight.
func (n *numbers) make() {
	v, t := n.view, n.target
	w, err := v.readWeight(t)
	if err != nil {
		n.err = err
		return
	}
	out, in := int(t.shape[0]), int(t.shape[1])
	x := w
	if v.shift != nil {
		f, err := v.shift(t)
		if err != nil {
			n.err = err
			return
		}
		if f.Rank() > 0 {
			x = make([]float32, len(w))
			loftq.Shifted(x, w, out, in, f, v.Threads)
		}
	}
	q := make([]float32, len(w))
	if err := v.quantizer(t).RoundTrip(q, x, out, in, max(v.Threads, 1)); err != nil {
		n.err = inTensor(v.path, t, err)
		return
	}
	v.noteNumbers(t, x, q)
	if t.transposed {
		for i := range out {
			for j := range in {
				x[j*out+i] = q[i*in+j]
			}
		}
		q = x
	}
	codec, _ := block.For(t.dtype)
	n.data = make([]byte, t.bytes)
	codec.Encode32(n.data, q)
}

// noteNumbers reports the weight.
func (v *View) noteNumbers(t *target, x, q []float32) {
	b := &scratch{back: q}
	norm, off := difference(b, x)
	f := Figures{Tensor: t.spec.Name, Shape: t.shape, Bytes: t.bytes, Bits: v.nominalBits(t), AbsMax: float64(kernel.MaxAbs(x)), Survival: math.NaN()}
	f.set(norm, off)
	v.note(t, f)
}

// readWeight reads a whole weight as (out, in). Numbers that are not finite are errors.
func (v *View) readWeight(t *target) ([]float32, error) {
	src, err := v.source.Open(t.spec.Name)
	if err != nil {
		return nil, err
	}
	s := &scales{view: v, target: t, source: newSource(src, t)}
	w := make([]float32, t.spec.NumElements())
	b := scratches.Get().(*scratch)
	defer scratches.Put(b)
	segment := segmentElements(t)
	for first := int64(0); first < int64(len(w)); first += segment {
		n := min(segment, int64(len(w))-first)
		x, err := s.source.values(b, first, int(n))
		if err != nil {
			return nil, err
		}
		if err := s.checkFinite(x, first); err != nil {
			return nil, err
		}
		copy(w[first:], x)
	}
	return w, nil
}
