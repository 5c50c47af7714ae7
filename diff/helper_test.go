package diff_test

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/loratool/loratool/diff"
	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/formats/tensor"
)

// array is a tensor of a test's model, as it is stored.
type array struct {
	name  string
	dtype tensor.DType
	shape tensor.Shape
	raw   []byte
}

// folder is a checkpoint in the making.
type folder struct {
	arrays []array
	files  map[string]string // beside the weights, config.json too
	name   string            // of the weights, model.safetensors if empty
}

// add adds a tensor of random bytes that stand for ordinary numbers.
func (f *folder) add(rng *rand.Rand, name string, d tensor.DType, shape ...int64) {
	f.arrays = append(f.arrays, array{name, d, shape, randomRaw(rng, d, shape)})
}

func (f *folder) set(name string, d tensor.DType, raw []byte, shape ...int64) {
	f.arrays = append(f.arrays, array{name, d, shape, raw})
}

// floats adds a tensor of F32 numbers.
func (f *folder) floats(name string, values []float32, shape ...int64) {
	raw := make([]byte, 4*len(values))
	for i, v := range values {
		binary.LittleEndian.PutUint32(raw[4*i:], math.Float32bits(v))
	}
	f.set(name, tensor.F32, raw, shape...)
}

// randomRaw makes codes of numbers around 1: the sign and the digits are random, the
// exponents are a few.
func randomRaw(rng *rand.Rand, d tensor.DType, shape tensor.Shape) []byte {
	n, _ := shape.NumElements()
	raw := make([]byte, n*d.Bits()/8)
	for i := range raw {
		raw[i] = byte(rng.Uint32())
	}
	size := int(d.Bits() / 8)
	for i := 0; d.IsFloat() && i < len(raw); i += size {
		code := raw[i : i+size]
		switch d {
		case tensor.F64:
			binary.LittleEndian.PutUint64(code, math.Float64bits(rng.NormFloat64()))
		case tensor.F32:
			binary.LittleEndian.PutUint32(code, math.Float32bits(float32(rng.NormFloat64())))
		case tensor.BF16:
			binary.LittleEndian.PutUint16(code, uint16(math.Float32bits(float32(rng.NormFloat64()))>>16))
		default: // F16 and F8: an exponent that is not all ones
			code[size-1] &= 0xb7
		}
	}
	return raw
}

// write stores the folder and opens it.
func (f *folder) write(t *testing.T) *checkpoint.Model {
	t.Helper()
	dir := f.store(t)
	m, err := checkpoint.Open(dir, hfrepo.Cache{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func (f *folder) store(t *testing.T) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "m")
	if err := os.MkdirAll(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	for name, text := range f.files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	name := f.name
	if name == "" {
		name = "model.safetensors"
	}
	var specs []tensor.Spec
	values := make(map[string][]byte)
	for _, a := range f.arrays {
		specs = append(specs, tensor.Spec{Name: a.name, DType: a.dtype, Shape: a.shape})
		values[a.name] = a.raw
	}
	l, err := safetensors.NewLayout(specs, nil)
	if err != nil {
		t.Fatal(err)
	}
	data := append([]byte(nil), l.Header()...)
	for _, placed := range l.Tensors() {
		for int64(len(data)) < placed.Offset {
			data = append(data, 0)
		}
		data = append(data, values[placed.Name]...)
	}
	if err := os.WriteFile(filepath.Join(dir, name), data, 0o666); err != nil {
		t.Fatal(err)
	}
	return dir
}

// compare runs a whole comparison.
func compare(t *testing.T, a, b *checkpoint.Model, o diff.Options) *diff.Result {
	t.Helper()
	return compareWith(t, a, b, o, engine.Options{})
}

func compareWith(t *testing.T, a, b *checkpoint.Model, o diff.Options, e engine.Options) *diff.Result {
	t.Helper()
	d, err := diff.Open(a, b, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := engine.Each(t.Context(), d.Tasks(), e); err != nil {
		t.Fatal(err)
	}
	if err := engine.Each(t.Context(), d.Norms(), e); err != nil {
		t.Fatal(err)
	}
	return d.Result()
}

// only returns the result of the only pair.
func only(t *testing.T, r *diff.Result) *diff.Tensor {
	t.Helper()
	if len(r.Tensors) != 1 {
		t.Fatalf("%d pairs, want 1", len(r.Tensors))
	}
	return &r.Tensors[0]
}
