package verify

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/plan"
	"github.com/loratool/loratool/quant/block"
)

// This file compares what a merge computes with what base and adapters compute, module by
// module and as a runtime does it in limited precision:
//
//	y1 = W'x        y2 = Wx + s·B(Ax)
//
// Inputs and weights are numbers of a type, sums have the precision of an accumulator, and
// every result is rounded to the type: of y1 the sum, of y2 Wx, Ax, B(Ax), s times that, and
// the sum (PEFT, tuners/lora/layer.py, Linear.forward). How far the two may be apart follows
// from the roundings (function_bound.go).

// Arithmetic is how a runtime computes: in numbers of a type, F16, BF16 or F32, and with sums
// in float32 or, if Pure, in the type itself.
type Arithmetic struct {
	Type tensor.DType
	Pure bool
}

// String is the name of the arithmetic, such as bf16 or f16-pure.
func (a Arithmetic) String() string {
	if a.Pure {
		return a.Type.String() + "-pure"
	}
	return a.Type.String()
}

// ParseArithmetic reads such a name.
func ParseArithmetic(name string) (Arithmetic, error) {
	base, pure := strings.CutSuffix(name, "-pure")
	for _, d := range []tensor.DType{tensor.F16, tensor.BF16, tensor.F32} {
		if d.String() == base && !(pure && d == tensor.F32) {
			return Arithmetic{d, pure}, nil
		}
	}
	return Arithmetic{}, fmt.Errorf("%q is not one of f16, bf16, f32, f16-pure, bf16-pure", name)
}

// storage is the type for the kernels, and sums that of the accumulator.
func (a Arithmetic) storage() kernel.Storage {
	return map[tensor.DType]kernel.Storage{tensor.F16: kernel.F16, tensor.BF16: kernel.BF16, tensor.F32: kernel.F32}[a.Type]
}

func (a Arithmetic) sums() kernel.Storage {
	if a.Pure {
		return a.storage()
	}
	return kernel.F32
}

// FunctionOptions say what modules are run on.
type FunctionOptions struct {
	Arithmetic Arithmetic // the zero value is the type that most of the merge is stored in
	// Probes are drawn for each module: vectors of independent normal numbers, as behind
	// a norm, from a seed and the module's name.
	Probes int
	Seed   uint64
	// Activations are inputs of modules instead, each a matrix of rows with the name of the
	// module; modules without one get probes.
	Activations checkpoint.Checkpoint
}

// FunctionModule is what was found about one module. Scale is c with y1 - Wx nearest to
// c·s·B(Ax), Expected what is left of 1 by rounding the exact merge once, and Sigma the
// standard deviation that roundings give it.
type FunctionModule struct {
	Tensor                 string
	Shape                  tensor.Shape
	Pair                   bool // y2 is computed with the factors; else with the change, exactly
	Given                  bool // the inputs are activations
	Inputs                 int
	Largest                float64 // |y1 - y2|
	Relative               float64 // ||y1 - y2|| / ||y2||
	Cosine                 float64
	Ratio                  float64 // largest |y1 - y2| over its bound; NaN if there is none
	Scale, Expected, Sigma float64
	ULP                    kernel.ULPHistogram // of y1 and y2
}

// FunctionFigures are those of all modules. Of the sums only Scale, Expected and Sigma are
// pooled over modules.
type FunctionFigures struct {
	Arithmetic             Arithmetic
	Modules                []FunctionModule
	Left                   []string // changed tensors that are no matrix of a product, or stored in blocks
	Scale, Expected, Sigma float64
	ULP                    kernel.ULPHistogram
}

// Function runs the changed modules of a merge and adds what differs to the report.
func Function(ctx context.Context, r *Report, base *checkpoint.Model, adapters []merge.Source, mo merge.Options, merged *checkpoint.Model, fo FunctionOptions, o Options) error {
	c := &mergeCheck{Report: new(Report), base: base, merged: merged, shapes: make(map[string]tensor.Shape)}
	if err := c.plan(adapters, mo); err != nil {
		return err
	}
	c.pair(c.base)
	f := &functionCheck{check: c, options: fo}
	f.arithmetic = fo.Arithmetic
	if f.arithmetic.Type == tensor.NoDType {
		f.arithmetic = Arithmetic{Type: f.commonType()}
	}
	tasks, err := f.tasks()
	if err != nil {
		return err
	}
	if err := engine.Each(ctx, tasks, o.Engine); err != nil {
		return err
	}
	r.begin(familyFunction)
	r.Function = f.judge(r)
	return nil
}

// functionCheck is one comparison.
type functionCheck struct {
	check      *mergeCheck
	options    FunctionOptions
	arithmetic Arithmetic
	modules    []*functionModule
	left       []string
}

// functionModule is a module that is run.
type functionModule struct {
	*comparer64
	found  FunctionModule
	turned bool // stored as (in, out)
	products
	drawn []float32 // row by row
	sums  functionSums
}

// commonType is the type of 16 or 32 bits that most values of changed tensors have.
func (f *functionCheck) commonType() tensor.DType {
	count := make(map[tensor.DType]int64)
	best := tensor.F32
	for i := range f.check.pairs {
		p := &f.check.pairs[i]
		if d := p.stored.DType; p.step.Judge && (d == tensor.F16 || d == tensor.BF16 || d == tensor.F32) {
			if count[d] += p.stored.NumElements(); count[d] > count[best] {
				best = d
			}
		}
	}
	return best
}

// tasks makes one of every module.
func (f *functionCheck) tasks() ([]plan.Task, error) {
	modelType := hfrepo.NewConfig(f.check.base.Config).ModelType()
	embedding, _ := embeddingOf(f.check.base)
	var tasks []plan.Task
	for i := range f.check.pairs {
		p := &f.check.pairs[i]
		if !p.step.Judge || len(p.step.Stages) == 0 {
			continue
		}
		dims, whole := len(p.stored.Shape), p.step.Read.Rows() == p.step.Read.Spec.Rows()
		if dims != 2 && dims != 3 || !whole || p.codes != nil || p.stored.Name == embedding || !p.stored.DType.IsFloat() || !strings.HasSuffix(p.stored.Name, ".weight") && dims == 2 {
			f.left = append(f.left, p.stored.Name)
			continue
		}
		m := &functionModule{comparer64: &comparer64{inputs: f.check.inputs, merged: f.check.merged, step: p.step, stored: p.stored, shifted: p.shifted}}
		m.found = FunctionModule{Tensor: p.stored.Name, Shape: p.stored.Shape}
		m.turned = dims == 2 && arch.StoresConv1D(modelType, strings.TrimSuffix(p.stored.Name, ".weight"))
		if err := f.draw(m); err != nil {
			return nil, err
		}
		f.modules = append(f.modules, m)
		scratch := m.scratch() + 8*int64(len(m.drawn))
		if m.turned {
			scratch += 4 * 8 * p.stored.NumElements()
		}
		tasks = append(tasks, plan.Task{Name: p.stored.Name, Reads: p.step.InBytes() + p.stored.Size(), Scratch: scratch, Do: func(ctx context.Context, _ int) error {
			return f.run(ctx, m)
		}})
	}
	return tasks, nil
}

// embeddingOf names the table of the token embedding.
func embeddingOf(m *checkpoint.Model) (string, bool) {
	names := func(yield func(string) bool) {
		for _, s := range m.Specs() {
			if !yield(s.Name) {
				return
			}
		}
	}
	name, _, ok := arch.Embeddings(names, hfrepo.NewConfig(m.Config).Architecture())
	return name, ok
}

// draw gives a module its inputs, rounded to the type.
func (f *functionCheck) draw(m *functionModule) error {
	in := m.step.Read.Cols
	if m.turned {
		in = m.stored.Shape[0]
	}
	module := strings.TrimSuffix(m.stored.Name, ".weight")
	if f.options.Activations != nil {
		for _, s := range f.options.Activations.Specs() {
			if s.Name != module && s.Name != m.stored.Name {
				continue
			}
			if len(s.Shape) == 0 || s.Cols() != in || s.NumElements() == 0 || !s.DType.IsFloat() {
				return fmt.Errorf("activations %q: %s of shape %s are no inputs of a module that takes %d numbers", s.Name, s.DType, s.Shape, in)
			}
			r, ok, err := newReader(f.options.Activations, s)
			if err != nil || !ok {
				return fmt.Errorf("activations %q: %s can't be computed with (%v)", s.Name, s.DType, err)
			}
			x := make([]float64, s.NumElements())
			if err := r.read(x, 0); err != nil {
				return err
			}
			m.found.Given = true
			m.setInputs(f.arithmetic.Type, x, in)
			return nil
		}
	}
	seed := uint64(14695981039346656037) // FNV-1a of the name
	for _, b := range []byte(module) {
		seed = (seed ^ uint64(b)) * 1099511628211
	}
	random := rand.New(rand.NewPCG(f.options.Seed, seed))
	x := make([]float64, int64(f.options.Probes)*in)
	for i := range x {
		x[i] = random.NormFloat64()
	}
	m.setInputs(f.arithmetic.Type, x, in)
	return nil
}

func (m *functionModule) setInputs(d tensor.DType, x []float64, in int64) {
	new(compared).round(d, x)
	m.drawn = make([]float32, len(x))
	for i, v := range x {
		m.drawn[i] = float32(v)
	}
	m.found.Inputs = len(x) / int(in)
}

// products are the pairs that a runtime applies beside the weight.
type products []product

// product is one pair, A (rank, in) and B (out, rank), as numbers of the type.
type product struct {
	scale       float64
	rank        int
	a, b        []float64
	codes       []byte    // of B
	through     []float32 // A·x, rounded, for each input
	sizes, errs []float64 // |A|·|x| and the bound of the error of A·x
}

// readProducts reads the pairs of a step; none if it is more than a sum of pairs.
func (f *functionCheck) readProducts(m *functionModule) error {
	rows := m.step.Read.Rows()
	for _, st := range m.step.Stages {
		op, ok := st.Op.(merge.AddLoRA)
		if !ok || len(st.Sides) != 2 || op.Region != (merge.Region{Rows: rows}) || op.Transposed != m.turned || m.found.Shape == nil || len(m.found.Shape) != 2 {
			m.products = nil
			return nil
		}
		p := product{scale: op.Scale}
		for i, side := range st.Sides {
			src, err := m.inputs[side.Input].Open(side.Tensor)
			if err != nil {
				return err
			}
			x, err := engine.ReadMatrix[float64](src, side)
			if err != nil {
				return err
			}
			new(compared).round(f.arithmetic.Type, x.Data)
			if i == 0 {
				p.a, p.rank = x.Data, x.Rows()
			} else {
				p.b = x.Data
			}
		}
		p.codes = f.encode(p.b)
		f.through(m, &p)
		m.products = append(m.products, p)
	}
	m.found.Pair = true
	return nil
}

// encode stores numbers in the type.
func (f *functionCheck) encode(x []float64) []byte {
	codec, _ := block.For(f.arithmetic.Type)
	data := make([]byte, len(x)*int(f.arithmetic.Type.Bits()/8))
	codec.Encode64(data, x)
	return data
}

// round rounds one result to the type.
func (f *functionCheck) round(v float32) float32 {
	if f.arithmetic.Type == tensor.F32 {
		return v
	}
	var x [1]float32
	var raw [2]byte
	codec, _ := block.For(f.arithmetic.Type)
	x[0] = v
	codec.Encode32(raw[:], x[:])
	codec.Decode32(x[:], raw[:])
	return x[0]
}

// through computes A·x for all inputs.
func (f *functionCheck) through(m *functionModule, p *product) {
	in := len(p.a) / max(p.rank, 1)
	a := f.encode(p.a)
	p.through = make([]float32, m.found.Inputs*p.rank)
	p.sizes, p.errs = make([]float64, len(p.through)), make([]float64, len(p.through))
	for i := range m.found.Inputs {
		x, t := m.drawn[i*in:(i+1)*in], p.through[i*p.rank:(i+1)*p.rank]
		kernel.MatVec(t, f.arithmetic.storage(), a, x, p.rank, in, f.arithmetic.sums())
		for k := range t {
			t[k] = f.round(t[k])
			size := 0.0
			for j, v := range p.a[k*in : (k+1)*in] {
				size += math.Abs(v * float64(x[j]))
			}
			p.sizes[i*p.rank+k] = size
			p.errs[i*p.rank+k] = f.errorOfProduct(in, size, math.Abs(float64(t[k])), true)
		}
	}
}

// run runs one module.
func (f *functionCheck) run(ctx context.Context, m *functionModule) error {
	if err := m.bind(ctx); err != nil {
		return err
	}
	defer func() { m.funcs, m.products, m.drawn = nil, nil, nil }()
	if err := f.readProducts(m); err != nil {
		return err
	}
	if m.turned {
		if err := f.runTurned(ctx, m); err != nil {
			return err
		}
	} else {
		cols := int(m.step.Read.Cols)
		err := m.each(ctx, func(b *compared) error {
			f.rows(m, int(b.first)/cols, cols, b.w, b.x, b.y)
			return nil
		})
		if err != nil {
			return err
		}
	}
	m.sums.finish(f, &m.found)
	return nil
}

// runTurned collects a matrix that is stored as (in, out), and runs its transpose.
func (f *functionCheck) runTurned(ctx context.Context, m *functionModule) error {
	rows, cols := int(m.stored.Shape[0]), int(m.stored.Shape[1])
	var all [3][]float64
	for i := range all {
		all[i] = make([]float64, rows*cols)
	}
	err := m.each(ctx, func(b *compared) error {
		for i, x := range [][]float64{b.w, b.x, b.y} {
			for at, v := range x {
				at += int(b.first)
				all[i][at%cols*rows+at/cols] = v
			}
		}
		return nil
	})
	if err == nil {
		f.rows(m, 0, rows, all[0], all[1], all[2])
	}
	return err
}

// rows runs rows of a module on all inputs: w of the base, x the exact merge, y what is
// stored.
func (f *functionCheck) rows(m *functionModule, first, in int, w, x, y []float64) {
	n := len(w) / in
	store, sums := f.arithmetic.storage(), f.arithmetic.sums()
	base, stored := f.encode(w), f.encode(y)
	nearest := append([]float64(nil), x...)
	new(compared).round(m.stored.DType, nearest)
	y1, wx := make([]float32, n), make([]float32, n)
	for i := range m.found.Inputs {
		input := m.drawn[i*in : (i+1)*in]
		kernel.MatVec(y1, store, stored, input, n, in, sums)
		kernel.MatVec(wx, store, base, input, n, in, sums)
		for k := range n {
			row := functionRow{in: in, y1: f.round(y1[k]), base: f.round(wx[k])}
			row.measure(w[k*in:(k+1)*in], x[k*in:(k+1)*in], y[k*in:(k+1)*in], nearest[k*in:(k+1)*in], input)
			f.addChange(m, &row, first+k, i)
			f.bound(m, &row)
			m.sums.add(f, &row)
		}
	}
}

// addChange computes y2 of a row: the base's output and what each pair adds, or the exact
// change where it is no sum of pairs.
func (f *functionCheck) addChange(m *functionModule, row *functionRow, at, input int) {
	row.y2 = row.base
	if !m.found.Pair {
		row.sizeD = row.size
		row.y2 = f.round(row.y2 + f.round(float32(row.change)))
		return
	}
	var out [1]float32
	for i := range m.products {
		p := &m.products[i]
		size := int(f.arithmetic.Type.Bits() / 8)
		t := p.through[input*p.rank : (input+1)*p.rank]
		kernel.MatVec(out[:], f.arithmetic.storage(), p.codes[at*p.rank*size:(at+1)*p.rank*size], t, 1, p.rank, f.arithmetic.sums())
		through := f.round(out[0])
		row.y2 = f.round(row.y2 + f.round(float32(p.scale)*through))
		row.addPair(f, p, at, input, float64(through))
	}
}
