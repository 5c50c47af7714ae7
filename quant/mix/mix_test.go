package mix_test

import (
	"errors"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/quant/mix"
)

// spec returns a tensor of the given sizes, outermost first.
func spec(name string, t gguf.Type, shape ...int64) gguf.Spec {
	return gguf.Spec{Name: name, Type: t, Shape: shape}
}

// ptr returns a pointer to a type.
func ptr(t gguf.Type) *gguf.Type { return &t }

var small = mix.Model{Arch: "llama", Layers: 1, Heads: 4, HeadsKV: 4}

// Every reason has its tensor, and says why in words.
func TestReasons(t *testing.T) {
	override, err := mix.ParseOverride("special=q5_1")
	if err != nil {
		t.Fatal(err)
	}
	q4 := mix.Options{Type: mix.Q4KM, Overrides: []mix.Override{override}}
	for _, c := range []struct {
		tensor gguf.Spec
		o      mix.Options
		to     gguf.Type
		reason mix.Reason
		why    string
	}{
		{spec("a.weight", gguf.F16, 256), q4, gguf.F16, mix.Vector, "only matrices"},
		{spec("a.weight", gguf.F16, 1, 256), q4, gguf.F16, mix.Vector, "only matrices"},
		{spec("a.bias", gguf.F16, 2, 256), q4, gguf.F16, mix.NotWeight, `"weight"`},
		{spec("a_norm.weight", gguf.F16, 2, 256), q4, gguf.F16, mix.Norm, "norms"},
		{spec("blk.0.ffn_gate_inp.weight", gguf.F32, 2, 256), q4, gguf.F32, mix.Router, "experts"},
		{spec("position_embd.weight", gguf.F32, 2, 256), q4, gguf.F32, mix.Position, "positions"},
		{spec("blk.0.ssm_conv1d.weight", gguf.F32, 2, 256), q4, gguf.F32, mix.Small, "convolution"},
		{spec("output.weight", gguf.F16, 2, 256), mix.Options{Type: mix.Q8_0, LeaveOutput: true}, gguf.F16, mix.LeftAlone, "left as it is"},
		{spec("a.weight", gguf.F16, 2, 256), mix.Options{Type: mix.Copy}, gguf.F16, mix.Copied, "copied"},
		{spec("a.weight", gguf.F16, 2, 256), q4, gguf.Q4K, mix.Base, "Q4_K_M"},
		{spec("a.weight", gguf.F32, 2, 256), mix.Options{}, gguf.F32, mix.Base, "F32"},
		{spec("blk.0.attn_v.weight", gguf.F16, 2, 256), q4, gguf.Q6K, mix.Recipe, "attention values in the first and last eighth of the blocks and every third between"},
		{spec("token_embd.weight", gguf.F16, 2, 256), q4, gguf.Q6K, mix.Recipe, "the token embedding, which is the output matrix too"},
		{spec("blk.0.attn_v.weight", gguf.F16, 2, 256), mix.Options{Type: mix.Q4KM, Pure: true}, gguf.Q4K, mix.Pure, "Q4_K_M without its recipe"},
		{spec("special.weight", gguf.F16, 2, 256), q4, gguf.Q5_1, mix.Overridden, `named by "special=q5_1"`},
		{spec("output.weight", gguf.F16, 2, 256), mix.Options{Type: mix.Q8_0, OutputType: ptr(gguf.F32)}, gguf.F32, mix.OutputType, "chosen for the output matrix"},
		{spec("token_embd.weight", gguf.F16, 2, 256), mix.Options{Type: mix.Q8_0, OutputType: ptr(gguf.F32)}, gguf.F32, mix.OutputType, "which the token embedding is too"},
		{spec("token_embd.weight", gguf.F16, 2, 256), mix.Options{Type: mix.Q8_0, EmbeddingType: ptr(gguf.F32)}, gguf.F32, mix.EmbeddingType, "chosen for token embeddings"},
		{spec("blk.0.attn_v.weight", gguf.F16, 2, 96), q4, gguf.Q8_0, mix.Fallback, "q8_0 instead of q6_K (attention values in the first"},
		{spec("a.weight", gguf.F16, 2, 100), q4, gguf.F16, mix.Fallback, "f16 instead of q4_K (Q4_K_M): rows of 100 are not whole blocks of 256"},
	} {
		plan, err := mix.Plan(small, []gguf.Spec{c.tensor}, c.o)
		if err != nil {
			t.Errorf("%s: %v", c.tensor.Name, err)
			continue
		}
		d := plan.Decisions[0]
		if d.Name != c.tensor.Name || d.From != c.tensor.Type || d.To != c.to || d.Reason != c.reason || !strings.Contains(d.Why, c.why) {
			t.Errorf("%s %s: %+v, want %s, %s: %s", c.tensor.Name, c.tensor.Shape, d, c.to, c.reason, c.why)
		}
		if d.Quantize() != (d.From != d.To) || (d.Wanted != d.To) != (d.Reason == mix.Fallback) {
			t.Errorf("%s: inconsistent: %+v", c.tensor.Name, d)
		}
	}
}

// An error names the first tensor, and the plan is there all the same.
func TestRefusalError(t *testing.T) {
	tensors := []gguf.Spec{
		spec("blk.0.ffn_up.weight", gguf.F16, 2, 256), spec("blk.0.x.weight", gguf.Q4_0, 2, 256), spec("blk.0.y.weight", gguf.I32, 2, 256),
	}
	plan, err := mix.Plan(small, tensors, mix.Options{Type: mix.IQ2XS})
	var refused *mix.RefusalError
	if !errors.As(err, &refused) || len(refused.Refusals) != 3 || plan == nil || len(plan.Decisions) != 3 {
		t.Fatalf("%v, %v", plan, err)
	}
	if want := `tensor "blk.0.ffn_up.weight": iq2_xs needs an importance matrix (and 2 more)`; err.Error() != want {
		t.Errorf("%s, want %s", err, want)
	}
	if plan.Decisions[2].To != gguf.IQ2XS {
		t.Errorf("planned %s", plan.Decisions[2].To)
	}
	long := strings.Repeat("n", 500) + ".weight"
	_, err = mix.Plan(small, []gguf.Spec{spec(long, gguf.I32, 2, 256)}, mix.Options{Type: mix.Q8_0})
	if want := `tensor "` + long[:128] + `"...: i32 can't be converted to q8_0`; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

// Weights of the matrix are used if they fit; what does not is told or refused.
func TestWeights(t *testing.T) {
	tensors := []gguf.Spec{
		spec("token_embd.weight", gguf.F16, 9, 256), spec("blk.0.ffn_up.weight", gguf.F16, 2, 256),
		spec("blk.0.ffn_up_exps.weight", gguf.F16, 3, 2, 256), spec("blk.0.attn_norm.weight", gguf.F32, 256), spec("blk.0.x.weight", gguf.F16, 2, 256),
	}
	matrix := map[string]int64{"token_embd.weight": 9, "blk.0.ffn_up.weight": 256, "blk.0.ffn_up_exps.weight": 768, "blk.0.attn_norm.weight": 256}
	plan, err := mix.Plan(small, tensors, mix.Options{Type: mix.Q4KM, Matrix: matrix})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{false, true, true, false, false} {
		if plan.Decisions[i].Weights != want {
			t.Errorf("%s: weights %v", tensors[i].Name, plan.Decisions[i].Weights)
		}
	}
	want := []mix.Warning{
		{Code: mix.WarnWeightsSize, Tensor: "token_embd.weight", Text: "the importance matrix has 9 weights for 256 columns"},
		{Code: mix.WarnNoWeights, Tensor: "blk.0.x.weight", Text: "the importance matrix has no weights for it"},
	}
	if !slices.Equal(plan.Warnings, want) {
		t.Errorf("warnings %q, want %q", plan.Warnings, want)
	}
	for _, n := range []int64{0, 1, 255, 257, 512, -256, 1 << 62} {
		matrix["blk.0.ffn_up.weight"] = n
		_, err := mix.Plan(small, tensors, mix.Options{Type: mix.Q4KM, Matrix: matrix})
		var refused *mix.RefusalError
		if !errors.As(err, &refused) || len(refused.Refusals) != 1 || refused.Refusals[0].Rule != mix.WrongMatrix {
			t.Errorf("%d weights for 256 columns: %v", n, err)
		}
	}
}

// Options without effect are told, others are not.
func TestNoEffect(t *testing.T) {
	override, err := mix.ParseOverride("attn_v=q8_0")
	if err != nil {
		t.Fatal(err)
	}
	tied := []gguf.Spec{spec("token_embd.weight", gguf.F16, 2, 256)}
	full := append(tied, spec("output.weight", gguf.F16, 2, 256), spec("blk.0.attn_v.weight", gguf.F16, 2, 256))
	for _, c := range []struct {
		name    string
		tensors []gguf.Spec
		o       mix.Options
		told    bool
	}{
		{"no options", full, mix.Options{Type: mix.Q4KM}, false},
		{"override", full, mix.Options{Type: mix.Q4KM, Overrides: []mix.Override{override}}, false},
		{"override of none", tied, mix.Options{Type: mix.Q4KM, Overrides: []mix.Override{override}}, true},
		{"second override", full, mix.Options{Type: mix.Q4KM, Overrides: []mix.Override{override, override}}, true},
		{"override with F16", full, mix.Options{Type: mix.F16, Overrides: []mix.Override{override}}, true},
		{"output", full, mix.Options{Type: mix.Q4KM, OutputType: ptr(gguf.Q8_0)}, false},
		{"output of tied", tied, mix.Options{Type: mix.Q4KM, OutputType: ptr(gguf.Q8_0)}, false},
		{"output of pure and tied", tied, mix.Options{Type: mix.Q4KM, Pure: true, OutputType: ptr(gguf.Q8_0)}, true},
		{"output left", full, mix.Options{Type: mix.Q4KM, LeaveOutput: true, OutputType: ptr(gguf.Q8_0)}, true},
		{"embedding", full, mix.Options{Type: mix.Q4KM, EmbeddingType: ptr(gguf.Q8_0)}, false},
		{"embedding of none", full[1:], mix.Options{Type: mix.Q4KM, EmbeddingType: ptr(gguf.Q8_0)}, true},
		{"pure", full, mix.Options{Type: mix.Q4KM, Pure: true}, false},
		{"pure F16", full, mix.Options{Type: mix.F16, Pure: true}, true},
		{"copy with output", full, mix.Options{Type: mix.Copy, OutputType: ptr(gguf.Q8_0)}, true},
		{"matrix of the model", tied, mix.Options{Type: mix.Q4KM, Matrix: map[string]int64{"token_embd.weight": 256}}, false},
		{"matrix of another", tied, mix.Options{Type: mix.Q4KM, Matrix: map[string]int64{"token_emb.weight": 256}}, true},
	} {
		plan, err := mix.Plan(small, c.tensors, c.o)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		told := slices.ContainsFunc(plan.Warnings, func(w mix.Warning) bool { return w.Code == mix.WarnNoEffect })
		if told != c.told {
			t.Errorf("%s: %q", c.name, plan.Warnings)
		}
	}
}

func TestOptionErrors(t *testing.T) {
	for _, c := range []struct {
		o    mix.Options
		want string
	}{
		{mix.Options{Type: 4}, "file type: 4 has no recipe"},
		{mix.Options{Type: 39}, "file type: 39 has no recipe"},
		{mix.Options{OutputType: ptr(gguf.I32)}, "output type: weights can't be stored as i32"},
		{mix.Options{OutputType: ptr(5)}, "output type: q4_3 is no type of the format"},
		{mix.Options{EmbeddingType: ptr(43)}, "token embedding type: type 43 is no type of the format"},
		{mix.Options{EmbeddingType: ptr(gguf.Q8_1)}, "token embedding type: q8_1 exists while a model runs, not in files"},
		{mix.Options{Overrides: []mix.Override{{Pattern: "(", Type: gguf.F16}}}, "override \"(=f16\": error parsing regexp: missing closing ): `(`"},
		{mix.Options{Overrides: []mix.Override{{Pattern: "a", Type: gguf.I8}}}, `override "a=i8": weights can't be stored as i8`},
	} {
		plan, err := mix.Plan(small, nil, c.o)
		var option *mix.OptionError
		if plan != nil || !errors.As(err, &option) || err.Error() != c.want {
			t.Errorf("%v %v, want %s", plan, err, c.want)
		}
	}
}

// For anything that can be in a file, a plan has one decision per tensor in their order, is
// the same again, changes nothing it was given, and plans no types whose blocks do not fill
// the rows unless it refuses.
func TestPlanProperties(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		m, tensors, o := randomModel(rng)
		before := cloneSpecs(tensors)
		plan, err := mix.Plan(m, tensors, o)
		again, errAgain := mix.Plan(m, tensors, o)
		if !reflect.DeepEqual(plan, again) || !reflect.DeepEqual(err, errAgain) {
			t.Fatalf("%+v %+v: two plans differ", m, o)
		}
		if !reflect.DeepEqual(tensors, before) {
			t.Fatal("the tensors were changed")
		}
		if plan == nil || len(plan.Decisions) != len(tensors) {
			t.Fatalf("%v, %v for %d tensors", plan, err, len(tensors))
		}
		refused := make(map[string]bool)
		if e := new(mix.RefusalError); errors.As(err, &e) {
			for _, r := range e.Refusals {
				if refused[r.Tensor] {
					t.Errorf("%s is refused twice", r.Tensor)
				}
				refused[r.Tensor] = true
			}
		}
		for i, d := range plan.Decisions {
			s := tensors[i]
			if d.Name != s.Name || d.From != s.Type || d.Why == "" || d.Reason == "" {
				t.Fatalf("%+v for %+v", d, s)
			}
			if refused[d.Name] || !d.Quantize() {
				continue
			}
			if len(s.Shape) < 2 || s.Shape[len(s.Shape)-1]%d.To.BlockSize() != 0 {
				t.Fatalf("%s of shape %s gets %s", s.Name, s.Shape, d.To)
			}
		}
	}
}

// Sort puts any order into the same one.
func TestSortProperties(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 300 {
		_, tensors, _ := randomModel(rng)
		mix.Sort(tensors)
		want := cloneSpecs(tensors)
		rng.Shuffle(len(tensors), func(i, j int) { tensors[i], tensors[j] = tensors[j], tensors[i] })
		mix.Sort(tensors)
		if !reflect.DeepEqual(tensors, want) {
			t.Fatalf("%v, want %v", tensors, want)
		}
	}
}

func cloneSpecs(tensors []gguf.Spec) []gguf.Spec {
	clone := slices.Clone(tensors)
	for i := range clone {
		clone[i].Shape = slices.Clone(clone[i].Shape)
	}
	return clone
}

// The pieces of random models.
var (
	archs  = strings.Fields("llama falcon qwen2 deci olmo phi3 gemma gpt2 bert bailingmoe3 deepseek2 clip x")
	prefix = strings.Fields("attn_q attn_k attn_v attn_qkv attn_kv_b attn_output ffn_up ffn_down ffn_gate ffn_up_exps ffn_down_exps ffn_gate_exps ffn_down_shexp ffn_gate_inp attn_norm ssm_in attn_k_b")
	alone  = strings.Fields("token_embd output output_norm per_layer_token_embd position_embd token_types cls")
	exprs  = []string{"attn_v", `blk\.[02]\.`, "ffn_(up|down)", "output", "^token", ".*", `\d\.ffn`, "exps"}
)

// randomModel returns a model with odd shapes, types and options; names are unique.
func randomModel(rng *rand.Rand) (mix.Model, []gguf.Spec, mix.Options) {
	m := mix.Model{
		Arch:    archs[rng.IntN(len(archs))],
		Layers:  rng.Int64N(34),
		Experts: []int64{0, 0, 1, 2, 4, 8, 8, 64}[rng.IntN(8)],
		Heads:   rng.Int64N(9), HeadsKV: rng.Int64N(3),
		Large: rng.IntN(4) == 0,
	}
	known := gguf.Types()
	plain := []gguf.Type{gguf.F16, gguf.F32, gguf.BF16}
	var tensors []gguf.Spec
	add := func(name string) {
		t := plain[rng.IntN(len(plain))]
		if rng.IntN(8) == 0 {
			t = known[rng.IntN(len(known))]
		}
		rows := []int64{256, 512, 256, 128, 64, 32, 96, 100, 1, 0}[rng.IntN(10)]
		rows = (rows + t.BlockSize() - 1) / t.BlockSize() * t.BlockSize()
		shape := tensor.Shape{rows}
		for range 1 + min(rng.IntN(3), rng.IntN(3)) {
			shape = append(tensor.Shape{rng.Int64N(4)}, shape...)
		}
		tensors = append(tensors, gguf.Spec{Name: name, Type: t, Shape: shape})
	}
	for _, name := range alone {
		if rng.IntN(2) == 0 {
			add(name + ".weight")
		}
	}
	for b := range min(m.Layers, 6) {
		for _, name := range prefix {
			if rng.IntN(3) > 0 {
				add("blk." + string(rune('0'+b)) + "." + name + ".weight")
			}
		}
	}
	return m, tensors, randomOptions(rng, tensors)
}

// randomOptions returns options of which most often few are set.
func randomOptions(rng *rand.Rand, tensors []gguf.Spec) mix.Options {
	all := mix.FileTypes()
	o := mix.Options{Type: all[rng.IntN(len(all))], Pure: rng.IntN(6) == 0, LeaveOutput: rng.IntN(6) == 0, AllowRequantize: rng.IntN(2) == 0}
	targets := []gguf.Type{gguf.F32, gguf.F16, gguf.BF16, gguf.Q4_0, gguf.Q8_0, gguf.Q4K, gguf.Q6K, gguf.IQ2XXS, gguf.IQ3S, gguf.MXFP4, gguf.NVFP4, gguf.Q1_0, gguf.TQ1_0}
	target := func() gguf.Type { return targets[rng.IntN(len(targets))] }
	if rng.IntN(5) == 0 {
		o.OutputType = ptr(target())
	}
	if rng.IntN(5) == 0 {
		o.EmbeddingType = ptr(target())
	}
	for rng.IntN(3) == 0 {
		o.Overrides = append(o.Overrides, mix.Override{Pattern: exprs[rng.IntN(len(exprs))], Type: target()})
	}
	if rng.IntN(2) == 0 {
		o.Matrix = map[string]int64{"x": 1}
		for _, t := range tensors {
			if n := len(t.Shape); n >= 2 && rng.IntN(6) > 0 {
				o.Matrix[t.Name] = t.Shape[n-1]
			}
		}
	}
	return o
}
