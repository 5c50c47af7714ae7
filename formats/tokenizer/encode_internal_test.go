package tokenizer

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"golang.org/x/text/unicode/norm"
)

// TestByDefinition: the normal forms by their definition are x/text's wherever that puts
// nothing in, and long runs of marks stay whole.
func TestByDefinition(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 1))
	marks := []rune("\u0301\u0302\u0323\u0307\u0308\u0327\u0345\u0338\u20dd\u05b0\u3099\u0f71\u0f72")
	texts := strings.SplitAfter(Sample, "\n")
	for range 2000 {
		runes := []rune(texts[rng.IntN(len(texts))])
		at := rng.IntN(len(runes) + 1)
		for range rng.IntN(6) {
			runes = slices.Insert(runes, at, marks[rng.IntN(len(marks))])
		}
		texts = append(texts[:len(texts):len(texts)], string(runes))
	}
	for _, form := range []norm.Form{norm.NFC, norm.NFD, norm.NFKC, norm.NFKD} {
		for _, text := range texts {
			if got, want := byDefinition(text, form), form.String(text); got != want {
				t.Fatalf("form %d of %+q is %+q, want %+q", form, text, got, want)
			}
		}
		long := "a" + strings.Repeat("\u0301", 100) + strings.Repeat("\u0323", 100) + "b"
		p, err := composed(form)(piece{text: long})
		want := "a" + strings.Repeat("\u0323", 100) + strings.Repeat("\u0301", 100) + "b"
		if form == norm.NFC || form == norm.NFKC {
			want = "\u1ea1" + want[len("a\u0323"):]
		}
		if err != nil || p.text != want {
			t.Errorf("form %d of a long run is %+q, %v", form, p.text, err)
		}
	}
}

// TestPrefixes compares with looking at every text.
func TestPrefixes(t *testing.T) {
	rng := rand.New(rand.NewPCG(6, 1))
	word := func(most int) string {
		b := make([]byte, rng.IntN(most+1))
		for i := range b {
			b[i] = "ab\xff"[rng.IntN(3)]
		}
		return string(b)
	}
	for range 500 {
		var p prefixes
		first := make(map[string]int)
		for i := range rng.IntN(30) {
			text := word(5)
			p.add(text, i)
			if _, ok := first[text]; !ok {
				first[text] = i
			}
		}
		p.sort()
		text := word(8)
		var want, got [][2]int
		for end := range len(text) + 1 {
			if value, ok := first[text[:end]]; ok {
				want = append(want, [2]int{end, value})
			}
		}
		p.find(text, func(length, value int) { got = append(got, [2]int{length, value}) })
		if !slices.Equal(got, want) {
			t.Fatalf("%q begins with %v, want %v, of %v", text, got, want, first)
		}
	}
}

// TestLibraryFloat has numbers that the library reads one step off the nearest one, as
// tokenizers 0.23 writes the scores again that it has read.
func TestLibraryFloat(t *testing.T) {
	for literal, want := range map[string]float64{"-1.5": -1.5, "0": 0, "-0.0": 0, "12": 12,
		"-3.6123709293488147": -3.612370929348814, "-12.029181247038437": -12.029181247038435, "-9.707532355189347": -9.707532355189349} {
		if got, ok := libraryFloat(literal); !ok || got != want {
			t.Errorf("%s is %v, %v", literal, got, ok)
		}
	}
	for _, literal := range []string{"1e5", "123456789012345678901", "0." + strings.Repeat("0", 30), ""} {
		if got, ok := libraryFloat(literal); ok {
			t.Errorf("%s is %v", literal, got)
		}
	}
}
