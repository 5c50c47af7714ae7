package mix_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/quant/mix"
)

// metadata returns keys from pairs of key and value.
func metadata(pairs ...any) *gguf.Metadata {
	keys := new(gguf.Metadata)
	for i := 0; i < len(pairs); i += 2 {
		key := pairs[i].(string)
		switch v := pairs[i+1].(type) {
		case string:
			keys.Set(key, gguf.ValueOf(v))
		case int:
			keys.Set(key, gguf.ValueOf(uint32(v)))
		case int64:
			keys.Set(key, gguf.ValueOf(v))
		case float64:
			keys.Set(key, gguf.ValueOf(v))
		case []int32:
			keys.Set(key, gguf.ArrayOf(v))
		}
	}
	return keys
}

func TestModelOf(t *testing.T) {
	const arch = "general.architecture"
	for _, c := range []struct {
		name string
		keys *gguf.Metadata
		want mix.Model
		err  string
	}{
		{"plain", metadata(arch, "llama", "llama.block_count", 4, "llama.attention.head_count", 8, "llama.attention.head_count_kv", 2),
			mix.Model{Arch: "llama", Layers: 4, Heads: 8, HeadsKV: 2}, ""},
		{"own heads", metadata(arch, "llama", "llama.block_count", 4, "llama.attention.head_count", 8),
			mix.Model{Arch: "llama", Layers: 4, Heads: 8, HeadsKV: 8}, ""},
		{"no heads", metadata(arch, "mamba", "mamba.block_count", 4), mix.Model{Arch: "mamba", Layers: 4}, ""},
		{"heads per block", metadata(arch, "x", "x.block_count", 2, "x.attention.head_count", []int32{8, 4}, "x.attention.head_count_kv", []int32{0, 4}),
			mix.Model{Arch: "x", Layers: 2, Heads: 8}, ""},
		{"experts", metadata(arch, "x", "x.block_count", 2, "x.expert_count", 64), mix.Model{Arch: "x", Layers: 2, Experts: 64}, ""},
		{"file type", metadata(arch, "x", "x.block_count", 2, "general.file_type", 0), mix.Model{Arch: "x", Layers: 2, HasFileType: true}, ""},
		{"encoder", metadata(arch, "clip"), mix.Model{Arch: "clip"}, ""},
		{"further layers", metadata(arch, "qwen2", "qwen2.block_count", 81, "qwen2.nextn_predict_layers", 1),
			mix.Model{Arch: "qwen2", Layers: 81, Large: true}, ""},
		{"switch", metadata(arch, "graniteswitch", "graniteswitch.block_count", 40), mix.Model{Arch: "graniteswitch", Layers: 41}, ""},
		{"switch with a further layer", metadata(arch, "graniteswitch", "graniteswitch.block_count", 40, "graniteswitch.nextn_predict_layers", 2),
			mix.Model{Arch: "graniteswitch", Layers: 39}, ""},
		{"loops", metadata(arch, "nanbeige", "nanbeige.block_count", 8, "nanbeige.nextn_predict_layers", 1, "nanbeige.num_loops", 3),
			mix.Model{Arch: "nanbeige", Layers: 21}, ""},
		{"one loop", metadata(arch, "nanbeige", "nanbeige.block_count", 8, "nanbeige.nextn_predict_layers", 1), mix.Model{Arch: "nanbeige", Layers: 8}, ""},
		{"no architecture", metadata("general.type", "model"), mix.Model{}, `key "general.architecture": missing`},
		{"adapter", metadata(arch, "llama", "general.type", "adapter"), mix.Model{}, `key "general.type": "adapter" is no model`},
		{"imatrix", metadata("general.type", "imatrix"), mix.Model{}, `key "general.type": "imatrix" is no model`},
		{"no blocks", metadata(arch, "llama"), mix.Model{}, `key "llama.block_count": missing`},
		{"zero blocks", metadata(arch, "llama", "llama.block_count", 0), mix.Model{}, "0 is not between 1 and 512"},
		{"too many blocks", metadata(arch, "llama", "llama.block_count", 513), mix.Model{}, "513 is not between 1 and 512"},
		{"blocks are text", metadata(arch, "llama", "llama.block_count", "4"), mix.Model{}, "not an integer"},
		{"only further layers", metadata(arch, "x", "x.block_count", 2, "x.nextn_predict_layers", 3), mix.Model{}, "3 is not between 0 and 2"},
		{"negative experts", metadata(arch, "x", "x.block_count", 2, "x.expert_count", int64(-8)), mix.Model{}, "-8 is not between"},
		{"heads of other blocks", metadata(arch, "x", "x.block_count", 3, "x.attention.head_count", []int32{8, 4}), mix.Model{}, "2 numbers for 3 blocks"},
		{"negative heads", metadata(arch, "x", "x.block_count", 1, "x.attention.head_count", []int32{-8}), mix.Model{}, "-8 is negative"},
		{"broken heads", metadata(arch, "x", "x.block_count", 1, "x.attention.head_count", 0.5), mix.Model{}, "not an integer"},
		{"too many loops", metadata(arch, "nanbeige", "nanbeige.block_count", 100, "nanbeige.num_loops", 6), mix.Model{}, "6 is not between 1 and 5"},
		{"file type below zero", metadata(arch, "x", "general.file_type", int64(-1)), mix.Model{}, "-1 is no file type"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := mix.ModelOf(c.keys)
			if c.err == "" {
				if err != nil || got != c.want {
					t.Errorf("%+v %v, want %+v", got, err, c.want)
				}
				return
			}
			var key *gguf.KeyError
			if !errors.As(err, &key) || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%v, want %s", err, c.err)
			}
		})
	}
}

func TestParseFileType(t *testing.T) {
	for _, f := range mix.FileTypes() {
		for _, text := range []string{f.String(), strings.ToLower(f.String()), fmt.Sprint(uint32(f))} {
			if got, err := mix.ParseFileType(text); err != nil || got != f {
				t.Errorf("%s: %s %v, want %s", text, got, err, f)
			}
		}
	}
	if n := len(mix.FileTypes()); n != 35 {
		t.Errorf("%d file types", n)
	}
	for text, want := range map[string]mix.FileType{
		"q3_k": mix.Q3KM, "Q4_K": mix.Q4KM, "q5_k": mix.Q5KM, "copy": mix.Copy, "0": mix.F32, "15": mix.Q4KM, "41": mix.Q2_0, "021": mix.Q2KS,
	} {
		if got, err := mix.ParseFileType(text); err != nil || got != want {
			t.Errorf("%s: %s %v, want %s", text, got, err, want)
		}
	}
	// Of "7abc" and "-0", the reference reads what it can.
	for _, text := range []string{"", "q4", "q4_k_x", "4", "5", "33", "39", "nvfp4", "42", "1024", "4294967295", "7abc", "-0", " 7", "q8_0 ", "q4_2"} {
		got, err := mix.ParseFileType(text)
		var option *mix.OptionError
		if !errors.As(err, &option) {
			t.Errorf("%q: %s %v", text, got, err)
		}
	}
	for _, text := range []string{"nvfp4", "39"} {
		if _, err := mix.ParseFileType(text); !strings.Contains(err.Error(), "no recipe") {
			t.Errorf("%s: %v", text, err)
		}
	}
}
