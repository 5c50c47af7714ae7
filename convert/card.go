package convert

import (
	"bytes"
	"fmt"

	"go.yaml.in/yaml/v3"

	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/plan"
)

// cardHead is the front matter of a model card, in the hub's words. What the input was
// made from, the output is made from too; the hub has no word for the same model in
// another type.
type cardHead struct {
	BaseModel   names  `yaml:"base_model,omitempty"`
	Relation    string `yaml:"base_model_relation,omitempty"`
	LibraryName string `yaml:"library_name,omitempty"`
	PipelineTag string `yaml:"pipeline_tag,omitempty"`
	License     string `yaml:"license,omitempty"`
	LicenseName string `yaml:"license_name,omitempty"`
	LicenseLink string `yaml:"license_link,omitempty"`
	Tags        names  `yaml:"tags,omitempty"`
}

// names is a list of which a card may give the only element alone.
type names []string

func (n *names) UnmarshalYAML(node *yaml.Node) error {
	if node.Kind == yaml.ScalarNode {
		*n = names{node.Value}
		return nil
	}
	return node.Decode((*[]string)(n))
}

// card writes the README.md of the output. It holds no time and no path, so that the
// same conversion gives the same card.
func (c *Conversion) card(hashes map[string]string) []byte {
	var head cardHead
	if front, ok := hfrepo.FrontMatter(c.source.Card()); ok {
		var from cardHead
		// A card that is not as expected has nothing to hand down.
		if err := yaml.Unmarshal(front, &from); err == nil {
			head = from
		}
	}
	if c.opts.NoProvenance {
		head.BaseModel, head.Relation = nil, ""
	}
	if head.LibraryName == "" {
		head.LibraryName = "transformers"
		if c.source.IsAdapter() || isGGUFAdapter(c.source) {
			head.LibraryName = "peft"
		}
	}
	head.Tags = append(head.Tags, "loratool")
	var b bytes.Buffer
	b.WriteString("---\n")
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(head); err != nil {
		panic("convert: a card of strings does not encode") // it can't fail
	}
	b.WriteString("---\n\n")
	c.cardBody(&b, hashes)
	return b.Bytes()
}

func (c *Conversion) cardBody(b *bytes.Buffer, hashes map[string]string) {
	title := "Converted model"
	if !c.opts.NoProvenance {
		title = hfrepo.EscapeCell(c.source.Name)
	}
	fmt.Fprintf(b, "# %s\n\nWritten with [loratool](https://github.com/loratool/loratool) %s", title, c.opts.Version)
	if c.opts.DType != tensor.NoDType {
		fmt.Fprintf(b, ", its floating-point tensors as %s, each value rounded once", c.opts.DType)
	}
	b.WriteString(".\n")
	if c.opts.NoProvenance {
		return // decisions name the inputs
	}
	b.WriteString("\n| input | file | SHA-256 |\n| --- | --- | --- |\n")
	for _, in := range c.Plan.Inputs {
		for _, f := range in.Files {
			fmt.Fprintf(b, "| %s %s | %s | `%s` |\n", in.Role, hfrepo.EscapeCell(in.Name), hfrepo.EscapeCell(f.Name), plan.HashOf(hashes, f.Path))
		}
	}
	if len(c.Plan.Decisions) == 0 {
		return
	}
	b.WriteString("\nDecisions:\n\n")
	for _, d := range c.Plan.Decisions {
		fmt.Fprintf(b, "- %s\n", hfrepo.EscapeCell(d.Message))
	}
}
