package extract_test

import (
	"context"
	"encoding/json"
	"errors"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/extract"
	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/plan"
	"github.com/loratool/loratool/quant/block"
)

// array is a tensor of a test's model.
type array struct {
	shape  tensor.Shape
	dtype  tensor.DType
	values []float64
}

// model is a checkpoint in the making: tensors by name, in their order.
type model struct {
	config  map[string]any
	names   []string
	tensors map[string]array
}

func newModel(config map[string]any) *model {
	return &model{config: config, tensors: make(map[string]array)}
}

// add adds a tensor of noise that depends on nothing but its name.
func (m *model) add(name string, d tensor.DType, shape ...int64) {
	h := fnv.New64a()
	h.Write([]byte(name)) // never fails
	rng := rand.New(rand.NewPCG(h.Sum64(), 7))
	n, _ := tensor.Shape(shape).NumElements()
	values := make([]float64, n)
	for i := range values {
		values[i] = rng.NormFloat64() * 0.05
	}
	m.set(name, d, values, shape...)
}

func (m *model) set(name string, d tensor.DType, values []float64, shape ...int64) {
	if _, ok := m.tensors[name]; !ok {
		m.names = append(m.names, name)
	}
	m.tensors[name] = array{shape, d, values}
}

func (m *model) remove(name string) {
	delete(m.tensors, name)
	var kept []string
	for _, n := range m.names {
		if n != name {
			kept = append(kept, n)
		}
	}
	m.names = kept
}

// clone returns a copy that can be changed on its own.
func (m *model) clone() *model {
	c := newModel(make(map[string]any))
	for k, v := range m.config {
		c.config[k] = v
	}
	for _, name := range m.names {
		a := m.tensors[name]
		c.set(name, a.dtype, append([]float64(nil), a.values...), a.shape...)
	}
	return c
}

// shift adds noise of full rank to a tensor.
func (m *model) shift(name string, size float64, seed uint64) {
	a := m.tensors[name]
	rng := rand.New(rand.NewPCG(seed, 11))
	for i := range a.values {
		a.values[i] += size * rng.NormFloat64()
	}
}

// shiftAll shifts every floating-point tensor.
func (m *model) shiftAll(size float64) {
	for i, name := range m.names {
		if m.tensors[name].dtype.IsFloat() {
			m.shift(name, size, uint64(i))
		}
	}
}

// write stores the model as a folder and opens it.
func (m *model) write(t *testing.T, dir string) *checkpoint.Model {
	t.Helper()
	if err := os.MkdirAll(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	var specs []tensor.Spec
	for _, name := range m.names {
		specs = append(specs, tensor.Spec{Name: name, DType: m.tensors[name].dtype, Shape: m.tensors[name].shape})
	}
	l, err := safetensors.NewLayout(specs, map[string]string{"format": "pt"})
	if err != nil {
		t.Fatal(err)
	}
	data := append(l.Header(), make([]byte, l.Size()-int64(len(l.Header())))...)
	for _, s := range specs {
		off, _ := l.Offset(s.Name)
		if codec, ok := block.For(s.DType); ok {
			codec.Encode64(data[off:off+s.Size()], m.tensors[s.Name].values)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "model.safetensors"), data, 0o666); err != nil {
		t.Fatal(err)
	}
	if m.config != nil {
		text, err := json.Marshal(m.config)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "config.json"), text, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	return openModel(t, dir)
}

func openModel(t *testing.T, dir string) *checkpoint.Model {
	t.Helper()
	m, err := checkpoint.Open(dir, hfrepo.Cache{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// values decodes a tensor of an opened model.
func values(t *testing.T, m *checkpoint.Model, name string) []float64 {
	t.Helper()
	spec, ok := m.Lookup(name)
	if !ok {
		t.Fatalf("%s has no tensor %q", m.Name, name)
	}
	src, err := m.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	read, err := engine.ReadMatrix[float64](src, plan.Whole(0, spec))
	if err != nil {
		t.Fatal(err)
	}
	return read.Data
}

// llama is a model with every kind of tensor that most models have.
func llama(d tensor.DType) *model {
	m := newModel(map[string]any{
		"model_type": "llama", "architectures": []string{"LlamaForCausalLM"}, "num_hidden_layers": 2,
		"tie_word_embeddings": false, "vocab_size": 40,
	})
	m.add("model.embed_tokens.weight", d, 40, 24)
	for _, l := range []string{"0", "1"} {
		p := "model.layers." + l + "."
		m.add(p+"self_attn.q_proj.weight", d, 32, 24)
		m.add(p+"self_attn.k_proj.weight", d, 16, 24)
		m.add(p+"self_attn.o_proj.weight", d, 24, 32)
		m.add(p+"mlp.up_proj.weight", d, 44, 24)
		m.add(p+"mlp.down_proj.weight", d, 24, 44)
		m.add(p+"input_layernorm.weight", d, 24)
	}
	m.add("model.norm.weight", d, 24)
	m.add("lm_head.weight", d, 40, 24)
	return m
}

// linears are the names of a model's linear layers.
func linears(m *model) []string {
	var all []string
	for _, name := range m.names {
		if strings.HasSuffix(name, "_proj.weight") {
			all = append(all, name)
		}
	}
	return all
}

// pairOf writes two models and opens them.
func pairOf(t *testing.T, base, tuned *model) (*checkpoint.Model, *checkpoint.Model) {
	t.Helper()
	dir := t.TempDir()
	return base.write(t, filepath.Join(dir, "base")), tuned.write(t, filepath.Join(dir, "tuned"))
}

// run surveys, plans and writes, and returns the extraction with its adapter.
func run(t *testing.T, base, tuned *checkpoint.Model, o extract.Options, e engine.Options) (*extract.Extraction, string) {
	t.Helper()
	x, out, err := tryRun(t, base, tuned, o, e)
	if err != nil {
		t.Fatal(err)
	}
	return x, out
}

func tryRun(t *testing.T, base, tuned *checkpoint.Model, o extract.Options, e engine.Options) (*extract.Extraction, string, error) {
	t.Helper()
	if o.Output == "" {
		o.Output = filepath.Join(t.TempDir(), "lora")
	}
	s, err := extract.Open(base, tuned, o)
	if err != nil {
		return nil, "", err
	}
	store, err := s.NewStore(fsatomic.OS{}, false)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	}()
	x, err := finish(t.Context(), s, store, e)
	if err != nil {
		return nil, "", err
	}
	if left, err := os.ReadDir(filepath.Dir(o.Output)); err != nil || len(left) != 2 {
		t.Errorf("beside the output: %v, %v", left, err) // the work folder is one of the two
	}
	return x, o.Output, nil
}

// finish runs the tasks that are left and writes the adapter.
func finish(ctx context.Context, s *extract.Survey, store *extract.Store, e engine.Options) (*extract.Extraction, error) {
	if err := engine.Each(ctx, s.Tasks(store), e); err != nil {
		return nil, err
	}
	x, err := s.Plan(store)
	if err != nil {
		return nil, err
	}
	sink, err := checkpoint.Create(fsatomic.OS{}, x.Layout, false)
	if err != nil {
		return nil, err
	}
	sources := make([]engine.Source, len(x.Inputs))
	for i, in := range x.Inputs {
		sources[i] = in
	}
	report, err := engine.Run(ctx, x.Plan, sources, oneSink{sink}, e)
	if err != nil {
		return nil, errors.Join(err, sink.Abort())
	}
	return x, sink.Commit(x.SetHashes(report.Hashes))
}

type oneSink struct{ *checkpoint.Sink }

func (s oneSink) WriteAt(_ int, name string, p []byte, off int64) error {
	return s.Sink.WriteAt(name, p, off)
}

// mergeBack merges an adapter into the base, in float32, and opens the result.
func mergeBack(t *testing.T, base *checkpoint.Model, adapterDir string, d tensor.DType) *checkpoint.Model {
	t.Helper()
	am, err := checkpoint.OpenAdapter(adapterDir, hfrepo.Cache{})
	if err != nil {
		t.Fatal(err)
	}
	defer am.Close()
	a, err := adapter.Open(am)
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "merged")
	m, err := merge.Plan(base, []merge.Source{{Adapter: a, Weight: 1}}, merge.Options{Output: out, DType: d})
	if err != nil {
		t.Fatal(err)
	}
	sink, err := checkpoint.Create(fsatomic.OS{}, m.Layout, false)
	if err != nil {
		t.Fatal(err)
	}
	sources := make([]engine.Source, len(m.Inputs))
	for i, in := range m.Inputs {
		sources[i] = in
	}
	report, err := engine.Run(t.Context(), m.Plan, sources, oneSink{sink}, engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := sink.Commit(m.SetHashes(report.Hashes)); err != nil {
		t.Fatal(err)
	}
	return openModel(t, out)
}

// distance returns ||a - b|| and ||b||.
func distance(a, b []float64) (d, norm float64) {
	for i := range b {
		d += (a[i] - b[i]) * (a[i] - b[i])
		norm += b[i] * b[i]
	}
	return math.Sqrt(d), math.Sqrt(norm)
}

// module returns the certificate of a module.
func module(t *testing.T, x *extract.Extraction, name string) extract.Module {
	t.Helper()
	for _, m := range x.Certificate.Modules {
		if m.Name == name {
			return m
		}
	}
	t.Fatalf("the certificate has no module %q", name)
	return extract.Module{}
}

// forms returns how each item is held, by name.
func forms(x *extract.Extraction) map[string]string {
	all := make(map[string]string)
	for _, m := range x.Certificate.Modules {
		all[m.Name] = m.Form
	}
	return all
}
