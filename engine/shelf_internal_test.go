package engine

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func nothing() (computer, error) { return nil, nil }

// TestShelf guards what stays bound: never a step in use, never more than the limit,
// and of the others those that were read last.
func TestShelf(t *testing.T) {
	var s shelf
	s.init(30)
	take := func(step int, bytes int64) *heldStep {
		t.Helper()
		h, err := s.take(step, bytes, nothing)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	first, second := take(1, 10), take(2, 10)
	s.giveBack(second)
	s.giveBack(take(3, 10))
	again := take(2, 10) // so that 3 was read longest ago
	if again != second {
		t.Error("a step that there was room for is gone")
	}
	s.giveBack(again)
	s.giveBack(take(4, 10))
	if s.steps[1] != first || s.steps[2] != second || s.steps[3] != nil || s.used != 30 {
		t.Errorf("%d bytes are used by %v, want 1 in use and the last two that were read", s.used, s.steps)
	}
	s.giveBack(first)
	s.giveBack(take(5, 100)) // more than the limit: alone
	if len(s.steps) != 1 || s.used != 100 {
		t.Errorf("%d bytes are used by %v, want step 5 alone", s.used, s.steps)
	}
}

// TestShelfWaits guards that steps in use never take more than the limit, however
// many want one, and that all get theirs.
func TestShelfWaits(t *testing.T) {
	var s shelf
	s.init(25)
	var used, served atomic.Int64
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			for k := range 20 {
				h, err := s.take(100*i+k, 10, nothing)
				if err != nil {
					t.Error(err)
				}
				if n := used.Add(10); n > 25 {
					t.Errorf("%d bytes are in use", n)
				}
				time.Sleep(10 * time.Microsecond)
				used.Add(-10)
				served.Add(1)
				s.giveBack(h)
			}
		})
	}
	group.Wait()
	if served.Load() != 160 {
		t.Errorf("%d were served", served.Load())
	}
}
