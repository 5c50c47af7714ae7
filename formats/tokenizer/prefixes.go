package tokenizer

import (
	"slices"
	"sort"
	"strings"
)

// prefixes finds which of many texts another one begins with. It is a sorted list: the
// texts with one beginning are neighbours.
type prefixes []entry

type entry struct {
	text  string
	value int
}

func (p *prefixes) add(text string, value int) { *p = append(*p, entry{text, value}) }

// sort comes after the last add. Of equal texts that which was added first counts.
func (p *prefixes) sort() {
	slices.SortStableFunc(*p, func(a, b entry) int { return strings.Compare(a.text, b.text) })
	*p = slices.CompactFunc(*p, func(a, b entry) bool { return a.text == b.text })
}

// find calls found with the length and the value of every text that text begins with, the
// shortest first.
func (p prefixes) find(text string, found func(length, value int)) {
	for i := 0; len(p) > 0; i++ { // p are those that begin with text[:i]
		if len(p[0].text) == i {
			found(i, p[0].value)
			p = p[1:]
		}
		if i == len(text) {
			return
		}
		c := text[i]
		p = p[sort.Search(len(p), func(j int) bool { return p[j].text[i] >= c }):]
		p = p[:sort.Search(len(p), func(j int) bool { return p[j].text[i] > c })]
	}
}
