package verify_test

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/quant/block"
	"github.com/loratool/loratool/verify"
)

const up0 = "model.layers.0.mlp.up_proj.weight"

// patch overwrites bytes of a stored tensor of a folder.
func patch(t *testing.T, dir, name string, at int64, data []byte) {
	t.Helper()
	m := openPath(t, dir)
	file, offset := m.Origin(name)
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(data, offset+at); err != nil {
		t.Fatal(err)
	}
}

// tinyGPT2 has one layer with the transposed weights of GPT-2.
func tinyGPT2(t *testing.T) *fixture {
	f := &fixture{t: t, values: make(map[string][]float64), files: make(map[string]string), config: map[string]any{
		"architectures": []string{"GPT2LMHeadModel"}, "model_type": "gpt2", "n_embd": 32, "n_head": 4, "n_layer": 1, "vocab_size": 12,
		"n_positions": 8, "dtype": "float32",
	}}
	f.add("transformer.wte.weight", tensor.F32, 12, 32)
	f.add("transformer.wpe.weight", tensor.F32, 8, 32)
	for _, s := range []struct {
		name    string
		in, out int64
	}{{"attn.c_attn", 32, 96}, {"attn.c_proj", 32, 32}, {"mlp.c_fc", 32, 128}, {"mlp.c_proj", 128, 32}} {
		f.add("transformer.h.0."+s.name+".weight", tensor.F32, s.in, s.out)
		f.add("transformer.h.0."+s.name+".bias", tensor.F32, s.out)
	}
	for _, n := range []string{"h.0.ln_1", "h.0.ln_2", "ln_f"} {
		f.add("transformer."+n+".weight", tensor.F32, 32)
		f.add("transformer."+n+".bias", tensor.F32, 32)
	}
	return f
}

// TestQuantized finds what is wrong with a quantized model and nothing in one that
// bitsandbytes' rules made.
func TestQuantized(t *testing.T) {
	caught := make(map[string]bool)
	for _, c := range []struct {
		name  string
		make  func(*testing.T) *fixture
		base  func(*fixture)
		quant quant.Options
		edit  func(t *testing.T, dir string)
		want  []string
	}{
		{name: "nf4", quant: quant.Options{Type: quant.NF4}},
		{name: "nf4, long blocks", quant: quant.Options{Type: quant.NF4, BlockSize: 1024}},
		{name: "nf4, double", quant: quant.Options{Type: quant.NF4, DoubleQuant: true}},
		{name: "fp4", quant: quant.Options{Type: quant.FP4}},
		{name: "int8", quant: quant.Options{Type: quant.Int8}},
		{name: "nf4 of f32", base: func(f *fixture) { f.config["dtype"] = "float32"; f.cast(tensor.F32) }, quant: quant.Options{Type: quant.NF4}},
		{name: "transposed", make: tinyGPT2, quant: quant.Options{Type: quant.NF4}},
		{name: "transposed, double", make: tinyGPT2, quant: quant.Options{Type: quant.FP4, DoubleQuant: true}},
		{name: "transposed, int8", make: tinyGPT2, quant: quant.Options{Type: quant.Int8}},

		{name: "code of the other sign", quant: quant.Options{Type: quant.NF4}, edit: func(t *testing.T, dir string) {
			patch(t, dir, up0, 17, []byte{0x0f}) // -1 and 1 in the place of small values
		}, want: []string{"quant-error " + up0}},
		{name: "next code", quant: quant.Options{Type: quant.NF4}, edit: func(t *testing.T, dir string) {
			nudge(t, dir)
		}, want: []string{"quant-not-nearest " + up0}},
		{name: "scales twice as large", quant: quant.Options{Type: quant.NF4}, edit: func(t *testing.T, dir string) {
			patch(t, dir, up0+".absmax", 0, encode(tensor.F32, []float64{1}))
		}, want: []string{"quant-error " + up0}},
		{name: "rows swapped", quant: quant.Options{Type: quant.Int8}, edit: func(t *testing.T, dir string) {
			patch(t, dir, "model.layers.0.mlp.up_proj.SCB", 0, encode(tensor.F32, []float64{0.5}))
		}, want: []string{"quant-error " + up0}},
		{name: "norm changed", quant: quant.Options{Type: quant.NF4}, edit: func(t *testing.T, dir string) {
			patch(t, dir, "model.norm.weight", 2, encode(tensor.BF16, []float64{1.5}))
		}, want: []string{"quant-changed model.norm.weight"}},
		{name: "double scales of another mean", quant: quant.Options{Type: quant.NF4, DoubleQuant: true}, edit: func(t *testing.T, dir string) {
			patch(t, dir, up0+".nested_absmax", 0, encode(tensor.F32, []float64{0.5}))
		}, want: []string{"quant-error " + up0}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.make == nil {
				c.make = tinyLlama
			}
			f := c.make(t)
			if c.base != nil {
				c.base(f)
			}
			dir := f.quantize(c.quant)
			if c.edit != nil {
				c.edit(t, dir)
			}
			r, err := verify.Quantized(t.Context(), openPath(t, f.write()), openPath(t, dir), verify.Options{})
			if err != nil {
				t.Fatal(err)
			}
			expect(t, r, c.want, caught)
			if q := r.Quantized; len(q.Tensors) < 4 || c.edit == nil && !(q.Error > 0.001 && q.Error < 0.2) {
				t.Errorf("figures %+v", r.Quantized)
			}
		})
	}
	for _, c := range []struct {
		name string
		edit func(*fixture)
		want []string
	}{
		{"not quantized", func(*fixture) {}, []string{"quant-none"}},
		{"tensor lost", func(f *fixture) { f.remove(up0) }, []string{"quant-missing " + up0, "quant-none", "tensor-missing " + up0}},
		{"tensor too many", func(f *fixture) { f.add("extra", tensor.BF16, 2) }, []string{"quant-extra extra", "quant-none"}},
		{"other shape", func(f *fixture) { f.reshape("model.norm.weight", 33) }, []string{"quant-none", "quant-shape model.norm.weight", "shape-config model.norm.weight"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := tinyLlama(t)
			c.edit(f)
			r, err := verify.Quantized(t.Context(), openPath(t, tinyLlama(t).write()), openPath(t, f.write()), verify.Options{})
			if err != nil {
				t.Fatal(err)
			}
			expect(t, r, c.want, caught)
		})
	}
	for _, c := range verify.Codes() {
		if c.Family == "quantized" && !caught[c.Name] {
			t.Errorf("no planted defect shows %q", c.Name)
		}
	}
}

func expect(t *testing.T, r *verify.Report, want []string, caught map[string]bool) {
	t.Helper()
	if got := found(r); !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
		for _, f := range r.Findings {
			t.Log(f.Code, f.Tensor, f.Message)
		}
	}
	for _, f := range r.Findings {
		caught[f.Code] = true
	}
}

// nudge moves the code of a value that is stored as zero by one: off by 0.0796 and half
// a gap of 0.09, of 0.152 that the widest gap allows for, so that it is no error.
func nudge(t *testing.T, dir string) {
	t.Helper()
	m := openPath(t, dir)
	src, err := m.Open(up0)
	if err != nil {
		t.Fatal(err)
	}
	raw := make([]byte, 64*2)
	if _, err := src.ReadAt(raw, 0); err != nil {
		t.Fatal(err)
	}
	values := decode(tensor.BF16, raw)
	file, at := m.Origin(up0)
	stored, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range values {
		if v == 0 { // code 7; the first of two is in the upper half
			b := stored[at+int64(i/2)]
			patch(t, dir, up0, int64(i/2), []byte{b + []byte{0x10, 0x01}[i%2]})
			return
		}
	}
	t.Fatal("no zero")
}

// TestQuantizedGGUF compares blocks of the reference's quantizer with what they were
// made of, and finds a block that is another's.
func TestQuantizedGGUF(t *testing.T) {
	for _, kind := range []string{"q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q4_K", "q6_K", "iq4_nl"} {
		t.Run(kind, func(t *testing.T) {
			values := make([]float32, 64*256)
			f := &fixture{t: t, values: make(map[string][]float64)}
			f.add("x", tensor.F32, 64, 256)
			for i, v := range f.values["x"] {
				values[i] = float32(v)
			}
			base, codes := ggufWeight(t, "f32", values), ggufWeight(t, kind, values)
			r, err := verify.Quantized(t.Context(), openPath(t, base), openPath(t, codes), verify.Options{})
			if err != nil {
				t.Fatal(err)
			}
			expect(t, r, []string{"family-unknown"}, map[string]bool{})
			slices.Reverse(values)
			if r, err = verify.Quantized(t.Context(), openPath(t, ggufWeight(t, "f32", values)), openPath(t, codes), verify.Options{}); err != nil {
				t.Fatal(err)
			}
			expect(t, r, []string{"family-unknown", "quant-error blk.0.ffn_up.weight"}, map[string]bool{})
		})
	}
}

// TestQuantizedBounds guards that the bounds of the plain types are reached within a
// factor: values in the middle of two codes use nearly all of it.
func TestQuantizedBounds(t *testing.T) {
	for kind, share := range map[string]float64{"q8_0": 0.9, "q4_0": 0.45, "q5_0": 0.45, "q4_1": 0.9, "q5_1": 0.9} {
		values := make([]float32, 64*256)
		for i := range values {
			switch i % 32 {
			case 0:
				values[i] = 1
			case 1:
				values[i] = -0.9
			default:
				values[i] = float32(math.Sin(float64(i)))
			}
		}
		var largest float64
		codes := openPath(t, ggufWeight(t, kind, values))
		src, err := codes.Open("blk.0.ffn_up.weight")
		if err != nil {
			t.Fatal(err)
		}
		raw := make([]byte, 4*len(values))
		if _, err := src.ReadAt(raw, 0); err != nil {
			t.Fatal(err)
		}
		for i, v := range decode(tensor.F32, raw) {
			largest = max(largest, math.Abs(v-float64(values[i])))
		}
		bound := map[string]float64{"q8_0": 1.0 / 254, "q4_0": 1.0 / 8, "q5_0": 1.0 / 16, "q4_1": 2.0 / 30, "q5_1": 2.0 / 62}[kind]
		if largest < share*bound {
			t.Errorf("%s: the largest error is %v, the bound %v", kind, largest, bound)
		}
	}
}

// ggufWeight writes a GGUF file with one weight of 64 rows.
func ggufWeight(t *testing.T, kind string, values []float32) string {
	t.Helper()
	m := new(gguf.Metadata)
	m.Set("general.architecture", gguf.ValueOf("novel"))
	return writeGGUF(t, kind+".gguf", m, ggufTensor{"blk.0.ffn_up.weight", kind, 64, values})
}

// ggufTensor is a matrix of a GGUF file.
type ggufTensor struct {
	name, kind string
	rows       int
	values     []float32
}

// writeGGUF writes a GGUF file.
func writeGGUF(t *testing.T, name string, m *gguf.Metadata, tensors ...ggufTensor) string {
	t.Helper()
	var specs []gguf.Spec
	for _, x := range tensors {
		typ, err := gguf.ParseType(x.kind)
		if err != nil {
			t.Fatal(err)
		}
		specs = append(specs, gguf.Spec{Name: x.name, Type: typ, Shape: tensor.Shape{int64(x.rows), int64(len(x.values) / x.rows)}})
	}
	layout, err := gguf.NewLayout(m, specs, gguf.LayoutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	data := append(layout.Header(), make([]byte, layout.Size()-int64(len(layout.Header())))...)
	for i, x := range tensors {
		at, _ := layout.Offset(x.name)
		ggml, cols := block.GGML(specs[i].Type), len(x.values)/x.rows
		size, _ := ggml.RowBytes(int64(len(x.values)))
		if err := ggml.Quantize(data[at:at+size], x.values, cols, nil); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestQuantizedFP8 guards the weights with scales: they have no bound of their own,
// but must be nearer to the base than zeros.
func TestQuantizedFP8(t *testing.T) {
	for scale, want := range map[float64][]string{0.5: nil, -0.5: {"quant-error " + up0}} {
		f := tinyLlama(t)
		twice := slices.Clone(f.values[up0])
		for i := range twice {
			twice[i] *= 2
		}
		f.set(tensor.Spec{Name: up0, DType: tensor.F8E4M3, Shape: tensor.Shape{40, 32}}, twice)
		f.set(tensor.Spec{Name: up0 + "_scale", DType: tensor.F32, Shape: tensor.Shape{40, 1}}, slices.Repeat([]float64{scale}, 40))
		f.config["quantization_config"] = map[string]any{"quant_method": "fbgemm_fp8"}
		r, err := verify.Quantized(t.Context(), openPath(t, tinyLlama(t).write()), openPath(t, f.write()), verify.Options{})
		if err != nil {
			t.Fatal(err)
		}
		expect(t, r, want, map[string]bool{})
		// Four bits and a sign: rounding to nearest is off by at most 2^-4 of a value.
		if e := r.Quantized.Tensors[0].Error; len(r.Quantized.Tensors) != 1 || (e <= 0x1p-4) != (want == nil) {
			t.Errorf("figures %+v", r.Quantized)
		}
	}
}
