package tokenizer

import "container/heap"

// mergePairs joins, again and again, the two neighbours whose pair has the lowest rank,
// the leftmost of equals, until no neighbours have one. It is the heart of byte pair
// encoding (Sennrich et al., arXiv:1508.07909), where a pair's rank is its line in the
// list of merges, and of SentencePiece's, where it is the score of the joined piece,
// negated. A rank must not be NaN.
//
// The pairs wait in a heap, and what has been overtaken by another merge is thrown away
// when it comes up: n symbols take O(n log n) calls of rank.
func mergePairs(symbols []string, rank func(left, right string) (rank float64, ok bool)) []string {
	m := merger{rank: rank, parts: make([]part, len(symbols))}
	for i, s := range symbols {
		m.parts[i] = part{text: s, previous: i - 1, next: i + 1}
	}
	for i := range symbols {
		m.propose(i)
	}
	heap.Init(&m.waiting)
	for len(m.waiting) > 0 {
		m.join(heap.Pop(&m.waiting).(pair))
	}
	var merged []string
	for i := 0; i < len(m.parts); i = m.parts[i].next {
		merged = append(merged, m.parts[i].text)
	}
	return merged
}

// merger is a run of mergePairs. Its parts keep the places of the symbols they begin
// with, chained to those that are still there: len(parts) and -1 are the ends.
type merger struct {
	rank    func(left, right string) (float64, bool)
	parts   []part
	waiting pairs
}

type part struct {
	text           string
	previous, next int
	gone           bool // joined to the part before it
}

// pair is two neighbours as they were when the pair was proposed.
type pair struct {
	rank                float64
	left, right         int
	leftSize, rightSize int
}

// propose puts the part at left and its neighbour in line, if their pair has a rank.
// Outside of the first round the caller restores the heap.
func (m *merger) propose(left int) bool {
	if left < 0 || m.parts[left].next >= len(m.parts) {
		return false
	}
	l, right := &m.parts[left], m.parts[left].next
	r := &m.parts[right]
	rank, ok := m.rank(l.text, r.text)
	if ok {
		m.waiting = append(m.waiting, pair{rank, left, right, len(l.text), len(r.text)})
	}
	return ok
}

// join carries a pair out, unless one of the two is not what it was.
func (m *merger) join(p pair) {
	l, r := &m.parts[p.left], &m.parts[p.right]
	if l.gone || r.gone || len(l.text) != p.leftSize || len(r.text) != p.rightSize {
		return
	}
	l.text += r.text
	l.next, r.gone = r.next, true
	if r.next < len(m.parts) {
		m.parts[r.next].previous = p.left
	}
	for _, left := range []int{l.previous, p.left} {
		if m.propose(left) {
			heap.Fix(&m.waiting, len(m.waiting)-1)
		}
	}
}

// pairs is a heap of pairs: the lowest rank first, then the leftmost.
type pairs []pair

func (p pairs) Len() int { return len(p) }

func (p pairs) Less(i, j int) bool {
	return p[i].rank < p[j].rank || p[i].rank == p[j].rank && p[i].left < p[j].left
}

func (p pairs) Swap(i, j int) { p[i], p[j] = p[j], p[i] }

// Push is there for heap.Interface.
func (p *pairs) Push(x any) { *p = append(*p, x.(pair)) }

// Pop is there for heap.Interface.
func (p *pairs) Pop() any {
	last := (*p)[len(*p)-1]
	*p = (*p)[:len(*p)-1]
	return last
}
