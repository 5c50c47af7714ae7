package merge

import (
	"fmt"
	"strings"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/strictjson"
)

// layout places the output: tensors in the base's order, the config as it has
// become, the files beside the weights, and a card.
func (p *planner) layout(m *Merge) (*checkpoint.Layout, error) {
	var specs []tensor.Spec
	for i := range p.plan.Steps {
		s := &p.plan.Steps[i]
		specs = append(specs, tensor.Spec{Name: s.Write.Tensor, DType: s.Write.DType, Shape: p.entries[s.Write.Tensor].shape()})
	}
	if d := p.options.DType; d != tensor.NoDType {
		p.config.SetDType(d)
	}
	if p.base.Config != nil && strings.HasSuffix(p.options.Output, ".safetensors") && !p.config.Equal(hfrepo.NewConfig(p.base.Config)) {
		p.decide("config-not-written", "config.json would have to change, but the output is a single file: write a folder to get the new one")
	}
	sidecars, err := p.sidecars(m)
	if err != nil {
		return nil, err
	}
	m.Sidecars = sidecars
	return checkpoint.NewLayout(p.options.Output, specs, sidecars, checkpoint.Options{
		ShardSize: p.options.ShardSize,
		Metadata:  m.Metadata(nil),
	})
}

// sidecars lists what stands beside the weights of an output folder.
func (p *planner) sidecars(m *Merge) ([]checkpoint.Sidecar, error) {
	if strings.HasSuffix(p.options.Output, ".safetensors") || !p.base.IsFolder {
		return nil, nil
	}
	var all []checkpoint.Sidecar
	if p.base.Config != nil {
		all = append(all, checkpoint.Sidecar{Name: "config.json", Data: p.config.Encode()})
	}
	files, err := p.base.SideFiles()
	if err != nil {
		return nil, err
	}
	tokenizers, err := p.newTokenizer()
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		if p.restored && quantizationFiles[f.Name] {
			p.dropped = append(p.dropped, f.Name)
			continue
		}
		if newer, ok := tokenizers[f.Name]; ok {
			f = newer
			delete(tokenizers, newer.Name)
		}
		all = append(all, checkpoint.Sidecar{Name: f.Name, Source: f.Path, Size: f.Size})
		if strings.HasSuffix(f.Name, ".py") {
			p.decide("custom-code", "custom code of the base is copied and runs when the model is loaded with trust_remote_code", f.Name)
		}
	}
	for _, name := range tokenizerFiles {
		if f, ok := tokenizers[name]; ok {
			all = append(all, checkpoint.Sidecar{Name: f.Name, Source: f.Path, Size: f.Size})
		}
	}
	if len(p.dropped) > 0 {
		p.decide("left-out", "these belong to the quantized base and have no meaning beside restored weights", p.dropped...)
	}
	all = append(all, checkpoint.Sidecar{
		Name: "README.md", Data: m.card(nil), Final: func() []byte { return m.card(m.final) },
	})
	return all, nil
}

// quantizationFiles describe how the weights of a base are quantized, and are
// wrong beside restored ones.
var quantizationFiles = map[string]bool{"hf_quant_config.json": true, "quantize_config.json": true, "quant_config.json": true}

// tokenizerFiles are what a trainer saves beside an adapter when it has changed
// the vocabulary.
var tokenizerFiles = []string{"added_tokens.json", "chat_template.jinja", "merges.txt", "special_tokens_map.json",
	"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt"}

// newTokenizer returns the tokenizer of the adapter that resized the
// vocabulary, by file name: the base's does not know the new tokens.
func (p *planner) newTokenizer() (map[string]checkpoint.InputFile, error) {
	found := make(map[string]checkpoint.InputFile)
	if p.embedding == "" {
		return found, nil
	}
	for _, t := range p.entries[p.embedding].terms {
		if t.replaces == nil || t.replaces.Spec.Shape[0] == p.entries[p.embedding].spec.Shape[0] {
			continue
		}
		source := p.sources[t.adapter].Adapter.Source
		files, err := source.SideFiles()
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			for _, name := range tokenizerFiles {
				if f.Name == name {
					found[name] = f
				}
			}
		}
		if len(found) == 0 {
			p.decide("tokenizer-kept", fmt.Sprintf("%s resized the vocabulary but brings no tokenizer: the base's is copied and does not know the new tokens", source.Name))
			continue
		}
		p.decide("tokenizer-of-adapter", fmt.Sprintf("%s resized the vocabulary: its tokenizer is copied", source.Name))
	}
	return found, nil
}

// maxPrevious bounds the provenance that is carried over from an input.
const maxPrevious = 64 << 10

// Metadata is what goes into the header of every weight file: the base's own
// metadata, and the provenance - what was done with which bytes. No path, host
// or time. Hashes are by path; nil leaves placeholders of the same length.
func (m *Merge) Metadata(hashes map[string]string) map[string]string {
	all := make(map[string]string)
	for k, v := range m.base.Metadata() {
		if k != provenanceKey {
			all[k] = v
		}
	}
	if !m.opts.NoProvenance {
		all[provenanceKey] = string(m.provenance(hashes).Encode(""))
	}
	return all
}

// provenanceKey is the metadata entry that loratool writes.
const provenanceKey = "loratool"

func (m *Merge) provenance(hashes map[string]string) *strictjson.Object {
	root := strictjson.NewObject()
	root.Set("tool", strictjson.NewString("loratool"))
	root.Set("version", strictjson.NewString(m.opts.Version))
	root.Set("command", strictjson.NewString("merge"))
	options := strictjson.NewObject()
	if m.opts.DType != tensor.NoDType {
		options.Set("dtype", strictjson.NewString(m.opts.DType.String()))
	}
	if m.opts.MoEBLayout != "" {
		options.Set("moe_b_layout", strictjson.NewString(m.opts.MoEBLayout))
	}
	if m.opts.MHAFormula {
		options.Set("mha_formula", strictjson.NewBool(true))
	}
	if m.opts.TrainedOn != "" {
		options.Set("train_base", strictjson.NewString(m.opts.TrainedOn))
	}
	if m.opts.Encoding != nil {
		options.Set("encoding", m.opts.Encoding.Value())
	}
	root.Set("options", options.Value())
	var inputs []strictjson.Value
	for _, in := range m.Plan.Inputs {
		inputs = append(inputs, in.Provenance(hashes).Value())
	}
	root.Set("inputs", strictjson.NewArray(inputs...))
	if previous := m.base.Metadata()[provenanceKey]; previous != "" && len(previous) <= maxPrevious {
		root.Set("previous", strictjson.NewString(previous))
	}
	return root
}

// Unchanged reports whether a tensor of the output is the base's own.
func (m *Merge) Unchanged(name string) bool {
	for i := range m.Plan.Steps {
		if s := &m.Plan.Steps[i]; s.Write.Tensor == name {
			return s.Read.Input == 0 && s.Read.Tensor == name && len(s.Stages) == 0
		}
	}
	return false
}

// SetHashes completes the card and the metadata with the hashes of the inputs.
func (m *Merge) SetHashes(hashes map[string]string) map[string]string {
	m.final = hashes
	return m.Metadata(hashes)
}
