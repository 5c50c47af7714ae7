package merge_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/merge"
)

// TestPlanIsStable guards that the same inputs give the same plan, layout, card
// and metadata, again and again: no map order reaches them.
func TestPlanIsStable(t *testing.T) {
	cases := filepath.Join("..", "testdata", "golden", "peft", "cases")
	bases := filepath.Join("..", "testdata", "golden", "peft", "bases")
	for _, c := range []struct{ base, adapter string }{
		{"llama", "lora-llama-linear"}, {"llama", "lora-llama-patterns"}, {"llama-tied", "lora-tied-ensure-targets"}, {"mixtral-perexpert", "lora-mixtral-experts-perexpert"},
		{"llama", "adalora-llama"}, {"llama", "vera-llama-regenerated"}, {"fp8-block", "lora-fp8-block"}, {"llama", "lora-llama-replication"}, {"bert-cls", "lora-bert-cls-bias-all"},
	} {
		t.Run(c.adapter, func(t *testing.T) {
			base, err := checkpoint.Open(filepath.Join(bases, c.base), hfrepo.Cache{})
			if err != nil {
				t.Fatal(err)
			}
			defer base.Close()
			var first *merge.Merge
			for range 5 {
				source, err := checkpoint.OpenAdapter(filepath.Join(cases, c.adapter, "adapter"), hfrepo.Cache{})
				if err != nil {
					t.Fatal(err)
				}
				defer source.Close()
				a, err := adapter.Open(source)
				if err != nil {
					t.Fatal(err)
				}
				m, err := merge.Plan(base, []merge.Source{{Adapter: a, Weight: 0.5}}, merge.Options{Output: "out", Version: "v1"})
				if err != nil {
					t.Fatal(err)
				}
				if first == nil {
					first = m
					continue
				}
				samePlan(t, m, first)
			}
		})
	}
}

// samePlan compares two merges of the same inputs.
func samePlan(t *testing.T, a, b *merge.Merge) {
	t.Helper()
	if !reflect.DeepEqual(a.Plan, b.Plan) {
		x, _ := json.Marshal(a.Plan)
		y, _ := json.Marshal(b.Plan)
		t.Fatalf("plans differ:\n%s\n%s", x, y)
	}
	if !reflect.DeepEqual(a.Metadata(nil), b.Metadata(nil)) {
		t.Fatalf("metadata differ:\n%v\n%v", a.Metadata(nil), b.Metadata(nil))
	}
	if len(a.Layout.Files) != len(b.Layout.Files) || len(a.Layout.Sidecars) != len(b.Layout.Sidecars) {
		t.Fatalf("layouts differ")
	}
	for i := range a.Layout.Files {
		if !reflect.DeepEqual(a.Layout.Files[i].Tensors(), b.Layout.Files[i].Tensors()) {
			t.Fatalf("tensors of file %d differ", i)
		}
	}
	for i, s := range a.Layout.Sidecars {
		if o := b.Layout.Sidecars[i]; s.Name != o.Name || s.Source != o.Source || string(s.Data) != string(o.Data) || s.Size != o.Size {
			t.Fatalf("side file %d differs: %q %q\n%s\n%s", i, s.Name, o.Name, s.Data, o.Data)
		}
	}
}

// cardOf is the README.md of a merge and its front matter.
func cardOf(t *testing.T, m *merge.Merge) (card string, front map[string]any) {
	t.Helper()
	s, ok := sidecar(m, "README.md")
	if !ok {
		t.Fatal("no card")
	}
	card = string(s.Data)
	head, _, ok := strings.Cut(strings.TrimPrefix(card, "---\n"), "\n---\n")
	if !ok {
		t.Fatalf("no front matter in\n%s", card)
	}
	if err := yaml.Unmarshal([]byte(head), &front); err != nil {
		t.Fatal(err)
	}
	return card, front
}

// TestCard guards what the card says and what it hands down.
func TestCard(t *testing.T) {
	base := linear
	base.name = "llama"
	base.files = map[string]string{"README.md": "---\r\nlicense: llama3\r\nlicense_link: https://x\r\npipeline_tag: text-generation\r\ntags: [a]\r\n---\r\n# Old\n", "tokenizer.json": "{}"}
	a := model{name: "style", config: lora(`"use_new_thing":1`), tensors: pair("m.q", 4, 6)}
	m, err := planOf(t, base, []weighted{{model: a, weight: -0.25}}, merge.Options{Version: "v1.2", DType: tensor.BF16})
	if err != nil {
		t.Fatal(err)
	}
	card, front := cardOf(t, m)
	want := map[string]any{
		"base_model": []any{"llama", "style"}, "base_model_relation": "merge", "library_name": "transformers", "pipeline_tag": "text-generation",
		"license": "llama3", "license_link": "https://x", "tags": []any{"merge", "loratool"},
	}
	if !reflect.DeepEqual(front, want) {
		t.Errorf("front matter %v, want %v", front, want)
	}
	for _, line := range []string{
		"# llama + style\n", "loratool) v1.2.\n", "| base llama |  | model.safetensors | `" + strings.Repeat("0", 64) + "` |\n",
		"| adapter style | -0.25 | adapter_model.safetensors | `", "rounded once to bf16;", "Decisions:\n\n- adapter_config.json of style has keys that are not understood: _use_new_thing_\n",
	} {
		if !strings.Contains(card, line) {
			t.Errorf("no %q in\n%s", line, card)
		}
	}
	if strings.Contains(card, "Old") || strings.Contains(card, os.TempDir()) {
		t.Errorf("the base's text or a path in\n%s", card)
	}

	// The hashes come later, at the same length.
	hashes := make(map[string]string)
	for i, in := range m.Plan.Inputs {
		for j, f := range in.Files {
			hashes[f.Path] = strings.Repeat(string(rune('a'+i*3+j)), 64)
		}
	}
	before := m.Metadata(nil)
	after := m.SetHashes(hashes)
	s, _ := sidecar(m, "README.md")
	final := string(s.Final())
	if int64(len(final)) != s.Size || strings.Contains(final, "0000") || !strings.Contains(final, "| base llama |  | config.json | `"+strings.Repeat("a", 64)+"` |") {
		t.Errorf("final card of %d bytes, planned %d:\n%s", len(final), s.Size, final)
	}
	if len(after["loratool"]) != len(before["loratool"]) || strings.Contains(after["loratool"], "0000") {
		t.Errorf("metadata %s, planned %s", after["loratool"], before["loratool"])
	}
	var provenance struct {
		Tool, Version, Command string
		Options                map[string]any
		Inputs                 []struct {
			Role, Name string
			Weight     *float64
			SHA256     map[string]string
		}
	}
	if err := json.Unmarshal([]byte(after["loratool"]), &provenance); err != nil {
		t.Fatal(err)
	}
	p := provenance
	if p.Tool != "loratool" || p.Version != "v1.2" || p.Options["dtype"] != "bf16" || len(p.Inputs) != 2 || *p.Inputs[1].Weight != -0.25 || p.Inputs[0].Weight != nil ||
		p.Inputs[0].SHA256["config.json"] != strings.Repeat("a", 64) || strings.Contains(after["loratool"], os.TempDir()) {
		t.Errorf("provenance %s", after["loratool"])
	}
}

// TestCardEscapes guards that names and texts from inputs stay text: no table
// cells, no links, no tags, no lines of their own.
func TestCardEscapes(t *testing.T) {
	base := linear
	base.name = "a|b[c](d) <img> `x` *y*\u202e\u2028"
	base.files = map[string]string{"README.md": "---\nlicense: \"x\\n---\\n# Injected\"\npipeline_tag: '| input |'\n---\n"}
	a := model{name: "lora\\", config: lora(`"evil <script>|\n# Injected":1`), tensors: pair("m.q", 4, 6)}
	if err := os.Mkdir(filepath.Join(t.TempDir(), base.name), 0o777); err != nil {
		t.Skip("no such names here: ", err)
	}
	for _, quiet := range []bool{false, true} {
		m, err := planOf(t, base, []weighted{{model: a, weight: 1}}, merge.Options{NoProvenance: quiet})
		if err != nil {
			t.Fatal(err)
		}
		card, front := cardOf(t, m)
		if front["license"] != "x\n---\n# Injected" || front["pipeline_tag"] != "| input |" {
			t.Errorf("front matter %v", front)
		}
		_, body, _ := strings.Cut(card, "\n---\n\n")
		for _, bad := range []string{"\n# Injected", "<", "[c]", "`x`", "*", "\u202e", "\u2028", "a|b", "\\"} {
			if strings.Contains(body, bad) {
				t.Errorf("%q in\n%s", bad, body)
			}
		}
		for _, row := range strings.Split(body, "\n") {
			if strings.HasPrefix(row, "|") && strings.Count(row, "|") != 5 {
				t.Errorf("a row of other columns: %s", row)
			}
		}
		if !strings.Contains(body, "Merged with [loratool]") || !strings.Contains(body, "tensors without a change are copies") {
			t.Errorf("text is missing in\n%s", body)
		}
	}
}

// TestNoProvenance guards that names and hashes of the inputs stay out.
func TestNoProvenance(t *testing.T) {
	base := linear
	base.name = "secret-base"
	a := model{name: "secret-lora", config: lora(`"use_new_thing":1`), tensors: append(pair("m.q", 4, 6), "base_model.model.m.norm.weight:6")}
	m, err := planOf(t, base, []weighted{{model: a, weight: 1}}, merge.Options{NoProvenance: true, Version: "v1"})
	if err != nil {
		t.Fatal(err)
	}
	if !m.Plan.Unhashed {
		t.Error("hashes are made that nothing takes")
	}
	card, front := cardOf(t, m)
	if strings.Contains(card, "secret") || strings.Contains(card, "0000") {
		t.Errorf("card\n%s", card)
	}
	if _, ok := front["base_model"]; ok {
		t.Errorf("front matter %v", front)
	}
	if md := m.Metadata(nil); len(md) != 1 || md["format"] != "pt" {
		t.Errorf("metadata %v", md)
	}
}

// TestMetadata guards that the base's metadata is kept, and an earlier
// provenance goes into the new one.
func TestMetadata(t *testing.T) {
	m, err := planOf(t, linear, []weighted{{model: model{config: lora(""), tensors: pair("m.q", 4, 6)}, weight: 1}}, merge.Options{Version: "v1"})
	if err != nil {
		t.Fatal(err)
	}
	md := m.Metadata(nil)
	if len(md) != 2 || md["format"] != "pt" || !strings.HasPrefix(md["loratool"], `{"tool":`) {
		t.Errorf("metadata %v", md)
	}
	again := linear
	again.meta = map[string]string{"loratool": "the first merge", "author": "somebody"}
	for _, quiet := range []bool{false, true} {
		m, err := planOf(t, again, []weighted{{model: model{config: lora(""), tensors: pair("m.q", 4, 6)}, weight: 1}}, merge.Options{NoProvenance: quiet})
		if err != nil {
			t.Fatal(err)
		}
		md := m.Metadata(nil)
		if md["author"] != "somebody" || strings.Contains(md["loratool"], `"previous": "the first merge"`) == quiet || quiet && md["loratool"] != "" {
			t.Errorf("without provenance %v: metadata %v", quiet, md)
		}
	}
}

// TestOutputs guards what stands beside the weights in each form of output.
func TestOutputs(t *testing.T) {
	base := linear
	base.files = map[string]string{"tokenizer.json": "{}", "modeling.py": "", "model.bin": "", "README.md": ""}
	a := []weighted{{model: model{config: lora(""), tensors: pair("m.q", 4, 6)}, weight: 1}}
	names := func(m *merge.Merge) string {
		var all []string
		for _, f := range m.Layout.Files {
			all = append(all, f.Name)
		}
		for _, s := range m.Layout.Sidecars {
			all = append(all, s.Name)
		}
		return strings.Join(all, " ")
	}
	for _, c := range []struct {
		options merge.Options
		want    string
		codes   string
	}{
		{merge.Options{Output: "out"}, "model.safetensors config.json modeling.py tokenizer.json README.md", "custom-code"},
		{merge.Options{Output: "out.safetensors"}, "out.safetensors", ""},
		{merge.Options{Output: "out.safetensors", DType: tensor.F16}, "out.safetensors", "config-not-written"},
		{merge.Options{Output: "out", ShardSize: 100}, "model-00001-of-00002.safetensors model-00002-of-00002.safetensors config.json modeling.py tokenizer.json README.md model.safetensors.index.json", "custom-code"},
	} {
		m, err := planOf(t, base, a, c.options)
		if err != nil {
			t.Fatal(err)
		}
		if got := names(m); got != c.want || codes(m) != c.codes {
			t.Errorf("%+v: files %s, decisions %s; want %s and %s", c.options, got, codes(m), c.want, c.codes)
		}
	}
}
