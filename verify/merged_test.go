package verify_test

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/verify"
)

// mergeCase is a merge that a test makes by itself, value by value: what it was made
// from, and how.
type mergeCase struct {
	name     string
	base     func(*fixture)                 // changes the base before anything is made of it
	lora     []func(*fixture)               // one adapter each; none is one as it is
	weights  []float64                      // of the adapters; none are 1
	sum      func(w, d []float64) []float64 // how a changed tensor is made of the base and s·B·A; nil adds
	round    func(w float64, d []float64) float64
	merged   func(*fixture)        // changes the merge
	write    func(*fixture) string // writes the merge; nil as it is
	want     []string
	wantNote string // a part of a message
}

func rn(d tensor.DType, x float64) float64 { return decode(d, encode(d, []float64{x}))[0] }

func half(x float64) float64 { return rn(tensor.BF16, x) }

const (
	q0 = "model.layers.0.self_attn.q_proj.weight"
	v0 = "model.layers.0.self_attn.v_proj.weight"
	q1 = "model.layers.1.self_attn.q_proj.weight"
	v1 = "model.layers.1.self_attn.v_proj.weight"
)

// all lists a code for each tensor that the adapter changes.
func all(code string, more ...string) []string {
	list := append([]string{}, more...)
	for _, name := range []string{q0, v0, q1, v1} {
		list = append(list, code+" "+name)
	}
	slices.Sort(list)
	return list
}

func scaled(by float64) func(w, d []float64) []float64 {
	return func(w, d []float64) []float64 {
		x := slices.Clone(w)
		for i := range x {
			x[i] += by * d[i]
		}
		return x
	}
}

var mergeCases = []mergeCase{
	{name: "clean"},
	{name: "clean, two adapters", lora: []func(*fixture){func(*fixture) {}, other}, weights: []float64{0.7, -0.3}},
	{name: "clean, wider", merged: func(f *fixture) { f.cast(tensor.F32) }, want: []string{"dtype-config", "merge-dtype"}},
	// A float32 product is a little off, and the sum is not the nearest float32 then.
	{name: "clean, float32 arithmetic", base: func(f *fixture) { f.config["dtype"] = "float32"; f.cast(tensor.F32) },
		round: func(w float64, d []float64) float64 { return float64(float32(w) + float32(d[0]*(1+0x1p-23))) }},
	{name: "clean, shards", write: func(f *fixture) string { return f.writeSharded(f.size()) }},
	{name: "clean, head of a tied base stored", base: tie, merged: func(f *fixture) {
		f.set(tensor.Spec{Name: "lm_head.weight", DType: tensor.BF16, Shape: tensor.Shape{12, 32}}, f.values["model.embed_tokens.weight"])
	}, want: []string{"tied-stored lm_head.weight"}},
	{name: "clean, head of a tied base left out", base: func(f *fixture) {
		tie(f)
		f.set(tensor.Spec{Name: "lm_head.weight", DType: tensor.BF16, Shape: tensor.Shape{12, 32}}, f.values["model.embed_tokens.weight"])
	}, merged: func(f *fixture) { f.remove("lm_head.weight") }},

	{name: "rounded twice", round: func(w float64, d []float64) float64 { return half(w + half(d[0])) },
		want: all("peft-double-rounding"), wantNote: "the change is rounded to bf16, then the sum"},
	{name: "rounded three times", lora: []func(*fixture){func(f *fixture) { f.config["lora_alpha"] = 6 }},
		round: func(w float64, d []float64) float64 { return half(w + half(1.5*half(d[0]/1.5))) },
		want:  all("peft-double-rounding"), wantNote: "the product is rounded to bf16"},
	{name: "one adapter after another", lora: []func(*fixture){func(*fixture) {}, other},
		round: func(w float64, d []float64) float64 { return half(half(w+d[0]) + d[1]) },
		want:  all("base-rounded"), wantNote: "after each adapter"},
	{name: "both", lora: []func(*fixture){func(*fixture) {}, other},
		round: func(w float64, d []float64) float64 { return half(half(w+half(d[0])) + half(d[1])) },
		want:  all("peft-double-rounding")},
	{name: "made in 16 bits, stored in 32", round: func(w float64, d []float64) float64 { return half(w + d[0]) },
		merged: func(f *fixture) { f.cast(tensor.F32) }, want: all("base-rounded", "dtype-config", "merge-dtype")},
	{name: "base rounded first", base: func(f *fixture) {
		f.cast(tensor.F32)
		for _, x := range f.values {
			for i := range x {
				x[i] *= 1.01 // no numbers of 16 bits any more
			}
		}
	},
		round:  func(w float64, d []float64) float64 { return half(half(w) + d[0]) },
		merged: func(f *fixture) { f.cast(tensor.BF16) }, want: all("base-rounded", "merge-dtype")},
	// One value next to the right one must not pass for a rounding.
	{name: "next value", merged: func(f *fixture) {
		x := f.values[q0]
		i := slices.IndexFunc(x, func(v float64) bool { return math.Abs(v) > 0.05 })
		x[i] *= 1 + 0x1p-7
	}, want: []string{"deviates " + q0}, wantNote: "1 of its 1024 values"},
	{name: "next value, rounded twice", round: func(w float64, d []float64) float64 { return half(w + half(d[0])) },
		merged: func(f *fixture) {
			x := f.values[v1]
			i := slices.IndexFunc(x, func(v float64) bool { return math.Abs(v) > 0.05 })
			x[i] *= 1 + 0x1p-6
		}, want: []string{"deviates " + v1, "peft-double-rounding " + q0, "peft-double-rounding " + v0, "peft-double-rounding " + q1}},

	{name: "not applied", sum: scaled(0), want: all("delta-missing", "adapter-missing")},
	{name: "applied twice", sum: scaled(2), want: all("delta-scale"), wantNote: "applied twice"},
	{name: "subtracted", sum: scaled(-1), want: all("delta-scale"), wantNote: "subtracted"},
	{name: "alpha/sqrt(r)", sum: scaled(2), lora: []func(*fixture){func(f *fixture) { f.config["lora_alpha"] = 7 }},
		want: all("delta-scale")},
	{name: "rsLoRA for LoRA", sum: scaled(3), lora: []func(*fixture){rank9}, want: all("delta-scale"), wantNote: "alpha/sqrt(r) was taken"},
	{name: "LoRA for rsLoRA", sum: scaled(1.0 / 3), lora: []func(*fixture){func(f *fixture) { rank9(f); f.config["use_rslora"] = true }},
		want: all("delta-scale"), wantNote: "alpha/r was taken"},
	{name: "one layer left out", merged: func(f *fixture) {
		base := tinyLlama(f.t)
		f.values[q1], f.values[v1] = base.values[q1], base.values[v1]
	}, want: []string{"delta-missing " + q1, "delta-missing " + v1}},
	{name: "one module wrong", merged: func(f *fixture) {
		base := tinyLlama(f.t)
		for i, w := range base.values[q1] {
			f.values[q1][i] = half(w + 2*(f.values[q1][i]-w))
		}
	}, want: []string{"delta-scale " + q1}},
	{name: "transposed", sum: func(w, d []float64) []float64 {
		x := slices.Clone(w)
		if len(x) == 32*32 {
			for i := range x {
				x[i] += d[i%32*32+i/32]
			}
			return x
		}
		return scaled(1)(w, d)
	}, want: []string{"deviates " + q0, "deviates " + q1}},
	{name: "rows in the order of llama.cpp", merged: func(f *fixture) {
		const head, cols = 8, 32
		x := slices.Clone(f.values[q0])
		for row := range 32 {
			h, i := row/head, row%head
			copy(f.values[q0][row*cols:][:cols], x[(h*head+i%2*head/2+i/2)*cols:][:cols])
		}
	}, want: []string{"deviates " + q0}},
	{name: "another base", merged: func(f *fixture) {
		for _, s := range f.specs {
			if !strings.Contains(s.Name, "q_proj") && !strings.Contains(s.Name, "v_proj") {
				f.values[s.Name][1] += 0.25
			}
		}
	}, want: append([]string{"other-base"}, changed(nil)...)},
	{name: "one bit", merged: func(f *fixture) { f.values["model.layers.0.mlp.up_proj.weight"][77] *= -1 },
		want: changed([]string{"model.layers.0.mlp.up_proj.weight"})},
	{name: "overflow", base: func(f *fixture) {
		f.values[q0][5] = 65280
		f.values["lm_head.weight"][5] = 70144
	}, merged: func(f *fixture) { f.config["dtype"] = "float16"; f.cast(tensor.F16) },
		want: []string{"merge-dtype", "non-finite lm_head.weight", "overflow lm_head.weight"}},
	{name: "infinite in the base too", base: func(f *fixture) { f.values["lm_head.weight"][5] = math.Inf(1) }, want: []string{"non-finite lm_head.weight"}},
	{name: "tensor lost", merged: func(f *fixture) { f.remove("model.layers.0.mlp.up_proj.weight") },
		want: []string{"merge-missing model.layers.0.mlp.up_proj.weight", "tensor-missing model.layers.0.mlp.up_proj.weight"}},
	{name: "tensor too many", merged: func(f *fixture) { f.add("rotary.inv_freq", tensor.F32, 4) },
		want: []string{"merge-extra rotary.inv_freq"}},
	{name: "other shape", merged: func(f *fixture) { f.config["vocab_size"] = 13; f.reshape("lm_head.weight", 13, 32) },
		want: []string{"merge-shape lm_head.weight", "shape-config model.embed_tokens.weight"}},
	{name: "quantized", write: func(f *fixture) string {
		return f.quantize(quant.Options{Type: quant.NF4, Skip: []string{".*layers.0", ".*mlp.*", ".*k_proj", ".*o_proj"}})
	},
		want: []string{"not-compared " + q1, "not-compared " + v1}},
	{name: "tied head broken", base: tie, merged: func(f *fixture) {
		f.add("lm_head.weight", tensor.BF16, 12, 32)
	}, want: []string{"tensor-changed lm_head.weight", "tied-differs lm_head.weight"}},
	{name: "too small for 16 bits", lora: []func(*fixture){func(f *fixture) {
		for name, x := range f.values {
			if strings.Contains(name, "lora_B") {
				for i := range x {
					x[i] *= 1e-3
				}
			}
		}
	}}, want: all("delta-survival")},
	{name: "idle factors", lora: []func(*fixture){func(f *fixture) {
		clear(f.values["base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"])
	}}, want: []string{"delta-zero " + v1}},
}

// changed lists tensor-changed for the tensors, of nil for all that no adapter changes.
func changed(names []string) []string {
	if names == nil {
		f := tinyLlama(new(testing.T))
		for _, s := range f.specs {
			if !strings.Contains(s.Name, "q_proj") && !strings.Contains(s.Name, "v_proj") {
				names = append(names, s.Name)
			}
		}
	}
	var list []string
	for _, n := range names {
		list = append(list, "tensor-changed "+n)
	}
	slices.Sort(list)
	return list
}

func tie(f *fixture) {
	f.config["tie_word_embeddings"] = true
	f.remove("lm_head.weight")
}

// other makes the adapter another one.
func other(f *fixture) {
	f.config["lora_alpha"] = 5
	for _, x := range f.values {
		slices.Reverse(x)
	}
}

// rank9 gives the adapter rank 9.
func rank9(f *fixture) {
	f.config["r"] = 9
	for _, s := range slices.Clone(f.specs) {
		shape := slices.Clone(s.Shape)
		shape[slices.Index(shape, 4)] = 9
		f.reshape(s.Name, shape...)
	}
}

// product is s·B·A of the adapter for a weight, nil if it has none.
func (f *fixture) product(weight string) []float64 {
	module := "base_model.model." + strings.TrimSuffix(weight, "weight")
	a, b := f.index(module+"lora_A.weight"), f.index(module+"lora_B.weight")
	if a < 0 {
		return nil
	}
	rank, in, out := int(f.specs[a].Shape[0]), int(f.specs[a].Shape[1]), int(f.specs[b].Shape[0])
	scale := float64(f.config["lora_alpha"].(int)) / float64(rank)
	if f.config["use_rslora"] != nil {
		scale = float64(f.config["lora_alpha"].(int)) / math.Sqrt(float64(rank))
	}
	av, bv := f.values[f.specs[a].Name], f.values[f.specs[b].Name]
	d := make([]float64, out*in)
	for i := range out {
		for j := range in {
			for k := range rank {
				d[i*in+j] += scale * bv[i*rank+k] * av[k*in+j]
			}
		}
	}
	return d
}

// make makes the inputs of a case and the merge, in float64 but for the roundings
// that the case asks for.
func (c *mergeCase) make(t *testing.T) (base string, adapters []string, merged string) {
	b := tinyLlama(t)
	if c.base != nil {
		c.base(b)
		b.cast(b.specs[0].DType)
	}
	base = b.write()
	edits := c.lora
	if edits == nil {
		edits = []func(*fixture){func(*fixture) {}}
	}
	var loras []*fixture
	for _, edit := range edits {
		f := tinyLoRA(t)
		edit(f)
		f.cast(tensor.F32)
		loras = append(loras, f)
		adapters = append(adapters, f.write())
	}
	for _, s := range b.specs {
		var d [][]float64
		for i, f := range loras {
			p := f.product(s.Name)
			for j := range p {
				if c.weights != nil {
					p[j] *= c.weights[i]
				}
			}
			d = append(d, p)
		}
		if d[0] == nil {
			continue
		}
		b.values[s.Name] = c.combine(b.values[s.Name], d)
	}
	if c.merged != nil {
		c.merged(b)
	}
	if c.write != nil {
		return base, adapters, c.write(b)
	}
	return base, adapters, b.write()
}

func (c *mergeCase) combine(w []float64, d [][]float64) []float64 {
	if c.round != nil {
		x := make([]float64, len(w))
		for i := range x {
			each := make([]float64, len(d))
			for k := range d {
				each[k] = d[k][i]
			}
			x[i] = c.round(w[i], each)
		}
		return x
	}
	sum := make([]float64, len(w))
	for _, p := range d {
		for i, v := range p {
			sum[i] += v
		}
	}
	if c.sum != nil {
		return c.sum(w, sum)
	}
	return scaled(1)(w, sum)
}

// TestMerged finds each mistake of a merge by its code and tensor, and nothing else.
func TestMerged(t *testing.T) {
	caught := make(map[string]bool)
	for _, c := range mergeCases {
		t.Run(c.name, func(t *testing.T) {
			base, adapters, merged := c.make(t)
			var sources []merge.Source
			for i, path := range adapters {
				sources = append(sources, source(t, path, 1))
				if c.weights != nil {
					sources[i].Weight = c.weights[i]
				}
			}
			r, err := verify.Merged(t.Context(), openPath(t, base), sources, merge.Options{}, openPath(t, merged), verify.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if got := found(r); !slices.Equal(got, c.want) {
				t.Errorf("found %q, want %q", got, c.want)
				for _, f := range r.Findings {
					t.Log(f.Code, f.Tensor, f.Message)
				}
			}
			messages := fmt.Sprint(r.Findings)
			if !strings.Contains(messages, c.wantNote) {
				t.Errorf("no message says %q: %s", c.wantNote, messages)
			}
			for _, f := range r.Findings {
				caught[f.Code] = true
			}
		})
	}
	for _, c := range verify.Codes() {
		if c.Family == "merge" && !caught[c.Name] && c.Name != "block-differs" && c.Name != "encoder-other" { // see TestMergedCodes
			t.Errorf("no planted defect shows %q", c.Name)
		}
	}
}

func source(t *testing.T, path string, weight float64) merge.Source {
	t.Helper()
	m, err := checkpoint.OpenAdapter(path, hfrepo.Cache{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	a, err := adapter.Open(m)
	if err != nil {
		t.Fatal(err)
	}
	return merge.Source{Adapter: a, Weight: weight}
}
