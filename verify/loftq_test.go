package verify_test

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/quant/block"
	"github.com/loratool/loratool/quant/loftq"
	"github.com/loratool/loratool/verify"
)

// array is a tensor in the making.
type array struct {
	name   string
	dtype  tensor.DType
	shape  tensor.Shape
	values []float64
}

// folder writes a checkpoint folder.
func folder(t *testing.T, weights, config, text string, arrays ...array) string {
	t.Helper()
	var specs []tensor.Spec
	for _, a := range arrays {
		specs = append(specs, tensor.Spec{Name: a.name, DType: a.dtype, Shape: a.shape})
	}
	l, err := safetensors.NewLayout(specs, nil)
	if err != nil {
		t.Fatal(err)
	}
	data := append(l.Header(), make([]byte, l.Size()-int64(len(l.Header())))...)
	for _, a := range arrays {
		codec, _ := block.For(a.dtype)
		off, _ := l.Offset(a.name)
		codec.Encode64(data[off:off+int64(len(a.values))*a.dtype.Bits()/8], a.values)
	}
	dir := t.TempDir()
	for name, content := range map[string][]byte{weights: data, config: []byte(text)} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func openModel(t *testing.T, config string, arrays ...array) *checkpoint.Model {
	t.Helper()
	m, err := checkpoint.Open(folder(t, "model.safetensors", "config.json", config, arrays...), hfrepo.Cache{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func openAdapter(t *testing.T, config string, arrays ...array) *adapter.Adapter {
	t.Helper()
	m, err := checkpoint.OpenAdapter(folder(t, "adapter_model.safetensors", "adapter_config.json", config, arrays...), hfrepo.Cache{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	a, err := adapter.Open(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// repaired is a weight of 40 x 72, quantized to NF4 in blocks of 32, and the pair of
// rank 5 that Solve makes for it and a scale.
type repaired struct{ w, q, a, b array }

const (
	sideOut, sideIn, pairRank = 40, 72, 5
	layer                     = "model.layers.0.self_attn.q_proj"
)

func repair(t *testing.T, o loftq.Options, d tensor.DType) repaired {
	t.Helper()
	rng := rand.New(rand.NewPCG(3, 4))
	x := make([]float32, sideOut*sideIn)
	for i := range x {
		x[i] = float32(rng.NormFloat64())
	}
	o.Rank = pairRank
	r, err := loftq.Solve(t.Context(), x, sideOut, sideIn, loftq.FourBit{Type: kernel.NF4, BlockSize: 32}, o)
	if err != nil {
		t.Fatal(err)
	}
	key := "base_model.model." + layer + ".lora_"
	return repaired{
		array{layer + ".weight", tensor.F32, tensor.Shape{sideOut, sideIn}, widen(x)},
		array{layer + ".weight", tensor.F32, tensor.Shape{sideOut, sideIn}, widen(r.Q)},
		array{key + "A.weight", d, tensor.Shape{pairRank, sideIn}, widen(r.Factors.A.Data)},
		array{key + "B.weight", d, tensor.Shape{sideOut, pairRank}, widen(r.Factors.B.Data)},
	}
}

func widen(x []float32) []float64 {
	y := make([]float64, len(x))
	for i, v := range x {
		y[i] = float64(v)
	}
	return y
}

// transpose turns an array around.
func transpose(a array) array {
	rows, cols := int(a.shape[0]), int(a.shape[1])
	y := make([]float64, len(a.values))
	for i := range rows {
		for j := range cols {
			y[j*rows+i] = a.values[i*cols+j]
		}
	}
	a.values, a.shape = y, tensor.Shape{a.shape[1], a.shape[0]}
	return a
}

// rounded are the values as they are stored.
func (a array) rounded() []float64 {
	codec, _ := block.For(a.dtype)
	raw := make([]byte, len(a.values)*int(a.dtype.Bits()/8))
	codec.Encode64(raw, a.values)
	y := make([]float64, len(a.values))
	codec.Decode64(y, raw)
	return y
}

// slowFigures computes what LoftQ does from the definition, and the limit with the
// roundoff of the factors and of Q.
func (r repaired) slowFigures(scale float64) (quantized, left, best, limit float64) {
	a, b := r.a.rounded(), r.b.rounded()
	w, q := r.w.rounded(), r.q.rounded()
	var ww, qq, rr, ee, rp, pp float64
	for i := range sideOut {
		for j := range sideIn {
			p := 0.0
			for k := range pairRank {
				p += b[i*pairRank+k] * a[k*sideIn+j]
			}
			v := w[i*sideIn+j]
			d := v - q[i*sideIn+j]
			qq += q[i*sideIn+j] * q[i*sideIn+j]
			ww, rr, rp, pp = ww+v*v, rr+d*d, rp+d*p, pp+p*p
			ee += (d - scale*p) * (d - scale*p)
		}
	}
	u, n := roundoff[r.a.dtype], scale*norm(a)*norm(b)
	full := scale * math.Sqrt(pp)
	limit = (2*u+u*u)*n*(math.Sqrt(rr)+full)/(full*full) + roundoff[r.q.dtype]*math.Sqrt(qq)/full + sideOut*math.Sqrt(rr)/full/(1<<24)
	return math.Sqrt(rr / ww), math.Sqrt(ee / ww), rp / pp, limit
}

// roundoff is half the distance of the numbers above 1.
var roundoff = map[tensor.DType]float64{tensor.BF16: 1.0 / 256, tensor.F16: 1.0 / 2048, tensor.F32: 1.0 / (1 << 24)}

func norm(x []float64) float64 {
	sum := 0.0
	for _, v := range x {
		sum += v * v
	}
	return math.Sqrt(sum)
}

func loraConfig(alpha float64, more string) string {
	return fmt.Sprintf(`{"peft_type": "LORA", "r": %d, "lora_alpha": %g, "target_modules": ".*(q_proj|c_fc)"%s}`, pairRank, alpha, more)
}

// near allows for sums of a few thousand float64 products in another order.
func near(a, b float64) bool { return math.Abs(a-b) <= 1e-12*math.Abs(b) }

// TestLoftQ compares with the definition, and tells pairs for the scale that they are
// applied with from pairs for another: factors of PEFT's loftq_init are for 1.
func TestLoftQ(t *testing.T) {
	moments := make([]float64, sideIn)
	for j := range moments {
		moments[j] = float64(1 + j%7)
	}
	for _, c := range []struct {
		name    string
		options loftq.Options // what the pair is made for
		factors tensor.DType
		stored  tensor.DType // of Q
		alpha   float64
		more    string
		wrong   bool
	}{
		{name: "for alpha = rank", alpha: pairRank},
		{name: "for 2", options: loftq.Options{Scale: 2}, alpha: 2 * pairRank},
		{name: "for 1, applied with 2", alpha: 2 * pairRank, wrong: true},
		{name: "for 1, applied with 1/4", alpha: pairRank / 4.0, wrong: true},
		{name: "for 1/4", options: loftq.Options{Scale: 0.25}, alpha: pairRank / 4.0},
		{name: "rsLoRA", options: loftq.Options{Scale: 3 / math.Sqrt(pairRank)}, alpha: 3, more: `, "use_rslora": true`},
		{name: "for rsLoRA, applied without", options: loftq.Options{Scale: 3 / math.Sqrt(pairRank)}, alpha: 3, wrong: true},
		{name: "as PEFT leaves it", alpha: 16, more: `, "init_lora_weights": "loftq"`, wrong: true},
		{name: "singular vectors first", options: loftq.Options{Order: loftq.SVDFirst}, alpha: pairRank},
		{name: "weighted", options: loftq.Options{Moments: moments}, alpha: pairRank},
		{name: "factors in BF16", factors: tensor.BF16, alpha: pairRank},
		{name: "factors in BF16, applied with 2", factors: tensor.BF16, alpha: 2 * pairRank, wrong: true},
		{name: "factors and weighted in F16", factors: tensor.F16, options: loftq.Options{Moments: moments, Scale: 2}, alpha: 2 * pairRank},
		{name: "Q in BF16", stored: tensor.BF16, alpha: pairRank},
		{name: "Q in BF16, applied with 1/2", stored: tensor.BF16, alpha: pairRank / 2.0, wrong: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.factors == tensor.NoDType {
				c.factors = tensor.F32
			}
			r := repair(t, c.options, c.factors)
			if c.stored != tensor.NoDType {
				r.q.dtype = c.stored
			}
			got := check(t, `{"model_type": "llama"}`, r.w, r.q, openAdapter(t, loraConfig(c.alpha, c.more), r.a, r.b))
			scale := c.alpha / pairRank
			if strings.Contains(c.more, "rslora") {
				scale = c.alpha / math.Sqrt(pairRank)
			}
			quantized, left, best, limit := r.slowFigures(scale)
			if !near(got.Quantized, quantized) || !near(got.Repaired, left) || !near(got.BestScale, best) || !near(got.Scale, scale) || !near(got.Limit, limit) {
				t.Errorf("figures %+v, want errors %v and %v, scales %v and %v, limit %v", got, quantized, left, scale, best, limit)
			}
			_, least, _, _ := r.slowFigures(best)
			// A difference of squares: two roundings of 1, under a root of 0.005.
			if math.Abs(got.Attainable-least) > 1e-13 {
				t.Errorf("attainable is %v, want %v", got.Attainable, least)
			}
			if got.Rank != pairRank || got.Stored != r.q.dtype.String() {
				t.Errorf("rank %d, stored as %s", got.Rank, got.Stored)
			}
			if got.Misscaled() != c.wrong {
				t.Errorf("misscaled is %v: best scale %v, applied with %v, limit %v", got.Misscaled(), got.BestScale, got.Scale, got.Limit)
			}
		})
	}
}

// check runs LoftQ on a base and a quantized model of one tensor, with several jobs
// and little memory, and with one: the figures are the same.
func check(t *testing.T, config string, w, q array, a *adapter.Adapter) verify.LoftQModule {
	t.Helper()
	var first verify.LoftQModule
	for i, o := range []engine.Options{{Jobs: 1}, {Jobs: 3, Memory: 64 << 10}} {
		r, err := verify.LoftQ(t.Context(), openModel(t, config, w), openModel(t, config, q), a, o)
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Modules) != 1 || len(r.Others) != 0 || r.Quantized != r.Modules[0].Quantized || r.Repaired != r.Modules[0].Repaired {
			t.Fatalf("result %+v", r)
		}
		if m := r.Modules[0]; i == 0 {
			first = m
		} else if m.Shape.String() != first.Shape.String() || m.Quantized != first.Quantized || m.Repaired != first.Repaired || m.BestScale != first.BestScale || m.Limit != first.Limit {
			t.Errorf("with other jobs and memory: %+v, before %+v", m, first)
		}
	}
	return first
}

// TestLoftQTransposed finds the same for a layer that is stored as (in, out).
func TestLoftQTransposed(t *testing.T) {
	r := repair(t, loftq.Options{Scale: 2}, tensor.F32)
	quantized, left, best, _ := r.slowFigures(2)
	for _, x := range []*array{&r.w, &r.q, &r.a, &r.b} {
		x.name = strings.Replace(x.name, layer, "transformer.h.0.mlp.c_fc", 1)
	}
	a := openAdapter(t, loraConfig(2*pairRank, `, "fan_in_fan_out": true`), r.a, r.b)
	got := check(t, `{"model_type": "gpt2"}`, transpose(r.w), transpose(r.q), a)
	if !near(got.Quantized, quantized) || !near(got.Repaired, left) || !near(got.BestScale, best) || got.Misscaled() {
		t.Errorf("figures %+v, want errors %v and %v, best scale %v", got, quantized, left, best)
	}
}

// TestLoftQLimit measures how much of the limit rounding uses: the worst over many
// pairs stays inside, and is not lost in it.
func TestLoftQLimit(t *testing.T) {
	for _, d := range []tensor.DType{tensor.BF16, tensor.F16} {
		worst := 0.0
		for scale := 0.25; scale < 5; scale *= 1.37 {
			r := repair(t, loftq.Options{Scale: scale}, d)
			a := openAdapter(t, loraConfig(scale*pairRank, ""), r.a, r.b)
			got := check(t, `{"model_type": "llama"}`, r.w, r.q, a)
			worst = max(worst, math.Abs(got.BestScale/got.Scale-1)/got.Limit)
		}
		// Roundings are independent, the limit lets them all be the largest and point
		// one way: over some hundred of them that is far, but not a thousand times.
		if worst > 1 || worst < 1e-4 {
			t.Errorf("%s: rounding uses %v of the limit", d, worst)
		}
	}
}

// TestLoftQRefused names what can't be compared.
func TestLoftQRefused(t *testing.T) {
	const llama = `{"model_type": "llama"}`
	r := repair(t, loftq.Options{}, tensor.F32)
	other := func(a array, change func(*array)) array {
		a.values = append([]float64(nil), a.values...)
		change(&a)
		return a
	}
	nan := func(a *array) { a.values[77] = math.NaN() }
	magnitude := array{"base_model.model." + layer + ".lora_magnitude_vector", tensor.F32, tensor.Shape{sideOut}, make([]float64, sideOut)}
	norm := array{"model.norm.weight", tensor.F32, tensor.Shape{4}, make([]float64, 4)}
	saved := other(norm, func(a *array) { a.name = "base_model.model.model.norm.weight" })
	var input *checkpoint.InputError
	var scope *verify.ScopeError
	var misfit *adapter.MismatchError
	for _, c := range []struct {
		name    string
		w, q    []array
		adapter *adapter.Adapter
		want    string
		target  any
	}{
		{"another shape", []array{transpose(r.w)}, []array{r.q}, openAdapter(t, loraConfig(5, ""), r.a, r.b), "has shape", &input},
		{"no such tensor", []array{norm}, []array{r.q, norm}, openAdapter(t, loraConfig(5, ""), r.a, r.b), "there is no tensor", &input},
		{"NaN in W", []array{other(r.w, nan)}, []array{r.q}, openAdapter(t, loraConfig(5, ""), r.a, r.b), "not finite", &input},
		{"NaN in Q", []array{r.w}, []array{other(r.q, nan)}, openAdapter(t, loraConfig(5, ""), r.a, r.b), "not finite", &input},
		{"NaN in A", []array{r.w}, []array{r.q}, openAdapter(t, loraConfig(5, ""), other(r.a, nan), r.b), "not finite", &misfit},
		{"FP8", []array{other(r.w, func(a *array) { a.dtype = tensor.F8E4M3 })}, []array{r.q}, openAdapter(t, loraConfig(5, ""), r.a, r.b), "FP8", &scope},
		{"alpha 0", []array{r.w}, []array{r.q}, openAdapter(t, loraConfig(0, ""), r.a, r.b), "alpha of 0", &scope},
		{"DoRA", []array{r.w}, []array{r.q}, openAdapter(t, loraConfig(5, `, "use_dora": true`), r.a, r.b, magnitude), "dora", &scope},
		{"no pair", []array{norm}, []array{norm}, openAdapter(t, `{"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": [], "modules_to_save": ["norm"]}`, saved), "no pair", &input},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := verify.LoftQ(t.Context(), openModel(t, llama, c.w...), openModel(t, llama, c.q...), c.adapter, engine.Options{})
			if err == nil {
				t.Fatalf("it gave %+v", got)
			}
			if !errors.As(err, c.target) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %T %v, want %q in a %T", err, err, c.want, c.target)
			}
		})
	}
}

// TestLoftQOthers says what was not looked at, and leaves what has no product alone.
func TestLoftQOthers(t *testing.T) {
	r := repair(t, loftq.Options{}, tensor.F32)
	clear(r.b.values)
	norm := array{"model.norm.weight", tensor.F32, tensor.Shape{4}, make([]float64, 4)}
	saved := norm
	saved.name = "base_model.model.model.norm.weight"
	a := openAdapter(t, loraConfig(pairRank, `, "modules_to_save": ["norm"]`), r.a, r.b, saved)
	m := openModel(t, `{"model_type": "llama"}`, r.q, norm)
	got, err := verify.LoftQ(t.Context(), openModel(t, `{"model_type": "llama"}`, r.w, norm), m, a, engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Others) != 1 || got.Others[0] != norm.name {
		t.Errorf("others are %v", got.Others)
	}
	if m := got.Modules[0]; m.BestScale != 0 || m.Misscaled() || m.Repaired != m.Quantized || m.Attainable != m.Quantized {
		t.Errorf("a product of 0 has the figures %+v", m)
	}
}
