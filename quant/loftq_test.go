package quant_test

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/quant/block"
	"github.com/loratool/loratool/quant/loftq"
	"github.com/loratool/loratool/verify"
)

// sink takes the output of a run.
type sink struct{ *checkpoint.Sink }

func (s sink) WriteAt(_ int, name string, p []byte, off int64) error {
	return s.Sink.WriteAt(name, p, off)
}

// repaired is what a quantization with pairs wrote.
type repaired struct {
	plan    *quant.Repair
	figures []quant.Repaired
	base    *checkpoint.Model
	q       *checkpoint.Model
	adapter *adapter.Adapter
}

// repair quantizes a model with pairs, to a folder.
func repair(t *testing.T, dir string, o quant.Options, e engine.Options) repaired {
	t.Helper()
	r, err := tryRepair(t, dir, o, e)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func tryRepair(t *testing.T, dir string, o quant.Options, e engine.Options) (repaired, error) {
	t.Helper()
	r := repaired{base: open(t, dir)}
	l := *o.LoftQ
	o.LoftQ = &l
	o.Output, l.Output = filepath.Join(t.TempDir(), "q"), filepath.Join(t.TempDir(), "a")
	var err error
	if r.plan, err = quant.PlanLoftQ(r.base, o); err != nil {
		return r, err
	}
	r.plan.View.Threads = 2
	store, err := r.plan.NewStore(fsatomic.OS{}, false)
	if err != nil {
		return r, err
	}
	t.Cleanup(func() { store.Close() })
	if err := engine.Each(t.Context(), r.plan.Tasks(store), e); err != nil {
		return r, err
	}
	if err := r.plan.Use(store); err != nil {
		return r, err
	}
	if r.figures, err = r.plan.Repaired(); err != nil {
		return r, err
	}
	base, err := checkpoint.Create(fsatomic.OS{}, r.plan.Layout, false)
	if err != nil {
		return r, err
	}
	pairs, err := checkpoint.Create(fsatomic.OS{}, r.plan.AdapterLayout, false)
	if err != nil {
		return r, err
	}
	report, err := engine.Run(t.Context(), r.plan.Plan, []engine.Source{r.plan.View}, sink{base}, e)
	if err == nil {
		_, err = engine.Run(t.Context(), r.plan.AdapterPlan, []engine.Source{r.plan.Adapter}, sink{pairs}, e)
	}
	if err != nil {
		return r, errors.Join(err, base.Abort(), pairs.Abort())
	}
	quantized, metadata := r.plan.SetHashes(report.Hashes)
	if err := checkpoint.CommitAll(checkpoint.Finished{Sink: pairs, Metadata: metadata}, checkpoint.Finished{Sink: base, Metadata: quantized}); err != nil {
		return r, err
	}
	r.q = open(t, o.Output)
	m, err := checkpoint.OpenAdapter(l.Output, hfrepo.Cache{})
	if err != nil {
		return r, err
	}
	t.Cleanup(func() { m.Close() })
	r.adapter, err = adapter.Open(m)
	return r, err
}

// floats decodes a tensor, as (rows, cols) turned around if asked to.
func floats(t *testing.T, m *checkpoint.Model, name string, transposed bool) []float32 {
	t.Helper()
	s, ok := m.Lookup(name)
	if !ok {
		t.Fatalf("%s has no tensor %q", m.Name, name)
	}
	codec, _ := block.For(s.DType)
	x := make([]float32, s.NumElements())
	codec.Decode32(x, readAll(t, m, s))
	if !transposed {
		return x
	}
	rows, cols := int(s.Rows()), int(s.Cols())
	y := make([]float32, len(x))
	for i := range rows {
		for j := range cols {
			y[j*rows+i] = x[i*cols+j]
		}
	}
	return y
}

// TestLoftQ compares what is written with what the solver gives for each weight: the
// values that the file stands for are its Q, to the bit, and the factors are its
// factors. Weights of several segments, with rows that blocks reach over, and as (in,
// out).
func TestLoftQ(t *testing.T) {
	const out, in = 331, 417 // 138,027 elements are several segments, none of them even
	moments := write(t, `{}`, []tensor.Spec{spec("h.0.mlp.c_fc", tensor.F32, in)}, func(_ tensor.Spec, x []float32) {
		for j := range x {
			x[j] = float32(1 + j%5)
		}
	})
	weights := make([]float64, in)
	for j := range weights {
		weights[j] = float64(1 + j%5)
	}
	for _, c := range []struct {
		name    string
		o       quant.Options
		l       quant.LoftQ
		q       loftq.Quantizer
		scale   float64
		moments bool
	}{
		{"nf4", quant.Options{Type: quant.NF4}, quant.LoftQ{}, loftq.FourBit{Type: kernel.NF4, BlockSize: 64}, 1, false},
		{"nf4, svd first", quant.Options{Type: quant.NF4}, quant.LoftQ{Order: loftq.SVDFirst, Alpha: 12}, loftq.FourBit{Type: kernel.NF4, BlockSize: 64}, 2, false},
		{"double", quant.Options{Type: quant.NF4, DoubleQuant: true}, quant.LoftQ{Alpha: 3}, loftq.FourBit{Type: kernel.NF4, BlockSize: 64, Double: true}, 0.5, false},
		{"fp4", quant.Options{Type: quant.FP4, BlockSize: 32}, quant.LoftQ{RSLoRA: true, Alpha: 6}, loftq.FourBit{Type: kernel.FP4, BlockSize: 32}, 6 / math.Sqrt(6), false},
		{"int8", quant.Options{Type: quant.Int8}, quant.LoftQ{Iterations: 2}, loftq.Int8{}, 1, false},
		{"nf2", quant.Options{Type: quant.NF2}, quant.LoftQ{}, loftq.Normal{Bits: 2, BlockSize: 64}, 1, false},
		{"uniform3", quant.Options{Type: quant.Uniform3}, quant.LoftQ{Iterations: 1}, loftq.Uniform{Bits: 3}, 1, false},
		{"widths", quant.Options{Type: quant.NF4, BlockSize: 128}, quant.LoftQ{Bits: []quant.LayerBits{{From: 0, To: 7, Bits: 3}}}, loftq.Normal{Bits: 3, BlockSize: 128}, 1, false},
		{"weighted", quant.Options{Type: quant.NF4}, quant.LoftQ{}, loftq.FourBit{Type: kernel.NF4, BlockSize: 64}, 1, true},
	} {
		for _, transposed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, transposed %v", c.name, transposed), func(t *testing.T) {
				config, shape := `{"model_type": "llama"}`, []int64{out, in}
				if transposed {
					config, shape = `{"model_type": "gpt2"}`, []int64{in, out}
				}
				dir := numbers(t, config, spec("h.0.mlp.c_fc.weight", tensor.F32, shape...))
				c.l.Rank, c.o.LoftQ = 6, &c.l
				c.l.Moments = nil
				so := loftq.Options{Rank: 6, Iterations: c.l.Iterations, Order: c.l.Order, Scale: c.scale}
				if c.moments {
					c.l.Moments, so.Moments = quant.NewTensorMoments(open(t, moments)), weights
				}
				r := repair(t, dir, c.o, engine.Options{Jobs: 3, Memory: 64 << 20})
				w := floats(t, r.base, "h.0.mlp.c_fc.weight", transposed)
				want, err := loftq.Solve(t.Context(), w, out, in, c.q, so)
				if err != nil {
					t.Fatal(err)
				}
				compareFloats(t, "Q", floats(t, r.q, "h.0.mlp.c_fc.weight", transposed), want.Q)
				key := "base_model.model.h.0.mlp.c_fc"
				compareFloats(t, "A", floats(t, r.adapter.Source, key+".lora_A.weight", false), want.Factors.A.Data)
				compareFloats(t, "B", floats(t, r.adapter.Source, key+".lora_B.weight", false), want.Factors.B.Data)
				if got := r.adapter.Config.ScaleOf("h.0.mlp.c_fc"); got != c.scale {
					t.Errorf("the config's scale is %v, want %v", got, c.scale)
				}
				f := r.figures[0]
				if f.Error != want.Error || f.Plain != want.Baseline() || f.Kept != want.Kept || f.Made != len(want.Iterates)-1 || f.Best != want.BestScale || f.Scale != c.scale || f.Unused != 0 {
					t.Errorf("figures %+v, want those of %+v", f, want.Error)
				}
				judge(t, r, f)
			})
		}
	}
}

// judge looks at both outputs as a stranger would.
func judge(t *testing.T, r repaired, f quant.Repaired) {
	t.Helper()
	got, err := verify.LoftQ(t.Context(), r.base, r.q, r.adapter, engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	m := got.Modules[0]
	// The solver rounds differences to float32: 2^-24 of them, and of 1 for what they
	// are relative to.
	if len(got.Modules) != len(r.figures) || m.Misscaled() || math.Abs(m.Repaired-f.Error.Plain) > 0x1p-23*m.Repaired {
		t.Errorf("verify finds %+v, reported was an error of %v", m, f.Error.Plain)
	}
	if f.Error.Weighted >= f.Plain.Weighted {
		t.Errorf("the error with a pair is %v, plain %v", f.Error, f.Plain)
	}
}

func compareFloats(t *testing.T, what string, got, want []float32) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s has %d elements, want %d", what, len(got), len(want))
	}
	for i, v := range want {
		if got[i] != v {
			t.Fatalf("%s: element %d is %v, want %v", what, i, got[i], v)
		}
	}
}

// TestLoftQModel quantizes a model of which some modules get pairs: the others are what
// plain quantization makes of them, and the config tells the two from each other.
func TestLoftQModel(t *testing.T) {
	var specs []tensor.Spec
	for _, layer := range []string{"0", "1", "2"} {
		for _, name := range []string{"q_proj", "k_proj"} {
			specs = append(specs, spec("model.layers."+layer+".self_attn."+name+".weight", tensor.BF16, 64, 96))
		}
	}
	specs = append(specs, spec("lm_head.weight", tensor.BF16, 70, 96), spec("model.norm.weight", tensor.BF16, 96))
	dir := numbers(t, `{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 3}`, specs...)
	for _, c := range []struct {
		name  string
		l     quant.LoftQ
		pairs []string // q0 is q_proj of layer 0
		list  []string // target_modules
	}{
		{"all", quant.LoftQ{}, []string{"k0", "q0", "k1", "q1", "k2", "q2"}, []string{"k_proj", "q_proj"}},
		{"one kind", quant.LoftQ{Target: []string{"q_proj"}}, []string{"q0", "q1", "q2"}, []string{"q_proj"}},
		{"a layer", quant.LoftQ{Target: []string{"layers.1.*"}}, []string{"k1", "q1"}, []string{"model.layers.1.self_attn.k_proj", "model.layers.1.self_attn.q_proj"}},
		{"not one", quant.LoftQ{Exclude: []string{"layers.1.self_attn.k_proj"}}, []string{"k0", "q0", "q1", "k2", "q2"}, []string{"model.layers.0.self_attn.k_proj", "q_proj", "model.layers.2.self_attn.k_proj"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.l.Rank = 3
			r := repair(t, dir, quant.Options{Type: quant.NF4, LoftQ: &c.l}, engine.Options{})
			var got []string
			for _, f := range r.figures {
				parts := strings.Split(f.Module, ".")
				got = append(got, parts[4][:1]+parts[2])
			}
			if !slices.Equal(got, c.pairs) {
				t.Errorf("pairs of %v, want %v", got, c.pairs)
			}
			config := r.adapter.Source.Config
			if list, err := config.Strings("target_modules"); err != nil || !slices.Equal(list, c.list) {
				t.Errorf("target_modules is %v, want %v (%v)", list, c.list, err)
			}
			if name, _ := config.String("base_model_name_or_path"); name != "q" {
				t.Errorf("the base is called %q", name)
			}
			plain := mustPlan(t, dir, quant.Options{Type: quant.NF4})
			for _, s := range specs {
				module := strings.TrimSuffix(s.Name, ".weight")
				paired := slices.ContainsFunc(r.figures, func(f quant.Repaired) bool { return f.Module == module })
				stored, ok := r.q.Derived(s.Name)
				if !ok {
					continue
				}
				same := slices.Equal(readAll(t, r.plan.View, plainSpec(plain, s.Name)), readAll(t, plain.View, plainSpec(plain, s.Name)))
				if same == paired || stored.Kind != "nf4" {
					t.Errorf("%s: paired %v, codes of a plain quantization %v", s.Name, paired, same)
				}
			}
		})
	}
}

// plainSpec is the spec of the codes of a weight.
func plainSpec(q *quant.Quantization, name string) tensor.Spec {
	for _, s := range q.View.Specs() {
		if s.Name == name {
			return s
		}
	}
	return tensor.Spec{}
}

// TestLoftQNothingLeft gives a weight that is representable, and one of rank 1: the
// product is zero, or has one direction, and can be trained.
func TestLoftQNothingLeft(t *testing.T) {
	const rows, cols = 64, 64
	table := kernel.NF4.Values()
	dir := write(t, `{"model_type": "llama"}`, []tensor.Spec{spec("a.weight", tensor.F32, rows, cols)}, func(_ tensor.Spec, x []float32) {
		for i := range x {
			x[i] = table[(i*7+i/64)%16]
		}
		for i := 0; i < len(x); i += 64 {
			x[i] = 1 // the largest of its block
		}
	})
	r := repair(t, dir, quant.Options{Type: quant.NF4, LoftQ: &quant.LoftQ{Rank: 2}}, engine.Options{})
	f := r.figures[0]
	if f.Kept != 0 || f.Error.Plain != 0 || f.Best != 0 || f.Unused != 2 {
		t.Errorf("figures %+v", f)
	}
	compareFloats(t, "Q", floats(t, r.q, "a.weight", false), floats(t, r.base, "a.weight", false))
	compareFloats(t, "B", floats(t, r.adapter.Source, "base_model.model.a.lora_B.weight", false), make([]float32, rows*2))
	bound, low, high := float32(1/math.Sqrt(cols)), float32(0), float32(0)
	for _, v := range floats(t, r.adapter.Source, "base_model.model.a.lora_A.weight", false) {
		low, high = min(low, v), max(high, v)
	}
	// Of 128 uniform numbers some are in the outer tenths, but for one draw in 500,000.
	if low < -bound || high > bound || low > -0.8*bound || high < 0.8*bound {
		t.Errorf("A is within %v and %v, want PEFT's start within %v", low, high, bound)
	}
	if codes := r.plan.AdapterPlan.Decisions; len(codes) != 1 || codes[0].Code != "pair-of-zero" {
		t.Errorf("decisions %+v", codes)
	}
}

// TestLoftQRefused gives options and statistics that make no sense, and numbers that
// can't be quantized.
func TestLoftQRefused(t *testing.T) {
	const name = "layers.3.q_proj"
	dir := numbers(t, `{"model_type": "llama"}`, spec(name+".weight", tensor.F32, 64, 64))
	stats := func(specs []tensor.Spec, value float32) quant.Moments {
		return quant.NewTensorMoments(open(t, write(t, `{}`, specs, func(_ tensor.Spec, x []float32) {
			for i := range x {
				x[i] = value
			}
		})))
	}
	var option *quant.OptionError
	var input *checkpoint.InputError
	for _, c := range []struct {
		name   string
		o      quant.Options
		l      quant.LoftQ
		target any
		want   string
	}{
		{"no rank", quant.Options{Type: quant.NF4}, quant.LoftQ{}, &option, "rank: "},
		{"far too many iterations", quant.Options{Type: quant.NF4}, quant.LoftQ{Rank: 1, Iterations: 1e6}, &option, "iters: "},
		{"a negative alpha", quant.Options{Type: quant.NF4}, quant.LoftQ{Rank: 1, Alpha: -1}, &option, "alpha: "},
		{"alpha is no number", quant.Options{Type: quant.NF4}, quant.LoftQ{Rank: 1, Alpha: math.NaN()}, &option, "alpha: "},
		{"no such type", quant.Options{Type: "nf5"}, quant.LoftQ{Rank: 1}, &option, "type: "},
		{"widths of int8", quant.Options{Type: quant.Int8}, quant.LoftQ{Rank: 1, Bits: []quant.LayerBits{{To: 5, Bits: 2}}}, &option, "bits: "},
		{"widths of no layer", quant.Options{Type: quant.NF2}, quant.LoftQ{Rank: 1, Bits: []quant.LayerBits{{From: 4, To: 5, Bits: 2}}}, &option, "4-5:2"},
		{"blocks of a uniform type", quant.Options{Type: quant.Uniform2, BlockSize: 64}, quant.LoftQ{Rank: 1}, &option, "blocksize: "},
		{"scales of plain numbers", quant.Options{Type: quant.NF2, DoubleQuant: true}, quant.LoftQ{Rank: 1}, &option, "type: "},
		{"no such target", quant.Options{Type: quant.NF4}, quant.LoftQ{Rank: 1, Target: []string{"proj"}}, &option, "target: "},
		{"no target left", quant.Options{Type: quant.NF4}, quant.LoftQ{Rank: 1, Exclude: []string{"*"}}, &option, "exclude: "},
		{"no statistics of it", quant.Options{Type: quant.NF4}, quant.LoftQ{Rank: 1, Moments: stats([]tensor.Spec{spec("q_proj", tensor.F32, 64)}, 1)}, &input, name},
		{"too few", quant.Options{Type: quant.NF4}, quant.LoftQ{Rank: 1, Moments: stats([]tensor.Spec{spec(name, tensor.F32, 63)}, 1)}, &input, "64 input channels"},
		{"a matrix", quant.Options{Type: quant.NF4}, quant.LoftQ{Rank: 1, Moments: stats([]tensor.Spec{spec(name, tensor.F32, 64, 1)}, 1)}, &input, "shape"},
		{"negative", quant.Options{Type: quant.NF4}, quant.LoftQ{Rank: 1, Moments: stats([]tensor.Spec{spec(name, tensor.F32, 64)}, -1)}, &input, "channel 0"},
		{"all zero", quant.Options{Type: quant.NF4}, quant.LoftQ{Rank: 1, Moments: stats([]tensor.Spec{spec(name, tensor.F32, 64)}, 0)}, &input, "all channels"},
		{"integers", quant.Options{Type: quant.NF4}, quant.LoftQ{Rank: 1, Moments: stats([]tensor.Spec{spec(name, tensor.I64, 64)}, 0)}, &input, "stored as"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.o.LoftQ = &c.l
			_, err := tryRepair(t, dir, c.o, engine.Options{})
			if err == nil || !errors.As(err, c.target) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %T %v, want %q", err, err, c.want)
			}
		})
	}
	for _, value := range []float32{float32(math.NaN()), float32(math.Inf(-1)), 1e38} {
		for _, o := range []quant.Options{{Type: quant.NF4}, {Type: quant.Int8}, {Type: quant.Uniform2}} {
			bad := write(t, `{}`, []tensor.Spec{spec("a.weight", tensor.F32, 64, 64)}, func(_ tensor.Spec, x []float32) {
				for i := range x {
					x[i] = float32(i%5) - 2
				}
				x[70], x[71] = value, -value
			})
			o.LoftQ = &quant.LoftQ{Rank: 1}
			_, err := tryRepair(t, bad, o, engine.Options{})
			if value == 1e38 && o.Type != quant.Int8 {
				if err != nil {
					t.Errorf("%s of %v: %v", o.Type, value, err)
				}
				continue
			}
			if err == nil || !errors.As(err, &input) || !strings.Contains(err.Error(), `"a.weight"`) {
				t.Errorf("%s of %v: error %T %v", o.Type, value, err, err)
			}
		}
	}
}

// TestParseBits reads widths by layer.
func TestParseBits(t *testing.T) {
	got, err := quant.ParseBits("0-15:4,17:3,18-:2")
	want := []quant.LayerBits{{From: 0, To: 15, Bits: 4}, {From: 17, To: 17, Bits: 3}, {From: 18, To: math.MaxInt64, Bits: 2}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"", "4", "0-3", ":4", "0-3:", "3-0:4", "-3:4", "0-3:5", "0-3:1", "0-3:4,3:2", "0-3:4,", "a:4", "0-b:4", "+1:4", "01:4", "0-3:4 ", "99999999999:4", "0-:4,7:2"} {
		var option *quant.OptionError
		if got, err := quant.ParseBits(bad); !errors.As(err, &option) {
			t.Errorf("%q is read as %v, %v", bad, got, err)
		}
	}
}

// TestLoftQStore guards that what an earlier run has found is used by the same
// quantization alone, and that a broken file is computed again.
func TestLoftQStore(t *testing.T) {
	dir := numbers(t, `{"model_type": "llama"}`, spec("a.weight", tensor.F32, 64, 64), spec("b.weight", tensor.F32, 64, 64))
	base := open(t, dir)
	output := filepath.Join(t.TempDir(), "a")
	store := func(rank int, resume bool) (*quant.Repair, *quant.Store) {
		t.Helper()
		r, err := quant.PlanLoftQ(base, quant.Options{Type: quant.NF4, Output: filepath.Join(t.TempDir(), "q"), LoftQ: &quant.LoftQ{Rank: rank, Output: output}})
		if err != nil {
			t.Fatal(err)
		}
		s, err := r.NewStore(fsatomic.OS{}, resume)
		if err != nil {
			t.Fatal(err)
		}
		return r, s
	}
	solve := func(r *quant.Repair, s *quant.Store) []quant.Repaired {
		t.Helper()
		if err := errors.Join(engine.Each(t.Context(), r.Tasks(s), engine.Options{}), r.Use(s)); err != nil {
			t.Fatal(err)
		}
		figures, err := r.Repaired()
		if err != nil {
			t.Fatal(err)
		}
		return figures
	}
	r, first := store(3, false)
	want := solve(r, first)
	for name, broken := range map[string][]byte{"000000.safetensors": {}, "000001.safetensors": []byte("\x02\x00\x00\x00\x00\x00\x00\x00{}")} {
		if err := first.Write(name, broken); err != nil {
			t.Fatal(err)
		}
		r, again := store(3, true)
		if !again.Resumed() || again.Dir() != first.Dir() {
			t.Fatalf("%s is not taken up", first.Dir())
		}
		got := solve(r, again)
		for i := range want {
			if got[i].Error != want[i].Error || got[i].Tensor != want[i].Tensor {
				t.Errorf("with %s broken: %+v, want %+v", name, got[i], want[i])
			}
		}
	}
	if _, other := store(4, true); other.Resumed() {
		t.Error("the pairs of another rank are taken up")
	} else if err := other.Close(); err != nil {
		t.Error(err)
	}
	data, err := first.Read("000001.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := safetensors.New(bytes.NewReader(data), int64(len(data))); err != nil {
		t.Errorf("a file of the store is no safetensors file: %v", err)
	}
	if err := first.Write("000000.safetensors", data); err != nil { // of the other weight
		t.Fatal(err)
	}
	if _, err := r.Repaired(); err == nil {
		t.Error("the pair of another weight is taken")
	}
}
