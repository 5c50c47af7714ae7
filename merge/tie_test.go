package merge_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/merge"
)

const (
	embed = "model.embed_tokens"
	head  = "lm_head"
	saved = "base_model.model."
)

// tiedBase is a small language model; tie is what its config says, "" for
// nothing.
func tiedBase(tie string, headStored bool) model {
	b := model{config: `{"architectures":["LlamaForCausalLM"],"model_type":"llama","vocab_size":6}`, tensors: []string{embed + ".weight:6x4", "model.layers.0.q_proj.weight:4x4"}}
	if tie != "" {
		b.config = strings.TrimSuffix(b.config, "}") + `,"tie_word_embeddings":` + tie + `}`
	}
	if headStored {
		b.tensors = append(b.tensors, head+".weight:6x4")
		if tie == "true" { // as transformers saves tied weights twice
			b.set = map[string][]float64{head + ".weight": values(embed+".weight", 24)}
		}
	}
	return b
}

// TestTies has the matrix of cases: how the base is tied, and which end an
// adapter changes. Embedding and head stay one only if both got the same change.
func TestTies(t *testing.T) {
	const tokens = `"trainable_token_indices":[1,4]`
	rows := values("rows", 8)
	withRows := func(m mat) mat {
		m = m.clone()
		copy(m[1], rows[:4])
		copy(m[4], rows[4:])
		return m
	}
	onHead := func(t *testing.T, a model, e, h mat) (mat, mat) { return e, plus(h, 1, a.change(t, head)) }
	onEmbedding := func(t *testing.T, a model, e, h mat) (mat, mat) { return plus(e, 1, a.embeddingChange(t, embed)), h }
	table := values("table", 24)
	for _, c := range []struct {
		name    string
		adapter model
		// want are embedding and head after the merge, from those before.
		want  func(t *testing.T, a model, e, h mat) (mat, mat)
		unity bool // a tied model stays tied
	}{
		{"no end", model{config: lora(""), tensors: pair("model.layers.0.q_proj", 4, 4)}, func(_ *testing.T, _ model, e, h mat) (mat, mat) { return e, h }, true},
		{"head", model{config: lora(""), tensors: pair(head, 6, 4)}, onHead, false},
		{"embedding", model{config: lora(""), tensors: embeddingPair(embed, 6, 4)}, onEmbedding, false},
		{"both, differently", model{config: lora(""), tensors: concat(pair(head, 6, 4), embeddingPair(embed, 6, 4))}, func(t *testing.T, a model, e, h mat) (mat, mat) {
			return plus(e, 1, a.embeddingChange(t, embed)), plus(h, 1, a.change(t, head))
		}, false},
		{"embedding saved", model{config: lora(`"modules_to_save":["embed_tokens"]`),
			tensors: append(pair("model.layers.0.q_proj", 4, 4), saved+embed+".weight:6x4"), set: map[string][]float64{saved + embed + ".weight": table}},
			func(_ *testing.T, _ model, _, h mat) (mat, mat) { return rowsOf(6, 4, table), h }, false},
		{"both saved alike", model{config: lora(`"modules_to_save":["embed_tokens","lm_head"]`),
			tensors: append(pair("model.layers.0.q_proj", 4, 4), saved+embed+".weight:6x4", saved+head+".weight:6x4"),
			set:     map[string][]float64{saved + embed + ".weight": table, saved + head + ".weight": table}},
			func(_ *testing.T, _ model, _, _ mat) (mat, mat) { return rowsOf(6, 4, table), rowsOf(6, 4, table) }, true},
		{"both saved, differently", model{config: lora(`"modules_to_save":["embed_tokens","lm_head"]`),
			tensors: append(pair("model.layers.0.q_proj", 4, 4), saved+embed+".weight:6x4", saved+head+".weight:6x4"), set: map[string][]float64{saved + embed + ".weight": table}},
			func(t *testing.T, a model, _, _ mat) (mat, mat) {
				return rowsOf(6, 4, table), a.of(t, saved+head+".weight")
			}, false},
		{"both saved, differently, though they should be tied", model{config: lora(`"modules_to_save":["embed_tokens","lm_head"],"ensure_weight_tying":true`),
			tensors: append(pair("model.layers.0.q_proj", 4, 4), saved+embed+".weight:6x4", saved+head+".weight:6x4"), set: map[string][]float64{saved + embed + ".weight": table}},
			func(t *testing.T, a model, _, _ mat) (mat, mat) {
				return rowsOf(6, 4, table), a.of(t, saved+head+".weight")
			}, false},
		{"tokens", model{config: lora(tokens), tensors: append(pair("model.layers.0.q_proj", 4, 4), saved+embed+".token_adapter.trainable_tokens_delta:2x4"),
			set: map[string][]float64{saved + embed + ".token_adapter.trainable_tokens_delta": rows}},
			nil, true},
	} {
		for _, b := range []struct {
			name   string
			base   model
			tied   bool
			stored bool
		}{
			{"not tied", tiedBase("false", true), false, true},
			{"says nothing, head stored", tiedBase("", true), false, true},
			{"says nothing, no head", tiedBase("", false), true, false},
			{"tied, no head", tiedBase("true", false), true, false},
			{"tied, head stored", tiedBase("true", true), true, true},
		} {
			t.Run(c.name+"/"+b.name, func(t *testing.T) {
				r := merged(t, b.base, []weighted{{model: c.adapter, weight: 1}}, merge.Options{})
				e := b.base.of(t, embed+".weight")
				h := e
				if b.stored {
					h = b.base.of(t, head+".weight")
				}
				wantE, wantH := mat(nil), mat(nil)
				if c.want != nil {
					wantE, wantH = c.want(t, c.adapter, e, h)
				} else if wantE, wantH = withRows(e), h; b.tied {
					wantH = wantE // rows of tokens are trained through the tie
				}
				checkTensor(t, r, embed+".weight", wantE)
				_, hasHead := r.specs[head+".weight"]
				if hasHead != (b.stored || !c.unity) {
					t.Errorf("head written: %v", hasHead)
				}
				if hasHead {
					checkTensor(t, r, head+".weight", wantH)
				}
				tied, stated := r.config(t).Tied()
				switch {
				case !b.tied || c.unity:
					before, statedBefore := b.base.configOf(t).Tied()
					if tied != before || stated != statedBefore {
						t.Errorf("tied %v, stated %v; want what the base says", tied, stated)
					}
				case tied || !stated:
					t.Errorf("tied %v, stated %v; want false", tied, stated)
				}
				if untied := strings.Contains(codes(r.Merge), "untied"); untied != (b.tied && !c.unity) {
					t.Errorf("decisions %s", codes(r.Merge))
				}
			})
		}
	}
}

// TestTiesOfTwo guards several adapters on tied embeddings: the head has the
// changes through the tie and its own, in the order of the adapters.
func TestTiesOfTwo(t *testing.T) {
	table := func(seed string) map[string][]float64 {
		v := values(seed, 24)
		return map[string][]float64{saved + embed + ".weight": v, saved + head + ".weight": v}
	}
	both := func(seed string) model {
		return model{config: lora(`"modules_to_save":["embed_tokens","lm_head"]`), seed: seed,
			tensors: append(pair("model.layers.0.q_proj", 4, 4), saved+embed+".weight:6x4", saved+head+".weight:6x4"), set: table(seed)}
	}
	base := tiedBase("true", false)
	e := base.of(t, embed+".weight")
	q := base.of(t, "model.layers.0.q_proj.weight")
	first, second := both("first"), both("second")

	t.Run("each both ends", func(t *testing.T) {
		r := merged(t, base, []weighted{{model: first, weight: 0.5}, {model: second, weight: -0.25}}, merge.Options{})
		want := plus(plus(plus(e, 0.5, rowsOf(6, 4, values("first", 24))), -0.5, e), -0.25, plus(rowsOf(6, 4, values("second", 24)), -1, e))
		checkTensor(t, r, embed+".weight", want)
		if _, ok := r.specs[head+".weight"]; ok {
			t.Error("the head is written though it is still the embedding")
		}
		checkTensor(t, r, "model.layers.0.q_proj.weight", plus(plus(q, 0.5, first.change(t, "model.layers.0.q_proj")), -0.25, second.change(t, "model.layers.0.q_proj")))
	})
	t.Run("tokens and a head", func(t *testing.T) {
		rows := values("rows", 4)
		tokens := model{config: lora(`"trainable_token_indices":[3]`), seed: "tokens", tensors: append(pair("model.layers.0.q_proj", 4, 4), saved+embed+".trainable_tokens_delta:1x4"),
			set: map[string][]float64{saved + embed + ".trainable_tokens_delta": rows}}
		onHead := model{config: lora(""), seed: "head", tensors: pair(head, 6, 4)}
		r := merged(t, base, []weighted{{model: tokens, weight: 0.5}, {model: onHead, weight: 1}}, merge.Options{})
		wantE := e.clone()
		for j := range wantE[3] {
			wantE[3][j] += 0.5 * (rows[j] - e[3][j])
		}
		checkTensor(t, r, embed+".weight", wantE)
		checkTensor(t, r, head+".weight", plus(wantE, 1, onHead.change(t, head)))
		if got := headOps(t, r.Merge); got != "set_rows add_lora" {
			t.Errorf("the head's changes are %s", got)
		}
		r = merged(t, base, []weighted{{model: onHead, weight: 1}, {model: tokens, weight: 0.5}}, merge.Options{})
		if got := headOps(t, r.Merge); got != "add_lora set_rows" {
			t.Errorf("the head's changes, the other way round, are %s", got)
		}
		both := tokens
		both.tensors = append(slices.Clone(tokens.tensors), pair(head, 6, 4)...)
		r = merged(t, base, []weighted{{model: both, weight: 0.5}}, merge.Options{})
		if got := headOps(t, r.Merge); got != "set_rows add_lora" {
			t.Errorf("the head's changes by one adapter are %s", got)
		}
	})
}

// headOps lists the branches of the blend that makes the head.
func headOps(t *testing.T, m *merge.Merge) string {
	t.Helper()
	for i := range m.Plan.Steps {
		s := &m.Plan.Steps[i]
		if s.Write.Tensor != head+".weight" {
			continue
		}
		var ops []string
		for _, br := range s.Stages[0].Op.(merge.Blend).Branches {
			ops = append(ops, br.Stages[0].Op.Kind())
		}
		return strings.Join(ops, " ")
	}
	t.Fatal("no head")
	return ""
}

// TestEnsureWeightTying guards the second copy of the factors that PEFT leaves
// in the file: it must be the first one transposed, and is applied once.
func TestEnsureWeightTying(t *testing.T) {
	tensors := concat(embeddingPair(embed, 6, 4), pair(head, 6, 4))
	a, b := values("A", 12), values("B", 8) // of the embedding: (2, 6) and (4, 2)
	flip := func(v []float64, rows, cols int) []float64 {
		var x []float64
		for _, row := range transpose(rowsOf(int64(rows), int64(cols), v)) {
			x = append(x, row...)
		}
		return x
	}
	factors := map[string][]float64{
		saved + embed + ".lora_embedding_A": a, saved + embed + ".lora_embedding_B": b,
		saved + head + ".lora_A.weight": flip(b, 4, 2), saved + head + ".lora_B.weight": flip(a, 2, 6),
	}
	config := lora(`"ensure_weight_tying":true`)
	good := model{config: config, tensors: tensors, set: factors}
	base := tiedBase("true", false)
	r := merged(t, base, []weighted{{model: good, weight: 1}}, merge.Options{})
	checkTensor(t, r, embed+".weight", plus(base.of(t, embed+".weight"), 1, good.embeddingChange(t, embed)))
	if tied, _ := r.config(t).Tied(); !tied || len(r.specs) != 2 {
		t.Errorf("tied %v, tensors %v", tied, r.specs)
	}
	if !strings.Contains(codes(r.Merge), "tied-head-once") {
		t.Errorf("decisions %s", codes(r.Merge))
	}

	for _, c := range []struct {
		name   string
		change func(m *model)
		want   []string
	}{
		{"another A", func(m *model) { m.set[saved+head+".lora_A.weight"][5] += 1.0 / 1024 }, []string{saved + head + ".lora_A.weight", "transpose"}},
		{"another B", func(m *model) { m.set[saved+head+".lora_B.weight"][11] += 1.0 / 1024 }, []string{saved + head + ".lora_B.weight", "transpose"}},
		{"another rank", func(m *model) {
			m.tensors = concat(embeddingPair(embed, 6, 4), []string{saved + head + ".lora_A.weight:1x4", saved + head + ".lora_B.weight:6x1"})
			delete(m.set, saved+head+".lora_A.weight")
			delete(m.set, saved+head+".lora_B.weight")
		}, []string{saved + head + ".lora_A.weight", "transpose"}},
		{"no embedding", func(m *model) { m.tensors = pair(head, 6, 4) }, []string{saved + head + ".lora_A.weight", "the embedding that the head is tied to has no factors"}},
		{"integers", func(m *model) {
			m.tensors = append(slices.Clone(tensors[:3]), saved+head+".lora_B.weight:u8:6x2")
		}, []string{saved + head + ".lora_B.weight", "u8"}},
		{"half a copy", func(m *model) { m.tensors = tensors[:3] }, []string{saved + head + ".lora_A.weight", "no factors like these"}},
		{"a magnitude beside it", func(m *model) { m.tensors = append(slices.Clone(tensors), saved+head+".lora_magnitude_vector:6") }, []string{saved + head, "more than the factors"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := model{config: config, tensors: tensors, set: make(map[string][]float64)}
			for name, v := range factors {
				m.set[name] = slices.Clone(v)
			}
			c.change(&m)
			_, err := planOf(t, base, []weighted{{model: m, weight: 1}}, merge.Options{})
			checkRefused(t, err, c.want...)
		})
	}
	t.Run("base that is not tied", func(t *testing.T) {
		base := tiedBase("false", true)
		r := merged(t, base, []weighted{{model: good, weight: 1}}, merge.Options{})
		checkTensor(t, r, head+".weight", plus(base.of(t, head+".weight"), 1, good.change(t, head)))
	})
}

// TestVocabulary guards that both ends and the config keep one size, and that
// the tokenizer comes along.
func TestVocabulary(t *testing.T) {
	save := `"modules_to_save":["embed_tokens","lm_head"]`
	resized := func(e, h int) model {
		return model{config: lora(save), tensors: append(pair("model.layers.0.q_proj", 4, 4),
			fmt.Sprintf("%s%s.weight:%dx4", saved, embed, e), fmt.Sprintf("%s%s.weight:%dx4", saved, head, h)),
			files: map[string]string{"tokenizer.json": "new", "vocab.json": "new too", "notes.txt": "no"}}
	}
	biased := tiedBase("false", true)
	biased.tensors = append(biased.tensors, head+".bias:6")
	base := tiedBase("false", true)
	base.files = map[string]string{"tokenizer.json": "old", "tokenizer_config.json": "old"}
	for _, c := range []struct {
		name string
		e, h int
		base model
		want string // of the refusal
	}{
		{"larger", 8, 8, base, ""},
		{"smaller", 5, 5, base, ""},
		{"embedding only", 8, 6, base, `"model.embed_tokens.weight" has 8 rows, "lm_head.weight" has 6`},
		{"head only", 6, 8, base, `"model.embed_tokens.weight" has 6 rows, "lm_head.weight" has 8`},
		{"without the bias", 8, 8, biased, `"lm_head.bias" has 6`},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := resized(c.e, c.h)
			if c.name == "without the bias" {
				a.config = lora("") // else the bias would be missed as a part of the saved module
			}
			m, err := planOf(t, c.base, []weighted{{model: a, weight: 1}}, merge.Options{})
			if c.want != "" {
				checkRefused(t, err, "lora: ", "resized for only one end", c.want)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			r, err := execute(t, m)
			if err != nil {
				t.Fatal(err)
			}
			checkTensor(t, r, embed+".weight", a.of(t, saved+embed+".weight"))
			checkTensor(t, r, head+".weight", a.of(t, saved+head+".weight"))
			if n, _ := r.config(t).Int("vocab_size"); n != int64(c.e) {
				t.Errorf("vocab_size is %d, want %d", n, c.e)
			}
			for name, from := range map[string]string{"tokenizer.json": "lora", "vocab.json": "lora", "tokenizer_config.json": "model"} {
				if s, ok := sidecar(m, name); !ok || !strings.Contains(s.Source, from) {
					t.Errorf("%s is copied from %q, want that of %s", name, s.Source, from)
				}
			}
			if _, ok := sidecar(m, "notes.txt"); ok {
				t.Error("a file of the adapter that is no tokenizer is copied")
			}
		})
	}
	t.Run("no tokenizer", func(t *testing.T) {
		a := resized(8, 8)
		a.files = nil
		m, err := planOf(t, base, []weighted{{model: a, weight: 1}}, merge.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if s, _ := sidecar(m, "tokenizer.json"); !strings.Contains(s.Source, "model") || !strings.Contains(codes(m), "tokenizer-kept") {
			t.Errorf("tokenizer from %q, decisions %s", s.Source, codes(m))
		}
	})
	t.Run("with a weight", func(t *testing.T) {
		_, err := planOf(t, base, []weighted{{model: resized(8, 8), weight: 0.5}}, merge.Options{})
		checkRefused(t, err, "another shape than the base's", "can't be weighted or combined")
	})
	t.Run("of one size, and another adapter changes the table", func(t *testing.T) {
		other := model{config: lora(""), seed: "other", tensors: embeddingPair(embed, 6, 4)}
		_, err := planOf(t, base, []weighted{{model: resized(8, 8), weight: 1}, {model: other, weight: 1}}, merge.Options{})
		checkRefused(t, err, "another shape than the base's", "can't be weighted or combined")
	})
	t.Run("same size, other values", func(t *testing.T) {
		m, err := planOf(t, base, []weighted{{model: resized(6, 6), weight: 1}}, merge.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if s, _ := sidecar(m, "tokenizer.json"); !strings.Contains(s.Source, "model") || codes(m) != "replaced" {
			t.Errorf("tokenizer from %q, decisions %s", s.Source, codes(m))
		}
	})
	t.Run("a head that was padded already", func(t *testing.T) {
		padded := base
		padded.tensors = []string{embed + ".weight:6x4", head + ".weight:8x4", "model.layers.0.q_proj.weight:4x4"}
		if _, err := planOf(t, padded, []weighted{{model: resized(7, 8), weight: 1}}, merge.Options{}); err != nil {
			t.Error(err)
		}
	})
	t.Run("other columns", func(t *testing.T) {
		a := resized(8, 8)
		a.tensors[3] = saved + head + ".weight:8x5"
		_, err := planOf(t, base, []weighted{{model: a, weight: 1}}, merge.Options{})
		checkRefused(t, err, saved+head+".weight", "its shape is [8, 5], the base's [6, 4]")
	})
}

// TestEqualTables guards that tables an adapter brings along unchanged, as PEFT
// saves them, are no change.
func TestEqualTables(t *testing.T) {
	base := tiedBase("true", false)
	a := model{config: lora(""), tensors: append(pair("model.layers.0.q_proj", 4, 4), saved+embed+".base_layer.weight:6x4"),
		set: map[string][]float64{saved + embed + ".base_layer.weight": values(embed+".weight", 24)}}
	m, err := planOf(t, base, []weighted{{model: a, weight: 1}}, merge.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range m.Plan.Steps {
		if s := &m.Plan.Steps[i]; s.Write.Tensor == embed+".weight" && (s.Read.Input != 0 || !s.Copies()) {
			t.Errorf("the embedding is read from input %d", s.Read.Input)
		}
	}
	if codes(m) != "" {
		t.Errorf("decisions %s", codes(m))
	}
}
