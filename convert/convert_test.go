package convert_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/loratool/loratool/convert"
	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/quant/block"
)

var golden = filepath.Join("..", "testdata", "golden")

// stored is a tensor of a model in the making.
type stored struct {
	name  string
	dtype tensor.DType
	shape tensor.Shape
	data  []byte
}

// floats encodes numbers as a tensor.
func floats(name string, d tensor.DType, shape tensor.Shape, values ...float64) stored {
	codec, _ := block.For(d)
	data := make([]byte, len(values)*int(d.Bits()/8))
	codec.Encode64(data, values)
	return stored{name, d, shape, data}
}

// writeModel makes a folder of the tensors, with the files beside them.
func writeModel(t *testing.T, weights string, files map[string]string, tensors ...stored) string {
	t.Helper()
	dir := t.TempDir()
	var specs []tensor.Spec
	for _, s := range tensors {
		specs = append(specs, tensor.Spec{Name: s.name, DType: s.dtype, Shape: s.shape})
	}
	l, err := safetensors.NewLayout(specs, map[string]string{"format": "pt"})
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, l.Size())
	copy(data, l.Header())
	for _, s := range tensors {
		at, _ := l.Offset(s.name)
		copy(data[at:], s.data)
	}
	write := func(name string, data []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	write(weights, data)
	for name, text := range files {
		write(name, []byte(text))
	}
	return dir
}

func open(t *testing.T, path string) *checkpoint.Model {
	t.Helper()
	m, err := checkpoint.Open(path, hfrepo.Cache{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// result is a conversion with the tensors that it made.
type result struct {
	*convert.Conversion
	source *checkpoint.Model
	report engine.Report
	mu     sync.Mutex
	data   map[string][]byte
	specs  map[string]tensor.Spec
}

func (r *result) WriteAt(_ int, name string, p []byte, off int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	copy(r.data[name][off:], p)
	return nil
}

func run(t *testing.T, path string, o convert.Options) (*result, error) {
	t.Helper()
	if o.Output == "" {
		o.Output = filepath.Join(t.TempDir(), "out")
	}
	source := open(t, path)
	c, err := convert.Plan(source, o)
	if err != nil {
		return nil, err
	}
	r := &result{Conversion: c, source: source, data: make(map[string][]byte), specs: make(map[string]tensor.Spec)}
	for i := range c.Layout.Files {
		for _, s := range c.Layout.Files[i].Tensors() {
			r.data[s.Name], r.specs[s.Name] = make([]byte, s.Size()), s.Spec
		}
	}
	r.report, err = engine.Run(t.Context(), c.Plan, []engine.Source{source}, r, engine.Options{Jobs: 2})
	return r, err
}

func mustRun(t *testing.T, path string, o convert.Options) *result {
	t.Helper()
	r, err := run(t, path, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// codes are the decisions of a plan.
func (r *result) codes() string {
	var codes []string
	for _, d := range r.Plan.Decisions {
		codes = append(codes, d.Code)
	}
	return strings.Join(codes, " ")
}

// sidecar returns a file beside the weights.
func (r *result) sidecar(t *testing.T, name string) string {
	t.Helper()
	for _, s := range r.Layout.Sidecars {
		if s.Name != name {
			continue
		}
		if s.Source == "" {
			return string(s.Data)
		}
		data, err := os.ReadFile(s.Source)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	t.Fatalf("no %s in the output", name)
	return ""
}

// TestCast casts every type of real numbers to every type that can be written, and
// compares with the numbers rounded one at a time from float64. What is no real number
// stays.
func TestCast(t *testing.T) {
	values := []float64{0, math.Copysign(0, -1), 1, -1.0009765625, 1.00146484375, 0.1, 448, -5.9604644775390625e-08, 1e-30, math.Inf(1), math.NaN(), 3}
	sources := []tensor.DType{tensor.F64, tensor.F32, tensor.F16, tensor.BF16, tensor.F8E4M3, tensor.F8E5M2}
	var tensors []stored
	for _, d := range sources {
		tensors = append(tensors, floats(d.String(), d, tensor.Shape{3, 4}, values...))
	}
	ids := stored{"ids", tensor.I64, tensor.Shape{2}, []byte("0123456789abcdef")}
	mask := stored{"mask", tensor.Bool, tensor.Shape{3}, []byte{0, 1, 1}}
	empty := stored{"empty", tensor.F32, tensor.Shape{0, 4}, nil}
	one := floats("scalar", tensor.F32, tensor.Shape{}, 0.3)
	dir := writeModel(t, "model.safetensors", map[string]string{"config.json": `{"model_type":"llama","torch_dtype":"auto"}`},
		append(tensors, ids, mask, empty, one)...)
	for _, out := range []tensor.DType{tensor.F16, tensor.BF16, tensor.F32, tensor.F64} {
		r := mustRun(t, dir, convert.Options{DType: out})
		to, _ := block.For(out)
		for _, s := range append(slices.Clone(tensors), one) {
			from, _ := block.For(s.dtype)
			n := len(s.data) / int(s.dtype.Bits()/8)
			want := make([]byte, n*int(out.Bits()/8))
			for i := range n {
				var x [1]float64
				from.Decode64(x[:], s.data[i*int(s.dtype.Bits()/8):][:s.dtype.Bits()/8])
				to.Encode64(want[i*int(out.Bits()/8):][:out.Bits()/8], x[:])
			}
			if r.specs[s.name].DType != out || !bytes.Equal(r.data[s.name], want) {
				t.Errorf("%s to %s: %x as %s, want %x", s.name, out, r.data[s.name], r.specs[s.name].DType, want)
			}
		}
		if r.specs["ids"].DType != tensor.I64 || !bytes.Equal(r.data["ids"], ids.data) || !bytes.Equal(r.data["mask"], mask.data) {
			t.Errorf("to %s: integers or masks changed", out)
		}
		if r.codes() != "not-floating" {
			t.Errorf("decisions %q", r.codes())
		}
		name := map[tensor.DType]string{tensor.F16: "float16", tensor.BF16: "bfloat16", tensor.F32: "float32", tensor.F64: "float64"}[out]
		if config := r.sidecar(t, "config.json"); !strings.Contains(config, `"torch_dtype": "`+name+`"`) {
			t.Errorf("to %s: config %s", out, config)
		}
	}
}

// TestOverflow guards that a finite value is never written as infinity, and that those
// that are infinite already are let through.
func TestOverflow(t *testing.T) {
	dir := writeModel(t, "model.safetensors", nil,
		floats("fits", tensor.F32, tensor.Shape{3}, 65504, math.Inf(-1), math.NaN()),
		floats("large", tensor.BF16, tensor.Shape{2, 2}, 1, 2, 3, -70000))
	_, err := run(t, dir, convert.Options{DType: tensor.F16})
	if bad, ok := errors.AsType[*engine.NonFiniteError](err); !ok || bad.Tensor != "large" || bad.Row != 1 || bad.Count != 1 {
		t.Errorf("got %v, want the error of a value in row 1 of large", err)
	}
	mustRun(t, dir, convert.Options{DType: tensor.F32})
	dir = writeModel(t, "model.safetensors", nil, floats("wide", tensor.F64, tensor.Shape{1}, 1e39))
	for _, d := range []tensor.DType{tensor.F32, tensor.BF16} {
		if _, err := run(t, dir, convert.Options{DType: d}); err == nil {
			t.Errorf("1e39 has become %s", d)
		}
	}
}

// TestRestored compares what the codes of bitsandbytes become with what it decoded
// itself when the golden data was made.
func TestRestored(t *testing.T) {
	for _, name := range []string{"llama-nf4", "llama-nf4-double", "llama-fp4-storage", "llama-int8", "gpt2-int8"} {
		values := open(t, filepath.Join(golden, "bnb", name+".values.safetensors"))
		for _, d := range []tensor.DType{tensor.NoDType, tensor.F32} {
			r := mustRun(t, filepath.Join(golden, "bnb", name), convert.Options{DType: d})
			for _, s := range values.Specs() {
				src, err := values.Open(s.Name)
				if err != nil {
					t.Fatal(err)
				}
				raw, err := io.ReadAll(io.NewSectionReader(src, 0, s.Size()))
				if err != nil {
					t.Fatal(err)
				}
				codec, _ := block.For(s.DType)
				x, spec := make([]float64, s.NumElements()), r.specs[s.Name]
				codec.Decode64(x, raw)
				as, _ := block.For(spec.DType)
				want := make([]byte, spec.Size())
				as.Encode64(want, x)
				if d != tensor.NoDType && spec.DType != d || !slices.Equal(spec.Shape, s.Shape) || !bytes.Equal(r.data[s.Name], want) {
					t.Errorf("%s %q: not bitsandbytes' values, as %s", name, s.Name, spec.DType)
				}
			}
			if config := r.sidecar(t, "config.json"); strings.Contains(config, "quantization_config") || !strings.Contains(r.codes(), "quantized-restored") {
				t.Errorf("%s: decisions %q, config %s", name, r.codes(), config)
			}
		}
	}
}

// TestFP8 multiplies the scales of blocks of 128 in, one product per element.
func TestFP8(t *testing.T) {
	folder := filepath.Join(golden, "peft", "bases", "fp8-block")
	r := mustRun(t, folder, convert.Options{})
	file, err := safetensors.Open(filepath.Join(folder, "model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	read := func(name string) (tensor.Spec, []float32) {
		s, ok := file.Lookup(name)
		if !ok {
			t.Fatalf("no %q", name)
		}
		src, err := file.Section(name)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := io.ReadAll(io.NewSectionReader(src, 0, s.Size()))
		if err != nil {
			t.Fatal(err)
		}
		codec, _ := block.For(s.DType)
		x := make([]float32, s.NumElements())
		codec.Decode32(x, raw)
		return s.Spec, x
	}
	restored := 0
	for _, s := range file.Tensors() {
		got, there := r.specs[s.Name]
		if strings.HasSuffix(s.Name, "_scale_inv") {
			if there {
				t.Errorf("%q is still there", s.Name)
			}
			continue
		}
		if s.DType != tensor.F8E4M3 {
			if got.DType != s.DType {
				t.Errorf("%q has become %s", s.Name, got.DType)
			}
			continue
		}
		restored++
		_, x := read(s.Name)
		scale, factors := read(s.Name + "_scale_inv")
		cols, norm := s.Shape[1], 0.0
		for i := range x {
			row, col := int64(i)/cols, int64(i)%cols
			x[i] *= factors[row/128*scale.Shape[1]+col/128]
			norm += float64(x[i]) * float64(x[i])
		}
		at := slices.IndexFunc(r.report.Tensors, func(t engine.TensorReport) bool { return t.Tensor == s.Name })
		// Sums of squares in float64, in whatever order: 2^-53 for each of at most 2^15 terms.
		if got := r.report.Tensors[at].BaseNorm; math.Abs(got-math.Sqrt(norm)) > 0x1p-38*got {
			t.Errorf("%q: norm %v before rounding, want %v", s.Name, got, math.Sqrt(norm))
		}
		want := make([]byte, 2*len(x))
		codec, _ := block.For(tensor.BF16)
		codec.Encode32(want, x)
		if got.DType != tensor.BF16 || !bytes.Equal(r.data[s.Name], want) {
			t.Errorf("%q: other values, as %s", s.Name, got.DType)
		}
	}
	if restored != 6 {
		t.Errorf("%d tensors restored, want 6", restored)
	}
	if config := r.sidecar(t, "config.json"); strings.Contains(config, "quantization_config") || !strings.Contains(config, `"dtype": "bfloat16"`) {
		t.Errorf("config %s", config)
	}
	if want := "fp8-restored left-out"; r.codes() != want {
		t.Errorf("decisions %q, want %q", r.codes(), want)
	}
}

// TestRestoredAs guards which type restored weights get when none is asked for, and
// that files about their quantization go with it, and only then.
func TestRestoredAs(t *testing.T) {
	quantized := []stored{floats("x.weight", tensor.F8E4M3, tensor.Shape{2, 2}, 1, 2, 3, 4), floats("x.weight_scale", tensor.F32, tensor.Shape{}, 2)}
	for _, c := range []struct {
		dtype, codes string
		tensors      []stored
		want         tensor.DType
	}{
		{"float16", "fp8-restored left-out", quantized, tensor.F16},
		{"float32", "fp8-restored left-out", quantized, tensor.BF16},
		{"auto", "fp8-restored left-out", quantized, tensor.BF16},
		{"float16", "", []stored{floats("x.weight", tensor.F32, tensor.Shape{1}, 1)}, tensor.F32},
	} {
		dir := writeModel(t, "model.safetensors", map[string]string{"config.json": `{"dtype":"` + c.dtype + `"}`, "hf_quant_config.json": "{}"}, c.tensors...)
		r := mustRun(t, dir, convert.Options{})
		kept := strings.Contains(sidecars(r), "hf_quant_config.json")
		if got := r.specs["x.weight"].DType; got != c.want || r.codes() != c.codes || kept != (c.codes == "") {
			t.Errorf("%s: %s, want %s; decisions %q, want %q; files %s", c.dtype, got, c.want, r.codes(), c.codes, sidecars(r))
		}
	}
}

// TestKept guards what a conversion does not touch: without a type every byte, and the
// config with its spelling; of an adapter its config and the name of its weights.
func TestKept(t *testing.T) {
	config := "{ \"model_type\" : \"llama\",\n\n \"torch_dtype\": \"float16\" }"
	x := floats("x.weight", tensor.F8E4M3, tensor.Shape{2, 2}, 1, 2, 3, 4) // plain: nothing says that it is quantized
	dir := writeModel(t, "model.safetensors", map[string]string{"config.json": config, "tokenizer.json": "{}", "adapter_config.json": "{}"}, x)
	r := mustRun(t, dir, convert.Options{})
	if r.specs["x.weight"].DType != tensor.F8E4M3 || !bytes.Equal(r.data["x.weight"], x.data) || r.sidecar(t, "config.json") != config {
		t.Error("a conversion to nothing changed something")
	}
	if names := sidecars(r); names != "config.json tokenizer.json README.md" {
		t.Errorf("files %s", names)
	}

	adapter := `{"peft_type":"LORA","r":1,"base_model_name_or_path":"a/b"}`
	a := floats("base_model.model.x.lora_A.weight", tensor.F32, tensor.Shape{1, 2}, 0.5, 0.25)
	dir = writeModel(t, "adapter_model.safetensors", map[string]string{"config.json": config, "adapter_config.json": adapter}, a)
	r = mustRun(t, dir, convert.Options{DType: tensor.BF16})
	if got := r.Layout.Files[0].Name; got != "adapter_model.safetensors" || r.sidecar(t, "adapter_config.json") != adapter {
		t.Errorf("the adapter's weights are %s", got)
	}
	if names := sidecars(r); names != "adapter_config.json README.md" {
		t.Errorf("files %s", names)
	}
	if r.specs[a.name].DType != tensor.BF16 {
		t.Errorf("the adapter is %s", r.specs[a.name].DType)
	}
}

func sidecars(r *result) string {
	var names []string
	for _, s := range r.Layout.Sidecars {
		names = append(names, s.Name)
	}
	return strings.Join(names, " ")
}

// TestCard guards what an output says of its input: with names and hashes, or without
// either.
func TestCard(t *testing.T) {
	card := "---\nlicense: mit\nbase_model: org/name\npipeline_tag: text-generation\n---\n\n# Old\n"
	dir := writeModel(t, "model.safetensors", map[string]string{"config.json": "{}", "README.md": card}, floats("x", tensor.F32, tensor.Shape{1}, 1))
	weights := filepath.Join(dir, "model.safetensors")
	r := mustRun(t, dir, convert.Options{DType: tensor.BF16, Version: "1.2"})
	hashes := map[string]string{weights: strings.Repeat("ab", 32), filepath.Join(dir, "config.json"): strings.Repeat("cd", 32)}
	before := r.Metadata(nil)["loratool"]
	after := r.SetHashes(hashes)["loratool"]
	if len(before) != len(after) || !strings.Contains(after, `"model.safetensors": "`+strings.Repeat("ab", 32)) || !strings.Contains(after, `"command": "convert"`) {
		t.Errorf("provenance %s, was %s", after, before)
	}
	last := r.Layout.Sidecars[len(r.Layout.Sidecars)-1]
	text := string(last.Final())
	for _, want := range []string{"license: mit", "- org/name", "pipeline_tag: text-generation", "as bf16", strings.Repeat("ab", 32)} {
		if !strings.Contains(text, want) {
			t.Errorf("the card lacks %q: %s", want, text)
		}
	}
	if len(text) != len(last.Data) {
		t.Errorf("the card has %d bytes, was laid out with %d", len(text), len(last.Data))
	}
	again := writeModel(t, "model.safetensors", nil)
	if err := os.WriteFile(filepath.Join(again, "model.safetensors"), safetensorsWith(t, map[string]string{"loratool": "first", "by": "someone"}), 0o666); err != nil {
		t.Fatal(err)
	}
	if md := mustRun(t, again, convert.Options{}).Metadata(nil); md["by"] != "someone" || !strings.Contains(md["loratool"], `"previous": "first"`) {
		t.Errorf("metadata of a second conversion: %v", md)
	}
	if md := mustRun(t, again, convert.Options{NoProvenance: true}).Metadata(nil); md["by"] != "someone" || md["loratool"] != "" {
		t.Errorf("metadata without provenance: %v", md)
	}
	r = mustRun(t, dir, convert.Options{DType: tensor.BF16, NoProvenance: true})
	text = r.sidecar(t, "README.md")
	if len(r.Metadata(nil)) != 1 || strings.Contains(text, "org/name") || strings.Contains(text, filepath.Base(dir)) || !strings.Contains(text, "license: mit") {
		t.Errorf("metadata %v, card %s", r.Metadata(nil), text)
	}
}

// safetensorsWith is a file without tensors.
func safetensorsWith(t *testing.T, metadata map[string]string) []byte {
	t.Helper()
	l, err := safetensors.NewLayout(nil, metadata)
	if err != nil {
		t.Fatal(err)
	}
	return l.Header()
}

// TestRefusals has what can't be converted, and what the error has to name.
func TestRefusals(t *testing.T) {
	x := floats("x.weight", tensor.F16, tensor.Shape{2, 2}, 1, 2, 3, 4)
	codes := stored{"x.qweight", tensor.I32, tensor.Shape{1}, []byte{1, 2, 3, 4}}
	eight := floats("y.weight", tensor.F8E4M3, tensor.Shape{1, 1}, 1)
	micro := stored{"z.scales", tensor.F8E8M0, tensor.Shape{2}, []byte{1, 2}}
	for _, c := range []struct {
		name, config string
		tensors      []stored
		o            convert.Options
		want         string
	}{
		{"another quantizer", `{"quantization_config":{"quant_method":"gptq","bits":4}}`, []stored{x, codes}, convert.Options{DType: tensor.F16}, `quantized ("gptq")`},
		{"another quantizer, no type", `{"quantization_config":{"quant_method":"awq"}}`, []stored{x, codes}, convert.Options{}, `quantized ("awq")`},
		{"FP8 without a scale", `{"quantization_config":{"quant_method":"fp8"}}`, []stored{eight}, convert.Options{}, `"y.weight" is FP8 without a scale`},
		{"scales of microscaling", `{}`, []stored{x, micro}, convert.Options{DType: tensor.BF16}, `"z.scales" is F8_E8M0`},
		{"a type that is no weight's", `{}`, []stored{x}, convert.Options{DType: tensor.I32}, `dtype: "i32"`},
		{"FP8", `{}`, []stored{x}, convert.Options{DType: tensor.F8E4M3}, `dtype: "f8_e4m3"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := writeModel(t, "model.safetensors", map[string]string{"config.json": c.config}, c.tensors...)
			if _, err := run(t, dir, c.o); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one that says %s", err, c.want)
			}
		})
	}
	adapter := writeModel(t, "adapter_model.safetensors", map[string]string{"adapter_config.json": "{}"}, x)
	if _, err := run(t, adapter, convert.Options{ShardSize: 1}); err == nil || !strings.Contains(err.Error(), "shard-size") {
		t.Errorf("shards of an adapter: %v", err)
	}
}

// TestShards guards the order of tensors over files, and that a type that is half as
// wide takes half the files.
func TestShards(t *testing.T) {
	var tensors []stored
	for i := range 8 {
		tensors = append(tensors, floats(fmt.Sprintf("t%d", i), tensor.F32, tensor.Shape{4}, 1, 2, 3, float64(i)))
	}
	dir := writeModel(t, "model.safetensors", nil, tensors...)
	for _, c := range []struct {
		d     tensor.DType
		files int
	}{{tensor.NoDType, 4}, {tensor.BF16, 2}, {tensor.F64, 8}} {
		r := mustRun(t, dir, convert.Options{DType: c.d, ShardSize: 32})
		if len(r.Layout.Files) != c.files {
			t.Errorf("%d files as %s, want %d", len(r.Layout.Files), c.d, c.files)
		}
	}
}
