package adapter_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/adapter"
)

// TestPatterns guards PEFT's rule for rank_pattern and alpha_pattern: in file
// order, the first key K for which (.*\.)?(K)$ matches from the start.
func TestPatterns(t *testing.T) {
	for _, c := range []struct {
		name     string
		patterns string // members of rank_pattern
		module   string
		want     int64 // 8 is the default
	}{
		{"whole name", `"m.0.q_proj":2`, "m.0.q_proj", 2},
		{"ending", `"q_proj":2`, "m.0.q_proj", 2},
		{"ending inside a component", `"proj":2`, "m.0.q_proj", 8},
		{"longer than the name", `"x.m.0.q_proj":2`, "m.0.q_proj", 8},
		{"not at the end", `"m.0":2`, "m.0.q_proj", 8},
		{"first of two", `"q_proj":2,"m.0.q_proj":3`, "m.0.q_proj", 2},
		{"first of two in the other order", `"m.0.q_proj":3,"q_proj":2`, "m.0.q_proj", 3},
		{"second where the first fails", `"k_proj":2,".*q_proj":3`, "m.0.q_proj", 3},
		{"a point is any character", `"m.0.q.proj":2`, "m.0.q_proj", 2},
		{"alternation", `"q_proj|k_proj":2`, "m.0.k_proj", 2},
		{"alternation does not leave the group", `"q_proj|k_proj":2`, "m.0.k_projection", 8},
		{"closed group", `"k)|(q_proj":2`, "m.0.q_proj", 8},
		{"anchor at the start is the root", `"^q_proj":2`, "m.0.q_proj", 8},
		{"anchored root", `"^q_proj":2`, "q_proj", 2},
		{"anchored whole name", `"^m\\.0\\.q_proj":2`, "m.0.q_proj", 2},
		{"anchor at the end", `"q_proj$":2`, "m.0.q_proj", 2},
		{"digits", `"m\\.\\d+\\.q_proj":2`, "m.17.q_proj", 2},
		{"class", `"layers\\.[0-3]\\..*":2`, "m.layers.2.mlp.up", 2},
		{"class does not reach", `"layers\\.[0-3]\\..*":2`, "m.layers.4.mlp.up", 8},
		{"bounded repeat", `"m\\.0{1,2}\\.q_proj":2`, "m.00.q_proj", 2},
		{"none", ``, "m.0.q_proj", 8},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := mustParse(t, fmt.Sprintf(`{"peft_type":"LORA","r":8,"lora_alpha":16,"rank_pattern":{%s}}`, c.patterns))
			if got := cfg.RankOf(c.module); got != c.want {
				t.Errorf("rank of %q is %d, want %d", c.module, got, c.want)
			}
		})
	}
}

// TestBrokenPatterns guards what happens to expressions that Go can't evaluate,
// or evaluates otherwise: alpha can't be known then, a rank may show.
func TestBrokenPatterns(t *testing.T) {
	for _, key := range []string{`(?!k_)q_proj`, `(?<=m)q`, `(q)_\\1`, `q_proj\\Z`, `q++`, `q{,3}`, `(q`, strings.Repeat("q", 4097)} {
		config := fmt.Sprintf(`{"peft_type":"LORA","r":8,"lora_alpha":16,"rank_pattern":{"%s":2,"k_proj":3}}`, key)
		c := mustParse(t, config)
		if len(c.RankPattern.Broken) != 1 || c.RankOf("m.q_proj") != 8 || c.RankOf("m.k_proj") != 3 {
			t.Errorf("%.20s: broken %q, ranks %d and %d", key, c.RankPattern.Broken, c.RankOf("m.q_proj"), c.RankOf("m.k_proj"))
		}
		_, err := parse(t, fmt.Sprintf(`{"peft_type":"LORA","r":8,"lora_alpha":16,"alpha_pattern":{"%s":2}}`, key))
		checkError(t, err, "alpha_pattern", "scale", "not known")
	}
}

func TestScale(t *testing.T) {
	for _, c := range []struct {
		config string
		want   float64
	}{
		{`"r":4,"lora_alpha":8`, 2},
		{`"r":4,"lora_alpha":8,"use_rslora":true`, 4},
		{`"r":4,"lora_alpha":8,"rank_pattern":{"q":16}`, 0.5},
		{`"r":4,"lora_alpha":8,"rank_pattern":{"q":16},"use_rslora":true`, 2},
		{`"r":4,"lora_alpha":8,"rank_pattern":{"q":16},"alpha_pattern":{"q":32}`, 2},
		{`"r":4,"lora_alpha":8,"alpha_pattern":{"k":32}`, 2},
		{`"r":4,"lora_alpha":0`, 0},
		{`"r":4,"lora_alpha":-2`, -0.5},
	} {
		cfg := mustParse(t, `{"peft_type":"LORA",`+c.config+`}`)
		if got := cfg.ScaleOf("m.q"); got != c.want {
			t.Errorf("%s: scale %v, want %v", c.config, got, c.want)
		}
	}
}

// TestMatcher guards the three forms of target_modules.
func TestMatcher(t *testing.T) {
	for _, c := range []struct {
		name    string
		targets string
		yes, no string // modules
		known   bool
	}{
		{"list", `["q_proj","m.1.k"]`, "q_proj m.0.q_proj m.1.k x.m.1.k", "xq_proj m.q_proj.x m.11.k q", true},
		{"expression, whole name", `".*\\.(q|k)_proj"`, "m.0.q_proj m.k_proj", "q_proj m.q_proj.x m.v_proj", true},
		{"expression with open alternation", `"a|b"`, "a b", "ab xa bx a.b", true},
		{"expression without a point", `"q_proj"`, "q_proj", "m.q_proj", true},
		{"all linear layers", `"all-linear"`, "", "m.q_proj all-linear", false},
		{"all linear layers, shouted", `"ALL-Linear"`, "", "m.q_proj", false},
		{"broken expression", `"(?!a)b"`, "", "b (?!a)b", false},
		{"null", `null`, "", "m.q", true},
		{"empty list", `[]`, "", "m.q", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := mustParse(t, `{"peft_type":"LORA","r":1,"lora_alpha":1,"target_modules":`+c.targets+`}`)
			for _, m := range strings.Fields(c.yes) {
				if !cfg.Targets.Match(m) {
					t.Errorf("%q is not covered", m)
				}
			}
			for _, m := range strings.Fields(c.no) {
				if cfg.Targets.Match(m) {
					t.Errorf("%q is covered", m)
				}
			}
			if cfg.Targets.Known() != c.known {
				t.Errorf("known: %v", cfg.Targets.Known())
			}
		})
	}
	if (adapter.Matcher{}).Match("m.q") || !(adapter.Matcher{}).Empty() || !(adapter.Matcher{}).Known() {
		t.Error("the zero value covers something")
	}
}

// TestMatchEnding guards the looser rule of IA3's feed-forward list.
func TestMatchEnding(t *testing.T) {
	list := mustParse(t, `{"peft_type":"IA3","feedforward_modules":["proj","mlp.up"]}`).FeedForward
	for module, want := range map[string]bool{"m.c_proj": true, "proj": true, "m.mlp.up": true, "m.xmlp.up": true, "m.projector": false} {
		if got := list.MatchEnding(module); got != want {
			t.Errorf("%q: %v, want %v", module, got, want)
		}
	}
	expr := mustParse(t, `{"peft_type":"IA3","feedforward_modules":".*\\.proj"}`).FeedForward
	if !expr.MatchEnding("m.proj") || expr.MatchEnding("m.c_proj") {
		t.Error("an expression must match the whole name")
	}
}

// TestCovers guards which modules a config is about.
func TestCovers(t *testing.T) {
	for _, c := range []struct {
		name    string
		config  string
		yes, no string
	}{
		{"targets", `"target_modules":["q","k"]`, "m.layers.0.q m.k", "m.v"},
		{"excluded by name", `"target_modules":["q"],"exclude_modules":["layers.1.q"]`, "m.layers.0.q", "m.layers.1.q"},
		{"excluded by expression", `"target_modules":["q"],"exclude_modules":".*\\.1\\..*"`, "m.layers.0.q", "m.layers.1.q"},
		{"saved whole", `"target_modules":["q","head"],"modules_to_save":["head"]`, "m.q", "head m.head head.q m.head.q"},
		{"saved by path", `"target_modules":["q"],"modules_to_save":["a.b"]`, "m.q a.q a.x.b.q", "m.a.b.q a.b.q"},
		{"some layers", `"target_modules":["q"],"layers_to_transform":[1,3]`, "m.layers.1.q m.layers.3.q", "m.layers.0.q m.q m.layers.11.q"},
		{"one layer", `"target_modules":["q"],"layers_to_transform":0`, "m.layers.0.q", "m.layers.1.q"},
		{"layers of one list", `"target_modules":["q"],"layers_to_transform":[1],"layers_pattern":"h"`, "m.h.1.q", "m.layers.1.q m.layers.1.h.2.q"},
		{"layers of two lists", `"target_modules":["q"],"layers_to_transform":[1],"layers_pattern":["h","blocks"]`, "m.h.1.q m.blocks.1.q", "m.layers.1.q"},
		{"an expression names its layers itself", `"target_modules":".*q","layers_to_transform":[1]`, "m.layers.0.q", "m.k"},
		{"null is all layers", `"target_modules":["q"],"layers_to_transform":null,"layers_pattern":null`, "m.layers.5.q m.q", "m.k"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := mustParse(t, `{"peft_type":"LORA","r":1,"lora_alpha":1,`+c.config+`}`)
			for _, m := range strings.Fields(c.yes) {
				if !cfg.Covers(m) {
					t.Errorf("%q is not covered", m)
				}
			}
			for _, m := range strings.Fields(c.no) {
				if cfg.Covers(m) {
					t.Errorf("%q is covered", m)
				}
			}
		})
	}
}
