package main

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/loratool/loratool/internal/linalg"
	"github.com/loratool/loratool/internal/linalg/linalgtest"
)

// spectrum is a matrix with known singular values.
type spectrum struct {
	kind   string
	values []float64
	a      linalg.Matrix
}

func newSpectrum(kind string, n int) spectrum {
	values := linalgtest.Spectrum(kind, n)
	return spectrum{kind, values, linalgtest.WithSpectrum(n, n, values, 1)}
}

// truncation is a contender that keeps its result.
type truncation struct {
	options linalg.Options
	result  linalg.SVD
	err     error
}

func (t *truncation) contender(a linalg.Matrix) contender {
	return contender{threads: max(1, t.options.Threads), run: func() {
		t.result, t.err = linalg.Truncate(a, t.options)
	}}
}

// excess is how much larger the residual is than the best one of its rank, which the
// planted values give. The residual was computed by subtraction (linalg.Report).
func (t *truncation) excess(s spectrum) float64 {
	return t.result.Residual*t.result.Norm/linalgtest.Tail(s.values, len(t.result.S)) - 1
}

// lapack is the decomposition of all of a spectrum's matrix by sgesdd.
type lapack struct {
	lib    *openBLAS
	values []float32
	err    error
}

func (l *lapack) contender(s spectrum) contender {
	scratch := make([]float32, len(s.a.Data))
	return contender{threads: 1, run: func() {
		copy(scratch, s.a.Data)
		l.values, l.err = l.lib.decompose(s.a.Rows, scratch)
	}}
}

// checkPlanted compares LAPACK's singular values with the planted ones: float32 leaves
// a small multiple of 2^-24*sqrt(n) of the largest.
func (l *lapack) checkPlanted(s spectrum) error {
	limit := 32 * 0x1p-24 * math.Sqrt(float64(len(s.values))) * s.values[0]
	for i, v := range l.values {
		if !(math.Abs(float64(v)-s.values[i]) <= limit) {
			return fmt.Errorf("singular value %d of spectrum %s is %v by sgesdd and was planted as %v", i, s.kind, v, s.values[i])
		}
	}
	return nil
}

// svdGoals are the ranks with the promised share of sgesdd's time and excess.
var svdGoals = []struct {
	rank           int
	faster, excess float64
}{{16, 20, 1e-3}, {64, 20, 1e-3}, {256, 6, 5e-3}}

// measureSVD compares truncated decompositions on the reference spectra with sgesdd,
// both with one thread. sgesdd has no truncated form: it computes all triplets.
func measureSVD(b *bench) ([]row, error) {
	lib, err := b.blas.open("")
	if err != nil {
		return nil, err
	}
	var rows []row
	for _, kind := range linalgtest.Spectra {
		s := newSpectrum(kind, b.size)
		full := lapack{lib: lib}
		truncations := make([]truncation, len(svdGoals))
		contenders := []contender{full.contender(s)}
		for i, goal := range svdGoals {
			truncations[i].options.Rank = min(goal.rank, b.size/4)
			contenders = append(contenders, truncations[i].contender(s.a))
		}
		costs, err := interleave(b.svdRounds, contenders...)
		if err == nil {
			err = errors.Join(full.err, full.checkPlanted(s))
		}
		if err != nil {
			return rows, err
		}
		for i, goal := range svdGoals {
			t := &truncations[i]
			if t.err != nil {
				return rows, t.err
			}
			r := t.compare(s, costs[i+1], costs[0], "sgesdd "+seconds(cpuSeconds(costs[0])))
			r.goal = goal.faster
			if excess := t.excess(s); excess > goal.excess {
				r.failed = fmt.Sprintf("excess %.2g > %.2g", excess, goal.excess)
			}
			rows = append(rows, r)
		}
	}
	return rows, nil
}

// compare makes the row of two sides.
func (t *truncation) compare(s spectrum, ours, reference []cost, who string) row {
	n := s.a.Rows
	return row{
		figure: fmt.Sprintf("SVD of %d², spectrum %s, rank %d, %s", n, s.kind, t.options.Rank, plural(max(1, t.options.Threads))),
		ours: fmt.Sprintf("%s CPU, %d steps, excess %.1e", seconds(cpuSeconds(ours)),
			t.result.Steps, t.excess(s)),
		reference: who,
		cpu:       cpuSeconds(reference).over(cpuSeconds(ours)),
		wall:      wallSeconds(reference).over(wallSeconds(ours)),
	}
}

// measureExact compares the exact path with sgesdd, at half the size since it takes
// the cube of it.
func measureExact(b *bench) ([]row, error) {
	lib, err := b.blas.open("")
	if err != nil {
		return nil, err
	}
	s := newSpectrum("P", b.size/2)
	full := lapack{lib: lib}
	exact := truncation{options: linalg.Options{Rank: 64, Exact: true}}
	costs, err := interleave(b.svdRounds, exact.contender(s.a), full.contender(s))
	if err := errors.Join(err, full.err, exact.err); err != nil {
		return nil, err
	}
	r := exact.compare(s, costs[0], costs[1], "sgesdd "+seconds(cpuSeconds(costs[1])))
	r.figure += ", exact"
	return []row{r}, nil
}

// measureWarm compares a decomposition that starts from that of a matrix nearby with
// one that starts from nothing, as the rounds of an alternation do: the second matrix
// is the first with each number rounded to one of 64 steps.
func measureWarm(b *bench) ([]row, error) {
	var rows []row
	for _, kind := range linalgtest.Spectra {
		s := newSpectrum(kind, b.size)
		near := coarse(s.a)
		for _, rank := range []int{16, 64, 256} {
			rank = min(rank, b.size/4)
			before, err := linalg.Truncate(near, linalg.Options{Rank: rank})
			if err != nil {
				return rows, err
			}
			cold := truncation{options: linalg.Options{Rank: rank}}
			warm := truncation{options: linalg.Options{Rank: rank, Start: before.VT}}
			costs, err := interleave(b.svdRounds, warm.contender(s.a), cold.contender(s.a))
			if err := errors.Join(err, warm.err, cold.err); err != nil {
				return rows, err
			}
			r := warm.compare(s, costs[0], costs[1], fmt.Sprintf("cold %s, %d steps, excess %.1e",
				seconds(cpuSeconds(costs[1])), cold.result.Steps, cold.excess(s)))
			r.figure += ", warm start"
			rows = append(rows, r)
		}
	}
	return rows, nil
}

// coarse returns a with every number rounded to a multiple of a 32nd of the largest.
func coarse(a linalg.Matrix) linalg.Matrix {
	largest := float32(0)
	for _, v := range a.Data {
		largest = max(largest, v, -v)
	}
	step := float64(largest) / 32
	near := linalg.NewMatrix(a.Rows, a.Cols, slices.Clone(a.Data))
	for i, v := range near.Data {
		near.Data[i] = float32(math.Round(float64(v)/step) * step)
	}
	return near
}
