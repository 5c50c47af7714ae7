package plan

import "context"

// Task is a piece of work that is not made of bands: it looks at whole tensors
// and keeps what it finds with the package that made it. The engine decides when
// it runs and beside what.
type Task struct {
	Name    string // of what it works on, for progress and messages
	Reads   int64  // bytes of the inputs it goes through, for progress
	Scratch int64  // bytes it holds at most while it runs
	// Do does the work on at most so many goroutines. What it finds must not
	// depend on their number, nor on the other tasks.
	Do func(ctx context.Context, threads int) error
}
