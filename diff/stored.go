package diff

import (
	"bytes"
	"context"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
)

// storedPart is a tensor that a quantized one is computed from, on both sides.
type storedPart struct{ a, b tensor.Spec }

// storedAlike returns the stored parts of a pair that both sides compute from the same
// kind of codes, nil for others: equal parts need no decoding.
func (d *Diff) storedAlike(p *pair) []*storedPart {
	a, okA := d.a.Derived(p.a.Name)
	b, okB := d.b.Derived(p.b.Name)
	if !okA || !okB || a.Kind != b.Kind || a.BlockSize != b.BlockSize || a.Nested != b.Nested {
		return nil
	}
	if len(a.Parts) != len(b.Parts) || !p.a.Shape.Equal(p.b.Shape) || p.a.DType != p.b.DType {
		return nil
	}
	var parts []*storedPart
	for i := range a.Parts {
		x, y := d.rawA[a.Parts[i]], d.rawB[b.Parts[i]]
		if x.DType != y.DType || !x.Shape.Equal(y.Shape) {
			return nil
		}
		parts = append(parts, &storedPart{x, y})
	}
	return parts
}

// rawSpecs returns the tensors of a model as they are stored, by name.
func rawSpecs(m *checkpoint.Model) map[string]tensor.Spec {
	specs := make(map[string]tensor.Spec)
	for _, s := range m.RawSpecs() {
		specs[s.Name] = s
	}
	return specs
}

// sameStored reports whether both sides of a piece are computed from the same bytes.
func (d *Diff) sameStored(ctx context.Context, p *piece) (bool, error) {
	for _, part := range p.stored {
		same, err := d.samePart(ctx, part)
		if err != nil || !same {
			return false, err
		}
	}
	return len(p.stored) > 0, nil
}

func (d *Diff) samePart(ctx context.Context, part *storedPart) (bool, error) {
	srcA, err := d.a.Stored().Open(part.a.Name)
	if err != nil {
		return false, err
	}
	srcB, err := d.b.Stored().Open(part.b.Name)
	if err != nil {
		return false, err
	}
	bufA, bufB := make([]byte, chunk), make([]byte, chunk)
	for run := range chunks(0, part.a.Size()) {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		x, y := bufA[:run.n], bufB[:run.n]
		if err := readFull(srcA, x, run.from); err != nil {
			return false, readError(d.a, part.a.Name, err)
		}
		if err := readFull(srcB, y, run.from); err != nil {
			return false, readError(d.b, part.b.Name, err)
		}
		if !bytes.Equal(x, y) {
			return false, nil
		}
	}
	return true, nil
}
