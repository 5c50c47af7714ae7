package verify

import (
	"context"
	"math"
	"strings"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/plan"
)

// Quantized checks a quantized model against what it was made of: no value may be
// farther off than its format can be, and what is not quantized must be the base's.
// Names must be the same on both sides: a GGUF file is compared with one in 16 or 32
// bits, or with a model that is seen as one ([checkpoint.Model.As]); its keys are compared as
// those of a conversion. The model is also checked by itself, see [Structure].
func Quantized(ctx context.Context, base, quantized *checkpoint.Model, o Options) (*Report, error) {
	if (base.GGUF() == nil) != (quantized.GGUF() == nil) && !base.Computed {
		gguf := quantized
		if base.GGUF() != nil {
			gguf = base
		}
		return nil, gguf.RefuseGGUF("a comparison of safetensors with")
	}
	r, err := Structure(ctx, quantized, o)
	if err != nil {
		return nil, err
	}
	if quantized.GGUF() != nil {
		r.begin(familyConversion)
		if err := checkConvertedKeys(ctx, &conversionCheck{Report: r, base: base, converted: quantized}, o); err != nil {
			return nil, err
		}
	}
	r.begin(familyQuantized)
	c := &quantCheck{Report: r, base: base, quantized: quantized}
	return r, c.run(ctx, o)
}

// QuantizedTensor is what quantization did to one weight. Error is ||W - Q|| / ||W||.
type QuantizedTensor struct {
	Tensor string
	Shape  tensor.Shape
	Kind   string // "nf4", "q8_0"
	Error  float64
}

// QuantizedFigures sums a comparison up.
type QuantizedFigures struct {
	Tensors []QuantizedTensor
	Error   float64 // over all of them
}

// quantCheck is one comparison.
type quantCheck struct {
	*Report
	base, quantized *checkpoint.Model
	pairs           []*quantPair
}

// quantPair is a tensor on both sides.
type quantPair struct {
	base, stored tensor.Spec
	derived      checkpoint.Derived
	isDerived    bool
	limits       limits
	found        quantFound
}

// quantFound is what was found about one tensor.
type quantFound struct {
	norm, left      float64 // squares of W, of W - Q
	beyond          int64   // values that are farther off than the format can be
	notNearest      int64   // values whose code is not the nearest
	first           int64
	largest, limit  float64 // of the values beyond: |W - Q| and what it may be
	differ          int64   // of a tensor that is not quantized: values that are not the base's
	total           int64
	worseThanNought int64 // blocks that are farther off than zeros would be
}

func (c *quantCheck) run(ctx context.Context, o Options) error {
	for _, spec := range c.base.Specs() {
		stored, ok := c.quantized.Lookup(spec.Name)
		switch {
		case !ok && c.mayBeTied(spec.Name):
		case !ok:
			c.add("quant-missing", spec.Name, "the base has it, the quantized model does not")
		case !stored.Shape.Equal(spec.Shape):
			c.add("quant-shape", spec.Name, "its shape is %s, that of the base %s", stored.Shape, spec.Shape)
		case spec.DType.IsFloat():
			p := &quantPair{base: spec, stored: stored}
			p.derived, p.isDerived = c.quantized.Derived(spec.Name)
			p.limits = c.limitsOf(p)
			c.pairs = append(c.pairs, p)
		}
	}
	for _, spec := range c.quantized.Specs() {
		if _, ok := c.base.Lookup(spec.Name); !ok {
			c.add("quant-extra", spec.Name, "the quantized model has it, the base does not")
		}
	}
	tasks := make([]plan.Task, len(c.pairs))
	for i, p := range c.pairs {
		tasks[i] = plan.Task{Name: p.base.Name, Reads: p.base.Size() + p.stored.Size(), Scratch: p.scratch(), Do: func(ctx context.Context, _ int) error {
			return c.compare(ctx, p)
		}}
	}
	if err := engine.Each(ctx, tasks, o.Engine); err != nil {
		return err
	}
	figures := new(QuantizedFigures)
	var norm, left float64
	for _, p := range c.pairs {
		c.judge(p)
		if !p.isDerived {
			continue
		}
		t := QuantizedTensor{Tensor: p.base.Name, Shape: p.base.Shape, Kind: p.derived.Kind, Error: relative(p.found.left, p.found.norm)}
		figures.Tensors = append(figures.Tensors, t)
		norm, left = norm+p.found.norm, left+p.found.left
	}
	figures.Error = relative(left, norm)
	c.Report.Quantized = figures
	if len(figures.Tensors) == 0 {
		c.add("quant-none", "", "no tensor is stored as codes")
	}
	return nil
}

// mayBeTied reports whether a tensor of the base is a head that may be left out.
func (c *quantCheck) mayBeTied(name string) bool {
	_, head := tiedNames(c.base, c.quantized)
	return name == head && head != ""
}

func (c *quantCheck) judge(p *quantPair) {
	f, name := &p.found, p.base.Name
	switch {
	case !p.isDerived && f.differ > 0:
		c.add("quant-changed", name, "it is not quantized, but %d of its %d values are not the base's, first element %d", f.differ, f.total, f.first).
			measured(float64(f.differ), 0)
	case !p.isDerived:
	case f.beyond > 0:
		c.add("quant-error", name, "%d of its %d values are farther from the base than %s can be, by up to %.4g; first element %d",
			f.beyond, f.total, p.derived.Kind, f.largest, f.first).measured(f.largest, f.limit)
	case f.worseThanNought > 0:
		c.add("quant-error", name, "in %d of its blocks of %s zeros would be nearer to the base", f.worseThanNought, p.derived.Kind).
			measured(relative(f.left, f.norm), 1)
	case f.notNearest > 0:
		c.add("quant-not-nearest", name, "%d of its %d codes are not the nearest", f.notNearest, f.total).
			measured(float64(f.notNearest)/float64(f.total), 0)
	}
}

func (p *quantPair) scratch() int64 {
	held := int64(0)
	if p.limits.whole() {
		held = 4 * (p.base.NumElements()/p.limits.block + 1)
	}
	return held + 8*5*p.chunk()
}

// chunk is how many elements are compared at a time: whole blocks.
func (p *quantPair) chunk() int64 {
	if block := p.limits.block; block > 0 && chunkElements%block != 0 {
		return max(chunkElements/block, 1) * block
	}
	return chunkElements
}

// compare goes through both sides once, or twice if the bounds of a block depend on
// others.
func (c *quantCheck) compare(ctx context.Context, p *quantPair) error {
	w, _, err := newReader(c.base, p.base)
	if err != nil {
		return err
	}
	q, ok, err := newReader(c.quantized, p.stored)
	if err != nil {
		return err
	}
	if !ok { // integers in the place of numbers that no quantizer accounts for
		p.found.differ, p.found.total = p.base.NumElements(), p.base.NumElements()
		return nil
	}
	x, y := make([]float64, p.chunk()), make([]float64, p.chunk())
	total := p.base.NumElements()
	if p.limits.whole() {
		p.limits.absmax = make([]float32, (total+p.limits.block-1)/p.limits.block)
		defer func() { p.limits.absmax = nil }()
		for first := int64(0); first < total; first += p.chunk() {
			n := min(p.chunk(), total-first)
			if err := w.read(x[:n], first); err != nil {
				return err
			}
			p.limits.note(x[:n], first)
		}
		p.limits.settle()
	}
	for first := int64(0); first < total; first += p.chunk() {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(p.chunk(), total-first)
		if err := w.read(x[:n], first); err != nil {
			return err
		}
		if err := q.read(y[:n], first); err != nil {
			return err
		}
		p.look(x[:n], y[:n], first)
	}
	return nil
}

// look compares a chunk.
func (p *quantPair) look(x, y []float64, first int64) {
	f := &p.found
	f.total += int64(len(x))
	if !p.isDerived {
		rounded := append([]float64(nil), x...)
		new(compared).round(p.stored.DType, rounded)
		for i, v := range rounded {
			if v != y[i] && !(math.IsNaN(v) && math.IsNaN(y[i])) {
				if f.differ == 0 {
					f.first = first + int64(i)
				}
				f.differ++
			}
		}
		return
	}
	for i, v := range x {
		d := v - y[i]
		f.norm += v * v
		f.left += d * d
	}
	p.limits.check(f, x, y, first)
}

// limitsOf returns how far a value may be off, from the way it is stored.
func (c *quantCheck) limitsOf(p *quantPair) limits {
	l := limits{spec: p.base, kind: p.derived.Kind, nested: p.derived.Nested, block: int64(p.derived.BlockSize), viaF16: c.base.Computed}
	if !p.isDerived {
		return l
	}
	config := hfrepo.NewConfig(c.base.Config)
	module, isWeight := strings.CutSuffix(p.base.Name, ".weight")
	l.transposed = isWeight && len(p.base.Shape) == 2 && arch.StoresConv1D(config.ModelType(), module)
	if p.derived.Kind == "int8" {
		l.block = p.base.Cols()
		if l.transposed {
			l.block = p.base.Rows()
		}
	}
	if l.block <= 0 { // FP8, whose scales may be for anything
		l.block = max(p.base.Cols(), 1)
	}
	l.roundings = ulp(p.stored.DType, 1)
	return l
}
