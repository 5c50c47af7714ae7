package kernel_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/internal/kernel"
)

// memory makes slices for an operation, all within bounds that it watches.
type memory interface {
	float32s(n int) []float32
	float64s(n int) []float64
	bytes(n int) []byte
}

// operation is one function of the package on inputs made from rng, with n
// columns or elements. It returns all that was computed, as bits.
type operation struct {
	name string
	run  func(m memory, rng *rand.Rand, n int) []uint64
}

// operations are all functions that have a variant in assembly.
var operations = slices.Concat(searches, plainEncoders, []operation{
	{"AddLowRank", func(m memory, rng *rand.Rand, n int) []uint64 {
		rows, rank := 1+rng.IntN(10), rng.IntN(12)
		x, l, r := values(m, rng, rows*n), values(m, rng, rows*rank), values(m, rng, rank*n)
		kernel.AddLowRank(x, rows, n, l, r, rank, values(m, rng, 1)[0])
		return bits(nil, x)
	}},
	{"AddLowRank of high rank", func(m memory, rng *rand.Rand, n int) []uint64 {
		const rows, rank = 9, 67
		x, l, r := values(m, rng, rows*n), values(m, rng, rows*rank), values(m, rng, rank*n)
		kernel.AddLowRank(x, rows, n, l, r, rank, 0.5)
		return bits(nil, x)
	}},
	{"ScaleRows", func(m memory, rng *rand.Rand, n int) []uint64 {
		x := values(m, rng, 3*n)
		kernel.ScaleRows(x, 3, n, values(m, rng, 3))
		return bits(nil, x)
	}},
	{"ScaleCols", func(m memory, rng *rand.Rand, n int) []uint64 {
		x := values(m, rng, 3*n)
		kernel.ScaleCols(x, 3, n, values(m, rng, n))
		return bits(nil, x)
	}},
	{"RowSumSquares", func(m memory, rng *rand.Rand, n int) []uint64 {
		sums := m.float64s(3)
		kernel.RowSumSquares(sums, values(m, rng, 3*n), 3, n)
		return bits(nil, sums)
	}},
	{"AddColSumSquares", func(m memory, rng *rand.Rand, n int) []uint64 {
		rows, sums := rng.IntN(10), m.float64s(n)
		copy(sums, random[float64](rng, "special", n))
		kernel.AddColSumSquares(sums, values(m, rng, rows*n), rows, n)
		return bits(nil, sums)
	}},
	{"Stats", func(m memory, rng *rand.Rand, n int) []uint64 {
		var s [2]kernel.RowStats
		kernel.Stats(s[:], values(m, rng, 2*n), values(m, rng, 2*n), values(m, rng, 2*n), 2, n)
		var out []uint64
		for _, s := range s {
			out = bits(out, []float64{s.Base, s.Change, s.Rounding, s.Kept})
			out = append(out, uint64(s.NonFiniteBase), uint64(s.NonFiniteExact), uint64(s.NonFiniteStored))
		}
		return out
	}},
	{"Compare", func(m memory, rng *rand.Rand, n int) []uint64 {
		a, b := values(m, rng, n), values(m, rng, n)
		for i := range b {
			if rng.IntN(3) == 0 {
				b[i] = a[i]
			}
		}
		c := kernel.Compare(a, b)
		out := bits(nil, []float64{c.MaxDiff, c.DiffSquares, c.ASquares, c.BSquares, c.Dot})
		return append(out, uint64(c.NonFiniteA), uint64(c.NonFiniteB), uint64(c.NonFiniteUnlike))
	}},
	{"ULPHistogram", func(m memory, rng *rand.Rand, n int) []uint64 {
		var out []uint64
		for _, s := range storages {
			a, b := m.bytes(n*s.size), m.bytes(n*s.size)
			nearCodes(rng, a, b, s.size)
			var h kernel.ULPHistogram
			h.Add(s.Storage, a, b)
			for _, n := range h.Counts {
				out = append(out, uint64(n))
			}
			out = append(out, uint64(h.OneNaN))
		}
		return out
	}},
	{"MatVec", func(m memory, rng *rand.Rand, n int) []uint64 {
		rows, s := rng.IntN(7), sumTypes[rng.IntN(4)]
		w, dst := m.bytes(2*rows*n), m.float32s(rows)
		fillCodes(rng, w)
		kernel.MatVec(dst, s.weights, w, values(m, rng, n), rows, n, s.sums)
		return bits(nil, dst)
	}},
	{"MaxAbs", func(m memory, rng *rand.Rand, n int) []uint64 {
		return bits(nil, []float32{kernel.MaxAbs(values(m, rng, n))})
	}},
})

// fillCodes fills w with 16-bit codes, of which some are NaN and infinite in either
// type.
func fillCodes(rng *rand.Rand, w []byte) {
	for i := 0; i < len(w); i += 2 {
		binary.LittleEndian.PutUint16(w[i:], uint16(rng.Uint32()))
	}
	if rng.IntN(2) > 0 { // numbers around 1
		for i := 1; i < len(w); i += 2 {
			w[i] = w[i]&0x81 | 0x3c
		}
	}
}

// values returns n numbers of some kind.
func values(m memory, rng *rand.Rand, n int) []float32 {
	s := m.float32s(n)
	copy(s, random[float32](rng, kinds[rng.IntN(len(kinds))], n))
	return s
}

func bits[T kernel.Float](to []uint64, s []T) []uint64 {
	for _, v := range s {
		to = append(to, bitsOf(v))
	}
	return to
}

// compare runs an operation at generic and at the level in use.
func compare(t testing.TB, m memory, o operation, seed uint64, n int) {
	t.Helper()
	fast := kernel.Level()
	got := o.run(m, rand.New(rand.NewPCG(seed, uint64(n))), n)
	if err := kernel.Use("generic"); err != nil {
		t.Fatal(err)
	}
	want := o.run(m, rand.New(rand.NewPCG(seed, uint64(n))), n)
	if err := kernel.Use(fast); err != nil {
		t.Fatal(err)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("%s of %d columns, seed %d: number %d is %#x at %s, %#x at generic", o.name, n, seed, i, got[i], fast, want[i])
		}
	}
}

// canaries surrounds every slice with words that nothing may change; slices are
// aligned to 4 bytes and not to 8.
type canaries struct{ checks []func() }

func (c *canaries) float32s(n int) []float32 { return watched(c, n, math.Float32frombits(canary)) }

func (c *canaries) float64s(n int) []float64 { return watched(c, n, math.Float64frombits(canary)) }

func (c *canaries) bytes(n int) []byte { return watched(c, n, byte(0xad)) }

func (c *canaries) check() {
	for _, check := range c.checks {
		check()
	}
	c.checks = nil
}

func watched[E comparable](c *canaries, n int, word E) []E {
	const margin = 33
	all := make([]E, n+2*margin)
	for i := range all {
		all[i] = word
	}
	c.checks = append(c.checks, func() {
		for i, v := range all {
			if (i < margin || i >= margin+n) && fmt.Sprint(v) != fmt.Sprint(word) {
				panic(fmt.Sprintf("wrote %v at %d of a slice of %d", v, i-margin, n))
			}
		}
	})
	return all[margin : margin+n : margin+n]
}

// TestTwins holds every level to the bytes of generic, for all numbers of columns
// up to 257, at odd addresses and between canaries.
func TestTwins(t *testing.T) {
	rounds := uint64(4)
	if testing.Short() {
		rounds = 1
	}
	eachLevel(t, func(t *testing.T) {
		for _, o := range operations {
			t.Run(o.name, func(t *testing.T) {
				var m canaries
				for n := range 258 {
					for seed := range rounds {
						compare(t, &m, o, seed, n)
					}
					m.check()
				}
				for _, n := range []int{1000, 4096, 70_001} {
					compare(t, &m, o, 99, n)
				}
				m.check()
			})
		}
	})
}

// FuzzTwins tries sizes that nobody thought of.
func FuzzTwins(f *testing.F) {
	f.Add(uint64(1), uint16(17))
	f.Add(uint64(2), uint16(4100))
	f.Fuzz(func(t *testing.T, seed uint64, n uint16) {
		for _, name := range kernel.Levels() {
			use(t, name)
			var m canaries
			for _, o := range operations {
				compare(t, &m, o, seed, int(n)%5000)
			}
			m.check()
		}
	})
}

// TestSkipFinite guards that what is skipped is finite, and that levels with
// vectors skip all blocks that are.
func TestSkipFinite(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(31, 32))
		for _, f := range []struct {
			width int
			ones  uint32
		}{{1, 0x7f}, {1, 0x7c}, {2, 0x7c00}, {2, 0x7f80}, {4, 0x7f80_0000}} {
			for n := range 1300 / f.width {
				data := make([]byte, n*f.width+1)[1:]
				for i := range data {
					data[i] = byte(rng.Uint32()) & 0x7b // never all ones
					if f.ones == 0x7f80 || f.width == 4 {
						data[i] &= 0x3f
					}
				}
				bad := len(data)
				if n > 0 && rng.IntN(3) > 0 {
					bad = rng.IntN(n) * f.width
					var word [4]byte
					binary.LittleEndian.PutUint32(word[:], f.ones|rng.Uint32()&^(1<<30))
					copy(data[bad:], word[:f.width])
				}
				got := kernel.SkipFinite(data, f.width, f.ones)
				want := bad / 128 * 128
				if kernel.Level() == "generic" {
					want = 0
				}
				if got != want {
					t.Fatalf("width %d, ones %#x, %d bytes, bad at %d: skipped %d, want %d", f.width, f.ones, len(data), bad, got, want)
				}
			}
		}
	})
}

// TestUse guards the names, that an unknown one changes nothing, and that the level
// the environment names is in use from the start: a run of the suite at a level says
// nothing without it.
func TestUse(t *testing.T) {
	levels, start := kernel.Levels(), kernel.Level()
	want := levels[len(levels)-1]
	if name := os.Getenv(kernel.Variable); name != "" {
		want = name
	}
	if levels[0] != "generic" || start != want {
		t.Errorf("levels %q, in use %q; want generic first and %q in use", levels, start, want)
	}
	use(t, "generic")
	for _, name := range []string{"", "sse", "AVX2", "neon"} {
		if err := kernel.Use(name); err == nil || kernel.Level() != "generic" {
			t.Errorf("Use(%q) = %v, in use %q", name, err, kernel.Level())
		}
	}
	for _, name := range []string{"avx2", "avx512"} {
		if err := kernel.Use(name); (err == nil) != slices.Contains(levels, name) {
			t.Errorf("Use(%q) = %v, levels %q", name, err, levels)
		}
	}
}

// TestVariable guards what the environment may ask for, in a process of its own for
// each: a known level is used, anything else leaves the best one.
func TestVariable(t *testing.T) {
	const report = "KERNEL_TEST_REPORT_LEVEL"
	if os.Getenv(report) != "" {
		fmt.Printf("level=%s\n", kernel.Level())
		return
	}
	levels := kernel.Levels()
	best := levels[len(levels)-1]
	for _, name := range []string{"", "generic", "avx2", "avx512", "mmx", "GENERIC"} {
		want := best
		if slices.Contains(levels, name) {
			want = name
		}
		cmd := exec.Command(os.Args[0], "-test.run=^TestVariable$")
		cmd.Env = append(os.Environ(), report+"=1", kernel.Variable+"="+name)
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "level="+want+"\n") {
			t.Errorf("%s=%q: %v, %s; want level %s", kernel.Variable, name, err, out, want)
		}
	}
}
