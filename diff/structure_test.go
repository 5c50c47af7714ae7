package diff_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/diff"
	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
)

// tiny is a model with the tensors of a decoder, values by name.
func tiny(prefix string, names ...string) *folder {
	f := new(folder)
	for _, name := range names {
		values := make([]float32, 6)
		for i := range values {
			values[i] = float32(len(name)*7+i) / 8
		}
		f.floats(prefix+name, values, 2, 3)
	}
	return f
}

var decoder = []string{"embed_tokens.weight", "layers.0.mlp.up_proj.weight", "layers.1.mlp.up_proj.weight", "layers.10.mlp.up_proj.weight", "norm.weight"}

// told is the structure of a result in lines: code, name, both sides, and a mark for
// what does not count.
func told(r *diff.Result) []string {
	var lines []string
	for _, d := range r.Structure {
		line := fmt.Sprintf("%s %s [%s|%s]", d.Code, d.Name, d.A, d.B)
		if !d.Counts {
			line += " -"
		}
		lines = append(lines, line)
	}
	return lines
}

func checkTold(t *testing.T, r *diff.Result, want ...string) {
	t.Helper()
	if got := told(r); !slices.Equal(got, want) {
		t.Errorf("structure\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestPairing guards how tensors find each other.
func TestPairing(t *testing.T) {
	stacked := tiny("model.", "layers.0.mlp.experts.0.w1.weight")
	older := tiny("model.", "layers.0.block_sparse_moe.experts.0.w1.weight")
	older.arrays[0].raw = stacked.arrays[0].raw
	for _, c := range []struct {
		name    string
		a, b    *folder
		pairs   int
		renamed string
		want    []string
	}{
		{"the same names", tiny("model.", decoder...), tiny("model.", decoder...), 5, "", nil},
		{"a prefix in A", tiny("model.", decoder...), tiny("", decoder...), 5, `names of A begin with "model.", which those of B lack`, nil},
		{"a prefix in B", tiny("", decoder...), tiny("model.", decoder...), 5, `names of B begin with "model.", which those of A lack`, nil},
		{"another prefix", tiny("model.", decoder...), tiny("language_model.model.", decoder...), 5,
			`names of A begin with "" where`, nil},
		{"an older name", stacked, older, 1, "", nil},
		{"one side only", tiny("model.", decoder...), tiny("model.", append(decoder[:3:3], "extra.weight")...), 3, "", []string{
			"only_in_a model.layers.10.mlp.up_proj.weight [f32 [2, 3]|]", "only_in_a model.norm.weight [f32 [2, 3]|]",
			"only_in_b model.extra.weight [|f32 [2, 3]]"}},
		{"another layer is no counterpart", tiny("model.", "layers.0.mlp.up_proj.weight"), tiny("model.", "layers.1.mlp.up_proj.weight"), 0, "", []string{
			"only_in_a model.layers.0.mlp.up_proj.weight [f32 [2, 3]|]", "only_in_b model.layers.1.mlp.up_proj.weight [|f32 [2, 3]]"}},
		{"a table the model computes", tiny("", "layers.0.self_attn.rotary_emb.inv_freq", "a.b"), tiny("", "a.b"), 1, "", []string{
			"buffer layers.0.self_attn.rotary_emb.inv_freq [f32 [2, 3]|] -"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := compare(t, c.a.write(t), c.b.write(t), diff.Options{})
			if len(r.Tensors) != c.pairs {
				t.Errorf("%d pairs, want %d", len(r.Tensors), c.pairs)
			}
			for _, p := range r.Tensors {
				if !p.Same && c.name != "one side only" {
					t.Errorf("%s and %s hold other values: a wrong pair", p.Name, p.NameB)
				}
			}
			if (r.Renamed == "") != (c.renamed == "") || c.renamed != "" && c.name != "another prefix" && r.Renamed != c.renamed {
				t.Errorf("renamed: %q, want %q", r.Renamed, c.renamed)
			}
			checkTold(t, r, c.want...)
			counted := slices.ContainsFunc(r.Structure, func(d diff.Difference) bool { return d.Counts })
			if r.Different != counted {
				t.Errorf("different: %v", r.Different)
			}
		})
	}
}

// TestTiedHead guards that a head that one side does not store is compared with the
// embedding it is tied to.
func TestTiedHead(t *testing.T) {
	const tied = `{"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": true}`
	a := tiny("", "model.embed_tokens.weight", "model.norm.weight")
	b := tiny("", "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
	a.files, b.files = map[string]string{"config.json": tied}, map[string]string{"config.json": tied}
	b.arrays[2].raw = b.arrays[0].raw
	r := compare(t, a.write(t), b.write(t), diff.Options{})
	checkTold(t, r, "tied lm_head.weight [tied to model.embed_tokens.weight|stored] -")
	if r.Different || len(r.Tensors) != 3 {
		t.Errorf("%d pairs, different: %v", len(r.Tensors), r.Different)
	}
	b.arrays[2].raw = slices.Clone(b.arrays[2].raw)
	b.arrays[2].raw[3] ^= 1
	if r := compare(t, b.write(t), a.write(t), diff.Options{}); !r.Different {
		t.Error("a head that came apart from its embedding is no difference")
	}
	a.files["config.json"] = `{"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": false}`
	if r := compare(t, b.write(t), a.write(t), diff.Options{TensorsOnly: true}); len(r.Tensors) != 2 || !r.Different {
		t.Error("a head that is not tied was paired with the embedding")
	}
}

// TestSettings guards which settings and files make two folders differ, with and without
// limits.
func TestSettings(t *testing.T) {
	a, b := tiny("", decoder...), tiny("", decoder...)
	a.files = map[string]string{
		"config.json":    `{"rope_theta": 10000, "dtype": "bfloat16", "_name_or_path": "x", "same": [1, 2], "gone": 1, "nothing": null, "rope_scaling": {"factor": 2, "type": "linear"}}`,
		"tokenizer.json": "abc", "merges.txt": "1", "README.md": "one",
	}
	b.files = map[string]string{
		"config.json":    `{"rope_theta": 500000, "dtype": "float32", "_name_or_path": "y", "same": [1, 2], "rope_scaling": {"factor": 4, "type": "linear"}}`,
		"tokenizer.json": "abd", "vocab.json": "1", "README.md": "two",
	}
	ma, mb := a.write(t), b.write(t)
	want := []string{
		`config rope_theta [10000|500000]`, `config dtype ["bfloat16"|"float32"]`, `config _name_or_path ["x"|"y"] -`, `config gone [1|]`,
		`config rope_scaling.factor [2|4]`,
		`file merges.txt [1 bytes|]`, `file tokenizer.json [3 bytes|3 bytes]`, `file vocab.json [|1 bytes]`,
	}
	checkTold(t, compare(t, ma, mb, diff.Options{}), want...)
	want[1] += " -"
	checkTold(t, compare(t, ma, mb, diff.Options{Limits: diff.Limits{Abs: 1}}), want...)
	if r := compare(t, ma, mb, diff.Options{TensorsOnly: true}); r.Different || len(r.Structure) > 0 {
		t.Errorf("only tensors were to be compared: %v", told(r))
	}
}

// TestUnlikeTensors guards tensors that can't be compared as numbers.
func TestUnlikeTensors(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	for _, c := range []struct {
		name      string
		a, b      array
		compared  bool
		different bool
		want      []string
	}{
		{"shapes", array{"w", tensor.F32, tensor.Shape{2, 3}, nil}, array{"w", tensor.F32, tensor.Shape{3, 2}, nil}, false, true, []string{"shape w [[2, 3]|[3, 2]]"}},
		{"a dimension of one", array{"w", tensor.F32, tensor.Shape{6, 1}, nil}, array{"w", tensor.F32, tensor.Shape{6}, nil}, true, true, []string{"shape w [[6, 1]|[6]]"}},
		{"integers of two sizes", array{"w", tensor.I32, tensor.Shape{4}, nil}, array{"w", tensor.I64, tensor.Shape{4}, nil}, false, true, []string{"dtype w [i32|i64]"}},
		{"an integer and a number", array{"w", tensor.I32, tensor.Shape{4}, nil}, array{"w", tensor.F32, tensor.Shape{4}, nil}, false, true, []string{"dtype w [i32|f32]"}},
		{"empty", array{"w", tensor.F32, tensor.Shape{0, 3}, nil}, array{"w", tensor.F32, tensor.Shape{0, 3}, nil}, true, false, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.a.raw, c.b.raw = randomRaw(rng, c.a.dtype, c.a.shape), randomRaw(rng, c.b.dtype, c.b.shape)
			ma, mb := (&folder{arrays: []array{c.a}}).write(t), (&folder{arrays: []array{c.b}}).write(t)
			for _, l := range []diff.Limits{{}, {Abs: 1e9}} {
				r := compare(t, ma, mb, diff.Options{Limits: l})
				checkTold(t, r, c.want...)
				got := only(t, r)
				if (got.Apart == "") != c.compared || r.Different != c.different {
					t.Errorf("not compared: %q; different: %v", got.Apart, r.Different)
				}
			}
		})
	}
}

// TestScaledFP8 guards that FP8 with scales is compared as the weights that it stands for.
func TestScaledFP8(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 12))
	scaled, weights := new(folder), new(folder)
	scaled.files = map[string]string{"config.json": `{"quantization_config": {"quant_method": "fp8"}}`}
	scaled.add(rng, "w.weight", tensor.F8E4M3, 4, 8)
	scaled.floats("w.weight_scale_inv", []float32{0.5}, 1, 1)
	var values []float32
	for i := range scaled.arrays[0].raw {
		values = append(values, float32(decode(tensor.F8E4M3, scaled.arrays[0].raw[i:])/2))
	}
	weights.floats("w.weight", values, 4, 8)
	a := scaled.write(t)
	r := compare(t, a, weights.write(t), diff.Options{TensorsOnly: true, Limits: diff.Limits{Abs: 1e-30}})
	if got := only(t, r); got.Changed != 0 || r.Different {
		t.Errorf("%d numbers are not code times scale: %v", got.Changed, told(r))
	}
	if r := compare(t, a, scaled.write(t), diff.Options{}); r.Different {
		t.Errorf("it differs from itself: %v", told(r))
	}
}

// TestMixedContainers guards that GGUF and anything else are not compared by name.
func TestMixedContainers(t *testing.T) {
	g := openPath(t, filepath.Join(golden, "gguf/models/llama/base-q8_0.gguf"))
	m := tiny("", "blk.0.attn_q.weight").write(t)
	for _, pair := range [][2]*checkpoint.Model{{g, m}, {m, g}} {
		var input *checkpoint.InputError
		if _, err := diff.Open(pair[0], pair[1], diff.Options{}); !errors.As(err, &input) || input.Path != g.Path {
			t.Errorf("GGUF and safetensors: %v", err)
		}
	}
}

// TestOpaque guards elements that are no floating-point numbers, those that share bytes
// among them.
func TestOpaque(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 10))
	for _, d := range tensor.All() {
		if d.IsFloat() {
			continue
		}
		t.Run(d.String(), func(t *testing.T) {
			const n = 65536 + 32
			a := array{"w", d, tensor.Shape{n}, randomRaw(rng, d, tensor.Shape{n})}
			b := array{"w", d, a.shape, slices.Clone(a.raw)}
			ma := (&folder{arrays: []array{a}}).write(t)
			if r := compare(t, ma, (&folder{arrays: []array{b}}).write(t), diff.Options{}); r.Different || !only(t, r).Same {
				t.Error("equal bytes differ")
			}
			bits := d.Bits()
			for _, element := range []int64{65536 + 5, n - 1} { // the lowest bit and the highest
				b.raw[element*bits/8] ^= 1 << (element * bits % 8)
				last := (element+1)*bits - 1
				b.raw[last/8] ^= 1 << (last % 8)
			}
			for _, l := range []diff.Limits{{}, {Abs: 1e9}, {Error: 10}} {
				r := compare(t, ma, (&folder{arrays: []array{b}}).write(t), diff.Options{Limits: l})
				if got := only(t, r); got.Changed != 2 || got.First != 65536+5 || !r.Different || got.Same {
					t.Errorf("%d changed, the first is %d; different: %v", got.Changed, got.First, r.Different)
				}
			}
		})
	}
}

// TestPatterns guards the choice of tensors and the sums over them.
func TestPatterns(t *testing.T) {
	a, b := tiny("model.", decoder...), tiny("model.", decoder...)
	b.arrays[1].raw = slices.Clone(b.arrays[1].raw)
	b.arrays[1].raw[2] ^= 0x40 // layer 0
	ma, mb := a.write(t), b.write(t)
	for _, c := range []struct {
		only, exclude []string
		pairs         int
		different     bool
	}{
		{nil, nil, 5, true},
		{[]string{"layers.1"}, nil, 1, false}, // not layer 10
		{[]string{"layers.0"}, nil, 1, true},
		{[]string{"up_proj"}, []string{"layers.0"}, 2, false},
		{[]string{"layers.*.mlp", "norm"}, nil, 4, true},
		{nil, []string{"mlp"}, 2, false},
		{[]string{"up_proj.weight"}, nil, 3, true},
	} {
		r := compare(t, ma, mb, diff.Options{Only: c.only, Exclude: c.exclude})
		if len(r.Tensors) != c.pairs || r.Different != c.different || len(r.Patterns) != len(c.only) {
			t.Errorf("only %v without %v: %d pairs, different %v, %d sums", c.only, c.exclude, len(r.Tensors), r.Different, len(r.Patterns))
		}
	}
	r := compare(t, ma, mb, diff.Options{Only: []string{"layers.0", "layers.1", "up_proj"}})
	for i, want := range []struct{ tensors, differing int }{{1, 1}, {1, 0}, {3, 1}} {
		if g := r.Patterns[i]; g.Tensors != want.tensors || g.Differing != want.differing {
			t.Errorf("pattern %s: %d tensors, %d differ", g.Name, g.Tensors, g.Differing)
		}
	}
	for _, o := range []diff.Options{{Only: []string{"q_proj"}}, {Exclude: []string{"layers.00"}}} {
		var missing *diff.PatternError
		if _, err := diff.Open(ma, mb, o); !errors.As(err, &missing) {
			t.Errorf("%v: %v", o, err)
		}
	}
	r = compare(t, ma, mb, diff.Options{})
	groups := func(list []diff.Group) (lines []string) {
		for _, g := range list {
			lines = append(lines, fmt.Sprintf("%s %d/%d", g.Name, g.Differing, g.Tensors))
		}
		return lines
	}
	if got, want := groups(r.Layers), []string{" 0/2", "model.layers.0 1/1", "model.layers.1 0/1", "model.layers.10 0/1"}; !slices.Equal(got, want) {
		t.Errorf("layers %q, want %q", got, want)
	}
	if got, want := groups(r.Kinds), []string{"model.embed_tokens.weight 0/1", "mlp.up_proj.weight 1/3", "model.norm.weight 0/1"}; !slices.Equal(got, want) {
		t.Errorf("kinds %q, want %q", got, want)
	}
}

// TestShortFile guards that a file that is cut while it is read is a fault of the input
// that names the tensor, and that a run can be stopped.
func TestShortFile(t *testing.T) {
	f := new(folder)
	f.add(rand.New(rand.NewPCG(1, 1)), "w", tensor.F32, 65536)
	dir := f.store(t)
	m, err := checkpoint.Open(dir, hfrepo.Cache{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	d, err := diff.Open(m, f.write(t), diff.Options{})
	if err != nil {
		t.Fatal(err)
	}
	stopped, stop := context.WithCancel(t.Context())
	stop()
	if err := d.Tasks()[0].Do(stopped, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("a stopped run: %v", err)
	}
	if err := os.Truncate(filepath.Join(dir, "model.safetensors"), 4096); err != nil {
		t.Fatal(err)
	}
	var input *checkpoint.InputError
	if err := engine.Each(t.Context(), d.Tasks(), engine.Options{}); !errors.As(err, &input) || !strings.Contains(err.Error(), `"w"`) {
		t.Errorf("a file that was cut: %v", err)
	}
}
