package encode_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/quant/block"
	"github.com/loratool/loratool/quant/encode"
)

// numbers returns n numbers as they are after they were stored as d, with the bytes.
func numbers(rng *rand.Rand, d tensor.DType, n int64) ([]float32, []byte) {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(rng.NormFloat64())
	}
	codec, _ := block.For(d)
	data := make([]byte, n*d.Bits()/8)
	codec.Encode32(data, x)
	codec.Decode32(x, data)
	return x, data
}

// wanted encodes row by row, which is the slow and obvious way: what a row becomes is
// defined by itself and the weights of its expert.
func wanted(t *testing.T, s gguf.Spec, x, weights []float32) []byte {
	t.Helper()
	kind := block.GGML(s.Type)
	n := len(s.Shape)
	cols, rows := s.Shape[n-1], s.Shape[n-2]
	out := make([]byte, 0, s.Size())
	for row := range int64(len(x)) / cols {
		var w []float32
		if weights != nil {
			w = weights[row/rows*cols:][:cols]
		}
		codes := make([]byte, s.RowSize())
		if err := kind.Quantize(codes, x[row*cols:][:cols], int(cols), w); err != nil {
			t.Fatal(err)
		}
		out = append(out, codes...)
	}
	return out
}

// Every type, from every source, with weights per column, per column of each expert, or
// none, read in pieces of every kind, at once: the bytes are those of the rows.
func TestView(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	sources := []tensor.DType{tensor.F32, tensor.F16, tensor.BF16}
	for i, kind := range gguf.Types() {
		if block.GGML(kind).CanQuantize() != nil || kind == gguf.F64 {
			continue
		}
		for _, shape := range []tensor.Shape{{3, 256}, {70, 512}, {3, 11, 1024}, {2, 17408}, {2, 40, 512}} {
			for _, weighted := range []bool{false, true} {
				if kind == gguf.IQ1S || kind == gguf.IQ1M || kind == gguf.IQ2XXS || kind == gguf.IQ2XS || kind == gguf.IQ2S ||
					kind == gguf.IQ3XXS || kind == gguf.IQ3S {
					if !weighted || shape[0] != 3 {
						continue // slow
					}
				}
				d := sources[(i+len(shape))%len(sources)]
				if t, ok := kind.DType(); ok && t == d {
					continue
				}
				name := fmt.Sprintf("%s of %s %v weighted %v", kind, d, shape, weighted)
				t.Run(name, func(t *testing.T) { checkView(t, rng, kind, d, shape, weighted) })
			}
		}
	}
}

func checkView(t *testing.T, rng *rand.Rand, kind gguf.Type, d tensor.DType, shape tensor.Shape, weighted bool) {
	n, _ := shape.NumElements()
	x, data := numbers(rng, d, n)
	var source checkpoint.Memory
	source.Add(tensor.Spec{Name: "w", DType: d, Shape: shape}, data)
	target := encode.Target{Spec: gguf.Spec{Name: "w", Type: kind, Shape: shape}}
	var weights []float32
	if weighted {
		experts := int64(1)
		if len(shape) == 3 {
			experts = shape[0]
		}
		weights = make([]float32, experts*shape[len(shape)-1])
		for i := range weights {
			weights[i] = rng.Float32()
		}
		target.Weights = func() ([]float32, error) { return weights, nil }
	}
	v, err := encode.New(&source, "m", []encode.Target{target})
	if err != nil {
		t.Fatal(err)
	}
	want := wanted(t, target.Spec, x, weights)
	r, err := v.Open("w")
	if err != nil {
		t.Fatal(err)
	}
	if v.Specs()[0].Size() != int64(len(want)) {
		t.Fatalf("%d bytes, want %d", v.Specs()[0].Size(), len(want))
	}
	got := make([]byte, len(want))
	var wg sync.WaitGroup
	for _, cut := range cuts(rng, len(want)) {
		wg.Go(func() {
			if n, err := r.ReadAt(got[cut[0]:cut[1]], int64(cut[0])); err != nil || n != cut[1]-cut[0] {
				t.Errorf("read %v: %d, %v", cut, n, err)
			}
		})
	}
	wg.Wait()
	if !bytes.Equal(got, want) {
		t.Error("other bytes than row by row")
	}
	checkFigures(t, v, target.Spec, x, want)
	if n, err := r.ReadAt(make([]byte, 9), int64(len(want))-4); n != 4 || err != io.EOF {
		t.Errorf("at the end: %d, %v", n, err)
	}
	if n, err := r.ReadAt(make([]byte, 9), int64(len(want))); n != 0 || err != io.EOF {
		t.Errorf("behind the end: %d, %v", n, err)
	}
	if _, err := r.ReadAt(make([]byte, 9), -1); err == nil {
		t.Error("read before the beginning")
	}
}

// cuts divides n bytes into pieces, small, large and of one byte.
func cuts(rng *rand.Rand, n int) [][2]int {
	var all [][2]int
	for at := 0; at < n; {
		size := []int{1, 17, 1000, 20000, 1 << 20}[rng.IntN(5)]
		all = append(all, [2]int{at, min(at+size, n)})
		at += size
	}
	return all
}

// checkFigures compares the error with that of a loop. Both round a product and a sum
// for each of n elements in float64, in another order: n 2^-52 relative, and a square root.
func checkFigures(t *testing.T, v *encode.View, s gguf.Spec, x []float32, codes []byte) {
	t.Helper()
	figures := v.Figures()
	if len(figures) != 1 {
		t.Fatalf("figures of %d tensors", len(figures))
	}
	back := make([]float32, len(x))
	if err := block.GGML(s.Type).Decode(back, codes); err != nil {
		t.Fatal(err)
	}
	var norm, off float64
	for i := range x {
		d := float64(back[i]) - float64(x[i])
		norm += float64(x[i]) * float64(x[i])
		off += d * d
	}
	f, tolerance := figures[0], float64(len(x))*0x1p-52
	if math.Abs(f.Norm/math.Sqrt(norm)-1) > tolerance || math.Abs(f.Error-math.Sqrt(off/norm)) > tolerance {
		t.Errorf("norm %g, error %g; want %g and %g", f.Norm, f.Error, math.Sqrt(norm), math.Sqrt(off/norm))
	}
	if f.Tensor != "w" || f.Type != s.Type || f.Bytes != s.Size() {
		t.Errorf("figures %+v", f)
	}
}

// The figures do not depend on where reads were cut, to the last bit.
func TestFiguresDoNotDependOnReads(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	shape := tensor.Shape{200, 512}
	_, data := numbers(rng, tensor.F16, 200*512)
	var source checkpoint.Memory
	source.Add(tensor.Spec{Name: "w", DType: tensor.F16, Shape: shape}, data)
	var first []encode.Figures
	for i, size := range []int{1 << 20, 1, 4096, 9999} {
		v, err := encode.New(&source, "m", []encode.Target{{Spec: gguf.Spec{Name: "w", Type: gguf.Q8_0, Shape: shape}}})
		if err != nil {
			t.Fatal(err)
		}
		if size == 1 {
			size = 3001 // and backwards
		}
		r, _ := v.Open("w")
		for at := (v.Specs()[0].Size() - 1) / int64(size) * int64(size); at >= 0; at -= int64(size) {
			// Two segments are not read yet, of 16384 elements in 34 bytes for 32 each.
			if at > 2*17408 && len(v.Figures()) > 0 {
				t.Error("figures of a tensor that was not read whole")
			}
			if _, err := r.ReadAt(make([]byte, size), at); err != nil && err != io.EOF {
				t.Fatal(err)
			}
		}
		if i == 0 {
			first = v.Figures()
		} else if got := v.Figures(); len(got) != 1 || got[0].Error != first[0].Error || got[0].Norm != first[0].Norm {
			t.Errorf("reads of %d: %+v, want %+v", size, got, first)
		}
	}
}

// What is stored as it is to be is copied, and looked at.
func TestViewCopies(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	x, _ := numbers(rng, tensor.F32, 2*512)
	s := gguf.Spec{Name: "w", Type: gguf.Q4K, Shape: tensor.Shape{2, 512}}
	codes := wanted(t, s, x, nil)
	_, plain := numbers(rng, tensor.F16, 70000)
	var source checkpoint.Memory
	source.Add(tensor.Spec{Name: "w", DType: tensor.U8, Shape: tensor.Shape{2, s.RowSize()}}, codes)
	source.Add(tensor.Spec{Name: "p", DType: tensor.F16, Shape: tensor.Shape{1, 70000}}, plain)
	source.Add(tensor.Spec{Name: "i", DType: tensor.I32, Shape: tensor.Shape{2}}, bytes.Repeat([]byte{255}, 8))
	targets := []encode.Target{{Spec: s}, {Spec: gguf.Spec{Name: "p", Type: gguf.F16, Shape: tensor.Shape{70000}}},
		{Spec: gguf.Spec{Name: "i", Type: gguf.I32, Shape: tensor.Shape{2}}}}
	v, err := encode.New(&source, "m", targets)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]byte{"w": codes, "p": plain, "i": bytes.Repeat([]byte{255}, 8)} {
		r, err := v.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want))
		for _, cut := range cuts(rng, len(want)) {
			if _, err := r.ReadAt(got[cut[0]:cut[1]], int64(cut[0])); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s differs", name)
		}
	}
	if len(v.Figures()) != 0 {
		t.Error("figures of a copy")
	}
	codes[s.RowSize()+1] = 0x7C // the scale of block 2 is infinite
	r, _ := v.Open("w")
	_, err = r.ReadAt(make([]byte, 1), s.RowSize()+100)
	checkInputError(t, err, `m: tensor "w": block 2 of type q4_K is not finite`)
	plain[2*69999+1] = 0x7E
	r, _ = v.Open("p")
	if _, err := r.ReadAt(make([]byte, 2*69999), 0); err != nil {
		t.Error(err)
	}
	_, err = r.ReadAt(make([]byte, 1), 2*69999)
	checkInputError(t, err, `m: tensor "p": block 69999 of type f16 is not finite`)
}

func checkInputError(t *testing.T, err error, want string) {
	t.Helper()
	if _, ok := errors.AsType[*checkpoint.InputError](err); !ok || err.Error() != want {
		t.Errorf("error %v, want %q", err, want)
	}
}

// The element that can't be encoded is named by its place in the tensor.
func TestViewNamesElement(t *testing.T) {
	for _, weighted := range []bool{false, true} {
		x, _ := numbers(rand.New(rand.NewPCG(7, 8)), tensor.F32, 90*512)
		x[77*512+300] = float32(math.NaN())
		codec, _ := block.For(tensor.F32)
		data := make([]byte, 4*len(x))
		codec.Encode32(data, x)
		var source checkpoint.Memory
		source.Add(tensor.Spec{Name: "w", DType: tensor.F32, Shape: tensor.Shape{90, 512}}, data)
		target := encode.Target{Spec: gguf.Spec{Name: "w", Type: gguf.Q5K, Shape: tensor.Shape{90, 512}}}
		if weighted {
			target.Weights = func() ([]float32, error) { return make([]float32, 512), nil }
		}
		v, err := encode.New(&source, "m", []encode.Target{target})
		if err != nil {
			t.Fatal(err)
		}
		r, _ := v.Open("w")
		_, err = r.ReadAt(make([]byte, target.Size()), 0)
		checkInputError(t, err, `m: tensor "w": row 77, column 300: NaN is not finite, encoding as q5_K`)
	}
}

func TestViewRefuses(t *testing.T) {
	var source checkpoint.Memory
	source.Add(tensor.Spec{Name: "w", DType: tensor.F32, Shape: tensor.Shape{2, 256}}, make([]byte, 2048))
	source.Add(tensor.Spec{Name: "i", DType: tensor.I32, Shape: tensor.Shape{2, 256}}, make([]byte, 2048))
	source.Add(tensor.Spec{Name: "four", DType: tensor.F32, Shape: tensor.Shape{1, 1, 2, 256}}, make([]byte, 2048))
	for name, c := range map[string]struct {
		spec gguf.Spec
		want string
	}{
		"missing":   {gguf.Spec{Name: "x", Type: gguf.Q4K, Shape: tensor.Shape{2, 256}}, `tensor "x": not in the source`},
		"fewer":     {gguf.Spec{Name: "w", Type: gguf.Q4K, Shape: tensor.Shape{1, 256}}, "of shape [2, 256] in the source, [1, 256] is wanted"},
		"other row": {gguf.Spec{Name: "w", Type: gguf.Q4K, Shape: tensor.Shape{1, 512}}, "of shape [2, 256] in the source, [1, 512] is wanted"},
		"integers":  {gguf.Spec{Name: "i", Type: gguf.Q4K, Shape: tensor.Shape{2, 256}}, "can't be encoded as q4_K"},
		"runtime":   {gguf.Spec{Name: "w", Type: gguf.Q8K, Shape: tensor.Shape{2, 256}}, "Q8_K can't be written"},
		"four":      {gguf.Spec{Name: "four", Type: gguf.Q4K, Shape: tensor.Shape{1, 1, 2, 256}}, "more dimensions than can be encoded"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := encode.New(&source, "m", []encode.Target{{Spec: c.spec}})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
	short := encode.Target{Spec: gguf.Spec{Name: "w", Type: gguf.Q4K, Shape: tensor.Shape{2, 256}},
		Weights: func() ([]float32, error) { return make([]float32, 255), nil }}
	v, err := encode.New(&source, "m", []encode.Target{short})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Open("w"); err == nil || !strings.Contains(err.Error(), "255 weights for 256 columns of 1 experts") {
		t.Errorf("error %v", err)
	}
	if _, err := v.Open("x"); err == nil {
		t.Error("a tensor that is not there is opened")
	}
	if m := v.Memory(2); m <= 0 || m > 4<<20 {
		t.Errorf("memory %d", m)
	}
}
