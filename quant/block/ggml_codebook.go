package block

import (
	"bytes"
	"slices"
	"sync"

	"github.com/loratool/loratool/internal/kernel"
)

// codebook is a grid as its encoders see it. What the decoders take for values are
// levels here, 0, 1, ..., radix-1, and stand for 1, 3, 5, ... (or -1, 0, 1 in IQ1). A
// tuple is a number whose digits are levels, lowest first, or packed, three bits a level.
//
// Every number that is not in the grid has neighbours: the tuples at the nearest
// distances to it that occur, by distance and then by index (iq2xs_init_impl and
// iq3xs_init_impl). An encoder chooses among them, never among the others.
type codebook struct {
	width, radix int

	// places holds, by number, the index of a tuple in the grid, or the complement of
	// where its list of neighbours begins: a count, and as many packed tuples.
	places []int32
	lists  []uint32
}

// The codebooks, made when first used: 100 KiB to 1.4 MiB each, in up to 30 ms.
var (
	bookIQ1    = sync.OnceValue(func() *codebook { return newCodebook(setIQ1, 8, 3, 3) })
	bookIQ2XXS = sync.OnceValue(func() *codebook { return newCodebook(setIQ2XXS, 8, 3, 2) })
	bookIQ2XS  = sync.OnceValue(func() *codebook { return newCodebook(setIQ2XS, 8, 3, 2) })
	bookIQ2S   = sync.OnceValue(func() *codebook { return newCodebook(setIQ2S, 8, 3, 1) })
	bookIQ3XXS = sync.OnceValue(func() *codebook { return newCodebook(setIQ3XXS, 4, 8, 2) })
	bookIQ3S   = sync.OnceValue(func() *codebook { return newCodebook(setIQ3S, 4, 8, 3) })
)

// newCodebook lists as neighbours what is at the given number of distances.
func newCodebook(set string, width, radix, distances int) *codebook {
	b := &codebook{width: width, radix: radix}
	half := 1 // how many halves of a tuple there are
	for range width / 2 {
		half *= radix
	}
	b.places = make([]int32, half*half)
	for i := range b.places {
		b.places[i] = -1
	}
	grid := members(set)
	packed := make([]uint32, len(grid))
	for index, number := range grid {
		b.places[number] = int32(index)
		packed[index] = b.pack(number)
	}
	apart := b.halvesApart(half)
	row := make([]byte, len(grid))
	for number, place := range b.places {
		if place >= 0 {
			continue
		}
		low, high := apart[number%half], apart[number/half]
		var seen [256]bool
		for index, other := range grid {
			row[index] = low[other%half] + high[other/half]
			seen[row[index]] = true
		}
		b.places[number] = ^int32(len(b.lists))
		b.appendList(packed, row, &seen, distances)
	}
	b.lists = slices.Clip(b.lists)
	return b
}

// halvesApart returns the squared distances between halves of tuples, in levels. Those
// between tuples are at most 4*7² and so fit a byte.
func (b *codebook) halvesApart(count int) [][]byte {
	apart := make([][]byte, count)
	for i := range apart {
		apart[i] = make([]byte, count)
		for j := range apart[i] {
			for m, n := i, j; m > 0 || n > 0; m, n = m/b.radix, n/b.radix {
				d := m%b.radix - n%b.radix
				apart[i][j] += byte(d * d)
			}
		}
	}
	return apart
}

// appendList adds the list of a number, whose distances to the tuples are given.
func (b *codebook) appendList(packed []uint32, row []byte, seen *[256]bool, distances int) {
	count := len(b.lists)
	b.lists = append(b.lists, 0)
	for d := 0; d < len(seen) && distances > 0; d++ {
		if !seen[d] {
			continue
		}
		distances--
		for index := 0; index < len(row); index++ {
			next := bytes.IndexByte(row[index:], byte(d))
			if next < 0 {
				break
			}
			index += next
			b.lists = append(b.lists, packed[index])
		}
	}
	b.lists[count] = uint32(len(b.lists) - count - 1)
}

// pack returns the levels of a number.
func (b *codebook) pack(number int) (packed uint32) {
	for i := range b.width {
		packed |= uint32(number%b.radix) << (3 * i)
		number /= b.radix
	}
	return packed
}

// number returns that of a tuple.
func (b *codebook) number(levels []uint8) (number int) {
	for i := len(levels) - 1; i >= 0; i-- {
		number = number*b.radix + int(levels[i])
	}
	return number
}

// index returns the index of a tuple of the grid.
func (b *codebook) index(levels []uint8) uint16 { return uint16(b.places[b.number(levels)]) }

// snap replaces levels that are not in the grid by the neighbour with the least error, the
// sum of w*(scaled[level] - x)². It reports whether they were in the grid. If no error is
// finite, ok is false and the levels stay.
func (b *codebook) snap(levels []uint8, x, w []float32, scaled *[8]float32) (inGrid, ok bool) {
	place := b.places[b.number(levels)]
	if place >= 0 {
		return true, true
	}
	list := b.lists[^place:]
	packed, ok := kernel.NearestTuple(list[1:][:list[0]], x, w, scaled)
	if !ok {
		return false, false
	}
	for i := range levels {
		levels[i] = uint8(packed >> (3 * i) & 7)
	}
	return false, true
}
