package diff_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/x448/float16"

	"github.com/loratool/loratool/diff"
	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
)

// decode is the slow twin of the codecs.
func decode(d tensor.DType, code []byte) float64 {
	switch d {
	case tensor.F64:
		return math.Float64frombits(binary.LittleEndian.Uint64(code))
	case tensor.F32:
		return float64(math.Float32frombits(binary.LittleEndian.Uint32(code)))
	case tensor.BF16:
		return float64(math.Float32frombits(uint32(binary.LittleEndian.Uint16(code)) << 16))
	case tensor.F16:
		return float64(float16.Frombits(binary.LittleEndian.Uint16(code)).Float32())
	case tensor.F8E4M3:
		return smallFloat(code[0], 3, 7, true)
	}
	return smallFloat(code[0], 2, 15, false)
}

// smallFloat decodes a code of one byte by the definition of its format.
func smallFloat(code byte, digits int, bias int, finite bool) float64 {
	sign := 1.0
	if code&0x80 != 0 {
		sign = -1
	}
	rest := int(code & 0x7f)
	exponent, fraction := rest>>digits, rest&(1<<digits-1)
	top := 1<<(7-digits) - 1
	switch {
	case finite && rest == 0x7f, !finite && exponent == top && fraction > 0:
		return math.NaN()
	case !finite && exponent == top:
		return math.Inf(int(sign))
	case exponent == 0:
		return sign * math.Ldexp(float64(fraction), 1-bias-digits)
	}
	return sign * math.Ldexp(float64(fraction+1<<digits), exponent-bias-digits)
}

// numbersOf lists the numbers of a type of at most 16 bits in ascending order, both
// zeros as one.
func numbersOf(d tensor.DType) []float64 {
	var all []float64
	size := int(d.Bits() / 8)
	for i := range 1 << d.Bits() {
		code := binary.LittleEndian.AppendUint32(nil, uint32(i))[:size]
		if v := decode(d, code); !math.IsNaN(v) {
			all = append(all, v+0) // -0+0 is +0
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// nearest rounds to the nearest of a sorted list; a tie goes to an even code, and what is
// beyond the largest finite number by half a step is infinite, or for a type without
// infinity the largest.
func nearest(list []float64, v float64) int {
	i, found := slices.BinarySearch(list, v)
	switch {
	case found:
		return i
	case i == 0:
		return 0
	case i == len(list):
		return i - 1
	}
	low, high := list[i-1], list[i]
	if math.IsInf(high, 0) || math.IsInf(low, 0) {
		panic("the test's numbers are of ordinary size")
	}
	if v-low < high-v {
		return i - 1
	}
	if v-low > high-v {
		return i
	}
	// The middle code counts from zero: zero is in the middle of the list.
	if (i-1-len(list)/2)%2 == 0 {
		return i - 1
	}
	return i
}

// twin compares two tensors one element at a time.
type twin struct {
	changed                int64
	unlike, oddA, oddB     int64
	most                   float64
	diff, normA, normB, ab *big.Float
	ulp                    [66]int64
	oneNaN                 int64
}

func newTwin(a, b array, coarse tensor.DType) twin {
	w := twin{diff: new(big.Float), normA: new(big.Float), normB: new(big.Float), ab: new(big.Float)}
	var list []float64
	if coarse.Bits() <= 16 {
		list = numbersOf(coarse)
	}
	sizeA, sizeB := int(a.dtype.Bits()/8), int(b.dtype.Bits()/8)
	n := len(a.raw) / sizeA
	for i := range n {
		x, y := decode(a.dtype, a.raw[i*sizeA:]), decode(b.dtype, b.raw[i*sizeB:])
		if x != y && (!math.IsNaN(x) || !math.IsNaN(y)) {
			w.changed++
		}
		w.count(coarse, list, x, y)
		oddX, oddY := math.IsNaN(x) || math.IsInf(x, 0), math.IsNaN(y) || math.IsInf(y, 0)
		if oddX || oddY {
			w.odd(x, y, oddX, oddY)
			continue
		}
		w.most = math.Max(w.most, math.Abs(x-y))
		for _, term := range []struct {
			sum  *big.Float
			u, v float64
		}{{w.diff, x - y, x - y}, {w.normA, x, x}, {w.normB, y, y}, {w.ab, x, y}} {
			term.sum.Add(term.sum, new(big.Float).Mul(big.NewFloat(term.u), big.NewFloat(term.v)))
		}
	}
	return w
}

func (w *twin) odd(x, y float64, oddX, oddY bool) {
	if oddX {
		w.oddA++
	}
	if oddY {
		w.oddB++
	}
	if x != y && (!math.IsNaN(x) || !math.IsNaN(y)) {
		w.unlike++
	}
}

// count puts a pair into the histogram of the coarser type, from the list of its numbers,
// or from their distance in units for F32 and F64.
func (w *twin) count(coarse tensor.DType, list []float64, x, y float64) {
	if math.IsNaN(x) != math.IsNaN(y) {
		w.oneNaN++
		return
	}
	var distance float64
	switch {
	case math.IsNaN(x) || x == y:
	case list != nil:
		distance = math.Abs(float64(nearest(list, x) - nearest(list, y)))
	case coarse == tensor.F32:
		distance = math.Abs(index32(float32(x)) - index32(float32(y)))
	default:
		d := new(big.Int).Sub(index64(x), index64(y))
		distance, _ = new(big.Float).SetInt(d.Abs(d)).Float64()
	}
	bin := 0
	for ; bin < 65; bin++ {
		if _, most := kernel.ULPRange(bin); distance <= float64(most) {
			break
		}
	}
	w.ulp[bin]++
}

// index32 counts the numbers of float32 from zero to x: 2^23 for every exponent.
func index32(x float32) float64 {
	if x < 0 {
		return -index32(-x)
	}
	fraction, exponent := math.Frexp(float64(x))
	switch {
	case x == 0:
		return 0
	case math.IsInf(float64(x), 0):
		return 255 << 23
	case exponent < -125: // subnormal: steps of 2^-149
		return math.Ldexp(float64(x), 149)
	}
	return float64(exponent+125)*(1<<23) + math.Ldexp(fraction, 24)
}

// index64 is index32 for float64; 53 bits are not enough for it.
func index64(x float64) *big.Int {
	if x < 0 {
		return new(big.Int).Neg(index64(-x))
	}
	fraction, exponent := math.Frexp(x)
	switch {
	case x == 0:
		return new(big.Int)
	case math.IsInf(x, 0):
		return new(big.Int).Lsh(big.NewInt(2047), 52)
	case exponent < -1021:
		return big.NewInt(int64(math.Ldexp(math.Ldexp(x, 1000), 74)))
	}
	i := new(big.Int).Lsh(big.NewInt(int64(exponent+1021)), 52)
	return i.Add(i, big.NewInt(int64(math.Ldexp(fraction, 53))))
}

// check compares a result with the twin. A sum of n squares in float64 is right to
// n·2^-53 of the sum of the magnitudes, products included; big.Float has 53 bits too,
// so the bound is taken twice.
func (w *twin) check(t *testing.T, got *diff.Tensor) {
	t.Helper()
	c := got.Figures
	if got.Changed != w.changed || c.NonFiniteA != w.oddA || c.NonFiniteB != w.oddB || c.NonFiniteUnlike != w.unlike {
		t.Errorf("changed %d, not finite %d %d, unlike %d; want %d, %d %d, %d",
			got.Changed, c.NonFiniteA, c.NonFiniteB, c.NonFiniteUnlike, w.changed, w.oddA, w.oddB, w.unlike)
	}
	if c.MaxDiff != w.most {
		t.Errorf("largest difference %v, want %v", c.MaxDiff, w.most)
	}
	if got.ULP.Counts != w.ulp || got.ULP.OneNaN != w.oneNaN {
		t.Errorf("histogram %v, %d; want %v, %d", got.ULP.Counts, got.ULP.OneNaN, w.ulp, w.oneNaN)
	}
	bound := 2 * float64(got.Elements+3) * 0x1p-53
	scale, _ := new(big.Float).Add(w.normA, w.normB).Float64()
	for _, s := range []struct {
		name  string
		got   float64
		want  *big.Float
		scale float64
	}{
		{"squares of the difference", c.DiffSquares, w.diff, 0}, {"squares of A", c.ASquares, w.normA, 0},
		{"squares of B", c.BSquares, w.normB, 0}, {"products", c.Dot, w.ab, scale},
	} {
		want, _ := s.want.Float64()
		if math.Abs(s.got-want) > bound*math.Max(want, s.scale) {
			t.Errorf("sum of the %s is %v, want %v", s.name, s.got, want)
		}
	}
}

// mutate returns codes of which some differ from the given ones.
func mutate(rng *rand.Rand, a array, how string) array {
	raw := slices.Clone(a.raw)
	size := int(a.dtype.Bits() / 8)
	n := len(raw) / size
	set := func(i int) { copy(raw[i*size:], randomRaw(rng, a.dtype, tensor.Shape{1})) }
	switch how {
	case "last":
		set(n - 1)
	case "all":
		for i := range n {
			set(i)
		}
	case "few":
		for range 1 + n/5000 {
			set(rng.IntN(n))
		}
	case "step":
		for i := 0; i < n; i += 3 {
			raw[i*size]++ // a neighbour, or for 1 in 256 a code far away
		}
	case "bits":
		for i := range raw {
			raw[i] = byte(rng.Uint32()) // infinities, NaN, subnormals, zeros
		}
		if a.dtype == tensor.F64 { // of which most random codes are none
			for i, v := range []float64{math.Inf(1), math.NaN(), math.Inf(-1), 0, 5e-324}[:min(n, 5)] {
				binary.LittleEndian.PutUint64(raw[8*i:], math.Float64bits(v))
			}
		}
	}
	return array{a.name, a.dtype, a.shape, raw}
}

// TestTwin guards every figure of a tensor against the slow twin: over element types,
// sizes around those of chunks, and kinds of change.
func TestTwin(t *testing.T) {
	floats := []tensor.DType{tensor.F32, tensor.BF16, tensor.F16, tensor.F64, tensor.F8E4M3, tensor.F8E5M2}
	rng := rand.New(rand.NewPCG(1, 2))
	for _, d := range floats {
		for _, n := range []int64{1, 7, 65536, 65536 + 11} {
			for _, how := range []string{"last", "few", "all", "step", "bits"} {
				t.Run(fmt.Sprintf("%s/%d/%s", d, n, how), func(t *testing.T) {
					a := array{"w", d, tensor.Shape{n}, randomRaw(rng, d, tensor.Shape{n})}
					b := mutate(rng, a, how)
					got := only(t, compare(t, (&folder{arrays: []array{a}}).write(t), (&folder{arrays: []array{b}}).write(t), diff.Options{}))
					if slices.Equal(a.raw, b.raw) {
						if !got.Same || got.Different || got.Changed != 0 {
							t.Error("equal tensors differ")
						}
						return
					}
					if got.Same || !got.Different {
						t.Error("tensors of other bits are the same")
					}
					w := newTwin(a, b, d)
					w.check(t, got)
				})
			}
		}
	}
}

// TestTwinOfTwoTypes guards the same between two element types: the histogram is that of
// the coarser one.
func TestTwinOfTwoTypes(t *testing.T) {
	floats := []tensor.DType{tensor.F8E5M2, tensor.F8E4M3, tensor.BF16, tensor.F16, tensor.F32, tensor.F64} // coarsest first
	rng := rand.New(rand.NewPCG(3, 4))
	for i, coarse := range floats {
		for j, fine := range floats {
			if i >= j {
				continue
			}
			t.Run(coarse.String()+" "+fine.String(), func(t *testing.T) {
				const n = 65536 + 5
				a := array{"w", coarse, tensor.Shape{n}, randomRaw(rng, coarse, tensor.Shape{n})}
				b := array{"w", fine, tensor.Shape{n}, randomRaw(rng, fine, tensor.Shape{n})}
				ma, mb := (&folder{arrays: []array{a}}).write(t), (&folder{arrays: []array{b}}).write(t)
				got := only(t, compare(t, ma, mb, diff.Options{}))
				if got.ULPType != coarse {
					t.Errorf("steps of %s, want %s", got.ULPType, coarse)
				}
				w := newTwin(a, b, coarse)
				w.check(t, got)
				checkWidened(t, a, fine)
				back := only(t, compare(t, mb, ma, diff.Options{}))
				if back.Relative() != got.Relative() || back.ULP != got.ULP || back.Changed != got.Changed {
					t.Error("B against A is not A against B")
				}
			})
		}
	}
}

// checkWidened compares numbers with themselves in a type that holds them: they are the
// same, though not stored alike.
func checkWidened(t *testing.T, a array, fine tensor.DType) {
	t.Helper()
	if fine != tensor.F32 && fine != tensor.F64 {
		return
	}
	b := array{name: a.name, dtype: fine, shape: a.shape}
	size := int(a.dtype.Bits() / 8)
	for i := 0; i < len(a.raw); i += size {
		if v := decode(a.dtype, a.raw[i:]); fine == tensor.F32 {
			b.raw = binary.LittleEndian.AppendUint32(b.raw, math.Float32bits(float32(v)))
		} else {
			b.raw = binary.LittleEndian.AppendUint64(b.raw, math.Float64bits(v))
		}
	}
	for _, l := range []diff.Limits{{}, {Abs: 1e-30}} {
		r := compare(t, (&folder{arrays: []array{a}}).write(t), (&folder{arrays: []array{b}}).write(t), diff.Options{Limits: l})
		if got := only(t, r); !got.Same || got.Different || got.Differing != 0 || r.Different != l.None() {
			t.Errorf("%s as %s: same %v, different %v, %v", a.dtype, fine, got.Same, got.Different, r.Different)
		}
	}
}

// TestPieces guards what spans several pieces of work: the place of the worst element,
// norms of equal parts, and that figures do not depend on jobs and memory.
func TestPieces(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	const n = 2*64*65536 + 65536 + 3
	a := array{"w", tensor.F8E4M3, tensor.Shape{n}, randomRaw(rng, tensor.F8E4M3, tensor.Shape{n})}
	b := array{a.name, a.dtype, a.shape, slices.Clone(a.raw)}
	const worst = 64*65536 + 77777
	a.raw[worst], b.raw[worst] = 0x7e, 0xfe // 448 and -448
	b.raw[n-1] ^= 1
	ma, mb := (&folder{arrays: []array{a}}).write(t), (&folder{arrays: []array{b}}).write(t)
	var first *diff.Tensor
	for _, e := range []engine.Options{{Jobs: 1}, {Jobs: 3}, {Jobs: 8, Memory: 1}} {
		got := only(t, compareWith(t, ma, mb, diff.Options{}, e))
		if first == nil {
			first = got
			if got.Worst != worst || got.WorstA != 448 || got.WorstB != -448 || got.Changed != 2 {
				t.Errorf("worst element %d (%v, %v) of %d changed", got.Worst, got.WorstA, got.WorstB, got.Changed)
			}
			checkNorms(t, a, b, got)
		}
		if got.Sum != first.Sum || got.ULP != first.ULP {
			t.Errorf("other figures with %+v", e)
		}
	}
}

// checkNorms compares the norms with sums that need no rounding: the squares of E4M3 and
// their sums are multiples of 2^-18 below 2^45.
func checkNorms(t *testing.T, a, b array, got *diff.Tensor) {
	t.Helper()
	var squares [2]float64
	for i := range a.raw {
		x, y := decode(a.dtype, a.raw[i:]), decode(b.dtype, b.raw[i:])
		if !math.IsNaN(x) && !math.IsNaN(y) {
			squares[0] += x * x
			squares[1] += y * y
		}
	}
	if got.Figures.ASquares != squares[0] || got.Figures.BSquares != squares[1] {
		t.Errorf("squares %v and %v, want %v and %v", got.Figures.ASquares, got.Figures.BSquares, squares[0], squares[1])
	}
}
