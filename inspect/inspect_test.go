package inspect_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"gonum.org/v1/gonum/mat"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/inspect"
)

// matrix is a tensor of a test's model, F64 or F32.
type matrix struct {
	name       string
	dtype      tensor.DType
	values     []float64
	rows, cols int
}

func random(rng *rand.Rand, name string, d tensor.DType, rows, cols int) matrix {
	m := matrix{name, d, make([]float64, rows*cols), rows, cols}
	for i := range m.values {
		m.values[i] = float64(float32(rng.NormFloat64()))
	}
	return m
}

// dense is the matrix for gonum.
func (m matrix) dense() *mat.Dense { return mat.NewDense(m.rows, m.cols, m.values) }

// write stores matrices, as an adapter if there is a config, and opens them.
func write(t *testing.T, config string, all ...matrix) *checkpoint.Model {
	t.Helper()
	dir := t.TempDir()
	name := "model.safetensors"
	if config != "" {
		name = "adapter_model.safetensors"
		if err := os.WriteFile(filepath.Join(dir, "adapter_config.json"), []byte(config), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	var specs []tensor.Spec
	for _, m := range all {
		specs = append(specs, tensor.Spec{Name: m.name, DType: m.dtype, Shape: tensor.Shape{int64(m.rows), int64(m.cols)}})
	}
	l, err := safetensors.NewLayout(specs, nil)
	if err != nil {
		t.Fatal(err)
	}
	data := append(l.Header(), make([]byte, l.Size()-int64(len(l.Header())))...)
	for _, m := range all {
		off, _ := l.Offset(m.name)
		for i, v := range m.values {
			if m.dtype == tensor.F64 {
				binary.LittleEndian.PutUint64(data[off+int64(8*i):], math.Float64bits(v))
			} else {
				binary.LittleEndian.PutUint32(data[off+int64(4*i):], math.Float32bits(float32(v)))
			}
		}
	}
	if err := os.WriteFile(filepath.Join(dir, name), data, 0o666); err != nil {
		t.Fatal(err)
	}
	m, err := checkpoint.Open(dir, hfrepo.Cache{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func look(t *testing.T, m *checkpoint.Model, values int) ([]*inspect.Tensor, []*inspect.Change) {
	t.Helper()
	s, err := inspect.Open(m, inspect.Options{Values: values})
	if err != nil {
		t.Fatal(err)
	}
	if err := engine.Each(t.Context(), s.Tasks(), engine.Options{}); err != nil {
		t.Fatal(err)
	}
	return s.Result()
}

// singular returns the singular values of a matrix, by gonum.
func singular(m mat.Matrix) []float64 {
	var svd mat.SVD
	if !svd.Factorize(m, mat.SVDNone) {
		panic("no decomposition")
	}
	return svd.Values(nil)
}

// ranksOf returns the stable and the effective rank by their definitions.
func ranksOf(values []float64) (stable, effective float64) {
	sum, squares, entropy := 0.0, 0.0, 0.0
	for _, v := range values {
		sum, squares = sum+v, squares+v*v
	}
	for _, v := range values {
		if p := v / sum; p > 0 {
			entropy -= p * math.Log(p)
		}
	}
	return squares / (values[0] * values[0]), math.Exp(entropy)
}

// near is |a-b| <= bound·|b|.
func near(a, b, bound float64) bool { return math.Abs(a-b) <= bound*math.Abs(b) }

// TestSpectra guards figures, singular values and ranks against gonum, where all values
// are computed.
func TestSpectra(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, d := range []tensor.DType{tensor.F32, tensor.F64} {
		for _, size := range [][2]int{{1, 1}, {1, 9}, {40, 7}, {60, 200}, {513, 300}} {
			t.Run(fmt.Sprint(d, size), func(t *testing.T) {
				w := random(rng, "w", d, size[0], size[1])
				w.values[len(w.values)/2] = 0
				if len(w.values) == 1 {
					w.values[0] = -3
				}
				tensors, _ := look(t, write(t, "", w), 5)
				got := tensors[0]
				norm, most, sum, zeros := 0.0, 0.0, 0.0, int64(0)
				for _, v := range w.values {
					norm, most, sum = norm+v*v, math.Max(most, math.Abs(v)), sum+v
					if v == 0 {
						zeros++
					}
				}
				// Sums of n terms in float64.
				n := float64(len(w.values))
				if !near(got.Norm, math.Sqrt(norm), n*0x1p-53) || got.MaxAbs != most || got.Zeros != zeros ||
					math.Abs(got.Mean-sum/n) > n*0x1p-53*most || got.NonFinite != 0 {
					t.Errorf("%+v; want norm %v, mean %v, largest %v, %d zeros", got, math.Sqrt(norm), sum/n, most, zeros)
				}
				want := singular(w.dense())
				stable, effective := ranksOf(want)
				if got.Spectrum == nil || len(got.Values) != min(5, len(want)) || !got.Exact {
					t.Fatalf("spectrum %+v", got.Spectrum)
				}
				for i, v := range got.Values {
					// linalg.Truncate: right to about 1e-6 of the largest.
					if math.Abs(v-want[i]) > 1e-6*want[0] {
						t.Errorf("singular value %d is %v, want %v", i, v, want[i])
					}
				}
				// An error of 1e-6 of the largest value in each is a relative error of at most
				// as many times 1e-6 in the sums.
				if bound := 4e-6 * float64(len(want)); !near(got.Stable, stable, bound) || !near(got.Effective, effective, bound) {
					t.Errorf("ranks %v and %v, want %v and %v", got.Stable, got.Effective, stable, effective)
				}
			})
		}
	}
}

// TestIteration guards the singular values of a matrix that is too large for all of them:
// never too large, and near the true ones where they fall off, as those of weights do.
func TestIteration(t *testing.T) {
	const rows, cols, rank = 700, 620, 40
	rng := rand.New(rand.NewPCG(3, 4))
	u, v := random(rng, "", tensor.F32, rows, rank), random(rng, "", tensor.F32, rank, cols)
	for k := range rank {
		for j := range cols {
			v.values[k*cols+j] /= float64(k + 1)
		}
	}
	var product mat.Dense
	product.Mul(u.dense(), v.dense())
	w := matrix{"w", tensor.F32, make([]float64, rows*cols), rows, cols}
	for i := range rows {
		for j := range cols {
			w.values[i*cols+j] = float64(float32(product.At(i, j) + 0.05*rng.NormFloat64()))
		}
	}
	want := singular(w.dense())
	stable, effective := ranksOf(want)
	tensors, _ := look(t, write(t, "", w), 8)
	got := tensors[0]
	for i, value := range got.Values {
		if value > want[i]*(1+1e-6) || value < want[i]*(1-1e-4) {
			t.Errorf("singular value %d is %v, want %v", i, value, want[i])
		}
	}
	if len(got.Values) != 8 || got.Exact || !near(got.Stable, stable, 2e-4) || got.Effective < effective*(1-1e-3) {
		t.Errorf("%d values, exact %v, ranks %v and %v, want %v and at least %v", len(got.Values), got.Exact, got.Stable, got.Effective, stable, effective)
	}
}

// TestChanges guards the changes of an adapter: the spectrum is that of scale·B·A.
func TestChanges(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	a := random(rng, "base_model.model.layers.0.q_proj.lora_A.weight", tensor.F32, 4, 30)
	b := random(rng, "base_model.model.layers.0.q_proj.lora_B.weight", tensor.F32, 20, 4)
	m := write(t, `{"peft_type": "LORA", "r": 4, "lora_alpha": 10, "target_modules": ["q_proj"]}`, a, b)
	tensors, changes := look(t, m, 3)
	if len(changes) != 1 || len(tensors) != 2 || tensors[0].Spectrum != nil {
		t.Fatalf("%d changes, %d tensors", len(changes), len(tensors))
	}
	var product mat.Dense
	product.Mul(b.dense(), a.dense())
	product.Scale(2.5, &product)
	want := singular(&product)[:4]
	stable, effective := ranksOf(want)
	got := changes[0]
	// linalg.SVDOfProduct: right to a few 2^-24 times the rank of the largest.
	bound := 8 * 4 * 0x1p-24 * want[0]
	for i, v := range got.Values {
		if math.Abs(v-want[i]) > bound {
			t.Errorf("singular value %d is %v, want %v", i, v, want[i])
		}
	}
	if len(got.Values) != 3 || !got.Exact || got.Rank != 4 || got.Scale != 2.5 || !near(got.Norm, mat.Norm(&product, 2), 1e-5) ||
		!near(got.Stable, stable, 1e-5) || !near(got.Effective, effective, 1e-5) {
		t.Errorf("%+v, %+v; want norm %v, ranks %v and %v", got, got.Spectrum, mat.Norm(&product, 2), stable, effective)
	}
}

// TestOddNumbers guards what has no spectrum: NaN, and nothing at all.
func TestOddNumbers(t *testing.T) {
	w := random(rand.New(rand.NewPCG(7, 8)), "w", tensor.F32, 3, 4)
	w.values[2], w.values[5] = math.NaN(), math.Inf(-1)
	empty := matrix{"empty", tensor.F32, nil, 0, 4}
	zero := matrix{"zero", tensor.F32, make([]float64, 6), 2, 3}
	tensors, _ := look(t, write(t, "", w, empty, zero), 4)
	found := make(map[string]*inspect.Tensor)
	for _, x := range tensors {
		found[x.Name] = x
	}
	sum := 0.0
	for _, v := range w.values {
		if !math.IsNaN(v) && !math.IsInf(v, 0) {
			sum += v
		}
	}
	if x := found["w"]; !near(x.Mean, sum/10, 12*0x1p-53*10) { // a sum of ten terms of size 1
		t.Errorf("mean %v of the finite elements, want %v", x.Mean, sum/10)
	}
	if x := found["w"]; x.NonFinite != 2 || x.Spectrum != nil || math.IsNaN(x.Norm) || math.IsNaN(x.Mean) {
		t.Errorf("%+v", x)
	}
	if x := found["empty"]; x.Elements != 0 || x.Spectrum != nil || x.Mean != 0 {
		t.Errorf("%+v", x)
	}
	if x := found["zero"]; x.Zeros != 6 || x.Spectrum == nil || x.Norm != 0 || x.Stable != 0 {
		t.Errorf("%+v %+v", x, x.Spectrum)
	}
	if tensors, _ := look(t, write(t, "", zero), 0); tensors[0].Spectrum != nil {
		t.Error("a spectrum was not asked for")
	}
}
