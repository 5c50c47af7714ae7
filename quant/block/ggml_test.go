package block_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/quant/block"
)

// ggmlTypes returns every type that files may hold.
func ggmlTypes() []block.GGML {
	var all []block.GGML
	for t := range block.GGML(64) {
		if t.Known() {
			all = append(all, t)
		}
	}
	return all
}

// writable returns the types that can be written, blocks first.
func writable() []block.GGML {
	return slices.DeleteFunc(ggmlTypes(), func(t block.GGML) bool { return t.CanQuantize() != nil })
}

// even returns weights that are all alike for a type that needs some, nil for the others.
func even(kind block.GGML, cols int) []float32 {
	if kind.NeedsWeights() {
		return slices.Repeat([]float32{1}, cols)
	}
	return nil
}

// TestGGMLTypes guards the table: sizes and numbers as gguf files have them, names,
// and what is done with the types.
func TestGGMLTypes(t *testing.T) {
	const want = `0 F32 1 4, 1 F16 1 2, 2 Q4_0 32 18, 3 Q4_1 32 20, 6 Q5_0 32 22, 7 Q5_1 32 24, 8 Q8_0 32 34, 9 Q8_1 32 36 -,
		10 Q2_K 256 84, 11 Q3_K 256 110, 12 Q4_K 256 144, 13 Q5_K 256 176, 14 Q6_K 256 210, 15 Q8_K 256 292 -,
		16 IQ2_XXS 256 66, 17 IQ2_XS 256 74, 18 IQ3_XXS 256 98, 19 IQ1_S 256 50, 20 IQ4_NL 32 18, 21 IQ3_S 256 110,
		22 IQ2_S 256 82, 23 IQ4_XS 256 136, 24 I8 1 1 --, 25 I16 1 2 --, 26 I32 1 4 --, 27 I64 1 8 --, 28 F64 1 8,
		29 IQ1_M 256 56, 30 BF16 1 2, 34 TQ1_0 256 54, 35 TQ2_0 256 66, 39 MXFP4 32 17, 40 NVFP4 64 36, 41 Q1_0 128 18, 42 Q2_0 64 18`
	var got []string
	for _, kind := range ggmlTypes() {
		line := fmt.Sprint(uint32(kind), " ", kind, " ", kind.BlockElements(), " ", kind.BlockBytes())
		refused := ""
		for _, err := range []error{kind.CanQuantize(), kind.CanDecode()} {
			var typeErr *block.GGMLTypeError
			if errors.As(err, &typeErr) && typeErr.Type == kind && strings.HasPrefix(err.Error(), kind.String()+" can't be ") {
				refused += "-"
			} else if err != nil {
				t.Errorf("%s: %v", kind, err)
			}
		}
		got = append(got, strings.TrimSpace(line+" "+refused))
	}
	if got, want := strings.Join(got, ", "), strings.Join(strings.Fields(want), " "); got != want {
		t.Errorf("types are\n%s, want\n%s", got, want)
	}
	for _, kind := range ggmlTypes() {
		for _, name := range []string{kind.String(), strings.ToLower(kind.String())} {
			if parsed, ok := block.ParseGGML(name); !ok || parsed != kind {
				t.Errorf("%s parses as %s", name, parsed)
			}
		}
	}
	for _, name := range []string{"", "unknown", "Q4", "Q4_2"} {
		if parsed, ok := block.ParseGGML(name); ok {
			t.Errorf("%q parses as %s", name, parsed)
		}
	}
	for _, number := range []block.GGML{4, 5, 31, 38, 43, math.MaxUint32} {
		if number.Known() || number.String() != "unknown" {
			t.Errorf("%d is known as %s", uint32(number), number)
		}
	}
}

func TestGGMLRowBytes(t *testing.T) {
	for _, c := range []struct {
		kind       block.GGML
		cols, want int64
		ok         bool
	}{
		{block.Q4_K, 0, 0, true}, {block.Q4_K, 256, 144, true}, {block.Q4_K, 4096, 2304, true}, {block.Q4_K, 255, 0, false},
		{block.Q8_0, 33, 0, false}, {block.Q8_0, -32, 0, false}, {block.F16, 3, 6, true},
		{block.Q8_0, math.MaxInt64 &^ 31, 0, false}, {block.F64, 1 << 60, 0, false}, {block.F64, 1<<60 - 1, 8<<60 - 8, true},
		{block.Q1_0, math.MaxInt64 &^ 127, math.MaxInt64 >> 7 * 18, true},
	} {
		got, ok := c.kind.RowBytes(c.cols)
		if ok != c.ok || ok && got != c.want {
			t.Errorf("%s: %d columns are %d bytes, %t", c.kind, c.cols, got, ok)
		}
	}
}

// sample is n numbers like those of a layer, with outliers.
func sample(rng *rand.Rand, n int) []float32 {
	numbers := make([]float32, n)
	for i := range numbers {
		numbers[i] = float32(rng.NormFloat64() * 0.02)
		if rng.IntN(50) == 0 {
			numbers[i] *= 10
		}
	}
	return numbers
}

func sampleWeights(rng *rand.Rand, n int) []float32 {
	weights := make([]float32, n)
	for i := range weights {
		weights[i] = float32(rng.ExpFloat64())
	}
	return weights
}

// quantize is Quantize into new memory.
func quantize(t testing.TB, kind block.GGML, src []float32, cols int, weights []float32) []byte {
	t.Helper()
	size, ok := kind.RowBytes(int64(len(src)))
	if !ok {
		t.Fatalf("%s: %d numbers", kind, len(src))
	}
	dst := make([]byte, size)
	for i := range dst {
		dst[i] = 0xa5 // nothing may depend on it
	}
	if err := kind.Quantize(dst, src, cols, weights); err != nil {
		t.Fatal(err)
	}
	return dst
}

func decode(t testing.TB, kind block.GGML, src []byte) []float32 {
	t.Helper()
	dst := make([]float32, len(src)/kind.BlockBytes()*kind.BlockElements())
	for i := range dst {
		dst[i] = float32(math.NaN())
	}
	if err := kind.Decode(dst, src); err != nil {
		t.Fatal(err)
	}
	return dst
}

// TestGGMLRowsAreIndependent guards that rows may be cut into bands anywhere.
func TestGGMLRowsAreIndependent(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	const rows, cols = 5, 512
	src, weights := sample(rng, rows*cols), sampleWeights(rng, cols)
	for i := range cols {
		src[2*cols+i] *= 1000 // another row's size must not matter
	}
	for _, kind := range writable() {
		for _, w := range [][]float32{even(kind, cols), weights} {
			whole := quantize(t, kind, src, cols, w)
			var parts []byte
			for row := range rows {
				parts = append(parts, quantize(t, kind, src[row*cols:][:cols], cols, w)...)
			}
			if !bytes.Equal(whole, parts) {
				t.Errorf("%s: rows depend on each other", kind)
			}
			numbers := decode(t, kind, whole)
			var decoded []float32
			for at := 0; at < len(whole); at += kind.BlockBytes() {
				decoded = append(decoded, decode(t, kind, whole[at:][:kind.BlockBytes()])...)
			}
			if !slices.Equal(numbers, decoded) {
				t.Errorf("%s: blocks depend on each other", kind)
			}
		}
	}
}

// TestGGMLWeights guards that weights do what they are for: the error counted by them
// becomes smaller than without, over many rows. Types that don't look at them give the
// same bytes.
func TestGGMLWeights(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	const rows, cols = 40, 256
	src, weights := sample(rng, rows*cols), sampleWeights(rng, cols)
	for i := range weights {
		weights[i] *= weights[i] * weights[i]
	}
	for _, kind := range writable() {
		plain, weighted := quantize(t, kind, src, cols, even(kind, cols)), quantize(t, kind, src, cols, weights)
		if !kind.Weighted() {
			if !bytes.Equal(plain, weighted) {
				t.Errorf("%s is not weighted, but weights change it", kind)
			}
			continue
		}
		before, after := weightedError(src, decode(t, kind, plain), weights), weightedError(src, decode(t, kind, weighted), weights)
		if !(after < before) {
			t.Errorf("%s: weighted error %g with weights, %g without", kind, after, before)
		}
	}
}

func weightedError(x, y, weights []float32) float64 {
	var sum float64
	for i := range x {
		diff := float64(x[i]) - float64(y[i])
		sum += diff * diff * float64(weights[i%len(weights)])
	}
	return sum
}

// TestGGMLQuality guards that more bits are better: the squared error of numbers like those
// of a layer falls along each family.
func TestGGMLQuality(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	const cols = 256
	src, ones := sample(rng, 64*cols), slices.Repeat([]float32{1}, cols)
	for _, family := range [][]block.GGML{
		{block.Q2_0, block.Q4_0, block.Q5_0, block.Q8_0, block.F16, block.F32},
		{block.Q4_1, block.Q5_1, block.Q8_0},
		{block.TQ2_0, block.Q2_K, block.Q3_K, block.Q4_K, block.Q5_K, block.Q6_K, block.Q8_0, block.BF16, block.F16},
		{block.Q4_0, block.IQ4_NL, block.Q5_0},
		{block.Q3_K, block.IQ4_XS, block.Q5_K},
		{block.IQ1_S, block.IQ1_M, block.Q2_K},
		{block.IQ2_XXS, block.IQ2_XS, block.IQ2_S, block.IQ3_XXS, block.IQ3_S, block.IQ4_XS},
		{block.Q1_0, block.MXFP4, block.Q5_0},
		{block.Q1_0, block.NVFP4, block.Q5_0},
	} {
		last := math.Inf(1)
		for _, kind := range family {
			e := weightedError(src, decode(t, kind, quantize(t, kind, src, cols, ones)), ones)
			if !(e < last) {
				t.Errorf("%s has error %g after %g in %v", kind, e, last, family)
			}
			last = e
		}
	}
	// Ternary types hold the same numbers.
	one, two := quantize(t, block.TQ1_0, src, cols, nil), quantize(t, block.TQ2_0, src, cols, nil)
	if !slices.Equal(decode(t, block.TQ1_0, one), decode(t, block.TQ2_0, two)) {
		t.Error("TQ1_0 and TQ2_0 differ")
	}
}

// TestGGMLQ8_1 decodes a block made by hand.
func TestGGMLQ8_1(t *testing.T) {
	src := make([]byte, 36)
	binary.LittleEndian.PutUint16(src, 0x3800) // 0.5
	src[4], src[35] = 0x80, 7
	want := make([]float32, 32)
	want[0], want[31] = -64, 3.5
	if got := decode(t, block.Q8_1, src); !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
}

// TestGGMLRefusesValues guards that no number and no weight without meaning passes, and
// that the error says which.
func TestGGMLRefusesValues(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	const cols = 512
	ones := slices.Repeat([]float32{1}, cols)
	with := func(numbers []float32, at int, x float32) []float32 {
		numbers = slices.Clone(numbers)
		numbers[at] = x
		return numbers
	}
	for _, kind := range writable() {
		size, _ := kind.RowBytes(2 * cols)
		dst := make([]byte, size)
		refuses := func(row, column int, reason string, src, weights []float32) {
			t.Helper()
			err := kind.Quantize(dst, src, cols, weights)
			var value *block.GGMLValueError
			if !errors.As(err, &value) || value.Type != kind || value.Row != row || value.Column != column || !strings.Contains(value.Reason, reason) {
				t.Errorf("%s: %v", kind, err)
			}
		}
		two := slices.Concat(ones, ones)
		for _, x := range []float32{nan, inf, -inf} {
			refuses(1, 77, "is not finite", with(two, cols+77, x), even(kind, cols))
			if kind.Weighted() {
				refuses(0, 300, "as a weight", two, with(ones, 300, x))
			} else if err := kind.Quantize(dst, two, cols, with(ones, 300, x)); err != nil {
				t.Errorf("%s: %v", kind, err)
			}
		}
		if kind.Weighted() {
			refuses(0, 0, "as a weight", two, with(ones, 0, -1))
			refuses(0, 511, "as a weight", two, with(ones, 511, 0x1p64))
		}
		switch kind {
		case block.F32, block.F64, block.BF16, block.MXFP4, block.NVFP4:
			if err := kind.Quantize(dst, with(two, cols+300, 1e30), cols, nil); err != nil {
				t.Errorf("%s: %v", kind, err) // they hold it, or saturate
			}
		default:
			reason := "infinite"
			if kind.BlockElements() > 1 {
				reason = "too large"
				refuses(1, 300, "infinite", with(two, cols+300, 4e9), even(kind, cols))
				refuses(1, 300, "infinite", with(two, cols+300, 4e9), ones)
			}
			refuses(1, 300, reason, with(two, cols+300, -3e30), even(kind, cols))
			refuses(1, 300, reason, with(two, cols+300, 3e38), ones)
		}
	}
	if err := block.Q8_1.Quantize(make([]byte, 36), ones[:32], 32, nil); err == nil || !strings.Contains(err.Error(), "Q8_1 can't be written") {
		t.Error(err)
	}
	if err := block.I32.Decode(make([]float32, 1), make([]byte, 4)); err == nil || !strings.Contains(err.Error(), "I32 can't be decoded") {
		t.Error(err)
	}
}

// TestGGMLNeedsWeights guards that the types which ggml's quantizer refuses to write without
// weights are refused, and no others.
func TestGGMLNeedsWeights(t *testing.T) {
	ones := slices.Repeat([]float32{1}, 256)
	var needs []block.GGML
	for _, kind := range writable() {
		size, _ := kind.RowBytes(256)
		err := kind.Quantize(make([]byte, size), ones, 256, nil)
		if kind.NeedsWeights() != (err != nil) {
			t.Errorf("%s: needs weights: %t, without: %v", kind, kind.NeedsWeights(), err)
		}
		if err == nil {
			continue
		}
		needs = append(needs, kind)
		var typeErr *block.GGMLTypeError
		if !errors.As(err, &typeErr) || typeErr.Type != kind || !strings.Contains(err.Error(), "can't be written without weights") {
			t.Errorf("%s: %v", kind, err)
		}
	}
	if want := []block.GGML{block.IQ2_XXS, block.IQ2_XS, block.IQ1_S}; !slices.Equal(needs, want) {
		t.Errorf("%v need weights, want %v", needs, want)
	}
}

// TestGGMLLargeWeights guards that no sum overflows so that a group is lost: with weights up
// to the limit, more is left of the elements that count than when they become zero, or
// the row is refused.
func TestGGMLLargeWeights(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 5))
	const cols = 512
	for _, kind := range writable() {
		if !kind.Weighted() {
			continue
		}
		size, _ := kind.RowBytes(cols)
		data := make([]byte, size)
		for exponent := range 65 {
			src, weights := make([]float32, cols), slices.Repeat([]float32{1}, cols)
			for i := range src {
				src[i] = float32(math.Ldexp(rng.NormFloat64(), exponent/2))
			}
			for i := range 16 {
				weights[304+i] = math.Nextafter32(float32(math.Ldexp(1, exponent)), 0)
			}
			if err := kind.Quantize(data, src, cols, weights); err != nil {
				if exponent < 24 { // numbers of 2^12, and binary16 goes to 2^16
					t.Errorf("weights of 2^%d: %v", exponent, err)
				}
				continue
			}
			lost, whole := 0.0, 0.0
			for i, x := range decode(t, kind, data)[304:320] {
				want := float64(src[304+i])
				lost += (float64(x) - want) * (float64(x) - want)
				whole += want * want
			}
			if lost > 0.7*whole {
				t.Errorf("%s with weights of 2^%d: error %g of %g", kind, exponent, math.Sqrt(lost), math.Sqrt(whole))
			}
		}
	}
}

// TestGGMLSmallest guards what would be undefined in C: numbers so small that the inverse
// of a scale is infinite become zero, or what is near.
func TestGGMLSmallest(t *testing.T) {
	const cols = 256
	for _, kind := range writable() {
		for exponent := -149; exponent < -60; exponent++ {
			src := make([]float32, cols)
			for i := range src {
				src[i] = float32(math.Ldexp(float64(i%5-2), exponent))
			}
			largest := math.Ldexp(2, exponent)
			for i, x := range decode(t, kind, quantize(t, kind, src, cols, even(kind, cols))) {
				if math.Abs(float64(x)-float64(src[i])) > largest {
					t.Errorf("%s: %g became %g", kind, src[i], x)
					break
				}
			}
		}
	}
}

// TestGGMLNonFinite guards the search for scales that are NaN or infinite, wherever a type
// keeps them, and that decoding such a block gives no NaN but the one.
func TestGGMLNonFinite(t *testing.T) {
	places := map[block.GGML][]int{ // of the high byte of a scale
		block.F16: {1}, block.Q4_0: {1}, block.Q4_1: {1, 3}, block.Q5_0: {1}, block.Q5_1: {1, 3}, block.Q8_0: {1}, block.Q8_1: {1, 3},
		block.Q2_K: {81, 83}, block.Q3_K: {109}, block.Q4_K: {1, 3}, block.Q5_K: {1, 3}, block.Q6_K: {209},
		block.IQ2_XXS: {1}, block.IQ2_XS: {1}, block.IQ3_XXS: {1}, block.IQ1_S: {1}, block.IQ4_NL: {1}, block.IQ3_S: {1}, block.IQ2_S: {1},
		block.IQ4_XS: {1}, block.TQ1_0: {53}, block.TQ2_0: {65}, block.Q1_0: {1}, block.Q2_0: {1},
	}
	check := func(kind block.GGML, data []byte, want int64) {
		t.Helper()
		if at, found := kind.NonFinite(data); !found || at != want {
			t.Errorf("%s: block %d, %t", kind, at, found)
		}
		for _, x := range decode(t, kind, data) {
			if x != x && kind.BlockElements() > 1 && math.Float32bits(x) != 0x7fc00000 {
				t.Fatalf("%s: NaN %#x", kind, math.Float32bits(x))
			}
		}
	}
	for _, kind := range ggmlTypes() {
		clean := make([]byte, 4*kind.BlockBytes())
		if at, found := kind.NonFinite(clean); found {
			t.Errorf("%s: block %d of zeros", kind, at)
		}
		for _, place := range places[kind] {
			for _, high := range []byte{0x7c, 0xfc, 0x7e, 0xff} {
				data := bytes.Clone(clean)
				data[2*kind.BlockBytes()+place] = high
				check(kind, data, 2)
			}
		}
	}
	iq1m := make([]byte, 2*56)
	for i := range 4 { // the scale's nibbles, from the lowest
		binary.LittleEndian.PutUint16(iq1m[56+48+2*i:], []uint16{0, 0, 0xc000, 0x7000}[i])
	}
	check(block.IQ1_M, iq1m, 1)
	q8k := make([]byte, 3*292)
	binary.LittleEndian.PutUint32(q8k[292:], 0xff800001)
	check(block.Q8_K, q8k, 1)
	mxfp4 := make([]byte, 2*17)
	mxfp4[17] = 0xff
	check(block.MXFP4, mxfp4, 1)
	for kind, one := range map[block.GGML][]byte{block.F32: {0, 0, 0x80, 0x7f}, block.F64: {0, 0, 0, 0, 0, 0, 0xf0, 0xff}, block.BF16: {0x80, 0x7f}} {
		check(kind, append(make([]byte, len(one)), one...), 1)
	}
}

// TestGGMLMisuse guards that lengths which do not belong together never pass.
func TestGGMLMisuse(t *testing.T) {
	panics := func(name string, call func()) {
		t.Helper()
		defer func() {
			if recover() == nil {
				t.Errorf("%s does not panic", name)
			}
		}()
		call()
	}
	ones, q := slices.Repeat([]float32{1}, 1024), make([]byte, 4*144)
	panics("too little room", func() { _ = block.Q4_K.Quantize(q[:1], ones, 256, nil) })
	panics("too much room", func() { _ = block.Q4_K.Quantize(q, ones[:512], 256, nil) })
	panics("part of a block", func() { _ = block.Q4_K.Quantize(q[:144], ones[:100], 100, nil) })
	panics("part of a row", func() { _ = block.Q4_K.Quantize(q, ones, 768, nil) })
	panics("no columns", func() { _ = block.Q4_K.Quantize(q, ones, 0, nil) })
	panics("too few weights", func() { _ = block.Q4_K.Quantize(q, ones, 512, ones[:256]) })
	panics("no weights", func() { _ = block.Q4_K.Quantize(q, ones, 512, ones[:0]) })
	panics("decoding too few", func() { _ = block.Q4_K.Decode(ones[:512], q) })
	panics("decoding part of a block", func() { _ = block.Q4_K.Decode(ones[:256], q[:143]) })
}

// TestGGMLAllocations guards that memory does not grow with the number of blocks.
func TestGGMLAllocations(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 4))
	const cols = 16 * 256
	src, weights := sample(rng, cols), sampleWeights(rng, cols)
	for _, kind := range ggmlTypes() {
		if kind.CanDecode() != nil {
			continue
		}
		size, _ := kind.RowBytes(cols)
		data := make([]byte, size)
		if kind.CanQuantize() == nil {
			// Codes and weights of a group, once a row.
			if n := testing.AllocsPerRun(3, func() { _ = kind.Quantize(data, src, cols, weights) }); n > 4 {
				t.Errorf("%s: %g allocations for a row", kind, n)
			}
		}
		out := make([]float32, cols)
		if n := testing.AllocsPerRun(3, func() { _ = kind.Decode(out, data) }); n > 0 {
			t.Errorf("%s: %g allocations to decode", kind, n)
		}
	}
}
