// Package convert writes a model or an adapter again with other element types, in
// other shards, with plain weights in place of quantized ones, or as a GGUF file.
//
// [Plan] decides from headers, config and tokenizer what every tensor becomes and where
// every byte goes; an engine runs the plan. Values are what they were, rounded once to
// the new type. GGUF files are those that llama.cpp's converter makes: a [View] gives
// the tensors their names and rows, the keys come from the folder's JSON files. What
// can't be converted - a family without tables, weights of a quantizer that is not
// known, a tensor without a name - is an error that names it; a finite value that the
// new type has no room for stops the run.
package convert

import (
	"fmt"
	"slices"
	"strings"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/plan"
)

// Options shapes a conversion. The zero value keeps the type of every tensor that is
// not quantized and writes shards of 5 GB.
type Options struct {
	Output       string
	DType        tensor.DType // of every floating-point tensor; none keeps the input's
	GGUF         bool         // the output is GGUF, which else the end of its path says
	ShardSize    int64        // bytes of tensors in a file
	ShardTensors int          // of GGUF, in place of a size
	NoProvenance bool
	Version      string // of the tool, for provenance
	// Of GGUF files that are written: the model's name, none for that of its card or
	// folder. Of those that are written or read: the pre-tokenizer by llama.cpp's name,
	// none to tell it from tokenizer.json, or to take what the file says.
	Name         string
	PreTokenizer string
	// Base is the model of an adapter that becomes GGUF or comes from it, as a folder or a
	// GGUF file: names, heads and shapes are its own. Its weights are not read.
	Base *checkpoint.Model
}

// isGGUF reports whether the output is GGUF: one file, or a folder of several.
func (o *Options) isGGUF() bool { return o.GGUF || strings.HasSuffix(o.Output, ggufExt) }

// OptionError names an option that does not fit the input.
type OptionError struct{ Option, Reason string }

func (e *OptionError) Error() string { return e.Option + ": " + e.Reason }

// Conversion is a conversion decided: a plan, and the place of every output byte.
type Conversion struct {
	Plan   *plan.Plan
	Layout *checkpoint.Layout
	View   checkpoint.Checkpoint // what the steps read, the plan's only input
	source *checkpoint.Model
	opts   Options
	final  map[string]string // hashes of the inputs, when they are known
}

// planner is the state of one call of Plan.
type planner struct {
	source   *checkpoint.Model
	config   hfrepo.Config // as it is going to be
	options  Options
	restored bool                 // the input was stored as codes
	dropped  []string             // tensors and files that are left out
	gguf     []checkpoint.Sidecar // of an input that is GGUF: the files made from its keys

	plan  *plan.Plan
	specs []tensor.Spec // of the output
}

// Plan decides how to convert a model or an adapter, which is the plan's only input.
func Plan(source *checkpoint.Model, o Options) (*Conversion, error) {
	p := &planner{
		source: source, config: hfrepo.NewConfig(source.Config).Clone(), options: o,
		plan: &plan.Plan{Unhashed: o.NoProvenance},
	}
	if err := p.checkOptions(); err != nil {
		return nil, err
	}
	p.addInput()
	switch crosses, err := p.checkAdapterOptions(); {
	case err != nil:
		return nil, err
	case crosses && source.GGUF() != nil:
		return planAdapterHF(p)
	case crosses:
		return planAdapter(p)
	}
	if source.GGUF() != nil {
		return planHF(p)
	}
	if o.isGGUF() {
		return planGGUF(p)
	}
	if err := p.restore(); err != nil {
		return nil, err
	}
	if err := p.addSteps(); err != nil {
		return nil, err
	}
	c := &Conversion{Plan: p.plan, View: source, source: source, opts: o}
	layout, err := p.layout(c)
	if err != nil {
		return nil, err
	}
	c.Layout = layout
	return c, nil
}

func (p *planner) errorf(format string, args ...any) error {
	return &checkpoint.InputError{Path: p.source.Path, Err: fmt.Errorf(format, args...)}
}

func (p *planner) checkOptions() error {
	switch d := p.options.DType; d {
	case tensor.NoDType, tensor.F16, tensor.BF16, tensor.F32, tensor.F64:
	default:
		return &OptionError{"dtype", fmt.Sprintf("%q is not one of f32, f16, bf16, f64", d)}
	}
	if p.source.IsAdapter() && (p.options.ShardSize > 0 || p.options.ShardTensors > 0) {
		return &OptionError{"shard-size", "the input is an adapter: PEFT reads its weights from one file"}
	}
	return nil
}

func (p *planner) addInput() {
	role := "model"
	if p.source.IsAdapter() {
		role = "adapter"
	}
	in := plan.Input{Role: role, Name: p.source.Name, Path: p.source.Path, Weight: 1, Note: p.source.Commit}
	for _, f := range p.source.Files() {
		in.Files = append(in.Files, plan.File{Name: f.Name, Path: f.Path, Size: f.Size})
	}
	p.plan.Inputs = []plan.Input{in}
}

func (p *planner) decide(code, message string, tensors ...string) {
	p.plan.Decisions = append(p.plan.Decisions, plan.Decision{Code: code, Message: message, Tensors: append([]string{}, tensors...)})
}

// restore settles what becomes of weights that are stored as codes with scales. The
// checkpoint shows those of bitsandbytes and of FP8 as the weights that they stand for;
// in any other quantized model the tensors are no weights.
func (p *planner) restore() error {
	kinds, scaled, err := p.codes()
	if err != nil {
		return err
	}
	if len(kinds) > 0 {
		p.decide("quantized-restored", fmt.Sprintf(
			"the input stores %s of bitsandbytes: its weights are what those stand for, written as %s, and quantization_config is left out",
			strings.Join(kinds, " and "), p.restoredAs(false)))
	}
	if scaled {
		p.decide("fp8-restored", fmt.Sprintf(
			"the input stores FP8 with scales: its weights are restored and written as %s, and the scales and quantization_config are left out",
			p.restoredAs(true)))
	}
	if p.restored {
		p.config.DropQuantization()
		p.config.SetDType(p.restoredAs(scaled))
		p.dropped = p.source.Hidden()
	}
	return nil
}

// codes finds the types of bitsandbytes that the input has, and whether it has FP8 with
// scales. What else calls itself quantized is refused.
func (p *planner) codes() (kinds []string, scaled bool, err error) {
	if err := p.source.CheckScales(); err != nil {
		return nil, false, err
	}
	for _, spec := range p.source.Specs() {
		d, derived := p.source.Derived(spec.Name)
		switch {
		case derived && d.FP8:
			scaled = true
		case derived && !slices.Contains(kinds, d.Kind):
			kinds = append(kinds, d.Kind)
		}
	}
	slices.Sort(kinds)
	p.restored = scaled || len(kinds) > 0
	if q := p.config.Quantization(); q != nil && !p.restored {
		method, _, _ := q.OptString("quant_method")
		return nil, false, p.errorf("its config says that it is quantized (%q), and its weights are nothing that can be restored: "+
			"4-bit and 8-bit weights of bitsandbytes and FP8 with scales are", method)
	}
	return kinds, scaled, nil
}

// restoredAs is the type of weights that were codes: the one asked for or the config's,
// of 16 bits if there is neither. LLM.int8 does not say what it was made of; an FP8 model
// computes in 16 bits, whatever its config says.
func (p *planner) restoredAs(isFP8 bool) tensor.DType {
	switch d := p.config.DType(); {
	case p.options.DType != tensor.NoDType:
		return p.options.DType
	case d == tensor.F16, d == tensor.F32 && !isFP8:
		return d
	}
	return tensor.BF16
}

// addSteps makes one step of every tensor that the output has.
func (p *planner) addSteps() error {
	var kept []string
	for _, spec := range p.source.Specs() {
		out, err := p.outDType(spec)
		if err != nil {
			return err
		}
		step := plan.Step{Read: plan.Whole(0, spec), Write: plan.Placement{Tensor: spec.Name, DType: out}}
		step.Judge = !step.Copies() // for what rounding did
		if out == spec.DType && p.options.DType != tensor.NoDType && out != p.options.DType {
			kept = append(kept, spec.Name)
		}
		p.plan.Steps = append(p.plan.Steps, step)
		p.specs = append(p.specs, tensor.Spec{Name: spec.Name, DType: out, Shape: spec.Shape})
	}
	if len(kept) > 0 {
		p.decide("not-floating", "these hold no real numbers and are copied as they are", kept...)
	}
	return nil
}

// outDType is the type that a tensor is written as.
func (p *planner) outDType(spec tensor.Spec) (tensor.DType, error) {
	d, derived := p.source.Derived(spec.Name)
	switch {
	case derived:
		return p.restoredAs(d.FP8), nil
	case p.options.DType == tensor.NoDType:
		return spec.DType, nil
	case spec.DType.IsFloat():
		return p.options.DType, nil
	}
	switch spec.DType {
	case tensor.F4, tensor.F6E2M3, tensor.F6E3M2, tensor.F8E8M0, tensor.F8E4M3FNUZ, tensor.F8E5M2FNUZ:
		return tensor.NoDType, p.errorf("tensor %q is %s: a type of quantized weights, of which it is not known what they stand for",
			spec.Name, spec.DType.Safetensors())
	}
	return spec.DType, nil
}
