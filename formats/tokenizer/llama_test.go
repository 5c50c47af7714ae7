package tokenizer_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/tokenizer"
)

// llamaGolden is the data of testdata/gen/llama_tokens.py.
type llamaGolden struct {
	Vocabularies map[string]struct {
		Tokens, Merges []string
		Types          []int32
		Scores         []float32
	}
	Classes []string
	Cases   []llamaCase
}

type llamaCase struct {
	Vocabulary, Model, Pre, Name string
	IDs                          map[string]int64
	Flags                        map[string]bool
	Add                          []string
	Lines, Whole                 string
}

func readLlamaGolden(t testing.TB) llamaGolden {
	t.Helper()
	var g llamaGolden
	if err := json.Unmarshal(golden(t, "llama"), &g); err != nil {
		t.Fatal(err)
	}
	return g
}

// keys are those of the GGUF file of a case.
func (g *llamaGolden) keys(c llamaCase) tokenizer.LlamaKeys {
	v := g.Vocabularies[c.Vocabulary]
	k := tokenizer.LlamaKeys{Model: c.Model, Pre: c.Pre, Name: c.Name, Tokens: slices.Clone(v.Tokens), Types: slices.Clone(v.Types),
		Merges: v.Merges, Scores: slices.Clone(v.Scores), IDs: c.IDs, Flags: c.Flags}
	for _, token := range c.Add {
		k.Tokens, k.Types = append(k.Tokens, token), append(k.Types, int32(tokenizer.Control))
		if len(k.Scores) > 0 {
			k.Scores = append(k.Scores, 0)
		}
	}
	return k
}

// bothWays is a text's ids without and with the tokens around it, as the digests have it.
func bothWays(l *tokenizer.Llama, text string) (string, error) {
	var all []string
	for _, with := range []bool{false, true} {
		ids, err := l.Encode(text, with, with)
		if err != nil {
			return "", err
		}
		all = append(all, strings.Trim(fmt.Sprint(ids), "[]"))
	}
	return strings.Join(all, "|"), nil
}

// Every name of a pre-tokenizer in llama.cpp, and every kind of model that is known here,
// makes of the sample what llama.cpp makes of it.
func TestLlamaGolden(t *testing.T) {
	g := readLlamaGolden(t)
	lines := strings.SplitAfter(strings.TrimSuffix(tokenizer.Sample, "\n"), "\n")
	lines[len(lines)-1] += "\n"
	if len(g.Cases) < 100 {
		t.Fatalf("only %d cases", len(g.Cases))
	}
	for i, c := range g.Cases {
		t.Run(fmt.Sprintf("%d-%s-%s", i, c.Model, c.Pre), func(t *testing.T) {
			l, err := tokenizer.NewLlama(g.keys(c))
			if err != nil {
				t.Fatal(err)
			}
			if len(c.Lines) != 4*len(lines) {
				t.Fatalf("digests of %d lines, the sample has %d", len(c.Lines)/4, len(lines))
			}
			for n, line := range lines {
				got, err := bothWays(l, line)
				if err != nil {
					t.Fatal(err)
				}
				if digest(got)[:4] != c.Lines[4*n:4*n+4] {
					t.Errorf("line %d: %q becomes %s, which llama.cpp does not say", n+1, line, got)
				}
			}
			got, err := bothWays(l, tokenizer.Sample)
			if err != nil {
				t.Fatal(err)
			}
			if digest(got) != c.Whole {
				t.Errorf("the text as a whole is not what llama.cpp says")
			}
		})
	}
}

func TestLlamaRefused(t *testing.T) {
	g := readLlamaGolden(t)
	of := func(model string) tokenizer.LlamaKeys {
		i := slices.IndexFunc(g.Cases, func(c llamaCase) bool { return c.Model == model })
		return g.keys(g.Cases[i])
	}
	tests := []struct {
		name, model string
		change      func(*tokenizer.LlamaKeys)
		want        string
	}{
		{"kind", "gpt2", func(k *tokenizer.LlamaKeys) { k.Model = "t5" }, `tokenizers of the kind "t5"`},
		{"no kind", "gpt2", func(k *tokenizer.LlamaKeys) { k.Model = "" }, `tokenizers of the kind ""`},
		{"pre", "gpt2", func(k *tokenizer.LlamaKeys) { k.Pre = "martian" }, `the pre-tokenizer "martian"`},
		{"blanks", "gpt2", func(k *tokenizer.LlamaKeys) { k.Pre = "whitespace" }, "llama.cpp stops"},
		{"no tokens", "llama", func(k *tokenizer.LlamaKeys) { k.Tokens = nil }, "0 tokens"},
		{"few scores", "llama", func(k *tokenizer.LlamaKeys) { k.Scores = k.Scores[:7] }, "7 scores for"},
		{"few types", "llama", func(k *tokenizer.LlamaKeys) { k.Types = k.Types[:7] }, "7 types for"},
		{"score", "llama", func(k *tokenizer.LlamaKeys) { k.Scores[9] = float32(math.NaN()) }, "the score of the token 9 is no number"},
		{"twice", "llama", func(k *tokenizer.LlamaKeys) { k.Tokens[300] = k.Tokens[299] }, "has the ids 299 and 300"},
		{"no merges", "gpt2", func(k *tokenizer.LlamaKeys) { k.Merges = nil }, "no merges"},
		{"no beginning", "gpt2", func(k *tokenizer.LlamaKeys) {
			k.Pre, k.IDs, k.Flags = "glm4", nil, map[string]bool{"add_bos_token": true}
		}, "no tokenizer.ggml.bos_token_id"},
		{"no unknown", "bert", func(k *tokenizer.LlamaKeys) {
			k.Tokens, k.Types, k.IDs = k.Tokens[:50], k.Types[:50], map[string]int64{"unknown_token_id": 50}
		}, "no tokenizer.ggml.unknown_token_id"},
		{"phi", "llama", func(k *tokenizer.LlamaKeys) { k.Name = "Phi-3" }, `no token "<|endoftext|>"`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			k := of(test.model)
			test.change(&k)
			_, err := tokenizer.NewLlama(k)
			var unsupported *tokenizer.UnsupportedError
			var wrong *tokenizer.FormatError
			if !errors.As(err, &unsupported) && !errors.As(err, &wrong) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %s", err, test.want)
			}
		})
	}
}

func TestLlamaRefusesText(t *testing.T) {
	l, err := tokenizer.NewLlama(tokenizer.LlamaKeys{Model: "llama", Tokens: []string{"a", "▁", "▁a"}})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := l.Encode("a a", false, false); err != nil || !slices.Equal(got, []int{2, 2}) {
		t.Errorf("%v, %v", got, err)
	}
	for _, text := range []string{"\xff", "ab"} {
		if got, err := l.Encode(text, false, false); err == nil {
			t.Errorf("%q becomes %v", text, got)
		}
	}
	if _, ok := l.Token(3); ok {
		t.Error("there is a token 3 of 3")
	}
	if token, ok := l.Token(2); token != "▁a" || !ok {
		t.Errorf("token 2 is %q", token)
	}
}

// Whatever the text: no panic, and only ids of the vocabulary.
func FuzzLlama(f *testing.F) {
	g := readLlamaGolden(f)
	var all []*tokenizer.Llama
	for i, c := range g.Cases {
		if c.Model == "gpt2" && i%9 != 0 {
			continue
		}
		l, err := tokenizer.NewLlama(g.keys(c))
		if err != nil {
			f.Fatal(err)
		}
		all = append(all, l)
	}
	for _, line := range strings.SplitAfter(tokenizer.Sample, "\n") {
		f.Add(line, uint8(len(line)))
	}
	f.Fuzz(func(t *testing.T, text string, which uint8) {
		l := all[int(which)%len(all)]
		for _, with := range []bool{false, true} {
			ids, err := l.Encode(text, with, with)
			if err != nil {
				continue
			}
			for _, id := range ids {
				if _, ok := l.Token(id); !ok {
					t.Fatalf("%q becomes %v: no token %d", text, ids, id)
				}
			}
		}
	})
}
