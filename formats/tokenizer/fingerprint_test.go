package tokenizer_test

import (
	"slices"
	"testing"

	"github.com/loratool/loratool/formats/tokenizer"
)

// TestFingerprint takes published tokenizers, cut down to the tokens of the check text
// (testdata/gen/tokenizer_cut.py): their fingerprints are those that llama.cpp knows. The
// files of Llama 3 and DeepSeek put nothing before a text; with the token that their
// classes put there the names are their own.
func TestFingerprint(t *testing.T) {
	for _, c := range []struct {
		file, want string
		before     []int
	}{
		{"cut-llama3", "llama-bpe", []int{128000}},
		{"cut-llama3", "smaug-bpe", nil},
		{"cut-qwen3", "qwen2", nil},
		{"cut-gpt-oss", "gpt-4o", nil},
		{"cut-deepseek-v3", "deepseek-v3", []int{0}},
		{"cut-deepseek-v3", "joyai-llm", nil},
		{"cut-qwen3", "", []int{0}},
		{"bytes", "", nil},
	} {
		hash, err := encoderOf(t, golden(t, c.file)).Fingerprint(c.before...)
		if got, ok := tokenizer.PreOfFingerprint(hash); err != nil || got != c.want || ok != (c.want != "") {
			t.Errorf("%s after %v is %q (%s), %v; want %q", c.file, c.before, got, hash, err, c.want)
		}
	}
}

// TestSplitAlike holds every pair of names against what llama.cpp's source says of them:
// two are alike if text is split by the same expressions, words are taken whole and texts
// begin with a token for both or neither.
func TestSplitAlike(t *testing.T) {
	known := readKnownPre(t)
	for a, x := range known {
		for b, y := range known {
			same := slices.Equal(x.adapted, y.adapted) && x.words == y.words && x.begins == y.begins
			alike := tokenizer.SplitAlike(a, b)
			if alike && !same && a != b {
				t.Errorf("%s and %s are taken for alike", a, b)
			}
			if same && !alike && tokenizer.KnowsPre(a) && tokenizer.KnowsPre(b) {
				t.Errorf("%s and %s are not taken for alike", a, b)
			}
		}
	}
}
