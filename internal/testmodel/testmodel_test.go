package testmodel_test

import (
	"bytes"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/testmodel"
	"github.com/loratool/loratool/quant/block"
)

// write makes a tiny model and returns its folder.
func write(t *testing.T, o testmodel.Options) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "model")
	if err := testmodel.Tiny().Write(dir, o); err != nil {
		t.Fatal(err)
	}
	return dir
}

func open(t *testing.T, dir string) *checkpoint.Model {
	t.Helper()
	m, err := checkpoint.Open(dir, hfrepo.Cache{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func read(t *testing.T, m *checkpoint.Model, spec tensor.Spec) []byte {
	t.Helper()
	src, err := m.Open(spec.Name)
	if err != nil {
		t.Fatal(err)
	}
	p, err := io.ReadAll(io.NewSectionReader(src, 0, spec.Size()))
	if err != nil || int64(len(p)) != spec.Size() {
		t.Fatalf("%s: %d bytes, %v", spec.Name, len(p), err)
	}
	return p
}

// What is written must be what the reader of real models takes, in one file and
// in several.
func TestModelOpens(t *testing.T) {
	for _, shardSize := range []int64{0, 50_000} {
		m := open(t, write(t, testmodel.Options{ShardSize: shardSize}))
		got := slices.Clone(m.Specs())
		want := testmodel.Tiny().Specs()
		byName := func(a, b tensor.Spec) int { return bytes.Compare([]byte(a.Name), []byte(b.Name)) }
		slices.SortFunc(got, byName)
		slices.SortFunc(want, byName)
		if !slices.EqualFunc(got, want, func(a, b tensor.Spec) bool {
			return a.Name == b.Name && a.DType == b.DType && a.Shape.Equal(b.Shape)
		}) {
			t.Errorf("shards of %d: tensors %v, want %v", shardSize, got, want)
		}
		if config := hfrepo.NewConfig(m.Config); config.ModelType() != "llama" {
			t.Errorf("shards of %d: model type %q", shardSize, config.ModelType())
		}
	}
}

func TestAdapterOpens(t *testing.T) {
	m := testmodel.Tiny()
	for layers, want := range map[int64]int{0: 14, 1: 7} {
		dir := filepath.Join(t.TempDir(), "adapter")
		l := testmodel.LoRA{Rank: 4, Layers: layers}
		if err := l.Write(dir, m, 1); err != nil {
			t.Fatal(err)
		}
		source, err := checkpoint.OpenAdapter(dir, hfrepo.Cache{})
		if err != nil {
			t.Fatal(err)
		}
		defer source.Close()
		if _, err := adapter.Open(source); err != nil {
			t.Errorf("%d layers: %v", layers, err)
		}
		if got := len(l.Targets(m)); got != want || len(source.Specs()) != 2*want {
			t.Errorf("%d layers: %d targets and %d tensors, want %d and %d", layers, got, len(source.Specs()), want, 2*want)
		}
	}
}

// Equal seeds must give equal files, other seeds other ones.
func TestSeeds(t *testing.T) {
	weights := func(seed uint64) []byte {
		p, err := os.ReadFile(filepath.Join(write(t, testmodel.Options{Seed: seed}), "model.safetensors"))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	first := weights(1)
	if !bytes.Equal(first, weights(1)) {
		t.Error("the same seed gives other bytes")
	}
	if bytes.Equal(first, weights(2)) {
		t.Error("another seed gives the same bytes")
	}
}

// The values must have the size of real weights: a merge whose change is lost in
// rounding, or larger than the base, would be another benchmark.
func TestDistribution(t *testing.T) {
	m := open(t, write(t, testmodel.Options{}))
	spec, _ := m.Lookup("model.embed_tokens.weight")
	values := make([]float64, spec.NumElements())
	codec, _ := block.For(spec.DType)
	codec.Decode64(values, read(t, m, spec))
	var sum, squares float64
	for _, v := range values {
		sum += v
		squares += v * v
	}
	n := float64(len(values))
	// Five standard errors: of a mean, and of a deviation of a normal sample.
	const deviation = 0.02
	if mean := sum / n; math.Abs(mean) > 5*deviation/math.Sqrt(n) {
		t.Errorf("mean %g", mean)
	}
	if got := math.Sqrt(squares / n); math.Abs(got-deviation) > 5*deviation/math.Sqrt(2*n) {
		t.Errorf("standard deviation %g, want %g", got, deviation)
	}
}

func TestSparse(t *testing.T) {
	m := open(t, write(t, testmodel.Options{Sparse: true}))
	for _, spec := range m.Specs() {
		if p := read(t, m, spec); len(bytes.Trim(p, "\x00")) > 0 {
			t.Errorf("%s is not zero", spec.Name)
		}
	}
}

func TestLargeReachesItsSize(t *testing.T) {
	const gib = 1 << 30
	for _, want := range []int64{1, 8 * gib, 60e9} {
		m := testmodel.Large(want)
		less := m
		less.Layers--
		if m.Size() < want || less.Layers > 0 && less.Size() >= want {
			t.Errorf("%d layers have %d bytes for %d", m.Layers, m.Size(), want)
		}
	}
	if m := testmodel.Large(16e9); m.Layers != 32 || m.Size() != 16_060_522_496 {
		t.Errorf("for 16 GB: %d layers of %d bytes, want those of Llama 3 8B", m.Layers, m.Size())
	}
}
