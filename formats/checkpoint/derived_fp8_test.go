package checkpoint_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/quant/block"
)

// numbers is a tensor of random values in its element type; codes of FP8 are
// anything but NaN and infinite.
func numbers(name string, d tensor.DType, shape ...int64) part {
	p := part{spec: tensor.Spec{Name: name, DType: d, Shape: shape}}
	rng := rand.New(rand.NewPCG(uint64(len(name)), uint64(d)))
	if codec, ok := block.For(d); ok {
		v := make([]float64, p.spec.NumElements())
		for i := range v {
			v[i] = rng.NormFloat64()
		}
		p.data = make([]byte, p.spec.Size())
		codec.Encode64(p.data, v)
		return p
	}
	for range p.spec.NumElements() {
		p.data = append(p.data, byte(120+rng.IntN(16))) // exponents near 0
	}
	return p
}

// value is element i of a scale or code, by the definition of its type.
func (p part) value(i int64) float64 {
	if p.spec.DType == tensor.U8 || p.spec.DType == tensor.F8E8M0 {
		return math.Exp2(float64(p.data[i]) - 127)
	}
	codec, _ := block.For(p.spec.DType)
	var v [1]float64
	size := p.spec.DType.Bits() / 8
	codec.Decode64(v[:], p.data[i*size:(i+1)*size])
	return v[0]
}

// TestFP8Values compares with the formula, one element at a time: which scale an
// element has is written out for each case.
func TestFP8Values(t *testing.T) {
	type shape = []int64
	all := func(...int64) int64 { return 0 }
	for _, c := range []struct {
		name   string
		w      tensor.DType
		shape  shape
		d      tensor.DType
		scales shape
		suffix string // of the scale's name
		config string
		index  func(at ...int64) int64 // of the scale of an element
	}{
		{"one of no dimensions", tensor.F8E4M3, shape{5, 4}, tensor.F32, shape{}, "weight_scale", "", all},
		{"one, E5M2", tensor.F8E5M2, shape{5, 4}, tensor.BF16, shape{1}, "weight_scale", "", all},
		{"rows", tensor.F8E4M3, shape{300, 203}, tensor.F32, shape{300, 1}, "weight_scale", "", func(at ...int64) int64 { return at[0] }},
		{"rows in f16", tensor.F8E4M3, shape{7, 3}, tensor.F16, shape{7}, "weight_scale", "", func(at ...int64) int64 { return at[0] }},
		{"blocks with a rest", tensor.F8E4M3, shape{300, 200}, tensor.F32, shape{3, 2}, "weight_scale_inv", "", func(at ...int64) int64 { return at[0]/128*2 + at[1]/128 }},
		{"blocks of the config", tensor.F8E4M3, shape{11, 7}, tensor.F32, shape{4, 2}, "weight_scale_inv", `{"quantization_config":{"weight_block_size":[3,5]}}`,
			func(at ...int64) int64 { return at[0]/3*2 + at[1]/5 }},
		{"blocks of exponents", tensor.F8E4M3, shape{256, 260}, tensor.F8E8M0, shape{2, 3}, "scale", "", func(at ...int64) int64 { return at[0]/128*3 + at[1]/128 }},
		{"groups of a row, exponents as bytes", tensor.F8E4M3, shape{6, 64}, tensor.U8, shape{6, 2}, "weight_scale", "", func(at ...int64) int64 { return at[0]*2 + at[1]/32 }},
		{"groups, rows longer than is decoded at a time", tensor.F8E4M3, shape{2, 1 << 17}, tensor.F32, shape{2, 1 << 10}, "weight_scale", "",
			func(at ...int64) int64 { return at[0]<<10 + at[1]>>7 }},
		{"columns", tensor.F8E4M3, shape{4, 9}, tensor.F32, shape{1, 9}, "weight_scale", "", func(at ...int64) int64 { return at[1] }},
		{"a vector", tensor.F8E4M3, shape{9}, tensor.F32, shape{9}, "weight_scale", "", func(at ...int64) int64 { return at[0] }},
		{"a number", tensor.F8E4M3, shape{}, tensor.F64, shape{}, "scale_weight", "", all},
		{"stack, one each", tensor.F8E4M3, shape{3, 4, 5}, tensor.F32, shape{3, 1, 1}, "weight_scale", "", func(at ...int64) int64 { return at[0] }},
		{"stack, blocks with a rest", tensor.F8E4M3, shape{3, 5, 7}, tensor.F32, shape{3, 3, 2}, "weight_scale_inv", `{"text_config":{"quantization_config":{"weight_block_size":[2,4]}}}`,
			func(at ...int64) int64 { return at[0]*6 + at[1]/2*2 + at[2]/4 }},
		{"stack, columns", tensor.F8E4M3, shape{2, 3, 4}, tensor.F32, shape{2, 1, 4}, "weight_scale", "", func(at ...int64) int64 { return at[0]*4 + at[2] }},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, s := numbers("a.weight", c.w, c.shape...), numbers("a."+c.suffix, c.d, c.scales...)
			dir := writeModel(t, []part{s, w, numbers("a.input_scale", tensor.F32), numbers("b.bias", tensor.BF16, 3)})
			if c.config != "" {
				writeFile(t, dir, "config.json", []byte(c.config))
			}
			m := mustOpen(t, dir, hfrepo.Cache{})
			if got := len(m.Specs()); got != 2 {
				t.Errorf("%d tensors: %q", got, names(m))
			}
			if hidden := m.Hidden(); len(hidden) != 2 || !slices.Contains(hidden, "a."+c.suffix) || !slices.Contains(hidden, "a.input_scale") {
				t.Errorf("hidden %q", hidden)
			}
			if d, ok := m.Derived("a.weight"); !ok || !d.FP8 || d.Kind != c.w.String() || d.Stored != w.spec.Size()+s.spec.Size() || m.Quantization()[d.Kind] != 1 {
				t.Errorf("derived %v: %+v", ok, d)
			}
			if err := m.CheckScales(); err != nil {
				t.Error(err)
			}
			spec, _ := m.Lookup("a.weight")
			if spec.DType != tensor.F32 || !spec.Shape.Equal(c.shape) {
				t.Errorf("spec %v", spec)
			}
			got := make([]float32, spec.NumElements())
			f32, _ := block.For(tensor.F32)
			f32.Decode32(got, readAll(t, m, "a.weight", spec.Size()))
			for i, v := range got {
				at, rest := make([]int64, len(c.shape)), int64(i)
				for k := len(at) - 1; k >= 0; k-- {
					at[k], rest = rest%c.shape[k], rest/c.shape[k]
				}
				// A float64 holds the product of the two exactly, but for a scale that is
				// one itself, which is rounded first.
				want := float32(w.value(int64(i)) * float64(float32(s.value(c.index(at...)))))
				if v != want {
					t.Fatalf("element %v is %v, want %v", at, v, want)
				}
			}
		})
	}
}

// fp8Model is a weight of rows x cols with a scale for each block of 128x128.
func fp8Model(t *testing.T, rows, cols int64) string {
	return writeModel(t, []part{
		numbers("h.c_fc.weight", tensor.F8E4M3, rows, cols),
		numbers("h.c_fc.weight_scale_inv", tensor.F32, (rows+127)/128, (cols+127)/128),
	})
}

// TestFP8Shards keeps a weight and its scale in two files.
func TestFP8Shards(t *testing.T) {
	w, s := numbers("a.weight", tensor.F8E4M3, 3, 5), numbers("a.weight_scale", tensor.F32, 3, 1)
	want := mustOpen(t, writeModel(t, []part{w, s}), hfrepo.Cache{})
	dir := t.TempDir()
	for name, p := range map[string]part{"one.safetensors": w, "two.safetensors": s} {
		data, err := os.ReadFile(filepath.Join(writeModel(t, []part{p}), "model.safetensors"))
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, dir, name, data)
	}
	writeFile(t, dir, "model.safetensors.index.json", []byte(`{"weight_map":{"a.weight":"one.safetensors","a.weight_scale":"two.safetensors"}}`))
	m := mustOpen(t, dir, hfrepo.Cache{})
	if got := readAll(t, m, "a.weight", 60); names(m) != "a.weight" || !bytes.Equal(got, readAll(t, want, "a.weight", 60)) {
		t.Errorf("%s: %x", names(m), got)
	}
	// One of the two files alone can be looked at, but is no model.
	alone := mustOpen(t, filepath.Join(dir, "one.safetensors"), hfrepo.Cache{})
	if s, _ := alone.Lookup("a.weight"); s.DType != tensor.F8E4M3 {
		t.Errorf("without its scale it is %v", s)
	}
}

// TestFP8Refused spoils the scales. Each error is an InputError that names the file
// and the tensor.
func TestFP8Refused(t *testing.T) {
	w := numbers("a.weight", tensor.F8E4M3, 6, 4)
	for _, c := range []struct {
		name  string
		parts []part
		want  string
	}{
		{"other rows", []part{w, numbers("a.weight_scale", tensor.F32, 5)}, `tensor "a.weight_scale": scales [5] of F32 do not fit the shape [6, 4] of "a.weight"`},
		{"columns for rows", []part{w, numbers("a.weight_scale", tensor.F32, 4)}, `"a.weight_scale"`},
		{"no scales", []part{w, numbers("a.weight_scale", tensor.F32, 0)}, `"a.weight_scale"`},
		{"blocks that could be of several sizes", []part{numbers("a.weight", tensor.F8E4M3, 300, 64), numbers("a.weight_scale", tensor.F32, 2, 1)}, `"a.weight_scale"`},
		{"integers", []part{w, numbers("a.weight_scale", tensor.I8, 1)}, `"a.weight_scale": scales [1] of I8`},
		{"FP8", []part{w, numbers("a.weight_scale", tensor.F8E4M3, 1)}, `"a.weight_scale": scales [1] of F8_E4M3`},
		{"two", []part{w, numbers("a.weight_scale", tensor.F32, 1), numbers("a.scale", tensor.F32, 1)}, `tensor "a.weight" has two scales, "a.weight_scale" and "a.scale"`},
		{"empty weight", []part{numbers("a.weight", tensor.F8E4M3, 0, 4), numbers("a.weight_scale", tensor.F32, 1)}, `"a.weight_scale"`},
		{"convolution", []part{numbers("a.weight", tensor.F8E4M3, 2, 3, 2, 2), numbers("a.weight_scale", tensor.F32, 1)}, `"a.weight_scale"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, err := checkpoint.Open(writeModel(t, c.parts), hfrepo.Cache{})
			if err == nil {
				m.Close()
				t.Fatal("accepted")
			}
			checkInputError(t, err, "model.safetensors", c.want)
		})
	}
}

// TestCheckScales has what may be opened and not be computed with.
func TestCheckScales(t *testing.T) {
	bare, scaled := numbers("a.weight", tensor.F8E4M3, 6, 4), numbers("b.weight", tensor.F8E4M3, 6, 4)
	scale := numbers("b.weight_scale", tensor.F32, 1)
	const quantized = `{"quantization_config":{"quant_method":"fp8"}}`
	for _, c := range []struct {
		name, config string
		parts        []part
		want         string // empty to accept
	}{
		{"plain values", `{}`, []part{bare}, ""},
		{"quantized by the config", quantized, []part{bare}, `tensor "a.weight" is FP8 without a scale`},
		{"quantized by another", `{}`, []part{bare, scaled, scale}, `tensor "a.weight" is FP8 without a scale`},
		{"a scale without its weight", quantized, []part{numbers("c.weight_scale_inv", tensor.F32, 1)}, `tensor "c.weight_scale_inv" is a scale, but there is no "c.weight"`},
		{"a scale of activations", `{}`, []part{numbers("c.input_scale_inv", tensor.F32, 1)}, ""},
		{"a scale beside numbers", `{}`, []part{numbers("c.weight", tensor.BF16, 2), numbers("c.weight_scale_inv", tensor.F32, 1)}, ""},
		{"integers with scales", `{}`, []part{numbers("c.weight", tensor.I8, 2, 2), numbers("c.weight_scale", tensor.F32, 1), scaled, scale}, `tensor "c.weight" is stored as I8 with the scale "c.weight_scale"`},
		{"integers with scales, nothing else", `{}`, []part{numbers("c.weight", tensor.I8, 2, 2), numbers("c.weight_scale", tensor.F32, 1)}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := writeModel(t, c.parts)
			writeFile(t, dir, "config.json", []byte(c.config))
			err := mustOpen(t, dir, hfrepo.Cache{}).CheckScales()
			if c.want == "" && err != nil {
				t.Error(err)
			} else if c.want != "" {
				checkInputError(t, err, "model.safetensors", c.want)
			}
		})
	}
}

// TestFP8NonFinite finds scales that are not finite, and products that are not,
// when they are read. What the codes say is passed on.
func TestFP8NonFinite(t *testing.T) {
	w := numbers("a.weight", tensor.F8E4M3, 6, 4)
	w.data[5] = 0x7e // 448
	nan, scales := slices.Clone(w.data), []float32{1, 1, 1, 1, 1, 1}
	nan[9] = 0x7f
	with := func(i int, v float32) part {
		s := slices.Clone(scales)
		s[i] = v
		return f32("a.weight_scale", s)
	}
	exponents := numbers("a.weight_scale", tensor.F8E8M0, 6)
	exponents.data[2] = 255
	for _, c := range []struct {
		name  string
		scale part
		codes []byte
		want  string
	}{
		{"infinite", with(3, float32(math.Inf(1))), w.data, `tensor "a.weight_scale": element 3 is not finite`},
		{"NaN", with(5, float32(math.NaN())), w.data, `tensor "a.weight_scale": element 5 is not finite`},
		{"NaN of the exponents", exponents, w.data, `tensor "a.weight_scale": element 2 is not finite`},
		{"too large a product", with(1, math.MaxFloat32/400), w.data, `tensor "a.weight": element 5 is not finite`},
		{"a large product", with(1, math.MaxFloat32/449), w.data, ""},
		{"a code that is NaN", with(0, 1), nan, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			codes := part{w.spec, c.codes}
			m := mustOpen(t, writeModel(t, []part{codes, c.scale}), hfrepo.Cache{})
			src, err := m.Open("a.weight")
			if err != nil {
				t.Fatal(err)
			}
			p := make([]byte, 6*4*4)
			_, err = src.ReadAt(p, 0)
			if c.want == "" && err != nil && !errors.Is(err, io.EOF) {
				t.Error(err)
			} else if c.want != "" {
				checkInputError(t, err, "model.safetensors", c.want)
			}
			if c.codes[9] == 0x7f {
				f, _ := block.For(tensor.F32)
				v := make([]float32, 24)
				f.Decode32(v, p)
				if v[9] == v[9] {
					t.Errorf("the NaN became %v", v[9])
				}
			}
		})
	}
}

// FuzzFP8 reads weights with scales of any shape and type: either the file is
// refused or every element can be read.
func FuzzFP8(f *testing.F) {
	f.Add(uint16(6), uint16(4), uint16(1), uint8(2), uint16(6), uint16(1), uint8(0), uint16(0), uint16(0), []byte{1, 2, 3})
	f.Add(uint16(300), uint16(200), uint16(1), uint8(2), uint16(3), uint16(2), uint8(1), uint16(128), uint16(128), []byte{0x7f, 0xff})
	f.Add(uint16(6), uint16(8), uint16(3), uint8(3), uint16(2), uint16(2), uint8(2), uint16(4), uint16(6), []byte{0})
	types := []tensor.DType{tensor.F32, tensor.F8E8M0, tensor.BF16, tensor.U8, tensor.F64}
	f.Fuzz(func(t *testing.T, rows, cols, stack uint16, dims uint8, a, b uint16, kind uint8, blockRows, blockCols uint16, data []byte) {
		w := tensor.Shape{int64(stack), int64(rows), int64(cols)}
		if stack < 2 {
			w = w[1:]
		}
		s := tensor.Shape{int64(stack), int64(a), int64(b)}
		switch dims % 4 {
		case 0:
			s = nil
		case 1:
			s = s[1:2]
		case 2:
			s = s[1:]
		}
		parts := []part{
			{spec: tensor.Spec{Name: "a.weight", DType: tensor.F8E4M3, Shape: w}},
			{spec: tensor.Spec{Name: "a.weight_scale", DType: types[int(kind)%len(types)], Shape: s}},
		}
		for i := range parts {
			n, ok := parts[i].spec.Shape.NumElements()
			if !ok || n > 1<<18 || len(data) == 0 {
				t.Skip()
			}
			parts[i].data = bytes.Repeat(data, int(parts[i].spec.Size())/len(data)+1)[:parts[i].spec.Size()]
		}
		dir := writeModel(t, parts)
		writeFile(t, dir, "config.json", fmt.Appendf(nil, `{"quantization_config":{"weight_block_size":[%d,%d]}}`, blockRows, blockCols))
		m, err := checkpoint.Open(dir, hfrepo.Cache{})
		if err != nil {
			checkInputError(t, err, "model.safetensors", `"a.weight_scale"`)
			return
		}
		defer m.Close()
		spec, _ := m.Lookup("a.weight")
		src, err := m.Open("a.weight")
		if err != nil {
			t.Fatal(err)
		}
		whole := make([]byte, spec.Size())
		if n, err := src.ReadAt(whole, 0); err != nil && err != io.EOF {
			checkInputError(t, err, "model.safetensors", "not finite")
			return
		} else if int64(n) != spec.Size() {
			t.Fatalf("%d bytes of %d", n, spec.Size())
		}
		off := spec.Size() * int64(data[0]) / 256
		tail := make([]byte, spec.Size()-off)
		if _, err := src.ReadAt(tail, off); err != nil && err != io.EOF || !bytes.Equal(tail, whole[off:]) {
			t.Errorf("from %d on it is something else (%v)", off, err)
		}
	})
}
