// Package inspect reads the numbers of a checkpoint and says what is in them: norms and
// extremes of every tensor, the largest singular values and ranks of every matrix and of
// every change that an adapter makes.
//
// [Open] lists what there is to look at, from headers. [Stats.Tasks] are the reading, for
// engine.Each; [Stats.Result] is what they have found. Nothing depends on jobs or memory.
package inspect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/loratool/loratool/diff"
	"github.com/loratool/loratool/extract"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/internal/linalg"
	"github.com/loratool/loratool/plan"
	"github.com/loratool/loratool/quant/block"
)

// Options shapes an inspection.
type Options struct {
	// Values is how many singular values of every matrix are computed, the largest
	// ones; 0 is none, and no ranks.
	Values int
}

// Stats is a checkpoint that is looked at.
type Stats struct {
	model   *checkpoint.Model
	opts    Options
	tensors []*Tensor
	specs   []tensor.Spec
	changes []*Change
	factors []diff.Change
	part    map[string]bool // tensors that are a factor of a change
}

// Tensor is what was found in a tensor. Figures leave out what is not finite.
type Tensor struct {
	Name      string
	Elements  int64
	Norm      float64 // Frobenius
	Mean      float64
	MaxAbs    float64
	Zeros     int64
	NonFinite int64
	*Spectrum // of a matrix, if it was asked for and all its elements are finite
}

// Change is what an adapter adds to the weight of a module: scale·B·A.
type Change struct {
	Module string
	Rank   int64
	Scale  float64
	Norm   float64
	*Spectrum
}

// Spectrum is the singular values of a matrix.
type Spectrum struct {
	// Values are the largest, descending. Unless Exact, they are the best of an iteration
	// and may be too small by a little, never too large.
	Values []float64
	Exact  bool // all singular values entered the ranks
	// Stable is ||W||_F^2 over the square of the largest value; Effective is exp of the
	// entropy of the values, as shares of their sum, an upper bound unless Exact.
	Stable, Effective float64
}

// Open lists what there is to look at.
func Open(m *checkpoint.Model, o Options) (*Stats, error) {
	s := &Stats{model: m, opts: o, part: make(map[string]bool)}
	for _, spec := range m.Specs() {
		if spec.DType.IsFloat() {
			s.specs = append(s.specs, spec)
			s.tensors = append(s.tensors, &Tensor{Name: spec.Name, Elements: spec.NumElements()})
		}
	}
	var err error
	if s.factors, err = diff.Changes(m); err != nil {
		return nil, err
	}
	for _, c := range s.factors {
		s.part[c.A.Name], s.part[c.B.Name] = true, true
		s.changes = append(s.changes, &Change{Module: c.Module, Rank: c.A.Rows(), Scale: c.Scale})
	}
	return s, nil
}

// Result returns the floating-point tensors and the changes, in the order of the data.
func (s *Stats) Result() ([]*Tensor, []*Change) { return s.tensors, s.changes }

const (
	// chunk is how many elements are read at a time.
	chunk = 64 << 10
	// chunkScratch is what that takes: as stored, decoded, and zeros to compare with.
	chunkScratch = 3 * 8 * chunk
)

// Tasks returns the work, one task for each tensor and each change.
func (s *Stats) Tasks() []plan.Task {
	var tasks []plan.Task
	for i, t := range s.tensors {
		spec := s.specs[i]
		tasks = append(tasks, plan.Task{
			Name: t.Name, Reads: spec.Size(), Scratch: chunkScratch + s.solverScratch(spec),
			Do: func(ctx context.Context, threads int) error { return s.measure(ctx, t, spec, threads) },
		})
	}
	for i, c := range s.changes {
		f := s.factors[i]
		const copies = 6 // as stored, float32, and what the decomposition makes of them
		tasks = append(tasks, plan.Task{
			Name: c.Module, Reads: f.A.Size() + f.B.Size(), Scratch: copies * 4 * (f.A.NumElements() + f.B.NumElements()),
			Do: func(_ context.Context, threads int) error { return s.decomposeChange(c, f, threads) },
		})
	}
	return tasks
}

// isMatrix reports whether a tensor is to be decomposed: not a factor, whose change is.
func (s *Stats) isMatrix(spec tensor.Spec) bool {
	return s.opts.Values > 0 && len(spec.Shape) == 2 && spec.NumElements() > 0 && !s.part[spec.Name]
}

// exactSide is the longest shorter side of a matrix whose singular values are all
// computed: some tenths of a second.
const exactSide = 512

// solverScratch bounds the memory of a decomposition: the matrix and the solver's packed
// copy, the basis of the iteration and the result, and the Gram matrix with its vectors of
// the exact path (see linalg.Truncate, which takes it for sides up to 1100).
func (s *Stats) solverScratch(spec tensor.Spec) int64 {
	if !s.isMatrix(spec) {
		return 0
	}
	const float, double, gramSide = 4, 8, 1100
	rows, cols := spec.Rows(), spec.Cols()
	side := min(rows, cols)
	rank := s.rank(rows, cols)
	bytes := 2*float*rows*cols + 4*float*min(rank+32, side)*(rows+cols)
	if side <= gramSide {
		bytes += 2*double*side*side + double*rank*(rows+cols)
	}
	return bytes
}

// rank is how many singular values of a matrix are computed: a few more than are asked for,
// as the last ones of an iteration are its worst.
func (s *Stats) rank(rows, cols int64) int64 {
	side := min(rows, cols)
	if side <= exactSide {
		return side
	}
	return min(2*int64(s.opts.Values)+8, side)
}

// measure reads a tensor once, and decomposes it if it is a matrix.
func (s *Stats) measure(ctx context.Context, t *Tensor, spec tensor.Spec, threads int) error {
	if spec.DType == tensor.F64 {
		return measureAs[float64](ctx, s, t, spec, threads)
	}
	return measureAs[float32](ctx, s, t, spec, threads)
}

func measureAs[T tensor.Float](ctx context.Context, s *Stats, t *Tensor, spec tensor.Spec, threads int) error {
	codec, _ := block.For(spec.DType) // a floating-point type has one
	src, err := s.model.Open(spec.Name)
	if err != nil {
		return err
	}
	var matrix []float32
	if s.isMatrix(spec) {
		matrix = make([]float32, spec.NumElements())
	}
	size := spec.DType.Bits() / 8
	raw, x, zeros := make([]byte, chunk*size), make([]T, chunk), make([]T, chunk)
	var all kernel.Comparison
	sum := 0.0
	for at := int64(0); at < t.Elements; at += chunk {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(chunk, t.Elements-at)
		if err := readFull(src, raw[:n*size], at*size); err != nil {
			return s.readError(spec.Name, err)
		}
		block.Decode(codec, x[:n], raw[:n*size])
		all.Add(kernel.Compare(x[:n], zeros[:n]))
		sum += t.count(widen(x[:n]))
		if matrix != nil {
			for i, v := range x[:n] {
				matrix[at+int64(i)] = float32(v)
			}
		}
	}
	t.Norm, t.MaxAbs, t.NonFinite = math.Sqrt(all.ASquares), all.MaxDiff, all.NonFiniteA
	if finite := t.Elements - t.NonFinite; finite > 0 {
		t.Mean = sum / float64(finite)
	}
	if matrix == nil || t.NonFinite > 0 {
		return nil
	}
	return s.decompose(t, linalg.NewMatrix(int(spec.Rows()), int(spec.Cols()), matrix), threads)
}

// widen goes through numbers as float64.
func widen[T tensor.Float](x []T) func(yield func(float64) bool) {
	return func(yield func(float64) bool) {
		for _, v := range x {
			if !yield(float64(v)) {
				return
			}
		}
	}
}

// count counts zeros and returns the sum of all that is finite.
func (t *Tensor) count(x func(yield func(float64) bool)) (sum float64) {
	for v := range x {
		switch {
		case v == 0:
			t.Zeros++
		case v-v == 0:
			sum += v
		}
	}
	return sum
}

// decompose computes the largest singular values of a tensor.
func (s *Stats) decompose(t *Tensor, m linalg.Matrix, threads int) error {
	rank := s.rank(int64(m.Rows), int64(m.Cols))
	svd, err := linalg.Truncate(m, linalg.Options{Rank: int(rank), Threads: threads})
	var notFinite *linalg.NotFiniteError
	if errors.As(err, &notFinite) {
		return nil // F64 beyond float32: there is no spectrum
	}
	if err != nil {
		return fmt.Errorf("decomposing: %w", err)
	}
	t.Spectrum = s.spectrum(svd, int64(min(m.Rows, m.Cols)))
	return nil
}

// spectrum makes ranks of singular values, of which there are at most so many.
func (s *Stats) spectrum(svd linalg.SVD, limit int64) *Spectrum {
	all := extract.Spectrum{Total: svd.Norm * svd.Norm, Limit: limit}
	for _, v := range svd.S {
		all.Squares = append(all.Squares, v*v)
	}
	ranks := all.Ranks()
	return &Spectrum{Values: svd.S[:min(len(svd.S), s.opts.Values)], Exact: ranks.Exact, Stable: ranks.Stable, Effective: ranks.Effective}
}

// decomposeChange computes the singular values of scale·B·A, which are as many as its rank.
func (s *Stats) decomposeChange(c *Change, f diff.Change, threads int) error {
	a, err := s.read(f.A)
	if err != nil {
		return err
	}
	b, err := s.read(f.B)
	if err != nil {
		return err
	}
	svd, err := linalg.SVDOfProduct(b, a, f.Scale, threads)
	if err != nil {
		c.Norm = math.NaN() // a factor is not finite; its own figures say so
		return nil
	}
	c.Norm = svd.Norm
	if s.opts.Values > 0 {
		c.Spectrum = s.spectrum(svd, int64(len(svd.S)))
	}
	return nil
}

// read reads a whole factor.
func (s *Stats) read(spec tensor.Spec) (linalg.Matrix, error) {
	codec, _ := block.For(spec.DType) // a change has floating-point factors
	src, err := s.model.Open(spec.Name)
	if err != nil {
		return linalg.Matrix{}, err
	}
	raw := make([]byte, spec.Size())
	if err := readFull(src, raw, 0); err != nil {
		return linalg.Matrix{}, s.readError(spec.Name, err)
	}
	m := linalg.NewMatrix(int(spec.Rows()), int(spec.Cols()), nil)
	codec.Decode32(m.Data, raw)
	return m, nil
}

func readFull(src io.ReaderAt, p []byte, off int64) error {
	n, err := src.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// readError names the tensor. A file that has become shorter was changed by somebody else.
func (s *Stats) readError(name string, err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return &checkpoint.InputError{Path: s.model.Path, Err: fmt.Errorf("tensor %q: the file changed while it was read", name)}
	}
	return fmt.Errorf("reading %q: %w", name, err)
}
