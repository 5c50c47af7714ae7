package extract

import (
	"fmt"

	"github.com/loratool/loratool/formats/checkpoint"
)

// Point is what one rank of all modules would give.
type Point struct {
	Rank       int64
	Residual   float64 // ||D - held|| / ||D|| over the whole model
	Energy     float64 // the share of ||D||^2 that is held
	Worst      float64 // the largest residual of a pair
	WorstName  string
	Parameters int64
	Bytes      int64 // of tensor data
}

// OpenSweep is [Open] for a survey of several ranks, that writes nothing. The rule
// of the options is ignored.
func OpenSweep(base, tuned *checkpoint.Model, ranks []int64, o Options) (*Survey, error) {
	o.Rule = Rule{}
	most := int64(0)
	for _, r := range ranks {
		if r < 1 || r > maxRank {
			return nil, fmt.Errorf("rank %d is not within 1..%d", r, maxRank)
		}
		most = max(most, r)
	}
	if len(ranks) == 0 {
		return nil, fmt.Errorf("a sweep needs ranks")
	}
	o.Rule.Rank = most
	s, err := Open(base, tuned, o)
	if err == nil {
		s.maxSweep = most
	}
	return s, err
}

// Sweep returns what each rank would give, from one decomposition of every module.
// All tasks of the survey must have run.
func (s *Survey) Sweep(ranks []int64) ([]Point, error) {
	rule := s.opts.Rule
	defer func() { s.opts.Rule = rule }()
	var points []Point
	for _, r := range ranks {
		s.opts.Rule = Rule{Rank: r}
		x, err := s.Plan(nil)
		if err != nil {
			return nil, err
		}
		points = append(points, x.Certificate.point(r))
	}
	return points, nil
}

// point sums a certificate up.
func (c *Certificate) point(rank int64) Point {
	p := Point{Rank: rank, Energy: c.Share, Residual: c.Residual, Parameters: c.Parameters, Bytes: c.Bytes}
	for _, m := range c.Modules {
		if m.Rank > 0 && m.Residual > p.Worst {
			p.Worst, p.WorstName = m.Residual, m.Name
		}
	}
	return p
}
