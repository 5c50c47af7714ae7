package tokenizer

import (
	"encoding/json"
	"strings"
	"testing"
)

// bytesOnly makes both forms of a tokenizer that has a token for each byte and a few merges.
func bytesOnly(t *testing.T, pre string, merges ...string) (*Encoder, *Llama) {
	t.Helper()
	vocab := make(map[string]int)
	var tokens []string
	add := func(token string) {
		vocab[token] = len(tokens)
		tokens = append(tokens, token)
	}
	for b := range 256 {
		add(string(byteAlphabet[b]))
	}
	for _, m := range merges {
		add(strings.ReplaceAll(m, " ", ""))
	}
	data, err := json.Marshal(map[string]any{
		"model":         map[string]any{"type": "BPE", "vocab": vocab, "merges": merges},
		"pre_tokenizer": map[string]any{"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
		"decoder":       map[string]any{"type": "ByteLevel"},
	})
	if err != nil {
		t.Fatal(err)
	}
	fast, err := ParseFast(data)
	if err != nil {
		t.Fatal(err)
	}
	e, err := NewEncoder(fast)
	if err != nil {
		t.Fatal(err)
	}
	l, err := NewLlama(LlamaKeys{Model: "gpt2", Pre: pre, Tokens: tokens, Merges: merges})
	if err != nil {
		t.Fatal(err)
	}
	return e, l
}

// TestCompare: two forms of one tokenizer agree on the whole text; another pre-tokenizer, a
// merge less and another order of merges are found, and where.
func TestCompare(t *testing.T) {
	merges := []string{"1 2", "12 3", "t h", "th e", "Ġ a", "Ġ the"}
	e, same := bytesOnly(t, "gpt-2", merges...)
	found, err := Compare(e, same)
	if err != nil || len(found) > 0 {
		t.Fatalf("%v, %v", found, err)
	}
	_, digits := bytesOnly(t, "qwen2", merges...)
	_, fewer := bytesOnly(t, "gpt-2", "1 2", "12 3", "t h", "Ġ a", "th e")
	for name, l := range map[string]*Llama{"single digits": digits, "a merge less": fewer} {
		found, err := Compare(e, l)
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: nothing found (%v)", name, err)
		}
		d := found[0]
		if d.Line < 1 || d.Text != SampleLines()[d.Line-1] || len(d.Fast) == 0 || len(d.Llama) == 0 {
			t.Errorf("%s: %+v", name, d)
		}
	}
	if found, _ := Compare(e, digits); !strings.ContainsAny(found[0].Text, "0123456789") {
		t.Errorf("single digits are found in %q", found[0].Text)
	}
}
