package extract_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/extract"
	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/merge"
)

const goldenPEFT = "../testdata/golden/peft"

// goldenCase is an adapter made by PEFT with its base.
type goldenCase struct {
	name string
	base string
	path string
}

// goldenCases lists the cases with one adapter of weight 1 that merge as they are.
func goldenCases(t *testing.T) []goldenCase {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(goldenPEFT, "cases"))
	if err != nil {
		t.Fatal(err)
	}
	var all []goldenCase
	for _, e := range entries {
		dir := filepath.Join(goldenPEFT, "cases", e.Name())
		data, err := os.ReadFile(filepath.Join(dir, "case.json"))
		if err != nil {
			t.Fatal(err)
		}
		var c struct {
			Base     string
			Adapters []struct {
				Path   string
				Weight float64
			}
			Args    []string
			Refused string
		}
		if err := json.Unmarshal(data, &c); err != nil {
			t.Fatal(err)
		}
		if c.Refused != "" || len(c.Adapters) != 1 || c.Adapters[0].Weight != 1 || len(c.Args) > 0 {
			continue
		}
		all = append(all, goldenCase{name: e.Name(), base: filepath.Join(goldenPEFT, "bases", c.Base), path: filepath.Join(dir, c.Adapters[0].Path)})
	}
	if len(all) < 80 {
		t.Fatalf("only %d cases", len(all))
	}
	return all
}

// mergeTo merges an adapter in float32 into a folder.
func mergeTo(t *testing.T, base *checkpoint.Model, adapterDir, out string) *checkpoint.Model {
	t.Helper()
	am, err := checkpoint.OpenAdapter(adapterDir, hfrepo.Cache{})
	if err != nil {
		t.Fatal(err)
	}
	defer am.Close()
	a, err := adapter.Open(am)
	if err != nil {
		t.Fatal(err)
	}
	m, err := merge.Plan(base, []merge.Source{{Adapter: a, Weight: 1}}, merge.Options{Output: out, DType: tensor.F32})
	if err != nil {
		t.Fatal(err)
	}
	sink, err := checkpoint.Create(fsatomic.OS{}, m.Layout, false)
	if err != nil {
		t.Fatal(err)
	}
	var sources []engine.Source
	for _, in := range m.Inputs {
		sources = append(sources, in)
	}
	report, err := engine.Run(t.Context(), m.Plan, sources, oneSink{sink}, engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := sink.Commit(m.SetHashes(report.Hashes)); err != nil {
		t.Fatal(err)
	}
	return openModel(t, out)
}

// sameWeights compares two merged models: same tensors, and values to 1e-6 of the
// norm of each tensor, a few float32 roundings of weights, factors and product.
func sameWeights(t *testing.T, got, want *checkpoint.Model) {
	t.Helper()
	for _, spec := range want.Specs() {
		if !spec.DType.IsFloat() {
			continue
		}
		other, ok := got.Lookup(spec.Name)
		if !ok || !other.Shape.Equal(spec.Shape) {
			t.Errorf("%s: %v, want %v", spec.Name, other.Shape, spec.Shape)
			continue
		}
		if off, norm := distance(values(t, got, spec.Name), values(t, want, spec.Name)); off > 1e-6*norm {
			t.Errorf("%s: off by %.3g", spec.Name, off/norm)
		}
	}
	if len(got.Specs()) != len(want.Specs()) {
		t.Errorf("%d tensors, want %d", len(got.Specs()), len(want.Specs()))
	}
}

// TestExtractGolden merges every adapter that PEFT made, extracts from the result at
// full rank and merges that back: all architectures, roles and ties of the golden
// data.
func TestExtractGolden(t *testing.T) {
	for _, c := range goldenCases(t) {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			base := openModel(t, c.base)
			tuned := mergeTo(t, base, c.path, filepath.Join(t.TempDir(), "tuned"))
			x, out, err := tryRun(t, base, tuned, extract.Options{Rule: extract.Rule{Rank: 10000}}, engine.Options{})
			if err != nil {
				if input, ok := errors.AsType[*checkpoint.InputError](err); ok && refusedGolden(c, input) {
					t.Skip(err)
				}
				t.Fatal(err)
			}
			if x.Certificate.Share < 1-1e-9 {
				t.Errorf("share %v", x.Certificate.Share)
			}
			sameWeights(t, mergeTo(t, base, out, filepath.Join(t.TempDir(), "again")), tuned)
		})
	}
}

// refusedGolden reports whether a case is one that has no LoRA adapter.
func refusedGolden(c goldenCase, err error) bool {
	for _, reason := range []string{"there is no LoRA adapter of it"} {
		if strings.Contains(err.Error(), reason) {
			return true
		}
	}
	// The layers of the result are copies: another model than the base.
	return strings.Contains(c.name, "replication") && strings.Contains(err.Error(), "these are different models")
}

// TestResizeGolden resizes every LoRA adapter that PEFT made to its own rank: what
// merges from the result must be what merges from the adapter. Those whose change
// depends on the base must be refused.
func TestResizeGolden(t *testing.T) {
	var resized atomic.Int64
	t.Cleanup(func() {
		if n := resized.Load(); n < 100 {
			t.Errorf("only %d adapters were resized", n)
		}
	})
	for _, c := range goldenCases(t) {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m, err := checkpoint.OpenAdapter(c.path, hfrepo.Cache{})
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			a, err := adapter.Open(m)
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range []extract.Options{{Rule: extract.Rule{Rank: 10000}}, {Rule: extract.Rule{Error: 1e-6}, Alpha: 3}} {
				out := filepath.Join(t.TempDir(), "lora")
				x, err := tryResize(t, a, out, o)
				if _, depends := errors.AsType[*extract.WeightError](err); depends {
					if dependsOnBase := a.Config.Type != "LORA" || a.Config.DoRA || a.Config.KaSA || a.Config.Init != ""; !dependsOnBase {
						t.Error(err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				resized.Add(1)
				if x.Certificate.Share < 1-1e-9 {
					t.Errorf("share %v", x.Certificate.Share)
				}
				base := openModel(t, c.base)
				want := mergeTo(t, base, c.path, filepath.Join(t.TempDir(), "want"))
				sameWeights(t, mergeTo(t, base, out, filepath.Join(t.TempDir(), "got")), want)
			}
		})
	}
}

// tryResize decomposes, plans and writes.
func tryResize(t *testing.T, a *adapter.Adapter, out string, o extract.Options) (*extract.Extraction, error) {
	t.Helper()
	o.Output = out
	r, err := extract.OpenResize(a, o)
	if err != nil {
		return nil, err
	}
	if err := engine.Each(t.Context(), r.Tasks(), engine.Options{}); err != nil {
		return nil, err
	}
	x, err := r.Plan()
	if err != nil {
		return nil, err
	}
	sink, err := checkpoint.Create(fsatomic.OS{}, x.Layout, false)
	if err != nil {
		return nil, err
	}
	var sources []engine.Source
	for _, in := range x.Inputs {
		sources = append(sources, in)
	}
	report, err := engine.Run(t.Context(), x.Plan, sources, oneSink{sink}, engine.Options{})
	if err != nil {
		return nil, fmt.Errorf("writing: %w", errors.Join(err, sink.Abort()))
	}
	return x, sink.Commit(x.SetHashes(report.Hashes))
}

const goldenTorch = "../testdata/golden/extract"

// TestSpectraGolden compares every residual with the optimum of torch.linalg.svd, at
// every rank, for models that were really fine-tuned: it must not be larger than the
// certified excess allows, nor smaller than the optimum. The difference is float32,
// and the solver's values are right to 1e-7 of the largest: 2e-6 of the norm.
func TestSpectraGolden(t *testing.T) {
	const slack = 2e-6
	seen := 0
	for _, pair := range []string{"llama-bf16", "llama-fp8", "tokens", "gpt2", "mixtral", "conv"} {
		t.Run(pair, func(t *testing.T) {
			dir := filepath.Join(goldenTorch, pair)
			base, tuned := openModel(t, filepath.Join(dir, "base")), openModel(t, filepath.Join(dir, "tuned"))
			spectra := openModel(t, filepath.Join(dir, "spectra.safetensors"))
			for _, rank := range []int64{1, 2, 3, 5, 8, 13, 24} {
				x, out := run(t, base, tuned, extract.Options{Rule: extract.Rule{Rank: rank}}, engine.Options{})
				merged := mergeTo(t, base, out, filepath.Join(t.TempDir(), "merged"))
				pairs := 0
				for _, m := range x.Certificate.Modules {
					if m.Form != "lora" {
						continue
					}
					pairs++
					singular := values(t, spectra, m.Name)
					spec, _ := spectra.Lookup(m.Name)
					columns := spec.Shape[len(spec.Shape)-1]
					var all, rest float64
					for i, s := range singular {
						all += s * s
						if int64(i)%columns >= m.Rank {
							rest += s * s
						}
					}
					best := math.Sqrt(rest / all)
					if m.Rank != min(rank, columns) || m.Residual > best*(1+m.Excess)+slack || m.Residual < best-slack || m.Best > best+slack {
						t.Errorf("%s at rank %d: residual %v, at best %v; torch has %v", m.Name, m.Rank, m.Residual, m.Best, best)
					}
					if math.Abs(m.DeltaNorm-math.Sqrt(all)) > slack*m.DeltaNorm {
						t.Errorf("%s: norm %v, torch has %v", m.Name, m.DeltaNorm, math.Sqrt(all))
					}
					seen++
				}
				if pairs != len(spectra.Specs()) {
					t.Errorf("%d pairs, torch has %d", pairs, len(spectra.Specs()))
				}
				var left float64
				for _, spec := range merged.Specs() {
					off, _ := distance(values(t, merged, spec.Name), values(t, tuned, spec.Name))
					left += off * off
				}
				c := x.Certificate
				if missing := c.Residual * c.DeltaNorm; math.Abs(math.Sqrt(left)-missing) > slack*c.DeltaNorm+1e-6 {
					t.Errorf("rank %d: merged back %v from the tuned model, certified %v", rank, math.Sqrt(left), missing)
				}
			}
		})
	}
	if seen < 300 {
		t.Errorf("only %d comparisons", seen)
	}
}
