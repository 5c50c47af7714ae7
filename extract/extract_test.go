package extract_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gonum.org/v1/gonum/mat"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/extract"
	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/plan"
)

// planted adds a change of the given rank, as large as the weights, to a tensor.
func planted(m *model, name string, rank int) {
	a := m.tensors[name]
	rows, cols := int(a.shape[0]), int(a.shape[1])
	rng := rand.New(rand.NewPCG(uint64(len(name)), uint64(rows)))
	for range rank {
		u, v := make([]float64, rows), make([]float64, cols)
		for i := range u {
			u[i] = rng.NormFloat64()
		}
		for j := range v {
			v[j] = rng.NormFloat64() * 0.1
		}
		for i := range u {
			for j := range v {
				a.values[i*cols+j] += u[i] * v[j]
			}
		}
	}
}

// TestPlantedRank guards that a change of rank q comes back from its pair. The
// tuned weights are W+D rounded to float32, an error of at most 2^-24 of each, and D
// is larger than W: what comes back differs from D by less than
//
//	2^-24 ||W+D|| (that rounding) + 2^-22 ||D|| (float32 factors and solver)
//
// which is below 1e-6 ||D||.
func TestPlantedRank(t *testing.T) {
	const q, bound = 3, 1e-6
	base := llama(tensor.F32)
	tuned := base.clone()
	for _, name := range linears(tuned) {
		planted(tuned, name, q)
	}
	b, tu := pairOf(t, base, tuned)
	x, out := run(t, b, tu, extract.Options{Rule: extract.Rule{Rank: q}}, engine.Options{})
	merged := mergeBack(t, b, out, tensor.F64)
	for _, name := range linears(base) {
		w, got, want := values(t, b, name), values(t, merged, name), tuned.tensors[name].values
		for i := range w {
			got[i] -= w[i]
		}
		d := make([]float64, len(w))
		for i := range w {
			d[i] = want[i] - w[i]
		}
		if off, norm := distance(got, d); off > bound*norm {
			t.Errorf("%s: the change comes back with an error of %.3g", name, off/norm)
		}
		if m := module(t, x, name); m.Residual > bound || m.Kept < 1-bound || m.Rank != q {
			t.Errorf("%s: rank %d, residual %.3g", name, m.Rank, m.Residual)
		}
	}
	// Planted rank q is found as such.
	x, _ = run(t, b, tu, extract.Options{Rule: extract.Rule{Energy: 1 - 1e-9}}, engine.Options{})
	for _, name := range linears(base) {
		m := module(t, x, name)
		if m.Rank != q || m.Ranks.Stable > q || m.Ranks.Entropy > q+1e-3 {
			t.Errorf("%s: energy gives rank %d, stable rank %v, entropy rank %v", name, m.Rank, m.Ranks.Stable, m.Ranks.Entropy)
		}
	}
}

// TestMergeAndBack guards that extract undoes merge: the adapter's product comes
// back, whatever its alpha.
func TestMergeAndBack(t *testing.T) {
	base := llama(tensor.F32)
	tuned := base.clone()
	for i, name := range linears(tuned) {
		planted(tuned, name, 1+i%4)
	}
	b, tu := pairOf(t, base, tuned)
	for _, alpha := range []float64{0, 4, 0.37} {
		_, first := run(t, b, tu, extract.Options{Rule: extract.Rule{Energy: 1 - 1e-9}, Alpha: alpha}, engine.Options{})
		again := mergeBack(t, b, first, tensor.F32)
		_, second := run(t, b, again, extract.Options{Rule: extract.Rule{Energy: 1 - 1e-9}, Alpha: 7}, engine.Options{})
		merged := mergeBack(t, b, second, tensor.F32)
		for _, name := range linears(base) {
			// Two roundings of weights and factors, each as in TestPlantedRank.
			if off, norm := distance(values(t, merged, name), values(t, tu, name)); off > 2e-6*norm {
				t.Errorf("alpha %v: %s: off by %.3g", alpha, name, off/norm)
			}
		}
	}
}

// TestFullRank guards that a rank of the smaller side or more holds everything, of
// changes without any structure.
func TestFullRank(t *testing.T) {
	base := llama(tensor.F32)
	tuned := base.clone()
	tuned.shiftAll(0.05)
	b, tu := pairOf(t, base, tuned)
	x, out := run(t, b, tu, extract.Options{Rule: extract.Rule{Rank: 1000}}, engine.Options{})
	merged := mergeBack(t, b, out, tensor.F32)
	for _, name := range base.names {
		// As in TestPlantedRank; what is saved whole is the tuned model's bits.
		off, norm := distance(values(t, merged, name), values(t, tu, name))
		if off > 1e-6*norm || off > 0 && !slices.Contains(linears(base), name) {
			t.Errorf("%s: off by %.3g", name, off/norm)
		}
	}
	if x.Certificate.Share < 1-1e-10 || !x.Certificate.LowRank {
		t.Errorf("share %v, low rank %v", x.Certificate.Share, x.Certificate.LowRank)
	}
}

// judge is the decomposition of the difference of two tensors by gonum, in float64.
func judge(t *testing.T, base, tuned *checkpoint.Model, name string) (singular []float64, norm float64) {
	t.Helper()
	w, x := values(t, base, name), values(t, tuned, name)
	spec, _ := base.Lookup(name)
	for i := range w {
		x[i] -= w[i]
		norm += x[i] * x[i]
	}
	var svd mat.SVD
	if !svd.Factorize(mat.NewDense(int(spec.Shape[0]), int(spec.Shape[1]), x), mat.SVDNone) {
		t.Fatal("gonum does not converge")
	}
	return svd.Values(nil), math.Sqrt(norm)
}

// tail is the residual of the best approximation of a rank, relatively.
func tail(singular []float64, rank int64, norm float64) float64 {
	sum := 0.0
	for k := len(singular) - 1; k >= int(rank); k-- {
		sum += singular[k] * singular[k]
	}
	return math.Sqrt(sum) / norm
}

// TestRules guards, on changes without structure, that every rule keeps its promise
// and takes no more than it needs, against gonum's spectra; and that what the
// certificate says of a module is what merging back shows.
func TestRules(t *testing.T) {
	base := llama(tensor.F32)
	tuned := base.clone()
	tuned.shiftAll(0.01)
	for _, name := range linears(tuned) {
		planted(tuned, name, 2)
	}
	b, tu := pairOf(t, base, tuned)
	// Singular values are right to 1e-7 of the largest (linalg.Truncate), so a
	// residual to some 1e-6 of the norm.
	const slack = 2e-6
	for _, rule := range []extract.Rule{{Rank: 5}, {Energy: 0.9}, {Energy: 0.999}, {Error: 0.3}, {Error: 0.02}, {Error: 0.05, MaxRank: 7}, {Params: 4000}, {Size: 30_000}} {
		t.Run(fmt.Sprintf("%+v", rule), func(t *testing.T) {
			x, out := run(t, b, tu, extract.Options{Rule: rule}, engine.Options{})
			merged := mergeBack(t, b, out, tensor.F64)
			for _, name := range linears(base) {
				m := module(t, x, name)
				singular, norm := judge(t, b, tu, name)
				if best := tail(singular, m.Rank, norm); math.Abs(m.Residual-best) > slack || m.Best > m.Residual {
					t.Errorf("%s: residual %v at rank %d, the best is %v", name, m.Residual, m.Rank, best)
				}
				off, _ := distance(values(t, merged, name), values(t, tu, name))
				if math.Abs(off/norm-m.Residual) > slack+m.Rounding {
					t.Errorf("%s: merged back, the residual is %v, certified %v", name, off/norm, m.Residual)
				}
				if math.Abs(m.Ranks.Stable-norm*norm/(singular[0]*singular[0])) > 1e-4 {
					t.Errorf("%s: stable rank %v", name, m.Ranks.Stable)
				}
				bound := rule.Error
				if rule.Energy > 0 {
					bound = math.Sqrt(1 - rule.Energy)
				}
				switch {
				case bound == 0:
				case m.Capped != (rule.MaxRank > 0 && m.Residual > bound):
					t.Errorf("%s: capped is %v at residual %v", name, m.Capped, m.Residual)
				case !m.Capped && m.Residual > bound:
					t.Errorf("%s: residual %v, promised %v", name, m.Residual, bound)
				case m.Rank > 1 && tail(singular, m.Rank-1, norm) <= bound-slack:
					t.Errorf("%s: rank %d, one less would do", name, m.Rank)
				}
			}
			checkBudget(t, x, rule)
			checkSums(t, x)
		})
	}
}

// checkBudget wants a budget kept and used: not one more direction would fit.
func checkBudget(t *testing.T, x *extract.Extraction, rule extract.Rule) {
	t.Helper()
	smallest := int64(math.MaxInt64) // parameters of a direction
	for _, m := range x.Certificate.Modules {
		if m.Rank > 0 && m.Rank < min(m.Shape[0], m.Shape[1]) {
			smallest = min(smallest, m.Shape[0]+m.Shape[1])
		}
	}
	if n := x.Certificate.Parameters; rule.Params > 0 && (n > rule.Params || n+smallest <= rule.Params) {
		t.Errorf("%d parameters of %d, a direction takes %d", n, rule.Params, smallest)
	}
	if n := x.Layout.Files[0].Size(); rule.Size > 0 && (n > rule.Size || n+4*smallest <= rule.Size) {
		t.Errorf("%d bytes of %d, a direction takes %d", n, rule.Size, 4*smallest)
	}
}

// checkSums adds the certificate up again.
func checkSums(t *testing.T, x *extract.Extraction) {
	t.Helper()
	var all, lost float64
	var parameters, bytes int64
	for _, m := range x.Certificate.Modules {
		all += m.DeltaNorm * m.DeltaNorm
		lost += m.Residual * m.Residual * m.DeltaNorm * m.DeltaNorm
		parameters, bytes = parameters+m.Parameters, bytes+m.Bytes
		if math.Abs(1-m.Residual*m.Residual-m.Kept) > 1e-12 {
			t.Errorf("%s: kept %v, residual %v", m.Name, m.Kept, m.Residual)
		}
	}
	c := x.Certificate
	if math.Abs(c.Share-(1-lost/all)) > 1e-12 || math.Abs(c.DeltaNorm-math.Sqrt(all)) > 1e-12*c.DeltaNorm {
		t.Errorf("share %v, norm %v", c.Share, c.DeltaNorm)
	}
	var stored int64
	for _, f := range x.Layout.Files[0].Tensors() {
		stored += f.Size()
	}
	if c.Parameters != parameters || c.Bytes != bytes || bytes != stored {
		t.Errorf("%d parameters and %d bytes, the modules have %d and %d, the file %d", c.Parameters, c.Bytes, parameters, bytes, stored)
	}
}

// TestSweep guards that more rank never keeps less, and that the residual of the
// whole is the tail of all spectra.
func TestSweep(t *testing.T) {
	base := llama(tensor.F32)
	tuned := base.clone()
	tuned.shiftAll(0.01)
	b, tu := pairOf(t, base, tuned)
	ranks := []int64{1, 2, 5, 11, 16, 24, 100}
	s, err := extract.OpenSweep(b, tu, ranks, extract.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := engine.Each(t.Context(), s.Tasks(nil), engine.Options{}); err != nil {
		t.Fatal(err)
	}
	points, err := s.Sweep(ranks)
	if err != nil {
		t.Fatal(err)
	}
	whole := 0.0
	for _, name := range base.names {
		_, norm := distance(values(t, tu, name), values(t, b, name))
		d, _ := distance(values(t, tu, name), values(t, b, name))
		whole += d * d
		_ = norm
	}
	for i, p := range points {
		lost := 0.0
		for _, name := range linears(base) {
			singular, norm := judge(t, b, tu, name)
			r := tail(singular, ranks[i], norm) * norm
			lost += r * r
		}
		if want := math.Sqrt(lost / whole); math.Abs(p.Residual-want) > 2e-6 {
			t.Errorf("rank %d: residual %v, the tails make %v", p.Rank, p.Residual, want)
		}
		if i > 0 && (p.Residual > points[i-1].Residual || p.Parameters < points[i-1].Parameters || p.Worst > points[i-1].Worst) {
			t.Errorf("rank %d keeps less than rank %d", p.Rank, points[i-1].Rank)
		}
		x, _ := run(t, b, tu, extract.Options{Rule: extract.Rule{Rank: ranks[i]}}, engine.Options{})
		if x.Certificate.Parameters != p.Parameters || x.Certificate.Bytes != p.Bytes || math.Abs(x.Certificate.Residual-p.Residual) > 2e-6 {
			t.Errorf("rank %d: the sweep says %+v, the extraction %v", p.Rank, p, x.Certificate.Residual)
		}
	}
	for _, bad := range [][]int64{nil, {0}, {4, -1}, {70000}} {
		if _, err := extract.OpenSweep(b, tu, bad, extract.Options{}); err == nil {
			t.Errorf("a sweep of %v is accepted", bad)
		}
	}
}

// folder reads all files of an output.
func folder(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]string)
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		all[e.Name()] = string(data)
	}
	return all
}

func sameFolder(t *testing.T, what string, got, want map[string]string) {
	t.Helper()
	if len(got) != len(want) || len(want) != 3 {
		t.Errorf("%s: %d files, want %d", what, len(got), len(want))
	}
	for name := range want {
		if got[name] != want[name] {
			t.Errorf("%s: %s differs", what, name)
		}
	}
}

// wide is a pair whose layers take the solver's iteration.
func wide(t *testing.T) (*checkpoint.Model, *checkpoint.Model) {
	base := llama(tensor.BF16)
	base.add("model.layers.0.mlp.wide_proj.weight", tensor.BF16, 260, 220)
	base.add("model.layers.1.mlp.wide_proj.weight", tensor.F64, 220, 260)
	tuned := base.clone()
	tuned.shiftAll(0.01)
	return pairOf(t, base, tuned)
}

// TestSameBytes guards that jobs and memory change nothing.
func TestSameBytes(t *testing.T) {
	b, tu := wide(t)
	var want map[string]string
	for _, rule := range []extract.Rule{{Rank: 6}, {Energy: 0.5, MaxRank: 20}, {Params: 5000}} {
		want = nil
		for _, e := range []engine.Options{{Jobs: 1, Memory: 1 << 20}, {Jobs: 1}, {Jobs: 4, Memory: 2 << 20}, {Jobs: 7, Memory: 1 << 30}} {
			_, out := run(t, b, tu, extract.Options{Rule: rule, DType: tensor.BF16}, e)
			got := folder(t, out)
			if want == nil {
				want = got
			}
			sameFolder(t, fmt.Sprintf("%+v with %+v", rule, e), got, want)
		}
	}
}

// TestResume guards that a run that is cut off after any task and gone on from
// gives the same bytes, and that what was finished is not computed again.
func TestResume(t *testing.T) {
	b, tu := wide(t)
	o := extract.Options{Rule: extract.Rule{Rank: 6}}
	_, out := run(t, b, tu, o, engine.Options{})
	want := folder(t, out)
	errCut := errors.New("cut off")
	for _, after := range []int{0, 1, 5, 12} {
		o.Output = filepath.Join(t.TempDir(), "lora")
		s, err := extract.Open(b, tu, o)
		if err != nil {
			t.Fatal(err)
		}
		killed, err := s.NewStore(fsatomic.OS{}, true)
		if err != nil {
			t.Fatal(err)
		}
		if killed.Resumed() {
			t.Error("resumed from nothing")
		}
		tasks := s.Tasks(killed)
		for i := range tasks {
			if do := tasks[i].Do; i >= after {
				tasks[i].Do = func(context.Context, int) error { return errCut }
			} else {
				tasks[i].Do = do
			}
		}
		if err := engine.Each(t.Context(), tasks, engine.Options{Jobs: 1}); !errors.Is(err, errCut) {
			t.Fatal(err)
		}
		s, err = extract.Open(b, tu, o)
		if err != nil {
			t.Fatal(err)
		}
		// Without resume the folder is left alone.
		fresh, err := s.NewStore(fsatomic.OS{}, false)
		if err != nil || fresh.Dir() == killed.Dir() || fresh.Resumed() {
			t.Fatalf("without resume: folder %s, %v", fresh.Dir(), err)
		}
		if err := fresh.Close(); err != nil {
			t.Fatal(err)
		}
		store, err := s.NewStore(fsatomic.OS{}, true)
		if err != nil {
			t.Fatal(err)
		}
		if (store.Dir() == killed.Dir()) != (after > 0) || store.Resumed() != (after > 0) {
			t.Errorf("after %d tasks: folder %s, left was %s", after, store.Dir(), killed.Dir())
		}
		before := modified(t, store.Dir())
		if len(before) != after {
			t.Errorf("after %d tasks the folder holds %d entries", after, len(before))
		}
		x, err := finish(t.Context(), s, store, engine.Options{})
		if err != nil {
			t.Fatal(err)
		}
		for name, time := range before {
			if now := modified(t, store.Dir())[name]; now != time {
				t.Errorf("%s was written again", name)
			}
		}
		sameFolder(t, fmt.Sprintf("after %d tasks", after), folder(t, o.Output), want)
		checkSums(t, x)
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	}
}

func modified(t *testing.T, dir string) map[string]int64 {
	t.Helper()
	all := make(map[string]int64)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		all[e.Name()] = info.ModTime().UnixNano()
	}
	return all
}

// TestStoreKey guards that a folder of another extraction is not gone on from.
func TestStoreKey(t *testing.T) {
	b, tu := wide(t)
	other, _ := wide(t)
	dir := t.TempDir()
	first := extract.Options{Output: filepath.Join(dir, "lora"), Rule: extract.Rule{Rank: 6}}
	open := func(base *checkpoint.Model, o extract.Options) *extract.Survey {
		s, err := extract.Open(base, tu, o)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open(b, first)
	store, err := s.NewStore(fsatomic.OS{}, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := engine.Each(t.Context(), s.Tasks(store), engine.Options{}); err != nil {
		t.Fatal(err)
	}
	change := func(f func(o *extract.Options)) extract.Options {
		o := first
		f(&o)
		return o
	}
	for _, c := range []struct {
		name string
		base *checkpoint.Model
		o    extract.Options
		want bool
	}{
		{"the same", b, first, true},
		{"another alpha and type", b, change(func(o *extract.Options) { o.Alpha, o.DType = 3, tensor.BF16 }), true},
		{"another rank", b, change(func(o *extract.Options) { o.Rule.Rank = 7 }), false},
		{"exact", b, change(func(o *extract.Options) { o.Exact = true }), false},
		{"without a module", b, change(func(o *extract.Options) { o.Exclude = []string{"q_proj"} }), false},
		{"another output", b, change(func(o *extract.Options) { o.Output = filepath.Join(dir, "other") }), false},
		{"another base", other, first, false},
	} {
		again, err := open(c.base, c.o).NewStore(fsatomic.OS{}, true)
		if err != nil {
			t.Fatal(err)
		}
		if again.Resumed() != c.want || (again.Dir() == store.Dir()) != c.want {
			t.Errorf("%s: resumed is %v", c.name, again.Resumed())
		}
		if !c.want {
			if err := again.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	if err := store.Close(); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestBrokenStore guards that a damaged entry, whatever became of it, is computed
// again rather than believed.
func TestBrokenStore(t *testing.T) {
	b, tu := wide(t)
	o := extract.Options{Rule: extract.Rule{Rank: 6}}
	_, out := run(t, b, tu, o, engine.Options{})
	want := folder(t, out)
	damage := map[string]func([]byte) []byte{
		"empty":     func([]byte) []byte { return nil },
		"cut":       func(p []byte) []byte { return p[:len(p)/2] },
		"longer":    func(p []byte) []byte { return append(p, 0) },
		"no header": func(p []byte) []byte { return make([]byte, len(p)) },
		"nan":       func(p []byte) []byte { copy(p[len(p)-4:], "\xff\xff\xff\xff"); return p },
		"other key": func(p []byte) []byte {
			i := strings.Index(string(p), `"key":"`) + 7
			p[i] ^= 1
			return p
		},
		"other item": func(p []byte) []byte {
			return []byte(strings.Replace(string(p), "model.", "nodel.", 1))
		},
	}
	for name, f := range damage {
		t.Run(name, func(t *testing.T) {
			o.Output = filepath.Join(t.TempDir(), "lora")
			s, err := extract.Open(b, tu, o)
			if err != nil {
				t.Fatal(err)
			}
			store, err := s.NewStore(fsatomic.OS{}, false)
			if err != nil {
				t.Fatal(err)
			}
			if err := engine.Each(t.Context(), s.Tasks(store), engine.Options{}); err != nil {
				t.Fatal(err)
			}
			files, _ := filepath.Glob(filepath.Join(store.Dir(), "*.safetensors"))
			if len(files) != len(b.Specs()) {
				t.Fatalf("%d entries", len(files))
			}
			for _, file := range files {
				data, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, f(data), 0o666); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := s.Plan(store); err != nil {
				t.Fatal(err)
			}
			if s, err = extract.Open(b, tu, o); err != nil {
				t.Fatal(err)
			}
			again, err := s.NewStore(fsatomic.OS{}, true)
			if err != nil || !again.Resumed() {
				t.Fatalf("resumed: %v", err)
			}
			if _, err := finish(t.Context(), s, again, engine.Options{}); err != nil {
				t.Fatal(err)
			}
			sameFolder(t, name, folder(t, o.Output), want)
			if err := again.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestDTypes guards differences of every pair of types, and that the rounding the
// certificate allows for is not exceeded by factors of every type.
func TestDTypes(t *testing.T) {
	for _, base := range []tensor.DType{tensor.F32, tensor.BF16, tensor.F16, tensor.F64} {
		for _, tuned := range []tensor.DType{tensor.F32, tensor.BF16, tensor.F16, tensor.F64} {
			bm := newModel(nil)
			bm.add("a.weight", base, 30, 20)
			bm.add("same.weight", base, 8, 8)
			tm := newModel(nil)
			tm.set("a.weight", tuned, append([]float64(nil), bm.tensors["a.weight"].values...), 30, 20)
			tm.shift("a.weight", 0.05, 1)
			tm.set("same.weight", tuned, bm.tensors["same.weight"].values, 8, 8)
			// What is stored, rounded to the base's type and then to the tuned one's.
			b := bm.write(t, filepath.Join(t.TempDir(), "base"))
			tm.set("same.weight", tuned, values(t, b, "same.weight"), 8, 8)
			tu := tm.write(t, filepath.Join(t.TempDir(), "tuned"))
			for _, factors := range []tensor.DType{tensor.NoDType, tensor.BF16, tensor.F16, tensor.F64} {
				x, out := run(t, b, tu, extract.Options{Rule: extract.Rule{Rank: 20}, DType: factors}, engine.Options{})
				if f := forms(x); len(f) != 1 {
					t.Errorf("%v to %v: %v, want only a", base, tuned, f)
				}
				merged := mergeBack(t, b, out, tensor.F64)
				want := values(t, tu, "a.weight")
				off, _ := distance(values(t, merged, "a.weight"), want)
				m := module(t, x, "a.weight")
				// The float32 of differences and vectors adds some 2^-22.
				if limit := (m.Residual + m.Rounding + 0x1p-22) * m.DeltaNorm; off > limit {
					t.Errorf("%v to %v as %v: off by %.3g, certified %.3g", base, tuned, factors, off, limit)
				}
				if factors == tensor.BF16 && off < m.Rounding*m.DeltaNorm/100 {
					t.Errorf("%v to %v as %v: off by %.3g, a bound of %.3g says nothing", base, tuned, factors, off, m.Rounding*m.DeltaNorm)
				}
			}
		}
	}
}

// TestRoundingBound guards the bound where it is nearly reached: both factors of a
// column of equal numbers lie just below the middle of two bf16 numbers.
func TestRoundingBound(t *testing.T) {
	base, tuned := newModel(nil), newModel(nil)
	base.set("a.weight", tensor.F32, make([]float64, 4), 4, 1)
	// U is 1/2 everywhere and sigma twice the number, so A = sqrt(sigma) = 2·B.
	root := 1 + 0x1p-8 - 1e-5
	c := root * root / 2
	tuned.set("a.weight", tensor.F32, []float64{c, c, c, c}, 4, 1)
	b, tu := pairOf(t, base, tuned)
	x, out := run(t, b, tu, extract.Options{Rule: extract.Rule{Rank: 1}, DType: tensor.BF16}, engine.Options{})
	off, norm := distance(values(t, mergeBack(t, b, out, tensor.F64), "a.weight"), values(t, tu, "a.weight"))
	m := module(t, x, "a.weight")
	if off > m.Rounding*norm || off < 0.95*m.Rounding*norm {
		t.Errorf("rounding changes %v, the bound is %v", off/norm, m.Rounding)
	}
}

// TestExcess guards what the certificate says of a decomposition that was not exact:
// the optimum, by gonum, lies between Best and Residual.
func TestExcess(t *testing.T) {
	base := newModel(nil)
	base.add("a.weight", tensor.F32, 420, 400)
	tuned := base.clone()
	tuned.shift("a.weight", 0.01, 5)
	b, tu := pairOf(t, base, tuned)
	x, _ := run(t, b, tu, extract.Options{Rule: extract.Rule{Rank: 2}}, engine.Options{})
	m := module(t, x, "a.weight")
	singular, norm := judge(t, b, tu, "a.weight")
	best := tail(singular, 2, norm)
	if m.Excess == 0 || m.Residual < best || m.Best >= m.Residual || m.Residual > best*(1+5e-4) {
		t.Errorf("residual %v, excess %v, at best %v; gonum has %v", m.Residual, m.Excess, m.Best, best)
	}
	// The estimate itself may be off by its own size.
	if m.Best > best*(1+m.Excess) {
		t.Errorf("at best %v, gonum has %v", m.Best, best)
	}
	x, _ = run(t, b, tu, extract.Options{Rule: extract.Rule{Rank: 2}, Exact: true}, engine.Options{})
	if m := module(t, x, "a.weight"); m.Excess != 0 || math.Abs(m.Residual-best) > 2e-6 {
		t.Errorf("exact: residual %v, excess %v; gonum has %v", m.Residual, m.Excess, best)
	}
}

// TestCard guards what is published: no path, and nothing of the inputs when it is
// not wanted.
func TestCard(t *testing.T) {
	base := llama(tensor.F32)
	tuned := base.clone()
	tuned.shiftAll(0.01)
	dir := t.TempDir()
	b := base.write(t, filepath.Join(dir, "se|cret-base"))
	tu := tuned.write(t, filepath.Join(dir, "se|cret-tuned"))
	_, out := run(t, b, tu, extract.Options{Rule: extract.Rule{Rank: 2}, Version: "v9"}, engine.Options{})
	card := folder(t, out)["README.md"]
	for _, want := range []string{"base_model:\n  - se|cret-base\n", "base_model_relation: adapter", "library_name: peft", "se_cret-tuned as an adapter of se_cret-base",
		"| q_proj.weight | lora | 2 | 2 |", "not of low rank", "SHA-256"} {
		if !strings.Contains(card, want) {
			t.Errorf("the card lacks %q:\n%s", want, card)
		}
	}
	if strings.Contains(card, dir) || strings.Contains(card, strings.Repeat("0", 64)) {
		t.Errorf("a path or a placeholder is in the card:\n%s", card)
	}
	_, out = run(t, b, tu, extract.Options{Rule: extract.Rule{Rank: 2}, NoProvenance: true}, engine.Options{})
	for name, text := range folder(t, out) {
		if name != "adapter_config.json" && strings.Contains(text, "cret") {
			t.Errorf("%s names an input", name)
		}
	}
}

// TestComparison guards the figures of a comparison against plain sums.
func TestComparison(t *testing.T) {
	base := llama(tensor.BF16)
	tuned := base.clone()
	tuned.shiftAll(0.01)
	b, tu := pairOf(t, base, tuned)
	p := &plan.Plan{}
	for _, spec := range b.Specs() {
		p.Steps = append(p.Steps, plan.Step{Read: plan.Whole(0, spec), Write: plan.Placement{Tensor: spec.Name, DType: tensor.F32}})
	}
	for _, e := range []engine.Options{{Jobs: 1}, {Jobs: 4, Memory: 1 << 16}} {
		c, err := extract.NewComparison(p, tu, "", "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := engine.Run(t.Context(), p, []engine.Source{b}, c, e); err != nil {
			t.Fatal(err)
		}
		tensors, all := c.Result()
		if len(tensors) != len(b.Specs()) || all.Values == 0 {
			t.Fatalf("%d tensors, %d values", len(tensors), all.Values)
		}
		for _, got := range tensors {
			w, x := values(t, b, got.Tensor), values(t, tu, got.Tensor)
			want := extract.Compared{Tensor: got.Tensor, Values: int64(len(w))}
			for i := range w {
				if w[i] == x[i] {
					want.Equal++
				}
				want.MaxAbs = max(want.MaxAbs, math.Abs(w[i]-x[i]))
			}
			d, n := distance(w, x)
			if got.Values != want.Values || got.Equal != want.Equal || got.MaxAbs != want.MaxAbs || math.Abs(got.Relative-d/n) > 1e-12 {
				t.Errorf("%+v, want %+v and relative %v", got, want, d/n)
			}
		}
	}
	if _, err := extract.NewComparison(&plan.Plan{Steps: []plan.Step{{Write: plan.Placement{Tensor: "x"}}}}, tu, "", ""); err == nil {
		t.Error("a tensor that the model lacks is accepted")
	}
}

// openAdapter reads an output as a loader would.
func openAdapter(t *testing.T, dir string) *adapter.Adapter {
	t.Helper()
	m, err := checkpoint.OpenAdapter(dir, hfrepo.Cache{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	a, err := adapter.Open(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}
