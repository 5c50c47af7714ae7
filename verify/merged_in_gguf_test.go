package verify_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/verify"
)

// peftInGGUF is a GGUF file that llama.cpp's converter made, with the change of a LoRA
// adapter of PEFT added to the queries and values of its layers: by loops over the rows in
// the order of the file, which for the queries of Llama is not that of the adapter.
type peftInGGUF struct {
	*ggufCopy
	lora *fixture
}

// Rank 4 and alpha 8 make a scale of 2.
const loraScale = 2.0

// newPEFTInGGUF adds scale times the change. from says which row of a head of the adapter
// goes to a row of the file.
func newPEFTInGGUF(t *testing.T, model string, scale float64, from func(r, head int) int) *peftInGGUF {
	p := &peftInGGUF{ggufCopy: copyOf(t, model), lora: tinyLoRA(t)}
	p.lora.specs = nil
	for _, s := range p.specs {
		layer, module, ok := strings.Cut(strings.TrimPrefix(s.Name, "blk."), ".")
		if !ok || module != "attn_q.weight" && module != "attn_v.weight" {
			continue
		}
		name := "base_model.model.model.layers." + layer + ".self_attn." + module[5:6] + "_proj."
		rows, cols := s.Shape[0], s.Shape[1]
		p.lora.add(name+"lora_A.weight", tensor.F32, 4, cols)
		p.lora.add(name+"lora_B.weight", tensor.F32, rows, 4)
		order := func(r, _ int) int { return r }
		if module == "attn_q.weight" {
			order = from
		}
		p.addProduct(s.Name, p.lora.matrix(name+"lora_A.weight"), p.lora.matrix(name+"lora_B.weight"), scale*loraScale, order)
	}
	return p
}

// heads of the queries of the models used here.
const queryHeads = 4

func (p *peftInGGUF) addProduct(name string, a, b matrix, scale float64, from func(r, head int) int) {
	d, _ := p.spec(name).Type.DType()
	w := decode(d, p.data[name])
	head := int(b.rows) / queryHeads
	for r := range int(b.rows) {
		at := r/head*head + from(r%head, head)
		for c := range int(a.cols) {
			for k := range int(a.rows) {
				w[r*int(a.cols)+c] += scale * b.x[at*int(b.cols)+k] * a.x[k*int(a.cols)+c]
			}
		}
	}
	p.data[name] = encode(d, w)
}

// inMergedFile plants a fault in the merge of a PEFT adapter into a GGUF file.
func inMergedFile(model string, order func(r, head int) int, fault func(t *testing.T) *peftInGGUF) func(*testing.T, bool) (*verify.Report, error) {
	return func(t *testing.T, faulty bool) (*verify.Report, error) {
		p := newPEFTInGGUF(t, model, 1, order)
		if faulty {
			p = fault(t)
		}
		return verify.Merged(t.Context(), openPath(t, copyOf(t, model).write()), []merge.Source{source(t, p.lora.write(), 1)}, merge.Options{},
			openPath(t, p.write()), verify.Options{})
	}
}

func inLlamaFile(scale float64, edit func(*peftInGGUF)) func(*testing.T, bool) (*verify.Report, error) {
	return inMergedFile("llama3-7b1-chat", pairs, func(t *testing.T) *peftInGGUF {
		p := newPEFTInGGUF(t, "llama3-7b1-chat", scale, pairs)
		if edit != nil {
			edit(p)
		}
		return p
	})
}

func sameRow(r, _ int) int { return r }

// inGGUFFaults are those of merges of PEFT adapters into GGUF files.
var inGGUFFaults = []planted{
	{fault: "the adapter was not applied to the file", code: "adapter-missing", check: inLlamaFile(0, nil)},
	{fault: "the adapter was applied to the file twice", code: "delta-scale", check: inLlamaFile(2, nil)},
	{fault: "the adapter was taken off the file", code: "delta-scale", check: inLlamaFile(-1, nil)},
	{fault: "a layer of the file was skipped", code: "delta-missing", check: inLlamaFile(1, func(p *peftInGGUF) {
		const q = "blk.1.attn_q.weight"
		p.data[q] = copyOf(p.t, "llama3-7b1-chat").data[q]
	})},
	{fault: "rows of q in the order of PEFT", code: "deviates", check: inMergedFile("llama3-7b1-chat", pairs, func(t *testing.T) *peftInGGUF {
		return newPEFTInGGUF(t, "llama3-7b1-chat", 1, sameRow)
	})},
	{fault: "rows of q in pairs where they need not be", code: "deviates", check: inMergedFile("qwen3", sameRow, func(t *testing.T) *peftInGGUF {
		return newPEFTInGGUF(t, "qwen3", 1, pairs)
	})},
	{fault: "one bit of another tensor of the file", code: "tensor-changed", check: inLlamaFile(1, func(p *peftInGGUF) {
		p.data["blk.0.ffn_up.weight"][7] ^= 2
	})},
	{fault: "one bit of a tensor that changes in the file", code: "deviates", check: inLlamaFile(1, func(p *peftInGGUF) {
		p.data["blk.1.attn_q.weight"][7] ^= 2
	})},
	{fault: "the factors of the rotation changed", input: "rope_freqs.weight", check: inLlamaFile(1, func(p *peftInGGUF) { p.addF32("rope_freqs.weight", 1) })},
	{fault: "the factors of the rotation are lost", code: "merge-missing", check: inLlamaFile(1, func(p *peftInGGUF) { p.remove("rope_freqs.weight") })},
}

// TestMergedInGGUFNorm merges what takes the place of a norm of Gemma, which the file
// stores with 1 added.
func TestMergedInGGUFNorm(t *testing.T) {
	const hf, stored = "model.layers.0.input_layernorm", "blk.0.attn_norm.weight"
	lora := tinyLoRA(t)
	lora.specs = nil
	lora.config["modules_to_save"], lora.config["target_modules"] = []string{"input_layernorm"}, []string{"q_proj"}
	lora.add("base_model.model."+hf+".weight", tensor.F32, 16)
	lora.add("base_model.model.model.layers.1.input_layernorm.weight", tensor.F32, 16)
	p := newPEFTInGGUF(t, "gemma3", 1, sameRow)
	for _, s := range p.lora.specs {
		lora.set(s, p.lora.values[s.Name])
	}
	for i, name := range []string{stored, "blk.1.attn_norm.weight"} {
		w := slices.Clone(lora.values["base_model.model."+strings.Replace(hf, "0", string(rune('0'+i)), 1)+".weight"])
		for j := range w {
			w[j]++
		}
		p.data[name] = encode(tensor.F32, w)
	}
	check := func() *verify.Report {
		r, err := verify.Merged(t.Context(), openPath(t, copyOf(t, "gemma3").write()), []merge.Source{source(t, lora.write(), 1)}, merge.Options{},
			openPath(t, p.write()), verify.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := check(); r.Count(verify.Error)+r.Count(verify.Warning) > 0 {
		t.Errorf("found %q", found(r))
	}
	p.addF32(stored, 0x1p-20)
	if r := check(); !slices.Contains(found(r), "tensor-changed "+hf+".weight") {
		t.Errorf("found %q", found(r))
	}
}
