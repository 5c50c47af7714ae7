// Package plan holds the value that every writing command makes before it
// touches a weight: which rows of which input become which rows of which
// output, through which operations, and what was decided on the way.
//
// A [Plan] is pure data: printing it is --dry-run, running it is engine.Run,
// and there is no second code path. The main types are [Plan], [Step],
// [Stage], [Op] and [Decision].
package plan

import (
	"strings"

	"github.com/loratool/loratool/formats/tensor"
)

// Slice names whole rows [From, To) of one input tensor, seen as a matrix of
// Cols columns.
type Slice struct {
	Input    int         `json:"input"`
	Tensor   string      `json:"tensor"`
	Spec     tensor.Spec `json:"-"`
	Cols     int64       `json:"cols"`
	From, To int64
}

// Whole returns the slice of a complete tensor in its natural matrix form.
func Whole(input int, spec tensor.Spec) Slice {
	return Slice{Input: input, Tensor: spec.Name, Spec: spec, Cols: spec.Cols(), From: 0, To: spec.Rows()}
}

// Rows returns the number of rows.
func (s Slice) Rows() int64 { return s.To - s.From }

// Placement says where the rows of a step land: from row Row on of an output
// tensor, seen with the same number of columns.
type Placement struct {
	Output int
	Tensor string
	DType  tensor.DType
	Row    int64
}

// Band is a run of whole rows of the tensor that a step reads, decoded. Row is
// the first of them, counted in the whole tensor.
type Band[T tensor.Float] struct {
	Row        int64
	Rows, Cols int
	X          []T
}

// Func is an operation bound to its side inputs. Apply works in place, is safe
// for concurrent use on different bands, and its result for a row does not
// depend on where the bands are cut.
type Func[T tensor.Float] interface {
	Apply(b Band[T]) error
}

// Observer is a [Func] that must see the whole tensor before it can work on a
// part of it: a norm along columns, a factorisation. The engine streams the
// tensor Passes times through the earlier stages, in row order from one
// goroutine, and calls Finish after each pass.
type Observer[T tensor.Float] interface {
	Func[T]
	Passes() int
	Observe(pass int, b Band[T]) error
	Finish(pass int) error
}

// Adder is a [Func] that adds a product of low rank to rows and does nothing
// else. An engine may then decode, add and encode in one go, to the same bytes
// as with Apply in between.
type Adder[T tensor.Float] interface {
	Func[T]
	// Product returns what is added to n rows from the given one on, 0 < n <=
	// rows; ok is false for rows that Apply does not touch.
	Product(row int64, rows int) (p Product[T], n int, ok bool)
}

// Product is Scale·L·R, L with Rank columns and R with Rank rows.
type Product[T tensor.Float] struct {
	L, R  []T
	Rank  int
	Scale T
}

// Op is one operation on bands. Its exported fields are its arguments and are
// printed with the plan. The two Bind methods are the same operation in the
// two precisions a step may run in; sides are the decoded side inputs in the
// order of [Stage.Sides].
type Op interface {
	Kind() string
	Bind(sides []tensor.Matrix[float32]) (Func[float32], error)
	Bind64(sides []tensor.Matrix[float64]) (Func[float64], error)
}

// Scratcher is an [Op] that needs memory of its own beside its decoded sides:
// Scratch returns it in elements for a tensor of the given matrix form.
type Scratcher interface {
	Scratch(rows, cols int64) int64
}

// Stage is an operation with its side inputs, which are held whole while the
// step runs.
type Stage struct {
	Op    Op
	Sides []Slice
}

// Step maps rows of one input tensor to rows of one output tensor. Without
// stages and with the same element type the bytes are copied untouched;
// otherwise a band is decoded, the stages are applied in order in float32 (or
// float64 if any tensor involved is F64), and the result is rounded once.
type Step struct {
	Read   Slice
	Stages []Stage
	Write  Placement
	// Judge asks for delta, rounding and survival figures of this step: its
	// stages carry a fine-tune rather than a change of format.
	Judge bool
}

// Copies reports whether the step moves bytes without looking at them.
func (s *Step) Copies() bool { return len(s.Stages) == 0 && s.Read.Spec.DType == s.Write.DType }

// Double reports whether the step runs in float64: some tensor involved, or the
// output, holds values that float32 would round.
func (s *Step) Double() bool {
	if s.Read.Spec.DType == tensor.F64 || s.Write.DType == tensor.F64 {
		return true
	}
	for _, st := range s.Stages {
		for _, side := range st.Sides {
			if side.Spec.DType == tensor.F64 {
				return true
			}
		}
	}
	return false
}

// SideElements returns how many decoded elements the step holds while it runs:
// the side inputs twice (as read, and packed for the kernel) and the scratch
// of its operations.
func (s *Step) SideElements() int64 {
	var n int64
	for _, st := range s.Stages {
		for _, side := range st.Sides {
			n += 2 * side.Rows() * side.Cols
		}
		if sc, ok := st.Op.(Scratcher); ok {
			n += sc.Scratch(s.Read.Rows(), s.Read.Cols)
		}
	}
	return n
}

// Decision is something the plan settled that a user may want to know or to
// overrule.
type Decision struct {
	Code    string   `json:"code"`
	Message string   `json:"message"`
	Tensors []string `json:"tensors"`
}

// Input describes one input for people and for provenance.
type Input struct {
	Role   string // "base", "adapter", "init-adapter"
	Name   string // name without folders, safe to publish
	Path   string // as opened; printed, never written into an output
	Files  []File // weight and config files that determine the result
	Note   string // weight, revision
	Weight float64
}

// File is one file of an input, to be hashed while the run reads it.
type File struct {
	Name string
	Path string
	Size int64
}

// unknownHash stands for a SHA-256 that is not known yet, at the same length: what
// an output says of its inputs is laid out before they have been read.
var unknownHash = strings.Repeat("0", 64)

// HashOf returns the hash of an input file, by its path, or what stands for it.
func HashOf(hashes map[string]string, path string) string {
	if h, ok := hashes[path]; ok {
		return h
	}
	return unknownHash
}

// Plan is everything a run will do.
type Plan struct {
	Inputs    []Input
	Steps     []Step
	Decisions []Decision
	// Unhashed says that nothing records the hashes of the inputs' files, so that
	// a run need not make them.
	Unhashed bool
}

// OutBytes returns how many bytes the step writes.
func (s *Step) OutBytes() int64 {
	return s.Read.Rows() * s.Read.Cols * s.Write.DType.Bits() / 8
}

// InBytes returns how many bytes the step reads of its tensor.
func (s *Step) InBytes() int64 {
	return s.Read.Rows() * s.Read.Cols * s.Read.Spec.DType.Bits() / 8
}

// Extent returns the bytes [from, to) of the output tensor that the step writes.
func (s *Step) Extent() (from, to int64) {
	from = s.Write.Row * s.Read.Cols * s.Write.DType.Bits() / 8
	return from, from + s.OutBytes()
}
