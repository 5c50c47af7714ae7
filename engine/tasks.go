package engine

import (
	"context"
	"fmt"
	"runtime"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/loratool/loratool/plan"
)

// Each runs the tasks, in their order, as many at a time as jobs and memory
// allow, and returns when all are done or with the first error after all work has
// stopped. A task that needs more than the whole budget runs alone: its scratch
// is declared ([TaskPeak]), and a matrix that does not fit can't be cut.
//
// Processors that memory leaves idle go to the tasks in flight as threads.
func Each(ctx context.Context, tasks []plan.Task, o Options) error {
	o = o.WithDefaults()
	progress := o.Progress
	if progress == nil {
		progress = noProgress{}
	}
	var total int64
	for _, t := range tasks {
		total += t.Reads
	}
	progress.Start(total)

	memory := semaphore.NewWeighted(o.Memory)
	slots := semaphore.NewWeighted(int64(o.Jobs))
	stoppable, stop := context.WithCancel(ctx)
	defer stop()
	g, running := errgroup.WithContext(stoppable)
	for i, t := range tasks {
		held := share(t, o.Memory)
		if slots.Acquire(running, 1) != nil || memory.Acquire(running, held) != nil {
			break // some task has failed, or the run was cancelled
		}
		if held > o.Memory/collectShare {
			runtime.GC() // the matrices of earlier tasks are garbage that counts
		}
		threads := threadsFor(held, len(tasks)-i, o)
		g.Go(func() error {
			defer slots.Release(1)
			defer memory.Release(held)
			if running.Err() != nil {
				return nil // what stopped the run says why
			}
			if err := guard(func() error { return t.Do(running, threads) }); err != nil {
				stop() // before the slot is free for another task
				return fmt.Errorf("%q: %w", t.Name, err)
			}
			progress.Advance(t.Reads, t.Name)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

// collectShare is the part of the budget from which a task is worth a collection
// before it, which takes a few milliseconds.
const collectShare = 8

// share is what a task takes of the budget: all of it if it needs more.
func share(t plan.Task, memory int64) int64 { return min(max(t.Scratch, 1), memory) }

// threadsFor divides the jobs over the tasks of this size that fit beside each
// other, of those that are left.
func threadsFor(held int64, left int, o Options) int {
	fit := min(o.Memory/held, int64(left), int64(o.Jobs))
	return max(o.Jobs/int(max(fit, 1)), 1)
}

// TaskPeak returns the memory that the tasks take at most, and the name of the
// task that alone needs more than the budget if there is such a one.
func TaskPeak(tasks []plan.Task, o Options) (bytes int64, beyond string) {
	o = o.WithDefaults()
	var sum, largest int64
	name := ""
	for _, t := range tasks {
		sum += min(t.Scratch, hugeCount/int64(len(tasks)))
		if t.Scratch > largest {
			largest, name = t.Scratch, t.Name
		}
	}
	if largest > o.Memory {
		return largest, name
	}
	return min(sum, o.Memory), ""
}
