package quant

import (
	"errors"
	"fmt"
	"io"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/plan"
	"github.com/loratool/loratool/quant/block"
)

// Moments are the means of the squared activations that came into the modules of a
// model.
type Moments interface {
	// Of returns those of a module with so many input channels.
	Of(module string, channels int64) ([]float64, error)
	// Input is the file that they come from, as a plan lists it.
	Input() plan.Input
	// Identity tells that file, as it was opened, from any other.
	Identity() string
}

var (
	_ Moments = (*TensorMoments)(nil)
	_ Moments = (*MatrixMoments)(nil)
)

// TensorMoments are moments in a safetensors file: one vector for each module, of its
// name.
type TensorMoments struct{ file *checkpoint.Model }

// NewTensorMoments takes an opened file.
func NewTensorMoments(file *checkpoint.Model) *TensorMoments { return &TensorMoments{file} }

// Input implements [Moments].
func (m *TensorMoments) Input() plan.Input { return inputOf("stats", m.file) }

// Identity implements [Moments].
func (m *TensorMoments) Identity() string { return m.file.Identity() }

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
	if err := checkMoments(values); err != nil {
		return nil, refuse("vector %q: %w", module, err)
	}
	return values, nil
}

// checkMoments refuses numbers that no means of squares are, and those that say nothing.
func checkMoments(values []float64) error {
	largest := 0.0
	for i, v := range values {
		if !(v >= 0) || v-v != 0 {
			return fmt.Errorf("channel %d has %v, which no mean of squares is", i, v)
		}
		largest = max(largest, v)
	}
	if largest == 0 {
		return errors.New("all channels have 0")
	}
	return nil
}
