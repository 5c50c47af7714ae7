package engine_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/plan"
)

// load counts what runs beside what.
type load struct {
	mu                 sync.Mutex
	memory, tasks      int64
	mostMemory         int64
	mostTasks          int64
	order              []string
	started, completed atomic.Int64
}

// task holds its scratch while it waits for the others to come, if they may.
func (l *load) task(name string, scratch int64) plan.Task {
	return plan.Task{Name: name, Reads: 7, Scratch: scratch, Do: func(ctx context.Context, threads int) error {
		l.started.Add(1)
		l.mu.Lock()
		l.order = append(l.order, name)
		l.memory, l.tasks = l.memory+scratch, l.tasks+1
		l.mostMemory, l.mostTasks = max(l.mostMemory, l.memory), max(l.mostTasks, l.tasks)
		l.mu.Unlock()
		for range 1000 {
			runtime.Gosched() // gives way to tasks that must not be there
		}
		l.mu.Lock()
		l.memory, l.tasks = l.memory-scratch, l.tasks-1
		l.mu.Unlock()
		l.completed.Add(1)
		return nil
	}}
}

// TestEachBounds guards that neither jobs nor memory are exceeded, that a task
// beyond the whole budget runs alone, and that all tasks run.
func TestEachBounds(t *testing.T) {
	for _, jobs := range []int{1, 2, 5} {
		l := new(load)
		var tasks []plan.Task
		for i := range 40 {
			tasks = append(tasks, l.task(fmt.Sprint(i), []int64{30, 10, 0, 60, 100}[i%5]))
		}
		if err := engine.Each(t.Context(), tasks, engine.Options{Jobs: jobs, Memory: 100}); err != nil {
			t.Fatal(err)
		}
		if l.completed.Load() != 40 || l.mostMemory > 100 || l.mostTasks > int64(jobs) {
			t.Errorf("%d jobs: %d tasks, %d bytes and %d at a time", jobs, l.completed.Load(), l.mostMemory, l.mostTasks)
		}
	}
	l := new(load)
	tasks := []plan.Task{l.task("a", 1), l.task("huge", 1000), l.task("b", 1), l.task("c", 1)}
	huge := tasks[1].Do
	tasks[1].Do = func(ctx context.Context, threads int) error {
		if l.started.Load() != l.completed.Load() || threads != 3 {
			t.Errorf("the task beyond the budget runs beside others, on %d threads", threads)
		}
		return huge(ctx, threads)
	}
	if err := engine.Each(t.Context(), tasks, engine.Options{Jobs: 3, Memory: 100}); err != nil {
		t.Fatal(err)
	}
	if l.completed.Load() != 4 || l.mostMemory != 1000 {
		t.Errorf("%d tasks, %d bytes", l.completed.Load(), l.mostMemory)
	}
	peak, beyond := engine.TaskPeak(tasks, engine.Options{Jobs: 3, Memory: 100})
	if peak != 1000 || beyond != "huge" {
		t.Errorf("peak %d, %q", peak, beyond)
	}
	if peak, beyond := engine.TaskPeak(tasks[2:], engine.Options{Memory: 100}); peak != 2 || beyond != "" {
		t.Errorf("peak %d, %q", peak, beyond)
	}
}

// TestEachOrder guards that tasks start in their order.
func TestEachOrder(t *testing.T) {
	l := new(load)
	var tasks []plan.Task
	var want []string
	for i := range 20 {
		tasks = append(tasks, l.task(fmt.Sprint(i), 10))
		want = append(want, fmt.Sprint(i))
	}
	if err := engine.Each(t.Context(), tasks, engine.Options{Jobs: 1}); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(l.order, " "); got != strings.Join(want, " ") {
		t.Errorf("order %s", got)
	}
}

// TestEachThreads guards that idle processors become threads.
func TestEachThreads(t *testing.T) {
	for _, c := range []struct {
		scratch int64
		tasks   int
		want    int // of the first task
	}{{1, 100, 1}, {50, 100, 4}, {34, 100, 4}, {33, 100, 2}, {1, 1, 8}, {1, 2, 4}, {1000, 9, 8}} {
		var first atomic.Int64
		tasks := make([]plan.Task, c.tasks)
		for i := range tasks {
			tasks[i] = plan.Task{Scratch: c.scratch, Do: func(_ context.Context, threads int) error {
				if i == 0 {
					first.Store(int64(threads))
				}
				return nil
			}}
		}
		if err := engine.Each(t.Context(), tasks, engine.Options{Jobs: 8, Memory: 100}); err != nil {
			t.Fatal(err)
		}
		if got := int(first.Load()); got != c.want {
			t.Errorf("%d tasks of %d: %d threads, want %d", c.tasks, c.scratch, got, c.want)
		}
	}
}

// TestEachStops guards that the first error ends the run and is returned with
// the task's name, that a panic is a bug, and that a cancelled run says so.
func TestEachStops(t *testing.T) {
	l := new(load)
	tasks := []plan.Task{l.task("a", 1), {Name: "bad", Do: func(context.Context, int) error { return errPlanted }}}
	for range 50 {
		tasks = append(tasks, l.task("later", 1))
	}
	err := engine.Each(t.Context(), tasks, engine.Options{Jobs: 1})
	if !errors.Is(err, errPlanted) || !strings.HasPrefix(err.Error(), `"bad": `) || l.completed.Load() > 2 {
		t.Errorf("error %v after %d tasks", err, l.completed.Load())
	}
	err = engine.Each(t.Context(), []plan.Task{{Name: "p", Do: func(context.Context, int) error { panic("planted panic") }}}, engine.Options{})
	var bug *engine.BugError
	if !errors.As(err, &bug) || len(bug.Stack) == 0 {
		t.Errorf("error %v, want a BugError", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	l = new(load)
	tasks = []plan.Task{{Do: func(context.Context, int) error { cancel(); return nil }}, l.task("a", 1), l.task("b", 1), l.task("c", 1)}
	if err := engine.Each(ctx, tasks, engine.Options{Jobs: 1}); !errors.Is(err, context.Canceled) || l.completed.Load() > 1 {
		t.Errorf("error %v after %d tasks", err, l.completed.Load())
	}
	if err := engine.Each(t.Context(), nil, engine.Options{}); err != nil {
		t.Errorf("no tasks: %v", err)
	}
}

// reads is a progress that adds up.
type reads struct {
	total int64
	done  atomic.Int64
}

func (r *reads) Start(total int64)             { r.total = total }
func (r *reads) Advance(bytes int64, _ string) { r.done.Add(bytes) }

func TestEachProgress(t *testing.T) {
	l, p := new(load), new(reads)
	tasks := []plan.Task{l.task("a", 1), l.task("b", 1)}
	if err := engine.Each(t.Context(), tasks, engine.Options{Progress: p}); err != nil || p.total != 14 || p.done.Load() != 14 {
		t.Errorf("%v: %d of %d", err, p.done.Load(), p.total)
	}
}
