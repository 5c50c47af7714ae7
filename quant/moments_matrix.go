package quant

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/plan"
)

// MatrixMoments are moments in an importance matrix of llama.cpp, which holds sums of
// squared activations and how many there are of each (tools/imatrix/imatrix.cpp). The
// older form may have no count: then it has the means up to one factor, which is all
// that counts.
//
// It names weights as GGUF does; those of a folder are found by the family of their
// model. The order of the input channels is the same in both worlds: where a conversion
// changes the order of query and key rows, it changes that of the outputs.
type MatrixMoments struct {
	matrix   *gguf.Imatrix
	file     plan.File
	identity string
	family   *arch.Family // nil if the model is GGUF itself
}

// NewMatrixMoments takes an opened matrix, of a model whose weights are base's: its path,
// and what tells the file from any other. A folder of a family that GGUF has no names
// for is an error.
func NewMatrixMoments(m *gguf.Imatrix, path, identity string, base *checkpoint.Model) (*MatrixMoments, error) {
	moments := &MatrixMoments{matrix: m, identity: identity, file: plan.File{Name: filepath.Base(path), Path: path, Size: m.Size()}}
	if base.GGUF() != nil {
		return moments, nil
	}
	class := hfrepo.NewConfig(base.Config).Architecture()
	var ok bool
	if moments.family, ok = arch.GGUFOf(class); !ok {
		return nil, moments.errorf("an importance matrix names weights as GGUF does, and there is no table of those names for %q models; "+
			"a safetensors file with a vector for each module does without", class)
	}
	return moments, nil
}

func (m *MatrixMoments) errorf(format string, args ...any) error {
	return &checkpoint.InputError{Path: m.file.Path, Err: fmt.Errorf(format, args...)}
}

// Input implements [Moments].
func (m *MatrixMoments) Input() plan.Input {
	return plan.Input{Role: "stats", Name: m.file.Name, Path: m.file.Path, Weight: 1, Files: []plan.File{m.file}}
}

// Identity implements [Moments].
func (m *MatrixMoments) Identity() string { return m.identity }

// Of implements [Moments]. A module that the matrix has no entry for is an error. One that
// was never run while it was made has channels that all count the same.
func (m *MatrixMoments) Of(module string, channels int64) ([]float64, error) {
	name, err := m.nameOf(module)
	if err != nil {
		return nil, m.errorf("module %q: %w", module, err)
	}
	n, ok := m.matrix.Sizes()[name]
	switch {
	case !ok:
		return nil, m.errorf("there is no entry %q: every module with a pair needs one", name)
	case n != channels:
		return nil, m.errorf("entry %q has %d weights for the %d input channels of the module", name, n, channels)
	}
	weights, err := m.matrix.Weights(name)
	if err != nil {
		return nil, fmt.Errorf("reading %q: %w", m.file.Path, err)
	}
	values := make([]float64, len(weights))
	for i, w := range weights {
		values[i] = float64(w)
	}
	if err := checkMoments(values); err != nil {
		return nil, m.errorf("entry %q: %w", name, err)
	}
	return values, nil
}

// nameOf returns what GGUF calls the weight of a module.
func (m *MatrixMoments) nameOf(module string) (string, error) {
	name := module + weightSuffix
	if m.family == nil {
		return name, nil
	}
	found := m.family.FromHF(name)
	if len(found) != 1 || found[0].Change == arch.Stacked {
		return "", errors.New("GGUF has no weight that is this one's alone")
	}
	return found[0].Name, nil
}
