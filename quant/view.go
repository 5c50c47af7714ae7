package quant

import (
	"fmt"
	"io"
	"sync"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/saferead"
	"github.com/loratool/loratool/quant/block"
	"github.com/loratool/loratool/quant/loftq"
)

// View is a quantized checkpoint, computed from its source when it is read. A
// quantized weight is several tensors there, the others are the source's.
//
// Reading the tensors in their order reads every weight of the source once: what the
// codes and the scales have in common is kept for the weight that is being read, and
// for no other. In another order the bytes are the same.
type View struct {
	source checkpoint.Checkpoint
	path   string // of the source, for messages
	format format
	specs  []tensor.Spec
	parts  map[string]part
	order  []*target
	kept   map[*target]checkpoint.Checkpoint // whose parts are copied from where they are stored

	// Threads is how many goroutines work on a weight that is quantized as a whole; 0
	// stands for 1.
	Threads int
	changes *changes // of the weights, nil for none
	// shift returns what is taken off a weight before it is quantized; nil for nothing.
	shift func(*target) (loftq.Factors, error)

	mu      sync.Mutex
	current *scales  // of the weight that was opened last
	numbers *numbers // likewise, of one that is stored as plain numbers
	figures map[*target]Figures
}

var _ checkpoint.Checkpoint = (*View)(nil)

// format is what the weights become.
type format struct {
	kind      Type
	blockSize int
	double    bool
	storage   tensor.DType
}

// part is one tensor of a quantized weight.
type part struct {
	target *target
	kind   partKind
	spec   tensor.Spec
}

type partKind int

const (
	partCodes partKind = iota
	partScales
	partNestedScales
	partNestedMap
	partMap
	partState
	partFormat
	partNumbers
)

// Figures is what quantization did to one weight.
type Figures struct {
	Tensor string
	Shape  tensor.Shape
	Bytes  int64   // of all its parts
	Bits   float64 // per element, as its format stores it
	AbsMax float64 // the largest magnitude
	// Error is ||W - Q|| / ||W|| in the Frobenius norm, with Q the exact values of
	// the codes, before they are rounded to the type they are computed with.
	Error float64
	// Norm is ||W||.
	Norm float64
	// Survival is the share of the change that a merge made of W0 that is left,
	// <Q - W0, W - W0> / ||W - W0||², with W before it was rounded to the type that is
	// quantized; NaN if nothing is known of W0.
	Survival float64
}

func newView(p *planner) *View {
	v := &View{
		source: p.source, path: p.base.Path, parts: make(map[string]part), order: p.targets, figures: make(map[*target]Figures),
		kept:   make(map[*target]checkpoint.Checkpoint),
		format: format{p.options.Type, p.options.BlockSize, p.options.DoubleQuant, p.options.Storage},
	}
	if from := p.options.From; from != nil && from.Before != nil && from.After != nil {
		v.changes = newChanges(from)
	}
	targets := make(map[string]*target)
	for _, t := range p.targets {
		targets[t.spec.Name] = t
	}
	for _, s := range p.source.Specs() {
		if t, ok := targets[s.Name]; ok {
			first := len(v.specs)
			v.split(t)
			if stored, ok := p.storedAs(t, v.specs[first:]); ok {
				v.kept[t] = p.base.Stored()
				copy(v.specs[first:], stored)
			}
			continue
		}
		v.specs = append(v.specs, s)
	}
	return v
}

// split adds the tensors that a weight becomes. The codes come first, the scales
// right behind them.
func (v *View) split(t *target) {
	add := func(kind partKind, name string, d tensor.DType, shape ...int64) {
		spec := tensor.Spec{Name: name, DType: d, Shape: shape}
		v.specs = append(v.specs, spec)
		t.bytes += spec.Size()
		v.parts[name] = part{t, kind, spec}
	}
	name, rows := t.spec.Name, t.shape[0]
	if t.bits > 0 {
		add(partNumbers, name, t.dtype, t.spec.Shape...)
		return
	}
	if v.format.kind == Int8 {
		add(partCodes, name, tensor.I8, t.shape...)
		add(partScales, t.module+".SCB", tensor.F32, rows)
		add(partFormat, t.module+".weight_format", tensor.U8)
		return
	}
	size := v.format.storage.Bits() / 8
	blocks := v.units(t)
	add(partCodes, name, v.format.storage, ceilDiv(t.spec.NumElements(), 2*size), 1)
	if v.format.double {
		add(partScales, name+".absmax", tensor.U8, blocks)
		add(partNestedScales, name+".nested_absmax", tensor.F32, ceilDiv(blocks, block.NestedSize))
		add(partNestedMap, name+".nested_quant_map", tensor.F32, 256)
	} else {
		add(partScales, name+".absmax", tensor.F32, blocks)
	}
	add(partMap, name+".quant_map", tensor.F32, 16)
	state := v.state(t, 0)
	add(partState, name+".quant_state.bitsandbytes__"+string(v.format.kind), tensor.U8, int64(len(state.Encode())))
}

// state is what is stored about a 4-bit weight.
func (v *View) state(t *target, offset float32) block.FourBitState {
	s := block.FourBitState{Type: v.format.kind.fourBit(), BlockSize: v.format.blockSize, DType: t.dtype, Shape: t.shape}
	if v.format.double {
		s.Nested, s.NestedSize, s.Offset = true, block.NestedSize, offset
	}
	return s
}

// unit is how many elements share a scale.
func (v *View) unit(t *target) int64 {
	if v.format.kind == Int8 {
		return t.shape[1]
	}
	return int64(v.format.blockSize)
}

// units is how many scales a weight has.
func (v *View) units(t *target) int64 { return ceilDiv(t.spec.NumElements(), v.unit(t)) }

// kindOf names what a weight becomes.
func (v *View) kindOf(t *target) string {
	if t.bits > 0 {
		return fmt.Sprintf("%s%d", v.format.kind.family(), t.bits)
	}
	return string(v.format.kind)
}

func ceilDiv(a, b int64) int64 { return a/b + min(a%b, 1) }

// Specs returns the tensors in the order of the source, the parts of a weight where
// the weight was.
func (v *View) Specs() []tensor.Spec { return v.specs }

// Open returns the bytes of a tensor.
func (v *View) Open(name string) (io.ReaderAt, error) {
	p, ok := v.parts[name]
	if !ok {
		return v.source.Open(name)
	}
	if stored, ok := v.kept[p.target]; ok {
		return stored.Open(name)
	}
	switch p.kind {
	case partNestedMap:
		table := block.DynamicMap()
		return bytesReader(encodeFloats(table[:])), nil
	case partMap:
		table := v.format.kind.fourBit().Values()
		return bytesReader(encodeFloats(table[:])), nil
	case partFormat:
		return bytesReader{rowFormat}, nil
	case partNumbers:
		return v.numbersOf(p.target), nil
	}
	s, err := v.scalesOf(p.target)
	if err != nil {
		return nil, err
	}
	return &partReader{part: p, scales: s, size: p.spec.Size()}, nil
}

// Encodes reports whether the bytes of a tensor are made here, and not the source's.
func (v *View) Encodes(name string) bool {
	p, ok := v.parts[name]
	return ok && v.kept[p.target] == nil
}

// rowFormat is the weight_format of LLM.int8 in rows.
const rowFormat = 0

// scalesOf returns what is known about a weight. Readers keep it alive while they
// need it; the view itself forgets it when the next weight is opened.
func (v *View) scalesOf(t *target) (*scales, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.current != nil && v.current.target == t {
		return v.current, nil
	}
	s, err := newScales(v, t)
	if err != nil {
		return nil, err
	}
	v.current = s
	return s, nil
}

// Figures returns what happened to every weight that was read whole, in order.
func (v *View) Figures() []Figures {
	v.mu.Lock()
	defer v.mu.Unlock()
	var all []Figures
	for _, t := range v.order {
		if f, ok := v.figures[t]; ok {
			all = append(all, f)
		}
	}
	return all
}

func (v *View) note(t *target, f Figures) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.figures[t] = f
}

// Memory bounds what the view allocates while jobs goroutines read it in order: the
// scales of the largest weight and of its neighbour, and a segment for each reader.
func (v *View) Memory(jobs int) int64 {
	var units, segment, pairs, whole int64
	for _, t := range v.order {
		if t.pair != nil {
			pairs = max(pairs, 2*4*t.pair.rank*(t.shape[0]+t.shape[1]))
		}
		if t.bits > 0 {
			// A weight as numbers, quantized, and as bytes; its neighbour's bytes.
			width := t.dtype.Bits() / 8
			whole = max(whole, (4+4+2*width)*t.spec.NumElements())
			continue
		}
		units = max(units, v.units(t))
		n := min(segmentElements(t), t.spec.NumElements())
		if t.transposed {
			n *= 3 // gathered, and as read
		}
		segment = max(segment, n)
	}
	perUnit := int64(4)
	if v.format.double {
		perUnit += 2*4 + 4 + 1
	}
	if v.changes != nil {
		segment *= 3 // the weight before and after
		perUnit += 4
	}
	return 2*perUnit*units + int64(jobs)*segment*segmentBytes + 2*pairs + whole
}

// segmentBytes is what a reader holds for each element of a segment: the number, what
// becomes of it, its code, its source, and a zero.
const segmentBytes = 4 + 4 + 1 + 4 + 4

// bytesReader reads from bytes.
type bytesReader []byte

func (r bytesReader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, &saferead.RangeError{Offset: off, Length: int64(len(p)), Size: int64(len(r))}
	}
	if off >= int64(len(r)) {
		return 0, io.EOF
	}
	n := copy(p, r[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func encodeFloats(x []float32) []byte {
	codec, _ := block.For(tensor.F32)
	data := make([]byte, 4*len(x))
	codec.Encode32(data, x)
	return data
}

// partReader computes the bytes of one part of a weight.
type partReader struct {
	part
	scales *scales
	size   int64
}

func (r *partReader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, &saferead.RangeError{Offset: off, Length: int64(len(p)), Size: r.size}
	}
	if off >= r.size {
		return 0, io.EOF
	}
	short := int64(len(p)) > r.size-off
	if short {
		p = p[:r.size-off]
	}
	if err := r.read(p, off); err != nil {
		return 0, err
	}
	if short {
		return len(p), io.EOF
	}
	return len(p), nil
}

// read fills p, which lies inside the part.
func (r *partReader) read(p []byte, off int64) error {
	if r.kind == partCodes {
		return r.scales.readCodes(p, off)
	}
	if r.kind == partScales && !r.scales.view.format.double {
		return r.scales.readScales(p, off)
	}
	nested, err := r.scales.nest()
	if err != nil {
		return err
	}
	var data []byte
	switch r.kind {
	case partScales:
		data = nested.Codes
	case partNestedScales:
		data = encodeFloats(nested.Absmax)
	case partState:
		state := r.scales.view.state(r.target, nested.Offset)
		data = state.Encode()
	default:
		return fmt.Errorf("part %d of %q can't be computed", r.kind, r.target.spec.Name)
	}
	copy(p, data[off:])
	return nil
}

// codeBytes is the size of so many codes: 4-bit ones are two to a byte.
func codeBytes(kind Type, elements int64) int64 {
	if kind == Int8 {
		return elements
	}
	return ceilDiv(elements, 2)
}
