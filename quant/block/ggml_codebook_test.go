package block

import (
	"slices"
	"sync"
	"testing"

	"github.com/loratool/loratool/internal/kernel"
)

// TestCodebooks guards indices and lists of neighbours by their definition, number by
// number: all tuples of the grid, sorted by distance and index, up to the last of so many
// distances. Distances are between the odd numbers that levels stand for.
func TestCodebooks(t *testing.T) {
	for _, c := range []struct {
		name      string
		book      *kernel.Grid
		set       string
		distances int
	}{
		{"IQ1", bookIQ1(), setIQ1, 3},
		{"IQ2_XXS", bookIQ2XXS(), setIQ2XXS, 2},
		{"IQ2_XS", bookIQ2XS(), setIQ2XS, 2},
		{"IQ2_S", bookIQ2S(), setIQ2S, 1},
		{"IQ3_XXS", bookIQ3XXS(), setIQ3XXS, 2},
		{"IQ3_S", bookIQ3S(), setIQ3S, 3},
	} {
		grid := members(c.set)
		for number := range c.book.Numbers() {
			at, found := slices.BinarySearch(grid, number)
			if !found {
				at = -1
			}
			if got := c.book.Index(number); got != at {
				t.Fatalf("%s: number %d has index %d, want %d", c.name, number, got, at)
			}
			if found {
				continue
			}
			want := neighbours(c.book, grid, number, c.distances)
			if got := c.book.Neighbours(number); !slices.Equal(got, want) {
				t.Fatalf("%s: number %d has neighbours %o, want %o", c.name, number, got, want)
			}
		}
		if size := c.book.Size(); size > 2<<20 {
			t.Errorf("%s: %d bytes", c.name, size)
		}
	}
}

// neighbours lists packed tuples of a grid by sorting all of them.
func neighbours(b *kernel.Grid, grid []int, number, distances int) []uint32 {
	sorted := make([]int, len(grid)) // the distance, and the index below it
	for index, other := range grid {
		m, n, sum := number, other, 0
		for range b.Width() {
			d := (2*(m%b.Radix()) + 1) - (2*(n%b.Radix()) + 1)
			sum += d * d
			m, n = m/b.Radix(), n/b.Radix()
		}
		sorted[index] = sum<<16 | index
	}
	slices.Sort(sorted)
	var list []uint32
	for i, s := range sorted {
		if i > 0 && s>>16 > sorted[i-1]>>16 {
			distances--
		}
		if distances == 0 {
			break
		}
		list = append(list, b.Pack(grid[s&0xffff]))
	}
	return list
}

// TestCodebooksAtOnce guards first use by many goroutines (with -race).
func TestCodebooksAtOnce(t *testing.T) {
	book := sync.OnceValue(func() *kernel.Grid { return kernel.NewGrid(members(setIQ3S), 4, 8, 3) })
	books := make([]*kernel.Grid, 8)
	var group sync.WaitGroup
	for i := range books {
		group.Go(func() { books[i] = book() })
	}
	group.Wait()
	for _, b := range books {
		if b != books[0] {
			t.Error("made twice")
		}
	}
}

// BenchmarkCodebook measures what the first use of a type costs.
func BenchmarkCodebook(b *testing.B) {
	for b.Loop() {
		kernel.NewGrid(members(setIQ1), 8, 3, 3)
	}
}
