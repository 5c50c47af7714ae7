package main

import (
	"math"
	"runtime"
	"slices"
	"time"
)

// cost is what one run took.
type cost struct {
	wall time.Duration
	cpu  time.Duration // of the calling thread if one thread works, else of the process
}

// contender is one side of a comparison.
type contender struct {
	threads int
	run     func()
	// timed runs elsewhere and says what it took; run is nil then.
	timed func(repeat int) (cost, error)
}

// shortest is how long a sample lasts at least: a contender that is faster is repeated,
// so that the clocks and a single interruption do not decide.
const shortest = 40 * time.Millisecond

// long is a run that a cold memory does not matter to.
const long = 2 * time.Second

// settle is how long threads of OpenBLAS spin before they sleep, with a margin: they
// would take the second core from whatever comes next.
const settle = 150 * time.Millisecond

// interleave runs all contenders once per round, in turn from the front and from the
// back so that none always runs behind the same one, and returns the costs of one run
// by contender and round. Each is run once before, to touch its memory; that counts as
// the first round if it is so long that it does not matter.
func interleave(rounds int, contenders ...contender) ([][]cost, error) {
	repeats := make([]int, len(contenders))
	costs := make([][]cost, len(contenders))
	for i, c := range contenders {
		first, err := c.sample(1)
		if err != nil {
			return nil, err
		}
		repeats[i] = 1 + int(shortest/max(first.wall, time.Microsecond))
		costs[i] = make([]cost, 0, rounds)
		if first.wall >= long {
			costs[i] = append(costs[i], first)
		}
	}
	for round := range rounds {
		order := make([]int, len(contenders))
		for i := range order {
			order[i] = i
		}
		if round%2 == 1 {
			slices.Reverse(order)
		}
		for _, i := range order {
			if len(costs[i]) > round {
				continue
			}
			c, err := contenders[i].sample(repeats[i])
			if err != nil {
				return nil, err
			}
			costs[i] = append(costs[i], c)
			if contenders[i].threads > 1 {
				time.Sleep(settle)
			}
		}
	}
	return costs, nil
}

// sample runs the contender and returns the cost of one run.
func (c contender) sample(repeat int) (cost, error) {
	if c.timed != nil {
		return c.timed(repeat)
	}
	runtime.GC() // no collection of earlier garbage within the sample
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	clock := processCPU
	if c.threads == 1 {
		clock = threadCPU
	}
	cpu, start := clock(), time.Now()
	for range repeat {
		c.run()
	}
	n := time.Duration(repeat)
	return cost{wall: time.Since(start) / n, cpu: (clock() - cpu) / n}, nil
}

// series is one number per round.
type series []float64

func wallSeconds(costs []cost) series {
	return collect(costs, func(c cost) float64 { return c.wall.Seconds() })
}

func cpuSeconds(costs []cost) series {
	return collect(costs, func(c cost) float64 { return c.cpu.Seconds() })
}

func collect(costs []cost, value func(cost) float64) series {
	s := make(series, len(costs))
	for i, c := range costs {
		s[i] = value(c)
	}
	return s
}

// over returns s divided by t round by round.
func (s series) over(t series) series {
	ratios := make(series, len(s))
	for i := range s {
		ratios[i] = s[i] / t[i]
	}
	return ratios
}

// times returns f*s.
func (s series) times(f float64) series {
	product := make(series, len(s))
	for i := range s {
		product[i] = f * s[i]
	}
	return product
}

// median returns the middle number, or the mean of the two in the middle.
func (s series) median() float64 {
	if len(s) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(s))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}
