package loftq_test

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/internal/linalg"
	"github.com/loratool/loratool/internal/linalg/linalgtest"
	"github.com/loratool/loratool/quant/loftq"
)

// golden is testdata/golden/loftq/golden.json, made by testdata/gen/loftq_golden.py.
type golden struct {
	Levels map[int]string
	Hard   struct {
		Rows, Cols int
		Data       string
	}
	Quantizers []struct{ Name, Weight, Data string }
	Runs       []goldenRun
	Pair       struct {
		Q, A, B                  string
		Baseline, Error, Quarter float64
	}
}

type goldenRun struct {
	Quantizer, Kind, Weight, Q string
	Rank, Iterations           int
	Baseline, Error            float64
}

func readGolden(t *testing.T) golden {
	t.Helper()
	data, err := os.ReadFile("../../testdata/golden/loftq/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	var g golden
	if err := json.Unmarshal(data, &g); err != nil {
		t.Fatal(err)
	}
	return g
}

func floats(t *testing.T, text string) []float32 {
	t.Helper()
	raw, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	x := make([]float32, len(raw)/4)
	for i := range x {
		x[i] = math.Float32frombits(binary.LittleEndian.Uint32(raw[4*i:]))
	}
	return x
}

func digest(x []float32) string {
	raw := make([]byte, 0, 4*len(x))
	for _, v := range x {
		raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(v))
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:])
}

// goldenWeight makes the weights of loftq_golden.py: integers times 2^-21.
func goldenWeight(kind string, out, in int, seed uint64) []float32 {
	const directions = 40
	total := make([]int64, out*in)
	noise := linalgtest.NewSource(seed)
	for i := range total {
		total[i] = -6 * 65535
		for range 3 {
			for word, field := noise.Uint64(), 0; field < 4; field++ {
				total[i] += int64(word >> (16 * field) & 0xffff)
			}
		}
	}
	if kind == "decay" {
		left, right := nibbles(seed+1, directions*out), nibbles(seed+2, directions*in)
		for k := range directions {
			size := int64(16 * (256 / (k + 1)))
			for i := range out {
				for j := range in {
					total[i*in+j] += size * left[k*out+i] * right[k*in+j]
				}
			}
		}
	}
	w := make([]float32, len(total))
	for i, v := range total {
		w[i] = float32(math.Ldexp(float64(v), -21))
	}
	return w
}

func nibbles(seed uint64, n int) []int64 {
	source := linalgtest.NewSource(seed)
	var x []int64
	for len(x) < n {
		for word, field := source.Uint64(), 0; field < 16; field++ {
			x = append(x, int64(word>>(4*field)&15)-8)
		}
	}
	return x[:n]
}

// quantizers are the ones of the golden data, by name.
var quantizers = map[string]loftq.Quantizer{
	"bnb-nf4":  loftq.FourBit{Type: kernel.NF4, BlockSize: 64},
	"nf2":      loftq.Normal{Bits: 2},
	"nf3":      loftq.Normal{Bits: 3},
	"nf4":      loftq.Normal{Bits: 4},
	"uniform2": loftq.Uniform{Bits: 2},
	"uniform3": loftq.Uniform{Bits: 3},
	"uniform4": loftq.Uniform{Bits: 4},
}

func roundTrip(t *testing.T, q loftq.Quantizer, w []float32, rows, cols int) []float32 {
	t.Helper()
	dst := make([]float32, len(w))
	if err := q.RoundTrip(dst, w, rows, cols, 1); err != nil {
		t.Fatal(err)
	}
	return dst
}

// TestLevels guards the tables: they are those of the published code, and they follow
// from the formula.
func TestLevels(t *testing.T) {
	g := readGolden(t)
	for bits := 2; bits <= 4; bits++ {
		// A block of a 1 and of the levels themselves is what shows the table.
		want := floats(t, g.Levels[bits])
		got := roundTrip(t, loftq.Normal{Bits: bits}, want, 1, len(want))
		for i, v := range want {
			if got[i] != v {
				t.Errorf("%d bits: level %d is %v, want %v", bits, i, got[i], v)
			}
		}
		half := len(want) / 2
		for i := range half {
			checkLevel(t, want[len(want)-1-i], offset-(offset-0.5)*float64(i)/float64(half))
			if i < half-1 {
				checkLevel(t, -want[i], offset-(offset-0.5)*float64(i)/float64(half-1))
			}
		}
		if want[half-1] != 0 {
			t.Errorf("%d bits: level %d is %v, want 0", bits, half-1, want[half-1])
		}
	}
}

const offset = 0.9677083

// checkLevel compares a level with the quantile of p. The published code computes p
// in float32: offset, step, their product and the difference are off by 2^-25 each
// at most, as all are below 1. The slope of the quantile is the inverse of the density.
// Then come roundings of the quantile, of the largest one and of the quotient.
func checkLevel(t *testing.T, level float32, p float64) {
	t.Helper()
	quantile := func(p float64) float64 { return math.Sqrt2 * math.Erfinv(2*p-1) }
	slope := func(p float64) float64 { return math.Sqrt(2*math.Pi) * math.Exp(quantile(p)*quantile(p)/2) }
	largest := quantile(offset)
	want := quantile(p) / largest
	limit := 4*0x1p-25*(slope(p)+want*slope(offset))/largest + 3*0x1p-24*want
	if !(math.Abs(float64(level)-want) <= limit) {
		t.Errorf("level %v for p = %v, want %v within %v", level, p, want, limit)
	}
}

// TestQuantizersAreThePublished compares bits with the published code, on blocks with
// ties, zeros, subnormals and numbers far apart, and values of the uniform quantizer,
// whose mean and deviation torch sums in float32.
func TestQuantizersAreThePublished(t *testing.T) {
	g := readGolden(t)
	weights := map[string][]float32{"hard": floats(t, g.Hard.Data), "noise": goldenWeight("noise", 16, 64, 90)}
	if len(g.Quantizers) != 6 {
		t.Fatalf("%d quantizers in the golden data, want 6", len(g.Quantizers))
	}
	for _, golden := range g.Quantizers {
		w, want := weights[golden.Weight], floats(t, golden.Data)
		got := roundTrip(t, quantizers[golden.Name], w, 16, 64)
		for i, v := range want {
			limit := 0.0
			if strings.HasPrefix(golden.Name, "uniform") {
				// Sums of n numbers are off by log2(n)/2 roundings or so in torch; the
				// ends of the range by that much of their size, and levels no more.
				limit = 8 * 0x1p-24 * float64(maxAbs(want))
			} else if math.Float32bits(got[i]) == math.Float32bits(v) {
				continue
			}
			if !(math.Abs(float64(got[i])-float64(v)) <= limit) {
				t.Errorf("%s: element %d of %q, %v, becomes %v, want %v", golden.Name, i, golden.Weight, w[i], got[i], v)
			}
		}
	}
}

func maxAbs(x []float32) float32 {
	largest := float32(0)
	for _, v := range x {
		largest = max(largest, v, -v)
	}
	return largest
}

// flips is the number of elements that may fall on the other side of a tie of two
// levels because the factors of two implementations differ in their last digits. They
// differ by some 2^-22 of a level's width where one in 2^22 is that near to a tie; 16 in
// 122880 elements and four quantizations is far more than happens.
const flips = 16

// pathError is what flips change the error by, relatively. An element at a tie is as far
// from both levels, g/2; the decomposition that follows moves it by less than that, so
// that its square changes by at most g^2, where the mean of all squares is g^2/12. Half
// of that for the root.
const pathError = flips * 12.0 / (384 * 320) / 2

// TestPEFT guards that the alternation is that of PEFT's loftq_init: the same Q_0 to the
// bit, the same error after as many steps where both decompose in full, and no larger
// one, but for what Excess grants the iteration, as it is by default.
func TestPEFT(t *testing.T) {
	// rounding is that of W - L and of PEFT's decomposition in float32, where the error
	// is at least a twentieth of the weight; excess is linalg's default at these ranks.
	const rounding, excess = 20 * 2 * 0x1p-24, 5e-4
	g := readGolden(t)
	if len(g.Runs) != 36 {
		t.Fatalf("%d runs in the golden data, want 36", len(g.Runs))
	}
	solved := make(map[string]*loftq.Result)
	cached := func(name string, w []float32, run goldenRun, exact bool) *loftq.Result {
		key := fmt.Sprint(name, exact)
		if solved[key] == nil {
			o := loftq.Options{Rank: run.Rank, Exact: exact, Threads: 2}
			solved[key] = solve(t, w, 384, 320, quantizers[run.Quantizer], o)
		}
		return solved[key]
	}
	weights := map[string][]float32{"noise": goldenWeight("noise", 384, 320, 7), "decay": goldenWeight("decay", 384, 320, 7)}
	for _, run := range g.Runs {
		name := fmt.Sprintf("%s %s rank %d", run.Quantizer, run.Kind, run.Rank)
		w := weights[run.Kind]
		if digest(w) != run.Weight {
			t.Fatalf("the weight %q is not that of the golden data", run.Kind)
		}
		exact, quick := cached(name, w, run, true), cached(name, w, run, false)
		limit := rounding
		if run.Iterations > 1 {
			limit += pathError
		}
		if got := exact.Iterates[run.Iterations].Repaired.Plain; math.Abs(got/run.Error-1) > limit {
			t.Errorf("%s: error after %d iterations is %v, want %v within %v of it", name, run.Iterations, got, run.Error, limit)
		}
		switch run.Iterations {
		case 1:
			if digest(roundTrip(t, quantizers[run.Quantizer], w, 384, 320)) != run.Q {
				t.Errorf("%s: Q_0 is not PEFT's", name)
			}
			if got := exact.Baseline().Plain; math.Abs(got/run.Baseline-1) > rounding {
				t.Errorf("%s: plain quantization has error %v, want %v", name, got, run.Baseline)
			}
			if got := quick.Iterates[1].Repaired.Plain; !(got <= run.Error*(1+rounding+excess)) {
				t.Errorf("%s: error after one iteration is %v, PEFT's %v", name, got, run.Error)
			}
		case 5:
			for _, r := range []*loftq.Result{exact, quick} {
				if !(r.Error.Plain <= run.Error*(1+limit+5*excess)) { // each step may leave that more
					t.Errorf("%s: the kept error is %v, PEFT's %v", name, r.Error.Plain, run.Error)
				}
				if run.Quantizer == "nf2" && run.Rank == 64 && !(r.Error.Plain < 0.99*run.Error) {
					t.Errorf("%s: the kept error is %v, no better than PEFT's last, %v", name, r.Error.Plain, run.Error)
				}
			}
		}
	}
}

// TestPEFTPair guards that a pair whose factors ignore the scale of its adapter is
// seen: it fits best at 1, and a quarter of it is applied at 1/4.
func TestPEFTPair(t *testing.T) {
	const out, in, rank = 48, 64, 8
	g := readGolden(t).Pair
	w, q := goldenWeight("decay", out, in, 8), floats(t, g.Q)
	p := linalg.NewMatrix(out, in, nil)
	a, b := linalg.NewMatrix(rank, in, floats(t, g.A)), linalg.NewMatrix(out, rank, floats(t, g.B))
	linalg.Gemm(1, b, a, 0, p, 1)
	fit, err := loftq.NewFit(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	fit.Add(w, q, p.Data)
	// The product and the two factors are rounded, the vectors orthonormal to
	// float32: see scaleError.
	c, ok := fit.BestScale()
	if limit := scaleError(rank, g.Baseline, g.Error); !ok || math.Abs(c-1) > limit {
		t.Errorf("the best scale is %v, want 1 within %v", c, limit)
	}
	for _, x := range []struct{ got, want float64 }{
		{fit.Baseline(), g.Baseline}, {fit.Error(1), g.Error}, {fit.Error(0.25), g.Quarter},
	} {
		// The product is rounded to float32, and less than the baseline.
		if math.Abs(x.got-x.want) > (rank+2)*0x1p-24*g.Baseline {
			t.Errorf("error %v, want %v", x.got, x.want)
		}
	}
	if lost := (g.Baseline - g.Quarter) / (g.Baseline - g.Error); lost > 0.5 {
		t.Errorf("a quarter of the product gains %v of what it should", lost)
	}
}
