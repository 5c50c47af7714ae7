package tokenizer

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// What is known here of every character is what llama.cpp knows of it: package unicode
// and x/text change with their releases, llama.cpp's tables do not change with them.
func TestClassesAreThoseOfLlama(t *testing.T) {
	data, err := os.ReadFile("../../testdata/golden/tokenizer/llama.json")
	if err != nil {
		t.Fatal(err)
	}
	var golden struct{ Classes []string }
	if err := json.Unmarshal(data, &golden); err != nil {
		t.Fatal(err)
	}
	const block = 4096
	if len(golden.Classes) != (unicode.MaxRune+1)/block {
		t.Fatalf("%d blocks", len(golden.Classes))
	}
	for i, want := range golden.Classes {
		var lines []string
		for r := rune(i * block); r < rune(i+1)*block; r++ {
			first := r
			if utf8.ValidRune(r) {
				first = []rune(norm.NFD.String(string(r)))[0]
			}
			lines = append(lines, fmt.Sprintf("%d %x %x", llamaFlags(r), unicode.ToLower(r), first))
		}
		sum := sha256.Sum256([]byte(strings.Join(lines, "\n")))
		if got := hex.EncodeToString(sum[:4]); got != want {
			t.Errorf("characters from U+%04X: %s, want %s", i*block, got, want)
		}
	}
}

// llamaFlags writes a class as src/unicode.h does.
func llamaFlags(r rune) int {
	flags := 0
	for class, flag := range map[charClass]int{classNumber: 2, classLetter: 4, classMark: 16, classPunctuation: 32, classSymbol: 64,
		classControl: 128, classBlank: 256} {
		if classOf(r)&class != 0 {
			flags |= flag
		}
	}
	return flags
}

// No step loses a character or makes one up.
func TestStepsKeepTheText(t *testing.T) {
	for _, known := range llamaPreTokenizers {
		pre, err := newLlamaPre(known.names[0])
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range append(strings.SplitAfter(Sample, "\n"), Sample, " ", "\n", "'", "a'", " 1", "12 ") {
			words, err := pre.split(text)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(words, ""); got != text {
				t.Errorf("%q: %q becomes %q", known.names[0], text, got)
			}
			if slices.Contains(words, "") && text != "" {
				t.Errorf("%q: an empty word in %q", known.names[0], words)
			}
		}
	}
}
