package extract

import (
	"container/heap"
	"fmt"
	"math"

	"github.com/loratool/loratool/internal/linalg"
)

// Rule says how ranks are chosen. Exactly one of Rank, Energy, Error, Params and
// Size is set.
type Rule struct {
	Rank   int64   // of every module, less where a matrix has fewer
	Energy float64 // as few as hold this share of a module's ||D||_F^2, in (0,1]
	Error  float64 // as few as leave ||D - BA||_F <= Error·||D||_F, in (0,1)
	Params int64   // of the whole adapter: the directions that carry most win
	Size   int64   // bytes of the weights file, likewise
	// MaxRank bounds the rank of a module; 0 does not, but for Params and Size
	// it then is budgetCap times the rank that all modules could have.
	MaxRank int64
}

// maxRank bounds ranks as the reader of adapters does.
const maxRank = 65536

// budgetCap is how far above the average a module's rank may go when a budget
// is shared: the survey has to know that many directions in advance.
const budgetCap = 4

// Validate reports the first field that does not make sense.
func (r Rule) Validate() error {
	given := 0
	for _, set := range []bool{r.Rank != 0, r.Energy != 0, r.Error != 0, r.Params != 0, r.Size != 0} {
		if set {
			given++
		}
	}
	switch {
	case given != 1:
		return fmt.Errorf("one of rank, energy, error, params and size must be given, not %d of them", given)
	case r.Rank < 0 || r.Rank > maxRank:
		return fmt.Errorf("rank %d is not within 1..%d", r.Rank, maxRank)
	case !(r.Energy >= 0 && r.Energy <= 1):
		return fmt.Errorf("energy %v is not between 0 and 1", r.Energy)
	case !(r.Error >= 0 && r.Error < 1):
		return fmt.Errorf("error %v is not between 0 and 1", r.Error)
	case r.Params < 0 || r.Size < 0:
		return fmt.Errorf("a budget can't be negative")
	case r.MaxRank < 0 || r.MaxRank > maxRank:
		return fmt.Errorf("largest rank %d is not within 1..%d", r.MaxRank, maxRank)
	case r.Rank > 0 && r.MaxRank > 0:
		return fmt.Errorf("a fixed rank needs no largest rank")
	}
	return nil
}

// budgeted reports whether the modules share a budget.
func (r Rule) budgeted() bool { return r.Params > 0 || r.Size > 0 }

// solver returns how much of a matrix's decomposition the rule needs.
// Affordable is the rank that all modules together could have.
func (r Rule) solver(out, in, affordable int64) linalg.Options {
	limit := min(out, in, maxRank)
	if r.MaxRank > 0 {
		limit = min(limit, r.MaxRank)
	}
	switch {
	case r.Energy > 0:
		return linalg.Options{Energy: r.Energy, MaxRank: int(limit)}
	case r.Error > 0:
		return linalg.Options{Error: r.Error, MaxRank: int(limit)}
	case r.budgeted() && r.MaxRank == 0:
		return linalg.Options{Rank: int(min(limit, max(budgetCap*affordable, 16)))}
	case r.budgeted():
		return linalg.Options{Rank: int(limit)}
	}
	return linalg.Options{Rank: int(min(limit, r.Rank))}
}

// Spectrum is what a rule needs to know of a module. Directions are the singular
// ones in descending order; of a stack of matrices direction k is the k-th of
// each of them, as they share one rank.
type Spectrum struct {
	Squares []float64 // of the singular values, summed over the stack
	Total   float64   // ||D||_F^2
	Rest    float64   // ||D - all directions||_F^2, measured
	Cost    int64     // parameters of one direction
	Limit   int64     // directions that D has at most
}

// residual returns ||D - D_rank||_F^2.
func (s Spectrum) residual(rank int64) float64 {
	rest := s.Rest
	for k := int64(len(s.Squares)) - 1; k >= rank; k-- {
		rest += s.Squares[k]
	}
	return rest
}

// directions returns how many directions are known and not zero.
func (s Spectrum) directions() int64 {
	n := int64(len(s.Squares))
	for n > 0 && s.Squares[n-1] == 0 {
		n--
	}
	return n
}

// within returns the fewest directions, at least one, that leave no more than a
// share of the energy, and whether that many are known.
func (s Spectrum) within(share float64) (rank int64, met bool) {
	captured := 0.0
	for rank = 1; rank <= int64(len(s.Squares)); rank++ {
		captured += s.Squares[rank-1]
		if captured >= (1-share)*s.Total {
			return rank, true
		}
	}
	known := int64(len(s.Squares))
	return max(known, 1), known == s.Limit
}

// Choice is the rank of a module. Capped says that the rule would have taken
// more directions than the bound on ranks let it have.
type Choice struct {
	Rank   int64
	Capped bool
}

// Ranks chooses the rank of every module. The budget, in parameters, is only for
// the directions: what is saved whole has been taken off it.
func (r Rule) Ranks(spectra []Spectrum, budget int64) []Choice {
	choices := make([]Choice, len(spectra))
	switch {
	case r.Energy > 0 || r.Error > 0:
		share := 1 - r.Energy
		if r.Error > 0 {
			share = r.Error * r.Error
		}
		for i, s := range spectra {
			rank, met := s.within(share)
			choices[i] = Choice{rank, !met}
		}
	case r.budgeted():
		shareBudget(spectra, budget, choices)
	default:
		for i, s := range spectra {
			choices[i].Rank = min(r.Rank, int64(len(s.Squares)))
		}
	}
	return choices
}

// OneRank chooses one rank for all modules, and what each of them needs of it: the
// largest rank that the rule gives any module by itself, or under a budget, which
// pays every module's share of that rank in full, the largest that fits and that
// any module has directions for. A module with fewer directions is filled up with
// zeros, which leave its product as it is.
func (r Rule) OneRank(spectra []Spectrum, budget int64) (rank int64, needed []Choice) {
	if !r.budgeted() {
		needed = r.Ranks(spectra, budget)
		for _, c := range needed {
			rank = max(rank, c.Rank)
		}
		return rank, needed
	}
	cost := int64(0)
	for _, s := range spectra {
		rank, cost = max(rank, s.directions()), cost+s.Cost
	}
	affordable := budget / max(cost, 1)
	rank = min(rank, affordable)
	for _, s := range spectra {
		known := int64(len(s.Squares))
		capped := rank < affordable && known < s.Limit && s.directions() == known
		needed = append(needed, Choice{min(rank, s.directions()), capped})
	}
	return rank, needed
}

// shareBudget gives the budget to the directions that carry most energy per
// parameter, over all modules; of equal ones to the module that comes first. A
// direction that no longer fits ends its module, and cheaper ones of others go
// on.
func shareBudget(spectra []Spectrum, budget int64, choices []Choice) {
	q := new(directions)
	push := func(i int) {
		s, next := spectra[i], choices[i].Rank
		if next == int64(len(s.Squares)) {
			choices[i].Capped = next < s.Limit && s.Cost <= budget
			return
		}
		if s.Squares[next] == 0 {
			return // nothing is left to carry
		}
		heap.Push(q, direction{i, s.Squares[next] / float64(s.Cost)})
	}
	for i := range spectra {
		push(i)
	}
	for q.Len() > 0 {
		d := heap.Pop(q).(direction)
		if spectra[d.module].Cost > budget {
			continue
		}
		budget -= spectra[d.module].Cost
		choices[d.module].Rank++
		push(d.module)
	}
	for i, s := range spectra {
		choices[i].Capped = choices[i].Capped && s.Cost <= budget
	}
}

// direction is the next direction of a module with its gain per parameter.
type direction struct {
	module int
	gain   float64
}

// directions is a heap with the largest gain on top.
type directions []direction

func (q directions) Len() int { return len(q) }

func (q directions) Less(i, j int) bool {
	return q[i].gain > q[j].gain || q[i].gain == q[j].gain && q[i].module < q[j].module
}

func (q directions) Swap(i, j int) { q[i], q[j] = q[j], q[i] }

func (q *directions) Push(x any) { *q = append(*q, x.(direction)) }

func (q *directions) Pop() any {
	old := *q
	last := old[len(old)-1]
	*q = old[:len(old)-1]
	return last
}

// relative returns the square root of a/b, 0 if both are 0.
func relative(a, b float64) float64 {
	if a <= 0 || b == 0 {
		return 0
	}
	return math.Sqrt(a / b)
}
