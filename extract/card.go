package extract

import (
	"bytes"
	"fmt"
	"sort"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/internal/strictjson"
	"github.com/loratool/loratool/plan"
)

// cardHead is the front matter of a model card, in the hub's words.
type cardHead struct {
	BaseModel   []string `yaml:"base_model,omitempty"`
	Relation    string   `yaml:"base_model_relation,omitempty"`
	LibraryName string   `yaml:"library_name,omitempty"`
	inherited   `yaml:",inline"`
	Tags        []string `yaml:"tags"`
}

// inherited is what the tuned model's card says and what holds for its adapter too.
type inherited struct {
	PipelineTag string `yaml:"pipeline_tag,omitempty"`
	License     string `yaml:"license,omitempty"`
	LicenseName string `yaml:"license_name,omitempty"`
	LicenseLink string `yaml:"license_link,omitempty"`
}

// card writes the README.md of the output. It holds no time and no path, so that
// the same extraction gives the same card.
func (x *Extraction) card(hashes map[string]string) []byte {
	head := cardHead{LibraryName: "peft", Tags: []string{"lora", "loratool"}}
	for _, m := range x.models {
		if front, ok := hfrepo.FrontMatter(m.Card()); ok {
			var from inherited
			// A card that is not as expected has nothing to hand down.
			if err := yaml.Unmarshal(front, &from); err == nil && from != (inherited{}) {
				head.inherited = from
			}
		}
	}
	if !x.opts.NoProvenance {
		head.BaseModel, head.Relation = x.baseModel(), "adapter"
	}
	var b bytes.Buffer
	b.WriteString("---\n")
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(head); err != nil {
		panic("extract: a card of strings does not encode") // it can't fail
	}
	b.WriteString("---\n\n")
	x.cardBody(&b, hashes)
	return b.Bytes()
}

// baseModel is the model that the adapter belongs to, as its config says.
func (x *Extraction) baseModel() []string {
	name, ok, err := x.config.OptString("base_model_name_or_path")
	if err != nil || !ok || x.command == "resize" && !hfrepo.IsRepoID(name) {
		return nil // another tool may have left a path there
	}
	return []string{name}
}

func (x *Extraction) cardBody(b *bytes.Buffer, hashes map[string]string) {
	title, done := "Adapter", "Extracted"
	if x.command == "resize" {
		done = "Resized"
	}
	if !x.opts.NoProvenance {
		title = hfrepo.EscapeCell(x.Plan.Inputs[0].Name)
		if len(x.Plan.Inputs) > 1 {
			title = fmt.Sprintf("%s as an adapter of %s", hfrepo.EscapeCell(x.Plan.Inputs[1].Name), title)
		}
	}
	fmt.Fprintf(b, "# %s\n\n%s with [loratool](https://github.com/loratool/loratool) %s: ", title, done, x.opts.Version)
	fmt.Fprintf(b, "%s.\n", x.Certificate.Sentence)
	if !x.opts.NoProvenance {
		b.WriteString("\n| input | file | SHA-256 |\n| --- | --- | --- |\n")
		for _, in := range x.Plan.Inputs {
			for _, f := range in.Files {
				fmt.Fprintf(b, "| %s %s | %s | `%s` |\n", in.Role, hfrepo.EscapeCell(in.Name), hfrepo.EscapeCell(f.Name), plan.HashOf(hashes, f.Path))
			}
		}
	}
	x.cardModules(b)
	if len(x.Plan.Decisions) == 0 {
		return
	}
	b.WriteString("\nDecisions:\n\n")
	for _, d := range x.Plan.Decisions {
		fmt.Fprintf(b, "- %s (tensors: %d)\n", hfrepo.EscapeCell(d.Message), len(d.Tensors))
	}
}

// cardModules sums the certificate up by the kind of module: the layers of a model
// are many and alike.
func (x *Extraction) cardModules(b *bytes.Buffer) {
	type line struct {
		form               string
		modules            int
		low, high          int64
		delta, lost, worst float64
	}
	lines := make(map[string]*line)
	var names []string
	for _, m := range x.Certificate.Modules {
		kind := leafOf(m.Name)
		key := kind + " " + m.Form
		l := lines[key]
		if l == nil {
			l = &line{form: m.Form, low: m.Rank}
			lines[key] = l
			names = append(names, key)
		}
		l.modules++
		l.low, l.high = min(l.low, m.Rank), max(l.high, m.Rank)
		l.delta += m.DeltaNorm * m.DeltaNorm
		l.lost += m.Residual * m.Residual * m.DeltaNorm * m.DeltaNorm
		l.worst = max(l.worst, m.Residual)
	}
	sort.Strings(names)
	b.WriteString("\n| module | held as | number | rank | change kept | largest residual |\n| --- | --- | --- | --- | --- | --- |\n")
	for _, key := range names {
		l := lines[key]
		rank := ""
		if l.high > 0 {
			if rank = fmt.Sprint(l.low); l.high > l.low {
				rank = fmt.Sprintf("%d to %d", l.low, l.high)
			}
		}
		kept := 1.0
		if l.delta > 0 {
			kept = 1 - l.lost/l.delta
		}
		fmt.Fprintf(b, "| %s | %s | %d | %s | %s | %.3g |\n",
			hfrepo.EscapeCell(strings.TrimSuffix(key, " "+l.form)), l.form, l.modules, rank, Percent(kept), l.worst)
	}
}

// leafOf is the last two parts of a name: a module and its parameter.
func leafOf(name string) string {
	parts := strings.Split(name, ".")
	return strings.Join(parts[max(len(parts)-2, 0):], ".")
}

// Metadata is what goes into the header of the weights file: what was extracted
// from which bytes, and how. No path, host or time. Hashes are by path; nil leaves
// placeholders of the same length.
func (x *Extraction) Metadata(hashes map[string]string) map[string]string {
	if x.opts.NoProvenance {
		return nil
	}
	root := strictjson.NewObject()
	root.Set("tool", strictjson.NewString("loratool"))
	root.Set("version", strictjson.NewString(x.opts.Version))
	root.Set("command", strictjson.NewString(x.command))
	root.Set("options", x.opts.describe().Value())
	var inputs []strictjson.Value
	for _, in := range x.Plan.Inputs {
		o := strictjson.NewObject()
		o.Set("role", strictjson.NewString(in.Role))
		o.Set("name", strictjson.NewString(in.Name))
		if in.Note != "" {
			o.Set("revision", strictjson.NewString(in.Note))
		}
		files := strictjson.NewObject()
		for _, f := range in.Files {
			files.Set(f.Name, strictjson.NewString(plan.HashOf(hashes, f.Path)))
		}
		o.Set("sha256", files.Value())
		inputs = append(inputs, o.Value())
	}
	root.Set("inputs", strictjson.NewArray(inputs...))
	return map[string]string{"loratool": string(root.Encode(""))}
}

// describe lists the options that were given.
func (o Options) describe() *strictjson.Object {
	all := strictjson.NewObject()
	number := func(key string, v float64) {
		if n, err := strictjson.NewFloat(v); err == nil && v != 0 {
			all.Set(key, n)
		}
	}
	count := func(key string, v int64) {
		if v != 0 {
			all.Set(key, strictjson.NewInt(v))
		}
	}
	flag := func(key string, v bool) {
		if v {
			all.Set(key, strictjson.NewBool(true))
		}
	}
	count("rank", o.Rule.Rank)
	number("energy", o.Rule.Energy)
	number("error", o.Rule.Error)
	count("params", o.Rule.Params)
	count("size", o.Rule.Size)
	count("max_rank", o.Rule.MaxRank)
	number("alpha", o.Alpha)
	all.Set("dtype", strictjson.NewString(o.factorType().String()))
	if len(o.Target) > 0 {
		all.Set("target", strictjson.NewStrings(o.Target))
	}
	if len(o.Exclude) > 0 {
		all.Set("exclude", strictjson.NewStrings(o.Exclude))
	}
	flag("exact", o.Exact)
	flag("dense_when_cheaper", o.DenseWhenCheaper)
	flag("plain", o.Plain)
	return all
}

// SetHashes completes the card and returns the metadata with the hashes of the
// inputs.
func (x *Extraction) SetHashes(hashes map[string]string) map[string]string {
	x.final = hashes
	return x.Metadata(hashes)
}
