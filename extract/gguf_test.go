package extract_test

import (
	"errors"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/extract"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/quant/block"
)

// writeGGUF stores a model of F32 and F16 tensors as a GGUF file and opens it.
func (m *model) writeGGUF(t *testing.T, name string) *checkpoint.Model {
	t.Helper()
	keys := new(gguf.Metadata)
	for _, k := range []string{"general.architecture", "general.type", "llama.block_count"} {
		switch v := m.config[k].(type) {
		case string:
			keys.Set(k, gguf.ValueOf(v))
		case int:
			keys.Set(k, gguf.ValueOf(uint32(v)))
		}
	}
	types := map[tensor.DType]gguf.Type{tensor.F32: gguf.F32, tensor.F16: gguf.F16}
	var specs []gguf.Spec
	for _, n := range m.names {
		specs = append(specs, gguf.Spec{Name: n, Type: types[m.tensors[n].dtype], Shape: m.tensors[n].shape})
	}
	path := filepath.Join(t.TempDir(), name+".gguf")
	l, err := checkpoint.NewGGUFLayout(path, specs, keys, checkpoint.GGUFOptions{})
	if err != nil {
		t.Fatal(err)
	}
	sink, err := checkpoint.Create(fsatomic.OS{}, l, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range m.names {
		a := m.tensors[n]
		codec, _ := block.For(a.dtype)
		raw := make([]byte, int64(len(a.values))*a.dtype.Bits()/8)
		codec.Encode64(raw, a.values)
		if err := sink.WriteAt(n, raw, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := sink.Commit(nil); err != nil {
		t.Fatal(err)
	}
	return openModel(t, path)
}

// ggufModel is a model with every kind of tensor that llama.cpp's names tell apart.
func ggufModel() *model {
	m := newModel(map[string]any{"general.architecture": "llama", "llama.block_count": 2})
	m.add("token_embd.weight", tensor.F32, 40, 24)
	for _, l := range []string{"blk.0.", "blk.1."} {
		m.add(l+"attn_norm.weight", tensor.F32, 24)
		m.add(l+"attn_q.weight", tensor.F32, 32, 24)
		m.add(l+"attn_q.bias", tensor.F32, 32)
		m.add(l+"attn_output.weight", tensor.F16, 24, 32)
		m.add(l+"ffn_gate_inp.weight", tensor.F32, 3, 24)
		m.add(l+"ffn_up_exps.weight", tensor.F32, 3, 44, 24)
		m.add(l+"ssm_conv1d.weight", tensor.F32, 24, 4)
	}
	m.add("output_norm.weight", tensor.F32, 24)
	m.add("output.weight", tensor.F32, 40, 24)
	return m
}

// lowRank adds a change of a rank to every matrix of a tensor.
func (m *model) lowRank(name string, rank int, seed uint64) {
	a := m.tensors[name]
	rng := rand.New(rand.NewPCG(seed, 13))
	rows, cols, blocks := int(a.shape[len(a.shape)-2]), int(a.shape[len(a.shape)-1]), 1
	if len(a.shape) == 3 {
		blocks = int(a.shape[0])
	}
	for b := range blocks {
		for range rank {
			u, v := make([]float64, rows), make([]float64, cols)
			for i := range u {
				u[i] = rng.NormFloat64()
			}
			for j := range v {
				v[j] = 0.02 * rng.NormFloat64()
			}
			for i, x := range u {
				for j, y := range v {
					a.values[(b*rows+i)*cols+j] += x * y
				}
			}
		}
	}
}

// ggufChange computes what llama.cpp adds to a weight with an adapter: alpha over the
// rank, the innermost dimension of B, times B·A; of the token embedding row i is B times
// row i of A (src/llama-graph.cpp, build_lora_mm and build_inp_embd).
func ggufChange(t *testing.T, a *checkpoint.Model, name string) ([]float64, bool) {
	t.Helper()
	specA, ok := a.Lookup(name + ".lora_a")
	if !ok {
		return nil, false
	}
	specB, ok := a.Lookup(name + ".lora_b")
	if !ok {
		t.Fatalf("%q has no second factor", name)
	}
	alpha, err := a.GGUF().Metadata().Float("adapter.lora.alpha")
	if err != nil {
		t.Fatal(err)
	}
	fa, fb := values(t, a, specA.Name), values(t, a, specB.Name)
	dims := len(specB.Shape)
	rank, out := int(specB.Shape[dims-1]), int(specB.Shape[dims-2])
	scale := alpha / float64(rank)
	if name == "token_embd.weight" {
		vocabulary := int(specA.Shape[0])
		d := make([]float64, vocabulary*out)
		for v := range vocabulary {
			for i := range out {
				for k := range rank {
					d[v*out+i] += scale * fb[i*rank+k] * fa[v*rank+k]
				}
			}
		}
		return d, true
	}
	in, experts := int(specA.Shape[dims-1]), 1
	if dims == 3 {
		experts = int(specA.Shape[0])
	}
	d := make([]float64, experts*out*in)
	for e := range experts {
		for i := range out {
			for k := range rank {
				b := scale * fb[(e*out+i)*rank+k]
				for j := range in {
					d[(e*out+i)*in+j] += b * fa[(e*rank+k)*in+j]
				}
			}
		}
	}
	return d, true
}

func runGGUF(t *testing.T, base, tuned *checkpoint.Model, o extract.Options) (*extract.Extraction, *checkpoint.Model) {
	t.Helper()
	o.Output = filepath.Join(t.TempDir(), "lora.gguf")
	x, out := run(t, base, tuned, o, engine.Options{})
	return x, openModel(t, out)
}

// TestGGUF guards an adapter of two GGUF models: base and adapter, put together as
// llama.cpp does it, are the tuned model, for every kind of tensor and ranks that differ.
func TestGGUF(t *testing.T) {
	base, tuned := ggufModel(), ggufModel()
	ranks := map[string]int64{
		"blk.0.attn_q.weight": 3, "blk.1.attn_q.weight": 5, "blk.1.attn_output.weight": 2, "blk.0.ffn_gate_inp.weight": 1,
		"blk.0.ffn_up_exps.weight": 4, "token_embd.weight": 2, "output.weight": 6,
	}
	for name, rank := range ranks {
		tuned.lowRank(name, int(rank), uint64(len(name))+uint64(rank))
	}
	b, w := base.writeGGUF(t, "base"), tuned.writeGGUF(t, "tuned")
	for _, o := range []extract.Options{
		{Rule: extract.Rule{Error: 1e-3}},
		{Rule: extract.Rule{Rank: 8}},
		{Rule: extract.Rule{Rank: 8}, Alpha: 16, Plain: true},
	} {
		// An empty target would leave embedding and head out.
		o.Target = []string{"token_embd", "output", "attn_q", "attn_output", "ffn_gate_inp", "ffn_up_exps"}
		if o.Plain {
			o.Target = []string{"attn_q", "attn_output", "ffn_gate_inp"}
		}
		x, a := runGGUF(t, b, w, o)
		summary, ok := a.GGUFSummary()
		if !ok || len(summary.Problems) > 0 || summary.Architecture != "llama" || summary.Adapter == nil {
			t.Errorf("the adapter has problems: %+v", summary)
		}
		alpha, want := summary.Adapter.Alpha, 16.0 // as asked for, or the largest rank
		if o.Alpha == 0 {
			want = float64(summary.Adapter.Ranks[len(summary.Adapter.Ranks)-1].Rank)
		}
		if alpha != want {
			t.Errorf("alpha %v, want %v", alpha, want)
		}
		for name, rank := range ranks {
			before, after := values(t, b, name), values(t, w, name)
			d, held := ggufChange(t, a, name)
			plain := strings.Contains(name, "attn_") || strings.Contains(name, "gate_inp")
			if held != (plain || !o.Plain) {
				t.Errorf("%s: held %v", name, held)
			}
			if !held {
				continue
			}
			if got, _ := a.Lookup(name + ".lora_b"); o.Rule.Error > 0 && got.Shape[len(got.Shape)-1] != rank {
				t.Errorf("%s: rank %v, the change has %d", name, got.Shape, rank)
			}
			change := make([]float64, len(d))
			for i := range change {
				change[i] = after[i] - before[i]
			}
			// The factors are rounded to float32 and the decomposition is right to some
			// 1e-6 of the largest value; values of F16 have noise of 2^-11 beside the rank.
			bound := 1e-5
			if strings.Contains(name, "attn_output") {
				bound = 1e-2
			}
			if wrong, size := distance(d, change); !(wrong <= bound*size) {
				t.Errorf("%s: base and adapter are off by %.3g of the change (rule %+v)", name, wrong/size, o.Rule)
			}
		}
		if share := x.Certificate.Share; !(share > 0.999) && !o.Plain {
			t.Errorf("the certificate says %v", share)
		}
	}
}

// TestGGUFLeftOut guards what a GGUF adapter can't hold: it is told, and counts as lost.
func TestGGUFLeftOut(t *testing.T) {
	base, tuned := ggufModel(), ggufModel()
	tuned.lowRank("blk.0.attn_q.weight", 2, 1)
	lost := []string{"blk.0.attn_norm.weight", "blk.1.attn_q.bias", "blk.0.ssm_conv1d.weight", "token_embd.weight", "output.weight", "output_norm.weight"}
	for i, name := range lost {
		tuned.shift(name, 0.01, uint64(i))
	}
	x, a := runGGUF(t, base.writeGGUF(t, "base"), tuned.writeGGUF(t, "tuned"), extract.Options{Rule: extract.Rule{Rank: 4}})
	var told []string
	for _, d := range x.Plan.Decisions {
		if d.Code == "left-out" {
			told = append(told, d.Tensors...)
		}
	}
	slices.Sort(told)
	slices.Sort(lost)
	if !slices.Equal(told, lost) {
		t.Errorf("left out: %v, want %v", told, lost)
	}
	if len(a.Specs()) != 2 || x.Certificate.LeftOut <= 0 {
		t.Errorf("%d tensors, %v of the change left out", len(a.Specs()), x.Certificate.LeftOut)
	}
}

// TestGGUFRefused guards pairs of models that have no GGUF adapter.
func TestGGUFRefused(t *testing.T) {
	dir := t.TempDir()
	base := ggufModel().writeGGUF(t, "base")
	change := func(f func(*model)) *checkpoint.Model {
		m := ggufModel()
		m.lowRank("blk.0.attn_q.weight", 2, 1)
		f(m)
		return m.writeGGUF(t, "tuned")
	}
	good := change(func(*model) {})
	rule := extract.Rule{Rank: 4}
	for _, c := range []struct {
		name        string
		base, tuned *checkpoint.Model
		o           extract.Options
		want        string
	}{
		{"the other side is a folder", llama(tensor.F32).write(t, filepath.Join(dir, "hf")), good, extract.Options{Rule: rule, Output: "o.gguf"}, "no GGUF model, the other is"},
		{"the output is a folder", base, good, extract.Options{Rule: rule, Output: "o"}, "ends in .gguf"},
		{"an adapter", base, change(func(m *model) { m.config["general.type"] = "adapter" }), extract.Options{Rule: rule, Output: "o.gguf"}, "it is an adapter"},
		{"another architecture", base, change(func(m *model) { m.config["general.architecture"] = "qwen2" }), extract.Options{Rule: rule, Output: "o.gguf"}, "general.architecture"},
		{"another number of layers", base, change(func(m *model) { m.config["llama.block_count"] = 3 }), extract.Options{Rule: rule, Output: "o.gguf"}, "llama.block_count"},
		{"a tensor is missing", base, change(func(m *model) { m.remove("blk.1.attn_q.weight") }), extract.Options{Rule: rule, Output: "o.gguf"}, "blk.1.attn_q.weight"},
		{"a head of its own", base, change(func(m *model) { m.remove("output.weight") }), extract.Options{Rule: rule, Output: "o.gguf"}, "output.weight"},
		{"factors in float64", base, good, extract.Options{Rule: rule, Output: "o.gguf", DType: tensor.F64}, "f64"},
		{"weights whole", base, good, extract.Options{Rule: rule, Output: "o.gguf", DenseWhenCheaper: true}, "holds no weight whole"},
		{"the same model", base, base, extract.Options{Rule: rule, Output: "o.gguf"}, "does not differ"},
		{"nothing left", base, good, extract.Options{Rule: rule, Output: "o.gguf", Exclude: []string{"attn_q"}}, "no layer that factors could hold"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.o.Output = filepath.Join(t.TempDir(), c.o.Output)
			_, _, err := tryRun(t, c.base, c.tuned, c.o, engine.Options{})
			var input *checkpoint.InputError
			if !errors.As(err, &input) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want an input error with %q", err, c.want)
			}
		})
	}
	if _, _, err := tryRun(t, llama(tensor.F32).write(t, filepath.Join(dir, "a")), llama(tensor.F32).write(t, filepath.Join(dir, "b")),
		extract.Options{Rule: rule, Output: filepath.Join(dir, "o.gguf")}, engine.Options{}); err == nil || !strings.Contains(err.Error(), "it is no GGUF model") {
		t.Errorf("a GGUF adapter of two folders: %v", err)
	}
}
