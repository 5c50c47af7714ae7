package checkpoint

import (
	"io"
	"strings"

	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/quant/block"
)

// An LLM.int8 weight of bitsandbytes is stored as
//
//	P.weight          I8, rows of codes
//	P.SCB             F32, the largest magnitude of each row
//	P.weight_format   U8, 0 for rows; older files have none
const (
	weightSuffix = ".weight"
	scbSuffix    = ".SCB"
	formatSuffix = ".weight_format"
)

// rowFormat is the weight_format of a matrix in rows. The others are tilings for
// GPUs that bitsandbytes itself has given up.
const rowFormat = 0

// int8 returns the weight that an SCB tensor is about.
func (m *Model) int8(s tensor.Spec) (*derived, error) {
	module, ok := strings.CutSuffix(s.Name, scbSuffix)
	if !ok {
		return nil, nil
	}
	name := module + weightSuffix
	codes, ok := m.byName[name]
	if !ok || codes.DType != tensor.I8 {
		return nil, nil // a weight in 16 bits is a weight, whatever stands beside it
	}
	if m.derived[name] != nil {
		return nil, inputErrorf(codes.file.path, "tensor %q has both a quant_state and a %q", name, s.Name)
	}
	scales := m.byName[s.Name]
	if len(codes.Shape) != 2 {
		return nil, inputErrorf(codes.file.path, "tensor %q: %v is no matrix, as one with row scales must be", name, codes.Shape)
	}
	if scales.DType != tensor.F32 || scales.NumElements() != codes.Rows() {
		return nil, inputErrorf(scales.file.path, "tensor %q is %s of %d elements; the rows of %q ask for F32 of %d",
			s.Name, s.DType.Safetensors(), s.NumElements(), name, codes.Rows())
	}
	d := &derived{path: codes.file.path, Derived: Derived{Kind: "int8", Parts: []string{name, s.Name}}}
	if format, ok := m.byName[module+formatSuffix]; ok {
		d.Parts = append(d.Parts, format.Name)
		if err := checkFormat(format); err != nil {
			return nil, err
		}
	}
	var err error
	if d.spec, err = quantizedSpec(codes, tensor.F32, codes.Shape); err != nil {
		return nil, err
	}
	r := &int8Reader{cols: codes.Cols()}
	if r.codes, err = codes.section(); err != nil {
		return nil, err
	}
	if r.scales, err = scales.floats(); err != nil {
		return nil, err
	}
	d.values = r
	d.orient(m.isConv1D(name))
	return d, nil
}

func checkFormat(l located) error {
	if l.DType != tensor.U8 || l.Size() != 1 {
		return inputErrorf(l.file.path, "tensor %q: %s %v is no weight_format", l.Name, l.DType.Safetensors(), l.Shape)
	}
	data, err := l.read()
	if err != nil {
		return err
	}
	if data[0] != rowFormat {
		return inputErrorf(l.file.path, "tensor %q: layout %d is not supported, only rows (0)", l.Name, data[0])
	}
	return nil
}

// isConv1D reports whether the model type stores a weight transposed.
func (m *Model) isConv1D(weight string) bool {
	return arch.StoresConv1D(hfrepo.NewConfig(m.Config).ModelType(), strings.TrimSuffix(weight, weightSuffix))
}

// int8Reader computes the values of an LLM.int8 tensor.
type int8Reader struct {
	cols   int64
	codes  io.ReaderAt
	scales floats
}

// values decodes row by row.
func (r *int8Reader) values(b *scratch, first int64, n int) ([]float32, error) {
	b.codes, b.x = grow(b.codes, n), grow(b.x, n)
	if err := readFull(r.codes, b.codes, first); err != nil {
		return nil, err
	}
	row := first / r.cols
	rows := int(ceilDiv(first+int64(n), r.cols) - row)
	var err error
	if b.absmax, err = r.scales.read(b, b.absmax, row, rows); err != nil {
		return nil, err
	}
	for i, scale := range b.absmax {
		from := max((row+int64(i))*r.cols-first, 0)
		to := min((row+int64(i)+1)*r.cols-first, int64(n))
		block.DecodeInt8(b.x[from:to], b.codes[from:to], scale)
	}
	return b.x, nil
}
