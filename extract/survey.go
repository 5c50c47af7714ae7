package extract

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/internal/linalg"
	"github.com/loratool/loratool/plan"
	"github.com/loratool/loratool/quant/block"
)

// finding is what the comparison of an item has shown. It holds no factors; those
// are in the store.
type finding struct {
	figures
	spectra []spectrum // of each matrix of the stack, if it was decomposed
	rows    []int64    // of a table, that changed; at most maxTokenRows+1
}

// figures are sums over the elements of an item, in float64.
type figures struct {
	base, delta float64 // squares of W and of the change
	changed     bool
	// rounding says that the change is nothing but that the base's values were
	// rounded to the tuned model's element type.
	rounding bool
}

// spectrum is the decomposition of one matrix, without its vectors.
type spectrum struct {
	values    []float64 // singular values, descending
	squares   float64   // ||D||_F^2 as the solver saw it
	rest      float64   // ||D - U·S·V^T||_F^2, by subtraction
	excess    float64   // how much more than the best that may be, relatively
	converged bool
}

const (
	// chunk is how many elements are compared at a time: the decoded values of
	// both sides stay in the cache of a core.
	chunk = 64 << 10
	// scanScratch is what a comparison holds: both sides as stored and decoded, in
	// up to 8 bytes each, and one side rounded.
	scanScratch = 5 * 8 * chunk
	// maxTokenRows is how many rows an adapter lists by number; the list is in
	// its config, which readers limit in size.
	maxTokenRows = 8192
)

// Tasks returns the work of the survey, one task for each item in the order of the
// tuned model. What a task has found in the store from an earlier run is not
// computed again. Without a store factors are dropped: that is enough for a
// dry run and for [Survey.Sweep].
func (s *Survey) Tasks(store *Store) []plan.Task {
	tasks := make([]plan.Task, len(s.items))
	for i, it := range s.items {
		t := plan.Task{Name: it.parts[0].name, Scratch: scanScratch}
		for _, p := range it.parts {
			t.Reads += p.rows * p.cols * (p.base.DType.Bits() + p.tuned.DType.Bits()) / 8
		}
		if it.solve {
			t.Scratch += s.solverScratch(it)
		}
		t.Do = func(ctx context.Context, threads int) error {
			f, err := s.survey(ctx, it, store, threads)
			s.findings[i] = f
			return err
		}
		tasks[i] = t
	}
	return tasks
}

// solverOptions says how an item is decomposed.
func (s *Survey) solverOptions(it *item) linalg.Options {
	o := s.opts.Rule.solver(it.out, it.in, s.affordable)
	if s.maxSweep > 0 {
		o = linalg.Options{Rank: int(min(s.maxSweep, it.out, it.in))}
	}
	o.Exact = s.opts.Exact
	return o
}

// solverScratch bounds the memory of a decomposition, in bytes: the difference and
// the solver's packed copy of it; the basis of the iteration and the result, a few
// vectors of either side for each triplet; the Gram matrix and the eigenvectors of
// the exact path, where it may be taken (see linalg.Truncate).
func (s *Survey) solverScratch(it *item) int64 {
	const float, double, exactSide = 4, 8, 1100
	o := s.solverOptions(it)
	side := min(it.out, it.in)
	rank := side
	if o.Rank > 0 {
		rank = min(int64(o.Rank), side)
	} else if o.MaxRank > 0 {
		rank = min(int64(o.MaxRank), side)
	}
	bytes := 2*float*it.out*it.in + 4*float*min(rank+32, side)*(it.out+it.in)
	if o.Exact || o.Rank == 0 || side <= exactSide {
		bytes += 2*double*side*side + double*rank*(it.out+it.in)
	}
	return bytes
}

// survey compares one item, and decomposes its change if it is to be a pair.
func (s *Survey) survey(ctx context.Context, it *item, store *Store, threads int) (finding, error) {
	if it.tie {
		if err := s.checkTie(ctx, it); err != nil {
			return finding{}, err
		}
	}
	if f, ok := store.find(it); ok {
		return f, nil
	}
	f := finding{figures: figures{rounding: true}}
	if it.role == Fixed {
		return f, s.checkFixed(ctx, it)
	}
	var solved []linalg.SVD
	var diff []float32
	if it.solve {
		diff = make([]float32, it.out*it.in)
	}
	for b := range it.blocks {
		changed := f.delta
		clear(diff)
		for _, p := range it.parts {
			if p.block != b {
				continue
			}
			var dst []float32
			if it.solve {
				dst = diff[p.at*p.cols : (p.at+p.rows)*p.cols]
			}
			if err := s.compare(ctx, it, p, dst, &f); err != nil {
				return f, err
			}
		}
		if !it.solve {
			continue
		}
		svd, err := s.decompose(it, diff, f.delta > changed, threads)
		if err != nil {
			return f, err
		}
		f.spectra = append(f.spectra, spectrumOf(svd))
		solved = append(solved, svd)
	}
	f.rounding = f.rounding && f.changed
	return f, store.keep(it, f, solved)
}

// decompose computes the singular triplets of one matrix of an item that the
// rule needs.
func (s *Survey) decompose(it *item, diff []float32, changed bool, threads int) (linalg.SVD, error) {
	if !changed {
		return linalg.SVD{Report: linalg.Report{Captured: 1, Converged: true}}, nil
	}
	rows, cols := it.stored()
	a := linalg.NewMatrix(int(rows), int(cols), diff)
	if it.transposed {
		a = a.T()
	}
	o := s.solverOptions(it)
	o.Threads = threads
	svd, err := linalg.Truncate(a, o)
	var notFinite *linalg.NotFiniteError
	if errors.As(err, &notFinite) {
		return svd, inputErrorf(s.tuned, "tensor %q: its difference from the base is beyond float32", it.parts[0].name)
	}
	if err != nil {
		return svd, fmt.Errorf("decomposing the change: %w", err)
	}
	return svd, nil
}

func spectrumOf(d linalg.SVD) spectrum {
	total := d.Norm * d.Norm
	return spectrum{
		values: d.S, squares: total, rest: d.Residual * d.Residual * total,
		excess: d.Excess, converged: d.Converged,
	}
}

// compare adds what the two sides of a part differ in to a finding, and stores
// the difference, in float32, if dst is not nil.
func (s *Survey) compare(ctx context.Context, it *item, p part, dst []float32, f *finding) error {
	if p.base.DType == tensor.F64 || p.tuned.DType == tensor.F64 {
		return compareAs[float64](ctx, s, it, p, dst, f)
	}
	return compareAs[float32](ctx, s, it, p, dst, f)
}

// side is one model's tensor while it is compared.
type side struct {
	model *checkpoint.Model
	spec  tensor.Spec
	src   io.ReaderAt
	codec block.Codec
	raw   []byte
}

func openSide(m *checkpoint.Model, spec tensor.Spec) (side, error) {
	codec, ok := block.For(spec.DType)
	if !ok {
		return side{}, inputErrorf(m, "tensor %q: the difference can't be computed from %s", spec.Name, spec.DType)
	}
	src, err := m.Open(spec.Name)
	if err != nil {
		return side{}, err
	}
	return side{m, spec, src, codec, make([]byte, chunk*spec.DType.Bits()/8)}, nil
}

// read returns n elements from the given one on, all of them finite.
func (d *side) read(from, n int64) ([]byte, error) {
	size := d.spec.DType.Bits() / 8
	raw := d.raw[:n*size]
	if err := readFull(d.src, raw, from*size); err != nil {
		return nil, readError(d.model, d.spec.Name, err)
	}
	if at, found := block.AnyNonFinite(d.codec, raw); found {
		return nil, inputErrorf(d.model, "tensor %q: element %d is not finite", d.spec.Name, from+at)
	}
	return raw, nil
}

// compareAs is compare in the precision T.
func compareAs[T tensor.Float](ctx context.Context, s *Survey, it *item, p part, dst []float32, f *finding) error {
	base, err := openSide(s.base, p.base)
	if err != nil {
		return err
	}
	tuned, err := openSide(s.tuned, p.tuned)
	if err != nil {
		return err
	}
	w, x := make([]T, chunk), make([]T, chunk)
	rounded := make([]byte, len(tuned.raw))
	rows := p.rows
	if it.resized {
		rows = min(rows, p.base.Rows())
		f.changed, f.rounding = true, false
	}
	for run := range pieces(rows, p.cols) {
		if err := ctx.Err(); err != nil {
			return err
		}
		at, n := (p.from+run.row)*p.cols+run.col, run.n
		wRaw, err := base.read(at, n)
		if err != nil {
			return err
		}
		xRaw, err := tuned.read(at, n)
		if err != nil {
			return err
		}
		w, x := w[:n], x[:n]
		block.Decode(base.codec, w, wRaw)
		if p.base.DType == p.tuned.DType && bytes.Equal(wRaw, xRaw) {
			f.base += sumSquares(w)
			continue
		}
		block.Decode(tuned.codec, x, xRaw)
		if f.rounding && p.base.DType != p.tuned.DType {
			block.Encode(tuned.codec, rounded[:len(xRaw)], w)
			f.rounding = bytes.Equal(rounded[:len(xRaw)], xRaw)
		} else {
			f.rounding = false
		}
		addRows(f, it, p.from+run.row, w, x, p.cols)
		if dst != nil {
			subtract(dst[run.row*p.cols+run.col:][:n], w, x)
		}
	}
	return tuned.checkFinite(ctx, (p.from+rows)*p.cols, (p.from+p.rows)*p.cols)
}

// checkFinite goes through elements that have no counterpart.
func (d *side) checkFinite(ctx context.Context, from, to int64) error {
	for ; from < to; from += chunk {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := d.read(from, min(chunk, to-from)); err != nil {
			return err
		}
	}
	return nil
}

// piece is a run of elements of a matrix: of whole rows, or a part of one.
type piece struct{ row, col, n int64 }

// pieces cuts rows of so many columns into runs of at most chunk elements: whole
// rows, or parts of one row if it is longer.
func pieces(rows, cols int64) func(yield func(piece) bool) {
	return func(yield func(piece) bool) {
		if cols == 0 {
			return
		}
		step := chunk / cols
		for row := int64(0); row < rows; row += max(step, 1) {
			if step > 0 {
				if !yield(piece{row, 0, min(step, rows-row) * cols}) {
					return
				}
				continue
			}
			for col := int64(0); col < cols; col += chunk {
				if !yield(piece{row, col, min(chunk, cols-col)}) {
					return
				}
			}
		}
	}
}

// addRows sums up one piece, row by row, so that changed rows of a table are
// known.
func addRows[T tensor.Float](f *finding, it *item, row int64, w, x []T, cols int64) {
	for len(w) > 0 {
		n := min(cols, int64(len(w)))
		var stats [1]kernel.RowStats
		kernel.Stats(stats[:], w[:n], x[:n], x[:n], 1, int(n))
		f.base += stats[0].Base
		f.delta += stats[0].Change
		if stats[0].Change > 0 {
			f.changed = true
			if known := len(f.rows); it.role == Embedding && known <= maxTokenRows && (known == 0 || f.rows[known-1] != row) {
				f.rows = append(f.rows, row)
			}
		}
		w, x, row = w[n:], x[n:], row+1
	}
}

func sumSquares[T tensor.Float](w []T) float64 {
	var stats [1]float64
	kernel.RowSumSquares(stats[:], w, 1, len(w))
	return stats[0]
}

// subtract stores the difference: of float32 values, rounded once; of float64
// values likewise.
func subtract[T tensor.Float](dst []float32, w, x []T) {
	for i := range dst {
		dst[i] = float32(x[i] - w[i])
	}
}

// checkFixed compares a tensor that is no floating-point one.
func (s *Survey) checkFixed(ctx context.Context, it *item) error {
	p := it.parts[0]
	same, err := s.sameBytes(ctx, s.base, p.base, s.tuned, p.tuned)
	if err != nil || same || arch.IsBuffer(p.name) {
		return err
	}
	return inputErrorf(s.tuned, "tensor %q is stored as %s and differs from the base's %s: only floating-point weights have a difference",
		p.name, p.tuned.DType.Safetensors(), p.base.DType.Safetensors())
}

// checkTie refuses a head that is tied by the config and stored as something
// else: which of the two a program uses depends on the program.
func (s *Survey) checkTie(ctx context.Context, it *item) error {
	p := it.parts[0]
	for _, c := range []struct {
		m    *checkpoint.Model
		spec tensor.Spec
	}{{s.base, p.base}, {s.tuned, p.tuned}} {
		embedding, _ := c.m.Lookup(s.embedding)
		same, err := s.sameBytes(ctx, c.m, embedding, c.m, c.spec)
		if err != nil {
			return err
		}
		if !same {
			return inputErrorf(c.m, "tensor %q differs from %q although the config ties them: set tie_word_embeddings to what was trained", s.head, s.embedding)
		}
	}
	return nil
}

func (s *Survey) sameBytes(ctx context.Context, ma *checkpoint.Model, a tensor.Spec, mb *checkpoint.Model, b tensor.Spec) (bool, error) {
	if a.DType != b.DType || !a.Shape.Equal(b.Shape) {
		return false, nil
	}
	srcA, err := ma.Open(a.Name)
	if err != nil {
		return false, err
	}
	srcB, err := mb.Open(b.Name)
	if err != nil {
		return false, err
	}
	bufA, bufB := make([]byte, chunk), make([]byte, chunk)
	for off := int64(0); off < a.Size(); off += chunk {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		n := min(chunk, a.Size()-off)
		if err := readFull(srcA, bufA[:n], off); err != nil {
			return false, readError(ma, a.Name, err)
		}
		if err := readFull(srcB, bufB[:n], off); err != nil {
			return false, readError(mb, b.Name, err)
		}
		if !bytes.Equal(bufA[:n], bufB[:n]) {
			return false, nil
		}
	}
	return true, nil
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

// readError names the tensor. A file that has become shorter was changed by
// somebody else, which is a fault of the input.
func readError(m *checkpoint.Model, name string, err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return inputErrorf(m, "tensor %q: the file changed while it was read", name)
	}
	return fmt.Errorf("reading %q: %w", name, err)
}

// stackOf joins the spectra of an item to one: direction k is the k-th of every
// matrix.
func (it *item) stackOf(f finding) Spectrum {
	s := Spectrum{Cost: it.cost(), Limit: min(it.out, it.in)}
	for _, b := range f.spectra {
		s.Total += b.squares
		s.Rest += b.rest
		for k, v := range b.values {
			if k == len(s.Squares) {
				s.Squares = append(s.Squares, 0)
			}
			s.Squares[k] += v * v
		}
	}
	return s
}

// excess is how much larger than the best one the residual of an item may be,
// relatively: that of its worst matrix.
func (f finding) excess() float64 {
	worst := 0.0
	for _, b := range f.spectra {
		worst = math.Max(worst, b.excess)
	}
	return worst
}
