package engine

import (
	"context"
	"fmt"
	"io"
	"sort"
	"sync"

	"golang.org/x/sync/semaphore"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/internal/saferead"
	"github.com/loratool/loratool/plan"
)

// View is the output of a plan as a set of tensors that are computed when they are
// read, with the code and to the bytes of [Run]: what another plan reads in place of
// a checkpoint that was never written. It is safe for concurrent use.
//
// A step is bound when the first of its rows is read, and stays bound until the
// memory is needed for another one. So reading tensor by tensor binds every step
// once; in another order the bytes are the same and the work is more.
type View struct {
	run     *run
	specs   []tensor.Spec
	steps   map[string][]int // the steps of a tensor, in the order of its rows
	buffers sync.Pool
	held    shelf

	mu       sync.Mutex
	complete map[int]bool     // steps whose rows have all been read, with a report
	figures  map[int]*figures // of those of which some have; a step that is bound again keeps them
}

// figures are those of the rows of a step that have been read so far.
type figures struct {
	stats []kernel.RowStats // by row
	seen  []bool            // rows with figures
	left  int64             // rows without
}

// NewView makes the tensors that are listed readable as the plan makes them: steps
// of other tensors are never run. The memory of the options bounds what the view
// holds while as many goroutines read from it as the options have jobs.
func NewView(p *plan.Plan, specs []tensor.Spec, in []Source, o Options) (*View, error) {
	o = o.WithDefaults()
	budget, err := Budget(p, o)
	if err != nil {
		return nil, err
	}
	v := &View{
		run: &run{
			plan: p, in: in, progress: noProgress{}, budget: budget, near: newPace(),
			sides: semaphore.NewWeighted(budget.Sides), reports: make([]TensorReport, len(p.Steps)),
		},
		specs: specs, steps: make(map[string][]int), complete: make(map[int]bool), figures: make(map[int]*figures),
		buffers: sync.Pool{New: func() any { return new(buffers) }},
	}
	v.held.init(budget.Sides)
	for i := range p.Steps {
		name := p.Steps[i].Write.Tensor
		v.steps[name] = append(v.steps[name], i)
	}
	for _, s := range specs {
		if err := v.checkWhole(s); err != nil {
			return nil, err
		}
		for _, i := range v.steps[s.Name] {
			if step := &p.Steps[i]; step.OutBytes() == 0 && !step.Copies() {
				v.run.reports[i], _ = reduce(step, nil) // nobody will read it
				v.complete[i] = true
			}
		}
	}
	return v, nil
}

// checkWhole sorts the steps of a tensor and fails unless they make each of its
// bytes once.
func (v *View) checkWhole(s tensor.Spec) error {
	steps := v.steps[s.Name]
	sort.Slice(steps, func(i, j int) bool {
		a, _ := v.run.plan.Steps[steps[i]].Extent()
		b, _ := v.run.plan.Steps[steps[j]].Extent()
		return a < b
	})
	end := int64(0)
	for _, i := range steps {
		step := &v.run.plan.Steps[i]
		from, to := step.Extent()
		if from != end || step.Write.DType != s.DType || step.Write.Output != 0 {
			return fmt.Errorf("%q: the plan does not make its rows as %s one after another", s.Name, s.DType)
		}
		end = to
	}
	if end != s.Size() {
		return fmt.Errorf("%q: the plan makes %d of its %d bytes", s.Name, end, s.Size())
	}
	return nil
}

// Specs returns the tensors, in the order they were given.
func (v *View) Specs() []tensor.Spec { return v.specs }

// Memory returns the bytes that the view holds at most.
func (v *View) Memory() int64 { return v.run.budget.Peak }

// Computes returns the steps of the tensors that the view computes, those it does not
// copy, and what they read from: for who computes them in another way.
func (v *View) Computes() (*plan.Plan, []Source) {
	p := &plan.Plan{Unhashed: true}
	for _, s := range v.specs {
		for _, i := range v.steps[s.Name] {
			if step := v.run.plan.Steps[i]; !step.Copies() {
				p.Steps = append(p.Steps, step)
			}
		}
	}
	return p, v.run.in
}

// Reports returns what is known of the judged steps, in the order of the plan: of
// all whose rows were read.
func (v *View) Reports() []TensorReport {
	v.mu.Lock()
	defer v.mu.Unlock()
	var all []TensorReport
	for i, r := range v.run.reports {
		if v.complete[i] && v.run.plan.Steps[i].Judge {
			all = append(all, r)
		}
	}
	return all
}

// Open returns the bytes of a tensor.
func (v *View) Open(name string) (io.ReaderAt, error) {
	for _, s := range v.specs {
		if s.Name == name {
			return &viewReader{v, v.steps[name], s.Size()}, nil
		}
	}
	return nil, fmt.Errorf("the plan makes no tensor %q", name)
}

// viewReader computes the bytes of one tensor.
type viewReader struct {
	view  *View
	steps []int
	size  int64
}

func (r *viewReader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, &saferead.RangeError{Offset: off, Length: int64(len(p)), Size: r.size}
	}
	if off >= r.size {
		return 0, io.EOF
	}
	short := int64(len(p)) > r.size-off
	if short {
		p = p[:r.size-off]
	}
	end := off + int64(len(p))
	for _, i := range r.steps {
		from, to := r.view.run.plan.Steps[i].Extent()
		if from, to := max(from, off), min(to, end); from < to {
			if err := r.view.step(i, p[from-off:to-off], from); err != nil {
				return 0, err
			}
		}
	}
	if short {
		return len(p), io.EOF
	}
	return len(p), nil
}

// step fills p with bytes that step i makes, which lie at an offset in its tensor.
func (v *View) step(i int, p []byte, off int64) error {
	s := &v.run.plan.Steps[i]
	begin, _ := s.Extent()
	if s.Copies() {
		src, err := v.run.in[s.Read.Input].Open(s.Read.Tensor)
		if err != nil {
			return err
		}
		skipped := s.Read.From * s.Read.Cols * s.Read.Spec.DType.Bits() / 8
		if err := readFull(src, p, skipped+off-begin); err != nil {
			return readError(s.Read.Tensor, err)
		}
		return nil
	}
	bound, err := v.held.take(i, sideBytes(s), func() (computer, error) { return v.run.bind(s) })
	if err != nil {
		return err
	}
	defer v.held.giveBack(bound)
	b := v.buffers.Get().(*buffers)
	defer v.buffers.Put(b)
	return v.compute(bound, b, p, off-begin)
}

// bind makes a step ready to compute rows.
func (r *run) bind(s *plan.Step) (computer, error) {
	if s.Double() {
		return bindObserved[float64](r, s)
	}
	return bindObserved[float32](r, s)
}

// bindObserved also streams the passes that observers ask for. Whoever reads can't be
// told to stop, so neither can they.
func bindObserved[T tensor.Float](r *run, s *plan.Step) (computer, error) {
	c, err := bind[T](r, s)
	if err != nil {
		return nil, err
	}
	return c, c.observe(context.Background())
}

// compute fills p with the bytes from an offset on of what a step makes. Rows that p
// cuts at either end are made whole on the side.
func (v *View) compute(bound *heldStep, b *buffers, p []byte, off int64) error {
	s := &v.run.plan.Steps[bound.step]
	rowBytes := s.Read.Cols * s.Write.DType.Bits() / 8
	end := off + int64(len(p))
	for first, last := range pieces(off/rowBytes, (end+rowBytes-1)/rowBytes, v.run.budget.Band/max(storedRow(s), 1)) {
		from, to := max(first*rowBytes, off), min(last*rowBytes, end)
		whole := p[from-off : to-off]
		out := whole
		if to-from < (last-first)*rowBytes {
			b.out = grow(b.out, int((last-first)*rowBytes))
			out = b.out
		}
		b.stats = grow(b.stats, int(last-first))
		if err := bound.computer.rows(b, out, s.Read.From+first, s.Read.From+last, b.stats); err != nil {
			return err
		}
		if len(out) != len(whole) {
			copy(whole, out[from-first*rowBytes:])
		}
		if err := v.note(bound.step, first, b.stats); err != nil {
			return err
		}
	}
	return nil
}

// note keeps the figures of rows, from the given one of the step on, and makes the
// report of a step whose rows are all there.
func (v *View) note(step int, first int64, stats []kernel.RowStats) error {
	s := &v.run.plan.Steps[step]
	if err := checkFinite(s, first, stats); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.complete[step] {
		return nil // rows that are computed again have the same figures
	}
	f := v.figures[step]
	if f == nil {
		n := rowsOf(s)
		f = &figures{make([]kernel.RowStats, n), make([]bool, n), n}
		v.figures[step] = f
	}
	for i, st := range stats {
		if at := first + int64(i); !f.seen[at] {
			f.stats[at], f.seen[at] = st, true
			f.left--
		}
	}
	if f.left > 0 {
		return nil
	}
	report, err := reduce(s, f.stats)
	if err != nil {
		return err
	}
	delete(v.figures, step)
	v.run.reports[step], v.complete[step] = report, true
	return nil
}
