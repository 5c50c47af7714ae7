// Command bench measures loratool against a plain copy of the same model.
//
//	go run ./internal/bench --size 8GiB --rounds 3 --dir /mnt/disk
//
// It builds the program, writes a made-up model and adapter, and runs every
// variant once in each round, so that a ratio compares runs of the same minutes:
// speeds of a shared machine drift more than variants differ. The reference is
// `cp -r` and a sync of the copied files; loratool syncs what it writes too. A
// plain copy through loratool's own engine shows what reading and writing cost
// there. All outputs must be the same bytes and differ from the base only in the
// weights that the adapter has. Tables come out as Markdown.
//
// It needs no privileges. The input is in the page cache or not, as the machine
// left it; the table says how much came from the disk. The disk must hold the
// model twice.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"github.com/spf13/pflag"
)

// options are the flags.
type options struct {
	size, sparse size
	rounds       int
	rank         int64
	dir          string
	cold         bool
	python       string
	profile      string
	copy         string
	direct       bool
}

func (o *options) register(fs *pflag.FlagSet) {
	o.size = 8 << 30
	fs.Var(&o.size, "size", "size of the model")
	fs.IntVar(&o.rounds, "rounds", 3, "runs of every variant")
	fs.Int64Var(&o.rank, "rank", 16, "rank of the adapter")
	fs.StringVar(&o.dir, "dir", "", "folder on the disk to measure (default: that of temporary files)")
	fs.BoolVar(&o.cold, "cold", false, "drop the model from the page cache before every run (Linux)")
	fs.Var(&o.sparse, "sparse", "apparent size of a model of holes to merge as well, such as 60GB")
	fs.StringVar(&o.python, "python", "", "Python with torch, transformers and peft, to measure PEFT once as well")
	fs.StringVar(&o.copy, "copy", "", "only copy this model to --dir through the engine; what a variant runs")
	fs.BoolVar(&o.direct, "direct-io", false, "with --copy: write past the page cache")
	fs.StringVar(&o.profile, "profile", "", "file for a CPU profile of one more merge")
}

func main() {
	var o options
	o.register(pflag.CommandLine)
	pflag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := bench(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench makes a place, measures in it, and removes it.
func bench(ctx context.Context, o options) (err error) {
	if o.copy != "" {
		return copyModel(ctx, o.copy, o.dir, o.direct)
	}
	w, err := newWorkplace(ctx, o.dir)
	if err != nil {
		return err
	}
	defer func() {
		if rerr := w.remove(); err == nil {
			err = rerr
		}
	}()
	if o.rounds > 0 {
		if err := benchDense(ctx, w, o); err != nil {
			return err
		}
	}
	if o.sparse > 0 {
		return benchSparse(ctx, w, o)
	}
	return nil
}
