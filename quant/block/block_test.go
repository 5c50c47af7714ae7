package block_test

import (
	"encoding/binary"
	"math"
	"math/big"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/quant/block"
)

// TestDecodeEvery guards the value of every code of the narrow formats, in both
// precisions, NaNs by the rule of the package comment.
func TestDecodeEvery(t *testing.T) {
	for _, f := range formats() {
		c := codecOf(t, f.dtype)
		got32, got64 := make([]float32, 1<<f.bits), make([]float64, 1<<f.bits)
		c.Decode32(got32, f.every())
		c.Decode64(got64, f.every())
		for code := range 1 << f.bits {
			sign := code >> (f.bits - 1)
			magnitude := code & (1<<(f.bits-1) - 1)
			fraction := uint64(magnitude & (1<<f.frac - 1))
			var want float64
			switch {
			case magnitude <= f.largest:
				want = f.values[magnitude]
			case fraction == 0:
				want = math.Inf(1)
			default:
				want = math.Float64frombits(0x7ff<<52 | 1<<51 | fraction<<(52-f.frac))
			}
			if sign == 1 {
				want = math.Float64frombits(math.Float64bits(want) | 1<<63)
			}
			same64(t, label(f.dtype, code), got64[code], want)
			want32 := float32(want)
			if math.IsNaN(want) {
				want32 = math.Float32frombits(uint32(sign)<<31 | 0xff<<23 | 1<<22 | uint32(fraction)<<(23-f.frac))
			}
			same32(t, label(f.dtype, code), got32[code], want32)
		}
	}
}

// TestRoundTrip guards that a code survives decoding and encoding, but for the
// quiet bit that a signaling NaN gains.
func TestRoundTrip(t *testing.T) {
	for _, f := range formats() {
		c := codecOf(t, f.dtype)
		numbers32, numbers64 := make([]float32, 1<<f.bits), make([]float64, 1<<f.bits)
		c.Decode32(numbers32, f.every())
		c.Decode64(numbers64, f.every())
		got32, got64 := f.encode32(c, numbers32...), f.encode64(c, numbers64...)
		for code := range 1 << f.bits {
			want := code
			if math.IsNaN(numbers64[code]) {
				want |= 1 << (f.frac - 1)
			}
			sameCode(t, label(f.dtype, code)+" by float32", got32[code], want)
			sameCode(t, label(f.dtype, code)+" by float64", got64[code], want)
		}
	}
}

// TestNeighbours guards ties to even and the single rounding: every number of
// the format, the tie to the next one and the closest float32 and float64 on
// both sides of either. A float64 next to a tie is where rounding through float32
// goes wrong.
func TestNeighbours(t *testing.T) {
	for _, f := range formats() {
		c := codecOf(t, f.dtype)
		for code := range f.largest + 1 {
			for _, point := range []float64{f.values[code], f.ties[code]} {
				p := float32(point)
				if float64(p) != point {
					t.Fatalf("%s is not a float32", label(f.dtype, code))
				}
				up, down := math.Inf(1), math.Inf(-1)
				all64 := []float64{point, math.Nextafter(point, up), math.Nextafter(point, down)}
				all32 := []float32{p, math.Nextafter32(p, float32(up)), math.Nextafter32(p, float32(down))}
				for i := range 3 {
					all64, all32 = append(all64, -all64[i]), append(all32, -all32[i])
				}
				for i, got := range f.encode64(c, all64...) {
					if !f.nearest(all64[i], got) {
						t.Fatalf("%s: float64 %x became %#x", label(f.dtype, code), all64[i], got)
					}
				}
				for i, got := range f.encode32(c, all32...) {
					if !f.nearest(float64(all32[i]), got) {
						t.Fatalf("%s: float32 %x became %#x", label(f.dtype, code), all32[i], got)
					}
				}
			}
		}
	}
}

// TestRandomBits guards all ranges of exponents at once: numbers with random
// bits, and float64 numbers whose exponents fall where the formats end.
func TestRandomBits(t *testing.T) {
	count := 400_000
	if testing.Short() {
		count = 20_000
	}
	for _, f := range formats() {
		c := codecOf(t, f.dtype)
		rng := rand.New(rand.NewPCG(1, uint64(f.dtype)))
		for range count {
			x := math.Float32frombits(rng.Uint32())
			y := math.Ldexp(rng.Float64()-0.5, rng.IntN(300)-150)
			if got := f.encode32(c, x)[0]; x == x && !f.nearest(float64(x), got) {
				t.Fatalf("%s: float32 %x became %#x", f.dtype, x, got)
			}
			if got := f.encode64(c, y)[0]; !f.nearest(y, got) {
				t.Fatalf("%s: float64 %x became %#x", f.dtype, y, got)
			}
		}
	}
}

// TestOverflow spells the ends of the formats out.
func TestOverflow(t *testing.T) {
	inf := math.Inf(1)
	for _, c := range []struct {
		dtype tensor.DType
		x     float64
		want  int
	}{
		{tensor.F16, 65504, 0x7bff},
		{tensor.F16, 65519.999, 0x7bff},
		{tensor.F16, 65520, 0x7c00},
		{tensor.F16, math.MaxFloat64, 0x7c00},
		{tensor.F16, -inf, 0xfc00},
		{tensor.BF16, math.MaxFloat32, 0x7f80},
		{tensor.BF16, 0x1.fefffffffffffp127, 0x7f7f},
		{tensor.BF16, 0x1.ffp127, 0x7f80},
		{tensor.BF16, -math.MaxFloat64, 0xff80},
		{tensor.BF16, inf, 0x7f80},
		{tensor.F8E4M3, 448, 0x7e},
		{tensor.F8E4M3, 464, 0x7e},
		{tensor.F8E4M3, 465, 0x7e},
		{tensor.F8E4M3, -1e300, 0xfe},
		{tensor.F8E4M3, inf, 0x7e},
		{tensor.F8E4M3, -inf, 0xfe},
		{tensor.F8E5M2, 57344, 0x7b},
		{tensor.F8E5M2, 61439.999, 0x7b},
		{tensor.F8E5M2, 61440, 0x7c},
		{tensor.F8E5M2, -inf, 0xfc},
	} {
		for _, f := range formats() {
			if f.dtype == c.dtype {
				sameCode(t, label(f.dtype, c.want), f.encode64(codecOf(t, c.dtype), c.x)[0], c.want)
				if x := float32(c.x); float64(x) == c.x {
					sameCode(t, label(f.dtype, c.want), f.encode32(codecOf(t, c.dtype), x)[0], c.want)
				}
			}
		}
	}
}

// TestNaN guards the NaN rule: sign and leading bits kept, quiet bit set, also
// when the bits that fit are all zero.
func TestNaN(t *testing.T) {
	for _, c := range []struct {
		bits64 uint64 // the same NaN as a float64
		bits32 uint32 // and as a float32, quiet
		want   map[tensor.DType]int
	}{
		{0x7ff8_0000_0000_0000, 0x7fc0_0000, map[tensor.DType]int{tensor.F16: 0x7e00, tensor.BF16: 0x7fc0, tensor.F8E4M3: 0x7f, tensor.F8E5M2: 0x7e}},
		{0xfff0_0000_2000_0000, 0xffc0_0001, map[tensor.DType]int{tensor.F16: 0xfe00, tensor.BF16: 0xffc0, tensor.F8E4M3: 0xff, tensor.F8E5M2: 0xfe}},
		{0x7ff0_0000_0000_0001, 0x7fc0_0000, map[tensor.DType]int{tensor.F16: 0x7e00, tensor.BF16: 0x7fc0, tensor.F8E4M3: 0x7f, tensor.F8E5M2: 0x7e}},
		{0xfff5_5555_5555_5555, 0xffea_aaaa, map[tensor.DType]int{tensor.F16: 0xff55, tensor.BF16: 0xffea, tensor.F8E4M3: 0xff, tensor.F8E5M2: 0xff}},
		{0x7fff_ffff_ffff_ffff, 0x7fff_ffff, map[tensor.DType]int{tensor.F16: 0x7fff, tensor.BF16: 0x7fff, tensor.F8E4M3: 0x7f, tensor.F8E5M2: 0x7f}},
	} {
		x64 := math.Float64frombits(c.bits64)
		signaling := math.Float32frombits(c.bits32 &^ (1 << 22))
		for _, f := range formats() {
			codec := codecOf(t, f.dtype)
			sameCode(t, f.dtype.String(), f.encode64(codec, x64)[0], c.want[f.dtype])
			sameCode(t, f.dtype.String(), f.encode32(codec, math.Float32frombits(c.bits32))[0], c.want[f.dtype])
			if signaling != signaling {
				sameCode(t, f.dtype.String(), f.encode32(codec, signaling)[0], c.want[f.dtype])
			}
		}
		var data [8]byte
		codecOf(t, tensor.F32).Encode64(data[:4], []float64{x64})
		if got := binary.LittleEndian.Uint32(data[:]); got != c.bits32 {
			t.Errorf("float64 %#x as F32: %#x, want %#x", c.bits64, got, c.bits32)
		}
		binary.LittleEndian.PutUint64(data[:], c.bits64)
		narrow := make([]float32, 1)
		codecOf(t, tensor.F64).Decode32(narrow, data[:])
		same32(t, "F64 into float32", narrow[0], math.Float32frombits(c.bits32))

		wide := math.Float64frombits(uint64(c.bits32&(1<<31))<<32 | 0x7ff<<52 | uint64(c.bits32&(1<<23-1))<<29)
		if signaling != signaling {
			narrow[0] = signaling
		}
		codecOf(t, tensor.F64).Encode32(data[:], narrow)
		same64(t, "float32 as F64", math.Float64frombits(binary.LittleEndian.Uint64(data[:])), wide)
		binary.LittleEndian.PutUint32(data[:], math.Float32bits(narrow[0]))
		got := make([]float64, 1)
		codecOf(t, tensor.F32).Decode64(got, data[:4])
		same64(t, "F32 into float64", got[0], wide)
	}
}

// TestWide guards F32 and F64: bits are copied in their own precision, and the
// way from float64 to float32 rounds as exact arithmetic does.
func TestWide(t *testing.T) {
	single, double := codecOf(t, tensor.F32), codecOf(t, tensor.F64)
	rng := rand.New(rand.NewPCG(2, 3))
	for i := range 100_000 {
		bits32, bits64 := rng.Uint32(), rng.Uint64()
		switch i % 3 { // signaling NaNs, and exponents that a float32 has
		case 1:
			bits32 = bits32&^(1<<22) | 0xff<<23 | 1
			bits64 = bits64&^(1<<51) | 0x7ff<<52 | 1
		case 2:
			bits64 = math.Float64bits(math.Ldexp(rng.Float64()-0.5, rng.IntN(300)-160))
		}
		data := binary.LittleEndian.AppendUint32(nil, bits32)
		x32 := make([]float32, 1)
		single.Decode32(x32, data)
		same32(t, "F32 into float32", x32[0], math.Float32frombits(bits32))
		back := make([]byte, 4)
		single.Encode32(back, x32)
		if binary.LittleEndian.Uint32(back) != bits32 {
			t.Fatalf("F32 %#x became % x", bits32, back)
		}
		data = binary.LittleEndian.AppendUint64(nil, bits64)
		x64 := make([]float64, 1)
		double.Decode64(x64, data)
		same64(t, "F64 into float64", x64[0], math.Float64frombits(bits64))
		back = make([]byte, 8)
		double.Encode64(back, x64)
		if binary.LittleEndian.Uint64(back) != bits64 {
			t.Fatalf("F64 %#x became % x", bits64, back)
		}
		if x := x64[0]; x == x {
			want, _ := new(big.Float).SetFloat64(x).Float32()
			double.Decode32(x32, data)
			same32(t, "F64 into float32", x32[0], want)
			single.Encode64(back[:4], x64)
			same32(t, "float64 as F32", math.Float32frombits(binary.LittleEndian.Uint32(back)), want)
			double.Encode32(back, []float32{want})
			same64(t, "float32 as F64", math.Float64frombits(binary.LittleEndian.Uint64(back)), float64(want))
		}
	}
}

// TestFor guards that exactly the float formats have a codec, and the generic
// wrappers: they reach the right method and cost no allocation.
func TestFor(t *testing.T) {
	for _, d := range tensor.All() {
		c, ok := block.For(d)
		if ok != d.IsFloat() {
			t.Errorf("For(%s) = %v, IsFloat %v", d, ok, d.IsFloat())
		}
		if !ok {
			continue
		}
		src32, src64 := []float32{1, -2.5, 0}, []float64{1, -2.5, 0}
		got32, got64 := make([]float32, 3), make([]float64, 3)
		data := make([]byte, 3*d.Bits()/8)
		allocations := testing.AllocsPerRun(10, func() {
			block.Encode(c, data, src32)
			block.Decode(c, got64, data)
			clear(data)
			block.Encode(c, data, src64)
			block.Decode(c, got32, data)
		})
		if allocations != 0 {
			t.Errorf("%s: %v allocations", d, allocations)
		}
		for i := range src32 {
			same32(t, d.String(), got32[i], src32[i])
			same64(t, d.String(), got64[i], src64[i])
		}
	}
	if _, ok := block.For(tensor.NoDType); ok {
		t.Error("a codec for no type")
	}
}

func TestCounts(t *testing.T) {
	for _, d := range tensor.All() {
		c, ok := block.For(d)
		if !ok {
			continue
		}
		size := int(d.Bits() / 8)
		for _, bytes := range []int{0, 2*size - 1, 2*size + 1, 3 * size} {
			for name, call := range map[string]func(){
				"Decode32": func() { c.Decode32(make([]float32, 2), make([]byte, bytes)) },
				"Decode64": func() { c.Decode64(make([]float64, 2), make([]byte, bytes)) },
				"Encode32": func() { c.Encode32(make([]byte, bytes), make([]float32, 2)) },
				"Encode64": func() { c.Encode64(make([]byte, bytes), make([]float64, 2)) },
			} {
				if !panics(call) {
					t.Errorf("%s %s: %d bytes for 2 elements pass", d, name, bytes)
				}
			}
		}
	}
}

func panics(call func()) (did bool) {
	defer func() { _, did = recover().(string) }()
	call()
	return false
}
