package engine_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/plan"
	"github.com/loratool/loratool/quant/block"
)

// twins is a plan of real operations, with the slow twin of every step.
type twins struct {
	t    *testing.T
	mem  checkpoint.Memory
	plan plan.Plan
	want map[string][]float64 // by tensor, before the one rounding
}

// side adds a tensor of random values and returns it as a side input with its
// values.
func (w *twins) side(name string, d tensor.DType, shape ...int64) (plan.Slice, []float64) {
	s := spec(w.t, name, d, shape...)
	rng := rand.New(rand.NewPCG(uint64(len(w.mem.Specs())), 2))
	v, data := make([]float64, s.NumElements()), make([]byte, s.Size())
	for i := range v {
		v[i] = rng.NormFloat64()
	}
	codec, _ := block.For(d)
	codec.Encode64(data, v)
	codec.Decode64(v, data) // as rounded
	w.mem.Add(s, data)
	return plan.Whole(0, s), v
}

// step adds a step that makes want of its input.
func (w *twins) step(read plan.Slice, out tensor.DType, want []float64, stages ...plan.Stage) {
	w.plan.Steps = append(w.plan.Steps, plan.Step{
		Read: read, Stages: stages, Judge: len(stages) > 0,
		Write: plan.Placement{Tensor: read.Tensor, DType: out},
	})
	w.want[read.Tensor] = want
}

// product adds s · b·a to the rows x cols matrix w; a is rank x cols.
func product(w []float64, rows, cols, rank int, s float64, b, a []float64) []float64 {
	x := make([]float64, len(w))
	for i := range rows {
		for j := range cols {
			sum := 0.0
			for k := range rank {
				sum += b[i*rank+k] * a[k*cols+j]
			}
			x[i*cols+j] = w[i*cols+j] + s*sum
		}
	}
	return x
}

// crossed is product for a weight that is stored (in, out): w gets (b·a)^T.
func crossed(w []float64, rows, cols, rank int, s float64, b, a []float64) []float64 {
	x := make([]float64, len(w))
	for i := range rows {
		for j := range cols {
			sum := 0.0
			for k := range rank {
				sum += b[j*rank+k] * a[k*rows+i]
			}
			x[i*cols+j] = w[i*cols+j] + s*sum
		}
	}
	return x
}

// realPlan has a step for every way of computing that merges use.
func realPlan(t *testing.T) *twins {
	const rows, cols, rank = 37, 29, 3
	w := &twins{t: t, want: make(map[string][]float64)}
	region := merge.Region{Rows: rows}
	lora := func(name string, d tensor.DType) (plan.Stage, []float64, []float64) {
		a, av := w.side(name+".A", d, rank, cols)
		b, bv := w.side(name+".B", d, rows, rank)
		return plan.Stage{Op: merge.AddLoRA{Scale: 0.5, Region: region}, Sides: []plan.Slice{a, b}}, av, bv
	}

	x, v := w.side("cast to f16", tensor.F32, rows, cols)
	w.step(x, tensor.F16, v)
	x, v = w.side("cast of a vector", tensor.F64, rows)
	w.step(x, tensor.BF16, v)

	x, v = w.side("lora on bf16", tensor.BF16, rows, cols)
	st, a, b := lora("lora on bf16", tensor.F32)
	w.step(x, tensor.BF16, product(v, rows, cols, rank, 0.5, b, a), st)

	x, v = w.side("lora in f64", tensor.F64, rows, cols)
	st, a, b = lora("lora in f64", tensor.F32)
	w.step(x, tensor.F64, product(v, rows, cols, rank, 0.5, b, a), st)

	x, v = w.side("factors in f64", tensor.BF16, rows, cols)
	st, a, b = lora("factors in f64", tensor.F64)
	w.step(x, tensor.F32, product(v, rows, cols, rank, 0.5, b, a), st)

	// DoRA on a weight that is stored (in, out): the norm of a column needs the
	// whole tensor, after the product was added.
	x, v = w.side("dora by column", tensor.F32, rows, cols)
	ca, cav := w.side("dora.A", tensor.F32, rank, rows)
	cb, cbv := w.side("dora.B", tensor.F32, cols, rank)
	m, mv := w.side("dora.m", tensor.F32, cols)
	want := crossed(v, rows, cols, rank, -2, cbv, cav)
	for j := range cols {
		square := 0.0
		for i := range rows {
			square += want[i*cols+j] * want[i*cols+j]
		}
		for i := range rows {
			want[i*cols+j] *= mv[j] / math.Sqrt(square)
		}
	}
	w.step(x, tensor.BF16, want,
		plan.Stage{Op: merge.AddLoRA{Scale: -2, Transposed: true, Region: region}, Sides: []plan.Slice{ca, cb}},
		plan.Stage{Op: merge.DoRA{ByColumn: true, Region: region}, Sides: []plan.Slice{m}})

	// Two adapters, of which one looks at the weight: each is seen from the base.
	x, v = w.side("blend", tensor.F16, rows, cols)
	st, a, b = lora("blend.1", tensor.F32)
	other, oa, ob := lora("blend.2", tensor.BF16)
	n, nv := w.side("blend.m", tensor.F32, cols)
	first := product(v, rows, cols, rank, 0.5, b, a)
	for j := range cols {
		square := 0.0
		for i := range rows {
			square += first[i*cols+j] * first[i*cols+j]
		}
		for i := range rows {
			first[i*cols+j] *= nv[j] / math.Sqrt(square)
		}
	}
	second := product(v, rows, cols, rank, 0.5, ob, oa)
	want = make([]float64, len(v))
	for i := range v {
		want[i] = v[i] + 0.75*(first[i]-v[i]) - 0.25*(second[i]-v[i])
	}
	dora := plan.Stage{Op: merge.DoRA{ByColumn: true, Region: region}, Sides: []plan.Slice{n}}
	op := merge.Blend{Branches: []merge.Branch{{Weight: 0.75, Stages: []plan.Stage{st, dora}}, {Weight: -0.25, Stages: []plan.Stage{other}}}}
	w.step(x, tensor.F32, want, plan.Stage{Op: op, Sides: append(append(append([]plan.Slice{}, st.Sides...), n), other.Sides...)})

	// FP8 as it is, then a product.
	x, v = w.side("fp8", tensor.F8E4M3, rows, cols)
	st, a, b = lora("fp8", tensor.F32)
	w.step(x, tensor.BF16, product(v, rows, cols, rank, 0.5, b, a), st)

	// Rows of a larger tensor, to another place of a larger one.
	x, v = w.side("slice", tensor.F32, rows, cols)
	x.From, x.To = 5, 30
	w.step(x, tensor.BF16, v[5*cols:30*cols])
	w.plan.Steps[len(w.plan.Steps)-1].Write.Row = 4

	x, _ = w.side("copy", tensor.BF16, rows, cols)
	w.step(x, tensor.BF16, nil)
	return w
}

// ops bounds the roundings that go into an element of realPlan, and largest the
// magnitude of what is added up: 3 products, a scale, a norm, two branches of
// normal variates.
const (
	ops     = 32
	largest = 64
)

// halfUlp is the largest error of rounding x to a type, to nearest.
func halfUlp(d tensor.DType, x float64) float64 {
	digits, lowest := map[tensor.DType]int{tensor.F64: 53, tensor.F32: 24, tensor.F16: 11, tensor.BF16: 8}[d],
		map[tensor.DType]int{tensor.F64: -1074, tensor.F32: -149, tensor.F16: -24, tensor.BF16: -133}[d]
	_, exp := math.Frexp(x)
	return math.Ldexp(0.5, max(exp-digits, lowest))
}

// TestTwins guards that every step is its formula with one rounding to the
// stored type, and the same bytes for any jobs and memory.
func TestTwins(t *testing.T) {
	w := realPlan(t)
	least, err := leastMemory(&w.plan)
	if err != nil {
		t.Fatal(err)
	}
	sizes := func() *memSink {
		sink := newSink(&w.plan)
		sink.data["slice"] = append(sink.data["slice"], make([]byte, 4*29*2)...) // four rows in front
		return sink
	}
	var first *memSink
	var figures []engine.TensorReport
	for _, jobs := range []int{1, 2, 3, 7, 16} {
		for _, memory := range []int64{least, least + least/2, 3 * least, 1 << 28} {
			sink := sizes()
			report, err := engine.Run(t.Context(), &w.plan, []engine.Source{&w.mem}, sink, engine.Options{Jobs: jobs, Memory: memory})
			if err != nil {
				t.Fatalf("jobs %d, memory %d: %v", jobs, memory, err)
			}
			if len(report.Tensors) != 6 {
				t.Errorf("%d figures, want one for each judged step", len(report.Tensors))
			}
			if first == nil {
				first, figures = sink, report.Tensors
				w.check(sink)
				continue
			}
			if !reflect.DeepEqual(report.Tensors, figures) {
				t.Errorf("jobs %d, memory %d: other figures: %+v", jobs, memory, report.Tensors)
			}
			for name, data := range first.data {
				if !bytes.Equal(sink.data[name], data) {
					t.Errorf("jobs %d, memory %d: %s has other bytes", jobs, memory, name)
				}
			}
		}
	}
}

// check compares what was written with the twins.
func (w *twins) check(sink *memSink) {
	for i := range w.plan.Steps {
		s := &w.plan.Steps[i]
		data := sink.data[s.Write.Tensor]
		if s.Copies() {
			src, _ := w.mem.Open(s.Read.Tensor)
			raw := make([]byte, len(data))
			if n, _ := src.ReadAt(raw, 0); n != len(data) || !bytes.Equal(raw, data) {
				w.t.Errorf("%s is no copy", s.Write.Tensor)
			}
			continue
		}
		codec, _ := block.For(s.Write.DType)
		data = data[s.Write.Row*s.Read.Cols*s.Write.DType.Bits()/8:]
		got := make([]float64, int64(len(data))*8/s.Write.DType.Bits())
		codec.Decode64(got, data)
		roundoff := 0x1p-24
		if s.Double() {
			roundoff = 0x1p-53
		}
		for k, want := range w.want[s.Write.Tensor] {
			slack := 0.0
			if len(s.Stages) > 0 {
				slack = ops * largest * roundoff
			}
			if limit := halfUlp(s.Write.DType, want) + slack; !(math.Abs(got[k]-want) <= limit) {
				w.t.Errorf("%s[%d] is %v, want %v within %.3g", s.Write.Tensor, k, got[k], want, limit)
				break
			}
		}
	}
}

// TestEmptyRows guards that rows without columns cost neither time nor memory:
// a header may claim any number of them.
func TestEmptyRows(t *testing.T) {
	for _, rows := range []int64{0, 1 << 40, 1 << 62} {
		s := spec(t, "empty", tensor.F32, rows, 0)
		mem := new(checkpoint.Memory)
		mem.Add(s, nil)
		p := &plan.Plan{Steps: []plan.Step{
			{Read: plan.Whole(0, s), Write: plan.Placement{Tensor: "empty", DType: tensor.BF16}},
			{Read: plan.Whole(0, s), Write: plan.Placement{Tensor: "empty", DType: tensor.F32}, Judge: true, Stages: []plan.Stage{{Op: broken{row: -1}}}},
		}}
		start := time.Now()
		r, err := engine.Run(t.Context(), p, []engine.Source{mem}, newSink(p), engine.Options{Memory: 1 << 20})
		if err != nil || len(r.Tensors) != 1 || r.Tensors[0].Survival != 1 {
			t.Errorf("%d rows: %v, %v", rows, r.Tensors, err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("%d rows took %v", rows, took)
		}
	}
}

// TestJobs guards that any number of jobs is brought into range.
func TestJobs(t *testing.T) {
	p, _ := everything(t)
	start := time.Now()
	for _, jobs := range []int{-1, 0, 1, 5000, math.MaxInt} {
		b, err := engine.Budget(p, engine.Options{Jobs: jobs})
		if err != nil || b.Jobs < 1 || b.Jobs > 1024 || b.Peak > engine.DefaultMemory {
			t.Errorf("%d jobs: %+v, %v", jobs, b, err)
		}
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("took %v", took)
	}
}

// TestMemoryIsExact guards that the memory that an error asks for suffices and
// that one byte less does not, and that fewer jobs are taken first.
func TestMemoryIsExact(t *testing.T) {
	real := realPlan(t)
	p, _ := everything(t)
	copies := &plan.Plan{Steps: p.Steps[:1]}
	for name, p := range map[string]*plan.Plan{"real": &real.plan, "everything": p, "copies": copies} {
		for _, jobs := range []int{1, 8} {
			_, err := engine.Budget(p, engine.Options{Jobs: jobs, Memory: 1})
			e, ok := errors.AsType[*engine.MemoryError](err)
			if !ok || e.Have != 1 || !strings.HasPrefix(e.Error(), `"`) {
				t.Fatalf("%s: error %v", name, err)
			}
			b, err := engine.Budget(p, engine.Options{Jobs: jobs, Memory: e.Need})
			if err != nil || b.Jobs != 1 || b.Peak > e.Need {
				t.Errorf("%s, jobs %d: with the %d bytes asked for: %+v, %v", name, jobs, e.Need, b, err)
			}
			if b, err := engine.Budget(p, engine.Options{Jobs: jobs, Memory: e.Need - 1}); err == nil {
				t.Errorf("%s, jobs %d: with a byte less: %+v", name, jobs, b)
			}
		}
	}
}

// early is an operation that goes wrong before the first band.
type early struct {
	at string // "bind", "observe", "finish"; with "!" it panics
}

func (early) Kind() string { return "early" }

func (op early) fail(at string) error {
	switch op.at {
	case at:
		return errPlanted
	case at + "!":
		panic("planted panic")
	}
	return nil
}

func (op early) Bind([]tensor.Matrix[float32]) (plan.Func[float32], error) {
	return op, op.fail("bind")
}

func (early) Bind64([]tensor.Matrix[float64]) (plan.Func[float64], error) { return nil, errPlanted }

func (early) Apply(plan.Band[float32]) error { return nil }

func (early) Passes() int { return 1 }

func (op early) Observe(int, plan.Band[float32]) error { return op.fail("observe") }

func (op early) Finish(int) error { return op.fail("finish") }

// TestEarlyFaults guards that what goes wrong while a step is prepared ends the
// run like everything else, and names the tensor.
func TestEarlyFaults(t *testing.T) {
	for _, at := range []string{"bind", "observe", "finish"} {
		for _, mark := range []string{"", "!"} {
			p, mem := one(t, tensor.F32, tensor.F32, early{at + mark})
			_, err := engine.Run(t.Context(), p, []engine.Source{mem}, newSink(p), engine.Options{})
			_, isBug := errors.AsType[*engine.BugError](err)
			if isBug != (mark == "!") || !isBug && !errors.Is(err, errPlanted) || !strings.Contains(err.Error(), `"w"`) {
				t.Errorf("%s%s: error %v", at, mark, err)
			}
		}
	}
}

// TestNoSuchTensor guards the message for a source or a type that can't serve.
func TestNoSuchTensor(t *testing.T) {
	p, mem := one(t, tensor.F32, tensor.F32, broken{row: -1})
	for _, c := range []struct {
		name   string
		change func(s *plan.Step)
		want   string
	}{
		{"input", func(s *plan.Step) { s.Read.Tensor = "x" }, `"w": no tensor "x" in memory`},
		{"side", func(s *plan.Step) { s.Stages[0].Sides = []plan.Slice{{Tensor: "y", Spec: s.Read.Spec}} }, `"w": no tensor "y" in memory`},
		{"side type", func(s *plan.Step) {
			side := s.Read
			side.Spec.DType = tensor.I64
			s.Stages[0].Sides = []plan.Slice{side}
		}, `"w": "w": i64 can't be computed with`},
		{"input type", func(s *plan.Step) { s.Read.Spec.DType = tensor.I64 }, `"w": i64 can't be computed with`},
		{"output type", func(s *plan.Step) { s.Write.DType = tensor.I64 }, `"w": i64 can't be written`},
	} {
		t.Run(c.name, func(t *testing.T) {
			q := &plan.Plan{Steps: []plan.Step{p.Steps[0]}}
			q.Steps[0].Stages = []plan.Stage{p.Steps[0].Stages[0]}
			c.change(&q.Steps[0])
			_, err := engine.Run(t.Context(), q, []engine.Source{mem}, newSink(p), engine.Options{})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

// TestShortReads guards that a tensor that ends early, anywhere, is an input
// that changed, never zeros.
func TestShortReads(t *testing.T) {
	w := realPlan(t)
	for _, s := range w.mem.Specs() {
		for _, cut := range []int64{1, s.Size()/2 + 1, s.Size()} {
			if cut > s.Size() {
				continue
			}
			src := shortened{&w.mem, s.Name, s.Size() - cut}
			_, err := engine.Run(t.Context(), &w.plan, []engine.Source{src}, discard{}, engine.Options{Memory: 1 << 20})
			if changed, ok := errors.AsType[*engine.InputChangedError](err); !ok || !strings.Contains(err.Error(), fmt.Sprintf("reading %q", s.Name)) {
				// The slice that is read may end before the cut.
				if s.Name == "slice" && err == nil && cut == 1 {
					continue
				}
				t.Errorf("%s without its last %d bytes: %v, %v", s.Name, cut, changed, err)
			}
		}
	}
}

// shortened is a source of which one tensor ends early.
type shortened struct {
	engine.Source
	name string
	size int64
}

func (s shortened) Open(name string) (io.ReaderAt, error) {
	r, err := s.Source.Open(name)
	if name != s.name || err != nil {
		return r, err
	}
	return io.NewSectionReader(r, 0, s.size), nil
}

// discard is a sink that forgets.
type discard struct{}

func (discard) WriteAt(int, string, []byte, int64) error { return nil }
