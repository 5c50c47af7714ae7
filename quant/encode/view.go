// Package encode makes a checkpoint in which tensors are stored in the types of ggml,
// whatever the source is: a GGUF file, a merge that is computed while it is read, a
// converted model.
//
// [New] takes a source and the tensors that it is to become. The result is a [View]: an
// ordinary checkpoint whose tensors are the bytes that a GGUF file has, computed when
// they are read, so that copy steps and a layout of GGUF files ([checkpoint.NewGGUFLayout])
// are all it takes to write them. The bytes are those of llama.cpp's quantizer; see
// [block.GGML].
//
// Numbers that are not finite, or that a type can't hold, are errors that name the tensor
// and the element, also in tensors that are only copied.
package encode

import (
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/saferead"
	"github.com/loratool/loratool/quant/block"
)

// Target is a tensor of the result. The source has one of that name, of as many
// rows and columns: in F32, F16 or BF16, or already as the bytes of the type, which
// are then copied.
type Target struct {
	gguf.Spec
	// Weights, if not nil, gives the importance of the columns: one number for each or,
	// where the tensor has three dimensions, for each column of each expert. It is
	// called when the tensor is opened.
	Weights func() ([]float32, error)
	// Before, if not nil, is what the tensor was before the source changed it, so that the
	// figures say what is left of the change.
	Before *Before
}

// Before is a tensor of a checkpoint, as numbers.
type Before struct {
	Spec tensor.Spec
	In   checkpoint.Checkpoint
}

// View is a checkpoint with tensors in the types of ggml. It may be read concurrently
// and in any order.
type View struct {
	source  checkpoint.Checkpoint
	path    string // of the source, for messages
	specs   []tensor.Spec
	targets map[string]*target
	order   []*target

	mu      sync.Mutex
	figures map[*target]Figures
}

var _ checkpoint.Checkpoint = (*View)(nil)

// target is a tensor to be encoded or copied.
type target struct {
	Target
	from    tensor.Spec
	kind    block.GGML
	decode  block.Codec // nil if the bytes are copied
	cols    int64
	rows    int64 // of all experts
	experts int64
}

// Figures is what became of the numbers of an encoded tensor.
type Figures struct {
	Tensor string
	Type   gguf.Type
	Shape  tensor.Shape
	Bytes  int64
	// Error is ||W - Q|| / ||W||, with Q the numbers that the type stands for, rounded to
	// float32 as ggml decodes them. Norm is ||W||.
	Error, Norm float64
	// Change is the norm of W - W0, with W0 what the tensor was before, and Survival is
	// <Q - W0, W - W0> / ||W - W0||^2: 1 if all of the change is in Q as it is. They are 0
	// and NaN if that is not known; a change of nothing survives.
	Change, Survival float64
}

// New makes a view of a source. The path is named in messages about its numbers. The
// error is a [*block.GGMLTypeError] for a type that can't be written, or says which
// tensor is missing or of another shape.
func New(source checkpoint.Checkpoint, path string, targets []Target) (*View, error) {
	v := &View{source: source, path: path, targets: make(map[string]*target), figures: make(map[*target]Figures)}
	specs := make(map[string]tensor.Spec)
	for _, s := range source.Specs() {
		specs[s.Name] = s
	}
	for _, t := range targets {
		from, ok := specs[t.Name]
		if !ok {
			return nil, fmt.Errorf("tensor %q: not in the source", t.Name)
		}
		if err := v.add(t, from); err != nil {
			return nil, fmt.Errorf("tensor %q: %w", t.Name, err)
		}
	}
	return v, nil
}

func (v *View) add(to Target, from tensor.Spec) error {
	stored, err := checkpoint.StoredSpec(to.Spec)
	if err != nil {
		return err
	}
	t := &target{Target: to, from: from, kind: block.GGML(to.Type), cols: columns(to.Shape), experts: 1}
	if n := len(to.Shape); n > 2 {
		t.experts = to.Shape[n-3]
	}
	if n := to.NumElements(); n > 0 {
		t.rows = n / t.cols
	}
	if b := to.Before; b != nil && b.Spec.NumElements() != to.NumElements() {
		return fmt.Errorf("was of shape %s before, %s is wanted", b.Spec.Shape, to.Shape)
	}
	same := from.DType == stored.DType && from.NumElements() == stored.NumElements() && columns(from.Shape) == columns(stored.Shape)
	if !same {
		if err := t.checkSource(); err != nil {
			return err
		}
		t.decode, _ = block.For(from.DType)
	}
	v.specs = append(v.specs, stored)
	v.targets[to.Name] = t
	v.order = append(v.order, t)
	return nil
}

// columns returns the length of a row.
func columns(shape tensor.Shape) int64 {
	if len(shape) == 0 {
		return 1
	}
	return shape[len(shape)-1]
}

// checkSource refuses what can't be encoded.
func (t *target) checkSource() error {
	switch {
	case t.from.DType != tensor.F32 && t.from.DType != tensor.F16 && t.from.DType != tensor.BF16:
		return fmt.Errorf("%s can't be encoded as %s", t.from.DType, t.Type)
	case t.from.NumElements() != t.NumElements() || columns(t.from.Shape) != t.cols:
		return fmt.Errorf("is of shape %s in the source, %s is wanted", t.from.Shape, t.Shape)
	case len(t.Shape) > 3:
		return fmt.Errorf("shape %s has more dimensions than can be encoded", t.Shape)
	}
	return t.kind.CanQuantize()
}

// Specs returns the tensors in the order of the targets, as [checkpoint.StoredSpec]
// describes them.
func (v *View) Specs() []tensor.Spec { return v.specs }

// Encodes reports whether the bytes of a tensor are made here, and not the source's.
func (v *View) Encodes(name string) bool {
	t, ok := v.targets[name]
	return ok && t.decode != nil
}

// Open returns the bytes of a tensor.
func (v *View) Open(name string) (io.ReaderAt, error) {
	t, ok := v.targets[name]
	if !ok {
		return nil, fmt.Errorf("no tensor %q is encoded", name)
	}
	src, err := v.source.Open(name)
	if err != nil {
		return nil, err
	}
	r := &reader{view: v, target: t, src: src, size: t.Size()}
	if t.decode == nil {
		return r, nil
	}
	if t.Weights != nil && t.kind.Weighted() {
		if r.weights, err = t.loadWeights(); err != nil {
			return nil, fmt.Errorf("tensor %q: %w", name, err)
		}
	}
	if t.Before != nil {
		if r.before, err = openBefore(t.Before); err != nil {
			return nil, err
		}
	}
	r.cut()
	return r, nil
}

// loadWeights returns the importance of the columns.
func (t *target) loadWeights() ([]float32, error) {
	weights, err := t.Weights()
	if err == nil && int64(len(weights)) != t.cols*t.experts {
		err = fmt.Errorf("%d weights for %d columns of %d experts", len(weights), t.cols, t.experts)
	}
	return weights, err
}

// Figures returns what became of every encoded tensor that was read whole, in order.
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
// weights and sums of a tensor and of its neighbour, and a segment for each
// reader.
func (v *View) Memory(jobs int) int64 {
	var kept, segment int64
	for _, t := range v.order {
		if t.decode == nil {
			segment = max(segment, copyBytes+int64(t.kind.BlockBytes()))
			continue
		}
		n := t.segment(t.Weights != nil && t.kind.Weighted())
		own := (t.rows*t.cols/n + 1) * sumBytes
		if t.Weights != nil {
			own += 2 * 4 * t.cols * t.experts // as they are read, and as numbers
		}
		kept = max(kept, own)
		segment = max(segment, n*segmentBytes)
	}
	return 2*kept + int64(jobs)*segment
}

// rangeOf brings the range of a read into the size of a tensor, and reports whether
// that made it shorter.
func rangeOf(p []byte, off, size int64) ([]byte, bool, error) {
	switch {
	case off < 0:
		return nil, false, &saferead.RangeError{Offset: off, Length: int64(len(p)), Size: size}
	case off >= size:
		return nil, false, io.EOF
	case int64(len(p)) > size-off:
		return p[:size-off], true, nil
	}
	return p, false, nil
}

// grow returns a slice of length n, reusing buf when it is large enough.
func grow[E any](buf []E, n int64) []E { return slices.Grow(buf[:0], int(n))[:n] }
