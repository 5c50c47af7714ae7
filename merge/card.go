package merge

import (
	"bytes"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/plan"
)

// cardHead is the front matter of a model card, in the hub's words.
type cardHead struct {
	BaseModel []string `yaml:"base_model,omitempty"`
	Relation  string   `yaml:"base_model_relation,omitempty"`
	inherited `yaml:",inline"`
	Tags      []string `yaml:"tags"`
}

// inherited is what the base's card says and what holds for a model made from
// it too.
type inherited struct {
	LibraryName string `yaml:"library_name,omitempty"`
	PipelineTag string `yaml:"pipeline_tag,omitempty"`
	License     string `yaml:"license,omitempty"`
	LicenseName string `yaml:"license_name,omitempty"`
	LicenseLink string `yaml:"license_link,omitempty"`
}

// card writes the README.md of the output: what it was made of and how. It
// holds no time and no path, so that the same merge gives the same card.
func (m *Merge) card(hashes map[string]string) []byte {
	head := cardHead{Tags: []string{"merge", "loratool"}}
	if front, ok := hfrepo.FrontMatter(m.base.Card()); ok {
		var base inherited
		// A card that is not as expected has nothing to hand down.
		if err := yaml.Unmarshal(front, &base); err == nil {
			head.inherited = base
		}
	}
	if head.LibraryName == "" {
		head.LibraryName = "transformers"
	}
	if !m.opts.NoProvenance {
		head.Relation = "merge"
		for _, in := range m.Plan.Inputs {
			head.BaseModel = append(head.BaseModel, in.Name)
		}
	}
	var b bytes.Buffer
	b.WriteString("---\n")
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(head); err != nil {
		panic("merge: a card of strings does not encode") // it can't fail
	}
	b.WriteString("---\n\n")
	m.cardBody(&b, hashes)
	return b.Bytes()
}

func (m *Merge) cardBody(b *bytes.Buffer, hashes map[string]string) {
	fmt.Fprintf(b, "# %s\n\nMerged with [loratool](https://github.com/loratool/loratool) %s.\n", m.name(), m.opts.Version)
	if !m.opts.NoProvenance {
		m.cardInputs(b, hashes)
	}
	b.WriteString("\nEvery change was added in float32 and rounded once")
	if m.opts.DType != tensor.NoDType {
		fmt.Fprintf(b, " to %s", m.opts.DType)
	}
	switch {
	case m.opts.Encoding == nil:
		b.WriteString("; tensors without a change are copies.\n")
	default:
		kind, _ := m.opts.Encoding.String("type")
		fmt.Fprintf(b, "; the linear layers were then stored as %s.\n", kind)
	}
	if m.opts.NoProvenance || len(m.Plan.Decisions) == 0 {
		return // decisions name the inputs
	}
	b.WriteString("\nDecisions:\n\n")
	for _, d := range m.Plan.Decisions {
		fmt.Fprintf(b, "- %s\n", hfrepo.EscapeCell(d.Message))
	}
}

func (m *Merge) cardInputs(b *bytes.Buffer, hashes map[string]string) {
	b.WriteString("\n| input | weight | file | SHA-256 |\n| --- | --- | --- | --- |\n")
	for _, in := range m.Plan.Inputs {
		weight := ""
		if in.Role == "adapter" {
			weight = fmt.Sprint(in.Weight)
		}
		for _, f := range in.Files {
			fmt.Fprintf(b, "| %s %s | %s | %s | `%s` |\n", in.Role, hfrepo.EscapeCell(in.Name), weight, hfrepo.EscapeCell(f.Name), plan.HashOf(hashes, f.Path))
		}
	}
}

// name is a title for the card: the names of base and adapters.
func (m *Merge) name() string {
	if m.opts.NoProvenance {
		return "Merged model"
	}
	var names []string
	for _, in := range m.Plan.Inputs {
		if in.Role != "init-adapter" {
			names = append(names, hfrepo.EscapeCell(in.Name))
		}
	}
	return strings.Join(names, " + ")
}
