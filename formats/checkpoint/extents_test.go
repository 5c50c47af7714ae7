package checkpoint

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// TestExtents compares the set of ranges with a bitmap, over random ranges
// that touch, overlap, repeat and are empty, and checks that it stays sorted,
// disjoint and joined.
func TestExtents(t *testing.T) {
	const size = 24
	for seed := range uint64(3000) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var e extents
		var bitmap [size]bool
		for step := range 40 {
			from := rng.Int64N(size + 1)
			to := from + rng.Int64N(min(size-from, 6)+1)
			free := true
			for i := from; i < to; i++ {
				free = free && !bitmap[i]
			}
			if got := e.add(from, to); got != free {
				t.Fatalf("seed %d, step %d: add(%d, %d) is %v to %v, want %v", seed, step, from, to, got, e, free)
			}
			for i := from; free && i < to; i++ {
				bitmap[i] = true
			}
			if err := sameAs(e, bitmap[:]); err != nil {
				t.Fatalf("seed %d, step %d: after add(%d, %d): %v", seed, step, from, to, err)
			}
			whole := int64(0) // how many bytes from the start are there
			for whole < size && bitmap[whole] {
				whole++
			}
			for n := range int64(size + 1) {
				if got := e.covers(n); got && n > whole {
					t.Fatalf("seed %d: %v covers %d bytes", seed, e, n)
				}
			}
			if whole == size != e.covers(size) {
				t.Fatalf("seed %d: %v covers all: %v", seed, e, e.covers(size))
			}
		}
	}
}

func sameAs(e extents, bitmap []bool) error {
	got := make([]bool, len(bitmap))
	for i, x := range e {
		if x.from >= x.to || i > 0 && e[i-1].to >= x.from {
			return fmt.Errorf("%v is not sorted, disjoint and joined", e)
		}
		for j := x.from; j < x.to; j++ {
			got[j] = true
		}
	}
	for i := range got {
		if got[i] != bitmap[i] {
			return fmt.Errorf("%v differs from the bitmap at %d", e, i)
		}
	}
	return nil
}

// TestExtentsStayShort guards the memory of a sink: bands that arrive nearly in
// order leave few ranges.
func TestExtentsStayShort(t *testing.T) {
	var e extents
	most := 0
	for i := int64(0); i < 10_000; i += 4 {
		for _, j := range []int64{2, 0, 3, 1} { // four jobs
			if !e.add((i+j)*8, (i+j+1)*8) {
				t.Fatal("a new range was taken for an old one")
			}
			most = max(most, len(e))
		}
	}
	if most > 3 || len(e) != 1 || !e.covers(80_000) {
		t.Errorf("up to %d ranges, %d in the end", most, len(e))
	}
}

func TestExtentsEmpty(t *testing.T) {
	var e extents
	if !e.covers(0) || e.covers(1) {
		t.Error("no range covers nothing, and only that")
	}
	if !e.add(5, 5) || len(e) != 0 {
		t.Errorf("an empty range was stored: %v", e)
	}
}
