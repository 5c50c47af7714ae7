// Command bench compares the kernels and the linear algebra with references in C:
// OpenBLAS for products and decompositions, the memory copy of the C library, and
// torch for the merge of a tensor in memory.
//
//	go run . --openblas DIR --python python3
//	go run . --figures gemm,convert --size 1024 --rounds 3     # seconds
//
// Every figure is a ratio of runs that were interleaved in this process (torch runs in
// a second one, on request), since a shared machine drifts more from minute to minute
// than what is compared. The table gives the median and the range over all rounds.
//
// It is a module of its own, so that nothing here is part of loratool: OpenBLAS is
// loaded when the program starts, and only figures that need it ask for it. PyPI has
// it as scipy-openblas32 (pip install --target DIR scipy-openblas32), Debian as
// libopenblas0. The same comparisons are Go benchmarks for benchstat: go test -bench .
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// options are the flags.
type options struct {
	figures   []string
	size      int
	rounds    int
	svdRounds int
	openblas  string
	python    string
}

func (o *options) register(fs *pflag.FlagSet) {
	fs.StringSliceVar(&o.figures, "figures", nil, "figures to measure (default: all): "+strings.Join(figureNames(), ", "))
	fs.IntVar(&o.size, "size", 4096, "rows and columns of the matrices, a power of two from 256")
	fs.IntVar(&o.rounds, "rounds", 5, "runs of everything but decompositions")
	fs.IntVar(&o.svdRounds, "svd-rounds", 2, "runs of decompositions, of which one by LAPACK takes 20 s")
	fs.StringVar(&o.openblas, "openblas", os.Getenv("OPENBLAS"), "OpenBLAS: its library or a folder above it (default: $OPENBLAS, then the system's)")
	fs.StringVar(&o.python, "python", os.Getenv("PYTHON"), "Python with torch, for the merge (default: $PYTHON)")
}

// validate reports the first option that makes no sense.
func (o *options) validate() error {
	for _, name := range o.figures {
		if !slices.Contains(figureNames(), name) {
			return fmt.Errorf("unknown figure %q; there are %s", name, strings.Join(figureNames(), ", "))
		}
	}
	switch {
	case o.size < 256 || o.size > 1<<14 || o.size&(o.size-1) != 0:
		return fmt.Errorf("size %d is not a power of two from 256 to 16384", o.size)
	case o.rounds < 1 || o.svdRounds < 1:
		return errors.New("rounds must be at least 1")
	}
	return nil
}

// figure is a group of rows of the table that are measured together.
type figure struct {
	name    string
	measure func(b *bench) ([]row, error)
}

// figures are all figures, in the order of the table.
var figures = []figure{
	{"gemm", measureGemm},
	{"sketch", measureSketch},
	{"scaling", measureScaling},
	{"merge", measureMerge},
	{"convert", measureConvert},
	{"nf4", measureNF4},
	{"svd", measureSVD},
	{"warm", measureWarm},
	{"exact", measureExact},
	{"loftq", measureLoftQ},
}

func figureNames() []string {
	names := make([]string, len(figures))
	for i, f := range figures {
		names[i] = f.name
	}
	return names
}

// bench is what the figures share.
type bench struct {
	options
	blas blasLoader
}

func main() {
	var o options
	o.register(pflag.CommandLine)
	pflag.Parse()
	if err := run(os.Stdout, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run measures figure by figure and prints the table as it grows. A figure whose
// reference is not there is named at the end and does not stop the others.
func run(w io.Writer, o options) error {
	if err := o.validate(); err != nil {
		return err
	}
	b := &bench{options: o, blas: blasLoader{path: o.openblas}}
	fmt.Fprintln(w, describeMachine())
	printHeader(w)
	var missing []error
	for _, f := range figures {
		if len(o.figures) > 0 && !slices.Contains(o.figures, f.name) {
			continue
		}
		rows, err := f.measure(b)
		if err != nil {
			missing = append(missing, fmt.Errorf("%s: %w", f.name, err))
		}
		printRows(w, rows)
	}
	b.blas.describe(w)
	fmt.Fprintf(w, "\nLoad after: %s\n", loadAverage())
	return errors.Join(missing...)
}
