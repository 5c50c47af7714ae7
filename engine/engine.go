// Package engine runs a plan: it is the only place with concurrency, a memory
// budget, progress and cancellation.
//
// A step is cut into bands of whole rows; each band is read, decoded, put
// through the step's stages, rounded once and written at its fixed place. No
// sum crosses a band, so the output does not depend on the number of jobs or
// on the memory budget. Memory is jobs x band plus the side inputs of the
// steps in flight, never the size of a tensor. The main entry is [Run].
package engine

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/loratool/loratool/plan"
)

// Source gives the bytes of one input's tensors; safe for concurrent use.
type Source interface {
	Open(tensor string) (io.ReaderAt, error)
}

// Sink takes the bytes of the outputs; safe for concurrent use on different
// ranges.
type Sink interface {
	WriteAt(output int, tensor string, p []byte, off int64) error
}

// Progress is told what has been done. Advance is called from many goroutines.
type Progress interface {
	Start(totalBytes int64)
	Advance(bytes int64, tensor string)
}

// DefaultMemory is the working-memory budget when none is given. It buys bands
// large enough that reads and writes run at the disk's speed; more brings
// nothing measurable (docs/performance.md).
const DefaultMemory = 256 << 20

// Options bounds a run. The zero value uses one job per processor and
// [DefaultMemory].
type Options struct {
	Jobs     int
	Memory   int64
	Progress Progress
	// Done are steps whose output is there already, by their index, with what was
	// reported of them.
	Done map[int]TensorReport
	// Finished is told of every step that is written; it is called from many
	// goroutines.
	Finished func(step int, r TensorReport) error
}

// maxJobs is where more jobs serve no machine and only take memory from each
// other.
const maxJobs = 1024

// WithDefaults fills in what is not set and brings the rest into range.
func (o Options) WithDefaults() Options {
	if o.Jobs <= 0 {
		o.Jobs = runtime.GOMAXPROCS(0)
	}
	o.Jobs = min(o.Jobs, maxJobs)
	if o.Memory <= 0 {
		o.Memory = DefaultMemory
	}
	return o
}

// Report is what a run found out.
type Report struct {
	Tensors []TensorReport
	Hashes  map[string]string // SHA-256 of every plan.File, by its path; none of an unhashed plan
}

// Run executes the plan. It returns when everything is written, or with the
// first error after all work has stopped; the outputs are then incomplete and
// the caller discards them.
func Run(ctx context.Context, p *plan.Plan, in []Source, out Sink, o Options) (Report, error) {
	o = o.WithDefaults()
	budget, err := Budget(p, o)
	if err != nil {
		return Report{}, err
	}
	r := &run{
		plan: p, in: in, out: out, progress: o.Progress, budget: budget, done: o.Done, finished: o.Finished,
		sides:   semaphore.NewWeighted(budget.Sides),
		near:    newPace(),
		reports: make([]TensorReport, len(p.Steps)),
	}
	if r.progress == nil {
		r.progress = noProgress{}
	}
	r.progress.Start(totalBytes(p))

	var hashes map[string]string
	g, ctx := errgroup.WithContext(ctx)
	tasks := make(chan task, budget.Jobs)
	g.Go(func() error {
		defer close(tasks)
		defer r.near.release()
		return r.dispatch(ctx, tasks)
	})
	for range budget.Jobs {
		g.Go(func() error { return r.work(ctx, tasks) })
	}
	g.Go(func() (err error) {
		hashes, err = hashInputs(ctx, p, budget.Jobs, r.near)
		return err
	})
	if err := g.Wait(); err != nil {
		return Report{}, err
	}
	rep := Report{Hashes: hashes}
	for i, t := range r.reports {
		if p.Steps[i].Judge {
			rep.Tensors = append(rep.Tensors, t)
		}
	}
	return rep, nil
}

// run is the state of one execution.
type run struct {
	plan     *plan.Plan
	in       []Source
	out      Sink
	progress Progress
	budget   Allotment
	sides    *semaphore.Weighted
	near     *pace // of the hashing to the bands
	reports  []TensorReport
	done     map[int]TensorReport
	finished func(step int, r TensorReport) error
}

// advance reports a band of a step: bytes read, bytes written.
func (r *run) advance(s *plan.Step, read, written int64) {
	r.near.advance(read)
	r.progress.Advance(written, s.Write.Tensor)
}

// task is one band of one step.
type task struct {
	step   int
	do     func(b *buffers) error
	finish func() error // what remains when the last band of the step is done
	left   *atomic.Int64
}

// dispatch walks the steps in order, prepares each and hands out its bands.
func (r *run) dispatch(ctx context.Context, tasks chan<- task) error {
	for i := range r.plan.Steps {
		s := &r.plan.Steps[i]
		if report, ok := r.done[i]; ok {
			r.reports[i] = report
			r.advance(s, s.InBytes(), s.OutBytes())
			continue
		}
		var bands []func(*buffers) error
		var finish func() error
		err := guard(func() (err error) {
			bands, finish, err = r.prepare(ctx, i)
			return err
		})
		if err != nil {
			return fmt.Errorf("%q: %w", s.Write.Tensor, err)
		}
		left := new(atomic.Int64)
		left.Store(int64(len(bands)))
		for _, do := range bands {
			select {
			case tasks <- task{i, do, finish, left}:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return nil
}

// prepare makes the work of a step ready: nothing for a copy, decoded and
// bound side inputs otherwise.
func (r *run) prepare(ctx context.Context, i int) (bands []func(*buffers) error, finish func() error, err error) {
	s := &r.plan.Steps[i]
	switch {
	case s.Copies():
		bands, err = r.prepareCopy(s)
		return bands, func() error { return nil }, err
	case s.Double():
		return prepareCompute[float64](ctx, r, i)
	default:
		return prepareCompute[float32](ctx, r, i)
	}
}

// work runs bands until there are none left.
func (r *run) work(ctx context.Context, tasks <-chan task) error {
	b := new(buffers)
	for t := range tasks {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := guard(func() error { return t.do(b) }); err != nil {
			return err
		}
		if t.left.Add(-1) == 0 {
			if err := t.finish(); err != nil {
				return err
			}
			if r.finished != nil {
				if err := r.finished(t.step, r.reports[t.step]); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// guard turns a panic of a worker into an error, so that the run ends like any
// other failure: nothing written, one line.
func guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &BugError{Value: p, Stack: debug.Stack()}
		}
	}()
	return f()
}

// BugError is a panic inside the engine: a fault of loratool, not of the
// input.
type BugError struct {
	Value any
	Stack []byte
}

func (e *BugError) Error() string { return fmt.Sprintf("internal error: %v", e.Value) }

func totalBytes(p *plan.Plan) int64 {
	var n int64
	for i := range p.Steps {
		n += p.Steps[i].OutBytes()
	}
	return n
}

type noProgress struct{}

func (noProgress) Start(int64)           {}
func (noProgress) Advance(int64, string) {}
