package cli_test

import (
	"encoding/json"
	"math"
	"path/filepath"
	"testing"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/quant/block"
)

// TestSurvivalOfCodes compares what a merge says is left of each change in its codes with
// the definition, <Q - W0, D> / <D, D>, in float64, from three models on the disk: the
// base, a merge in F64, and what the codes are read as.
func TestSurvivalOfCodes(t *testing.T) {
	llama := "../../testdata/golden/gguf/models/llama/"
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	must := func(args ...string) string {
		t.Helper()
		code, stdout, stderr := run(fsatomic.OS{}, noEnv, args...)
		if code != 0 {
			t.Fatal(stderr)
		}
		return stdout
	}
	must("convert", demo+"base", "-o", at("f32"), "--dtype", "f32")
	for _, weight := range []string{"", "@0.01"} { // a change that is large, and one that is lost in part
		hf, gguf := demo+"adapter"+weight, llama+"lora-all/expected-f32.gguf"+weight
		exact := at("exact" + weight)
		must("merge", "--base", at("f32"), "--adapter", hf, "-o", exact, "--dtype", "f64")
		exactGGUF := at("exact" + weight + ".gguf")
		must("merge", "--base", llama+"base-q8_0.gguf", "--adapter", gguf, "-o", exactGGUF, "--type", "f32")
		for _, c := range []struct {
			name, base, adapter, exact, ext string
			flags                           []string
			decoded                         float64 // unit roundoff of the type that codes are read as
		}{
			{"nf4", at("f32"), hf, exact, "", []string{"--type", "nf4"}, 0x1p-24},
			{"nf4 nested", at("f32"), hf, exact, "", []string{"--type", "nf4", "--double-quant"}, 0x1p-24},
			{"int8", at("f32"), hf, exact, "", []string{"--type", "int8"}, 0x1p-24},
			{"nf4 of bf16", demo + "base", hf, exact, "", []string{"--type", "nf4"}, 0x1p-9},
			{"q8_0", llama + "base-q8_0.gguf", gguf, exactGGUF, ".gguf", nil, 0x1p-24},
			{"q4_0", llama + "base-q8_0.gguf", gguf, exactGGUF, ".gguf", []string{"--type", "q4_0"}, 0x1p-24},
		} {
			t.Run(c.name+weight, func(t *testing.T) {
				out := at("out " + c.name + weight + c.ext)
				var doc struct {
					Tensors []struct {
						Tensor   string
						DType    string
						Survival *float64 `json:"delta_survival"`
					}
					Summary struct {
						Survival *float64 `json:"delta_survival"`
					}
				}
				report := must(append([]string{"merge", "--base", c.base, "--adapter", c.adapter, "-o", out, "--json"}, c.flags...)...)
				if err := json.Unmarshal([]byte(report), &doc); err != nil {
					t.Fatal(err)
				}
				if len(doc.Tensors) != 14 || doc.Summary.Survival == nil {
					t.Fatalf("%d tensors, survival %v", len(doc.Tensors), doc.Summary.Survival)
				}
				base, merged, stored := openFor(t, c.base), openFor(t, c.exact), openFor(t, out)
				var all, changes float64
				for _, r := range doc.Tensors {
					w0, w, q := numbersOf(t, base, r.Tensor), numbersOf(t, merged, r.Tensor), numbersOf(t, stored, r.Tensor)
					kept, dd, qq, ee, top := 0.0, 0.0, 0.0, 0.0, 0.0
					for i := range w {
						d := w[i] - w0[i]
						kept += (q[i] - w0[i]) * d
						dd += d * d
						qq += q[i] * q[i]
						ee += (q[i] - w0[i]) * (q[i] - w0[i])
						top = max(top, math.Abs(w[i]))
					}
					// The merge knows D with the error of a float32 sum of rank 8, at most 20
					// operations, of the largest value; Q is read rounded; nested scales
					// have float32 sums. All of it by Cauchy and Schwarz.
					off := 20 * 0x1p-24 * top * math.Sqrt(float64(len(w)))
					slack := (off*(math.Sqrt(ee)+2*math.Sqrt(dd)) + (c.decoded+0x1p-22)*math.Sqrt(qq*dd)) / dd
					if r.Survival == nil || !(math.Abs(*r.Survival-kept/dd) <= slack) {
						t.Errorf("%s (%s): survival %v, want %v within %.2g", r.Tensor, r.DType, deref(r.Survival), kept/dd, slack)
					}
					all, changes = all+deref(r.Survival)*dd, changes+dd
				}
				// The norms that the summary weighs with are those of float32 changes.
				if got := *doc.Summary.Survival; !(math.Abs(got-all/changes) <= 1e-3*(1+math.Abs(got))) {
					t.Errorf("all: survival %v, want %v", got, all/changes)
				}
			})
		}
	}
}

func deref(x *float64) float64 {
	if x == nil {
		return math.NaN()
	}
	return *x
}

func openFor(t *testing.T, path string) *checkpoint.Model {
	t.Helper()
	m, err := checkpoint.Open(path, hfrepo.Cache{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// numbersOf reads a tensor, of codes what they stand for.
func numbersOf(t *testing.T, m *checkpoint.Model, name string) []float64 {
	t.Helper()
	s, ok := m.Lookup(name)
	codec, known := block.For(s.DType)
	if !ok || !known {
		t.Fatalf("%s has no numbers %q", m.Path, name)
	}
	src, err := m.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	data, x := make([]byte, s.Size()), make([]float64, s.NumElements())
	if n, err := src.ReadAt(data, 0); n != len(data) {
		t.Fatal(err)
	}
	codec.Decode64(x, data)
	return x
}
