package quant

import (
	"bytes"
	"fmt"
	"math"

	"go.yaml.in/yaml/v3"

	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/plan"
)

// cardHead is the front matter of a model card, in the hub's words.
type cardHead struct {
	BaseModel []string `yaml:"base_model,omitempty"`
	Relation  string   `yaml:"base_model_relation,omitempty"`
	inherited `yaml:",inline"`
	Tags      []string `yaml:"tags"`
}

// inherited is what the base's card says and what holds for what is made of it too.
type inherited struct {
	LibraryName string `yaml:"library_name,omitempty"`
	PipelineTag string `yaml:"pipeline_tag,omitempty"`
	License     string `yaml:"license,omitempty"`
	LicenseName string `yaml:"license_name,omitempty"`
	LicenseLink string `yaml:"license_link,omitempty"`
}

// card writes the README.md of the quantized model. It holds no time and no path, so
// that the same quantization gives the same card.
func (q *Quantization) card(hashes map[string]string) []byte {
	head := q.head("quantized", "transformers", string(q.opts.Type))
	var b bytes.Buffer
	head.write(&b)
	title := "Quantized model"
	if !q.opts.NoProvenance {
		title = fmt.Sprintf("%s in %s", hfrepo.EscapeCell(q.base.Name), q.opts.Type)
	}
	fmt.Fprintf(&b, "# %s\n\nQuantized with [loratool](https://github.com/loratool/loratool) %s.\n", title, q.opts.Version)
	if l := q.opts.LoftQ; l != nil {
		b.WriteString("\nThe weights belong to a LoftQ adapter that was made with them and that starts where they are off: " +
			"without it they are worse than a plain quantization, and it fits no other.\n")
	}
	q.cardInputs(&b, hashes)
	cardDecisions(&b, q.Plan)
	return b.Bytes()
}

// head makes the front matter of a card.
func (q *Quantization) head(relation, library string, tags ...string) cardHead {
	head := cardHead{Tags: append(tags, "loratool")}
	if front, ok := hfrepo.FrontMatter(q.base.Card()); ok {
		var base inherited
		// A card that is not as expected has nothing to hand down.
		if err := yaml.Unmarshal(front, &base); err == nil {
			head.inherited = base
		}
	}
	if head.LibraryName == "" || relation == "adapter" {
		head.LibraryName = library
	}
	if !q.opts.NoProvenance {
		head.BaseModel, head.Relation = []string{q.base.Name}, relation
	}
	return head
}

func (h cardHead) write(b *bytes.Buffer) {
	b.WriteString("---\n")
	e := yaml.NewEncoder(b)
	e.SetIndent(2)
	if err := e.Encode(h); err != nil {
		panic("quant: a card of strings does not encode") // it can't fail
	}
	b.WriteString("---\n\n")
}

func (q *Quantization) cardInputs(b *bytes.Buffer, hashes map[string]string) {
	if q.opts.NoProvenance {
		return
	}
	b.WriteString("\n| input | file | SHA-256 |\n| --- | --- | --- |\n")
	for _, in := range q.Plan.Inputs {
		for _, f := range in.Files {
			fmt.Fprintf(b, "| %s %s | %s | `%s` |\n", in.Role, hfrepo.EscapeCell(in.Name), hfrepo.EscapeCell(f.Name), plan.HashOf(hashes, f.Path))
		}
	}
}

func cardDecisions(b *bytes.Buffer, p *plan.Plan) {
	if len(p.Decisions) == 0 {
		return
	}
	b.WriteString("\nDecisions:\n\n")
	for _, d := range p.Decisions {
		fmt.Fprintf(b, "- %s (tensors: %d)\n", hfrepo.EscapeCell(d.Message), len(d.Tensors))
	}
}

// adapterCard writes the README.md of the adapter.
func (r *Repair) adapterCard(figures []Repaired, hashes map[string]string) []byte {
	l := r.opts.LoftQ
	head := r.head("adapter", "peft", "lora", "loftq")
	if !r.opts.NoProvenance {
		head.BaseModel = nil // the quantized model has no name but that of its folder
		head.Relation = ""
	}
	var b bytes.Buffer
	head.write(&b)
	fmt.Fprintf(&b, "# LoftQ adapter\n\nMade with [loratool](https://github.com/loratool/loratool) %s: it makes up for the quantization of "+
		"the model that was written with it, in the folder %s, and is where a training on that model starts. It fits no other base.\n",
		r.opts.Version, hfrepo.EscapeCell(r.BaseName()))
	fmt.Fprintf(&b, "\nRank %d, %d iterations, %s, %s. The factors are divided by the scale that the adapter applies, %v.\n",
		l.Rank, l.iterations(), l.Order, hfrepo.EscapeCell(r.planner.describe()), l.scale())
	if figures != nil {
		plain, left := Overall(figures)
		fmt.Fprintf(&b, "\nRelative error of the weights: %.4f without the adapter, quantized plainly; %.4f with it.\n", plain, left)
	}
	r.cardInputs(&b, hashes)
	cardDecisions(&b, r.AdapterPlan)
	return b.Bytes()
}

// Overall returns the relative error of all weights with a pair together, quantized
// plainly and with the pairs.
func Overall(figures []Repaired) (plain, repaired float64) {
	var norm, before, after float64
	for _, f := range figures {
		square := f.Norm * f.Norm
		norm += square
		if square > 0 {
			before += square * f.Plain.Plain * f.Plain.Plain
			after += square * f.Error.Plain * f.Error.Plain
		}
	}
	if norm == 0 {
		return 0, 0
	}
	return math.Sqrt(before / norm), math.Sqrt(after / norm)
}
