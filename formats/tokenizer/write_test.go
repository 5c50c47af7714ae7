package tokenizer_test

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/tokenizer"
	"github.com/loratool/loratool/internal/strictjson"
)

// bytePairs is a small vocabulary of BPE over bytes, with a gap and tokens behind it.
func bytePairs() *tokenizer.Vocabulary {
	return &tokenizer.Vocabulary{
		Tokens: []string{"a", "b", "ab", "\"", "[PAD4]", "<end>", "user"},
		Types:  []tokenizer.PieceType{1, 1, 1, 1, 5, 3, 4},
		Merges: [][2]string{{"a", "b"}}, Pre: "llama-bpe", Before: []int{5}, Special: []int{5},
	}
}

// TestFastBytePairs reads what was written: every token but the filler has its id, the
// merges and the added tokens are there, and the pre-tokenizer is the one that was named.
func TestFastBytePairs(t *testing.T) {
	for _, pre := range tokenizer.PreNames() {
		v := bytePairs()
		v.Pre = pre
		if pre == "dbrx" { // told from llama-bpe by what stands in front of a text: nothing
			v.Before = nil
		}
		data, err := v.Fast()
		if err != nil {
			t.Fatal(err)
		}
		f, err := tokenizer.ParseFast(data)
		if err != nil {
			t.Fatalf("%v: %s", err, data)
		}
		for id, token := range v.Tokens {
			if got, ok := f.Vocab[int64(id)]; ok != (id != 4) || ok && got != token {
				t.Errorf("token %d is %q, want %q", id, got, token)
			}
		}
		if !slices.Equal(f.Merges, v.Merges) || f.ByteFallback {
			t.Errorf("merges %v", f.Merges)
		}
		if want := []tokenizer.AddedToken{{ID: 5, Content: "<end>", Special: true}, {ID: 6, Content: "user"}}; !slices.Equal(f.Added, want) {
			t.Errorf("added %v, want %v", f.Added, want)
		}
		if got, err := f.Pre(); got != pre || err != nil {
			t.Errorf("the pre-tokenizer is %q, %v; want %q", got, err, pre)
		}
		model, _ := f.Root.Object("model")
		whole, _ := model.Bool("ignore_merges")
		if want := pre == "llama-bpe" || pre == "tekken"; whole != want || tokenizer.PreAddsBOS(pre) != want {
			t.Errorf("%s: ignore_merges is %v", pre, whole)
		}
		if pre == "dbrx" {
			continue
		}
		post, _ := f.Root.Object("post_processor")
		single, err := post.Items("single")
		if err != nil || len(single) != 2 || !strings.Contains(string(single[0].Encode("")), `"<end>"`) {
			t.Errorf("template %s", post.Encode(""))
		}
	}
}

// TestPreAliases has names that llama.cpp treats as others, Smaug that differs from Llama 3
// beside its expression, and names that it has and nobody here.
func TestPreAliases(t *testing.T) {
	for name, want := range map[string]string{"smollm": "starcoder", "llama3": "llama-bpe", "megrez": "qwen2", "phi-2": "gpt-2", "smaug-bpe": "llama-bpe", "dbrx": "llama-bpe"} {
		v := bytePairs()
		v.Pre = name
		data, err := v.Fast()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		f, err := tokenizer.ParseFast(data)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := f.Pre(); got != want || err != nil {
			t.Errorf("%s is written as %q, %v; want %q", name, got, err, want)
		}
		model, _ := f.Root.Object("model")
		if whole, _ := model.Bool("ignore_merges"); whole != (name == "llama3") {
			t.Errorf("%s: ignore_merges is %v", name, whole)
		}
	}
	for _, name := range []string{"", "falcon", "default", "whitespace"} {
		v := bytePairs()
		v.Pre = name
		_, err := v.Fast()
		if _, ok := errors.AsType[*tokenizer.UnknownPreError](err); !ok || tokenizer.KnowsPre(name) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// TestFastPieces makes merges of scores and holds them against every pair of pieces tried
// out: a piece that two others make has that merge, and pieces of higher scores come first.
func TestFastPieces(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		v := &tokenizer.Vocabulary{SpacePrefix: true}
		add := func(token string, score float32, kind tokenizer.PieceType) {
			v.Tokens, v.Scores, v.Types = append(v.Tokens, token), append(v.Scores, score), append(v.Types, kind)
		}
		add("<unk>", 0, tokenizer.Unknown)
		add("<0x0A>", 0, tokenizer.Byte)
		score := make(map[string]float32)
		for len(score) < 20 {
			token := ""
			for range 1 + random.IntN(4) {
				token += []string{"é", "b", "▁"}[random.IntN(3)]
			}
			if _, ok := score[token]; ok {
				continue
			}
			score[token] = -float32(random.IntN(8))
			add(token, score[token], tokenizer.Normal)
		}
		add("éb▁!", 5, tokenizer.Control)
		data, err := v.Fast()
		if err != nil {
			t.Fatal(err)
		}
		f, err := tokenizer.ParseFast(data)
		if err != nil {
			t.Fatal(err)
		}
		want := make(map[[2]string]bool)
		for a := range score {
			for b := range score {
				if _, ok := score[a+b]; ok {
					want[[2]string{a, b}] = true
				}
			}
		}
		for i, m := range f.Merges {
			if !want[m] {
				t.Fatalf("merge %q is none, or there twice", m)
			}
			delete(want, m)
			if i == 0 {
				continue
			}
			before := f.Merges[i-1]
			high, low := score[before[0]+before[1]], score[m[0]+m[1]]
			if high < low || high == low && len([]rune(before[0])) < len([]rune(m[0])) {
				t.Fatalf("%q (%v) before %q (%v)", before, high, m, low)
			}
		}
		if len(want) > 0 || !f.ByteFallback {
			t.Fatalf("merges that are missing: %v", want)
		}
	}
}

// TestSentencePieceWritten reads the pieces that were written, without those added later.
func TestSentencePieceWritten(t *testing.T) {
	v := &tokenizer.Vocabulary{
		Tokens: []string{"<unk>", "<s>", "▁a", "<0x0A>", "[PAD4]", "<new>", "[PAD6]"},
		Types:  []tokenizer.PieceType{2, 3, 1, 6, 5, 4, 5},
		Scores: []float32{0, 0, -1.5, 0, -10000, -1000, -10000},
	}
	data, err := v.SentencePiece()
	if err != nil {
		t.Fatal(err)
	}
	got, err := tokenizer.ParseSentencePiece(data)
	want := []tokenizer.Piece{{"<unk>", 0, 2}, {"<s>", 0, 3}, {"▁a", -1.5, 1}, {"<0x0A>", 0, 6}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
	v.Scores = nil
	if _, err := v.SentencePiece(); err == nil {
		t.Error("pieces without scores")
	}
}

// TestVocabularyHostile has what no tokenizer.json can say.
func TestVocabularyHostile(t *testing.T) {
	for want, spoil := range map[string]func(*tokenizer.Vocabulary){
		"7 tokens with 6 types":  func(v *tokenizer.Vocabulary) { v.Types = v.Types[:6] },
		"0 and 1 are both":       func(v *tokenizer.Vocabulary) { v.Tokens[1] = "a" },
		"is not UTF-8":           func(v *tokenizer.Vocabulary) { v.Tokens[1] = "\xff" },
		"has the id 7":           func(v *tokenizer.Vocabulary) { v.Before = []int{7} },
		"has the id -1":          func(v *tokenizer.Vocabulary) { v.Special = []int{-1} },
		`but "c" is no token`:    func(v *tokenizer.Vocabulary) { v.Merges[0][0] = "c" },
		`but "ba" is no token`:   func(v *tokenizer.Vocabulary) { v.Merges[0] = [2]string{"b", "a"} },
		"7 types and 1 scores":   func(v *tokenizer.Vocabulary) { v.Scores = []float32{1} },
		`but "[PAD4]" is no tok`: func(v *tokenizer.Vocabulary) { v.Merges[0][0] = "[PAD4]" },
	} {
		v := bytePairs()
		spoil(v)
		_, err := v.Fast()
		if _, ok := errors.AsType[*tokenizer.FormatError](err); !ok || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want an error that says %q", err, want)
		}
	}
}

// FuzzFastWritten guards that what is written is JSON, whatever the tokens are.
func FuzzFastWritten(f *testing.F) {
	f.Add("a\"\\\n", "<|x|>\u2028", true)
	f.Fuzz(func(t *testing.T, a, b string, scored bool) {
		v := &tokenizer.Vocabulary{Tokens: []string{a, b}, Types: []tokenizer.PieceType{1, 3}, Pre: "qwen2", Before: []int{1}}
		if scored {
			v.Scores = make([]float32, 2)
		}
		data, err := v.Fast()
		if err != nil {
			return
		}
		root, err := strictjson.ParseObject(data)
		if err != nil {
			t.Fatalf("%v: %s", err, data)
		}
		model, _ := root.Object("model")
		vocab, err := model.Object("vocab")
		if err != nil || vocab.Len() != 2 {
			t.Fatalf("%v: %s", err, data)
		}
		for id, token := range []string{a, b} {
			if got, err := vocab.Int(token); err != nil || got != int64(id) {
				t.Fatalf("token %d, %q: %d, %v", id, token, got, err)
			}
		}
	})
}
