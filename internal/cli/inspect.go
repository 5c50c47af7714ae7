package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/inspect"
	"github.com/loratool/loratool/report"
	"github.com/loratool/loratool/verify"
)

// inspectFlags are the flags of inspect.
type inspectFlags struct {
	stats, tree bool
	manifest    bool
	values      int
	run         runFlags
	page        pageFlag
}

func (a *App) newInspect() *cobra.Command {
	var f inspectFlags
	cmd := &cobra.Command{
		Use:   "inspect PATH",
		Short: "What is in a file, a folder or an adapter",
		Long: `Print the tensors of a checkpoint or an adapter from its headers.

Examples:
  loratool inspect ./llama
  loratool inspect ./lora --json
  loratool inspect model-00001-of-00002.safetensors
  loratool inspect model-Q4_K_M.gguf
  loratool inspect ./llama --tree
  loratool inspect ./lora --stats
  loratool inspect ./llama --manifest > llama.manifest.json
  loratool inspect ./lora --stats --report lora.html

PATH is a .safetensors or .gguf file, a model folder, a PEFT adapter folder, or
a repository id in the local hub cache. Of a split GGUF model, any file stands
for all. Nothing but headers and JSON is read, without --stats.

--tree prints modules in place of tensors; layers that are alike are one line.

--stats reads the weights: norm, mean, largest magnitude, zeros and what is not finite,
and of every matrix the largest singular values, the stable rank (the squared norm by the
square of the largest) and the effective rank (exp of the entropy of the values; an upper
bound, marked <, where not all values are known). Of a LoRA adapter the changes scale·B·A
are decomposed in place of their factors.

--manifest reads the weights too and prints name, type, shape and SHA-256 of every tensor,
whatever the shards. Kept in the folder as manifest.json, verify --provenance compares it.

Exit status: 0 well-formed, 4 malformed, truncated or unsupported.`,
		Args:              oneArg("path"),
		ValidArgsFunction: a.models,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.runInspect(cmd.Context(), &f, args[0]) },
	}
	fs := cmd.Flags()
	fs.BoolVar(&f.stats, "stats", false, "read the weights: norms, singular values, ranks")
	f.page.registerForce(fs)
	fs.BoolVar(&f.tree, "tree", false, "print modules, layers that are alike as one")
	fs.BoolVar(&f.manifest, "manifest", false, "print a list of the tensors with their SHA-256 in JSON, for manifest.json")
	fs.IntVar(&f.values, "singular-values", defaultValues, "how many singular values of a matrix --stats computes; 0 for norms only")
	fs.VarP(&f.run.jobs, "jobs", "j", "tensors read at a time (default: one per processor)")
	fs.Var(&f.run.memory, "memory", "working memory of --stats, such as 1GiB (default 256MiB)")
	for flag, complete := range map[string]completer{"memory": fixed("256MiB", "1GiB"), "jobs": fixed()} {
		if err := cmd.RegisterFlagCompletionFunc(flag, complete); err != nil {
			panic(err) // a flag that is not there
		}
	}
	return cmd
}

// defaultValues is how many singular values are computed.
const defaultValues = 8

type (
	inspectJSON struct {
		Schema   string            `json:"schema"`
		Path     string            `json:"path"`
		Format   string            `json:"format"`
		Revision string            `json:"revision,omitempty"`
		Adapter  *adapterJSON      `json:"adapter,omitempty"`
		GGUF     *ggufJSON         `json:"gguf,omitempty"`
		Tensors  []inspectTensor   `json:"tensors"`
		Changes  []changeJSON      `json:"changes,omitempty"` // of an adapter, with --stats
		Tree     []treeJSON        `json:"tree,omitempty"`
		Metadata map[string]string `json:"metadata"`
		Bytes    int64             `json:"bytes"`
		Params   int64             `json:"parameters"`
	}
	inspectTensor struct {
		Name  string  `json:"name"`
		DType string  `json:"dtype"`
		Shape []int64 `json:"shape"`
		Bytes int64   `json:"bytes"`
		File  string  `json:"file"`
		// Stored is set for what is computed from codes: their type and bytes.
		Stored *storedJSON `json:"stored,omitempty"`
		Stats  *statsJSON  `json:"stats,omitempty"`
	}
	storedJSON struct {
		Type   string `json:"type"`
		Bytes  int64  `json:"bytes"`
		Block  int    `json:"blocksize,omitempty"`
		Double bool   `json:"double_quant,omitempty"`
	}
	adapterJSON struct {
		Type    string `json:"peft_type"`
		Rank    int64  `json:"rank,omitempty"`
		Modules int    `json:"modules"`
		Problem string `json:"problem,omitempty"`
	}
)

func (a *App) runInspect(ctx context.Context, f *inspectFlags, path string) error {
	o, err := f.run.engineOptions(a)
	if err != nil {
		return err
	}
	if f.values < 0 || f.values > maxValues {
		return usagef("--singular-values: %d is not within 0..%d", f.values, maxValues)
	}
	if f.page.path != "" && !f.stats {
		return usageHint("loratool inspect --stats --report "+f.page.path+" "+path, "--report: its pictures are of what --stats reads")
	}
	if f.manifest && (f.stats || f.tree) {
		return usagef("--manifest prints a document of its own, without --stats and --tree")
	}
	m, err := checkpoint.Open(path, a.cache())
	if err != nil {
		return err
	}
	defer m.Close()
	if err := f.page.refusal(a, pathsOf([]*checkpoint.Model{m})); err != nil {
		return err
	}
	if f.manifest {
		return a.printManifest(ctx, m, o)
	}
	doc := inspectJSON{
		Schema: "loratool.inspect/v1", Path: path, Format: "safetensors", Revision: m.Commit,
		Tensors: []inspectTensor{}, Metadata: m.Metadata(),
	}
	for _, s := range m.Specs() {
		t := describeTensor(m, s)
		doc.Tensors = append(doc.Tensors, t)
		doc.Bytes += t.Bytes
		doc.Params += s.NumElements()
	}
	if m.IsAdapter() {
		doc.Adapter = describeAdapter(m)
	}
	if doc.GGUF = describeGGUF(m); doc.GGUF != nil {
		doc.Format = "gguf"
	}
	if f.stats {
		if err := a.addStats(ctx, &doc, m, inspect.Options{Values: f.values}, o); err != nil {
			return err
		}
	}
	if f.tree {
		doc.Tree = treeOf(doc.Tensors)
	}
	if a.json {
		a.printJSON(doc)
	} else {
		a.printInspect(doc, m, f)
	}
	return f.page.write(a, func() *report.Page { return inspectPage(&doc) })
}

// printManifest prints the list of the tensors, which is JSON with and without --json.
func (a *App) printManifest(ctx context.Context, m *checkpoint.Model, o engine.Options) error {
	defer a.noteStop(ctx)()
	progress := a.newProgress("reading")
	o.Progress = progress
	list, err := verify.NewManifest(ctx, m, o)
	progress.Finish()
	if err == nil {
		err = m.CheckUnchanged()
	}
	if err == nil {
		a.printJSON(list)
	}
	return err
}

// describeTensor says what a tensor is: of what is read as another type than it is
// stored as, also that, but for GGUF, where the type in the file is the tensor's own.
func describeTensor(m *checkpoint.Model, s tensor.Spec) inspectTensor {
	file, _ := m.Origin(s.Name)
	t := inspectTensor{s.Name, s.DType.String(), shapeOf(s.Shape), s.Size(), file, nil, nil}
	d, derived := m.Derived(s.Name)
	switch {
	case derived && m.GGUF() != nil:
		t.DType, t.Bytes = d.Kind, d.Stored
	case derived:
		t.Stored = &storedJSON{d.Kind, d.Stored, d.BlockSize, d.Nested}
	}
	return t
}

// describeAdapter reads the config of an adapter. What can't be merged can
// still be looked at.
func describeAdapter(m *checkpoint.Model) *adapterJSON {
	ad, err := adapter.Open(m)
	if err != nil {
		kind, _, _ := m.Config.OptString("peft_type")
		return &adapterJSON{Type: kind, Problem: oneLine(err.Error())}
	}
	return &adapterJSON{Type: ad.Config.Type, Rank: ad.Config.Rank, Modules: len(ad.Modules)}
}

func (a *App) printInspect(doc inspectJSON, m *checkpoint.Model, f *inspectFlags) {
	fmt.Fprintf(a.out, "%s: %s, %d tensors, %d parameters, %s\n", oneLine(doc.Path), doc.Format, len(doc.Tensors), doc.Params, formatSize(doc.Bytes))
	if ad := doc.Adapter; ad != nil {
		if ad.Problem != "" {
			fmt.Fprintf(a.out, "adapter: %s\nproblem: %s\n", oneLine(ad.Type), ad.Problem)
		} else {
			fmt.Fprintf(a.out, "adapter: %s, rank %d, %d modules\n", oneLine(ad.Type), ad.Rank, ad.Modules)
		}
	}
	if doc.GGUF != nil {
		a.printGGUF(doc.GGUF, m.GGUF().Metadata())
	}
	for _, k := range slices.Sorted(maps.Keys(doc.Metadata)) {
		fmt.Fprintf(a.out, "metadata %s: %s\n", shortened(oneLine(k)), shortened(oneLine(doc.Metadata[k])))
	}
	switch {
	case f.tree:
		a.printTree(doc.Tree)
	case !f.stats:
		a.printTensors(doc.Tensors)
	}
	if f.stats {
		a.printStats(&doc)
	}
}

func (a *App) printTensors(tensors []inspectTensor) {
	w := tabwriter.NewWriter(a.out, 0, 4, 2, ' ', 0)
	for _, t := range tensors {
		stored := ""
		if s := t.Stored; s != nil {
			stored = fmt.Sprintf(" (%s, %s)", s.Type, formatSize(s.Bytes))
		}
		fmt.Fprintf(w, "%s\t%s%s\t%v\t%s\t%s\n", oneLine(t.Name), t.DType, stored, tensor.Shape(t.Shape), formatSize(t.Bytes), oneLine(t.File))
	}
	w.Flush() // a.out keeps what goes wrong
}

// maxValue is how many characters of a metadata value are shown.
const maxValue = 100

func shortened(value string) string {
	runes := []rune(value)
	if len(runes) <= maxValue {
		return value
	}
	return fmt.Sprintf("%s... (%d characters; --json prints all)", string(runes[:maxValue]), len(runes))
}
