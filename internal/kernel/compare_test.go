package kernel_test

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/quant/block"
)

func TestCompare(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		t.Run("float32", testCompare[float32])
		t.Run("float64", testCompare[float64])
	})
}

// testCompare compares with lists of terms that are added in the stated order.
func testCompare[T kernel.Float](t *testing.T) {
	rng := rand.New(rand.NewPCG(71, 72))
	for n := range 258 {
		for _, kind := range kinds {
			a, b := random[T](rng, kind, n), random[T](rng, kind, n)
			var want kernel.Comparison
			diffs, as, bs, dots := make([]float64, n), make([]float64, n), make([]float64, n), make([]float64, n)
			for i := range n {
				x, y := float64(a[i]), float64(b[i])
				oddX, oddY := math.IsNaN(x) || math.IsInf(x, 0), math.IsNaN(y) || math.IsInf(y, 0)
				if oddX {
					want.NonFiniteA++
				}
				if oddY {
					want.NonFiniteB++
				}
				if oddX || oddY {
					if fmt.Sprint(x) != fmt.Sprint(y) {
						want.NonFiniteUnlike++
					}
					continue // the terms stay zero
				}
				diff := x - y
				want.MaxDiff = math.Max(want.MaxDiff, math.Abs(diff))
				diffs[i], as[i], bs[i], dots[i] = float64(diff*diff), float64(x*x), float64(y*y), float64(x*y)
			}
			want.DiffSquares, want.ASquares, want.BSquares = inLanes(diffs), inLanes(as), inLanes(bs)
			want.Dot = oneNaN(inLanes(dots))
			got := kernel.Compare(a, b)
			if figures(got) != figures(want) {
				t.Fatalf("%s of %d: got %+v, want %+v", kind, n, got, want)
			}
		}
	}
}

// figures makes a NaN equal to itself.
func figures(c kernel.Comparison) [8]uint64 {
	return [8]uint64(append(bits(nil, []float64{c.MaxDiff, c.DiffSquares, c.ASquares, c.BSquares, c.Dot}),
		uint64(c.NonFiniteA), uint64(c.NonFiniteB), uint64(c.NonFiniteUnlike)))
}

// TestCompareNonFinite guards that bad elements are counted, left out, and hide no
// others, wherever they are in a vector; and that equal bad ones count as alike.
func TestCompareNonFinite(t *testing.T) { eachLevel(t, testCompareNonFinite) }

func testCompareNonFinite(t *testing.T) {
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	other := math.Float32frombits(0xffc0_1234)
	for _, c := range []struct {
		a, b             float32
		inA, inB, unlike int64
	}{
		{inf, inf, 1, 1, 0},
		{-inf, inf, 1, 1, 1},
		{nan, other, 1, 1, 0},
		{nan, inf, 1, 1, 1},
		{1, inf, 0, 1, 1},
		{nan, 1, 1, 0, 1},
		{math.MaxFloat32, -math.MaxFloat32, 0, 0, 0},
	} {
		const n = 29
		for at := range n {
			a, b := make([]float32, n), make([]float32, n)
			for i := range n {
				a[i], b[i] = 3, 1
			}
			a[at], b[at] = c.a, c.b
			got := kernel.Compare(a, b)
			want := kernel.Comparison{
				MaxDiff: 2, DiffSquares: 4 * (n - 1), ASquares: 9 * (n - 1), BSquares: n - 1, Dot: 3 * (n - 1),
				NonFiniteA: c.inA, NonFiniteB: c.inB, NonFiniteUnlike: c.unlike,
			}
			if c.inA+c.inB == 0 {
				largest := float64(math.MaxFloat32)
				want.MaxDiff = 2 * largest // exact, and the other terms disappear next to it
				want.DiffSquares, want.ASquares, want.BSquares, want.Dot = 4*largest*largest, largest*largest, largest*largest, -largest*largest
			}
			if got != want {
				t.Fatalf("%v and %v at %d: got %+v, want %+v", c.a, c.b, at, got, want)
			}
		}
	}
}

// TestCompareAdd guards that rows added up are the figures of the whole.
func TestCompareAdd(t *testing.T) {
	inf := float32(math.Inf(1))
	first := kernel.Compare([]float32{1, inf}, []float32{3, -inf})
	second := kernel.Compare([]float32{2, 7, inf}, []float32{1, inf, 1})
	first.Add(second)
	want := kernel.Comparison{
		MaxDiff: 2, DiffSquares: 5, ASquares: 5, BSquares: 10, Dot: 5,
		NonFiniteA: 2, NonFiniteB: 2, NonFiniteUnlike: 3,
	}
	if first != want {
		t.Errorf("got %+v, want %+v", first, want)
	}
}

// storages are the element types of a ULPHistogram.
var storages = []struct {
	kernel.Storage
	name string
	size int
}{{kernel.F32, "F32", 4}, {kernel.BF16, "BF16", 2}, {kernel.F16, "F16", 2}, {kernel.E4M3, "F8_E4M3", 1}, {kernel.E5M2, "F8_E5M2", 1}}

// nearCodes fills a with any codes and b with codes that are near, far or NaN.
func nearCodes(rng *rand.Rand, a, b []byte, size int) {
	for i := 0; i < len(a); i += size {
		x := rng.Uint32()
		y := x
		switch rng.IntN(6) {
		case 0, 1:
		case 2:
			y += rng.Uint32N(9) << (32 - 8*size)
		case 3:
			y ^= 1 << 31
		case 4:
			y += rng.Uint32() >> rng.IntN(32)
		case 5:
			y = 0xff<<24 | rng.Uint32()>>8 // NaN more often than not
		}
		var word [4]byte
		binary.LittleEndian.PutUint32(word[:], x)
		copy(a[i:i+size], word[4-size:])
		binary.LittleEndian.PutUint32(word[:], y)
		copy(b[i:i+size], word[4-size:])
	}
}

// binOf looks for the bin of a distance in the ranges that the type documents.
func binOf(distance uint64) int {
	for bin := range kernel.ULPBins {
		if least, most := kernel.ULPRange(bin); least <= distance && distance <= most {
			return bin
		}
	}
	return -1
}

func TestULPRange(t *testing.T) {
	next := uint64(0)
	for bin := range kernel.ULPBins {
		least, most := kernel.ULPRange(bin)
		if least != next || most < least {
			t.Errorf("bin %d has %d to %d, want it to begin at %d", bin, least, most, next)
		}
		next = most + 1
	}
	if farthest := uint64(2 * 0x7f80_0000); binOf(farthest) != kernel.ULPBins-1 {
		t.Errorf("the infinities of float32 are in bin %d, want the last one", binOf(farthest))
	}
	if binOf(3) != 3 || binOf(4) != 3 || binOf(5) != 4 {
		t.Error("bins are not 3-4, 5-8, ...")
	}
}

// TestULPHistogram compares the narrow types with places in a sorted list of all
// numbers of the type.
func TestULPHistogram(t *testing.T) { eachLevel(t, testULPHistogram) }

func testULPHistogram(t *testing.T) {
	for _, c := range []struct {
		storage kernel.Storage
		dtype   tensor.DType
		size    int
	}{{kernel.BF16, tensor.BF16, 2}, {kernel.F16, tensor.F16, 2}, {kernel.E4M3, tensor.F8E4M3, 1}, {kernel.E5M2, tensor.F8E5M2, 1}} {
		place := places(t, c.dtype, c.size)
		rng := rand.New(rand.NewPCG(73, 74))
		var a, b []byte
		var want kernel.ULPHistogram
		add := func(x, y int) {
			x, y = x%len(place), y%len(place)
			a = binary.LittleEndian.AppendUint16(a, uint16(x))[:len(a)+c.size]
			b = binary.LittleEndian.AppendUint16(b, uint16(y))[:len(b)+c.size]
			p, q := place[x], place[y]
			switch {
			case p < 0 && q < 0:
				want.Counts[0]++
			case p < 0 || q < 0:
				want.OneNaN++
			default:
				want.Counts[binOf(uint64(max(p, q)-min(p, q)))]++
			}
		}
		for x := range place {
			for _, y := range []int{x, x + 1, x + 2, x + 3, x + 5, x ^ len(place)/2, len(place) - 1 - x, rng.IntN(len(place)), x + 1<<rng.IntN(16)} {
				add(x, y)
			}
			if c.size == 1 {
				for y := range place {
					add(x, y)
				}
			}
		}
		var got kernel.ULPHistogram
		cut := len(a) / 3 / c.size * c.size
		got.Add(c.storage, a[:cut], b[:cut])
		var rest kernel.ULPHistogram
		rest.Add(c.storage, a[cut:], b[cut:])
		got.Merge(&rest)
		if got != want {
			t.Errorf("%s: got %v, want %v", c.dtype, got, want)
		}
		var turned kernel.ULPHistogram
		turned.Add(c.storage, b, a)
		if turned != want {
			t.Errorf("%s turned around: got %v, want %v", c.dtype, turned, want)
		}
	}
}

// places returns for each code the place of its number in the list of all numbers of
// the type, -1 for NaNs. Both zeros have one place.
func places(t *testing.T, d tensor.DType, size int) []int {
	c, ok := block.For(d)
	if !ok {
		t.Fatalf("no codec for %s", d)
	}
	codes := make([]int, 1<<(8*size))
	data := make([]byte, 0, size*len(codes))
	for i := range codes {
		codes[i] = i
		data = binary.LittleEndian.AppendUint16(data, uint16(i))[:len(data)+size]
	}
	numbers := make([]float64, len(codes))
	c.Decode64(numbers, data)
	slices.SortFunc(codes, func(x, y int) int { return cmp.Compare(numbers[x], numbers[y]) }) // NaNs come first
	place, last := make([]int, len(codes)), -1
	for i, code := range codes {
		if numbers[code] != numbers[code] {
			place[code] = -1
			continue
		}
		if i == 0 || numbers[codes[i-1]] != numbers[code] {
			last++
		}
		place[code] = last
	}
	return place
}

// TestULPHistogramF32 steps through float32 with math.Nextafter32 and uses that every
// power of two is 2^23 steps from the next.
func TestULPHistogramF32(t *testing.T) { eachLevel(t, testULPHistogramF32) }

func testULPHistogramF32(t *testing.T) {
	inf := float32(math.Inf(1))
	check := func(x, y float32, distance uint64) {
		t.Helper()
		for at := range 37 { // in every lane, and behind the last vector
			a, b := make([]byte, 4*37), make([]byte, 4*37)
			binary.LittleEndian.PutUint32(a[4*at:], math.Float32bits(x))
			binary.LittleEndian.PutUint32(b[4*at:], math.Float32bits(y))
			var got, want kernel.ULPHistogram
			got.Add(kernel.F32, a, b)
			want.Counts[0] = 36
			want.Counts[binOf(distance)]++
			if got != want {
				t.Fatalf("%x and %x, %d apart: got %v, want %v", x, y, distance, got, want)
			}
		}
	}
	for _, x := range []float32{0, 1, -1, 0x1p-126, -0x1p-126, 0x1p-149, 3e38, math.MaxFloat32, -math.MaxFloat32} {
		y := x
		for step := range uint64(70) {
			check(x, y, step)
			check(y, x, step)
			check(-x, -y, step)
			if y == inf {
				break
			}
			y = math.Nextafter32(y, inf)
		}
	}
	check(0, float32(math.Copysign(0, -1)), 0)
	check(inf, -inf, 2*255<<23)
	check(math.MaxFloat32, -math.MaxFloat32, 2*(255<<23-1))
	for e := -126; e <= 127; e++ {
		power := float32(math.Ldexp(1, e))
		check(0, power, uint64(e+127)<<23)
		check(-power, power, 2*uint64(e+127)<<23)
		check(1, power, uint64(max(e, -e))<<23)
		check(math.Nextafter32(0, 1), power, uint64(e+127)<<23-1)
		check(math.Nextafter32(0, -1), power, uint64(e+127)<<23+1)
	}
	// Distances around the powers of two, where float32 rounds.
	for shift := range 31 {
		for _, near := range []int{-2, -1, 0, 1, 2} {
			if d := 1<<shift + near; d >= 0 && d <= 0x7f80_0000 {
				check(0, math.Float32frombits(uint32(d)), uint64(d)) // subnormals are multiples of the first
			}
		}
	}
}

// BenchmarkCompare and BenchmarkULPHistogram count the bytes of both sides. Half of
// the pairs of the second differ, by a few steps.
func BenchmarkCompare(b *testing.B) {
	for _, n := range []int{1 << 14, 1 << 24} {
		rng := rand.New(rand.NewPCG(75, 76))
		x, y := random[float32](rng, "weights", n), random[float32](rng, "weights", n)
		eachLevelOf(b, "", fmt.Sprint(n), func(b *testing.B) {
			b.SetBytes(8 * int64(n))
			for b.Loop() {
				kernel.Compare(x, y)
			}
		})
	}
}

func BenchmarkULPHistogram(b *testing.B) {
	for _, s := range storages {
		for _, n := range []int{1 << 14, 1 << 24} {
			size := s.size
			x, y := make([]byte, size*n), make([]byte, size*n)
			for i := range x {
				x[i] = byte(i % 113)
				y[i] = x[i]
				if i%size == 0 && i/size%2 == 0 {
					y[i] += byte(i/size/2) % 5
				}
			}
			eachLevelOf(b, s.name, fmt.Sprint(n), func(b *testing.B) {
				b.SetBytes(2 * int64(len(x)))
				for b.Loop() {
					var h kernel.ULPHistogram
					h.Add(s.Storage, x, y)
				}
			})
		}
	}
}
