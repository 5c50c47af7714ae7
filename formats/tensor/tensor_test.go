package tensor_test

import (
	"math"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/tensor"
)

// TestSpelling guards that every type has one spelling for files and one for
// people, that each is read back, and that spelling is exact.
func TestSpelling(t *testing.T) {
	seen := make(map[string]tensor.DType)
	for _, d := range tensor.All() {
		for _, name := range []string{d.Safetensors(), d.String()} {
			if other, ok := seen[name]; name == "" || ok {
				t.Errorf("type %d and type %d are both %q", d, other, name)
			}
			seen[name] = d
		}
		if got, ok := tensor.ParseSafetensors(d.Safetensors()); got != d || !ok {
			t.Errorf("ParseSafetensors(%q) is %v, %v", d.Safetensors(), got, ok)
		}
		if got, err := tensor.ParseFlag(d.String()); got != d || err != nil {
			t.Errorf("ParseFlag(%q) is %v, %v", d, got, err)
		}
	}
	if n := len(tensor.All()); n != 22 {
		t.Errorf("%d types, the format has 22", n)
	}
	for _, name := range []string{"", "f32", "F32 ", "FP8", "NoDType"} {
		if d, ok := tensor.ParseSafetensors(name); ok {
			t.Errorf("ParseSafetensors(%q) is %v", name, d)
		}
	}
	for _, name := range []string{"", "F32", "float32"} {
		if d, err := tensor.ParseFlag(name); err == nil {
			t.Errorf("ParseFlag(%q) is %v", name, d)
		}
	}
}

func TestNewSpec(t *testing.T) {
	const most = math.MaxInt64
	for _, c := range []struct {
		name  string
		dtype tensor.DType
		shape tensor.Shape
		size  int64 // -1 to refuse
		rows  int64
		cols  int64
	}{
		{"scalar", tensor.F32, nil, 4, 1, 1},
		{"vector", tensor.BF16, tensor.Shape{5}, 10, 5, 1},
		{"matrix", tensor.F64, tensor.Shape{3, 4}, 96, 3, 4},
		{"kernel", tensor.F16, tensor.Shape{2, 3, 4, 5}, 240, 2, 60},
		{"two to a byte", tensor.F4, tensor.Shape{3, 2}, 3, 3, 2},
		{"four to three bytes", tensor.F6E2M3, tensor.Shape{2, 2}, 3, 2, 2},
		{"no rows", tensor.F32, tensor.Shape{0, 7}, 0, 0, 7},
		{"no columns", tensor.F32, tensor.Shape{7, 0}, 0, 7, 0},
		{"no columns behind many rows", tensor.F32, tensor.Shape{1 << 40, 0}, 0, 1 << 40, 0},
		{"largest", tensor.U8, tensor.Shape{most / 8}, most / 8, most / 8, 1},
		{"half a byte", tensor.F4, tensor.Shape{3}, -1, 0, 0},
		{"a quarter of three bytes", tensor.F6E3M2, tensor.Shape{3}, -1, 0, 0},
		{"negative", tensor.F32, tensor.Shape{2, -1}, -1, 0, 0},
		{"negative twice", tensor.F32, tensor.Shape{-2, -2}, -1, 0, 0},
		{"elements overflow", tensor.U8, tensor.Shape{1 << 32, 1 << 32}, -1, 0, 0},
		{"elements wrap to zero", tensor.U8, tensor.Shape{1 << 32, 1 << 32, 0}, -1, 0, 0},
		{"bits overflow", tensor.F64, tensor.Shape{1 << 58}, -1, 0, 0},
		{"too many dimensions", tensor.U8, make(tensor.Shape, tensor.MaxDims+1), -1, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := tensor.NewSpec("w", c.dtype, c.shape)
			if c.size < 0 {
				if err == nil {
					t.Fatalf("accepted with %d bytes", s.Size())
				}
				if strings.Contains(err.Error(), "\n") {
					t.Errorf("error %q", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if s.Size() != c.size || s.Rows() != c.rows || s.Cols() != c.cols {
				t.Errorf("%d bytes, %d x %d; want %d, %d x %d", s.Size(), s.Rows(), s.Cols(), c.size, c.rows, c.cols)
			}
		})
	}
}

func TestShape(t *testing.T) {
	if got := (tensor.Shape{4096, 128}).String(); got != "[4096, 128]" {
		t.Errorf("shape prints as %q", got)
	}
	if got := (tensor.Shape)(nil).String(); got != "[]" {
		t.Errorf("scalar prints as %q", got)
	}
	a := tensor.Shape{2, 3}
	for _, b := range []tensor.Shape{{2}, {2, 3, 1}, {3, 2}, nil} {
		if a.Equal(b) || b.Equal(a) {
			t.Errorf("%v equals %v", a, b)
		}
	}
	if !a.Equal(tensor.Shape{2, 3}) || !(tensor.Shape)(nil).Equal(tensor.Shape{}) {
		t.Error("equal shapes differ")
	}
}

func TestMatrix(t *testing.T) {
	m := tensor.Matrix[float32]{Shape: tensor.Shape{2, 3}, Data: []float32{1, 2, 3, 4, 5, 6}}
	got := m.Transpose()
	if !got.Shape.Equal(tensor.Shape{3, 2}) {
		t.Errorf("shape %v", got.Shape)
	}
	for i, want := range []float32{1, 4, 2, 5, 3, 6} {
		if got.Data[i] != want {
			t.Errorf("element %d is %v, want %v", i, got.Data[i], want)
		}
	}
	got.Data[0] = 9
	if m.Data[0] != 1 {
		t.Error("the transpose shares its memory")
	}
	kernel := tensor.Matrix[float64]{Shape: tensor.Shape{2, 3, 4}, Data: make([]float64, 24)}
	if kernel.Rows() != 2 || kernel.Cols() != 12 {
		t.Errorf("kernel is %d x %d", kernel.Rows(), kernel.Cols())
	}
	scalar := tensor.Matrix[float64]{Data: make([]float64, 1)}
	if scalar.Rows() != 1 || scalar.Cols() != 1 {
		t.Errorf("scalar is %d x %d", scalar.Rows(), scalar.Cols())
	}
}

func TestKinds(t *testing.T) {
	floats := map[tensor.DType]bool{tensor.F16: true, tensor.BF16: true, tensor.F32: true, tensor.F64: true, tensor.F8E4M3: true, tensor.F8E5M2: true}
	for _, d := range tensor.All() {
		if d.IsFloat() != floats[d] {
			t.Errorf("%v: IsFloat is %v", d, d.IsFloat())
		}
		if d.IsFP8() != (d == tensor.F8E4M3 || d == tensor.F8E5M2) {
			t.Errorf("%v: IsFP8 is %v", d, d.IsFP8())
		}
	}
}
