package main

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/loratool/loratool/internal/kernel"
)

// measureScaling compares one thread with two. The machine's own scaling is in the
// column of the reference: two loops that touch no memory, in the same rounds.
func measureScaling(b *bench) ([]row, error) {
	spin1, spin2 := spinning(1), spinning(2)
	defer use(kernel.Level())
	f := newFactors(b.size, b.size, b.size)
	cases := []struct {
		name     string
		goal     float64
		one, two contender
	}{
		{fmt.Sprintf("SGEMM %d³", b.size), 1.75, f.ours(kernel.Level(), 1), f.ours(kernel.Level(), 2)},
	}
	for _, rank := range []int{16, 32, 64} {
		t := newTensor(b.size, rank)
		goal := 1.75
		if rank < 32 {
			goal = 0
		}
		cases = append(cases, struct {
			name     string
			goal     float64
			one, two contender
		}{fmt.Sprintf("merge of %d² bf16, rank %d", b.size, rank), goal, t.ours(1, false), t.ours(2, false)})
	}
	var rows []row
	for _, c := range cases {
		costs, err := interleave(b.rounds, c.one, c.two, spin1, spin2)
		if err != nil {
			return rows, err
		}
		machine := wallSeconds(costs[2]).over(wallSeconds(costs[3])).times(2)
		rows = append(rows, row{
			figure:    c.name + ", 1 -> 2 threads",
			ours:      fmt.Sprintf("%s -> %s", seconds(wallSeconds(costs[0])), seconds(wallSeconds(costs[1]))),
			reference: "machine " + machine.spread(),
			// What two threads work together, by their CPU time: waiting does not count.
			cpu:    cpuSeconds(costs[0]).over(cpuSeconds(costs[1])).times(2),
			wall:   wallSeconds(costs[0]).over(wallSeconds(costs[1])),
			byWall: true,
			goal:   c.goal,
		})
	}
	return rows, nil
}

// spinning runs the same loop on every thread, about 50 ms.
func spinning(threads int) contender {
	return contender{threads: threads, run: func() {
		inParallel(threads, func(int) { sink.Add(spin(1 << 25)) })
	}}
}

// sink takes results that nobody asks for, so that they are computed.
var sink atomic.Uint64

// spin returns the sum of a generator's numbers, each of which needs the one before.
//
//go:noinline
func spin(n int) (sum uint64) {
	x := uint64(1)
	for range n {
		x = x*6364136223846793005 + 1442695040888963407
		sum += x >> 33
	}
	return sum
}

// inParallel calls f for every thread and waits; a single one is the caller's.
func inParallel(threads int, f func(thread int)) {
	if threads == 1 {
		f(0)
		return
	}
	var wg sync.WaitGroup
	for t := range threads {
		wg.Go(func() { f(t) })
	}
	wg.Wait()
}
