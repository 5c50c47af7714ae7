package extract_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gonum.org/v1/gonum/mat"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/extract"
	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/plan"
)

// plainRules are rules that give the layers of [uneven] different ranks.
var plainRules = []extract.Options{
	{Rule: extract.Rule{Rank: 40}, Exact: true}, {Rule: extract.Rule{Energy: 0.9}, Exact: true}, {Rule: extract.Rule{Error: 1e-3}},
	{Rule: extract.Rule{Error: 1e-3, MaxRank: 4}}, {Rule: extract.Rule{Energy: 0.9}, Alpha: 7.5},
	{Rule: extract.Rule{Params: 4000}}, {Rule: extract.Rule{Params: 90_000}}, {Rule: extract.Rule{Params: 4000, MaxRank: 3}},
	{Rule: extract.Rule{Size: 20_000}}, {Rule: extract.Rule{Size: 20_000}, DType: tensor.BF16},
}

// uneven are two models whose layers differ by changes of ranks 1 to 6.
func uneven(t *testing.T) (*checkpoint.Model, *checkpoint.Model) {
	t.Helper()
	base := llama(tensor.F32)
	tuned := base.clone()
	for i, name := range linears(tuned) {
		planted(tuned, name, 1+i*5%6)
	}
	return pairOf(t, base, tuned)
}

// TestPlain guards a plain adapter: one rank and one scale, whichever of the rank in
// the config and that of the tensors a reader goes by; the rank that the rule says; the
// change of each layer as certified; and what it costs, counted from the file.
func TestPlain(t *testing.T) {
	b, tu := uneven(t)
	for _, o := range plainRules {
		t.Run(fmt.Sprintf("%+v %v %v", o.Rule, o.Alpha, o.DType), func(t *testing.T) {
			free, _ := run(t, b, tu, o, engine.Options{})
			o.Plain = true
			x, out := run(t, b, tu, o, engine.Options{})
			checkPlain(t, free, x, openAdapter(t, out), o)
			merged := mergeBack(t, b, out, tensor.F64)
			for _, name := range linears(llama(tensor.F32)) {
				// Singular values are right to 1e-7 of the largest (linalg.Truncate), so a
				// residual to some 1e-6 of the norm.
				m := module(t, x, name)
				_, norm := judge(t, b, tu, name)
				off, _ := distance(values(t, merged, name), values(t, tu, name))
				if math.Abs(off/norm-m.Residual) > 2e-6+m.Rounding {
					t.Errorf("%s: merged back, the residual is %v, certified %v", name, off/norm, m.Residual)
				}
			}
		})
	}
}

// TestPlainResize guards the same of an adapter that gets another rank.
func TestPlainResize(t *testing.T) {
	b, tu := uneven(t)
	_, out := run(t, b, tu, extract.Options{Rule: extract.Rule{Energy: 0.9999}, Alpha: 5}, engine.Options{})
	a := openAdapter(t, out)
	for _, o := range plainRules {
		o.Exact = false
		t.Run(fmt.Sprintf("%+v %v %v", o.Rule, o.Alpha, o.DType), func(t *testing.T) {
			free, err := tryResize(t, a, filepath.Join(t.TempDir(), "free"), o)
			if err != nil {
				t.Fatal(err)
			}
			o.Plain = true
			out := filepath.Join(t.TempDir(), "lora")
			x, err := tryResize(t, a, out, o)
			if err != nil {
				t.Fatal(err)
			}
			got := openAdapter(t, out)
			checkPlain(t, free, x, got, o)
			for _, m := range x.Certificate.Modules {
				before, _ := product(t, a, m.Name)
				after, _ := product(t, got, m.Name)
				var d mat.Dense
				d.Sub(after, before)
				if off := mat.Norm(&d, 2) / mat.Norm(before, 2); math.Abs(off-m.Residual) > 2e-6+m.Rounding { // see TestPlain
					t.Errorf("%s: the product is off by %v, certified %v", m.Name, off, m.Residual)
				}
			}
		})
	}
}

// checkPlain compares a plain adapter with the free one of the same rule and with its
// own file.
func checkPlain(t *testing.T, free, x *extract.Extraction, a *adapter.Adapter, o extract.Options) {
	t.Helper()
	rank := x.Certificate.Modules[0].Rank
	checkOneScale(t, a, rank, o.Alpha)
	checkPlainRank(t, free, x, rank, o)
	var stored, padding, more, zeros int64
	var raised []string
	for i, m := range x.Certificate.Modules {
		all, empty := countZeros(t, a, strings.TrimSuffix(m.Name, ".weight"))
		if m.Rank != rank || m.Parameters != all || m.Padding != empty {
			t.Errorf("%s: rank %d, %d parameters with %d of padding certified; rank %d, %d with %d are stored", m.Name, m.Rank, m.Parameters, m.Padding, rank, all, empty)
		}
		f := free.Certificate.Modules[i]
		if f.Needed != f.Rank || f.Name != m.Name {
			t.Errorf("%s: without plain it needs %d and has %d", f.Name, f.Needed, f.Rank)
		}
		needed := f.Rank
		if o.Rule.Params+o.Rule.Size > 0 { // then all that is not zero is put to use
			needed = rank - empty/(m.Shape[0]+m.Shape[1])
		}
		if m.Needed != needed {
			t.Errorf("%s: needs %d, by itself it has %d", m.Name, m.Needed, needed)
		}
		stored, padding = stored+all, padding+empty
		if needed < rank {
			raised, more, zeros = append(raised, m.Name), more+(rank-needed)*(m.Shape[0]+m.Shape[1]), zeros+empty
		}
	}
	if c := x.Certificate; c.Parameters != stored || c.Padding != padding || c.Bytes != stored*bytesOf(o.DType) {
		t.Errorf("%d parameters, %d zeros, %d bytes certified; %d and %d are stored", c.Parameters, c.Padding, c.Bytes, stored, padding)
	}
	said := slices.IndexFunc(x.Plan.Decisions, func(d plan.Decision) bool { return d.Code == "one-rank" })
	if (said >= 0) != (len(raised) > 0) {
		t.Fatalf("one rank for %q: decision %d", raised, said)
	}
	want := fmt.Sprintf("%d parameters (%d bytes) are more than they need, %d of them zeros", more, more*bytesOf(o.DType), zeros)
	if said >= 0 && (!slices.Equal(x.Plan.Decisions[said].Tensors, raised) || !strings.Contains(x.Plan.Decisions[said].Message, want)) {
		t.Errorf("decision %+v, want %q of %q", x.Plan.Decisions[said], want, raised)
	}
}

// checkPlainRank compares a plain adapter's rank with what the rule asks for.
func checkPlainRank(t *testing.T, free, x *extract.Extraction, rank int64, o extract.Options) {
	t.Helper()
	var largest, cost, most int64
	for i, m := range x.Certificate.Modules {
		largest, cost, most = max(largest, free.Certificate.Modules[i].Rank), cost+m.Shape[0]+m.Shape[1], max(most, min(m.Shape[0], m.Shape[1]))
	}
	params, size := x.Certificate.Parameters, x.Layout.Files[0].Size()
	capped := slices.ContainsFunc(x.Certificate.Modules, func(m extract.Module) bool { return m.Capped })
	full := rank == most || rank == o.Rule.MaxRank || x.Certificate.Padding > 0
	switch {
	case o.Rule.Params+o.Rule.Size == 0:
		if rank != largest {
			t.Errorf("rank %d, the rule gives up to %d", rank, largest)
		}
	case capped != (o.Rule.MaxRank == 3):
		t.Errorf("rank %d: capped is %v", rank, capped)
	case o.Rule.Params > 0 && (params > o.Rule.Params || params+cost <= o.Rule.Params && !full):
		t.Errorf("rank %d takes %d parameters of %d, one more %d", rank, params, o.Rule.Params, cost)
	case o.Rule.Size > 0 && (size > o.Rule.Size || size+cost*bytesOf(o.DType) <= o.Rule.Size && !full):
		t.Errorf("rank %d takes %d bytes of %d, one more %d", rank, size, o.Rule.Size, cost*bytesOf(o.DType))
	}
}

func bytesOf(d tensor.DType) int64 {
	if d == tensor.NoDType {
		d = tensor.F32
	}
	return d.Bits() / 8
}

// checkOneScale reads the config as PEFT does and as those do that know no patterns,
// and take the rank of the config, or that of the tensors.
func checkOneScale(t *testing.T, a *adapter.Adapter, rank int64, alpha float64) {
	t.Helper()
	var c struct {
		R       int64          `json:"r"`
		Alpha   float64        `json:"lora_alpha"`
		RSLoRA  bool           `json:"use_rslora"`
		Bias    string         `json:"bias"`
		Ranks   map[string]any `json:"rank_pattern"`
		Alphas  map[string]any `json:"alpha_pattern"`
		Modules []string       `json:"modules_to_save"`
	}
	raw, err := os.ReadFile(filepath.Join(a.Source.Path, "adapter_config.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		t.Fatal(err)
	}
	if alpha == 0 {
		alpha = float64(rank)
	}
	if c.R != rank || c.Alpha != alpha || c.RSLoRA || c.Bias != "none" || len(c.Ranks)+len(c.Alphas)+len(c.Modules) > 0 {
		t.Errorf("rank %d, alpha %v, config %s", rank, alpha, raw)
	}
	for _, s := range a.Source.Specs() {
		of := s.Shape[0]
		if strings.HasSuffix(s.Name, ".lora_B.weight") {
			of = s.Shape[1]
		} else if !strings.HasSuffix(s.Name, ".lora_A.weight") {
			t.Errorf("%s is no factor", s.Name)
		}
		if of != rank {
			t.Errorf("%s: %v, the rank is %d", s.Name, s.Shape, rank)
		}
	}
	for _, m := range a.Modules {
		if got := a.Config.ScaleOf(m.Name); got != alpha/float64(rank) {
			t.Errorf("%s: scale %v", m.Name, got)
		}
	}
}

// countZeros counts the elements of a pair, and those of rows of A and columns of B
// that are both zeros.
func countZeros(t *testing.T, a *adapter.Adapter, name string) (all, zeros int64) {
	t.Helper()
	for _, m := range a.Modules {
		if m.Name != name {
			continue
		}
		A, B := m.Parts["lora_A"], m.Parts["lora_B"]
		rows, columns := values(t, a.Source, A.Name), values(t, a.Source, B.Name)
		rank, in, out := A.Shape[0], A.Shape[1], B.Shape[0]
		for k := range rank {
			empty := !slices.ContainsFunc(rows[k*in:(k+1)*in], func(v float64) bool { return v != 0 })
			for i := range out {
				empty = empty && columns[i*rank+k] == 0
			}
			if empty {
				zeros += in + out
			}
		}
		return rank * (in + out), zeros
	}
	t.Fatalf("no module %q", name)
	return 0, 0
}

// TestPlainResizeRefusals guards that what is no pair of linear layers is not written
// into a plain adapter, nor left out without a word.
func TestPlainResizeRefusals(t *testing.T) {
	for name, want := range map[string]string{
		"lora-llama-save-norm": `tensor "base_model.model.model.layers.`, "lora-llama-tokens": "token", "lora-llama-embed-head": "(embedding)",
		"lora-qwen2-lora-bias": "lora_B.bias", "lora-conv": "(conv)", "lora-mixtral-experts-fused": "(experts)",
		"lora-qwen2-bias-all": "bias", "lora-llama-linear": "",
	} {
		m, err := checkpoint.OpenAdapter(filepath.Join(goldenPEFT, "cases", name, "adapter"), hfrepo.Cache{})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		a, err := adapter.Open(m)
		if err != nil {
			t.Fatal(err)
		}
		o := extract.Options{Rule: extract.Rule{Rank: 1}, Plain: true}
		_, err = extract.OpenResize(a, o)
		if want == "" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if _, ok := errors.AsType[*checkpoint.InputError](err); !ok || !strings.Contains(err.Error(), "a plain adapter holds nothing but pairs of linear layers") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
		o.Plain = false
		if _, err := extract.OpenResize(a, o); err != nil {
			t.Errorf("%s without plain: %v", name, err)
		}
	}
}
