package convert

import (
	"strings"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/strictjson"
)

// The file names of PEFT's layout.
const (
	configName         = "config.json"
	adapterConfigName  = "adapter_config.json"
	adapterWeightsName = "adapter_model.safetensors"
)

// layout places the output: the tensors in the input's order, the config as it has
// become, the files beside the weights, and a card.
func (p *planner) layout(c *Conversion) (*checkpoint.Layout, error) {
	if d := p.options.DType; d != tensor.NoDType && !p.source.IsAdapter() {
		p.config.SetDType(d)
	}
	sidecars, err := p.sidecars(c)
	if err != nil {
		return nil, err
	}
	o := checkpoint.Options{ShardSize: p.options.ShardSize, Metadata: c.Metadata(nil)}
	if p.source.IsAdapter() {
		o.Weights, o.ShardSize = adapterWeightsName, noLimit
	}
	return checkpoint.NewLayout(p.options.Output, p.specs, sidecars, o)
}

// noLimit is a shard size that makes one file of any model.
const noLimit = 1<<63 - 1

// sidecars lists what stands beside the weights of an output folder.
func (p *planner) sidecars(c *Conversion) ([]checkpoint.Sidecar, error) {
	if strings.HasSuffix(p.options.Output, ".safetensors") {
		if p.source.Config != nil {
			p.decide("config-not-written", "the output is a single file: config and tokenizer are not written; write a folder to get them")
		}
		return nil, nil
	}
	if p.gguf != nil {
		return p.ggufSidecars(c), nil
	}
	if !p.source.IsFolder {
		return nil, nil
	}
	all := p.configs()
	files, err := p.source.SideFiles()
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		if p.restored && quantizationFiles[f.Name] {
			p.dropped = append(p.dropped, f.Name)
			continue
		}
		all = append(all, checkpoint.Sidecar{Name: f.Name, Source: f.Path, Size: f.Size})
		if strings.HasSuffix(f.Name, ".py") {
			p.decide("custom-code", "custom code of the input is copied and runs when the model is loaded with trust_remote_code", f.Name)
		}
	}
	if len(p.dropped) > 0 {
		p.decide("left-out", "these belong to the quantized input and have no meaning beside restored weights", p.dropped...)
	}
	return append(all, checkpoint.Sidecar{
		Name: "README.md", Data: c.card(nil), Final: func() []byte { return c.card(c.final) },
	}), nil
}

// quantizationFiles describe how the weights of a model are quantized, and are wrong
// beside restored ones.
var quantizationFiles = map[string]bool{"hf_quant_config.json": true, "quantize_config.json": true, "quant_config.json": true}

// configs is the JSON file that says what the weights mean, if there is one. What says
// the same as before is copied byte for byte.
func (p *planner) configs() []checkpoint.Sidecar {
	name := configName
	if p.source.IsAdapter() {
		name = adapterConfigName
	}
	var all []checkpoint.Sidecar
	for _, f := range p.source.Files() {
		switch {
		case f.Name != name:
		case p.config.Equal(hfrepo.NewConfig(p.source.Config)):
			all = append(all, checkpoint.Sidecar{Name: name, Source: f.Path, Size: f.Size})
		default:
			all = append(all, checkpoint.Sidecar{Name: name, Data: p.config.Encode()})
		}
	}
	return all
}

// provenanceKey is the metadata entry that loratool writes.
const provenanceKey = "loratool"

// maxPrevious bounds the provenance that is carried over from the input.
const maxPrevious = 64 << 10

// Metadata is what goes into the header of every weight file: the input's own
// metadata, and what was done with which bytes. No path, host or time. Hashes are by
// path; nil leaves placeholders of the same length.
func (c *Conversion) Metadata(hashes map[string]string) map[string]string {
	all := make(map[string]string)
	if c.opts.isGGUF() {
		return all // a GGUF file has no place for it
	}
	for k, v := range c.source.Metadata() {
		if k != provenanceKey {
			all[k] = v
		}
	}
	if !c.opts.NoProvenance {
		all[provenanceKey] = string(c.provenance(hashes).Encode(""))
	}
	return all
}

// SetHashes completes the card and the metadata with the hashes of the inputs.
func (c *Conversion) SetHashes(hashes map[string]string) map[string]string {
	c.final = hashes
	return c.Metadata(hashes)
}

func (c *Conversion) provenance(hashes map[string]string) *strictjson.Object {
	root := strictjson.NewObject()
	root.Set("tool", strictjson.NewString("loratool"))
	root.Set("version", strictjson.NewString(c.opts.Version))
	root.Set("command", strictjson.NewString("convert"))
	options := strictjson.NewObject()
	if c.opts.DType != tensor.NoDType {
		options.Set("dtype", strictjson.NewString(c.opts.DType.String()))
	}
	root.Set("options", options.Value())
	inputs := make([]strictjson.Value, len(c.Plan.Inputs))
	for i, in := range c.Plan.Inputs {
		inputs[i] = in.Provenance(hashes).Value()
	}
	root.Set("inputs", strictjson.NewArray(inputs...))
	if previous := c.source.Metadata()[provenanceKey]; previous != "" && len(previous) <= maxPrevious {
		root.Set("previous", strictjson.NewString(previous))
	}
	return root
}
