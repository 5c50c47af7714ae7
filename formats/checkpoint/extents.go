package checkpoint

import "sort"

// extents is a set of disjoint byte ranges, kept sorted and joined where they
// touch: bands arrive nearly in order, so it stays a few entries long.
type extents []extent

type extent struct{ from, to int64 }

// add inserts [from, to) and reports false if part of it is there already.
func (e *extents) add(from, to int64) bool {
	if from >= to {
		return true
	}
	s := *e
	i := sort.Search(len(s), func(i int) bool { return s[i].to >= from })
	if i < len(s) && s[i].from < to && s[i].to > from {
		return false
	}
	// s[i] may end exactly where the new range begins; then the next one counts.
	joinsLeft := i < len(s) && s[i].to == from
	next := i
	if joinsLeft {
		next = i + 1
	}
	if next < len(s) && s[next].from < to {
		return false
	}
	joinsRight := next < len(s) && s[next].from == to
	switch {
	case joinsLeft && joinsRight:
		s[i].to = s[next].to
		s = append(s[:next], s[next+1:]...)
	case joinsLeft:
		s[i].to = to
	case joinsRight:
		s[next].from = from
	default:
		s = append(s, extent{})
		copy(s[i+1:], s[i:])
		s[i] = extent{from, to}
	}
	*e = s
	return true
}

// covers reports whether [0, size) is complete.
func (e extents) covers(size int64) bool {
	return size == 0 || len(e) == 1 && e[0].from == 0 && e[0].to >= size
}
