package kernel_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
)

// sumTypes are the types of a matrix and of its sums.
var sumTypes = []struct {
	name          string
	weights, sums kernel.Storage
	dtype, in     tensor.DType
}{
	{"BF16inF32", kernel.BF16, kernel.F32, tensor.BF16, tensor.F32},
	{"BF16inBF16", kernel.BF16, kernel.BF16, tensor.BF16, tensor.BF16},
	{"F16inF32", kernel.F16, kernel.F32, tensor.F16, tensor.F32},
	{"F16inF16", kernel.F16, kernel.F16, tensor.F16, tensor.F16},
	{"F32inF32", kernel.F32, kernel.F32, tensor.F32, tensor.F32},
	{"BF16inF16", kernel.BF16, kernel.F16, tensor.BF16, tensor.F16},
	{"F32inBF16", kernel.F32, kernel.BF16, tensor.F32, tensor.BF16},
}

// naiveMatVec rounds by way of the bytes that the codecs of quant/block make.
func naiveMatVec(t *testing.T, weights, in tensor.DType, w []byte, x []float32, rows, cols int) []float32 {
	t.Helper()
	numbers, round := make([]float32, rows*cols), roundsTo(t, in)
	codec(t, weights).Decode32(numbers, w)
	dst := make([]float32, rows)
	for i := range rows {
		var sums [8]float32
		for j, v := range x {
			sums[j%8] = round(sums[j%8] + round(numbers[i*cols+j]*v))
		}
		for half := 4; half > 0; half /= 2 {
			for k := range half {
				sums[k] = round(sums[k] + sums[k+half])
			}
		}
		dst[i] = oneNaN(sums[0])
	}
	return dst
}

// roundsTo returns what rounds one number to a type.
func roundsTo(t *testing.T, d tensor.DType) func(v float32) float32 {
	c, one, data := codec(t, d), make([]float32, 1), make([]byte, d.Bits()/8)
	return func(v float32) float32 {
		one[0] = v
		c.Encode32(data, one)
		c.Decode32(one, data)
		return one[0]
	}
}

func TestMatVec(t *testing.T) { eachLevel(t, testMatVec) }

func testMatVec(t *testing.T) {
	rng := rand.New(rand.NewPCG(81, 82))
	for _, s := range sumTypes {
		c, size := codec(t, s.dtype), int(s.dtype.Bits()/8)
		for cols := range 70 {
			for _, kind := range kinds {
				rows := 1 + rng.IntN(9)
				w, x := make([]byte, rows*cols*size), random[float32](rng, kind, cols)
				c.Encode32(w, random[float32](rng, []string{kind, "weights"}[rng.IntN(2)], rows*cols))
				if cols%2 == 0 { // numbers of the type, as in a real run, or any
					data := make([]byte, cols*size)
					c.Encode32(data, x)
					c.Decode32(x, data)
				}
				want := naiveMatVec(t, s.dtype, s.in, w, x, rows, cols)
				got := random[float32](rng, kind, rows)
				kernel.MatVec(got, s.weights, w, x, rows, cols, s.sums)
				sameBits(t, fmt.Sprintf("%s %dx%d %s", s.name, rows, cols, kind), got, want)
			}
		}
	}
}

// TestMatVecRounds guards what the type of the sums is there for: 1 is lost next to a
// number whose neighbours are more than 2 away, and kept if the ones meet before.
func TestMatVecRounds(t *testing.T) { eachLevel(t, testMatVecRounds) }

func testMatVecRounds(t *testing.T) {
	for _, c := range []struct {
		s, in kernel.Storage
		dtype tensor.DType
		big   float32 // neighbours are 2 and 4 away in the type of the sums
	}{
		{kernel.BF16, kernel.F32, tensor.BF16, 1 << 25},
		{kernel.BF16, kernel.BF16, tensor.BF16, 1 << 9},
		{kernel.F16, kernel.F16, tensor.F16, 1 << 12},
	} {
		const cols = 5 * 8
		w, x := make([]byte, 2*cols), make([]float32, cols)
		numbers := make([]float32, cols)
		for j := range numbers {
			numbers[j] = 1
		}
		codec(t, c.dtype).Encode32(w, numbers)
		for _, order := range []struct {
			name string
			at   map[int]float32
			want float32
		}{
			{"one lane, big first", map[int]float32{0: c.big, 8: 1, 16: 1, 24: 1, 32: 1}, c.big},
			{"one lane, small first", map[int]float32{0: 1, 8: 1, 16: 1, 24: 1, 32: c.big}, c.big + 4},
			{"lanes 4 apart meet first", map[int]float32{0: c.big, 1: 1, 5: 1, 3: 1, 7: 1}, c.big + 4},
			{"then lanes 2 apart", map[int]float32{0: 1, 4: 1, 2: 1, 6: 1, 1: c.big}, c.big + 4},
		} {
			clear(x)
			for j, v := range order.at {
				x[j] = v
			}
			got := make([]float32, 1)
			kernel.MatVec(got, c.s, w, x, 1, cols, c.in)
			sameBits(t, fmt.Sprintf("%s, sums of type %d, %s", c.dtype, c.in, order.name), got, []float32{order.want})
		}
	}
	// A product is rounded before it is added: (1+2^-7)^2 has a bit too many for BF16.
	w := make([]byte, 4)
	codec(t, tensor.BF16).Encode32(w, []float32{1 + 0x1p-7, -1})
	got := make([]float32, 1)
	kernel.MatVec(got, kernel.BF16, w, []float32{1 + 0x1p-7, 1 + 0x1p-6}, 1, 2, kernel.BF16)
	sameBits(t, "rounded product", got, []float32{0})
	kernel.MatVec(got, kernel.BF16, w, []float32{1 + 0x1p-7, 1 + 0x1p-6}, 1, 2, kernel.F32)
	sameBits(t, "exact product", got, []float32{0x1p-14})
	// A NaN of many bits must not be rounded away.
	kernel.MatVec(got, kernel.BF16, make([]byte, 16), slices.Repeat([]float32{math.Float32frombits(0x7fff_ffff)}, 8), 1, 8, kernel.BF16)
	sameBits(t, "NaN", got, []float32{math.Float32frombits(0x7fc0_0000)})
}

func BenchmarkMatVec(b *testing.B) {
	const rows, cols = 256, 4096
	rng := rand.New(rand.NewPCG(83, 84))
	w, x, dst := make([]byte, 2*rows*cols), random[float32](rng, "weights", cols), make([]float32, rows)
	for _, s := range sumTypes[:4] {
		codec(b, s.dtype).Encode32(w, random[float32](rng, "weights", rows*cols))
		eachLevelOf(b, s.name, "256x4096", func(b *testing.B) {
			b.SetBytes(2 * rows * cols)
			for b.Loop() {
				kernel.MatVec(dst, s.weights, w, x, rows, cols, s.sums)
			}
			b.ReportMetric(float64(b.N)*2*rows*cols/b.Elapsed().Seconds()/1e9, "GFLOP/s")
		})
	}
}
