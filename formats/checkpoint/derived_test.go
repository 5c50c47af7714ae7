package checkpoint_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/quant/block"
)

var goldenBnb = filepath.Join("..", "..", "testdata", "golden", "bnb")

// readAll returns the bytes of a tensor.
func readAll(t *testing.T, c checkpoint.Checkpoint, name string, size int64) []byte {
	t.Helper()
	src, err := c.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(io.NewSectionReader(src, 0, size+1))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return data
}

// TestDerivedGolden opens what transformers with bitsandbytes saved, and compares the
// weights with those that bitsandbytes itself dequantizes.
func TestDerivedGolden(t *testing.T) {
	for name, want := range map[string]checkpoint.Derived{
		"llama-nf4":         {Kind: "nf4", BlockSize: 64},
		"llama-nf4-double":  {Kind: "nf4", BlockSize: 64, Nested: true},
		"llama-fp4-storage": {Kind: "fp4", BlockSize: 64},
		"llama-int8":        {Kind: "int8"},
		"gpt2-nf4":          {Kind: "nf4", BlockSize: 64},
		"gpt2-int8":         {Kind: "int8"},
	} {
		t.Run(name, func(t *testing.T) {
			m := mustOpen(t, filepath.Join(goldenBnb, name), hfrepo.Cache{})
			family, _, _ := strings.Cut(name, "-")
			base := mustOpen(t, filepath.Join(goldenBnb, family), hfrepo.Cache{})
			values, err := safetensors.Open(filepath.Join(goldenBnb, name+".values.safetensors"))
			if err != nil {
				t.Fatal(err)
			}
			defer values.Close()
			if got := len(m.Specs()); got != len(base.Specs()) {
				t.Errorf("%d tensors, %d before quantization", got, len(base.Specs()))
			}
			if len(m.RawSpecs()) <= len(m.Specs()) {
				t.Errorf("%d stored tensors", len(m.RawSpecs()))
			}
			if got := m.Quantization()[want.Kind]; got != len(values.Tensors()) {
				t.Errorf("%d tensors are quantized, want %d", got, len(values.Tensors()))
			}
			for _, v := range values.Tensors() {
				spec, ok := m.Lookup(v.Name)
				before, _ := base.Lookup(v.Name)
				if !ok || spec.DType != v.DType || !spec.Shape.Equal(before.Shape) {
					t.Fatalf("%s: %v, want %s of %v", v.Name, spec, v.DType, before.Shape)
				}
				d, ok := m.Derived(v.Name)
				if !ok || d.Kind != want.Kind || d.BlockSize != want.BlockSize || d.Nested != want.Nested || d.Parts[0] != v.Name {
					t.Errorf("%s is stored as %+v", v.Name, d)
				}
				section, err := values.Section(v.Name)
				if err != nil {
					t.Fatal(err)
				}
				stored, err := io.ReadAll(io.NewSectionReader(section, 0, v.Size()))
				if err != nil {
					t.Fatal(err)
				}
				equalValues(t, spec, readAll(t, m, v.Name, spec.Size()), stored)
			}
		})
	}
}

// equalValues compares values, of which FP4 has two that are zero.
func equalValues(t *testing.T, spec tensor.Spec, got, want []byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d bytes, want %d", spec.Name, len(got), len(want))
	}
	codec, _ := block.For(spec.DType)
	n := spec.NumElements()
	a, b := make([]float32, n), make([]float32, n)
	codec.Decode32(a, got)
	codec.Decode32(b, want)
	for i := range a {
		if a[i] != b[i] {
			t.Fatalf("%s: value %d is %g, want %g", spec.Name, i, a[i], b[i])
		}
	}
}

// TestDerivedRanges reads pieces of any place and length, from several goroutines,
// and compares them with the whole.
func TestDerivedRanges(t *testing.T) {
	for _, c := range []struct {
		name string
		dir  func(*testing.T) string
	}{
		{"plain", func(t *testing.T) string { return fourBitModel(t, 300, 403, nil) }},
		{"nested", func(t *testing.T) string { return nestedModel(t, 300, 403) }},
		{"conv1d", func(t *testing.T) string {
			dir := fourBitModel(t, 403, 200, nil)
			writeFile(t, dir, "config.json", []byte(`{"model_type": "gpt2"}`))
			return dir
		}},
		{"int8", func(t *testing.T) string { return int8Model(t, 300, 403, nil) }},
		{"fp8", func(t *testing.T) string { return fp8Model(t, 300, 403) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := mustOpen(t, c.dir(t), hfrepo.Cache{})
			const name = "h.c_fc.weight"
			spec, _ := m.Lookup(name)
			whole := readAll(t, m, name, spec.Size())
			src, err := m.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			for g := range 3 {
				wg.Go(func() {
					rng := rand.New(rand.NewPCG(uint64(g), 1))
					for range 60 {
						off := rng.Int64N(spec.Size() + 3)
						p := make([]byte, rng.Int64N([]int64{5, 300, 100_000}[rng.IntN(3)]))
						n, err := src.ReadAt(p, off)
						want := whole[min(off, spec.Size()):min(off+int64(len(p)), spec.Size())]
						if !bytes.Equal(p[:n], want) {
							t.Errorf("%d bytes at %d differ", len(p), off)
						}
						if end := off+int64(len(p)) > spec.Size() || off >= spec.Size(); (err == io.EOF) != end || err != nil && err != io.EOF {
							t.Errorf("%d bytes at %d of %d: %v", len(p), off, spec.Size(), err)
						}
					}
				})
			}
			wg.Wait()
			if _, err := src.ReadAt(make([]byte, 1), -1); err == nil {
				t.Error("reads in front of the beginning")
			}
		})
	}
}

// part is a tensor to be written.
type part struct {
	spec tensor.Spec
	data []byte
}

func u8(name string, data []byte, shape ...int64) part {
	if shape == nil {
		shape = []int64{int64(len(data))}
	}
	return part{tensor.Spec{Name: name, DType: tensor.U8, Shape: shape}, data}
}

func f32(name string, x []float32) part {
	data := make([]byte, 4*len(x))
	for i, v := range x {
		binary.LittleEndian.PutUint32(data[4*i:], math.Float32bits(v))
	}
	return part{tensor.Spec{Name: name, DType: tensor.F32, Shape: tensor.Shape{int64(len(x))}}, data}
}

// writeModel writes a folder with the tensors.
func writeModel(t *testing.T, parts []part) string {
	t.Helper()
	specs := make([]tensor.Spec, len(parts))
	for i, p := range parts {
		specs[i] = p.spec
	}
	l, err := safetensors.NewLayout(specs, nil)
	if err != nil {
		t.Fatal(err)
	}
	data := append(l.Header(), make([]byte, l.Size()-int64(len(l.Header())))...)
	for _, p := range parts {
		off, _ := l.Offset(p.spec.Name)
		copy(data[off:], p.data)
	}
	dir := t.TempDir()
	writeFile(t, dir, "model.safetensors", data)
	return dir
}

// stateName is the quant_state of the weight of these models.
const stateName = "h.c_fc.weight.quant_state.bitsandbytes__nf4"

// fourBitModel writes a random matrix as NF4; change may spoil the parts.
func fourBitModel(t *testing.T, rows, cols int, change func([]part) []part) string {
	t.Helper()
	codes, absmax := fourBitRandom(rows * cols)
	values := kernel.NF4.Values()
	parts := []part{
		u8("h.c_fc.weight", codes, int64(len(codes)), 1),
		f32("h.c_fc.weight.absmax", absmax),
		f32("h.c_fc.weight.quant_map", values[:]),
		u8(stateName, fmt.Appendf(nil, `{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [%d, %d]}`, rows, cols)),
		f32("h.ln.weight", []float32{1, 2}),
	}
	if change != nil {
		parts = change(parts)
	}
	return writeModel(t, parts)
}

func fourBitRandom(n int) (codes []byte, absmax []float32) {
	rng := rand.New(rand.NewPCG(3, 4))
	codes, absmax = make([]byte, (n+1)/2), make([]float32, (n+63)/64)
	for i := range codes {
		codes[i] = byte(rng.Uint32())
	}
	for i := range absmax {
		absmax[i] = rng.Float32() + 0.5
	}
	return codes, absmax
}

func nestedModel(t *testing.T, rows, cols int) string {
	t.Helper()
	return writeModel(t, nestedParts(rows, cols, "h.c_fc.weight", 1))
}

// nestedParts are those of a matrix whose second map is not the usual one, but a
// multiple of it.
func nestedParts(rows, cols int, name string, times float32) []part {
	codes, absmax := fourBitRandom(rows * cols)
	nested := block.Nest(absmax)
	values := kernel.NF4.Values()
	state := block.FourBitState{
		Type: kernel.NF4, BlockSize: 64, DType: tensor.F16, Shape: tensor.Shape{int64(rows), int64(cols)},
		Nested: true, NestedSize: block.NestedSize, Offset: nested.Offset,
	}
	for i := range nested.Map {
		nested.Map[i] *= times
	}
	return []part{
		u8(name, codes),
		u8(name+".absmax", nested.Codes),
		f32(name+".nested_absmax", nested.Absmax),
		f32(name+".nested_quant_map", nested.Map[:]),
		f32(name+".quant_map", values[:]),
		u8(name+".quant_state.bitsandbytes__nf4", state.Encode()),
	}
}

// TestDerivedMaps gives each tensor its own map of the second quantization.
func TestDerivedMaps(t *testing.T) {
	m := mustOpen(t, writeModel(t, append(nestedParts(300, 403, "a.weight", 1), nestedParts(300, 403, "b.weight", 0.5)...)), hfrepo.Cache{})
	codes, absmax := fourBitRandom(300 * 403)
	nested := block.Nest(absmax)
	f16, _ := block.For(tensor.F16)
	for name, times := range map[string]float32{"a.weight": 1, "b.weight": 0.5} {
		spec, _ := m.Lookup(name)
		got := make([]float32, spec.NumElements())
		f16.Decode32(got, readAll(t, m, name, spec.Size()))
		for i, v := range got {
			b := i / 64
			scale := float32(nested.Map[nested.Codes[b]]*times*nested.Absmax[b/256]) + nested.Offset
			want := []float32{kernel.NF4.Values()[codes[i/2]>>(4*(1-i%2))&15] * scale}
			raw := make([]byte, 2)
			f16.Encode32(raw, want)
			f16.Decode32(want, raw)
			if v != want[0] {
				t.Fatalf("%s: value %d is %g, want %g", name, i, v, want[0])
			}
		}
	}
}

func int8Model(t *testing.T, rows, cols int, change func([]part) []part) string {
	t.Helper()
	rng := rand.New(rand.NewPCG(5, 6))
	codes, scb := make([]byte, rows*cols), make([]float32, rows)
	for i := range codes {
		codes[i] = byte(rng.Uint32())
	}
	for i := range scb {
		scb[i] = rng.Float32()
	}
	weight := u8("h.c_fc.weight", codes, int64(rows), int64(cols))
	weight.spec.DType = tensor.I8
	parts := []part{weight, f32("h.c_fc.SCB", scb), u8("h.c_fc.weight_format", []byte{0})}
	parts[2].spec.Shape = nil
	if change != nil {
		parts = change(parts)
	}
	return writeModel(t, parts)
}

// TestDerivedValues compares with the formulas, one element at a time.
func TestDerivedValues(t *testing.T) {
	const rows, cols = 5, 77
	codes, absmax := fourBitRandom(rows * cols)
	m := mustOpen(t, fourBitModel(t, rows, cols, nil), hfrepo.Cache{})
	got := readAll(t, m, "h.c_fc.weight", rows*cols*2)
	bf16, _ := block.For(tensor.BF16)
	want := make([]byte, 2)
	for i := range rows * cols {
		code := codes[i/2] >> (4 * (1 - i%2)) & 15
		bf16.Encode32(want, []float32{kernel.NF4.Values()[code] * absmax[i/64]})
		if !bytes.Equal(got[2*i:2*i+2], want) {
			t.Fatalf("value %d is %x, want %x", i, got[2*i:2*i+2], want)
		}
	}
	// The same codes as an int8 matrix of the other orientation.
	m = mustOpen(t, int8Model(t, rows, cols, nil), hfrepo.Cache{})
	plain := readAll(t, m, "h.c_fc.weight", rows*cols*4)
	dir := int8Model(t, rows, cols, nil)
	writeFile(t, dir, "config.json", []byte(`{"model_type": "gpt2"}`))
	m = mustOpen(t, dir, hfrepo.Cache{})
	turned := readAll(t, m, "h.c_fc.weight", rows*cols*4)
	for i := range rows {
		for j := range cols {
			a, b := plain[4*(i*cols+j):][:4], turned[4*(j*rows+i):][:4]
			if !bytes.Equal(a, b) {
				t.Fatalf("element %d, %d is %x, transposed %x", i, j, a, b)
			}
		}
	}
}

// set replaces the tensor of that name; drop removes it.
func set(name string, p part) func([]part) []part {
	return func(parts []part) []part {
		for i := range parts {
			if parts[i].spec.Name == name {
				parts[i] = p
			}
		}
		return parts
	}
}

func drop(name string) func([]part) []part {
	return func(parts []part) []part {
		var kept []part
		for _, p := range parts {
			if p.spec.Name != name {
				kept = append(kept, p)
			}
		}
		return kept
	}
}

func state(text string) func([]part) []part { return set(stateName, u8(stateName, []byte(text))) }

// TestDerivedRefused spoils every part. Each error is an InputError that names the
// file and the tensor.
func TestDerivedRefused(t *testing.T) {
	values := kernel.NF4.Values()
	other := values
	other[3] += 0.01
	fp4 := kernel.FP4.Values()
	long := make([]byte, 70_000)
	for name, c := range map[string]struct {
		change func([]part) []part
		want   string
	}{
		"no absmax":         {drop("h.c_fc.weight.absmax"), `there is no "h.c_fc.weight.absmax"`},
		"no map":            {drop("h.c_fc.weight.quant_map"), `there is no "h.c_fc.weight.quant_map"`},
		"no codes":          {drop("h.c_fc.weight"), `there is no "h.c_fc.weight"`},
		"no state":          {drop(stateName), "no quant_state"},
		"two states":        {func(p []part) []part { return append(p, u8(strings.Replace(stateName, "nf4", "fp4", 1), p[3].data)) }, "fp4"},
		"state of fp4":      {state(`{"quant_type": "fp4", "blocksize": 64, "dtype": "bfloat16", "shape": [10, 64]}`), "state of fp4"},
		"state is no JSON":  {state(`{"quant_type": `), stateName},
		"state is floats":   {set(stateName, f32(stateName, []float32{1})), "no quant_state"},
		"state is long":     {set(stateName, u8(stateName, long)), "no quant_state"},
		"other shape":       {state(`{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [10, 62]}`), "asks for 310"},
		"shape of nothing":  {state(`{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [0, 64]}`), "empty"},
		"enormous shape":    {state(`{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [144115188075855872, 2]}`), "asks for"},
		"shape overflows":   {state(`{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [4611686018427387904, 64]}`), "overflows"},
		"other block size":  {state(`{"quant_type": "nf4", "blocksize": 128, "dtype": "bfloat16", "shape": [10, 64]}`), `"h.c_fc.weight.absmax"`},
		"nested, but F32":   {state(`{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [10, 64], "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.5}`), "ask for U8"},
		"absmax in 16 bits": {func(p []part) []part { p[1].spec.DType, p[1].data = tensor.F16, p[1].data[:20]; return p }, "ask for F32"},
		"map of fp4":        {set("h.c_fc.weight.quant_map", f32("h.c_fc.weight.quant_map", fp4[:])), "value 0"},
		"also an int8 matrix": {func(p []part) []part {
			p[0].spec.DType = tensor.I8
			return append(p, f32("h.c_fc.SCB", make([]float32, 320)))
		}, "both a quant_state and"},
		"foreign map":          {set("h.c_fc.weight.quant_map", f32("h.c_fc.weight.quant_map", other[:])), "value 3"},
		"map of 15":            {set("h.c_fc.weight.quant_map", f32("h.c_fc.weight.quant_map", values[:15])), "ask for F32 of 16"},
		"left over nested map": {func(p []part) []part { return append(p, f32("h.c_fc.weight.nested_absmax", []float32{1})) }, "no quant_state that asks"},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := checkpoint.Open(fourBitModel(t, 10, 64, c.change), hfrepo.Cache{})
			if err == nil {
				m.Close()
				t.Fatal("accepted")
			}
			checkInputError(t, err, "model.safetensors", c.want)
		})
	}
	for name, c := range map[string]struct {
		change func([]part) []part
		want   string
	}{
		"too few rows":  {set("h.c_fc.SCB", f32("h.c_fc.SCB", make([]float32, 9))), "ask for F32 of 10"},
		"too many rows": {set("h.c_fc.SCB", f32("h.c_fc.SCB", make([]float32, 11))), "ask for F32 of 10"},
		"tiled": {func(p []part) []part {
			p[2].data = []byte{1}
			return p
		}, "layout 1 is not supported"},
		"format is a number": {set("h.c_fc.weight_format", f32("h.c_fc.weight_format", []float32{0})), "no weight_format"},
		"not a matrix": {func(p []part) []part {
			p[0].spec.Shape = tensor.Shape{10, 8, 8}
			return p
		}, "no matrix"},
	} {
		t.Run("int8 "+name, func(t *testing.T) {
			m, err := checkpoint.Open(int8Model(t, 10, 64, c.change), hfrepo.Cache{})
			if err == nil {
				m.Close()
				t.Fatal("accepted")
			}
			checkInputError(t, err, "model.safetensors", c.want)
		})
	}
}

// TestDerivedNonFinite finds a scale that is not finite when it is read.
func TestDerivedNonFinite(t *testing.T) {
	for _, bad := range []float32{float32(math.Inf(1)), float32(math.NaN())} {
		absmax := make([]float32, 10)
		absmax[7] = bad
		for _, dir := range []string{
			fourBitModel(t, 10, 64, set("h.c_fc.weight.absmax", f32("h.c_fc.weight.absmax", absmax))),
			int8Model(t, 10, 64, set("h.c_fc.SCB", f32("h.c_fc.SCB", absmax))),
		} {
			m := mustOpen(t, dir, hfrepo.Cache{})
			src, err := m.Open("h.c_fc.weight")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := src.ReadAt(make([]byte, 10), 0); err != nil && errors.Is(err, io.EOF) {
				t.Error(err)
			}
			spec, _ := m.Lookup("h.c_fc.weight")
			_, err = src.ReadAt(make([]byte, spec.Size()), 0)
			checkInputError(t, err, "model.safetensors", "element 7 is not finite")
		}
	}
}

// TestNotDerived leaves alone what only looks like a quantized tensor.
func TestNotDerived(t *testing.T) {
	dir := int8Model(t, 2, 2, func(p []part) []part {
		p[0].spec.DType, p[0].data = tensor.F32, make([]byte, 16)
		return append(p, f32("a.absmax", []float32{1}), f32("b.SCB", []float32{1}))
	})
	m := mustOpen(t, dir, hfrepo.Cache{})
	if len(m.Specs()) != 5 || len(m.Quantization()) != 0 {
		t.Errorf("%v", m.Specs())
	}
	if _, ok := m.Derived("h.c_fc.weight"); ok {
		t.Error("a weight in 32 bits is taken for a quantized one")
	}
}
