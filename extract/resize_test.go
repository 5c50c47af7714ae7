package extract_test

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"strings"
	"testing"

	"gonum.org/v1/gonum/mat"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/extract"
	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/fsatomic"
)

// loraOf extracts an adapter to resize: of rank 12, from changes without structure.
func loraOf(t *testing.T) (*checkpoint.Model, *adapter.Adapter) {
	t.Helper()
	base := llama(tensor.F32)
	tuned := base.clone()
	tuned.shiftAll(0.02)
	for _, name := range linears(tuned) {
		planted(tuned, name, 2)
	}
	b, tu := pairOf(t, base, tuned)
	_, out := run(t, b, tu, extract.Options{Rule: extract.Rule{Rank: 12}, Alpha: 5, Exclude: []string{"lm_head"}}, engine.Options{})
	return b, openAdapter(t, out)
}

// product returns scale·B·A of a module and its singular values, by gonum.
func product(t *testing.T, a *adapter.Adapter, name string) (*mat.Dense, []float64) {
	t.Helper()
	read := func(part string) *mat.Dense {
		for _, m := range a.Modules {
			if m.Name == name {
				s := m.Parts[part]
				return mat.NewDense(int(s.Shape[0]), int(s.Shape[1]), values(t, a.Source, s.Name))
			}
		}
		t.Fatalf("no module %q", name)
		return nil
	}
	var p mat.Dense
	p.Mul(read("lora_B"), read("lora_A"))
	p.Scale(a.Config.ScaleOf(name), &p)
	var svd mat.SVD
	if !svd.Factorize(&p, mat.SVDNone) {
		t.Fatal("gonum does not converge")
	}
	return &p, svd.Values(nil)
}

// TestResizeRules guards that every rule gives the best approximation of its rank,
// against gonum, keeps its promise, and takes no more than it needs; that what is no
// pair is copied; and that a sweep says the same.
func TestResizeRules(t *testing.T) {
	const slack = 2e-6 // see TestRules
	_, a := loraOf(t)
	for _, o := range []extract.Options{
		{Rule: extract.Rule{Rank: 3}}, {Rule: extract.Rule{Rank: 40}, Alpha: 7}, {Rule: extract.Rule{Energy: 0.8}},
		{Rule: extract.Rule{Error: 0.3}}, {Rule: extract.Rule{Error: 0.1, MaxRank: 5}}, {Rule: extract.Rule{Params: 4000}},
		{Rule: extract.Rule{Size: 20_000}}, {Rule: extract.Rule{Size: 20_000}, DType: tensor.BF16},
	} {
		t.Run(fmt.Sprintf("%+v", o.Rule), func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "lora")
			x, err := tryResize(t, a, out, o)
			if err != nil {
				t.Fatal(err)
			}
			got := openAdapter(t, out)
			for _, m := range x.Certificate.Modules {
				before, singular := product(t, a, m.Name)
				after, _ := product(t, got, m.Name)
				norm := mat.Norm(before, 2)
				best := tail(singular[:12], m.Rank, norm)
				if math.Abs(m.Residual-best) > slack {
					t.Errorf("%s: residual %v at rank %d, the best is %v", m.Name, m.Residual, m.Rank, best)
				}
				var d mat.Dense
				d.Sub(after, before)
				if off := mat.Norm(&d, 2) / norm; math.Abs(off-m.Residual) > slack+m.Rounding {
					t.Errorf("%s: the product is off by %v, certified %v", m.Name, off, m.Residual)
				}
				bound := o.Rule.Error
				if o.Rule.Energy > 0 {
					bound = math.Sqrt(1 - o.Rule.Energy)
				}
				if bound > 0 && (m.Capped != (m.Residual > bound+slack) || m.Rank > 1 && tail(singular, m.Rank-1, norm) <= bound-slack) {
					t.Errorf("%s: rank %d, residual %v, promised %v, capped %v", m.Name, m.Rank, m.Residual, bound, m.Capped)
				}
			}
			if n := x.Layout.Files[0].Size(); o.Rule.Size > 0 && n > o.Rule.Size {
				t.Errorf("%d bytes of %d", n, o.Rule.Size)
			}
			total := int64(0)
			for _, s := range got.Source.Specs() {
				total += s.NumElements()
			}
			if o.Rule.Params > 0 && total > o.Rule.Params {
				t.Errorf("%d parameters of %d", total, o.Rule.Params)
			}
			for _, s := range a.Saved {
				same := values(t, got.Source, s.Spec.Name)
				if off, _ := distance(same, values(t, a.Source, s.Spec.Name)); off != 0 {
					t.Errorf("%s was not copied", s.Name)
				}
			}
		})
	}
	r, err := extract.OpenResize(a, extract.Options{Rule: extract.Rule{Rank: 1}})
	if err != nil {
		t.Fatal(err)
	}
	if err := engine.Each(t.Context(), r.Tasks(), engine.Options{}); err != nil {
		t.Fatal(err)
	}
	points, err := r.Sweep([]int64{1, 3, 7, 12, 50})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range points {
		x, err := tryResize(t, a, filepath.Join(t.TempDir(), "lora"), extract.Options{Rule: extract.Rule{Rank: p.Rank}})
		if err != nil || x.Certificate.Residual != p.Residual || x.Certificate.Parameters != p.Parameters {
			t.Errorf("rank %d: %v, the sweep says %+v", p.Rank, err, p)
		}
	}
	if points[3].Residual > 1e-6 || points[0].Residual <= points[1].Residual {
		t.Errorf("residuals %v", points)
	}
	if _, err := r.Sweep([]int64{0}); err == nil {
		t.Error("a sweep of rank 0 is accepted")
	}
}

// TestResizeRefusals guards what resizing does not take.
func TestResizeRefusals(t *testing.T) {
	_, a := loraOf(t)
	_, err := tryResize(t, a, filepath.Join(t.TempDir(), "lora"), extract.Options{Rule: extract.Rule{Params: 50}})
	if _, ok := errors.AsType[*fsatomic.RefusedError](err); !ok {
		t.Errorf("a budget of next to nothing: %v", err)
	}
	for name, want := range map[string]string{
		"lora-llama-dora": "use_dora is set", "lora-llama-kasa": "made by changing the base", "ia3-llama": "no pairs of factors",
		"vera-llama": "no pairs of factors",
	} {
		m, err := checkpoint.OpenAdapter(filepath.Join(goldenPEFT, "cases", name, "adapter"), hfrepo.Cache{})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		ad, err := adapter.Open(m)
		if err != nil {
			t.Fatal(err)
		}
		_, err = extract.OpenResize(ad, extract.Options{Rule: extract.Rule{Rank: 1}})
		if weights, ok := errors.AsType[*extract.WeightError](err); !ok || !strings.Contains(err.Error(), want) || weights.Hint() == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestResizeMirror guards a head whose factors are the embedding's once more: it
// follows the embedding, and a budget pays for both.
func TestResizeMirror(t *testing.T) {
	m, err := checkpoint.OpenAdapter(filepath.Join(goldenPEFT, "cases", "lora-tied-ensure-targets", "adapter"), hfrepo.Cache{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	a, err := adapter.Open(m)
	if err != nil {
		t.Fatal(err)
	}
	whole := int64(0)
	for _, s := range m.Specs() {
		whole += s.NumElements()
	}
	for budget := whole * 9 / 10; budget < whole; budget += whole/50 + 1 {
		out := filepath.Join(t.TempDir(), "lora")
		x, err := tryResize(t, a, out, extract.Options{Rule: extract.Rule{Params: budget}})
		if err != nil {
			t.Fatal(err)
		}
		total := int64(0)
		for _, s := range openAdapter(t, out).Source.Specs() {
			total += s.NumElements()
		}
		if total > budget || total != x.Certificate.Parameters {
			t.Errorf("%d parameters of %d, the certificate says %d", total, budget, x.Certificate.Parameters)
		}
		mergeBack(t, openModel(t, filepath.Join(goldenPEFT, "bases", "llama-tied")), out, tensor.F32) // which compares the two
	}
}
