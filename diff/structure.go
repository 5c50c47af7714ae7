package diff

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/saferead"
	"github.com/loratool/loratool/internal/strictjson"
)

// Difference is one difference of structure.
type Difference struct {
	Code Code
	Name string // of the tensor, the key or the file
	A, B string // what either side has, "" for nothing
	// Counts says that it makes the two checkpoints differ. Who made them and, where
	// numbers have limits, how they are stored does not.
	Counts bool
}

// Code is the kind of a difference of structure.
type Code string

// The codes.
const (
	CodeOnlyA  Code = "only_in_a" // a tensor
	CodeOnlyB  Code = "only_in_b"
	CodeBuffer Code = "buffer" // of one side, which the model computes itself
	CodeTied   Code = "tied"   // a head that one side does not store
	CodeShape  Code = "shape"
	CodeDType  Code = "dtype"
	CodeConfig Code = "config" // a key of config.json or adapter_config.json
	CodeKey    Code = "key"    // of GGUF
	CodeFile   Code = "file"   // beside the weights
)

// report adds a difference of structure.
func (d *Diff) report(code Code, name, a, b string) {
	d.structure = append(d.structure, Difference{code, name, a, b, d.counts(code, name)})
}

// counts decides whether a difference makes the checkpoints differ.
func (d *Diff) counts(code Code, name string) bool {
	switch code {
	case CodeBuffer, CodeTied:
		return false
	case CodeConfig, CodeKey:
		switch top, _, _ := strings.Cut(name, "."); {
		case origins[name], origins[top]:
			return false
		case storage[name], storage[top]:
			return d.opts.Limits.None()
		case factorKeys[top] && d.a.IsAdapter() && d.b.IsAdapter():
			return d.opts.Limits.Error == 0 // the products are compared instead
		}
	}
	return true
}

// origins are settings that say who made a checkpoint and from what.
var origins = setOf("transformers_version", "_name_or_path", "_commit_hash", "base_model_name_or_path", "revision",
	"peft_version", "inference_mode", "auto_mapping", "general.name", "general.basename", "general.quantized_by",
	"general.author", "general.description", "general.url", "general.repo_url", "general.source")

// storage are settings that say how numbers are stored.
var storage = setOf("dtype", "torch_dtype", "quantization_config", "general.file_type", "general.quantization_version",
	"general.alignment", "split")

// factorKeys are the settings of an adapter that are in the product of its factors.
var factorKeys = setOf("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")

func setOf(names ...string) map[string]bool {
	set := make(map[string]bool)
	for _, n := range names {
		set[n] = true
	}
	return set
}

// compareSpecs compares how the two tensors of a pair are stored, and finds out whether
// their numbers can be compared. Factors of other ranks can't, but their product is.
func (d *Diff) compareSpecs(p *pair) {
	p.opaque = !p.a.DType.IsFloat()
	switch {
	case !slices.Equal(squeezed(p.a.Shape), squeezed(p.b.Shape)):
		p.apart = fmt.Sprintf("shapes %v and %v", p.a.Shape, p.b.Shape)
	case p.a.DType != p.b.DType && (p.opaque || !p.b.DType.IsFloat()):
		p.apart = fmt.Sprintf("%s and %s are not both floating-point numbers", p.a.DType, p.b.DType)
	}
	if !p.a.Shape.Equal(p.b.Shape) {
		d.structure = append(d.structure, Difference{CodeShape, p.a.Name, p.a.Shape.String(), p.b.Shape.String(), !p.covered})
	}
	if a, b := storedAs(d.a, p.a), storedAs(d.b, p.b); a != b && (!d.computed() || p.apart != "") {
		d.structure = append(d.structure, Difference{CodeDType, p.a.Name, a, b, p.apart != "" && !p.covered || d.opts.Limits.None()})
	}
}

// squeezed leaves out the dimensions of 1, which change no element's place.
func squeezed(s tensor.Shape) tensor.Shape {
	return slices.DeleteFunc(slices.Clone(s), func(n int64) bool { return n == 1 })
}

// storedAs names the element type of a tensor as it is stored.
func storedAs(m *checkpoint.Model, s tensor.Spec) string {
	if q, ok := m.Derived(s.Name); ok {
		return q.Kind
	}
	return s.DType.String()
}

// compareSettings compares the config, or the keys of two GGUF files. A GGUF file and a
// folder state the same in other words.
func (d *Diff) compareSettings() {
	a, b := d.a.GGUF(), d.b.GGUF()
	switch {
	case a != nil && b != nil:
		d.compareKeys(a.Metadata(), b.Metadata())
	case a != nil || b != nil || d.a.Config == nil || d.b.Config == nil:
	default:
		d.compareConfigs(d.a.Config, d.b.Config)
	}
}

// compareConfigs compares two objects key by key; those of objects within have dots.
func (d *Diff) compareConfigs(a, b *strictjson.Object) {
	x, y := make(map[string]string), make(map[string]string)
	names := flatten(x, nil, "", a)
	names = flatten(y, names, "", b)
	reported := make(map[string]bool)
	for _, name := range names {
		if x[name] != y[name] && !reported[name] {
			reported[name] = true
			d.report(CodeConfig, name, x[name], y[name])
		}
	}
}

// flatten adds the members of an object to values, as JSON, and their names, in order,
// to a list. What is null is as good as absent: it stands for a default.
func flatten(values map[string]string, names []string, prefix string, o *strictjson.Object) []string {
	for key, v := range o.All() {
		if inner, err := v.Object(); err == nil && inner.Len() > 0 {
			names = flatten(values, names, prefix+key+".", inner)
			continue
		}
		if v.IsNull() {
			continue
		}
		values[prefix+key] = string(v.Encode(""))
		names = append(names, prefix+key)
	}
	return names
}

// compareKeys compares the keys of two GGUF files. How a model is split does not count
// to the model.
func (d *Diff) compareKeys(a, b *gguf.Metadata) {
	for key, v := range a.All() {
		w, ok := b.Get(key)
		switch {
		case strings.HasPrefix(key, "split."):
		case !ok:
			d.report(CodeKey, key, keyText(v), "")
		case !v.Equal(w):
			d.report(CodeKey, key, keyText(v), keyText(w))
		}
	}
	for key, w := range b.All() {
		if !a.Has(key) && !strings.HasPrefix(key, "split.") {
			d.report(CodeKey, key, "", keyText(w))
		}
	}
}

// keyText is a value of a key in a few words.
func keyText(v gguf.Value) string {
	if v.Type() == gguf.Array {
		return fmt.Sprintf("%d %s", v.Len(), v.ElemType())
	}
	if text, err := v.Text(); err == nil {
		return text
	}
	if b, err := v.Bool(); err == nil {
		return fmt.Sprint(b)
	}
	if n, err := v.Int(); err == nil {
		return fmt.Sprint(n)
	}
	f, _ := v.Float()
	return fmt.Sprint(f)
}

// compareFiles compares the files beside the weights of two folders.
func (d *Diff) compareFiles() error {
	if !d.a.IsFolder || !d.b.IsFolder {
		return nil
	}
	filesA, err := d.a.SideFiles()
	if err != nil {
		return err
	}
	filesB, err := d.b.SideFiles()
	if err != nil {
		return err
	}
	inB := make(map[string]checkpoint.InputFile)
	for _, f := range filesB {
		inB[f.Name] = f
	}
	for _, f := range filesA {
		g, ok := inB[f.Name]
		delete(inB, f.Name)
		if !ok {
			d.report(CodeFile, f.Name, byteCount(f.Size), "")
			continue
		}
		same, err := sameFile(f, g)
		if err != nil {
			return err
		}
		if !same {
			d.report(CodeFile, f.Name, byteCount(f.Size), byteCount(g.Size))
		}
	}
	for _, g := range filesB {
		if _, left := inB[g.Name]; left {
			d.report(CodeFile, g.Name, "", byteCount(g.Size))
		}
	}
	return nil
}

func byteCount(n int64) string { return fmt.Sprintf("%d bytes", n) }

// sameFile compares two files byte by byte.
func sameFile(f, g checkpoint.InputFile) (bool, error) {
	if f.Size != g.Size {
		return false, nil
	}
	var readers [2]io.ReaderAt
	for i, file := range []checkpoint.InputFile{f, g} {
		opened, size, err := saferead.OpenRegular(file.Path)
		if err != nil {
			return false, &checkpoint.InputError{Path: file.Path, Err: err}
		}
		defer opened.Close()
		if size != file.Size {
			return false, &checkpoint.InputError{Path: file.Path, Err: errChanged}
		}
		readers[i] = opened
	}
	var x, y [32 << 10]byte
	for off := int64(0); off < f.Size; off += int64(len(x)) {
		n := min(int64(len(x)), f.Size-off)
		if err := readFull(readers[0], x[:n], off); err != nil {
			return false, &checkpoint.InputError{Path: f.Path, Err: err}
		}
		if err := readFull(readers[1], y[:n], off); err != nil {
			return false, &checkpoint.InputError{Path: g.Path, Err: err}
		}
		if !bytes.Equal(x[:n], y[:n]) {
			return false, nil
		}
	}
	return true, nil
}
