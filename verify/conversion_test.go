package verify_test

import (
	"errors"
	"math"
	"slices"
	"strings"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"os"
	"path/filepath"
	"testing"

	"github.com/loratool/loratool/verify"
)

var convertGolden = filepath.Join("..", "testdata", "golden", "convert")

// convertedModels are the folders that llama.cpp's converter has made files of.
func convertedModels(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(convertGolden, "models"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if len(names) < 28 {
		t.Errorf("only %d models", len(names))
	}
	return names
}

// TestConversionGolden finds nothing wrong in what llama.cpp's converter made.
func TestConversionGolden(t *testing.T) {
	for _, name := range convertedModels(t) {
		t.Run(name, func(t *testing.T) {
			folder, file := openPath(t, filepath.Join(convertGolden, "models", name)), openPath(t, filepath.Join(convertGolden, "expected", name+".gguf"))
			r, err := verify.Conversion(t.Context(), folder, file, verify.Options{})
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range r.Findings {
				if f.Code != "convert-dropped" && familyOf(t, f.Code) == "conversion" {
					t.Errorf("%s %s: %s", f.Code, f.Tensor, f.Message)
				}
			}
			if n := len(file.Specs()); r.Conversion.Tensors != n {
				t.Errorf("%d tensors were compared of %d", r.Conversion.Tensors, n)
			}
		})
	}
}

func familyOf(t *testing.T, code string) string {
	t.Helper()
	for _, c := range verify.Codes() {
		if c.Name == code {
			return c.Family
		}
	}
	t.Fatalf("no code %q", code)
	return ""
}

// TestConversionRounding tells the nearest value from its neighbour, and that from another.
func TestConversionRounding(t *testing.T) {
	base := tinyLlama(t)
	base.cast(tensor.F32)
	for i := range base.values[up0] {
		base.values[up0][i] = float64(float32(math.Sin(float64(i + 1)))) // not of BF16
	}
	// 1 + 2^-9 lies a quarter of the way between neighbours of BF16.
	base.values[up0][0] = 1 + 0x1p-9
	for _, c := range []struct {
		name string
		edit func(x []float64)
		want []string
	}{
		{"the nearest", func([]float64) {}, nil},
		{"the neighbour", func(x []float64) { x[0] = 1 + 0x1p-7 }, []string{"value-neighbour " + up0}},
		{"the one beyond", func(x []float64) { x[0] = 1 + 0x1p-6 }, []string{"value-differs " + up0}},
		{"the one on the other side", func(x []float64) { x[0] = 1 - 0x1p-8 }, []string{"value-differs " + up0}},
		{"the neighbour of what has the type", func(x []float64) { x[2] = 1 - 0x1p-8 }, []string{"value-differs " + up0}},
		{"another sign of zero", func(x []float64) { x[1] = math.Copysign(0, -1) }, []string{"value-differs " + up0}},
	} {
		base.values[up0][1], base.values[up0][2] = 0, 1
		copied := tinyLlama(t)
		copied.cast(tensor.F32)
		copied.set(copied.specs[copied.index(up0)], base.values[up0])
		copied.cast(tensor.BF16)
		c.edit(copied.values[up0])
		r, err := checkConversion(t, base.write(), copied.write())
		if err != nil {
			t.Fatal(err)
		}
		if got := found(r); !slices.Equal(got, c.want) {
			t.Errorf("%s: found %q, want %q", c.name, got, c.want)
		}
		if c.want == nil && (r.Conversion.Exact+r.Conversion.Rounded != r.Conversion.Values || r.Conversion.Rounded < 500) {
			t.Errorf("%+v", *r.Conversion)
		}
	}
}

// TestConversionOfFiles compares a split model with the same in one file.
func TestConversionOfFiles(t *testing.T) {
	models := filepath.Join("..", "testdata", "golden", "gguf", "models")
	split, whole := filepath.Join(models, "split", "tiny-00001-of-00004.gguf"), filepath.Join(models, "merged-from-split.gguf")
	for _, pair := range [][2]string{{split, whole}, {whole, split}} {
		r, err := checkConversion(t, pair[0], pair[1])
		if err != nil {
			t.Fatal(err)
		}
		if n := r.Count(verify.Error); n > 0 || r.Conversion.Exact != r.Conversion.Values {
			t.Errorf("found %q, %+v", found(r), *r.Conversion)
		}
	}
	c := copyOf(t, "qwen3")
	replace(c, "qwen3.context_length", uint32(64))
	c.keys.Delete("qwen3.rope.freq_base")
	c.keys.Delete("general.name") // is only a name
	r, err := checkConversion(t, filepath.Join(convertGolden, "expected", "qwen3.gguf"), c.write())
	if err != nil {
		t.Fatal(err)
	}
	if got := found(r); !slices.Equal(got, []string{"key-differs", "key-missing"}) {
		t.Errorf("found %q", got)
	}
}

// TestConversionForms takes no offence at a head that is stored twice, at names without the
// part of the model, and says what it can't prove.
func TestConversionForms(t *testing.T) {
	c := copyOf(t, "llama3-7b1-chat")
	s := *c.spec("token_embd.weight")
	s.Name = "output.weight"
	c.specs, c.data[s.Name] = append(c.specs, s), c.data["token_embd.weight"]
	r, err := checkConversion(t, filepath.Join(convertGolden, "models", "llama3-7b1-chat"), c.write())
	if err != nil {
		t.Fatal(err)
	}
	if got := found(r); !slices.Contains(got, "head-form output.weight") || r.Count(verify.Error) > 0 {
		t.Errorf("found %q", got)
	}

	f := tinyLlama(t)
	for _, s := range slices.Clone(f.specs) {
		if name, ok := strings.CutPrefix(s.Name, "model."); ok {
			values := f.values[s.Name]
			f.remove(s.Name)
			s.Name = name
			f.set(s, values)
		}
	}
	f.config["model_type"], f.config["architectures"] = "other", []string{"OtherModel"} // whose names nothing checks
	r, err = checkConversion(t, tinyLlama(t).write(), f.write())
	if err != nil {
		t.Fatal(err)
	}
	if got := found(r); !slices.Equal(got, []string{"family-unknown", "key-differs"}) {
		t.Errorf("found %q", got)
	}
}

// TestConversionRefused are inputs that are no conversions.
func TestConversionRefused(t *testing.T) {
	folder := filepath.Join(convertGolden, "models", "qwen3")
	for what, pair := range map[string][2]string{
		"it is an adapter": {folder, tinyLoRA(t).write()},
		"is stored as q8_0": {filepath.Join(convertGolden, "models", "qwen3"), writeGGUF(t, "q8.gguf", copyOf(t, "qwen3").keys,
			ggufTensor{"token_embd.weight", "q8_0", 48, make([]float32, 48*32)})},
	} {
		_, err := checkConversion(t, pair[0], pair[1])
		if input, ok := errors.AsType[*checkpoint.InputError](err); !ok || !strings.Contains(input.Error(), what) {
			t.Errorf("error %v, want bad input that says %q", err, what)
		}
	}
}

// TestConversionHostileKeys gives every key values that make no sense. None may stop the
// check, and what a model computes with must not pass.
func TestConversionHostileKeys(t *testing.T) {
	const model = "gemma3"
	needed := []string{"block_count", "context_length", "embedding_length", "feed_forward_length", "head_count", "head_count_kv", "key_length",
		"rms_epsilon", "freq_base", "sliding_window", "tokens", "architecture"}
	values := []gguf.Value{gguf.ValueOf(uint32(0)), gguf.ValueOf(uint32(math.MaxUint32)), gguf.ValueOf(int64(math.MinInt64)), gguf.ValueOf("x"),
		gguf.ValueOf(float32(math.NaN())), gguf.ArrayOf([]uint32{}), gguf.ArrayOf([]string{"x"}), gguf.ArrayOf([]float32{1, 2}), gguf.ValueOf(true)}
	for key := range copyOf(t, model).keys.All() {
		for _, v := range values {
			c := copyOf(t, model)
			c.keys.Replace(key, v)
			l, err := gguf.NewLayout(c.keys, c.specs, gguf.LayoutOptions{})
			if err != nil || l == nil {
				continue // a value that no file can have there
			}
			m, err := checkpoint.Open(c.write(), hfrepo.Cache{})
			if err != nil {
				continue
			}
			r, err := verify.Conversion(t.Context(), openPath(t, filepath.Join(convertGolden, "models", model)), m, verify.Options{HeadersOnly: true})
			m.Close()
			must := slices.ContainsFunc(needed, func(end string) bool { return strings.HasSuffix(key, end) })
			if err == nil && must && r.OK() {
				t.Errorf("%s = %s passes", key, v.Describe())
			}
		}
	}
}

// TestConversionEveryKey changes one number after the other in what llama.cpp's converter
// made, and misses none but those that config.json says nothing of.
func TestConversionEveryKey(t *testing.T) {
	unchecked := []string{"pooling_type"} // which modules.json and other files know
	for _, model := range convertedModels(t) {
		original := copyOf(t, model)
		architecture, _ := original.keys.Text("general.architecture")
		for key, v := range original.keys.All() {
			if !strings.HasPrefix(key, architecture+".") {
				continue
			}
			c := copyOf(t, model)
			switch v.Type() {
			case gguf.Float32:
				f, _ := v.Float()
				c.keys.Replace(key, gguf.ValueOf(float32(1.5*f+1)))
			case gguf.Uint32:
				n, _ := v.Int()
				c.keys.Replace(key, gguf.ValueOf(uint32(n+1)))
			case gguf.Bool:
				is, _ := v.Bool()
				c.keys.Replace(key, gguf.ValueOf(!is))
			case gguf.String:
				c.keys.Replace(key, gguf.ValueOf("none"))
			default: // for each layer, of windows
				flags, err := v.Bools()
				if err != nil {
					t.Fatalf("%s: %s", key, v.Describe())
				}
				flags[0] = !flags[0]
				c.keys.Replace(key, gguf.ArrayOf(flags))
			}
			m, err := checkpoint.Open(c.write(), hfrepo.Cache{})
			if err != nil {
				continue
			}
			r, err := verify.Conversion(t.Context(), openPath(t, filepath.Join(convertGolden, "models", model)), m, verify.Options{HeadersOnly: true})
			m.Close()
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Contains(found(r), "key-differs") && !slices.Contains(unchecked, strings.TrimPrefix(key, architecture+".")) {
				t.Errorf("%s: %s passes, %s", model, key, v.Describe())
			}
		}
	}
}
