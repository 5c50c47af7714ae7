package quant

import (
	"io"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/internal/saferead"
	"github.com/loratool/loratool/quant/block"
)

// RoundTrip is a model as it is after quantization and back: the same tensors in the
// same types, where the weights that [Plan] would quantize have the values that their
// codes stand for. It is what a QLoRA adapter was trained against.
type RoundTrip struct{ view *View }

var _ checkpoint.Checkpoint = (*RoundTrip)(nil)

// NewRoundTrip decides like [Plan], with which it shares the options; nothing is
// written.
func NewRoundTrip(base *checkpoint.Model, o Options) (*RoundTrip, error) {
	p := startPlanner(base, o)
	if err := base.RefuseGGUF("a quantization for bitsandbytes from"); err != nil {
		return nil, err
	}
	if err := p.checkOptions(); err != nil {
		return nil, err
	}
	if err := p.choose(); err != nil {
		return nil, err
	}
	return &RoundTrip{newView(p)}, nil
}

// Specs returns the tensors of the model.
func (r *RoundTrip) Specs() []tensor.Spec { return r.view.source.Specs() }

// Figures returns how far the weights that were read whole are off.
func (r *RoundTrip) Figures() []Figures { return r.view.Figures() }

// Memory bounds what is allocated while jobs goroutines read in order.
func (r *RoundTrip) Memory(jobs int) int64 { return r.view.Memory(jobs) }

// Open returns the bytes of a tensor.
func (r *RoundTrip) Open(name string) (io.ReaderAt, error) {
	p, ok := r.view.parts[name] // the codes have the name of the weight
	if !ok {
		return r.view.source.Open(name)
	}
	s, err := r.view.scalesOf(p.target)
	if err != nil {
		return nil, err
	}
	return &valueReader{s}, nil
}

// valueReader computes the bytes of a weight after quantization and back.
type valueReader struct{ scales *scales }

func (r *valueReader) ReadAt(p []byte, off int64) (int, error) {
	spec := r.scales.target.spec
	size, width := spec.Size(), spec.DType.Bits()/8
	if off < 0 {
		return 0, &saferead.RangeError{Offset: off, Length: int64(len(p)), Size: size}
	}
	if off >= size {
		return 0, io.EOF
	}
	short := int64(len(p)) > size-off
	if short {
		p = p[:size-off]
	}
	first, last := off/width, ceilDiv(off+int64(len(p)), width)
	x := make([]float32, last-first)
	if err := r.scales.readValues(x, first); err != nil {
		return 0, err
	}
	codec, _ := block.For(spec.DType)
	raw := make([]byte, (last-first)*width)
	codec.Encode32(raw, x)
	copy(p, raw[off-first*width:])
	if short {
		return len(p), io.EOF
	}
	return len(p), nil
}

// readValues sets x to the values of the weight from an element on, in the order of
// the source. Of a transposed weight every segment has some.
func (s *scales) readValues(x []float32, first int64) error {
	b := scratches.Get().(*scratch)
	defer scratches.Put(b)
	n, width := int64(len(x)), s.per*s.unit
	if !s.target.transposed {
		for i := first / width; i*width < first+n; i++ {
			if err := s.decode(b, int(i)); err != nil {
				return err
			}
			from, to := max(i*width, first), min(i*width+int64(len(b.back)), first+n)
			copy(x[from-first:to-first], b.back[from-i*width:to-i*width])
		}
		return nil
	}
	in, out := s.target.shape[1], s.target.shape[0]
	for i := range s.done {
		if err := s.decode(b, i); err != nil {
			return err
		}
		for k, v := range b.back {
			at := int64(i)*width + int64(k)
			if to := at%in*out + at/in - first; to >= 0 && to < n {
				x[to] = v
			}
		}
	}
	return nil
}

// decode sets b.back to the values of a segment.
func (s *scales) decode(b *scratch, segment int) error {
	nested, err := s.nest()
	if err != nil {
		return err
	}
	if err := s.compute(b, segment); err != nil {
		return err
	}
	b.back = grow(b.back, len(b.x))
	switch first := int64(segment) * s.per; {
	case s.view.format.kind == Int8:
		for i, scale := range b.absmax {
			from, to := i*int(s.unit), (i+1)*int(s.unit)
			block.DecodeInt8(b.back[from:to], b.codes[from:to], scale)
		}
		return nil
	case s.view.format.double:
		codes := nested.Codes[first:][:len(b.absmax)]
		block.DecodeNested(b.absmax, codes, first, &nested.Map, nested.Absmax[first/block.NestedSize:], nested.Offset, block.NestedSize)
	}
	kernel.DecodeFourBit(s.view.format.kind.fourBit(), b.back, b.codes, b.absmax, s.view.format.blockSize)
	return nil
}
