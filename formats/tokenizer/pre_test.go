package tokenizer_test

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/tokenizer"
)

// Expressions as llama.cpp writes them, whose own have no flags.
const (
	adaptedContractions = `(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])`
	plainContractions   = `(?i:'s|'t|'re|'ve|'m|'ll|'d)`
	adaptedGPT2         = `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)`
)

// knownPre is how llama.cpp splits text by a name.
type knownPre struct {
	words, begins bool     // whole words before merges; a token in front
	adapted       []string // expressions
	originals     []string // in tokenizer.json, of the last ones
}

// readKnownPre reads what testdata/gen/pre_names.py has found in llama.cpp's source.
func readKnownPre(t *testing.T) map[string]knownPre {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "..", "testdata", "golden", "convert", "pre.tsv"))
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]knownPre)
	for line := range strings.Lines(string(data)) {
		fields := strings.Split(strings.TrimRight(line, "\n"), "\t")
		k := knownPre{words: strings.Contains(fields[1], "words"), begins: strings.Contains(fields[1], "begins")}
		for i, list := range []*[]string{&k.adapted, &k.originals} {
			if err := json.Unmarshal([]byte(fields[2+i]), list); err != nil {
				t.Fatal(err)
			}
		}
		all[fields[0]] = k
	}
	return all
}

// file is the tokenizer.json of a name: expressions as they were before llama.cpp had to
// adapt them.
func (k knownPre) file(t *testing.T) []byte {
	t.Helper()
	type object = map[string]any
	var steps []object
	last := false // the byte alphabet comes with an expression
	expressions := slices.Concat(k.adapted[:len(k.adapted)-len(k.originals)], k.originals)
	for _, e := range expressions {
		e = strings.ReplaceAll(e, adaptedContractions, plainContractions)
		switch {
		case e == adaptedGPT2:
			last = true
		case e == `\p{N}` && slices.Contains(expressions, adaptedGPT2):
			steps = append(steps, object{"type": "Digits", "individual_digits": true})
		default:
			steps = append(steps, object{"type": "Split", "pattern": object{"Regex": e}, "behavior": "Isolated"})
		}
	}
	steps = append(steps, object{"type": "ByteLevel", "add_prefix_space": false, "use_regex": last})
	file := object{"model": object{"type": "BPE", "vocab": object{}, "ignore_merges": k.words}, "pre_tokenizer": object{"type": "Sequence", "pretokenizers": steps}}
	if k.begins {
		file["post_processor"] = object{"type": "TemplateProcessing", "single": []object{{"SpecialToken": object{"id": "<s>"}}, {"Sequence": object{"id": "A"}}}}
	}
	data, err := json.Marshal(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestKnownPre takes every name that llama.cpp's converter can give: either the
// expressions are known, and the name that is found for them stands for the same in a
// runtime, or they are not, and no other name is given.
func TestKnownPre(t *testing.T) {
	unknown := make(map[string]bool)
	known := readKnownPre(t)
	for name, k := range known {
		fast, err := tokenizer.ParseFast(k.file(t))
		if err != nil {
			t.Fatal(err)
		}
		got, err := fast.Pre()
		if err != nil {
			unknown[name] = true
			continue
		}
		other, ok := known[got]
		if !ok || !slices.Equal(other.adapted, k.adapted) || other.words != k.words || other.begins != k.begins {
			t.Errorf("%s is taken for %q, which a runtime splits by %v (whole words %v, begins %v)", name, got, other.adapted, other.words, other.begins)
		}
	}
	// Expressions that a runtime computes by code of its own, or that stand nowhere as
	// tokenizer.json has them.
	want := []string{"afmoe", "bloom", "chameleon", "deepseek-coder", "deepseek-llm", "falcon", "gemma4", "gpt3-finnish",
		"granite-embed-multi-311m", "granite-embed-multi-97m", "kimi-k2", "laguna", "poro-chat", "sarvam-moe", "spark2_5", "superbpe", "ufakzeka", "viking", "youtu"}
	if got := slices.Sorted(maps.Keys(unknown)); !slices.Equal(got, want) {
		t.Errorf("unknown are %q, want %q", got, want)
	}
	for _, name := range tokenizer.PreNames() {
		if _, ok := known[name]; !ok {
			t.Errorf("llama.cpp has no %q", name)
		}
	}
}
