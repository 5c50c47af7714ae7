package verify_test

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/verify"
)

// byPEFT opens a golden case: base, adapter, and the merge that PEFT made of them.
func byPEFT(t *testing.T, name string) (b *checkpoint.Model, from []merge.Source, m *checkpoint.Model) {
	t.Helper()
	var c struct{ Base string }
	data, err := os.ReadFile(filepath.Join(peft, "cases", name, "case.json"))
	if err == nil {
		err = json.Unmarshal(data, &c)
	}
	if err != nil {
		t.Fatal(err)
	}
	b = openPath(t, filepath.Join(peft, "bases", c.Base))
	am, err := checkpoint.OpenAdapter(filepath.Join(peft, "cases", name, "adapter"), hfrepo.Cache{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { am.Close() })
	a, err := adapter.Open(am)
	if err != nil {
		t.Fatal(err)
	}
	return b, []merge.Source{{Adapter: a, Weight: 1}}, b.As(openPath(t, filepath.Join(peft, "cases", name, "expected.safetensors")))
}

func function(t *testing.T, b *checkpoint.Model, from []merge.Source, m *checkpoint.Model, o verify.FunctionOptions) *verify.Report {
	t.Helper()
	r := new(verify.Report)
	if o.Probes == 0 {
		o.Probes = 8
	}
	if err := verify.Function(t.Context(), r, b, from, merge.Options{}, m, o, verify.Options{Engine: engine.Options{Jobs: 2}}); err != nil {
		t.Fatal(err)
	}
	return r
}

var arithmetics = []string{"f32", "f16", "bf16", "f16-pure", "bf16-pure"}

func arithmetic(t *testing.T, name string) verify.Arithmetic {
	t.Helper()
	a, err := verify.ParseArithmetic(name)
	if err != nil || a.String() != name {
		t.Fatalf("%q: %v, %v", name, a, err)
	}
	return a
}

// TestFunctionOfPEFT: what PEFT has merged computes what its adapters compute, in every
// arithmetic, whatever the kind of the adapter and of the module; pairs are run as pairs.
func TestFunctionOfPEFT(t *testing.T) {
	for _, c := range []struct {
		name string
		pair bool
	}{
		{"lora-llama-linear", true}, {"lora-llama-linear-bf16", true}, {"lora-llama-rslora-patterns", true}, {"lora-gpt2-linear", true},
		{"lora-gpt2-linear-bf16", true}, {"lora-gemma-linear", true}, {"lora-llama-head", true}, {"lora-llama-dora", false},
		{"loha-llama", false}, {"lokr-llama-full", false}, {"ia3-llama", false}, {"lora-mixtral-experts-fused-bf16", false},
		{"lora-mixtral-down-perexpert", false},
	} {
		for _, name := range arithmetics {
			b, from, m := byPEFT(t, c.name)
			r := function(t, b, from, m, verify.FunctionOptions{Arithmetic: arithmetic(t, name)})
			if r.Count(verify.Error) > 0 {
				t.Errorf("%s in %s: %v", c.name, name, r.Findings)
			}
			if len(r.Function.Modules) == 0 {
				t.Fatalf("%s: no module was run", c.name)
			}
			for _, f := range r.Function.Modules {
				total := int64(0)
				for _, n := range f.ULP.Counts {
					total += n
				}
				if f.Pair != c.pair && !strings.Contains(c.name, "mixtral") || f.Inputs != 8 || total == 0 || !(f.Cosine > 0.9) || math.Abs(f.Scale-f.Expected) > 6*f.Sigma {
					t.Errorf("%s in %s: %+v", c.name, name, f)
				}
			}
		}
	}
}

// TestFunctionFaults: an adapter that is not applied, applied twice, at the scale of another
// formula, or left out of one layer, is found in every module it concerns; only roundings of the outputs may hide it, and then that is said.
func TestFunctionFaults(t *testing.T) {
	for _, name := range []string{"lora-llama-rslora", "lora-gpt2-linear", "loha-llama"} {
		base := "llama"
		if strings.Contains(name, "gpt2") {
			base = "gpt2"
		}
		for _, d := range []tensor.DType{tensor.F32, tensor.F16, tensor.BF16} {
			for _, weight := range []float64{0, 2, 1 / math.Sqrt2, -1, 1.05} {
				b, from, m := peftMerge(t, base, name, weight, d)
				r := function(t, b, from, m, verify.FunctionOptions{Arithmetic: verify.Arithmetic{Type: d}, Probes: 16})
				for _, f := range r.Function.Modules {
					blamed := slices.ContainsFunc(r.Findings, func(x verify.Finding) bool { return x.Tensor == f.Tensor && x.Severity == verify.Error })
					if fault := math.Abs(weight - 1); !blamed && fault > 13*f.Sigma {
						t.Errorf("%s as %s with weight %v: %s is not blamed: %+v", name, d, weight, f.Tensor, f)
					}
					if d == tensor.F32 && !blamed {
						t.Errorf("%s as %s with weight %v: %s is not blamed", name, d, weight, f.Tensor)
					}
				}
			}
		}
	}
	b, from, m := peftMerge(t, "llama", "lora-llama-rslora", 1, tensor.BF16)
	names := make(map[string]bool)
	for _, s := range b.Specs() {
		names[s.Name] = strings.HasPrefix(s.Name, "model.layers.1.")
	}
	r := function(t, b, from, b.As(withTensors{m, roundedAs(t, b, tensor.BF16), names}), verify.FunctionOptions{Arithmetic: verify.Arithmetic{Type: tensor.BF16}, Probes: 16})
	for _, f := range r.Function.Modules {
		blamed := slices.ContainsFunc(r.Findings, func(x verify.Finding) bool { return x.Tensor == f.Tensor && x.Severity == verify.Error })
		if blamed != names[f.Tensor] {
			t.Errorf("%s: blamed %v, left out %v: %+v", f.Tensor, blamed, names[f.Tensor], f)
		}
	}
}

// roundedAs is a model with its tensors in another type.
func roundedAs(t *testing.T, b *checkpoint.Model, d tensor.DType) *checkpoint.Model {
	t.Helper()
	_, _, m := peftMerge(t, "llama", "lora-llama-rslora", 0, d)
	return m
}

// TestFunctionActivations: inputs may be given, and are those that are used.
func TestFunctionActivations(t *testing.T) {
	b, from, m := peftMerge(t, "llama", "lora-llama-rslora", 1, tensor.F32)
	first := function(t, b, from, m, verify.FunctionOptions{Arithmetic: verify.Arithmetic{Type: tensor.F32}}).Function.Modules[0]
	cols := first.Shape[1]
	memory := new(checkpoint.Memory)
	spec, err := tensor.NewSpec(strings.TrimSuffix(first.Tensor, ".weight"), tensor.F32, tensor.Shape{3, cols})
	if err != nil {
		t.Fatal(err)
	}
	memory.Add(spec, make([]byte, spec.Size())) // of zeros nothing comes
	r := function(t, b, from, m, verify.FunctionOptions{Arithmetic: verify.Arithmetic{Type: tensor.F32}, Activations: memory})
	for i, f := range r.Function.Modules {
		if f.Given != (i == 0) || (f.Inputs == 3) != (i == 0) || (f.ULP.Counts[0] == 3*f.Shape[0]) != (i == 0) {
			t.Errorf("module %d: %+v", i, f)
		}
	}
	wrong, err := tensor.NewSpec(first.Tensor, tensor.F32, tensor.Shape{3, cols + 1})
	if err != nil {
		t.Fatal(err)
	}
	memory = new(checkpoint.Memory)
	memory.Add(wrong, make([]byte, wrong.Size()))
	err = verify.Function(t.Context(), new(verify.Report), b, from, merge.Options{}, m, verify.FunctionOptions{Probes: 1, Activations: memory}, verify.Options{})
	if err == nil || !strings.Contains(err.Error(), "are no inputs of a module that takes") {
		t.Errorf("activations of another size: %v", err)
	}
}

// TestArithmetic: names that mean nothing are refused.
func TestArithmetic(t *testing.T) {
	for _, name := range []string{"", "f64", "f32-pure", "bf16-", "pure", "F16"} {
		if a, err := verify.ParseArithmetic(name); err == nil {
			t.Errorf("%q is %v", name, a)
		}
	}
}
