// Package quant makes a quantized checkpoint of one in 16 or 32 bits.
//
// [Plan] decides from headers and config alone which weights are quantized, as
// transformers would, and where every byte goes. The tensors of the result are those
// of a [View]: an ordinary checkpoint, whose tensors are computed from the source when
// they are read. So the steps of the plan are copies, and an engine that knows nothing
// of quantization runs them.
//
// The formats are those of bitsandbytes; see quant/block for their arithmetic. What
// can't be quantized - numbers that are not finite, weights that are codes already -
// is an error that names the tensor.
package quant

import (
	"fmt"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/plan"
)

// Type is a format of quantized weights.
type Type string

// The types of bitsandbytes: 4-bit NormalFloat, 4-bit float, LLM.int8.
const (
	NF4  Type = "nf4"
	FP4  Type = "fp4"
	Int8 Type = "int8"
)

// The types of the LoftQ paper that no library stores: NormalFloat and uniform levels
// in few bits. Their values are written as plain numbers, which take the place that
// they took before; they are for [Options.LoftQ] only.
const (
	NF2      Type = "nf2"
	NF3      Type = "nf3"
	Uniform2 Type = "uniform2"
	Uniform3 Type = "uniform3"
	Uniform4 Type = "uniform4"
)

// fourBit returns the codes of a 4-bit type.
func (t Type) fourBit() kernel.FourBit {
	if t == FP4 {
		return kernel.FP4
	}
	return kernel.NF4
}

// DefaultBlockSize is what bitsandbytes takes for 4-bit weights.
const DefaultBlockSize = 64

// Options shapes a quantization. Only Type and Output must be given.
type Options struct {
	Output       string
	Type         Type
	DoubleQuant  bool         // quantize the scales of 4-bit weights too
	BlockSize    int          // of 4-bit weights; none is [DefaultBlockSize]
	ComputeDType tensor.DType // that 4-bit layers compute in; none is the model's own
	Storage      tensor.DType // of packed 4-bit codes; none is U8
	Skip         []string     // modules to leave alone, as in llm_int8_skip_modules
	Requantize   bool         // take weights that are codes for what they stand for
	ShardSize    int64
	NoProvenance bool
	Version      string // of the tool, for provenance
	// LoftQ asks for an adapter that makes up for the quantization; see [PlanLoftQ].
	LoftQ *LoftQ
	From  *Source // nil for the model itself
}

// Source is what takes the place of a model's own tensors: a merge into it, computed
// while it is read.
type Source struct {
	Tensors checkpoint.Checkpoint
	Config  hfrepo.Config // as it has become, not quantized
	// Sidecars are the files beside the weights, config.json among them.
	Sidecars []checkpoint.Sidecar
	// Unchanged says of a tensor that it is the model's own. It is then copied as it is
	// stored, if it is stored in the format of the output.
	Unchanged func(name string) bool
	// Before and After, if both are given, have the weights that are changed as numbers,
	// before, and after as exact as they were computed, not yet rounded to the type that
	// is quantized: for the figures.
	Before, After checkpoint.Checkpoint
	// Metadata is that of the weight files, by the hashes of the inputs; nil leaves
	// placeholders.
	Metadata func(hashes map[string]string) map[string]string
}

// OptionError names an option that does not fit.
type OptionError struct{ Option, Reason string }

func (e *OptionError) Error() string { return e.Option + ": " + e.Reason }

// Quantization is a quantization decided: a plan, the place of every output byte, and
// the view that the bytes come from.
type Quantization struct {
	Plan   *plan.Plan
	Layout *checkpoint.Layout
	View   *View // the plan's only input
	base   *checkpoint.Model
	opts   Options
	final  map[string]string // hashes once known, by path
}

// planner is the state of one call of Plan.
type planner struct {
	base    *checkpoint.Model
	source  checkpoint.Checkpoint // of what is quantized
	config  hfrepo.Config
	options Options
	skip    []matcher

	plan    *plan.Plan
	view    *View
	targets []*target
	kept    []keptModule
	pairs   []*pairing // of the targets that get one
}

// Plan decides how to quantize a model.
func Plan(base *checkpoint.Model, o Options) (*Quantization, error) {
	o.LoftQ = nil
	p, err := newPlanner(base, o)
	if err != nil {
		return nil, err
	}
	return p.finish()
}

// newPlanner decides which weights become what.
func newPlanner(base *checkpoint.Model, o Options) (*planner, error) {
	p := startPlanner(base, o)
	if base.IsAdapter() {
		return nil, p.errorf("it is an adapter, not a model to quantize")
	}
	if err := base.RefuseGGUF("a quantization for bitsandbytes from"); err != nil {
		return nil, err
	}
	if err := base.CheckScales(); err != nil {
		return nil, err
	}
	if err := p.checkOptions(); err != nil {
		return nil, err
	}
	if q := p.config.Quantization(); q != nil && len(p.quantized()) == 0 {
		method, _, _ := q.OptString("quant_method")
		return nil, p.errorf("its config says that it is quantized already (%q)", method)
	}
	if err := p.choose(); err != nil {
		return nil, err
	}
	if p.options.ComputeDType == tensor.NoDType {
		p.options.ComputeDType = p.modelDType()
	}
	p.addInput("base", p.base)
	if o.LoftQ != nil {
		if err := p.choosePairs(); err != nil {
			return nil, err
		}
	}
	p.explain()
	return p, nil
}

// finish makes the plan of what was decided and places the output.
func (p *planner) finish() (*Quantization, error) {
	p.view = newView(p)
	for _, s := range p.view.Specs() {
		p.plan.Steps = append(p.plan.Steps, plan.Step{
			Read: plan.Whole(0, s), Write: plan.Placement{Tensor: s.Name, DType: p.writtenAs(s)},
		})
	}
	q := &Quantization{Plan: p.plan, View: p.view, base: p.base, opts: p.options}
	layout, err := p.layout(q)
	if err != nil {
		return nil, err
	}
	q.Layout = layout
	return q, nil
}

func startPlanner(base *checkpoint.Model, o Options) *planner {
	p := &planner{base: base, source: base, config: hfrepo.NewConfig(base.Config), options: o, plan: &plan.Plan{Unhashed: o.NoProvenance}}
	if o.From != nil {
		p.source, p.config = o.From.Tensors, o.From.Config
	}
	return p
}

// quantized counts the tensors that are codes already. What a merge makes are numbers,
// whatever it was made of.
func (p *planner) quantized() map[string]int {
	if p.options.From != nil {
		return nil
	}
	return p.base.Quantization()
}

func (p *planner) errorf(format string, args ...any) error {
	return &checkpoint.InputError{Path: p.base.Path, Err: fmt.Errorf(format, args...)}
}

// checkOptions fills in defaults and refuses what does not go together.
func (p *planner) checkOptions() (err error) {
	o := &p.options
	if o.LoftQ != nil {
		if err := o.checkLoftQ(); err != nil {
			return err
		}
	}
	_, width := o.Type.dense()
	switch {
	case width > 0 && o.LoftQ == nil && o.Type != NF4:
		return &OptionError{"type", fmt.Sprintf("%s is stored as plain numbers, which saves nothing: it is for --loftq", o.Type)}
	case width == 0 && o.Type != FP4 && o.Type != Int8:
		return &OptionError{"type", fmt.Sprintf("%q is not nf4, fp4 or int8, nor, with --loftq, nf2, nf3, uniform2, uniform3 or uniform4", o.Type)}
	case o.Type == Int8 && (o.DoubleQuant || o.BlockSize != 0 || o.Storage != tensor.NoDType || o.ComputeDType != tensor.NoDType):
		return &OptionError{"type", "int8 has rows for blocks and one way to be stored and computed: options of 4-bit types do not apply"}
	}
	if o.BlockSize == 0 {
		o.BlockSize = DefaultBlockSize
	}
	if !validBlockSize(o.BlockSize) {
		return &OptionError{"blocksize", fmt.Sprintf("%d is not a power of 2 from 32 to 4096", o.BlockSize)}
	}
	if o.Storage == tensor.NoDType {
		o.Storage = tensor.U8
	}
	if _, ok := storageNames[o.Storage]; !ok {
		return &OptionError{"quant-storage", fmt.Sprintf("%s is not uint8, int8, float16, bfloat16, float32 or float64", o.Storage)}
	}
	if _, ok := computeNames[o.ComputeDType]; !ok && o.ComputeDType != tensor.NoDType {
		return &OptionError{"compute-dtype", fmt.Sprintf("%s is not f16, bf16 or f32", o.ComputeDType)}
	}
	p.skip, err = compile(o.Skip)
	return err
}

// modelDType is the type that the model computes in: the config's or, if that has none
// that is one of bitsandbytes, that of the first weight.
func (p *planner) modelDType() tensor.DType {
	d := p.config.DType()
	if _, ok := computeNames[d]; ok {
		return d
	}
	return p.dtypeOf(p.targets[0].spec)
}

// writtenAs is the type of a tensor of the view in the output: what is left alone of
// an FP8 model is written in 16 bits.
func (p *planner) writtenAs(s tensor.Spec) tensor.DType {
	if _, computed := p.view.parts[s.Name]; computed {
		return s.DType
	}
	return p.dtypeOf(s)
}

// dtypeOf is the type that a weight has in memory: its own, but of what is stored as
// FP8, which is read as float32, the 16 bits that the model computes in.
func (p *planner) dtypeOf(s tensor.Spec) tensor.DType {
	if d, ok := p.base.Derived(s.Name); !ok || !d.FP8 {
		return s.DType
	}
	if p.config.DType() == tensor.F16 {
		return tensor.F16
	}
	return tensor.BF16
}

func (p *planner) addInput(role string, m *checkpoint.Model) {
	p.plan.Inputs = append(p.plan.Inputs, inputOf(role, m))
}

// inputOf lists a model among the inputs of a plan.
func inputOf(role string, m *checkpoint.Model) plan.Input {
	in := plan.Input{Role: role, Name: m.Name, Path: m.Path, Weight: 1, Note: m.Commit}
	for _, f := range m.Files() {
		in.Files = append(in.Files, plan.File{Name: f.Name, Path: f.Path, Size: f.Size})
	}
	return in
}

func (p *planner) decide(code, message string, tensors ...string) {
	p.plan.Decisions = append(p.plan.Decisions, plan.Decision{Code: code, Message: message, Tensors: append([]string{}, tensors...)})
}

// Target is a weight that is quantized.
type Target struct {
	Tensor string
	Shape  tensor.Shape // (out, in)
	DType  tensor.DType // of the source
	Type   string       // what it becomes
	Bytes  int64        // of all it becomes
}

// Targets returns the weights that are quantized, in order.
func (q *Quantization) Targets() []Target {
	all := make([]Target, len(q.View.order))
	for i, t := range q.View.order {
		all[i] = Target{t.spec.Name, t.shape, t.spec.DType, q.View.kindOf(t), t.bytes}
	}
	return all
}

// Type returns the format of the weights.
func (q *Quantization) Type() Type { return q.opts.Type }

// Counts says how many tensors of the input are quantized and how many are copied.
func (q *Quantization) Counts() map[string]int {
	n := len(q.View.order)
	counts := make(map[string]int)
	for _, t := range q.View.order {
		counts[q.View.kindOf(t)]++
	}
	if copied := len(q.View.source.Specs()) - n; copied > 0 {
		counts["copy"] = copied
	}
	return counts
}
