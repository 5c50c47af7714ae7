package loftq_test

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"testing"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/quant/block"
	"github.com/loratool/loratool/quant/loftq"
)

// TestRoundTrips compares each quantizer with a plain statement of it, on shapes whose
// blocks reach over rows, end short, or are odd, with any number of threads.
func TestRoundTrips(t *testing.T) {
	weights := make([]float32, 96)
	for j := range weights {
		weights[j] = float32(1 + j%7)
	}
	for _, shape := range [][2]int{{1, 1}, {1, 3}, {3, 33}, {5, 96}, {64, 96}, {37, 131}, {1, 5000}} {
		rows, cols := shape[0], shape[1]
		w := gaussian(rows, cols, 3)
		all := map[string]struct {
			q    loftq.Quantizer
			twin func(x []float32)
		}{
			"nf3/64":  {loftq.Normal{Bits: 3}, blocksOf(64, func(x []float32) { nearest(x, levels[3]) })},
			"nf2/10":  {loftq.Normal{Bits: 2, BlockSize: 10}, blocksOf(10, func(x []float32) { nearest(x, levels[2]) })},
			"uniform": {loftq.Uniform{Bits: 3}, func(x []float32) { uniform(x, 3) }},
			"int8":    {loftq.Int8{}, blocksOf(cols, int8Row)},
			"bf16":    {loftq.Stored{DType: tensor.BF16}, toBF16},
			"nf3 in bf16": {loftq.Stored{Quantizer: loftq.Normal{Bits: 3}, DType: tensor.BF16}, func(x []float32) {
				blocksOf(64, func(x []float32) { nearest(x, levels[3]) })(x)
				toBF16(x)
			}},
			"nf4, double": {loftq.FourBit{Type: kernel.NF4, BlockSize: 2, Double: true}, func(x []float32) { doubled(x, kernel.NF4, 2) }},
			"fp4, double": {loftq.FourBit{Type: kernel.FP4, BlockSize: 32, Double: true}, func(x []float32) { doubled(x, kernel.FP4, 32) }},
		}
		for _, size := range []int{2, 32, 64, 4096} {
			for kind, name := range map[kernel.FourBit]string{kernel.NF4: "nf4", kernel.FP4: "fp4"} {
				all[fmt.Sprintf("%s/%d", name, size)] = struct {
					q    loftq.Quantizer
					twin func(x []float32)
				}{loftq.FourBit{Type: kind, BlockSize: size}, blocksOf(size, func(x []float32) { fourBit(x, kind) })}
			}
		}
		if cols%32 == 0 {
			for _, importance := range [][]float32{nil, weights[:cols]} {
				all[fmt.Sprintf("Q4_0 weighted=%v", importance != nil)] = struct {
					q    loftq.Quantizer
					twin func(x []float32)
				}{loftq.GGML{Type: block.Q4_0, Weights: importance}, blocksOf(cols, func(x []float32) { ggml(x, importance) })}
			}
		}
		for name, c := range all {
			want := append([]float32(nil), w...)
			c.twin(want)
			for _, threads := range []int{1, 2, 7} {
				got := make([]float32, len(w))
				for i := range got {
					got[i] = float32(math.NaN()) // every element must be written
				}
				if err := c.q.RoundTrip(got, w, rows, cols, threads); err != nil {
					t.Fatalf("%s %v: %v", name, shape, err)
				}
				for i, v := range want {
					if math.Float32bits(got[i]) != math.Float32bits(v) {
						t.Errorf("%s %v on %d threads: element %d is %v, want %v", name, shape, threads, i, got[i], v)
						break
					}
				}
			}
		}
	}
}

// int8Row rounds a row to halves and then to 127ths of its largest magnitude.
func int8Row(x []float32) {
	f16, _ := block.For(tensor.F16)
	raw := make([]byte, 2*len(x))
	f16.Encode32(raw, x)
	f16.Decode32(x, raw)
	scale := maxAbs(x)
	if scale == 0 {
		return
	}
	factor := float32(127 * float32(1/scale))
	for i, v := range x {
		code := int(math.RoundToEven(float64(float32(v * factor)))) // an integer has no -0
		x[i] = float32(float32(code)*scale) * block.Int8Unit
	}
}

// toBF16 rounds to nearest, to even on a tie, by the bits.
func toBF16(x []float32) {
	for i, v := range x {
		bits := math.Float32bits(v)
		bits += 0x7fff + bits>>16&1
		x[i] = math.Float32frombits(bits &^ 0xffff)
	}
}

// doubled quantizes blocks, with scales that are quantized too: the codes are those of
// the exact scales, the values those of the stored ones.
func doubled(x []float32, kind kernel.FourBit, size int) {
	values := kind.Values()
	var scales []float32
	units := make([]float32, len(x))
	for from := 0; from < len(x); from += size {
		to := min(from+size, len(x))
		codes, scale := make([]byte, (to-from+1)/2), make([]float32, 1)
		kernel.EncodeFourBit(kind, codes, scale, x[from:to], size)
		scales = append(scales, scale[0])
		for i := from; i < to; i++ {
			code := codes[(i-from)/2] >> 4
			if (i-from)%2 == 1 {
				code = codes[(i-from)/2] & 15
			}
			units[i] = values[code]
		}
	}
	nested := block.Nest(scales)
	for i := range x {
		b := i / size
		scale := float32(nested.Map[nested.Codes[b]]*nested.Absmax[b/256]) + nested.Offset
		x[i] = units[i] * scale
	}
}

// TestInt8Range names a number that F16 has no place for.
func TestInt8Range(t *testing.T) {
	w := []float32{1, 2, 3, 4, 5, 70000}
	err := loftq.Int8{}.RoundTrip(make([]float32, 6), w, 2, 3, 1)
	var value *loftq.ValueError
	if !errors.As(err, &value) || value.Row != 1 || value.Col != 2 {
		t.Errorf("error %v", err)
	}
	var option *loftq.OptionError
	if err := (loftq.Stored{DType: tensor.I8}).RoundTrip(make([]float32, 6), w, 2, 3, 1); !errors.As(err, &option) {
		t.Errorf("numbers stored as integers: %v", err)
	}
}

// TestUniformTies guards the tie rule and what has no width, on numbers that nothing is
// clipped from: a sixth of the range is at 2.5 steps of 15 and goes to 2.
func TestUniformTies(t *testing.T) {
	w := []float32{0, 1, 0, 1, 0, 1, 1.0 / 6, 0.5}
	got := roundTrip(t, loftq.Uniform{Bits: 4}, w, 2, 4)
	for i, want := range []float32{0, 1, 0, 1, 0, 1, 2.0 / 15, 8.0 / 15} {
		if got[i] != want {
			t.Errorf("%v becomes %v, want %v", w[i], got[i], want)
		}
	}
	for i, v := range roundTrip(t, loftq.Uniform{Bits: 2}, []float32{3, 3, 3, 3}, 2, 2) {
		if v != 3 {
			t.Errorf("element %d of a weight of threes becomes %v", i, v)
		}
	}
}

// blocksOf applies f to blocks of a size.
func blocksOf(size int, f func(x []float32)) func(x []float32) {
	return func(x []float32) {
		for len(x) > 0 {
			n := min(size, len(x))
			f(x[:n])
			x = x[n:]
		}
	}
}

var levels = map[int][]float32{
	2: {-1, 0, 0.33791524171829224, 1},
	3: {-1, -0.4786292016506195, -0.217141792178154, 0, 0.16093020141124725, 0.33791524171829224, 0.5626170039176941, 1},
}

func nearest(x, levels []float32) {
	scale := maxAbs(x)
	for i, v := range x {
		best := 0
		for l := range levels {
			if math.Abs(float64(v/scale-levels[l])) < math.Abs(float64(v/scale-levels[best])) {
				best = l
			}
		}
		x[i] = levels[best] * scale
	}
}

// uniform sums mean and deviation in another order: they are rounded to float32 before
// they count.
func uniform(x []float32, bits int) {
	mean, square := 0.0, 0.0
	for _, v := range x {
		mean += float64(v) / float64(len(x))
	}
	for _, v := range x {
		square += (float64(v) - mean) * (float64(v) - mean) / float64(max(len(x)-1, 1))
	}
	low, high := float32(mean)-2*float32(math.Sqrt(square)), float32(mean)+2*float32(math.Sqrt(square))
	least, largest := float32(math.Inf(1)), float32(math.Inf(-1))
	for i, v := range x {
		x[i] = min(max(v, low), high)
		least, largest = min(least, x[i]), max(largest, x[i])
	}
	width, steps := largest-least+1e-8, float32(math.Pow(2, float64(bits))-1)
	for i, v := range x {
		code := math.RoundToEven(float64((v - least) / width * steps))
		x[i] = float32(float32(code)/steps*width) + least
	}
}

func fourBit(x []float32, kind kernel.FourBit) {
	codes, scale := make([]byte, (len(x)+1)/2), make([]float32, 1)
	kernel.EncodeFourBit(kind, codes, scale, x, len(x))
	kernel.DecodeFourBit(kind, x, codes, scale, len(x))
}

func ggml(x, importance []float32) {
	codes := make([]byte, len(x)/block.Q4_0.BlockElements()*block.Q4_0.BlockBytes())
	if err := block.Q4_0.Quantize(codes, x, len(x), importance); err != nil {
		panic(err)
	}
	if err := block.Q4_0.Decode(x, codes); err != nil {
		panic(err)
	}
}

// TestScratch guards what a solution holds while the quantizer works: x, Q and a few
// pairs. The rest of what Scratch states is the decomposition's, which is given back.
func TestScratch(t *testing.T) {
	const out, in = 512, 400
	o := loftq.Options{Rank: 8, Iterations: 4, Order: loftq.SVDFirst, Moments: moments(in, 1)}
	live := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	w := gaussian(out, in, 1)
	before, held := live(), int64(0)
	q := function(func(dst, src []float32) error {
		held = max(held, live()-before)
		return nf4.RoundTrip(dst, src, out, in, 1)
	})
	solve(t, w, out, in, q, o)
	const small = 64 << 10 // sums of rows, weights of channels, reports
	matrices, pairs := int64(2*4*out*in), int64(6*4*o.Rank*(out+in))
	if held < matrices || held > matrices+pairs+small {
		t.Errorf("%d bytes are held, want %d and up to %d for pairs", held, matrices, pairs)
	}
	if said := loftq.Scratch(out, in, o); said < held+matrices/2 {
		t.Errorf("%d bytes are stated, %d are held without the decomposition", said, held)
	}
}
