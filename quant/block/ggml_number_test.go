package block

import (
	"math"
	"math/bits"
	"math/rand/v2"
	"testing"
)

// TestNearest compares with the standard library where the trick is valid.
func TestNearest(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	check := func(x float32) {
		if got, want := nearest(x), int32(math.RoundToEven(float64(x))); got != want {
			t.Fatalf("nearest(%g) = %d, want %d", x, got, want)
		}
		if got, want := roundAway(x), int32(math.Round(float64(x))); got != want {
			t.Fatalf("roundAway(%g) = %d, want %d", x, got, want)
		}
	}
	for n := float32(-600); n <= 600; n += 0.5 {
		for _, x := range []float32{n, math.Nextafter32(n, -1000), math.Nextafter32(n, 1000)} {
			check(x)
		}
	}
	for range 100000 {
		x := math.Float32frombits(rng.Uint32())
		if magnitude(x) <= 4194303 {
			check(x)
		}
	}
}

// TestFloorLog2 compares with the logarithm in float64 rounded to float32, at the largest
// numbers below every power of two, where the rounding shows, and elsewhere.
func TestFloorLog2(t *testing.T) {
	check := func(pattern uint32) {
		x := math.Float32frombits(pattern)
		want := int(math.Floor(float64(float32(math.Log2(float64(x))))))
		if got := floorLog2(x); got != want {
			t.Fatalf("floorLog2(%x) = %d, want %d", x, got, want)
		}
	}
	for exponent := uint32(1); exponent <= 0xff; exponent++ {
		for below := range uint32(150) {
			check(exponent<<23 - 1 - below)
		}
		if exponent < 0xff {
			check(exponent << 23)
		}
	}
	for shift := range 23 { // subnormal powers of two, and those below
		for below := range min(uint32(150), 1<<shift) {
			check(1<<shift - below)
		}
	}
	for pattern := uint32(1); pattern < inf32; pattern += 65521 {
		check(pattern)
	}
}

// TestNVCode looks for the nearest number in UE4M3, of two equally near the larger; from
// 256 on there is only 448. ggml rounds two other things wrong: what is nearer to the smallest
// normal number than to the largest subnormal one, and the last number below 2^-10, as 0.5
// added to it times 512 gives 1 in float32.
func TestNVCode(t *testing.T) {
	check := func(x float32) {
		if x == math.Nextafter32(0x1p-10, 0) {
			x = 0x1p-10
		}
		best := byte(0)
		for code := byte(1); code < 15<<3; code++ {
			if distance(x, code) <= distance(x, best) {
				best = code
			}
		}
		// Between 240 and 256 the next number would be 256, in the exponent that is cut.
		if best == 15<<3-1 && x >= 248 {
			best = 0x7e
		}
		if best == 8 && x < 0x1p-6 {
			best = 7
		}
		if got := nvCode(x); got != best {
			t.Fatalf("nvCode(%g) = %#x, want %#x", x, got, best)
		}
	}
	for code := range byte(15 << 3) {
		x := 2 * nvScale(code)
		for _, y := range []float32{x, x * 1.01, x * 1.03125, x * 1.0625, x + 0x1p-10, x + 0x1p-11} {
			check(y)
			check(math.Nextafter32(y, 0))
			check(math.Nextafter32(y, 1e9))
		}
	}
	for _, x := range []float32{0, 247, 248, 249, 255, 256, 300, 448, 449, 1e30, 0x1p-149} {
		check(x)
	}
	if nvScale(0x7e) != 448/2 || nvScale(0xfe) != 448/2 || nvScale(0x7f) != 0 || nvScale(0x80) != 0 {
		t.Error("the ends of the scale are off")
	}
}

func distance(x float32, code byte) float64 { return math.Abs(float64(x) - 2*float64(nvScale(code))) }

// TestMXExponent guards that the largest number of a block comes out near, unless it is
// below the smallest scale, and that the exponent which means NaN is never chosen.
func TestMXExponent(t *testing.T) {
	for pattern := uint32(0); pattern < inf32; pattern += 8191 {
		x := math.Float32frombits(pattern)
		e := mxExponent(x)
		if e == 0xff {
			t.Fatalf("exponent 255 for %g", x)
		}
		scale := float64(mxScale(e)) // of half the table
		if x >= 0x1p-126 && x < 0x1p-125 && e != 0 {
			t.Fatalf("exponent %d for %g, where 255 is not allowed", e, x)
		}
		if x >= 0x1p-125 && (float64(x)/scale < 7.9 || float64(x)/scale >= 16) {
			t.Fatalf("exponent %d for %g", e, x)
		}
	}
	for e := range 256 {
		if got, want := float64(mxScale(byte(e))), math.Ldexp(1, e-128); got != want {
			t.Errorf("mxScale(%d) = %g, want %g", e, got, want)
		}
	}
}

// TestNearestFP4 searches the whole table for the least error, as ggml does.
func TestNearestFP4(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 200000 {
		scale := float32(math.Ldexp(1+float64(rng.IntN(8))/8, rng.IntN(240)-124))
		x := scale * float32(rng.NormFloat64()*6)
		switch rng.IntN(4) {
		case 0, 1:
			x = scale * float32(rng.IntN(61)-30) / 2 // ties
		case 2:
			x = math.Nextafter32(scale*float32(rng.IntN(61)-30)/2, float32(rng.IntN(3)-1))
		}
		if rng.IntN(1000) == 0 {
			scale = 0
		}
		best, least := 0, float32(math.Inf(1))
		for code, v := range fp4Values {
			if e := magnitude(float32(v*scale) - x); e < least {
				best, least = code, e
			}
		}
		code := make([]byte, 1)
		if encodeFP4(code, []float32{x, 0}, scale); int(code[0]) != best {
			t.Fatalf("%g in units of %g became %d, want %d", x, scale, code[0], best)
		}
	}
}

func TestEvenSigns(t *testing.T) {
	for word := range uint32(1 << 9) {
		if got := evenSigns(word); uint32(got)&127 != word&127 || bits.OnesCount8(got)%2 != 0 {
			t.Errorf("evenSigns(%#x) = %#x", word, got)
		}
	}
}

// TestGrids guards the number of tuples and what is known of them: they begin with the tuple of
// the smallest values, and the sum of the places of the IQ2 values is even, as in the
// lattice that they are taken from.
func TestGrids(t *testing.T) {
	for name, grid := range map[string]grid8{"IQ2_XXS": gridIQ2XXS(), "IQ2_XS": gridIQ2XS(), "IQ2_S": gridIQ2S(), "IQ1": gridIQ1()} {
		want := map[string]int{"IQ2_XXS": 256, "IQ2_XS": 512, "IQ2_S": 1024, "IQ1": 2048}[name]
		if len(grid) != want {
			t.Errorf("%s has %d tuples", name, len(grid))
		}
		for i, v := range grid[0] {
			if v != min(grid[0][0], 8) || name != "IQ1" && v != 8 {
				t.Errorf("%s begins with %d at %d", name, v, i)
			}
		}
		for _, tuple := range grid {
			places := 0
			for _, v := range tuple {
				places += int(v) / 20 // 8, 25, 43
			}
			if name != "IQ1" && places%2 != 0 {
				t.Errorf("%s has %v", name, tuple)
			}
		}
	}
	for want, grid := range map[int]grid4{256: gridIQ3XXS(), 512: gridIQ3S()} {
		if len(grid) != want {
			t.Errorf("%d tuples, want %d", len(grid), want)
		}
	}
}

// TestPairs6 and TestScales6 guard that what is packed comes out again.
func TestPairs6(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for range 1000 {
		var scales, offsets [8]uint8
		for g := range scales {
			scales[g], offsets[g] = uint8(rng.IntN(64)), uint8(rng.IntN(64))
		}
		packed := make([]byte, 12)
		putPairs6(packed, &scales, &offsets)
		for g := range scales {
			if s, o := pair6(packed, g); s != scales[g] || o != offsets[g] {
				t.Fatalf("group %d: %d and %d, want %d and %d", g, s, o, scales[g], offsets[g])
			}
		}
	}
}

func TestScales6(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	for range 1000 {
		var scales [16]uint8
		for g := range scales {
			scales[g] = uint8(rng.IntN(64))
		}
		packed := make([]byte, 12)
		putScales6(packed, &scales)
		for g, want := range scales {
			if got := scale6(packed, g); got != int32(want) {
				t.Fatalf("group %d: %d, want %d", g, got, want)
			}
		}
	}
}

// TestHalf compares with the codec of the type, all codes.
func TestHalf(t *testing.T) {
	for h := range 1 << 16 {
		src := []byte{byte(h), byte(h >> 8)}
		want := make([]float32, 1)
		f16{}.Decode32(want, src)
		if got := half(src); math.Float32bits(got) != math.Float32bits(want[0]) {
			t.Fatalf("half %#x = %g, want %g", h, got, want[0])
		}
		if finite32(want[0]) != finiteHalf(uint16(h)) {
			t.Fatalf("half %#x: finite %t", h, finiteHalf(uint16(h)))
		}
		back := make([]byte, 2)
		if putHalf(back, want[0]); finite32(want[0]) && (back[0] != src[0] || back[1] != src[1]) {
			t.Fatalf("half %#x became %x", h, back)
		}
	}
}
