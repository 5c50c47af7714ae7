package verify_test

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/quant/loftq"
	"github.com/loratool/loratool/verify"
)

// planted is a fault as it happens, and how it must be caught: by a code of its own, or,
// where a checkpoint can't be opened for it, as bad input that says so.
type planted struct {
	fault string
	code  string
	input string // of an error: what it names
	// check makes the thing and checks it; without the fault it is the clean twin.
	check func(t *testing.T, fault bool) (*verify.Report, error)
}

// inMerge plants a fault in a merge or in what it was made of.
func inMerge(c mergeCase) func(*testing.T, bool) (*verify.Report, error) {
	return func(t *testing.T, fault bool) (*verify.Report, error) {
		c := c
		if !fault { // base and adapter stay as the case has them
			c.sum, c.merged = nil, nil
		}
		base, adapters, merged := c.make(t)
		return checkMerge(t, base, adapters[0], merged)
	}
}

func checkMerge(t *testing.T, base, lora, merged string) (*verify.Report, error) {
	m, err := checkpoint.Open(merged, hfrepo.Cache{})
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { m.Close() })
	return verify.Merged(t.Context(), openPath(t, base), []merge.Source{source(t, lora, 1)}, merge.Options{}, m, verify.Options{})
}

// inAdapter plants a fault in an adapter; the merge was made from the sound one.
func inAdapter(edit func(*fixture)) func(*testing.T, bool) (*verify.Report, error) {
	return func(t *testing.T, fault bool) (*verify.Report, error) {
		base, adapters, merged := (&mergeCase{}).make(t)
		if fault {
			f := tinyLoRA(t)
			edit(f)
			adapters[0] = f.write()
		}
		return checkMerge(t, base, adapters[0], merged)
	}
}

// inModel plants a fault in a model that is checked by itself.
func inModel(edit func(*fixture)) func(*testing.T, bool) (*verify.Report, error) {
	return func(t *testing.T, fault bool) (*verify.Report, error) {
		f := tinyLlama(t)
		if fault {
			edit(f)
		}
		return verify.Structure(t.Context(), openPath(t, f.write()), verify.Options{})
	}
}

// inFolder plants a fault in the files of a model in two shards.
func inFolder(edit func(t *testing.T, dir string)) func(*testing.T, bool) (*verify.Report, error) {
	return func(t *testing.T, fault bool) (*verify.Report, error) {
		f := tinyLlama(t)
		dir := f.writeSharded(f.size())
		if fault {
			edit(t, dir)
		}
		return checkFolder(t, dir)
	}
}

func checkFolder(t *testing.T, dir string) (*verify.Report, error) {
	m, err := checkpoint.Open(dir, hfrepo.Cache{})
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { m.Close() })
	return verify.Structure(t.Context(), m, verify.Options{})
}

// inCodes plants a fault in a model of bitsandbytes.
func inCodes(edit func(t *testing.T, dir string)) func(*testing.T, bool) (*verify.Report, error) {
	return func(t *testing.T, fault bool) (*verify.Report, error) {
		f := tinyLlama(t)
		dir := f.quantize(quant.Options{Type: quant.NF4})
		if fault {
			edit(t, dir)
		}
		m, err := checkpoint.Open(dir, hfrepo.Cache{})
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() { m.Close() })
		return verify.Quantized(t.Context(), openPath(t, f.write()), m, verify.Options{})
	}
}

// factors replaces each pair of an adapter by what a function makes of it.
func factors(f *fixture, change func(a, b matrix) (matrix, matrix)) {
	for _, s := range slices.Clone(f.specs) {
		name, ok := strings.CutSuffix(s.Name, "lora_A.weight")
		if !ok {
			continue
		}
		a, b := change(f.matrix(s.Name), f.matrix(name+"lora_B.weight"))
		f.setMatrix(s.Name, a)
		f.setMatrix(name+"lora_B.weight", b)
	}
}

type matrix struct {
	rows, cols int64
	x          []float64
}

func (m matrix) transposed() matrix {
	t := matrix{m.cols, m.rows, make([]float64, len(m.x))}
	for i := range m.rows {
		for j := range m.cols {
			t.x[j*m.rows+i] = m.x[i*m.cols+j]
		}
	}
	return t
}

func (f *fixture) matrix(name string) matrix {
	s := f.specs[f.index(name)]
	return matrix{s.Shape[0], s.Shape[1], f.values[name]}
}

func (f *fixture) setMatrix(name string, m matrix) {
	f.set(tensor.Spec{Name: name, DType: tensor.F32, Shape: tensor.Shape{m.rows, m.cols}}, m.x)
}

// edited replaces a text in a file of a folder.
func edited(t *testing.T, dir, name, from, to string) {
	t.Helper()
	path := filepath.Join(dir, name)
	data, err := os.ReadFile(path)
	if err != nil || strings.Count(string(data), from) == 0 {
		t.Fatalf("no %q in %s: %v", from, name, err)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(data), from, to, 1)), 0o666); err != nil {
		t.Fatal(err)
	}
}

// faults are those that were found in what people publish, one for each way to go wrong.
var faults = []planted{
	{fault: "the adapter was not applied", code: "adapter-missing", check: inMerge(mergeCase{sum: scaled(0)})},
	{fault: "the adapter was applied twice", code: "delta-scale", check: inMerge(mergeCase{sum: scaled(2)})},
	{fault: "alpha/sqrt(r) for alpha/r", code: "delta-scale", check: inMerge(mergeCase{sum: scaled(3), lora: []func(*fixture){rank9}})},
	{fault: "alpha/r for alpha/sqrt(r)", code: "delta-scale", check: inMerge(mergeCase{sum: scaled(1.0 / 3), lora: []func(*fixture){func(f *fixture) {
		rank9(f)
		f.config["use_rslora"] = true
	}}})},
	{fault: "a layer was skipped", code: "delta-missing", check: inMerge(mergeCase{merged: func(f *fixture) {
		base := tinyLlama(f.t)
		f.values[q1], f.values[v1] = base.values[q1], base.values[v1]
	}})},
	{fault: "A and B swapped", code: "factor-swapped", check: inAdapter(func(f *fixture) {
		factors(f, func(a, b matrix) (matrix, matrix) { return b, a })
	})},
	{fault: "A and B transposed", code: "factor-transposed", check: inAdapter(func(f *fixture) {
		factors(f, func(a, b matrix) (matrix, matrix) { return a.transposed(), b.transposed() })
	})},
	{fault: "A transposed", code: "factor-transposed", check: inAdapter(func(f *fixture) {
		factors(f, func(a, b matrix) (matrix, matrix) { return a.transposed(), b })
	})},
	{fault: "the change was added transposed", code: "deviates", check: inMerge(mergeCase{sum: func(w, d []float64) []float64 {
		if len(w) != 32*32 {
			return scaled(1)(w, d)
		}
		return scaled(1)(w, matrix{32, 32, d}.transposed().x)
	}})},
	{fault: "rows of q in the order of llama.cpp", code: "deviates", check: inMerge(mergeCase{merged: func(f *fixture) {
		const head, cols = 8, 32
		x := slices.Clone(f.values[q0])
		for row := range 32 {
			h, i := row/head, row%head
			copy(f.values[q0][row*cols:][:cols], x[(h*head+i%2*head/2+i/2)*cols:][:cols])
		}
	}})},
	{fault: "another revision of the base", code: "other-base", check: inMerge(mergeCase{merged: func(f *fixture) {
		for _, s := range f.specs {
			if !strings.Contains(s.Name, "q_proj") && !strings.Contains(s.Name, "v_proj") {
				f.values[s.Name][1] += 0.25
			}
		}
	}})},
	{fault: "tied head broken", code: "tied-differs", check: inMerge(mergeCase{base: tie, merged: func(f *fixture) {
		f.add("lm_head.weight", tensor.BF16, 12, 32)
	}})},
	{fault: "vocabulary short", code: "vocabulary-short", check: inModel(func(f *fixture) { f.files["tokenizer.json"] = tokenizer(14) })},
	{fault: "beyond the range of F16", code: "overflow", check: func(t *testing.T, fault bool) (*verify.Report, error) {
		c := mergeCase{base: func(f *fixture) {
			if fault {
				f.values[q0][5] = 70144 // F16 ends at 65504
			}
		}, merged: func(f *fixture) { f.config["dtype"] = "float16"; f.cast(tensor.F16) }}
		base, adapters, merged := c.make(t)
		return checkMerge(t, base, adapters[0], merged)
	}},
	{fault: "one bit of a tensor", code: "tensor-changed", check: func(t *testing.T, fault bool) (*verify.Report, error) {
		base, adapters, merged := (&mergeCase{}).make(t)
		if fault {
			flip(t, merged, up0, 77)
		}
		return checkMerge(t, base, adapters[0], merged)
	}},
	{fault: "one bit of a tensor that changes", code: "deviates", check: func(t *testing.T, fault bool) (*verify.Report, error) {
		base, adapters, merged := (&mergeCase{}).make(t)
		if fault {
			flip(t, merged, v1, 77)
		}
		return checkMerge(t, base, adapters[0], merged)
	}},
	{fault: "a shard is missing", input: "model-00002-of-00002.safetensors", check: inFolder(func(t *testing.T, dir string) {
		if err := os.Remove(filepath.Join(dir, "model-00002-of-00002.safetensors")); err != nil {
			t.Fatal(err)
		}
	})},
	{fault: "the index names another shard", input: up0, check: inFolder(func(t *testing.T, dir string) {
		edited(t, dir, "model.safetensors.index.json", `"`+up0+`": "model-00001`, `"`+up0+`": "model-00002`)
	})},
	{fault: "the index states another size", code: "index-size", check: func(t *testing.T, fault bool) (*verify.Report, error) {
		f := tinyLlama(t)
		size := f.size()
		if fault {
			size += 2
		}
		return checkFolder(t, f.writeSharded(size))
	}},
	{fault: "the scale of a LoftQ pair", code: "loftq-scale", check: func(t *testing.T, fault bool) (*verify.Report, error) {
		r := repair(t, loftq.Options{}, tensor.F32)
		alpha := float64(pairRank)
		if fault {
			alpha *= 2
		}
		const llama = `{"model_type": "llama"}`
		return verify.LoftQReport(t.Context(), openModel(t, llama, r.w), openModel(t, llama, r.q), openAdapter(t, loraConfig(alpha, ""), r.a, r.b), verify.Options{})
	}},
	{fault: "another quant_map", input: up0 + ".quant_map", check: inCodes(func(t *testing.T, dir string) {
		patch(t, dir, up0+".quant_map", 4, encode(tensor.F32, []float64{-0.7}))
	})},
	{fault: "another absmax", code: "quant-error", check: inCodes(func(t *testing.T, dir string) {
		patch(t, dir, up0+".absmax", 0, encode(tensor.F32, []float64{1}))
	})},
	{fault: "a stale quantization_config", code: "quantization-stale", check: inModel(func(f *fixture) {
		f.config["quantization_config"] = map[string]any{"quant_method": "bitsandbytes", "load_in_4bit": true}
	})},
}

// flip turns the lowest bit of the exponent of an element, which doubles or halves it.
func flip(t *testing.T, dir, name string, element int64) {
	t.Helper()
	m := openPath(t, dir)
	file, offset := m.Origin(name)
	path := filepath.Join(dir, file)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[offset+2*element] ^= 0x80 // of BF16, little endian
	if err := os.WriteFile(path, data, 0o666); err != nil {
		t.Fatal(err)
	}
}

// TestPlantedFaults catches each fault by its own code, and finds nothing to warn of in the
// same thing without it.
func TestPlantedFaults(t *testing.T) {
	for _, c := range slices.Concat(faults, conversionFaults, inGGUFFaults) {
		t.Run(c.fault, func(t *testing.T) {
			clean, err := c.check(t, false)
			if err != nil {
				t.Fatalf("without the fault: %v", err)
			}
			for _, f := range clean.Findings {
				if f.Severity != verify.Info {
					t.Errorf("without the fault: %s %s: %s", f.Code, f.Tensor, f.Message)
				}
			}
			r, err := c.check(t, true)
			if c.input != "" {
				if input, ok := errors.AsType[*checkpoint.InputError](err); !ok || !strings.Contains(input.Error(), c.input) {
					t.Errorf("error %v, want bad input that names %q", err, c.input)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(r.Findings, func(f verify.Finding) bool { return f.Code == c.code && f.Severity != verify.Info }) {
				t.Errorf("found %q, want %q", found(r), c.code)
			}
		})
	}
}

// TestFactorShapes goes through ranks and weights: where the shapes tell, the code is right;
// where they leave swapped and transposed open, the message says so; sound factors are sound.
func TestFactorShapes(t *testing.T) {
	for _, w := range []struct{ out, in, rank int64 }{{16, 32, 4}, {32, 16, 4}, {32, 32, 4}, {16, 32, 1}, {32, 16, 16}} {
		noise := func(rows, cols int64) matrix {
			m := matrix{rows, cols, make([]float64, rows*cols)}
			for i := range m.x {
				m.x[i] = math.Sin(float64(i + 1))
			}
			return m
		}
		a, b := noise(w.rank, w.in), noise(w.out, w.rank)
		for _, c := range []struct {
			name string
			a, b matrix
			code string
		}{
			{"sound", a, b, ""}, {"swapped", b, a, "factor-swapped"}, {"transposed", a.transposed(), b.transposed(), "factor-transposed"},
			{"A transposed", a.transposed(), b, "factor-transposed"}, {"B transposed", a, b.transposed(), "factor-transposed"},
		} {
			f := tinyLoRA(t)
			f.specs, f.config["r"] = nil, int(w.rank)
			f.setMatrix("base_model.model.model.layers.0.mlp.up_proj.lora_A.weight", c.a)
			f.setMatrix("base_model.model.model.layers.0.mlp.up_proj.lora_B.weight", c.b)
			f.config["target_modules"] = []string{"up_proj"}
			base := tinyLlama(t)
			base.config["model_type"], base.config["architectures"] = "other", []string{"OtherForCausalLM"}
			base.reshape(up0, w.out, w.in)
			lora, model := f.write(), base.write()
			r, err := verify.Merged(t.Context(), openPath(t, model), []merge.Source{source(t, lora, 1)}, merge.Options{}, openPath(t, model), verify.Options{})
			code, message := "", ""
			if err == nil {
				for _, found := range r.Findings {
					if strings.HasPrefix(found.Code, "factor-") {
						code, message = found.Code, found.Message
					}
				}
			}
			want := c.code
			square := func(m matrix) bool { return m.rows == m.cols }
			if c.name != "sound" && w.out == w.in && want == "factor-transposed" && strings.HasPrefix(c.name, "tr") {
				want = "factor-swapped" // the shapes are the same
				if !strings.Contains(message, "or both transposed") {
					t.Errorf("%v %s: the message does not leave it open: %q", w, c.name, message)
				}
			}
			if c.name == "A transposed" && square(c.a) || c.name == "B transposed" && square(c.b) {
				want = "" // the shape of a square factor says nothing
			}
			if code != want {
				t.Errorf("%v %s: %q, want %q (%v)", w, c.name, code, want, err)
			}
		}
	}
}
