package main

import (
	"fmt"
	"math/rand/v2"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/quant/block"
)

// mergeScale is the scale of the updates, small enough that a tensor which is merged
// again and again in place, as torch does it, stays finite.
const mergeScale = 0.01

// bandRows is the height of the bands that the engine works in at 4096 columns.
const bandRows = 256

// bf16 is the codec of the tensors.
var bf16 = func() block.Codec {
	c, ok := block.For(tensor.BF16)
	if !ok {
		panic("no codec of bf16")
	}
	return c
}()

// mergeTensor is a square bf16 matrix W with the factors of W + scale*L*R.
type mergeTensor struct {
	size, rank int
	w, out     []byte
	l, r       []byte    // bf16
	left       []float32 // the same, decoded
	right      []float32
	stats      []kernel.RowStats
}

func newTensor(size, rank int) *mergeTensor {
	rng := rand.New(rand.NewPCG(2, uint64(rank)))
	t := &mergeTensor{size: size, rank: rank, out: make([]byte, 2*size*size), stats: make([]kernel.RowStats, size)}
	t.w, _ = rounded(normals(rng, size*size))
	t.l, t.left = rounded(normals(rng, size*rank))
	t.r, t.right = rounded(normals(rng, rank*size))
	return t
}

// rounded returns x in bf16, as bytes and as numbers.
func rounded(x []float32) (encoded []byte, decoded []float32) {
	encoded = make([]byte, 2*len(x))
	bf16.Encode32(encoded, x)
	bf16.Decode32(x, encoded)
	return encoded, x
}

// ours merges on so many goroutines, each a part of the rows in bands, with the sums
// of a merge report or without.
func (t *mergeTensor) ours(threads int, report bool) contender {
	mergers := make([]kernel.Merger, threads)
	return contender{threads: threads, run: func() {
		inParallel(threads, func(thread int) {
			from, to := thread*t.size/threads, (thread+1)*t.size/threads
			for i := from; i < to; i += bandRows {
				t.band(&mergers[thread], i, min(bandRows, to-i), report)
			}
		})
	}}
}

func (t *mergeTensor) band(m *kernel.Merger, first, rows int, report bool) {
	var stats []kernel.RowStats
	if report {
		stats = t.stats[first:][:rows]
	}
	pitch := 2 * t.size
	u := kernel.LowRank{L: t.left[first*t.rank:][:rows*t.rank], R: t.right, Rank: t.rank, Scale: mergeScale}
	m.Merge(t.out[first*pitch:][:rows*pitch], bf16, t.w[first*pitch:][:rows*pitch], bf16, rows, t.size, u, stats)
}

// measureMerge compares the merge of one tensor in memory with torch, which computes
// in bf16 (the expression that merges are written as) or in float32 (as PEFT does on a
// CPU), and with a copy of the same bytes.
func measureMerge(b *bench) ([]row, error) {
	const rank = 16
	t := newTensor(b.size, rank)
	defer use(kernel.Level())
	rows, err := mergeAndCopy(b, t)
	if err != nil {
		return rows, err
	}
	peer, err := startTorch(b.python, t)
	if err != nil {
		return rows, err
	}
	defer peer.close()
	if err := peer.checkAgainst(t); err != nil {
		return rows, err
	}
	for _, threads := range []int{1, 2} {
		costs, err := interleave(b.rounds, t.ours(threads, false), peer.contender("bf16", threads), peer.contender("peft", threads))
		if err != nil {
			return rows, err
		}
		for i, name := range []string{"w += (B @ A) * s", "as PEFT does it, in float32"} {
			r := t.compare(threads, false, costs[0], costs[i+1], fmt.Sprintf("torch %s, %s", peer.version, name))
			if i == 0 {
				r.goal = 20
			}
			rows = append(rows, r)
		}
	}
	return rows, nil
}

// mergeAndCopy compares a merge, without and with the sums of a report, with a copy.
func mergeAndCopy(b *bench, t *mergeTensor) ([]row, error) {
	copying := contender{threads: 1, run: func() { copy(t.out, t.w) }}
	costs, err := interleave(b.rounds, t.ours(1, false), t.ours(1, true), copying)
	if err != nil {
		return nil, err
	}
	return []row{
		t.compare(1, false, costs[0], costs[2], "copy of W"),
		t.compare(1, true, costs[1], costs[2], "copy of W"),
	}, nil
}

// compare makes the row of two sides.
func (t *mergeTensor) compare(threads int, report bool, ours, reference []cost, who string) row {
	name := fmt.Sprintf("merge of %d² bf16, rank %d, %s", t.size, t.rank, plural(threads))
	if report {
		name += ", with report"
	}
	time := cpuSeconds
	if threads > 1 {
		time = wallSeconds
	}
	return row{
		figure:    name,
		ours:      fmt.Sprintf("%s (%s of W)", milliseconds(time(ours)), speed(float64(len(t.w)), time(ours), "GB/s")),
		reference: fmt.Sprintf("%s %s", who, milliseconds(time(reference))),
		cpu:       cpuSeconds(reference).over(cpuSeconds(ours)),
		wall:      wallSeconds(reference).over(wallSeconds(ours)),
		byWall:    threads > 1,
	}
}
