package quant_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/internal/strictjson"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/quant/block"
)

var golden = filepath.Join("..", "testdata", "golden", "bnb")

func open(t *testing.T, path string) *checkpoint.Model {
	t.Helper()
	m, err := checkpoint.Open(path, hfrepo.Cache{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func mustPlan(t *testing.T, path string, o quant.Options) *quant.Quantization {
	t.Helper()
	o.Output = filepath.Join(t.TempDir(), "out")
	q, err := quant.Plan(open(t, path), o)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// opener is a checkpoint, or anything else with tensors.
type opener interface {
	Open(name string) (io.ReaderAt, error)
}

func readAll(t *testing.T, c opener, s tensor.Spec) []byte {
	t.Helper()
	src, err := c.Open(s.Name)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(io.NewSectionReader(src, 0, s.Size()+1))
	if err != nil {
		t.Fatalf("%s: %v", s.Name, err)
	}
	if int64(len(data)) != s.Size() {
		t.Fatalf("%s: %d bytes, want %d", s.Name, len(data), s.Size())
	}
	return data
}

// TestGolden makes what transformers with bitsandbytes made of the same model: the
// same tensors with the same bytes. The CPU code that made them differs from the CUDA
// code in the zeros of FP4, in the codes of nested scales (a table of bins) and in the
// last bits of their mean; the test allows that and nothing else.
func TestGolden(t *testing.T) {
	for _, c := range []struct {
		name string
		o    quant.Options
	}{
		{"llama-nf4", quant.Options{Type: quant.NF4}},
		{"llama-nf4-double", quant.Options{Type: quant.NF4, DoubleQuant: true}},
		{"llama-fp4-storage", quant.Options{Type: quant.FP4, Storage: tensor.BF16}},
		{"llama-int8", quant.Options{Type: quant.Int8}},
		{"gpt2-nf4", quant.Options{Type: quant.NF4}},
		{"gpt2-int8", quant.Options{Type: quant.Int8}},
	} {
		t.Run(c.name, func(t *testing.T) {
			family, _, _ := strings.Cut(c.name, "-")
			base := open(t, filepath.Join(golden, family))
			q := mustPlan(t, filepath.Join(golden, family), c.o)
			theirs, err := safetensors.Open(filepath.Join(golden, c.name, "model.safetensors"))
			if err != nil {
				t.Fatal(err)
			}
			defer theirs.Close()
			ours := make(map[string]tensor.Spec)
			for _, s := range q.View.Specs() {
				ours[s.Name] = s
			}
			if len(ours) != len(theirs.Tensors()) {
				t.Errorf("%d tensors, want %d", len(ours), len(theirs.Tensors()))
			}
			for _, want := range theirs.Tensors() {
				got, ok := ours[want.Name]
				state := strings.Contains(want.Name, "quant_state")
				if !ok || got.DType != want.DType || !got.Shape.Equal(want.Shape) && !(state && c.o.DoubleQuant) {
					t.Errorf("%s: %s %v, want %s %v", want.Name, got.DType, got.Shape, want.DType, want.Shape)
					continue
				}
				section, err := theirs.Section(want.Name)
				if err != nil {
					t.Fatal(err)
				}
				data, err := io.ReadAll(io.NewSectionReader(section, 0, want.Size()))
				if err != nil {
					t.Fatal(err)
				}
				mine := readAll(t, q.View, got)
				if before, ok := base.Lookup(want.Name); ok && c.o.Type == quant.FP4 && want.NumElements() != before.NumElements() {
					compareFP4(t, want.Name, mine, data, bf16Values(readAll(t, base, before)))
					continue
				}
				compare(t, want.Name, mine, data, c.o)
			}
			compareConfig(t, q, filepath.Join(golden, c.name, "config.json"))
		})
	}
}

func compare(t *testing.T, name string, got, want []byte, o quant.Options) {
	t.Helper()
	switch {
	case strings.Contains(name, "quant_state") && o.DoubleQuant:
		a, errA := block.ParseFourBitState(got)
		b, errB := block.ParseFourBitState(want)
		// A mean of positive numbers in float32, in any order: below 2^-20 for 48.
		if off := math.Abs(float64(a.Offset - b.Offset)); errA != nil || errB != nil || off > 0x1p-20*float64(b.Offset) {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
		a.Offset = b.Offset
		if text := bytes.TrimRight(a.Encode(), " "); !bytes.Equal(text, want) {
			t.Errorf("%s: %s, want %s", name, text, want)
		}
	case strings.HasSuffix(name, ".nested_absmax"):
		// What is left after the mean has its rounding.
		for i := 0; i < len(got); i += 4 {
			a, b := floatAt(got, i), floatAt(want, i)
			if math.Abs(a-b) > 1e-4*b {
				t.Errorf("%s: %g, want %g", name, a, b)
			}
		}
	case strings.HasSuffix(name, ".absmax") && o.DoubleQuant:
		// A neighbour may be taken, where two are about as near.
		for i := range got {
			if d := int(got[i]) - int(want[i]); d < -1 || d > 1 {
				t.Errorf("%s: code %d is %d, want %d", name, i, got[i], want[i])
			}
		}
	default:
		if !bytes.Equal(got, want) {
			t.Errorf("%s differs", name)
		}
	}
}

func floatAt(data []byte, i int) float64 {
	return float64(math.Float32frombits(binary.LittleEndian.Uint32(data[i:])))
}

func bf16Values(data []byte) []float32 {
	codec, _ := block.For(tensor.BF16)
	x := make([]float32, len(data)/2)
	codec.Decode32(x, data)
	return x
}

// compareFP4 allows the CPU's codes to differ in the zero, and where a number lies
// between the thresholds of the CUDA code, which have as few as 6 digits, and the
// middle of two values: a bf16 in a block of a bf16 meets 1/4 and 7/12 exactly.
func compareFP4(t *testing.T, name string, got, want []byte, x []float32) {
	t.Helper()
	const gap = 0.5833333334 - 0.583333 + 0x1p-24
	values := kernel.FP4.Values()
	for i, v := range x {
		shift := 4 * (1 - i%2)
		a, b := got[i/2]>>shift&15, want[i/2]>>shift&15
		if a == b || a&7 == 0 && b&7 == 0 {
			continue
		}
		largest := float32(0)
		for _, w := range x[i/64*64 : min(i/64*64+64, len(x))] {
			largest = max(largest, float32(math.Abs(float64(w))))
		}
		middle := (float64(values[a]) + float64(values[b])) / 2
		if math.Abs(float64(v)/float64(largest)-middle) > gap {
			t.Fatalf("%s: element %d has code %d, want %d", name, i, a, b)
		}
	}
}

// compareConfig compares config.json, member by member: ours says which modules are
// left alone, theirs leaves that to the loader.
func compareConfig(t *testing.T, q *quant.Quantization, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want, err := strictjson.ParseObject(data)
	if err != nil {
		t.Fatal(err)
	}
	var got *strictjson.Object
	for _, s := range q.Layout.Sidecars {
		if s.Name == "config.json" {
			if got, err = strictjson.ParseObject(s.Data); err != nil {
				t.Fatal(err)
			}
		}
	}
	inner, err := got.Object("quantization_config")
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := want.Object("quantization_config")
	if err != nil {
		t.Fatal(err)
	}
	if list, err := inner.Strings("llm_int8_skip_modules"); err != nil || !slices.Contains(list, "lm_head") {
		t.Errorf("skipped modules: %v, %v", list, err)
	}
	inner.Set("llm_int8_skip_modules", strictjson.NewNull())
	if !inner.Value().Equal(theirs.Value()) {
		t.Errorf("quantization_config is %s, want %s", inner.Encode(""), theirs.Encode(""))
	}
	if a, b := got.Keys(), want.Keys(); !slices.Equal(a, b) {
		t.Errorf("keys of config.json are %v, want %v", a, b)
	}
}

// numbers writes a model folder with random weights in the given types and shapes.
func numbers(t *testing.T, config string, specs ...tensor.Spec) string {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, uint64(len(specs))))
	return write(t, config, specs, func(_ tensor.Spec, x []float32) {
		for i := range x {
			x[i] = float32(rng.NormFloat64() * 0.02)
		}
	})
}

// write writes a model folder; fill sets the values of floating-point tensors.
func write(t *testing.T, config string, specs []tensor.Spec, fill func(tensor.Spec, []float32)) string {
	t.Helper()
	l, err := safetensors.NewLayout(specs, nil)
	if err != nil {
		t.Fatal(err)
	}
	data := append(l.Header(), make([]byte, l.Size()-int64(len(l.Header())))...)
	for _, s := range specs {
		codec, ok := block.For(s.DType)
		if !ok {
			continue
		}
		x := make([]float32, s.NumElements())
		fill(s, x)
		off, _ := l.Offset(s.Name)
		codec.Encode32(data[off:off+s.Size()], x)
	}
	dir := t.TempDir()
	for name, content := range map[string][]byte{"model.safetensors": data, "config.json": []byte(config)} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func spec(name string, d tensor.DType, shape ...int64) tensor.Spec {
	return tensor.Spec{Name: name, DType: d, Shape: shape}
}

var kinds = []quant.Options{
	{Type: quant.NF4},
	{Type: quant.FP4, BlockSize: 32},
	{Type: quant.NF4, BlockSize: 4096, DoubleQuant: true},
	{Type: quant.NF4, DoubleQuant: true},
	{Type: quant.Int8},
}

func label(o quant.Options) string {
	return fmt.Sprintf("%s-%d-%v", o.Type, o.BlockSize, o.DoubleQuant)
}

// TestAgainstWhole compares the bytes of every part with those of the whole weight
// quantized at once, for weights of several segments, odd sizes, and transposed ones.
func TestAgainstWhole(t *testing.T) {
	const rows, cols = 331, 1201 // several segments, none of them even
	for _, config := range []string{`{"model_type": "gpt2"}`, `{"model_type": "llama"}`} {
		dir := numbers(t, config, spec("h.c_fc.weight", tensor.BF16, rows, cols))
		base := open(t, dir)
		x := make([]float32, rows*cols)
		codec, _ := block.For(tensor.BF16)
		codec.Decode32(x, readAll(t, base, base.Specs()[0]))
		out, in := int64(rows), int64(cols)
		if strings.Contains(config, "gpt2") {
			turned := make([]float32, len(x))
			for i := range rows {
				for j := range cols {
					turned[j*rows+i] = x[i*cols+j]
				}
			}
			x, out, in = turned, cols, rows
		}
		for _, o := range kinds {
			t.Run(config+label(o), func(t *testing.T) {
				q := mustPlan(t, dir, o)
				want, values := whole(x, out, in, o)
				for _, s := range q.View.Specs() {
					if w, ok := want[s.Name]; !ok {
						t.Errorf("%s is too much", s.Name)
					} else if !bytes.Equal(readAll(t, q.View, s), w) {
						t.Errorf("%s differs", s.Name)
					}
				}
				if len(want) != len(q.View.Specs()) {
					t.Errorf("%d tensors, want %d", len(q.View.Specs()), len(want))
				}
				checkFigures(t, q, x, values)
				checkRoundTrip(t, base, o, values, strings.Contains(config, "gpt2"))
			})
		}
	}
}

// whole quantizes a matrix at once: the parts by name, and the values they stand for.
func whole(x []float32, out, in int64, o quant.Options) (map[string][]byte, []float32) {
	const name = "h.c_fc.weight"
	f32, _ := block.For(tensor.F32)
	floats := func(v []float32) []byte {
		data := make([]byte, 4*len(v))
		f32.Encode32(data, v)
		return data
	}
	values := make([]float32, len(x))
	if o.Type == quant.Int8 {
		f16, _ := block.For(tensor.F16)
		raw, half := make([]byte, 2*len(x)), make([]float32, len(x))
		f16.Encode32(raw, x)
		f16.Decode32(half, raw)
		codes, scb := make([]byte, len(x)), make([]float32, out)
		for i := range out {
			scb[i] = block.EncodeInt8(codes[i*in:(i+1)*in], half[i*in:(i+1)*in])
			block.DecodeInt8(values[i*in:(i+1)*in], codes[i*in:(i+1)*in], scb[i])
		}
		return map[string][]byte{name: codes, "h.c_fc.SCB": floats(scb), "h.c_fc.weight_format": {0}}, values
	}
	size := o.BlockSize
	if size == 0 {
		size = 64
	}
	f := kernel.NF4
	if o.Type == quant.FP4 {
		f = kernel.FP4
	}
	codes, absmax := make([]byte, (len(x)+1)/2), make([]float32, (len(x)+size-1)/size)
	block.EncodeFourBit(f, codes, absmax, x, size)
	table := f.Values()
	state := block.FourBitState{Type: f, BlockSize: size, DType: tensor.BF16, Shape: tensor.Shape{out, in}}
	parts := map[string][]byte{name: codes, name + ".quant_map": floats(table[:])}
	if o.DoubleQuant {
		n := block.Nest(absmax)
		state.Nested, state.NestedSize, state.Offset = true, 256, n.Offset
		parts[name+".absmax"], parts[name+".nested_absmax"], parts[name+".nested_quant_map"] = n.Codes, floats(n.Absmax), floats(n.Map[:])
		block.DecodeNested(absmax, n.Codes, 0, &n.Map, n.Absmax, n.Offset, 256)
	} else {
		parts[name+".absmax"] = floats(absmax)
	}
	parts[name+".quant_state.bitsandbytes__"+string(o.Type)] = state.Encode()
	kernel.DecodeFourBit(f, values, codes, absmax, size)
	return parts, values
}

// checkFigures compares the report with sums over the values.
func checkFigures(t *testing.T, q *quant.Quantization, x, values []float32) {
	t.Helper()
	var off, norm, largest float64
	for i, v := range x {
		d := float64(v) - float64(values[i])
		off += d * d
		norm += float64(v) * float64(v)
		largest = max(largest, math.Abs(float64(v)))
	}
	figures := q.View.Figures()
	if len(figures) != 1 {
		t.Fatalf("%d figures", len(figures))
	}
	var size int64
	for _, s := range q.View.Specs() {
		size += s.Size()
	}
	f := figures[0]
	// Nested: sums of a block are kept in float32 and the error is a difference of
	// them, an eighth of a percent of their size: 2^-24 / 0.0085.
	const allowed = 1e-5
	if want := math.Sqrt(off / norm); math.Abs(f.Error-want) > allowed*want {
		t.Errorf("relative error %.9f, want %.9f", f.Error, want)
	}
	if math.Abs(f.Norm-math.Sqrt(norm)) > 1e-12*f.Norm || f.AbsMax != largest || f.Bytes != size {
		t.Errorf("%+v, want norm %g, largest %g, %d bytes", f, math.Sqrt(norm), largest, size)
	}
}

// checkRoundTrip compares the weight after quantization and back with the values, in
// the type and order of the source, whole and in pieces.
func checkRoundTrip(t *testing.T, base *checkpoint.Model, o quant.Options, values []float32, transposed bool) {
	t.Helper()
	r, err := quant.NewRoundTrip(base, o)
	if err != nil {
		t.Fatal(err)
	}
	s := r.Specs()[0]
	if transposed {
		rows, cols := s.Shape[0], s.Shape[1]
		turned := make([]float32, len(values))
		for i := range rows {
			for j := range cols {
				turned[i*cols+j] = values[j*rows+i]
			}
		}
		values = turned
	}
	codec, _ := block.For(s.DType)
	want := make([]byte, s.Size())
	codec.Encode32(want, values)
	src, err := r.Open(s.Name)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(8, 8))
	for range 8 {
		off := rng.Int64N(s.Size())
		p := make([]byte, rng.Int64N(s.Size()-off)+1)
		if n, err := src.ReadAt(p, off); n != len(p) || err != nil || !bytes.Equal(p, want[off:off+int64(n)]) {
			t.Errorf("after the round trip: %d bytes at %d differ (%v)", n, off, err)
		}
	}
	if !bytes.Equal(readAll(t, r, s), want) {
		t.Error("after the round trip: other values")
	}
}

// TestAnyOrder reads pieces of all parts from several goroutines, in no order, and
// compares them, and the figures, with reading in order.
func TestAnyOrder(t *testing.T) {
	dir := numbers(t, `{"model_type": "gpt2"}`, spec("a.weight", tensor.BF16, 300, 700), spec("h.c_fc.weight", tensor.F16, 70, 90), spec("a.bias", tensor.F32, 7))
	for _, o := range kinds {
		t.Run(label(o), func(t *testing.T) {
			ordered := mustPlan(t, dir, o)
			want := make(map[string][]byte)
			for _, s := range ordered.View.Specs() {
				want[s.Name] = readAll(t, ordered.View, s)
			}
			q := mustPlan(t, dir, o)
			specs := q.View.Specs()
			var wg sync.WaitGroup
			for g := range 4 {
				wg.Go(func() {
					rng := rand.New(rand.NewPCG(uint64(g), 9))
					for range 60 {
						s := specs[rng.IntN(len(specs))]
						src, err := q.View.Open(s.Name)
						if err != nil {
							t.Error(err)
							return
						}
						off := rng.Int64N(s.Size() + 2)
						p := make([]byte, rng.Int64N(s.Size()+9))
						n, err := src.ReadAt(p, off)
						end := off+int64(len(p)) > s.Size() || off >= s.Size()
						if !bytes.Equal(p[:n], want[s.Name][min(off, s.Size()):min(off+int64(len(p)), s.Size())]) || (err == io.EOF) != end || err != nil && err != io.EOF {
							t.Errorf("%s: %d bytes at %d: %d, %v", s.Name, len(p), off, n, err)
						}
					}
				})
			}
			wg.Wait()
			for _, s := range specs {
				readAll(t, q.View, s)
			}
			if a, b := fmt.Sprint(q.View.Figures()), fmt.Sprint(ordered.View.Figures()); a != b {
				t.Errorf("figures %s, in order %s", a, b)
			}
		})
	}
}

// TestChoice gives models of several families and compares what is quantized, what
// is not, and what the config says.
func TestChoice(t *testing.T) {
	m := func(names ...string) []tensor.Spec {
		var all []tensor.Spec
		for _, n := range names {
			all = append(all, spec(n, tensor.BF16, 4, 64))
		}
		return all
	}
	for _, c := range []struct {
		name, config string
		specs        []tensor.Spec
		skip         []string
		quantized    string
		skipped      string
	}{
		{"tied head that is not stored", `{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": true}`,
			append(m("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"), spec("model.norm.weight", tensor.BF16, 64), spec("model.layers.0.mlp.up_proj.bias", tensor.BF16, 4)), nil,
			"model.layers.0.mlp.up_proj", "model.embed_tokens embed_tokens lm_head"},
		{"experts and routers", `{"model_type": "mixtral"}`,
			m("model.layers.0.block_sparse_moe.experts.0.w1.weight", "model.layers.0.block_sparse_moe.gate.weight", "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.shared_experts.up_proj.weight", "lm_head.weight"), nil,
			"model.layers.0.self_attn.q_proj model.layers.0.mlp.shared_experts.up_proj",
			`.*\.experts .experts model.layers.0.block_sparse_moe.gate gate lm_head`},
		{"a last component that would match more", `{"model_type": "x"}`,
			m("a.gate.weight", "b.delegate.weight"), nil, "b.delegate", "a.gate"},
		{"a last component that is on the way to another", `{"model_type": "x"}`,
			m("a.gate.weight", "b.gate.proj.weight"), nil, "b.gate.proj", "a.gate"},
		{"kept in 32 bits", `{"model_type": "t5"}`,
			m("encoder.block.0.layer.1.DenseReluDense.wo.weight", "encoder.block.0.layer.1.DenseReluDense.wi.weight", "shared.weight", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"), nil,
			"encoder.block.0.layer.1.DenseReluDense.wi",
			"encoder.block.0.layer.1.DenseReluDense.wo wo shared encoder.block.0.layer.0.SelfAttention.relative_attention_bias relative_attention_bias"},
		{"wo of another type", `{"model_type": "gptj"}`, m("h.0.wo.weight"), nil, "h.0.wo", ""},
		{"nn.MultiheadAttention", `{"model_type": "x"}`,
			m("attn.in_proj_weight", "attn.out_proj.weight", "mlp.out_proj.weight"), nil, "mlp.out_proj", "attn.out_proj"},
		{"classifier", `{"model_type": "bert"}`,
			m("bert.embeddings.word_embeddings.weight", "bert.pooler.dense.weight", "classifier.weight"), nil,
			"bert.pooler.dense", "bert.embeddings.word_embeddings word_embeddings classifier"},
		{"skipped by the end, the beginning, an expression", `{"model_type": "x"}`,
			m("vision.blocks.0.fc.weight", "vision_two.fc.weight", "text.0.fc2.weight", "text.1.fc2.weight", "text.10.fc1.weight", "text.1.fc1.weight"),
			[]string{"vision", "0.fc2", `text\.1\d`}, "vision_two.fc text.1.fc2 text.1.fc1", `vision 0.fc2 text\.1\d`},
		{"convolutions and stacks", `{"model_type": "x"}`,
			append(m("a.weight"), spec("conv.weight", tensor.BF16, 4, 4, 3, 3), spec("experts.up_proj", tensor.BF16, 2, 4, 64)), nil, "a", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			q := mustPlan(t, numbers(t, c.config, c.specs...), quant.Options{Type: quant.NF4, Skip: c.skip})
			var got []string
			for _, target := range q.Targets() {
				got = append(got, strings.TrimSuffix(target.Tensor, ".weight"))
			}
			want := strings.Fields(c.quantized)
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("quantized %v, want %v", got, want)
			}
			if got := strings.Join(skipModules(t, q), " "); !sameFields(got, c.skipped) {
				t.Errorf("skipped %s, want %s", got, c.skipped)
			}
		})
	}
}

func sameFields(a, b string) bool {
	x, y := strings.Fields(a), strings.Fields(b)
	slices.Sort(x)
	slices.Sort(y)
	return slices.Equal(x, y)
}

func skipModules(t *testing.T, q *quant.Quantization) []string {
	t.Helper()
	for _, s := range q.Layout.Sidecars {
		if s.Name != "config.json" {
			continue
		}
		config, err := strictjson.ParseObject(s.Data)
		if err != nil {
			t.Fatal(err)
		}
		inner, err := config.Object("quantization_config")
		if err != nil {
			t.Fatal(err)
		}
		list, err := inner.Strings("llm_int8_skip_modules")
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	t.Fatal("no config.json")
	return nil
}

// TestComputeDType is the model's own type unless another is asked for.
func TestComputeDType(t *testing.T) {
	for _, c := range []struct {
		config string
		asked  tensor.DType
		want   string
	}{
		{`{"torch_dtype": "bfloat16"}`, tensor.NoDType, "bfloat16"},
		{`{}`, tensor.NoDType, "float16"}, // as the weight is stored
		{`{"torch_dtype": "bfloat16"}`, tensor.F32, "float32"},
	} {
		q := mustPlan(t, numbers(t, c.config, spec("a.weight", tensor.F16, 4, 64)), quant.Options{Type: quant.NF4, ComputeDType: c.asked})
		for _, s := range q.Layout.Sidecars {
			if want := `"bnb_4bit_compute_dtype": "` + c.want + `"`; s.Name == "config.json" && !strings.Contains(string(s.Data), want) {
				t.Errorf("%s: no %s in %s", c.config, want, s.Data)
			}
		}
	}
}

// TestRefused gives what can't be quantized.
func TestRefused(t *testing.T) {
	weight := spec("a.weight", tensor.BF16, 4, 64)
	nf4 := quant.Options{Type: quant.NF4}
	for _, c := range []struct {
		name string
		dir  string
		o    quant.Options
		want string
	}{
		{"F64", numbers(t, `{}`, spec("a.weight", tensor.F64, 4, 64)), nf4, `tensor "a.weight" is stored as f64`},
		{"FP8", numbers(t, `{}`, spec("a.weight", tensor.F8E4M3, 4, 64)), nf4, `tensor "a.weight" is stored as f8_e4m3`},
		{"I8", numbers(t, `{}`, spec("a.weight", tensor.I8, 4, 64)), nf4, `tensor "a.weight" is stored as i8`},
		{"empty", numbers(t, `{}`, spec("a.weight", tensor.BF16, 0, 64)), nf4, `tensor "a.weight" is empty`},
		{"nothing", numbers(t, `{}`, spec("a.bias", tensor.BF16, 4, 64)), nf4, "no weight of a linear layer"},
		{"all skipped", numbers(t, `{}`, weight), quant.Options{Type: quant.NF4, Skip: []string{"a"}}, "no weight of a linear layer"},
		{"quantized", filepath.Join(golden, "llama-nf4"), nf4, "is quantized already, as nf4"},
		{"quantized in 8 bits", filepath.Join(golden, "llama-int8"), nf4, "is quantized already, as int8"},
		{"quantized by another tool", numbers(t, `{"quantization_config": {"quant_method": "gptq"}}`, weight), nf4, `quantized already ("gptq")`},
		{"storage", numbers(t, `{}`, spec("a.weight", tensor.BF16, 1, 6)), quant.Options{Type: quant.NF4, Storage: tensor.F32}, "do not fill whole elements of f32"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.o.Output = "out"
			_, err := quant.Plan(open(t, c.dir), c.o)
			if _, ok := errors.AsType[*checkpoint.InputError](err); !ok || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v (%T), want %q", err, err, c.want)
			}
		})
	}
	for _, o := range []quant.Options{
		{}, {Type: "nf3"}, {Type: quant.NF4, BlockSize: 16}, {Type: quant.NF4, BlockSize: 8192}, {Type: quant.NF4, BlockSize: 96},
		{Type: quant.Int8, DoubleQuant: true}, {Type: quant.Int8, BlockSize: 64}, {Type: quant.NF4, Storage: tensor.U16},
		{Type: quant.NF4, ComputeDType: tensor.F64}, {Type: quant.NF4, Skip: []string{"("}}, {Type: quant.NF4, Skip: []string{"a b"}},
		{Type: quant.NF4, Skip: []string{`(?i)a`}}, {Type: quant.NF4, Skip: []string{""}}, {Type: quant.NF4, Skip: []string{"weigh"}},
	} {
		o.Output = "out"
		_, err := quant.Plan(open(t, numbers(t, `{}`, weight)), o)
		if _, ok := errors.AsType[*quant.OptionError](err); !ok {
			t.Errorf("%+v: error %v of type %T", o, err, err)
		}
	}
}

// TestBadNumbers meets numbers that can't be quantized when it reads them.
func TestBadNumbers(t *testing.T) {
	for _, c := range []struct {
		bad  float64
		d    tensor.DType
		kind quant.Type
		want string
	}{
		{math.Inf(1), tensor.BF16, quant.NF4, "element 65737 is not finite"},
		{math.NaN(), tensor.BF16, quant.FP4, "element 65737 is not finite"},
		{math.Inf(-1), tensor.F32, quant.Int8, "element 65737 is not finite"},
		{65536, tensor.BF16, quant.Int8, "element 65737 is 65536: LLM.int8 rounds to f16"},
		{1e39, tensor.F32, quant.NF4, "element 65737 is not finite"},
	} {
		dir := write(t, `{}`, []tensor.Spec{spec("a.weight", c.d, 300, 300)}, func(_ tensor.Spec, x []float32) { x[65737] = float32(c.bad) })
		q := mustPlan(t, dir, quant.Options{Type: c.kind})
		for _, name := range []string{"a.weight", map[bool]string{true: "a.SCB", false: "a.weight.absmax"}[c.kind == quant.Int8]} {
			src, err := q.View.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			_, err = io.Copy(io.Discard, io.NewSectionReader(src, 0, 1<<40))
			if _, ok := errors.AsType[*checkpoint.InputError](err); !ok || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v as %s, %s: error %v (%T), want %q", c.bad, c.kind, name, err, err, c.want)
			}
		}
	}
}

// TestRequantize quantizes what a quantized model stands for: NF4 of NF4 with the
// same blocks is the same, for the largest number of a block is met exactly, and the
// rounding of the others to bf16 is small against the distance to a threshold.
func TestRequantize(t *testing.T) {
	dir := filepath.Join(golden, "llama-nf4")
	q := mustPlan(t, dir, quant.Options{Type: quant.NF4, Requantize: true})
	base := open(t, dir)
	stored, err := safetensors.Open(filepath.Join(dir, "model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	defer stored.Close()
	if len(base.RawSpecs()) != len(q.View.Specs()) {
		t.Errorf("%d tensors, %d before", len(q.View.Specs()), len(base.RawSpecs()))
	}
	for _, s := range q.View.Specs() {
		section, err := stored.Section(s.Name)
		if err != nil {
			t.Fatal(err)
		}
		want, err := io.ReadAll(io.NewSectionReader(section, 0, s.Size()))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(readAll(t, q.View, s), want) {
			t.Errorf("%s differs", s.Name)
		}
	}
}

// TestRequantizeFP8 quantizes what FP8 stands for as if it were stored so, but that it
// is decoded to the model's 16 bits. What is left alone is written in those.
func TestRequantizeFP8(t *testing.T) {
	const config = `{"dtype": "float16", "quantization_config": {"quant_method": "fp8"}}`
	codes := write(t, config, []tensor.Spec{
		spec("a.q_proj.weight", tensor.F8E4M3, 8, 64), spec("a.q_proj.weight_scale", tensor.BF16, 8, 1),
		spec("a.experts.0.w1.weight", tensor.F8E4M3, 8, 64), spec("a.experts.0.w1.weight_scale", tensor.F32),
	}, func(s tensor.Spec, x []float32) {
		for i := range x {
			x[i] = float32(i%13) - 6.5
		}
	})
	if _, err := quant.Plan(open(t, codes), quant.Options{Type: quant.NF4, Output: "x"}); err == nil || !strings.Contains(err.Error(), "quantized already, as f8_e4m3") {
		t.Errorf("error %v", err)
	}
	q := mustPlan(t, codes, quant.Options{Type: quant.NF4, Requantize: true})
	// The same numbers in float32.
	base := open(t, codes)
	plain := write(t, `{}`, []tensor.Spec{spec("a.q_proj.weight", tensor.F32, 8, 64)}, func(s tensor.Spec, x []float32) {
		codec, _ := block.For(tensor.F32)
		codec.Decode32(x, readAll(t, base, s))
	})
	twin := mustPlan(t, plain, quant.Options{Type: quant.NF4})
	for _, s := range twin.View.Specs() {
		got, want := readAll(t, q.View, s), readAll(t, twin.View, s)
		if strings.Contains(s.Name, "quant_state") {
			want = bytes.Replace(want, []byte("float32"), []byte("float16"), 1)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is %q, want %q", s.Name, got, want)
		}
	}
	for _, s := range q.Plan.Steps {
		if s.Write.Tensor == "a.experts.0.w1.weight" && s.Write.DType != tensor.F16 {
			t.Errorf("the expert is written as %v", s.Write.DType)
		}
	}
	if len(q.Plan.Steps) != len(twin.Plan.Steps)+1 {
		t.Errorf("%d steps", len(q.Plan.Steps))
	}
}

// TestOldConfigs leaves no quantization_config of another tower behind.
func TestOldConfigs(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(golden, "llama-nf4"))); err != nil {
		t.Fatal(err)
	}
	config := `{"model_type": "llama", "text_config": {"quantization_config": {"quant_method": "bitsandbytes"}}}`
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o666); err != nil {
		t.Fatal(err)
	}
	q := mustPlan(t, dir, quant.Options{Type: quant.Int8, Requantize: true})
	for _, s := range q.Layout.Sidecars {
		if n := strings.Count(string(s.Data), "quant_method"); s.Name == "config.json" && n != 1 {
			t.Errorf("%d quantizations in %s", n, s.Data)
		}
	}
}

// TestSizes is the formula of the storage: 4 bits a weight and a scale a block.
func TestSizes(t *testing.T) {
	dir := numbers(t, `{}`, spec("a.weight", tensor.BF16, 1024, 1024))
	const n = 1024 * 1024
	for _, c := range []struct {
		o    quant.Options
		bits float64 // of codes and scales
	}{
		{quant.Options{Type: quant.NF4}, 4 + 32.0/64},
		{quant.Options{Type: quant.NF4, DoubleQuant: true}, 4 + 8.0/64 + 32.0/(64*256)},
		{quant.Options{Type: quant.Int8}, 8 + 32.0/1024},
	} {
		q := mustPlan(t, dir, c.o)
		var size int64
		for _, s := range q.View.Specs() {
			if !strings.Contains(s.Name, "map") && !strings.Contains(s.Name, "state") && !strings.Contains(s.Name, "format") {
				size += s.Size()
			}
		}
		if float64(size) != c.bits*n/8 {
			t.Errorf("%s: %d bytes, want %g", label(c.o), size, c.bits*n/8)
		}
	}
}

// TestFrom guards what is stored of a merge into a base in the same format: what the
// merge leaves alone has the bytes it had, parameters are the base's, and what changes
// is quantized like a model in 16 bits.
func TestFrom(t *testing.T) {
	const changed = "model.layers.0.self_attn.q_proj.weight"
	for _, c := range []struct {
		dir  string
		kind quant.Type
	}{{"llama-nf4-double", quant.NF4}, {"llama-fp4-storage", quant.FP4}, {"llama-int8", quant.Int8}} {
		base := open(t, filepath.Join(golden, c.dir))
		o := quant.Inherit(base, c.kind)
		o.Output = filepath.Join(t.TempDir(), "out")
		again := o
		again.Requantize = true
		config := hfrepo.NewConfig(base.Config).Clone()
		config.DropQuantization()
		o.From = &quant.Source{
			Tensors: base, Config: config, Unchanged: func(name string) bool { return name != changed },
			Metadata: func(map[string]string) map[string]string { return nil },
		}
		q, err := quant.Plan(base, o)
		if err != nil {
			t.Fatal(err)
		}
		twin, err := quant.Plan(base, again)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := len(q.View.Specs()), len(base.RawSpecs()); got != want {
			t.Errorf("%s: %d tensors, the base has %d", c.dir, got, want)
		}
		for _, s := range q.View.Specs() {
			var want opener = base.Stored()
			if strings.HasPrefix(s.Name, strings.TrimSuffix(changed, "weight")) {
				want = twin.View
			}
			if !bytes.Equal(readAll(t, q.View, s), readAll(t, want, s)) {
				t.Errorf("%s: %s has other bytes", c.dir, s.Name)
			}
		}
		if got := len(q.View.Figures()); got != 1 {
			t.Errorf("%s: figures of %d weights, want those of the one that changes", c.dir, got)
		}
	}
}
