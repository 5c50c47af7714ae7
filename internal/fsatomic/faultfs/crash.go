package faultfs

import (
	"maps"
	"math/rand/v2"
	"slices"
)

// crashBlock is the unit, in bytes, in which unsynced content survives or not.
// Small, so that small test files come out mixed.
const crashBlock = 8

// Crash returns the file system as a loss of power would leave it. What was
// synced is there; of the rest each change of names, file size and block of
// content survives with the given probability: 0 forgets all, 1 keeps all,
// between them the seed decides. Everything in the result is durable.
//
// That is harsher than most disks are. Unsynced changes of names survive in any
// combination, where most journals keep their order.
func (m *Mem) Crash(keep float64, seed uint64) *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := crash{
		keep:   keep,
		random: rand.New(rand.NewPCG(seed, 0)),
		names:  map[*node]map[string]*node{},
		clones: map[*node]*node{},
	}
	for _, change := range m.pending {
		if !c.survives() {
			continue
		}
		for _, n := range change {
			set(c.entries(n.dir), n)
		}
	}
	return &Mem{root: c.clone(m.root), free: m.free}
}

// crash is one loss of power.
type crash struct {
	keep   float64
	random *rand.Rand
	names  map[*node]map[string]*node // the entries of folders after the crash
	clones map[*node]*node
}

func (c *crash) survives() bool { return c.random.Float64() < c.keep }

func (c *crash) entries(dir *node) map[string]*node {
	if c.names[dir] == nil {
		c.names[dir] = maps.Clone(dir.keptEntries)
	}
	return c.names[dir]
}

func (c *crash) clone(n *node) *node {
	if c.clones[n] != nil {
		return c.clones[n]
	}
	copied := &node{}
	if n.isDir {
		copied = newDir()
	}
	c.clones[n] = copied
	if !n.isDir {
		copied.data = c.blend(n.keptData, n.data)
		copied.keptData = slices.Clone(copied.data)
		return copied
	}
	entries := c.entries(n)
	// In order, for the random numbers to be the same each time.
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		copied.entries[name] = c.clone(entries[name])
	}
	copied.keptEntries = maps.Clone(copied.entries)
	return copied
}

// blend mixes durable and unsynced content. A size that survives without its
// content shows zeros.
func (c *crash) blend(kept, data []byte) []byte {
	size := len(kept)
	if c.survives() {
		size = len(data)
	}
	mixed := make([]byte, size)
	copy(mixed, kept)
	for off := 0; off < size; off += crashBlock {
		if c.survives() && off < len(data) {
			copy(mixed[off:], data[off:min(off+crashBlock, len(data))])
		}
	}
	return mixed
}
