package quant

import (
	"cmp"
	"slices"
	"strings"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/strictjson"
	"github.com/loratool/loratool/quant/block"
)

// computeNames are torch's names of the types that quantized layers compute in.
var computeNames = map[tensor.DType]string{tensor.F16: "float16", tensor.BF16: "bfloat16", tensor.F32: "float32"}

// storageNames are torch's names of the types that codes may be stored as.
var storageNames = map[tensor.DType]string{
	tensor.U8: "uint8", tensor.I8: "int8", tensor.F16: "float16", tensor.BF16: "bfloat16", tensor.F32: "float32", tensor.F64: "float64",
}

func validBlockSize(n int) bool { return slices.Contains(block.FourBitSizes, n) }

// layout places the output: the tensors of the view, the config with its
// quantization_config, and the files beside the weights.
func (p *planner) layout(q *Quantization) (*checkpoint.Layout, error) {
	sidecars, err := p.sidecars()
	if err != nil {
		return nil, err
	}
	if p.options.From == nil && !strings.HasSuffix(p.options.Output, ".safetensors") {
		sidecars = append(sidecars, checkpoint.Sidecar{
			Name: "README.md", Data: q.card(nil), Final: func() []byte { return q.card(q.final) },
		})
	}
	specs := make([]tensor.Spec, len(p.plan.Steps))
	for i, s := range p.plan.Steps {
		specs[i] = tensor.Spec{Name: s.Write.Tensor, DType: s.Write.DType, Shape: s.Read.Spec.Shape}
	}
	return checkpoint.NewLayout(p.options.Output, specs, sidecars, checkpoint.Options{
		ShardSize: p.options.ShardSize,
		Metadata:  q.Metadata(nil),
	})
}

func (p *planner) sidecars() ([]checkpoint.Sidecar, error) {
	if strings.HasSuffix(p.options.Output, ".safetensors") {
		p.decide("config-not-written", "the output is a single file: nothing loads it as quantized without a config.json that says so; write a folder to get one")
		return nil, nil
	}
	if !p.base.IsFolder {
		p.decide("config-not-written", "the input is a single file without a config.json: nothing loads the output as quantized without one that says so")
		return nil, nil
	}
	var all []checkpoint.Sidecar
	if p.options.From != nil {
		return p.sidecarsOf(p.options.From)
	}
	if p.base.Config != nil && p.options.plainNumbers() {
		plain := p.config.Clone()
		plain.DropQuantization()
		all = append(all, checkpoint.Sidecar{Name: "config.json", Data: plain.Encode()})
	} else if p.base.Config != nil {
		config, err := p.newConfig()
		if err != nil {
			return nil, err
		}
		all = append(all, checkpoint.Sidecar{Name: "config.json", Data: append(config.Encode("  "), '\n')})
	}
	files, err := p.base.SideFiles()
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		all = append(all, checkpoint.Sidecar{Name: f.Name, Source: f.Path, Size: f.Size})
		if strings.HasSuffix(f.Name, ".py") {
			p.decide("custom-code", "custom code of the base is copied and runs when the model is loaded with trust_remote_code", f.Name)
		}
	}
	return all, nil
}

// sidecarsOf are those of a source, with the config of what it becomes.
func (p *planner) sidecarsOf(s *Source) ([]checkpoint.Sidecar, error) {
	all := slices.Clone(s.Sidecars)
	for i := range all {
		if all[i].Name == "config.json" {
			config, err := p.newConfig()
			if err != nil {
				return nil, err
			}
			all[i] = checkpoint.Sidecar{Name: "config.json", Data: append(config.Encode("  "), '\n')}
		}
	}
	return all, nil
}

// newConfig is the base's config with a quantization_config, where the order of the
// keys has a place for it.
func (p *planner) newConfig() (*strictjson.Object, error) {
	const key = "quantization_config"
	plain := p.config.Clone()
	plain.DropQuantization()
	old, err := strictjson.ParsePythonObject(plain.Encode())
	if err != nil {
		return nil, err
	}
	config, value := strictjson.NewObject(), p.quantizationConfig().Value()
	before, placed := "", false
	for k, v := range old.All() {
		if !placed && before < key && k > key {
			config.Set(key, value)
			placed = true
		}
		config.Set(k, v)
		before = k
	}
	config.Set(key, value)
	return config, nil
}

// quantizationConfig has the members that transformers writes, in its order
// (utils/quantization_config.py, BitsAndBytesConfig).
func (p *planner) quantizationConfig() *strictjson.Object {
	o := p.options
	four := o.Type != Int8
	// What is not used has its default.
	kind, compute := "fp4", "float32"
	if four {
		kind, compute = string(o.Type), computeNames[o.ComputeDType]
	}
	threshold, _ := strictjson.NewFloat(6) // finite
	config := strictjson.NewObject()
	config.Set("_load_in_4bit", strictjson.NewBool(four))
	config.Set("_load_in_8bit", strictjson.NewBool(!four))
	config.Set("bnb_4bit_compute_dtype", strictjson.NewString(compute))
	config.Set("bnb_4bit_quant_storage", strictjson.NewString(storageNames[o.Storage]))
	config.Set("bnb_4bit_quant_type", strictjson.NewString(kind))
	config.Set("bnb_4bit_use_double_quant", strictjson.NewBool(four && o.DoubleQuant))
	config.Set("llm_int8_enable_fp32_cpu_offload", strictjson.NewBool(false))
	config.Set("llm_int8_has_fp16_weight", strictjson.NewBool(false))
	config.Set("llm_int8_skip_modules", strictjson.NewStrings(p.skipModules()))
	config.Set("llm_int8_threshold", threshold)
	config.Set("load_in_4bit", strictjson.NewBool(four))
	config.Set("load_in_8bit", strictjson.NewBool(!four))
	config.Set("quant_method", strictjson.NewString("bitsandbytes"))
	return config
}

// provenanceKey is the metadata entry that loratool writes.
const provenanceKey = "loratool"

// maxPrevious bounds the provenance that is carried over from the input.
const maxPrevious = 64 << 10

// SetHashes completes the card and returns the metadata with the hashes of the inputs.
func (q *Quantization) SetHashes(hashes map[string]string) map[string]string {
	q.final = hashes
	return q.Metadata(hashes)
}

// Metadata is what goes into the header of every weight file: the base's own metadata,
// and what was done with which bytes. Hashes are by path; nil leaves placeholders of
// the same length.
func (q *Quantization) Metadata(hashes map[string]string) map[string]string {
	if q.opts.From != nil {
		return q.opts.From.Metadata(hashes)
	}
	all := make(map[string]string)
	for k, v := range q.base.Metadata() {
		if k != provenanceKey {
			all[k] = v
		}
	}
	if !q.opts.NoProvenance {
		all[provenanceKey] = string(q.provenance(hashes).Encode(""))
	}
	return all
}

func (q *Quantization) provenance(hashes map[string]string) *strictjson.Object {
	root := strictjson.NewObject()
	root.Set("tool", strictjson.NewString("loratool"))
	root.Set("version", strictjson.NewString(q.opts.Version))
	root.Set("command", strictjson.NewString("quantize"))
	root.Set("options", q.opts.describe().Value())
	inputs := make([]strictjson.Value, len(q.Plan.Inputs))
	for i, in := range q.Plan.Inputs {
		inputs[i] = in.Provenance(hashes).Value()
	}
	root.Set("inputs", strictjson.NewArray(inputs...))
	if previous := q.base.Metadata()[provenanceKey]; previous != "" && len(previous) <= maxPrevious {
		root.Set("previous", strictjson.NewString(previous))
	}
	return root
}

// Provenance is what an output says of the options.
func (o Options) Provenance() *strictjson.Object {
	if o.Type.inBlocks() {
		o.BlockSize = cmp.Or(o.BlockSize, DefaultBlockSize)
	}
	return o.describe()
}

// describe lists the options that were given.
func (o Options) describe() *strictjson.Object {
	all := strictjson.NewObject()
	all.Set("type", strictjson.NewString(string(o.Type)))
	if o.Type.inBlocks() {
		all.Set("blocksize", strictjson.NewInt(int64(o.BlockSize)))
	}
	if o.Type != Int8 && !o.plainNumbers() {
		all.Set("double_quant", strictjson.NewBool(o.DoubleQuant))
	}
	if len(o.Skip) > 0 {
		all.Set("skip", strictjson.NewStrings(o.Skip))
	}
	if o.LoftQ != nil {
		all.Set("loftq", o.LoftQ.describe().Value())
	}
	return all
}
