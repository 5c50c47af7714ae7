package verify_test

import (
	"io"
	"math"
	"path/filepath"
	"slices"
	"testing"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/verify"
)

const peft = "../testdata/golden/peft"

// peftMerge opens a golden case and plans its merge with a weight, as a model of a type.
func peftMerge(t *testing.T, base, name string, weight float64, d tensor.DType) (b *checkpoint.Model, from []merge.Source, m *checkpoint.Model) {
	t.Helper()
	b = openPath(t, filepath.Join(peft, "bases", base))
	am, err := checkpoint.OpenAdapter(filepath.Join(peft, "cases", name, "adapter"), hfrepo.Cache{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { am.Close() })
	a, err := adapter.Open(am)
	if err != nil {
		t.Fatal(err)
	}
	from = []merge.Source{{Adapter: a, Weight: weight}}
	p, err := merge.Plan(b, from, merge.Options{DType: d, NoProvenance: true})
	if err != nil {
		t.Fatal(err)
	}
	var specs []tensor.Spec
	for i := range p.Layout.Files {
		for _, x := range p.Layout.Files[i].Tensors() {
			specs = append(specs, x.Spec)
		}
	}
	var in []engine.Source
	for _, c := range p.Inputs {
		in = append(in, c)
	}
	view, err := engine.NewView(p.Plan, specs, in, engine.Options{Jobs: 1})
	if err != nil {
		t.Fatal(err)
	}
	m = b.As(view)
	from[0].Weight = 1
	return b, from, m
}

var prompts = verify.Prompts{Count: 3, Length: 12, Seed: 7}

func endToEnd(t *testing.T, b *checkpoint.Model, from []merge.Source, m *checkpoint.Model) *verify.Report {
	t.Helper()
	r := new(verify.Report)
	if err := verify.EndToEnd(t.Context(), r, b, from, merge.Options{}, m, prompts, verify.Options{Engine: engine.Options{Jobs: 1}}); err != nil {
		t.Fatal(err)
	}
	t.Logf("%v: limit %.3g scale %.3g model %+v effect %+v", found(r), r.Output.Limit, r.Output.Scale, r.Output.Model, *r.Output.Effect)
	return r
}

// of are cases of several kinds and families.
var of = []struct{ base, name string }{
	{"llama", "lora-llama-rslora"}, {"llama", "loha-llama"}, {"llama", "lokr-llama-full"}, {"llama", "ia3-llama"}, {"qwen2", "ia3-qwen2"},
}

// TestEndToEnd: merges rounded to any type are right, and the base, twice the change,
// half of it and its opposite are found.
func TestEndToEnd(t *testing.T) {
	for _, c := range of {
		for _, d := range []tensor.DType{tensor.F32, tensor.F16, tensor.BF16} {
			for _, weight := range []float64{1, 0, 2, 0.5, -1} {
				b, from, m := peftMerge(t, c.base, c.name, weight, d)
				r := endToEnd(t, b, from, m)
				// A fault of size |weight - 1| of the change shows unless rounding is larger.
				drowned := r.Output.Effect.Distance <= 4*r.Output.Limit
				switch codes := found(r); {
				case weight == 1 && r.Count(verify.Error) > 0:
					t.Errorf("%s as %s: %v, want no error", c.name, d, codes)
				case weight != 1 && !drowned && r.Count(verify.Error) == 0:
					t.Errorf("%s as %s with weight %v: no error", c.name, d, weight)
				case drowned && d == tensor.F32:
					t.Errorf("%s as %s: drowned, so that nothing is tested", c.name, d)
				}
			}
		}
	}
}

// withTensors is a model some of whose tensors are another's.
type withTensors struct {
	*checkpoint.Model
	other *checkpoint.Model
	names map[string]bool
}

func (w withTensors) Open(name string) (io.ReaderAt, error) {
	if w.names[name] {
		return w.other.Open(name)
	}
	return w.Model.Open(name)
}

// TestEndToEndSkipped: one layer left out of a merge is found.
func TestEndToEndSkipped(t *testing.T) {
	b, from, m := peftMerge(t, "llama", "loha-llama", 1, tensor.F32)
	names := make(map[string]bool)
	for _, s := range b.Specs() {
		names[s.Name] = len(s.Name) > 15 && s.Name[:15] == "model.layers.1."
	}
	r := endToEnd(t, b, from, b.As(withTensors{m, b, names}))
	if r.Count(verify.Error) != 1 {
		t.Errorf("found %v, want output-differs", found(r))
	}
}

// TestEndToEndQuantized: a model against itself has no divergence, and one that was
// merged has some; there are no findings.
func TestEndToEndQuantized(t *testing.T) {
	b, _, m := peftMerge(t, "llama", "loha-llama", 1, tensor.F32)
	for _, x := range []*checkpoint.Model{b, m} {
		r := new(verify.Report)
		if err := verify.EndToEndQuantized(t.Context(), r, b, x, prompts, verify.Allowed{KL: math.NaN(), Top1: math.NaN()}, verify.Options{}); err != nil {
			t.Fatal(err)
		}
		if f := r.Output.Model; (f.Max > 0) != (x == m) || (f.Logit > 0) != (x == m) || (x == b) && f.Top1 != 1 || f.Mean > f.Max {
			t.Errorf("same %v: %+v", x == b, f)
		}
		if len(r.Findings) > 0 {
			t.Errorf("found %v", found(r))
		}
	}
}

// TestEndToEndAllowed: the limits of a quantized model hold at what it has and no closer.
func TestEndToEndAllowed(t *testing.T) {
	b, _, m := peftMerge(t, "llama", "loha-llama", 1, tensor.F32)
	of := func(a verify.Allowed) *verify.Report {
		r := new(verify.Report)
		if err := verify.EndToEndQuantized(t.Context(), r, b, m, prompts, a, verify.Options{}); err != nil {
			t.Fatal(err)
		}
		return r
	}
	f := of(verify.Allowed{KL: math.NaN(), Top1: math.NaN()}).Output.Model
	for _, c := range []struct {
		allowed verify.Allowed
		want    []string
	}{
		{verify.Allowed{KL: f.Mean, Top1: f.Top1}, nil},
		{verify.Allowed{KL: f.Mean * 0.999, Top1: math.NaN()}, []string{"output-kl"}},
		{verify.Allowed{KL: math.NaN(), Top1: f.Top1 + 0.001}, []string{"output-top1"}},
		{verify.Allowed{KL: 0, Top1: 2}, []string{"output-kl", "output-top1"}},
	} {
		if r := of(c.allowed); !slices.Equal(found(r), c.want) {
			t.Errorf("%+v: found %v, want %v", c.allowed, found(r), c.want)
		}
	}
}
