package tokenizer

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// mergeSlowly is mergePairs as one would say it: look at all neighbours, join the best.
func mergeSlowly(symbols []string, rank func(left, right string) (float64, bool)) []string {
	parts := slices.Clone(symbols)
	for {
		best, lowest := -1, 0.0
		for i := range len(parts) - 1 {
			if r, ok := rank(parts[i], parts[i+1]); ok && (best < 0 || r < lowest) {
				best, lowest = i, r
			}
		}
		if best < 0 {
			return parts
		}
		parts = slices.Replace(parts, best, best+2, parts[best]+parts[best+1])
	}
}

// Ranks that repeat, long runs of one letter and merges that overtake one another are
// where a heap goes wrong.
func TestMergePairsIsTheSlowWay(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		letters := []string{"a", "b", "c", "é"}[:1+random.IntN(4)]
		ranks := make(map[[2]string]float64)
		parts := slices.Clone(letters)
		for range random.IntN(30) {
			p := [2]string{parts[random.IntN(len(parts))], parts[random.IntN(len(parts))]}
			if _, ok := ranks[p]; !ok && len(p[0])+len(p[1]) < 12 {
				ranks[p] = float64(random.IntN(12)) - 4
				parts = append(parts, p[0]+p[1])
			}
		}
		rank := func(left, right string) (float64, bool) {
			r, ok := ranks[[2]string{left, right}]
			return r, ok
		}
		var symbols []string
		for range random.IntN(40) {
			symbols = append(symbols, letters[random.IntN(len(letters))])
		}
		if got, want := mergePairs(symbols, rank), mergeSlowly(symbols, rank); !slices.Equal(got, want) {
			t.Fatalf("%q with %v: %q, want %q", symbols, ranks, got, want)
		}
	}
}

func TestMergePairsOfNothing(t *testing.T) {
	always := func(string, string) (float64, bool) { return 0, true }
	if got := mergePairs(nil, always); len(got) != 0 {
		t.Errorf("no symbols become %q", got)
	}
	if got := mergePairs([]string{"", "a", ""}, always); !slices.Equal(got, []string{"a"}) {
		t.Errorf("an a between nothings becomes %q", got)
	}
}

// A text of a million letters without a space must not take a million times a million
// steps.
func TestMergePairsOfALongWord(t *testing.T) {
	const n = 1 << 18
	calls := 0
	rank := func(left, right string) (float64, bool) {
		calls++
		return 0, left == right && len(left) < 64
	}
	got := mergePairs(strings.Split(strings.Repeat("a", n), ""), rank)
	if len(got) != n/64 {
		t.Errorf("%d parts, want %d", len(got), n/64)
	}
	if calls > 4*n {
		t.Errorf("%d calls of rank for %d symbols", calls, n)
	}
}
