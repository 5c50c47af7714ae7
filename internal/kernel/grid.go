package kernel

import (
	"bytes"
	"slices"
)

// Grid is a set of tuples of levels 0, 1, ..., radix-1 that numbers may become, and for
// every other tuple its neighbours: the tuples of the set at the nearest distances to it
// that occur, by distance and then by index (iq2xs_init_impl and iq3xs_init_impl of
// llama.cpp). Searches choose among them, never among the others.
//
// A tuple is a number whose digits are levels, lowest first, or packed, three bits a level.
type Grid struct {
	width, radix int

	// places holds, for all numbers, the index of a tuple of the set, or the complement of
	// where its list of neighbours begins: a count, and as many packed tuples, the last
	// repeated up to a multiple of eight.
	places []int32
	lists  []uint32
}

// NewGrid makes a grid of tuples of width 8 and radix 3, or 4 and 8. numbers are in
// ascending order; an index is a place among them. Neighbours are at so many distances.
func NewGrid(numbers []int, width, radix, distances int) *Grid {
	half := 1 // how many halves of a tuple there are
	for range width / 2 {
		half *= radix
	}
	if half != 81 && half != 64 || width*radix < 24 {
		panic(badTuple)
	}
	g := &Grid{width: width, radix: radix, places: slices.Repeat([]int32{-1}, half*half)}
	packed := make([]uint32, len(numbers))
	for index, number := range numbers {
		g.places[number] = int32(index)
		packed[index] = g.Pack(number)
	}
	apart := g.halvesApart(half)
	row := make([]byte, len(numbers))
	for number, place := range g.places {
		if place >= 0 {
			continue
		}
		low, high := apart[number%half], apart[number/half]
		var seen [256]bool
		for index, other := range numbers {
			row[index] = low[other%half] + high[other/half]
			seen[row[index]] = true
		}
		g.places[number] = ^int32(len(g.lists))
		g.appendList(packed, row, &seen, distances)
	}
	g.lists = slices.Clip(g.lists)
	return g
}

// halvesApart returns the squared distances between halves of tuples, in levels. Those
// between tuples are at most 4*7² and so fit a byte.
func (g *Grid) halvesApart(count int) [][]byte {
	apart := make([][]byte, count)
	for i := range apart {
		apart[i] = make([]byte, count)
		for j := range apart[i] {
			for m, n := i, j; m > 0 || n > 0; m, n = m/g.radix, n/g.radix {
				d := m%g.radix - n%g.radix
				apart[i][j] += byte(d * d)
			}
		}
	}
	return apart
}

// appendList adds the list of a number, whose distances to the tuples are given.
func (g *Grid) appendList(packed []uint32, row []byte, seen *[256]bool, distances int) {
	count := len(g.lists)
	g.lists = append(g.lists, 0)
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
			g.lists = append(g.lists, packed[index])
		}
	}
	n := len(g.lists) - count - 1
	g.lists[count] = uint32(n)
	for ; n%8 != 0; n++ {
		g.lists = append(g.lists, g.lists[len(g.lists)-1])
	}
}

// Width returns the levels of a tuple.
func (g *Grid) Width() int { return g.width }

// Radix returns how many levels there are.
func (g *Grid) Radix() int { return g.radix }

// Numbers returns how many numbers there are, in the grid or not.
func (g *Grid) Numbers() int { return len(g.places) }

// Size returns the bytes in memory.
func (g *Grid) Size() int { return 4 * (len(g.places) + cap(g.lists)) }

// Pack returns the levels of a number.
func (g *Grid) Pack(number int) (packed uint32) {
	for i := range g.width {
		packed |= uint32(number%g.radix) << (3 * i)
		number /= g.radix
	}
	return packed
}

// Number returns that of a tuple.
func (g *Grid) Number(levels []uint8) (number int) {
	for i := len(levels) - 1; i >= 0; i-- {
		number = number*g.radix + int(levels[i])
	}
	return number
}

// Index returns the index of the tuple with a number, or -1 if it is not in the grid.
func (g *Grid) Index(number int) int { return int(max(g.places[number], -1)) }

// Neighbours returns the neighbours of the tuple with a number that is not in the grid.
func (g *Grid) Neighbours(number int) []uint32 {
	list := g.lists[^g.places[number]:]
	return list[1:][:list[0]]
}
