package convert

import (
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/quant/block"
)

// factorView is the factors of an adapter in another arrangement, computed in F32 when
// they are read. A reader holds the factors that it reads from: those of one pair.
type factorView struct {
	source  checkpoint.Checkpoint
	specs   []tensor.Spec
	tensors map[string]*factorTensor
}

var _ checkpoint.Checkpoint = (*factorView)(nil)

// factorTensor is one tensor of the view.
type factorTensor struct {
	spec tensor.Spec
	from []tensor.Spec // of the source
	// at says what element i is: which element of which source, and what it is
	// multiplied with; a source of -1 is a zero.
	at func(i int64) (source int, element int64, times float64)
}

func (v *factorView) add(t *factorTensor) error {
	spec, err := tensor.NewSpec(t.spec.Name, tensor.F32, t.spec.Shape)
	if err != nil {
		return fmt.Errorf("tensor %q: %w", t.spec.Name, err)
	}
	if _, twice := v.tensors[spec.Name]; twice {
		return fmt.Errorf("two of its tensors become %q", spec.Name)
	}
	t.spec = spec
	v.specs, v.tensors[spec.Name] = append(v.specs, spec), t
	return nil
}

// Specs returns the tensors in the order of the output.
func (v *factorView) Specs() []tensor.Spec { return v.specs }

// Open returns the bytes of a tensor.
func (v *factorView) Open(name string) (io.ReaderAt, error) {
	t, ok := v.tensors[name]
	if !ok {
		return nil, fmt.Errorf("no tensor %q", name)
	}
	return &factorReader{tensor: t, source: v.source}, nil
}

// factorReader computes the elements of one tensor. It may be used concurrently.
type factorReader struct {
	tensor *factorTensor
	source checkpoint.Checkpoint
	once   sync.Once
	values [][]float32
	err    error
}

// load decodes the factors that are read from.
func (r *factorReader) load() {
	for _, s := range r.tensor.from {
		src, err := r.source.Open(s.Name)
		codec, ok := block.For(s.DType)
		if err == nil && !ok {
			err = fmt.Errorf("tensor %q: no codec for %s", s.Name, s.DType)
		}
		raw := make([]byte, s.Size())
		if err == nil {
			err = readAll(src, raw, 0)
		}
		if err != nil {
			r.err = err
			return
		}
		values := make([]float32, s.NumElements())
		block.Decode(codec, values, raw)
		r.values = append(r.values, values)
	}
}

func (r *factorReader) ReadAt(p []byte, off int64) (int, error) {
	const width = 4
	p, end := within(p, off, r.tensor.spec.Size())
	if len(p) == 0 {
		return 0, end
	}
	r.once.Do(r.load)
	if r.err != nil {
		return 0, r.err
	}
	first, last := off/width, (off+int64(len(p))-1)/width+1
	x := make([]float32, last-first)
	for i := range x {
		source, element, times := r.tensor.at(first + int64(i))
		if source < 0 {
			continue
		}
		x[i] = r.values[source][element]
		if times != 1 {
			x[i] = float32(float64(x[i]) * times)
		}
	}
	copy(p, encodeF32(x)[off-first*width:])
	return len(p), end
}

// factors returns the two factors of a pair, and whether a scale went into the second.
func (p *stackedPair) factors(alpha float64) (a, b *factorTensor, folded bool) {
	rank := p.rank()
	a = &factorTensor{spec: tensor.Spec{Name: p.name + ".lora_a", Shape: p.stack(rank, p.cols)}}
	b = &factorTensor{spec: tensor.Spec{Name: p.name + ".lora_b", Shape: p.stack(p.rows, rank)}}
	// Which term has direction k of a matrix, and how much B is multiplied with there.
	type direction struct {
		term     *pairTerm
		k        int64
		times    float64
		inA, inB int // indices of the sources
	}
	sourceOf := func(f *factorTensor, s tensor.Spec) int {
		i := slices.IndexFunc(f.from, func(x tensor.Spec) bool { return x.Name == s.Name })
		if i < 0 {
			i, f.from = len(f.from), append(f.from, s)
		}
		return i
	}
	directions := make([][]direction, len(p.terms))
	for m := range p.terms {
		for i := range p.terms[m] {
			t := &p.terms[m][i]
			times := t.scale * float64(rank) / alpha
			if float32(t.scale*float64(rank)) == float32(alpha) {
				times = 1 // alpha is as near to it as the file can say
			}
			folded = folded || times != 1
			d := direction{term: t, times: times, inA: sourceOf(a, t.a), inB: sourceOf(b, t.b)}
			for d.k = range t.rank {
				directions[m] = append(directions[m], d)
			}
		}
	}
	at := func(matrix, k int64) *direction {
		if k >= int64(len(directions[matrix])) {
			return nil
		}
		return &directions[matrix][k]
	}
	a.at = func(i int64) (int, int64, float64) {
		matrix, k, j := i/(rank*p.cols), i/p.cols%rank, i%p.cols
		d := at(matrix, k)
		if d == nil {
			return -1, 0, 0
		}
		return d.inA, (d.term.group*d.term.rank+d.k)*p.cols + j, 1
	}
	b.at = func(i int64) (int, int64, float64) {
		matrix, row, k := i/(p.rows*rank), i/rank%p.rows, i%rank
		d := at(matrix, k)
		if d == nil {
			return -1, 0, 0
		}
		own := d.term.row(row)
		if own < 0 {
			return -1, 0, 0
		}
		return d.inB, own*d.term.b.Cols() + d.term.column(d.term.group, d.k), d.times
	}
	if p.embedding {
		// The rows are looked up in the first factor: A (vocabulary, rank), B (columns, rank).
		a.spec.Shape, b.spec.Shape = tensor.Shape{p.rows, rank}, tensor.Shape{p.cols, rank}
		vocabulary, times := p.terms[0][0].a.Cols(), directions[0][0].times
		a.at = func(i int64) (int, int64, float64) { return 0, i%rank*vocabulary + i/rank, 1 }
		b.at = func(i int64) (int, int64, float64) { return 0, i, times }
	}
	return a, b, folded
}

// stack is the shape of a factor.
func (p *stackedPair) stack(rows, cols int64) tensor.Shape {
	if p.experts > 0 {
		return tensor.Shape{p.experts, rows, cols}
	}
	return tensor.Shape{rows, cols}
}
