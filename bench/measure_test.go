package main

import (
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestSeries guards the statistics of the table.
func TestSeries(t *testing.T) {
	for _, c := range []struct {
		s    series
		want float64
		text string
	}{
		{series{3, 1, 2}, 2, "2.00 (1.00-3.00)"},
		{series{4, 1, 2, 3}, 2.5, "2.50 (1.00-4.00)"},
		{series{0.0123}, 0.0123, "0.0123 (0.0123-0.0123)"},
		{series{123.4, 99}, 111.2, "111 (99-123)"},
	} {
		before := slices.Clone(c.s)
		if got := c.s.median(); math.Abs(got-c.want) > 1e-12 {
			t.Errorf("median of %v is %v, want %v", c.s, got, c.want)
		}
		if got := c.s.spread(); got != c.text {
			t.Errorf("spread of %v is %q, want %q", before, got, c.text)
		}
		if !slices.Equal(before, c.s) {
			t.Errorf("%v was sorted in place", before)
		}
	}
	if got := (series{6, 8}).over(series{2, 16}).times(3); !slices.Equal(got, series{9, 1.5}) {
		t.Errorf("ratios are %v", got)
	}
	if got := (series{}).spread(); got != "-" {
		t.Errorf("spread of nothing is %q", got)
	}
}

// TestInterleave guards that rounds go to and fro, that short runs are repeated and
// their costs divided, and that an error ends everything.
func TestInterleave(t *testing.T) {
	var order []byte
	side := func(name byte, wall time.Duration) contender {
		return contender{threads: 1, timed: func(repeat int) (cost, error) {
			order = append(order, name)
			if long := wall >= shortest; long && repeat > 2 || !long && len(order) > 2 && time.Duration(repeat)*wall < shortest {
				t.Errorf("%c is repeated %d times", name, repeat)
			}
			return cost{wall: wall, cpu: 2 * wall}, nil
		}}
	}
	costs, err := interleave(3, side('a', time.Second), side('b', time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	if got := string(order); got != "ab"+"ab"+"ba"+"ab" {
		t.Errorf("order %q", got)
	}
	if got := wallSeconds(costs[0]).over(wallSeconds(costs[1])); !slices.Equal(got, series{1000, 1000, 1000}) {
		t.Errorf("ratios are %v", got)
	}
	order = nil
	if costs, err = interleave(2, side('a', 2*long), side('b', time.Second)); err != nil {
		t.Fatal(err)
	}
	if got := string(order); got != "ab"+"b"+"ba" || len(costs[0]) != 2 || len(costs[1]) != 2 {
		t.Errorf("order %q with a long run, %d and %d costs", got, len(costs[0]), len(costs[1]))
	}
	fault := errors.New("gone")
	if _, err := interleave(1, contender{timed: func(int) (cost, error) { return cost{}, fault }}); !errors.Is(err, fault) {
		t.Errorf("error %v", err)
	}
}

// TestSample guards the clocks: a loop of work takes CPU time of the thread and no more of
// it than wall time, a sleep takes none, and a repeated run costs what one does.
func TestSample(t *testing.T) {
	work, err := contender{threads: 1, run: func() { sink.Add(spin(1 << 24)) }}.sample(2)
	if err != nil {
		t.Fatal(err)
	}
	// Clocks are read one after the other: a switch between them costs at most a slice.
	if work.cpu <= 0 || work.cpu > work.wall+20*time.Millisecond {
		t.Errorf("work took %v of CPU time in %v", work.cpu, work.wall)
	}
	rest, err := contender{threads: 1, run: func() { time.Sleep(20 * time.Millisecond) }}.sample(1)
	if err != nil {
		t.Fatal(err)
	}
	if rest.wall < 20*time.Millisecond || rest.cpu > rest.wall/2 {
		t.Errorf("rest took %v of CPU time in %v", rest.cpu, rest.wall)
	}
}

// TestVerdict guards which ratio counts, and that an accuracy which was missed is a
// goal that was missed.
func TestVerdict(t *testing.T) {
	for want, r := range map[string]row{
		"-":            {cpu: series{1}},
		"yes":          {cpu: series{0.9}, wall: series{0.1}, goal: 0.85},
		"no":           {cpu: series{0.9}, wall: series{0.1}, goal: 0.85, byWall: true},
		"no: too much": {cpu: series{0.9}, goal: 0.85, failed: "too much"},
	} {
		if got := r.verdict(); got != want {
			t.Errorf("verdict %q, want %q", got, want)
		}
	}
	var b strings.Builder
	printHeader(&b)
	printRows(&b, []row{{figure: "f", goal: 2, byWall: true, wall: series{3}}})
	for line := range strings.Lines(b.String()) {
		if got := strings.Count(line, "|"); got != 8 {
			t.Errorf("%d bars in %q", got, line)
		}
	}
}

// TestOptions guards that options without sense are refused by name.
func TestOptions(t *testing.T) {
	good := options{size: 256, rounds: 1, svdRounds: 1}
	if err := good.validate(); err != nil {
		t.Error(err)
	}
	for want, change := range map[string]func(o *options){
		"figure": func(o *options) { o.figures = []string{"gemm", "gem"} },
		"size":   func(o *options) { o.size = 300 },
		"rounds": func(o *options) { o.svdRounds = 0 },
	} {
		o := good
		change(&o)
		if err := o.validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v", want, err)
		}
	}
}
