package quant

import (
	"fmt"
	"io"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/quant/block"
)

// Moments are the means of the squared activations that came into the modules of a
// model.
type Moments interface {
	// Of returns those of a module with so many input channels.
	Of(module string, channels int64) ([]float64, error)
	// Source is the file that they come from.
	Source() *checkpoint.Model
}

var _ Moments = (*TensorMoments)(nil)

// TensorMoments are moments in a safetensors file: one vector for each module, of its
// name.
type TensorMoments struct{ file *checkpoint.Model }

// NewTensorMoments takes an opened file.
func NewTensorMoments(file *checkpoint.Model) *TensorMoments { return &TensorMoments{file} }

// Source implements [Moments].
func (m *TensorMoments) Source() *checkpoint.Model { return m.file }

// Of implements [Moments]. A module without a vector is an error, as are numbers that
// no means of squares are.
func (m *TensorMoments) Of(module string, channels int64) ([]float64, error) {
	refuse := func(format string, args ...any) error {
		return &checkpoint.InputError{Path: m.file.Path, Err: fmt.Errorf(format, args...)}
	}
	s, ok := m.file.Lookup(module)
	if !ok {
		return nil, refuse("there is no vector %q: every module with a pair needs one", module)
	}
	if len(s.Shape) != 1 || s.Shape[0] != channels {
		return nil, refuse("vector %q has shape %v for the %d input channels of the module", module, s.Shape, channels)
	}
	codec, ok := block.For(s.DType)
	if !ok || !s.DType.IsFloat() {
		return nil, refuse("vector %q is stored as %s", module, s.DType)
	}
	src, err := m.file.Open(module)
	if err != nil {
		return nil, err
	}
	raw := make([]byte, s.Size())
	if n, err := src.ReadAt(raw, 0); n < len(raw) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("reading %q: %w", module, err)
	}
	values := make([]float64, channels)
	codec.Decode64(values, raw)
	largest := 0.0
	for i, v := range values {
		if !(v >= 0) || v-v != 0 {
			return nil, refuse("vector %q: channel %d has %v, which no mean of squares is", module, i, v)
		}
		largest = max(largest, v)
	}
	if largest == 0 {
		return nil, refuse("vector %q: all channels have 0", module)
	}
	return values, nil
}
