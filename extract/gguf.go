package extract

import (
	"fmt"
	"io"
	"strings"

	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/tensor"
)

// This file is what differs where both models are GGUF, or one is and the other was made
// to be seen as GGUF ([checkpoint.Model.As]): names are llama.cpp's, the rows
// of a matrix are in its order on both sides, and the adapter is a GGUF file. It holds
// pairs of factors and nothing else (llama.cpp, src/llama-adapter.cpp), with one alpha;
// each pair's scale is alpha over its own rank.

// Keys and tensors of GGUF models and adapters.
const (
	keyArchitecture = "general.architecture"
	keyType         = "general.type"

	typeAdapter   = "adapter"
	ggufExt       = ".gguf"
	ggufEmbedding = "token_embd.weight"
	ggufHead      = "output.weight"
)

// checkContainers accepts two GGUF models or none; a model whose tensors are computed may
// stand for one. The rows of a matrix may be in another order in GGUF, so that there is no
// difference with any other model.
func (s *Survey) checkContainers() error {
	base, tuned := s.base.GGUF(), s.tuned.GGUF()
	if base == nil && tuned == nil {
		if strings.HasSuffix(s.opts.Output, ggufExt) {
			return inputErrorf(s.base, "it is no GGUF model: its adapter is a folder, not a GGUF file")
		}
		return nil
	}
	for _, m := range []*checkpoint.Model{s.base, s.tuned} {
		if m.GGUF() == nil && !m.Computed {
			return inputErrorf(m, "it is no GGUF model, the other is: their tensors have other names and row orders; convert one of them")
		}
		if m.GGUF() == nil {
			continue
		}
		if kind, _, _ := m.GGUF().Metadata().OptText(keyType); kind == typeAdapter {
			return inputErrorf(m, "it is an adapter, not a model; 'loratool merge' makes a model of it")
		}
	}
	if s.opts.Output != "" && !strings.HasSuffix(s.opts.Output, ggufExt) {
		return inputErrorf(s.base, "an adapter of GGUF models is a file that ends in %s", ggufExt)
	}
	switch {
	case s.opts.DenseWhenCheaper:
		return inputErrorf(s.base, "an adapter of GGUF models holds no weight whole, as dense-when-cheaper asks for")
	case !isGGUFType(s.opts.factorType()):
		return inputErrorf(s.base, "the factors of an adapter of GGUF models can't be stored as %s", s.opts.factorType())
	}
	s.gguf = true
	return nil
}

// architecture is what the keys of the GGUF model say, of the base if both are.
func (s *Survey) architecture() (string, error) {
	m := s.base
	if m.GGUF() == nil {
		m = s.tuned
	}
	name, err := m.GGUF().Metadata().Text(keyArchitecture)
	if err != nil {
		return "", inputErrorf(m, "%w", err)
	}
	return name, nil
}

// checkKeys compares what the keys of two GGUF models say of the architecture. A model
// that is seen as GGUF has none, and was compared by whoever made it so.
func (s *Survey) checkKeys() error {
	for _, m := range []*checkpoint.Model{s.base, s.tuned} {
		s.decideQuantized(m)
	}
	architecture, err := s.architecture()
	if err != nil || s.base.GGUF() == nil || s.tuned.GGUF() == nil {
		return err
	}
	base, tuned := s.base.GGUF().Metadata(), s.tuned.GGUF().Metadata()
	for _, key := range []string{keyArchitecture, architecture + ".block_count", architecture + ".embedding_length"} {
		x, okX := base.Get(key)
		y, okY := tuned.Get(key)
		if okX && okY && !x.Equal(y) {
			return inputErrorf(s.tuned, "key %q is another than the base's: these are different models", key)
		}
	}
	return nil
}

// ggufRole reads the role of a tensor of a GGUF model.
func (s *Survey) ggufRole(it *item, p pair) Role {
	switch dims := len(it.shape); {
	case !p.tuned.DType.IsFloat() || !p.base.DType.IsFloat():
		return Fixed
	case p.name == ggufEmbedding:
		return Embedding
	case p.name == ggufHead:
		return Head
	case dims == 2 && adapter.HasGGUFProduct(it.module) && it.param == "weight":
		return Linear
	case dims == 3 && adapter.HasGGUFProduct(it.module) && it.param == "weight":
		return Experts
	case dims == 2:
		return Table
	}
	return Vector
}

// leaveGGUF leaves out what a GGUF adapter can't hold.
func (it *item) leaveGGUF() {
	switch {
	case it.solve || it.leave != "":
	case it.role == Embedding || it.role == Head:
		it.leave = "a GGUF adapter holds them as factors only, if --target names them"
	case it.role == Table:
		it.leave = "llama.cpp does not apply an adapter to them"
	default:
		it.leave = "a GGUF adapter holds no norms, biases and other vectors"
	}
}

// ggufAlpha is the one alpha of a GGUF adapter: as given, or the largest rank, so that
// the largest factors are the change without a scale.
func (d *draft) ggufAlpha() float64 {
	if d.s.opts.Alpha != 0 {
		return d.s.opts.Alpha
	}
	return float64(d.ranks)
}

// ggufPair plans the factors of an item in the shapes of a GGUF adapter: A (rank, in) and
// B (out, rank), for each expert its own; of the token embedding, whose rows are looked
// up, A is (vocabulary, rank).
func (w *writer) ggufPair(c *carried) {
	r, n := c.rank(), c.blocks
	shapeA, shapeB := tensor.Shape{r, c.in}, tensor.Shape{c.out, r}
	a, b := w.store.factorA(c.item, r), w.store.factorB(c.item, r, w.d.scale(c))
	switch c.role {
	case Embedding:
		shapeA = tensor.Shape{c.in, r}
		a = rearranged(a, r*c.in, func(i int64) int64 { return i%r*c.in + i/r })
	case Experts:
		shapeA, shapeB = append(tensor.Shape{n}, shapeA...), append(tensor.Shape{n}, shapeB...)
		// B comes as PEFT packs it: (out, rank·experts), the expert innermost.
		b = rearranged(b, n*c.out*r, func(i int64) int64 {
			expert, row, k := i/(c.out*r), i/r%c.out, i%r
			return (row*r+k)*n + expert
		})
	}
	w.make(c, c.parts[0].name+adapter.GGUFSuffixA, shapeA, a)
	w.make(c, c.parts[0].name+adapter.GGUFSuffixB, shapeB, b)
}

// rearranged gives the elements of a made matrix in another order: element i is element
// from(i) of the other.
func rearranged(open opener, elements int64, from func(i int64) int64) opener {
	return func() (io.ReaderAt, error) {
		src, err := open()
		if err != nil {
			return nil, err
		}
		matrix, ok := src.(computed)
		if !ok {
			return nil, fmt.Errorf("a made matrix is a %T", src)
		}
		return computed{elements, func(i int64) float64 { return matrix.at(from(i)) }}, nil
	}
}

// ggufTypes are the types of factors.
var ggufTypes = map[tensor.DType]gguf.Type{tensor.F32: gguf.F32, tensor.F16: gguf.F16, tensor.BF16: gguf.BF16}

func isGGUFType(d tensor.DType) bool {
	_, ok := ggufTypes[d]
	return ok
}

// ggufLayout places the output file. Provenance is one key more, which llama.cpp passes
// over.
func (d *draft) ggufLayout(x *Extraction, specs []tensor.Spec) (*checkpoint.Layout, error) {
	architecture, err := d.s.architecture()
	if err != nil {
		return nil, err
	}
	keys := adapter.GGUFKeys(architecture, float32(d.ggufAlpha()))
	for key, text := range x.Metadata(nil) {
		keys.Set(key, gguf.ValueOf(text))
	}
	var all []gguf.Spec
	for _, spec := range specs {
		all = append(all, gguf.Spec{Name: spec.Name, Type: ggufTypes[spec.DType], Shape: spec.Shape})
	}
	path := d.s.opts.Output
	if path == "" { // of a sweep, which only asks for the size
		path = "adapter" + ggufExt
	}
	return checkpoint.NewGGUFLayout(path, all, keys, checkpoint.GGUFOptions{})
}
