package extract

import (
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/plan"
	"github.com/loratool/loratool/quant/block"
)

// Comparison is a sink that keeps nothing: it compares what a run would write with
// a model. Running the plan of a merge of base and adapter into it says how near
// the merged weights come to the tuned ones, in the tuned model's element types.
type Comparison struct {
	model *checkpoint.Model
	names map[string]tensor.Spec // the model's tensor for a tensor of the plan

	mu     sync.Mutex
	pieces map[string][]comparedPiece
}

// comparedPiece is what one band has shown. Pieces are summed in the order of
// their place, so that the sums do not depend on which came first.
type comparedPiece struct {
	off    int64
	maxAbs float64
	wrong  float64 // sum of (written - model)^2
	model  float64 // sum of model^2
	equal  int64   // values with the same bits
	values int64
}

// Compared is the result for one tensor, or for all.
type Compared struct {
	Tensor        string
	Values, Equal int64
	MaxAbs        float64
	Relative      float64 // ||written - model|| / ||model||
	Error, Norm   float64 // ||written - model|| and ||model||
}

// NewComparison prepares a plan for comparison with a model: every step is made to
// round to the element type of the model's own tensor. A tensor that the model does
// not store is left out of the comparison only if it is a head that is tied there.
func NewComparison(p *plan.Plan, model *checkpoint.Model, head, embedding string) (*Comparison, error) {
	c := &Comparison{model: model, names: make(map[string]tensor.Spec), pieces: make(map[string][]comparedPiece)}
	p.Unhashed = true // nothing is published
	for i := range p.Steps {
		step := &p.Steps[i]
		spec, ok := model.Lookup(step.Write.Tensor)
		if !ok && step.Write.Tensor == head {
			spec, ok = model.Lookup(embedding)
		}
		switch {
		case !ok && arch.IsBuffer(step.Write.Tensor):
			spec = step.Read.Spec
			spec.Name = ""
		case !ok:
			return nil, inputErrorf(model, "it has no tensor %q to compare the merged one with", step.Write.Tensor)
		}
		c.names[step.Write.Tensor] = spec
		step.Write.DType = spec.DType
	}
	return c, nil
}

// HeadOf returns the names of the output layer and of the embedding that it may be
// tied to, in the files of the two models.
func (s *Survey) HeadOf() (head, embedding string) { return s.head, s.embedding }

// WriteAt compares bytes of a tensor with the model's.
func (c *Comparison) WriteAt(_ int, name string, p []byte, off int64) error {
	spec := c.names[name]
	if spec.Name == "" {
		return nil
	}
	src, err := c.model.Open(spec.Name)
	if err != nil {
		return err
	}
	want := make([]byte, len(p))
	if err := readFull(src, want, off); err != nil {
		return readError(c.model, spec.Name, err)
	}
	piece := comparedPiece{off: off}
	size := int(spec.DType.Bits() / 8)
	codec, ok := block.For(spec.DType)
	if !ok {
		codec, size = nil, 1
	}
	const batch = 512
	var got, model [batch]float64
	for len(p) > 0 {
		n := min(len(p)/size, batch)
		piece.values += int64(n)
		for i := range n {
			if string(p[i*size:(i+1)*size]) == string(want[i*size:(i+1)*size]) {
				piece.equal++
			}
		}
		if codec != nil {
			codec.Decode64(got[:n], p[:n*size])
			codec.Decode64(model[:n], want[:n*size])
			for i, m := range model[:n] {
				d := got[i] - m
				piece.model += m * m
				piece.wrong += d * d
				piece.maxAbs = math.Max(piece.maxAbs, math.Abs(d))
			}
		}
		p, want = p[n*size:], want[n*size:]
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pieces[name] = append(c.pieces[name], piece)
	return nil
}

// Result returns the figures of every tensor that is not the model's, bit for bit,
// by name, and those of all tensors together.
func (c *Comparison) Result() (tensors []Compared, all Compared) {
	var names []string
	for name := range c.pieces {
		names = append(names, name)
	}
	slices.Sort(names)
	var wrong, model float64
	for _, name := range names {
		t := Compared{Tensor: name}
		var e, n float64
		pieces := c.pieces[name]
		slices.SortFunc(pieces, func(a, b comparedPiece) int { return int(a.off - b.off) })
		for _, p := range pieces {
			t.Values, t.Equal = t.Values+p.values, t.Equal+p.equal
			t.MaxAbs = math.Max(t.MaxAbs, p.maxAbs)
			e, n = e+p.wrong, n+p.model
		}
		t.Error, t.Norm, t.Relative = math.Sqrt(e), math.Sqrt(n), relative(e, n)
		wrong, model = wrong+e, model+n
		all.Values, all.Equal = all.Values+t.Values, all.Equal+t.Equal
		all.MaxAbs = math.Max(all.MaxAbs, t.MaxAbs)
		if t.Equal < t.Values {
			tensors = append(tensors, t)
		}
	}
	all.Error, all.Norm, all.Relative = math.Sqrt(wrong), math.Sqrt(model), relative(wrong, model)
	return tensors, all
}

// String says the result in a line.
func (c Compared) String() string {
	return fmt.Sprintf("%d of %d values have the same bits, largest difference %.3g, relative %.3g", c.Equal, c.Values, c.MaxAbs, c.Relative)
}
