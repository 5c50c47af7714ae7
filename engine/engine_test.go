package engine_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/plan"
)

// memSink collects outputs and refuses what would be a mistake of the engine:
// bytes outside a tensor or written twice.
type memSink struct {
	mu      sync.Mutex
	data    map[string][]byte
	written map[string]int
	calls   atomic.Int64
	failAt  int64
}

func newSink(p *plan.Plan) *memSink {
	s := &memSink{data: make(map[string][]byte), written: make(map[string]int)}
	for i := range p.Steps {
		step := &p.Steps[i]
		s.data[step.Write.Tensor] = append(s.data[step.Write.Tensor], bytes.Repeat([]byte{0xee}, int(step.OutBytes()))...)
	}
	return s
}

var errPlanted = errors.New("planted fault")

func (s *memSink) WriteAt(_ int, name string, p []byte, off int64) error {
	if s.calls.Add(1) == s.failAt {
		return errPlanted
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if off < 0 || off+int64(len(p)) > int64(len(s.data[name])) {
		return fmt.Errorf("%s: bytes [%d, %d) of %d", name, off, off+int64(len(p)), len(s.data[name]))
	}
	copy(s.data[name][off:], p)
	s.written[name] += len(p)
	return nil
}

func (s *memSink) complete() error {
	for name, d := range s.data {
		if s.written[name] != len(d) {
			return fmt.Errorf("%s: %d of %d bytes", name, s.written[name], len(d))
		}
	}
	return nil
}

// normalise is an operation that needs two looks at the whole tensor: it
// subtracts the mean of each column, then divides by the largest remainder.
type normalise struct{ cols int }

func (normalise) Kind() string { return "normalise" }

func (op normalise) Bind([]tensor.Matrix[float32]) (plan.Func[float32], error) {
	return &normaliser[float32]{mean: make([]float64, op.cols)}, nil
}

func (op normalise) Bind64([]tensor.Matrix[float64]) (plan.Func[float64], error) {
	return &normaliser[float64]{mean: make([]float64, op.cols)}, nil
}

type normaliser[T tensor.Float] struct {
	mean    []float64
	largest float64
	next    int64 // observers are promised the rows in order
}

func (*normaliser[T]) Passes() int { return 2 }

func (f *normaliser[T]) Observe(pass int, b plan.Band[T]) error {
	if b.Row != f.next {
		return fmt.Errorf("pass %d came to row %d instead of %d", pass, b.Row, f.next)
	}
	f.next += int64(b.Rows)
	for i, v := range b.X {
		if pass == 0 {
			f.mean[i%b.Cols] += float64(v)
			continue
		}
		f.largest = max(f.largest, math.Abs(float64(v)-f.mean[i%b.Cols]))
	}
	return nil
}

func (f *normaliser[T]) Finish(pass int) error {
	if pass == 0 {
		for j := range f.mean {
			f.mean[j] /= float64(f.next)
		}
	}
	f.next = 0
	return nil
}

func (f *normaliser[T]) Apply(b plan.Band[T]) error {
	for i, v := range b.X {
		b.X[i] = T((float64(v) - f.mean[i%b.Cols]) / f.largest)
	}
	return nil
}

// addSide adds a side of the tensor's own shape.
type addSide struct{}

func (addSide) Kind() string { return "add_side" }

func (addSide) Bind(s []tensor.Matrix[float32]) (plan.Func[float32], error) {
	return sideAdder[float32](s[0].Data), nil
}

func (addSide) Bind64(s []tensor.Matrix[float64]) (plan.Func[float64], error) {
	return sideAdder[float64](s[0].Data), nil
}

type sideAdder[T tensor.Float] []T

func (f sideAdder[T]) Apply(b plan.Band[T]) error {
	for i := range b.X {
		b.X[i] += f[int(b.Row)*b.Cols+i]
	}
	return nil
}

// broken panics, or fails, at a row.
type broken struct {
	row   int64
	panic bool
}

func (broken) Kind() string { return "broken" }

func (op broken) Bind([]tensor.Matrix[float32]) (plan.Func[float32], error) {
	return breaker[float32](op), nil
}

func (op broken) Bind64([]tensor.Matrix[float64]) (plan.Func[float64], error) {
	return breaker[float64](op), nil
}

type breaker[T tensor.Float] broken

func (f breaker[T]) Apply(b plan.Band[T]) error {
	if f.row < b.Row || f.row >= b.Row+int64(b.Rows) {
		return nil
	}
	if f.panic {
		panic("planted panic")
	}
	return errPlanted
}

func spec(t *testing.T, name string, d tensor.DType, shape ...int64) tensor.Spec {
	t.Helper()
	s, err := tensor.NewSpec(name, d, shape)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// fill makes random values of a type; of F4 random bytes.
func fill(s tensor.Spec, seed uint64) []byte {
	rng := rand.New(rand.NewPCG(seed, 1))
	data := make([]byte, s.Size())
	switch s.DType {
	case tensor.F32:
		for i := 0; i < len(data); i += 4 {
			binary.LittleEndian.PutUint32(data[i:], math.Float32bits(float32(rng.NormFloat64())))
		}
	case tensor.F64:
		for i := 0; i < len(data); i += 8 {
			binary.LittleEndian.PutUint64(data[i:], math.Float64bits(rng.NormFloat64()))
		}
	case tensor.BF16:
		for i := 0; i < len(data); i += 2 {
			binary.LittleEndian.PutUint16(data[i:], uint16(math.Float32bits(float32(rng.NormFloat64()))>>16))
		}
	default:
		for i := range data {
			data[i] = byte(rng.Uint32())
		}
	}
	return data
}

// everything is a plan with each kind of step there is, and its input.
func everything(t *testing.T) (*plan.Plan, *checkpoint.Memory) {
	t.Helper()
	mem, p := new(checkpoint.Memory), new(plan.Plan)
	add := func(s tensor.Spec, out tensor.DType, stages ...plan.Stage) {
		mem.Add(s, fill(s, uint64(len(p.Steps))))
		p.Steps = append(p.Steps, plan.Step{
			Read: plan.Whole(0, s), Stages: stages, Judge: len(stages) > 0,
			Write: plan.Placement{Tensor: s.Name, DType: out},
		})
	}
	add(spec(t, "copy", tensor.BF16, 333, 71), tensor.BF16)
	add(spec(t, "copy.f4", tensor.F4, 3, 10), tensor.F4)
	add(spec(t, "scalar", tensor.I64), tensor.I64)
	add(spec(t, "empty", tensor.F32, 0, 5), tensor.F32)
	add(spec(t, "empty.cast", tensor.F32, 5, 0), tensor.BF16)
	add(spec(t, "cast", tensor.F32, 501, 33), tensor.BF16)
	add(spec(t, "vector", tensor.F32, 1000), tensor.F16)
	add(spec(t, "normalised", tensor.BF16, 257, 129), tensor.BF16, plan.Stage{Op: normalise{129}})
	wide := spec(t, "side", tensor.F32, 40, 300)
	mem.Add(wide, fill(wide, 99))
	add(spec(t, "added", tensor.BF16, 40, 300), tensor.F32, plan.Stage{Op: addSide{}, Sides: []plan.Slice{plan.Whole(0, wide)}})
	add(spec(t, "both", tensor.F64, 40, 300), tensor.F64,
		plan.Stage{Op: addSide{}, Sides: []plan.Slice{plan.Whole(0, wide)}}, plan.Stage{Op: normalise{300}})
	return p, mem
}

// TestSameBytes runs one plan with every number of jobs and any memory that
// suffices: the bytes and the report must not change.
func TestSameBytes(t *testing.T) {
	p, mem := everything(t)
	least, err := leastMemory(p)
	if err != nil {
		t.Fatal(err)
	}
	var want *memSink
	var report string
	for _, jobs := range []int{1, 2, 3, 7, 16} {
		for _, memory := range []int64{least, 2 * least, 1 << 20, 1 << 28} {
			sink := newSink(p)
			r, err := engine.Run(t.Context(), p, []engine.Source{mem}, sink, engine.Options{Jobs: jobs, Memory: memory})
			if err != nil {
				t.Fatalf("jobs %d, memory %d: %v", jobs, memory, err)
			}
			if err := sink.complete(); err != nil {
				t.Fatalf("jobs %d, memory %d: %v", jobs, memory, err)
			}
			if want == nil {
				want, report = sink, fmt.Sprint(r.Tensors)
				continue
			}
			for name := range want.data {
				if !bytes.Equal(sink.data[name], want.data[name]) {
					t.Errorf("jobs %d, memory %d: %s has other bytes", jobs, memory, name)
				}
			}
			if got := fmt.Sprint(r.Tensors); got != report {
				t.Errorf("jobs %d, memory %d: another report:\n%s\n%s", jobs, memory, got, report)
			}
		}
	}
}

// leastMemory finds the smallest budget that the engine accepts.
func leastMemory(p *plan.Plan) (int64, error) {
	low, high := int64(1), int64(1<<30)
	if _, err := engine.Budget(p, engine.Options{Jobs: 1, Memory: high}); err != nil {
		return 0, err
	}
	for low < high {
		mid := (low + high) / 2
		if _, err := engine.Budget(p, engine.Options{Jobs: 1, Memory: mid}); err != nil {
			low = mid + 1
		} else {
			high = mid
		}
	}
	return low, nil
}

// TestMemoryError says what is needed, and that much is then enough.
func TestMemoryError(t *testing.T) {
	p, mem := everything(t)
	_, err := engine.Run(t.Context(), p, []engine.Source{mem}, newSink(p), engine.Options{Memory: 1000})
	var tooLittle *engine.MemoryError
	if !errors.As(err, &tooLittle) || tooLittle.Have != 1000 || tooLittle.Tensor == "" {
		t.Fatalf("got %v", err)
	}
	if _, err := engine.Budget(p, engine.Options{Memory: tooLittle.Need}); err != nil {
		t.Errorf("with the memory it asks for: %v", err)
	}
}

// failing fails the k-th read.
type failing struct {
	engine.Source
	calls  *atomic.Int64
	failAt int64
	err    error
}

func (f failing) Open(name string) (io.ReaderAt, error) {
	r, err := f.Source.Open(name)
	return failingReader{r, f}, err
}

type failingReader struct {
	io.ReaderAt
	f failing
}

func (r failingReader) ReadAt(p []byte, off int64) (int, error) {
	if r.f.calls.Add(1) == r.f.failAt {
		return 0, r.f.err
	}
	return r.ReaderAt.ReadAt(p, off)
}

// TestFaults fails every read and every write in turn: the run ends with that
// error, whichever goroutine it struck.
func TestFaults(t *testing.T) {
	p, mem := everything(t)
	o := engine.Options{Jobs: 3, Memory: 1 << 20}
	count := new(atomic.Int64)
	if _, err := engine.Run(t.Context(), p, []engine.Source{failing{mem, count, -1, nil}}, newSink(p), o); err != nil {
		t.Fatal(err)
	}
	reads := count.Load()
	for k := int64(1); k <= reads; k++ {
		_, err := engine.Run(t.Context(), p, []engine.Source{failing{mem, new(atomic.Int64), k, errPlanted}}, newSink(p), o)
		if !errors.Is(err, errPlanted) {
			t.Errorf("read %d of %d failed, the run says %v", k, reads, err)
		}
	}
	sink := newSink(p)
	if _, err := engine.Run(t.Context(), p, []engine.Source{mem}, sink, o); err != nil {
		t.Fatal(err)
	}
	writes := sink.calls.Load()
	for k := int64(1); k <= writes; k++ {
		sink := newSink(p)
		sink.failAt = k
		if _, err := engine.Run(t.Context(), p, []engine.Source{mem}, sink, o); !errors.Is(err, errPlanted) {
			t.Errorf("write %d of %d failed, the run says %v", k, writes, err)
		}
	}
	// A source that ends early was changed by somebody else.
	_, err := engine.Run(t.Context(), p, []engine.Source{failing{mem, new(atomic.Int64), 2, io.EOF}}, newSink(p), o)
	var changed *engine.InputChangedError
	if !errors.As(err, &changed) {
		t.Errorf("a short read gives %v", err)
	}
}

// one is a plan of a single computed step.
func one(t *testing.T, in, out tensor.DType, op plan.Op) (*plan.Plan, *checkpoint.Memory) {
	t.Helper()
	s := spec(t, "w", in, 64, 64)
	mem := new(checkpoint.Memory)
	mem.Add(s, fill(s, 5))
	return &plan.Plan{Steps: []plan.Step{{
		Read: plan.Whole(0, s), Stages: []plan.Stage{{Op: op}}, Judge: true,
		Write: plan.Placement{Tensor: "w", DType: out},
	}}}, mem
}

// TestBug turns a panic of an operation into an error with its stack.
func TestBug(t *testing.T) {
	p, mem := one(t, tensor.F32, tensor.F32, broken{row: 33, panic: true})
	_, err := engine.Run(t.Context(), p, []engine.Source{mem}, newSink(p), engine.Options{Memory: 1 << 14})
	var bug *engine.BugError
	if !errors.As(err, &bug) || !strings.Contains(err.Error(), "planted panic") || len(bug.Stack) == 0 {
		t.Errorf("got %v", err)
	}
	p, mem = one(t, tensor.F32, tensor.F32, broken{row: 33})
	if _, err := engine.Run(t.Context(), p, []engine.Source{mem}, newSink(p), engine.Options{}); !errors.Is(err, errPlanted) {
		t.Errorf("got %v", err)
	}
}

// TestCancel stops a run between bands.
func TestCancel(t *testing.T) {
	p, mem := everything(t)
	ctx, cancel := context.WithCancel(t.Context())
	sink := newSink(p)
	stop := stopAfter{sink, cancel, 3}
	_, err := engine.Run(ctx, p, []engine.Source{mem}, &stop, engine.Options{Jobs: 2, Memory: 1 << 20})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if sink.complete() == nil {
		t.Error("the run went on to its end")
	}
}

type stopAfter struct {
	*memSink
	cancel context.CancelFunc
	after  int64
}

func (s *stopAfter) WriteAt(output int, name string, p []byte, off int64) error {
	err := s.memSink.WriteAt(output, name, p, off)
	if s.calls.Load() == s.after {
		s.cancel()
	}
	return err
}

// scaleUp multiplies by 1e6, beyond what half floats hold.
type scaleUp struct{}

func (scaleUp) Kind() string { return "scale_up" }

func (scaleUp) Bind([]tensor.Matrix[float32]) (plan.Func[float32], error) {
	return upscaler[float32]{}, nil
}

func (scaleUp) Bind64([]tensor.Matrix[float64]) (plan.Func[float64], error) {
	return upscaler[float64]{}, nil
}

type upscaler[T tensor.Float] struct{}

func (upscaler[T]) Apply(b plan.Band[T]) error {
	for i := range b.X {
		b.X[i] *= 1e6
	}
	return nil
}

// TestNonFinite refuses an overflow of the output type, and nothing else: the
// same values fit float32.
func TestNonFinite(t *testing.T) {
	p, mem := one(t, tensor.F32, tensor.F16, scaleUp{})
	_, err := engine.Run(t.Context(), p, []engine.Source{mem}, newSink(p), engine.Options{})
	var bad *engine.NonFiniteError
	if !errors.As(err, &bad) || bad.Count == 0 || bad.Tensor != "w" {
		t.Errorf("got %v", err)
	}
	p, mem = one(t, tensor.F32, tensor.F32, scaleUp{})
	if _, err := engine.Run(t.Context(), p, []engine.Source{mem}, newSink(p), engine.Options{}); err != nil {
		t.Error(err)
	}
}

// TestReport compares the figures of a step with their definitions, computed
// apart.
func TestReport(t *testing.T) {
	p, mem := one(t, tensor.F32, tensor.BF16, normalise{64})
	sink := newSink(p)
	r, err := engine.Run(t.Context(), p, []engine.Source{mem}, sink, engine.Options{Memory: 1 << 14})
	if err != nil {
		t.Fatal(err)
	}
	src, _ := mem.Open("w")
	raw := make([]byte, 64*64*4)
	if _, err := src.ReadAt(raw, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	w := make([]float64, 64*64)
	for i := range w {
		w[i] = float64(math.Float32frombits(binary.LittleEndian.Uint32(raw[4*i:])))
	}
	mean, largest := make([]float64, 64), 0.0
	for i, v := range w {
		mean[i%64] += v / 64
	}
	for i, v := range w {
		largest = max(largest, math.Abs(v-mean[i%64]))
	}
	var base, delta, rounding, kept float64
	for i, v := range w {
		x := float64(float32((v - mean[i%64]) / largest))
		y := float64(math.Float32frombits(uint32(binary.LittleEndian.Uint16(sink.data["w"][2*i:])) << 16))
		base += v * v
		delta += (x - v) * (x - v)
		rounding += (y - x) * (y - x)
		kept += (y - v) * (x - v)
	}
	got := r.Tensors[0]
	for _, f := range []struct {
		name      string
		got, want float64
	}{
		{"base", got.BaseNorm, math.Sqrt(base)}, {"delta", got.DeltaNorm, math.Sqrt(delta)},
		{"rounding", got.RoundingNorm, math.Sqrt(rounding)}, {"survival", got.Survival, kept / delta},
	} {
		// The mean is summed in another order here: float64 roundoff.
		if math.Abs(f.got-f.want) > 1e-6*math.Abs(f.want) {
			t.Errorf("%s is %v, want %v", f.name, f.got, f.want)
		}
	}
}

// TestHashes names the SHA-256 of every input file, and notices a file that is
// not as long as it was.
func TestHashes(t *testing.T) {
	p, mem := everything(t)
	path := filepath.Join(t.TempDir(), "in")
	if err := os.WriteFile(path, []byte("abc"), 0o666); err != nil {
		t.Fatal(err)
	}
	p.Inputs = []plan.Input{{Files: []plan.File{{Name: "in", Path: path, Size: 3}}}}
	r, err := engine.Run(t.Context(), p, []engine.Source{mem}, newSink(p), engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	// FIPS 180-2, appendix B.1.
	const want = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
	if r.Hashes[path] != want {
		t.Errorf("hash is %s, want %s", r.Hashes[path], want)
	}
	p.Unhashed = true
	if r, err = engine.Run(t.Context(), p, []engine.Source{mem}, newSink(p), engine.Options{}); err != nil || len(r.Hashes) != 0 {
		t.Errorf("unhashed: %v, %v", r.Hashes, err)
	}
	p.Unhashed = false
	p.Inputs[0].Files[0].Size = 4
	var changed *engine.InputChangedError
	if _, err := engine.Run(t.Context(), p, []engine.Source{mem}, newSink(p), engine.Options{}); !errors.As(err, &changed) {
		t.Errorf("a file of another size gives %v", err)
	}
}
