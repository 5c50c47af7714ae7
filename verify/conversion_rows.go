package verify

import (
	"slices"
	"strings"

	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
)

// This file computes a second time what a conversion does to values, from what the two
// runtimes compute and not from the tables of the converter. transformers turns row i of a
// head with row i + D/2 (rotate_half in modeling_llama.py and its like), llama.cpp the rows
// 2i and 2i+1 where its llama_model_rope_type is NORM, and as transformers where it is NEOX
// (src/llama-model.cpp). transformers multiplies the norms of Gemma with 1 + w, llama.cpp
// with what is stored.

// The architectures of GGUF by how llama.cpp turns their heads. Others are not looked at.
var (
	turnedInPairs  = []string{"llama", "granite", "granitemoe", "smollm3", "arcee", "ernie4_5", "minicpm", "olmo", "deepseek", "internlm2"}
	turnedInHalves = []string{"qwen2", "qwen2moe", "qwen3", "qwen3moe", "gemma", "gemma2", "gemma3", "olmo2", "olmoe", "starcoder2", "exaone4",
		"seed_oss", "nemotron", "phi3"}
)

// notTurned are those without rotation.
var notTurned = []string{"gpt2", "bert"}

// shiftedNorms are the architectures whose norms transformers adds 1 to.
var shiftedNorms = []string{"gemma", "gemma2", "gemma3"}

// elements are the values of a tensor.
type elements interface {
	read(x []float64, first int64) error
}

// way is how the values of a converted tensor come from one of the base.
type way struct {
	in    *checkpoint.Model
	spec  tensor.Spec
	head  int64    // rows of a head of q or k, 0 for what has none
	order rowOrder // of these rows
	other []int64  // sizes that heads would have by another number of them
	shift float64  // that is added
}

// rowOrder is the row of a head of D rows that row r comes from.
type rowOrder func(r, head int64) int64

func inOrder(r, _ int64) int64 { return r }

// intoPairs: row 2i+j comes from j·D/2+i.
func intoPairs(r, head int64) int64 { return r%2*(head/2) + r/2 }

// intoHalves: row j·D/2+i comes from 2i+j.
func intoHalves(r, head int64) int64 { return r%(head/2)*2 + r/(head/2) }

// widest is the type in which the sum with a shift may have been rounded: numbers of 16
// bits may be added as such. NoDType if nothing is added.
func (w *way) widest(d tensor.DType) tensor.DType {
	if w == nil || w.shift == 0 {
		return tensor.NoDType
	}
	if w.spec.DType == tensor.F16 {
		return tensor.F16
	}
	return tensor.F32
}

// open opens the tensor that the values come from.
func (w *way) open() (elements, error) { return w.openAs(w.order, w.head, w.shift) }

func (w *way) openAs(order rowOrder, head int64, shift float64) (elements, error) {
	r, ok, err := newReader(w.in, w.spec)
	if err != nil || !ok {
		return nil, err
	}
	// The converter adds in the type of the tensor, but for BF16, which numpy has not.
	t := &turned{reader: r, shift: shift, half: shift > 0 && w.spec.DType == tensor.F16, cols: 1}
	if head > 0 {
		t.order, t.head, t.cols = order, head, w.spec.NumElements()/w.spec.Shape[0]
	}
	return t, nil
}

// turned reads a tensor in another order of its rows, and adds to it.
type turned struct {
	*reader
	order rowOrder
	head  int64
	cols  int64
	shift float64
	half  bool // the sum is rounded to F16
}

func (t *turned) read(x []float64, first int64) error {
	if t.head == 0 {
		if err := t.reader.read(x, first); err != nil {
			return err
		}
	} else if err := t.rows(x, first); err != nil {
		return err
	}
	if t.shift != 0 {
		for i := range x {
			x[i] += t.shift
		}
		if t.half {
			new(compared).round(tensor.F16, x)
		}
	}
	return nil
}

func (t *turned) rows(x []float64, first int64) error {
	for len(x) > 0 {
		row, col := first/t.cols, first%t.cols
		n := min(t.cols-col, int64(len(x)))
		from := row/t.head*t.head + t.order(row%t.head, t.head)
		if err := t.reader.read(x[:n], from*t.cols+col); err != nil {
			return err
		}
		x, first = x[n:], first+n
	}
	return nil
}

// ownWays lists how tensors of queries, keys and norms come from the base, by their names
// in the converted model.
func (c *conversionCheck) ownWays() map[string]*way {
	folder, file, ok := c.sides()
	ways := make(map[string]*way)
	if !ok {
		return ways
	}
	config := hfrepo.NewConfig(folder.Config)
	class := config.Architecture()
	if class == "" { // which only a conversion from it needs
		class = hfrepo.NewConfig(c.expected.Config).Architecture()
	}
	family, ok := arch.GGUFOf(class)
	if !ok {
		return ways
	}
	name, _, _ := file.GGUF().Metadata().OptText("general.architecture")
	if !isTurnKnown(name) {
		c.add("rows-unproved", "", "of %q it is not known here how llama.cpp turns its heads", name)
	}
	heads := headsOf(config)
	for _, s := range folder.Specs() {
		found := family.FromHF(s.Name)
		if len(found) != 1 || found[0].Expert >= 0 {
			continue
		}
		w := &way{in: folder, spec: s}
		as := found[0].Name
		if file == c.base {
			stored, ok := file.Lookup(as)
			if !ok {
				continue
			}
			w.in, w.spec, as = file, stored, s.Name
		}
		if w.choose(found[0].Name, name, heads, file == c.base) {
			ways[as] = w
		}
	}
	return ways
}

// headsOf reads how many heads queries and keys have; 0 if it is not stated.
func headsOf(config hfrepo.Config) [2]int64 {
	var heads [2]int64
	for _, name := range []string{"num_attention_heads", "n_head", "n_heads"} {
		if n, ok := config.Int(name); ok && heads[0] == 0 {
			heads[0] = n
		}
	}
	heads[1] = heads[0]
	for _, name := range []string{"num_key_value_heads", "n_kv_heads"} {
		if n, ok := config.Int(name); ok {
			heads[1] = n
			break
		}
	}
	return heads
}

// choose decides the way of a tensor by its name in GGUF; false if there is no own one.
func (w *way) choose(name, architecture string, heads [2]int64, back bool) bool {
	pairs := slices.Contains(turnedInPairs, architecture)
	switch {
	case isLayerPart(name, "attn_q"), isLayerPart(name, "attn_k"):
		if !isTurnKnown(architecture) {
			return false
		}
		of, other := heads[0], heads[1]
		if isLayerPart(name, "attn_k") {
			of, other = other, of
		}
		if w.head = w.headOf(of); w.head == 0 {
			return false
		}
		if size := w.headOf(other); size > 0 && size != w.head {
			w.other = append(w.other, size)
		}
		switch w.order = inOrder; {
		case pairs && back:
			w.order = intoHalves
		case pairs:
			w.order = intoPairs
		}
		return true
	case strings.HasSuffix(name, "_norm.weight") && slices.Contains(shiftedNorms, architecture):
		w.shift = 1
		if back {
			w.shift = -1
		}
		return true
	}
	return false
}

// isTurnKnown reports whether it is known how the heads of an architecture are turned.
func isTurnKnown(architecture string) bool {
	return slices.Contains(slices.Concat(turnedInPairs, turnedInHalves, notTurned), architecture)
}

// headOf is how many rows a head has if there are so many; 0 if they don't fit.
func (w *way) headOf(heads int64) int64 {
	if len(w.spec.Shape) == 0 || heads <= 0 || w.spec.Shape[0] == 0 || w.spec.Shape[0]%(2*heads) != 0 {
		return 0
	}
	return w.spec.Shape[0] / heads
}

// isLayerPart reports whether a name of GGUF is that of a module of a layer.
func isLayerPart(name, module string) bool {
	rest, ok := strings.CutPrefix(name, "blk.")
	if !ok {
		return false
	}
	_, rest, _ = strings.Cut(rest, ".")
	return rest == module+".weight" || rest == module+".bias"
}
