package mix_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/quant/mix"
)

// refusedHere are the patterns that the reference takes and this package does not, as
// Go would read them otherwise or not at all.
var refusedHere = strings.Fields(`\D \S \W \B \A \z \Q \E \pN \x41 \x7a \u007a \cA \0 (z)\1 \a \e \y (?!z)
	[] [^] []z] [^]z] a** a*+ a{1,2}{2} a{1001} [[.a.]] ` + "\u00e9")

// A pattern finds the names that it finds for the reference, or is refused.
func TestPatterns(t *testing.T) {
	var file struct {
		Names    []string
		Patterns []struct {
			Pattern string
			Found   *string
		}
	}
	decode(t, readFile(t, "patterns.json"), &file)
	tensors := make([]gguf.Spec, len(file.Names))
	for i, name := range file.Names {
		tensors[i] = gguf.Spec{Name: name, Type: gguf.F16, Shape: tensor.Shape{2, 64}}
	}
	for _, p := range file.Patterns {
		o := mix.Options{Type: mix.Q4_0, Pure: true, Overrides: []mix.Override{{Pattern: p.Pattern, Type: gguf.Q5_0}}}
		got, err := mix.Plan(mix.Model{Arch: "llama"}, tensors, o)
		if want := p.Found == nil || slices.Contains(refusedHere, p.Pattern); want != (err != nil) {
			t.Errorf("%q: %v, want an error: %v", p.Pattern, err, want)
		}
		if err != nil {
			continue
		}
		var found strings.Builder
		for _, d := range got.Decisions {
			if d.To == gguf.Q5_0 {
				found.WriteByte('1')
			} else {
				found.WriteByte('0')
			}
		}
		if found.String() != *p.Found {
			t.Errorf("%q finds %s, want %s", p.Pattern, found.String(), *p.Found)
		}
	}
	if len(file.Patterns) < 140 {
		t.Errorf("only %d patterns", len(file.Patterns))
	}
}

func TestParseOverride(t *testing.T) {
	for _, c := range []struct {
		text    string
		pattern string
		typ     gguf.Type
		err     string
	}{
		{"attn_v=q8_0", "attn_v", gguf.Q8_0, ""},
		{"ATTN_V=Q6_K", "ATTN_V", gguf.Q6K, ""},
		{`blk\.(1|2)\.=nvfp4`, `blk\.(1|2)\.`, gguf.NVFP4, ""},
		{"a=f16", "a", gguf.F16, ""},
		{"a b~=f16", "a b~", gguf.F16, ""},
		{"attn_v", "", 0, `override "attn_v": no type behind a "="`},
		{"=q8_0", "", 0, `override "=q8_0": no pattern before the "="`},
		{"a=", "", 0, `override "a=": unknown tensor type ""`},
		{"a=q4_k_m", "", 0, `override "a=q4_k_m": unknown tensor type "q4_k_m"`},
		{"a=b=q8_0", "", 0, `override "a=b=q8_0": unknown tensor type "b=q8_0"`},
		{"a=q4_2", "", 0, `override "a=q4_2": unknown tensor type "q4_2"`},
		{"a=i32", "", 0, `override "a=i32": weights can't be stored as i32`},
		{"a=f64", "", 0, `override "a=f64": weights can't be stored as f64`},
		{"a=q8_K", "", 0, `override "a=q8_K": q8_K exists while a model runs, not in files`},
		{`\S=q8_0`, "", 0, `override "\\S=q8_0": \S would mean \s: patterns are put in lower case`},
		{"[z[=q8_0", "", 0, "override \"[z[=q8_0\": error parsing regexp: missing closing ]: `[z[`"},
		{`a\=q8_0`, "", 0, `override "a\\=q8_0": a backslash at the end`},
	} {
		got, err := mix.ParseOverride(c.text)
		if want := (mix.Override{Pattern: c.pattern, Type: c.typ}); c.err == "" && (err != nil || got != want) {
			t.Errorf("%s: %v %v, want %v", c.text, got, err, want)
		}
		var option *mix.OptionError
		if c.err != "" && (!errors.As(err, &option) || err.Error() != c.err) {
			t.Errorf("%s: %v, want %s", c.text, err, c.err)
		}
	}
}

// FuzzOverride: what is taken is taken again as it prints, and decides the same.
func FuzzOverride(f *testing.F) {
	for _, seed := range []string{"attn_v=q8_0", `blk\.\d+\.=q6_K`, "[^]a]=f16", "(?:a|b){2,3}=q4_0", "a{=q4_0", "=", "[[:word:]]=f32"} {
		f.Add(seed)
	}
	tensors := []gguf.Spec{{Name: "blk.1.attn_v.weight", Type: gguf.F32, Shape: tensor.Shape{2, 256}}}
	f.Fuzz(func(t *testing.T, text string) {
		o, err := mix.ParseOverride(text)
		if err != nil {
			return
		}
		again, err := mix.ParseOverride(o.String())
		if err != nil || again != o {
			t.Fatalf("%q: %v %v", o.String(), again, err)
		}
		plan, err := mix.Plan(mix.Model{Arch: "llama", Layers: 2}, tensors, mix.Options{Type: mix.Q4KM, Overrides: []mix.Override{o}})
		if plan == nil {
			t.Fatalf("%q can't be used: %v", text, err)
		}
		if d := plan.Decisions[0]; d.Reason == mix.Overridden && d.Wanted != o.Type {
			t.Fatalf("%q gives %s", text, d.Wanted)
		}
	})
}
