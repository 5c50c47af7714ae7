package extract_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/loratool/loratool/extract"
)

// TestRuleValidate guards that exactly one rule is taken, within its range.
func TestRuleValidate(t *testing.T) {
	for _, r := range []extract.Rule{{Rank: 1}, {Rank: 65536}, {Energy: 1}, {Error: 0.5, MaxRank: 4}, {Params: 1}, {Size: 1, MaxRank: 1}} {
		if err := r.Validate(); err != nil {
			t.Errorf("%+v: %v", r, err)
		}
	}
	for _, r := range []extract.Rule{
		{}, {MaxRank: 4}, {Rank: 1, Energy: 0.5}, {Rank: -1}, {Rank: 65537}, {Energy: 1.1}, {Energy: -0.5}, {Energy: math.NaN()},
		{Error: 1}, {Error: math.NaN()}, {Params: -1}, {Size: -1}, {Energy: 0.5, MaxRank: -1}, {Rank: 4, MaxRank: 4}, {Params: 1, Size: 1},
	} {
		if err := r.Validate(); err == nil {
			t.Errorf("%+v is accepted", r)
		}
	}
}

// spectrum is one whose directions are all known.
func spectrum(cost int64, squares ...float64) extract.Spectrum {
	s := extract.Spectrum{Squares: squares, Cost: cost, Limit: int64(len(squares))}
	for _, v := range squares {
		s.Total += v
	}
	return s
}

// TestTargets guards that energy and error take the fewest directions that meet
// the bound, at least one, and say when there are none left to take.
func TestTargets(t *testing.T) {
	s := spectrum(1, 8, 4, 2, 1, 1) // of 16
	cut := s
	cut.Squares, cut.Rest = cut.Squares[:2], 4
	for _, c := range []struct {
		rule     extract.Rule
		spectrum extract.Spectrum
		want     extract.Choice
	}{
		{extract.Rule{Energy: 0.1}, s, extract.Choice{Rank: 1}},
		{extract.Rule{Energy: 0.5}, s, extract.Choice{Rank: 1}},
		{extract.Rule{Energy: 0.51}, s, extract.Choice{Rank: 2}},
		{extract.Rule{Energy: 0.75}, s, extract.Choice{Rank: 2}},
		{extract.Rule{Energy: 1}, s, extract.Choice{Rank: 5}},
		{extract.Rule{Error: 0.5}, s, extract.Choice{Rank: 2}},  // a quarter may be missing
		{extract.Rule{Error: 0.49}, s, extract.Choice{Rank: 3}}, // 0.24 may be
		{extract.Rule{Energy: 0.75}, cut, extract.Choice{Rank: 2}},
		{extract.Rule{Energy: 0.76}, cut, extract.Choice{Rank: 2, Capped: true}},
		{extract.Rule{Rank: 3}, s, extract.Choice{Rank: 3}},
		{extract.Rule{Rank: 9}, s, extract.Choice{Rank: 5}},
	} {
		if got := c.rule.Ranks([]extract.Spectrum{c.spectrum}, 0); got[0] != c.want {
			t.Errorf("%+v of %v: %+v, want %+v", c.rule, c.spectrum.Squares, got[0], c.want)
		}
	}
}

// TestBudgetIsBest compares the shared budget with every possible choice of ranks.
// Where all directions cost the same none may be better; where costs differ, the
// greedy choice may miss at most what the first direction that did not fit would
// have brought.
func TestBudgetIsBest(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 3))
		same := seed%2 == 0
		var spectra []extract.Spectrum
		for range 1 + rng.IntN(3) {
			cost := int64(3)
			if !same {
				cost = 1 + rng.Int64N(5)
			}
			squares := make([]float64, rng.IntN(5))
			for i := range squares {
				squares[i] = float64(rng.IntN(9))
			}
			slices.SortFunc(squares, func(a, b float64) int { return int(b - a) })
			spectra = append(spectra, spectrum(cost, squares...))
		}
		budget := rng.Int64N(30)
		choices := extract.Rule{Params: 1}.Ranks(spectra, budget)
		spent, gained := int64(0), 0.0
		best := 0.0 // gain per parameter of a direction that was not taken
		for i, s := range spectra {
			r := choices[i].Rank
			spent += r * s.Cost
			for _, v := range s.Squares[:r] {
				gained += v
			}
			if r < int64(len(s.Squares)) {
				best = max(best, s.Squares[r])
			}
			if choices[i].Capped {
				t.Errorf("seed %d: module %d is capped although all its directions are known", seed, i)
			}
		}
		if spent > budget {
			t.Errorf("seed %d: %d spent of %d", seed, spent, budget)
		}
		top := bruteForce(spectra, budget)
		if same && gained != top || gained < top-best {
			t.Errorf("seed %d: %v of %v gained, budget %d: %v", seed, gained, top, budget, spectra)
		}
	}
}

func bruteForce(spectra []extract.Spectrum, budget int64) float64 {
	if len(spectra) == 0 {
		return 0
	}
	s, best, sum := spectra[0], 0.0, 0.0
	for r := 0; ; r++ {
		left := budget - int64(r)*s.Cost
		if left < 0 {
			return best
		}
		best = max(best, sum+bruteForce(spectra[1:], left))
		if r == len(s.Squares) {
			return best
		}
		sum += s.Squares[r]
	}
}

// TestBudgetTies guards that equal gains go to the module that comes first, that a
// module ends where its directions do, and that a capped one says so.
func TestBudgetTies(t *testing.T) {
	cut := spectrum(2, 9, 9)
	cut.Limit = 5
	for _, c := range []struct {
		spectra []extract.Spectrum
		budget  int64
		want    string
	}{
		{[]extract.Spectrum{spectrum(2, 4, 4), spectrum(2, 4, 4)}, 6, "[{2 false} {1 false}]"},
		{[]extract.Spectrum{spectrum(2, 4, 0), spectrum(2, 1)}, 8, "[{1 false} {1 false}]"},
		{[]extract.Spectrum{spectrum(5, 10), spectrum(1, 4)}, 5, "[{0 false} {1 false}]"}, // 4 for 1 before 10 for 5
		{[]extract.Spectrum{spectrum(5, 50), spectrum(2, 4, 4)}, 4, "[{0 false} {2 false}]"},
		{[]extract.Spectrum{cut, spectrum(2, 1)}, 8, "[{2 true} {1 false}]"},
		{[]extract.Spectrum{cut, spectrum(2, 1)}, 5, "[{2 false} {0 false}]"},
	} {
		if got := fmt.Sprint(extract.Rule{Params: 1}.Ranks(c.spectra, c.budget)); got != c.want {
			t.Errorf("%v with %d: %s, want %s", c.spectra, c.budget, got, c.want)
		}
	}
}

// TestOneRank compares the one rank of all modules with trying every rank: the most
// that the budget pays for and some module has a direction for. What a module needs of
// it are its directions; it is capped where it has more than are known.
func TestOneRank(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 4))
		var spectra []extract.Spectrum
		for range 1 + rng.IntN(3) {
			squares := make([]float64, rng.IntN(6))
			for i := range squares {
				squares[i] = float64(rng.IntN(4))
			}
			slices.SortFunc(squares, func(a, b float64) int { return int(b - a) })
			spectra = append(spectra, spectrum(1+rng.Int64N(5), squares...))
		}
		budget := rng.Int64N(60)
		cost := int64(0)
		for _, s := range spectra {
			cost += s.Cost
		}
		want := int64(0)
		for r := int64(1); r*cost <= budget; r++ {
			if slices.ContainsFunc(spectra, func(s extract.Spectrum) bool { return int64(len(s.Squares)) >= r && s.Squares[r-1] > 0 }) {
				want = r
			}
		}
		rank, needed := extract.Rule{Params: 1}.OneRank(spectra, budget)
		if rank != want {
			t.Errorf("seed %d: rank %d, want %d of %d for %v", seed, rank, want, budget, spectra)
		}
		for i, s := range spectra {
			directions := int64(0)
			for _, v := range s.Squares[:min(rank, int64(len(s.Squares)))] {
				if v > 0 {
					directions++
				}
			}
			if needed[i] != (extract.Choice{Rank: directions}) {
				t.Errorf("seed %d: module %d needs %+v, want %d", seed, i, needed[i], directions)
			}
		}
	}
	cut := spectrum(2, 9, 9)
	cut.Limit = 5
	for _, c := range []struct {
		rule    extract.Rule
		spectra []extract.Spectrum
		budget  int64
		want    string
	}{
		{extract.Rule{Params: 1}, []extract.Spectrum{cut, spectrum(2, 1)}, 12, "2 [{2 true} {1 false}]"},
		{extract.Rule{Params: 1}, []extract.Spectrum{cut, spectrum(2, 1)}, 11, "2 [{2 false} {1 false}]"}, // there is no third
		{extract.Rule{Params: 1}, []extract.Spectrum{cut, spectrum(2, 1)}, 3, "0 [{0 false} {0 false}]"},
		{extract.Rule{Energy: 1}, []extract.Spectrum{spectrum(2, 4, 4, 1), spectrum(2, 1)}, 0, "3 [{3 false} {1 false}]"},
		{extract.Rule{Rank: 2}, []extract.Spectrum{spectrum(2, 4, 4, 1), spectrum(2, 1)}, 0, "2 [{2 false} {1 false}]"},
	} {
		rank, needed := c.rule.OneRank(c.spectra, c.budget)
		if got := fmt.Sprint(rank, needed); got != c.want {
			t.Errorf("%+v of %v with %d: %s, want %s", c.rule, c.spectra, c.budget, got, c.want)
		}
	}
}
