package engine_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/plan"
)

// pieced adds a tensor that several steps write: rows that are copied from two
// places of another one, computed rows between them, and an order of the steps that
// is not that of the rows.
func pieced(t *testing.T, p *plan.Plan, mem *checkpoint.Memory) tensor.Spec {
	t.Helper()
	from := spec(t, "pieces", tensor.BF16, 90, 31)
	side := spec(t, "pieces.side", tensor.F32, 90, 31)
	mem.Add(from, fill(from, 7))
	mem.Add(side, fill(side, 8))
	add := func(read, to, rows int64, stages ...plan.Stage) {
		s := plan.Whole(0, from)
		s.From, s.To = read, read+rows
		p.Steps = append(p.Steps, plan.Step{
			Read: s, Stages: stages, Judge: len(stages) > 0,
			Write: plan.Placement{Tensor: "stack", DType: tensor.BF16, Row: to},
		})
	}
	add(40, 0, 17)
	add(13, 60, 20, plan.Stage{Op: addSide{}, Sides: []plan.Slice{plan.Whole(0, side)}})
	add(2, 17, 43, plan.Stage{Op: addSide{}, Sides: []plan.Slice{plan.Whole(0, side)}})
	return spec(t, "stack", tensor.BF16, 4, 20, 31)
}

// viewed is a plan with each kind of step, its input, and the tensors it makes.
func viewed(t *testing.T) (*plan.Plan, *checkpoint.Memory, []tensor.Spec) {
	t.Helper()
	p, mem := everything(t)
	var specs []tensor.Spec
	for i := range p.Steps {
		s := &p.Steps[i]
		specs = append(specs, tensor.Spec{Name: s.Write.Tensor, DType: s.Write.DType, Shape: s.Read.Spec.Shape})
	}
	return p, mem, append(specs, pieced(t, p, mem))
}

// want runs a plan and returns the bytes of its tensors.
func want(t *testing.T, p *plan.Plan, in engine.Source) (map[string][]byte, engine.Report) {
	t.Helper()
	sink := newSink(p)
	r, err := engine.Run(t.Context(), p, []engine.Source{in}, sink, engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return sink.data, r
}

// readIn reads a tensor in pieces of n bytes, from several goroutines in any order.
func readIn(v *engine.View, s tensor.Spec, n int64, readers int) ([]byte, error) {
	src, err := v.Open(s.Name)
	if err != nil {
		return nil, err
	}
	data := make([]byte, s.Size())
	var at atomic.Int64
	var group sync.WaitGroup
	errs := make(chan error, readers)
	for range readers {
		group.Go(func() {
			for {
				off := at.Add(n) - n
				if off >= s.Size() {
					return
				}
				p := data[off:min(off+n, s.Size())]
				if got, err := src.ReadAt(p, off); got != len(p) || err != nil {
					errs <- fmt.Errorf("%s: %d of %d bytes at %d: %w", s.Name, got, len(p), off, err)
					return
				}
			}
		})
	}
	group.Wait()
	close(errs)
	return data, <-errs
}

// TestViewSameBytes guards that a view reads what a run writes, in whatever pieces,
// from however many goroutines, with any memory, and that its figures are the same.
func TestViewSameBytes(t *testing.T) {
	p, mem, specs := viewed(t)
	bytesOf, report := want(t, p, mem)
	least, err := leastMemory(p)
	if err != nil {
		t.Fatal(err)
	}
	for _, memory := range []int64{least, 2 * least, 1 << 28} {
		for _, readers := range []int{1, 3} {
			for _, piece := range []int64{61, 1000, 1 << 20} {
				v, err := engine.NewView(p, specs, []engine.Source{mem}, engine.Options{Jobs: readers, Memory: memory})
				if err != nil {
					t.Fatal(err)
				}
				for _, s := range specs {
					got, err := readIn(v, s, piece, readers)
					if err != nil {
						t.Fatal(err)
					}
					if !bytes.Equal(got, bytesOf[s.Name]) {
						t.Errorf("memory %d, %d readers, pieces of %d: %s has other bytes", memory, readers, piece, s.Name)
					}
				}
				if got := v.Reports(); !reflect.DeepEqual(got, report.Tensors) {
					t.Errorf("memory %d, %d readers, pieces of %d: other figures:\n%+v\n%+v", memory, readers, piece, got, report.Tensors)
				}
			}
		}
	}
}

// TestViewRealOperations is the same with the operations of merges, the fused kernel
// among them.
func TestViewRealOperations(t *testing.T) {
	w := realPlan(t)
	var steps []plan.Step
	var specs []tensor.Spec
	for _, s := range w.plan.Steps {
		if s.Write.Row == 0 {
			steps = append(steps, s)
			specs = append(specs, tensor.Spec{Name: s.Write.Tensor, DType: s.Write.DType, Shape: s.Read.Spec.Shape})
		}
	}
	p := &plan.Plan{Steps: steps}
	bytesOf, report := want(t, p, &w.mem)
	for _, memory := range []int64{0, 1 << 20} { // with the fused kernel, and without
		v, err := engine.NewView(p, specs, []engine.Source{&w.mem}, engine.Options{Jobs: 2, Memory: memory})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range specs {
			got, err := readIn(v, s, 100, 2)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, bytesOf[s.Name]) {
				t.Errorf("memory %d: %s has other bytes", memory, s.Name)
			}
		}
		if got := v.Reports(); !reflect.DeepEqual(got, report.Tensors) {
			t.Errorf("memory %d: other figures:\n%+v\n%+v", memory, got, report.Tensors)
		}
	}
}

// TestViewAnyOrder reads pieces of all tensors from many goroutines in random order,
// with memory for the sides of one step: whoever waits must get on.
func TestViewAnyOrder(t *testing.T) {
	p, mem, specs := viewed(t)
	bytesOf, _ := want(t, p, mem)
	least, err := leastMemory(p)
	if err != nil {
		t.Fatal(err)
	}
	v, err := engine.NewView(p, specs, []engine.Source{mem}, engine.Options{Jobs: 4, Memory: least})
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for i := range uint64(4) {
		group.Go(func() {
			rng := rand.New(rand.NewPCG(i, 3))
			for range 60 {
				s := specs[rng.IntN(len(specs))]
				src, err := v.Open(s.Name)
				if err != nil {
					t.Error(err)
					return
				}
				off := rng.Int64N(s.Size() + 1)
				buf := make([]byte, rng.Int64N(5000))
				n, err := src.ReadAt(buf, off)
				if whole := int64(len(buf)) <= s.Size()-off && off < s.Size(); whole != (err == nil) || !whole && err != io.EOF {
					t.Errorf("%s: %d of %d bytes at %d of %d: %v", s.Name, n, len(buf), off, s.Size(), err)
				}
				if !bytes.Equal(buf[:n], bytesOf[s.Name][off:off+int64(n)]) {
					t.Errorf("%s: other bytes at %d", s.Name, off)
				}
			}
		})
	}
	group.Wait()
}

// counted counts how often each tensor is opened.
type counted struct {
	engine.Source
	mu    sync.Mutex
	opens map[string]int
}

func (c *counted) Open(name string) (io.ReaderAt, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.opens[name]++
	return c.Source.Open(name)
}

// TestViewBindsOnce guards that reading in order loads every side once.
func TestViewBindsOnce(t *testing.T) {
	p, mem, specs := viewed(t)
	least, err := leastMemory(p)
	if err != nil {
		t.Fatal(err)
	}
	in := &counted{Source: mem, opens: make(map[string]int)}
	v, err := engine.NewView(p, specs, []engine.Source{in}, engine.Options{Jobs: 2, Memory: least})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range specs {
		if _, err := readIn(v, s, 333, 2); err != nil {
			t.Fatal(err)
		}
	}
	// "side" belongs to two steps, "pieces.side" to two pieces of one tensor.
	for name, times := range map[string]int{"side": 2, "pieces.side": 2, "normalised": 1, "cast": 1} {
		if got := in.opens[name]; got != times {
			t.Errorf("%s was opened %d times, want %d", name, got, times)
		}
	}
}

// TestViewFaults fails every read in turn: who reads gets that error, and a later
// attempt succeeds.
func TestViewFaults(t *testing.T) {
	p, mem, specs := viewed(t)
	bytesOf, _ := want(t, p, mem)
	for failAt := int64(1); ; failAt++ {
		calls := new(atomic.Int64)
		v, err := engine.NewView(p, specs, []engine.Source{failing{mem, calls, failAt, errPlanted}}, engine.Options{Jobs: 1, Memory: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		failed := 0
		for _, s := range specs {
			_, err := readIn(v, s, 1<<16, 1)
			if err == nil {
				continue
			}
			if failed++; !errors.Is(err, errPlanted) {
				t.Fatalf("read %d: got %v", failAt, err)
			}
			if again, err := readIn(v, s, 1<<16, 1); err != nil || !bytes.Equal(again, bytesOf[s.Name]) {
				t.Fatalf("read %d, once more: %v", failAt, err)
			}
		}
		if failed > 1 {
			t.Fatalf("read %d failed %d tensors", failAt, failed)
		}
		if failed == 0 {
			if failAt < 10 {
				t.Fatalf("only %d reads", failAt-1)
			}
			return
		}
	}
}

// TestViewNonFinite guards that a view refuses what a run refuses.
func TestViewNonFinite(t *testing.T) {
	p, mem := one(t, tensor.F32, tensor.F16, scaleUp{})
	s := tensor.Spec{Name: "w", DType: tensor.F16, Shape: p.Steps[0].Read.Spec.Shape}
	v, err := engine.NewView(p, []tensor.Spec{s}, []engine.Source{mem}, engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	_, fromRun := engine.Run(t.Context(), p, []engine.Source{mem}, newSink(p), engine.Options{})
	src, _ := v.Open("w")
	_, err = src.ReadAt(make([]byte, s.Size()), 0)
	var bad *engine.NonFiniteError
	if !errors.As(err, &bad) || err.Error() != fromRun.Error() {
		t.Errorf("got %v, a run says %v", err, fromRun)
	}
	// It says so with the first of them, not when all rows have been read.
	if _, err = src.ReadAt(make([]byte, 2*s.Cols()), 2*s.Cols()*bad.Row); !errors.As(err, &bad) {
		t.Errorf("reading one row: got %v", err)
	}
}

// TestViewBug guards that a panic of an operation is an error, and that who waits
// for its memory goes on.
func TestViewBug(t *testing.T) {
	p, mem, specs := viewed(t)
	for i := range p.Steps {
		if p.Steps[i].Write.Tensor == "normalised" {
			p.Steps[i].Stages[0].Op = panicky{}
		}
	}
	v, err := engine.NewView(p, specs, []engine.Source{mem}, engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		src, _ := v.Open("normalised")
		_, err := src.ReadAt(make([]byte, 100), 0)
		var bug *engine.BugError
		if !errors.As(err, &bug) {
			t.Errorf("got %v", err)
		}
	}
	if _, err := readIn(v, specs[len(specs)-1], 50, 2); err != nil {
		t.Error(err)
	}
}

// panicky panics when it is bound.
type panicky struct{}

func (panicky) Kind() string { return "panicky" }

func (panicky) Bind([]tensor.Matrix[float32]) (plan.Func[float32], error) { panic("planted panic") }

func (panicky) Bind64([]tensor.Matrix[float64]) (plan.Func[float64], error) { panic("planted panic") }

// TestViewRefuses lists tensors that the plan does not make.
func TestViewRefuses(t *testing.T) {
	p, mem, specs := viewed(t)
	last := len(specs) - 1
	for name, s := range map[string]tensor.Spec{
		"another type": {Name: "cast", DType: tensor.F16, Shape: specs[5].Shape},
		"too many":     {Name: "stack", DType: tensor.BF16, Shape: tensor.Shape{81, 31}},
		"too few":      {Name: "stack", DType: tensor.BF16, Shape: tensor.Shape{79, 31}},
		"unknown":      {Name: "no such tensor", DType: tensor.F32, Shape: tensor.Shape{1}},
	} {
		if _, err := engine.NewView(p, []tensor.Spec{s}, []engine.Source{mem}, engine.Options{}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for _, rows := range []int64{-1, 1} { // the second piece overlaps, and leaves a gap
		q := *p
		q.Steps = append([]plan.Step(nil), p.Steps...)
		q.Steps[len(q.Steps)-2].Write.Row += rows
		if _, err := engine.NewView(&q, specs[last:], []engine.Source{mem}, engine.Options{}); err == nil {
			t.Errorf("moved by %d rows: accepted", rows)
		}
	}
	v, err := engine.NewView(p, specs[:1], []engine.Source{mem}, engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Open("cast"); err == nil {
		t.Error("opened a tensor that was not listed")
	}
	if _, err := engine.NewView(p, specs, []engine.Source{mem}, engine.Options{Memory: 100}); !errors.As(err, new(*engine.MemoryError)) {
		t.Errorf("with 100 bytes: %v", err)
	}
}

// TestViewFiguresOutlastSteps reads one half of every tensor and then the other, with
// memory for one step: each is bound twice, and its figures are of all its rows.
func TestViewFiguresOutlastSteps(t *testing.T) {
	p, mem, specs := viewed(t)
	_, report := want(t, p, mem)
	least, err := leastMemory(p)
	if err != nil {
		t.Fatal(err)
	}
	v, err := engine.NewView(p, specs, []engine.Source{mem}, engine.Options{Jobs: 1, Memory: least})
	if err != nil {
		t.Fatal(err)
	}
	for half := range int64(2) {
		for _, s := range specs {
			src, err := v.Open(s.Name)
			if err != nil {
				t.Fatal(err)
			}
			off := s.Size() / 2 * half
			buf := make([]byte, s.Size()/2+half*(s.Size()%2))
			if n, err := src.ReadAt(buf, off); n != len(buf) || err != nil && err != io.EOF {
				t.Fatalf("%s: %d of %d bytes at %d: %v", s.Name, n, len(buf), off, err)
			}
		}
	}
	if got := v.Reports(); !reflect.DeepEqual(got, report.Tensors) {
		t.Errorf("other figures:\n%+v\n%+v", got, report.Tensors)
	}
}
