package merge_test

import (
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/strictjson"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/quant/block"
)

// model is a base or an adapter in the making: a folder with a config and
// tensors that are given as "name:2x3" or "name:f16:2x3", F32 without a type.
// Values follow from the name and a seed; set overrules them.
type model struct {
	name    string
	config  string
	tensors []string
	seed    string
	set     map[string][]float64
	meta    map[string]string // metadata beside format: pt
	files   map[string]string // more files of the folder
}

// parseTensor takes "name:2x3" and "name:f16:2x3" apart.
func parseTensor(entry string) (tensor.Spec, error) {
	parts := strings.Split(entry, ":")
	s := tensor.Spec{Name: parts[0], DType: tensor.F32}
	if len(parts) == 3 {
		d, err := tensor.ParseFlag(parts[1])
		if err != nil {
			return s, err
		}
		s.DType = d
	}
	if len(parts) < 2 || len(parts) > 3 {
		return s, fmt.Errorf("%q has no shape", entry)
	}
	for _, dim := range strings.Split(parts[len(parts)-1], "x") {
		if dim == "" {
			continue
		}
		n, err := strconv.ParseInt(dim, 10, 64)
		if err != nil {
			return s, err
		}
		s.Shape = append(s.Shape, n)
	}
	return tensor.NewSpec(s.Name, s.DType, s.Shape)
}

// values are n numbers in [-1, 1] that follow from a name. They are multiples
// of 1/8, exact in every type.
func values(name string, n int64) []float64 {
	h := fnv.New64a()
	h.Write([]byte(name))
	rng := rand.New(rand.NewPCG(h.Sum64(), 1))
	v := make([]float64, n)
	for i := range v {
		v[i] = float64(rng.IntN(15)-7) / 8
	}
	return v
}

// encodeFile is the bytes of a safetensors file.
func encodeFile(specs []tensor.Spec, metadata map[string]string, value func(s tensor.Spec) []float64) ([]byte, error) {
	all := map[string]string{"format": "pt"}
	maps.Copy(all, metadata)
	l, err := safetensors.NewLayout(specs, all)
	if err != nil {
		return nil, err
	}
	data := make([]byte, l.Size())
	copy(data, l.Header())
	for _, s := range specs {
		off, _ := l.Offset(s.Name)
		if codec, ok := block.For(s.DType); ok {
			codec.Encode64(data[off:off+s.Size()], value(s))
		}
	}
	return data, nil
}

// write makes the folder and returns its path.
func (m model) write(t *testing.T, weights, config string) string {
	t.Helper()
	name := m.name
	if name == "" {
		name = "model"
	}
	dir := filepath.Join(t.TempDir(), name)
	var specs []tensor.Spec
	for _, entry := range m.tensors {
		s, err := parseTensor(entry)
		if err != nil {
			t.Fatal(err)
		}
		specs = append(specs, s)
	}
	data, err := encodeFile(specs, m.meta, m.values)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Mkdir(dir, 0o777), os.WriteFile(filepath.Join(dir, weights), data, 0o666)); err != nil {
		t.Fatal(err)
	}
	if m.config != "" {
		if err := os.WriteFile(filepath.Join(dir, config), []byte(m.config), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range m.files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// values are those of a tensor.
func (m model) values(s tensor.Spec) []float64 {
	if v, ok := m.set[s.Name]; ok {
		return v
	}
	return values(m.seed+s.Name, s.NumElements())
}

// of are the values of one of the model's tensors, as rows.
func (m model) of(t *testing.T, name string) mat {
	t.Helper()
	for _, entry := range m.tensors {
		if s, err := parseTensor(entry); err == nil && s.Name == name {
			return rowsOf(s.Rows(), s.Cols(), m.values(s))
		}
	}
	t.Fatalf("no tensor %q", name)
	return nil
}

func rowsOf(rows, cols int64, v []float64) mat {
	m := newMat(int(rows), int(cols))
	for i := range m {
		copy(m[i], v[i*int(cols):])
	}
	return m
}

func (m model) openBase(t *testing.T) *checkpoint.Model {
	t.Helper()
	base, err := checkpoint.Open(m.write(t, "model.safetensors", "config.json"), hfrepo.Cache{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { base.Close() })
	return base
}

// openAdapter returns the error of reading the adapter too.
func (m model) openAdapter(t *testing.T) (*adapter.Adapter, error) {
	t.Helper()
	if m.name == "" {
		m.name = "lora"
	}
	source, err := checkpoint.OpenAdapter(m.write(t, "adapter_model.safetensors", "adapter_config.json"), hfrepo.Cache{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { source.Close() })
	return adapter.Open(source)
}

// weighted is an adapter with its weight and, perhaps, its start.
type weighted struct {
	model
	weight float64
	init   *model
}

// planOf opens and plans; an adapter that can't be read is an error too.
func planOf(t *testing.T, base model, adapters []weighted, o merge.Options) (*merge.Merge, error) {
	t.Helper()
	var sources []merge.Source
	for _, w := range adapters {
		a, err := w.openAdapter(t)
		if err != nil {
			return nil, err
		}
		s := merge.Source{Adapter: a, Weight: w.weight}
		if w.init != nil {
			if s.Init, err = w.init.openAdapter(t); err != nil {
				return nil, err
			}
		}
		sources = append(sources, s)
	}
	if o.Output == "" {
		o.Output = "out"
	}
	return merge.Plan(base.openBase(t), sources, o)
}

// result is a merge that was run: its tensors in float64.
type result struct {
	*merge.Merge
	specs map[string]tensor.Spec
	bytes map[string][]byte
}

// merged plans and runs.
func merged(t *testing.T, base model, adapters []weighted, o merge.Options) *result {
	t.Helper()
	m, err := planOf(t, base, adapters, o)
	if err != nil {
		t.Fatal(err)
	}
	r, err := execute(t, m)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// execute runs a plan into memory.
func execute(t *testing.T, m *merge.Merge) (*result, error) {
	t.Helper()
	r := &result{Merge: m, specs: make(map[string]tensor.Spec), bytes: make(map[string][]byte)}
	for _, f := range m.Layout.Files {
		for _, s := range f.Tensors() {
			r.specs[s.Name] = s.Spec
			r.bytes[s.Name] = make([]byte, s.Size())
		}
	}
	var sources []engine.Source
	for _, in := range m.Inputs {
		sources = append(sources, in)
	}
	_, err := engine.Run(t.Context(), m.Plan, sources, &memorySink{r: r}, engine.Options{Jobs: 2, Memory: 16 << 20})
	return r, err
}

// memorySink takes the tensors of a run.
type memorySink struct {
	mu sync.Mutex
	r  *result
}

func (s *memorySink) WriteAt(_ int, name string, p []byte, off int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	all, ok := s.r.bytes[name]
	if !ok || off < 0 || off+int64(len(p)) > int64(len(all)) {
		return fmt.Errorf("%q has no bytes [%d, %d)", name, off, off+int64(len(p)))
	}
	copy(all[off:], p)
	return nil
}

// of are the values of an output tensor.
func (r *result) of(t *testing.T, name string) mat {
	t.Helper()
	s, ok := r.specs[name]
	if !ok {
		t.Fatalf("the output has no %q", name)
	}
	codec, ok := block.For(s.DType)
	if !ok {
		t.Fatalf("%q is %s", name, s.DType)
	}
	v := make([]float64, s.NumElements())
	codec.Decode64(v, r.bytes[name])
	return rowsOf(s.Rows(), s.Cols(), v)
}

// config is the config.json of the output.
func (r *result) config(t *testing.T) hfrepo.Config { return configOf(t, r.Merge) }

// decisions are the codes of the decisions.
func codes(m *merge.Merge) string {
	var all []string
	for _, d := range m.Plan.Decisions {
		all = append(all, d.Code)
	}
	return strings.Join(all, " ")
}

func sidecar(m *merge.Merge, name string) (checkpoint.Sidecar, bool) {
	for _, s := range m.Layout.Sidecars {
		if s.Name == name {
			return s, true
		}
	}
	return checkpoint.Sidecar{}, false
}

// checkRefused asserts a one-line error of a type that the command line knows,
// with every want in it.
func checkRefused(t *testing.T, err error, want ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("not refused; want %q", want)
	}
	_, isInput := errors.AsType[*checkpoint.InputError](err)
	_, isMismatch := errors.AsType[*adapter.MismatchError](err)
	if !isInput && !isMismatch {
		t.Errorf("error %v of type %T is neither an InputError nor a MismatchError", err, err)
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not contain %q", err, w)
		}
	}
	if strings.ContainsAny(err.Error(), "\n\r") {
		t.Errorf("error of several lines: %q", err)
	}
}

// checkTensor compares an output tensor with its twin, for values and factors
// of values: see opTolerance32.
func checkTensor(t *testing.T, r *result, name string, want mat) {
	t.Helper()
	got := r.of(t, name)
	if len(got) != len(want) || len(got) > 0 && len(got[0]) != len(want[0]) {
		t.Fatalf("%s is %d x %d, want %d x %d", name, len(got), len(got[0]), len(want), len(want[0]))
	}
	compare(t, name, got, want, opTolerance32)
}

// product returns scale · b · a.
func product(scale float64, b, a mat) mat {
	m := newMat(len(b), len(a[0]))
	for i := range m {
		for j := range m[i] {
			for k := range a {
				m[i][j] += scale * b[i][k] * a[k][j]
			}
		}
	}
	return m
}

func transpose(m mat) mat {
	x := newMat(len(m[0]), len(m))
	for i := range m {
		for j := range m[i] {
			x[j][i] = m[i][j]
		}
	}
	return x
}

// plus returns a + s·b.
func plus(a mat, s float64, b mat) mat {
	m := a.clone()
	for i := range m {
		for j := range m[i] {
			m[i][j] += s * b[i][j]
		}
	}
	return m
}

// lora is a LoRA config of rank 2 and scale 2 with more members.
func lora(more string) string {
	if more != "" {
		more = "," + more
	}
	return `{"peft_type":"LORA","r":2,"lora_alpha":4` + more + `}`
}

// pair are the names of LoRA factors of rank 2 for a weight of out x in.
func pair(module string, out, in int) []string {
	return []string{
		fmt.Sprintf("base_model.model.%s.lora_A.weight:2x%d", module, in),
		fmt.Sprintf("base_model.model.%s.lora_B.weight:%dx2", module, out),
	}
}

// embeddingPair are those of an embedding of rows x cols.
func embeddingPair(module string, rows, cols int) []string {
	return []string{
		fmt.Sprintf("base_model.model.%s.lora_embedding_A:2x%d", module, rows),
		fmt.Sprintf("base_model.model.%s.lora_embedding_B:%dx2", module, cols),
	}
}

func concat(lists ...[]string) []string {
	var all []string
	for _, l := range lists {
		all = append(all, l...)
	}
	return all
}

// change is what a LoRA pair adds to a linear weight, at weight 1.
func (m model) change(t *testing.T, module string) mat {
	t.Helper()
	p := "base_model.model." + module
	return product(2, m.of(t, p+".lora_B.weight"), m.of(t, p+".lora_A.weight"))
}

// embeddingChange is what a LoRA pair adds to an embedding.
func (m model) embeddingChange(t *testing.T, module string) mat {
	t.Helper()
	p := "base_model.model." + module
	return transpose(product(2, m.of(t, p+".lora_embedding_B"), m.of(t, p+".lora_embedding_A")))
}

// configOf parses the config.json that a merge will write.
func configOf(t *testing.T, m *merge.Merge) hfrepo.Config {
	t.Helper()
	s, ok := sidecar(m, "config.json")
	if !ok {
		t.Fatal("no config.json")
	}
	return parseConfig(t, s.Data)
}

// configOf is the model's own config.
func (m model) configOf(t *testing.T) hfrepo.Config {
	t.Helper()
	return parseConfig(t, []byte(m.config))
}

func parseConfig(t *testing.T, data []byte) hfrepo.Config {
	t.Helper()
	o, err := strictjson.ParseObject(data)
	if err != nil {
		t.Fatal(err)
	}
	return hfrepo.NewConfig(o)
}
