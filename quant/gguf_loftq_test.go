package quant_test

import (
	"errors"
	"math"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/quant/block"
	"github.com/loratool/loratool/quant/loftq"
	"github.com/loratool/loratool/quant/mix"
)

// goldenQuant has a GGUF model of one layer, and an importance matrix of it.
const goldenQuant = "../testdata/golden/ggufquant/"

// ggufRepaired is what a quantization of a GGUF model with pairs wrote.
type ggufRepaired struct {
	plan    *quant.GGUFRepair
	figures []quant.Repaired
	base, q *checkpoint.Model
	adapter *adapter.Adapter
}

func repairGGUF(t *testing.T, o quant.GGUFOptions, e engine.Options) (r ggufRepaired, err error) {
	t.Helper()
	r.base = open(t, goldenQuant+"source-f16.gguf")
	l := *o.LoftQ
	o.LoftQ = &l
	o.Output, l.Output = filepath.Join(t.TempDir(), "q.gguf"), filepath.Join(t.TempDir(), "a.gguf")
	if r.plan, err = quant.PlanGGUFLoftQ(r.base, o); err != nil {
		return r, err
	}
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
	for _, out := range []quant.Output{first(r.plan.Outputs()), second(r.plan.Outputs())} {
		s, err := checkpoint.Create(fsatomic.OS{}, out.Layout, false)
		if err != nil {
			return r, err
		}
		report, err := engine.Run(t.Context(), out.Plan, []engine.Source{out.Source}, sink{s}, e)
		if err != nil {
			return r, errors.Join(err, s.Abort())
		}
		metadata, _ := r.plan.SetHashes(report.Hashes)
		if err := checkpoint.CommitAll(checkpoint.Finished{Sink: s, Metadata: metadata}); err != nil {
			return r, err
		}
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

func first(a, _ quant.Output) quant.Output  { return a }
func second(_, b quant.Output) quant.Output { return b }

// What is written is what the solver gives for each weight, to the bit, of every kind of
// type and with both matrices; a stranger who merges the adapter in float64 finds the
// error of the report, smaller than that of a plain quantization, and no scale that is
// better than the one that llama.cpp applies.
func TestGGUFLoftQ(t *testing.T) {
	matrix, err := gguf.OpenImatrix(goldenQuant + "imatrix-legacy.dat")
	if err != nil {
		t.Fatal(err)
	}
	defer matrix.Close()
	for _, c := range []struct {
		kind   string
		l      quant.LoftQ
		matrix bool // for the quantizer
		stats  bool
	}{
		{"q4_k_m", quant.LoftQ{Rank: 8}, false, false},
		{"q4_0", quant.LoftQ{Rank: 6, Alpha: 15, Order: loftq.SVDFirst, Iterations: 2}, false, false},
		{"q2_k", quant.LoftQ{Rank: 8, Alpha: 0.1}, true, false},
		{"iq4_xs", quant.LoftQ{Rank: 5}, true, true},
		{"q8_0", quant.LoftQ{Rank: 4, Iterations: 1}, false, true},
	} {
		t.Run(c.kind, func(t *testing.T) {
			kind, err := mix.ParseFileType(c.kind)
			if err != nil {
				t.Fatal(err)
			}
			o := quant.GGUFOptions{Mix: mix.Options{Type: kind}, LoftQ: &c.l}
			if c.matrix {
				o.Matrix, o.MatrixName, o.MatrixIdentity = matrix, goldenQuant+"imatrix-legacy.dat", "this file"
			}
			base := open(t, goldenQuant+"source-f16.gguf")
			moments, err := quant.NewMatrixMoments(matrix, goldenQuant+"imatrix-legacy.dat", "this file", base)
			if err != nil {
				t.Fatal(err)
			}
			if c.stats {
				c.l.Moments = moments
			}
			r, err := repairGGUF(t, o, engine.Options{Jobs: 3, Memory: 64 << 20})
			if err != nil {
				t.Fatal(err)
			}
			if len(r.figures) != 7 || len(r.adapter.Modules) != 7 {
				t.Fatalf("%d pairs, %d in the file", len(r.figures), len(r.adapter.Modules))
			}
			for i, f := range r.figures {
				so := loftq.Options{Rank: c.l.Rank, Iterations: c.l.Iterations, Order: c.l.Order, Scale: f.Scale}
				if c.stats {
					if so.Moments, err = moments.Of(f.Module, f.Shape[1]); err != nil {
						t.Fatal(err)
					}
				}
				checkGGUFPair(t, r, i, so, o.Matrix)
			}
		})
	}
}

// checkGGUFPair looks at one weight.
func checkGGUFPair(t *testing.T, r ggufRepaired, i int, so loftq.Options, matrix *gguf.Imatrix) {
	t.Helper()
	f := r.figures[i]
	out, in := int(f.Shape[0]), int(f.Shape[1])
	stored, _ := r.q.GGUF().Lookup(f.Tensor)
	q := loftq.GGML{Type: block.GGML(stored.Type)}
	if matrix != nil && q.Type.Weighted() {
		var err error
		if q.Weights, err = matrix.Weights(f.Tensor); err != nil {
			t.Fatal(err)
		}
	}
	w := floats(t, r.base, f.Tensor, false)
	want, err := loftq.Solve(t.Context(), w, out, in, q, so)
	if err != nil {
		t.Fatal(err)
	}
	got := floats(t, r.q, f.Tensor, false)
	a := floats(t, r.adapter.Source, f.Tensor+".lora_a", false)
	b := floats(t, r.adapter.Source, f.Tensor+".lora_b", false)
	compareFloats(t, f.Tensor, got, want.Q)
	compareFloats(t, f.Tensor+".lora_a", a, want.Factors.A.Data)
	compareFloats(t, f.Tensor+".lora_b", b, want.Factors.B.Data)

	pair, err := r.adapter.PairOf(r.adapter.Modules[i])
	if err != nil {
		t.Fatal(err)
	}
	if pair.Scale != f.Scale || r.adapter.Modules[i].Name != f.Tensor {
		t.Errorf("%s: the file has %s with scale %v, want %v", f.Tensor, r.adapter.Modules[i].Name, pair.Scale, f.Scale)
	}
	var norm, left, along, product float64
	for y := range out {
		for x := range in {
			sum := 0.0
			for k := range so.Rank {
				sum += float64(b[y*so.Rank+k]) * float64(a[k*in+x])
			}
			base, off := float64(w[y*in+x]), float64(w[y*in+x])-float64(got[y*in+x])
			norm += base * base
			left += (off - pair.Scale*sum) * (off - pair.Scale*sum)
			along += off * sum
			product += sum * sum
		}
	}
	// The solver measures in float32, relative to W: each of its differences is off by a
	// few units of 2^-24 of W, and the errors are above 2^-10 of it.
	if e := math.Sqrt(left / norm); math.Abs(e-f.Error.Plain) > 1e-3*e {
		t.Errorf("%s: relative error %v, the report says %v", f.Tensor, e, f.Error.Plain)
	}
	if so.Moments == nil {
		if f.Error.Plain >= f.Plain.Plain {
			t.Errorf("%s: error %v, plain quantization %v", f.Tensor, f.Error.Plain, f.Plain.Plain)
		}
		// A truncated decomposition is orthogonal to what it leaves: an exact c* is 1. The
		// rounding of the factors, 2^-24 of them, and of W - Q changes it by far less than this,
		// a rank that is not divided by, or an alpha, by factors.
		if best := along / product / pair.Scale; math.Abs(best-1) > 1e-4 {
			t.Errorf("%s: best at %v of the scale", f.Tensor, best)
		}
	} else if f.Error.Weighted >= f.Plain.Weighted {
		t.Errorf("%s: weighted error %v, plain quantization %v", f.Tensor, f.Error.Weighted, f.Plain.Weighted)
	}
}

// What gets no pair has the bytes of a plain quantization; names choose.
func TestGGUFLoftQChoice(t *testing.T) {
	o := quant.GGUFOptions{Mix: mix.Options{Type: mix.Q4_0}, LoftQ: &quant.LoftQ{Rank: 4, Target: []string{"attn_*"}, Exclude: []string{"blk.0.attn_v"}}, Version: "1"}
	r, err := repairGGUF(t, o, engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	o.Output = filepath.Join(t.TempDir(), "plain.gguf")
	plain, err := quant.PlanGGUF(r.base, o)
	if err != nil {
		t.Fatal(err)
	}
	var differ []string
	for _, s := range plain.View.Specs() {
		if string(readAll(t, plain.View, s)) != string(readAll(t, r.plan.View, s)) {
			differ = append(differ, s.Name)
		}
	}
	if got := strings.Join(differ, " "); got != "blk.0.attn_k.weight blk.0.attn_output.weight blk.0.attn_q.weight" {
		t.Errorf("other bytes than plain: %s", got)
	}
	for _, m := range []*checkpoint.Model{r.q, r.adapter.Source} {
		if text, err := m.GGUF().Metadata().Text("loratool"); err != nil || !strings.Contains(text, `"sha256"`) {
			t.Errorf("provenance %q, %v", text, err)
		}
	}
}

// Options that a GGUF adapter has no place for, or that leave nothing to do.
func TestGGUFLoftQRefused(t *testing.T) {
	for name, c := range map[string]struct {
		l    quant.LoftQ
		kind mix.FileType
		want string
	}{
		"no rank":        {quant.LoftQ{}, mix.Q4_0, "rank: "},
		"rslora":         {quant.LoftQ{Rank: 4, RSLoRA: true}, mix.Q4_0, "rslora: "},
		"widths":         {quant.LoftQ{Rank: 4, Bits: []quant.LayerBits{{Bits: 2}}}, mix.Q4_0, "bits: "},
		"alpha":          {quant.LoftQ{Rank: 4, Alpha: -1}, mix.Q4_0, "alpha: "},
		"no such weight": {quant.LoftQ{Rank: 4, Target: []string{"q_proj"}}, mix.Q4_0, `target: "q_proj"`},
		"no such other":  {quant.LoftQ{Rank: 4, Exclude: []string{"output"}}, mix.Q4_0, `exclude: "output"`},
		"none left":      {quant.LoftQ{Rank: 4, Exclude: []string{"*"}}, mix.Q4_0, "loftq: "},
		"none quantized": {quant.LoftQ{Rank: 4}, mix.F16, "loftq: "},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := repairGGUF(t, quant.GGUFOptions{Mix: mix.Options{Type: c.kind}, LoftQ: &c.l}, engine.Options{})
			var option *quant.OptionError
			if !errors.As(err, &option) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %T %v, want %q", err, err, c.want)
			}
		})
	}
}

// A run goes on from what an earlier one of the same quantization found, and of no other:
// it has other types, another scale or another importance matrix.
func TestGGUFLoftQStore(t *testing.T) {
	base, output := open(t, goldenQuant+"source-f16.gguf"), filepath.Join(t.TempDir(), "a.gguf")
	matrix, err := gguf.OpenImatrix(goldenQuant + "imatrix-legacy.dat")
	if err != nil {
		t.Fatal(err)
	}
	defer matrix.Close()
	store := func(change func(*quant.GGUFOptions)) (*quant.GGUFRepair, *quant.Store) {
		t.Helper()
		o := quant.GGUFOptions{Output: "q.gguf", Mix: mix.Options{Type: mix.Q4_0}, Matrix: matrix, MatrixName: "m", MatrixIdentity: "m 1"}
		o.LoftQ = &quant.LoftQ{Rank: 2, Iterations: 1, Output: output, Target: []string{"attn_k", "attn_v"}}
		change(&o)
		r, err := quant.PlanGGUFLoftQ(base, o)
		if err != nil {
			t.Fatal(err)
		}
		s, err := r.NewStore(fsatomic.OS{}, true)
		if err != nil {
			t.Fatal(err)
		}
		return r, s
	}
	r, s := store(func(*quant.GGUFOptions) {})
	tasks := r.Tasks(s)
	if s.Resumed() || len(tasks) != 2 {
		t.Fatalf("%d tasks, resumed %v", len(tasks), s.Resumed())
	}
	if err := tasks[0].Do(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	before, err := s.Read("000000.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*quant.GGUFOptions){
		"type":   func(o *quant.GGUFOptions) { o.Mix.Type = mix.Q8_0 },
		"alpha":  func(o *quant.GGUFOptions) { o.LoftQ.Alpha = 8 },
		"matrix": func(o *quant.GGUFOptions) { o.MatrixIdentity = "m 2" },
	} {
		if _, other := store(change); other.Resumed() {
			t.Errorf("the pairs of another %s are taken up", name)
		} else if err := other.Close(); err != nil {
			t.Error(err)
		}
	}
	r, again := store(func(*quant.GGUFOptions) {})
	if !again.Resumed() {
		t.Fatal("the store is not taken up")
	}
	if err := engine.Each(t.Context(), r.Tasks(again), engine.Options{}); err != nil {
		t.Fatal(err)
	}
	if after, err := again.Read("000000.safetensors"); err != nil || string(after) != string(before) {
		t.Errorf("what was found is another: %v", err)
	}
	if err := r.Use(again); err != nil {
		t.Fatal(err)
	}
	figures, err := r.Repaired()
	if err != nil || len(figures) != 2 || !(figures[1].Error.Plain < figures[1].Plain.Plain) {
		t.Errorf("figures %+v, %v", figures, err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}
