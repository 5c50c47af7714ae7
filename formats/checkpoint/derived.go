package checkpoint

import (
	"fmt"
	"io"
	"math"
	"slices"
	"sync"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/saferead"
	"github.com/loratool/loratool/quant/block"
)

// This file makes one tensor of the several that a quantizer stores it as. Who
// reads the model sees the weight with its shape and the values that it stands for;
// they are computed when they are read. Nothing is kept but a few numbers, whatever
// the size of the tensor.

// Derived says how a tensor is stored that is not what it looks like.
type Derived struct {
	Kind      string   // "nf4", "fp4" or "int8", all of bitsandbytes; of FP8 and GGUF the type, as "f8_e4m3" or "q4_K"
	FP8       bool     // numbers times scales, see derived_fp8.go
	BlockSize int      // of the types in blocks
	Nested    bool     // the scales are quantized too
	Parts     []string // the stored tensors, the weight's own first
	Stored    int64    // their bytes
}

// derived is a tensor that is computed from stored ones.
type derived struct {
	Derived
	spec       tensor.Spec
	path       string // of the file with the codes, for messages
	values     valuesReader
	transposed bool // stored as (spec.Shape[1], spec.Shape[0])
}

// valuesReader computes elements [first, first+n) in the order they are stored in.
// The result is valid until the scratch is used again.
type valuesReader interface {
	values(b *scratch, first int64, n int) ([]float32, error)
}

// scratch is the memory of one call of ReadAt.
type scratch struct {
	x, absmax, nested, square []float32
	raw, codes, out           []byte
}

// maxScratch bounds what goes back to the pool: the longest rows need more and are
// rare.
const maxScratch = 16 << 20

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// release gives the memory back.
func (b *scratch) release() {
	if 4*(cap(b.x)+cap(b.square)) <= maxScratch {
		scratches.Put(b)
	}
}

// grow returns a slice of length n, reusing buf when it is large enough.
func grow[E any](buf []E, n int) []E {
	if cap(buf) < n {
		return make([]E, n)
	}
	return buf[:n]
}

// derive groups the stored tensors into those they stand for.
func (m *Model) derive() error {
	m.raw = m.specs
	m.derived = make(map[string]*derived)
	if m.gguf != nil {
		return m.deriveBlocks()
	}
	part := make(map[string]bool)
	for _, find := range []func(tensor.Spec) (*derived, error){m.fourBit, m.int8, m.fp8} {
		for _, s := range m.raw {
			d, err := find(s)
			if err != nil {
				return err
			}
			if d == nil {
				continue
			}
			m.derived[d.spec.Name] = d
			for _, name := range d.Parts {
				part[name] = true
				d.Stored += m.byName[name].Size()
			}
		}
	}
	if err := m.refuseOrphans(part); err != nil || len(part) == 0 {
		return err
	}
	fp8 := slices.ContainsFunc(m.raw, func(s tensor.Spec) bool { d := m.derived[s.Name]; return d != nil && d.FP8 })
	m.specs = nil
	for _, s := range m.raw {
		switch d := m.derived[s.Name]; {
		case d != nil:
			m.specs = append(m.specs, d.spec)
		case !part[s.Name] && !(fp8 && isRuntimeScale(s.Name)):
			m.specs = append(m.specs, s)
		}
	}
	return nil
}

// Hidden returns the names of the stored tensors that have no meaning of their own:
// parts of a derived tensor beside its codes, and what FP8 arithmetic needs at run
// time.
func (m *Model) Hidden() []string {
	seen := make(map[string]bool, len(m.specs))
	for _, s := range m.specs {
		seen[s.Name] = true
	}
	var names []string
	for _, s := range m.raw {
		if !seen[s.Name] {
			names = append(names, s.Name)
		}
	}
	return names
}

// RawSpecs returns the tensors as they are stored, in the order of their data. They
// differ from [Model.Specs] where a quantizer has split a tensor.
func (m *Model) RawSpecs() []tensor.Spec { return m.raw }

// Stored returns the model with its tensors as they are stored ([Model.RawSpecs]): what
// is to be copied as it is comes from there. It belongs to the model.
func (m *Model) Stored() Checkpoint { return stored{m} }

type stored struct{ *Model }

func (s stored) Specs() []tensor.Spec { return s.raw }

func (s stored) Lookup(name string) (tensor.Spec, bool) {
	l, ok := s.byName[name]
	return l.Spec, ok
}

func (s stored) Open(name string) (io.ReaderAt, error) {
	l, ok := s.byName[name]
	if !ok {
		return nil, fmt.Errorf("%s has no tensor %q", s.Name, name)
	}
	return l.section()
}

// Derived says how a tensor is stored if it is not stored as it looks.
func (m *Model) Derived(name string) (Derived, bool) {
	d, ok := m.derived[name]
	if !ok {
		return Derived{}, false
	}
	return d.Derived, true
}

// Quantization counts the derived tensors by their kind; empty if there are none.
func (m *Model) Quantization() map[string]int {
	kinds := make(map[string]int)
	for _, d := range m.derived {
		kinds[d.Kind]++
	}
	return kinds
}

// orient gives a tensor the orientation that its family stores it in: bitsandbytes
// quantizes the transpose of a Conv1D.
func (d *derived) orient(conv1D bool) {
	if conv1D && len(d.spec.Shape) == 2 {
		d.transposed = true
		d.spec.Shape = tensor.Shape{d.spec.Shape[1], d.spec.Shape[0]}
	}
}

// open returns the bytes of the tensor.
func (d *derived) open() io.ReaderAt {
	codec, _ := block.For(d.spec.DType) // a type that was written by name here
	return &derivedReader{d, codec, d.spec.DType.Bits() / 8}
}

// derivedReader computes the bytes of a tensor as they are asked for. It keeps no
// state and may be used concurrently.
type derivedReader struct {
	*derived
	codec block.Codec
	width int64 // bytes of an element
}

// chunkElements are decoded at a time: small enough for a cache.
const chunkElements = 32 << 10

func (r *derivedReader) ReadAt(p []byte, off int64) (int, error) {
	size := r.spec.Size()
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
	b := scratches.Get().(*scratch)
	defer b.release()
	for done := 0; done < len(p); {
		n, err := r.readSome(b, p[done:], off+int64(done))
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

// readSome fills the beginning of p and returns how much. Elements that p cuts at
// either end are made whole on the side.
func (r *derivedReader) readSome(b *scratch, p []byte, off int64) (int, error) {
	first, skip := off/r.width, off%r.width
	n := min((int64(len(p))+skip+r.width-1)/r.width, r.chunk())
	x, err := r.elements(b, first, int(n))
	if err != nil {
		return 0, err
	}
	if skip == 0 && n*r.width <= int64(len(p)) {
		r.codec.Encode32(p[:n*r.width], x)
		return int(n * r.width), nil
	}
	b.out = grow(b.out, int(n*r.width))
	r.codec.Encode32(b.out, x)
	return copy(p, b.out[skip:]), nil
}

// chunk is how many elements are computed at a time. Of a transposed tensor they
// are several rows, so that the stored ones are read in runs.
func (r *derivedReader) chunk() int64 {
	if r.transposed {
		return max(transposedRows*r.spec.Cols(), chunkElements)
	}
	return chunkElements
}

// transposedRows of a tensor that is stored as columns are computed at a time.
const transposedRows = 64

// elements returns elements [first, first+n) of the tensor.
func (r *derivedReader) elements(b *scratch, first int64, n int) ([]float32, error) {
	if !r.transposed {
		return r.values.values(b, first, n)
	}
	rows, cols := r.spec.Rows(), r.spec.Cols()
	from, to := first/cols, (first+int64(n)-1)/cols+1
	b.square = grow(b.square, int((to-from)*cols))
	for j := range cols {
		x, err := r.values.values(b, j*rows+from, int(to-from))
		if err != nil {
			return nil, err
		}
		for i, v := range x {
			b.square[int64(i)*cols+j] = v
		}
	}
	return b.square[first-from*cols:][:n], nil
}

// part returns a stored tensor that a derived one needs.
func (m *Model) part(name, suffix string, d tensor.DType, elements int64) (located, error) {
	l, ok := m.byName[name+suffix]
	if !ok {
		return l, inputErrorf(m.byName[name].file.path, "tensor %q is quantized, but there is no %q", name, name+suffix)
	}
	if l.DType != d || l.NumElements() != elements {
		return l, inputErrorf(l.file.path, "tensor %q is %s of %d elements; the shape and block size of %q ask for %s of %d",
			l.Name, l.DType.Safetensors(), l.NumElements(), name, d.Safetensors(), elements)
	}
	return l, nil
}

// section returns the bytes of a stored tensor.
func (l located) section() (io.ReaderAt, error) {
	s, err := l.file.section(l.Name)
	if err != nil {
		return nil, &InputError{l.file.path, err}
	}
	return s, nil
}

// read returns the whole of a small stored tensor.
func (l located) read() ([]byte, error) {
	src, err := l.section()
	if err != nil {
		return nil, err
	}
	data, err := saferead.New(src, l.Size()).Bytes(0, l.Size())
	if err != nil {
		return nil, inputErrorf(l.file.path, "tensor %q: %w", l.Name, err)
	}
	return data, nil
}

// floats is a stored tensor of numbers of which parts are read, as float32.
type floats struct {
	name, path string
	src        io.ReaderAt
	width      int64 // bytes of an element
	decode     func(dst []float32, src []byte)
}

func (l located) floats() (floats, error) {
	src, err := l.section()
	decode, _ := scaleDecoder(l.DType) // the callers have checked the type
	return floats{l.Name, l.file.path, src, l.DType.Bits() / 8, decode}, err
}

// scaleDecoder returns what reads the scales of a type: numbers, or exponents of two
// by themselves, which are also stored as U8.
func scaleDecoder(d tensor.DType) (decode func(dst []float32, src []byte), ok bool) {
	if d == tensor.F8E8M0 || d == tensor.U8 {
		return block.DecodeE8M0, true
	}
	codec, ok := block.For(d)
	if !ok {
		return nil, false
	}
	return codec.Decode32, true
}

// read returns elements [first, first+n), all finite.
func (f floats) read(b *scratch, dst []float32, first int64, n int) ([]float32, error) {
	dst, b.raw = grow(dst, n), grow(b.raw, n*int(f.width))
	if err := readFull(f.src, b.raw, first*f.width); err != nil {
		return dst, err
	}
	f.decode(dst, b.raw)
	return dst, checkFinite(f.path, f.name, dst, first)
}

// checkFinite refuses scales that would make whole blocks infinite or NaN.
func checkFinite(path, name string, x []float32, first int64) error {
	i := slices.IndexFunc(x, func(v float32) bool { return math.Abs(float64(v)) > math.MaxFloat32 || v != v })
	if i < 0 {
		return nil
	}
	return inputErrorf(path, "tensor %q: element %d is not finite", name, first+int64(i))
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

// quantizedSpec makes the spec of a derived tensor.
func quantizedSpec(l located, d tensor.DType, shape tensor.Shape) (tensor.Spec, error) {
	spec, err := tensor.NewSpec(l.Name, d, shape)
	if err != nil {
		return spec, inputErrorf(l.file.path, "tensor %q: %w", l.Name, err)
	}
	if spec.NumElements() == 0 {
		return spec, inputErrorf(l.file.path, "tensor %q: quantized, but its shape %v is empty", l.Name, shape)
	}
	return spec, nil
}
