package checkpoint

import (
	"io"
	"math"
	"strings"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/quant/block"
)

// A 4-bit weight of bitsandbytes is stored as
//
//	W                                     two codes a byte, in any element type
//	W.quant_state.bitsandbytes__nf4       JSON, see [block.FourBitState]
//	W.quant_map                           the 16 values of the codes
//	W.absmax                              F32 of each block, or U8 codes of it and
//	W.nested_absmax, W.nested_quant_map   what those mean
const (
	stateSuffix     = ".quant_state.bitsandbytes__"
	absmaxSuffix    = ".absmax"
	mapSuffix       = ".quant_map"
	nestedSuffix    = ".nested_absmax"
	nestedMapSuffix = ".nested_quant_map"
)

// maxStateSize bounds the JSON; it has 7 short members.
const maxStateSize = 64 << 10

// fourBit returns the weight that a quant_state tensor is about. It has but one: the
// state of another type asks for another map.
func (m *Model) fourBit(s tensor.Spec) (*derived, error) {
	name, kind, ok := strings.Cut(s.Name, stateSuffix)
	if !ok {
		return nil, nil
	}
	l := m.byName[s.Name]
	codes, ok := m.byName[name]
	switch {
	case !ok:
		return nil, inputErrorf(l.file.path, "tensor %q: there is no %q", s.Name, name)
	case s.DType != tensor.U8 || s.Size() > maxStateSize:
		return nil, inputErrorf(l.file.path, "tensor %q: %s of %d bytes is no quant_state", s.Name, s.DType.Safetensors(), s.Size())
	}
	data, err := l.read()
	if err != nil {
		return nil, err
	}
	state, err := block.ParseFourBitState(data)
	if err != nil {
		return nil, inputErrorf(l.file.path, "tensor %q: %w", s.Name, err)
	}
	if want := block.FourBitNames[state.Type]; kind != want {
		return nil, inputErrorf(l.file.path, "tensor %q holds the state of %s", s.Name, want)
	}
	d := &derived{path: codes.file.path}
	if d.spec, err = quantizedSpec(codes, state.DType, state.Shape); err != nil {
		return nil, err
	}
	if want := (d.spec.NumElements() + 1) / 2; codes.Size() != want {
		return nil, inputErrorf(codes.file.path, "tensor %q has %d bytes; the shape %v of its quant_state asks for %d", name, codes.Size(), state.Shape, want)
	}
	d.Derived = Derived{Kind: kind, BlockSize: state.BlockSize, Nested: state.Nested, Parts: []string{name, s.Name}}
	if d.values, err = m.fourBitValues(d, codes, state); err != nil {
		return nil, err
	}
	d.orient(m.isConv1D(name))
	return d, nil
}

// fourBitValues opens the parts of a 4-bit tensor and checks their sizes and maps.
func (m *Model) fourBitValues(d *derived, codes located, state block.FourBitState) (*fourBitReader, error) {
	name := codes.Name
	r := &fourBitReader{state: state, elements: d.spec.NumElements(), path: codes.file.path, name: name}
	blocks := ceilDiv(r.elements, int64(state.BlockSize))
	var err error
	if r.codes, err = codes.section(); err != nil {
		return nil, err
	}
	table, err := m.part(name, mapSuffix, tensor.F32, 16)
	if err != nil {
		return nil, err
	}
	d.Parts = append(d.Parts, table.Name)
	if err := checkMap(table, state.Type); err != nil {
		return nil, err
	}
	if !state.Nested {
		absmax, err := m.part(name, absmaxSuffix, tensor.F32, blocks)
		if err != nil {
			return nil, err
		}
		d.Parts = append(d.Parts, absmax.Name)
		r.absmax, err = absmax.floats()
		return r, err
	}
	absmax, err := m.part(name, absmaxSuffix, tensor.U8, blocks)
	if err != nil {
		return nil, err
	}
	nested, err := m.part(name, nestedSuffix, tensor.F32, ceilDiv(blocks, int64(state.NestedSize)))
	if err != nil {
		return nil, err
	}
	nestedMap, err := m.part(name, nestedMapSuffix, tensor.F32, 256)
	if err != nil {
		return nil, err
	}
	d.Parts = append(d.Parts, absmax.Name, nested.Name, nestedMap.Name)
	if r.absmaxCodes, err = absmax.section(); err != nil {
		return nil, err
	}
	if r.absmax, err = nested.floats(); err != nil {
		return nil, err
	}
	r.nestedMap, err = m.sharedMap(nestedMap)
	return r, err
}

// checkMap refuses a table of values that is not the one of its type. bitsandbytes
// has the tables in its code and reads the stored one nowhere, so that another one
// would mean two things. Its own comparison of states allows as much.
func checkMap(l located, kind kernel.FourBit) error {
	const allowed = 1e-6
	var b scratch
	f, err := l.floats()
	if err != nil {
		return err
	}
	stored, err := f.read(&b, nil, 0, 16)
	if err != nil {
		return err
	}
	for i, want := range kind.Values() {
		if math.Abs(float64(stored[i]-want)) > allowed {
			return inputErrorf(l.file.path, "tensor %q: value %d is %v, in %s it is %v", l.Name, i, stored[i], block.FourBitNames[kind], want)
		}
	}
	return nil
}

// sharedMap reads the table of a second quantization, which is used as it is stored:
// its last bits depend on the version of torch. Models have the same one in every
// tensor, which is kept once.
func (m *Model) sharedMap(l located) (*[256]float32, error) {
	var b scratch
	f, err := l.floats()
	if err != nil {
		return nil, err
	}
	stored, err := f.read(&b, nil, 0, 256)
	if err != nil {
		return nil, err
	}
	table := [256]float32(stored)
	if m.nestedMap == nil || *m.nestedMap != table {
		m.nestedMap = &table
	}
	return m.nestedMap, nil
}

// refuseOrphans names what is left of a 4-bit tensor whose state is missing.
func (m *Model) refuseOrphans(part map[string]bool) error {
	for _, s := range m.raw {
		if part[s.Name] {
			continue
		}
		for _, suffix := range []string{absmaxSuffix, mapSuffix, nestedSuffix, nestedMapSuffix} {
			name, found := strings.CutSuffix(s.Name, suffix)
			if l, ok := m.byName[name]; found && ok {
				return inputErrorf(l.file.path, "tensor %q has a %q, but no quant_state that asks for it", name, s.Name)
			}
		}
	}
	return nil
}

// fourBitReader computes the values of a 4-bit tensor.
type fourBitReader struct {
	state       block.FourBitState
	elements    int64
	path, name  string
	codes       io.ReaderAt
	absmax      floats      // of the blocks, or of the blocks of absmaxCodes
	absmaxCodes io.ReaderAt // nil unless nested
	nestedMap   *[256]float32
}

// values decodes whole blocks.
func (r *fourBitReader) values(b *scratch, first int64, n int) ([]float32, error) {
	size := int64(r.state.BlockSize)
	from := first / size * size
	to := min(ceilDiv(first+int64(n), size)*size, r.elements)
	if err := r.readAbsmax(b, from/size, int(ceilDiv(to, size)-from/size)); err != nil {
		return nil, err
	}
	b.codes = grow(b.codes, int(ceilDiv(to-from, 2)))
	if err := readFull(r.codes, b.codes, from/2); err != nil {
		return nil, err
	}
	b.x = grow(b.x, int(to-from))
	kernel.DecodeFourBit(r.state.Type, b.x, b.codes, b.absmax, r.state.BlockSize)
	return b.x[first-from:][:n], nil
}

// readAbsmax sets b.absmax to those of n blocks.
func (r *fourBitReader) readAbsmax(b *scratch, first int64, n int) (err error) {
	if r.absmaxCodes == nil {
		b.absmax, err = r.absmax.read(b, b.absmax, first, n)
		return err
	}
	size := int64(r.state.NestedSize)
	group := first / size
	if b.nested, err = r.absmax.read(b, b.nested, group, int(ceilDiv(first+int64(n), size)-group)); err != nil {
		return err
	}
	b.codes, b.absmax = grow(b.codes, n), grow(b.absmax, n)
	if err := readFull(r.absmaxCodes, b.codes, first); err != nil {
		return err
	}
	block.DecodeNested(b.absmax, b.codes, first, r.nestedMap, b.nested, r.state.Offset, size)
	return checkFinite(r.path, r.name+absmaxSuffix, b.absmax, first)
}

func ceilDiv(a, b int64) int64 { return a/b + min(a%b, 1) }
