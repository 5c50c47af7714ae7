package quant_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/quant"
)

// entry is an entry of an importance matrix.
type entry struct {
	name  string
	count int
	sums  []float32
}

// legacyMatrix is the older form, see readLegacy of formats/gguf.
func legacyMatrix(entries []entry) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(entries)))
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(e.name)))
		b = append(b, e.name...)
		b = binary.LittleEndian.AppendUint32(b, uint32(e.count))
		b = binary.LittleEndian.AppendUint32(b, uint32(len(e.sums)))
		b, _ = binary.Append(b, binary.LittleEndian, e.sums)
	}
	return b
}

// ggufMatrix is the form of GGUF.
func ggufMatrix(t *testing.T, entries []entry) []byte {
	t.Helper()
	keys := new(gguf.Metadata)
	keys.Set("general.type", gguf.ValueOf("imatrix"))
	keys.Set("imatrix.datasets", gguf.ArrayOf([]string{"a"}))
	keys.Set("imatrix.chunk_count", gguf.ValueOf(uint32(9)))
	keys.Set("imatrix.chunk_size", gguf.ValueOf(uint32(512)))
	values := make(map[string][]float32)
	var specs []gguf.Spec
	add := func(name string, x []float32) {
		specs = append(specs, gguf.Spec{Name: name, Type: gguf.F32, Shape: tensor.Shape{1, int64(len(x))}})
		values[name] = x
	}
	for _, e := range entries {
		add(e.name+".in_sum2", e.sums)
		add(e.name+".counts", []float32{float32(e.count)})
	}
	l, err := gguf.NewLayout(keys, specs, gguf.LayoutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	file := append(l.Header(), make([]byte, l.Size()-int64(len(l.Header())))...)
	for _, s := range l.Tensors() {
		for i, v := range values[s.Name] {
			binary.LittleEndian.PutUint32(file[s.Offset+4*int64(i):], math.Float32bits(v))
		}
	}
	return file
}

// matrixMoments opens a matrix of a model.
func matrixMoments(t *testing.T, data []byte, base *checkpoint.Model) (quant.Moments, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "imatrix")
	if err := os.WriteFile(path, data, 0o666); err != nil {
		t.Fatal(err)
	}
	m, err := gguf.OpenImatrix(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return quant.NewMatrixMoments(m, path, "this file", base)
}

// An importance matrix weighs the channels of a folder as a file of vectors with the same
// numbers does: the outputs are the same, to the bit. The rows of q_proj and k_proj are
// in another order in GGUF, the channels are not.
func TestMatrixMoments(t *testing.T) {
	const out, in = 64, 96
	modules := map[string]string{ // of the model, and what GGUF calls their weights
		"model.layers.0.self_attn.q_proj": "blk.0.attn_q.weight", "model.layers.0.self_attn.k_proj": "blk.0.attn_k.weight",
		"model.layers.1.mlp.down_proj": "blk.1.ffn_down.weight", "model.layers.11.self_attn.o_proj": "blk.11.attn_output.weight",
	}
	var specs, vectors []tensor.Spec
	var entries []entry
	sum := func(module string, j int) float32 { return float32((j*j+len(module)*7)%50) + 1 }
	for module, name := range modules {
		specs = append(specs, spec(module+".weight", tensor.F32, out, in))
		vectors = append(vectors, spec(module, tensor.F32, in))
		e := entry{name, 3, make([]float32, in)}
		for j := range e.sums {
			e.sums[j] = sum(module, j)
		}
		entries = append(entries, e)
	}
	dir := numbers(t, `{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}`, specs...)
	quantize := func(m quant.Moments) repaired {
		return repair(t, dir, quant.Options{Type: quant.NF4, LoftQ: &quant.LoftQ{Rank: 4, Moments: m}}, engine.Options{})
	}
	want := quantize(quant.NewTensorMoments(open(t, write(t, `{}`, vectors, func(s tensor.Spec, x []float32) {
		for j := range x {
			x[j] = sum(s.Name, j) / 3
		}
	}))))
	plain := quantize(nil)
	for form, data := range map[string][]byte{"legacy": legacyMatrix(entries), "gguf": ggufMatrix(t, entries)} {
		t.Run(form, func(t *testing.T) {
			m, err := matrixMoments(t, data, open(t, dir))
			if err != nil {
				t.Fatal(err)
			}
			got := quantize(m)
			for i, f := range got.figures {
				name := "base_model.model." + f.Module + ".lora_A.weight"
				a := floats(t, got.adapter.Source, name, false)
				compareFloats(t, name, a, floats(t, want.adapter.Source, name, false))
				if slices.Equal(a, floats(t, plain.adapter.Source, name, false)) {
					t.Errorf("%s does not depend on the matrix", name)
				}
				if f.Error != want.figures[i].Error {
					t.Errorf("%s: errors %v, want %v", f.Module, f.Error, want.figures[i].Error)
				}
			}
			if inputs := got.plan.Plan.Inputs; len(inputs) != 2 || inputs[1].Role != "stats" || inputs[1].Files[0].Size != int64(len(data)) {
				t.Errorf("inputs %+v", inputs)
			}
		})
	}
}

// A matrix that does not fit is refused, and says why.
func TestMatrixMomentsRefused(t *testing.T) {
	const module, name = "model.layers.0.self_attn.q_proj", "blk.0.attn_q.weight"
	for _, c := range []struct {
		name, class, module string
		entry               entry
		want                string
	}{
		{"another family", "BloomForCausalLM", module, entry{name, 1, []float32{1, 2}}, `no table of those names for "BloomForCausalLM"`},
		{"no name", "LlamaForCausalLM", "model.layers.0.adapter.q_proj", entry{name, 1, []float32{1, 2}}, "GGUF has no weight"},
		{"an expert", "MixtralForCausalLM", "model.layers.0.block_sparse_moe.experts.1.w1", entry{"blk.0.ffn_gate_exps.weight", 1, []float32{1, 2}}, "alone"},
		{"missing", "LlamaForCausalLM", module, entry{"blk.1.attn_q.weight", 1, []float32{1, 2}}, `there is no entry "blk.0.attn_q.weight"`},
		{"too long", "LlamaForCausalLM", module, entry{name, 1, []float32{1, 2, 3}}, "has 3 weights for the 2 input channels"},
		{"zeros", "LlamaForCausalLM", module, entry{name, 1, []float32{0, 0}}, "all channels have 0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := numbers(t, fmt.Sprintf(`{"model_type": "llama", "architectures": [%q]}`, c.class), spec("a.weight", tensor.F32, 2, 2))
			m, err := matrixMoments(t, legacyMatrix([]entry{c.entry}), open(t, dir))
			if err == nil {
				_, err = m.Of(c.module, 2)
			}
			var input *checkpoint.InputError
			if !errors.As(err, &input) || filepath.Base(input.Path) != "imatrix" || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %T %v, want %q", err, err, c.want)
			}
		})
	}
}
