package main

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/internal/linalg"
	"github.com/loratool/loratool/internal/linalg/linalgtest"
	"github.com/loratool/loratool/quant/loftq"
)

// loftqGoal is how many times as fast as with full decompositions five rounds of the
// alternation have to be.
const loftqGoal = 20

// measureLoftQ compares five rounds of LoftQ for a weight of normal numbers, NF4 and
// rank 64, with the decompositions alone that they take with sgesdd: one of what the
// first quantization leaves is run, and counted five times. One thread each.
func measureLoftQ(b *bench) ([]row, error) {
	lib, err := b.blas.open("")
	if err != nil {
		return nil, err
	}
	n, rank := b.size, min(64, b.size/4)
	w, rng := make([]float32, n*n), linalgtest.NewSource(1)
	for i := range w {
		w[i] = float32(rng.Normal())
	}
	quantizer := loftq.FourBit{Type: kernel.NF4, BlockSize: 64}
	left := make([]float32, len(w))
	if err := quantizer.RoundTrip(left, w, n, n, 1); err != nil {
		return nil, err
	}
	for i, q := range left {
		left[i] = w[i] - q
	}
	var result *loftq.Result
	var failed error
	ours := contender{threads: 1, run: func() {
		result, failed = loftq.Solve(context.Background(), w, n, n, quantizer, loftq.Options{Rank: rank, Iterations: rounds, Threads: 1})
	}}
	full := lapack{lib: lib}
	costs, err := interleave(b.svdRounds, ours, full.contender(spectrum{a: linalg.NewMatrix(n, n, left)}))
	if err := errors.Join(err, failed, full.err); err != nil {
		return nil, err
	}
	theirs := cpuSeconds(costs[1]).times(rounds)
	r := row{
		figure: fmt.Sprintf("LoftQ of %d², NF4, rank %d, %d rounds, 1 thread", n, rank, rounds),
		ours: fmt.Sprintf("%s CPU, error %.4f for %.4f", seconds(cpuSeconds(costs[0])),
			result.Error.Plain, result.Baseline().Plain),
		reference: fmt.Sprintf("%d times sgesdd %s", rounds, seconds(theirs)),
		cpu:       theirs.over(cpuSeconds(costs[0])),
		wall:      wallSeconds(costs[1]).times(rounds).over(wallSeconds(costs[0])),
		goal:      loftqGoal,
	}
	// The first round is the best of its rank: sgesdd's values say how good that is.
	best := math.Sqrt(1 - share(full.values, rank))
	if got := result.Iterates[1].Repaired.Plain / result.Baseline().Plain; got > best*(1+1e-3) {
		r.failed = fmt.Sprintf("the first round leaves %.6f, sgesdd's %.6f", got, best)
	}
	return []row{r}, nil
}

// rounds of the alternation are what LoftQ's own scripts take.
const rounds = loftq.DefaultIterations

// share is the part of the sum of squares that the first values have.
func share(values []float32, first int) float64 {
	all, part := 0.0, 0.0
	for i, v := range values {
		square := float64(v) * float64(v)
		all += square
		if i < first {
			part += square
		}
	}
	return part / all
}
