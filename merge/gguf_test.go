package merge_test

import (
	"bytes"
	"errors"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/plan"
	"github.com/loratool/loratool/quant/block"
)

var goldenModels = filepath.Join("..", "testdata", "golden", "gguf", "models")

func openGGUF(t *testing.T, path string) *checkpoint.Model {
	t.Helper()
	m, err := checkpoint.Open(path, hfrepo.Cache{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// ggufSource opens an adapter; an adapter that can't be read is an error too.
func ggufSource(t *testing.T, path string, weight float64) (merge.Source, error) {
	t.Helper()
	m, err := checkpoint.OpenAdapter(path, hfrepo.Cache{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	a, err := adapter.Open(m)
	return merge.Source{Adapter: a, Weight: weight}, err
}

// numbersOf reads a tensor of any checkpoint.
func numbersOf(t *testing.T, c checkpoint.Checkpoint, name string) []float64 {
	t.Helper()
	for _, s := range c.Specs() {
		if s.Name != name {
			continue
		}
		src, err := c.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		m, err := engine.ReadMatrix[float64](src, plan.Whole(0, s))
		if err != nil {
			t.Fatal(err)
		}
		return m.Data
	}
	t.Fatalf("no tensor %q", name)
	return nil
}

// ggufView makes the changed tensors readable.
func ggufView(t *testing.T, base *checkpoint.Model, o merge.GGUFOptions, sources ...merge.Source) (*engine.View, *merge.GGUF) {
	t.Helper()
	g, err := merge.PlanGGUF(base, sources, o)
	if err != nil {
		t.Fatal(err)
	}
	in := make([]engine.Source, len(g.Inputs))
	for i := range in {
		in[i] = g.Inputs[i]
	}
	v, err := engine.NewView(g.Plan, g.Specs, in, engine.Options{Jobs: 2})
	if err != nil {
		t.Fatal(err)
	}
	return v, g
}

// TestGGUFGolden compares merges with those of llama.cpp's llama-export-lora, which
// stores what it changes as F16 and sums over the rank in an order of its own: within
// one unit in the last place, nearly all equal, and nothing else changed.
func TestGGUFGolden(t *testing.T) {
	for _, c := range []struct {
		base, adapter string
		weight        float64
		want          string
	}{
		{"expected-f16.gguf", "lora-all/expected-f32.gguf", 1, "merged-f16-all-f32.gguf"},
		{"expected-f16.gguf", "lora-all/expected-f16.gguf", 0.5, "merged-f16-all-scaled.gguf"},
		{"expected-f16.gguf", "lora-embed/expected-f32.gguf", 1, "merged-f16-embed.gguf"},
		{"base-q8_0.gguf", "lora-all/expected-f32.gguf", 1, "merged-q8_0-all.gguf"},
	} {
		base, want := openGGUF(t, filepath.Join(goldenModels, "llama", c.base)), openGGUF(t, filepath.Join(goldenModels, "llama", c.want))
		source, err := ggufSource(t, filepath.Join(goldenModels, "llama", c.adapter), c.weight)
		if err != nil {
			t.Fatal(err)
		}
		v, g := ggufView(t, base, merge.GGUFOptions{Retype: true}, source)
		values, equal := 0, 0
		for _, s := range g.Specs {
			if s.DType != tensor.F32 {
				t.Errorf("%s: %s is made as %s", c.want, s.Name, s.DType)
			}
			got, ref := rounded(tensor.F16, numbersOf(t, v, s.Name)), numbersOf(t, want, s.Name)
			for i, x := range ref {
				values++
				switch d := math.Abs(got[i] - x); {
				case d == 0:
					equal++
				case !(d <= ulpF16(x)):
					t.Fatalf("%s: %s[%d] is %v, want %v", c.want, s.Name, i, got[i], x)
				}
			}
		}
		t.Logf("%s: %d of %d values equal", c.want, equal, values)
		// Two sums in float32 differ by 2 (r+2) · 2^-24 of the value at most, with r = 4
		// products; roundings of F16 turn every 2^-11 of it. So a turning point lies
		// between the two for one value in 680 at most.
		if values == 0 || equal < values-values/680 {
			t.Errorf("%s: %d of %d values are equal", c.want, equal, values)
		}
		for _, s := range want.GGUF().Tensors() {
			changed := slices.ContainsFunc(g.Specs, func(c tensor.Spec) bool { return c.Name == s.Name })
			if !changed && !bytes.Equal(rawOf(t, base, s.Name), rawOf(t, want, s.Name)) {
				t.Errorf("%s: %s is changed there, here not", c.want, s.Name)
			}
		}
	}
}

func rawOf(t *testing.T, m *checkpoint.Model, name string) []byte {
	t.Helper()
	s, err := m.GGUF().Section(name)
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, s.Size())
	if n, err := s.ReadAt(data, 0); n != len(data) {
		t.Fatal(err)
	}
	return data
}

// rounded are the values as a type has them.
func rounded(d tensor.DType, v []float64) []float64 {
	codec, _ := block.For(d)
	raw, out := make([]byte, int64(len(v))*d.Bits()/8), make([]float64, len(v))
	codec.Encode64(raw, v)
	codec.Decode64(out, raw)
	return out
}

func ulpF16(v float64) float64 {
	_, exp := math.Frexp(v)
	return math.Ldexp(1, max(exp-11, -24))
}

// ggufFile is a GGUF file in the making. Tensors are "name:type:2x3", outermost
// dimension first; values follow from the names.
type ggufFile struct {
	keys    map[string]any
	tensors []string
	set     map[string][]float64
}

// adapterKeys are the keys of an adapter, with more.
func adapterKeys(more map[string]any) map[string]any {
	keys := map[string]any{"general.type": "adapter", "general.architecture": "toy", "adapter.type": "lora", "adapter.lora.alpha": float32(6)}
	for k, v := range more {
		if keys[k] = v; v == nil {
			delete(keys, k)
		}
	}
	return keys
}

func (f ggufFile) write(t *testing.T) string {
	t.Helper()
	keys := new(gguf.Metadata)
	for _, k := range slices.Sorted(maps.Keys(f.keys)) {
		switch v := f.keys[k].(type) {
		case string:
			keys.Set(k, gguf.ValueOf(v))
		case float32:
			keys.Set(k, gguf.ValueOf(v))
		case uint32:
			keys.Set(k, gguf.ValueOf(v))
		case []uint32:
			keys.Set(k, gguf.ArrayOf(v))
		default:
			t.Fatalf("a key of type %T", v)
		}
	}
	var specs []gguf.Spec
	data := make(map[string][]byte)
	for _, entry := range f.tensors {
		parts := strings.Split(entry, ":")
		kind, err := gguf.ParseType(parts[1])
		if err != nil {
			t.Fatal(err)
		}
		shaped, err := parseTensor(parts[0] + ":" + parts[2])
		if err != nil {
			t.Fatal(err)
		}
		v, ok := f.set[parts[0]]
		if !ok {
			v = values(parts[0], shaped.NumElements())
		}
		specs = append(specs, gguf.Spec{Name: parts[0], Type: kind, Shape: shaped.Shape})
		data[parts[0]] = encodeAs(t, kind, v, int(shaped.Cols()))
	}
	l, err := gguf.NewLayout(keys, specs, gguf.LayoutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	file := make([]byte, l.Size())
	copy(file, l.Header())
	for name, d := range data {
		off, _ := l.Offset(name)
		copy(file[off:], d)
	}
	path := filepath.Join(t.TempDir(), "m.gguf")
	if err := os.WriteFile(path, file, 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}

// encodeAs stores numbers in a type of ggml.
func encodeAs(t *testing.T, kind gguf.Type, v []float64, cols int) []byte {
	t.Helper()
	if d, ok := kind.DType(); ok {
		raw := make([]byte, int64(len(v))*d.Bits()/8)
		if codec, ok := block.For(d); ok { // integers are zeros
			codec.Encode64(raw, v)
		}
		return raw
	}
	x := make([]float32, len(v))
	for i := range x {
		x[i] = float32(v[i])
	}
	k := block.GGML(kind)
	raw := make([]byte, len(x)/k.BlockElements()*k.BlockBytes())
	if err := k.Quantize(raw, x, cols, nil); err != nil {
		t.Fatal(err)
	}
	return raw
}

// toyBase has a tensor of every form that a pair can change.
var toyBase = ggufFile{
	keys: map[string]any{"general.architecture": "toy"},
	tensors: []string{
		"token_embd.weight:f16:11x32", "blk.0.attn_q.weight:f32:6x32", "blk.0.attn_k.weight:bf16:6x32",
		"blk.0.ffn_down.weight:q8_0:5x64", "blk.0.ffn_up_exps.weight:f16:3x4x32", "blk.0.ffn_one_exps.weight:f16:1x4x32",
		"blk.0.attn_norm.weight:f32:32", "output.weight:f16:11x32",
	},
}

// pairs changes all of them; the ranks differ.
var pairs = ggufFile{
	keys: adapterKeys(nil),
	tensors: []string{
		"token_embd.weight.lora_a:f32:11x2", "token_embd.weight.lora_b:f32:32x2",
		"blk.0.attn_q.weight.lora_a:f32:3x32", "blk.0.attn_q.weight.lora_b:f16:6x3",
		"blk.0.attn_k.weight.lora_a:f32:32", "blk.0.attn_k.weight.lora_b:f32:6x1", // rank 1: the writer of llama.cpp drops the dimension
		"blk.0.ffn_down.weight.lora_a:q8_0:2x64", "blk.0.ffn_down.weight.lora_b:f16:5x2",
		"blk.0.ffn_up_exps.weight.lora_a:f32:3x2x32", "blk.0.ffn_up_exps.weight.lora_b:f32:3x4x2",
		"blk.0.ffn_one_exps.weight.lora_a:f32:2x32", "blk.0.ffn_one_exps.weight.lora_b:f32:4x2",
	},
}

// other changes some of them, without alpha, and has a norm.
var other = ggufFile{
	keys: adapterKeys(map[string]any{"adapter.lora.alpha": nil}),
	tensors: []string{
		"blk.0.attn_q.weight.lora_b:f32:6x5", "blk.0.attn_q.weight.lora_a:f32:5x32", "blk.0.attn_norm.weight:f32:32",
	},
}

// twinOf is W + sum of weight · scale · product, element by element in float64.
func twinOf(t *testing.T, base *checkpoint.Model, name string, sources []merge.Source) []float64 {
	t.Helper()
	w := numbersOf(t, base, name)
	spec, _ := base.Lookup(name)
	shape := append([]int64{1, 1}, spec.Shape...)
	shape = shape[len(shape)-3:]
	groups, rows, cols := shape[0], shape[1], shape[2]
	for _, s := range sources {
		m := s.Adapter.Source
		if _, ok := m.Lookup(name + ".lora_a"); !ok {
			continue
		}
		a, b := numbersOf(t, m, name+".lora_a"), numbersOf(t, m, name+".lora_b")
		bs, _ := m.Lookup(name + ".lora_b")
		rank := bs.Shape[len(bs.Shape)-1]
		scale := s.Weight
		if alpha, ok, _ := m.GGUF().Metadata().OptFloat("adapter.lora.alpha"); ok && alpha != 0 {
			scale *= alpha / float64(rank)
		}
		for g := range groups {
			for i := range rows {
				for j := range cols {
					sum := 0.0
					for k := range rank {
						if name == "token_embd.weight" {
							sum += a[i*rank+k] * b[j*rank+k]
						} else {
							sum += b[(g*rows+i)*rank+k] * a[(g*rank+k)*cols+j]
						}
					}
					w[(g*rows+i)*cols+j] += scale * sum
				}
			}
		}
	}
	return w
}

// TestGGUFTwin guards the formula for every form of a pair, with weights, several
// adapters and a subset of targets. All values are multiples of powers of two of few
// bits, so that sums in float32 are exact and the twin is met exactly; what is
// rounded at once is compared after one rounding.
func TestGGUFTwin(t *testing.T) {
	base := openGGUF(t, toyBase.write(t))
	var sources []merge.Source
	for i, f := range []ggufFile{pairs, other} {
		s, err := ggufSource(t, f.write(t), []float64{0.5, -2}[i])
		if err != nil {
			t.Fatal(err)
		}
		sources = append(sources, s)
	}
	for _, retype := range []bool{true, false} {
		v, g := ggufView(t, base, merge.GGUFOptions{Retype: retype}, sources...)
		var names []string
		for _, s := range g.Specs {
			names = append(names, s.Name)
			stored, _ := base.GGUF().Lookup(s.Name)
			want, plain := stored.Type.DType()
			if retype || !plain {
				want = tensor.F32
			}
			if s.DType != want {
				t.Errorf("%s is made as %s, want %s", s.Name, s.DType, want)
			}
			got, twin := numbersOf(t, v, s.Name), rounded(s.DType, twinOf(t, base, s.Name, sources))
			largest := 0.0
			for _, x := range twin {
				largest = max(largest, math.Abs(x))
			}
			for i, x := range twin {
				slack := 0.0
				if strings.Contains(s.Name, "down") {
					// Q8_0 holds numbers of 24 bits: 5 sums and products of float32.
					slack = 5 * 0x1p-24 * largest
				}
				if !(math.Abs(got[i]-x) <= slack) {
					t.Fatalf("retype %v: %s[%d] is %v, want %v", retype, s.Name, i, got[i], x)
				}
			}
		}
		slices.Sort(names)
		if want := []string{"blk.0.attn_k.weight", "blk.0.attn_q.weight", "blk.0.ffn_down.weight", "blk.0.ffn_one_exps.weight",
			"blk.0.ffn_up_exps.weight", "token_embd.weight"}; !slices.Equal(names, want) {
			t.Errorf("changed are %v", names)
		}
		if !slices.ContainsFunc(g.Plan.Decisions, func(d plan.Decision) bool { return d.Code == "norms-ignored" && len(d.Tensors) == 1 }) {
			t.Errorf("the norm is ignored without a word: %+v", g.Plan.Decisions)
		}
	}
}

// TestGGUFTied guards the word about embeddings that are the head too.
func TestGGUFTied(t *testing.T) {
	for _, tied := range []bool{true, false} {
		f := toyBase
		if tied {
			f.tensors = f.tensors[:len(f.tensors)-1]
		}
		s, err := ggufSource(t, pairs.write(t), 1)
		if err != nil {
			t.Fatal(err)
		}
		_, g := ggufView(t, openGGUF(t, f.write(t)), merge.GGUFOptions{}, s)
		if said := slices.ContainsFunc(g.Plan.Decisions, func(d plan.Decision) bool { return d.Code == "tied-embedding" }); said != tied {
			t.Errorf("tied %v, decisions %+v", tied, g.Plan.Decisions)
		}
	}
}

// TestGGUFRefused lists adapters that llama.cpp refuses, or would misread, and bases
// that they do not fit. Each is an error that names what is wrong.
func TestGGUFRefused(t *testing.T) {
	const a, b = "blk.0.attn_q.weight.lora_a:f32:3x32", "blk.0.attn_q.weight.lora_b:f32:6x3"
	const q = "blk.0.attn_q.weight"
	for _, c := range []struct {
		name    string
		keys    map[string]any
		tensors []string
		want    string
	}{
		{"model", map[string]any{"general.type": "model"}, []string{a, b}, `key general.type is "model"`},
		{"no type", map[string]any{"general.type": nil}, []string{a, b}, "general.type"},
		{"other adapter", map[string]any{"adapter.type": "ia3"}, []string{a, b}, `key adapter.type is "ia3"`},
		{"no architecture", map[string]any{"general.architecture": nil}, []string{a, b}, "general.architecture"},
		{"another architecture", map[string]any{"general.architecture": "llama"}, []string{a, b}, `architecture "llama", the base is "toy"`},
		{"alpha of text", map[string]any{"adapter.lora.alpha": "8"}, []string{a, b}, "adapter.lora.alpha"},
		{"alpha of infinity", map[string]any{"adapter.lora.alpha": float32(math.Inf(1))}, []string{a, b}, "adapter.lora.alpha is +Inf"},
		{"activated", map[string]any{"adapter.alora.invocation_tokens": []uint32{1, 2}}, []string{a, b}, "aLoRA can't be merged"},
		{"activated, no list", map[string]any{"adapter.alora.invocation_tokens": uint32(1)}, []string{a, b}, "aLoRA can't be merged"},
		{"no tensors", nil, nil, "no pair"},
		{"only norms", nil, []string{"blk.0.attn_norm.weight:f32:32"}, "no pair"},
		{"another suffix", nil, []string{a, b, q + ".lora_magnitude:f32:6"}, "neither .lora_a nor .lora_b"},
		{"whole tensor", nil, []string{a, b, q + ":f32:6x32"}, "neither .lora_a nor .lora_b"},
		{"no b", nil, []string{a}, q + ".lora_b is missing"},
		{"no a", nil, []string{b}, q + ".lora_a is missing"},
		{"not in the base", nil, []string{"blk.7.attn_q.weight.lora_a:f32:3x32", "blk.7.attn_q.weight.lora_b:f32:6x3"}, `the base has no tensor "blk.7.attn_q.weight"`},
		{"ranks differ", nil, []string{a, q + ".lora_b:f32:6x4"}, "make no product"},
		{"a transposed", nil, []string{q + ".lora_a:f32:32x3", b}, "make no product"},
		{"another width", nil, []string{q + ".lora_a:f32:3x16", b}, "do not fit the base's [6, 32]"},
		{"another height", nil, []string{a, q + ".lora_b:f32:7x3"}, "do not fit the base's [6, 32]"},
		{"a stack on a matrix", nil, []string{q + ".lora_a:f32:2x3x32", q + ".lora_b:f32:2x6x3"}, "do not fit the base's [6, 32]"},
		{"half a stack", nil, []string{"blk.0.ffn_up_exps.weight.lora_a:f32:2x2x32", "blk.0.ffn_up_exps.weight.lora_b:f32:3x4x2"}, "make no product"},
		{"fewer experts", nil, []string{"blk.0.ffn_up_exps.weight.lora_a:f32:2x2x32", "blk.0.ffn_up_exps.weight.lora_b:f32:2x4x2"}, "do not fit"},
		{"embedding as PEFT has it", nil, []string{"token_embd.weight.lora_a:f32:2x11", "token_embd.weight.lora_b:f32:32x2"}, "make no product"},
		{"a stack of embeddings", nil, []string{"token_embd.weight.lora_a:f32:2x11x2", "token_embd.weight.lora_b:f32:2x32x2"}, "make no product"},
		{"a vector", nil, []string{"blk.0.attn_norm.weight.lora_a:f32:3x32", "blk.0.attn_norm.weight.lora_b:f32:1x3"}, "not a layer"},
		{"a number", nil, []string{q + ".lora_a:f32:", b}, "no shape of a factor"},
		{"four dimensions", nil, []string{q + ".lora_a:f32:1x1x3x32", b}, "no shape of a factor"},
		{"integers", nil, []string{q + ".lora_a:i32:3x32", b}, "not a type that an adapter can have"},
		{"empty", nil, []string{q + ".lora_a:f32:0x32", q + ".lora_b:f32:6x0"}, "no shape of a factor"},
	} {
		t.Run(c.name, func(t *testing.T) {
			source, err := ggufSource(t, ggufFile{keys: adapterKeys(c.keys), tensors: c.tensors}.write(t), 1)
			if err == nil {
				_, err = merge.PlanGGUF(openGGUF(t, toyBase.write(t)), []merge.Source{source}, merge.GGUFOptions{})
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// TestGGUFNotFinite guards that one NaN of a factor stops the merge.
func TestGGUFNotFinite(t *testing.T) {
	f := ggufFile{
		keys: adapterKeys(nil), tensors: []string{"blk.0.attn_q.weight.lora_a:f32:1x32", "blk.0.attn_q.weight.lora_b:f32:6x1"},
		set: map[string][]float64{"blk.0.attn_q.weight.lora_b": {0, 0, 0, 0, math.NaN(), 0}},
	}
	source, err := ggufSource(t, f.write(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	_, err = merge.PlanGGUF(openGGUF(t, toyBase.write(t)), []merge.Source{source}, merge.GGUFOptions{})
	if err == nil || !strings.Contains(err.Error(), "element 4 is not finite") {
		t.Errorf("got %v", err)
	}
}

// TestGGUFFormats guards the refusal of an adapter of one format for a base of the
// other, in words that say what to do.
func TestGGUFFormats(t *testing.T) {
	pair := model{
		config:  `{"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q"]}`,
		tensors: []string{"base_model.model.q.lora_A.weight:2x4", "base_model.model.q.lora_B.weight:4x2"},
	}
	peft, err := pair.openAdapter(t)
	if err != nil {
		t.Fatal(err)
	}
	_, err = merge.PlanGGUF(openGGUF(t, toyBase.write(t)), []merge.Source{{Adapter: peft, Weight: 1}}, merge.GGUFOptions{})
	if err == nil || !strings.Contains(err.Error(), "an adapter of PEFT has other names than a GGUF file") {
		t.Errorf("got %v", err)
	}
	source, err := ggufSource(t, pairs.write(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	base := model{tensors: []string{"q.weight:4x4"}}.openBase(t)
	_, err = merge.Plan(base, []merge.Source{source}, merge.Options{Output: "out"})
	if err == nil || !strings.Contains(err.Error(), "an adapter in a GGUF file can't be merged into a model of Hugging Face") {
		t.Errorf("got %v", err)
	}
	lora := openGGUF(t, pairs.write(t))
	_, err = merge.PlanGGUF(lora, []merge.Source{source}, merge.GGUFOptions{})
	var input *checkpoint.InputError
	if !errors.As(err, &input) || !strings.Contains(err.Error(), "it is an adapter, not a model") {
		t.Errorf("got %v", err)
	}
}
