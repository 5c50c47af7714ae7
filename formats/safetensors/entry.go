package safetensors

import (
	"fmt"
	"math"
	"slices"
	"strconv"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/strictjson"
)

// fields collects what an entry says about a tensor.
type fields struct {
	dtype                          tensor.DType
	begin, end                     uint64
	hasDType, hasShape, hasOffsets bool
}

// readTensor reads the entry after the key.
func (p *headerParser) readTensor(key strictjson.Token) error {
	p.name = string(key.Text)
	f, err := p.fields()
	if err != nil {
		return err
	}
	switch {
	case !f.hasDType:
		return p.errorAt(key.Offset, "dtype is missing")
	case !f.hasShape:
		return p.errorAt(key.Offset, "shape is missing")
	case !f.hasOffsets:
		return p.errorAt(key.Offset, "data_offsets are missing")
	}
	spec, err := tensor.NewSpec(p.name, f.dtype, p.shapes.keep(p.dims))
	if err != nil {
		return p.errorAt(key.Offset, shorten(err.Error()))
	}
	if err := p.checkRange(spec, f, key.Offset); err != nil {
		return err
	}
	p.tensors = append(p.tensors, Tensor{Spec: spec, Offset: p.dataOffset + int64(f.begin)})
	p.ends = append(p.ends, p.dataOffset+int64(f.end))
	p.name = ""
	return nil
}

// fields reads an entry; the shape goes to p.dims.
func (p *headerParser) fields() (f fields, err error) {
	if err := p.expect(strictjson.KindObject, "entry"); err != nil {
		return f, err
	}
	for {
		t, err := p.next()
		if err != nil || t.Kind == strictjson.KindObjectEnd {
			return f, err
		}
		switch string(t.Text) {
		case "dtype":
			f.hasDType = true
			f.dtype, err = p.dtype()
		case "shape":
			f.hasShape = true
			err = p.shape()
		case "data_offsets":
			f.hasOffsets = true
			f.begin, f.end, err = p.dataOffsets()
		default:
			err = p.errorAt(t.Offset, "unknown field "+excerpt(t.Text))
		}
		if err != nil {
			return f, err
		}
	}
}

// checkRange proves that [begin, end) lies in the data section and is exactly
// as long as the tensor.
func (p *headerParser) checkRange(spec tensor.Spec, f fields, offset int64) error {
	begin, end := f.begin, f.end
	switch {
	case begin > end:
		return p.errorAt(offset, fmt.Sprintf("offsets [%d,%d) run backwards", begin, end))
	case end > uint64(p.dataSize):
		return p.errorAt(offset, fmt.Sprintf("offsets [%d,%d) run past the end of the data, which has %d bytes", begin, end, p.dataSize))
	case int64(end-begin) != spec.Size():
		return p.errorAt(offset, fmt.Sprintf("offsets [%d,%d) hold %d bytes, %s of shape %s takes %d",
			begin, end, end-begin, spec.DType.Safetensors(), shorten(spec.Shape.String()), spec.Size()))
	}
	return nil
}

func (p *headerParser) dtype() (tensor.DType, error) {
	t, err := p.want(strictjson.KindString, "dtype")
	if err != nil {
		return tensor.NoDType, err
	}
	d, ok := tensor.ParseSafetensors(string(t.Text))
	if !ok {
		return tensor.NoDType, p.errorAt(t.Offset, "unknown dtype "+excerpt(t.Text))
	}
	return d, nil
}

// shape reads the dimensions into p.dims.
func (p *headerParser) shape() error {
	p.dims = p.dims[:0]
	if err := p.expect(strictjson.KindArray, "shape"); err != nil {
		return err
	}
	for {
		t, err := p.next()
		if err != nil || t.Kind == strictjson.KindArrayEnd {
			return err
		}
		n, err := p.integer(t, "dimension")
		if err != nil {
			return err
		}
		if n > math.MaxInt64 {
			return p.errorAt(t.Offset, fmt.Sprintf("dimension %d is beyond 63 bits", n))
		}
		if len(p.dims) == tensor.MaxDims {
			return p.errorAt(t.Offset, fmt.Sprintf("shape has more than %d dimensions", tensor.MaxDims))
		}
		p.dims = append(p.dims, int64(n))
	}
}

func (p *headerParser) dataOffsets() (begin, end uint64, err error) {
	if err := p.expect(strictjson.KindArray, "data_offsets"); err != nil {
		return 0, 0, err
	}
	var pair [2]uint64
	for i := 0; ; i++ {
		t, err := p.next()
		if err != nil {
			return 0, 0, err
		}
		if (t.Kind == strictjson.KindArrayEnd) != (i == len(pair)) {
			return 0, 0, p.errorAt(t.Offset, "data_offsets are not two numbers")
		}
		if i == len(pair) {
			return pair[0], pair[1], nil
		}
		if pair[i], err = p.integer(t, "offset"); err != nil {
			return 0, 0, err
		}
	}
}

// integer returns the value of a token that must be plain decimal digits.
func (p *headerParser) integer(t strictjson.Token, what string) (uint64, error) {
	if t.Kind != strictjson.KindNumber {
		return 0, p.errorAt(t.Offset, fmt.Sprintf("%s is %s, not a number", what, t.Kind))
	}
	n, err := strconv.ParseUint(string(t.Text), 10, 64)
	if err != nil {
		return 0, p.errorAt(t.Offset, fmt.Sprintf("%s %s is not a plain integer of 64 bits", what, shorten(string(t.Text))))
	}
	return n, nil
}

// shapeArena stores shapes of known length next to each other: millions of
// small allocations would cost more than the shapes.
type shapeArena struct{ free []int64 }

// arenaBlock is the number of dimensions allocated at once.
const arenaBlock = 4096

// keep returns a copy of dims.
func (a *shapeArena) keep(dims []int64) tensor.Shape {
	if len(dims) == 0 {
		return tensor.Shape{}
	}
	if len(dims) > arenaBlock/16 {
		return slices.Clone(dims)
	}
	if len(dims) > len(a.free) {
		a.free = make([]int64, arenaBlock)
	}
	shape := a.free[:len(dims):len(dims)]
	a.free = a.free[len(dims):]
	copy(shape, dims)
	return shape
}
