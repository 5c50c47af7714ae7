package checkpoint

import (
	"io"

	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/quant/block"
)

// This file makes a tensor of numbers of one that GGUF stores in blocks: codes of a
// few bits with scales. Like those of other quantizers it is decoded when it is
// read, see [Derived].

// deriveBlocks makes the list of tensors of a GGUF model. Nothing but the type says
// that a tensor is quantized; names mean nothing here.
func (m *Model) deriveBlocks() error {
	m.specs = make([]tensor.Spec, 0, len(m.raw))
	for _, s := range m.raw {
		t, _ := m.gguf.Lookup(s.Name)
		if _, plain := t.Type.DType(); !plain {
			d, err := m.blocks(t.Spec)
			if err != nil {
				return err
			}
			m.derived[s.Name] = d
			s = d.spec
		}
		m.specs = append(m.specs, s)
	}
	return nil
}

// blocks makes a tensor of float32, which is what ggml decodes to.
func (m *Model) blocks(s gguf.Spec) (*derived, error) {
	l := m.byName[s.Name]
	kind := block.GGML(s.Type) // both are the numbers of ggml
	if err := kind.CanDecode(); err != nil {
		return nil, inputErrorf(l.file.path, "tensor %q: %w", s.Name, err)
	}
	spec, err := tensor.NewSpec(s.Name, tensor.F32, s.Shape)
	if err != nil {
		return nil, inputErrorf(l.file.path, "tensor %q: %w", s.Name, err)
	}
	codes, err := l.section()
	if err != nil {
		return nil, err
	}
	return &derived{
		Derived: Derived{Kind: s.Type.String(), BlockSize: kind.BlockElements(), Parts: []string{s.Name}, Stored: s.Size()},
		spec:    spec,
		path:    l.file.path,
		values:  &blockReader{kind: kind, name: s.Name, path: l.file.path, codes: codes},
	}, nil
}

// blockReader computes the values of a tensor in blocks.
type blockReader struct {
	kind       block.GGML
	name, path string
	codes      io.ReaderAt
}

// values decodes the blocks that hold the elements. A row is whole blocks, so they
// are counted from the first element of the tensor. A scale that is not finite is
// refused, as no quantizer means to write one and it spoils a whole block.
func (r *blockReader) values(b *scratch, first int64, n int) ([]float32, error) {
	elements, size := int64(r.kind.BlockElements()), int64(r.kind.BlockBytes())
	from, to := first/elements, ceilDiv(first+int64(n), elements)
	b.codes, b.x = grow(b.codes, int((to-from)*size)), grow(b.x, int((to-from)*elements))
	if err := readFull(r.codes, b.codes, from*size); err != nil {
		return nil, err
	}
	if at, found := r.kind.NonFinite(b.codes); found {
		return nil, inputErrorf(r.path, "tensor %q: block %d of type %s has a scale that is not finite", r.name, from+at, r.kind)
	}
	if err := r.kind.Decode(b.x, b.codes); err != nil {
		return nil, inputErrorf(r.path, "tensor %q: %w", r.name, err)
	}
	return b.x[first-from*elements:][:n], nil
}
