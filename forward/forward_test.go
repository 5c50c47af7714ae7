package forward_test

import (
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/forward"
	"github.com/loratool/loratool/internal/strictjson"
	"github.com/loratool/loratool/quant/block"
)

const golden = "../testdata/golden/forward"

var cases = []string{"llama", "llama3", "llama-linear", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"}

func open(t *testing.T, path string) *checkpoint.Model {
	t.Helper()
	m, err := checkpoint.Open(path, hfrepo.Cache{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func sequences(t *testing.T, name string) (ids [][]int64) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(golden, name, "ids.json"))
	if err == nil {
		err = json.Unmarshal(data, &ids)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

func wanted(t *testing.T, name string) []float32 {
	t.Helper()
	m := open(t, filepath.Join(golden, name, "logits.safetensors"))
	src, err := m.Open("logits")
	if err != nil {
		t.Fatal(err)
	}
	spec, _ := m.Lookup("logits")
	raw := make([]byte, spec.Size())
	if n, err := src.ReadAt(raw, 0); n < len(raw) {
		t.Fatal(err)
	}
	want := make([]float32, spec.NumElements())
	f32, _ := block.For(tensor.F32)
	f32.Decode32(want, raw)
	return want
}

func run(t *testing.T, d *forward.Decoder, ids [][]int64, threads int) []float32 {
	t.Helper()
	got, err := d.Logits(t.Context(), ids, threads)
	if err != nil {
		t.Fatal(err)
	}
	return got.Data
}

// TestLogits compares with the float32 logits of transformers. Both sides round sums
// of at most 24 products in some thirty operations one after another, at 2^-24 each:
// logits of a few units agree to 1e-4 with a large margin, and to no more than that
// for a setting that is not followed (TestSettingsCount).
func TestLogits(t *testing.T) {
	for _, name := range cases {
		t.Run(name, func(t *testing.T) {
			m := open(t, filepath.Join(golden, name))
			d, err := forward.New(m.Config, m)
			if err != nil {
				t.Fatal(err)
			}
			ids, want := sequences(t, name), wanted(t, name)
			got := run(t, d, ids, 1)
			if len(got) != len(want) {
				t.Fatalf("%d logits, want %d", len(got), len(want))
			}
			largest := 0.0
			for i := range want {
				largest = max(largest, math.Abs(float64(got[i]-want[i])))
			}
			t.Logf("largest difference %.2g", largest)
			if !(largest <= 1e-4) {
				t.Errorf("largest difference %.3g, want at most 1e-4", largest)
			}
		})
	}
}

// TestAlone: a sequence's logits do not depend on the others of the batch, nor on
// threads, and those of a token not on what comes behind it.
func TestAlone(t *testing.T) {
	for _, name := range cases {
		m := open(t, filepath.Join(golden, name))
		d, err := forward.New(m.Config, m)
		if err != nil {
			t.Fatal(err)
		}
		ids := sequences(t, name)
		all := run(t, d, ids, 2)
		short := run(t, d, [][]int64{ids[0][:5], ids[1]}, 1)
		width, first := d.Vocabulary(), len(ids[0])
		for i := range short {
			at := i
			if i >= 5*width {
				at += (first - 5) * width
			}
			want := all[at]
			if short[i] != want {
				t.Fatalf("%s: logit %d is %v alone and %v with others", name, i, short[i], want)
			}
		}
	}
}

// edited returns a config with a setting changed; "" deletes it.
func edited(t *testing.T, c *strictjson.Object, key, value string) *strictjson.Object {
	t.Helper()
	o, err := strictjson.ParsePythonObject(c.Encode(""))
	if err != nil {
		t.Fatal(err)
	}
	o.Delete(key)
	if value == "" {
		return o
	}
	v, err := strictjson.ParsePythonObject([]byte(`{"v":` + value + `}`))
	if err != nil {
		t.Fatal(err)
	}
	set, _ := v.Get("v")
	o.Set(key, set)
	return o
}

// TestSettingsCount: each setting that the golden models have moves the logits by more
// than the tolerance, so that TestLogits sees it.
func TestSettingsCount(t *testing.T) {
	for _, c := range []struct{ model, key, value string }{
		{"llama", "rms_norm_eps", "0.01"},
		{"llama3", "rope_parameters", `{"rope_type":"default","rope_theta":10000.0}`},
		{"llama-linear", "rope_parameters", `{"rope_type":"linear","rope_theta":500.0,"factor":2.0}`},
		{"mistral", "sliding_window", "null"},
		{"qwen2", "use_sliding_window", "false"},
		{"qwen3", "rope_parameters", `{"rope_type":"default","rope_theta":10000.0}`},
		{"gemma", "hidden_act", `"silu"`},
		{"gemma2", "attn_logit_softcapping", "null"},
		{"gemma2", "final_logit_softcapping", "null"},
		{"gemma2", "query_pre_attn_scalar", "8"},
		{"gemma3", "layer_types", `["full_attention","full_attention","sliding_attention"]`},
	} {
		m := open(t, filepath.Join(golden, c.model))
		config := edited(t, m.Config, c.key, c.value)
		if c.model == "qwen2" {
			config = edited(t, config, "layer_types", "")
		}
		d, err := forward.New(config, m)
		if err != nil {
			t.Fatalf("%s with %s %s: %v", c.model, c.key, c.value, err)
		}
		want, largest := wanted(t, c.model), 0.0
		for i, v := range run(t, d, sequences(t, c.model), 1) {
			largest = max(largest, math.Abs(float64(v-want[i])))
		}
		if largest <= 1e-3 {
			t.Errorf("%s: %s %s moves the logits by %.2g only", c.model, c.key, c.value, largest)
		}
	}
}

// TestRefused: what is not done is named.
func TestRefused(t *testing.T) {
	for _, c := range []struct{ model, key, value, setting string }{
		{"llama", "model_type", `"mamba"`, "model_type"},
		{"llama", "hidden_act", `"relu"`, "hidden_act"},
		{"gemma2", "hidden_activation", `"gelu"`, "hidden_activation"},
		{"gemma", "use_bidirectional_attention", "true", "use_bidirectional_attention"},
		{"llama", "rope_scaling", `{"rope_type":"yarn","factor":2.0}`, "rope_type"},
		{"llama", "rope_scaling", `{"type":"dynamic","factor":2.0}`, "rope_type"},
		{"qwen2", "layer_types", `["full_attention","chunked_attention"]`, "layer_types"},
	} {
		m := open(t, filepath.Join(golden, c.model))
		_, err := forward.New(edited(t, m.Config, c.key, c.value), m)
		var unsupported *forward.UnsupportedError
		if !errors.As(err, &unsupported) || unsupported.Setting != c.setting {
			t.Errorf("%s with %s %s: %v, want an UnsupportedError about %s", c.model, c.key, c.value, err, c.setting)
		}
	}
}

// TestHostile: sizes that fit nothing are errors, never a panic.
func TestHostile(t *testing.T) {
	m := open(t, filepath.Join(golden, "qwen3"))
	for key, values := range map[string][]string{
		"num_hidden_layers":   {"0", "-1", "3", "1e3", "99999999999", `"two"`, ""},
		"num_attention_heads": {"0", "3", "-4", "4611686018427387904", "[4]", ""},
		"num_key_value_heads": {"0", "3", "8", ""},
		"head_dim":            {"0", "7", "-8", "1099511627776", "1073741824", ""},
		"hidden_size":         {"0", "17", "", "null"},
		"vocab_size":          {"0", "31", "33", ""},
		"rms_norm_eps":        {"-1", `"x"`, "true"},
		"rope_parameters":     {`{"rope_theta":0}`, `{"rope_theta":-1.0}`, `{"rope_type":"linear"}`, `{"rope_type":"llama3","factor":8.0}`, `{"rope_type":"linear","factor":0}`},
		"attention_bias":      {"true", "7"},
	} {
		for _, v := range values {
			if _, err := forward.New(edited(t, m.Config, key, v), m); err == nil {
				t.Errorf("%s %s: no error", key, v)
			}
		}
	}
	if _, err := forward.New(nil, m); err == nil {
		t.Error("without a config: no error")
	}
	d, err := forward.New(m.Config, m)
	if err != nil {
		t.Fatal(err)
	}
	for _, ids := range [][][]int64{{{-1}}, {{1}, {0, 32}}, {{math.MaxInt64}}} {
		_, err := d.Logits(t.Context(), ids, 1)
		var token *forward.TokenError
		if !errors.As(err, &token) {
			t.Errorf("tokens %v: %v, want a TokenError", ids, err)
		}
	}
	if got := run(t, d, nil, 1); len(got) != 0 {
		t.Errorf("no sequence: %d logits", len(got))
	}
}
