package extract_test

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/extract"
	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
)

// TestConsumers has what programs that serve adapters can't take, or would take for
// something else. testdata/gen/consumers.py shows with the programs that it is so.
func TestConsumers(t *testing.T) {
	const alphas, conv1D, rank = "llama-alpha-pattern [l.0.k]", "llama-conv1d [h.0.attn.c_attn.weight]", "vllm-rank []"
	two := []string{"l.0.q.weight:6x4", "l.0.k.weight:2x4"}
	wide := []string{"l.q.weight:40x30"}
	for _, c := range []struct {
		name      string
		base      *model
		options   extract.Options
		want      []string
		mentioned string // in the last of them
	}{
		{"ranks that differ", typed("llama", two...), extract.Options{}, []string{alphas}, "--plain"},
		{"ranks that differ under one alpha", typed("llama", two...), extract.Options{Alpha: 2.5}, nil, ""},
		{"plain", typed("llama", two...), extract.Options{Plain: true}, nil, ""},
		{"plain, the largest rank without an option", typed("llama", wide...), extract.Options{Plain: true, Rule: extract.Rule{Rank: 16}}, nil, ""},
		{"plain, a larger rank", typed("llama", wide...), extract.Options{Plain: true, Rule: extract.Rule{Rank: 17}}, []string{rank}, "--max-lora-rank 32 for rank 17"},
		{"a larger rank", typed("llama", wide...), extract.Options{Rule: extract.Rule{Rank: 17}}, nil, ""},
		{"plain, stored transposed", typed("gpt2", "h.0.attn.c_attn.weight:4x12"), extract.Options{Plain: true}, []string{conv1D}, "converter"},
		{"plain, more than all", typed("llama", "l.q.weight:520x515"), extract.Options{Plain: true, Rule: extract.Rule{Rank: 513}}, []string{rank}, "up to 512"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tuned := c.base.clone()
			tuned.shiftAll(0.1)
			if c.options.Rule == (extract.Rule{}) {
				c.options.Rule.Rank = 10000
			}
			dir := t.TempDir()
			x, out := run(t, c.base.write(t, filepath.Join(dir, "base")), tuned.write(t, filepath.Join(dir, "tuned")), c.options, engine.Options{})
			checkConsumers(t, x, c.want, c.mentioned)
			if c.name != "ranks that differ" {
				return
			}
			// The same holds for another rank of what was extracted.
			m, err := checkpoint.OpenAdapter(out, hfrepo.Cache{})
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			a, err := adapter.Open(m)
			if err != nil {
				t.Fatal(err)
			}
			for rank, want := range map[int64][]string{3: {alphas}, 2: nil} {
				x, err := tryResize(t, a, filepath.Join(dir, "resized"+string(rune('0'+rank))), extract.Options{Rule: extract.Rule{Rank: rank}})
				if err != nil {
					t.Fatal(err)
				}
				checkConsumers(t, x, want, "")
			}
		})
	}
}

func checkConsumers(t *testing.T, x *extract.Extraction, want []string, mentioned string) {
	t.Helper()
	var got []string
	message := ""
	for _, d := range x.Plan.Decisions {
		if strings.HasPrefix(d.Code, "llama-") || strings.HasPrefix(d.Code, "vllm-") {
			got, message = append(got, d.Code+" ["+strings.Join(d.Tensors, " ")+"]"), d.Message
		}
	}
	if !slices.Equal(got, want) || !strings.Contains(message, mentioned) {
		t.Errorf("decisions %q (%s), want %q with %q", got, message, want, mentioned)
	}
}
